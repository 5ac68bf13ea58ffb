"""DICOM series in: geometry as SimpleITK has it, and every other file with its reason."""

from __future__ import annotations

import locale
import math
import re
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid

from napari_jrss._tests.io.dicom_phantoms import (
    enhanced,
    lps_affine,
    pixels,
    save,
    slices,
    structures,
)
from napari_jrss.errors import ScanError
from napari_jrss.geometry import rows
from napari_jrss.io.dicom import checksum, find_series, read_series
from napari_jrss.io.dicom_layout import discover_dicom
from napari_jrss.io.read import dicom_series_of, read_header, read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.preprocess.case_attributes import CaseAttributes
from napari_jrss.preprocess.transform import GridTransform, Intensity
from napari_jrss.project.relocate import find_dicom_sources

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
    """Slices as a scanner's archive compresses them: by GDCM, or by pydicom."""
    array = voxels((4, 32, 32)) + np.int16(2000)
    made = slices(array, lps_affine())
    save(folder, made)
    for path in sorted(folder.iterdir()):
        if codec in ("RLE", "JPEG-LS"):
            d = pydicom.dcmread(path)
            d.compress(RLELossless if codec == "RLE" else JPEGLSLossless)
            d.save_as(path)
            continue
        original = pydicom.dcmread(path)
        image = sitk.ReadImage(str(path))
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(codec)
        writer.SetFileName(str(path.with_suffix(".dcm")))
        before = locale.setlocale(locale.LC_ALL)
        writer.Execute(image)
        locale.setlocale(locale.LC_ALL, before)  # GDCM's writer leaves the process in "C"
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


@pytest.mark.parametrize("codec", ["JPEG2000", "JPEG", "JPEG-LS", "RLE"])
def test_compressed_pixels_are_decoded_exactly(tmp_path: Path, codec: str) -> None:
    array = compressed(tmp_path / "packed", codec)
    np.testing.assert_array_equal(read_volume(tmp_path / "packed").array, array)


# -- what is found, and what is left out


def test_a_series_that_is_refused_is_named_before_any_other_file(tmp_path: Path) -> None:
    made = slices(voxels((12, 8, 10)), lps_affine("LPS", SPACING))
    save(tmp_path / "gap", _drop(made, 5))
    for name in ("AAA.txt", "gap/README.txt"):
        (tmp_path / name).write_text("no DICOM")
    with pytest.raises(ScanError, match="a slice is missing"):
        discover_dicom(tmp_path)
    with pytest.raises(ScanError, match="a slice is missing"):
        read_volume(dicom_series_of(tmp_path / "gap") or tmp_path)


def test_several_patients_and_series_in_one_heap(tmp_path: Path) -> None:
    """Files of four series of two patients, mixed over two folders with other files."""
    study, others = generate_uid(), generate_uid()
    made = [
        slices(voxels(seed=0), lps_affine("LPS", SPACING), study=study, patient="one"),
        slices(voxels(seed=1), lps_affine("PIR", SPACING), study=study, patient="one"),
        slices(voxels(seed=2), lps_affine("LPS", SPACING), "MR", study=others, patient="two"),
        [enhanced(voxels(seed=3), lps_affine("LPS", SPACING))],
    ]
    heap = [d for series in made for d in series]
    save(tmp_path / "A", heap[::2])
    save(tmp_path / "B" / "deep", heap[1::2])
    (tmp_path / "B" / "notes.txt").write_text("no DICOM")
    (tmp_path / "B" / "viewer.exe").write_bytes(bytes(1000))
    save(tmp_path / "C", [structures(), structures()])
    found = discover_dicom(tmp_path)
    assert found.layout == "dicom"
    by_voxel = {int(read_volume(case.image).array[0, 0, 0]): case for case in found.cases}
    assert set(by_voxel) == {int(voxels(seed=seed)[0, 0, 0]) for seed in range(4)}
    first, second, third, fourth = (by_voxel[int(voxels(seed=s)[0, 0, 0])] for s in range(4))
    groups = found.groups
    assert groups[first.case_id] == groups[second.case_id]
    assert len({groups[c.case_id] for c in (first, third, fourth)}) == 3
    assert all(re.fullmatch(r"case-[0-9a-f]{10}", case.case_id) for case in found.cases)
    assert {(entry.what, entry.reason) for entry in found.left_out} == {
        ("B (2 files)", "not DICOM"),
        ("C (2 files)", "a label whose series isn't here"),
    }
    again = discover_dicom(tmp_path)
    assert not {c.case_id for c in again.cases} & {c.case_id for c in found.cases}


