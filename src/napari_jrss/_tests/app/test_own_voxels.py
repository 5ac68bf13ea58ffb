"""A project whose scans are finer than its grid: labels are learned at the scans' own voxels."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

import napari_jrss as jrss
from napari_jrss._tests.app.phantoms import TURNS, turn
from napari_jrss.app.review.prediction_review import at_own_voxels
from napari_jrss.app.rounds.estimate import estimated, steps_of
from napari_jrss.app.rounds.measure import Measured, StepCost
from napari_jrss.app.session import Session
from napari_jrss.config import TrainingConfig, preset
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project

pytestmark = pytest.mark.slow


def short() -> TrainingConfig:
    settings = preset("smoke").model_dump()
    settings["segmentation"] |= {"minimum_steps": 80}
    settings["registration"] |= {"minimum_steps": 1}
    settings["fine"] |= {"steps": 60, "crop": 32}
    return TrainingConfig.model_validate(settings)


@pytest.fixture(scope="module")
def trained(finer_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That project after its pre-training."""
    path = shutil.copytree(finer_once, tmp_path_factory.mktemp("trained") / "coarse.jrss")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Project.open(path) as project:
        jrss.train(project, short(), rounds=0)
        assert project.require_teacher().files.fine.exists()
    torch.set_num_threads(threads)
    return path


@pytest.fixture
def cohort(finer_once: Path) -> Path:
    """The scans of the project."""
    return finer_once.parent / "cohort"


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Iterator[Project]:
    with Project.open(Path(shutil.copytree(trained, tmp_path / "a.jrss"))) as project:
        yield project


def hidden(project: Project, cohort: Path, case: str) -> np.ndarray:
    """The label that nobody has learned from, on the scan turned to LPS."""
    values = nib.Nifti1Image.from_filename(cohort / "labels" / f"{case}.nii.gz").get_fdata()
    transform = project.attributes(case).transform
    return transform.turn_to_scan(values.T.astype(np.uint8))


def test_exports_of_turned_and_oblique_scans_are_better_than_interpolated(
    project: Project, cohort: Path, tmp_path: Path
) -> None:
    """Also those that the round didn't draw: they are drawn now, and kept."""
    files, unlabelled = project.require_teacher().files, project.snapshot().unlabelled
    assert set(unlabelled) & set(TURNS)
    by_round = files.prediction(unlabelled[0])
    coarse = files.prediction(unlabelled[0], on_scan=False)
    assert by_round is not None
    assert coarse is not None
    files.write_prediction(unlabelled[0], coarse)
    out = {path.name: path for path in jrss.export_labels(project, tmp_path / "e", device="cpu")}
    kept = files.prediction(unlabelled[0])
    assert kept is not None
    np.testing.assert_array_equal(kept.scan_label, by_round.scan_label)
    gained = []
    for case in unlabelled:
        made, transform = files.prediction(case), project.attributes(case).transform
        assert made is not None
        assert made.scan_label is not None
        truth = hidden(project, cohort, case)
        coarse = files.prediction(case, on_scan=False)
        assert coarse is not None
        carried = transform.prediction_to_scan(coarse)
        gained.append(
            dice_per_class(made.scan_label, truth, 3).mean()
            - dice_per_class(carried, truth, 3).mean()
        )
        scan = nib.Nifti1Image.from_filename(cohort / "images" / f"{case}.nii.gz")
        exported = nib.Nifti1Image.from_filename(out[f"{case}.nii.gz"])
        np.testing.assert_array_equal(exported.affine, scan.affine)
        of_file = transform.turn_to_source(made.scan_label).T
        np.testing.assert_array_equal(np.asanyarray(exported.dataobj), of_file)
    assert np.mean(gained) > 0.005, gained


def test_segment_gives_what_the_round_predicted_however_the_scan_is_stored(
    project: Project, cohort: Path, tmp_path: Path
) -> None:
    case = project.snapshot().unlabelled[0]
    made = project.require_teacher().files.prediction(case)
    assert made is not None
    transform = project.attributes(case).transform
    path = cohort / "images" / f"{case}.nii.gz"
    label = jrss.segment(project, path).array
    assert made.scan_label is not None
    np.testing.assert_array_equal(label, transform.turn_to_source(made.scan_label))
    turned = tmp_path / "turned.nii.gz"
    shutil.copy(path, turned)
    turn(turned, "PIR")
    other = jrss.segment(project, turned)
    back = nib.Nifti1Image(other.array.T, nib.Nifti1Image.from_filename(turned).affine)
    codes = nib.aff2axcodes(nib.Nifti1Image.from_filename(path).affine)
    ornt = ornt_transform(io_orientation(back.affine), axcodes2ornt(codes))
    np.testing.assert_array_equal(np.asanyarray(back.as_reoriented(ornt).dataobj), label.T)


def test_a_draft_without_it_is_drawn_anew_when_its_case_opens(
    trained: Path, tmp_path: Path
) -> None:
    session = Session(author="anna")
    session.open(shutil.copytree(trained, tmp_path / "a.jrss"))
    try:
        project = session.workspace.open_project
        files, case = project.require_teacher().files, project.snapshot().unlabelled[0]
        fine, coarse = files.prediction(case), files.prediction(case, on_scan=False)
        assert fine is not None
        assert coarse is not None
        files.write_prediction(case, coarse)
        session.review.open(case)
        assert session.review.wait(10)
        found, deadline = session.review.open_case, time.monotonic() + 60
        while found.prediction is None or found.prediction.scan_label is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert session.review.wait(10)
        np.testing.assert_array_equal(found.editor.label, fine.scan_label)
        kept = files.prediction(case)
        assert kept is not None
        np.testing.assert_array_equal(kept.scan_label, fine.scan_label)
    finally:
        session.close()


def test_a_draft_in_which_the_teacher_has_a_part_is_drawn_by_its_network(
    project: Project,
) -> None:
    teacher, case = project.require_teacher(), project.snapshot().unlabelled[0]
    fine = teacher.files.prediction(case)
    coarse = teacher.files.prediction(case, on_scan=False)
    assert fine is not None
    assert coarse is not None
    by_network = at_own_voxels(project, teacher, case, coarse, "cpu")
    np.testing.assert_array_equal(by_network, fine.scan_label)
    carried = at_own_voxels(project, None, case, coarse, "cpu")
    expected = project.attributes(case).transform.prediction_to_scan(coarse)
    np.testing.assert_array_equal(carried, expected)
    assert (carried != by_network).any()


def test_the_estimate_counts_it(project: Project) -> None:
    config, snapshot = short(), project.snapshot()
    steps = steps_of(config, snapshot, pretrained=True, rounds=2)
    assert steps["own_voxels"] == 2 * 60
    assert steps["labelled_scans"] == 2 * len(snapshot.labelled)
    cost = StepCost(seconds=(0.0, 1e-6), memory=(0.0, 1000.0))
    names = ("mono_segmentation", "student", "prediction", "registration", "deformation")
    measured = Measured(
        device="nowhere",
        program=0,
        total=1e12,
        stages=dict.fromkeys((*names, "own_voxels"), cost),
    )
    without = config.model_copy(update={"fine": config.fine.model_copy(update={"steps": 0})})
    longer, shorter = (estimated(project, each, 1, measured) for each in (config, without))
    crops = 60 * 32**3 * 1e-6
    assert longer.seconds - shorter.seconds == pytest.approx(crops, rel=0.5)
    assert longer.memory > shorter.memory  # a crop is larger than the grid
