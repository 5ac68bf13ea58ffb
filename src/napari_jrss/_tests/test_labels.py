import colorsys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from napari_jrss._tests.io.phantoms import write
from napari_jrss.errors import ScanError
from napari_jrss.io.label_files import (
    label_table_from_csv,
    label_table_from_dataset_json,
    label_table_from_files,
)
from napari_jrss.labels import (
    LPBA40_GROUPS,
    LPBA40_STRUCTURES,
    TCIA_PUBLISHED,
    TCIA_RENUMBERED,
    LabelTable,
    default_colour,
    other_sides,
    tcia_table,
    without_side,
)

GROUPS = "label,name,class_id,class_name\n3,a,1,left\n9,b,2,right\n4,c,1,left\n"


def test_ids_become_classes_and_unknown_ids_are_named():
    table = LabelTable.from_ids([0, 5, 2, 300])
    ids = np.array([[[0, 2], [5, 300]]], np.int32)
    classes = table.to_classes(ids)
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[[0, 1], [2, 3]]]
    np.testing.assert_array_equal(table.to_source_ids(classes), ids)
    with pytest.raises(ScanError, match="unknown label id -1, 3, 999"):
        table.to_classes(np.array([0, 3, 999, -1, 2]))


@given(st.sets(st.integers(1, 70000), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_ids_survive_the_way_there_and_back(ids, seed):
    table = LabelTable.from_ids(ids)
    drawn = np.random.default_rng(seed).choice([0, *ids], size=(3, 4, 5))
    np.testing.assert_array_equal(table.to_source_ids(table.to_classes(drawn)), drawn)


def test_groups_from_csv(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text(GROUPS)
    table = label_table_from_csv(path)
    assert table.names == ("background", "left", "right")
    classes = table.to_classes(np.array([0, 3, 4, 9, 77]))
    assert classes.tolist() == [0, 1, 1, 2, 0]  # 77 is not listed
    assert not table.one_to_one
    np.testing.assert_array_equal(table.to_source_ids(classes), classes)
    path.write_text("label,name\n7,seven\n2,two\n")
    table = label_table_from_csv(path)
    assert table.names == ("background", "two", "seven")
    unlisted = Counter()
    classes = table.to_classes(np.array([1, 2, 7, 1]), unlisted)
    assert classes.tolist() == [0, 1, 2, 0]  # a table may name only the wanted structures
    assert unlisted == {"1": 2}
    assert table.to_source_ids(classes).tolist() == [0, 2, 7, 0]
    path.write_text("label;name\n7;seven\n2;two\n")
    assert label_table_from_csv(path) == table


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        ("id,name\n1,a\n", "has no column label, only id, name"),
        ("label,class_id\n1,1\n", "has no column class_name"),
        (GROUPS + "x,d,2,right\n", "line 5 needs whole numbers"),
        (GROUPS + "12,d,2,wrong\n", "line 5: class 2 has two names"),
        (GROUPS + "3,d,2,right\n", "id 3 belongs to two classes"),
        (GROUPS + "12,d,7,far\n", "without gaps"),
        ("label,name,colour\n1,a,red\n", "pattern"),
    ],
)
def test_a_bad_csv_says_where(tmp_path, content, reason):
    path = tmp_path / "groups.csv"
    path.write_text(content)
    with pytest.raises(ScanError, match=reason) as caught:
        label_table_from_csv(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_real_groups(shared_data):
    table = label_table_from_csv(shared_data / "ixi_brain_2mm" / "groups.csv")
    assert table.names == LPBA40_GROUPS.names


def test_dataset_json_of_the_decathlon_and_of_nnunet(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text('{"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}')
    decathlon = label_table_from_dataset_json(path)
    path.write_text('{"labels": {"background": 0, "Posterior": 2, "Anterior": 1}}')
    assert label_table_from_dataset_json(path) == decathlon
    assert decathlon.names == ("background", "Anterior", "Posterior")
    for content, reason in {
        '{"labels": {"background": 0, "whole": [1, 2]}}': "region 'whole'",
        '{"labels": {"background": 0, "a": 1, "b": 1}}': "share a number",
        '{"labels": {"background": 0, "a": "b"}}': "has no number",
        '{"name": "x"}': "no labels",
        "[]": "not a JSON object",
        "{": "property name",
    }.items():
        path.write_text(content)
        with pytest.raises(ScanError, match=reason):
            label_table_from_dataset_json(path)


def test_lpba40_groups_partition_its_56_structures():
    structures = {i for c in LPBA40_STRUCTURES.classes[1:] for i in c.source_ids}
    grouped = [i for c in LPBA40_GROUPS.classes[1:] for i in c.source_ids]
    assert len(structures) == 56
    assert sorted(grouped) == sorted(structures)
    assert len(LPBA40_GROUPS.classes) == 11
    assert {c.name: c.source_ids for c in LPBA40_GROUPS.classes[5:]} == {
        "cingulate": (121, 122),
        "insula": (101, 102),
        "caudate": (161, 162),
        "putamen": (163, 164),
        "hippocampus": (165, 166),
        "cerebellum_brainstem": (181, 182),
    }
    assert LPBA40_STRUCTURES.to_classes(np.array([166]))[0] == LPBA40_STRUCTURES.names.index(
        "right hippocampus"
    )


def test_the_two_tcia_conventions_are_told_apart_and_give_the_same_classes():
    published, renumbered = {0, 1, 3, 4, 5, 6, 7, 11, 14}, set(range(9))
    assert tcia_table(published) is TCIA_PUBLISHED
    assert tcia_table(renumbered) is TCIA_RENUMBERED
    assert tcia_table({0, 1, 3, 6, 14}) is TCIA_PUBLISHED
    assert TCIA_PUBLISHED.names == TCIA_RENUMBERED.names
    pancreas = TCIA_PUBLISHED.names.index("pancreas")
    assert pancreas == 2
    assert TCIA_PUBLISHED.to_classes(np.array([11]))[0] == pancreas
    assert [c.source_ids[0] for c in TCIA_PUBLISHED.classes] == [0, 1, 11, 3, 4, 5, 6, 7, 14]
    assert TCIA_RENUMBERED.to_classes(np.array([2]))[0] == pancreas
    for unclear in ({0, 1, 3}, {0, 2, 11}):
        with pytest.raises(ScanError, match="can't tell which ids"):
            tcia_table(unclear)


def test_more_structures_than_a_project_can_tell_apart_are_refused(tmp_path):
    assert len(LabelTable.from_ids(range(255)).classes) == 255
    with pytest.raises(ValidationError, match="can have 254 structures, not 255"):
        LabelTable.from_ids(range(256))
    LabelTable.of_groups({"all": range(1, 1000)})  # ids don't count, structures do
    rows = "".join(f"{i},n{i},{i},n{i}\n" for i in range(1, 300))
    (tmp_path / "groups.csv").write_text("label,name,class_id,class_name\n" + rows)
    with pytest.raises(ScanError, match=r"groups\.csv: .*254 structures, not 299"):
        label_table_from_csv(tmp_path / "groups.csv")
    write(tmp_path / "a.nii", np.arange(10 * 10 * 10).reshape(10, 10, 10).astype(np.int16))
    with pytest.raises(ScanError, match=r"a\.nii: the labels have more than 254 ids"):
        label_table_from_files([tmp_path / "a.nii"])


def test_classes_from_whatever_the_files_hold(tmp_path):
    write(tmp_path / "a.nii", np.array([[[0, 4, 7]]], np.uint8))
    write(tmp_path / "b.nii", np.array([[[0, 2, 7]]], np.uint8))
    (tmp_path / "broken.nii").write_bytes(b"")
    table = label_table_from_files(sorted(tmp_path.iterdir()))
    assert [c.source_ids for c in table.classes] == [(0,), (2,), (4,), (7,)]
    write(tmp_path / "a.nii", np.zeros((1, 1, 2), np.uint8))
    with pytest.raises(ScanError):
        label_table_from_files([tmp_path / "a.nii"])


def test_a_table_is_a_partition_in_order():
    good = LabelTable.from_ids([1, 2])
    assert LabelTable.model_validate_json(good.model_dump_json()) == good
    with pytest.raises(ValidationError, match="in order"):
        LabelTable(classes=good.classes[::-1])
    with pytest.raises(ValidationError, match="two classes"):
        LabelTable.of_groups({"a": (1,), "b": (1,)})


def test_default_colours_differ_and_keep_their_place():
    colours = [default_colour(i) for i in range(150)]
    assert len(set(colours)) == 150
    assert colours[:3] == ["#000000", "#e69f00", "#56b4e9"]
    for colour in colours[1:]:
        red, green, blue = bytes.fromhex(colour[1:])
        assert colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)[1] > 0.15


def test_structures_are_chosen_renamed_and_merged() -> None:
    table = LabelTable.of_groups({"Left-Caudate": (11,), "Right-Caudate": (50,), "CSF": (24,)})
    made = table.renamed({1: ("caudate", "#112233"), 2: ("caudate", "#445566")})
    assert made.names == ("background", "caudate")
    assert made.classes[1].source_ids == (11, 50)
    assert made.classes[1].colour == "#112233"
    assert made.to_classes(np.array([0, 11, 24, 50])).tolist() == [0, 1, 0, 1]
    # a file that names its structures is still understood
    assert made.index_of("Right-Caudate") == made.index_of("caudate") == 1
    assert made.index_of("CSF") is None
    with pytest.raises(ValueError, match="at least one class"):
        table.renamed({})


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Left-Caudate", "Caudate"),
        ("lh.caudate", "caudate"),
        ("caudate_R", "caudate"),
        ("Hippocampus (left)", "Hippocampus"),
        ("rib_left_3", "rib_3"),
        ("ctx-lh-insula", "ctx-insula"),
        ("lateral ventricle", "lateral ventricle"),
        ("left", "left"),
    ],
)
def test_names_without_their_side(name: str, stem: str) -> None:
    assert without_side(name) == stem


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (("background", "liver", "spleen"), (0, 1, 2)),
        (("background", "Left-Caudate", "stem", "Right-Caudate"), (0, 3, 2, 1)),
        (("background", "rh.insula", "lh.insula", "caudate_L", "Caudate_R"), (0, 2, 1, 4, 3)),
        (("background", "rib_left_3", "rib_left_4", "rib_right_4", "rib_right_3"), (0, 4, 3, 2, 1)),
        (("background", "ctx-lh-cuneus", "ctx-rh-cuneus"), (0, 2, 1)),
        (("background", "Left-Caudate", "Caudate"), None),
        (("background", "kidney left", "left kidney", "right kidney"), None),
    ],
)
def test_the_other_side_of_each_class(
    names: tuple[str, ...], others: tuple[int, ...] | None
) -> None:
    assert other_sides(names) == others
