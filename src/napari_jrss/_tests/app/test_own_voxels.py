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
from napari_jrss.app.review.prediction_review import at_own_voxels
from napari_jrss.app.rounds.estimate import Measured, StepCost, estimated, steps_of
from napari_jrss.app.rounds.train import OWN_VOXELS_LEFT_OUT, PlannedRound, _left_out
from napari_jrss.app.session import Session
from napari_jrss.config import PreprocessingConfig, TrainingConfig, preset
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.export.labels import export_prediction_files
from napari_jrss.project.project import Project
from napari_jrss.sample_data import make_cohort

pytestmark = pytest.mark.slow

SHAPE = (32, 40, 32)
GRID = PreprocessingConfig(shape=(16, 20, 16), spacing_mm=(4.0, 4.0, 4.0))
TURNS = {"case_004": "LPS", "case_005": "PIR", "case_006": "oblique"}


def short() -> TrainingConfig:
    settings = preset("smoke").model_dump()
    settings["segmentation"] |= {"minimum_steps": 80}
    settings["registration"] |= {"minimum_steps": 1}
    settings["fine"] |= {"steps": 60, "crop": 32}
    return TrainingConfig.model_validate(settings)


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


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of 2 mm, some of them stored in other axes or obliquely."""
    folder = make_cohort(tmp_path_factory.mktemp("cohort"), 7, SHAPE, structures=2, spacing_mm=2)
    for case, how in TURNS.items():
        for part in ("images", "labels"):
            turn(folder / part / f"{case}.nii.gz", how)
    return folder


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on a grid of 4 mm after its pre-training."""
    path = tmp_path_factory.mktemp("trained") / "coarse.jrss"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Project.from_folders(
        path, cohort / "images", cohort / "labels", groups=cohort / "groups.csv", preprocessing=GRID
    ) as project:
        project.split(labelled=3, validation=1, test=0, seed=1)
        jrss.train(project, short(), rounds=0)
        assert project.require_teacher().files.fine.exists()
    torch.set_num_threads(threads)
    return path


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
    files, unlabelled = project.require_teacher().files, project.snapshot().unlabelled
    assert set(unlabelled) & set(TURNS)
    out = {p.name: p for p in export_prediction_files(project, files.predictions, tmp_path / "e")}
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


def test_where_it_was_left_out_the_round_says_so(project: Project) -> None:
    entry, planned = project.require_teacher(), PlannedRound(short(), 0)
    assert _left_out(project, entry, planned) == ""
    entry.files.fine.unlink()
    assert _left_out(project, entry, planned) == OWN_VOXELS_LEFT_OUT
