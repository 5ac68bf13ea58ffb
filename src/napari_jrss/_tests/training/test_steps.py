"""The three losses by hand, what has no influence on them, and where no gradient goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_jrss._tests.training.phantoms import NAMES, SHAPE, phantom
from napari_jrss.config import (
    JointConfig,
    NetworkConfig,
    RegistrationTraining,
    SegmentationTraining,
)
from napari_jrss.losses import (
    dice_and_cross_entropy,
    diffusion_regulariser,
    mean_squared_error,
    soft_dice_loss,
)
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.networks.spatial import warp
from napari_jrss.training.screening import IGNORED
from napari_jrss.training.steps import (
    PairBatch,
    PerturbedBatch,
    StudentBatch,
    known_one_hot,
    label_losses,
    mono_segmentation_step,
    perturbed_student_step,
    registration_step,
    student_step,
    update_teacher,
)

C = len(NAMES)


class Says(nn.Module):
    """A network whose answer is its parameter: gradients are those of the answer itself."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer.clone())

    def forward(self, *images: Tensor) -> Tensor:
        return self.answer

    def gradient(self, loss: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss, self.answer, retain_graph=True)
        return gradient


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_mono_segmentation_is_one_minus_dice_by_hand() -> None:
    # Two voxels of class 0 and 1, foreseen with 3/4 and 1/2.
    probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    network = Says(probabilities.T.log().reshape(1, 2, 1, 1, 2))
    settings = SegmentationTraining()
    image, label = torch.zeros(1, 1, 1, 1, 2), torch.tensor([[[[0, 1]]]])
    losses = mono_segmentation_step(network, image, label, settings)
    background, foreground = 2 * 0.75 / (1.25 + 1), 2 * 0.5 / (0.75 + 1)
    assert losses["total"].item() == pytest.approx(1 - (background + foreground) / 2, abs=1e-5)


def test_mono_segmentation_without_the_background_doesnt_reward_finding_nothing() -> None:
    label = torch.zeros(1, 1, 1, 10, dtype=torch.long)
    label[..., 0] = 1
    nothing = Says(torch.tensor([20.0, -20.0]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 10))
    image = torch.zeros(1, 1, 1, 1, 10)
    with_it, without = (
        mono_segmentation_step(nothing, image, label, SegmentationTraining(include_background=b))[
            "total"
        ]
        for b in (True, False)
    )
    assert with_it.item() == pytest.approx(1 - 18 / 19 / 2, abs=1e-4)
    assert without.item() == pytest.approx(1, abs=1e-4)


