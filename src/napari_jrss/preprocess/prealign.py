"""Where a scan's content is, and the affine map that brings it onto a reference scan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from napari_jrss.errors import ScanError
from napari_jrss.geometry import Matrix
from napari_jrss.io.layouts import Scan
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.preprocess.resample import resample_image

# Alignment sees the scans at about this many voxels along their longest side: enough for twelve
# numbers, and independent of the scans' resolution.
_WORKING_VOXELS = 80


def foreground(image: Volume) -> NDArray[np.bool_]:
    """The head without air, the body without its table: a mask (z, y, x).

    The largest connected part above Otsu's threshold.

    Raises
    ------
    ScanError
        The image is constant.
    """
    low, high = np.percentile(image.array, (0.1, 99.9))
    if low == high:
        raise ScanError(f"{image.source or 'image'}: image is constant")
    # Clipped, or a few bright voxels would leave the histogram one bin for everything else.
    clipped = np.clip(image.array, low, high)
    mask: NDArray[np.bool_] = clipped > threshold_otsu(clipped)
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())


def align(
    image: Volume, reference: Scan | None, method: Literal["none", "center_of_mass", "affine"]
) -> Matrix:
    """Map from the reference's world to the scan's own, both in LPS mm, as a 4x4 array.

    Parameters
    ----------
    image
        The scan.
    reference
        The reference case; the map of that very scan is the identity.
    method
        ``none``: the scans share a frame already. ``center_of_mass``: a shift that brings the
        centres of the foregrounds together. ``affine``: from there, twelve parameters that
        maximise Mattes' mutual information.

    Notes
    -----
    Deterministic: one thread, and metric samples on a regular lattice.
    """
    if method == "none" or reference is None or image.source == reference:
        return np.eye(4)
    fixed = read_volume(reference)
    if np.array_equal(fixed.array, image.array) and np.allclose(
        fixed.affine, image.affine, atol=1e-3
    ):
        return np.eye(4)
    if method == "affine":
        return _affine(fixed, image)
    shift = np.eye(4)
    shift[:3, 3] = _centre(image) - _centre(fixed)
    return shift


def _centre(volume: Volume) -> NDArray[np.float64]:
    """Centre of the foreground in LPS mm."""
    z, y, x = ndimage.center_of_mass(foreground(volume))
    return np.asarray((volume.affine @ (x, y, z, 1))[:3])


def _affine(fixed: Volume, moving: Volume) -> Matrix:
    centre = _centre(fixed)
    transform = sitk.AffineTransform(3)
    transform.SetCenter(centre.tolist())
    transform.SetTranslation((_centre(moving) - centre).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.2, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-4, numberOfIterations=300, relaxationFactor=0.7
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0, 0.0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        with _one_thread():
            method.Execute(_upright(fixed), _upright(moving))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ScanError(f"{moving.source or 'image'}: pre-alignment failed ({reason})") from error
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + np.array(transform.GetTranslation()) - linear @ centre
    if not 0.2 < np.linalg.det(linear) < 5:
        raise ScanError(
            f"{moving.source or 'image'}: pre-alignment failed (volume changes by a factor of "
            f"{np.linalg.det(linear):.2g})"
        )
    return matrix


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for SimpleITK: the metric adds up in the order in which threads end.

    The metric takes its number from this setting of the process and from nothing else.
    """
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _upright(volume: Volume) -> Any:
    """The scan on a coarse isotropic grid along the world's axes, as a SimpleITK image.

    SimpleITK knows no shear and its optimiser likes small images; this serves both.
    """
    ends = np.array(volume.shape[::-1]) - 1.0
    corners = np.stack(np.meshgrid(*((0, e) for e in ends), indexing="ij"), -1).reshape(-1, 3)
    world = corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    origin, reach = world.min(0), np.ptp(world, axis=0)
    spacing = float(max(min(volume.spacing_mm), reach.max() / _WORKING_VOXELS))
    placed = np.diag([spacing, spacing, spacing, 1.0])
    placed[:3, 3] = origin
    x, y, z = (int(n) + 1 for n in np.ceil(reach / spacing))
    matrix = np.asarray(np.linalg.inv(volume.affine) @ placed, dtype=np.float64)
    array = resample_image(volume.array, matrix, (z, y, x), float(volume.array.min()))
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([spacing] * 3)
    image.SetOrigin(origin.tolist())
    return image
