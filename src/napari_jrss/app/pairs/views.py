"""Views that show how well a registered pair fits: functions of arrays (z, y, x)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.metrics import folds, jacobian_map
from napari_jrss.snapshot import Image, Label

if TYPE_CHECKING:
    from napari_jrss.app.pairs.registering import Pair

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
View = Literal["difference", "checkerboard", "jacobian", "folded", "grid", "displacement"]

CHECKS = 8
"""Fields of the checkerboard along the longest extent of the training grid in mm."""
GRID_CELLS = 20
"""Cells of the deformed grid along the longest extent."""
ARROWS = 24
"""Displacement vectors along the longest axis of the training grid."""
GRID_PIXELS = 256
"""Pixels that the deformed grid is drawn on along the longest axis, for thin lines."""
OUTLINE_PIXELS = 256
"""Least number of pixels that outlines are drawn on along the longest axis."""


def pair_view(pair: Pair, view: View, spacing_mm: Sequence[float], across: int) -> NDArray[Any]:
    """Make one of the views of a pair.

    Parameters
    ----------
    pair
        The registered pair, on the training grid.
    view
        ``difference``: warped minus fixed image, in standard deviations of the images.
        ``checkerboard``: fixed and warped image in turn. ``jacobian``: see
        :func:`~napari_jrss.metrics.jacobian_map`. ``folded``: see
        :func:`~napari_jrss.metrics.folds`. ``grid``: see :func:`deformed_grid`.
        ``displacement``: see :func:`displacement_vectors`.
    spacing_mm
        Voxel size (z, y, x) of the training grid.
    across
        Axis (0 for z, 1 for y, 2 for x) that the viewer looks along, for the last two views.
    """
    field, warped, fixed = pair.registered.field, pair.registered.image, pair.fixed.image
    match view:
        case "difference":
            return warped - fixed
        case "checkerboard":
            return checkerboard(fixed, warped, cells(fixed.shape, spacing_mm, CHECKS))
        case "jacobian":
            return jacobian_map(field)
        case "folded":
            return folds(field)
        case "grid":
            finer = max(1, round(GRID_PIXELS / max(fixed.shape)))
            return deformed_grid(field, cells(fixed.shape, spacing_mm, GRID_CELLS), across, finer)
        case "displacement":
            return displacement_vectors(field, max(2, round(max(fixed.shape) / ARROWS)), across)


def cells(shape: Sequence[int], spacing_mm: Sequence[float], count: int) -> tuple[int, int, int]:
    """Edges in voxels (z, y, x) of cubes of which `count` fill a grid's longest extent in mm."""
    edge_mm = max(n * mm for n, mm in zip(shape, spacing_mm, strict=True)) / count
    z, y, x = (max(2, round(edge_mm / mm)) for mm in spacing_mm)
    return z, y, x


def shown_range(image: Image) -> tuple[float, float]:
    """Limits that leave out the darkest and the brightest 0.5 % of the voxels.

    Computed from a subset of about 48 voxels along each axis, since the window waits for it.
    """
    some = image[tuple(slice(None, None, max(1, size // 48)) for size in image.shape)]
    low, high = (float(value) for value in np.percentile(some, (0.5, 99.5)))
    return low, max(high, low + 1e-3)


def checkerboard(one: Image, other: Image, cell: Sequence[int]) -> Image:
    """Two images (z, y, x) in fields of `cell` voxels in turn; the first field shows `one`."""
    z, y, x = np.ogrid[tuple(map(slice, one.shape))]
    high, deep, wide = cell
    return np.where((z // high + y // deep + x // wide) % 2 == 0, one, other)


def deformed_grid(field: Field, cell: Sequence[int], across: int, finer: int = 1) -> Mask:
    """Lines of a regular grid of the moving image, pulled onto the fixed one.

    Parameters
    ----------
    field
        (3, z, y, x), voxels.
    cell
        Distance of the lines in voxels (z, y, x).
    across
        Axis that the viewer looks along: only lines of the two others are drawn. These are `finer`
        times as long in the result (z, y, x).
    """
    in_plane = _in_plane(across)
    zoom = [1 if axis == across else finer for axis in range(3)]
    shape = tuple(size * times for size, times in zip(field.shape[1:], zoom, strict=True))
    lines = np.zeros(shape, bool)
    for axis in in_plane:
        u = ndimage.zoom(field[axis], zoom, order=1, mode="nearest", grid_mode=True)
        # Cells end half a voxel off the voxels, so that nothing is on the edge at rest.
        position = (np.indices(shape, sparse=True)[axis] + 0.5) / finer + u
        of = np.floor(position / cell[axis])
        for other in in_plane:
            here = tuple(slice(None, -1) if a == other else slice(None) for a in range(3))
            lines[here] |= np.diff(of, axis=other) != 0
    return lines


def magnified(label: Label, across: int) -> Label:
    """A label (z, y, x) on the finer pixels that outlines are drawn on, seen along `across`."""
    row, column = _in_plane(across)
    finer = _finer(label.shape)
    return label.repeat(finer, row).repeat(finer, column)


def dashed_outline(label: Label, across: int) -> NDArray[np.uint8]:
    """The outlines of a label's structures in dashes of two kinds, seen along the axis `across`.

    The result has the shape of the :func:`magnified` label: 1 and 2 in turn on the outermost pixels
    of each structure, else 0.
    """
    finer, label = _finer(label.shape), magnified(label, across)
    edge = np.zeros(label.shape, bool)
    for axis in _in_plane(across):
        here = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        there = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        changes = label[here] != label[there]
        edge[here] |= changes
        edge[there] |= changes
    edge &= label > 0
    rows, columns = np.ogrid[tuple(slice(label.shape[axis]) for axis in _in_plane(across))]
    # Oblique, so that a vertical, horizontal or diagonal line has dashes of both kinds.
    kind = 1 + (3 * rows + 2 * columns) // (4 * finer) % 2
    return np.where(edge, np.expand_dims(kind.astype(np.uint8), across), np.uint8(0))


def dotted_outline(label: Label, across: int) -> Label:
    """Every other dash of the :func:`dashed_outline`, with the structures' class indices."""
    return np.where(
        dashed_outline(label, across) == 1, magnified(label, across), label.dtype.type(0)
    )


def _in_plane(across: int) -> list[int]:
    return [axis for axis in range(3) if axis != across]


def _finer(shape: Sequence[int]) -> int:
    """Pixels per voxel where outlines are drawn."""
    return math.ceil(OUTLINE_PIXELS / max(shape))


def displacement_vectors(field: Field, stride: int, across: int) -> NDArray[np.float32]:
    """Every `stride`-th displacement of each slice across an axis, as start and direction.

    `field` is (3, z, y, x) in voxels. The result (n, 2, 3), voxels, order z, y, x, holds the point
    p in the fixed image, and u(p), which points to p + u(p) in the moving image.
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