def test_voxels_that_nobody_labelled_teach_nothing() -> None:
    answer = random(1, C, 4, 4, 4)
    label = torch.randint(0, C, (1, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    label[0, 2:] = IGNORED
    network, image = Says(answer), torch.zeros(1, 1, 4, 4, 4)
    for settings in (SegmentationTraining(), SegmentationTraining(loss="dice_ce")):
        gradient = network.gradient(
            mono_segmentation_step(network, image, label, settings)["total"]
        )
        assert gradient[:, :, :2].abs().min() > 0
        assert gradient[:, :, 2:].abs().max() == 0
    batch = pair_batch((True, True))
    whole = registration_step(Says(torch.zeros(2, 3, *SHAPE)), batch, C, 0, SETTINGS)["dice"]
    moving = batch.moving_label.clone()
    moving[:, : SHAPE[0] // 2] = IGNORED
    part = replace(batch, moving_label=moving)
    halves = registration_step(Says(torch.zeros(2, 3, *SHAPE)), part, C, 0, SETTINGS)["dice"]
    fixed = batch.fixed_label.clone()
    fixed[:, : SHAPE[0] // 2] = IGNORED
    other = replace(batch, fixed_label=fixed)
    same = registration_step(Says(torch.zeros(2, 3, *SHAPE)), other, C, 0, SETTINGS)["dice"]
    assert halves.item() == pytest.approx(same.item())  # unknown on one side is unknown
    assert whole.item() != pytest.approx(same.item())


def test_one_hot_of_an_ignored_voxel_is_zero_everywhere() -> None:
    known = known_one_hot(torch.tensor([[[[0, 2, IGNORED]]]]), 3)
    assert known[0, :, 0, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


# -- registration


def pair_batch(supervised: tuple[bool, bool]) -> PairBatch:
    """Two pairs; labels of an unsupervised one are ignored throughout."""
    images, labels = zip(*(phantom(case) for case in "abuv"), strict=True)
    volumes = torch.from_numpy(np.stack(images))[:, None]
    marks = torch.from_numpy(np.stack(labels).astype(np.int64))
    for i, has_labels in enumerate(supervised):
        if not has_labels:
            marks[[i, i + 2]] = IGNORED
    return PairBatch(volumes[:2], volumes[2:], marks[:2], marks[2:], torch.tensor(supervised))


SETTINGS = RegistrationTraining(lambda_d=0.3)


def test_unsupervised_registration_is_similarity_and_weighted_smoothness() -> None:
    batch = pair_batch((False, False))
    field = random(2, 3, *SHAPE)
    losses = registration_step(Says(field), batch, C, 0.5, SETTINGS)
    assert set(losses) == {"total", "similarity", "smoothness"}
    warped = warp(batch.moving, field, padding="border")
    expected = mean_squared_error(warped, batch.fixed) + 0.5 * diffusion_regulariser(field)
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_pair_without_labels_counts_with_a_dice_loss_of_zero() -> None:
    batch = pair_batch((True, False))
    field = random(2, 3, *SHAPE)
    losses = registration_step(Says(field), batch, C, 0.5, SETTINGS)
    moving = known_one_hot(batch.moving_label[:1], C)
    warped = warp(moving, field[:1], padding="border")
    dice = soft_dice_loss(warped, known_one_hot(batch.fixed_label[:1], C))
    expected = losses["similarity"] + 0.5 * losses["smoothness"] + 0.3 * dice / 2
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_labels_of_an_unsupervised_pair_have_no_influence() -> None:
    batch = pair_batch((True, False))
    network = Says(random(2, 3, *SHAPE))
    loss = registration_step(network, batch, C, 0.5, SETTINGS)["total"]
    for name in ("moving_label", "fixed_label"):
        labels = getattr(batch, name).clone()
        labels[1] = 1
        other = replace(batch, **{name: labels})
        same = registration_step(network, other, C, 0.5, SETTINGS)["total"]
        assert torch.equal(loss, same)
        assert torch.equal(network.gradient(loss), network.gradient(same))


def test_dice_of_a_supervised_pair_moves_the_field() -> None:
    network = Says(random(2, 3, *SHAPE))
    with_labels, without = (
        network.gradient(
            registration_step(network, pair_batch((has, False)), C, 0.5, SETTINGS)["total"]
        )
        for has in (True, False)
    )
    assert not torch.equal(with_labels[0], without[0])
    assert torch.equal(with_labels[1], without[1])


def test_local_correlation_replaces_the_squared_difference() -> None:
    batch = pair_batch((False, False))
    network = Says(torch.zeros(2, 3, *SHAPE))
    same = replace(batch, moving=batch.fixed)
    config = RegistrationTraining(similarity="lncc")
    assert registration_step(network, same, C, 0.5, config)["similarity"].item() == pytest.approx(
        -1, abs=1e-2
    )


def test_folds_cost_what_the_determinant_lacks() -> None:
    batch = pair_batch((False, False))
    field = torch.zeros(2, 3, *SHAPE)
    field[0, 2, ..., 8:] = -4.0  # turns two columns of voxels over, determinant -1
    config = SETTINGS.model_copy(update={"lambda_j": 10.0})
    with_penalty, without = (
        registration_step(Says(field), batch, C, 0.5, each) for each in (config, SETTINGS)
    )
    assert with_penalty["folding"].item() == pytest.approx(1.3 * 2 / (2 * SHAPE[2]))
    difference = with_penalty["total"] - without["total"]
    assert difference.item() == pytest.approx(10 * with_penalty["folding"].item(), rel=1e-4)
    assert "folding" not in without


def test_the_registration_network_learns_from_all_its_losses() -> None:
    network = build_registration_network(NetworkConfig())
    losses = registration_step(network, pair_batch((True, False)), C, 0.025, SETTINGS)
    losses["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# -- student


def student_batch(ignored: Tensor | None = None) -> StudentBatch:
    """A labelled moving image and an unlabelled fixed one, some of whose voxels are ignored."""
    images, labels = zip(*(phantom(case) for case in "au"), strict=True)
    marks = torch.from_numpy(np.stack(labels).astype(np.int64))
    if ignored is not None:
        marks[1][ignored] = IGNORED
    return StudentBatch(
        images=torch.from_numpy(np.stack(images))[:, None],
        labels=marks,
        manual=torch.tensor([True, False]),
        teacher_logits=random(2, C, *SHAPE, seed=1).log_softmax(1),
        warped_labels=marks[:1].clone(),
        warped_usable=torch.tensor([True]),
    )


CORNER = torch.zeros(SHAPE, dtype=torch.bool)
CORNER[:8, :8, :8] = True
# Cross-entropy alone: the uncertainty speaks of every voxel, screened or not.
CE_ONLY = JointConfig(lambda_u=0, lambda_d=0, uncertainty_weighting="none")


def test_students_loss_is_the_sum_of_its_weighted_parts() -> None:
    config = JointConfig(lambda_u=0.7, lambda_d=0.4, supervised_dice=True)
    losses = student_step(Says(random(2, C, *SHAPE)), student_batch(CORNER), config)
    expected = (
        losses["ce_manual"]
        + losses["ce_pseudo"]
        + 0.7 * losses["uncertainty"]
        + 0.4 * losses["registration_dice"]
        + losses["manual_dice"]
    )
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_cross_entropy_is_the_mean_over_the_voxels_that_are_kept() -> None:
    answer = random(2, C, *SHAPE)
    batch = student_batch(CORNER)
    losses = student_step(Says(answer), batch, CE_ONLY)
    picked = -answer.log_softmax(1).gather(1, batch.labels.clamp(max=C - 1)[:, None])[:, 0]
    assert losses["ce_manual"].item() == pytest.approx(picked[0].mean().item(), rel=1e-5)
    assert losses["ce_pseudo"].item() == pytest.approx(picked[1][~CORNER].mean().item(), rel=1e-5)


def test_an_ignored_voxel_has_no_influence_and_gets_no_gradient() -> None:
    batch = student_batch(CORNER)
    answer = random(2, C, *SHAPE)
    network = Says(answer)
    loss = student_step(network, batch, CE_ONLY)["total"]
    gradient = network.gradient(loss)
    assert (gradient[1, :, CORNER] == 0).all()
    assert (gradient[1, :, ~CORNER] != 0).any()
    answer[1, :, CORNER] = 7.0
    assert student_step(Says(answer), batch, CE_ONLY)["total"].item() == loss.item()


@pytest.mark.parametrize("part", ["supervised_dice", "registration_dice"])
def test_a_voxel_that_came_from_outside_has_no_influence_on_a_dice(part: str) -> None:
    """Augmentation and warping bring in voxels that nobody labelled."""
    batch = student_batch()
    labels, warped = batch.labels.clone(), batch.warped_labels.clone()
    labels[0][CORNER] = IGNORED
    warped[0][CORNER] = IGNORED
    batch = replace(batch, labels=labels, warped_labels=warped)
    config = CE_ONLY.model_copy(
        update={"supervised_dice": True} if part == "supervised_dice" else {"lambda_d": 1.0}
    )
    network = Says(random(2, C, *SHAPE))
    name = {"supervised_dice": "manual_dice", "registration_dice": "registration_dice"}[part]
    gradient = network.gradient(student_step(network, batch, config)[name])
    image = 0 if part == "supervised_dice" else 1
    assert (gradient[image, :, CORNER] == 0).all()
    assert (gradient[image, :, ~CORNER] != 0).any()


def test_an_image_without_a_kept_voxel_adds_nothing() -> None:
    losses = student_step(
        Says(random(2, C, *SHAPE)), student_batch(torch.ones_like(CORNER)), CE_ONLY
    )
    assert losses["ce_pseudo"].item() == 0
    assert losses["total"].isfinite()


def test_doubt_weighs_pseudo_labelled_voxels_and_its_weight_is_detached() -> None:
    batch = student_batch(CORNER)
    network = Says(random(2, C, *SHAPE))
    weighted = JointConfig(lambda_u=0, lambda_d=0)
    losses = student_step(network, batch, weighted)
    plain = student_step(network, batch, CE_ONLY)
    assert torch.equal(losses["ce_manual"], plain["ce_manual"])
    assert losses["ce_pseudo"] < plain["ce_pseudo"]

    teacher, student = batch.teacher_logits[1].softmax(0), network.answer[1].softmax(0)
    kl = ((teacher - student) * (teacher.log() - student.log())).mean(0).detach()
    own = -network.answer[1].log_softmax(0).gather(0, batch.labels[1].clamp(max=C - 1)[None])[0]
    expected = (own * torch.exp(-kl))[~CORNER].mean()
    assert losses["ce_pseudo"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        network.gradient(losses["ce_pseudo"]), network.gradient(expected), rtol=1e-4, atol=1e-9
    )


def test_a_student_that_agrees_with_its_teacher_is_not_doubted() -> None:
    batch = student_batch()
    network = Says(batch.teacher_logits)
    losses = student_step(network, batch, JointConfig())
    plain = student_step(network, batch, CE_ONLY)
    assert losses["uncertainty"].item() == pytest.approx(0, abs=1e-7)
    assert losses["ce_pseudo"].item() == pytest.approx(plain["ce_pseudo"].item(), rel=1e-6)


def test_uncertainty_speaks_of_unlabelled_images_only() -> None:
    network = Says(random(2, C, *SHAPE))
    gradient = network.gradient(
        student_step(network, student_batch(), JointConfig())["uncertainty"]
    )
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).any()


@pytest.mark.parametrize(("usable", "fixed_is_manual"), [(False, False), (True, True)])
def test_registration_teaches_neither_with_a_refused_label_nor_where_a_person_drew(
    usable: bool, fixed_is_manual: bool
) -> None:
    batch = replace(
        student_batch(),
        warped_usable=torch.tensor([usable]),
        manual=torch.tensor([not fixed_is_manual, fixed_is_manual]),
    )
    assert "registration_dice" not in student_step(Says(random(2, C, *SHAPE)), batch, JointConfig())


def test_the_students_every_weight_learns() -> None:
    network = build_segmentation_network(NetworkConfig(), C, dropout=0.5)
    student_step(network, student_batch(CORNER), JointConfig())["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# -- teacher


def test_the_teacher_is_an_average_buffers_included_and_copies_counters() -> None:
    teacher, student = (build_segmentation_network(NetworkConfig(), C) for _ in range(2))
    student(random(2, 1, *SHAPE))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    given = {name: value.clone() for name, value in student.state_dict().items()}
    update_teacher(teacher, student, decay=0.9)
    counters = running = 0
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            expected = 0.9 * before[name] + 0.1 * given[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
            running += "running" in name and not torch.equal(before[name], given[name])
        else:
            assert value == given[name] == 1
            counters += 1
    assert counters > 0
    assert running > 0
    for name, value in student.state_dict().items():
        assert torch.equal(value, given[name])


def test_averaging_leaves_no_graph_behind() -> None:
    teacher, student = (build_segmentation_network(NetworkConfig(), C) for _ in range(2))
    update_teacher(teacher, student, decay=0.9)
    assert all(p.requires_grad and p.is_leaf and p.grad is None for p in teacher.parameters())


def perturbed_batch() -> PerturbedBatch:
    teacher = random(2, 3, 4, 4, 4, seed=1).mul(3).softmax(1)
    labels = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(2))
    return PerturbedBatch(random(2, 1, 4, 4, 4), labels, random(2, 1, 4, 4, 4, seed=3), teacher)


def test_a_perturbed_student_learns_labels_and_what_the_teacher_is_sure_of() -> None:
    batch, everything = perturbed_batch(), torch.ones(3, dtype=torch.bool)
    network = Says(random(4, 3, 4, 4, 4, seed=4))
    losses = perturbed_student_step(network, batch, 0.6, everything, 0.5)
    manual = label_losses(network.answer[:2], batch.labels)["total"]
    sure = batch.teacher.max(1).values > 0.6
    logits = network.answer[2:]
    cross_entropy = -(batch.teacher * logits.log_softmax(1)).sum(1)[sure].mean()
    everywhere = torch.ones_like(sure)
    dice = dice_and_cross_entropy(logits, batch.teacher, everywhere, everywhere / sure.sum()).dice
    assert losses["manual"].item() == pytest.approx(manual.item())
    assert losses["agreement"].item() == pytest.approx((dice + cross_entropy).item(), rel=1e-5)
    total = losses["manual"] + 0.5 * losses["agreement"]
    assert losses["total"].item() == pytest.approx(total.item())


def test_a_perturbed_student_ignores_structures_that_are_not_trusted() -> None:
    batch, trusted = perturbed_batch(), torch.tensor([True, True, False])
    network = Says(random(4, 3, 4, 4, 4, seed=4))
    total = perturbed_student_step(network, batch, 0.0, trusted, 1.0)["agreement"]
    gradient = network.gradient(total)[2:]
    distrusted = batch.teacher.argmax(1) == 2
    assert bool(distrusted.any())
    assert gradient.movedim(1, -1)[distrusted].abs().max() == 0
    assert gradient.movedim(1, -1)[~distrusted].abs().max() > 0


def test_label_losses_pass_over_ignored_voxels() -> None:
    logits, labels = random(1, 3, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.long)
    labels[:, :2] = 1
    labels[:, 3] = IGNORED
    network = Says(logits)
    gradient = network.gradient(label_losses(network.answer, labels)["total"])
    assert gradient[:, :, 3].abs().max() == 0
    assert gradient[:, :, :3].abs().min() > 0
