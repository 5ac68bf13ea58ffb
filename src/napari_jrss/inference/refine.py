"""Registration of one pair by gradient descent on its own field, from coarse to fine.

The field is that of control points; their spacing in voxels falls from level to level.
:func:`refine` starts from a network's field and minimises the terms of the paper's registration
loss (Eq. 10); structures are matched by the teacher's probabilities in both images, and no label
by a person is read. :func:`register_images` needs neither a network nor a teacher. Neither is in
the paper: gradient descent on a coarse, smoothed grid after a first guess is the recipe of
ConvexAdam (Siebert et al.), which matches other features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from napari_jrss.config import RefinementConfig
from napari_jrss.inference.predict import segmentation_logits
from napari_jrss.inference.watch import Watch, to_the_end
from napari_jrss.losses import diffusion_regulariser, folding, mean_squared_error, mind_ssc
from napari_jrss.networks.spatial import (
    forward_jacobian_determinant,
    jacobian_determinant,
    resize_displacement,
    warp,
)

IMAGES_ALONE = RefinementConfig(
    control_spacings=(8, 4, 2, 1),
    image_spacings=(4, 2, 1, 1),
    steps=(40, 20, 20, 20),
    similarity="lncc",
    lambda_d=0.0,
    lambda_r=1.0,
)
"""What :func:`register_images` does by default: half a second on a core at 40x56x40."""

IMAGES_QUICKLY = RefinementConfig(
    control_spacings=(4, 2),
    steps=(20, 20),
    similarity="lncc",
    lambda_d=0.0,
    lambda_r=1.0,
)
"""Less exact, in a third of the time, and smoother: for fields that training augments by."""


class RefinedRegistration(nn.Module):
    """A registration network that refines each field, in evaluation mode and without training.

    Parameters
    ----------
    registration
        Moving and fixed image -> displacement field, as
        :class:`napari_jrss.networks.build.RegistrationNetwork`.
    teacher
        Segmentation network, (B, channels, z, y, x) -> logits (B, C, z, y, x).
    config, watch
        See :func:`refine`.
    """

    def __init__(
        self,
        registration: nn.Module,
        teacher: nn.Module,
        config: RefinementConfig | None = None,
        watch: Watch = to_the_end,
    ) -> None:
        super().__init__()
        self.registration = registration
        self.teacher = teacher
        self.config = config or RefinementConfig()
        self.watch = watch

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (B, channels, z, y, x) -> displacement (B, 3, z, y, x), voxels, float32.

        The teacher sees all channels; the first ones are matched.
        """
        with torch.no_grad():
            displacement = self.registration(moving, fixed).float()
        here, there = ((each[:, :1], self._probabilities(each)) for each in (moving, fixed))
        return refine(displacement, here, there, self.config, self.watch)

    def _probabilities(self, images: Tensor) -> Tensor:
        """The teacher's class probabilities, (B, C, z, y, x)."""
        each = [
            segmentation_logits(self.teacher, image.cpu().numpy(), image.device) for image in images
        ]
        return torch.stack(each).to(images.device).softmax(1)


class NoDisplacement(nn.Module):
    """Stands in for a registration network where none was trained: refinements start from zero."""

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Images (B, 1, z, y, x) -> zeros (B, 3, z, y, x)."""
        return fixed.new_zeros(len(fixed), 3, *fixed.shape[2:])


def refine(
    displacement: Tensor,
    moving: tuple[Tensor, Tensor],
    fixed: tuple[Tensor, Tensor],
    config: RefinementConfig,
    watch: Watch = to_the_end,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Improve fields by gradient descent on control points, level by level.

    Parameters
    ----------
    displacement
        (B, 3, z, y, x) in voxels, where to start.
    moving, fixed
        Image (B, 1, z, y, x) and class probabilities (B, C, z, y, x) of each side; C = 0 where
        images alone are matched.
    config
        Levels, steps and weights.
    watch
        Called before each step. Where it stops the work, the fields are returned as they are.
    spacing
        Size of a voxel (z, y, x), in any unit. Control points are as far apart along each axis,
        so a long voxel holds more of them.

    Returns
    -------
    Tensor
        (B, 3, z, y, x), float32, without gradient.
    """
    field = displacement.detach().float()
    levels = _levels(field.shape[2:], config, spacing)
    done, total = 0, sum(level.steps for level in levels)
    grid: list[int] = []
    for level in levels:
        if level.grid != grid:
            grid = level.grid
            here, there = (_seen(side, grid, config.similarity) for side in (moving, fixed))
        follow = partial(_follow, watch, done, total)
        field, finished = _descend(
            field, here, there, level.points_grid, level.steps, config, follow
        )
        if not finished:
            return field
        done += level.steps
    return _without_folds(field)


