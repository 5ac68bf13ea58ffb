import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from napari_jrss import losses
from napari_jrss.losses import (
    class_weights,
    dice_and_cross_entropy,
    diffusion_regulariser,
    local_normalized_cross_correlation,
    mean_squared_error,
    mind_ssc,
    one_hot,
    screened_cross_entropy,
    soft_dice_loss,
    symmetric_kl,
)


def test_one_hot_of_any_integer_type() -> None:
    labels = torch.tensor([[[[0, 2, 1]]]], dtype=torch.uint8)
    encoded = one_hot(labels, 3)
    assert encoded.shape == (1, 3, 1, 1, 3)
    assert encoded[0, :, 0, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_dice_of_a_case_done_by_hand() -> None:
    target = one_hot(torch.tensor([[[[0, 0, 1, 1]]]]), 2)
    probabilities = torch.tensor([[0.5, 1.0, 0.25, 0.0], [0.5, 0.0, 0.75, 1.0]]).view(1, 2, 1, 1, 4)
    background = 2 * 1.5 / (2 + 1.75)
    foreground = 2 * 1.75 / (2 + 2.25)
    loss = soft_dice_loss(probabilities, target)
    assert loss.item() == pytest.approx(1 - (background + foreground) / 2, abs=1e-5)
    loss = soft_dice_loss(probabilities, target, include_background=False)
    assert loss.item() == pytest.approx(1 - foreground, abs=1e-5)


def test_dice_is_per_image_then_mean() -> None:
    target = one_hot(torch.randint(0, 3, (2, 4, 5, 6)), 3)
    probabilities = torch.randn(2, 3, 4, 5, 6).softmax(1)
    alone = [soft_dice_loss(probabilities[i : i + 1], target[i : i + 1]) for i in range(2)]
    together = soft_dice_loss(probabilities, target)
    assert together.item() == pytest.approx((alone[0] + alone[1]).item() / 2, rel=1e-5)


def test_dice_of_perfect_wrong_and_absent_classes() -> None:
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    labels[0, 0] = 1
    target = one_hot(labels, 3)
    # class 2 is in neither and counts as perfect
    assert soft_dice_loss(target, target).item() == pytest.approx(0, abs=1e-6)
    # one voxel of it in the prediction alone: Dice of (nearly) 0
    spoiled = labels.clone()
    spoiled[0, 3, 3, 3] = 2
    loss = soft_dice_loss(one_hot(spoiled, 3), target)
    assert loss.item() == pytest.approx(1 / 3, abs=0.01)


def test_dice_equals_monais() -> None:
    from monai.losses import DiceLoss

    probabilities = torch.randn(2, 4, 6, 7, 8).softmax(1)
    target = one_hot(torch.randint(0, 4, (2, 6, 7, 8)), 4)
    wanted = DiceLoss(smooth_nr=1e-5, smooth_dr=1e-5)(probabilities, target)
    assert soft_dice_loss(probabilities, target).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_cross_entropy_is_the_mean_over_accepted_voxels() -> None:
    logits = torch.randn(2, 3, 4, 5, 6)
    target = torch.randint(0, 3, (2, 4, 5, 6))
    mask = torch.rand(2, 4, 5, 6) > 0.5
    weight = torch.rand(2, 4, 5, 6)
    nll = -logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(screened_cross_entropy(logits, target), nll.mean((1, 2, 3)))
    for image in range(2):
        chosen = mask[image]
        wanted = (nll * weight)[image][chosen].mean()
        got = screened_cross_entropy(logits, target, mask, weight)[image]
        torch.testing.assert_close(got, wanted)


def test_class_weights_are_the_originals() -> None:
    counts = torch.tensor([900, 100, 25, 0])
    rarity = torch.tensor([1 / 10, 1 / 5, 0])
    wanted = rarity / ((1 / 30 + rarity.sum()) / 4)
    for background in (0.5, 0.15):
        weight = class_weights(counts, background)
        torch.testing.assert_close(weight, torch.cat([torch.tensor([background]), wanted]))


def test_cross_entropy_with_class_weights_is_torchs() -> None:
    logits = torch.randn(2, 3, 4, 5, 6)
    target = torch.randint(0, 3, (2, 4, 5, 6))
    mask = torch.rand(2, 4, 5, 6) > 0.5
    class_weight = torch.tensor([0.5, 2.0, 0.25])
    got = screened_cross_entropy(logits, target, mask, class_weight=class_weight)
    for image in range(2):
        chosen = logits[image].movedim(0, -1)[mask[image]], target[image][mask[image]]
        torch.testing.assert_close(got[image], F.cross_entropy(*chosen, class_weight))


def test_rejected_voxels_may_hold_any_target_and_give_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (2, 4, 4, 4))
    mask = torch.rand(2, 4, 4, 4) > 0.5
    mask[1] = False
    target[~mask] = 255
    loss = screened_cross_entropy(logits, target, mask)
    assert loss[1].item() == 0
    loss.sum().backward()
    assert logits.grad is not None
    silent = (logits.grad == 0).all(1)
    assert torch.equal(silent, ~mask)


