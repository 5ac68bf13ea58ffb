"""Carry an array from one voxel grid to another, given one matrix.

Every function takes `matrix`, a 4x4 array that maps voxels (x, y, z, 1) of the wanted grid to
voxels of the array at hand; arrays and shapes are (z, y, x). Where the matrix only permutes,
flips and shifts by whole voxels, values are copied and never interpolated, so that the way
back is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.geometry import Matrix, Shape, copies, copy, linear_and_shift

# A tie between classes goes to the nearest voxel's label: the lowest index would shrink every
# structure by half a voxel wherever a sample falls midway.
_TIE = 1e-4
_SHARES_AT_ONCE = 10_000_000  # bounds the memory of a label with many classes
_FWHM = 2 * np.sqrt(2 * np.log(2))


def resample_image(
    array: NDArray[Any], matrix: Matrix, shape: Shape, fill: float = 0
) -> NDArray[np.float32]:
    """Intensities on the wanted grid: linear, smoothed first where the wanted grid is coarser.

    Parameters
    ----------
    array, matrix, shape
        See the module.
    fill
        Value outside the array.

    Notes
    -----
    The Gaussian before a coarser grid has the width that turns a voxel of the one size into
    one of the other (Cardoso et al. 2015), or fine structure would come back as noise.
    """
    if copies(matrix):
        return copy(array, matrix, shape, fill).astype(np.float32)
    linear, shift = linear_and_shift(matrix)
    step = np.abs(linear).max(1)
    sigma = np.sqrt(np.clip(step**2 - 1, 0, None)) / _FWHM
    smooth = array.astype(np.float32)
    if sigma.max() > 0.1:
        smooth = ndimage.gaussian_filter(smooth, sigma, mode="nearest")
    out: NDArray[np.float32] = ndimage.affine_transform(
        smooth, linear, shift, output_shape=shape, order=1, mode="nearest"
    )
    out[~inside(matrix, shape, array.shape)] = fill
    return out


def resample_label(array: NDArray[Any], matrix: Matrix, shape: Shape) -> NDArray[Any]:
    """Class indices on the wanted grid; background outside the array.

    Each class is interpolated linearly by itself and the largest share wins. Nearest-neighbour
    lookup would move each boundary by up to half a voxel, differently in each scan, and leave
    stairs; this keeps it where it is. A tie goes to the nearest voxel's class.
    """
    if copies(matrix):
        return np.ascontiguousarray(copy(array, matrix, shape))
    linear, shift = linear_and_shift(matrix)
    out: NDArray[Any] = _nearest(array, matrix, shape)
    out[~inside(matrix, shape, array.shape)] = 0
    # Shares differ from one and none only next to a boundary.
    mixed = ndimage.minimum_filter(array, 3) != ndimage.maximum_filter(array, 3)
    points = np.flatnonzero(_nearest(mixed.view(np.uint8), matrix, shape))
    classes = int(array.max()) + 1
    for some in np.array_split(points, len(points) * classes // _SHARES_AT_ONCE + 1):
        where = np.stack(np.unravel_index(some, shape)).T @ linear.T + shift
        held = ((where >= -0.5) & (where <= np.array(array.shape) - 0.5)).all(1)
        some, where = some[held], where[held]
        each = np.arange(len(some))
        share = np.zeros((classes, len(some)), np.float32)
        share[out.flat[some], each] = _TIE
        low = np.floor(where).astype(int)
        for corner in np.ndindex(2, 2, 2):
            weight = np.abs(1 - np.array(corner) - (where - low)).prod(1)
            z, y, x = np.clip(low + corner, 0, np.array(array.shape) - 1).T
            share[array[z, y, x], each] += weight
        out.flat[some] = share.argmax(0)
    return out


def inside(matrix: Matrix, shape: Shape, extent: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which voxels of the wanted grid lie within an array of shape `extent` (z, y, x)."""
    linear, shift = linear_and_shift(matrix)
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    held = np.ones(shape, bool)
    for row, offset, n in zip(linear, shift, extent, strict=True):
        where = row[0] * z + row[1] * y + row[2] * x + offset
        held &= (where >= -0.5) & (where <= n - 0.5)
    return held


def _nearest(array: NDArray[Any], matrix: Matrix, shape: Shape) -> NDArray[Any]:
    linear, shift = linear_and_shift(matrix)
    return np.asarray(
        ndimage.affine_transform(array, linear, shift, output_shape=shape, order=0, mode="nearest")
    )