def register_images(
    moving: Tensor | NDArray[np.floating],
    fixed: Tensor | NDArray[np.floating],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    config: RefinementConfig = IMAGES_ALONE,
    *,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
    watch: Watch = to_the_end,
) -> Tensor:
    """The field that warps one image onto another, from the two images alone.

    The same input gives the same field; nothing is drawn at random.

    Parameters
    ----------
    moving, fixed
        (z, y, x) on one grid. Each is brought to mean 0 and standard deviation 1.
    spacing
        Size of a voxel (z, y, x), as for :func:`refine`.
    config
        Levels, steps, similarity and weights; ``lambda_d`` has no say, as there is no teacher.
    start
        Displacement (3, z, y, x) in voxels, such as a pre-alignment; the identity by default.
    device
        Where to compute.
    watch
        Called before each step.

    Returns
    -------
    Tensor
        (3, z, y, x) in voxels, float32, on `device`.

    Raises
    ------
    ValueError
        The two grids differ.
    """
    sides = []
    for image in (moving, fixed):
        volume = torch.as_tensor(image, dtype=torch.float32, device=device)[None, None]
        volume = (volume - volume.mean()) / volume.std().clamp(min=1e-6)
        sides.append((volume, volume[:, :0]))
    here, there = (side[0] for side in sides)
    if here.shape != there.shape:
        raise ValueError(f"grids differ: {tuple(here.shape[2:])} and {tuple(there.shape[2:])}")
    if start is None:
        start = here.new_zeros(3, *here.shape[2:])
    field = start[None].to(here.device)
    return refine(field, sides[0], sides[1], config, watch, spacing)[0]


class _Level(NamedTuple):
    points_grid: list[int]  # control points along z, y, x
    grid: list[int]  # samples of the images
    steps: int


def _levels(
    shape: Sequence[int], config: RefinementConfig, spacing: Sequence[float]
) -> list[_Level]:
    """The levels of a refinement on a grid, without those that are too coarse for it."""
    coarser = 2 if math.prod(shape) > _FINE else 1
    levels = []
    for number, (control, steps) in enumerate(
        zip(config.control_spacings, config.steps, strict=True)
    ):
        apart = _per_axis(coarser * control, spacing)
        sampled = [min(2, each) for each in apart]
        if config.image_spacings is not None:
            sampled = list(_per_axis(coarser * config.image_spacings[number], spacing))
        levels.append(_Level(_grid(shape, apart), _grid(shape, sampled), steps))
    fewest = min(_FEWEST, *shape)
    return [level for level in levels[:-1] if min(level.grid) >= fewest] + levels[-1:]


_FEWEST = 6
"""Samples of the images along each axis: fewer tell no shift from another."""


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """Dice loss whose intersection is the smaller of the two values: ``sum |p - q| / sum (p + q)``.

    The Dice loss of Eq. 7, whose intersection is the product, isn't smallest where two soft
    segmentations are equal, so it would change a perfect field. ``first`` and ``second`` are
    (B, C, z, y, x); the mean is over images and classes. A class with less than one voxel in both
    hardly counts, since its probabilities are noise.
    """
    difference = (first - second).abs().flatten(2).sum(2)
    total = (first + second).flatten(2).sum(2)
    return (difference / total.clamp(min=1)).mean()


def _follow(watch: Watch, done: int, total: int, step: int) -> bool:
    """Tell who watches which share of all levels' steps is done."""
    return watch((done + step) / total)


def _seen(side: tuple[Tensor, Tensor], grid: Sequence[int], similarity: str) -> tuple[Tensor, int]:
    """Image features and class probabilities of a side on a grid, and how many are features."""
    both = torch.cat(side, dim=1).float()
    both = _along_axes(_matrices(both.shape[2:], grid, both.device), both)
    image, classes = both[:, :1], both[:, 1:]
    features = mind_ssc(image) if similarity == "mind" else image
    return torch.cat([features, classes], dim=1), features.shape[1]


