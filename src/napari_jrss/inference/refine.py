"""Refinement: a field of the registration network, improved on its pair alone.

It minimises the terms of the paper's registration loss (Eq. 10) over the control points of one
field instead of a network's weights, starting from the network's field. Structures are matched
by the teacher's probabilities in both images; no label by a person is read. This step is not in
the paper: gradient descent on a coarse, smoothed grid after a first guess is the recipe of
ConvexAdam (Siebert et al.), which matches other features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_jrss.config import RefinementConfig
from napari_jrss.inference.predict import segmentation_logits
from napari_jrss.losses import diffusion_regulariser, folding, image_difference
from napari_jrss.networks.spatial import jacobian_determinant, resize_displacement, warp

Watch = Callable[[float], bool]
"""Called before each step with the share of the work that is done; returns whether to go on."""


def to_the_end(done: float) -> bool:
    """A :data:`Watch` that never stops the work."""
    return True


class RefinedRegistration(nn.Module):
    """A registration network that refines each field, in evaluation mode and without training.

    Parameters
    ----------
    registration
        Moving and fixed image -> displacement field, as
        :class:`napari_jrss.networks.build.RegistrationNetwork`.
    teacher
        Segmentation network, (B, 1, z, y, x) -> logits (B, C, z, y, x).
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
        """Images (B, 1, z, y, x) -> displacement (B, 3, z, y, x), voxels, float32."""
        with torch.no_grad():
            displacement = self.registration(moving, fixed).float()
        here, there = (moving, self._probabilities(moving)), (fixed, self._probabilities(fixed))
        return refine(displacement, here, there, self.config, self.watch)

    def _probabilities(self, images: Tensor) -> Tensor:
        """The teacher's class probabilities, (B, C, z, y, x)."""
        each = [
            segmentation_logits(self.teacher, image[0].cpu().numpy(), image.device)
            for image in images
        ]
        return torch.stack(each).to(images.device).softmax(1)


def refine(
    displacement: Tensor,
    moving: tuple[Tensor, Tensor],
    fixed: tuple[Tensor, Tensor],
    config: RefinementConfig,
    watch: Watch = to_the_end,
) -> Tensor:
    """Improve fields by gradient descent on control points, at the control points' resolution.

    Parameters
    ----------
    displacement
        (B, 3, z, y, x) in voxels, where to start.
    moving, fixed
        Image (B, 1, z, y, x) and class probabilities (B, C, z, y, x) of each side.
    config
        Steps and weights.
    watch
        Called before each step. Where it stops the work, the fields are returned as they are.

    Returns
    -------
    Tensor
        (B, 3, z, y, x), float32, without gradient.
    """
    shape = displacement.shape[2:]
    grid = [max(2, -(-size // config.control_spacing)) for size in shape]
    here, there = (_shrink(torch.cat(side, dim=1), grid) for side in (moving, fixed))
    # whoever asks for a field has switched gradients off, and perhaps autocast on
    with torch.enable_grad(), torch.autocast(displacement.device.type, enabled=False):
        points = resize_displacement(displacement.float(), grid).detach().requires_grad_()
        adam = torch.optim.Adam([points], config.learning_rate)
        for step in range(config.steps):
            if not watch(step / config.steps):
                break
            adam.param_groups[0]["lr"] = config.learning_rate * (1 - step / config.steps)
            field = _smooth(points)
            warped = warp(here, field, padding="border")
            similarity = image_difference(warped[:, :1], there[:, :1], config.similarity)
            dice = disagreement(warped[:, 1:], there[:, 1:])
            total = (
                similarity
                + config.lambda_d * dice
                + config.lambda_r * diffusion_regulariser(field)
                + config.lambda_j * folding(jacobian_determinant(field))
            )
            adam.zero_grad()
            (total * len(points)).backward()  # each pair as if alone
            adam.step()
    return resize_displacement(_smooth(points.detach()), shape)


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


def _smooth(volume: Tensor) -> Tensor:
    """Mean over 3x3x3 voxels, the border continued."""
    return F.avg_pool3d(F.pad(volume, (1,) * 6, mode="replicate"), 3, stride=1)


def _shrink(volume: Tensor, grid: list[int]) -> Tensor:
    """On a coarser grid over the same extent, (B, C, *grid), float32."""
    return F.interpolate(volume.float(), size=tuple(grid), mode="trilinear", align_corners=True)
