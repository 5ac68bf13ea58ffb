"""The stages of the training: what each draws, which step it takes, how it is validated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import islice, permutations
from typing import TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_jrss.config import (
    RegistrationTraining,
    SegmentationTraining,
    Shape,
    TrainingConfig,
)
from napari_jrss.inference.predict import predict_case, warp_label
from napari_jrss.losses import class_weights
from napari_jrss.metrics import dice_per_class
from napari_jrss.networks.spatial import warp
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training.augment import (
    crop_grid,
    random_affine,
    random_affine_grid,
    random_intensity,
    sample_image,
    sample_label,
    strong_intensity,
)
from napari_jrss.training.deformation import Fields, deformed
from napari_jrss.training.loop import Validation
from napari_jrss.training.ranks import shared
from napari_jrss.training.sampling import draw_cases, draw_pairs, draw_start
from napari_jrss.training.screening import IGNORED, PseudoLabel
from napari_jrss.training.steps import (
    Losses,
    PairBatch,
    StudentBatch,
    mono_segmentation_step,
    registration_step,
    student_step,
    update_teacher,
)

VALIDATION_PAIRS = 12

Item = TypeVar("Item")


class TrainingTensors:
    """A snapshot's volumes as tensors on the device, labels by a person before pseudo-labels."""

    def __init__(
        self,
        snapshot: CohortSnapshot,
        pseudo_labels: Mapping[str, PseudoLabel],
        device: torch.device,
    ) -> None:
        self.snapshot = snapshot
        self.pseudo_labels = pseudo_labels
        self.device = device
        self.manual = frozenset(snapshot.labelled)
        accepted = [c for c, pseudo in pseudo_labels.items() if pseudo.accepted]
        self.supervised = tuple(sorted((*snapshot.labelled, *accepted)))
        self._structures: dict[str, list[NDArray[np.intp]]] = {}

    def images(self, cases: Sequence[str]) -> Tensor:
        """(B, channels, z, y, x), the one that is registered first."""
        arrays = [self.snapshot.arrays.channels(case) for case in cases]
        return torch.from_numpy(np.stack(arrays)).to(self.device)

    def registered_images(self, cases: Sequence[str]) -> Tensor:
        """(B, 1, z, y, x): of several channels the one that is registered."""
        arrays = [self.snapshot.arrays.image(case) for case in cases]
        return torch.from_numpy(np.stack(arrays)[:, None]).to(self.device)

    def labels(self, cases: Sequence[str]) -> Tensor:
        """(B, z, y, x): manual labels, else whole pseudo-labels, else all ignored."""
        return self._stack([self._label(case) for case in cases])

    def targets(self, cases: Sequence[str]) -> Tensor:
        """(B, z, y, x): manual labels, else screened pseudo-labels."""
        arrays = [
            self._label(case) if case in self.manual else self.pseudo_labels[case].target
            for case in cases
        ]
        return self._stack(arrays)

    def draw_structure(self, case: str, rng: np.random.Generator) -> Shape | None:
        """A voxel (z, y, x) of a structure of a labelled case, both drawn; None without any."""
        if case not in self._structures:
            label = self.snapshot.arrays.label(case)
            order = np.argsort(label, axis=None, kind="stable")
            first = np.searchsorted(label.ravel()[order], np.arange(1, self.snapshot.classes + 1))
            parts = np.split(order, first)[1:-1]
            # every so-many-th voxel is enough to draw from
            self._structures[case] = [p[:: max(1, len(p) // 1000)].copy() for p in parts if len(p)]
        structures = self._structures[case]
        if not structures:
            return None
        voxel = rng.choice(structures[rng.integers(len(structures))])
        z, y, x = (int(i) for i in np.unravel_index(voxel, self.snapshot.shape))
        return z, y, x

    def class_weights(self, background: float = 0.5) -> Tensor:
        """(C,), by the rarity of each class in the manual labels."""
        weights = class_weights(self._voxels, background)
        return weights.to(self.device)

    @cached_property
    def _voxels(self) -> Tensor:
        """(C,), of each class in the manual labels."""
        counts = torch.zeros(self.snapshot.classes, dtype=torch.int64)
        for case in self.snapshot.labelled:
            label = torch.from_numpy(self.snapshot.arrays.label(case)).flatten()
            counts += torch.bincount(label, minlength=self.snapshot.classes)[: len(counts)]
        return counts

    def _label(self, case: str) -> np.ndarray:
        if case in self.manual:
            return self.snapshot.arrays.label(case)
        if case in self.pseudo_labels:
            return self.pseudo_labels[case].label
        return np.full(self.snapshot.shape, IGNORED, np.uint8)

    def _stack(self, arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device).long()


def segmentation_validation(
    network: nn.Module,
    snapshot: CohortSnapshot,
    device: torch.device,
    fabric: Fabric | None = None,
) -> Validation:
    """Mean foreground Dice of each validation case.

    The processes of `fabric` share the cases, and all return the same.
    """

    def measure(case: str) -> NDArray[np.float64]:
        return segmentation_dice(network, snapshot, case, device)

    return (yield from measured_by_all(snapshot.validation, measure, fabric))


def segmentation_dice(
    network: nn.Module, snapshot: CohortSnapshot, case: str, device: torch.device
) -> NDArray[np.float64]:
    """Dice of each foreground class in one case, NaN where neither side has it: (C - 1,)."""
    prediction = predict_case(network, snapshot.arrays.channels(case), device).label
    return dice_per_class(prediction, snapshot.arrays.label(case), snapshot.classes)


def registration_validation(
    network: nn.Module,
    snapshot: CohortSnapshot,
    device: torch.device,
    fabric: Fabric | None = None,
) -> Validation:
    """Mean foreground Dice of ordered validation pairs; none with fewer than two cases.

    The processes of `fabric` share the pairs, and all return the same.
    """

    def measure(pair: tuple[str, str]) -> NDArray[np.float64]:
        label = warp_label(network, snapshot.arrays, *pair, device)
        return dice_per_class(label, snapshot.arrays.label(pair[1]), snapshot.classes)

    pairs = [(m, f) for m, f in islice(permutations(snapshot.validation, 2), VALIDATION_PAIRS)]
    return (yield from measured_by_all(pairs, measure, fabric))


def measured_by_all(
    items: Sequence[Item],
    measure: Callable[[Item], NDArray[np.float64]],
    fabric: Fabric | None,
) -> Validation:
    """Mean Dice of each item; each process measures its part, and all return the same.

    `measure` gives the Dice of each structure, NaN where there is none.
    """
    rank, processes = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    own = []
    for first in range(0, len(items), processes):  # as many yields in each process
        part = items[first + rank : first + rank + 1]
        own += [float(np.nanmean(measure(item))) for item in part] or [0.0]
        yield
    if fabric is None or processes == 1 or not own:
        return own
    scores = torch.tensor(own, dtype=torch.float64, device=fabric.device)
    every = torch.as_tensor(fabric.all_gather(scores))
    return [float(every[i % processes, i // processes]) for i in range(len(items))]


class CohortStage:
    """What the stages share: tensors of the cohort, and one network with its optimiser."""

    judge_start = False

    def __init__(
        self,
        name: str,
        network: nn.Module,
        tensors: TrainingTensors,
        config: TrainingConfig,
        settings: SegmentationTraining | RegistrationTraining,
        fabric: Fabric,
    ) -> None:
        self.name = name
        self.tensors, self.config, self._fabric = tensors, config, fabric
        self.modules = {"network": network}
        self.learning_rate = settings.learning_rate
        decoupled = isinstance(settings, SegmentationTraining) and settings.optimizer == "adamw"
        adam = (torch.optim.AdamW if decoupled else torch.optim.Adam)(
            network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.network, self.optimizer = fabric.setup(shared(network, fabric), adam)
        self.steps_per_epoch = epoch_steps(tensors.snapshot, settings.batch_size)

    def after_step(self, step: int) -> None:
        """Nothing follows the network."""

    def _grid(self, batch: int, std: float, rng: np.random.Generator) -> Tensor:
        """Random affine sampling grid for each image, (batch, z, y, x, 3)."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        shape, device = self.tensors.snapshot.shape, self.tensors.device
        return random_affine_grid(batch, shape, std, generator, device)

    def _crops(self, cases: Sequence[str], std: float, rng: np.random.Generator) -> Tensor:
        """Random sampling grid of a crop of each case, (batch, *crop, 3).

        Half of the crops of labelled cases are centred on a structure drawn at random.
        """
        tensors, shape = self.tensors, self.tensors.snapshot.shape
        crop = self.config.segmentation.crop(shape)
        if crop == shape:
            return self._grid(len(cases), std, rng)
        starts = []
        for case in cases:
            centre = None
            if case in tensors.manual and rng.random() < 0.5:
                centre = tensors.draw_structure(case, rng)
            starts.append(draw_start(shape, crop, rng, centre))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        matrices = random_affine(len(cases), std, generator)
        return crop_grid(shape, starts, crop, matrices, tensors.device)

    def _intensity(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        std = self.config.augmentation.intensity_std
        if std == 0:
            return images
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return random_intensity(images, std, generator)


class MonoSegmentationStage(CohortStage):
    """Mono-Seg: the segmentation network on the labelled cases alone (Eq. 1 and 2)."""

    def __init__(
        self,
        network: nn.Module,
        tensors: TrainingTensors,
        config: TrainingConfig,
        fabric: Fabric,
        fields: Fields | None = None,
    ) -> None:
        settings = config.segmentation
        super().__init__("mono_segmentation", network, tensors, config, settings, fabric)
        self.fields = fields or {}
        self.steps = settings.steps(self.steps_per_epoch, tensors.snapshot.classes - 1)

    def losses(self, step: int, rng: np.random.Generator) -> Losses:
        """Dice loss of a batch of augmented labelled cases."""
        snapshot = self.tensors.snapshot
        settings = self.config.segmentation
        cases = draw_cases(snapshot.labelled, settings.batch_size, rng)
        images, labels = self.tensors.images(cases), self.tensors.labels(cases)
        grid = self._crops(cases, self.config.augmentation.affine_std, rng)
        grid = deformed(grid, cases, self.fields, settings.registration_augmentation, rng)
        images = self._intensity(sample_image(images, grid), rng)
        if settings.strong_intensity > 0:
            images = self._look_different(images, settings.strong_intensity, rng)
        self.network.train()
        labels = sample_label(labels, grid, outside=0)
        return mono_segmentation_step(self.network, images, labels, settings)

    @staticmethod
    def _look_different(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
        """Change the intensities of a share of the images strongly."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        changed = rng.random(len(images)) < share
        seen = [
            strong_intensity(image[None], generator) if its else image[None]
            for image, its in zip(images, changed, strict=True)
        ]
        return torch.cat(seen)

    def validate(self) -> Validation:
        """Dice of the network on the validation cases."""
        network = self.modules["network"]
        tensors = self.tensors
        return segmentation_validation(network, tensors.snapshot, tensors.device, self._fabric)


class RegistrationStage(CohortStage):
    """Registration, pre-trained (Mono-Reg) or in a round, with the labels there are (Eq. 10).

    `epochs` are those of a joint round; without it the stage is the pre-training, whose length
    and warm-up stand in `config`.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        tensors: TrainingTensors,
        config: TrainingConfig,
        fabric: Fabric,
        epochs: int | None = None,
    ) -> None:
        super().__init__(name, network, tensors, config, config.registration, fabric)
        settings = config.registration
        self.warmup_steps = settings.warmup_steps if epochs is None else 0
        pretraining = max(settings.epochs * self.steps_per_epoch, settings.minimum_steps)
        self.steps = pretraining if epochs is None else max(1, epochs * self.steps_per_epoch)

    def losses(self, step: int, rng: np.random.Generator) -> Losses:
        """Losses of a batch of pairs of cases."""
        batch = self.draw(rng)
        self.network.train()
        classes, settings = self.tensors.snapshot.classes, self.config.registration
        return registration_step(self.network, batch, classes, self._lambda_r(step), settings)

    def draw(self, rng: np.random.Generator) -> PairBatch:
        """The pairs of one step."""
        settings = self.config.registration
        snapshot, supervised = self.tensors.snapshot, self.tensors.supervised
        pairs = draw_pairs(
            snapshot.training,
            supervised,
            settings.batch_size,
            settings.labelled_pair_fraction,
            rng,
        )
        moving, fixed = [m for m, _ in pairs], [f for _, f in pairs]
        both = [m in supervised and f in supervised for m, f in pairs]
        moving_images, moving_labels = self._side(moving, rng)
        fixed_images, fixed_labels = self._side(fixed, rng)
        return PairBatch(
            moving_images,
            fixed_images,
            moving_labels,
            fixed_labels,
            torch.tensor(both, device=self.tensors.device),
        )

    def _side(self, cases: list[str], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images and labels of one side of the pairs."""
        images, labels = self.tensors.registered_images(cases), self.tensors.labels(cases)
        std = self.config.augmentation.pair_affine_std
        if std == 0:
            return images, labels
        grid = self._grid(len(cases), std, rng)
        return sample_image(images, grid), sample_label(labels, grid, outside=0)

    def _lambda_r(self, step: int) -> float:
        settings = self.config.registration
        left = max(0.0, 1 - step / self.warmup_steps) if self.warmup_steps else 0.0
        return settings.lambda_r + left * (settings.lambda_r_warmup - settings.lambda_r)

    def validate(self) -> Validation:
        """Dice of warped labels on pairs of validation cases."""
        network = self.modules["network"]
        tensors = self.tensors
        return registration_validation(network, tensors.snapshot, tensors.device, self._fabric)


class TeacherStage(CohortStage):
    """A student, and the teacher that follows it as a moving average."""

    def __init__(
        self,
        name: str,
        student: nn.Module,
        teacher: nn.Module,
        tensors: TrainingTensors,
        config: TrainingConfig,
        fabric: Fabric,
    ) -> None:
        super().__init__(name, student, tensors, config, config.segmentation, fabric)
        self.modules = {"student": student, "teacher": teacher}
        teacher.to(tensors.device).eval()
        self.learning_rate = config.joint.learning_rate or self.learning_rate
        self.steps = config.joint.steps(self.steps_per_epoch)

    def after_step(self, step: int) -> None:
        """Move the teacher's weights towards the student's."""
        decay = self.config.joint.ema_decay
        update_teacher(self.modules["teacher"], self.modules["student"], decay)

    def validate(self) -> Validation:
        """Dice of the teacher on the validation cases."""
        network = self.modules["teacher"]
        tensors = self.tensors
        return segmentation_validation(network, tensors.snapshot, tensors.device, self._fabric)


class StudentStage(TeacherStage):
    """The student on manual and pseudo-labels of registered pairs (Eq. 6)."""

    def __init__(
        self,
        name: str,
        student: nn.Module,
        teacher: nn.Module,
        registration: nn.Module,
        tensors: TrainingTensors,
        config: TrainingConfig,
        fabric: Fabric,
    ) -> None:
        super().__init__(name, student, teacher, tensors, config, fabric)
        self.registration = registration.to(tensors.device).eval()

    def losses(self, step: int, rng: np.random.Generator) -> Losses:
        """Losses of the student on labelled and on screened cases."""
        self.network.train()
        settings = self.config.joint
        weighted = settings.class_weighting != "none"
        class_weight = self.tensors.class_weights() if weighted else None
        return student_step(self.network, self._batch(rng), settings, class_weight)

    @torch.no_grad()
    def _batch(self, rng: np.random.Generator) -> StudentBatch:
        """Pairs of one labelled and one unlabelled case, in either order, registered."""
        tensors, snapshot = self.tensors, self.tensors.snapshot
        pairs = max(1, self.config.segmentation.batch_size // 2)
        labelled = draw_cases(snapshot.labelled, pairs, rng)
        unlabelled = draw_cases(snapshot.unlabelled, pairs, rng)
        swap = rng.random(pairs) < 0.5
        order = zip(labelled, unlabelled, swap, strict=True)
        moving, fixed = zip(*((u, x) if s else (x, u) for x, u, s in order), strict=True)
        cases = [*moving, *fixed]
        manual = torch.tensor([case in tensors.manual for case in cases], device=tensors.device)
        usable = torch.tensor(
            [case in tensors.supervised for case in moving], device=tensors.device
        )

        images, targets = tensors.images(cases), tensors.targets(cases)
        probabilities = torch.zeros(
            (2 * pairs, snapshot.classes, *snapshot.shape), device=tensors.device
        )
        probabilities[~manual] = self.modules["teacher"](images[~manual]).float().softmax(1)
        displacement = self.registration(images[:pairs], images[pairs:]).float()
        warped_labels = _warp_labels(tensors.labels(moving), displacement)
        if self.config.joint.registration_warp:
            images[:pairs] = warp(images[:pairs], displacement, padding="border")
            targets[:pairs] = _warp_labels(targets[:pairs], displacement)
            probabilities[:pairs] = warp(probabilities[:pairs], displacement, padding="border")

        grid = self._grid(len(cases), self.config.augmentation.affine_std, rng)
        images = self._intensity(sample_image(images, grid), rng)
        return StudentBatch(
            images=images,
            labels=sample_label(targets, grid, outside=IGNORED),
            manual=manual,
            teacher_logits=sample_image(probabilities, grid).clamp_min(1e-6).log(),
            warped_labels=sample_label(warped_labels, grid[pairs:], outside=IGNORED),
            warped_usable=usable,
        )


def epoch_steps(snapshot: CohortSnapshot, batch_size: int) -> int:
    """Steps of an epoch of K samples."""
    return max(1, round(len(snapshot.training) / batch_size))


def _warp_labels(labels: Tensor, displacement: Tensor) -> Tensor:
    """Nearest-neighbour warp of (B, z, y, x); what comes from outside is ignored."""
    shifted = (labels - IGNORED).unsqueeze(1).float()
    return (warp(shifted, displacement, mode="nearest").squeeze(1) + IGNORED).round().long()
