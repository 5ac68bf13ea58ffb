"""The recipe: pre-training, then joint rounds of registration and segmentation.

Round 0 is the pre-training of the Mono-Nets. A round's folder holds ``config.json``,
``metrics.jsonl``, the weights ``teacher``, ``student`` and ``registration`` (``.safetensors``)
and ``predictions/<case_id>.zarr``. What is there is done: a killed round goes on from the first
thing that is missing, inside a stage from its last training state.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch import nn

from napari_jrss.config import TrainingConfig
from napari_jrss.inference.predict import predict_case
from napari_jrss.io.atomic import end_with_whole_line, sweep, write_text
from napari_jrss.io.predictions import (
    PREDICTIONS,
    Prediction,
    prediction_path,
    read_prediction,
    write_prediction,
)
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training.checkpoint import load_into, load_tensors, save_tensors
from napari_jrss.training.description import RoundError, check_trainable, describe
from napari_jrss.training.events import (
    Cancelled,
    CaseJudged,
    CaseScreened,
    EpochEnd,
    Event,
    RoundFinished,
    StageFinished,
    StageStarted,
)
from napari_jrss.training.loop import Cancel, Stage, fit, run_validation, stop_requested
from napari_jrss.training.quality import judge, scans_to_judge, warning
from napari_jrss.training.screening import PseudoLabel, screen
from napari_jrss.training.stages import (
    MonoSegmentationStage,
    RegistrationStage,
    StudentStage,
    TrainingTensors,
    registration_validation,
    segmentation_validation,
)

TEACHER, STUDENT, REGISTRATION = (
    "teacher.safetensors",
    "student.safetensors",
    "registration.safetensors",
)
METRICS = "metrics.jsonl"
CONFIG = "config.json"


@dataclass(frozen=True)
class Round:
    """One round to run: what it sees, how it is set up, where it writes.

    Attributes
    ----------
    number
        0 for the pre-training.
    snapshot
        The cases and labels as they were when the round was started.
    config
        Settings of the training.
    folder
        Where the round writes.
    parent
        Folder of the round whose teacher and registration network this one starts from.
    """

    number: int
    snapshot: CohortSnapshot
    config: TrainingConfig
    folder: Path
    parent: Path | None = None


def run_round(this: Round, fabric: Fabric, cancel: Cancel) -> Iterator[Event]:
    """Run or resume one round, the pre-training included.

    Yields
    ------
    Event
        The last is :class:`RoundFinished`, or :class:`Cancelled` within one step of the
        request.

    Raises
    ------
    RoundError
        If the snapshot can't be trained on, with the reason.
    """
    check_trainable(this.snapshot, joint=this.parent is not None)
    this.folder.mkdir(parents=True, exist_ok=True)
    if fabric.is_global_zero:
        _sweep(this.folder)
    if fabric.is_global_zero and not (this.folder / CONFIG).exists():
        text = describe(this.snapshot, this.config)
        write_text(this.folder / CONFIG, text)
    work = _pretrain(this, fabric, cancel) if this.parent is None else _joint(this, fabric, cancel)
    for event in work:
        if fabric.is_global_zero:
            _record(event, this.folder / METRICS)
        yield event
        if isinstance(event, Cancelled):
            return


def _pretrain(this: Round, fabric: Fabric, cancel: Cancel) -> Iterator[Event]:
    """Mono-Seg and Mono-Reg, then the first predictions."""
    snapshot, config = this.snapshot, this.config
    tensors = TrainingTensors(snapshot, {}, fabric.device)
    fabric.seed_everything(config.seed, verbose=False)
    teacher = build_segmentation_network(config.segmentation_network, snapshot.classes)
    registration = build_registration_network(config.registration_network)
    registration_stage = RegistrationStage(
        "mono_registration",
        registration,
        tensors,
        config,
        fabric,
        config.registration.epochs,
        config.registration.minimum_steps,
        config.registration.warmup_steps,
    )
    stages: Sequence[tuple[Stage, dict[str, nn.Module]]] = [
        (MonoSegmentationStage(teacher, tensors, config, fabric), {TEACHER: teacher}),
        (registration_stage, {REGISTRATION: registration}),
    ]
    for stage, results in stages:
        if not (yield from _train(stage, results, this, fabric, cancel)):
            return
    yield from _conclude(this, teacher, None, registration, fabric, cancel)


def _joint(this: Round, fabric: Fabric, cancel: Cancel) -> Iterator[Event]:
    """Screen, register, teach the student, average the teacher, screen again (Fig. 3)."""
    assert this.parent is not None
    snapshot, config = this.snapshot, this.config
    teacher = build_segmentation_network(config.segmentation_network, snapshot.classes)
    registration = build_registration_network(config.registration_network)
    for network, name in ((teacher, TEACHER), (registration, REGISTRATION)):
        load_into(network, load_tensors(this.parent / name)[0], this.parent / name)
    teacher.to(fabric.device)

    pseudo_labels = yield from _screen(this, teacher, fabric, cancel)
    if pseudo_labels is None:
        return
    tensors = TrainingTensors(snapshot, pseudo_labels, fabric.device)
    fabric.seed_everything(config.seed + this.number, verbose=False)
    if config.joint.registration_epochs:
        registration_stage = RegistrationStage(
            f"registration_{this.number}",
            registration,
            tensors,
            config,
            fabric,
            config.joint.registration_epochs,
            minimum_steps=1,
            warmup_steps=0,
        )
        results: dict[str, nn.Module] = {REGISTRATION: registration}
        if not (yield from _train(registration_stage, results, this, fabric, cancel)):
            return
    elif fabric.is_global_zero and not (this.folder / REGISTRATION).exists():
        # A round's folder stands alone: the parent's network is this round's, too.
        state, description = load_tensors(this.parent / REGISTRATION)
        save_tensors(this.folder / REGISTRATION, state, description)
    student = build_segmentation_network(
        config.segmentation_network, snapshot.classes, config.joint.dropout
    )
    student.load_state_dict(teacher.state_dict())
    teacher = copy.deepcopy(teacher)
    student_stage = StudentStage(
        f"student_{this.number}", student, teacher, registration, tensors, config, fabric
    )
    results = {STUDENT: student, TEACHER: teacher}
    if not (yield from _train(student_stage, results, this, fabric, cancel)):
        return
    yield from _conclude(this, teacher, student, registration, fabric, cancel)


def _screen(
    this: Round, teacher: nn.Module, fabric: Fabric, cancel: Cancel
) -> Generator[Event, None, dict[str, PseudoLabel] | None]:
    """Hold the parent's prediction of every unlabelled case against tau; None if cancelled."""
    assert this.parent is not None
    stage, snapshot, screening = "screening", this.snapshot, this.config.screening
    required = labelled_classes(snapshot)
    judged = len(scans_to_judge(snapshot)) if screening.learned_gate else 0
    yield StageStarted(stage=stage, steps=judged + len(snapshot.unlabelled))
    held_back: tuple[int, ...] = ()
    if screening.learned_gate:
        unlearned = yield from judge(stage, teacher, snapshot, fabric, cancel)
        if unlearned is None:
            return None
        held_back = unlearned
    pseudo_labels: dict[str, PseudoLabel] = {}
    for case in snapshot.unlabelled:
        prediction = _prediction_of_parent(this.parent, case, teacher, snapshot, fabric)
        pseudo = screen(prediction, snapshot.classes, required, screening, held_back)
        pseudo_labels[case] = pseudo
        yield _screened(stage, case, pseudo)
        if stop_requested(cancel, fabric):
            yield Cancelled(stage=stage, step=judged + len(pseudo_labels))
            return None
    if set(required) <= set(held_back):
        raise RoundError(
            "the teacher finds no structure even in the labelled scans: label another case, or "
            "pre-train again, for longer"
        )
    if not any(pseudo.classes_passed[list(required)].any() for pseudo in pseudo_labels.values()):
        raise RoundError(
            f"no structure of any unlabelled case passes tau = {screening.tau}: "
            "label another case, pre-train again for longer, or lower tau"
        )
    return pseudo_labels


