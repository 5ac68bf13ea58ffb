"""Resample an array from one voxel grid to another, given one matrix.

Every function takes `matrix`, a 4x4 array that maps voxels (x, y, z, 1) of the wanted grid to
voxels of the given array. Arrays and shapes are (z, y, x). If the matrix only permutes, flips
and shifts by whole voxels, values are copied and not interpolated, so that the way back is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.geometry import Matrix, Shape, is_exact, linear_and_shift, move_voxels
from napari_jrss.labels import IGNORED

# A tie between classes goes to the nearest voxel's class. Given to the lowest index, it would
# shrink structures by half a voxel wherever a sample falls midway.
_TIE = 1e-4
_SHARES_AT_ONCE = 10_000_000  # bounds the memory of a label with many classes
_FWHM = 2 * np.sqrt(2 * np.log(2))


def resample_image(
    array: NDArray[Any], matrix: Matrix, shape: Shape, fill: float = 0
) -> NDArray[np.float32]:
    """Intensities on the wanted grid: linear, smoothed first where the wanted grid is coarser.

    Before sampling on a coarser grid, a Gaussian turns the voxel size into that of the new grid
    (Cardoso et al. 2015); without it, fine structures would appear as noise. `fill` is the value
    outside the array.
    """
    if is_exact(matrix):
        return move_voxels(array, matrix, shape, fill).astype(np.float32)
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

    Each class is interpolated linearly, and the class with the largest share wins; a tie goes
    to the nearest voxel's class. This keeps boundaries in place, whereas nearest-neighbour
    lookup would move them by up to half a voxel and leave steps.
    """
    if is_exact(matrix):
        return np.ascontiguousarray(move_voxels(array, matrix, shape))
    if (array == IGNORED).any():  # a class like the others, but shares of 256 would be dear
        last = int(array[array != IGNORED].max(initial=0)) + 1
        placed = resample_label(np.where(array == IGNORED, last, array), matrix, shape)
        return np.where(placed == last, IGNORED, placed).astype(array.dtype)
    linear, shift = linear_and_shift(matrix)
    out: NDArray[Any] = _nearest(array, matrix, shape)
    out[~inside(matrix, shape, array.shape)] = 0
    # Only next to a boundary do shares differ from 0 and 1.
    mixed = ndimage.minimum_filter(array, 3) != ndimage.maximum_filter(array, 3)
    points = np.flatnonzero(_nearest(mixed.view(np.uint8), matrix, shape))
    classes = int(array.max()) + 1
    for some in np.array_split(points, len(points) * classes // _SHARES_AT_ONCE + 1):
        where = np.stack(np.unravel_index(some, shape)).T @ linear.T + shift
        covered = ((where >= -0.5) & (where <= np.array(array.shape) - 0.5)).all(1)
        some, where = some[covered], where[covered]
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
    """Mask of the wanted grid's voxels that lie within an array of shape `extent` (z, y, x)."""
    linear, shift = linear_and_shift(matrix)
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    covered = np.ones(shape, bool)
    for row, offset, n in zip(linear, shift, extent, strict=True):
        where = row[0] * z + row[1] * y + row[2] * x + offset
        covered &= (where >= -0.5) & (where <= n - 0.5)
    return covered


def _nearest(array: NDArray[Any], matrix: Matrix, shape: Shape) -> NDArray[Any]:
    linear, shift = linear_and_shift(matrix)
    return np.asarray(
        ndimage.affine_transform(array, linear, shift, output_shape=shape, order=0, mode="nearest")
    )
