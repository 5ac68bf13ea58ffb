"""RSegNet (Qiu and Ren 2022), a re-implementation: no code of it is public.

From the paper's words: registration and segmentation learned together on the labelled cases
alone, fully supervised, with consistency of the deformations in both directions. What they don't
settle is chosen here: VoxelMorph's U-Net for both networks, a stationary velocity field, the
weights below. It needs two labelled cases.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from napari_jrss.experiments.recipe import (
    JointStage,
    LearningRates,
    Task,
    Trained,
    of_the_foreground,
    train_registration,
    train_segmentation,
    train_stage,
)
from napari_jrss.losses import diffusion_regulariser, mean_squared_error, soft_dice_loss
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.networks.spatial import compose, warp
from napari_jrss.training.steps import Losses, PairBatch, known_one_hot

INTEGRATION_STEPS = 7
INVERSE, CONSISTENCY = 0.1, 0.5


def train(task: Task) -> Trained:
    """Pre-training of both networks, then joint training; only labelled cases are seen."""
    settings = task.config.registration.model_copy(update={"labelled_pair_fraction": 1.0})
    task = replace(task, config=task.config.model_copy(update={"registration": settings}))
    task = of_the_foreground(task)
    task.seed()
    config = task.config
    segmentation = build_segmentation_network(
        config.segmentation_network.model_copy(update={"name": "vm_unet"}), task.snapshot.classes
    )
    registration = build_registration_network(
        config.registration_network.model_copy(
            update={"name": "voxelmorph", "integration_steps": INTEGRATION_STEPS}
        )
    )
    train_segmentation(task, segmentation, "rsegnet_segmentation")
    train_registration(task, registration, "rsegnet_registration")
    rates = LearningRates(config.segmentation.learning_rate, config.registration.learning_rate)
    train_stage(task, RSegNetStage("rsegnet", task, segmentation, registration, rates))
    return Trained(segmentation, registration)


class RSegNetStage(JointStage):
    """Both networks at every step, both directions of every pair."""

    def losses(self, step: int, rng: np.random.Generator) -> Losses:
        """Losses of both networks in one step."""
        self.network.train()
        self.mono.network.train()
        supervised = self.mono.losses(step, rng)["dice"]
        batch = self.draw(rng)
        there = self.network(batch.moving, batch.fixed).float()
        back = self.network(batch.fixed, batch.moving).float()
        segmented = [self.mono.network(x).float().softmax(1) for x in (batch.moving, batch.fixed)]
        one_way = self._one_way(batch, there, segmented[1])
        other = PairBatch(
            batch.fixed, batch.moving, batch.fixed_label, batch.moving_label, batch.supervised
        )
        other_way = self._one_way(other, back, segmented[0])
        inverse = compose(there, back).square().mean() + compose(back, there).square().mean()
        losses = {name: (value + other_way[name]) / 2 for name, value in one_way.items()}
        settings = self.config.registration
        total = (
            supervised
            + losses["similarity"]
            + self._lambda_r(step) * losses["smoothness"]
            + settings.lambda_d * losses["dice"]
            + CONSISTENCY * losses["consistency"]
            + INVERSE * inverse
        )
        return {"total": total, "supervised": supervised, "inverse": inverse, **losses}

    def _one_way(self, batch: PairBatch, displacement: Tensor, segmented: Tensor) -> Losses:
        """Losses of one direction; `segmented` holds the fixed image's probabilities.

        They are compared with the warped label, not with warped probabilities: two segmentations
        agree best where both find nothing.
        """
        classes = self.tensors.snapshot.classes
        warped = warp(batch.moving, displacement, padding="border")
        label = known_one_hot(batch.moving_label, classes)
        warped_label = warp(label, displacement, padding="border")
        return {
            "similarity": mean_squared_error(warped, batch.fixed),
            "smoothness": diffusion_regulariser(displacement),
            "dice": soft_dice_loss(warped_label, known_one_hot(batch.fixed_label, classes)),
            "consistency": soft_dice_loss(segmented, warped_label),
        }