def _drop(made: list[pydicom.FileDataset], *which: int) -> list[pydicom.FileDataset]:
    return [d for k, d in enumerate(made) if k not in which]


def _refused(kind: str) -> tuple[list[pydicom.FileDataset], str]:
    """A series that makes no regular stack, and why."""
    made = slices(voxels((12, 8, 10)), lps_affine("LPS", SPACING, 10))
    series, study = made[0].SeriesInstanceUID, made[0].StudyInstanceUID
    match kind:
        case "missing":
            return _drop(made, 7), (
                "a slice is missing: 5 mm between slices 7 and 8, where others are 2.5 mm apart"
            )
        case "uneven":
            for k, d in enumerate(made):
                d.ImagePositionPatient = [0, 0, 2.5 * k + 0.3 * (k % 2)]
                d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            return made, "slices 2.2 to 2.8 mm apart"
        case "zigzag":
            for k, d in enumerate(made):
                d.ImagePositionPatient = [3 * (k % 2), 0, 2.5 * k]
                d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            return made, "slices that don't lie on one line"
        case "orientations":
            other = slices(voxels(), lps_affine("PIR", SPACING), series=series, study=study)
            return [*made, *other], "mixes orientations: 12 images in one, 6 in others"
        case "times":
            later = slices(
                voxels((12, 8, 10), seed=9),
                lps_affine("LPS", SPACING, 10),
                series=series,
                study=study,
            )
            return [*made, *later], "different images at one position (time points, echoes or"
        case "sizes":
            pixels(made[3], np.zeros((4, 4), np.int16))
            return made, "images of different sizes"
        case "spacings":
            made[3].PixelSpacing = [1, 1]
            return made, "images of different pixel spacings"
        case "one":
            return made[:1], "a single slice"
        case "scout":
            for d in made:
                d.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            return made, "localizer"
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *("missing", "uneven", "zigzag", "orientations", "times", "sizes", "spacings", "one"),
        "scout",
    ],
)
def test_a_series_that_is_no_regular_stack_is_left_out(tmp_path: Path, kind: str) -> None:
    made, reason = _refused(kind)
    save(tmp_path / "bad", made)
    save(tmp_path / "good", slices(voxels(), lps_affine()))
    series, left = find_series(tmp_path)
    assert [s.shape for s in series] == [(6, 8, 10)]
    (entry,) = left
    assert entry.what == f"bad (CT, {len(made)} image{'s' * (len(made) > 1)})"
    assert entry.reason.startswith(reason)
    with pytest.raises(ScanError) as caught:
        read_volume(tmp_path / "bad")
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'bad'}: ")


def test_localizers_and_copies_leave_the_rest_of_a_series(tmp_path: Path) -> None:
    made = slices(voxels(), lps_affine("LPS", SPACING))
    scout = slices(voxels((2, 8, 10)), lps_affine("PIR"), series=made[0].SeriesInstanceUID)
    for d in scout:
        d.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(tmp_path / "a", [*made, *scout])
    save(tmp_path / "b", made[2:4])  # the same files once more
    (series,), left = find_series(tmp_path)
    np.testing.assert_array_equal(read_series(series).array, voxels())
    assert [entry.reason for entry in left] == [
        "2 localizers left out; the other images are a case",
        "2 repeated images left out; the other images are a case",
    ]


