import json
import threading

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels

from napari_jrss._tests.io.phantoms import blobs, block_label, volume
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError
from napari_jrss.io.ome_zarr_writer import LEVEL, write_array
from napari_jrss.io.zarr_check import open_array, read_array
from napari_jrss.io.zarr_shard import in_one_shard
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.case_attributes import CaseAttributes
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.transform import TrainingGrid

TABLE = LabelTable.from_ids([1, 2], {1: "front", 2: "back"})


def attributes(case_id="c1", shape=(14, 16, 18)):
    grid = TrainingGrid(shape=shape, spacing_mm=(3, 2, 1.5))
    transform = preprocess(volume(blobs(shape)), None, PreprocessingConfig(), grid).transform
    return CaseAttributes(
        case_id=case_id,
        source="/a/c1.nii.gz",
        checksum="0" * 64,
        transform=transform,
        spacing_mm=(3, 2, 1.5),
    )


@pytest.fixture
def case(tmp_path):
    return store.write_case(tmp_path, attributes(), blobs(), block_label(), TABLE)


def test_what_is_written_is_read(case):
    assert case.name == "c1.ome.zarr"
    image, label = store.read_image(case), store.read_label(case, "manual")
    assert (image.dtype, label.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(image, blobs())
    np.testing.assert_array_equal(label, block_label())
    assert store.read_attributes(case) == attributes()
    # The name of the transform on disk, in projects of all versions.
    on_disk = json.loads((case / "zarr.json").read_text())["attributes"]["napari_jrss"]
    assert on_disk["chain"] == attributes().transform.model_dump(mode="json")
    assert not {"part", "channels"} & set(on_disk)  # only where there are several images
    assert store.label_versions(case) == ("manual",)
    assert sorted(p.name for p in case.parent.iterdir()) == ["c1.ome.zarr"]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_volume_of_several_chunks_is_read_by_several_threads(tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    values = np.random.default_rng(0).integers(0, 200, (70, 65, 130)).astype(dtype)
    write_array(zarr.create_group(tmp_path), values, "a", (1, 1, 1))
    path = tmp_path / LEVEL
    assert in_one_shard(open_array(path))
    np.testing.assert_array_equal(read_array(path), values)
    stored = bytearray((path / "c/0/0/0").read_bytes())
    stored[len(stored) // 2] ^= 1
    (path / "c/0/0/0").write_bytes(stored)
    with pytest.raises(ScanError, match="damaged"):
        read_array(path)


def test_others_read_it_as_ome_zarr(case):
    group = zarr.open_group(case, mode="r")
    multiscale = Image.from_zarr(group).ome_attributes.multiscales[0]
    assert [(a.name, a.type, a.unit) for a in multiscale.axes] == [
        (axis, "space", "millimeter") for axis in "zyx"
    ]
    assert multiscale.datasets[0].coordinateTransformations[0].scale == [3, 2, 1.5]
    assert Labels.from_zarr(group["labels"]).ome_attributes.labels == ["manual"]
    label = ImageLabel.from_zarr(group["labels/manual"]).ome_attributes.image_label
    assert [p.label_value for p in label.properties] == [0, 1, 2]
    assert [(c.label_value, tuple(c.rgba)) for c in label.colors][1] == (1, (0xE6, 0x9F, 0, 255))
    assert label.source.image == "../../"
    assert dict(group["labels/manual"].attrs)["ome"]["image-label"]["properties"][2] == {
        "label-value": 2,
        "name": "back",
    }


def test_label_versions_are_added_and_never_changed(case):
    other = np.flip(block_label()).copy()
    store.add_label(case, "corrected-1", other, TABLE)
    assert store.label_versions(case) == ("manual", "corrected-1")
    np.testing.assert_array_equal(store.read_label(case, "corrected-1"), other)
    np.testing.assert_array_equal(store.read_label(case, "manual"), block_label())
    ImageLabel.from_zarr(zarr.open_group(case / "labels" / "corrected-1", mode="r"))
    with pytest.raises(FileExistsError, match="corrected-1"):
        store.add_label(case, "corrected-1", other, TABLE)
    with pytest.raises(FileExistsError, match=r"c1\.ome\.zarr exists"):
        store.write_case(case.parent, attributes(), blobs())
    with pytest.raises(ScanError, match="shape"):
        store.add_label(case, "next", other[1:], TABLE)
    with pytest.raises(ValueError, match="class 3"):
        store.add_label(case, "next", other + 1, TABLE)
    assert store.label_versions(case) == ("manual", "corrected-1")
    assert sorted(p.name for p in case.parent.iterdir()) == ["c1.ome.zarr"]


def test_a_case_without_a_label_can_get_one(tmp_path):
    case = store.write_case(tmp_path, attributes(), blobs())
    assert store.label_versions(case) == ()
    with pytest.raises(ScanError, match="no label version 'manual'"):
        store.read_label(case, "manual")
    store.add_label(case, "manual", block_label(), TABLE)
    np.testing.assert_array_equal(store.read_label(case, "manual"), block_label())


def test_as_many_classes_as_there_can_be(tmp_path):
    table = LabelTable.from_ids(range(255))
    label = np.arange(14 * 16 * 18).reshape(14, 16, 18) % 255
    case = store.write_case(tmp_path, attributes(), blobs(), label, table)
    assert store.read_label(case, "manual").dtype == np.uint8
    np.testing.assert_array_equal(store.read_label(case, "manual"), label)


def test_half_a_case_is_never_seen(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError("disk full")

    seen = []

    def watch():
        while not done.is_set():
            for path in tmp_path.glob("*.ome.zarr"):
                seen.append(store.read_label(path, "manual").shape)

    done = threading.Event()
    reader = threading.Thread(target=watch)
    reader.start()
    for index in range(5):
        store.write_case(tmp_path, attributes(f"c{index}"), blobs(), block_label(), TABLE)
    done.set()
    reader.join()
    assert set(seen) <= {blobs().shape}
    monkeypatch.setattr(zarr.Group, "create_array", fails)
    with pytest.raises(OSError, match="disk full"):
        store.write_case(tmp_path, attributes("late"), blobs(), block_label(), TABLE)
    with pytest.raises(OSError, match="disk full"):
        store.add_label(tmp_path / "c0.ome.zarr", "late", block_label(), TABLE)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"c{i}.ome.zarr" for i in range(5)]
    assert store.label_versions(tmp_path / "c0.ome.zarr") == ("manual",)


def test_what_a_dead_writer_left_is_written_over(case):
    (case / "labels" / "next").mkdir()  # renamed, but never listed
    store.add_label(case, "next", block_label(), TABLE)
    np.testing.assert_array_equal(store.read_label(case, "next"), block_label())


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a\\b", "x\n"])
def test_names_cannot_lead_elsewhere(case, name):
    with pytest.raises(ScanError):
        store.case_path(case.parent, name)
    with pytest.raises(ScanError):
        store.add_label(case, name, block_label(), TABLE)


def test_what_is_no_case_is_said(tmp_path):
    with pytest.raises(ScanError, match="no such case"):
        store.read_image(tmp_path / "none.ome.zarr")
    zarr.create_group(tmp_path / "empty.ome.zarr", zarr_format=3)
    with pytest.raises(ScanError, match="not a case"):
        store.read_attributes(tmp_path / "empty.ome.zarr")
    with pytest.raises(ScanError, match="no such case, or damaged"):
        store.read_image(tmp_path / "empty.ome.zarr")


def test_a_case_is_a_handful_of_files(tmp_path):
    shape = (80, 96, 70)
    label = np.zeros(shape, np.uint8)
    label[40:] = 1
    case = store.write_case(tmp_path, attributes(shape=shape), blobs(shape), label, TABLE)
    assert sum(p.is_file() for p in case.rglob("*")) == 7
    np.testing.assert_array_equal(store.read_image(case), blobs(shape))
