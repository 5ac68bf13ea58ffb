"""DICOM SEG out: opened again, it is the label voxel by voxel, with its names and colours."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from napari_jrss._tests.io.dicom_phantoms import NAME, enhanced, lps_affine, save, slices
from napari_jrss._tests.io.phantoms import blobs, block_label
from napari_jrss.cli import app
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.geometry import rows
from napari_jrss.io.dicom import DicomSeries, find_series, series_at
from napari_jrss.io.dicom_layout import discover_dicom
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.case_store import read_attributes
from napari_jrss.preprocess.transform import GridTransform, Intensity
from napari_jrss.project.export.dicom_seg import export_segmentations, segmentation_bytes
from napari_jrss.project.project import Project
from napari_jrss.project.records import Status

TABLE = LabelTable.from_ids([1, 2, 9], {1: "front lobe", 2: "back", 9: "nowhere"})


def body(shape: tuple[int, int, int] = (14, 16, 18)) -> np.ndarray:
    return (blobs(shape) * 3).astype(np.int16)


def chain_of(series: DicomSeries) -> GridTransform:
    """The training grid is the scan's own grid."""
    return GridTransform(
        source_shape=series.shape,
        source_affine=series.affine,
        header=None,
        shape=series.shape,
        grid_to_source=rows(np.eye(4)),
        intensity=Intensity(low=0, high=1, mean=0, std=1),
    )


def by_source(seg: hd.seg.Segmentation, series: DicomSeries) -> np.ndarray:
    """Its label map (z, y, x) in the order of the series' slices, as it refers to them."""
    uids = [pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in series.files]
    options = {"combine_segments": True, "ignore_spatial_locations": True}
    options["assert_missing_frames_are_empty"] = True
    if len(uids) > 1 or len(series.slices) == 1:
        return np.asarray(seg.get_pixels_by_source_instance(uids, **options))
    frames = [s.number + 1 for s in series.slices]
    return np.asarray(seg.get_pixels_by_source_frame(uids[0], frames, **options))


@pytest.mark.parametrize("kind", ["axial", "oblique sagittal", "tilted", "enhanced"])
def test_a_segmentation_is_the_label_again(tmp_path: Path, kind: str) -> None:
    affine = lps_affine("LPS" if kind in ("axial", "tilted") else "PIR", (1, 1.2, 2.5))
    if kind == "oblique sagittal":
        affine = lps_affine("PIR", (1, 1.2, 2.5), 14)
    if kind == "tilted":
        affine[1, 2] = 0.6
    made = [enhanced(body(), affine)] if kind == "enhanced" else slices(body(), affine)
    series = series_at(save(tmp_path / "in", made))
    label = block_label()
    chain = chain_of(series)
    turned = chain.turn_to_scan(label)
    content = segmentation_bytes(turned, chain, TABLE, series, "out.dcm", "SEMIAUTOMATIC")
    seg = hd.seg.segread(BytesIO(content))
    np.testing.assert_array_equal(by_source(seg, series), label)
    if kind != "tilted":  # highdicom's volumes have right angles
        volume = seg.get_volume(combine_segments=True)
        for place in ((5, 6, 4), (8, 9, 11), (10, 11, 13)):
            z, y, x = place
            expected = np.array(series.affine) @ (x, y, z, 1)
            k, j, i = np.rint(volume.map_reference_to_indices(expected[None, :3]).ravel()).astype(
                int
            )
            assert volume.array[k, j, i] == label[place]
    assert seg.segment_numbers == [1, 2, 3]
    for entry in TABLE.classes[1:]:
        described = seg.get_segment_description(entry.index)
        assert described.segment_label == entry.name
        assert described.algorithm_type.value == "SEMIAUTOMATIC"
        colour = hd.color.CIELabColor.from_dicom_value(described.RecommendedDisplayCIELabValue)
        assert np.abs(np.array(colour.to_rgb()) - list(bytes.fromhex(entry.colour[1:]))).max() <= 1
    assert seg.PatientName == NAME  # it belongs to the patient's study
    assert seg.StudyInstanceUID == made[0].StudyInstanceUID
    assert seg.FrameOfReferenceUID == made[0].FrameOfReferenceUID


@pytest.mark.slow
def test_a_source_with_few_attributes_will_do(tmp_path: Path) -> None:
    made = slices(body(), lps_affine())
    for d in made:
        for name in ("PatientName", "PatientBirthDate", "AccessionNumber", "StudyID", "StudyDate"):
            delattr(d, name)
    series = series_at(save(tmp_path / "in", made))
    for label in (block_label(), np.zeros_like(block_label())):
        content = segmentation_bytes(label, chain_of(series), TABLE, series, "out.dcm")
        read = hd.seg.segread(BytesIO(content))
        np.testing.assert_array_equal(by_source(read, series), label)
    for path in (tmp_path / "in").iterdir():
        d = pydicom.dcmread(path)
        del d.FrameOfReferenceUID
        d.save_as(path)
    with pytest.raises(ProjectError, match=r"out\.dcm: its series names no frame of reference"):
        segmentation_bytes(block_label(), chain_of(series), TABLE, series, "out.dcm")


