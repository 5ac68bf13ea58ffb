"""Spatial transforms in voxel units: warp, compose, integrate, Jacobian.

Displacement fields are (B, 3, z, y, x) in voxels, components ordered z, y, x, and map the fixed
grid to the moving image: ``warped(p) = moving(p + u(p))``. The order and scale of
``grid_sample`` (x, y, z from -1 to 1) are used only in this module. Coordinates are float32 even
under autocast: with the 8 bits of bfloat16, voxel 159 would become 160.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["linear", "nearest"]
Padding = Literal["zeros", "border"]


def warp(
    volume: Tensor,
    displacement: Tensor,
    mode: Interpolation = "linear",
    padding: Padding = "zeros",
) -> Tensor:
    """Warp a volume by a displacement field: ``warped(p) = volume(p + u(p))``.

    Parameters
    ----------
    volume
        (B, C, z, y, x), floating point; its grid may differ in shape from the field's.
    displacement
        (B, 3, z, y, x) in voxels of ``volume``.
    mode
        ``linear``, or ``nearest`` for evaluation (no gradient reaches the field).
    padding
        Value outside the volume: 0, or that of the nearest border voxel.

    Returns
    -------
    Tensor
        (B, C) on the field's grid, float32 (float64 for a float64 volume).
    """
    with torch.autocast(displacement.device.type, enabled=False):
        dtype = torch.promote_types(volume.dtype, torch.float32)
        grid = sampling_grid(displacement.to(dtype), volume.shape[2:])
        return sample(
            volume.to(dtype), grid, "bilinear" if mode == "linear" else "nearest", padding
        )


def sample(volume: Tensor, grid: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """``grid_sample`` with ``align_corners``, on all threads of a CPU.

    Torch uses a thread for each image of the batch; here a grid (B, z, y, x, 3) is cut along z
    into parts, which form a larger batch. The values are the same.
    """
    parts = max(count for count in range(1, 17) if grid.shape[1] % count == 0)
    # with a gradient, each part would need the memory of a whole volume
    if volume.device.type != "cpu" or volume.requires_grad or parts == 1:
        return F.grid_sample(volume, grid, mode, padding, align_corners=True)
    batch, channels = volume.shape[:2]
    sampled = [
        F.grid_sample(
            volume[i].expand(parts, -1, -1, -1, -1),
            grid[i].unflatten(0, (parts, -1)),
            mode,
            padding,
            align_corners=True,
        )
        for i in range(batch)
    ]
    together = torch.stack(sampled) if batch > 1 else sampled[0].unsqueeze(0)
    return together.transpose(1, 2).reshape(batch, channels, *grid.shape[1:4])


def sampling_grid(displacement: Tensor, volume_shape: Sequence[int]) -> Tensor:
    """The grid (B, z, y, x, 3) for ``grid_sample`` of a displacement field (B, 3, z, y, x)."""
    coordinates = []
    for axis in (2, 1, 0):
        size = displacement.shape[2 + axis]
        extent = max(volume_shape[axis] - 1, 1)
        steps = torch.arange(size, dtype=displacement.dtype, device=displacement.device)
        steps = steps.view([-1 if a == axis else 1 for a in range(3)])
        coordinates.append((displacement[:, axis] + steps) * (2 / extent) - 1)
    return torch.stack(coordinates, dim=-1)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The field that warps as ``first`` and then ``second`` do; all are (B, 3, z, y, x).

    ``warp(warp(volume, first), second) == warp(volume, compose(first, second))`` up to
    interpolation: ``u(p) = second(p) + first(p + second(p))``. Outside the grid, ``first`` has
    its border values.
    """
    return second + warp(first, second, padding="border")


def integrate_velocity(velocity: Tensor, steps: int) -> Tensor:
    """Displacement exp(v) of a stationary velocity field, by scaling and squaring.

    ``velocity`` is (B, 3, z, y, x) in voxels per unit time; ``steps`` squarings correspond to
    ``2**steps`` Euler steps (Arsigny et al. 2006). ``-velocity`` gives the inverse.
    """
    displacement = velocity.float() * 0.5**steps
    for _ in range(steps):
        displacement = compose(displacement, displacement)
    return displacement


def resize_displacement(displacement: Tensor, shape: Sequence[int]) -> Tensor:
    """The same field on another grid of the same extent, in voxels of that grid.

    (B, 3, z, y, x) -> (B, 3, *shape), trilinear, corner voxels kept (align_corners).
    """
    resized: Tensor = F.interpolate(
        displacement, size=tuple(shape), mode="trilinear", align_corners=True
    )
    scale = [
        (new - 1) / max(old - 1, 1) for new, old in zip(shape, displacement.shape[2:], strict=True)
    ]
    return resized * torch.tensor(scale, device=resized.device).view(3, 1, 1, 1)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """det(I + grad u) by central differences (one-sided at the border).

    Parameters
    ----------
    displacement
        (B, 3, z, y, x) in voxels, at least 2 voxels along each axis.

    Returns
    -------
    Tensor
        (B, z, y, x); 1 where the transform is a translation, at most 0 where it folds.
    """
    with torch.autocast(displacement.device.type, enabled=False):
        z, y, x = torch.gradient(displacement.float(), dim=(2, 3, 4))
        return _determinant(z, y, x)


def forward_jacobian_determinant(displacement: Tensor) -> Tensor:
    """det(I + grad u) by forward differences, which also show folds that alternate.

    Parameters
    ----------
    displacement
        (B, 3, z, y, x) in voxels, at least 2 voxels along each axis.

    Returns
    -------
    Tensor
        (B, z - 1, y - 1, x - 1).
    """
    with torch.autocast(displacement.device.type, enabled=False):
        field = displacement.float()
        corner = field[:, :, :-1, :-1, :-1]
        return _determinant(
            field[:, :, 1:, :-1, :-1] - corner,
            field[:, :, :-1, 1:, :-1] - corner,
            field[:, :, :-1, :-1, 1:] - corner,
        )


def _determinant(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """det(I + grad u) of the derivatives (B, 3, ...) along each axis."""
    zz, yz, xz = 1 + z[:, 0], z[:, 1], z[:, 2]
    zy, yy, xy = y[:, 0], 1 + y[:, 1], y[:, 2]
    zx, yx, xx = x[:, 0], x[:, 1], 1 + x[:, 2]
    return zz * (yy * xx - yx * xy) - zy * (yz * xx - yx * xz) + zx * (yz * xy - yy * xz)
