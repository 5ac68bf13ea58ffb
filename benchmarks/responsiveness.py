"""How quick napari's window stays while a round trains on the CPU.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/responsiveness.py
    ... python benchmarks/responsiveness.py --modes idle own-process --seconds 30

Drives the real window: paints with a 3D brush, scrolls through slices, switches cases and tabs.
Meanwhile a timer of 10 ms notes how late it comes; what is printed are its gaps, as a table in
Markdown. Each mode runs in a process of its own: `napari` is the peer, napari alone with a scan and
a label on its canvas; `idle` has the dock and no round, `own-process` a round in a process of its
own, `this-process` a round on a thread of the window's process. `tools` has no round: region
strokes are drawn and taken, places are decided between two opinions, and all the while other cases
are looked through for corrected errors and drafts are made ahead. The first seconds, in which the
training starts, are counted apart.
"""

# ruff: noqa: TID251 (this drives the window)

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from napari_jrss.io.label_files import label_table_from_csv

LABEL = "label"  # the layer that is painted
MODES = ("napari", "idle", "own-process", "this-process", "tools")
TICK_MS, ACT_MS, SWITCH_S = 10, 50, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 96, 96), metavar="N")
    parser.add_argument("--seconds", type=float, default=20.0, help="after the first step")
    parser.add_argument(
        "--window",
        type=int,
        nargs=2,
        default=(1200, 800),
        metavar=("W", "H"),
        help="its size in pixels",
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--one", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        size = tuple(options.window)
        print(json.dumps(measure(options.one, tuple(options.shape), size, options.seconds)))
        return
    shape = " x ".join(map(str, options.shape))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"{shape} voxels, a window of {' x '.join(map(str, options.window))} pixels, "
        f"{os.cpu_count()} cores ({platform.machine()}), load before {load:.1f}\n"
    )
    print("| round | median ms | 99th percentile ms | worst ms | worst at the start ms | steps |")
    print("|---|---|---|---|---|---|")
    for mode in options.modes:
        command = [sys.executable, __file__, "--one", mode, "--seconds", str(options.seconds)]
        command += ["--shape", *map(str, options.shape)]
        command += ["--window", *map(str, options.window)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {mode} | {row['median']:.0f} | {row['p99']:.0f} | {row['worst']:.0f} | "
            f"{row['worst_at_start']:.0f} | {row['steps']} |",
            flush=True,
        )


def measure(
    mode: str, shape: tuple[int, int, int], size: tuple[int, int], seconds: float
) -> dict[str, Any]:
    """Gaps of the timer in one mode."""
    from qtpy.QtCore import QTimer

    ticks: list[float] = []
    with tempfile.TemporaryDirectory() as folder, window(mode, Path(folder), shape, size) as opened:
        viewer, switch, session = opened
        steps: list[float] = []
        timer, acting = QTimer(), QTimer()
        person = ToolUser(viewer, switch, session) if mode == "tools" else Person(viewer, switch)
        timer.setInterval(TICK_MS)
        timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
        acting.setInterval(ACT_MS)
        acting.timeout.connect(person.act)
        timer.start()
        acting.start()
        if mode in ("own-process", "this-process"):
            start_round(session, steps)
        began = time.perf_counter()
        let_run(lambda: time.perf_counter() - began > seconds)
        timer.stop()
        acting.stop()
        if session is not None and session.workspace.training.error is not None:
            raise session.workspace.training.error
    at = np.array(ticks)
    gaps = np.diff(at) * 1000
    started = at[1:] < began
    during = gaps[~started]
    if mode == "tools":
        done = f"{person.strokes} strokes, {person.decisions} decisions, {person.rounds} rounds"
        print(f"{done} of work in the background", file=sys.stderr)
    return {
        "median": float(np.median(during)),
        "p99": float(np.percentile(during, 99)),
        "worst": float(during.max()),
        "worst_at_start": float(gaps[started].max(initial=0.0)),
        "steps": len(steps),
    }


@contextmanager
def window(
    mode: str, folder: Path, shape: tuple[int, int, int], size: tuple[int, int]
) -> Iterator[tuple[Any, Callable[[int], None], Any]]:
    """A viewer with something to paint on, how to switch to a case, and the session if any."""
    import napari

    viewer = napari.Viewer()
    viewer.window.resize(*size)
    dock = session = None
    if mode == "napari":
        from napari_jrss.sample_data import make_case

        cases = [make_case(index, shape, structures=4) for index in range(3)]
        image = viewer.add_image(cases[0].image)
        label = viewer.add_labels(cases[0].labels, name=LABEL)

        def switch(turn: int) -> None:
            image.data, label.data = cases[turn % 3].image, cases[turn % 3].labels.copy()
    else:
        _, dock = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
        session = dock.session
        session.workspace.author, session.workspace.device = "benchmark", "cpu"
        if mode == "tools":
            session.open(with_errors(folder, shape))
            session.pairs.engine = "refine"
        else:
            session.open(make_project(folder, shape))
        session.rounds.own_process = mode == "own-process"
        ids = [case.case_id for case in session.workspace.open_project.cases()][:3]

        def switch(turn: int) -> None:
            session.review.open(ids[turn % 3], unsaved="discard")
            dock.tabs.setCurrentIndex((1, 2)[turn % 2])

    for turn in range(3):  # what is read once is not read again
        switch(turn)
        until = time.monotonic() + 2
        let_run(lambda until=until: time.monotonic() > until)
    yield viewer, switch, session
    for layer in list(viewer.layers):
        viewer.layers.remove(layer)
    if dock is not None:
        dock.close()
    viewer.close()


