"""Repairs of one structure: pure functions of a label (z, y, x) that return a new one.

A voxel that a structure loses becomes the nearest other class, so that no gap opens between
structures that touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.snapshot import Label

Mask = NDArray[np.bool_]
_ROUNDING = 1e-6  # so that a voxel at just the distance counts


def smooth(label: Label, index: int, spacing_mm: Sequence[float], sigma_mm: float = 1.0) -> Label:
    """Round off one structure's surface: half of a Gaussian's mass around a voxel decides.

    The Gaussian's standard deviation is `sigma_mm`, at least 0.6 voxels (z, y, x) along each axis.
    """
    sigma = [max(sigma_mm / size, 0.6) for size in spacing_mm]
    box = _box(label == index, margin=[int(np.ceil(2 * s)) for s in sigma])
    if box is None:
        return label.copy()
    mask = label[box] == index
    # Beyond the volume's edge the structure goes on as it ends there.
    smoothed = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="nearest") > 0.5
    return _with_mask(label, index, box, smoothed)


def fill_holes(label: Label, index: int, axis: int | None = None) -> Label:
    """Give one structure the background that it encloses in 3D, or on each slice across an axis."""
    box = _box(label == index)
    if box is None:
        return label.copy()
    mask = label[box] == index
    if axis is None:
        filled = ndimage.binary_fill_holes(mask)
    else:
        slices = np.moveaxis(mask, axis, 0)
        filled = np.stack([ndimage.binary_fill_holes(each) for each in slices])
        filled = np.moveaxis(filled, 0, axis)
    new = label.copy()
    new[box][filled & (label[box] == 0)] = index
    return new


def keep_largest(label: Label, index: int) -> Label:
    """Keep only the largest connected part (26 neighbours) of one structure."""
    box = _box(label == index)
    if box is None:
        return label.copy()
    parts, count = ndimage.label(label[box] == index, np.ones((3, 3, 3)))
    if count < 2:
        return label.copy()
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    return _with_mask(label, index, box, parts == largest)


def grow(label: Label, index: int, spacing_mm: Sequence[float], by_mm: float) -> Label:
    """Give one structure the background within a distance of it; other structures keep theirs."""
    box = _box(label == index, margin=[int(by_mm / size + _ROUNDING) for size in spacing_mm])
    if box is None:
        return label.copy()
    part = label[box]
    near = ndimage.distance_transform_edt(part != index, spacing_mm) <= by_mm * (1 + _ROUNDING)
    return _with_mask(label, index, box, (part == index) | (near & (part == 0)))


def shrink(label: Label, index: int, spacing_mm: Sequence[float], by_mm: float) -> Label:
    """Take from one structure what lies within a distance of its surface.

    The volume's edge isn't a surface.
    """
    box = _box(label == index)
    if box is None:
        return label.copy()
    mask = label[box] == index
    if mask.all():
        return label.copy()
    return _with_mask(
        label,
        index,
        box,
        ndimage.distance_transform_edt(mask, spacing_mm) > by_mm * (1 + _ROUNDING),
    )


def split_sides(
    label: Label, index: int, other: int, affine: NDArray[np.float64], side: str
) -> Label | None:
    """Give what one structure has on the patient's left or right to another one.

    Connected parts stay whole: those whose middle lies beyond the sagittal plane midway between
    the two largest go over. A structure in one part is cut along the plane through its middle.

    Parameters
    ----------
    label, index, other
        Class indices (z, y, x), the structure, and the one that gets its side.
    affine
        Voxel (x, y, z, 1) -> LPS mm, where x grows to the patient's left.
    side
        ``left`` or ``right``.

    Returns
    -------
    array or None
        The new label. None where the two largest parts don't lie side by side.
    """
    places = np.argwhere(label == index)
    if not len(places):
        return label.copy()
    world = places[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    parts, count = ndimage.label(label == index, np.ones((3, 3, 3)))
    of = parts[tuple(places.T)]
    middles = np.stack([np.bincount(of, axis)[1:] / np.bincount(of)[1:] for axis in world.T], 1)
    if count > 1:
        first, second = middles[np.argsort(-np.bincount(of)[1:], kind="stable")[:2]]
        apart = np.abs(first - second)
        if apart.argmax() != 0:
            return None
        left = (middles[:, 0] > (first[0] + second[0]) / 2)[of - 1]
    else:
        left = world[:, 0] > middles[0, 0]
    new = label.copy()
    new[tuple(places[left if side == "left" else ~left].T)] = other
    return new


def take_component(label: Label, source: Label, at: Sequence[int]) -> Label:
    """Take what another label says where both differ, in the connected part that holds a voxel."""
    z, y, x = at
    differs = label != source
    new = label.copy()
    if differs[z, y, x]:
        parts, _ = ndimage.label(differs)
        part = parts == parts[z, y, x]
        new[part] = source[part]
    return new


def take(label: Label, index: int, source: Label) -> Label:
    """Give one structure the extent that another label gives it."""
    box = _box((label == index) | (source == index))
    if box is None:
        return label.copy()
    return _with_mask(label, index, box, source[box] == index)


def interpolate(label: Label, index: int, axis: int, slices: Sequence[int] | None = None) -> Label:
    """Fill one structure in between slices across an axis, by signed distances to its outline.

    Between two key slices at distance 1 the outline is where the linear blend of the two signed
    Euclidean distances is zero (Raya and Udupa 1990). Other structures keep their voxels. Key
    slices stay as they are, and whatever lies between them is drawn again. Without any, all slices
    that show the structure are key slices, so that only gaps are filled.
    """
    new = label.copy()
    across, old = np.moveaxis(new, axis, 0), np.moveaxis(label, axis, 0)
    shown = [int(i) for i in np.flatnonzero((old == index).any((1, 2)))]
    keys = shown if slices is None else sorted(set(slices) & set(shown))
    for low, high in pairwise(keys):
        if high - low < 2:
            continue
        first, last = old[low] == index, old[high] == index
        rows = np.flatnonzero((first | last).any(1))
        columns = np.flatnonzero((first | last).any(0))
        box = (
            slice(max(int(rows[0]) - 1, 0), int(rows[-1]) + 2),
            slice(max(int(columns[0]) - 1, 0), int(columns[-1]) + 2),
        )
        start, end = _signed_distance(first[box]), _signed_distance(last[box])
        for i in range(low + 1, high):
            part = (i - low) / (high - low)
            inside = (1 - part) * start + part * end > 0
            if slices is not None:
                across[i][across[i] == index] = 0
            drawn = across[i][box]
            drawn[inside & (drawn == 0)] = index
    return new


def _signed_distance(mask: Mask) -> NDArray[np.float64]:
    """Positive inside, negative outside, in pixels; zero lies between two pixels."""
    # A mask that fills its box has no outside to measure from but the box's own edge.
    padded = np.pad(mask, 1)
    inside = ndimage.distance_transform_edt(padded)
    outside = ndimage.distance_transform_edt(~padded)
    signed: NDArray[np.float64] = (np.where(padded, inside - 0.5, 0.5 - outside))[1:-1, 1:-1]
    return signed


def _box(mask: Mask, margin: Sequence[int] = (1, 1, 1)) -> tuple[slice, ...] | None:
    """The part of a volume that holds a mask, with a margin; None for an empty mask."""
    box = []
    for axis, more in enumerate(margin):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        found = np.flatnonzero(mask.any(others))
        if not found.size:
            return None
        box.append(slice(max(int(found[0]) - more, 0), int(found[-1]) + 1 + more))
    return tuple(box)


def _with_mask(label: Label, index: int, box: tuple[slice, ...], mask: Mask) -> Label:
    """The label with one structure's extent in a box replaced."""
    new = label.copy()
    part = new[box]
    given_up = (part == index) & ~mask
    if given_up.any():
        others = part != index
        if others.any():
            nearest = ndimage.distance_transform_edt(
                ~others, return_distances=False, return_indices=True
            )
            part[given_up] = part[tuple(nearest[:, given_up])]
        else:
            part[given_up] = 0
    part[mask] = index
    return new
