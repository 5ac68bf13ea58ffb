"""Several images of a case, as nnU-Net, the Decathlon, BIDS and people lay them out."""

import json

import numpy as np
import pytest

from napari_jrss._tests.io.phantoms import write
from napari_jrss.errors import ScanError
from napari_jrss.io.found import Masks, Part
from napari_jrss.io.layouts import discover
from napari_jrss.io.read import read_header, read_volume
from napari_jrss.project.importing import ScanFolders


def files(folder, *names):
    """Small scans of these names, each with other voxels."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(sum(map(ord, name)))
        write(path, rng.integers(0, 3, (3, 4, 5)).astype(np.uint8))


def summary(found):
    """File names of each case's images, the first one first, and of its label."""
    return {
        case.case_id: ([image.name for image in (case.image, *case.others)], _name(case.label))
        for case in found.cases
    }


def _name(label):
    return label and (label.folder.name if isinstance(label, Masks) else label.name)


def left_out(found):
    return {each.what: each.reason for each in found.left_out}


@pytest.fixture
def nnunet(tmp_path):
    files(tmp_path / "imagesTr", "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    files(tmp_path / "imagesTs", "c_0000.nii.gz", "c_0001.nii.gz")
    files(tmp_path / "labelsTr", "a.nii.gz", "b.nii.gz")
    description = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def test_nnunet(nnunet):
    found = discover(nnunet)
    assert (found.layout, found.channels) == ("nnunet", ("T1", "FLAIR"))
    assert summary(found) == {
        "a": (["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz"),
        "c": (["c_0000.nii.gz", "c_0001.nii.gz"], None),
    }
    assert left_out(found) == {"b": "has no FLAIR"}
    # a folder of the images alone has the names of the data set
    alone = discover(images=nnunet / "imagesTr", labels=nnunet / "labelsTr")
    assert alone.channels == found.channels
    assert summary(alone)["a"] == summary(found)["a"]


def test_the_first_image_is_chosen_and_one_image_alone_may_be(nnunet):
    found = discover(nnunet, channels=("FLAIR", "T1"))
    assert found.channels == ("FLAIR", "T1")
    assert summary(found)["a"][0] == ["a_0001.nii.gz", "a_0000.nii.gz"]
    one = discover(nnunet, channels=("T1",))
    assert one.channels == ()
    assert summary(one) == {
        "a": (["a_0000.nii.gz"], "a.nii.gz"),
        "b": (["b_0000.nii.gz"], "b.nii.gz"),
        "c": (["c_0000.nii.gz"], None),
    }
    with pytest.raises(ScanError, match="has no images 'T2', only T1, FLAIR"):
        discover(nnunet, channels=("T1", "T2"))
    with pytest.raises(ScanError, match="an image is named twice"):
        discover(nnunet, channels=("T1", "T1"))


def test_an_older_nnunet_lists_files_without_numbers(tmp_path):
    files(tmp_path / "imagesTr", "a_0000.nii.gz", "a_0001.nii.gz")
    files(tmp_path / "labelsTr", "a.nii.gz")
    description = {
        "modality": {"0": "CT", "1": "PET"},
        "labels": {"0": "background", "1": "tumour"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": [],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    found = discover(tmp_path)
    assert found.channels == ("CT", "PET")
    assert summary(found) == {"a": (["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz")}


def test_the_decathlon_has_all_images_of_a_case_in_one_file(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(-5, 500, (3, 4, 5, 2)).astype(np.int16)
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    path = write(tmp_path / "imagesTr" / "a.nii.gz", values, affine)
    write(tmp_path / "labelsTr" / "a.nii.gz", (values[..., 0] > 200).astype(np.uint8), affine)
    description = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": [],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    (case,) = discover(tmp_path, channels=("ADC", "T2")).cases
    assert (case.image, case.others) == (Part(path, 1), (Part(path, 0),))
    for index in range(2):
        volume = read_volume(Part(path, index))
        np.testing.assert_array_equal(volume.array, values[..., index].T)
        np.testing.assert_array_equal(read_header(Part(path, index)).affine, volume.affine)
    with pytest.raises(ScanError, match="holds 2 images, not 3"):
        read_volume(Part(path, 2))
    with pytest.raises(ScanError, match="not that of one 3D scan"):
        read_volume(path)


def test_bids_takes_the_kinds_that_every_subject_has(tmp_path):
    for subject in ("sub-1", "sub-2"):
        anat = tmp_path / subject / "anat"
        files(anat, *(f"{subject}_{kind}.nii.gz" for kind in ("T1w", "FLAIR")))
        files(tmp_path / "derivatives" / "me" / subject / "anat", f"{subject}_dseg.nii.gz")
    files(tmp_path, "sub-1/anat/sub-1_acq-fast_T2w.nii.gz")
    found = discover(tmp_path)
    assert found.channels == ("T1w", "FLAIR")
    assert summary(found)["sub-2"] == (
        ["sub-2_T1w.nii.gz", "sub-2_FLAIR.nii.gz"],
        "sub-2_dseg.nii.gz",
    )
    assert list(left_out(found)) == ["T2w (1 files)"]
    assert discover(tmp_path, series="T1w").channels == ()
    wanted = discover(tmp_path, channels=("T1w", "T2w"))  # of one visit, though not alike in name
    assert summary(wanted) == {
        "sub-1": (["sub-1_T1w.nii.gz", "sub-1_acq-fast_T2w.nii.gz"], "sub-1_dseg.nii.gz")
    }
    assert left_out(wanted)["sub-2"] == "has no T2w"
    with pytest.raises(ScanError, match="not both"):
        discover(tmp_path, series="T1w", channels=("T1w", "FLAIR"))


def test_a_table_names_the_images(tmp_path):
    files(tmp_path, "x/1.nii.gz", "x/2.nii.gz", "x/3.nii.gz", "l.nii.gz")
    table = tmp_path / "cases.csv"
    rows = ["case,image:T1,image:FLAIR,label", "p1,x/1.nii.gz,x/2.nii.gz,l.nii.gz"]
    table.write_text("\n".join([*rows, "p2,x/3.nii.gz,,"]))
    found = discover(table)
    assert found.channels == ("T1", "FLAIR")
    assert summary(found) == {"p1": (["1.nii.gz", "2.nii.gz"], "l.nii.gz")}
    assert left_out(found) == {"p2": "has no FLAIR"}
    table.write_text("image,image2\nx/1.nii.gz,x/2.nii.gz\n")
    assert discover(table).channels == ("image", "image2")
    assert summary(discover(table)) == {"1": (["1.nii.gz", "2.nii.gz"], None)}


@pytest.mark.parametrize("name", ["{}", "patient_{}"])
def test_a_folder_for_each_case_with_the_same_contrasts(tmp_path, name):
    for case in ("p1", "p2", "p3"):
        kinds = ("t1", "flair") if case != "p3" else ("t1",)
        start = f"{name}_".format(case) if "patient" in name else ""
        files(tmp_path / case, *(f"{start}{kind}.nii.gz" for kind in kinds))
        files(tmp_path / case, f"{start}seg.nii.gz")
    found = discover(tmp_path)
    assert found.channels == ("flair", "t1")
    assert [len(case.others) for case in found.cases] == [1, 1]
    assert all(case.label is not None for case in found.cases)
    assert list(left_out(found).values()) == ["has no flair"]


def test_contrasts_at_the_ends_of_names_in_one_folder(tmp_path):
    files(tmp_path / "images", "a_T1.nii.gz", "a_FLAIR.nii.gz", "b_T1.nii.gz", "b_FLAIR.nii.gz")
    files(tmp_path / "labels", "a.nii.gz")
    found = discover(tmp_path, channels=("T1", "FLAIR"))
    assert summary(found) == {
        "a": (["a_T1.nii.gz", "a_FLAIR.nii.gz"], "a.nii.gz"),
        "b": (["b_T1.nii.gz", "b_FLAIR.nii.gz"], None),
    }
    files(tmp_path / "flat", "a_T1.nii.gz", "a_FLAIR.nii.gz", "a_seg.nii.gz")
    assert summary(discover(tmp_path / "flat"))["a"][1] == "a_seg.nii.gz"


def test_what_is_not_sure_stays_a_case_of_its_own(tmp_path):
    files(tmp_path / "one", "a_T1.nii.gz", "b_T2.nii.gz")  # no case has both
    assert [case.case_id for case in discover(tmp_path / "one").cases] == ["a_T1", "b_T2"]
    files(tmp_path / "two", "p1/first.nii.gz", "p1/second.nii.gz", "p2/first.nii.gz")
    assert discover(tmp_path / "two").channels == ()
    with pytest.raises(ScanError, match="one image of each case, so none is named T1"):
        discover(tmp_path / "two", channels=("T1", "T2"))
    with pytest.raises(ScanError, match="one image of each case, so none is named T1"):
        ScanFolders(tmp_path / "one", channels=("T1", "T2")).discover()


def test_another_cohort_gives_the_images_that_a_project_has(nnunet):
    found = discover(nnunet)
    assert found.using(("FLAIR", "T1")).cases[0].image.name == "a_0001.nii.gz"
    assert found.using(("FLAIR",)).cases[0].others == ()
    assert found.using(()).channels == ()
    with pytest.raises(ScanError, match="there is no image T2, only T1, FLAIR"):
        found.using(("T1", "T2"))