@pytest.mark.slow
def test_a_project_of_dicom_exports_onto_its_series(tmp_path: Path) -> None:
    """Cropped and padded on its way in; told by its voxels on its way out."""
    for number, order in enumerate(("LPS", "PIR")):
        made = slices(np.roll(body(), number, 1), lps_affine(order, (1, 1, 2), 3))
        save(tmp_path / "in" / str(number), made)
    cohort = discover_dicom(tmp_path / "in")
    config = PreprocessingConfig(shape=(24, 24, 24), spacing_mm=(2, 1, 1))
    with Project.create(tmp_path / "p.jrss", TABLE, config) as project:
        assert all(r.ok for r in project.add_cases(cohort.cases, workers=1))
        case, other = (c.case_id for c in project.cases())
        with pytest.raises(ProjectError, match="lies in the project"):
            list(export_segmentations(project, project.path / "out", tmp_path / "in"))
        label = np.zeros((24, 24, 24), np.uint8)
        label[8:14, 8:14, 9:13] = 2
        label[8:14, 8:14, 13:16] = 1
        project.add_label_version(case, label, "reader", status=Status.MANUAL)
        carried = project.attributes(other).transform.label_to_scan(label)
        (path,) = export_segmentations(project, tmp_path / "out", tmp_path / "in")
        (predicted,) = export_segmentations(
            project, tmp_path / "predicted", tmp_path / "in", {other: lambda: carried}
        )
        with pytest.raises(ProjectError, match="doesn't hold the series of case"):
            list(export_segmentations(project, tmp_path / "out", tmp_path / "predicted"))
        assert (path.name, predicted.name) == (f"{case}.dcm", f"{other}.dcm")
        for file, case_id, made_by in ((path, case, "MANUAL"), (predicted, other, "AUTOMATIC")):
            seg = hd.seg.segread(file)
            transform = read_attributes(project.case_path(case_id)).transform
            uid = seg.ReferencedSeriesSequence[0].SeriesInstanceUID
            (series,) = [s for s in find_series(tmp_path / "in")[0] if s.uid == uid]
            expected = transform.label_to_source(label)
            assert np.count_nonzero(expected) > 100
            np.testing.assert_array_equal(by_source(seg, series), expected)
            assert seg.get_segment_description(1).algorithm_type.value == made_by
    command = ["export", str(tmp_path / "p.jrss"), "--dicom-source", str(tmp_path / "in")]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "all"), "--ome-zarr"])
    assert done.exit_code == 0, done.output
    written = {str(p.relative_to(tmp_path / "all")) for p in (tmp_path / "all").glob("*/*")}
    names = {"labels/labels.txt", "labels/labels.ctbl", f"labels/{case}.nii.gz"}
    names |= {f"{folder}/napari-jrss.sha256" for folder in ("labels", "dicom-seg")}
    assert written == names | {f"dicom-seg/{case}.dcm", f"ome-zarr/{case}.ome.zarr"}
    file = tmp_path / "all" / "dicom-seg" / f"{case}.dcm"
    first = file.read_bytes()
    done = CliRunner().invoke(app, [*command, str(tmp_path / "all")])
    assert done.exit_code == 0, done.output
    assert file.read_bytes() != first  # another object
    shutil.rmtree(tmp_path / "all" / "labels")
    edited = pydicom.dcmread(file)
    edited.SeriesDescription = "corrected"
    edited.save_as(file)
    done = CliRunner().invoke(app, [*command, str(tmp_path / "all")])
    assert f"edited since: {case}.dcm; move" in str(done.exception)
    assert pydicom.dcmread(file).SeriesDescription == "corrected"
    assert not (tmp_path / "all" / "labels").exists()
    data_set = [*command, str(tmp_path / "Dataset001_CT"), "--dataset", "nnunet"]
    done = CliRunner().invoke(app, [*data_set, "--modality", "CT"])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "Dataset001_CT" / "dataset.json").read_text())
    assert about["channel_names"] == {"0": "CT"}
    assert len(list((tmp_path / "Dataset001_CT" / "imagesTr").iterdir())) == 1
    for path in (tmp_path / "in").glob("*/*"):
        image = pydicom.dcmread(path)
        del image.FrameOfReferenceUID
        image.save_as(path)
    for source, reason in (("in", "no frame of reference"), ("predicted", "hold the series of")):
        place = [str(tmp_path / "p.jrss"), str(tmp_path / "none")]
        options = ["--dicom-source", str(tmp_path / source)]
        done = CliRunner().invoke(app, ["export", *place, *options])
        assert reason in str(done.exception)
        assert not (tmp_path / "none").exists()
