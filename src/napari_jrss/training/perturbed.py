"""The student that sees strongly changed images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_jrss.config import TrainingConfig
from napari_jrss.losses import softmax
from napari_jrss.networks.mirror import Mirrored
from napari_jrss.training.augment import (
    follow_field,
    sample_image,
    sample_label,
    strong_intensity,
)
from napari_jrss.training.deformation import Fields, deformed
from napari_jrss.training.ranks import shared
from napari_jrss.training.sampling import draw_cases
from napari_jrss.training.screening import IGNORED
from napari_jrss.training.stages import TeacherStage, TrainingTensors
from napari_jrss.training.steps import (
    Losses,
    PerturbedBatch,
    label_losses,
    perturbed_student_step,
)

RAMP = 0.3
"""Share of the steps over which the agreement with the teacher gets its weight."""


class PerturbedStudentStage(TeacherStage):
    """A student that has to find in changed images what the teacher finds in unchanged ones.

    A batch holds as many crops of labelled scans as of unlabelled ones. The labelled ones are
    deformed: by a random affine change, and along a part of the field to an unlabelled scan
    (:mod:`napari_jrss.training.deformation`), in one interpolation.
    """

    judge_start = True

    def __init__(
        self,
        name: str,
        student: nn.Module,
        teacher: nn.Module,
        tensors: TrainingTensors,
        config: TrainingConfig,
        fabric: Fabric,
        fields: Fields,
    ) -> None:
        super().__init__(name, student, teacher, tensors, config, fabric)
        self.fields = fields
        # At each step the image alone, without its mirror image: it takes half the time.
        looking = teacher.network if isinstance(teacher, Mirrored) else teacher
        self._seeing = shared(looking, fabric).eval()
        passed = np.zeros(tensors.snapshot.classes, bool)
        for pseudo_label in tensors.pseudo_labels.values():
            passed |= pseudo_label.classes_passed
        self.trusted = torch.from_numpy(passed).to(tensors.device)

    def losses(self, step: int, rng: np.random.Generator) -> Losses:
        """Losses of the student on labelled crops, and its difference from the teacher."""
        self.network.train()
        weight = self.config.joint.lambda_u * min(1.0, (step + 1) / (RAMP * self.steps))
        if weight == 0:  # then unlabelled scans teach nothing
            labelled = draw_cases(
                self.tensors.snapshot.labelled, self.config.segmentation.batch_size, rng
            )
            images, labels = self._labelled(labelled, rng)
            return label_losses(self.network(self._intensity(images, rng)).float(), labels)
        tau = self.config.screening.tau
        return perturbed_student_step(self.network, self._batch(rng), tau, self.trusted, weight)

    @torch.no_grad()
    def _labelled(self, labelled: Sequence[str], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Deformed crops of labelled scans, and their labels."""
        tensors = self.tensors
        grid = self._crops(labelled, self.config.augmentation.affine_std, rng)
        share = self.config.joint.registration_augmentation
        grid = deformed(grid, labelled, self.fields, share, rng)
        images = sample_image(tensors.images(labelled), grid)
        return images, sample_label(tensors.labels(labelled), grid, outside=IGNORED)

    @torch.no_grad()
    def _batch(self, rng: np.random.Generator) -> PerturbedBatch:
        tensors, size = self.tensors, self.config.segmentation.batch_size
        labelled = draw_cases(tensors.snapshot.labelled, size, rng)
        unlabelled = draw_cases(tensors.snapshot.unlabelled, size, rng)
        images, labels = self._labelled(labelled, rng)
        grid = self._crops(unlabelled, 0.0, rng)
        unchanged = sample_image(tensors.images(unlabelled), grid)
        probabilities = softmax(self._seeing(unchanged))
        for number, case in enumerate(unlabelled):
            its, found = grid[number : number + 1], probabilities[number]
            probabilities[number] = self._with_vote(case, its, found)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        labelled_images = self._intensity(images, rng)
        perturbed = strong_intensity(unchanged, generator)
        return PerturbedBatch(labelled_images, labels, perturbed, probabilities)

    def _with_vote(self, case: str, grid: Tensor, teacher: Tensor) -> Tensor:
        """What a teacher finds in a crop (C, z, y, x); where it is unsure, with registered labels.

        These are of labelled scans of which a field to this unlabelled one is known. Below tau
        their vote is averaged with the teacher's probabilities; where both agree, the voxel may
        get above tau.
        """
        weight = self.config.joint.propagated_labels
        fields = {moving: known[case] for moving, known in self.fields.items() if case in known}
        if not fields or weight == 0:
            return teacher
        votes = torch.zeros_like(teacher)
        for moving, field in fields.items():
            moved = follow_field(grid, field.to(grid.device).float()[None])
            label = sample_label(self.tensors.labels([moving]), moved, outside=0).long()
            known = label != IGNORED
            votes.scatter_add_(0, label * known, known.to(teacher.dtype))
        unsure = teacher.max(0).values <= self.config.screening.tau
        vote = (weight / len(fields)) * unsure * votes
        return (teacher + vote) / (1 + vote.sum(0))  # an ignored label has no vote
