"""The three training steps of JRSS: from tensors to losses, and nothing else.

Each function returns its losses by name; ``total`` is the one to minimise. Shapes: images
(B, channels, z, y, x); labels (B, z, y, x) with :data:`IGNORED` where a voxel takes no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from napari_jrss.config import JointConfig, RegistrationTraining, SegmentationTraining
from napari_jrss.losses import (
    dice_and_cross_entropy,
    diffusion_regulariser,
    folding,
    image_difference,
    one_hot,
    screened_cross_entropy,
    soft_dice_loss,
    symmetric_kl,
)
from napari_jrss.networks.spatial import jacobian_determinant, warp
from napari_jrss.training.screening import IGNORED

Losses = dict[str, Tensor]


def known_one_hot(labels: Tensor, classes: int) -> Tensor:
    """One-hot (B, C, z, y, x) of labels; zero in every class where the label is ignored."""
    return one_hot(labels.clamp(max=classes), classes + 1)[:, :classes]


def mono_segmentation_step(
    network: nn.Module, images: Tensor, labels: Tensor, config: SegmentationTraining
) -> Losses:
    """Loss on labelled images: Dice (Eq. 1 and 2), or Dice and cross-entropy."""
    logits = network(images).float()
    if config.loss == "dice_ce":
        return label_losses(logits, labels)
    target = known_one_hot(labels, logits.shape[1])
    known = target.sum(1, keepdim=True)
    dice = soft_dice_loss(logits.softmax(1) * known, target, config.include_background)
    return {"total": dice, "dice": dice}


def label_losses(logits: Tensor, labels: Tensor) -> Losses:
    """Dice of the batch's structures plus cross-entropy (mean over images), of equal weight."""
    known = labels != IGNORED
    voxels = known.flatten(1).sum(1).clamp(min=1) * len(labels)
    weight = known / voxels.view(-1, 1, 1, 1)
    found = dice_and_cross_entropy(logits, labels.long() * known, known, weight)
    return {"total": found.total, "dice": found.dice, "ce": found.cross_entropy}


@dataclass(frozen=True)
class PairBatch:
    """Pairs for the registration network.

    Attributes
    ----------
    moving, fixed
        (B, 1, z, y, x).
    moving_label, fixed_label
        (B, z, y, x); read only where `supervised`.
    supervised
        (B,), whether both sides have a manual label or an accepted pseudo-label.
    """

    moving: Tensor
    fixed: Tensor
    moving_label: Tensor
    fixed_label: Tensor
    supervised: Tensor


def registration_step(
    network: nn.Module,
    batch: PairBatch,
    classes: int,
    lambda_r: float,
    config: RegistrationTraining,
) -> Losses:
    """Weakly supervised registration (Eq. 7 to 10).

    `lambda_r` is the smoothness weight of this step, which the warm-up moves.
    """
    displacement = network(batch.moving, batch.fixed).float()
    warped = warp(batch.moving, displacement, padding="border")
    similarity = image_difference(warped, batch.fixed, config.similarity)
    smoothness = diffusion_regulariser(displacement)
    losses = {"similarity": similarity, "smoothness": smoothness}
    total = similarity + lambda_r * smoothness
    if config.lambda_j > 0:
        losses["folding"] = folding(jacobian_determinant(displacement))
        total = total + config.lambda_j * losses["folding"]
    if bool(batch.supervised.any()):
        chosen = batch.supervised
        warped_label = warp(
            known_one_hot(batch.moving_label[chosen], classes),
            displacement[chosen],
            padding="border",
        )
        fixed_label = known_one_hot(batch.fixed_label[chosen], classes)
        # Only where the label of either side is known.
        known = fixed_label.sum(1, keepdim=True) * (warped_label.sum(1, keepdim=True) > 0.5)
        dice = soft_dice_loss(warped_label * known, fixed_label * known)
        # A pair without labels counts with a Dice loss of zero, as the paper has it.
        total = total + config.lambda_d * dice * chosen.float().mean()
        losses["dice"] = dice
    return {"total": total, **losses}


@dataclass(frozen=True)
class StudentBatch:
    """One student step: the moving images (warped or not), then the fixed ones.

    Attributes
    ----------
    images
        (2P, channels, z, y, x): P moving images, then their P fixed ones; each pair holds one
        manually labelled and one pseudo-labelled image, in either order.
    labels
        (2P, z, y, x): manual labels, or screened pseudo-labels.
    manual
        (2P,), whether the label is a person's.
    teacher_logits
        (2P, C, z, y, x): log-probabilities of the teacher on the clean image, moved along
        with it; read only where not `manual`.
    warped_labels
        (P, z, y, x): the moving label warped onto the fixed image.
    warped_usable
        (P,), whether that label may teach: it is manual or accepted.
    """

    images: Tensor
    labels: Tensor
    manual: Tensor
    teacher_logits: Tensor
    warped_labels: Tensor
    warped_usable: Tensor