def start_round(session: Any, steps: list[float]) -> None:
    """Train, and come back after the first step; `steps` goes on counting."""
    from napari_jrss.config import preset

    session.workspace.training.event.connect(
        lambda event: steps.append(time.perf_counter()) if event.kind == "step_end" else None
    )
    long = preset("fast").segmentation.model_copy(update={"minimum_steps": 100_000})
    session.rounds.start(preset("fast").model_copy(update={"segmentation": long}), 0)
    let_run(lambda: bool(steps) or session.workspace.training.error is not None)


def let_run(done: Callable[[], bool]) -> None:
    """Let Qt work until then."""
    from qtpy.QtWidgets import QApplication

    while not done():
        QApplication.instance().processEvents()
        time.sleep(0.0005)


class Person:
    """Does something every 50 ms: a stamp of the brush, a slice further, another case or tab."""

    def __init__(self, viewer: Any, switch: Callable[[int], None]) -> None:
        self.viewer, self.switch = viewer, switch
        self.acts = 0
        self._rng = np.random.default_rng(0)
        self._switch_at = time.monotonic() + SWITCH_S

    def act(self) -> None:
        self.acts += 1
        if time.monotonic() > self._switch_at:
            self._switch_at = time.monotonic() + SWITCH_S
            self.switch(int(self._rng.integers(6)))
            return
        if self.acts % 2 and LABEL in self.viewer.layers:
            layer = self.viewer.layers[LABEL]
            layer.n_edit_dimensions, layer.brush_size, layer.selected_label = 3, 20, 1
            layer.paint(tuple(self._rng.integers(20, s - 20) for s in layer.data.shape), 1)
        else:
            size = int(self.viewer.dims.nsteps[0])
            self.viewer.dims.set_current_step(0, int(self._rng.integers(size)))


class ToolUser(Person):
    """Also draws region strokes and decides disputes, while other cases are worked on."""

    def __init__(self, viewer: Any, switch: Callable[[int], None], session: Any) -> None:
        super().__init__(viewer, switch)
        self.session = session
        self.strokes = self.decisions = self.rounds = 0

    def act(self) -> None:
        review, project = self.session.review, self.session.workspace.open_project
        if not self.session.workspace.background.busy:
            self.rounds += 1
            snapshot = project.snapshot()
            review.echoes.look(snapshot.labelled[0])
            review.ahead.prepare(snapshot.unlabelled)
        case = review.case
        if case is None or self.acts % 10 not in (3, 7):
            super().act()
            return
        self.acts += 1
        region, disputed = review.tools.region, review.disputed
        if self.acts % 10 == 4 and region.preview is not None:
            region.take()
        elif self.acts % 10 == 4:
            at = self._rng.integers(25, np.array(case.editor.label.shape) - 25)
            line = [(int(at[0]), int(at[1]), int(at[2]) + i) for i in range(-8, 9)]
            region.draw(line, 1, adding=True)
            self.strokes += 1
        elif disputed.of(case) and disputed.dispute is not None:
            disputed.decide("second")
            self.decisions += 1
        else:
            disputed.compare(f"round:{case.teacher.number}", "blank")


def with_errors(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Four synthetic heads, two of them labelled; the teacher sees them some voxels aside."""
    from window_acts import make_project as with_teacher

    from napari_jrss.project.project import Project

    path = with_teacher(folder, shape, shape)
    with Project.open(path) as project:
        files = project.require_teacher().files
        for case in project.cases():
            found = files.prediction(case.case_id)
            found.label[:] = np.roll(found.label, 3, axis=2)
            files.write_prediction(case.case_id, found)
    return path


def make_project(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Six synthetic heads, two of them labelled."""
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.io.layouts import discover
    from napari_jrss.project.project import Project
    from napari_jrss.sample_data import make_cohort

    cohort = make_cohort(folder / "cohort", cases=6, shape=shape, structures=4)
    table = label_table_from_csv(cohort / "groups.csv")
    found = discover(images=cohort / "images", labels=cohort / "labels")
    path = folder / "brain.jrss"
    with Project.create(path, table, PreprocessingConfig(shape=shape)) as project:
        for result in project.add_cases(found.cases, workers=1):
            assert result.ok, result.reason
        project.split(labelled=2, validation=1)
    return path


if __name__ == "__main__":
    main()
