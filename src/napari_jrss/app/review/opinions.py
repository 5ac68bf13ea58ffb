"""Where two labels of one scan disagree, place by place: for a person who decides between them.

Such as the teacher's draft and the label that the labelled cases propagate. Both are wrong
somewhere, seldom in the same place, so most of what needs a correction is among what they dispute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.labels import IGNORED
from napari_jrss.snapshot import Label

_AROUND_MM = 3.0


@dataclass(frozen=True, eq=False)
class Dispute:
    """One connected place where two labels give the same two different classes.

    Attributes
    ----------
    first, second
        The class by the first and by the second label.
    box
        Where it lies: slices (z, y, x).
    mask
        Its voxels in that box.
    at
        One of its voxels (z, y, x), where most of it lies in an axial slice.
    volume_ml
        Its volume in millilitres.
    """

    first: int
    second: int
    box: tuple[slice, slice, slice]
    mask: NDArray[np.bool_]
    at: tuple[int, int, int]
    volume_ml: float

    def chosen(self, second: bool) -> int:
        """The class by one of the two labels."""
        return self.second if second else self.first


def disputes(
    first: Label, second: Label, spacing_mm: Sequence[float], *, least_ml: float = 0.0
) -> list[Dispute]:
    """Find where two labels disagree, the largest place first.

    Voxels that either label ignores are in no dispute. Voxels belong together if they share a face,
    an edge or a corner, and have the same two classes.

    Parameters
    ----------
    first, second
        Class indices (z, y, x).
    spacing_mm
        Voxel size (z, y, x) in mm.
    least_ml
        Smaller places are left out.
    """
    differ = (first != second) & (first != IGNORED) & (second != IGNORED)
    whole = _box_of(differ)
    if whole is None:
        return []
    differ, ours, theirs = differ[whole], first[whole], second[whole]
    codes, pair = np.unique(
        ours[differ].astype(np.int32) * (IGNORED + 1) + theirs[differ], return_inverse=True
    )
    numbers = np.zeros(differ.shape, np.int32)
    numbers[differ] = pair + 1
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    found: list[Dispute] = []
    for number, of_pair in enumerate(ndimage.find_objects(numbers), start=1):
        first_class, second_class = divmod(int(codes[number - 1]), IGNORED + 1)
        parts, _ = ndimage.label(numbers[of_pair] == number, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())
        for part, box in enumerate(ndimage.find_objects(parts), start=1):
            volume = float(sizes[part]) * voxel_ml
            if volume < least_ml:
                continue
            mask = parts[box] == part
            starts = np.array([[s.start for s in each] for each in (whole, of_pair, box)]).sum(0)
            z, y, x = (slice(int(i), int(i) + n) for i, n in zip(starts, mask.shape, strict=True))
            at = _middle(mask, spacing_mm) + starts
            place = (int(at[0]), int(at[1]), int(at[2]))
            found.append(Dispute(first_class, second_class, (z, y, x), mask, place, volume))
    return sorted(found, key=lambda each: -each.volume_ml)


def decided(label: Label, dispute: Dispute, second: bool, kept: NDArray[np.bool_]) -> Label:
    """The label with one dispute decided; voxels of `kept` (z, y, x) stay as they are."""
    new = label.copy()
    part = new[dispute.box]
    part[dispute.mask & ~kept[dispute.box]] = dispute.chosen(second)
    return new


def slice_to_paint(label: Label, index: int, axis: int, painted: Sequence[int]) -> int | None:
    """The slice across an axis that interpolation of a structure needs most.

    It is the middle of one of the gaps between slices that were painted, and between these and the
    structure's ends: of the gap in which the most is guessed, its length times the pixels by which
    the outlines of its two ends differ.

    Parameters
    ----------
    label
        Class indices (z, y, x).
    index
        The structure.
    axis
        Across which the slices lie.
    painted
        Numbers of the slices that a person painted.

    Returns
    -------
    int or None
        None where no slice is left between, or the structure isn't there.
    """
    across = np.moveaxis(label, axis, 0)
    shown = np.flatnonzero((across == index).any((1, 2)))
    if not shown.size:
        return None
    keys = sorted({int(shown[0]), int(shown[-1]), *painted})
    best, most = None, 0.0
    for low, high in pairwise(keys):
        differ = int(np.count_nonzero((across[low] == index) != (across[high] == index)))
        guessed = float((high - low - 1) * (differ + 1))
        if guessed > most:
            best, most = (low + high) // 2, guessed
    return best


def _middle(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.intp]:
    """In the axial slice that has most of a mask, its voxel (z, y, x) with most of it around."""
    z = int(np.count_nonzero(mask, axis=(1, 2)).argmax())
    around = [_AROUND_MM / size for size in spacing_mm[1:]]
    density = ndimage.gaussian_filter(mask[z].astype(np.float32), around, mode="constant")
    y, x = np.unravel_index(int(np.where(mask[z], density, -1).argmax()), mask[z].shape)
    return np.array([z, y, x])


def _box_of(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else None
