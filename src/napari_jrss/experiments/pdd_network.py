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
        wanted = sample_at(fixed, positions(shape, moving).unsqueeze(-2))[..., 0]
        planes, depth = displaced_planes(moving, shape)
        # Plane by plane, computed again in the backward pass: all at once takes gigabytes.
        costs = [
            checkpoint(_squared_difference, planes, depth[z], wanted[:, :, z])
            for z in range(shape[0])
        ]
        a = self.scalars
        cost = a[1] + a[0] * torch.stack(costs, dim=1)
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


def _squared_difference(planes: Tensor, depth: Tensor, wanted: Tensor) -> Tensor:
    """Sum over the channels for one plane of control points, (B, y, x, WIDTH**3)."""
    there = at_depth(planes, depth)  # (B, C, dz, y, dy, x, dx)
    cost = (there - wanted[:, :, None, :, None, :, None]).square().sum(1)
    return cost.permute(0, 2, 4, 1, 3, 5).flatten(3)


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


def displaced_planes(volume: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(B, C, ...) at every displacement of every control point, as far as y and x go.

    Control points and displacements are both grids, so that linear interpolation is a product with
    one small matrix for each axis; ``grid_sample`` would take 8 corners for each of the ``z * y * x
    * WIDTH**3`` positions.

    Returns the planes (B, C, volume's z, y * WIDTH, x * WIDTH), and what :func:`at_depth` needs for
    each plane of control points: (z, WIDTH, volume's z).
    """
    depth, rows, columns = (
        _linear_weights(points, size, volume)
        for points, size in zip(shape, volume.shape[2:], strict=True)
    )
    planes: Tensor = rows.flatten(0, 1) @ (volume @ columns.flatten(0, 1).T)
    return planes, depth


def at_depth(planes: Tensor, depth: Tensor) -> Tensor:
    """One plane of control points, all displacements: (B, C, dz, y, dy, x, dx)."""
    rows, columns = planes.shape[3] // WIDTH, planes.shape[4] // WIDTH
    sampled: Tensor = (depth @ planes.flatten(3)).unflatten(3, (rows, WIDTH, columns, WIDTH))
    return sampled


def _linear_weights(points: int, size: int, like: Tensor) -> Tensor:
    """Of `size` voxels for each displacement of each control point, (points, WIDTH, size)."""
    here = torch.linspace(-1, 1, points, device=like.device, dtype=like.dtype)
    steps = torch.linspace(-RANGE, RANGE, WIDTH, device=like.device, dtype=like.dtype)
    there = (here[:, None] + steps).clamp(-1, 1)  # beyond the border as at it
    voxel = (there + 1) / 2 * (size - 1)
    centres = torch.arange(size, device=like.device, dtype=like.dtype)
    weights: Tensor = (1 - (voxel[..., None] - centres).abs()).clamp(min=0)
    return weights


def _min_convolution(cost: Tensor) -> Tensor:
    """Lower envelope over neighbouring displacements, approximated by pooling."""
    volume = F.pad(cost.reshape(-1, 1, WIDTH, WIDTH, WIDTH), (3,) * 6, mode="replicate")
    least = -F.max_pool3d(-volume, 3, 1)
    average = _averaging(torch.eye(WIDTH + 4, device=cost.device, dtype=cost.dtype))
    return _along_each_axis(least, [average] * 3).reshape(cost.shape)


def _mean_field(cost: Tensor) -> Tensor:
    """Mean over neighbouring control points; (B, z, y, x, n)."""
    averages = []
    for size in cost.shape[1:4]:
        points = torch.eye(size, device=cost.device, dtype=cost.dtype)
        averages.append(_averaging(F.pad(points[None], (2, 2), mode="replicate")[0]))
    return _along_each_axis(cost.movedim(-1, 1), averages).movedim(1, -1)


def _averaging(points: Tensor) -> Tensor:
    """Mean of three, twice, of each row of (size, n), as a matrix (n - 4, size) to multiply by."""
    averaged: Tensor = F.avg_pool1d(F.avg_pool1d(points[None], 3, 1), 3, 1)
    return averaged[0].T


def _along_each_axis(volume: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """(B, C, z, y, x) multiplied by a matrix along z, y and x."""
    depth, rows, columns = matrices
    flat = rows @ (volume @ columns.T)
    result: Tensor = (depth @ flat.flatten(3)).unflatten(3, flat.shape[3:])
    return result
