"""Random changes of training images and, in the same way, of their labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def random_affine_grid(
    batch: int,
    shape: tuple[int, int, int],
    std: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sampling grid of a random affine deformation for each image of a batch.

    The identity plus N(0, std²) on all 12 entries, in normalised coordinates (OBELISK's
    augmentation, Heinrich et al. 2019). `generator` draws on the CPU, the same for any `device`.

    Returns
    -------
    Tensor
        (batch, z, y, x, 3) on `device`, for ``grid_sample`` with ``align_corners=True``.
    """
    noise = torch.randn((batch, 3, 4), generator=generator) * std
    matrix = (torch.eye(3, 4) + noise).to(device)
    return functional.affine_grid(matrix, [batch, 1, *shape], align_corners=True)


def sample_image(image: Tensor, grid: Tensor) -> Tensor:
    """Resample images (B, C, z, y, x) linearly; the border's value outside."""
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=True)


def sample_label(label: Tensor, grid: Tensor, outside: int) -> Tensor:
    """Resample labels (B, z, y, x) by nearest neighbour; `outside` beyond the border."""
    shifted = (label - outside).unsqueeze(1).float()
    sampled = functional.grid_sample(
        shifted, grid, mode="nearest", padding_mode="zeros", align_corners=True
    )
    return (sampled.squeeze(1) + outside).round().to(label.dtype)


def random_intensity(image: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Multiply each image (B, C, z, y, x) by 1 + N(0, std²) and add N(0, std²)."""
    drawn = std * torch.randn((2, image.shape[0], 1, 1, 1, 1), generator=generator)
    factor, offset = drawn.to(image.device)
    changed: Tensor = image * (1 + factor) + offset
    return changed
