"""What the brush may change: only some intensities, only one structure; and how it erases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.snapshot import Label

_AROUND_MM = 2.0  # what is within this distance of a voxel says which intensities are like its own
_DEVIATIONS = 2.0  # half width of that range, in standard deviations
_LEAST_WIDTH = 0.02  # half width at least, as a share of the scan's own range
_NEIGHBOUR_VOXELS = 8  # how far the eraser looks for another class


@dataclass(frozen=True)
class BrushLimits:
    """What the brush may change; by default, everything.

    Attributes
    ----------
    intensities
        Least and largest intensity of the voxels that are painted or erased; None: any.
    over
        The only class that is painted over or erased; None: any.
    to_neighbour
        What is erased becomes the nearest other class, which may be the background.
    """

    intensities: tuple[float, float] | None = None
    over: int | None = None
    to_neighbour: bool = False

    def refused(
        self, image: NDArray[Any], indices: NDArray[np.intp], before: Label
    ) -> NDArray[np.bool_]:
        """Which of the voxels that were painted, as indices into the flat scan, stay as they were.

        `before` has their former classes.
        """
        refused = np.zeros(indices.shape, bool)
        if self.over is not None:
            refused |= before != self.over
        if self.intensities is not None:
            values = image[np.unravel_index(indices, image.shape)]
            refused |= (values < self.intensities[0]) | (values > self.intensities[1])
        return refused


def intensities_like(
    image: NDArray[Any], at: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """A range of intensities around those about a voxel (z, y, x): mean and two deviations."""
    box = tuple(
        slice(max(i - round(_AROUND_MM / size), 0), i + round(_AROUND_MM / size) + 1)
        for i, size in zip(at, spacing_mm, strict=True)
    )
    near = image[box].astype(np.float64)
    whole = float(np.ptp(image[::4, ::4, ::4].astype(np.float64)))
    half = max(_DEVIATIONS * float(near.std()), _LEAST_WIDTH * whole)
    return float(near.mean()) - half, float(near.mean()) + half


def nearest_others(
    label: Label, indices: NDArray[np.intp], before: Label, locked: NDArray[np.bool_]
) -> Label:
    """The nearest other class of voxels that were erased, as indices into the flat label.

    `before` has their former classes, `locked` says which classes (256) nothing may become.
    """
    after = np.zeros_like(before)
    places = np.stack(np.unravel_index(indices, label.shape), 1)
    first = np.maximum(places.min(0) - _NEIGHBOUR_VOXELS, 0)
    box = tuple(
        slice(a, b) for a, b in zip(first, places.max(0) + _NEIGHBOUR_VOXELS + 1, strict=True)
    )
    part, inside = label[box].copy(), places - first
    for index in np.unique(before):
        ours = before == index
        if index == 0:
            continue
        free = (part != index) & ~locked[part]
        free[tuple(inside.T)] = False
        if free.any():
            nearest = ndimage.distance_transform_edt(
                ~free, return_distances=False, return_indices=True
            )
            where = tuple(nearest[:, *inside[ours].T])
            after[ours] = part[where]
    return after
