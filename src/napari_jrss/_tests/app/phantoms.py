"""Projects for reviewing: synthetic cases, and a teacher that was never trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_jrss.config import PreprocessingConfig, preset
from napari_jrss.io.predictions import Prediction
from napari_jrss.io.round_files import RoundDescription
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.case_attributes import CaseAttributes
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.transform import TrainingGrid
from napari_jrss.project.cases import FIRST_VERSION
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome


def make_project(
    folder: Path, shape: tuple[int, int, int] = (16, 24, 16), structures: int = 2
) -> Path:
    """Ten cases of noise and blocks: 5 labelled and 3 not, 1 for validation, 1 for tests.

    They are written without worker processes, whose start takes most of the time.
    """
    names = {f"structure {i}": (i,) for i in range(1, structures + 1)}
    config = PreprocessingConfig(shape=shape, spacing_mm=(2.0, 1.0, 1.0))
    table = LabelTable.of_groups(names)
    grid = TrainingGrid(shape=shape, spacing_mm=(2.0, 1.0, 1.0))
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    path = folder / "brain.jrss"
    with Project.create(path, table, config) as project:
        project._ledger.set_grid(grid.model_dump_json())
        for i in range(10):
            label = blocks(shape, structures, i)
            noise = np.random.default_rng(i).normal(0, 5, shape)
            image = (noise + 20 * label).astype(np.float32)
            ready = preprocess(Volume(image, affine), Volume(label, affine), config, grid)
            attributes = CaseAttributes(
                case_id=f"case_{i:02d}",
                source=f"case_{i:02d}.nii.gz",
                checksum="0",
                transform=ready.transform,
                spacing_mm=grid.spacing_mm,
            )
            store.write_case(
                project.path / "cases",
                attributes,
                ready.image,
                ready.label,
                table,
                FIRST_VERSION,
            )
            project.register_case(attributes.case_id)
        project.split(labelled=5, validation=1, test=1)
    return path


def blocks(shape: tuple[int, int, int], structures: int, seed: int) -> NDArray[np.uint8]:
    """Slabs of each structure, one upon the other, a little different each time."""
    label = np.zeros(shape, np.uint8)
    z, y, x = (n // 4 for n in shape)
    thickness = max(2 * z // structures, 1)
    for i in range(structures):
        bottom = z + i * thickness
        label[bottom : bottom + thickness, y : 3 * y - seed % 2, x : 3 * x] = i + 1
    return label


def describe(project: Project) -> str:
    """A round's ``config.json``."""
    described = RoundDescription(training=preset("smoke"), classes=list(project.table.names))
    return described.model_dump_json()


def give_teacher(project: Project, seed: int = 0) -> int:
    """A finished round whose predictions are blocks, unsurely told; its number."""
    entry = project.start_round(None, describe(project), project.snapshot().label_versions)
    rng = np.random.default_rng(seed)
    for case in project.cases():
        label = blocks(project.grid.shape, len(project.table.names) - 1, 0)
        confidence = rng.uniform(0.3, 1, label.shape).astype(np.float16)
        uncertainty = np.zeros(label.shape, np.float16)
        uncertainty[8:10, 6:8, 4:6] = 2
        entry.files.write_prediction(case.case_id, Prediction(label, confidence, uncertainty))
    return project.finish_round(entry.number, RoundOutcome.FINISHED, promote=True).number


def give_networks(project: Project) -> None:
    """Networks that never learned anything, as the current teacher's weights."""
    from napari_jrss.networks.build import build_registration_network, build_segmentation_network
    from napari_jrss.networks.weights import save_tensors

    entry, config = project.teacher, preset("smoke")
    assert entry is not None
    teacher = build_segmentation_network(config.segmentation_network, len(project.table.names))
    registration = build_registration_network(config.registration_network)
    save_tensors(entry.files.teacher, teacher.state_dict(), {})
    save_tensors(entry.files.registration, registration.state_dict(), {})