def test_a_damaged_copy_of_a_slice_is_not_passed_over(tmp_path: Path) -> None:
    made = slices(voxels(), lps_affine("LPS", SPACING))
    save(tmp_path / "a", made)
    save(tmp_path / "b", made[2:3])
    copied = tmp_path / "b" / "IM0000"
    d = pydicom.dcmread(copied)
    d.PixelData = d.PixelData[:60]
    d.save_as(copied)
    series, (entry,) = find_series(tmp_path)
    assert series == []
    assert entry.reason.startswith("different images at one position")


def test_files_that_hold_no_scan_say_why(tmp_path: Path) -> None:
    def one(name: str, **changed: object) -> None:
        (d, *_) = slices(voxels((1, 8, 10)), lps_affine())
        for key, value in changed.items():
            if value is None:
                delattr(d, key)
            else:
                setattr(d, key, value)
        save(tmp_path / name, [d])

    one("colour", SamplesPerPixel=3, PhotometricInterpretation="RGB")
    one("palette", PhotometricInterpretation="PALETTE COLOR")
    one("nowhere", ImagePositionPatient=None)
    one("shrunk", PixelSpacing=[0, 1])
    one("crooked", ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    one("frames", NumberOfFrames=2, PixelData=bytes(320))
    one("huge", Rows=60000, Columns=60000)
    one("bits", BitsAllocated=64, BitsStored=64, HighBit=63)
    one("segmentation", Modality="SEG")
    one("dose", Modality="RTDOSE")
    one("slope", RescaleSlope=0)
    one("no series", SeriesInstanceUID=None)
    (d, *_) = slices(voxels((1, 8, 10)), lps_affine())
    d.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
    d["PixelData"].is_undefined_length = True
    d.PixelData = pydicom.encaps.encapsulate([bytes(100)])
    save(tmp_path / "film", [d])
    whole = save(tmp_path / "cut", slices(voxels((1, 80, 100)), lps_affine())) / "IM0000"
    whole.write_bytes(whole.read_bytes()[:9000])
    torn = save(tmp_path / "torn", slices(voxels((1, 8, 10)), lps_affine())) / "IM0000"
    torn.write_bytes(torn.read_bytes()[:200])
    deflated = save(tmp_path / "deflated", slices(voxels((1, 8, 10)), lps_affine())) / "IM0000"
    d = pydicom.dcmread(deflated)
    d.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    d.save_as(deflated)
    reasons = {Path(what).parts[0]: reason for what, reason in left_out(tmp_path).items()}
    expected = {
        "colour": "a colour image",
        "palette": "not an image in grey levels",
        "nowhere": "has no ImagePositionPatient, so its position is unknown",
        "shrunk": "bad PixelSpacing",
        "crooked": "bad ImageOrientationPatient",
        "frames": "several frames without a position for each",
        "huge": "truncated (the header promises 7200000000 bytes",
        "bits": "pixels of 64 in 64 bits are not supported",
        "segmentation": "a label whose series isn't here",
        "dose": "a dose distribution, no scan",
        "slope": "bad RescaleSlope",
        "no series (CT, 1 image)": "a single slice",
        "film": "MPEG2 Main Profile / Main Level can't be decoded",
        "cut": "truncated",
        "torn": "damaged DICOM",
        "deflated": "a deflated data set is not supported",
    }
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert reasons[name].startswith(reason), (name, reasons[name])
    with pytest.raises(ScanError, match="holds no image series that can be used"):
        discover_dicom(tmp_path)


def test_a_folder_of_several_series_wants_one_named(tmp_path: Path) -> None:
    save(tmp_path / "a", slices(voxels(), lps_affine()))
    save(tmp_path / "b", slices(voxels(seed=1), lps_affine()))
    with pytest.raises(ScanError, match="holds 2 image series; name the folder of one"):
        read_volume(tmp_path)
    # One of its files stands for a series.
    np.testing.assert_array_equal(read_volume(tmp_path / "b" / "IM0003").array, voxels(seed=1))
    with pytest.raises(ScanError, match="no such folder"):
        find_series(tmp_path / "c")


def test_damage_that_only_shows_when_pixels_are_read_names_the_series(tmp_path: Path) -> None:
    compressed(tmp_path / "Secret^Name", "JPEG2000")
    (series,), _ = find_series(tmp_path)
    path = series.files[2]
    packed = pydicom.dcmread(path)
    packed.PixelData = pydicom.encaps.encapsulate([b"no JPEG 2000 at all" * 20])
    packed.save_as(path)
    with pytest.raises(ScanError, match="slice 3: damaged pixels") as caught:
        read_series(series)
    assert str(caught.value).startswith(f"{series.name}: ")
    assert "Secret" not in str(caught.value)
    path.unlink()
    with pytest.raises(ScanError, match="slice 3: No such file") as caught:
        read_series(series)
    assert "Secret" not in str(caught.value)


def test_a_series_is_found_again_by_its_voxels(tmp_path: Path) -> None:
    """Also when it was anonymised and sent again under other identifiers."""
    affine = lps_affine("PIR", SPACING, 5)
    (before,), _ = find_series(save(tmp_path / "a", slices(voxels(), affine)))
    transform = GridTransform(
        source_shape=before.shape,
        source_affine=before.affine,
        header=None,
        shape=before.shape,
        grid_to_source=rows(np.eye(4)),
        intensity=Intensity(low=0, high=1, mean=0, std=1),
    )
    case = CaseAttributes(
        case_id="case-1",
        source="dicom",
        checksum=checksum(read_series(before)),
        transform=transform,
        spacing_mm=(1, 1, 1),
    )
    for name, seed in (("same", 0), ("other", 1)):
        save(tmp_path / "b" / name, slices(voxels(seed=seed), affine, patient=""))
    (again,) = find_dicom_sources(tmp_path / "b", [case]).values()
    assert again.files[0].parent.name == "same"
    assert find_dicom_sources(tmp_path / "b" / "other", [case]) == {}


def test_a_header_that_lies_allocates_nothing(tmp_path: Path) -> None:
    """Forty thousand rows and columns of a packed image; frames by the million."""
    compressed(tmp_path / "packed", "JPEG2000")
    for number, path in enumerate(sorted((tmp_path / "packed").iterdir())):
        d = pydicom.dcmread(path)
        d.Rows = d.Columns = 40000
        if number % 2:
            d.NumberOfFrames = 2**31 - 1
        d.save_as(path)
    plain = save(tmp_path / "plain", slices(voxels(), lps_affine()))
    for path in plain.iterdir():
        d = pydicom.dcmread(path)
        d.NumberOfFrames = 2**31 - 1
        d.save_as(path)
    tracemalloc.start()
    assert find_series(tmp_path)[0] == []
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.slow
@given(st.integers(128, 1500), st.binary(min_size=1, max_size=8), st.integers(0, 2000))
@settings(max_examples=60)
def test_a_file_of_nonsense_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, offset: int, noise: bytes, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("nonsense")
    save(folder, slices(voxels((3, 8, 10)), lps_affine()))
    path = folder / "IM0001"
    content = bytearray(path.read_bytes())
    content[offset : offset + len(noise)] = noise
    path.write_bytes(content[:cut] if cut < 600 else content)
    series, left = find_series(folder)
    assert series or left
    try:
        volume = read_volume(folder)
    except ScanError as error:
        refusal = str(error)
    else:
        assert np.isfinite(volume.array).all()
        assert np.isfinite(volume.affine).all()
        return
    assert refusal.startswith(f"{folder}: ")
    assert "\n" not in refusal
