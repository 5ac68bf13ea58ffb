"""A quick round: the teacher learns from a label that was accepted just now.

It goes on from its own weights on crops of the labelled scans, half of them of the new cases. A
student takes the steps, and the teacher follows it as a moving average, so that one odd case
doesn't throw it far. Unlabelled scans have no part in it, which makes a step cheap.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
from lightning_fabric import Fabric
from torch import nn

from napari_jrss.config import TrainingConfig
from napari_jrss.inference.evaluate import none_for_nan
from napari_jrss.inference.predict import predict_case
from napari_jrss.io.round_files import ANCHOR_DRAFT_DICE, DRAFT_DICE, KEPT, QuickPlan
from napari_jrss.networks.fine import FineNetwork
from napari_jrss.networks.weights import load_tensors, load_weights, save_tensors
from napari_jrss.training.augment import sample_image, sample_label
from napari_jrss.training.events import (
    Cancelled,
    CaseJudged,
    Event,
    RoundFinished,
    StageFinished,
    StageStarted,
)
from napari_jrss.training.loop import Cancel, Validation, clearly_worse, stop_requested
from napari_jrss.training.round import RoundTask, recorded, train_stage, with_fine_label
from napari_jrss.training.sampling import draw_cases
from napari_jrss.training.stages import TeacherStage, TrainingTensors, segmentation_dice
from napari_jrss.training.steps import Losses, mono_segmentation_step, update_teacher
from napari_jrss.training.symmetry import segmentation_network
from napari_jrss.training.trainable import RoundError

NEW_SHARE = 0.5
"""Share of the crops that are of the new cases."""
LEARNING_RATE = 5e-4
DECAY = 0.98
"""How much of the teacher is kept at each step."""
BEFORE, AFTER = "judged_before", "judged_after"
"""Metrics: mean Dice on the judged cases."""
VALIDATION = "validation_segmentation_dice"
WORSE = "This teacher was clearly worse on known cases than the one before, which stays in use."


class QuickStage(TeacherStage):
    """The teacher on labelled cases, the new ones more often than the others.

    Parameters
    ----------
    new
        The cases whose label the teacher hasn't seen.
    steps
        How many to take.
    """

    def __init__(
        self,
        name: str,
        student: nn.Module,
        teacher: nn.Module,
        tensors: TrainingTensors,
        config: TrainingConfig,
        fabric: Fabric,
        new: Sequence[str],
        steps: int,
    ) -> None:
        super().__init__(name, student, teacher, tensors, config, fabric)
        self.learning_rate = LEARNING_RATE
        self.steps = self.steps_per_epoch = steps
        self._new = tuple(new)
        self._others = tuple(case for case in tensors.snapshot.labelled if case not in new)

    def losses(self, step: int, rng: np.random.Generator) -> Losses:
        """Loss of the pre-training, on crops of new and other labelled cases."""
        settings = self.config.segmentation
        cases = self._draw(settings.batch_size, rng)
        images, labels = self.tensors.images(cases), self.tensors.labels(cases)
        grid = self._crops(cases, self.config.augmentation.affine_std, rng)
        images = self._intensity(sample_image(images, grid), rng)
        self.network.train()
        labels = sample_label(labels, grid, outside=0)
        return mono_segmentation_step(self.network, images, labels, settings)

    def _draw(self, count: int, rng: np.random.Generator) -> list[str]:
        new = int(rng.binomial(count, NEW_SHARE)) if self._others else count
        drawn = draw_cases(self._new, new, rng) if new else []
        return drawn + (draw_cases(self._others, count - new, rng) if new < count else [])

    def after_step(self, step: int) -> None:
        """Move the teacher's weights towards the student's."""
        update_teacher(self.modules["teacher"], self.modules["student"], DECAY)

    def validate(self) -> Validation:
        """Measure nothing: the whole stage is one epoch, and the round judges its end."""
        return []
        yield  # makes it a generator


def run_quick_round(
    task: RoundTask, plan: QuickPlan, fabric: Fabric, cancel: Cancel
) -> Iterator[Event]:
    """Run a quick round: judge the teacher, let it learn, judge it again, predict some cases.

    Yields
    ------
    Event
        The last is :class:`RoundFinished`, or :class:`Cancelled`. The metric :data:`KEPT` says
        whether the new teacher may come into force.

    Raises
    ------
    RoundError
        A new case has no label in the snapshot.
    """
    missing = set(plan.new) - set(task.snapshot.labelled)
    if missing or not plan.new:
        raise RoundError(f"there is no label to learn from ({', '.join(sorted(missing))})")
    task.files.sweep()
    yield from recorded(task, fabric, _work(task, plan, fabric, cancel))


def _work(task: RoundTask, plan: QuickPlan, fabric: Fabric, cancel: Cancel) -> Iterator[Event]:
    snapshot, config, device = task.snapshot, task.config, fabric.device
    teacher = _network(task, task.parent_files.teacher).to(device)
    metrics = {"labelled": float(len(snapshot.labelled))}

    yield StageStarted(stage="drafts", steps=len(plan.new) + len(plan.judged))
    drafts = yield from _judge("drafts", teacher, task, plan.new, fabric, cancel)
    before = yield from _judge("drafts", teacher, task, plan.judged, fabric, cancel)
    if drafts is None or before is None:
        return
    metrics[DRAFT_DICE] = float(np.nanmean(drafts))
    if task.anchor is not None and task.anchor != task.parent:
        anchor = _network(task, task.anchor / task.files.teacher.name).to(device)
        found = [np.nanmean(segmentation_dice(anchor, snapshot, c, device)) for c in plan.new]
        metrics[ANCHOR_DRAFT_DICE] = float(np.nanmean(found))
    yield StageFinished(stage="drafts")

    fabric.seed_everything(config.seed + task.number, verbose=False)
    name, tensors = f"quick_{task.number}", TrainingTensors(snapshot, {}, device)
    student = segmentation_network(config, snapshot, config.joint.dropout)
    student.load_state_dict(teacher.state_dict())
    teacher = copy.deepcopy(teacher)
    stage = QuickStage(name, student, teacher, tensors, config, fabric, plan.new, plan.steps)
    results: dict[Path, nn.Module] = {task.files.student: student, task.files.teacher: teacher}
    if not (yield from train_stage(stage, results, task, fabric, cancel)):
        return
    # A round's folder stands alone.
    if config.trains_registration:
        save_tensors(task.files.registration, *load_tensors(task.parent_files.registration))
    fine = None
    if task.parent_files.fine.exists() and snapshot.scans is not None:
        save_tensors(task.files.fine, *load_tensors(task.parent_files.fine))
        fine = FineNetwork(snapshot.classes, snapshot.inputs).to(device)
        load_weights(fine, task.files.fine)

    yield StageStarted(stage="prediction", steps=len(plan.judged) + len(plan.predicted))
    after = yield from _judge("prediction", teacher, task, plan.judged, fabric, cancel)
    if after is None:
        return
    kept = not clearly_worse(before, after)
    metrics[KEPT] = float(kept)
    if plan.judged:
        metrics |= {BEFORE: float(np.nanmean(before)), AFTER: float(np.nanmean(after))}
        if set(plan.judged) == set(snapshot.validation):
            metrics[VALIDATION] = metrics[AFTER]
    for done, case in enumerate(plan.predicted if kept else (), start=len(plan.judged)):
        if stop_requested(cancel, fabric):
            yield Cancelled(stage="prediction", step=done)
            return
        prediction = predict_case(teacher, snapshot.arrays.channels(case), device, student)
        if fine is not None:
            prediction = with_fine_label(fine, prediction, snapshot, case, device)
        task.files.write_prediction(case, prediction)
    yield StageFinished(stage="prediction")
    known = {name: value for name, value in metrics.items() if np.isfinite(value)}
    yield RoundFinished(number=task.number, metrics=known, warning="" if kept else WORSE)


def _network(task: RoundTask, weights: Path) -> nn.Module:
    network = segmentation_network(task.config, task.snapshot)
    load_weights(network, weights, task.snapshot.inputs)
    return network


def _judge(
    stage: str,
    network: nn.Module,
    task: RoundTask,
    cases: Sequence[str],
    fabric: Fabric,
    cancel: Cancel,
) -> Generator[Event, None, list[float] | None]:
    """Mean Dice of each case; None if cancelled."""
    found: list[float] = []
    for case in cases:
        if stop_requested(cancel, fabric):
            yield Cancelled(stage=stage, step=len(found))
            return None
        dice = segmentation_dice(network, task.snapshot, case, fabric.device)
        yield CaseJudged(stage=stage, case_id=case, dice=none_for_nan(dice))
        found.append(float(np.nanmean(dice)))
    return found
