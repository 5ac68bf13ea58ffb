"""From one stroke on one slice to the 3D region that it means: pure functions.

A stroke says "this is structure s" or "this is not". What it means reaches beyond it, and how far
is judged for each voxel of a box about it: :class:`Region` holds log-odds that the voxel changes
with the stroke, and the amount, more or less, is a threshold on them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.app.review.repairs import Mask
from napari_jrss.geometry import linear_and_shift
from napari_jrss.io.predictions import Prediction
from napari_jrss.labels import IGNORED
from napari_jrss.preprocess.transform import GridTransform
from napari_jrss.snapshot import Label

Box: TypeAlias = tuple[slice, slice, slice]

LESS, MORE = -3.0, 3.0
"""Limits of the amount: log-odds by which the region is smaller or larger than usual."""
_REACH_MM, _MOST_REACH_MM = 4.5, 10.0  # how far a stroke means, and in between ...
_REACH_OF_STROKE = 1 / 4  # ... the share of its length
_BOX_REACHES = 3.0  # half width of the box about a stroke, in reaches
_MOST_VOXELS = 250_000  # of a box; beyond that, only every second voxel or fewer are judged
_SMOOTH_VOXELS = 0.7  # standard deviation of the Gaussian over the log-odds
_LOCAL_REACHES = 2.0  # how near voxels lie whose intensities say what a large difference is
_OWN = (
    0.7  # weight of the difference from the whole stroke; the rest is that from its nearest voxel
)
_NEVER = np.float32(-np.inf)
# Log-odds that a voxel changes with a stroke: a constant, and weights of its distance from the
# stroke in reaches; of its depth (distance from the structure's surface) over that of the nearest
# voxel of the stroke; of how much its intensity differs from the stroke's, in standard deviations;
# and of the teacher's log-odds. Fitted to strokes in the largest faults of drafts of hippocampi,
# see benchmarks/strokes.py.
_WITHOUT_TEACHER = (3.75, -1.69, -2.08, -1.42, 0.0)
_WITH_TEACHER = (4.6, -1.83, -1.66, -1.41, 0.29)
_LEAST = 1e-3  # least probability that a teacher is believed to tell


@dataclass(frozen=True, eq=False)
class Teacher:
    """What a teacher says of a scan: its prediction, and the scan's way to the training grid."""

    prediction: Prediction
    transform: GridTransform


@dataclass(frozen=True, eq=False)
class Region:
    """What one stroke may mean.

    Attributes
    ----------
    index, adding
        The structure, and whether the stroke adds to it or removes from it.
    box
        The part of the volume (z, y, x) that was looked at.
    odds
        Log-odds of each voxel of the box to change with the stroke; -inf where it can't.
    stroke
        Voxels of the box that were drawn over and can change.
    """

    index: int
    adding: bool
    box: Box
    odds: NDArray[np.float32]
    stroke: Mask

    @property
    def empty(self) -> bool:
        """Whether there is nothing to change under the stroke."""
        return not self.stroke.any()

    def mask(self, amount: float = 0.0) -> Mask:
        """Voxels of the box that change: above a threshold, and connected with the stroke.

        `amount` is 0 for what is likelier than not, more for a larger region, less for a smaller
        one; a larger amount holds all of a smaller one.
        """
        likely = self.odds > -amount
        likely |= self.stroke
        parts, _ = ndimage.label(likely)
        kept = np.unique(parts[self.stroke])
        found: Mask = np.isin(parts, kept[kept > 0])
        return found


def region(
    label: Label,
    image: NDArray[Any],
    stroke: NDArray[np.intp],
    index: int,
    spacing_mm: Sequence[float],
    *,
    adding: bool = True,
    teacher: Teacher | None = None,
    keep: Mask | None = None,
    locked: Collection[int] = (),
) -> Region:
    """Judge which voxels about a stroke change with it.

    Parameters
    ----------
    label, image
        Class indices and intensities (z, y, x) on the scan's own voxels.
    stroke
        Voxels (n, 3) that were drawn over, in the order z, y, x; those beyond the scan don't count.
    index, adding
        The structure, and whether the stroke adds to it or removes from it.
    spacing_mm
        Voxel size (z, y, x).
    teacher
        What a teacher says of the scan; None: the image alone decides.
    keep
        Voxels (z, y, x) that stay as they are, such as those painted by hand.
    locked
        Classes whose voxels stay as they are.

    Notes
    -----
    A fault of a draft is mostly a shell upon the true surface. A stroke along its middle lies as
    deep as half the shell is thick, so a voxel's depth over that of the stroke tells where the
    shell ends. A logistic regression weighs it with distance, intensity and the teacher. A large
    box is judged on a coarser grid, and the log-odds are interpolated linearly.
    """
    stroke = np.asarray(stroke, np.intp).reshape(-1, 3)
    stroke = stroke[((stroke >= 0) & (stroke < label.shape)).all(1)]
    if not len(stroke):
        none, nowhere = np.zeros((0, 0, 0), bool), slice(0, 0)
        return Region(index, adding, (nowhere,) * 3, none.astype(np.float32), none)
    spacing = np.asarray(spacing_mm, float)
    low, high = stroke.min(0), stroke.max(0) + 1
    length = float(np.linalg.norm((high - low) * spacing))
    reach = min(max(_REACH_MM, length * _REACH_OF_STROKE), _MOST_REACH_MM)
    margin = np.ceil(_BOX_REACHES * reach / spacing).astype(int)
    first, last = np.maximum(low - margin, 0), np.minimum(high + margin, label.shape)
    z, y, x = zip(first.tolist(), last.tolist(), strict=True)
    box = (slice(*z), slice(*y), slice(*x))
    inside = label[box] == index
    free = ~inside if adding else inside.copy()
    for one in {*locked, IGNORED}:
        free &= label[box] != one
    if keep is not None:
        free &= ~keep[box]
    drawn = np.zeros(free.shape, bool)
    drawn[tuple((stroke - first).T)] = True
    drawn &= free
    if not drawn.any():
        return Region(index, adding, box, np.full(free.shape, _NEVER), drawn)
    steps = _steps(free.shape, spacing)
    every = tuple(slice(None, None, step) for step in steps)
    odds = _odds(
        (inside if adding else ~inside)[every],
        image[box][every].astype(np.float32),
        np.argwhere(drawn) // steps,
        spacing * steps,
        reach,
        None if teacher is None else _share(teacher, index, first, steps, free[every].shape),
        adding,
    )
    if max(steps) > 1:
        odds = ndimage.affine_transform(
            odds, 1 / np.array(steps), output_shape=free.shape, order=1, mode="nearest"
        )
    return Region(index, adding, box, np.where(free, odds, _NEVER), drawn)


