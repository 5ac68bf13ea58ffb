"""An estimate of the time and memory that a series of rounds will take, before it starts.

Time is the number of steps of each stage times the seconds of one step: those of the latest
finished round with the same networks, batch sizes and device, or else measured. Memory is

    program + volumes + a + b * voxels + own,

where `voxels` is the size of the training grid; `a` and `b` are measured
(:mod:`napari_jrss.app.rounds.measure`), so that they hold for any network and device; `volumes` are
the cases that are kept in memory, up to a limit, and `own` is what whole scans take where their own
voxels are learned. docs/benchmarks.md compares the formula with real runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_jrss.app.rounds.measure import Measured, measure_in_own_process
from napari_jrss.app.rounds.progress import duration
from napari_jrss.app.rounds.train import DEVICE, STEP_SECONDS, PlannedRound
from napari_jrss.config import TrainingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.preprocess.cost import MOST_ON_OWN_VOXELS, ON_CROPS, own_voxels_bytes
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round, RoundOutcome
from napari_jrss.snapshot import CachedArrays, CohortSnapshot

if TYPE_CHECKING:
    from napari_jrss.training.loop import Cancel

_LONGEST_S = 7 * 24 * 3600
# Grids that any machine trains on.
_SMALL_GRID, _FEW_CLASSES = 300_000, 60
_BYTES_PER_VOXEL = 5  # a float32 image and its label
_GIB = 2**30


class WontFitError(JRSSError):
    """A training that can't end on this machine; the message says what to do."""


@dataclass(frozen=True)
class Estimate:
    """What a series of rounds will cost."""

    seconds: float  # of the whole series
    device: str  # what it runs on
    basis: str  # where the seconds come from
    # Bytes at the peak, and what the device has in all.
    memory: float
    available: float

    @property
    def fits(self) -> bool:
        """Whether the device's memory is enough."""
        return self.memory < self.available

    def line(self) -> str:
        """The estimate in one line."""
        return (
            f"about {duration(self.seconds)} on {self.device} ({self.basis}), "
            f"{self.memory / _GIB:.1f} of {self.available / _GIB:.1f} GiB of memory"
            + ("" if self.fits else ": too much")
        )


def steps_of(
    config: TrainingConfig, snapshot: CohortSnapshot, pretrained: bool, rounds: int
) -> dict[str, int]:
    """Steps of each stage of a series: the pre-training if it is missing, and the rounds."""
    from napari_jrss.training.deformation import pairs_before
    from napari_jrss.training.quality import scans_to_judge
    from napari_jrss.training.trainable import fine_wanted

    cases = len(snapshot.training)
    segmentation = max(1, round(cases / config.segmentation.batch_size))
    registration = max(1, round(cases / config.registration.batch_size))
    judged = len(scans_to_judge(snapshot))
    trainings = rounds + (not pretrained)
    predictions = (judged + len(snapshot.unlabelled)) * trainings
    steps = {
        "registration": rounds * config.joint.registration_epochs * registration,
        "student": rounds * config.joint.steps(segmentation),
        config.registering_stage(joint=True): rounds * pairs_before(config, snapshot, joint=True),
        "prediction": predictions,
    }
    if fine_wanted(config, snapshot):
        steps["labelled_scans"] = len(snapshot.labelled) * trainings
        steps["own_voxels"] = config.fine.steps * trainings
    if not pretrained:
        seg, reg = config.segmentation, config.registration
        steps["mono_segmentation"] = seg.steps(segmentation, snapshot.classes - 1)
        steps["mono_registration"] = reg.steps(registration)
        stage = config.registering_stage(joint=False)
        steps[stage] = steps.get(stage, 0) + pairs_before(config, snapshot, joint=False)
    return {stage: count for stage, count in steps.items() if count}