def _descend(
    displacement: Tensor,
    moving: tuple[Tensor, int],
    fixed: tuple[Tensor, int],
    points_grid: list[int],
    steps: int,
    config: RefinementConfig,
    follow: Callable[[int], bool],
) -> tuple[Tensor, bool]:
    """One level on a grid of control points; the field, and whether it was finished."""
    device, shape = displacement.device, displacement.shape[2:]
    (here, channels), (there, _) = moving, fixed
    grid = list(here.shape[2:])
    smooth = [_box(size, 3).to(device) for size in points_grid]
    parts = [
        _Part(there, channels, config.similarity, points_grid, *corner) for corner in _corners(grid)
    ]
    # whoever asks for a field has switched gradients off, and perhaps autocast on
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        points = resize_displacement(displacement, points_grid).detach().requires_grad_()
        adam = torch.optim.Adam([points], config.learning_rate)
        finished = True
        for step in range(steps):
            if not follow(step):
                finished = False
                break
            adam.param_groups[0]["lr"] = config.learning_rate * (1 - step / steps)
            coarse = _along_axes(smooth, points)
            similarity, dice = parts[step % len(parts)].differences(here, coarse)
            # each finds folds that the other misses
            determinant = (jacobian_determinant, forward_jacobian_determinant)[step % 2](coarse)
            total = (
                similarity
                + config.lambda_d * dice
                + config.lambda_r * diffusion_regulariser(coarse)
                + config.lambda_j * folding(determinant)
            )
            adam.zero_grad()
            (total * len(points)).backward()  # each pair as if alone
            adam.step()
    return resize_displacement(_along_axes(smooth, points.detach()), shape), finished


_FINE = 2**21
"""Voxels from which on control points are twice as far apart: such voxels are small."""