def student_step(
    network: nn.Module,
    batch: StudentBatch,
    config: JointConfig,
    class_weight: Tensor | None = None,
) -> Losses:
    """Student's loss: cross-entropy, uncertainty, registration Dice (Eq. 4 to 6).

    `class_weight` (C,) weights the classes of the cross-entropy.
    """
    logits = network(batch.images).float()
    manual = batch.manual
    kl = symmetric_kl(batch.teacher_logits[~manual], logits[~manual])
    weight = torch.ones_like(batch.labels, dtype=logits.dtype)
    if config.uncertainty_weighting == "exp_kl":
        weight[~manual] = torch.exp(-kl.detach())
    cross_entropy = screened_cross_entropy(
        logits, batch.labels, batch.labels != IGNORED, weight, class_weight
    )
    on_manual, on_pseudo = cross_entropy[manual].mean(), cross_entropy[~manual].mean()
    uncertainty = kl.mean()
    losses = {"ce_manual": on_manual, "ce_pseudo": on_pseudo, "uncertainty": uncertainty}
    total = on_manual + on_pseudo + config.lambda_u * uncertainty

    pairs = len(batch.warped_usable)
    probabilities = logits.softmax(1)
    # A fixed image with a label by hand has a better teacher than a warped label.
    chosen = batch.warped_usable & ~manual[pairs:]
    if config.lambda_d > 0 and bool(chosen.any()):
        warped_label = known_one_hot(batch.warped_labels[chosen], logits.shape[1])
        known = warped_label.sum(1, keepdim=True)
        dice = soft_dice_loss(probabilities[pairs:][chosen] * known, warped_label)
        total = total + config.lambda_d * dice * chosen.float().mean()
        losses["registration_dice"] = dice
    if config.supervised_dice:
        label = known_one_hot(batch.labels[manual], logits.shape[1])
        known = label.sum(1, keepdim=True)
        dice = soft_dice_loss(probabilities[manual] * known, label)
        total = total + dice
        losses["manual_dice"] = dice
    return {"total": total, **losses}


@dataclass(frozen=True)
class PerturbedBatch:
    """One step of a perturbed student.

    Attributes
    ----------
    images, labels
        Labelled images (B, channels, z, y, x) and their manual labels (B, z, y, x).
    perturbed
        (U, channels, z, y, x), unlabelled images with changed intensities.
    teacher
        (U, C, z, y, x), the teacher's probabilities in the unchanged images.
    """

    images: Tensor
    labels: Tensor
    perturbed: Tensor
    teacher: Tensor


def perturbed_student_step(
    network: nn.Module, batch: PerturbedBatch, tau: float, trusted: Tensor, weight: float
) -> Losses:
    """Manual labels, and agreement with a teacher that sees the unchanged image.

    A mean teacher (Tarvainen and Valpola 2017) whose student's view is strongly changed, as in
    FixMatch (Sohn et al. 2020): soft Dice with the teacher's probabilities, and cross-entropy
    with them where the teacher's confidence exceeds tau (Eq. 3).

    Parameters
    ----------
    network
        The student.
    batch
        What it sees.
    tau
        Confidence threshold.
    trusted
        (C,), bool: classes from which the student learns in unlabelled images.
    weight
        Of the agreement.
    """
    logits = network(torch.cat([batch.images, batch.perturbed])).float()
    on_labelled, on_unlabelled = logits.split([len(batch.images), len(batch.perturbed)])
    manual = label_losses(on_labelled, batch.labels)["total"]
    confidence, found = batch.teacher.max(1)
    known = trusted[found]
    sure = known & (confidence > tau)
    share = sure / sure.sum().clamp(min=1)
    agreement = dice_and_cross_entropy(on_unlabelled, batch.teacher, known, share).total
    return {"total": manual + weight * agreement, "manual": manual, "agreement": agreement}


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the teacher towards the student: an exponential moving average per step.

    Running statistics of batch normalisation are averaged like weights; counters are copied.
    The decay is constant. UA-MT (Yu et al. 2019) starts with a smaller one to forget a random
    teacher; ours is pre-trained and has nothing to forget (docs/dev/choices.md has the figures).
    """
    source = student.state_dict()
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            value.lerp_(source[name].to(value.device, value.dtype), 1 - decay)
        else:
            value.copy_(source[name])
