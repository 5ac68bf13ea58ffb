"""Augmentation: image and label stay together, and no strength means no change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from napari_jrss.training.augment import (
    random_affine_grid,
    random_intensity,
    sample_image,
    sample_label,
)

SHAPE = (9, 12, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(batch: int = 2) -> Tensor:
    label = torch.zeros((batch, *SHAPE), dtype=torch.int64)
    label[:, 2:7, 3:10, 2:6] = 1
    label[:, 4:6, 5:8, 3:5] = 2
    return label


def test_no_strength_is_the_identity() -> None:
    grid = random_affine_grid(2, SHAPE, 0.0, generator())
    assert grid.shape == (2, *SHAPE, 3)
    image = torch.randn((2, 3, *SHAPE), generator=generator())
    torch.testing.assert_close(sample_image(image, grid), image, rtol=0, atol=1e-5)
    assert torch.equal(sample_label(labels(), grid, outside=255), labels())
    assert torch.equal(random_intensity(image, 0.0, generator()), image)


@pytest.mark.parametrize("outside", [0, 255])
def test_image_and_label_move_together(outside: int) -> None:
    """The image is the label: wherever it is sampled, they must agree."""
    grid = random_affine_grid(2, SHAPE, 0.1, generator(3))
    label = labels()
    image = torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    moved = sample_label(label, grid, outside)
    inside = (grid.abs() <= 1).all(-1)
    shares = sample_image(image, grid).gather(1, moved.clamp(max=2)[:, None])[:, 0]
    # The nearest voxel holds at least an eighth of a trilinear sample.
    assert (shares[inside] >= 0.125 - 1e-5).all()
    assert not torch.equal(moved, label)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_beyond_the_border_a_label_is_the_outside_value(dtype: torch.dtype) -> None:
    label = labels().to(dtype)
    shifted = random_affine_grid(2, SHAPE, 0.0, generator())
    shifted[..., 0] += 0.5  # x, half the half extent: 1.75 voxels
    moved = sample_label(label, shifted, outside=255)
    assert moved.dtype == dtype
    assert (moved[..., -1] == 255).all()
    assert torch.equal(moved[..., :6], label[..., 2:])


def test_an_image_continues_its_border() -> None:
    image = torch.randn((1, 1, *SHAPE), generator=generator())
    grid = random_affine_grid(1, SHAPE, 0.0, generator())
    grid[..., 2] += 4  # z, far beyond the last slice
    moved = sample_image(image, grid)
    torch.testing.assert_close(moved, image[:, :, -1:].expand_as(image), rtol=0, atol=1e-5)


def test_each_image_is_moved_in_its_own_way_that_the_generator_decides() -> None:
    first, again, other = (random_affine_grid(2, SHAPE, 0.1, generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_the_strength_is_the_noise_of_the_matrix() -> None:
    grid = random_affine_grid(400, (2, 2, 2), 0.075, generator())
    corners = grid.reshape(400, 8, 3)
    translation = corners.mean(1)
    assert translation.std() == pytest.approx(0.075, rel=0.1)
    along_x = (corners[:, 1, 0] - corners[:, 0, 0]) / 2
    assert along_x.mean() == pytest.approx(1, abs=0.02)
    assert along_x.std() == pytest.approx(0.075, rel=0.15)


def test_intensity_is_one_factor_and_one_offset_per_image() -> None:
    image = torch.randn((3, 1, *SHAPE), generator=generator())
    changed = random_intensity(image, 0.2, generator(1))
    for before, after in zip(image, changed, strict=True):
        factor = after.std() / before.std()
        offset = after.mean() - factor * before.mean()
        torch.testing.assert_close(after, factor * before + offset, rtol=1e-4, atol=1e-5)
        assert factor != 1
    assert torch.equal(changed, random_intensity(image, 0.2, generator(1)))
