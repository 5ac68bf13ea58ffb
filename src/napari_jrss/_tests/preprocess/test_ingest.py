import numpy as np
import pytest

from napari_jrss._tests.io.phantoms import blobs, block_label, write
from napari_jrss.config import PreprocessingConfig
from napari_jrss.io.layouts import discover
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.grid import training_grid
from napari_jrss.preprocess.ingest import ingest

pytestmark = pytest.mark.slow

TABLE = LabelTable.from_ids([1, 2])


def test_every_failure_has_its_reason_and_the_others_go_on(tmp_path):
    images, labels, cases = tmp_path / "images", tmp_path / "labels", tmp_path / "cases"
    images.mkdir()
    labels.mkdir()
    image, label = blobs().T, block_label().T

    def add(name, image=image, label=label, affine=None):
        write(images / f"{name}.nii.gz", image, affine)
        if label is not None:
            write(labels / f"{name}.nii.gz", label)

    add("good")
    add("unlabelled", label=None)
    add("shape", label=label[1:])
    add("place", affine=np.diag([1.0, 1, 1.5, 1]))
    add("unknown", label=label * 3)
    add("fraction", label=label * np.float32(0.5))
    add("empty", label=label * 0)
    add("constant", image=np.full_like(image, 7))
    add("nan", image=np.where(image > 90, np.nan, image))
    add("frames", image=np.stack([image, image], -1))
    add("cut")
    content = (images / "cut.nii.gz").read_bytes()
    (images / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    add("text")
    (images / "text.nii.gz").write_text("no scan at all")
    add("exists")
    exists = [c for c in discover(tmp_path).cases if c.case_id == "exists"]
    other = PreprocessingConfig(shape=(8, 8, 8))
    assert [r.ok for r in ingest(exists, other, TABLE, cases, 1)] == [True]
    (cases / ".0123.partial").mkdir()

    found = discover(tmp_path)
    results = {r.case_id: r for r in ingest(found.cases, PreprocessingConfig(), TABLE, cases, 2)}
    assert set(results) == {c.case_id for c in found.cases}
    without_label = {"shape", "place", "unknown", "fraction", "empty"}
    good_scans = {"good", "unlabelled", "nan"}
    assert {name for name, r in results.items() if r.ok} == good_scans | without_label
    expected = {
        "shape": "labels/shape.nii.gz: label of shape",
        "place": "mm away from its image",
        "unknown": "labels/unknown.nii.gz: unknown label id 3, 6",
        "fraction": "not a whole number",
        "empty": "labels/empty.nii.gz: label is empty",
        "constant": "images/constant.nii.gz: image is constant",
        "nan": "voxels are NaN",
        "frames": "not that of one 3D scan",
        "cut": "truncated",
        "text": "not a NIfTI file",
        "exists": "exists",
    }
    for name, reason in expected.items():
        said = results[name].reason or " ".join(results[name].notes)
        assert reason in said, results[name]
        assert name in said or name == "nan"
        assert "\n" not in said
        assert said.startswith("without its label: ") == (name in without_label)
        assert not results[name].labelled or name == "nan"
    good, unlabelled = results["good"], results["unlabelled"]
    assert (good.labelled, good.label_kept, good.reason) == (True, 1, "")
    assert (unlabelled.labelled, unlabelled.label_kept) == (False, None)
    again = [c for c in found.cases if c.case_id in ("good", "unlabelled")]
    grid = training_grid(found.cases, PreprocessingConfig(), TABLE)
    second = {
        r.case_id: r for r in ingest(again, PreprocessingConfig(), TABLE, cases, 1, grid=grid)
    }
    assert second == {"good": good, "unlabelled": unlabelled}
    back = store.read_attributes(good.path).transform.label_to_source(
        store.read_label(good.path, "manual")
    )
    np.testing.assert_array_equal(back, block_label())
    assert store.label_versions(unlabelled.path) == ()
    assert {p.name.removesuffix(".ome.zarr") for p in cases.iterdir()} == {
        "exists",
        *good_scans,
        *without_label,
    }


def test_labels_without_a_table_are_a_mistake(tmp_path):
    write(tmp_path / "a.nii", blobs().T)
    case = discover(images=tmp_path, labels=None).cases[0]
    labelled = type(case)(case.case_id, case.image, case.image)
    with pytest.raises(ValueError, match="label table"):
        list(ingest([labelled], PreprocessingConfig(), None, tmp_path / "cases"))
