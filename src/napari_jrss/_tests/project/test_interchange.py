"""Other programs read us: OME-Zarr, nnU-Net, SimpleITK."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import zarr
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels

from napari_jrss._tests.io.dicom_phantoms import lps_affine, save, slices
from napari_jrss._tests.io.phantoms import blobs
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.io.dicom_layout import discover_dicom
from napari_jrss.io.layouts import FoundCohort
from napari_jrss.io.nifti import read_label_volume
from napari_jrss.io.read import read_volume
from napari_jrss.labels import LabelTable
from napari_jrss.project.export.datasets import export_dataset, export_ome_zarr
from napari_jrss.project.export.labels import export_label_files
from napari_jrss.project.project import Project

from .conftest import CASES, TABLE

pytestmark = pytest.mark.slow

# -- OME-Zarr


def validated(path: Path) -> tuple[Any, dict[str, Any]]:
    """Metadata of an image and of its labels by name, as the official models accept them."""
    group = zarr.open_group(path, mode="r")
    image = Image.from_zarr(group)
    names = Labels.from_zarr(group["labels"]).ome_attributes.labels
    labels = {name: ImageLabel.from_zarr(group[f"labels/{name}"]) for name in names}
    for label in labels.values():
        assert label.ome_attributes.image_label.source.image == "../../"
    return image.ome_attributes, {k: v.ome_attributes for k, v in labels.items()}


def test_every_case_of_a_project_is_valid_ome_zarr(project: Project) -> None:
    case_id = project.cases()[0].case_id
    project.add_label_version(case_id, np.flip(project.label(case_id)), "reader")
    for case in project.cases():
        image, labels = validated(project.case_path(case.case_id))
        (multiscale,) = image.multiscales
        assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
        versions = [v.version for v in project.label_versions(case.case_id)]
        assert list(labels) == versions
        assert len(versions) == 1 + (case.case_id == case_id)
        for label in labels.values():
            named = {p.label_value: p.model_extra["name"] for p in label.image_label.properties}
            assert named == dict(enumerate(TABLE.names))
            colours = {c.label_value: tuple(c.rgba[:3]) for c in label.image_label.colors}
            for entry in TABLE.classes:
                assert colours[entry.index] == tuple(bytes.fromhex(entry.colour[1:]))


def test_exported_ome_zarr_shows_the_scan_and_its_label_in_their_place(
    project: Project, cohort: FoundCohort, tmp_path: Path
) -> None:
    paths = {p.name: p for p in export_ome_zarr(project, tmp_path / "out")}
    assert len(paths) == CASES
    for case in cohort.cases:
        assert isinstance(case.image, Path)
        assert case.label is not None
        path = paths[f"{case.case_id}.ome.zarr"]
        image, labels = validated(path)
        scale, shift = image.multiscales[0].datasets[0].coordinateTransformations
        scan, label = read_volume(case.image).to_lps(), read_label_volume(case.label).to_lps()
        group = zarr.open_group(path, mode="r")
        np.testing.assert_array_equal(group["0"][:], scan.array)
        ids = np.array([0, 3, 7])[group["labels/label/0"][:]]
        np.testing.assert_array_equal(ids, label.array)
        assert scale.scale == pytest.approx(list(scan.spacing_mm))
        assert shift.translation == pytest.approx(scan.affine[2::-1, 3].tolist())
        assert list(labels) == ["label"]
        assert str(case.image.parent) not in (path / "zarr.json").read_text()
    with pytest.raises(ProjectError, match="exists"):
        list(export_ome_zarr(project, tmp_path / "out"))


def test_napari_ome_zarr_opens_a_case_and_an_export(project: Project, tmp_path: Path) -> None:
    reader = pytest.importorskip("napari_ome_zarr", reason="napari-ome-zarr is not installed")
    case_id = project.cases()[0].case_id
    exported = next(export_ome_zarr(project, tmp_path / "out"))
    for path in (project.case_path(case_id), exported):
        (image, about, kind), (label, described, label_kind) = reader.napari_get_reader(str(path))(
            str(path)
        )
        assert (kind, label_kind) == ("image", "labels")
        assert list(about["scale"]) == [2, 1.5, 1]
        group = zarr.open_group(path, mode="r")
        np.testing.assert_array_equal(np.asarray(image[0]), group["0"][:])
        assert np.asarray(label[0]).max() == 2
        assert described["properties"]["name"] == list(TABLE.names)
        for entry in TABLE.classes[1:]:
            shown = np.rint(255 * np.array(described["colormap"][entry.index][:3]))
            assert shown.tolist() == list(bytes.fromhex(entry.colour[1:]))


# -- nnU-Net


def nnunet(project: Project, folder: Path) -> Path:
    project.split(labelled=3, validation=1, test=2)
    return export_dataset(project, folder / "Dataset001_Phantom")


def test_nnunets_own_integrity_check_accepts_the_data_set(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check = pytest.importorskip(
        "nnunetv2.experiment_planning.verify_dataset_integrity",
        reason="nnunetv2 is not installed",
    )
    folder = nnunet(project, tmp_path)
    check.verify_dataset_integrity(str(folder), 1)
    said = capfd.readouterr().out
    assert "verify_dataset_integrity Done" in said
    assert "Error" not in said
    broken = next((folder / "labelsTr").iterdir())
    image = nib.load(broken)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.uint8(5), image.affine), broken)
    with pytest.raises(RuntimeError, match="unexpected labels"):
        check.verify_dataset_integrity(str(folder), 1)


def test_a_data_set_is_what_nnunet_asks_for(project: Project, tmp_path: Path) -> None:
    """The rules of its check, without it: numbers, names, labels, one grid per case."""
    folder = nnunet(project, tmp_path)
    about = json.loads((folder / "dataset.json").read_text())
    assert {"labels", "channel_names", "numTraining", "file_ending"} <= set(about)
    assert list(about["labels"].values()) == list(range(len(about["labels"])))
    assert about["labels"]["background"] == 0
    labels = sorted((folder / "labelsTr").iterdir())
    assert len(labels) == about["numTraining"] == 3
    for path in labels:
        name = path.name.removesuffix(about["file_ending"])
        channels = sorted((folder / "imagesTr").glob(f"{name}_*"))
        assert [c.name for c in channels] == [f"{name}_0000{about['file_ending']}"]
        image, label = sitk.ReadImage(str(channels[0])), sitk.ReadImage(str(path))
        assert image.IsSameImageGeometryAs(label, 1e-6, 1e-6)
        values = sitk.GetArrayFromImage(label)
        assert values.dtype == np.uint8
        assert set(np.unique(values)) <= set(about["labels"].values())
        assert np.isfinite(sitk.GetArrayFromImage(image)).all()
    assert len(list((folder / "imagesTs").iterdir())) == about["numTest"] == 2


def test_nnunet_would_take_a_class_named_ignore_for_something_else(
    project_path: Path, tmp_path: Path
) -> None:
    table = LabelTable.of_groups({"ignore": (3,), "right part": (7,)})
    shutil.rmtree(project_path)
    with Project.create(project_path, table, PreprocessingConfig()) as project:
        folder = save(tmp_path / "in", slices((3 * blobs()).astype(np.int16), lps_affine()))
        assert all(r.ok for r in project.add_cases(discover_dicom(folder).cases, workers=1))
        label = np.zeros(project.grid.shape, np.uint8)
        label[4:8, 4:8, 4:8] = 1
        project.add_label_version(project.cases()[0].case_id, label, "reader")
        with pytest.raises(ProjectError, match="'ignore'"):
            export_dataset(project, tmp_path / "out", "nnunet", dicom_source=folder)
        found = export_dataset(project, tmp_path / "out", "decathlon", dicom_source=folder)
        with pytest.raises(ProjectError, match="no path is kept: name the folder"):
            export_dataset(project, tmp_path / "other", "decathlon")
        with pytest.raises(ProjectError, match="isn't in that folder"):
            export_dataset(project, tmp_path / "other", "decathlon", dicom_source=found)
    (image,) = (found / "imagesTr").iterdir()
    np.testing.assert_array_equal(read_volume(image).array, read_volume(folder).array)


# -- labels of DICOM cases as NIfTI


@pytest.mark.parametrize("order", ["LPS", "PIR", "IAL"])
def test_a_nifti_label_of_a_dicom_case_lies_on_its_series(tmp_path: Path, order: str) -> None:
    folder = save(
        tmp_path / "in",
        slices((3 * blobs()).astype(np.int16), lps_affine(order, (1, 1.2, 2.5), 11)),
    )
    config = PreprocessingConfig(shape=(48, 48, 48))
    with Project.create(tmp_path / "p.jrss", TABLE, config) as project:
        assert all(r.ok for r in project.add_cases(discover_dicom(folder).cases, workers=1))
        (case,) = project.cases()
        transform = project.attributes(case.case_id).transform
        assert transform.exact
        label = np.zeros((48, 48, 48), np.uint8)
        label[20:26, 21:30, 22:26] = 2
        project.add_label_version(case.case_id, label, "reader")
        (path,) = export_label_files(project, tmp_path / "out")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    scan, exported = reader.Execute(), sitk.ReadImage(str(path))
    assert exported.IsSameImageGeometryAs(scan, 1e-4, 1e-5)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(exported) == 7, transform.label_to_source(label) == 2
    )
    header = nib.load(path).header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
