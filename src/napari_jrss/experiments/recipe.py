"""What a comparator's recipe gets, what it gives, and how it trains one stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_jrss.config import TrainingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training import round as training
from napari_jrss.training.events import Event
from napari_jrss.training.loop import Stage, Validation
from napari_jrss.training.stages import (
    MonoSegmentationStage,
    RegistrationStage,
    TrainingTensors,
    registration_validation,
    segmentation_validation,
)

NO_REGISTRATION = (
    "the method needs a registration network, which these settings don't train: give "
    "registration.minimum_steps, and joint.registration_epochs for the rounds"
)


class _Never:
    """A run in a worker process isn't asked to stop; it is killed, and goes on from its state."""

    def is_set(self) -> bool:
        return False


NEVER = _Never()


@dataclass(frozen=True)
class Task:
    """One run, as its recipe sees it."""

    snapshot: CohortSnapshot  # the training and validation cases; labels of no others can be read
    config: TrainingConfig
    folder: Path  # where weights and training states are kept; what is there is done
    fabric: Fabric  # device and precision
    joint_rounds: int = 3  # rounds of joint training
    # Folders of the runs that this one starts from, the last one at the end.
    before: tuple[Path, ...] = ()
    # Takes each event of the training.
    report: Callable[[Event], None] = field(default=lambda event: None)

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        return self.fabric.device

    def tensors(self) -> TrainingTensors:
        """The volumes of the training cases, unlabelled ones without any label."""
        return TrainingTensors(self.snapshot, {}, self.fabric.device)

    def seed(self) -> None:
        """Make the weights that networks are born with those of the seed."""
        self.fabric.seed_everything(self.config.seed, verbose=False)


@dataclass(frozen=True)
class Trained:
    """What a recipe gives: networks as :mod:`napari_jrss.inference.evaluate` takes them."""

    # (B, 1, z, y, x) -> logits (B, C, z, y, x); a method without a network computes the same.
    segmentation: nn.Module | None = None
    # Moving and fixed image -> displacement field (B, 3, z, y, x) in voxels.
    registration: nn.Module | None = None
    note: str = ""  # what a reader of the figures has to know, such as a round that couldn't be run
    # Number of the joint round that left these networks; 0 for what precedes the rounds.
    round: int = 0
    earlier: tuple[Trained, ...] = ()  # what the joint rounds before it left

    def parameters(self) -> dict[str, int]:
        """Number of trainable parameters of each network."""
        networks = {"segmentation": self.segmentation, "registration": self.registration}
        return {name: parameters(network) for name, network in networks.items() if network}


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters())


def train_stage(task: Task, stage: Stage, config: TrainingConfig | None = None) -> None:
    """Train a stage to its end, or read its weights where that was done before.

    A killed stage goes on from its last validated epoch. `config` says how to fit if it is not
    the task's: seed, decay of the learning rate, validation interval.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    results = {task.folder / f"{stage.name}.safetensors": nn.ModuleDict(stage.modules)}
    of_round = training.RoundTask(0, task.snapshot, config or task.config, task.folder)
    for event in training.train_stage(stage, results, of_round, task.fabric, NEVER):
        task.report(event)


def of_the_foreground(task: Task) -> Task:
    """The task with a Dice loss of the foreground alone, for U-Nets without normalisation.

    With the background as a class they settled within 50 steps on finding nothing, at all learning
    rates and initialisations that were tried (docs/experiments.md has figures).
    """
    settings = task.config.segmentation.model_copy(update={"include_background": False})
    return replace(task, config=task.config.model_copy(update={"segmentation": settings}))


def train_segmentation(task: Task, network: nn.Module, name: str) -> None:
    """Mono-Seg with any network: Dice on the labelled cases (Eq. 2)."""
    stage = MonoSegmentationStage(network, task.tensors(), task.config, task.fabric)
    stage.name = name
    train_stage(task, stage)


def train_registration(task: Task, network: nn.Module, name: str) -> None:
    """Mono-Reg with any network: image similarity, smoothness, Dice where labelled (Eq. 10)."""
    train_stage(task, registration_stage(task, network, name))


def registration_stage(
    task: Task, network: nn.Module, name: str, kind: type[RegistrationStage] = RegistrationStage
) -> RegistrationStage:
    """The stage of a registration pre-training; a JRSSError where the settings have none."""
    if not task.config.trains_registration:
        raise JRSSError(NO_REGISTRATION)
    return kind(name, network, task.tensors(), task.config, task.fabric)


@dataclass(frozen=True)
class LearningRates:
    """Of the two networks."""

    segmentation: float
    registration: float


class JointStage(RegistrationStage):
    """What DeepAtlas and RSegNet share: two networks under one optimiser.

    They take as many steps as JRSS does in its rounds. ``self.network`` is the registration
    network; ``self.mono`` draws labelled images for the segmentation network,
    ``self.mono.network``.
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
        """Mean Dice of each of the two networks, if it could be measured."""
        segmentation = yield from segmentation_validation(
            self.modules["segmentation"], self.tensors.snapshot, self.tensors.device
        )
        registration = yield from registration_validation(
            self.modules["registration"], self.tensors.snapshot, self.tensors.device
        )
        return [float(np.nanmean(each)) for each in (segmentation, registration) if each]


class FieldModule(nn.Module):
    """A function of two images as a registration network of batch size 1.

    It takes the moving and the fixed image (z, y, x) and gives a field (3, z, y, x) in voxels.
    """

    def __init__(self, field: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self.field = field

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The field of one pair."""
        images = (image[0, 0].cpu().numpy() for image in (moving, fixed))
        return torch.from_numpy(self.field(*images))[None].float()
