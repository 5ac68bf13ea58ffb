"""DICOM series in: geometry as SimpleITK has it, and every other file with its reason."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom.uid import RLELossless

from napari_jrss._tests.data.dicom_phantoms import (
    enhanced,
    lps_affine,
    pixels,
    save,
    slices,
)
from napari_jrss.data.dicom import find_series
from napari_jrss.data.volume import Volume, read_header, read_volume

SPACING = (0.7, 0.8, 2.5)
ORDERS = ("LPS", "RAS", "LIP", "PIR", "SAL", "IPL")


def voxels(shape: tuple[int, int, int] = (6, 8, 10), seed: int = 0) -> NDArray[np.int16]:
    """Each value once."""
    order = np.random.default_rng(seed).permutation(math.prod(shape))
    return (order - 200).astype(np.int16).reshape(shape)


def itk(folder: Path) -> Volume:
    """What SimpleITK's own series reader makes of a folder of one series."""
    reader = sitk.ImageSeriesReader()
    (uid,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), affine)


def left_out(folder: Path) -> dict[str, str]:
    return {entry.what: entry.reason for entry in find_series(folder)[1]}


# -- geometry and values


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("degrees", [0, 17])
def test_a_series_lies_where_simpleitk_puts_it(tmp_path: Path, order: str, degrees: float) -> None:
    affine = lps_affine(order, SPACING, degrees)
    folder = save(tmp_path, slices(voxels(), affine, slope=2.5, intercept=-1024))
    ours, theirs = read_volume(folder), itk(folder)
    np.testing.assert_array_equal(ours.array, theirs.array.astype(np.float32))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
    # Whatever the order of the slices, each voxel is where it was written.
    for value, place in ((voxels()[2, 3, 4], (4, 3, 2)), (voxels()[5, 0, 9], (9, 0, 5))):
        (z, y, x), *others = np.argwhere(ours.array == np.float32(value * 2.5 - 1024))
        assert not others
        np.testing.assert_allclose(ours.affine @ (x, y, z, 1), affine @ (*place, 1), atol=1e-5)
    np.testing.assert_allclose(read_header(folder).affine, ours.affine, atol=1e-4)


@pytest.mark.parametrize("name", ["hippocampus_msd", "ixi_brain_2mm"])
def test_a_real_scan_comes_back_from_dicom(tmp_path: Path, shared_data: Path, name: str) -> None:
    """Written as oblique, sagittal or axial slices, and read as SimpleITK reads them."""
    image = nib.load(next(iter(sorted((shared_data / name / "images").glob("*.nii.gz")))))
    array = np.asarray(image.dataobj).T
    array = np.rint(array * (1000 / array.max())).astype(np.int16)
    affine = np.diag([-1.0, -1, 1, 1]) @ image.affine
    scan = Volume(array, affine)
    for axes, modality in (((0, 1, 2), "MR"), ((2, 0, 1), "CT")):
        turned = array.transpose(axes)
        columns = [2 - axis for axis in axes[::-1]]
        placed = affine[:, [*columns, 3]]
        folder = save(tmp_path / modality, slices(turned, placed, modality))
        ours, theirs = read_volume(folder), itk(folder)
        np.testing.assert_array_equal(ours.array, theirs.array)
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
        upright, expected = ours.to_lps(), scan.to_lps()
        np.testing.assert_array_equal(upright.array, expected.array)
        np.testing.assert_allclose(upright.affine, expected.affine, atol=1e-3)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    made = slices(voxels(), lps_affine())
    for k, d in enumerate(made):
        d.RescaleSlope, d.RescaleIntercept = k + 1, -k
    array = read_volume(save(tmp_path, made)).array
    for k, plane in enumerate(voxels()):
        np.testing.assert_array_equal(array[k], plane * (k + 1.0) - k)


def test_a_frame_of_an_enhanced_object_is_a_slice(tmp_path: Path) -> None:
    affine = lps_affine("PIR", SPACING, 12)
    ours = read_volume(save(tmp_path, [enhanced(voxels(), affine, slope=2.5)]))
    np.testing.assert_array_equal(ours.array, voxels() * np.float32(2.5))
    np.testing.assert_allclose(ours.affine, affine, atol=1e-5)


def test_a_tilted_gantry_shears_the_affine_and_loses_nothing(tmp_path: Path) -> None:
    affine = lps_affine("LPS", SPACING)
    affine[1, 2] = 2.5 * np.tan(np.deg2rad(15))  # each slice a little further back
    ours = read_volume(save(tmp_path, slices(voxels(), affine)))
    np.testing.assert_array_equal(ours.array, voxels())
    np.testing.assert_allclose(ours.affine, affine, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_pixels_of_any_usual_kind(tmp_path: Path, bits: int, signed: bool) -> None:
    """Twelve bits in sixteen, with something old in the other four."""
    kind = np.dtype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    array = np.random.default_rng(0).integers(low, high, (3, 4, 5)).astype(kind)
    made = slices(array, lps_affine())
    for d, plane in zip(made, array, strict=True):
        if bits == 12:
            stray = (plane.view(np.uint16) & 0x0FFF) | 0xA000
            pixels(d, stray.view(kind))
            d.BitsStored, d.HighBit = 12, 11
    np.testing.assert_array_equal(read_volume(save(tmp_path, made)).array, array)


def compressed(folder: Path, codec: str) -> NDArray[np.int16]:
    """Slices as a scanner's archive compresses them: by GDCM, or RLE by pydicom."""
    array = voxels((4, 32, 32)) + np.int16(2000)
    made = slices(array, lps_affine())
    save(folder, made)
    for path in sorted(folder.iterdir()):
        if codec == "RLE":
            d = pydicom.dcmread(path)
            d.compress(RLELossless)
            d.save_as(path)
            continue
        original = pydicom.dcmread(path)
        image = sitk.ReadImage(str(path))
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(codec)
        writer.SetFileName(str(path.with_suffix(".dcm")))
        writer.Execute(image)
        packed = pydicom.dcmread(path.with_suffix(".dcm"))
        path.with_suffix(".dcm").unlink()
        assert packed.file_meta.TransferSyntaxUID.is_compressed
        original.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
            setattr(original, name, packed[name].value)
        original.PixelData = packed.PixelData
        original["PixelData"].is_undefined_length = True
        original.save_as(path)
    return array


@pytest.mark.parametrize("codec", ["JPEG2000", "JPEG", "RLE"])
def test_compressed_pixels_are_decoded_exactly(tmp_path: Path, codec: str) -> None:
    array = compressed(tmp_path / "packed", codec)
    np.testing.assert_array_equal(read_volume(tmp_path / "packed").array, array)