def test_kl_equals_torchs_both_ways() -> None:
    teacher, student = torch.randn(2, 2, 4, 3, 3, 3, dtype=torch.float64).unbind()
    p, q = teacher.log_softmax(1), student.log_softmax(1)
    kl = torch.nn.functional.kl_div
    wanted = kl(p, q, reduction="none", log_target=True) + kl(
        q, p, reduction="none", log_target=True
    )
    got = symmetric_kl(teacher, student)
    assert got.shape == (2, 3, 3, 3)
    torch.testing.assert_close(got, wanted.mean(1).float())


@settings(deadline=None, max_examples=30)
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_kl_stays_finite_and_positive(first: float, second: float) -> None:
    teacher = torch.zeros(1, 3, 1, 1, 1)
    student = torch.zeros(1, 3, 1, 1, 1, requires_grad=True)
    teacher[0, 0] = first
    value = symmetric_kl(teacher, student + second * torch.eye(3)[1].view(1, 3, 1, 1, 1))
    value.sum().backward()
    assert value.item() >= 0
    assert math.isfinite(value.item())
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert symmetric_kl(teacher, teacher).item() == 0


def test_mean_squared_error() -> None:
    first, second = torch.randn(2, 1, 1, 4, 5, 6).unbind()
    assert mean_squared_error(first, second).item() == pytest.approx(
        ((first - second) ** 2).mean().item()
    )


@pytest.mark.parametrize(("shape", "window"), [((11, 14, 12), 5), ((5, 14, 8), 9)])
def test_lncc_equals_monais(shape: tuple[int, int, int], window: int) -> None:
    """Also in a volume smaller than the window."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    fixed = torch.randn(2, 1, *shape)
    warped = (0.5 * fixed + torch.randn(2, 1, *shape)).requires_grad_()
    fixed[:, :, :, :7] = 0
    wanted = LocalNormalizedCrossCorrelationLoss(kernel_size=window)(warped, fixed)
    (expected,) = torch.autograd.grad(wanted, warped)
    loss = local_normalized_cross_correlation(warped, fixed, window=window)
    (gradient,) = torch.autograd.grad(loss, warped)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-2)


def test_lncc_ignores_contrast_and_brightness() -> None:
    fixed = torch.randn(1, 1, 24, 24, 24)
    loss = local_normalized_cross_correlation(3 * fixed, fixed, window=5)
    assert loss.item() == pytest.approx(-1, abs=1e-3)
    with pytest.raises(ValueError, match="odd"):
        local_normalized_cross_correlation(fixed, fixed, window=4)


def test_diffusion_of_a_linear_field() -> None:
    z, y, x = torch.meshgrid(*[torch.arange(float(n)) for n in (5, 6, 7)], indexing="ij")
    displacement = torch.stack([2 * z, 3 * y + 6 * x, 0 * x])[None]
    # mean over 3 components per axis: z 4/3, y 9/3, x 36/3
    assert diffusion_regulariser(displacement).item() == pytest.approx((4 + 9 + 36) / 9)
    assert diffusion_regulariser(displacement + 7).item() == pytest.approx((4 + 9 + 36) / 9)


def test_mind_sees_shape_and_not_contrast() -> None:
    image = torch.randn(2, 1, 9, 11, 10, generator=torch.Generator().manual_seed(0))
    described = mind_ssc(image)
    assert described.shape == (2, 12, 9, 11, 10)
    assert 0 <= described.min() < 0.2
    assert described.max() == 1
    torch.testing.assert_close(mind_ssc(5 - 3 * image), described, atol=1e-3, rtol=0)
    moved = mind_ssc(image.roll(1, dims=4))
    torch.testing.assert_close(moved[..., 4:8], described[..., 3:7], atol=1e-2, rtol=0)
    assert (moved - described).abs().mean() > 0.1


def of_batch(probabilities: Tensor, target: Tensor, in_dice: Tensor) -> float:
    """The Dice loss of a batch with probabilities instead of logits."""
    found = dice_and_cross_entropy(probabilities.log(), target, in_dice, in_dice * 0.0)
    assert found.cross_entropy.item() == 0
    assert found.total.item() == found.dice.item()
    return found.dice.item()


def test_dice_of_a_batch_is_that_of_its_structures_summed_over_images() -> None:
    target = torch.zeros(2, 4, 1, 1, 4)
    target[0, 1, ..., :2] = 1
    target[0, 0, ..., 2:] = 1
    target[1, 0] = 1  # class 1 is in the first image only, 2 and 3 in none
    probabilities = torch.full_like(target, 1e-12)
    probabilities[:, 0], probabilities[:, 1], probabilities[:, 3] = 0.3, 0.5, 0.2
    dice = 2 * (2 * 0.5) / (8 * 0.5 + 2)
    everywhere = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    assert of_batch(probabilities, target, everywhere) == pytest.approx(1 - dice)
    assert of_batch(target.clamp(min=1e-12), target, everywhere) == pytest.approx(0, abs=1e-6)
    assert of_batch(probabilities[1:], target[1:], everywhere[1:]) == 0
    in_part = everywhere.clone()
    in_part[0, ..., 0] = False
    dice = 2 * 0.5 / (7 * 0.5 + 1)
    assert of_batch(probabilities, target, in_part) == pytest.approx(1 - dice)


def plain_losses(
    logits: Tensor, target: Tensor, in_dice: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Dice and cross-entropy as formulas, with PyTorch's own gradient."""
    log = logits.log_softmax(1)
    counted = in_dice.unsqueeze(1)
    shared, predicted, wanted = (
        (volume * counted).sum((0, 2, 3, 4))[1:]
        for volume in (log.exp() * target, log.exp(), target)
    )
    held = wanted >= 1
    dice = (1 - 2 * shared / (predicted + wanted))[held].mean() if held.any() else log.sum() * 0
    return dice, -(weight * (target * log).sum(1)).sum()


