"""How quick napari's window stays while a round trains on the CPU.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/responsiveness.py
    ... python benchmarks/responsiveness.py --modes idle own-process --seconds 30

Drives the real window: paints with a 3D brush, scrolls through slices, switches cases and tabs.
Meanwhile a timer of 10 ms notes how late it comes; what is printed are its gaps, as a table in
Markdown. Each mode runs in a process of its own: `idle` without a round, `own-process` with a
round in a process of its own, `this-process` with a round on a thread of the window's process.
The first seconds, in which the training starts, are counted apart.
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
from pathlib import Path
from typing import Any

import numpy as np

MODES = ("idle", "own-process", "this-process")
TICK_MS, ACT_MS, SWITCH_S = 10, 50, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 96, 96), metavar="N")
    parser.add_argument("--seconds", type=float, default=20.0, help="after the first step")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--one", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, tuple(options.shape), options.seconds)))
        return
    shape = " x ".join(map(str, options.shape))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"{shape} voxels, {os.cpu_count()} cores ({platform.machine()}), load before {load:.1f}\n"
    )
    print("| round | median ms | 99th percentile ms | worst ms | worst at the start ms | steps |")
    print("|---|---|---|---|---|---|")
    for mode in options.modes:
        command = [sys.executable, __file__, "--one", mode, "--seconds", str(options.seconds)]
        command += ["--shape", *map(str, options.shape)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {mode} | {row['median']:.0f} | {row['p99']:.0f} | {row['worst']:.0f} | "
            f"{row['worst_at_start']:.0f} | {row['steps']} |",
            flush=True,
        )


def measure(mode: str, shape: tuple[int, int, int], seconds: float) -> dict[str, Any]:
    """Gaps of the timer in one mode."""
    import napari
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    from napari_jrss.config import preset

    with tempfile.TemporaryDirectory() as folder:
        path = make_project(Path(folder), shape)
        viewer = napari.Viewer()
        viewer.window.resize(1600, 1000)
        _, dock = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
        session = dock.session
        session.author, session.device = "benchmark", "cpu"
        session.open(path)
        session.rounds.own_process = mode == "own-process"
        app = QApplication.instance()
        cases = [case.case_id for case in session.open_project.cases()][:3]
        for case in cases:  # what is read once is not read again
            session.review.open(case)
            until = time.monotonic() + 2
            while time.monotonic() < until:
                app.processEvents()

        ticks: list[float] = []
        steps: list[float] = []
        session.training.event.connect(
            lambda event: steps.append(time.perf_counter()) if event.kind == "step_end" else None
        )
        timer = QTimer()
        timer.setInterval(TICK_MS)
        timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
        person = Person(viewer, dock, cases)
        acting = QTimer()
        acting.setInterval(ACT_MS)
        acting.timeout.connect(person.act)
        timer.start()
        acting.start()
        if mode != "idle":
            long = preset("fast").segmentation.model_copy(update={"minimum_steps": 100_000})
            session.rounds.start(preset("fast").model_copy(update={"segmentation": long}), 0)
        while mode != "idle" and not steps and session.training.error is None:
            app.processEvents()
            time.sleep(0.0005)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            app.processEvents()
            time.sleep(0.0005)
        timer.stop()
        acting.stop()
        if session.training.error is not None:
            raise session.training.error
        at = np.array(ticks)
        gaps = np.diff(at) * 1000
        started = at[1:] < began
        during = gaps[~started]
        for layer in list(viewer.layers):
            viewer.layers.remove(layer)
        dock.close()
        viewer.close()
    return {
        "median": float(np.median(during)),
        "p99": float(np.percentile(during, 99)),
        "worst": float(during.max()),
        "worst_at_start": float(gaps[started].max(initial=0.0)),
        "steps": len(steps),
        "acts": person.acts,
    }


class Person:
    """Does something every 50 ms: a stamp of the brush, a slice further, another case or tab."""

    def __init__(self, viewer: Any, dock: Any, cases: list[str]) -> None:
        self.viewer, self.dock, self.cases = viewer, dock, cases
        self.acts = 0
        self._rng = np.random.default_rng(0)
        self._switch = time.monotonic() + SWITCH_S

    def act(self) -> None:
        import napari

        self.acts += 1
        review = self.dock.session.review
        if time.monotonic() > self._switch:
            self._switch = time.monotonic() + SWITCH_S
            turn = int(self._rng.integers(len(self.cases)))
            review.open(self.cases[turn], unsaved="discard")
            self.dock.tabs.setCurrentIndex((1, 2)[self.acts % 2])
            return
        labels = [
            layer
            for layer in self.viewer.layers
            if isinstance(layer, napari.layers.Labels) and layer.editable
        ]
        if self.acts % 2 and labels:
            layer = labels[-1]
            layer.n_edit_dimensions, layer.brush_size, layer.selected_label = 3, 20, 1
            layer.paint(tuple(self._rng.integers(20, s - 20) for s in layer.data.shape), 1)
        else:
            size = int(self.viewer.dims.nsteps[0])
            self.viewer.dims.set_current_step(0, int(self._rng.integers(size)))


def make_project(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Six synthetic heads, two of them labelled."""
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.data.labels import LabelTable
    from napari_jrss.data.layouts import discover
    from napari_jrss.project.project import Project
    from napari_jrss.sample_data import make_cohort

    cohort = make_cohort(folder / "cohort", cases=6, shape=shape, structures=4)
    table = LabelTable.from_csv(cohort / "groups.csv")
    found = discover(images=cohort / "images", labels=cohort / "labels")
    path = folder / "brain.jrss"
    with Project.create(path, table, PreprocessingConfig(shape=shape)) as project:
        for result in project.add_cases(found.cases, workers=1):
            assert result.ok, result.reason
        project.split(labelled=2, validation=1)
    return path


if __name__ == "__main__":
    main()
