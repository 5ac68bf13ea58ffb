"""What a training with the settings ``fast`` costs, before anything was trained.

The seconds and bytes of a step are linear in its voxels and in the number of classes. The factors
follow steps on one core of an AMD EPYC with AVX2 and two whole trainings (docs/benchmarks.md);
what this machine has trained since says how much faster or slower it is.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import psutil

from napari_jrss.config import Shape, TrainingConfig
from napari_jrss.errors import from_os_error
from napari_jrss.io.atomic import write_text
from napari_jrss.threads import usable_threads

_logger = logging.getLogger(__name__)

BYTES_PER_VOXEL = 450
"""A little more than a forward pass takes: 200 for OBELISK, 400 for `monai_unet`."""
# Of a step with two crops or scans: seconds per million voxels, and the same for each class.
_SECONDS = {
    "mono_segmentation": (3.4, 0.029),
    "student": (7.6, 0.072),
    "registration": (1.7, 0.079),
    "prediction": (0.8, 0.007),
    "deformation": (1.4, 0.0),
    "propagation": (5.6, 0.0),
    "quick": (3.4, 0.029),
    "own_voxels": (3.0, 0.113),
}
# Seconds of a step apart from its voxels; a student's step is two.
_EACH_STEP = 0.05
# Bytes per voxel, and the same for each class.
_BYTES = {
    "mono_segmentation": (1850, 17),
    "student": (3600, 48),
    "registration": (1100, 48),
    "prediction": (BYTES_PER_VOXEL, 8),
    "deformation": (100, 0),
    "propagation": (140, 0),
    "own_voxels": (1800, 48),
}
# For each further image of a case: seconds per million voxels, and bytes per voxel.
_FURTHER = {
    "mono_segmentation": (0.5, 90),
    "student": (0.5, 240),
    "quick": (0.5, 90),
    "prediction": (0.1, 70),
}
ON_CROPS = ("mono_segmentation", "student", "quick")
"""Stages whose steps see crops, where the settings want crops."""

MOST_ON_OWN_VOXELS = 32
"""Unlabelled cases whose label on the scan's own voxels a round makes; others' follow on demand."""
_HELD = 2  # what a step frees, the C library keeps in part
_PROGRAM_BYTES = 600e6  # Python with PyTorch, before any step
_VOLUME_BYTES = 5  # of a voxel that is kept in memory: a float32 image and its label
_KEPT_BYTES = 2**30  # what a training keeps in memory at most
BLOCK_BYTES = 2**30
"""What a part of a scan takes at most, while its label on the scan's own voxels is made."""
BYTES_PER_CLASS = 12
"""Of a voxel there, beside that: a probability, as input and interpolated, and a logit."""
_SCAN_BYTES = 4, 8  # per voxel of a whole scan: each of its images, and what reading it takes
_PART_BYTES = 2, 1  # of what is kept of a labelled scan: each of its images, and its label
# Seconds on n cores fall as n to this power (docs/benchmarks.md).
_CORES = 0.75
# Seconds on a GPU for each on one core; what was trained there replaces it.
_GPU = 0.01
_LEAST_GRID = 50_000  # voxels
_WEIGHT = 0.5  # of the newest training in the machine's speed


@dataclass(frozen=True)
class Machine:
    """What trains: ``cpu`` or ``cuda``, its memory in bytes, and its speed.

    Attributes
    ----------
    speed
        Seconds that it needs for each second of the model's one core.
    known
        Whether the speed comes from what it has trained.
    """

    device: str
    cores: int
    memory: float
    speed: float
    known: bool = False


@dataclass(frozen=True)
class Cost:
    """Seconds of the pre-training and of one round, and bytes at the peak."""

    pretraining_s: float
    round_s: float
    memory: float

    @property
    def seconds(self) -> float:
        """Of the pre-training and one round."""
        return self.pretraining_s + self.round_s


def this_machine(device: str = "auto") -> Machine:
    """The GPU if there is one and `device` allows it, else the CPU."""
    cores = usable_threads()
    memory = float(psutil.virtual_memory().total)
    if device in ("auto", "cuda") and shutil.which("nvidia-smi"):
        import torch  # slow, so only where there may be a GPU

        if torch.cuda.is_available():
            memory = float(torch.cuda.get_device_properties(0).total_memory)
            speed = _speeds().get(_what_trains("cuda"))
            return Machine("cuda", cores, memory, speed or _GPU, known=speed is not None)
    speed = _speeds().get(_what_trains("cpu"))
    return Machine("cpu", cores, memory, speed or cores**-_CORES, known=speed is not None)


def step_seconds(stage: str, voxels: int, classes: int, images: int = 1) -> float:
    """Seconds of one step on the model's core; `voxels` are those of the crop or the grid."""
    fixed, per_class = _SECONDS[stage]
    further = _FURTHER.get(stage, (0.0, 0))[0] * (images - 1)
    each = _EACH_STEP * (2 if stage == "student" else 1)
    return each + (fixed + per_class * classes + further) * voxels / 1e6


