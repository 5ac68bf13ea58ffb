"""Train in the background: start, pause, resume, cancel, and choose the teacher in force."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_jrss.app.rounds.elsewhere import executor_elsewhere
from napari_jrss.app.rounds.estimate import Estimate, check_fits, cost_settings, estimated
from napari_jrss.app.rounds.launch import RunOn
from napari_jrss.app.rounds.measure import (
    EstimateError,
    Measured,
    measure_in_own_process,
    registering_stages,
)
from napari_jrss.app.rounds.process import InOwnProcess
from napari_jrss.app.rounds.progress import Progress
from napari_jrss.app.rounds.train import (
    VALIDATION_DICE,
    WARNING,
    Executor,
    InThisProcess,
    PlannedRound,
    interrupted_round,
    leave_series,
    lineage,
    plan_series,
    rounds_left,
    run_series,
)
from napari_jrss.app.runner import BusyError, JobRunner, JobState
from napari_jrss.config import TrainingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.project.records import Round, RoundOutcome
from napari_jrss.training.events import Event, MetricsFile

if TYPE_CHECKING:
    from napari_jrss.app.workspace import Workspace


@dataclass(frozen=True)
class RoundRow:
    """One row of the history of rounds."""

    # The round, and the round whose teacher it started from; None for the pre-training.
    number: int
    parent: int | None
    outcome: RoundOutcome
    is_teacher: bool  # whether its teacher is the one in force
    started: str  # UTC time, ISO 8601
    # Settings that it was started with; None if they can't be read.
    preset: str | None
    tau: float | None
    seed: int | None
    # N, and the number of pseudo-labels that passed the screening; None if unfinished.
    labelled: int | None
    accepted: int | None
    # Mean foreground Dice on the validation cases; None without them, or if unfinished.
    segmentation_dice: float | None
    registration_dice: float | None
    # Label version of each labelled and validation case that the round used.
    label_versions: dict[str, str]
    problem: str = ""  # why it failed; empty if it didn't
    # What to know before its teacher is trusted, such as structures that it hasn't learned.
    warning: str = ""
    resumable: bool = False  # whether `RoundControl.resume` goes on with it
    # Of a quick round: the cases that it learned from; None for a training.
    learned_from: tuple[str, ...] | None = None


class RoundControl:
    """The commands of the tab Training."""

    def __init__(self, workspace: Workspace) -> None:
        self.own_process = True  # whether each round runs in a process of its own, or in this one
        self.run_on: RunOn | None = None  # where rounds run; None: on this computer
        self.devices = 1  # GPUs, or processes on a CPU, that share each batch
        self.estimator = JobRunner("estimate")  # runs the job of `estimate`
        self._measured: dict[str, Measured] = {}
        self._workspace = workspace
        self._leaving = threading.Event()
        self._at_once = threading.Event()
        workspace.training.state_changed.connect(self._ended)
        workspace.training.event.connect(self._happened)

    # -- state

    @property
    def interrupted(self) -> Round | None:
        """The round that :meth:`resume` goes on with: it was paused, or failed, or was killed."""
        project = self._workspace.project
        if project is None or self._workspace.training.state.busy:
            return None
        return interrupted_round(project)

    @property
    def resumable(self) -> bool:
        """Whether :meth:`resume` can go on, with an interrupted round or with those after it."""
        project = self._workspace.project
        if project is None or project.read_only or self._workspace.training.state.busy:
            return False
        try:
            return rounds_left(project) > 0 or interrupted_round(project) is not None
        except ProjectError:
            return False

    @property
    def unfinished_config(self) -> TrainingConfig | None:
        """Settings of the series that runs or can be resumed; None if there is none."""
        project = self._workspace.project
        if project is None:
            return None
        entry = project.unfinished_round()
        if entry is None and rounds_left(project) > 0:
            entry = project.rounds()[-1]
        return None if entry is None else entry.files.training_config()

    def history(self) -> list[RoundRow]:
        """All rounds of the project by number; empty without a project."""
        project = self._workspace.project
        if project is None:
            return []
        teacher = project.teacher
        number = None if teacher is None else teacher.number
        interrupted = self.interrupted
        return [
            _row(entry, entry.number == number, entry == interrupted) for entry in project.rounds()
        ]

    def curves(self) -> Progress:
        """Losses and validation Dice of the present round and of those that it started from."""
        drawn, project = Progress(), self._workspace.project
        entry = None if project is None else (interrupted_round(project) or project.teacher)
        if project is not None and entry is not None:
            for each in reversed(lineage(project, entry)):
                drawn.read(MetricsFile(each.files.metrics).epochs())
        return drawn

    # -- commands

    def start(
        self,
        config: TrainingConfig,
        rounds: int,
        *,
        anew: bool = False,
        pretrain: bool = False,
        anyway: bool = False,
    ) -> None:
        """Pre-train if that is missing, then run joint rounds. Runs as a job.

        Parameters
        ----------
        anew
            Abandon an interrupted series; if False, such a series is an
            :class:`~napari_jrss.app.rounds.train.InterruptedSeriesError`.
        pretrain
            Pre-train from scratch although there is a teacher, for example with more labels or
            another network. The teacher stays in force until that is done.
        anyway
            Start also what can't end on this machine; if False, that is the job's
            :class:`~napari_jrss.app.rounds.estimate.WontFitError`.
        """
        project = self._workspace.writable_project
        resume = None if self.resumable and not anew else False
        planned = plan_series(project, config, rounds, resume=resume, pretrain=pretrain)
        self._begin(planned, check=not anyway)

    def resume(self) -> None:
        """Go on with the interrupted series, with its own settings. Runs as a job."""
        project = self._workspace.writable_project
        self._begin(plan_series(project, TrainingConfig(), 0, resume=True))

    def pause(self) -> None:
        """Stop after the present step and save the training state, for :meth:`resume`."""
        self._workspace.training.cancel()

    def cancel(self) -> None:
        """Stop and abandon the series, which can't be resumed then; the teacher stays in force.

        A series that is paused, or was stopped between two rounds, can be abandoned, too.
        """
        project = self._workspace.writable_project
        if self._workspace.training.state.busy:
            self._leaving.set()
            self._workspace.training.cancel()
        else:
            leave_series(project)
            self._workspace.rounds_changed.emit()

    def promote(self, number: int, reason: str = "") -> None:
        """Put the teacher of a finished round in force; `reason` is kept in the history.

        What is being learned at once is given up: it goes on from another teacher.
        """
        project = self._workspace.writable_project
        self._workspace.stop_learning()
        project.promote(number, self._workspace.author or None, reason)
        self._workspace.rounds_changed.emit()
        self._workspace.notified.emit(f"the teacher of round {number} is in use now")

    def estimate(self, config: TrainingConfig, rounds: int, *, pretrain: bool = False) -> None:
        """Estimate the time and memory of a series. Runs as a job of :attr:`estimator`.

        Its event is an :class:`~napari_jrss.app.rounds.estimate.Estimate`. A process of its own
        measures a few steps, which takes seconds; the same settings are measured once. With several
        :attr:`devices`, there are as many processes. While a round runs, which the measurement
        would disturb, this is a :class:`BusyError`; with :attr:`run_on`, an :class:`EstimateError`.
        """
        if self.run_on is not None:
            raise EstimateError(
                f"{self.run_on.command}: only a training on this computer can be estimated"
            )
        project, device = self._workspace.open_project, self._workspace.device
        if self._workspace.training.state.busy:
            raise BusyError("a round is running; its progress says how long it takes")
        snapshot, devices = project.snapshot(), self.devices
        # What changes the cost of no step is measured once.
        key = f"{devices} {device} {snapshot.classes} {snapshot.shape} {cost_settings(config)}"
        # else none of their steps is measured
        key += f" {config.trains_registration} {registering_stages(config)}"

        def work(cancel: threading.Event) -> Iterator[Estimate]:
            measured = self._measured.get(key)
            if measured is None:
                measured = measure_in_own_process(
                    *(config, snapshot.classes, snapshot.shape, device, cancel),
                    *(snapshot.inputs, devices),
                )
            if measured is not None:
                self._measured[key] = measured
                yield estimated(project, config, rounds, measured, pretrain=pretrain)

        self.estimator.start(work)

    def end_at_once(self) -> None:
        """End the training process of a job that was asked to stop, within its present step.

        The round can be resumed from its last saved state. A round in this process isn't ended.
        """
        self._at_once.set()

    # -- the job

    def _begin(self, planned: PlannedRound, *, check: bool = False) -> None:
        project, device = self._workspace.open_project, self._workspace.device
        leaving, at_once = threading.Event(), threading.Event()
        run_on, devices = self.run_on, self.devices

        def work(cancel: threading.Event) -> Iterator[Event]:
            executor: Executor = InThisProcess(device)
            if run_on is not None:
                executor = executor_elsewhere(
                    project.path, run_on, device, devices, at_once=at_once
                )
            elif self.own_process or devices > 1:
                executor = InOwnProcess(project.path, device, devices=devices, at_once=at_once)
            self._workspace.stop_learning()
            try:
                if check and run_on is None:
                    check_fits(project, planned, device, cancel, devices)
                yield from run_series(project, planned, cancel, executor)
            finally:
                if leaving.is_set():
                    leave_series(project)

        self._workspace.training.start(work)
        self._leaving, self._at_once = leaving, at_once

    def _ended(self, state: JobState) -> None:
        if not state.busy:
            self._workspace.rounds_changed.emit()

    def _happened(self, event: Event) -> None:
        # A round is in the ledger when its first stage starts; the one before it has ended.
        if event.kind == "stage_started":
            self._workspace.rounds_changed.emit()


def _row(entry: Round, is_teacher: bool, resumable: bool) -> RoundRow:
    try:
        described = entry.files.description()
    except ProjectError:
        described = None
    config = None if described is None else described.training
    quick = None if described is None else described.quick
    return RoundRow(
        number=entry.number,
        parent=entry.parent,
        outcome=entry.outcome,
        is_teacher=is_teacher,
        started=entry.started,
        preset=None if config is None else config.preset,
        tau=None if config is None else config.screening.tau,
        seed=None if config is None else config.seed,
        labelled=_whole(entry.metrics.get("labelled")),
        accepted=_whole(entry.metrics.get("accepted")),
        segmentation_dice=_number(entry.metrics.get(VALIDATION_DICE)),
        registration_dice=_number(entry.metrics.get("validation_registration_dice")),
        label_versions=dict(entry.label_versions),
        problem=str(entry.metrics.get("error", "")),
        warning=str(entry.metrics.get(WARNING, "")),
        resumable=resumable,
        learned_from=None if quick is None else tuple(quick.new),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) else None
