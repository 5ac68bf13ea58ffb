"""The network of PDD-Net (Heinrich 2019): probabilities over a dense set of displacements.

Features of an obelisk layer are compared at every displacement of a 15x15x15 grid; two passes of
min-convolution over the displacements and mean-field averaging over space regularise the costs;
their softmax gives an expected displacement. Positions are in half extents of the image, from -1
to 1, with components x, y, z as ``grid_sample`` wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from napari_jrss.networks.blocks import initialise
from napari_jrss.networks.spatial import resize_displacement

WIDTH, RANGE = 15, 0.4
"""Displacements per axis, and the largest in half extents of the image."""


class PddNet(nn.Module):
    """Moving and fixed image -> displacement field in voxels; 120,780 parameters and 6 scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv3d(1, 4, 5, stride=2, padding=2, bias=False), nn.BatchNorm3d(4), nn.ReLU()
        )
        self.offsets = nn.Parameter(0.05 * torch.randn(2, 32, 3))
        self.second = nn.Sequential(
            nn.Conv3d(128, 64, 1, bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(),
            nn.Conv3d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(),
            nn.Conv3d(64, 16, 1),
        )
        self.scalars = nn.Parameter(torch.tensor([1.0, 0.1, 1.0, 1.0, 0.1, 1.0]))
        initialise(self)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(B, 1, z, y, x) each -> (B, 3, z, y, x)."""
        return self.field(self.probabilities(moving, fixed), moving.shape[2:])

    def field(self, probabilities: Tensor, shape: Sequence[int]) -> Tensor:
        """Expected displacement in voxels on the images' grid."""
        expected = torch.einsum("bzyxd,dc->bczyx", probabilities, displacements(probabilities))
        control = probabilities.shape[1:4]
        # from half extents in x, y, z to voxels of the control grid in z, y, x
        scale = [(size - 1) / 2 for size in control]
        voxels = expected.flip(1) * expected.new_tensor(scale).view(3, 1, 1, 1)
        return resize_displacement(voxels, shape)

    def probabilities(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(B, cz, cy, cx, WIDTH**3) on the control grid."""
        shape = control_shape(moving.shape[2:])
        return self.matched(self.features(moving), self.features(fixed), shape)

    def matched(self, moving: Tensor, fixed: Tensor, shape: Sequence[int]) -> Tensor:
        """The same from features, on a control grid of any shape."""
        here = positions(shape, moving).unsqueeze(-2)
        wanted = sample_at(fixed, here)
        there = here + displacements(moving)
        # Plane by plane, computed again in the backward pass: all at once takes gigabytes.
        planes = [
            checkpoint(_squared_difference, moving, there[z : z + 1], wanted[:, :, z : z + 1])
            for z in range(shape[0])
        ]
        a = self.scalars
        cost = a[1] + a[0] * torch.cat(planes, dim=1)
        smooth = _mean_field(_min_convolution(cost))
        smooth = _mean_field(_min_convolution(a[4] + a[2] * cost + a[3] * smooth))
        return (-a[5] * smooth).softmax(-1)

    def features(self, image: Tensor) -> Tensor:
        """(B, 16, z/3, y/3, x/3)."""
        low = self.first(F.avg_pool3d(image, 3, stride=2, padding=1))
        grid = positions([size // 3 for size in image.shape[2:]], image).unsqueeze(-2)
        first, second = (
            sample_at(low, grid + offsets, padding="zeros") for offsets in self.offsets
        )
        sampled = (first - second).movedim(-1, 2).flatten(1, 2)
        result: Tensor = self.second(sampled)
        return result


def _squared_difference(features: Tensor, there: Tensor, wanted: Tensor) -> Tensor:
    """Sum over the channels, (B, z, y, x, n)."""
    return (sample_at(features, there) - wanted).square().sum(1)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """What the function gives, without keeping what lies between."""
    result: Tensor = torch_checkpoint(function, *inputs, use_reentrant=False)
    return result


def control_shape(shape: Sequence[int]) -> list[int]:
    """A control point per 5 voxels, at most the original's 32 along an axis."""
    return [min(32, -(-size // 5)) for size in shape]


def positions(shape: Sequence[int], like: Tensor) -> Tensor:
    """Positions (z, y, x, 3) from -1 to 1, components x, y, z as grid_sample wants them."""
    axes = [torch.linspace(-1, 1, size, device=like.device) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)


def displacements(like: Tensor) -> Tensor:
    """All displacements (WIDTH**3, 3), components x, y, z, in half extents."""
    return RANGE * positions((WIDTH, WIDTH, WIDTH), like).reshape(-1, 3)


def sample_at(volume: Tensor, positions: Tensor, padding: str = "border") -> Tensor:
    """(B, C, ...) at positions (z, y, x, n, 3) -> (B, C, z, y, x, n)."""
    shape = positions.shape[:4]
    grid = positions.reshape(1, shape[0], shape[1], -1, 3).expand(len(volume), -1, -1, -1, -1)
    sampled: Tensor = F.grid_sample(volume, grid, "bilinear", padding, align_corners=True)
    return sampled.reshape(*sampled.shape[:4], *shape[2:])


def _min_convolution(cost: Tensor) -> Tensor:
    """Lower envelope over neighbouring displacements, approximated by pooling."""
    volume = _continued(cost.reshape(-1, 1, WIDTH, WIDTH, WIDTH), 3)
    return _twice_averaged(-F.max_pool3d(-volume, 3, 1)).reshape(cost.shape)


def _mean_field(cost: Tensor) -> Tensor:
    """Mean over neighbouring control points."""
    return _twice_averaged(_continued(cost.movedim(-1, 1), 2)).movedim(1, -1)


def _continued(volume: Tensor, width: int) -> Tensor:
    """With its border values around it."""
    return F.pad(volume, (width,) * 6, mode="replicate")


def _twice_averaged(volume: Tensor) -> Tensor:
    """4 voxels less along each axis."""
    return F.avg_pool3d(F.avg_pool3d(volume, 3, 1), 3, 1)
