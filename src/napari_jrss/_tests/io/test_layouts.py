import json
import re

import numpy as np
import pytest

from napari_jrss._tests.io.phantoms import write
from napari_jrss.errors import ScanError
from napari_jrss.io.layouts import discover
from napari_jrss.labels import LPBA40_GROUPS, TCIA_PUBLISHED, TCIA_RENUMBERED

ARRAY = np.zeros((2, 2, 2), np.uint8)


def scans(folder, *names, values=(0,)):
    folder.mkdir(parents=True, exist_ok=True)
    array = np.resize(np.array(values, np.uint8), 27).reshape(3, 3, 3)
    for name in names:
        write(folder / name, array)


def summary(found):
    return {c.case_id: (c.image.name, c.label.name if c.label else None) for c in found.cases}


def test_two_plain_folders(tmp_path):
    scans(tmp_path / "images", "b.nii.gz", "a.nii", "._a.nii", "c.nii.gz")
    scans(tmp_path / "labels", "a.nii.gz", "b.nii.gz", "z.nii.gz")
    (tmp_path / "images" / "notes.txt").write_text("")
    found = discover(tmp_path)
    assert found == discover(images=tmp_path / "images", labels=tmp_path / "labels")
    assert found.layout == "plain"
    assert found.table is None
    assert summary(found) == {
        "a": ("a.nii", "a.nii.gz"),
        "b": ("b.nii.gz", "b.nii.gz"),
        "c": ("c.nii.gz", None),
    }
    assert [p.name for p in found.unmatched_labels] == ["z.nii.gz"]
    assert summary(discover(images=tmp_path / "images"))["a"] == ("a.nii", None)
    assert summary(discover(tmp_path / "labels"))["z"] == ("z.nii.gz", None)


def test_the_real_folders(shared_data):
    found = discover(shared_data / "hippocampus_msd")
    assert len(found.cases) == 200
    assert all(c.label and c.label.name == c.image.name for c in found.cases)
    assert len(discover(shared_data / "ixi_brain_2mm").cases) == 56


