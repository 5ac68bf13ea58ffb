"""Voxel grids and their affines: the directions of axes, and moves that interpolate nothing.

Arrays and shapes are (z, y, x); an affine is 4x4 and maps voxels (x, y, z, 1) to millimetres in
a world whose axes grow to Left, Posterior and Superior (LPS).
"""

from itertools import product
from typing import Any, TypeAlias

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray

Shape: TypeAlias = tuple[int, int, int]
Triple: TypeAlias = tuple[float, float, float]
Row: TypeAlias = tuple[float, float, float, float]
Rows: TypeAlias = tuple[Row, Row, Row, Row]
Matrix: TypeAlias = NDArray[np.float64]
# First and last voxel (x, y, z) of a part of a grid, 2x3.
Box: TypeAlias = NDArray[np.float64]

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Axes that lean by less than this (half a degree) count as being at right angles.
_LEAN = 0.01


def voxel_ml(affine: Matrix) -> float:
    """Volume in millilitres of a voxel of a grid with this affine."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def spacing_mm(affine: Matrix) -> Triple:
    """Voxel size (z, y, x) in mm of a grid with this affine."""
    x, y, z = voxel_sizes(affine).tolist()
    return z, y, x


def whole_box(shape: Shape) -> Box:
    """First and last voxel (x, y, z) of an array of `shape` (z, y, x)."""
    return np.array([(0, 0, 0), shape[::-1]]) - [[0.0], [1.0]]


def corners(box: Box) -> NDArray[np.float64]:
    """The eight corner voxels (x, y, z) of a box, (8, 3)."""
    return np.array(list(product(*box.T)))


def map_points(matrix: NDArray[Any], points: NDArray[Any]) -> NDArray[np.float64]:
    """Points (n, 3), components x, y, z, mapped by a 4x4 matrix."""
    return np.asarray(apply_affine(matrix, points), dtype=np.float64)


def to_nearest_lps(affine: Matrix, shape: Shape) -> Matrix:
    """Matrix from voxels (x, y, z, 1) of the grid turned to LPS to voxels of the grid itself.

    The grid itself has `shape` (z, y, x), and `affine` maps its voxels (x, y, z, 1) to LPS mm.
    """
    return np.asarray(inv_ornt_aff(io_orientation(affine), shape[::-1]), dtype=np.float64)


def leans(affine: Matrix) -> bool:
    """Whether the axes are not at right angles: a CT with a tilted gantry, a sheared sform."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > _LEAN)


def to_upright_lps(affine: Matrix, shape: Shape) -> tuple[Matrix, Shape]:
    """As :func:`to_nearest_lps`; leaning axes get a grid at right angles that covers the scan.

    The result is the matrix from voxels (x, y, z, 1) of the turned grid to voxels of the grid
    itself, and the turned grid's shape (z, y, x). If the axes are at right angles, the matrix
    only permutes, flips and shifts. If they lean, the x axis and the x-y plane stay as they are,
    so the slices of a tilted CT stay slices.
    """
    matrix = np.eye(4)
    lengths = np.array(shape[::-1])
    if leans(affine):
        turned, upper = np.linalg.qr(affine[:3, :3])
        upright = turned * np.diag(upper)
        matrix[:3, :3] = np.linalg.inv(affine[:3, :3]) @ upright
        placed = map_points(np.linalg.inv(matrix), corners(whole_box(shape)))
        matrix[:3, 3] = matrix[:3, :3] @ placed.min(0)
        lengths = np.ceil(np.ptp(placed, axis=0) - 1e-6).astype(int) + 1
    x, y, z = (int(n) for n in lengths)
    turn = to_nearest_lps(affine @ matrix, (z, y, x))
    x, y, z = (int(n) for n in np.abs(turn[:3, :3].T @ lengths))
    return matrix @ turn, (z, y, x)


def isotropic_grid(affine: Matrix, shape: Shape, step: float) -> tuple[Matrix, Shape]:
    """Affine and shape (z, y, x) of a grid along the world's axes that covers another grid.

    Its voxels measure `step` mm along all axes.
    """
    world = map_points(affine, corners(whole_box(shape)))
    grid = np.diag([step, step, step, 1.0])
    grid[:3, 3] = world.min(0)
    x, y, z = (int(n) + 1 for n in np.ceil(np.ptp(world, axis=0) / step))
    return grid, (z, y, x)


def is_exact(matrix: Matrix) -> bool:
    """Whether `matrix` permutes, flips and shifts by whole voxels, and nothing else."""
    whole = np.rint(matrix)
    linear = np.abs(whole[:3, :3])
    return bool(
        np.allclose(matrix, whole, rtol=0, atol=1e-6)
        and (linear.sum(0) == 1).all()
        and (linear.sum(1) == 1).all()
    )


def move_voxels(array: NDArray[Any], matrix: Matrix, shape: Shape, fill: float = 0) -> NDArray[Any]:
    """Move voxels (z, y, x) to a grid of `shape`, unchanged; a view unless some are filled in.

    The 4x4 matrix, which :func:`is_exact`, maps voxels (x, y, z, 1) of that grid to voxels of
    the array. Voxels outside the array get the value `fill`.
    """
    linear, shift = linear_and_shift(np.rint(matrix).astype(int))
    order = np.abs(linear).argmax(0)
    backwards = linear[order, range(3)] < 0
    extent = np.array(array.shape)[order]
    start = np.where(backwards, extent - 1 - shift[order], shift[order])
    view = array.transpose(order)[tuple(slice(None, None, -1 if b else 1) for b in backwards)]
    low, high = np.clip(start, 0, extent), np.clip(start + shape, 0, extent)
    inside = view[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))]
    if inside.shape == tuple(shape):
        return inside
    out = np.full(shape, fill, dtype=array.dtype)
    out[tuple(slice(lo, hi) for lo, hi in zip(low - start, high - start, strict=True))] = inside
    return out


def linear_and_shift(matrix: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Linear part (3, 3) and shift (3,) of a 4x4 matrix, for points in the order (z, y, x)."""
    return matrix[2::-1, 2::-1], matrix[2::-1, 3]


def rows(matrix: Matrix) -> Rows:
    """A 4x4 array as rows of plain numbers."""
    a, b, c, d = ((float(w), float(x), float(y), float(z)) for w, x, y, z in matrix)
    return a, b, c, d