def _train(
    stage: Stage, results: dict[str, nn.Module], this: Round, fabric: Fabric, cancel: Cancel
) -> Generator[Event, None, bool]:
    """Run one stage and write its weights, or read them if the stage is done already."""
    paths = {this.folder / name: network for name, network in results.items()}
    state_path = this.folder / f"{stage.name}.state.safetensors"
    if all(path.exists() for path in paths):
        best = _read_weights(paths).get("best")
        if fabric.is_global_zero:
            state_path.unlink(missing_ok=True)
        yield StageFinished(stage=stage.name, best=best)
        return True
    best = None
    for event in fit(stage, fabric, state_path, this.config, cancel):
        yield event
        if isinstance(event, StageStarted | EpochEnd):
            best = event.best
        if isinstance(event, Cancelled):
            return False
    if fabric.is_global_zero:
        classes = list(this.snapshot.class_names)
        for path, network in paths.items():
            description = {"stage": stage.name, "classes": classes, "best": best}
            save_tensors(path, network.state_dict(), description)
        state_path.unlink(missing_ok=True)
    fabric.barrier()
    if not fabric.is_global_zero:
        # Buffers differ a little between processes, so their best epochs may differ too.
        _read_weights(paths)
    yield StageFinished(stage=stage.name, best=best)
    return True


def _read_weights(paths: Mapping[Path, nn.Module]) -> dict[str, Any]:
    """Put the weights of a finished stage into its networks; returns their description."""
    description: dict[str, Any] = {}
    for path, network in paths.items():
        state, description = load_tensors(path)
        load_into(network, state, path)
    return description


