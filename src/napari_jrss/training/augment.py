"""Random changes of training images and, in the same way, of their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from napari_jrss.config import Shape


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
    matrix = random_affine(batch, std, generator).to(device)
    return functional.affine_grid(matrix, [batch, 1, *shape], align_corners=True)


def random_affine(batch: int, std: float, generator: torch.Generator) -> Tensor:
    """Identity plus N(0, std²) on all entries, for normalised coordinates: (batch, 3, 4)."""
    return torch.eye(3, 4) + torch.randn((batch, 3, 4), generator=generator) * std


def crop_grid(
    shape: Shape, starts: Sequence[Shape], crop: Shape, matrices: Tensor, device: torch.device
) -> Tensor:
    """Sampling grid of crops of a volume, deformed by affine matrices.

    Parameters
    ----------
    shape
        Of the volume, (z, y, x).
    starts
        First voxel (z, y, x) of each crop.
    crop
        Shape of the crops, (z, y, x).
    matrices
        (batch, 3, 4), in normalised coordinates of the whole volume.
    device
        Where the grid is made.

    Returns
    -------
    Tensor
        (batch, *crop, 3), as :func:`random_affine_grid` gives for the whole volume.
    """
    grids = []
    for start, matrix in zip(starts, matrices.to(device), strict=True):
        z, y, x = (
            (torch.arange(n, device=device) + first) * (2 / max(1, size - 1)) - 1
            for size, first, n in zip(shape, start, crop, strict=True)
        )
        points = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1)
        grids.append(points @ matrix[:, :3].T + matrix[:, 3])
    return torch.stack(grids)


def follow_field(grid: Tensor, displacement: Tensor) -> Tensor:
    """Compose a sampling grid with displacement fields, so that images are sampled once.

    Parameters
    ----------
    grid
        (B, z, y, x, 3), of points on the grid of the fields.
    displacement
        (B, 3, Z, Y, X), voxels; where a point is taken from.
    """
    shift = functional.grid_sample(displacement, grid, padding_mode="border", align_corners=True)
    sizes = torch.tensor(displacement.shape[2:], device=grid.device)
    scale = 2 / (sizes - 1).clamp(min=1)
    return grid + (shift * scale.view(1, 3, 1, 1, 1)).flip(1).movedim(1, -1)


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
    """Multiply each channel of images (B, C, z, y, x) by 1 + N(0, std²) and add N(0, std²)."""
    drawn = std * torch.randn((2, *image.shape[:2], 1, 1, 1), generator=generator)
    factor, offset = drawn.to(image.device)
    changed: Tensor = image * (1 + factor) + offset
    return changed


def strong_intensity(image: Tensor, generator: torch.Generator) -> Tensor:
    """Change how images (B, C, z, y, x) look, strongly, but not where anything is.

    Each channel is changed by itself. Each of seven changes is made with a chance of 25 to 50 %: a
    bias field, a gamma curve (in a third of the cases of the inverted image), contrast, brightness,
    noise, blur, and a coarser resolution, as in nnU-Net (Isensee et al. 2021).
    """
    changed = [_strongly(each[None, None], generator)[0, 0] for each in image.flatten(0, 1)]
    return torch.stack(changed).reshape(image.shape)


def _strongly(image: Tensor, generator: torch.Generator) -> Tensor:
    for chance, change in _CHANGES:
        if float(torch.rand(1, generator=generator)) < chance:
            image = change(image, generator)
    return image


def _normal(generator: torch.Generator) -> float:
    return float(torch.randn(1, generator=generator))


def _bias(image: Tensor, generator: torch.Generator) -> Tensor:
    coarse = (0.3 * torch.randn((1, 1, 3, 3, 3), generator=generator)).exp().to(image.device)
    size = image.shape[2:]
    field = functional.interpolate(coarse, size=size, mode="trilinear", align_corners=True)
    return image * field


def _gamma(image: Tensor, generator: torch.Generator) -> Tensor:
    exponent = torch.exp(0.35 * torch.randn(1, generator=generator)).item()
    inverted = float(torch.rand(1, generator=generator)) < 1 / 3
    low, high = image.min(), image.max()
    share = ((image - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    share = 1 - (1 - share) ** exponent if inverted else share**exponent
    return low + share * (high - low)


def _contrast(image: Tensor, generator: torch.Generator) -> Tensor:
    mean = image.mean()
    return mean + (image - mean) * torch.exp(torch.tensor(0.25 * _normal(generator))).item()


def _brightness(image: Tensor, generator: torch.Generator) -> Tensor:
    return image + 0.3 * _normal(generator)


def _noise(image: Tensor, generator: torch.Generator) -> Tensor:
    std = 0.2 * float(torch.rand(1, generator=generator))
    return image + std * torch.randn(image.shape, generator=generator).to(image.device)


def _blur(image: Tensor, generator: torch.Generator) -> Tensor:
    sigma = 0.5 + float(torch.rand(1, generator=generator))
    kernel = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2)).to(image.device)
    kernel = kernel / kernel.sum()
    for axis in (2, 3, 4):
        size = [1, 1, 1, 1, 1]
        size[axis] = 7
        pad = [3 if a == axis else 0 for a in (4, 3, 2) for _ in range(2)]
        image = functional.conv3d(functional.pad(image, pad, "replicate"), kernel.view(size))
    return image


def _low_resolution(image: Tensor, generator: torch.Generator) -> Tensor:
    factor = 0.5 + 0.5 * float(torch.rand(1, generator=generator))
    size = image.shape[2:]
    coarse = functional.interpolate(image, size=[max(2, round(n * factor)) for n in size])
    return functional.interpolate(coarse, size=size, mode="trilinear", align_corners=False)


_CHANGES: tuple[tuple[float, Callable[[Tensor, torch.Generator], Tensor]], ...] = (
    (0.5, _bias),
    (0.5, _gamma),
    (0.5, _contrast),
    (0.5, _brightness),
    (0.25, _noise),
    (0.25, _blur),
    (0.25, _low_resolution),
)