@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("classes", [3, 40])
def test_dice_and_cross_entropy_and_their_gradient_are_those_of_the_formulas(
    classes: int, certain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_PART_VALUES", 7 * classes)  # 120 voxels: the last part is short
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 3, 4, 5, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (2, 3, 4, 5), generator=generator)
    labels[labels == 2] = 1  # a structure that the batch doesn't hold
    in_dice = torch.rand(2, 3, 4, 5, generator=generator) < 0.7
    weight = torch.rand(2, 3, 4, 5, generator=generator) * (labels != 1)
    soft = one_hot(labels, classes)
    if not certain:
        soft = (3 * soft + torch.randn(soft.shape, generator=generator)).softmax(1)
        soft[:, 2] = 0
        soft /= soft.sum(1, keepdim=True)
    expected = plain_losses(logits, soft, in_dice, weight)
    (expected_gradient,) = torch.autograd.grad(sum(expected), logits)
    last = logits.to(memory_format=torch.channels_last_3d)
    for layout in (logits, last):
        found = dice_and_cross_entropy(layout, labels if certain else soft, in_dice, weight)
        assert found.dice.item() == pytest.approx(expected[0].item(), rel=1e-5)
        assert found.cross_entropy.item() == pytest.approx(expected[1].item(), rel=1e-5)
        assert found.total.item() == pytest.approx(sum(expected).item(), rel=1e-5)
        (gradient,) = torch.autograd.grad(3 * found.total, logits)
        torch.testing.assert_close(gradient, 3 * expected_gradient, rtol=1e-4, atol=1e-7)
    nothing = dice_and_cross_entropy(logits, labels, in_dice & False, weight * 0)
    assert [nothing.total.item(), nothing.dice.item(), nothing.cross_entropy.item()] == [0, 0, 0]
    assert torch.autograd.grad(nothing.total, logits)[0].abs().max() == 0


def test_softmax_is_torchs_for_large_logits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_PART_VALUES", 70)
    logits = torch.randn(2, 5, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 100
    for layout in (logits, logits.to(memory_format=torch.channels_last_3d)):
        torch.testing.assert_close(losses.softmax(layout), logits.softmax(1))
