"""One round: the pre-training of the Mono-Nets, or joint registration and segmentation.

A round writes into its folder (:mod:`napari_jrss.io.round_files`). What is there is done: a
killed round goes on from the first file that is missing, inside a stage from its last training
state.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from napari_jrss.config import TrainingConfig
from napari_jrss.inference.evaluate import none_for_nan
from napari_jrss.inference.fine import fine_label
from napari_jrss.inference.predict import predict_case
from napari_jrss.io.atomic import write_text
from napari_jrss.io.predictions import Prediction
from napari_jrss.io.round_files import RoundDescription, RoundFiles
from napari_jrss.networks.build import build_registration_network
from napari_jrss.networks.fine import FineNetwork
from napari_jrss.networks.mirror import Mirrored
from napari_jrss.networks.weights import load_tensors, load_weights, save_tensors
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training.deformation import Fields, find_fields
from napari_jrss.training.events import (
    Cancelled,
    CaseScreened,
    EpochEnd,
    Event,
    MetricsFile,
    RoundFinished,
    StageFinished,
    StageStarted,
)
from napari_jrss.training.fine import FineStage
from napari_jrss.training.loop import Cancel, Stage, fit, run_validation, stop_requested
from napari_jrss.training.perturbed import PerturbedStudentStage
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
from napari_jrss.training.symmetry import segmentation_network
from napari_jrss.training.trainable import (
    RoundError,
    check_devices,
    check_trainable,
    fine_wanted,
    scans_read,
)

OLD_TEACHER_STAYS = (
    "The student was clearly worse on the validation cases than the teacher it began from: "
    "that teacher stays."
)


@dataclass(frozen=True)
class RoundTask:
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
    anchor
        For a quick round: folder of the training that it and its parents come from.
    """

    number: int
    snapshot: CohortSnapshot
    config: TrainingConfig
    folder: Path
    parent: Path | None = None
    anchor: Path | None = None

    @property
    def files(self) -> RoundFiles:
        """The files that the round writes."""
        return RoundFiles(self.folder)

    @property
    def parent_files(self) -> RoundFiles:
        """The files of the parent; only for a joint round."""
        assert self.parent is not None
        return RoundFiles(self.parent)


def run_round(task: RoundTask, fabric: Fabric, cancel: Cancel) -> Iterator[Event]:
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
    check_trainable(task.snapshot, joint=task.parent is not None)
    check_devices(task.config, fabric.world_size)
    task.folder.mkdir(parents=True, exist_ok=True)
    if fabric.is_global_zero:
        task.files.sweep()
        if not task.files.config.exists():
            description = RoundDescription.of(task.snapshot, task.config)
            write_text(task.files.config, description.model_dump_json(indent=1))
    work = _pretrain(task, fabric, cancel) if task.parent is None else _joint(task, fabric, cancel)
    yield from recorded(task, fabric, work)


def recorded(task: RoundTask, fabric: Fabric, work: Iterator[Event]) -> Iterator[Event]:
    """Pass a round's events on, up to a cancellation; those that outlive the run are written."""
    metrics = MetricsFile(task.files.metrics)
    for event in work:
        if fabric.is_global_zero:
            metrics.add(event)
        yield event
        if isinstance(event, Cancelled):
            return


def _pretrain(task: RoundTask, fabric: Fabric, cancel: Cancel) -> Iterator[Event]:
    """Mono-Seg and, if the settings ask for it, Mono-Reg; then the first predictions."""
    snapshot, config = task.snapshot, task.config
    tensors = TrainingTensors(snapshot, {}, fabric.device)
    fabric.seed_everything(config.seed, verbose=False)
    teacher = segmentation_network(config, snapshot)
    fields: Fields | None = {}
    if not task.files.teacher.exists():
        fields = yield from find_fields(config, snapshot, task.number, fabric, cancel)
    if fields is None:
        return
    mono_segmentation = MonoSegmentationStage(teacher, tensors, config, fabric, fields)
    stages: list[tuple[Stage, dict[Path, nn.Module]]] = [
        (mono_segmentation, {task.files.teacher: teacher})
    ]
    registration = None
    if config.trains_registration:
        registration = build_registration_network(config.registration_network)
        mono_registration = RegistrationStage(
            "mono_registration", registration, tensors, config, fabric
        )
        stages.append((mono_registration, {task.files.registration: registration}))
    for stage, results in stages:
        if not (yield from train_stage(stage, results, task, fabric, cancel)):
            return
    yield from _conclude(task, teacher, None, registration, fabric, cancel)


