"""Refining a pair's field: what it gains, what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_jrss._tests.training.phantoms import NAMES, SHAPE, phantom
from napari_jrss.config import NetworkConfig, RefinementConfig
from napari_jrss.inference.predict import displacement_field, warp_array
from napari_jrss.inference.refine import (
    IMAGES_ALONE,
    IMAGES_QUICKLY,
    RefinedRegistration,
    disagreement,
    refine,
    register_images,
)
from napari_jrss.losses import folding, one_hot, soft_dice_loss
from napari_jrss.metrics import dice_per_class, jacobian_statistics
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.networks.spatial import jacobian_determinant
from napari_jrss.sample_data import make_case
from napari_jrss.snapshot import Label

C = len(NAMES)
CPU = torch.device("cpu")


def short(steps: int, **changes: object) -> RefinementConfig:
    """One level of a few steps."""
    return RefinementConfig(control_spacings=(2,), steps=(steps,)).model_copy(update=changes)


pytestmark = pytest.mark.usefixtures("one_thread")


def side(case: str) -> tuple[Tensor, Tensor]:
    """A phantom's image, and its label as the surest of teachers would see it."""
    image, label = phantom(case)
    labels = torch.from_numpy(label.astype(np.int64))[None]
    return torch.from_numpy(image)[None, None], one_hot(labels, C)


class Knows(nn.Module):
    """A teacher that is right about two phantoms, and tells them apart by their first voxel."""

    def __init__(self, *cases: str) -> None:
        super().__init__()
        self.sides = [side(case) for case in cases]
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        found = [p for image, p in self.sides if torch.equal(image, images)]
        return found[0] * 20 + self.weight


def fold(shape: tuple[int, int, int]) -> Tensor:
    """A field that turns the middle of the x axis over."""
    field = torch.zeros(1, 3, *shape)
    field[0, 2, :, :, shape[2] // 2 :] = -4.0
    return field


def test_a_field_of_zeros_comes_to_align_what_the_teacher_sees() -> None:
    moving, fixed = phantom("a")[1], phantom("v")[1]
    field = refine(torch.zeros(1, 3, *SHAPE), side("a"), side("v"), RefinementConfig())
    before = np.nanmean(dice_per_class(moving, fixed, C))
    after = np.nanmean(dice_per_class(warp_array(moving, field[0].numpy(), True), fixed, C))
    assert after > before + 0.1
    regularity = jacobian_statistics(field[0].numpy())
    assert regularity.folded_percent == regularity.folded_percent_forward == 0


def test_it_improves_the_image_too() -> None:
    image, target = phantom("a")[0], phantom("v")[0]
    field = refine(torch.zeros(1, 3, *SHAPE), side("a"), side("v"), RefinementConfig(lambda_d=0))
    warped = warp_array(image, field[0].numpy())
    assert np.mean((warped - target) ** 2) < 0.9 * np.mean((image - target) ** 2)


def test_a_pair_of_the_same_scan_stays_where_it_is() -> None:
    """Noise holds a field in small wrinkles, but no structure moves."""
    label = phantom("a")[1]
    field = refine(torch.zeros(1, 3, *SHAPE), side("a"), side("a"), RefinementConfig())
    assert field.abs().mean() < 0.1
    np.testing.assert_array_equal(warp_array(label, field[0].numpy(), nearest=True), label)


def test_disagreement_is_least_where_two_soft_segmentations_are_the_same() -> None:
    soft = torch.rand(2, C, *SHAPE).softmax(1)
    assert disagreement(soft, soft) == 0
    assert disagreement(soft, soft.round()) > 0
    hard = one_hot(torch.randint(0, C, (1, *SHAPE)), C)
    other = one_hot(torch.randint(0, C, (1, *SHAPE)), C)
    torch.testing.assert_close(disagreement(hard, other), soft_dice_loss(hard, other))


def test_a_structure_that_is_in_neither_scan_has_no_say() -> None:
    """Its probabilities differ wildly, and mean nothing."""
    config = short(5)
    (image, first), (target, second) = side("a"), side("v")
    noise = [torch.rand(1, 1, *SHAPE) * 1e-8 for _ in range(2)]
    start = torch.zeros(1, 3, *SHAPE)
    plain = refine(start, (image, first), (target, second), config)
    more = [torch.cat(each, dim=1) for each in zip((first, second), noise, strict=True)]
    # as one more class it thins the mean of the others
    config = config.model_copy(update={"lambda_d": config.lambda_d * (C + 1) / C})
    field = refine(start, (image, more[0]), (target, more[1]), config)
    torch.testing.assert_close(field, plain, atol=1e-2, rtol=0)


def test_folds_are_penalised_and_taken_out() -> None:
    field = fold(SHAPE)
    assert folding(jacobian_determinant(torch.zeros(1, 3, *SHAPE))) == 0
    assert folding(jacobian_determinant(field)) > 0
    before = jacobian_statistics(field[0].numpy()).folded_percent
    refined = refine(field, side("a"), side("a"), RefinementConfig(lambda_r=0, lambda_d=0))
    assert before > 3
    after = jacobian_statistics(refined[0].numpy())
    assert after.folded_percent == after.folded_percent_forward == 0


def test_who_watches_sees_each_step_and_can_end_the_work() -> None:
    seen: list[float] = []

    def watch(done: float) -> bool:
        seen.append(done)
        return done < 0.5

    start = torch.zeros(1, 3, *SHAPE)
    field = refine(start, side("a"), side("v"), short(4), watch)
    assert seen == [0, 0.25, 0.5]
    assert field.abs().max() > 0.1
    untouched = refine(start, side("a"), side("v"), RefinementConfig(), lambda done: False)
    assert torch.equal(untouched, start)


def test_every_pair_of_a_batch_is_refined_as_if_alone() -> None:
    config = short(3)
    sides = [side("a"), side("w"), side("v")]
    start = torch.zeros(2, 3, *SHAPE)
    moving = tuple(torch.cat([sides[0][k], sides[1][k]]) for k in (0, 1))
    fixed = tuple(torch.cat([sides[2][k], sides[2][k]]) for k in (0, 1))
    both = refine(start, moving, fixed, config)  # type: ignore[arg-type]
    for i in (0, 1):
        alone = refine(start[:1], sides[i], sides[2], config)
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-3, rtol=0)


