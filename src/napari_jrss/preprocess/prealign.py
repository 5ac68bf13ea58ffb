"""Where a scan's content is, and the affine map that brings it onto a reference scan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from napari_jrss.config import Prealign
from napari_jrss.errors import ScanError
from napari_jrss.geometry import Matrix, corners, isotropic_grid, map_points, whole_box
from napari_jrss.io.layouts import Scan
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.preprocess.padding import without_padding
from napari_jrss.preprocess.resample import resample_image

# Scans are aligned at this many voxels along their longest side. That is enough for the twelve
# numbers of an affine map, and the time doesn't depend on the scans' resolution.
_WORKING_VOXELS = 80


def foreground(image: Volume) -> NDArray[np.bool_]:
    """Mask (z, y, x) of the largest connected part above Otsu's threshold: the head, the body.

    Raises
    ------
    ScanError
        The image is constant.
    """
    low, high = np.percentile(image.array, (0.1, 99.9))
    if low == high:
        raise ScanError(f"{image.source or 'image'}: image is constant")
    # Unclipped, a few bright voxels would put everything else into one bin of the histogram.
    clipped = np.clip(image.array, low, high)
    mask: NDArray[np.bool_] = clipped > threshold_otsu(clipped)
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())


def align(image: Volume, reference: Scan | None, method: Prealign) -> Matrix:
    """Affine map (4x4) from the reference's world to the scan's own, see :func:`align_volumes`.

    The reference itself is mapped by the identity. A :class:`ScanError` if it can't be read.
    """
    if method == "none" or reference is None or image.source == reference:
        return np.eye(4)
    return align_volumes(read_volume(reference), image, method)


def align_volumes(fixed: Volume, image: Volume, method: Prealign) -> Matrix:
    """Affine map (4x4) from the world of a fixed scan to that of another, both in LPS mm.

    By `method`: with ``none`` the scans lie in one frame already; ``center_of_mass`` is a shift
    that brings the centres of the foregrounds together; ``affine`` starts from there and finds the
    twelve parameters that maximise Mattes' mutual information, on one thread and with samples on a
    regular lattice, so that it is deterministic.

    A :class:`ScanError` if a scan is constant, or the alignment fails.
    """
    if method == "none":
        return np.eye(4)
    fixed, image = without_padding(fixed), without_padding(image)
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
    """Let SimpleITK use one thread: with several, the metric's sum depends on their order.

    The metric takes the number of threads from this setting of the process only.
    """
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _upright(volume: Volume) -> Any:
    """The scan on a coarse isotropic grid along the world's axes, as a SimpleITK image.

    SimpleITK images can't be sheared, and the optimiser works best on small ones.
    """
    extent_mm = np.ptp(map_points(volume.affine, corners(whole_box(volume.shape))), axis=0).max()
    spacing = float(max(min(volume.spacing_mm), extent_mm / _WORKING_VOXELS))
    affine, shape = isotropic_grid(volume.affine, volume.shape, spacing)
    matrix = np.asarray(np.linalg.inv(volume.affine) @ affine, dtype=np.float64)
    array = resample_image(volume.array, matrix, shape, float(volume.array.min()))
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([spacing] * 3)
    image.SetOrigin(affine[:3, 3].tolist())
    return image
