"""A project of the synthetic cohort, read in for real, once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from napari_jrss._tests.app.phantoms import give_teacher
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
