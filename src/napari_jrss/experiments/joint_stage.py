"""What DeepAtlas and RSegNet share: two networks under one optimiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from napari_jrss.experiments.recipe import Task
from napari_jrss.training.loop import Validation
from napari_jrss.training.stages import (
    MonoSegmentationStage,
    RegistrationStage,
    registration_validation,
    segmentation_validation,
)


@dataclass(frozen=True)
class LearningRates:
    """Of the two networks."""

    segmentation: float
    registration: float


class JointStage(RegistrationStage):
    """A registration and a segmentation network, as many steps as JRSS takes in its rounds.

    ``self.network`` is the registration network and ``self.mono`` a stage that draws labelled
    images for the segmentation network, ``self.mono.network``.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        segmentation: nn.Module,
        registration: nn.Module,
        rates: LearningRates,
    ) -> None:
        config, joint = task.config, task.config.joint
        epochs = task.joint_rounds * (joint.registration_epochs + joint.segmentation_epochs)
        super().__init__(name, registration, task.tensors(), config, task.fabric, epochs)
        self.mono = MonoSegmentationStage(segmentation, self.tensors, config, task.fabric)
        self.modules = {"segmentation": segmentation, "registration": registration}
        self.learning_rate = rates.registration
        adam = torch.optim.Adam(
            [
                {"params": list(registration.parameters()), "factor": 1.0},
                {
                    "params": list(segmentation.parameters()),
                    "factor": rates.segmentation / rates.registration,
                    "weight_decay": config.segmentation.weight_decay,
                },
            ],
            rates.registration,
        )
        self.optimizer = task.fabric.setup_optimizers(adam)

    def validate(self) -> Validation:
        """Mean of the two networks' Dice, or the only one that there is."""
        segmentation = yield from segmentation_validation(
            self.modules["segmentation"], self.tensors.snapshot, self.tensors.device
        )
        registration = yield from registration_validation(
            self.modules["registration"], self.tensors.snapshot, self.tensors.device
        )
        values = [value for value in (segmentation, registration) if value is not None]
        return sum(values) / len(values) if values else None