def slab(height: float) -> tuple[tuple[Tensor, Tensor], Label]:
    """A slab whose surface has waves of six voxels: image and probabilities, and its label."""
    z, _, x = np.indices(SHAPE)
    label = (z < 8 + height * np.sin(2 * np.pi * x / 6)).astype(np.uint8)
    classes = torch.from_numpy(label.astype(np.int64))[None]
    return (classes[None].float() * 2 - 1, one_hot(classes, 2)), label


def test_the_second_level_follows_what_the_first_is_too_coarse_for() -> None:
    (flat, moving), (waves, fixed) = slab(0), slab(2)
    dice = []
    for config in (short(30), RefinementConfig(control_spacings=(2, 1), steps=(15, 15))):
        field = refine(torch.zeros(1, 3, *SHAPE), flat, waves, config)[0].numpy()
        dice.append(dice_per_class(warp_array(moving, field, nearest=True), fixed, 2)[0])
    assert dice[1] > dice[0] + 0.015


@pytest.mark.slow
def test_a_large_volume_of_which_a_step_sees_an_eighth_is_aligned_in_all_parts() -> None:
    moving = np.kron(phantom("a")[1], np.ones((3, 3, 3), np.uint8))
    fixed = np.roll(moving, (1, -1, 2), (0, 1, 2))
    sides = []
    for label in (moving, fixed):
        classes = torch.from_numpy(label.astype(np.int64))[None]
        sides.append((classes[None].float(), one_hot(classes, C)))
    config = RefinementConfig(control_spacings=(1,), steps=(16,))
    field = refine(torch.zeros(1, 3, *moving.shape), *sides, config)[0].numpy()
    assert np.nanmean(dice_per_class(moving, fixed, C)) < 0.93
    assert np.nanmean(dice_per_class(warp_array(moving, field, True), fixed, C)) > 0.97


def test_each_level_needs_its_steps() -> None:
    with pytest.raises(ValueError, match="as many"):
        RefinementConfig(steps=(5,))
    with pytest.raises(ValueError, match="image_spacings: give as many"):
        RefinementConfig(image_spacings=(1,))


