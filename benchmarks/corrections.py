"""What saving corrections costs: a project of one case, and 1,000 strokes of a brush of size 20.

Each stroke is saved by itself, which is more often than the program does (four times a second).

    python benchmarks/corrections.py
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from napari_jrss.config import PreprocessingConfig
from napari_jrss.io.layouts import FoundCase
from napari_jrss.io.nifti import write_nifti
from napari_jrss.io.volume import ScanHeader
from napari_jrss.labels import LabelTable
from napari_jrss.project.corrections import Corrections, recover
from napari_jrss.project.project import Project

SHAPE = (160, 192, 160)
SIZE = 20
STRUCTURES = 20


def main() -> None:
    """Print one row per kind of brush."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strokes", type=int, default=1000)
    strokes = parser.parse_args().strokes
    print(f"{'brush':6} {'begun ms':>9} {'stroke ms':>10} {'p99 ms':>7} {'per s':>6} {'kB':>7}")
    with TemporaryDirectory() as folder, _project(Path(folder)) as project:
        for brush, depth in (("disc", 1), ("ball", SIZE)):
            _measure(project, brush, depth, strokes)


def _measure(project: Project, brush: str, depth: int, strokes: int) -> None:
    rng = np.random.default_rng(0)
    label = _regions(rng)
    started = time.perf_counter()
    corrections = Corrections(project, "case", "blank", label.copy(), "Ada")
    corrections.save({0: label[0]})
    begun = time.perf_counter() - started
    spent = []
    for _ in range(strokes):
        z, y, x = (rng.integers(0, n - SIZE) for n in SHAPE)
        _paint(label[z : z + depth, y : y + SIZE, x : x + SIZE], int(rng.integers(STRUCTURES)))
        started = time.perf_counter()
        corrections.save({k: label[k] for k in range(z, z + depth)})
        spent.append(time.perf_counter() - started)
    size = project.corrections_path("case").stat().st_size
    started = time.perf_counter()
    assert (recover(project, "case").label == label).all()
    recovered = time.perf_counter() - started
    started = time.perf_counter()
    corrections.accept(label)
    accepted = time.perf_counter() - started
    ms = 1e3 * np.array(spent)
    print(
        f"{brush:6} {1e3 * begun:9.0f} {np.median(ms):10.1f} {np.percentile(ms, 99):7.1f} "
        f"{strokes / sum(spent):6.0f} {size / 1e3:7.0f}   recovered in {1e3 * recovered:.0f} ms, "
        f"accepted in {1e3 * accepted:.0f} ms"
    )


def _project(folder: Path) -> Project:
    scan = folder / "scan.nii"
    image = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    write_nifti(scan, image, ScanHeader.of_affine(np.eye(4), SHAPE))
    table = LabelTable.of_groups({f"structure {i}": (i,) for i in range(1, STRUCTURES + 1)})
    settings = PreprocessingConfig(prealign="none")
    project = Project.create(folder / "brain.jrss", table, settings)
    (result,) = project.add_cases([FoundCase("case", scan)], workers=1)
    assert result.ok, result.reason
    return project


def _regions(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A label of about as many voxels and borders as that of a brain."""
    label = np.zeros(SHAPE, np.uint8)
    for i in range(3 * STRUCTURES):
        z, y, x = (rng.integers(n // 8, n - n // 4) for n in SHAPE)
        _paint(label[z : z + 40, y : y + 40, x : x + 40], 1 + i % STRUCTURES)
    return label


def _paint(box: NDArray[np.uint8], value: int) -> None:
    """Fill the disc or the ball within a box."""
    grid = np.ogrid[tuple(slice(-1, 1, complex(n)) if n > 1 else slice(0, 1) for n in box.shape)]
    box[sum(axis**2 for axis in grid) <= 1] = value


if __name__ == "__main__":
    main()
