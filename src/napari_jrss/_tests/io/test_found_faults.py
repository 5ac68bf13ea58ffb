"""Files that other programs write and that were once misread, rebuilt small."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from napari_jrss._tests.io.phantoms import blobs, block_label, write
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError
from napari_jrss.io.nifti import read_label_volume
from napari_jrss.io.read import read_header, read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.preprocess.pipeline import LabelError, on_grid_of, preprocess
from napari_jrss.preprocess.transform import TrainingGrid

PLACE = np.array([[-2.0, 0, 0, 10], [0, -3, 0, 20], [0, 0, 4, -30], [0, 0, 0, 1]])


def itk_affine(path) -> np.ndarray:
    """Voxel (x, y, z, 1) -> LPS mm as SimpleITK reads it."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine


def header_with(path, sform=None, qform=None, pixdim=None, units="mm", factor=1.0):
    """A NIfTI file whose header says exactly this."""
    header = nib.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    header.set_xyzt_units(units)
    scale = np.diag([factor, factor, factor, 1])
    if qform is not None:
        header.set_qform(scale @ qform, code=1)
    if sform is not None:
        header.set_sform(scale @ sform, code=1)
    if pixdim is not None:
        header["pixdim"][1:4] = np.array(pixdim) * factor
    content = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    header.set_data_dtype(np.int16)
    path.write_bytes(nib.Nifti1Image(content, None, header).to_bytes())
    return path


@pytest.mark.parametrize(("units", "factor"), [("micron", 1e3), ("meter", 1e-3), ("mm", 1)])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_lengths_are_mm_whatever_the_unit(tmp_path, units, factor, form):
    path = header_with(
        tmp_path / "x.nii", **{form: PLACE}, pixdim=(2, 3, 4), units=units, factor=factor
    )
    np.testing.assert_allclose(read_volume(path).affine, itk_affine(path), rtol=1e-6)
    np.testing.assert_allclose(read_header(path).affine[0, 0], 2, rtol=1e-6)
    assert read_volume(path).spacing_mm == pytest.approx((4, 3, 2))
    label = read_label_volume(path)
    assert label.spacing_mm == pytest.approx((4, 3, 2))
    assert not read_volume(path).notes


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"pixdim": (2, 3, 4)}, "says nothing of orientation"),
        (
            {"sform": PLACE, "pixdim": (1, 2, 3)},
            "pixdim says voxels of 1 x 2 x 3, the sform 2 x 3 x 4",
        ),
        ({"sform": np.diag([0, 0, 0, 1]), "qform": PLACE}, "the qform counts"),
    ],
)
def test_a_header_at_odds_with_itself_is_read_as_itk_does_and_said(tmp_path, header, said):
    path = header_with(tmp_path / "x.nii", **header)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, itk_affine(path), atol=1e-4)
    (note,) = volume.notes
    assert said in note
    assert said in volume.header.doubt


def test_scaled_labels_are_whole_and_their_nan_is_background(tmp_path):
    ids = np.zeros((3, 4, 5), np.float32)
    ids[1], ids[2] = 1.0000001, 3.0000002
    ids[0, 0] = np.nan
    label = read_label_volume(write(tmp_path / "float.nii.gz", ids))
    assert np.unique(label.array).tolist() == [0, 1, 3]
    assert label.notes == ("5 voxels are NaN and count as background",)
    image = nib.Nifti1Image(np.full((3, 4, 5), 255, np.uint8), np.eye(4))
    image.header.set_slope_inter(1 / 255, 0)  # as SPM stores a mask
    nib.save(image, tmp_path / "spm.nii")
    assert (read_label_volume(tmp_path / "spm.nii").array == 1).all()
    ids[0, 0] = 1.002
    with pytest.raises(ScanError, match=r"label holds 1\.00199997, not a whole number"):
        read_label_volume(write(tmp_path / "off.nii.gz", ids))


def test_nan_in_a_scan_is_no_scan(tmp_path):
    array = blobs().T
    array[:3] = np.nan
    volume = read_volume(write(tmp_path / "n.nii.gz", array))
    assert volume.padding.sum() == np.isnan(array).sum()
    assert np.isfinite(volume.array).all()
    assert "count as background" in volume.notes[0]


def test_a_label_stored_along_other_axes_is_turned_exactly(tmp_path):
    zyx = block_label()
    image = Volume(blobs(), np.diag([-1.0, -1, 1, 1]) @ PLACE)
    turned = sitk.GetImageFromArray(zyx[:, ::-1, ::-1].transpose(2, 0, 1).copy())
    # Axes y, z, x of the image, with y and x the other way round.
    flip = np.eye(4)
    nx, ny = zyx.shape[2], zyx.shape[1]
    flip[0, 0], flip[0, 3], flip[1, 1], flip[1, 3] = -1, nx - 1, -1, ny - 1
    permute = np.zeros((4, 4))
    permute[[1, 2, 0, 3], [0, 1, 2, 3]] = 1
    label = Volume(sitk.GetArrayFromImage(turned), image.affine @ flip @ permute)
    np.testing.assert_array_equal(on_grid_of(image, label).array, zyx)
    aside = image.affine.copy()
    aside[:3, 3] += image.affine[:3, 0] * 2  # two voxels away is no match
    with pytest.raises(LabelError, match="label lies 4 mm away"):
        on_grid_of(image, Volume(zyx, aside))


def test_one_slice_is_no_scan(tmp_path):
    with pytest.raises(ScanError, match=r"one\.nii\.gz: a single slice"):
        read_volume(write(tmp_path / "one.nii.gz", np.ones((5, 6, 1), np.int16)))


@pytest.mark.parametrize("value", [-3024, -2000])
def test_padding_of_a_ct_does_not_move_its_normalisation(value):
    rng = np.random.default_rng(0)
    hu = rng.normal(-1000, 8, (12, 32, 32)).astype(np.float32)
    hu[3:9, 8:24, 8:24] = rng.normal(40, 20, (6, 16, 16))
    y, x = np.ogrid[:32, :32]
    outside = np.broadcast_to((y - 15.5) ** 2 + (x - 15.5) ** 2 > 15.5**2, hu.shape)
    padded = np.where(outside, value, hu).astype(np.float32)
    grid = TrainingGrid(shape=(16, 32, 32), spacing_mm=(1, 1, 1))
    plain, other = (
        preprocess(Volume(array, np.eye(4)), None, PreprocessingConfig(), grid)
        for array in (hu, padded)
    )
    # Of the whole volume, the mean over the scanned circle; padding looks like air.
    assert other.transform.intensity.mean == pytest.approx(hu[~outside].mean(), abs=0.5)
    assert other.transform.intensity.low > -1100
    inside = ~np.concatenate([outside[:2], outside, outside[:2]])
    assert np.abs(plain.image - other.image)[inside].max() < 0.6
    assert np.ptp(other.image[2][outside[0]]) == 0
    stated = Volume(np.where(outside, 9000, hu), np.eye(4), padding=outside)
    known = preprocess(stated, None, PreprocessingConfig(), grid)
    assert known.transform.intensity.mean == pytest.approx(other.transform.intensity.mean, abs=0.5)
