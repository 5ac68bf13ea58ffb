"""The student that sees strongly changed images, and the fields that deform labelled scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from napari_jrss.config import TrainingConfig
from napari_jrss.inference.refine import IMAGES_QUICKLY, register_images
from napari_jrss.snapshot import CohortSnapshot, Image
from napari_jrss.training.augment import (
    follow_field,
    sample_image,
    sample_label,
    strong_intensity,
)
from napari_jrss.training.ranks import shared
from napari_jrss.training.sampling import draw_cases, step_seed
from napari_jrss.training.screening import IGNORED
from napari_jrss.training.stages import TeacherStage, TrainingTensors
from napari_jrss.training.steps import (
    Losses,
    PerturbedBatch,
    dice_and_cross_entropy,
    perturbed_student_step,
)

MOST_FIELDS = 24
"""Pairs of a labelled and an unlabelled scan that are registered for a round."""
MOST_VOXELS = 700_000
"""Of the grid on which fields are found."""
RAMP = 0.3
"""Share of the steps over which the agreement with the teacher gets its weight."""
FIELD_SCALES = (0.3, 1.2)
"""The part of a field that a labelled scan is moved along is drawn between these."""

Fields = Mapping[str, Sequence[Tensor]]
"""By labelled case: displacement fields (3, z, y, x) in voxels onto unlabelled scans."""


def deformation_pairs(config: TrainingConfig, snapshot: CohortSnapshot) -> int:
    """How many pairs a round registers to deform labelled scans along their fields."""
    joint = config.joint
    if joint.student != "perturbed" or joint.registration_augmentation == 0:
        return 0
    return min(MOST_FIELDS, len(snapshot.labelled) * len(snapshot.unlabelled))


def pairs_to_register(
    config: TrainingConfig, snapshot: CohortSnapshot, number: int
) -> list[tuple[str, str]]:
    """The pairs of round `number`, each labelled case as often as the others."""
    rng = np.random.default_rng(step_seed(config.seed, "deformation", number))
    most = deformation_pairs(config, snapshot)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < most:
        for labelled in draw_cases(snapshot.labelled, len(snapshot.labelled), rng):
            pairs[labelled, draw_cases(snapshot.unlabelled, 1, rng)[0]] = None
    return list(pairs)[:most]


class PerturbedStudentStage(TeacherStage):
    """A student that has to find in changed images what the teacher finds in unchanged ones.

    A batch holds as many crops of labelled scans as of unlabelled ones. The labelled ones are
    deformed: by a random affine change, and along a part of the field to an unlabelled scan
    (Zhao et al. 2019), in one interpolation.
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
        self._seeing = shared(teacher, fabric).eval()
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
            return dice_and_cross_entropy(
                self.network(self._intensity(images, rng)).float(), labels
            )
        tau = self.config.screening.tau
        return perturbed_student_step(self.network, self._batch(rng), tau, self.trusted, weight)

    @torch.no_grad()
    def _labelled(self, labelled: Sequence[str], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Deformed crops of labelled scans, and their labels."""
        tensors = self.tensors
        grid = self._crops(labelled, self.config.augmentation.affine_std, rng)
        grid = self._deformed(grid, labelled, rng)
        images = sample_image(tensors.images(labelled), grid)
        return images, sample_label(tensors.labels(labelled), grid, outside=IGNORED)

    @torch.no_grad()
    def _batch(self, rng: np.random.Generator) -> PerturbedBatch:
        tensors, size = self.tensors, self.config.segmentation.batch_size
        labelled = draw_cases(tensors.snapshot.labelled, size, rng)
        unlabelled = draw_cases(tensors.snapshot.unlabelled, size, rng)
        images, labels = self._labelled(labelled, rng)
        unchanged = sample_image(tensors.images(unlabelled), self._crops(unlabelled, 0.0, rng))
        probabilities = self._seeing(unchanged).float().softmax(1)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return PerturbedBatch(
            images=self._intensity(images, rng),
            labels=labels,
            perturbed=strong_intensity(unchanged, generator),
            teacher=probabilities,
        )

    def _deformed(self, grid: Tensor, cases: Sequence[str], rng: np.random.Generator) -> Tensor:
        """The grids moved along a part of a field of their case, or as they are."""
        moved = []
        for each, case in zip(grid, cases, strict=True):
            chosen = each[None]
            fields = self.fields.get(case, ())
            if len(fields) and rng.random() < self.config.joint.registration_augmentation:
                field = fields[int(rng.integers(len(fields)))].to(grid.device).float()
                chosen = follow_field(chosen, float(rng.uniform(*FIELD_SCALES)) * field[None])
            moved.append(chosen)
        return torch.cat(moved)


def field_between(
    snapshot: CohortSnapshot, moving: str, fixed: str, device: torch.device
) -> Tensor:
    """Field (3, z, y, x), float16, that pulls a case onto another by their images alone.

    On large grids it is found, and kept, at half the resolution or less, in voxels of that.
    """
    here, there = (_coarse(snapshot.arrays.image(case), device) for case in (moving, fixed))
    return register_images(here, there, snapshot.spacing_mm, IMAGES_QUICKLY, device=device).half()


def _coarse(image: Image, device: torch.device) -> Tensor:
    """An image (z, y, x), halved until it is small enough."""
    volume = torch.from_numpy(image)[None, None].to(device)
    while volume.numel() > MOST_VOXELS:
        volume = avg_pool3d(volume, 2, ceil_mode=True)
    return volume[0, 0]
