"""What shows how well a registered pair fits: plain functions of arrays (z, y, x)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_jrss.data.batches import Image

if TYPE_CHECKING:
    from napari_jrss.session.inference import Pair

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]

GRID_LINES = 20
"""Cells of the deformed grid along the longest extent of the training grid."""
CHECKS = 8
"""Fields of the checkerboard along the longest extent of the training grid."""


@dataclass(frozen=True, eq=False)
class PairViews:
    """What shows how well a pair fits, (z, y, x) on the training grid.

    Attributes
    ----------
    difference
        Warped minus fixed image, in standard deviations of the images.
    checkerboard
        Fixed and warped image in turn.
    jacobian
        See :func:`jacobian_map`.
    folded
        Where the Jacobian determinant is 0 or less.
    grids
        See :func:`deformed_grid`, seen along z, along y and along x.
    """

    difference: Image
    checkerboard: Image
    jacobian: NDArray[np.float32]
    folded: Mask
    grids: tuple[Mask, Mask, Mask]

    @classmethod
    def of(cls, pair: Pair, spacing_mm: Sequence[float]) -> PairViews:
        """All views of a pair on a training grid of that spacing (z, y, x)."""
        warped, fixed, field = pair.registered.image, pair.fixed.image, pair.registered.field
        jacobian = jacobian_map(field)
        cell = cells(fixed.shape, spacing_mm, GRID_LINES)
        return cls(
            warped - fixed,
            checkerboard(fixed, warped, cells(fixed.shape, spacing_mm, CHECKS)),
            jacobian,
            jacobian <= 0,
            (
                deformed_grid(field, cell, 0),
                deformed_grid(field, cell, 1),
                deformed_grid(field, cell, 2),
            ),
        )


def cells(shape: Sequence[int], spacing_mm: Sequence[float], count: int) -> tuple[int, int, int]:
    """Edges in voxels (z, y, x) of cubes, `count` of which fill a grid's longest extent."""
    edge_mm = max(n * mm for n, mm in zip(shape, spacing_mm, strict=True)) / count
    z, y, x = (max(2, round(edge_mm / mm)) for mm in spacing_mm)
    return z, y, x


def checkerboard(one: Image, other: Image, cell: Sequence[int]) -> Image:
    """Two images (z, y, x) in turn, in fields of `cell` voxels; the first corner shows `one`."""
    z, y, x = (
        index // edge for index, edge in zip(np.indices(one.shape, sparse=True), cell, strict=True)
    )
    return np.where((z + y + x) % 2 == 0, one, other)


def deformed_grid(field: Field, cell: Sequence[int], across: int) -> Mask:
    """Lines of a regular grid of the moving image, pulled onto the fixed one.

    Parameters
    ----------
    field
        (3, z, y, x), voxels.
    cell
        Distance of the lines in voxels (z, y, x).
    across
        Axis that is looked along: only the lines of the two others are drawn.

    Returns
    -------
    NDArray[np.bool_]
        (z, y, x): the voxels whose neighbour lies in another cell of the moving image.
    """
    in_plane = [axis for axis in range(3) if axis != across]
    lines = np.zeros(field.shape[1:], bool)
    for axis in in_plane:
        position = np.indices(lines.shape, sparse=True)[axis] + field[axis]
        # half a voxel off, so that rounding at rest draws no second line
        of = np.floor((position + 0.5) / cell[axis])
        for other in in_plane:
            here = tuple(slice(None, -1) if a == other else slice(None) for a in range(3))
            lines[here] |= np.diff(of, axis=other) != 0
    return lines


def displacement_vectors(field: Field, stride: int, across: int) -> NDArray[np.float32]:
    """Every `stride`-th displacement of each slice, as start and direction.

    Parameters
    ----------
    field
        (3, z, y, x), voxels.
    stride
        Distance of the starts in voxels, along the two axes of a slice.
    across
        Axis that is looked along: each of its slices has vectors.

    Returns
    -------
    NDArray[np.float32]
        (n, 2, 3), voxels, order z, y, x: the point p of the fixed image, and u(p), which leads
        to where the moving image shows it.
    """
    steps = [1 if axis == across else stride for axis in range(3)]
    where = np.ix_(
        *(
            np.arange(min(step // 2, size - 1), size, step)
            for step, size in zip(steps, field.shape[1:], strict=True)
        )
    )
    starts = np.stack(np.broadcast_arrays(*where)).reshape(3, -1).T
    directions = np.stack([part[where] for part in field]).reshape(3, -1).T
    return np.stack([starts, directions], axis=1).astype(np.float32)


def jacobian_map(field: Field) -> NDArray[np.float32]:
    """det(I + grad u) per voxel, see :func:`napari_jrss.networks.spatial.jacobian_determinant`.

    1: volume is kept. Above 1: the moving image is shrunk there, since a voxel of the fixed
    image covers more of it. 0 or less: the field folds.
    """
    import torch

    from napari_jrss.networks.spatial import jacobian_determinant

    values: NDArray[np.float32] = jacobian_determinant(torch.from_numpy(field)[None])[0].numpy()
    return values
