"""What a region stroke repairs and what it spoils, on drafts whose true label is hidden.

    python benchmarks/strokes.py STUDY.jrss      # a project with a teacher and test cases
    python benchmarks/strokes.py --time          # CPU time in a scan of 512 x 512 x 300 voxels

A simulated person finds the largest connected fault of a draft, and draws along the middle of its
largest part in its largest slice: "this is the structure", or "this is not". The region stroke
(with and without the teacher) is compared with a brush along the same line, a disc of 5 mm. Voxels
drawn before stay. Means over the cases.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import skeletonize

from napari_jrss.app.review import strokes
from napari_jrss.app.review.editor import LabelEditor
from napari_jrss.geometry import spacing_mm
from napari_jrss.inference.load import load_predictor
from napari_jrss.io.predictions import Prediction
from napari_jrss.preprocess.transform import GridTransform, Intensity
from napari_jrss.project.project import Project
from napari_jrss.project.records import Split

BRUSH_MM = 5.0
TOOLS = ("brush of 5 mm", "region stroke, image alone", "region stroke, with the teacher")


@dataclass(frozen=True, eq=False)
class Case:
    """A draft on the scan's own voxels, and the truth."""

    image: NDArray[np.generic]
    truth: NDArray[np.uint8]
    draft: NDArray[np.uint8]
    teacher: strokes.Teacher

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in mm."""
        return spacing_mm(self.teacher.transform.scan_affine)


@dataclass(frozen=True, eq=False)
class Stroke:
    """A line along a fault."""

    voxels: NDArray[np.intp]
    index: int
    adding: bool
    fault: int  # voxels of the whole fault


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--strokes", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.time:
        measure_time()
    if arguments.study:
        compare(read_cases(arguments.study), arguments.strokes)


def compare(cases: list[Case], count: int) -> None:
    """What the first stroke does, and the Dice after some."""
    print(
        f"{len(cases)} cases; Dice of the drafts {np.mean([dice(c, c.draft) for c in cases]):.3f}"
    )
    counts = [n for n in (1, 3, 5) if n <= count]
    columns = ["fault", "repaired", "spoilt", "cases better"]
    columns += [f"Dice after {n}" for n in counts]
    print(f"| |{' | '.join(columns)} |")
    print("|---|" + "---:|" * len(columns))
    for tool in TOOLS:
        first, scores, better = [], {n: [] for n in counts}, 0
        for case in cases:
            label, drawn = case.draft, np.zeros(case.draft.shape, bool)
            for number in range(1, count + 1):
                stroke = stroke_in(label, case.truth, case.spacing, drawn)
                if stroke is not None:
                    new = use(tool, case, label, stroke, drawn)
                    drawn[tuple(stroke.voxels.T)] = True
                    if number == 1:
                        changed = new != label
                        good = int(np.count_nonzero(changed & (new == case.truth)))
                        bad = int(np.count_nonzero(changed & (label == case.truth)))
                        first.append((stroke.fault, good, bad))
                        better += good > bad
                    label = new
                if number in scores:
                    scores[number].append(dice(case, label))
        fault, good, bad = np.mean(first, axis=0)
        row = [f"{fault:.0f}", f"{good:.0f}", f"{bad:.0f}", f"{better}/{len(first)}"]
        print(f"| {tool} | {' | '.join(row + [f'{np.mean(s):.3f}' for s in scores.values()])} |")


def use(
    tool: str, case: Case, label: NDArray[np.uint8], stroke: Stroke, drawn: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The label after a stroke with one of the tools."""
    if tool == TOOLS[0]:
        found = brushed(label, stroke, case.spacing)
    else:
        found = strokes.region(
            label,
            case.image,
            stroke.voxels,
            stroke.index,
            case.spacing,
            adding=stroke.adding,
            teacher=case.teacher if tool == TOOLS[2] else None,
            keep=drawn,
        )
    new = label.copy()
    new[found.box] = strokes.changed(label[found.box], found)
    return new


def brushed(
    label: NDArray[np.uint8], stroke: Stroke, spacing: tuple[float, float, float]
) -> strokes.Region:
    """What a brush on the slice changes: all that is free within half its width."""
    z = int(stroke.voxels[0, 0])
    beyond = np.ones(label.shape[1:], bool)
    beyond[tuple(stroke.voxels[:, 1:].T)] = False
    here = ndimage.distance_transform_edt(beyond, spacing[1:]) <= BRUSH_MM / 2
    part = label[z : z + 1]
    free = (part != stroke.index) if stroke.adding else (part == stroke.index)
    odds = np.where(here[None] & free, 1, -np.inf).astype(np.float32)
    _, y, x = label.shape
    box = (slice(z, z + 1), slice(0, y), slice(0, x))
    return strokes.Region(stroke.index, stroke.adding, box, odds, odds > 0)