def changed(part: Label, found: Region, amount: float = 0.0, locked: Collection[int] = ()) -> Label:
    """The part of a label (z, y, x) in a region's box, changed as :meth:`Region.mask` says.

    What is removed becomes the nearest other class that isn't locked.
    """
    part, mask = part.copy(), found.mask(amount)
    if found.adding:
        part[mask] = found.index
        return part
    others = (part != found.index) & (part != IGNORED)
    for one in locked:
        others &= part != one
    if others.any():
        nearest = ndimage.distance_transform_edt(
            ~others, return_distances=False, return_indices=True
        )
        part[mask] = part[tuple(nearest[:, mask])]
    else:
        part[mask] = 0
    return part


def _odds(
    settled: Mask,
    image: NDArray[np.float32],
    stroke: NDArray[np.intp],
    spacing: NDArray[np.float64],
    reach: float,
    teacher: NDArray[np.float32] | None,
    adding: bool,
) -> NDArray[np.float32]:
    """Log-odds of all voxels of a box, also of those that can't change.

    `settled` are those that are already as the stroke says.
    """
    at = tuple(stroke.T)
    beyond = np.ones(settled.shape, bool)
    beyond[at] = False
    far, nearest = ndimage.distance_transform_edt(beyond, spacing, return_indices=True)
    near = tuple(nearest)
    if settled.any():
        deep = ndimage.distance_transform_edt(~settled, spacing).astype(np.float32)
        deep /= np.maximum(deep, spacing.min() / 2)[near]
    else:  # nothing to measure from: as deep as the stroke everywhere
        deep = np.ones(settled.shape, np.float32)
    smooth = ndimage.gaussian_filter(image, 0.5, truncate=3)
    unlike = _OWN * np.abs(smooth - smooth[at].mean()) + (1 - _OWN) * np.abs(smooth - smooth[near])
    spread = float(smooth[far < _LOCAL_REACHES * reach].std())
    constant, *weights = _WITHOUT_TEACHER if teacher is None else _WITH_TEACHER
    odds = constant + weights[0] * far / reach + weights[1] * deep
    odds += weights[2] * unlike / max(spread, 1e-6)
    if teacher is not None:
        odds += weights[3] * (teacher if adding else -teacher)
    # A mean over voxels that aren't settled: the others say nothing of them.
    open_ = (~settled).astype(np.float32)
    total = ndimage.gaussian_filter(np.where(settled, 0, odds).astype(np.float32), _SMOOTH_VOXELS)
    share = ndimage.gaussian_filter(open_, _SMOOTH_VOXELS)
    odds = np.where(share > 1e-3, total / np.maximum(share, 1e-3), odds)
    return np.asarray(odds, np.float32)


def _share(
    teacher: Teacher,
    index: int,
    first: NDArray[np.intp],
    steps: Sequence[int],
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    """The teacher's log-odds of a structure on every n-th voxel of the scan from one on."""
    told = teacher.prediction
    linear, shift = linear_and_shift(teacher.transform.scan_to_grid)
    shift = linear @ first + shift
    linear = linear * np.asarray(steps)
    # Only the part of the training grid that is needed.
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1) @ linear.T + shift
    size = np.array(told.label.shape)
    low = np.clip(np.floor(corners.min(0)).astype(int), 0, size - 1)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 1, low + 1, size)
    crop = tuple(slice(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True))
    own = np.where(told.label[crop] == index, told.confidence[crop].astype(np.float32), 0)
    if told.second is not None and told.second_confidence is not None:
        second = told.second_confidence[crop].astype(np.float32)
        own += np.where(told.second[crop] == index, second, 0)
    else:  # of an older version
        own = np.where(told.label[crop] == index, own, 1 - told.confidence[crop])
    diagonal = linear.diagonal()
    upright = np.allclose(linear, np.diag(diagonal))
    probability = ndimage.affine_transform(
        own,
        diagonal if upright else linear,
        shift - low,
        output_shape=shape,
        order=1,
        mode="nearest",
    )
    # float16 knows no probability between 1 and 0.9995.
    probability = np.clip(probability, _LEAST, 1 - _LEAST)
    odds: NDArray[np.float32] = np.log(probability / (1 - probability))
    return odds


def _steps(shape: Sequence[int], spacing: NDArray[np.float64]) -> tuple[int, int, int]:
    """Judge every n-th voxel along each axis (z, y, x), so that a box isn't too large."""
    steps = np.ones(3, int)
    while np.prod(-(-np.array(shape) // steps)) > _MOST_VOXELS:
        steps[np.argmin(spacing * steps)] += 1
    z, y, x = steps.tolist()
    return z, y, x
