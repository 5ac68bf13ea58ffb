"""The fine stage: a small network learns at the scans' own voxels from teacher and labels.

The teacher sees whole scans on the training grid. Where scans are finer, this network sees crops
around the borders of structures at their own resolution, with the teacher's probabilities, and
adds to the logarithm of these. It begins as their interpolation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from napari_jrss.config import Shape, TrainingConfig
from napari_jrss.geometry import Matrix
from napari_jrss.inference.evaluate import none_for_nan
from napari_jrss.inference.fine import class_shares, fine_label, possible, region_on_scan
from napari_jrss.inference.predict import predict_case
from napari_jrss.io.predictions import Prediction
from napari_jrss.labels import IGNORED
from napari_jrss.metrics import dice_per_class
from napari_jrss.networks.fine import FineNetwork
from napari_jrss.preprocess.transform import carry
from napari_jrss.snapshot import CachedArrays, Label, times_finer
from napari_jrss.training.augment import crop_grid, random_affine, sample_image, sample_label
from napari_jrss.training.events import Cancelled, CaseJudged, Event, StageFinished, StageStarted
from napari_jrss.training.loop import Cancel, Validation, stop_requested
from napari_jrss.training.sampling import draw_cases
from napari_jrss.training.stages import CohortStage, TrainingTensors, measured_by_all
from napari_jrss.training.steps import Losses, label_losses

_SAVES = 3
"""How often the stage is validated and its state saved."""
_BORDER_VOXELS = 1000
"""Voxels of a structure's border that crops are centred on, at most."""


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a labelled scan that has structures.

    Attributes
    ----------
    images
        (channels, z, y, x), scaled as the networks see them.
    scan_to_grid
        4x4: voxel (x, y, z, 1) of the part -> voxel of the training grid.
    label
        (z, y, x), on the same voxels.
    prediction
        Of the teacher, on the training grid.
    borders
        For each structure, voxels (n, 3), order z y x, at its border.
    """

    images: NDArray[np.float16]
    scan_to_grid: Matrix
    label: Label
    prediction: Prediction
    borders: list[NDArray[np.intp]]

    @property
    def shape(self) -> Shape:
        z, y, x = self.label.shape
        return z, y, x

    @property
    def nbytes(self) -> int:
        return self.images.nbytes + self.label.nbytes


class FineStage(CohortStage):
    """The fine network on crops of the labelled scans, with what the teacher sees in them.

    Without validation cases the last weights stay. With them, these stay unless they are clearly
    worse there than the interpolated probabilities.

    Parameters
    ----------
    name
        Of the stage.
    network
        Untrained, or to go on from.
    teacher
        Of the round, on the device.
    tensors
        The cohort, with a source of scans.
    config, fabric
        As of the other stages.
    """

    judge_start = True

    def __init__(
        self,
        name: str,
        network: FineNetwork,
        teacher: nn.Module,
        tensors: TrainingTensors,
        config: TrainingConfig,
        fabric: Fabric,
    ) -> None:
        super().__init__(name, network, tensors, config, config.segmentation, fabric)
        self.steps = config.fine.steps
        self.steps_per_epoch = max(1, -(-self.steps // (_SAVES * config.validation_interval)))
        self.teacher = teacher
        self.crop: Shape = (config.fine.crop,) * 3
        self._parts: OrderedDict[str, _Part] = OrderedDict()
        self._classes = tensors.snapshot.classes

    def prepare(self, cancel: Cancel) -> Generator[Event, None, bool]:
        """Look at the labelled scans once: their sizes decide the crop. False if cancelled.

        Yields the Dice of the teacher's label, interpolated to each scan's own voxels.
        """
        stage, labelled = "labelled_scans", self.tensors.snapshot.labelled
        sizes, finer = [], []
        yield StageStarted(stage=stage, steps=len(labelled))
        for done, case in enumerate(labelled):
            if stop_requested(cancel, self._fabric):
                yield Cancelled(stage=stage, step=done)
                return False
            part = self._part(case)
            sizes.append(part.shape)
            finer.append(times_finer(part.scan_to_grid))
            carried = carry(part.prediction, part.scan_to_grid, part.shape)
            dice = dice_per_class(carried, part.label, self._classes)
            yield CaseJudged(stage=stage, case_id=case, dice=none_for_nan(dice))
        z, y, x = (
            min(most, 4 * -(-int(size) // 4))
            for most, size in zip(self.crop, np.max(sizes, axis=0), strict=True)
        )
        self.crop = z, y, x
        network = self.modules["network"]
        assert isinstance(network, FineNetwork)
        network.finer.copy_(torch.tensor([min(finer), max(finer)]))
        yield StageFinished(stage=stage)
        return True

    def losses(self, step: int, rng: np.random.Generator) -> Losses:
        """Dice and cross-entropy of a batch of crops."""
        settings = self.config.segmentation
        cases = draw_cases(self.tensors.snapshot.labelled, settings.batch_size, rng)
        drawn = [self._draw(self._part(case), rng) for case in cases]
        seen = torch.cat([seen for seen, _ in drawn]).to(self.tensors.device)
        labels = torch.cat([label for _, label in drawn]).to(self.tensors.device)
        self.network.train()
        return label_losses(self.network(seen).float(), labels)

    def validate(self) -> Validation:
        """Dice of each validation case at its scan's own voxels."""
        network = self.modules["network"]
        assert isinstance(network, FineNetwork)
        scans = self.tensors.snapshot.scans
        assert scans is not None

        def measure(case: str) -> NDArray[np.float64]:
            scan, prediction = scans.scan(case), self._predicted(case)
            label = fine_label(network, prediction, scan, self.tensors.device)
            if label is None:
                label = carry(prediction, scan.scan_to_grid, scan.shape)
            return dice_per_class(label, scans.scan_label(case), self._classes)

        return measured_by_all(self.tensors.snapshot.validation, measure, self._fabric)

    def _draw(self, part: _Part, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A deformed crop around a border, (1, channels + C, z, y, x), and its label."""
        borders = part.borders[rng.integers(len(part.borders))]
        centre = borders[rng.integers(len(borders))]
        z, y, x = (
            int(np.clip(at - n // 2, min(0, size - n), max(0, size - n)))
            for at, n, size in zip(centre, self.crop, part.shape, strict=True)
        )
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        matrix = random_affine(1, self.config.augmentation.affine_std, generator)
        grid = crop_grid(part.shape, [(z, y, x)], self.crop, matrix, torch.device("cpu"))
        images = torch.from_numpy(part.images).float()[None]
        images = self._intensity(sample_image(images, grid), rng)
        label = torch.from_numpy(part.label.astype(np.int64))[None]
        voxels = (grid[0] + 1) / 2 * (torch.tensor(part.shape[::-1]) - 1)
        shares = class_shares(part.prediction, voxels, part.scan_to_grid, self._classes)
        seen = torch.cat([images, shares[None]], dim=1)
        return seen, sample_label(label, grid, outside=IGNORED)

    def _part(self, case: str) -> _Part:
        """The part of a labelled scan, from memory or from the disk."""
        if case in self._parts:
            self._parts.move_to_end(case)
            return self._parts[case]
        part = self._parts[case] = self._read(case)
        while len(self._parts) > 1 and (
            sum(each.nbytes for each in self._parts.values()) > CachedArrays.budget_bytes
        ):
            self._parts.popitem(last=False)
        return part

    def _read(self, case: str) -> _Part:
        snapshot = self.tensors.snapshot
        assert snapshot.scans is not None
        scan, label = snapshot.scans.scan(case), snapshot.scans.scan_label(case)
        prediction = self._predicted(case)
        found = ndimage.find_objects((label > 0).view(np.uint8))
        sides = [found[0]] if found else []
        region = region_on_scan(possible(prediction), scan)
        sides += [region] if region else []
        box = tuple(
            slice(
                max(0, min(each[axis].start for each in sides) - self.crop[axis] // 2),
                min(n, max(each[axis].stop for each in sides) + self.crop[axis] // 2),
            )
            for axis, n in enumerate(label.shape)
        )
        shift = np.eye(4)
        shift[:3, 3] = [side.start for side in box][::-1]
        images = scan.images[(slice(None), *box)].astype(np.float16)
        kept: Label = np.ascontiguousarray(label[box])  # type: ignore[assignment]
        borders = _borders(kept, self._classes) or [np.argwhere(kept >= 0)]
        return _Part(images, scan.scan_to_grid @ shift, kept, prediction, borders)

    def _predicted(self, case: str) -> Prediction:
        images = self.tensors.snapshot.arrays.channels(case)
        return predict_case(self.teacher, images, self.tensors.device)


def _borders(label: Label, classes: int) -> list[NDArray[np.intp]]:
    """Voxels (n, 3) next to another class, of each structure that there is."""
    mixed = ndimage.minimum_filter(label, 3) != ndimage.maximum_filter(label, 3)
    found = []
    for index in range(1, classes):
        voxels = np.argwhere(mixed & (label == index))
        if len(voxels):
            found.append(voxels[:: max(1, len(voxels) // _BORDER_VOXELS)].copy())
    return found