def stroke_in(
    label: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    spacing: tuple[float, float, float],
    drawn: NDArray[np.bool_],
) -> Stroke | None:
    """A stroke along the largest fault of a label; None where there is none."""
    worst, found = 0, None
    for index in range(1, int(truth.max()) + 1):
        for adding in (True, False):
            wrong = (truth == index) & (label != index)
            if not adding:
                wrong = (truth != index) & (label == index)
            parts, _ = ndimage.label(wrong & ~drawn)
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            if sizes.max() > worst:
                worst, found = int(sizes.max()), (index, adding, parts == sizes.argmax())
    if found is None:
        return None
    index, adding, fault = found
    z = int(fault.sum((1, 2)).argmax())
    parts, _ = ndimage.label(fault[z])
    part = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    line = skeletonize(part)
    rows, columns = np.nonzero(line if line.any() else part)
    return Stroke(np.stack([np.full(len(rows), z), rows, columns], 1), index, adding, worst)


def dice(case: Case, label: NDArray[np.uint8]) -> float:
    """Mean Dice of the structures."""
    found = []
    for index in range(1, int(case.truth.max()) + 1):
        ours, true = label == index, case.truth == index
        found.append(2 * np.count_nonzero(ours & true) / max(1, ours.sum() + true.sum()))
    return float(np.mean(found))


def read_cases(study: Path) -> list[Case]:
    """The test cases of a project with the present teacher's drafts."""
    cases = []
    with Project.open(study, read_only=True) as project:
        if project.teacher is None:
            raise SystemExit("the project has no teacher")
        predict = load_predictor(project.teacher.files, "cpu", with_student=False)
        for case in project.cases():
            version = case.reference_version or case.label_version
            if case.split is not Split.TEST or version is None:
                continue
            transform = project.attributes(case.case_id).transform
            prediction = predict(project.image(case.case_id))
            cases.append(
                Case(
                    project.scan_image(case.case_id),
                    project.scan_label(case.case_id, version),
                    transform.prediction_to_scan(prediction),
                    strokes.Teacher(prediction, transform),
                )
            )
    return cases


def measure_time() -> None:
    """CPU time of a stroke in an organ of a large scan, by the length of the stroke."""
    columns = ("stroke", "box", "shown (ms)", "with a teacher (ms)", "another amount (ms)")
    print(f"| {' | '.join(columns)} | taken and undone (ms) |")
    print("|---|---|---:|---:|---:|---:|")
    shape, spacing = (300, 512, 512), (1.0, 0.7, 0.7)
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    organ = ((z - 150) / 60) ** 2 + ((y - 256) / 90) ** 2 + ((x - 200) / 110) ** 2
    label = (organ < 1).astype(np.uint8)
    rng = np.random.default_rng(0)
    image = (100 * (organ < 1.2) + rng.normal(0, 10, shape)).astype(np.int16)
    editor = LabelEditor(label, "blank", 2)
    teacher = a_teacher(label, spacing)
    for length in (1, 15, 60, 150):
        rows = np.arange(256 - length // 2, 256 + (length + 1) // 2)
        line = np.stack([np.full(length, 150), rows, np.full(length, 314)], 1)

        def draw(teacher: strokes.Teacher | None = None, line: NDArray[np.intp] = line) -> object:
            now, keep = editor.snapshot(), editor.painted()
            return strokes.region(now, image, line, 1, spacing, keep=keep, teacher=teacher)

        found = strokes.region(label, image, line, 1, spacing)

        def take(found: strokes.Region = found) -> None:
            part = label[found.box]
            editor.replace("add", strokes.changed(part, found), part, found.box)
            editor.undo()

        print(
            f"| {length * spacing[1]:.0f} mm | {' x '.join(map(str, found.odds.shape))} | "
            f"{cpu_ms(draw):.0f} | {cpu_ms(lambda: draw(teacher)):.0f} | "
            f"{cpu_ms(lambda found=found: found.mask(1.0)):.0f} | {cpu_ms(take):.0f} |"
        )


def a_teacher(label: NDArray[np.uint8], spacing: tuple[float, float, float]) -> strokes.Teacher:
    """Its prediction on a grid of half the resolution."""
    z, y, x = spacing
    to_scan = np.diag([2.0, 2.0, 2.0, 1.0])
    half = np.ascontiguousarray(label[::2, ::2, ::2])
    sure = np.full(half.shape, 0.9, np.float16)
    transform = GridTransform(
        source_shape=label.shape,
        source_affine=np.diag([x, y, z, 1.0]).tolist(),
        header=None,
        shape=half.shape,
        grid_to_source=to_scan.tolist(),
        intensity=Intensity(low=0, high=1, mean=0, std=1),
    )
    return strokes.Teacher(Prediction(half, sure, None, 1 - half, 1 - sure), transform)


def cpu_ms(work: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU time in milliseconds."""
    spent = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        spent.append(1e3 * (time.process_time() - started))
    return float(np.median(spent))


if __name__ == "__main__":
    main()
