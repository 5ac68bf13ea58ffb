"""The plans for seven kinds of cohort, and what pre-training and a round really cost.

    python benchmarks/plans.py
    python benchmarks/plans.py --train brains --budget 20min

The cohorts are made here: bodies in air on a table (CT), heads with many structures and with few,
small crops, thick slices, and scans of different axes and voxel sizes. The first command makes each
and prints its three plans and the seconds of the import. The second trains on one of them with no
other option (without a budget, by the default plan) and compares its time and its peak memory with
the plan's (on Linux).
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from napari_jrss import Project, train
from napari_jrss.preprocess.plan import BUDGETS_S, budget_seconds
from napari_jrss.project.importing import ScanFolders, look_into

# Scans, labelled scans, voxels (x, y, z), voxel size in mm, structures, and the part of each axis
# that head or body take up.
KINDS = {
    "ct": (4, 2, [(512, 512, 200), (512, 512, 300)], (0.8, 0.8, 2.5), 5, 0.65),
    "brains": (8, 3, [(256, 256, 256)], (1.0, 1.0, 1.0), 138, 0.65),
    "heads": (10, 5, [(160, 192, 160)], (1.0, 1.0, 1.0), 10, 0.85),
    "hippocampi": (20, 3, [(35, 51, 35), (38, 47, 36)], (1.0, 1.0, 1.0), 2, 1.0),
    "ixi": (12, 4, [(80, 96, 80)], (2.0, 2.0, 2.0), 10, 0.85),
    "thick": (10, 3, [(256, 256, 24)], (0.9, 0.9, 5.0), 4, 0.8),
    "mixed": (10, 3, [(128, 160, 120), (60, 150, 150)], (1.5, 1.2, 1.2), 6, 0.8),
}


def write(folder: Path, kind: str) -> None:
    """Ellipsoids in an ellipsoid, as many as there are structures."""
    count, labelled, shapes, spacing, structures, part = KINDS[kind]
    for number in range(count):
        rng = np.random.default_rng(number)
        shape = shapes[number % len(shapes)]
        axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
        inside = sum((a / part) ** 2 for a in axes) < 1
        side = int(np.ceil(structures ** (1 / 3)))
        cells = [np.clip(((a / part + 0.62) / 1.24 * side).astype(int), 0, side - 1) for a in axes]
        core = sum((a / part) ** 2 for a in axes) < 0.45
        ids = np.where(core, cells[0] * side * side + cells[1] * side + cells[2] + 1, 0)
        ids = np.where(ids <= structures, ids, 0).astype(np.uint8)
        values = 40.0 * inside + ids * (200 / structures) + rng.normal(0, 12, shape)
        values = ndimage.gaussian_filter(values, 0.6)
        if kind == "ct":
            values = np.where(inside, values, -1024)
            values[:, -20:-10, :] = 100  # the table
        affine = np.diag([*spacing, 1.0])
        for name, array in (("images", values.astype(np.int16)), ("labels", ids)):
            if name == "images" or number < labelled:
                (folder / name).mkdir(parents=True, exist_ok=True)
                image = nib.Nifti1Image(array, affine)
                if kind == "mixed" and number % 3 == 1:
                    image = nib.as_closest_canonical(image).slicer[::-1]
                nib.save(image, folder / name / f"{kind}{number:02}.nii.gz")


def show(kind: str, folder: Path) -> None:
    started = time.perf_counter()
    from napari_jrss.config import PreprocessingConfig

    folders = ScanFolders(folder / "images", folder / "labels")
    *_, found = look_into(folders, PreprocessingConfig())
    print(f"{kind}: planned in {time.perf_counter() - started:.1f} s", flush=True)
    for plan in found.plans.values():
        print(f"  {plan.line()}")
        for reason in plan.reasons:
            print(f"    - {reason}")


def run(kind: str, folder: Path, budget: str | None) -> None:
    started = time.perf_counter()
    with Project.from_folders(
        folder / "study.jrss", folder / "images", folder / "labels", budget=budget
    ) as project:
        print(f"{kind}: imported in {time.perf_counter() - started:.0f} s", flush=True)
        plan = project.plan
        assert plan is not None
        print(f"  {plan.line()}", flush=True)
        Path("/proc/self/clear_refs").write_text("5")  # the import's peak is not the training's
        started, computing = time.perf_counter(), time.process_time()
        train(project, rounds=1)
        seconds = time.perf_counter() - started
    planned = plan.pretraining_s + plan.round_s
    allowed = BUDGETS_S["balanced"] if budget is None else budget_seconds(budget)
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])
    print(
        f"  took {seconds / 60:.1f} min ({(time.process_time() - computing) / 60:.1f} CPU min), "
        f"{seconds / planned:.2f} of the plan, {seconds / allowed:.2f} of the "
        f"budget; peak {peak / 2**30:.2f} GiB, {peak / plan.memory:.2f} of the plan"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", choices=sorted(KINDS), help="train on this cohort")
    parser.add_argument("--budget", help="for --train, such as 20min (default: none)")
    arguments = parser.parse_args()
    for kind in [arguments.train] if arguments.train else KINDS:
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), kind)
            if arguments.train:
                run(kind, Path(name), arguments.budget)
            else:
                show(kind, Path(name))


if __name__ == "__main__":
    main()