def _conclude(
    this: Round,
    teacher: nn.Module,
    student: nn.Module | None,
    registration: nn.Module,
    fabric: Fabric,
    cancel: Cancel,
) -> Iterator[Event]:
    """Judge the teacher, write its prediction of every unlabelled case, hold it against tau."""
    stage, folder = "prediction", this.folder / PREDICTIONS
    snapshot, screening = this.snapshot, this.config.screening
    required, cases = labelled_classes(snapshot), snapshot.unlabelled
    judged = len(scans_to_judge(snapshot))
    yield StageStarted(stage=stage, steps=judged + len(cases))
    unlearned = yield from judge(stage, teacher, snapshot, fabric, cancel)
    if unlearned is None:
        return
    accepted = 0
    for i, case in enumerate(cases):
        if stop_requested(cancel, fabric):
            yield Cancelled(stage=stage, step=judged + i)
            return
        if not prediction_path(folder, case).exists() and fabric.is_global_zero:
            image = snapshot.arrays.image(case)
            write_prediction(folder, case, predict_case(teacher, image, fabric.device, student))
        fabric.barrier()
        held_back = unlearned if screening.learned_gate else ()
        prediction = read_prediction(folder, case)
        pseudo = screen(prediction, snapshot.classes, required, screening, held_back)
        accepted += pseudo.accepted
        yield _screened(stage, case, pseudo)
    metrics = {"labelled": float(len(snapshot.labelled)), "accepted": float(accepted)}
    for task, network, validate in (
        ("segmentation", teacher, segmentation_validation),
        ("registration", registration, registration_validation),
    ):
        ended, dice = run_validation(validate(network, snapshot, fabric.device), fabric, cancel)
        if not ended:
            yield Cancelled(stage=stage, step=judged + len(cases))
            return
        if dice is not None:
            metrics[f"validation_{task}_dice"] = dice
    yield StageFinished(stage=stage)
    said = warning([snapshot.class_names[c] for c in unlearned], screening.learned_gate)
    yield RoundFinished(
        number=this.number, metrics=metrics, unlearned=list(unlearned), warning=said
    )


def _prediction_of_parent(
    parent: Path, case: str, teacher: nn.Module, snapshot: CohortSnapshot, fabric: Fabric
) -> Prediction:
    """The parent's prediction, made now for a case that came after it."""
    folder = parent / PREDICTIONS
    if prediction_path(folder, case).exists():
        return read_prediction(folder, case)
    return predict_case(teacher, snapshot.arrays.image(case), fabric.device)


def labelled_classes(snapshot: CohortSnapshot) -> tuple[int, ...]:
    """Foreground classes that occur in the labelled cases."""
    seen = [np.unique(snapshot.arrays.label(case)) for case in snapshot.labelled]
    return tuple(int(c) for c in np.unique(np.concatenate(seen)) if c > 0)


def _screened(stage: str, case: str, pseudo: PseudoLabel) -> CaseScreened:
    return CaseScreened(
        stage=stage,
        case_id=case,
        accepted=pseudo.accepted,
        kept_fraction=pseudo.kept_fraction,
        class_confidence=[None if np.isnan(v) else float(v) for v in pseudo.class_confidence],
        classes_passed=[bool(passed) for passed in pseudo.classes_passed],
    )


def _record(event: Event, path: Path) -> None:
    """Append what outlives the run, once; a resumed stage first drops the epochs it repeats."""
    if not isinstance(event, StageStarted | EpochEnd | CaseScreened | CaseJudged | StageFinished):
        return
    known = _recorded(path)
    if isinstance(event, StageStarted):
        kept = [
            text + "\n"
            for text, line in known.items()
            if line.get("stage") != event.stage or line.get("step", 0) <= event.first_step
        ]
        write_text(path, "".join(kept))
    elif _identity(event.model_dump()) not in map(_identity, known.values()):
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(event.model_dump_json() + "\n")


def _recorded(path: Path) -> dict[str, dict[str, Any]]:
    """Lines of a round's metrics and what they say, from a file that lies in its folder."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise RoundError(f"{path}: not a file of this round")
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = {line: json.loads(line) for line in text.split("\n") if line}
    except (OSError, ValueError, RecursionError) as error:
        raise RoundError(f"{path}: damaged ({error})") from error
    for line in lines.values():
        if not isinstance(line, dict) or not isinstance(line.get("step", 0), int | float):
            raise RoundError(f"{path}: damaged (a line is no event)")
    return lines


def _identity(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(key) for key in ("kind", "stage", "case_id", "step"))


def _sweep(folder: Path) -> None:
    """Remove what a killed run was still writing: hidden names, and half a line of metrics."""
    sweep(folder)
    sweep(folder / PREDICTIONS)
    end_with_whole_line(folder / METRICS)
