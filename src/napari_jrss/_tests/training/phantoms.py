"""Blocks in noise, as small as the networks allow, and settings that finish within a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from napari_jrss.config import Shape, TrainingConfig, preset
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.networks.weights import StateDict, load_tensors, save_tensors
from napari_jrss.preprocess.resample import resample_image, resample_label
from napari_jrss.snapshot import (
    CaseArrays,
    CaseScan,
    CohortSnapshot,
    Image,
    Label,
    times_finer,
)
from napari_jrss.training.events import Event

SHAPE = (16, 24, 16)
NAMES = ("background", "left", "right")
LABELLED, UNLABELLED, VALIDATION = ("a", "b"), ("u", "v", "w"), ("x", "y")
CASES = (*LABELLED, *UNLABELLED, *VALIDATION)


class Never:
    """A cancel request that never comes."""

    def is_set(self) -> bool:
        return False


@dataclass
class AfterSteps:
    """A cancel request that comes at the given look, from 0."""

    look: int
    looks: int = 0

    def is_set(self) -> bool:
        self.looks += 1
        return self.looks > self.look


def phantom(case_id: str) -> tuple[Image, Label]:
    """Two blocks of different brightness, somewhere else in each case."""
    rng = np.random.default_rng(ord(case_id[0]))
    label = np.zeros(SHAPE, np.uint8)
    z, y, x = rng.integers(2, 5, 3)
    label[z : z + 9, y : y + 9, x : x + 9] = 1
    label[z + 2 : z + 8, y + 10 : y + 16, x + 2 : x + 8] = 2
    image = np.array([-0.7, 1.0, 2.0])[label] + rng.normal(0, 0.2, SHAPE)
    return ((image - image.mean()) / image.std()).astype(np.float32), label


@dataclass
class RecordingArrays:
    """Phantoms by case id that write down what was read of whom."""

    read: list[tuple[str, str]] = field(default_factory=list)

    def image(self, case_id: str) -> Image:
        self.read.append(("image", case_id))
        return phantom(case_id)[0]

    def channels(self, case_id: str) -> Image:
        return self.image(case_id)[None]

    def label(self, case_id: str) -> Label:
        self.read.append(("label", case_id))
        return phantom(case_id)[1]


SCAN_TO_GRID = np.diag([0.5, 0.5, 0.5, 1.0])
SCAN_TO_GRID[:3, 3] = -0.25
"""Scans have voxels half as large as the training grid's; two of them lie in one of the grid's."""


class FinePhantoms:
    """Phantoms whose borders lie between the voxels of the training grid; from 2 mm to 1 mm.

    They are a source of volumes on the training grid and of scans.
    """

    shape: Shape = (32, 48, 32)

    def __init__(self) -> None:
        self._made: dict[str, tuple[Image, Label]] = {}

    def scan(self, case_id: str) -> CaseScan:
        return CaseScan(self._of(case_id)[0][None], SCAN_TO_GRID)

    def scan_label(self, case_id: str) -> Label:
        return self._of(case_id)[1]

    def finer(self, case_id: str) -> float:
        return times_finer(SCAN_TO_GRID)

    def image(self, case_id: str) -> Image:
        return resample_image(self._of(case_id)[0], np.linalg.inv(SCAN_TO_GRID), SHAPE)

    def channels(self, case_id: str) -> Image:
        return self.image(case_id)[None]

    def label(self, case_id: str) -> Label:
        return resample_label(self._of(case_id)[1], np.linalg.inv(SCAN_TO_GRID), SHAPE)

    def _of(self, case_id: str) -> tuple[Image, Label]:
        if case_id not in self._made:
            rng = np.random.default_rng(ord(case_id[0]))
            label = np.zeros(self.shape, np.uint8)
            z, y, x = 2 * rng.integers(2, 5, 3) + 1
            label[z : z + 17, y : y + 17, x : x + 17] = 1
            label[z + 4 : z + 15, y + 20 : y + 31, x + 4 : x + 15] = 2
            label[z + 8, y - 4 : y + 33, x + 9] = 1  # thinner than a voxel of the grid
            image = np.array([-0.7, 1.0, 2.0])[label] + rng.normal(0, 0.2, self.shape)
            image = ((image - image.mean()) / image.std()).astype(np.float32)
            self._made[case_id] = image, label
        return self._made[case_id]


class AlikePhantoms(FinePhantoms):
    """Phantoms that are their own mirror images but for noise."""

    def _of(self, case_id: str) -> tuple[Image, Label]:
        if case_id not in self._made:
            image, label = super()._of(case_id)
            noise = np.random.default_rng(ord(case_id[0])).normal(0, 0.1, image.shape)
            image = (image + image[..., ::-1]) / 2 + noise.astype(np.float32)
            self._made[case_id] = image, np.maximum(label, label[..., ::-1])
        return self._made[case_id]


def fine_snapshot(**cases: Sequence[str]) -> CohortSnapshot:
    """A cohort whose scans are twice as fine as the training grid."""
    phantoms = FinePhantoms()
    return replace(snapshot(**cases, arrays=phantoms), spacing_mm=(2.0, 2.0, 2.0), scans=phantoms)


def snapshot(
    labelled: Sequence[str] = LABELLED,
    unlabelled: Sequence[str] = UNLABELLED,
    validation: Sequence[str] = VALIDATION,
    arrays: CaseArrays | None = None,
) -> CohortSnapshot:
    return CohortSnapshot(
        class_names=NAMES,
        spacing_mm=(2.0, 1.0, 1.0),
        shape=SHAPE,
        labelled=tuple(labelled),
        unlabelled=tuple(unlabelled),
        validation=tuple(validation),
        label_versions={case: "v0001" for case in (*labelled, *validation)},
        arrays=arrays or RecordingArrays(),
    )


def tiny_config(**changes: object) -> TrainingConfig:
    """Every stage in a few steps; tau low enough for barely trained teachers.

    Five training cases in batches of two make two steps per epoch.
    """
    settings = preset("paper").model_dump() | {"validation_interval": 1}
    settings["segmentation"] |= {"epochs": 2, "minimum_steps": 5, "learning_rate": 0.01}
    settings["registration"] |= {
        "epochs": 1,
        "minimum_steps": 3,
        "learning_rate": 0.003,
        "warmup_steps": 2,
    }
    settings["joint"] |= {"segmentation_epochs": 2, "registration_epochs": 1}
    settings["screening"] |= {"tau": 0.2}
    for name, value in changes.items():
        if isinstance(value, dict):
            settings[name] |= value
        else:
            settings[name] = value
    return TrainingConfig.model_validate(settings)


def cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def write_parent(folder: Path, seed: int = 0, config: TrainingConfig | None = None) -> Path:
    """A round's folder with networks as they are born, for a joint round to start from."""
    folder.mkdir(parents=True)
    config = config or tiny_config()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = build_segmentation_network(config.segmentation_network, len(NAMES))
        registration = build_registration_network(config.registration_network)
    save_tensors(RoundFiles(folder).teacher, teacher.state_dict(), {"stage": "mono_segmentation"})
    save_tensors(
        RoundFiles(folder).registration, registration.state_dict(), {"stage": "mono_registration"}
    )
    return folder


def weights(folder: Path) -> dict[str, StateDict]:
    """All weights of a round by file name."""
    return {path.name: load_tensors(path)[0] for path in sorted(folder.glob("*.safetensors"))}


def assert_same_tensors(first: dict[str, StateDict], second: dict[str, StateDict]) -> None:
    """Bit for bit, the same files with the same tensors."""
    assert first.keys() == second.keys()
    for name, state in first.items():
        assert state.keys() == second[name].keys()
        for key, tensor in state.items():
            assert torch.equal(tensor, second[name][key]), f"{name}: {key} differs"


def kinds(events: Sequence[Event]) -> list[tuple[str, str]]:
    """Kind and stage of each event but steps and epochs, as the story of a run."""
    return [
        (event.kind, getattr(event, "stage", ""))
        for event in events
        if event.kind not in ("step_end", "epoch_end")
    ]
