"""Voxel grids and their affines: which way axes point, and copies that interpolate nothing.

Arrays and shapes are (z, y, x); an affine is 4x4 and maps voxels (x, y, z, 1) to millimetres in
a world whose axes grow to Left, Posterior and Superior (LPS).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

Shape: TypeAlias = tuple[int, int, int]
Triple: TypeAlias = tuple[float, float, float]
Row: TypeAlias = tuple[float, float, float, float]
Rows: TypeAlias = tuple[Row, Row, Row, Row]
Matrix: TypeAlias = NDArray[np.float64]

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Axes that lean by less than this (half a degree) count as being at right angles.
_LEAN = 0.01


def voxel_ml(affine: Matrix) -> float:
    """Volume of a voxel in millilitres, of a grid with this affine to mm."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def spacing_mm(affine: Matrix) -> Triple:
    """Voxel size (z, y, x) in mm of a grid with this affine."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(z), float(y), float(x)


def to_nearest_lps(affine: Matrix, shape: Shape) -> Matrix:
    """Matrix from voxels (x, y, z, 1) of the grid turned to LPS to voxels of the grid itself.

    Parameters
    ----------
    affine
        4x4, voxel (x, y, z, 1) -> LPS mm, of the grid itself.
    shape
        Its voxels (z, y, x).
    """
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (world, sign) in enumerate(io_orientation(affine)):
        matrix[axis, int(world)] = sign
        if sign < 0:
            matrix[axis, 3] = shape[::-1][axis] - 1
    return matrix


def leans(affine: Matrix) -> bool:
    """Whether the axes are not at right angles: a CT with a tilted gantry, a sheared sform."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > _LEAN)


def to_upright_lps(affine: Matrix, shape: Shape) -> tuple[Matrix, Shape]:
    """As :func:`to_nearest_lps`, and for leaning axes a grid at right angles that covers them.

    Parameters
    ----------
    affine, shape
        See :func:`to_nearest_lps`.

    Returns
    -------
    matrix
        From voxels (x, y, z, 1) of the turned grid to voxels of the grid itself. Without a
        lean it only permutes, flips and shifts. With one, the x axis and the x-y plane stay
        as they are, so the slices of a tilted CT stay slices.
    shape
        Voxels (z, y, x) of the turned grid.
    """
    matrix = np.eye(4)
    lengths = np.array(shape[::-1])
    if leans(affine):
        turned, upper = np.linalg.qr(affine[:3, :3])
        upright = turned * np.diag(upper)
        matrix[:3, :3] = np.linalg.inv(affine[:3, :3]) @ upright
        ends = np.stack(np.meshgrid(*((0, n - 1) for n in lengths), indexing="ij"), -1)
        placed = ends.reshape(-1, 3) @ np.linalg.inv(matrix[:3, :3]).T
        matrix[:3, 3] = matrix[:3, :3] @ placed.min(0)
        lengths = np.ceil(np.ptp(placed, axis=0) - 1e-6).astype(int) + 1
    x, y, z = (int(n) for n in lengths)
    turn = to_nearest_lps(affine @ matrix, (z, y, x))
    x, y, z = (int(n) for n in np.abs(turn[:3, :3].T @ lengths))
    return matrix @ turn, (z, y, x)


def copies(matrix: Matrix) -> bool:
    """Whether `matrix` permutes, flips and shifts by whole voxels, and nothing else."""
    whole = np.rint(matrix)
    linear = np.abs(whole[:3, :3])
    return bool(
        np.allclose(matrix, whole, rtol=0, atol=1e-6)
        and (linear.sum(0) == 1).all()
        and (linear.sum(1) == 1).all()
    )


def copy(array: NDArray[Any], matrix: Matrix, shape: Shape, fill: float = 0) -> NDArray[Any]:
    """Permute, flip, crop and pad without touching a value; a view where nothing is padded."""
    linear, shift = linear_and_shift(np.rint(matrix).astype(int))
    order = np.abs(linear).argmax(0)
    backwards = linear[order, range(3)] < 0
    extent = np.array(array.shape)[order]
    start = np.where(backwards, extent - 1 - shift[order], shift[order])
    view = array.transpose(order)[tuple(slice(None, None, -1 if b else 1) for b in backwards)]
    low, high = np.clip(start, 0, extent), np.clip(start + shape, 0, extent)
    held = view[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))]
    if held.shape == tuple(shape):
        return held
    out = np.full(shape, fill, dtype=array.dtype)
    out[tuple(slice(lo, hi) for lo, hi in zip(low - start, high - start, strict=True))] = held
    return out


def linear_and_shift(matrix: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The linear part and the shift of `matrix`, for coordinates in the order (z, y, x)."""
    return matrix[2::-1, 2::-1], matrix[2::-1, 3]


def rows(matrix: Matrix) -> Rows:
    """A 4x4 array as rows of plain numbers."""
    a, b, c, d = ((float(w), float(x), float(y), float(z)) for w, x, y, z in matrix)
    return a, b, c, d
