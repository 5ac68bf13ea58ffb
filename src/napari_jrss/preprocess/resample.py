"""Resample an array from one voxel grid to another, given one matrix.

Every function takes `matrix`, a 4x4 array that maps voxels (x, y, z, 1) of the wanted grid to
voxels of the given array. Arrays and shapes are (z, y, x). If the matrix only permutes, flips
and shifts by whole voxels, values are copied and not interpolated, so that the way back is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.geometry import Matrix, Shape, is_exact, linear_and_shift, move_voxels
from napari_jrss.labels import IGNORED
from napari_jrss.threads import in_threads

Share: TypeAlias = tuple[NDArray[Any], NDArray[np.floating[Any]]]

# A tie between classes goes to the nearest voxel's class. Given to the lowest index, it would
# shrink structures by half a voxel wherever a sample falls midway.
_TIE = 1e-4
_NO_STEP = 1e-9  # voxels per voxel: an axis that doesn't matter, but for rounding
_SHARES_AT_ONCE = 10_000_000  # bounds the memory of a label with many classes
_BLOCK = (32, 64, 64)
_NO_RIVAL = 0.02  # a class that is nowhere more probable can't have the largest share
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
    _fill_outside(out, matrix, array.shape, fill)
    return out


def resample_label(
    array: NDArray[Any], matrix: Matrix, shape: Shape, shares: Sequence[Share] | None = None
) -> NDArray[Any]:
    """Class indices on the wanted grid; background outside the array.

    Each class is interpolated linearly, and the class with the largest share wins; a tie goes
    to the nearest voxel's class. This keeps boundaries in place, whereas nearest-neighbour
    lookup would move them by up to half a voxel and leave steps.

    Parameters
    ----------
    array, matrix, shape
        See the module.
    shares
        Classes and the probability of each, as pairs of arrays, `array` with its own first.
        None: `array` is certain.
    """
    if is_exact(matrix):
        return np.ascontiguousarray(move_voxels(array, matrix, shape))
    if (array == IGNORED).any():  # a class like the others, but shares of 256 would be dear
        last = int(array[array != IGNORED].max(initial=0)) + 1
        placed = resample_label(np.where(array == IGNORED, last, array), matrix, shape)
        return np.where(placed == last, IGNORED, placed).astype(array.dtype)
    linear, shift = linear_and_shift(matrix)
    out = nearest(array, matrix, shape)
    if shares is not None and np.allclose(linear, np.diag(linear.diagonal()), 0, _NO_STEP):
        _let_win(out, shares, linear.diagonal(), shift)
        _fill_outside(out, matrix, array.shape, 0)
        return out
    # Only next to a boundary do shares differ from 0 and 1.
    mixed = ndimage.minimum_filter(array, 3) != ndimage.maximum_filter(array, 3)
    points = np.flatnonzero(_nearest(mixed.view(np.uint8), matrix, shape))
    shares = shares or ((array, np.broadcast_to(np.float32(1), array.shape)),)
    classes = 1 + max(int(one.max()) for one, _ in shares)
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
            for one, probability in shares:
                share[one[z, y, x], each] += weight * probability[z, y, x]
        out.flat[some] = share.argmax(0)
    return out


def _let_win(
    out: NDArray[Any], shares: Sequence[Share], steps: NDArray[Any], shift: NDArray[Any]
) -> None:
    """As :func:`resample_label` where axes are the same: block by block, several times faster.

    `out` holds the nearest voxel's classes, and gets those that win.
    """
    where = [
        np.clip(step * np.arange(n) + start, 0, size - 1)
        for step, start, n, size in zip(steps, shift, out.shape, shares[0][0].shape, strict=True)
    ]

    def settle(corner: tuple[int, ...]) -> None:
        block = tuple(slice(first, first + n) for first, n in zip(corner, _BLOCK, strict=True))
        places = [at[side] for at, side in zip(where, block, strict=True)]
        crop = tuple(slice(int(at.min()), int(at.max()) + 2) for at in places)
        near = [(one[crop], probability[crop].astype(np.float32)) for one, probability in shares]
        rivals = np.unique(np.concatenate([one[p > _NO_RIVAL] for one, p in near]))
        if len(rivals) < 2:
            return
        best, winner = np.full_like(out[block], -1, np.float32), out[block].copy()
        for index in rivals:
            share = sum((one == index) * probability for one, probability in near)
            for axis, (at, side) in enumerate(zip(places, crop, strict=True)):
                share = _between(share, at - side.start, axis)
            share += np.float32(_TIE) * (out[block] == index)
            np.copyto(winner, index, where=share > best)
            np.maximum(best, share, out=best)
        out[block] = winner

    corners = product(*(range(0, n, block) for n, block in zip(out.shape, _BLOCK, strict=True)))
    in_threads(settle, corners)


def _between(array: NDArray[Any], at: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Values at places between an array's voxels along one axis."""
    low = np.floor(at).astype(np.intp)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    found: NDArray[np.float32] = array.take(low, axis) * (1 - weight)
    found += array.take(high, axis) * weight
    return found


