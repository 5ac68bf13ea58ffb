"""Augmentation: image and label stay together, and no strength means no change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from napari_jrss.networks.spatial import warp
from napari_jrss.training.augment import (
    crop_grid,
    follow_field,
    random_affine,
    random_affine_grid,
    random_intensity,
    sample_image,
    sample_label,
    strong_intensity,
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


def test_a_crop_of_the_whole_volume_is_the_affine_grid() -> None:
    matrices = random_affine(2, 0.1, generator())
    grid = crop_grid(SHAPE, [(0, 0, 0)] * 2, SHAPE, matrices, torch.device("cpu"))
    torch.testing.assert_close(grid, random_affine_grid(2, SHAPE, 0.1, generator()))


def test_a_crop_that_is_not_deformed_is_cut_out() -> None:
    image = torch.randn((2, 1, *SHAPE), generator=generator())
    starts, crop = [(0, 0, 0), (3, 2, 1)], (4, 8, 5)
    matrices = random_affine(2, 0.0, generator())
    cut = sample_image(image, crop_grid(SHAPE, starts, crop, matrices, torch.device("cpu")))
    for each, whole, (z, y, x) in zip(cut, image, starts, strict=True):
        expected = whole[:, z : z + 4, y : y + 8, x : x + 5]
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-5)


def test_a_crop_along_a_field_is_the_crop_of_the_warped_image() -> None:
    image = torch.randn((1, 1, *SHAPE), generator=generator())
    field = 0.7 * torch.randn((1, 3, *SHAPE), generator=generator())
    matrix = random_affine(1, 0.0, generator())
    grid = crop_grid(SHAPE, [(3, 2, 1)], (4, 8, 5), matrix, torch.device("cpu"))
    moved = sample_image(image, follow_field(grid, field))
    expected = warp(image, field, padding="border")[:, :, 3:7, 2:10, 1:6]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_a_strong_change_of_intensity_is_decided_by_the_generator(seed: int) -> None:
    image = torch.randn((3, 1, *SHAPE), generator=generator())
    changed = strong_intensity(image, generator(seed))
    assert changed.shape == image.shape
    assert bool(changed.isfinite().all())
    assert torch.equal(changed, strong_intensity(image, generator(seed)))
    assert not torch.equal(changed, image)
    assert not torch.equal(changed, strong_intensity(image, generator(seed + 100)))


def test_a_strong_change_moves_nothing() -> None:
    """A bright block stays where it is: its outline is the steepest place of a smooth change."""
    image = torch.zeros((1, 1, 16, 16, 16))
    image[..., 4:12, 4:12, 4:12] = 2
    inside = image[0, 0] > 0
    for seed in range(12):
        changed = strong_intensity(image, generator(seed))[0, 0]
        inner, outer = changed[inside].mean(), changed[~inside].mean()
        assert abs(float(inner - outer)) > 0.3


def test_each_image_of_a_case_changes_by_itself() -> None:
    same = torch.randn((1, 1, *SHAPE), generator=generator()).expand(1, 2, *SHAPE)
    for changed in (
        random_intensity(same, 0.3, generator(1)),
        strong_intensity(same, generator(1)),
    ):
        assert changed.shape == same.shape
        assert not torch.equal(changed[:, 0], changed[:, 1])
    # One image is changed as the first of several.
    alone = strong_intensity(same[:, :1], generator(1))
    torch.testing.assert_close(alone, strong_intensity(same, generator(1))[:, :1])
