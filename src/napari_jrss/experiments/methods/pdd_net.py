"""PDD-Net (Heinrich 2019), trained on expected labels; see :mod:`..pdd_network` for the network.

The class-weighted squared error of expected labels and the smoothness are the original's. It has
no loss for unlabelled pairs; as the paper trains all its baselines, they count with their image
difference (Eq. 8).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from napari_jrss.experiments.pdd_network import (
    WIDTH,
    PddNet,
    at_depth,
    checkpoint,
    displaced_planes,
    displacements,
    positions,
    sample_at,
)
from napari_jrss.experiments.recipe import Task, Trained, registration_stage, train_stage
from napari_jrss.losses import diffusion_regulariser, mean_squared_error, one_hot
from napari_jrss.networks.spatial import warp
from napari_jrss.training.stages import RegistrationStage
from napari_jrss.training.steps import Losses

LEARNING_RATE, SMOOTHNESS, BACKGROUND = 5e-3, 2.0, 0.15
AXES = 3  # the original adds up what Eq. 9 averages


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
        """Losses of one registration step."""
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
        total = similarity + SMOOTHNESS * AXES * smoothness
        if bool(batch.supervised.any()):
            chosen = batch.supervised
            labels = expected_label_loss(
                probabilities[chosen],
                batch.moving_label[chosen],
                batch.fixed_label[chosen],
                self.tensors.class_weights(BACKGROUND),
            )
            total = total + labels * chosen.float().mean()
            losses["labels"] = labels
        return {"total": total, **losses}


def expected_label_loss(
    probabilities: Tensor, moving: Tensor, fixed: Tensor, weight: Tensor
) -> Tensor:
    """Squared error of the expected labels on the control grid, with a weight for each class."""
    found, wanted = (one_hot(label, len(weight)) for label in (moving, fixed))
    shape = probabilities.shape[1:4]
    # plane by plane, computed again in the backward pass, as the costs are
    displaced, depth = displaced_planes(found, shape)
    expected = [
        checkpoint(_expected, displaced, depth[z], probabilities[:, z]) for z in range(shape[0])
    ]
    here = sample_at(wanted, positions(shape, probabilities).unsqueeze(-2))[..., 0]
    error = torch.stack(expected, dim=2) - here
    return (error.square() * weight.view(-1, 1, 1, 1)).mean()


def _expected(displaced: Tensor, depth: Tensor, probabilities: Tensor) -> Tensor:
    """Of one plane of control points, (B, C, y, x)."""
    labels = at_depth(displaced, depth)
    likely = probabilities.unflatten(-1, (WIDTH, WIDTH, WIDTH))
    return torch.einsum("bcuyvxw,byxuvw->bcyx", labels, likely)
