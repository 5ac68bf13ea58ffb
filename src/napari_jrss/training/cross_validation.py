"""How good a teacher is where nobody labelled: trained again without some of the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from lightning_fabric import Fabric

from napari_jrss.config import TrainingConfig
from napari_jrss.inference.evaluate import none_for_nan
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training.deformation import Fields, find_fields
from napari_jrss.training.events import Cancelled, CaseJudged, Event
from napari_jrss.training.loop import Cancel, stop_requested
from napari_jrss.training.round import RoundTask, train_stage
from napari_jrss.training.sampling import step_seed
from napari_jrss.training.stages import (
    MonoSegmentationStage,
    TrainingTensors,
    segmentation_dice,
)
from napari_jrss.training.symmetry import segmentation_network
from napari_jrss.training.trainable import RoundError

MOST_FOLDS = 5


def folds(labelled: Sequence[str], seed: int) -> list[tuple[str, ...]]:
    """The labelled cases in parts of nearly equal size: five, or one for each case.

    Raises
    ------
    RoundError
        Fewer than two cases are labelled.
    """
    if len(labelled) < 2:
        raise RoundError("a forecast needs two labelled training cases: one to learn from")
    order = np.random.default_rng(step_seed(seed, "folds", 0)).permutation(len(labelled))
    parts = np.array_split(order, min(len(labelled), MOST_FOLDS))
    return [tuple(sorted(labelled[i] for i in part)) for part in parts]


def fold_name(number: int) -> str:
    """The stage that trains without part `number`, counted from 1."""
    return f"fold_{number}"


def cross_validate(
    snapshot: CohortSnapshot, config: TrainingConfig, folder: Path, fabric: Fabric, cancel: Cancel
) -> Iterator[Event]:
    """Train Mono-Seg once for each part of the labelled cases, without that part, and judge it.

    Parameters
    ----------
    snapshot
        Its validation cases have no part in this.
    config
        Settings of the training.
    folder
        Where weights and training states are kept; what is there is done.
    fabric
        Device and precision.
    cancel
        Asks to stop; then the last event is :class:`Cancelled`.

    Yields
    ------
    Event
        Those of each training, and a :class:`CaseJudged` for each labelled case.

    Raises
    ------
    RoundError
        Fewer than two cases are labelled.
    """
    for number, held_out in enumerate(folds(snapshot.labelled, config.seed), start=1):
        for event in judge_fold(number, held_out, snapshot, config, folder, fabric, cancel):
            yield event
            if isinstance(event, Cancelled):
                return


def judge_fold(
    number: int,
    held_out: Sequence[str],
    snapshot: CohortSnapshot,
    config: TrainingConfig,
    folder: Path,
    fabric: Fabric,
    cancel: Cancel,
) -> Iterator[Event]:
    """Train Mono-Seg without one part of the labelled cases, and judge it on these.

    As :func:`cross_validate`; `number` counts the parts from 1.
    """
    others = tuple(case for case in snapshot.labelled if case not in held_out)
    part = replace(snapshot, labelled=others, validation=())
    fabric.seed_everything(config.seed + number, verbose=False)
    network = segmentation_network(config, part)
    tensors = TrainingTensors(part, {}, fabric.device)
    name = fold_name(number)
    results = {folder / f"{name}.safetensors": network}
    fields: Fields | None = {}
    if not all(path.exists() for path in results):
        fields = yield from find_fields(config, part, 0, fabric, cancel)
    if fields is None:
        return
    stage = MonoSegmentationStage(network, tensors, config, fabric, fields)
    stage.name = name
    task = RoundTask(0, part, config, folder)
    if not (yield from train_stage(stage, results, task, fabric, cancel)):
        return
    for case in held_out:
        if stop_requested(cancel, fabric):
            yield Cancelled(stage=stage.name, step=stage.steps)
            return
        dice = segmentation_dice(network, snapshot, case, fabric.device)
        yield CaseJudged(stage=stage.name, case_id=case, dice=none_for_nan(dice))