def estimated(
    project: Project,
    config: TrainingConfig,
    rounds: int,
    measured: Measured,
    *,
    pretrain: bool = False,
) -> Estimate:
    """Estimate a series: memory as measured, time as earlier rounds took or as measured."""
    from napari_jrss.training.deformation import pairs_before
    from napari_jrss.training.quality import scans_to_judge
    from napari_jrss.training.trainable import usual_finer

    snapshot = project.snapshot()
    voxels = math.prod(snapshot.shape)
    crop = math.prod(config.segmentation.crop(snapshot.shape))
    pretrained = project.teacher is not None and not pretrain
    steps = steps_of(config, snapshot, pretrained, rounds)
    costs = {
        stage: cost.at(crop if stage in ON_CROPS else voxels)
        for stage, cost in measured.stages.items()
        if stage != "own_voxels"
    }
    if "registration" in costs:
        costs["mono_registration"] = costs["registration"]
    # Several processes share unlabelled cases and pairs; all judge the same labelled ones.
    each, memory = costs["prediction"]
    judged, unlabelled = len(scans_to_judge(snapshot)), len(snapshot.unlabelled)
    seconds = each * (judged + _part(unlabelled, measured))
    if "own_voxels" in steps:
        costs["own_voxels"] = measured.stages["own_voxels"].at(config.fine.crop**3)
        costs["labelled_scans"] = each, memory
        # A case is also predicted on its own voxels, in blocks whose memory is bounded.
        on_scan = measured.stages["prediction"].at(round(voxels * usual_finer(snapshot) ** 3))[0]
        seconds += on_scan * _part(min(unlabelled, MOST_ON_OWN_VOXELS), measured)
    costs["prediction"] = seconds / max(1, judged + unlabelled), memory
    for joint in (True, False):
        if (stage := config.registering_stage(joint=joint)) in steps:
            pairs = pairs_before(config, snapshot, joint=joint)
            each, memory = measured.stages[stage].at(voxels)
            costs[stage] = each * _part(pairs, measured) / pairs, memory
    known: dict[str, float] = {}
    for entry in filter(project.of_this_plan, project.rounds()):
        known.update(_step_seconds(entry, config, measured.name))
    basis = "as earlier rounds took"
    if not steps.keys() <= known.keys():
        known = {stage: seconds for stage, (seconds, _) in costs.items()}
        basis = "from a measured step"
    # Each process keeps volumes up to a limit; on a GPU they stay in the computer's memory.
    cases = len(snapshot.training) + len(snapshot.validation)
    volume = voxels * (_BYTES_PER_VOXEL + 4 * (snapshot.inputs - 1))  # a float32 for each image
    volumes = min(cases * volume, CachedArrays.budget_bytes)
    memory = measured.program + max(memory for _, memory in costs.values())
    if "own_voxels" in steps:
        everyone = (*snapshot.training, *snapshot.validation)
        memory += own_voxels_bytes(
            max(math.prod(project.attributes(case).transform.scan_shape) for case in everyone),
            round(voxels * usual_finer(snapshot) ** 3),
            len(snapshot.labelled),
            snapshot.classes,
            snapshot.inputs,
            on_gpu=measured.device == "cuda",
        )
    if measured.device == "cpu":
        memory = measured.devices * (memory + volumes)
    return Estimate(
        seconds=sum(count * known[stage] for stage, count in steps.items()),
        device=measured.name,
        basis=basis,
        memory=memory,
        available=measured.total,
    )


def _part(count: int, measured: Measured) -> int:
    """How many of so many items a process has that shares them with the others."""
    return -(-count // measured.devices)


def check_fits(
    project: Project, planned: PlannedRound, device: str, cancel: Cancel, devices: int = 1
) -> None:
    """Measure a step of each stage, unless the grid is small, and compare with the machine.

    Raises
    ------
    WontFitError
        The memory isn't enough, or the series would take more than a week.
    """
    snapshot = project.snapshot()
    small = math.prod(snapshot.shape) <= _SMALL_GRID and snapshot.classes <= _FEW_CLASSES
    if small or planned.interrupted is not None:
        return
    config = planned.config
    measured = measure_in_own_process(
        config, snapshot.classes, snapshot.shape, device, cancel, snapshot.inputs, devices
    )
    if measured is None:
        return
    rounds = planned.rounds_left + (not planned.pretraining)
    require_fit(estimated(project, config, rounds, measured, pretrain=planned.pretraining))


def require_fit(estimate: Estimate) -> None:
    """Raise a :class:`WontFitError` for what can't end on this machine."""
    if estimate.fits and estimate.seconds <= _LONGEST_S:
        return
    raise WontFitError(
        f"this training won't end well: {estimate.line()}. A coarser training grid costs less "
        "(napari-jrss plan PROJECT --use quick, or Plan in the tab Cohort), and so do a smaller "
        "batch and fewer rounds; --anyway starts it all the same"
    )


def _step_seconds(entry: Round, config: TrainingConfig, device: str) -> dict[str, float]:
    """Seconds per step of a finished round, if its steps cost what the planned ones will."""
    seconds = entry.metrics.get(STEP_SECONDS)
    if entry.outcome is not RoundOutcome.FINISHED or not isinstance(seconds, dict):
        return {}
    own = entry.files.training_config()
    if entry.metrics.get(DEVICE) != device or cost_settings(own) != cost_settings(config):
        return {}
    return {str(stage): float(value) for stage, value in seconds.items()}


def cost_settings(config: TrainingConfig) -> str:
    """The settings on which the cost of a step depends, as text to compare."""
    return config.model_dump_json(
        include={
            "precision": True,
            "segmentation_network": True,
            "registration_network": True,
            "segmentation": {"batch_size", "loss", "crop_fraction", "crop_voxels"},
            "registration": {"batch_size", "similarity"},
            "joint": {"student", "registration_warp", "supervised_dice"},
            "fine": {"crop"},
            "mirror_image": True,
        }
    )
