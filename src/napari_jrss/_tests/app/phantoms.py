"""Projects for reviewing: synthetic cases, and a teacher that was never trained."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from napari_jrss._tests.training.phantoms import assert_same_tensors, tiny_config, weights
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

FINE = tiny_config(fine={"steps": 4, "crop": 16})
"""Settings of a round that also learns at the scans' own voxels, for a few steps."""


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


TURNS = {"case_004": "LPS", "case_005": "PIR", "case_006": "oblique"}
"""How some scans of the finer cohort are stored."""


def turn(path: Path, how: str) -> None:
    """Store a file's voxels in other axes, or say that they lie obliquely in the world."""
    image = nib.Nifti1Image.from_filename(path)
    data = np.asanyarray(image.dataobj)
    if how == "oblique":
        a = np.deg2rad(15)
        affine = image.affine.copy()
        around = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        affine[:3, :3] = around @ affine[:3, :3]
        turned = nib.Nifti1Image(data, affine)
    else:
        ornt = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(how)))
        turned = nib.Nifti1Image(data, image.affine).as_reoriented(ornt)
    nib.save(turned, path)


def assert_same_rounds(project: Project, expected: Path) -> None:
    """The rounds of two projects end with the same weights and predictions, bit for bit."""
    with Project.open(expected, read_only=True) as other:
        assert [entry.outcome for entry in project.rounds()] == [RoundOutcome.FINISHED] * 2
        for mine, theirs in zip(project.rounds(), other.rounds(), strict=True):
            assert mine.files.fine.exists()
            assert_same_tensors(weights(mine.folder), weights(theirs.folder))
            for case in project.snapshot(mine.number).unlabelled:
                found, known = mine.files.prediction(case), theirs.files.prediction(case)
                assert found is not None
                assert known is not None
                for name, array in vars(known).items():
                    np.testing.assert_array_equal(getattr(found, name), array, err_msg=name)
                assert found.scan_label is not None
