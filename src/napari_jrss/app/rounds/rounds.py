"""Training in the background: start, pause, cancel, resume, and go back to a teacher."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_jrss.app.rounds.estimate import (
    Estimate,
    Measured,
    cost_settings,
    estimated,
    measure_in_own_process,
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
    from napari_jrss.app.session import Session


@dataclass(frozen=True)
class RoundRow:
    """One line of the history of rounds.

    Attributes
    ----------
    number, parent
        Which, and the round whose teacher it started from; None for the pre-training.
    outcome
        How it ended.
    is_teacher
        Whether its teacher is the one in force.
    started
        UTC time, ISO 8601.
    preset, tau, seed
        Settings that it was started with; None where its description can't be read.
    labelled, accepted
        N, and the number of pseudo-labels that its teacher had accepted; None if unfinished.
    segmentation_dice, registration_dice
        Mean foreground Dice on the validation cases; None without them, or if unfinished.
    label_versions
        Label version of each labelled and validation case, as the round used them.
    problem
        Why it failed; empty if it didn't.
    warning
        What to know before its teacher is trusted, such as structures that it hasn't learned.
    resumable
        Whether it was interrupted, and :meth:`Rounds.resume` goes on with it.
    """

    number: int
    parent: int | None
    outcome: RoundOutcome
    is_teacher: bool
    started: str
    preset: str | None
    tau: float | None
    seed: int | None
    labelled: int | None
    accepted: int | None
    segmentation_dice: float | None
    registration_dice: float | None
    label_versions: dict[str, str]
    problem: str = ""
    warning: str = ""
    resumable: bool = False


class Rounds:
    """Commands of the tab of this name; made by its session.

    Attributes
    ----------
    own_process
        Run each round in a process of its own (see docs/benchmarks.md), or in this one.
    estimator
        Runner of :meth:`estimate`.
    """

    def __init__(self, session: Session) -> None:
        self.own_process = True
        self.estimator = JobRunner("estimate")
        self._measured: dict[str, Measured] = {}
        self._session = session
        self._leaving = threading.Event()
        self._at_once = threading.Event()
        session.training.state_changed.connect(self._ended)
        session.training.event.connect(self._happened)

    # -- what there is

    @property
    def interrupted(self) -> Round | None:
        """The round that :meth:`resume` would go on with: paused, failed or killed."""
        project = self._session.project
        if project is None or self._session.training.state.busy:
            return None
        return interrupted_round(project)

    @property
    def resumable(self) -> bool:
        """Whether :meth:`resume` has something to go on with, a round or what follows it.

        What can't be read can't be resumed.
        """
        project = self._session.project
        if project is None or project.read_only or self._session.training.state.busy:
            return False
        try:
            return rounds_left(project) > 0 or interrupted_round(project) is not None
        except ProjectError:
            return False

    @property
    def unfinished_config(self) -> TrainingConfig | None:
        """Settings of what runs or can be resumed, whoever started it.

        Raises
        ------
        ProjectError
            They can't be read.
        """
        project = self._session.project
        if project is None:
            return None
        entry = project.unfinished_round()
        if entry is None and rounds_left(project) > 0:
            entry = project.rounds()[-1]
        return None if entry is None else entry.files.training_config()

    def history(self) -> list[RoundRow]:
        """All rounds of the project by number; none without a project."""
        project = self._session.project
        if project is None:
            return []
        teacher = project.teacher
        number = None if teacher is None else teacher.number
        interrupted = self.interrupted
        return [
            _row(entry, entry.number == number, entry == interrupted) for entry in project.rounds()
        ]

    def curves(self) -> Progress:
        """Losses and validation Dice of the rounds that led to the present one."""
        drawn, project = Progress(), self._session.project
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
    ) -> None:
        """Pre-train where that is missing, then run joint rounds, in the background.

        Parameters
        ----------
        config
            Settings.
        rounds
            Joint rounds to run.
        anew
            Leave an interrupted series for good; without it, such a series is an error.
        pretrain
            Pre-train from nothing though there is a teacher, which stays in force until that is
            done: with more labels, for longer, or another network.

        Raises
        ------
        InterruptedSeriesError
            A series was interrupted, or there is nothing to do.
        BusyError
            A round is running.
        ProjectError
            No project is open, or it is read-only.
        """
        project = self._session.open_project
        project.check_writable()
        resume = None if self.resumable and not anew else False
        self._begin(plan_series(project, config, rounds, resume=resume, pretrain=pretrain))

    def resume(self) -> None:
        """Go on with the interrupted series, with the settings that it was started with.

        Raises
        ------
        InterruptedSeriesError
            There is none.
        """
        project = self._session.open_project
        project.check_writable()
        self._begin(plan_series(project, TrainingConfig(), 0, resume=True))

    def pause(self) -> None:
        """Stop after the present step and keep the training state; :meth:`resume` goes on."""
        self._session.training.cancel()

    def cancel(self) -> None:
        """Stop, and leave the series for good: the next start begins anew.

        A series that is paused, or was stopped between two rounds, can be left, too. The teacher
        in force stays.
        """
        project = self._session.open_project
        project.check_writable()
        if self._session.training.state.busy:
            self._leaving.set()
            self._session.training.cancel()
        else:
            leave_series(project)
            self._session.rounds_changed.emit()

    def promote(self, number: int, reason: str = "") -> None:
        """Make a finished round's teacher the one in force; an earlier round rolls back."""
        project = self._session.open_project
        project.check_writable()
        project.promote(number, self._session.author or None, reason)
        self._session.rounds_changed.emit()
        self._session.notified.emit(f"the teacher of round {number} is in force")

    def estimate(self, config: TrainingConfig, rounds: int, *, pretrain: bool = False) -> None:
        """Find out in the background what a series would take, before it is started.

        The estimator's event is an :class:`~napari_jrss.app.rounds.estimate.Estimate`. Measuring
        takes seconds, in a process of its own; the same settings are measured once.

        Raises
        ------
        BusyError
            A round is running, which the measurement would disturb; or one is under way.
        ProjectError
            No project is open, or it has no cases.
        """
        project, device = self._session.open_project, self._session.device
        if self._session.training.state.busy:
            raise BusyError("a round is running; its progress says how long it takes")
        snapshot = project.snapshot()
        # What changes the cost of no step is measured once.
        key = f"{device} {snapshot.classes} {snapshot.shape} {cost_settings(config)}"

        def work(cancel: threading.Event) -> Iterator[Estimate]:
            measured = self._measured.get(key)
            if measured is None:
                measured = measure_in_own_process(
                    config, snapshot.classes, snapshot.shape, device, cancel
                )
            if measured is not None:
                self._measured[key] = measured
                yield estimated(project, config, rounds, measured, pretrain=pretrain)

        self.estimator.start(work)

    def end_at_once(self) -> None:
        """Don't wait for the present step of a job that was asked to stop.

        A training process is ended; its round goes on from its last saved state. A round in
        this process can't be hurried.
        """
        self._at_once.set()

    # -- the job

    def _begin(self, planned: PlannedRound) -> None:
        project, device = self._session.open_project, self._session.device
        leaving, at_once = threading.Event(), threading.Event()

        def work(cancel: threading.Event) -> Iterator[Event]:
            executor: Executor = InThisProcess(device)
            if self.own_process:
                executor = InOwnProcess(project.path, device, at_once=at_once)
            try:
                yield from run_series(project, planned, cancel, executor)
            finally:
                if leaving.is_set():
                    leave_series(project)

        self._session.training.start(work)
        self._leaving, self._at_once = leaving, at_once

    def _ended(self, state: JobState) -> None:
        if not state.busy:
            self._session.rounds_changed.emit()

    def _happened(self, event: Event) -> None:
        # A round is in the ledger when its first stage starts; the one before it has ended.
        if event.kind == "stage_started":
            self._session.rounds_changed.emit()


def _row(entry: Round, is_teacher: bool, resumable: bool) -> RoundRow:
    try:
        config = entry.files.training_config()
    except ProjectError:
        config = None
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
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) else None