def inside(matrix: Matrix, shape: Shape, extent: tuple[int, ...]) -> NDArray[np.bool_]:
    """Mask of the wanted grid's voxels that lie within an array of shape `extent` (z, y, x)."""
    linear, shift = linear_and_shift(matrix)
    axes = np.ogrid[tuple(map(slice, shape))]
    covered = np.ones(shape, bool)
    for row, offset, n in zip(linear, shift, extent, strict=True):
        # An axis that doesn't matter isn't spread over the whole grid.
        where = (
            sum(c * axis for c, axis in zip(row, axes, strict=True) if abs(c) > _NO_STEP) + offset
        )
        covered &= (where >= -0.5) & (where <= n - 0.5)
    return covered


def nearest(array: NDArray[Any], matrix: Matrix, shape: Shape, fill: int = 0) -> NDArray[Any]:
    """The value of the nearest voxel on the wanted grid; `fill` outside the array."""
    out = _nearest(array, matrix, shape)
    _fill_outside(out, matrix, array.shape, fill)
    return out


def _fill_outside(out: NDArray[Any], matrix: Matrix, extent: tuple[int, ...], fill: float) -> None:
    """Give the voxels of the wanted grid that don't lie within an array a value."""
    linear, shift = linear_and_shift(matrix)
    if not _one_for_one(linear):
        out[~inside(matrix, out.shape, extent)] = fill
        return
    for axis, source in enumerate((np.abs(linear) > _NO_STEP).argmax(1)):  # no mask of the volume
        where = linear[axis, source] * np.arange(out.shape[source]) + shift[axis]
        beyond = (where < -0.5) | (where > extent[axis] - 0.5)
        out[(slice(None),) * source + (beyond,)] = fill


def _one_for_one(linear: NDArray[Any]) -> bool:
    """Whether each axis of the array is one of the wanted grid."""
    used = np.abs(linear) > _NO_STEP
    return bool((used.sum(0) == 1).all() and (used.sum(1) == 1).all())


def _nearest(array: NDArray[Any], matrix: Matrix, shape: Shape) -> NDArray[Any]:
    linear, shift = linear_and_shift(matrix)
    if _one_for_one(linear):
        # One axis after the other, several times faster.
        order = (np.abs(linear) > _NO_STEP).argmax(1)
        for axis, source in enumerate(order):
            where = np.floor(linear[axis, source] * np.arange(shape[source]) + shift[axis] + 0.5)
            array = array.take(np.clip(where, 0, array.shape[axis] - 1).astype(np.intp), axis)
        return np.ascontiguousarray(array.transpose(np.argsort(order)))
    return np.asarray(
        ndimage.affine_transform(array, linear, shift, output_shape=shape, order=0, mode="nearest")
    )
