"""Any two scans registered without a project, on the fixed scan's own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import napari_jrss as jrss
from napari_jrss.app.pairs import scans
from napari_jrss.errors import JRSSError, ProjectError, ScanError
from napari_jrss.io.nifti import write_nifti
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.sample_data import make_case

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (24, 32, 28)


def world(degrees: float, origin: tuple[float, float, float], *size: float) -> np.ndarray:
    """Affine of voxels (x, y, z) of a `size` in mm, turned about the z axis."""
    turn = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= size
    affine[:3, 3] = origin
    return affine


def scan(number: int, affine: np.ndarray) -> Volume:
    return Volume(make_case(number, SHAPE).image.astype(np.float32), affine)


@pytest.fixture(scope="module")
def pair() -> tuple[Volume, Volume]:
    """A fixed scan with oblique, long voxels, and a moving one far away, stored head down."""
    moving = scan(1, world(0, (300, -40, 10), -1.1, 1.0, 1.5))
    return moving, scan(2, world(12, (-20, 5, 0), 1.0, 1.0, 1.6))


def test_two_scans_are_registered_and_itk_reads_the_field(
    pair: tuple[Volume, Volume], tmp_path: Path
) -> None:
    names = []
    for name, each in zip(("m", "f"), pair, strict=True):
        names.append(write_nifti(tmp_path / f"{name}.nii.gz", each.array, each))
    found = jrss.register(*names, device="cpu")
    figures = found.figures
    assert (figures.moving, figures.fixed, figures.engine) == ("m", "f", "refine")
    assert figures.residual < 0.8 * figures.residual_before
    assert figures.folded_percent == 0
    assert figures.dice == []
    assert found.warped_label is None
    np.testing.assert_allclose(found.warped.affine, read_volume(names[1]).affine, atol=1e-4)
    files = found.save(tmp_path / "out")
    assert sorted(path.name for path in files) == [
        *("displacement.nii.gz", "report.json", "warped_image.nii.gz"),
    ]
    field = sitk.ReadImage(str(tmp_path / "out" / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    moving, fixed = (sitk.ReadImage(str(name), sitk.sitkFloat32) for name in names)
    theirs = sitk.Resample(moving, fixed, sitk.DisplacementFieldTransform(field))
    ours = sitk.ReadImage(str(tmp_path / "out" / "warped_image.nii.gz"), sitk.sitkFloat32)
    inside = (slice(3, -3),) * 3
    one, other = (sitk.GetArrayFromImage(each)[inside] for each in (ours, theirs))
    assert np.abs(one - other).max() < 0.01 * np.ptp(one)


@pytest.mark.parametrize("most", [scans.MOST_VOXELS, 4000])
def test_the_field_is_in_mm_between_the_two_worlds_also_on_coarser_voxels(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same voxels in two places: the field is the shift, whatever grid it was found on."""
    monkeypatch.setattr(scans, "MOST_VOXELS", most)
    fixed = scan(3, world(20, (0, 0, 0), 1.0, 1.0, 1.6))
    there = fixed.affine.copy()
    there[:3, 3] += (200, -100, 50)
    found = jrss.register(Volume(fixed.array, there), fixed, device="cpu")
    off = found.field - np.reshape((200, -100, 50), (3, 1, 1, 1))
    assert np.abs(off).mean() < 0.5
    assert np.abs(off).max() < 3
    grid = found.pair.fixed.image.shape
    assert (np.prod(grid) < np.prod(SHAPE)) == (most == 4000)
    assert (found.figures.moving, found.figures.fixed) == ("moving", "fixed")


def test_scans_of_one_frame_need_no_alignment(pair: tuple[Volume, Volume]) -> None:
    moving, fixed = pair
    found = jrss.register(Volume(moving.array, fixed.affine), fixed, prealign="none", device="cpu")
    assert np.abs(found.field).max() < 15
    centred = jrss.register(moving, fixed, prealign="center_of_mass", device="cpu")
    assert centred.figures.residual < centred.figures.residual_before


def test_what_can_not_be_registered_is_said_in_a_line(pair: tuple[Volume, Volume]) -> None:
    moving, fixed = pair
    with pytest.raises(ScanError, match="moving: does not overlap with the other scan; choose"):
        jrss.register(moving, fixed, prealign="none")
    with pytest.raises(ScanError, match="fixed: has fewer than 8 voxels along an axis"):
        jrss.register(moving, Volume(fixed.array[:6], fixed.affine))
    with pytest.raises(ScanError, match="image is constant"):
        jrss.register(moving, Volume(np.zeros(SHAPE, np.float32), fixed.affine))
    with pytest.raises(ProjectError, match="engine jrss is the trained network of a project"):
        jrss.register(moving, fixed, engine="jrss")
    with pytest.raises(ProjectError, match="refine improves the field of a project's network"):
        jrss.register(moving, fixed, refine=True)  # type: ignore[call-overload]
    with pytest.raises(JRSSError, match="unknown engine 'refin'; did you mean 'refine'"):
        jrss.register(moving, fixed, engine="refin")
    with pytest.raises(TypeError, match="a moving and a fixed scan"):
        jrss.register(fixed)  # type: ignore[call-overload]