@pytest.mark.parametrize("similarity", ["mse", "lncc", "mind"])
def test_two_images_alone_are_registered_and_always_the_same(similarity: str) -> None:
    (image, moving), (target, fixed) = phantom("a"), phantom("v")
    if similarity != "mse":
        target = 5 - 3 * target  # of another contrast
    config = IMAGES_ALONE.model_copy(update={"similarity": similarity})
    field = register_images(image, target, config=config)
    assert field.shape == (3, *SHAPE)
    assert field.dtype == torch.float32
    before = np.nanmean(dice_per_class(moving, fixed, C))
    warped = warp_array(moving, field.numpy(), nearest=True)
    assert np.nanmean(dice_per_class(warped, fixed, C)) > before + 0.1
    assert torch.equal(field, register_images(torch.from_numpy(image), target, config=config))


def test_finer_images_and_more_levels_fit_better_than_the_quick_ones() -> None:
    moving, fixed = (make_case(number, (24, 32, 24)) for number in (0, 1))
    dice = []
    for config in (IMAGES_QUICKLY, IMAGES_ALONE):
        field = register_images(moving.image, fixed.image, config=config).numpy()
        warped = warp_array(moving.labels, field, nearest=True)
        dice.append(np.nanmean(dice_per_class(warped, fixed.labels, 11)))
        assert jacobian_statistics(field).folded_percent_forward == 0
    assert dice[1] > dice[0] + 0.1


def test_a_level_that_is_too_coarse_for_a_small_grid_is_left_out() -> None:
    image, target = (make_case(number, (12, 16, 14)).image for number in (3, 4))
    field = register_images(image, target)
    assert field.abs().max() < 4
    assert register_images(image[:4], target[:4]).isfinite().all()


def test_images_start_from_a_pre_alignment_and_need_one_grid() -> None:
    image, _ = phantom("a")
    start = torch.zeros(3, *SHAPE)
    start[2] = 3.0
    field = register_images(np.roll(image, 3, axis=2), image, start=start)
    assert (field - start)[:, 2:-2, 2:-2, 2:-4].abs().mean() < 0.3
    with pytest.raises(ValueError, match="grids differ"):
        register_images(image, image[1:])


def test_long_voxels_hold_more_control_points() -> None:
    """Along an axis of long voxels the field may bend within fewer of them."""
    image, target = phantom("a")[0], phantom("v")[0]
    cubes = register_images(image, target, config=IMAGES_QUICKLY)
    long = register_images(image, target, (4, 1, 1), IMAGES_QUICKLY)
    bend = [field.diff(n=2, dim=1).abs().mean() for field in (cubes, long)]
    assert bend[1] > 1.2 * bend[0]


def test_as_a_network_it_gives_the_same_and_trains_nothing() -> None:
    registration = build_registration_network(NetworkConfig(output_scale=1e4)).train()
    teacher = Knows("a", "v").train()
    network = RefinedRegistration(registration, teacher, short(5)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image, target = phantom("a")[0], phantom("v")[0]
    plain = displacement_field(registration, image, target, CPU)
    field = displacement_field(network, image, target, CPU)
    moving, fixed = side("a"), side("v")
    sure = [(image, (p * 20).softmax(1)) for image, p in (moving, fixed)]
    expected = refine(torch.from_numpy(plain)[None], sure[0], sure[1], short(5))
    np.testing.assert_allclose(field, expected[0].numpy(), atol=1e-4)
    assert np.abs(field - plain).max() > 0.1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("similarity", ["mse", "lncc", "mind"])
def test_real_networks_and_odd_grids_give_a_finite_field(similarity: str) -> None:
    registration = build_registration_network(NetworkConfig())
    teacher = build_segmentation_network(NetworkConfig(), C)
    config = short(2, similarity=similarity)
    network = RefinedRegistration(registration, teacher, config).eval()
    generator = np.random.default_rng(0)
    image, target = generator.normal(size=(2, 13, 18, 15)).astype(np.float32)
    with torch.autocast("cpu", torch.bfloat16):
        field = displacement_field(network, image, target, CPU)
    assert field.shape == (3, 13, 18, 15)
    assert np.isfinite(field).all()