class _Part:
    """Every voxel of the fixed image, or of a large one those that one step looks at."""

    def __init__(
        self,
        there: Tensor,
        channels: int,
        similarity: str,
        points_grid: Sequence[int],
        start: Sequence[int],
        stride: int,
    ) -> None:
        self._index: tuple[Any, ...] = (..., *(slice(first, None, stride) for first in start))
        self._channels = channels
        image, self._classes = there[self._index].split(
            [channels, there.shape[1] - channels], dim=1
        )
        # what :func:`resize_displacement` does, for these voxels alone
        sizes = list(zip(points_grid, there.shape[2:], strict=True))
        self._interpolation = [
            _sampling(torch.linspace(0, points - 1, size, dtype=torch.float64)[axis], points).to(
                there.device
            )
            for (points, size), axis in zip(sizes, self._index[1:], strict=True)
        ]
        scale = [(size - 1) / (points - 1) for points, size in sizes]
        self._scale = torch.tensor(scale, device=there.device).view(3, 1, 1, 1)
        self._difference = (
            _local_correlation(image)
            if similarity == "lncc"
            else lambda warped: mean_squared_error(warped, image)
        )
        # `warp` takes voxel i to stand at i
        places = [
            first + (stride - 1) * torch.arange(size, dtype=torch.float32, device=there.device)
            for first, size in zip(start, image.shape[2:], strict=True)
        ]
        self._offset = torch.stack(torch.meshgrid(*places, indexing="ij"))

    def differences(self, here: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Image difference and Dice loss of the moving side, warped by a field of control points.

        `points` is (B, 3, z, y, x), in voxels of its own grid.
        """
        if points.shape[2:] == here.shape[2:]:
            field = points[self._index]
        else:
            field = _along_axes(self._interpolation, points) * self._scale
        warped = warp(here, field + self._offset, padding="border")
        image, classes = warped[:, : self._channels], warped[:, self._channels :]
        dice = disagreement(classes, self._classes) if classes.shape[1] else field.new_zeros(())
        return self._difference(image), dice


def _corners(grid: Sequence[int]) -> list[tuple[tuple[int, int, int], int]]:
    """First voxel and stride of each part of a grid: all of it, or an eighth of a large one."""
    if math.prod(grid) < _LARGE:
        return [((0, 0, 0), 1)]
    first = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    opposite = [(1 - z, 1 - y, 1 - x) for z, y, x in first]
    return [(corner, 2) for pair in zip(first, opposite, strict=True) for corner in pair]


_LARGE = 2**16
"""Voxels from which on a step looks at an eighth of them, by turns."""


def _local_correlation(fixed: Tensor, window: int = 5) -> Callable[[Tensor], Tensor]:
    """Negative mean squared correlation with `fixed` over windows, the border continued.

    As :func:`~napari_jrss.losses.local_normalized_cross_correlation`, but what depends on `fixed`
    alone is computed once.
    """
    means = [_box(size, window).to(fixed.device) for size in fixed.shape[2:]]
    mean = _along_axes(means, fixed)
    variance = (_along_axes(means, fixed * fixed) - mean * mean).clamp(min=_FLAT)

    def difference(warped: Tensor) -> Tensor:
        three = torch.cat([warped, warped * warped, warped * fixed], dim=1)
        first, square, product = _along_axes(means, three).split(1, dim=1)
        own = (square - first * first).clamp(min=_FLAT)
        covariance = product - first * mean
        correlation: Tensor = (covariance * covariance / (own * variance)).mean()
        return -correlation

    return difference


def _without_folds(field: Tensor) -> Tensor:
    """The field, smoothed around the last voxels that fold."""
    smooth = [_box(size, 3).to(field.device) for size in field.shape[2:]]
    for _ in range(_ROUNDS):
        folded = (jacobian_determinant(field) <= 0).float()[:, None]
        folded[..., :-1, :-1, :-1] += forward_jacobian_determinant(field)[:, None] <= 0
        if not folded.any():
            break
        around = _along_axes(smooth, F.max_pool3d(folded, 7, stride=1, padding=3).clamp(max=1))
        field = torch.lerp(field, _along_axes(smooth, field), around)
    return field


_ROUNDS = 50
"""Of smoothing, at most; a field that a level ends with needs one or two."""

# images have standard deviation 1; a window of smaller variance counts as constant
_FLAT = 0.1


def _per_axis(control: int, spacing: Sequence[float]) -> tuple[int, int, int]:
    """Voxels between control points along z, y, x, as far apart in mm as voxels allow."""
    z, y, x = (max(1, round(control * min(spacing) / size)) for size in spacing)
    return z, y, x


def _grid(shape: Sequence[int], spacing: Sequence[int]) -> list[int]:
    """Size of a grid over the same extent whose points are `spacing` voxels apart."""
    return [max(2, -(-size // step)) for size, step in zip(shape, spacing, strict=True)]


def _matrices(shape: Sequence[int], grid: Sequence[int], device: torch.device) -> list[Tensor]:
    """Per axis, what shrinks a volume: a mean over the voxels that a point stands for, sampled.

    Sampling alone would turn detail finer than the new grid into a wrong pattern on it.
    """
    matrices = []
    for size, points in zip(shape, grid, strict=True):
        sampling = _sampling(torch.linspace(0, size - 1, points, dtype=torch.float64), size)
        width = 2 * (round(size / points) // 2) + 1
        matrices.append((sampling @ _box(size, width)).to(device))
    return matrices


def _sampling(places: Tensor, size: int) -> Tensor:
    """Linear interpolation at `places` (n,) of an axis of `size` voxels, as a matrix (n, size)."""
    below = places.floor().clamp(max=size - 2).long()
    matrix = torch.zeros(len(places), size)
    rows = torch.arange(len(places))
    matrix[rows, below] = (1 - (places - below)).float()
    matrix[rows, below + 1] = (places - below).float()
    return matrix


def _box(size: int, width: int) -> Tensor:
    """The mean over `width` neighbours (odd), the border continued, as a matrix (size, size)."""
    rows = torch.arange(size)
    matrix = torch.zeros(size, size)
    for offset in range(-(width // 2), width // 2 + 1):
        matrix[rows, (rows + offset).clamp(0, size - 1)] += 1 / width
    return matrix


def _along_axes(matrices: Sequence[Tensor], volume: Tensor) -> Tensor:
    """A separable linear map of a volume (B, C, z, y, x), with a matrix for each axis.

    As matrix products this is some ten times as fast as pooling on a CPU, and on a GPU its
    gradient is the same each time.
    """
    z, y, x = matrices
    volume = y @ (volume @ x.T)
    mapped: Tensor = z @ volume.flatten(3)
    return mapped.reshape(*mapped.shape[:3], *volume.shape[3:])
