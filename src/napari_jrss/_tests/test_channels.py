"""Cases of two images, T1 and FLAIR, from import to export; only FLAIR shows the lesion."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import napari_jrss as jrss
from napari_jrss.app.importing import add_scans
from napari_jrss.app.new_scans import new_scans
from napari_jrss.app.planning import change_plan, propose
from napari_jrss.app.rounds.launch import RunOn
from napari_jrss.config import PreprocessingConfig, TrainingConfig
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.inference.load import load_predictor
from napari_jrss.io.layouts import discover
from napari_jrss.io.read import read_volume
from napari_jrss.io.round_files import RoundDescription
from napari_jrss.networks.build import build_segmentation_network
from napari_jrss.networks.weights import CheckpointError, load_tensors, load_weights
from napari_jrss.preprocess import case_store as store
from napari_jrss.project.export.datasets import export_dataset
from napari_jrss.project.importing import ScanFolders
from napari_jrss.sample_data import make_cohort

pytestmark = pytest.mark.slow

LESION = 2  # index of its class
SHAPE = (16, 24, 16)


def config(steps: int) -> TrainingConfig:
    """So many steps of segmentation, and no registration network."""
    settings = jrss.preset("smoke").model_dump()
    segmentation = {"minimum_steps": steps, "steps_per_structure": 0, "crop_fraction": 1.0}
    settings["segmentation"] |= segmentation
    settings["registration"] |= {"epochs": 0, "minimum_steps": 0}
    settings["joint"] |= {"minimum_steps": 2, "registration_epochs": 0, "student": "perturbed"}
    return TrainingConfig.model_validate(settings | {"validation_interval": 20})


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channels") / "cohort"
    return make_cohort(folder, 10, SHAPE, structures=1, spacing_mm=8.0, flair=True)


def imported(cohort: Path, path: Path, *channels: str) -> jrss.Project:
    project = jrss.Project.from_folders(
        path,
        cohort / "images",
        cohort / "labels",
        groups=cohort / "groups.csv",
        channels=channels,
        workers=1,
    )
    project.split(labelled=5, validation=1, test=3)
    return project


@pytest.fixture(scope="module")
def project(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> jrss.Project:
    """Trained on both images of its cases, as they are named by default."""
    made = imported(cohort, tmp_path_factory.mktemp("channels") / "two.jrss", "T1", "FLAIR")
    jrss.train(made, config(200), rounds=0, device="cpu")
    return made


def lesion_dice(project: jrss.Project) -> float:
    (last,) = jrss.evaluate(project, device="cpu").rounds
    return float(last.segmentation["dice"]["per_class"]["lesion"]["mean"])


def test_a_structure_that_one_image_shows_is_found_by_a_teacher_that_sees_it(
    cohort: Path, project: jrss.Project, tmp_path: Path
) -> None:
    assert project.channels == ("T1", "FLAIR")
    with imported(cohort, tmp_path / "one.jrss", "T1") as alone:
        assert alone.channels == ()
        jrss.train(alone, config(200), rounds=0, device="cpu")
        both, one = lesion_dice(project), lesion_dice(alone)
    assert both > 0.4
    assert one < both - 0.3


def test_the_images_of_a_case_lie_on_each_other_though_their_voxels_differ(
    project: jrss.Project,
) -> None:
    images = project.channel_images("case_003")  # its T1 is stored in another orientation
    assert images.shape == (2, *project.grid.shape)
    np.testing.assert_array_equal(images[0], project.image("case_003"))
    label = project.label("case_003")
    seen = [float(np.median(image[label == LESION])) for image in images]
    white = [float(np.median(image[label == 0])) for image in images]
    assert seen[1] > white[1] + 1  # bright in FLAIR where the label, drawn on T1, says
    flair = project.channel_scan("case_003", 1)
    assert flair.name == "FLAIR"
    assert flair.array.shape[0] < SHAPE[0]  # on its own, thicker slices
    for image in images:
        assert abs(float(image.mean())) < 0.2


def test_a_new_scan_needs_all_images_however_they_are_given(
    cohort: Path, project: jrss.Project, tmp_path: Path
) -> None:
    t1, flair = (cohort / "images" / f"case_007_{name}.nii.gz" for name in ("T1", "FLAIR"))
    label = jrss.segment(project, {"FLAIR": flair, "T1": t1}, device="cpu")
    assert label.shape == read_volume(t1).shape
    in_memory = {"T1": read_volume(t1), "FLAIR": read_volume(flair)}
    again = jrss.segment(project, in_memory, device="cpu")
    np.testing.assert_array_equal(label.array, again.array)
    with pytest.raises(ScanError, match="has no FLAIR"):
        jrss.segment(project, t1, device="cpu")
    with pytest.raises(ScanError, match="the images are T1, not T1, FLAIR"):
        jrss.segment(project, {"T1": t1}, device="cpu")
    with pytest.raises(ScanError, match="sees T1 and FLAIR of each scan, not 1"):
        jrss.segment(project, in_memory["T1"], device="cpu")

    # A folder, single files by their names, and files that are named.
    other = cohort / "images" / "case_008_T1.nii.gz"
    with pytest.raises(ScanError, match="holds 10 scans, not the images of one"):
        jrss.segment(project, cohort / "images", device="cpu")
    for path in (t1, flair):
        (tmp_path / "one").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "one")
    alone = jrss.segment(project, tmp_path / "one", device="cpu")
    np.testing.assert_array_equal(alone.array, label.array)
    odd = shutil.copy(t1, tmp_path / "odd.nii.gz")
    results = jrss.segment_scans(project, [t1, flair, other], tmp_path / "out", device="cpu")
    assert [each.problem.rpartition(": ")[2] for each in results] == ["", "has no FLAIR"]
    written = read_volume(tmp_path / "out" / "case_007_label.nii.gz")
    np.testing.assert_array_equal(written.array, label.array)
    with pytest.raises(ProjectError, match="which image of its scan is it"):
        jrss.segment_scans(project, [odd, flair], tmp_path / "out2", device="cpu")
    named = [f"T1={odd}", f"FLAIR={flair}"]
    (result,) = jrss.segment_scans(project, named, tmp_path / "out2", device="cpu")
    assert result.problem == ""
    assert (tmp_path / "out2" / "odd_label.nii.gz").is_file()


def test_the_images_go_through_an_export_in_nnunets_form_and_back(
    project: jrss.Project, tmp_path: Path
) -> None:
    folder = export_dataset(project, tmp_path / "Dataset001_Two")
    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "T1", "1": "FLAIR"}
    case = description["numTraining"] and sorted((folder / "imagesTr").iterdir())[:2]
    assert [path.name[-11:] for path in case] == ["0000.nii.gz", "0001.nii.gz"]
    t1, flair = (nib.load(path) for path in case)
    assert t1.shape == flair.shape  # nnU-Net wants them on the same voxels
    np.testing.assert_allclose(t1.affine, flair.affine)
    found = discover(folder)
    assert found.channels == ("T1", "FLAIR")
    with jrss.Project.from_folders(tmp_path / "back.jrss", folder, workers=1) as back:
        case_id = case[0].name[:8]
        own, again = project.channel_images(case_id), back.channel_images(case_id)
        np.testing.assert_array_equal(own[0], again[0])
        inner = np.s_[1, 3:-3, 3:-3, 3:-3]  # FLAIR went over the voxels of T1
        assert np.corrcoef(own[inner].ravel(), again[inner].ravel())[0, 1] > 0.98


def test_scans_that_come_later_bring_the_images_that_the_project_has(
    project: jrss.Project, cohort: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(project.path, tmp_path / "copy.jrss")
    later = make_cohort(tmp_path / "later", 12, SHAPE, structures=1, spacing_mm=8.0, flair=True)
    for name in ("case_011_T1", "case_011_FLAIR", "case_012_T1"):
        (tmp_path / "new").mkdir(exist_ok=True)
        shutil.copy(later / "images" / f"{name}.nii.gz", tmp_path / "new")
    shutil.copy(later / "images" / "case_010_FLAIR.nii.gz", tmp_path / "new" / "x_FLAIR.nii.gz")
    shutil.copy(later / "images" / "case_010_T1.nii.gz", tmp_path / "new" / "x_T1.nii.gz")
    with jrss.Project.open(path) as copy:
        cohort_found = add_scans(copy, ScanFolders(tmp_path / "new"), workers=1)
        assert [each.reason for each in cohort_found.left_out] == ["has no FLAIR"]
        assert "case_011" in {case.case_id for case in copy.cases()}
        assert copy.channel_images("case_011").shape[0] == 2
        (failed,) = copy.failed_imports()
        assert failed.reason == "the same scan as case_010"
        with pytest.raises(ScanError, match="one image of each case, so none is named T1"):
            add_scans(copy, ScanFolders(later / "labels"), workers=1)


def test_another_plan_carries_all_images(project: jrss.Project, tmp_path: Path) -> None:
    path = shutil.copytree(project.path, tmp_path / "copy.jrss")
    with jrss.Project.open(path) as copy:
        before = copy.channel_images("case_001")
        wishes = PreprocessingConfig(spacing_mm=(12.0, 12.0, 12.0))
        change_plan(copy, propose(copy, wishes=wishes)["balanced"], workers=1)
        images = copy.channel_images("case_001")
        assert images.shape == (2, *copy.grid.shape) != before.shape
        about = copy.attributes("case_001")
        assert about.channels[0].transform.shape == copy.grid.shape
        scans = [store.read_channel_scan(p.case_path("case_001"), 1) for p in (project, copy)]
        np.testing.assert_array_equal(*scans)


def test_a_teacher_says_which_images_it_sees(project: jrss.Project, tmp_path: Path) -> None:
    files = project.require_teacher().files
    assert files.description().channels == ["T1", "FLAIR"]
    network = build_segmentation_network(config(1).segmentation_network, 3)
    with pytest.raises(CheckpointError, match=r"sees 2 images of each case \(T1, FLAIR\), not 1"):
        load_weights(network, files.teacher, 1)
    predict = load_predictor(files, "cpu", with_student=False)
    with pytest.raises(CheckpointError, match="sees T1, FLAIR of each scan, not 1 images"):
        predict(project.image("case_001"))


def test_pairs_are_registered_by_the_first_image_and_refined_by_what_the_teacher_sees(
    project: jrss.Project,
) -> None:
    pair = jrss.register(project, "case_001", "case_003", engine="refine", device="cpu")
    assert pair.figures.residual < pair.figures.residual_before
    refined = jrss.register(project, "case_001", "case_003", engine="jrss", device="cpu")
    assert refined.figures.refined
    assert refined.figures.residual < refined.figures.residual_before
    alone = read_volume(Path(project.attributes("case_001").source))
    with pytest.raises(ProjectError, match="one image of a scan can't be refined"):
        jrss.register(project, alone, "case_003", engine="jrss", device="cpu")


def test_a_joint_round_and_a_forecast_see_all_images(project: jrss.Project, tmp_path: Path) -> None:
    path = shutil.copytree(project.path, tmp_path / "copy.jrss")
    with jrss.Project.open(path) as copy:
        screening = {"screening": {"tau": 0.05, "voxel_gate": False, "learned_gate": False}}
        settings = TrainingConfig.model_validate(config(4).model_dump() | screening)
        entry = jrss.train(copy, settings, rounds=1, device="cpu")
        assert entry is not None
        assert entry.number == 1
        assert entry.files.student.exists()
        weights, about = load_tensors(entry.files.teacher)
        assert weights["encoder.0.0.weight"].shape[1] == 2  # both images
        assert about["channels"] == ["T1", "FLAIR"]
        *_, told = jrss.forecast.events(copy, config(2), device="cpu")
        assert told is not None


@pytest.mark.skipif(sys.platform == "win32", reason="sh is POSIX's")
def test_training_elsewhere_gets_all_images(project: jrss.Project, tmp_path: Path) -> None:
    path = shutil.copytree(project.path, tmp_path / "copy.jrss")
    sources = Path(jrss.__file__).parents[1]
    ssh = tmp_path / "ssh"  # as the real one it gives the rest of its line to a shell
    environment = f"PYTHONPATH={sources} XDG_CACHE_HOME={tmp_path / 'far'}"
    ssh.write_text(f'#!/bin/sh\nshift\nexec env {environment} sh -c "$*"\n')
    ssh.chmod(0o755)
    with jrss.Project.open(path) as copy:
        on = RunOn(f"{ssh} far", sys.executable, threads=1)
        sent: list[str] = []
        for event in jrss.train.events(copy, config(2), rounds=0, pretrain=True, on=on):
            if event.kind == "file_sent":
                sent.append(event.file)
        assert "cases/case_001.ome.zarr/channels/1/0/zarr.json" in sent
        assert not any("channels/1/scan" in name for name in sent)
        entry = copy.require_teacher()
        assert entry.number == 1
        weights, _ = load_tensors(entry.files.teacher)
        assert weights["encoder.0.0.weight"].shape[1] == 2


def test_sources_that_moved_are_found_for_each_image(
    project: jrss.Project, cohort: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(cohort / "images", moved)
    path = shutil.copytree(project.path, tmp_path / "copy.jrss")
    with jrss.Project.open(path) as copy:
        case = copy.case_path("case_001")
        store.update_sources(case, source="/gone/a.nii.gz", channels={"FLAIR": "/gone/b.nii.gz"})
        assert [each.kind for each in copy.missing_sources()] == ["scan", "image FLAIR"]
        found = {each.kind: each.path.name for each in copy.find_sources(moved)}
        assert found == {"scan": "case_001_T1.nii.gz", "image FLAIR": "case_001_FLAIR.nii.gz"}
        assert copy.missing_sources() == []


def test_an_image_that_lies_elsewhere_is_an_error_that_names_it(
    cohort: Path, tmp_path: Path
) -> None:
    shutil.copytree(cohort / "images", tmp_path / "images")
    path = tmp_path / "images" / "case_001_FLAIR.nii.gz"
    image = nib.load(path)
    data, affine = np.asanyarray(image.dataobj), image.affine.copy()
    affine[:3, 3] += 500
    nib.save(nib.Nifti1Image(data, affine), path)
    half = tmp_path / "images" / "case_002_FLAIR.nii.gz"
    image = nib.load(half)
    affine = image.affine.copy()
    affine[2, 3] += 80  # of 128 mm
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), half)
    project, results = tmp_path / "two.jrss", []
    for event in jrss.Project.from_folders.events(
        project, tmp_path / "images", cohort / "labels", channels=("T1", "FLAIR"), workers=1
    ):
        results += [event.result] if hasattr(event, "result") else []
    by_case = {result.case_id: result for result in results}
    assert by_case["case_001"].reason.endswith(
        "case_001_FLAIR.nii.gz: lies beside the first image of its case: they have no place in "
        "common"
    )
    (note,) = by_case["case_002"].notes
    assert note.startswith("FLAIR covers ")
    assert note.endswith(" % of the first image")


def test_images_in_one_file_are_imported_exported_and_told_in_new_files(tmp_path: Path) -> None:
    folder, rng = tmp_path / "Task01", np.random.default_rng(0)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in ("a", "b"):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:10, 5:11, 6:12] = 1
        values = [label * 100 + rng.normal(0, 9, label.shape), rng.normal(50, 9, label.shape)]
        four = np.stack(values, -1).round().astype(np.int16)
        nib.save(nib.Nifti1Image(four, affine), folder / "imagesTr" / f"{case}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"{case}.nii.gz")
    listed = [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in "ab"]
    about = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ"}}
    (folder / "dataset.json").write_text(json.dumps(about | {"training": listed, "test": []}))
    with jrss.Project.from_folders(
        tmp_path / "p.jrss", folder, channels=("ADC", "T2"), workers=1
    ) as project:
        assert project.channels == ("ADC", "T2")
        about_a = project.attributes("a")
        assert (about_a.part, about_a.channels[0].part) == (2, 1)
        assert project.missing_sources() == []
        new = new_scans(project, [folder / "imagesTr" / "b.nii.gz"])
        assert [part.index for part in new[0].images] == [1, 0]
        out = export_dataset(project, tmp_path / "Dataset002_Two")
        exported = nib.load(out / "imagesTr" / "a_0001.nii.gz")  # T2, the second here
        whole = nib.load(folder / "imagesTr" / "a.nii.gz")
        np.testing.assert_array_equal(exported.get_fdata(), whole.get_fdata()[..., 0])


def test_a_case_of_one_image_is_stored_as_before() -> None:
    described = RoundDescription(training=config(1), classes=["background", "a"])
    assert "channels" not in described.model_dump()
    assert described.model_copy(update={"channels": ["T1", "T2"]}).model_dump()["channels"]