def _joint(task: RoundTask, fabric: Fabric, cancel: Cancel) -> Iterator[Event]:
    """Screen, register, train the student, average the teacher, predict (Fig. 3)."""
    snapshot, config, parent = task.snapshot, task.config, task.parent_files
    teacher = segmentation_network(config, snapshot)
    load_weights(teacher, parent.teacher, snapshot.inputs)
    teacher.to(fabric.device)
    registration = None
    if config.trains_registration:
        registration = build_registration_network(config.registration_network)
        load_weights(registration, parent.registration)

    pseudo_labels = yield from _screen(task, teacher, fabric, cancel)
    if pseudo_labels is None:
        return
    tensors = TrainingTensors(snapshot, pseudo_labels, fabric.device)
    fabric.seed_everything(config.seed + task.number, verbose=False)
    if registration is not None and config.joint.registration_epochs:
        registration_stage = RegistrationStage(
            f"registration_{task.number}",
            registration,
            tensors,
            config,
            fabric,
            config.joint.registration_epochs,
        )
        results: dict[Path, nn.Module] = {task.files.registration: registration}
        if not (yield from train_stage(registration_stage, results, task, fabric, cancel)):
            return
    elif (
        registration is not None and fabric.is_global_zero and not task.files.registration.exists()
    ):
        # A round's folder stands alone: the parent's network is this round's, too.
        save_tensors(task.files.registration, *load_tensors(parent.registration))
    student = segmentation_network(config, snapshot, config.joint.dropout)
    student.load_state_dict(teacher.state_dict())
    teacher = copy.deepcopy(teacher)
    name = f"student_{task.number}"
    student_stage: Stage
    if config.joint.student == "registered":
        assert registration is not None  # the settings see to it
        student_stage = StudentStage(name, student, teacher, registration, tensors, config, fabric)
    else:
        fields: Fields | None = {}
        if not (task.files.student.exists() and task.files.teacher.exists()):
            fields = yield from find_fields(config, snapshot, task.number, fabric, cancel)
        if fields is None:
            return
        student_stage = PerturbedStudentStage(
            name, student, teacher, tensors, config, fabric, fields
        )
    results = {task.files.student: student, task.files.teacher: teacher}
    if not (yield from train_stage(student_stage, results, task, fabric, cancel)):
        return
    yield from _conclude(task, teacher, student, registration, fabric, cancel)


def _screen(
    task: RoundTask, teacher: nn.Module, fabric: Fabric, cancel: Cancel
) -> Generator[Event, None, dict[str, PseudoLabel] | None]:
    """Screen the parent's predictions of the unlabelled cases (Eq. 3); None if cancelled."""
    stage, snapshot, screening = "screening", task.snapshot, task.config.screening
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
        prediction = task.parent_files.prediction(case, on_scan=False)
        if prediction is None:  # a case that came after the parent
            prediction = predict_case(teacher, snapshot.arrays.channels(case), fabric.device)
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


def train_stage(
    stage: Stage,
    results: Mapping[Path, nn.Module],
    task: RoundTask,
    fabric: Fabric,
    cancel: Cancel,
) -> Generator[Event, None, bool]:
    """Train a stage and write its networks' weights, or read them where that was done before.

    Parameters
    ----------
    stage
        What to train; a killed one goes on from its last saved state in the task's folder.
    results
        The networks that the stage leaves, by the file for their weights.

    Returns
    -------
    bool
        False if cancelled.
    """
    state_path = task.files.state(stage.name)
    best = None
    if all(path.exists() for path in results):
        for path, network in results.items():
            best = load_weights(network, path).get("best")
        if fabric.is_global_zero:
            state_path.unlink(missing_ok=True)
        yield StageFinished(stage=stage.name, best=best)
        return True
    for event in fit(stage, fabric, state_path, task.config, cancel):
        yield event
        if isinstance(event, StageStarted | EpochEnd):
            best = event.best
        if isinstance(event, Cancelled):
            return False
    if fabric.is_global_zero:
        classes = list(task.snapshot.class_names)
        for path, network in results.items():
            description = {"stage": stage.name, "classes": classes, "best": best}
            if task.snapshot.channels:
                description["channels"] = list(task.snapshot.channels)
            if isinstance(network, Mirrored):
                description["mirror"] = list(network.classes)
            save_tensors(path, network.state_dict(), description)
        state_path.unlink(missing_ok=True)
    fabric.barrier()
    if not fabric.is_global_zero:
        # What was written counts, to the bit.
        for path, network in results.items():
            load_weights(network, path)
    yield StageFinished(stage=stage.name, best=best)
    return True