def test_decathlon(tmp_path):
    scans(tmp_path / "imagesTr", "hip_001.nii.gz", "hip_002.nii.gz", "._hip_001.nii.gz")
    scans(tmp_path / "labelsTr", "hip_001.nii.gz", "hip_002.nii.gz")
    description = {
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [
            {"image": f"./imagesTr/hip_00{i}.nii.gz", "label": f"./labelsTr/hip_00{i}.nii.gz"}
            for i in (2, 1)
        ],
        "test": ["./imagesTs/hip_003.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    found = discover(tmp_path)
    assert found.layout == "decathlon"
    assert found.table.names == ("background", "Anterior", "Posterior")
    assert summary(found) == {
        "hip_001": ("hip_001.nii.gz", "hip_001.nii.gz"),
        "hip_002": ("hip_002.nii.gz", "hip_002.nii.gz"),
    }
    (tmp_path / "imagesTr" / "hip_001.nii.gz").rename(tmp_path / "imagesTr" / "hip_001_0000.nii.gz")
    assert summary(discover(tmp_path))["hip_001"][0] == "hip_001_0000.nii.gz"  # nnU-Net 1
    for outside in ("../elsewhere.nii.gz", "/etc/passwd", "imagesTr/../../x.nii.gz"):
        description["training"] = [{"image": outside}]
        (tmp_path / "dataset.json").write_text(json.dumps(description))
        with pytest.raises(ScanError, match="lies outside the folder"):
            discover(tmp_path)


def test_nnunet(tmp_path):
    scans(tmp_path / "imagesTr", "la_1_0000.nii.gz", "la_2_0000.nii.gz")
    scans(tmp_path / "labelsTr", "la_1.nii.gz", "la_9.nii.gz")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    found = discover(tmp_path)
    assert found.layout == "nnunet"
    assert found.table.names == ("background", "liver")
    assert summary(found) == {
        "la_1": ("la_1_0000.nii.gz", "la_1.nii.gz"),
        "la_2": ("la_2_0000.nii.gz", None),
    }
    assert [p.name for p in found.unmatched_labels] == ["la_9.nii.gz"]
    plain = discover(images=tmp_path / "imagesTr", labels=tmp_path / "labelsTr")
    assert summary(plain) == summary(found)
    description["channel_names"]["1"] = "T2"
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ScanError, match="no case has all of CT, T2"):
        discover(tmp_path)


@pytest.mark.parametrize("ending", [".nii.gz", ".hdr"])
def test_lpba40_in_delineation_space(tmp_path, ending):
    for case in ("S01", "S02"):
        folder = tmp_path / "LPBA40" / "delineation_space" / case
        folder.mkdir(parents=True)
        for kind in ("skullstripped", "structure.label", "brainmask"):
            (folder / f"{case}.delineation.{kind}{ending}").write_bytes(b"")
    found = discover(tmp_path)
    assert found.layout == "lpba40"
    assert found.table is LPBA40_GROUPS
    assert summary(found)["S02"] == (
        f"S02.delineation.skullstripped{ending}",
        f"S02.delineation.structure.label{ending}",
    )
    assert len(found.cases) == 2


@pytest.mark.parametrize(
    ("images", "labels", "image", "label"),
    [
        ("Pancreas_nii", "label_tcia_multiorgan", "PANCREAS_{:04}.nii.gz", "label{:04}.nii.gz"),
        ("images", "labels", "pancreas_ct{}.nii.gz", "label_ct{}.nii.gz"),
        ("img_tcia", "label_tcia", "img{:04}.nii.gz", "label{:04}.nii.gz"),
    ],
)
@pytest.mark.parametrize(
    ("ids", "table"),
    [((0, 1, 3, 4, 5, 6, 7, 11, 14), TCIA_PUBLISHED), (tuple(range(9)), TCIA_RENUMBERED)],
)
def test_tcia(tmp_path, images, labels, image, label, ids, table):
    scans(tmp_path / images, *(image.format(i) for i in (1, 2, 10)))
    scans(tmp_path / labels, *(label.format(i) for i in (2, 10)), values=ids)
    found = discover(tmp_path)
    assert found.layout == "tcia"
    assert found.table == table
    assert sorted(summary(found).values(), key=str) == sorted(
        [
            (image.format(1), None),
            (image.format(2), label.format(2)),
            (image.format(10), label.format(10)),
        ],
        key=str,
    )


def test_numbered_files_of_something_else_are_no_tcia(tmp_path):
    scans(tmp_path / "img", "img001.nii")
    scans(tmp_path / "label", "label001.nii", values=(0, 1, 2))
    found = discover(tmp_path)
    assert summary(found) == {"img001": ("img001.nii", "label001.nii")}
    assert (found.layout, found.table) == ("plain", None)


def test_case_ids_can_name_files(tmp_path):
    scans(tmp_path, "a b..nii", "héé$%.nii", "..c.nii", "-rf.nii")
    ids = {c.case_id for c in discover(tmp_path).cases}
    assert ids == {"a_b", "hee", "rf"}  # hidden files are no scans


def test_names_in_any_script_make_case_ids_of_their_own(tmp_path):
    names = ("müller", "möller", "患者甲", "患者乙", "患者1", "病人1")
    scans(tmp_path, *(f"{name}.nii" for name in names))
    ids = {case.image.name: case.case_id for case in discover(tmp_path).cases}
    assert len(set(ids.values())) == len(names)
    assert (ids["müller.nii"], ids["möller.nii"]) == ("muller", "moller")
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", case_id) for case_id in ids.values())
    assert ids["患者1.nii"].startswith("1-")


def test_a_second_channel_is_no_further_patient(tmp_path):
    scans(tmp_path / "images", "P1_0000.nii", "P1_0001.nii", "P2_0000.nii", "P2_0001.nii")
    scans(tmp_path / "labels", "P1.nii", "P2.nii")
    for found in (
        discover(images=tmp_path / "images", labels=tmp_path / "labels"),
        discover(images=tmp_path / "images"),
    ):
        assert [case.case_id for case in found.cases] == ["P1", "P2"]
        assert found.channels == ("0000", "0001")
        assert found.cases[1].image.name == "P2_0000.nii"
        assert [other.name for other in found.cases[1].others] == ["P2_0001.nii"]


def test_what_cannot_be_found_is_said(tmp_path):
    with pytest.raises(ScanError, match="no such folder"):
        discover(tmp_path / "nowhere")
    with pytest.raises(ScanError, match="no scans"):
        discover(tmp_path)
    scans(tmp_path / "images", "a.nii", "A.nii.gz")
    with pytest.raises(ScanError, match="are both"):
        discover(tmp_path / "images")
    scans(tmp_path / "labels", "q.nii")
    with pytest.raises(ScanError, match="no label has the name"):
        discover(tmp_path)
