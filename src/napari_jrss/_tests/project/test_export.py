"""Exports: bit for bit in the scan's own grid, fields that SimpleITK applies as we do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage
from typer.testing import CliRunner

from napari_jrss.cli import app
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.geometry import rows
from napari_jrss.io.layouts import FoundCohort, discover
from napari_jrss.io.predictions import Prediction, write_prediction
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.resample import inside
from napari_jrss.preprocess.transform import GridTransform, Intensity, TrainingGrid
from napari_jrss.project.export.datasets import export_dataset
from napari_jrss.project.export.fields import scan_displacement, write_displacement
from napari_jrss.project.export.folder import RECORD
from napari_jrss.project.export.labels import (
    export_drawn_files,
    export_label_files,
    label_names,
)
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome, Split

from .conftest import CASES, TABLE

GEOMETRY = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x"),
    *("qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim"),
)


# -- labels


def test_labels_come_back_bit_for_bit_with_the_scans_header(
    project: Project, cohort: FoundCohort, tmp_path: Path
) -> None:
    """Six orientations, each only turned and padded on its way in."""
    paths = {p.name: p for p in export_label_files(project, tmp_path / "out")}
    assert len(paths) == CASES
    for case in cohort.cases:
        assert case.label is not None
        original, exported = (
            nib.Nifti1Image.from_filename(case.label),
            nib.Nifti1Image.from_filename(paths[f"{case.case_id}.nii.gz"]),
        )
        np.testing.assert_array_equal(np.asarray(exported.dataobj), np.asarray(original.dataobj))
        for field in GEOMETRY:
            np.testing.assert_array_equal(exported.header[field], original.header[field], field)
        seen, ours = sitk.ReadImage(str(case.image)), sitk.ReadImage(str(exported.get_filename()))
        assert ours.IsSameImageGeometryAs(seen, 1e-6, 1e-6)


def test_predictions_export_like_labels(
    project: Project, cohort: FoundCohort, tmp_path: Path
) -> None:
    label = project.scan_label("case2")
    (path,) = export_drawn_files(project, tmp_path / "out", ["case2"], lambda case_id: label)
    assert path.name == "case2.nii.gz"
    (source,) = [c.label for c in cohort.cases if c.case_id == "case2" and c.label]
    original = nib.Nifti1Image.from_filename(source)
    exported = nib.Nifti1Image.from_filename(path)
    np.testing.assert_array_equal(np.asarray(exported.dataobj), np.asarray(original.dataobj))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_labels_that_no_export_wrote_are_not_replaced(project: Project, tmp_path: Path) -> None:
    theirs = tmp_path / "labels" / "case3.nii.gz"
    theirs.parent.mkdir()
    theirs.write_bytes(b"drawn by hand")
    with pytest.raises(ProjectError, match=r"no export wrote .*: case3\.nii\.gz; move"):
        export_label_files(project, theirs.parent)
    assert files(theirs.parent) == {"case3.nii.gz": b"drawn by hand"}
    theirs.unlink()
    theirs.mkdir()
    with pytest.raises(ProjectError, match="no export wrote"):
        export_label_files(project, theirs.parent)
    theirs.rmdir()
    (theirs.parent / "labels.ctbl").write_text("# Color table of napari-jrss\n")
    with pytest.raises(ProjectError, match=r"labels\.ctbl;"):  # before there were records
        export_label_files(project, theirs.parent)
    assert len(list(theirs.parent.iterdir())) == 1


def test_what_was_edited_since_an_export_is_not_replaced(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in export_label_files(project, out):
        pass
    exported = nib.Nifti1Image.from_filename(out / "case1.nii.gz")
    corrected = np.asarray(exported.dataobj).copy()
    corrected[:3] = 7
    nib.save(nib.Nifti1Image(corrected, None, exported.header), out / "case1.nii.gz")
    names = (out / "labels.txt").read_text()
    (out / "labels.txt").write_text(names.replace("left part", "left"))
    label = project.label("case0")
    project.add_label_version("case0", np.roll(label, 1, 0), "Ada")
    before = files(out)
    with pytest.raises(ProjectError, match=r"edited since: labels\.txt and 1 more; move"):
        export_label_files(project, out)
    (out / "labels.txt").unlink()
    with pytest.raises(ProjectError, match=r"edited since: case1\.nii\.gz; move"):
        export_label_files(project, out)
    del before["labels.txt"]
    assert files(out) == before
    assert len(list(export_label_files(project, out, ["case0", "case2"]))) == 2
    assert files(out)["case1.nii.gz"] == before["case1.nii.gz"]
    with pytest.raises(ProjectError, match=r"case1\.nii\.gz"):  # also after another export
        export_label_files(project, out)


def test_what_an_earlier_export_wrote_is_replaced(project: Project, tmp_path: Path) -> None:
    """Again and again, also when it holds something else each time."""
    out = tmp_path / "out"
    label = project.label("case0")
    for shift in range(3):
        project.add_label_version("case0", np.roll(label, shift, 0), "Ada")
        for _ in range(2):
            assert len(list(export_label_files(project, out))) == CASES
    assert len(list(export_label_files(project, tmp_path / "fresh"))) == CASES
    now, fresh = files(out), files(tmp_path / "fresh")
    assert {n: now[n] for n in now if n != RECORD} == {n: fresh[n] for n in fresh if n != RECORD}
    project.rename_structure(1, "front", "Ada")
    next(export_label_files(project, out))  # stopped under way
    assert "front" in (out / "labels.txt").read_text()
    assert len(list(export_label_files(project, out))) == CASES


@pytest.mark.slow
def test_all_that_an_export_refuses_comes_before_it_writes(
    project_path: Path, cohort: FoundCohort, tmp_path: Path
) -> None:
    with Project.open(project_path) as project:
        number = project.start_round(None, "{}", project.snapshot().label_versions).number
        label = project.label("case2")
        for case_id in ("case2", "case4"):
            prediction = Prediction(label, np.ones(label.shape, np.float16))
            write_prediction(project.round(number).folder / "predictions", case_id, prediction)
        project.finish_round(number, RoundOutcome.FINISHED, promote=True)
    out = tmp_path / "out"
    command = ["export", str(project_path), str(out), "--ome-zarr"]

    def refused(what: str) -> None:
        before = files(out)
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, ProjectError)
        assert what in str(done.exception)
        assert "\n" not in str(done.exception)
        assert files(out) == before

    (out / "predictions").mkdir(parents=True)
    (out / "predictions" / "case4.nii.gz").write_bytes(b"drawn by hand")
    refused(
        "predictions: holds files that no export wrote or that were edited since: case4.nii.gz;"
    )
    assert not (out / "labels").exists()
    (out / "predictions" / "case4.nii.gz").unlink()
    (out / "ome-zarr").write_text("a file")
    refused("ome-zarr: can't be made")
    (out / "ome-zarr").unlink()
    (out / "ome-zarr" / "case5.ome.zarr").mkdir(parents=True)
    refused("case5.ome.zarr: exists already;")
    shutil.rmtree(out / "ome-zarr")
    image = cohort.cases[-1].image
    assert isinstance(image, Path)
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    try:
        refused("has changed since case")
    finally:
        image.write_bytes(content)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"2 labels by the teacher in {out / 'predictions'}" in done.output.replace("\n", "")
    refused("case0.ome.zarr: exists already, and 5 more;")
    command.remove("--ome-zarr")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    (out / "predictions" / "case2.nii.gz").write_bytes(b"corrected")
    refused("edited since: case2.nii.gz;")


def test_names_are_those_of_the_numbers_in_the_file() -> None:
    files = {name: content.decode().splitlines() for name, content in label_names(TABLE).items()}
    lines = files["labels.txt"]
    rows_ = [line.split(maxsplit=7) for line in lines if not line.startswith("#")]
    assert [(row[0], row[7]) for row in rows_] == [
        ("0", '"background"'),
        ("3", '"left part"'),
        ("7", '"right part"'),
    ]
    assert [row[1:4] for row in rows_[1:]] == [
        [str(v) for v in bytes.fromhex(c.colour[1:])] for c in TABLE.classes[1:]
    ]
    assert [row[4:7] for row in rows_] == [["0"] * 3, ["1"] * 3, ["1"] * 3]
    lines = files["labels.ctbl"]
    slicer = [line.split() for line in lines if not line.startswith("#")]
    assert [(row[0], row[1], row[5]) for row in slicer] == [
        ("0", "background", "0"),
        ("3", "left_part", "255"),
        ("7", "right_part", "255"),
    ]
    grouped = LabelTable.of_groups({"both": (3, 7)}, unlisted_is_background=True)
    # ids can't be restored: the files hold indices
    assert label_names(grouped)["labels.ctbl"].splitlines()[-1].startswith(b"1 both ")


# -- displacement fields


def smooth(shape: tuple[int, int, int], seed: int, size: float) -> NDArray[np.float64]:
    noise = np.random.default_rng(seed).normal(size=shape)
    wave = ndimage.gaussian_filter(noise, 2, mode="nearest")
    return np.asarray(size * wave / wave.std())


def scan(tmp_path: Path, name: str, affine: NDArray[np.float64], seed: int) -> Volume:
    """A smooth scan (x, y, z) = (14, 12, 10) with this RAS affine, as its file gives it."""
    path = tmp_path / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(smooth((14, 12, 10), seed, 1).astype(np.float32), affine), path)
    return read_volume(path)


def oblique(spacing: tuple[float, float, float], degrees: float) -> NDArray[np.float64]:
    angle = np.deg2rad(degrees)
    turn = np.array(
        [
            [np.cos(angle), -np.sin(angle), 0],
            [np.sin(angle), np.cos(angle), 0],
            [0, 0, 1],
        ]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = (-20, 4, 7)
    return affine


def numpy_warp(
    moving: Volume,
    to_moving: GridTransform,
    fixed: Volume,
    to_fixed: GridTransform,
    field: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Our warp, voxel by voxel of the fixed scan: p + u(p) on the training grid."""
    z, y, x = np.meshgrid(*map(np.arange, fixed.shape), indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), z.ravel(), np.ones(x.size)])
    p = np.linalg.inv(to_fixed.matrix) @ points
    u = [ndimage.map_coordinates(part, p[2::-1], order=1, mode="nearest") for part in field]
    p[:3] += u[::-1]
    q = to_moving.matrix @ p
    values = ndimage.map_coordinates(
        moving.array.astype(float), q[2::-1], order=1, mode="constant", cval=np.nan
    )
    return np.asarray(values.reshape(fixed.shape))