def _conclude(
    task: RoundTask,
    teacher: nn.Module,
    student: nn.Module | None,
    registration: nn.Module | None,
    fabric: Fabric,
    cancel: Cancel,
) -> Iterator[Event]:
    """Train the fine network, judge the teacher, write and screen what it predicts."""
    stage, snapshot, screening = "prediction", task.snapshot, task.config.screening
    fine = None
    if fine_wanted(task.config, snapshot):
        fine = yield from _train_fine(task, teacher, fabric, cancel)
        if fine is None:
            return
    required, cases = labelled_classes(snapshot), snapshot.unlabelled
    judged = len(scans_to_judge(snapshot))
    yield StageStarted(stage=stage, steps=judged + len(cases))
    unlearned = yield from judge(stage, teacher, snapshot, fabric, cancel)
    if unlearned is None:
        return
    accepted, at_own_voxels = 0, scans_read(task.config, snapshot)
    for i, case in enumerate(cases):
        if stop_requested(cancel, fabric):
            yield Cancelled(stage=stage, step=judged + i)
            return
        if i % fabric.world_size == 0:  # each process predicts and writes one of the next cases
            for own in cases[i + fabric.global_rank : i + fabric.global_rank + 1]:
                if not task.files.has_prediction(own):
                    image = snapshot.arrays.channels(own)
                    made = predict_case(teacher, image, fabric.device, student)
                    if fine is not None and own in at_own_voxels:
                        made = with_fine_label(fine, made, snapshot, own, fabric.device)
                    task.files.write_prediction(own, made)
            fabric.barrier()
        held_back = unlearned if screening.learned_gate else ()
        prediction = task.files.prediction(case, on_scan=False)
        assert prediction is not None
        pseudo = screen(prediction, snapshot.classes, required, screening, held_back)
        accepted += pseudo.accepted
        yield _screened(stage, case, pseudo)
    metrics = {"labelled": float(len(snapshot.labelled)), "accepted": float(accepted)}
    for name, network, validate in (
        ("segmentation", teacher, segmentation_validation),
        ("registration", registration, registration_validation),
    ):
        if network is None:
            continue
        ended, dice, _ = run_validation(
            validate(network, snapshot, fabric.device, fabric), fabric, cancel
        )
        if not ended:
            yield Cancelled(stage=stage, step=judged + len(cases))
            return
        if dice is not None:
            metrics[f"validation_{name}_dice"] = dice
    yield StageFinished(stage=stage)
    names = [snapshot.class_names[c] for c in unlearned]
    lines = [warning(names, screening.learned_gate)]
    if task.parent is not None and _same_weights(teacher, task.parent_files.teacher):
        lines.append(OLD_TEACHER_STAYS)
    yield RoundFinished(
        number=task.number,
        metrics=metrics,
        unlearned=list(unlearned),
        warning=" ".join(line for line in lines if line),
    )


def _train_fine(
    task: RoundTask, teacher: nn.Module, fabric: Fabric, cancel: Cancel
) -> Generator[Event, None, FineNetwork | None]:
    """Train the network for the scans' own voxels, or read it; None if cancelled."""
    snapshot, config = task.snapshot, task.config
    fabric.seed_everything(config.seed + task.number, verbose=False)
    network = FineNetwork(snapshot.classes, snapshot.inputs)
    tensors = TrainingTensors(snapshot, {}, fabric.device)
    name = f"own_voxels_{task.number}"
    stage = FineStage(name, network, teacher, tensors, config, fabric)
    if not task.files.fine.exists() and not (yield from stage.prepare(cancel)):
        return None
    if not (yield from train_stage(stage, {task.files.fine: network}, task, fabric, cancel)):
        return None
    return network


def with_fine_label(
    network: FineNetwork,
    prediction: Prediction,
    snapshot: CohortSnapshot,
    case: str,
    device: torch.device,
) -> Prediction:
    """A prediction with the label on the scan's own voxels, if the network knows such voxels."""
    assert snapshot.scans is not None
    label = fine_label(network, prediction, snapshot.scans.scan(case), device)
    return replace(prediction, scan_label=label)


def _same_weights(network: nn.Module, path: Path) -> bool:
    """Whether a network has the weights of a file."""
    known, _ = load_tensors(path)
    own = network.state_dict()
    return known.keys() == own.keys() and all(
        torch.equal(own[name].cpu(), tensor) for name, tensor in known.items()
    )


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
        class_confidence=none_for_nan(pseudo.class_confidence),
        classes_passed=[bool(passed) for passed in pseudo.classes_passed],
    )
