"""Label propagation: every labelled case is registered to a scan, and their labels vote.

No segmentation network is trained. The votes are weighted by local image similarity
(:class:`napari_jrss.inference.predict.Votes`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from napari_jrss.errors import JRSSError
from napari_jrss.experiments.methods.jrss import ROUND, networks_of
from napari_jrss.experiments.recipe import NO_REGISTRATION, FieldModule, Task, Trained
from napari_jrss.inference.partners import syn
from napari_jrss.inference.predict import Votes, displacement_field, follow
from napari_jrss.snapshot import CohortSnapshot


def train(task: Task) -> Trained:
    """With the registration network of Mono-Reg."""
    registration = networks_of(task, task.before[-1] / ROUND).registration
    if registration is None:
        raise JRSSError(NO_REGISTRATION)
    return Trained(segmentation=Propagation(registration, task.snapshot))


def train_with_syn(task: Task) -> Trained:
    """With SyN: N registrations per scan."""
    return Trained(segmentation=Propagation(FieldModule(syn), task.snapshot))


class Propagation(nn.Module):
    """Registered atlases, the labelled cases, as a segmentation network of batch size 1."""

    def __init__(self, registration: nn.Module, snapshot: CohortSnapshot) -> None:
        super().__init__()
        self.registration = registration
        self.snapshot = snapshot

    def forward(self, image: Tensor) -> Tensor:
        """Log of each class's share of the votes, (1, C, z, y, x)."""
        fixed = image[0, 0].cpu().numpy()
        votes = Votes(fixed, self.snapshot.classes)
        arrays = self.snapshot.arrays
        for atlas in self.snapshot.labelled:
            moving, label = arrays.image(atlas), arrays.label(atlas)
            field = displacement_field(self.registration, moving, fixed, image.device)
            votes.add(follow(field, moving, label))
        return torch.from_numpy(np.log(votes.shares() + 1e-6))[None]
