"""Label propagation: every labelled case is registered to a scan, and their labels vote.

No segmentation network is trained; a teacher's may be averaged with the votes. These are weighted
by local image similarity (:class:`napari_jrss.inference.predict.Votes`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_jrss.app.review.consensus import weight_of_votes
from napari_jrss.errors import JRSSError
from napari_jrss.experiments.methods.jrss import ROUND, last_round, networks_of
from napari_jrss.experiments.recipe import NO_REGISTRATION, FieldModule, Task, Trained
from napari_jrss.inference.partners import syn
from napari_jrss.inference.predict import Votes, displacement_field, follow, mirror_image
from napari_jrss.inference.refine import register_images
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training.symmetry import mirror_of_votes


def train(task: Task) -> Trained:
    """With the registration network of Mono-Reg."""
    registration = networks_of(task, task.before[-1] / ROUND).registration
    if registration is None:
        raise JRSSError(NO_REGISTRATION)
    return Trained(segmentation=Propagation(registration, task.snapshot))


def train_with_syn(task: Task) -> Trained:
    """With SyN: N registrations per scan."""
    return Trained(segmentation=Propagation(FieldModule(syn), task.snapshot))


def train_beside_teacher(task: Task) -> Trained:
    """The last teacher of the runs before, averaged with the vote of scans registered by images.

    It is what a person gets to correct. Nothing is trained.
    """
    trained = networks_of(task, last_round(task))
    assert trained.segmentation is not None
    mirror = mirror_of_votes(task.snapshot, len(task.snapshot.labelled))
    atlases = Propagation(FieldModule(_by_images), task.snapshot, mirror)
    return Trained(segmentation=BesideTeacher(trained.segmentation, atlases))


def _by_images(moving: NDArray[np.floating], fixed: NDArray[np.floating]) -> NDArray[np.float32]:
    field: NDArray[np.float32] = register_images(moving, fixed).numpy()
    return field


class BesideTeacher(nn.Module):
    """A teacher and registered atlases: the mean of their probabilities, of batch size 1."""

    def __init__(self, teacher: nn.Module, atlases: Propagation) -> None:
        super().__init__()
        self.teacher, self.atlases = teacher, atlases

    def forward(self, image: Tensor) -> Tensor:
        """Log of the mean probability of each class, (1, C, z, y, x)."""
        votes = self.atlases(image).exp().to(image.device)
        weight = weight_of_votes(len(self.atlases.snapshot.labelled))
        mean: Tensor = (self.teacher(image).softmax(1) + weight * votes) / (1 + weight)
        return mean.log()


class Propagation(nn.Module):
    """Registered atlases, the labelled cases, as a segmentation network of batch size 1.

    Given what each class is in the mirror, the cases' mirror images are atlases, too.
    """

    def __init__(
        self,
        registration: nn.Module,
        snapshot: CohortSnapshot,
        mirror: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.registration = registration
        self.snapshot = snapshot
        self.mirror = mirror

    def forward(self, image: Tensor) -> Tensor:
        """Log of each class's share of the votes, (1, C, z, y, x)."""
        fixed = image[0, 0].cpu().numpy()
        votes = Votes(fixed, self.snapshot.classes)
        arrays = self.snapshot.arrays
        for atlas in self.snapshot.labelled:
            voters = [(arrays.image(atlas), arrays.label(atlas))]
            if self.mirror is not None:
                voters.append(mirror_image(*voters[0], self.mirror))
            for moving, label in voters:
                field = displacement_field(self.registration, moving, fixed, image.device)
                votes.add(follow(field, moving, label))
        return torch.from_numpy(np.log(votes.shares() + 1e-6))[None]
