"""Folders as other programs lay them out."""

import json

import numpy as np
import pydicom
import pytest

from napari_jrss._tests.io.dicom_phantoms import lps_affine, slices
from napari_jrss._tests.io.phantoms import block_label, write
from napari_jrss.errors import ScanError
from napari_jrss.io.dicom_layout import discover_dicom
from napari_jrss.io.found import Masks
from napari_jrss.io.label_files import read_classes
from napari_jrss.io.layouts import discover
from napari_jrss.labels import IGNORED
from napari_jrss.metrics import dice_per_class, hd95_mm
from napari_jrss.preprocess.resample import resample_label
from napari_jrss.project.importing import ScanFolders


def files(folder, *names):
    """Small scans of these names, each with other voxels."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(sum(map(ord, name)))
        write(path, rng.integers(0, 3, (3, 4, 5)).astype(np.uint8))


def summary(found, root):
    def name(label):
        if isinstance(label, Masks):
            return {n: p.relative_to(root).as_posix() for n, p in label.files}
        return label and label.relative_to(root).as_posix()

    return {c.case_id: (c.image.relative_to(root).as_posix(), name(c.label)) for c in found.cases}


def test_labels_beside_their_scans(tmp_path):
    names = ["a.nii.gz", "a_seg.nii.gz", "b.nii", "b-label.nii.gz", "c.nii.gz", "d.nii.gz"]
    files(tmp_path, *names, "d.seg.nii.gz", "e_mask.nii.gz", "._a.nii.gz")
    found = discover(tmp_path)
    assert summary(found, tmp_path) == {
        "a": ("a.nii.gz", "a_seg.nii.gz"),
        "b": ("b.nii", "b-label.nii.gz"),
        "c": ("c.nii.gz", None),
        "d": ("d.nii.gz", "d.seg.nii.gz"),
    }
    assert [p.name for p in found.unmatched_labels] == ["e_mask.nii.gz"]  # no label becomes a scan


def test_labels_given_for_a_folder_count(tmp_path):
    files(tmp_path / "all" / "images", "a.nii.gz", "b.nii.gz")
    files(tmp_path / "all" / "labels", "b.nii.gz")
    files(tmp_path / "mine", "a_seg.nii.gz")
    found = ScanFolders(tmp_path / "all", tmp_path / "mine").discover()
    assert {c.case_id: c.label and c.label.parent.name for c in found.cases} == {
        "a": "mine",
        "b": None,
    }


def test_one_folder_for_each_case_with_masks(tmp_path):
    for case in ("s1", "s2"):
        files(tmp_path / case, "ct.nii.gz", "segmentations/liver.nii.gz")
    files(tmp_path / "s2" / "segmentations", "spleen.nii.gz")
    files(tmp_path / "s3", "ct.nii.gz")
    found = discover(tmp_path)
    assert found.layout == "masks"
    assert found.table.names == ("background", "liver", "spleen")
    liver = "segmentations/liver.nii.gz"
    assert summary(found, tmp_path) == {
        "s1": ("s1/ct.nii.gz", {"liver": f"s1/{liver}"}),
        "s2": (
            "s2/ct.nii.gz",
            {"liver": f"s2/{liver}", "spleen": "s2/segmentations/spleen.nii.gz"},
        ),
        "s3": ("s3/ct.nii.gz", None),
    }
    files(tmp_path / "flat" / "s1", "image.nii.gz", "liver.nii.gz", "spleen.nii.gz")
    (case,) = discover(tmp_path / "flat").cases
    assert [name for name, _ in case.label.files] == ["liver", "spleen"]


def test_masks_in_a_folder_of_labels(tmp_path):
    files(tmp_path / "scans", "a.nii.gz", "b.nii.gz")
    files(tmp_path / "masks" / "a", "liver.nii.gz", "spleen.nii.gz")
    found = ScanFolders(tmp_path / "scans", tmp_path / "masks").discover()
    assert found.table.names == ("background", "liver", "spleen")
    assert [len(c.label.files) if c.label else 0 for c in found.cases] == [2, 0]


def test_one_folder_for_each_case_with_a_label(tmp_path):
    for case in ("one/x", "two/x"):
        files(tmp_path / case, "imaging.nii.gz", "segmentation.nii.gz")
    files(tmp_path / "three", "scan_3.nii.gz", "scan_3_seg.nii.gz")
    assert summary(discover(tmp_path), tmp_path) == {
        "one_x": ("one/x/imaging.nii.gz", "one/x/segmentation.nii.gz"),
        "two_x": ("two/x/imaging.nii.gz", "two/x/segmentation.nii.gz"),
        "scan_3": ("three/scan_3.nii.gz", "three/scan_3_seg.nii.gz"),
    }


def test_bids(tmp_path):
    files(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_space-orig_dseg.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_space-MNI152_dseg.nii.gz",
        "derivatives/manual/sub-02/ses-b/anat/sub-02_ses-b_desc-me_dseg.nii.gz",
    )
    (tmp_path / "derivatives/manual/dseg.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    found = discover(tmp_path)
    manual = "derivatives/manual"
    assert summary(found, tmp_path) == {
        "sub-01": (
            "sub-01/anat/sub-01_T1w.nii.gz",
            f"{manual}/sub-01/anat/sub-01_space-orig_dseg.nii.gz",
        ),
        "sub-02_ses-a": ("sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz", None),
        "sub-02_ses-b": (
            "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
            f"{manual}/sub-02/ses-b/anat/sub-02_ses-b_desc-me_dseg.nii.gz",
        ),
    }
    assert found.layout == "bids"
    assert found.table.names == ("background", "left", "right")
    assert found.groups == {"sub-01": "sub-01", "sub-02_ses-a": "sub-02", "sub-02_ses-b": "sub-02"}
    assert [each.what for each in found.left_out] == ["T2w (1 files)"]
    assert [c.image.name for c in discover(tmp_path, series="T2w").cases] == ["sub-01_T2w.nii.gz"]
    with pytest.raises(ScanError, match="has no FLAIR scans, only T1w, T2w"):
        discover(tmp_path, series="FLAIR")


def test_a_table_of_cases(tmp_path):
    files(tmp_path, "x/a.nii.gz", "x/b.nii.gz", "y/a_label.nii.gz")
    table = tmp_path / "cases.csv"
    rows = [
        "image,label,subject,split",
        "x/a.nii.gz,y/a_label.nii.gz,p1,train",
        "x/b.nii.gz,,p2,test",
    ]
    table.write_text("\n".join(rows))
    found = discover(table)
    assert summary(found, tmp_path) == {
        "a": ("x/a.nii.gz", "y/a_label.nii.gz"),
        "b": ("x/b.nii.gz", None),
    }
    assert found.groups == {"a": "p1", "b": "p2"}
    assert found.splits == {"a": "train", "b": "test"}
    for row, reason in {
        "x/c.nii.gz,,,": r"line 2: .*c\.nii\.gz: no such file",
        "x/a.nii.gz,,,tets": "line 2: split is one of",
        ",,,train": "line 2: no image",
    }.items():
        table.write_text(f"{rows[0]}\n{row}")
        with pytest.raises(ScanError, match=reason):
            discover(table)


def test_scans_for_tests_are_scans_without_a_label(tmp_path):
    files(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz")
    about = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    about["labels"] = {"background": 0, "liver": 1, "ignore": 2}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    found = discover(tmp_path)
    assert summary(found, tmp_path)["b"] == ("imagesTs/b_0000.nii.gz", None)
    assert found.table.names == ("background", "liver")  # ignore is no structure
    (case, _) = found.cases
    label = read_classes(case.label, found.table)
    assert set(np.unique(label.array)) == {0, 1, IGNORED}
    ids = found.table.to_source_ids(label.array)
    assert set(np.unique(ids)) == {0, 1, 2}
    listed = {"labels": {"0": "bg", "1": "liver"}, "training": [], "test": []}
    listed["training"] = [{"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}]
    listed["test"] = ["imagesTs/b.nii.gz", "imagesTs/not_there.nii.gz"]
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    assert [c.case_id for c in discover(tmp_path).cases] == ["a", "b"]


def test_ignored_voxels_count_in_no_figure_and_stay_where_they_are():
    truth = block_label()
    prediction = truth.copy()
    prediction[6:11, 5:12, 9:14] = 1  # all wrong, where nobody labelled
    ignored = np.where(truth == 2, IGNORED, truth).astype(np.uint8)
    assert dice_per_class(prediction, ignored, 3)[0] == 1
    assert hd95_mm(prediction, ignored, 3, (1, 1, 1))[0] == 0
    half = np.diag([2.0, 2, 2, 1])
    half[:3, 3] = 0.5
    small = resample_label(ignored, half, (7, 8, 9))
    plain = resample_label(truth, half, (7, 8, 9))
    np.testing.assert_array_equal(small == IGNORED, plain == 2)
    np.testing.assert_array_equal(small == 1, plain == 1)


@pytest.fixture
def study(tmp_path):
    """Two series of one patient, described as T1 and T2, in folders of their own."""
    array = np.arange(120, dtype=np.int16).reshape(5, 6, 4)
    for number, name in enumerate(("t1", "t2")):
        affine = lps_affine(spacing=(1, 1, 2 + number))
        for index, each in enumerate(slices(array + number, affine, "MR")):
            each.SeriesDescription = f"{name} mprage"
            (tmp_path / "dicom" / name).mkdir(parents=True, exist_ok=True)
            each.save_as(tmp_path / "dicom" / name / f"{index}.dcm", enforce_file_format=True)
    return tmp_path / "dicom"


def test_series_are_chosen_by_description(study):
    (case,) = discover_dicom(study, series="T1*").cases
    assert case.image.description == "t1 mprage"
    with pytest.raises(ScanError, match="no series is described as FLAIR: t1 mprage, t2 mprage"):
        discover_dicom(study, series="FLAIR")


def test_nifti_labels_of_dicom_series_are_found_by_name_or_place(study, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    ras = np.diag([-1.0, -1, 1, 1])
    first = ras @ lps_affine(spacing=(1, 1, 2))
    write(labels / "x.nii.gz", np.ones((4, 6, 5), np.uint8), first)
    found = ScanFolders(study, labels, dicom=True).discover()
    by_description = {c.image.description: c.label for c in found.cases}
    assert by_description == {"t1 mprage": labels / "x.nii.gz", "t2 mprage": None}
    write(labels / "y.nii.gz", np.ones((4, 6, 5), np.uint8), first)
    with pytest.raises(ScanError, match=r"x\.nii\.gz and y\.nii\.gz both lie on the voxels of one"):
        ScanFolders(study, labels).discover()
    (labels / "y.nii.gz").rename(labels / "t1.nii.gz")
    found = discover_dicom(study, labels)
    assert {c.label.name if c.label else None for c in found.cases} == {"t1.nii.gz", None}
    for path in labels.iterdir():
        path.unlink()
    write(labels / "z.nii.gz", np.ones((3, 3, 3), np.uint8))
    with pytest.raises(ScanError, match="no label belongs to a series"):
        ScanFolders(study, labels, dicom=True).discover()


def test_images_without_a_series_uid_are_a_series_by_their_folder(study):

    for path in study.rglob("*.dcm"):
        each = pydicom.dcmread(path)
        del each.SeriesInstanceUID
        each.save_as(path)
    found = discover_dicom(study)
    assert len(found.cases) == 2
    assert all("has no SeriesInstanceUID" in each.reason for each in found.left_out)


def test_padding_that_dicom_states_is_no_scan(study):

    from napari_jrss.io.dicom import read_series

    for path in (study / "t1").glob("*.dcm"):
        each = pydicom.dcmread(path)
        each.add_new(0x00280120, "SS", 0)
        each.save_as(path)
    (case,) = discover_dicom(study / "t1").cases
    volume = read_series(case.image)
    assert volume.padding.sum() == 1
    assert volume.array[volume.padding] == 0
