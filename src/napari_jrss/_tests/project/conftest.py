"""A small cohort of NIfTI files in several orientations, and a project made from it once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from napari_jrss.config import PreprocessingConfig
from napari_jrss.io.layouts import FoundCohort, discover
from napari_jrss.labels import LabelTable
from napari_jrss.project.project import Project

TABLE = LabelTable.of_groups({"left part": (3,), "right part": (7,)})
ORIENTATIONS = ("RAS", "LPS", "PIR", "LAS", "SPL", "IAR")
CASES = len(ORIENTATIONS)


def write_scan(folder: Path, name: str, orientation: str, seed: int, labelled: bool = True) -> None:
    """One phantom: two blocks in noise on a grid of 14x12x10 voxels of 1x1.5x2 mm."""
    rng = np.random.default_rng(seed)
    shape = (14, 12, 10)  # x, y, z in RAS
    ids = np.zeros(shape, np.int16)
    ids[2:7, 3:9, 2:8] = 3
    ids[8 : 12 + seed % 2, 2:8, 3:7] = 7
    image = rng.normal(100, 5, shape).astype(np.float32) + 20 * ids
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = (-5 + seed, -8, 11)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(orientation)))
    for part, array in (("images", image), ("labels", ids)):
        if part == "images" or labelled:
            (folder / part).mkdir(parents=True, exist_ok=True)
            scan = nib.Nifti1Image(array, affine).as_reoriented(turn)
            scan.set_sform(scan.affine, code=2)
            scan.set_qform(scan.affine, code=1)
            nib.save(scan, folder / part / f"{name}.nii.gz")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> FoundCohort:
    """Six labelled scans, each in an orientation of its own."""
    folder = tmp_path_factory.mktemp("cohort")
    for i, orientation in enumerate(ORIENTATIONS):
        write_scan(folder, f"case{i}", orientation, seed=i)
    return discover(folder)


@pytest.fixture(scope="session")
def made_once(cohort: FoundCohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed project of the cohort; tests work on copies of it."""
    path = tmp_path_factory.mktemp("made") / "brain.jrss"
    with Project.create(path, TABLE, PreprocessingConfig()) as project:
        results = list(project.add_cases(cohort.cases, workers=2))
    assert [r.reason for r in results if not r.ok] == []
    return path


@pytest.fixture
def project_path(made_once: Path, tmp_path: Path) -> Path:
    """A closed project of its own, moved from where it was made."""
    return Path(shutil.copytree(made_once, tmp_path / "moved.jrss"))


@pytest.fixture
def project(project_path: Path) -> Iterator[Project]:
    """That project, open for writing."""
    with Project.open(project_path) as opened:
        yield opened
