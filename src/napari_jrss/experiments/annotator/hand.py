"""The simulated hand: what it believes the outline to be, and how its brush follows that.

A stroke is one path of a disc on one slice. It gives one structure (or the background, which
erases) to one connected part of what the hand sees as wrong, or to several along one outline. The
disc stays inside what the hand believes the structure to be. The hand's belief isn't the manual
label: its outline lies beside it, by a smooth random displacement, so that even a label that is
drawn by hand alone has errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import skeletonize

from napari_jrss.experiments.annotator.costs import CostModel, Effort
from napari_jrss.snapshot import Label

Mask = NDArray[np.bool_]

BRUSHES = (9, 7, 5, 3, 2, 1)
"""Diameters in voxels that the hand chooses from, the largest first."""
COVERED = 0.9
"""Share of an error that a brush has to reach; else a smaller one is taken."""
LEAST_VOXELS = 3
"""Smaller errors on a slice are left as they are."""
SMOOTHNESS_VOXELS = 1.5
"""Of the displacement of the believed outline."""
AROUND = np.ones((3, 3), bool)
BLOCK = np.ones((2, 2), bool)


def believed(truth: Label, classes: int, sd_voxels: float, seed: Sequence[int]) -> Label:
    """What the hand believes: the true label, displaced smoothly and at random.

    Parameters
    ----------
    truth
        The manual label (z, y, x).
    classes
        Number of classes.
    sd_voxels
        Standard deviation of the displacement along each axis, in voxels.
    seed
        Decides the displacement.
    """
    rng = np.random.default_rng(np.random.SeedSequence(list(seed)))
    points = []
    for axis in np.indices(truth.shape):
        noise = ndimage.gaussian_filter(rng.standard_normal(truth.shape), SMOOTHNESS_VOXELS)
        points.append(axis + noise * (sd_voxels / noise.std()))
    shares = [
        ndimage.map_coordinates((truth == c).astype(np.float32), points, order=1, mode="nearest")
        for c in range(classes)
    ]
    return np.asarray(np.argmax(shares, axis=0).astype(truth.dtype))


@cache
def disc(diameter: int) -> Mask:
    """The brush as pixels; its diameter in voxels."""
    at = np.arange(diameter) - (diameter - 1) / 2
    return np.asarray(np.hypot(*np.meshgrid(at, at)) <= diameter / 2)


@dataclass(frozen=True, eq=False)
class Stroke:
    """One path of the brush on one slice."""

    value: int  # class that it paints
    brush: int  # diameter in voxels
    painted: Mask  # pixels that it covers
    path_voxels: float  # its length

    def seconds(self, costs: CostModel) -> float:
        """What it takes, without choosing the brush."""
        return Effort(strokes=1, path_voxels=self.path_voxels).seconds(costs)


def strokes(
    label: Label, wanted: Label, classes: Sequence[int], fine: bool, costs: CostModel
) -> Iterator[Stroke]:
    """The strokes that one slice needs, the largest first.

    The wrong voxels that are to get one class are corrected part by part, or in one stroke along
    the whole outline, whichever takes less time.

    Parameters
    ----------
    label, wanted
        The slice as it is, and as the hand believes it.
    classes
        Structures to correct; what is wrong between others is left.
    fine
        Whether errors that are one voxel thin are corrected too.
    costs
        What a stroke takes.
    """
    concerned = np.isin(label, classes) | np.isin(wanted, classes)
    wrong = (label != wanted) & concerned
    found: list[Stroke] = []
    for value in np.unique(wanted[wrong]).tolist():
        room = wanted == value
        parts, count = ndimage.label(wrong & room, AROUND)
        errors = [each for n in range(1, count + 1) if _matters(each := parts == n, fine)]
        apart = [_stroke(error, room, value) for error in errors]
        if len(apart) > 1:
            # Outside of everything for the background, around the structure for a structure.
            around = _outline(room if value else ~room)
            whole = _stroke(wrong & room, room, value, path=float(np.count_nonzero(around)))
            if whole.seconds(costs) < sum(each.seconds(costs) for each in apart):
                apart = [whole]
        found += apart
    yield from sorted(found, key=lambda each: -int(np.count_nonzero(each.painted & wrong)))


def _matters(error: Mask, fine: bool) -> bool:
    """Whether a person corrects an error: it is large enough, and thick enough at first."""
    if np.count_nonzero(error) < LEAST_VOXELS:
        return False
    return fine or bool(ndimage.binary_opening(error, BLOCK).any())


def _outline(region: Mask) -> Mask:
    """The pixels of a region that lie at its edge."""
    return np.asarray(region & ~ndimage.binary_erosion(region, border_value=1))


def _stroke(error: Mask, room: Mask, value: int, path: float = 0.0) -> Stroke:
    """The stroke with the largest brush that reaches most of an error and stays in its room.

    It follows the error's part of the outline, or what of the error the brush can't cover at once;
    `path` is its length where that is known.
    """
    rows, columns = ndimage.find_objects(error.astype(np.uint8))[0]
    margin = 2 * BRUSHES[0]
    box = (
        slice(max(rows.start - margin, 0), rows.stop + margin),
        slice(max(columns.start - margin, 0), columns.stop + margin),
    )
    here, inside = error[box], room[box]
    size = int(np.count_nonzero(here))
    for diameter in BRUSHES:
        brush = disc(diameter)
        # Beyond the slice's edge the brush paints nothing, so that it may stand out there.
        centres = ndimage.binary_erosion(inside, brush, border_value=1)
        centres &= ndimage.binary_dilation(here, brush[::-1, ::-1])
        covered = ndimage.binary_dilation(centres, brush)
        if np.count_nonzero(covered & here) >= COVERED * size:
            break
    painted = np.zeros_like(error)
    painted[box] = covered & inside
    if not path:
        along = np.count_nonzero(here & _outline(inside))
        path = max(float(along), float(np.count_nonzero(skeletonize(here))), size / diameter)
    return Stroke(value, diameter, painted, path)


@dataclass(frozen=True, eq=False)
class Fault:
    """A connected region that a structure lacks, or has too much."""

    index: int  # the structure
    adding: bool  # whether it lacks it
    size: int  # voxels
    line: NDArray[np.intp]  # voxels (n, 3) along the middle of its largest part on one slice


def largest_fault(
    label: Label, wanted: Label, classes: Sequence[int], tried: Mask, axis: int
) -> Fault | None:
    """The largest fault that doesn't hold a line which was tried before; None if there is none.

    Parameters
    ----------
    label, wanted
        The label (z, y, x), and what the hand believes.
    classes
        Structures to look at.
    tried
        Voxels of the lines that were drawn before.
    axis
        Across which the slices lie.
    """
    found: tuple[int, int, bool, Mask] | None = None
    for index in classes:
        ours, theirs = label == index, wanted == index
        for adding, wrong in ((True, theirs & ~ours), (False, ours & ~theirs)):
            parts, _ = ndimage.label(wrong)
            sizes = np.bincount(parts.ravel())
            sizes[np.unique(parts[tried])] = 0
            sizes[0] = 0
            largest = int(sizes.argmax())
            if sizes[largest] and (found is None or sizes[largest] > found[0]):
                found = int(sizes[largest]), index, adding, parts == largest
    if found is None:
        return None
    size, index, adding, fault = found
    across = np.moveaxis(fault, axis, 0)
    number = int(across.sum((1, 2)).argmax())
    parts, _ = ndimage.label(across[number], AROUND)
    part = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    line = np.insert(np.argwhere(skeletonize(part)), axis, number, axis=1)
    return Fault(index, adding, size, line)
