"""How long a person waits for one act in napari's window: another case, another tau, a stamp.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/window_acts.py

Drives the real window on synthetic heads of 160x192x160 voxels with a teacher's predictions, which
are read once before. Two times are told: how long the act itself holds the window, and how long it
is until all that was asked for is on the canvas, with nothing left to do for the window nor for the
queue behind it. Beside them stands the CPU time of all threads, which a busy machine changes less.
`drawing` is one drawing of the canvas by itself; without a graphics card it takes most of the
second time.
"""

# ruff: noqa: TID251 (this drives the window)

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from napari_jrss.io.label_files import label_table_from_csv

AIMS_MS = {"switch cases": 300, "move tau": 50, "3D stamp of size 20": 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 192, 160), metavar="N")
    parser.add_argument(
        "--grid",
        type=int,
        nargs=3,
        metavar="N",
        help="voxels of the training grid; by default the scans' own",
    )
    parser.add_argument(
        "--window",
        type=int,
        nargs=2,
        default=(1200, 800),
        metavar=("W", "H"),
        help="size in pixels",
    )
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    shape = " x ".join(map(str, options.shape))
    pixels = " x ".join(map(str, options.window))
    print(
        f"{shape} voxels, a window of {pixels} pixels, "
        f"{os.cpu_count()} cores ({platform.machine()})\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        shape = tuple(options.shape)
        project = make_project(Path(folder), shape, tuple(options.grid or shape))
        found = measure(project, options.window, options.times)
        print(
            "| act | holds the window, ms | worst | on the canvas after, ms | worst | CPU | aim |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|")
        for act, seconds in found.items():
            (held, all_, cpu), (held_worst, worst, _) = np.percentile(
                1000 * np.array(seconds), (50, 100), 0
            )
            figures = f"{held:.0f} | {held_worst:.0f} | {all_:.0f} | {worst:.0f} | {cpu:.0f}"
            print(f"| {act} | {figures} | {AIMS_MS.get(act, '-')} |")


def resident_mb() -> float:
    """Memory that this process holds, in MB."""
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def measure(
    project: Path, size: tuple[int, int], times: int
) -> dict[str, list[tuple[float, float, float]]]:
    """Seconds that each act holds the window, until it is on the canvas, and of all threads."""
    import napari
    from qtpy.QtWidgets import QApplication

    from napari_jrss.widgets.layers.review import ABOVE

    viewer = napari.Viewer()
    viewer.window.resize(*size)
    _, dock = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
    session, app, rng = dock.session, QApplication.instance(), np.random.default_rng(0)
    session.workspace.author = "benchmark"
    session.review.ahead.cases = 0  # no case is read or drafted before it is opened
    session.open(project)
    review, layers = session.review, dock.review.layers

    def settle() -> None:
        """Until neither the window nor the queue has anything left to do."""
        while True:
            app.processEvents()
            if not review.queue.busy:
                app.processEvents()
                return
            time.sleep(0.001)

    def timed(act: Callable[[], object]) -> tuple[float, float, float]:
        began, cpu = time.perf_counter(), time.process_time()
        act()
        held = time.perf_counter() - began
        settle()
        return held, time.perf_counter() - began, time.process_time() - cpu

    def wait(seconds: float = 0.3) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            app.processEvents()
            time.sleep(0.001)

    def stamp() -> None:
        layer = layers.label
        layer.n_edit_dimensions, layer.brush_size, layer.selected_label = 3, 20, 1
        z = int(viewer.dims.current_step[0])
        place = [rng.integers(20, size - 20) for size in layer.data.shape[1:]]
        layer.paint((z, *place), 1)

    cases = [case.case_id for case in session.workspace.open_project.cases()][:2]
    found: dict[str, list[tuple[float, float, float]]] = {act: [] for act in (*AIMS_MS, "drawing")}
    before = resident_mb()
    for act, case in (("first case", cases[0]), ("another case for the first time", cases[1])):
        found[act] = [timed(partial(review.open, case))]
        wait(1)
    print(
        f"memory: {before:.0f} MB before the first case, {resident_mb():.0f} MB with a case open\n"
    )
    review.ahead.cases = 1
    review.suggest_next()
    settle()
    session.workspace.background.wait()
    settle()
    print(f"memory: {resident_mb():.0f} MB with the next case read ahead, too\n")
    if review.suggestion is not None:
        suggested = partial(review.open, review.suggestion.case_id)
        found["the case that is suggested, read ahead"] = [timed(suggested)]
    review.ahead.cases = 0
    for case in cases:  # what is read once is not read again
        review.open(case)
        settle()
        wait(1)
    for i in range(times):
        wait()
        found["switch cases"].append(timed(partial(review.open, cases[i % 2], "discard")))
    layers.set_visible(ABOVE, True)
    for _ in range(times):
        wait()
        thousandths = int(rng.integers(400, 950))
        move = partial(dock.review.prediction.slider.setValue, thousandths)
        found["move tau"].append(timed(move))
    for _ in range(times):
        wait()
        found["3D stamp of size 20"].append(timed(stamp))
    for _ in range(times):
        wait()
        found["drawing"].append(timed(layers.label.refresh))
    review.close_case("discard")
    settle()
    dock.close()
    viewer.close()
    return found


def make_project(folder: Path, shape: tuple[int, int, int], grid: tuple[int, int, int]) -> Path:
    """Four synthetic heads with ten structures, two of them labelled, and a teacher."""
    from napari_jrss.config import PreprocessingConfig, preset
    from napari_jrss.io.layouts import discover
    from napari_jrss.io.predictions import Prediction
    from napari_jrss.io.round_files import RoundDescription
    from napari_jrss.project.project import Project
    from napari_jrss.project.records import RoundOutcome
    from napari_jrss.sample_data import make_cohort

    spacing = tuple(size / voxels for size, voxels in zip(shape, grid, strict=True))
    cohort = make_cohort(folder / "cohort", cases=4, shape=grid, structures=10, spacing_mm=1.0)
    if grid != shape:
        for path in (*cohort.glob("images/*"), *cohort.glob("labels/*")):
            enlarge(path, shape)
    table = label_table_from_csv(cohort / "groups.csv")
    found = discover(images=cohort / "images", labels=cohort / "labels")
    path = folder / "brain.jrss"
    rng = np.random.default_rng(0)
    config = PreprocessingConfig(spacing_mm=spacing, shape=grid)
    with Project.create(path, table, config) as project:
        for result in project.add_cases(found.cases, workers=1):
            assert result.ok, result.reason
        truth = {case.case_id: project.label(case.case_id) for case in project.cases()}
        project.split(labelled=2)
        described = RoundDescription(training=preset("smoke"), classes=list(table.names))
        versions = project.snapshot().label_versions
        entry = project.start_round(None, described.model_dump_json(), versions)
        for case, label in truth.items():
            confidence = rng.uniform(0.3, 1, label.shape).astype(np.float16)
            doubt = rng.exponential(0.02, label.shape).astype(np.float16)
            prediction = Prediction(label, confidence, doubt)
            entry.files.write_prediction(case, prediction)
        project.finish_round(entry.number, RoundOutcome.FINISHED, promote=True)
    return path


def enlarge(path: Path, shape: tuple[int, int, int]) -> None:
    """Repeat the voxels of a NIfTI file, which stay 1 mm large, until it has this shape."""
    import nibabel as nib

    image = nib.load(path)
    array = np.asarray(image.dataobj)
    for axis, size in enumerate(reversed(shape)):  # the file has (x, y, z)
        array = array.take(np.arange(size) * array.shape[axis] // size, axis)
    nib.save(nib.Nifti1Image(array, image.affine, dtype=array.dtype), path)


if __name__ == "__main__":
    main()
