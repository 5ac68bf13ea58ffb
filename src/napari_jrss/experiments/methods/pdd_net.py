"""PDD-Net (Heinrich 2019), trained on expected labels; see :mod:`..pdd_network` for the network.

The class-weighted squared error of expected labels and the smoothness are the original's. It has
no loss for unlabelled pairs; as the paper trains all its baselines, they count with their image
difference (Eq. 8).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from napari_jrss.engine.stages import RegistrationStage
from napari_jrss.engine.steps import Losses
from napari_jrss.experiments.pdd_network import PddNet, displacements, positions, sample_at
from napari_jrss.experiments.recipe import Task, Trained, registration_stage, train_stage
from napari_jrss.losses import diffusion_regulariser, mean_squared_error, one_hot
from napari_jrss.networks.spatial import warp

LEARNING_RATE, SMOOTHNESS = 5e-3, 2.0


def train(task: Task) -> Trained:
    """Expected labels where both sides have them, image difference everywhere."""
    task.seed()
    network = PddNet()
    stage = registration_stage(task, network, "pdd_net", PddStage)
    stage.learning_rate = LEARNING_RATE
    train_stage(task, stage)
    return Trained(registration=network)


class PddStage(RegistrationStage):
    """PDD-Net's losses; a pair without two labels counts with its image difference alone."""

    def losses(self, step: int, rng: np.random.Generator) -> Losses:
        batch = self.draw(rng)
        self.network.train()
        network = self.modules["network"]
        assert isinstance(network, PddNet)
        probabilities = network.probabilities(batch.moving, batch.fixed)
        displacement = network.field(probabilities, batch.moving.shape[2:])
        similarity = mean_squared_error(
            warp(batch.moving, displacement, padding="border"), batch.fixed
        )
        control = torch.einsum("bzyxd,dc->bczyx", probabilities, displacements(probabilities))
        smoothness = diffusion_regulariser(control)
        losses = {"similarity": similarity, "smoothness": smoothness}
        total = similarity + SMOOTHNESS * smoothness
        if bool(batch.supervised.any()):
            chosen = batch.supervised
            labels = expected_label_loss(
                probabilities[chosen],
                batch.moving_label[chosen],
                batch.fixed_label[chosen],
                self.tensors.snapshot.classes,
            )
            total = total + labels * chosen.float().mean()
            losses["labels"] = labels
        return {"total": total, **losses}


def expected_label_loss(
    probabilities: Tensor, moving: Tensor, fixed: Tensor, classes: int
) -> Tensor:
    """Squared error of the expected labels on the control grid, classes weighted by rarity."""
    shape = probabilities.shape[1:4]
    here = positions(shape, probabilities)
    there = here.unsqueeze(-2) + displacements(probabilities)
    found = sample_at(moving[:, None].float(), there, "nearest")[:, 0].round().long()
    wanted = sample_at(fixed[:, None].float(), here.unsqueeze(-2), "nearest")[:, 0, ..., 0]
    expected = probabilities.new_zeros((*probabilities.shape[:4], classes))
    expected = expected.scatter_add(-1, found, probabilities)
    target = one_hot(wanted.round().long(), classes).movedim(1, -1)
    weight = target.mean((0, 1, 2, 3)).clamp(min=1e-3).rsqrt()
    return ((expected - target).square() * (weight / weight.mean())).sum(-1).mean()
