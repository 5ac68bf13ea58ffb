"""DeepAtlas (Xu and Niethammer 2019) as in MONAI's tutorial: networks, losses, alternation.

Both networks are pre-trained alone, as the paper has it; then 40 steps of registration and 5 of
segmentation take turns. An unlabelled image takes part through the segmenter's own soft
prediction; nothing is screened, nothing averaged.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from napari_jrss.experiments.recipe import (
    JointStage,
    LearningRates,
    Task,
    Trained,
    train_registration,
    train_segmentation,
    train_stage,
)
from napari_jrss.losses import local_normalized_cross_correlation, soft_dice_loss
from napari_jrss.networks.build import RegistrationNetwork
from napari_jrss.networks.spatial import warp
from napari_jrss.networks.unet import AnyGrid
from napari_jrss.training.sampling import draw_cases
from napari_jrss.training.screening import IGNORED
from napari_jrss.training.steps import Losses, PairBatch, known_one_hot

REGISTRATION_STEPS, SEGMENTATION_STEPS = 40, 5
RATES = LearningRates(segmentation=1e-3, registration=5e-4)
ANATOMY, SUPERVISED, BENDING = 2.0, 3.0, 7.5


def train(task: Task) -> Trained:
    """Pre-training, then the alternation."""
    task.seed()
    segmentation = segmentation_network(task.snapshot.classes)
    registration = registration_network(task.config.registration_network.output_scale)
    train_segmentation(task, segmentation, "deep_atlas_segmentation")
    train_registration(task, registration, "deep_atlas_registration")
    train_stage(task, DeepAtlasStage("deep_atlas", task, segmentation, registration, RATES))
    return Trained(segmentation, registration)


def segmentation_network(classes: int) -> nn.Module:
    """The tutorial's U-Net; 437,133 parameters for 9 classes."""
    channels, strides = (8, 16, 16, 32, 32, 64, 64), (1, 2, 1, 2, 1, 2)
    return AnyGrid(UNet(3, 1, classes, channels, strides, dropout=0.2, norm="batch"), 8)


def registration_network(output_scale: float = 1.0) -> RegistrationNetwork:
    """The tutorial's U-Net of 239,147 parameters, and 12 of a head that starts at zero."""
    unet = UNet(3, 2, 3, (16, 32, 32, 32, 32), (1, 2, 2, 2), dropout=0.2, norm="batch")
    return RegistrationNetwork(AnyGrid(unet, 8), output_scale=output_scale)


def bending_energy(displacement: Tensor) -> Tensor:
    """Mean squared second derivative of a field (B, 3, z, y, x), mixed ones twice."""

    def centre(field: Tensor, axes: tuple[int, ...]) -> Tensor:
        for axis in {2, 3, 4} - set(axes):
            field = field.narrow(axis, 1, field.shape[axis] - 2)
        return field

    total = displacement.new_zeros(())
    for first in (2, 3, 4):
        total = total + centre(displacement.diff(n=2, dim=first), (first,)).square().mean()
        for second in range(first + 1, 5):
            mixed = _central(_central(displacement, first), second)
            total = total + 2 * centre(mixed, (first, second)).square().mean()
    return total


def _central(field: Tensor, axis: int) -> Tensor:
    """Central difference along an axis, two voxels shorter."""
    inner = field.shape[axis] - 2
    return (field.narrow(axis, 2, inner) - field.narrow(axis, 0, inner)) / 2


class DeepAtlasStage(JointStage):
    """Registration and segmentation in turns, each with the other held."""

    def losses(self, step: int, rng: np.random.Generator) -> Losses:
        """Losses of one step: registration steps and segmentation steps take turns."""
        registering = step % (REGISTRATION_STEPS + SEGMENTATION_STEPS) < REGISTRATION_STEPS
        self.network.train(registering)
        self.mono.network.train(not registering)
        if registering:
            return self._registration(self.draw(rng))
        return self._segmentation(step, rng)

    def _registration(self, batch: PairBatch) -> Losses:
        """Similarity, bending energy, overlap of labels or of what stands for them."""
        displacement = self.network(batch.moving, batch.fixed).float()
        warped = warp(batch.moving, displacement, padding="border")
        similarity = local_normalized_cross_correlation(warped, batch.fixed, window=3)
        bending = bending_energy(displacement)
        with torch.no_grad():
            moving = self._anatomy(batch.moving, batch.moving_label)
            fixed = self._anatomy(batch.fixed, batch.fixed_label)
        anatomy = soft_dice_loss(warp(moving, displacement, padding="border"), fixed)
        weight = BENDING * (max(batch.moving.shape[2:]) / 128) ** 2
        total = similarity + weight * bending + ANATOMY * anatomy
        return {"total": total, "similarity": similarity, "bending": bending, "anatomy": anatomy}

    def _segmentation(self, step: int, rng: np.random.Generator) -> Losses:
        """Dice on labels, and overlap of an unlabelled image with a registered labelled one."""
        supervised = self.mono.losses(step, rng)["dice"]
        losses = {"supervised": supervised}
        total = SUPERVISED * supervised
        snapshot = self.tensors.snapshot
        if snapshot.unlabelled:
            count = self.config.segmentation.batch_size
            sides = [draw_cases(c, count, rng) for c in (snapshot.labelled, snapshot.unlabelled)]
            if rng.random() < 0.5:
                sides.reverse()
            moving, fixed = (self.tensors.images(side) for side in sides)
            with torch.no_grad():
                displacement = self.network(moving, fixed).float()
            soft = [
                self._anatomy(image, self.tensors.labels(side))
                for image, side in zip((moving, fixed), sides, strict=True)
            ]
            warped = warp(soft[0], displacement, mode="nearest", padding="border")
            losses["anatomy"] = soft_dice_loss(warped, soft[1])
            total = total + ANATOMY * losses["anatomy"]
        return {"total": total, **losses}

    def _anatomy(self, images: Tensor, labels: Tensor) -> Tensor:
        """One-hot labels where there are any, the segmenter's softmax elsewhere."""
        known = (labels != IGNORED).flatten(1).all(1)
        result = known_one_hot(labels, self.tensors.snapshot.classes)
        if not bool(known.all()):
            probabilities = self.mono.network(images[~known]).float().softmax(1)
            result = result.index_put((~known,), probabilities)
        return result