def itk_warp(moving: Path, fixed: Path, field: Path) -> NDArray[np.float64]:
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    warped = sitk.Resample(
        sitk.ReadImage(str(moving), sitk.sitkFloat64),
        sitk.ReadImage(str(fixed)),
        transform,
        sitk.sitkLinear,
        np.nan,
    )
    return np.asarray(sitk.GetArrayFromImage(warped))


def same_where_inside(ours: NDArray[np.float64], itks: NDArray[np.float64]) -> None:
    """Equal wherever both see the moving scan, which is nearly everywhere that we do.

    ITK also looks half a voxel beyond the centres of the border voxels.
    """
    both = np.isfinite(ours) & np.isfinite(itks)
    assert np.isfinite(ours).mean() > 0.3
    assert both.sum() > 0.98 * np.isfinite(ours).sum()
    np.testing.assert_allclose(itks[both], ours[both], atol=2e-4)


def test_itk_reproduces_the_training_grids_warp_for_turned_scans(tmp_path: Path) -> None:
    """The cached images, warped on the training grid and turned back, equal SimpleITK's."""
    flipped = np.array([[0, 0, -2.0, 9], [1, 0, 0, -3], [0, 1.5, 0, 5], [0, 0, 0, 1]])
    moving = scan(tmp_path, "moving", flipped, 1)
    fixed = scan(tmp_path, "fixed", np.diag([-1, 1.5, 2.0, 1]) + 0.0, 2)
    config, spacing = PreprocessingConfig(), (1.5, 1.0, 2.0)
    moving_grid = TrainingGrid(shape=(16, 16, 16), spacing_mm=spacing)
    done = preprocess(moving, None, config, moving_grid)
    assert done.transform.exact
    fixed_grid = TrainingGrid(shape=(16, 16, 16), spacing_mm=(2.0, 1.5, 1.0))
    other = preprocess(fixed, None, config, fixed_grid)
    assert other.transform.exact

    field = np.stack([smooth((16, 16, 16), seed, 1.2) for seed in (3, 4, 5)])
    grid = np.indices((16, 16, 16)).astype(float)
    warped = ndimage.map_coordinates(done.image, grid + field, order=1, mode="nearest")
    scale = done.transform.intensity
    ours = other.transform.values_to_source(warped * scale.std + scale.mean, fill=np.nan)
    path = write_displacement(
        *scan_displacement(field, done.transform, other.transform), tmp_path / "field.nii.gz"
    )
    itks = itk_warp(tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", path)
    # Near its border the cached image mixes in what it is padded with; ITK doesn't know that.
    covered = inside(done.transform.matrix, (16, 16, 16), moving.shape).astype(float)
    covered = ndimage.map_coordinates(covered, grid + field, order=1)
    sees_only_the_scan = other.transform.values_to_source(covered) > 0.9999
    assert sees_only_the_scan.mean() > 0.3
    np.testing.assert_allclose(itks[sees_only_the_scan], ours[sees_only_the_scan], atol=2e-4)


@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_itk_reproduces_our_warp_with_pre_alignment_and_resampling(
    tmp_path: Path, shear: float
) -> None:
    """Oblique scans of different spacings, aligned by a map that scales and shears."""
    moving = scan(tmp_path, "moving", oblique((1.0, 1.5, 2.0), 20), 1)
    fixed = scan(tmp_path, "fixed", oblique((1.2, 1.2, 1.8), -35), 2)
    shape = (12, 16, 16)
    grid = fixed.affine @ np.diag([0.9, 1.1, 0.8, 1.0])
    aligned = np.eye(4)
    aligned[0, 1], aligned[2, 2] = shear, 1 + shear
    centres = [(v.affine @ (6.5, 5.5, 4.5, 1))[:3] for v in (fixed, moving)]
    aligned[:3, 3] = centres[1] - aligned[:3, :3] @ centres[0] + (1.0, -2.0, 0.5)
    to_fixed, to_moving = (
        _transform(volume, shape, np.linalg.inv(volume.affine) @ align @ grid)
        for volume, align in ((fixed, np.eye(4)), (moving, aligned))
    )
    field = np.stack([smooth(shape, seed, 1.0) for seed in (3, 4, 5)])
    path = write_displacement(
        *scan_displacement(field, to_moving, to_fixed), tmp_path / "field.nii.gz"
    )
    header = nib.Nifti1Image.from_filename(path).header
    assert header["dim"].tolist()[:6] == [5, 14, 12, 10, 1, 3]
    assert header.get_intent()[0] == "vector"
    ours = numpy_warp(moving, to_moving, fixed, to_fixed, field)
    itks = itk_warp(tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", path)
    same_where_inside(ours, itks)


def test_a_sheared_scan_gets_a_field_that_itk_can_place(tmp_path: Path) -> None:
    """No ITK image has a sheared grid, but a field on an upright one says the same."""
    sheared = oblique((1.0, 1.5, 2.0), 0)
    sheared[0, 1] = 0.4
    fixed = scan(tmp_path, "fixed", sheared, 1)
    shape = (10, 12, 14)
    transform = _transform(fixed, shape, np.eye(4))
    u = np.array([0.5, -1.0, 2.0])  # z, y, x voxels
    field = np.broadcast_to(u[:, None, None, None], (3, *shape))
    path = write_displacement(
        *scan_displacement(field, transform, transform), tmp_path / "field.nii.gz"
    )
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    for voxel in ((0, 0, 0), (7, 5, 3), (13, 11, 9)):
        here, there = ((fixed.affine @ (*v, 1))[:3] for v in (voxel, np.array(voxel) + u[::-1]))
        np.testing.assert_allclose(transform.TransformPoint(here.tolist()), there, atol=1e-4)


def _transform(
    volume: Volume, shape: tuple[int, int, int], matrix: NDArray[np.float64]
) -> GridTransform:
    return GridTransform(
        source_shape=volume.shape,
        source_affine=rows(volume.affine),
        header=volume.header,
        shape=shape,
        grid_to_source=rows(matrix),
        intensity=Intensity(low=-9, high=9, mean=0, std=1),
    )


# -- data sets


def test_the_labelled_set_exports_as_nnunet_has_it(
    project: Project, cohort: FoundCohort, tmp_path: Path
) -> None:
    project.split(labelled=2, validation=1, test=2)
    folder = export_dataset(project, tmp_path / "Dataset001_Phantom", modality="CT")
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "left part": 1, "right part": 2}
    assert description["channel_names"] == {"0": "CT"}
    assert description["file_ending"] == ".nii.gz"
    assert description["numTraining"] == 2
    labelled = project.snapshot().labelled
    test = [c.case_id for c in project.cases() if c.split is Split.TEST]
    names = {part: sorted(p.name for p in (folder / part).iterdir()) for part in _PARTS}
    assert names["imagesTr"] == [f"{c}_0000.nii.gz" for c in labelled]
    assert names["labelsTr"] == [f"{c}.nii.gz" for c in labelled]
    assert names["imagesTs"] == [f"{c}_0000.nii.gz" for c in test]
    for case in cohort.cases:
        if case.case_id in labelled:
            image = nib.Nifti1Image.from_filename(
                folder / "imagesTr" / f"{case.case_id}_0000.nii.gz"
            )
            label = nib.Nifti1Image.from_filename(folder / "labelsTr" / f"{case.case_id}.nii.gz")
            np.testing.assert_array_equal(
                image.get_fdata(), nib.Nifti1Image.from_filename(case.image).get_fdata()
            )
            np.testing.assert_array_equal(image.affine, label.affine)
            assert case.label is not None
            ids = np.array([0, 3, 7])[np.asarray(label.dataobj)]
            np.testing.assert_array_equal(
                ids, np.asarray(nib.Nifti1Image.from_filename(case.label).dataobj)
            )


@pytest.mark.parametrize("layout", ["nnunet", "decathlon"])
def test_an_exported_data_set_is_found_again(layout: str, project: Project, tmp_path: Path) -> None:
    project.split(labelled=3, test=1)
    folder = export_dataset(project, tmp_path / "out", layout)  # type: ignore[arg-type]
    found = discover(folder)
    assert found.layout == layout
    labelled = [case.case_id for case in found.cases if case.label is not None]
    assert tuple(labelled) == project.snapshot().labelled
    assert len(found.cases) == len(labelled) + 1  # the test case, without its label
    assert found.table is not None
    assert found.table.names == project.table.names


def test_a_data_set_is_there_in_full_or_not_at_all(
    project: Project, cohort: FoundCohort, tmp_path: Path, made_once: Path
) -> None:
    image = cohort.cases[-1].image
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    try:
        with pytest.raises(ProjectError, match=r"has changed since case"):
            export_dataset(project, tmp_path / "out")
    finally:
        image.write_bytes(content)
    assert {p.name for p in tmp_path.iterdir()} == {"moved.jrss"}
    export_dataset(project, tmp_path / "out")
    with pytest.raises(ProjectError, match="exists already"):
        export_dataset(project, tmp_path / "out")


_PARTS = ("imagesTr", "labelsTr", "imagesTs")
