"""A project of the synthetic cohort, read in for real, once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from napari_jrss._tests.app.phantoms import FINE, TURNS, give_teacher, turn
from napari_jrss._tests.app.series import train
from napari_jrss._tests.training.phantoms import Never
from napari_jrss.app.session import Session
from napari_jrss.config import PreprocessingConfig
from napari_jrss.io.label_files import label_table_from_csv
from napari_jrss.io.layouts import discover
from napari_jrss.project.project import Project
from napari_jrss.sample_data import make_cohort


@pytest.fixture(scope="session")
def trainable_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight cases: 2 labelled and 2 not, 2 for validation, 2 for tests."""
    folder = tmp_path_factory.mktemp("trainable")
    cohort = make_cohort(folder / "cohort", cases=8, shape=(16, 24, 16), structures=2)
    table = label_table_from_csv(cohort / "groups.csv")
    found = discover(images=cohort / "images", labels=cohort / "labels")
    path = folder / "brain.jrss"
    with Project.create(path, table, PreprocessingConfig(shape=(16, 24, 16))) as project:
        results = list(project.add_cases(found.cases, workers=1))
        assert [r.reason for r in results if not r.ok] == []
        project.split(labelled=2, validation=2, test=2)
    return path


@pytest.fixture(scope="session")
def finer_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on a grid of 4 mm: scans of 2 mm, some stored in other axes or obliquely."""
    folder = tmp_path_factory.mktemp("finer")
    cohort = make_cohort(folder / "cohort", 7, (32, 40, 32), structures=2, spacing_mm=2)
    for case, how in TURNS.items():
        for part in ("images", "labels"):
            turn(cohort / part / f"{case}.nii.gz", how)
    with Project.from_folders(
        folder / "coarse.jrss",
        cohort / "images",
        cohort / "labels",
        groups=cohort / "groups.csv",
        preprocessing=PreprocessingConfig(shape=(16, 20, 16), spacing_mm=(4.0, 4.0, 4.0)),
        workers=1,
    ) as project:
        project.split(labelled=3, validation=1, test=0, seed=1)
        return project.path


@pytest.fixture(scope="session")
def fine_round(finer_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same project after a pre-training and a round of `FINE` in this process."""
    path = shutil.copytree(finer_once, tmp_path_factory.mktemp("fine") / "coarse.jrss")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Project.open(path) as project:
        list(train(project, FINE, 1, Never(), device="cpu"))
    torch.set_num_threads(threads)
    return path


@pytest.fixture
def project(trainable_once: Path, tmp_path: Path) -> Iterator[Project]:
    """That project, a copy of one's own, open for writing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Project.open(shutil.copytree(trainable_once, tmp_path / "brain.jrss")) as opened:
        yield opened
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def taught_once(trainable_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic project with a teacher."""
    path = shutil.copytree(trainable_once, tmp_path_factory.mktemp("taught") / "brain.jrss")
    with Project.open(path) as project:
        give_teacher(project)
    return path


@pytest.fixture
def session(taught_once: Path, tmp_path: Path) -> Iterator[Session]:
    """A session on a copy of it."""
    session = Session(author="anna")
    session.open(shutil.copytree(taught_once, tmp_path / "brain.jrss"))
    yield session
    session.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread, so that tests side by side don't slow each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