def training_cost(
    config: TrainingConfig,
    shape: Shape,
    classes: int,
    cases: int,
    unlabelled: int,
    machine: Machine,
    images: int = 1,
    finer: float = 1.0,
    scan: int = 0,
) -> Cost:
    """What the pre-training and one round will cost.

    Parameters
    ----------
    config
        Settings of the kind ``fast``.
    shape
        Training grid (z, y, x).
    classes
        Number of structures and the background.
    cases, unlabelled
        Training cases, K, and those of them without a label, J.
    machine
        What trains.
    images
        Images of each case.
    finer
        How many times smaller than those of the grid the scans' own voxels are.
    scan
        Voxels of the largest scan, if they are more than those on the grid.
    """
    grid, crop = math.prod(shape), math.prod(config.segmentation.crop(shape))
    per_epoch = max(1, round(cases / config.segmentation.batch_size))
    pairs = max(1, round(cases / config.registration.batch_size))
    joint, registration = config.joint, config.registration
    # where left and right are alike, the mirror image, too
    predictions = unlabelled * (2 if config.mirror_image else 1)
    pretraining = {
        "mono_segmentation": config.segmentation.steps(per_epoch, classes - 1),
        "registration": registration.steps(pairs),
        "prediction": predictions,
    }
    one_round = {
        "student": joint.steps(per_epoch),
        "registration": joint.registration_epochs * pairs,
        "prediction": predictions,
    }
    for steps, within in ((pretraining, False), (one_round, True)):
        if stage := config.registering_stage(joint=within):
            steps[stage] = 24
    voxels = {stage: crop if stage in ON_CROPS else grid for stage in _SECONDS}
    voxels["own_voxels"] = config.fine.crop**3
    own = own_bytes = 0.0
    if config.fine.steps > 0 and finer >= config.fine.least_finer:
        pretraining["own_voxels"] = one_round["own_voxels"] = config.fine.steps
        scans = min(unlabelled, MOST_ON_OWN_VOXELS)
        on_scan = round(grid * finer**3)
        own = machine.speed * scans * step_seconds("prediction", on_scan, classes, images)
        sizes = max(scan, on_scan), on_scan, cases - unlabelled, classes, images
        own_bytes = own_voxels_bytes(*sizes, on_gpu=machine.device == "cuda")

    def seconds(steps: Mapping[str, int]) -> float:
        return own + machine.speed * sum(
            n * step_seconds(stage, voxels[stage], classes, images) for stage, n in steps.items()
        )

    step = max(
        (fixed + per_class * classes + _FURTHER.get(stage, (0, 0))[1] * (images - 1))
        * voxels[stage]
        for stage, (fixed, per_class) in _BYTES.items()
        if pretraining.get(stage) or one_round.get(stage)
    )
    volume = grid * (_VOLUME_BYTES + 4 * (images - 1))
    kept = min(cases * volume, _KEPT_BYTES) if machine.device == "cpu" else 0
    peak = _PROGRAM_BYTES + _HELD * step + kept + own_bytes
    return Cost(seconds(pretraining), seconds(one_round), peak)


def own_voxels_bytes(
    scan: int, seen: int, labelled: int, classes: int, images: int, *, on_gpu: bool = False
) -> float:
    """What learning and making labels on the scans' own voxels takes beside the step itself.

    Parameters
    ----------
    scan
        Voxels of the largest scan.
    seen
        Of these, those on the training grid.
    labelled
        Labelled cases, whose parts with structures are kept.
    classes, images
        Number of structures and the background; images of each case.
    on_gpu
        Whether the bytes are asked for that a GPU holds.
    """
    block = min(BLOCK_BYTES, seen * (BYTES_PER_VOXEL + BYTES_PER_CLASS * classes))
    if on_gpu:
        return block
    image, reading = _SCAN_BYTES
    part, label = _PART_BYTES
    kept = min(_KEPT_BYTES, labelled * seen * (part * images + label))
    return scan * image * images + max(block, kept + scan * reading)


def learn_speed(
    device: str,
    seconds: Mapping[str, Sequence[float]],
    config: TrainingConfig,
    shape: Shape,
    classes: int,
    images: int = 1,
) -> None:
    """Keep how fast this machine has just trained, for the next plan.

    Parameters
    ----------
    device
        What trained: ``cpu`` or ``cuda``; another computer teaches nothing.
    seconds
        Of each step, by stage: a stage of many steps says most.
    config, shape, classes, images
        Of the training; `images` of each case. Other networks than that of the settings ``fast``
        teach nothing, nor do grids on which a step takes no time.
    """
    if device not in ("cpu", "cuda") or config.segmentation_network.name != "unet":
        return
    if math.prod(shape) < _LEAST_GRID:
        return
    grid, crop = math.prod(shape), math.prod(config.segmentation.crop(shape))
    # At the scans' own voxels crops and predictions depend on the scans, too; and predictions of
    # mirror images on whether left and right are alike.
    if "own_voxels" in seconds or config.mirror_image:
        seconds = {k: v for k, v in seconds.items() if k not in ("own_voxels", "prediction")}
    model = {
        stage: step_seconds(stage, crop if stage in ON_CROPS else grid, classes, images)
        for stage, taken in seconds.items()
        if stage in _SECONDS and taken
    }
    if not model:
        return
    expected = sum(len(seconds[stage]) * each for stage, each in model.items())
    speed = sum(sum(seconds[stage]) for stage in model) / expected
    speeds = _speeds()
    what = _what_trains(device)
    before = speeds.get(what, speed)
    speeds[what] = _WEIGHT * speed + (1 - _WEIGHT) * before
    path = _speeds_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(speeds))
    except OSError as error:
        _logger.warning("the speed of this machine isn't kept: %s", from_os_error(error))


def _what_trains(device: str) -> str:
    """The device, and on how many cores this process computes: others are another machine."""
    return f"cpu, {usable_threads()} cores" if device == "cpu" else device


def _speeds_path() -> Path:
    return platformdirs.user_cache_path("napari-jrss", appauthor=False) / "speed.json"


def _speeds() -> dict[str, float]:
    """Seconds for each of the model's, by what trained, as this machine has trained so far."""
    try:
        found = json.loads(_speeds_path().read_text(encoding="utf-8"))
        return {str(k): float(v) for k, v in found.items() if float(v) > 0}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # nothing was trained yet, or the file is damaged and will be written anew
