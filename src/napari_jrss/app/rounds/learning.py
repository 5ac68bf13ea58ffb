"""Learn at once: after an accepted case, a quick round gives the next case a better draft.

A quick round goes on from the teacher in force (:mod:`napari_jrss.training.quick`). The ledger has
it as a round of its own kind, so an earlier teacher can be put in force again. It comes into force
only where the cases that it is judged on don't say that it is worse.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_jrss.app.rounds.estimate import cost_settings
from napari_jrss.app.rounds.process import InOwnProcess, default_threads
from napari_jrss.app.rounds.train import (
    DEVICE,
    STEP_SECONDS,
    Executor,
    InThisProcess,
    PlannedRound,
    interrupted_round,
    lineage,
    rounds_left,
    run_series,
)
from napari_jrss.app.runner import BusyError, JobState
from napari_jrss.errors import JRSSError, ProjectError
from napari_jrss.io.round_files import ANCHOR_DRAFT_DICE, DRAFT_DICE, KEPT, QuickPlan
from napari_jrss.preprocess.cost import step_seconds, this_machine
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round, RoundKind, RoundOutcome

if TYPE_CHECKING:
    from napari_jrss.app.cohort import Cohort
    from napari_jrss.app.workspace import Workspace
    from napari_jrss.training.events import Event

BUDGET_S = 60.0
"""Seconds that a quick round may take on this computer, by what a step is known to cost."""
_START_S = 8.0  # until the process is there and has read the scans
_PREDICTING, _JUDGING = 0.2, 0.2  # shares of the rest: for drafts of other cases, for judging
_MOST_JUDGED = 12
_LEAST_STEPS, _MOST_STEPS = 20, 300


class LearningError(JRSSError):
    """There is nothing to learn now; the message says why."""


def why_not(project: Project) -> str:
    """Why the teacher can't learn at once now, in a sentence; empty if it can."""
    teacher = project.teacher
    if teacher is None:
        return "There is no teacher yet: train a first one."
    if interrupted_round(project) is not None or rounds_left(project):
        return "The training was interrupted: resume it, or give it up."
    if not new_labels(project, teacher):
        return "The teacher knows every label already."
    return ""


def new_labels(project: Project, teacher: Round) -> list[str]:
    """Labelled training cases whose label a round's teacher hasn't seen."""
    return [
        case.case_id
        for case in project.cases()
        if case.labelled and teacher.label_versions.get(case.case_id) != case.label_version
    ]


def plan_quick_round(
    project: Project, device: str = "auto", first: Sequence[str] = ()
) -> PlannedRound:
    """Plan a quick round that ends within :data:`BUDGET_S` on this computer.

    Parameters
    ----------
    project
        Open for writing.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    first
        Cases to predict before others.

    Raises
    ------
    LearningError
        See :func:`why_not`.
    """
    if reason := why_not(project):
        raise LearningError(reason)
    teacher = project.require_teacher()
    snapshot, config = project.snapshot(), teacher.files.training_config()
    new = new_labels(project, teacher)
    costs = _seconds_of(project, teacher, device)
    left = BUDGET_S - _START_S - costs["prediction"] * len(new)
    # a case is judged before and after
    judged = list(snapshot.validation) or [c for c in snapshot.labelled if c not in new]
    most = max(2, int(_JUDGING * left / (2 * costs["prediction"])))
    judged = judged[: min(most, _MOST_JUDGED)]
    wanted = [case for case in first if case in snapshot.unlabelled]
    wanted += [case for case in snapshot.unlabelled if case not in wanted]
    predicted = wanted[: max(1, int(_PREDICTING * left / costs["prediction"]))]
    left -= costs["prediction"] * (2 * len(judged) + len(predicted))
    steps = min(_MOST_STEPS, max(_LEAST_STEPS, int(left / costs["quick"])))
    plan = QuickPlan(new=new, steps=steps, judged=judged, predicted=predicted)
    return PlannedRound(config, 0, quick=plan, parent=_parent(project, teacher).number)


def _seconds_of(project: Project, teacher: Round, device: str) -> dict[str, float]:
    """Seconds of a quick step and of a prediction: as earlier rounds took, or by the cost model."""
    config, snapshot = teacher.files.training_config(), project.snapshot()
    machine = this_machine(device)
    speed = machine.speed
    if not machine.known and machine.device == "cpu":
        speed = default_threads() ** -0.75
    grid, crop = math.prod(snapshot.shape), math.prod(config.segmentation.crop(snapshot.shape))
    costs = {
        "quick": speed * step_seconds("quick", crop, snapshot.classes),
        "prediction": speed * step_seconds("prediction", grid, snapshot.classes),
    }
    for entry in filter(project.of_this_plan, project.rounds()):
        known = entry.metrics.get(STEP_SECONDS)
        if entry.metrics.get(DEVICE) != machine.device or not isinstance(known, dict):
            continue
        if cost_settings(entry.files.training_config()) != cost_settings(config):
            continue
        taken = {str(stage): float(value) for stage, value in known.items()}
        costs["quick"] = taken.get("quick", taken.get("mono_segmentation", costs["quick"]))
        costs["prediction"] = taken.get("prediction", costs["prediction"])
    return {stage: max(seconds, 1e-3) for stage, seconds in costs.items()}


def _parent(project: Project, teacher: Round) -> Round:
    """The teacher in force, unless its quick rounds made it worse on cases that they hadn't seen.

    Each quick round notes the Dice of the drafts of its new cases, by the teacher before it and by
    that of the last training. Neither had seen these labels.
    """
    from napari_jrss.training.loop import clearly_worse

    anchor = project.before_quick(teacher)
    chain = {entry.number for entry in lineage(project, teacher)} - {anchor.number}
    by_anchor, by_teacher = [], []
    for entry in project.rounds():
        known = entry.metrics.get(ANCHOR_DRAFT_DICE), entry.metrics.get(DRAFT_DICE)
        if entry.parent in chain and all(isinstance(value, float) for value in known):
            by_anchor.append(known[0])
            by_teacher.append(known[1])
    if by_anchor and clearly_worse(by_anchor, by_teacher):  # type: ignore[arg-type]
        return anchor
    return teacher


def drop_unfinished(project: Project) -> None:
    """Give up the quick rounds whose program died; nothing of them is used."""
    for entry in project.rounds():
        if entry.kind is RoundKind.QUICK and entry.outcome is RoundOutcome.RUNNING:
            project.finish_round(entry.number, RoundOutcome.CANCELLED, {"error": "left unfinished"})
            entry.files.drop()


class Learning:
    """The commands of learning at once; the jobs run on ``workspace.learning``.

    A label that is accepted while a job or a training runs is learned once that has ended. A
    training that starts ends the job, since it learns from the same labels.
    """

    changed = Signal()  # `after_accept` or `learned` changed, or a job began or ended

    def __init__(self, workspace: Workspace, cohort: Cohort) -> None:
        self.own_process = True  # whether each job runs in a process of its own, or in this one
        self.runner = workspace.learning
        self.learned = ""  # what the latest job came to, in a sentence
        self._workspace, self._cohort = workspace, cohort
        self._after_accept = False
        self._again = False
        workspace.project_changed.connect(self._project_changed)
        self.runner.state_changed.connect(self._ended)
        workspace.training.state_changed.connect(self._training_changed)

    @property
    def after_accept(self) -> bool:
        """Whether each accepted training case is learned at once."""
        return self._after_accept

    @after_accept.setter
    def after_accept(self, on: bool) -> None:
        if on != self._after_accept:
            self._after_accept = on
            self.changed.emit()

    @property
    def why_not(self) -> str:
        """Why the teacher can't learn at once now; empty if it can."""
        project = self._workspace.project
        if project is None:
            return "No project is open."
        if project.read_only:
            return "The project is open read-only."
        if self._workspace.training.state.busy:
            return "A training runs; it comes after that."
        return why_not(project)

    def start(self) -> None:
        """Learn from the labels that the teacher hasn't seen. Runs as a job.

        Raises
        ------
        LearningError
            There is nothing to learn now, see :attr:`why_not`.
        BusyError
            The teacher is learning already.
        """
        project = self._workspace.writable_project
        if reason := self.why_not:
            raise LearningError(reason)
        self._again = False

        def work(cancel: threading.Event) -> Iterator[Event]:
            if self._workspace.training.state.busy:  # it began just now
                self._again = True
                return
            yield from self._learn(project, cancel)

        self.runner.start(work)

    def stop(self, timeout: float | None = 10.0) -> bool:
        """Stop learning, without a trace; whether that was done within `timeout` seconds."""
        self._again = False
        return self._workspace.stop_learning(timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until nothing is learned; whether that is so."""
        return self.runner.wait(timeout)

    def accepted(self, case_id: str) -> None:
        """Learn from a case that was accepted just now, if that is wanted and possible."""
        project = self._workspace.project
        if not self._after_accept or project is None or not project.case(case_id).labelled:
            return
        self._again = True
        self._go_on()

    # -- the job

    def _learn(self, project: Project, cancel: threading.Event) -> Iterator[Event]:
        from napari_jrss.training.events import RoundFinished

        device = self._workspace.device
        suggestion = self._cohort.suggest()
        first = [] if suggestion is None else [suggestion.case_id]
        planned = plan_quick_round(project, device, first)
        assert planned.quick is not None
        self._say("")
        executor: Executor = InThisProcess(device)
        if self.own_process:
            executor = InOwnProcess(project.path, device, at_once=cancel)
        for event in run_series(project, planned, cancel, executor):
            yield event
            if isinstance(event, RoundFinished):
                words = " and ".join(planned.quick.new)
                cases = f"case {words}" if len(planned.quick.new) == 1 else f"cases {words}"
                better = event.metrics[KEPT] > 0
                self._say(
                    f"The teacher learned from {cases}: the next draft uses it."
                    if better
                    else f"The teacher got worse by {cases}: the former teacher stays."
                )

    def _say(self, what: str) -> None:
        self.learned = what
        self.changed.emit()

    def _ended(self, state: JobState) -> None:
        self.changed.emit()
        if state.busy:
            return
        self._workspace.rounds_changed.emit()
        if state is JobState.FAILED:
            self._workspace.notified.emit(f"learning at once failed: {self.runner.error}")
        elif state is JobState.FINISHED and self.learned:
            self._workspace.notified.emit(self.learned)
        self._go_on()

    def _training_changed(self, state: JobState) -> None:
        if not state.busy:
            self._go_on()

    def _go_on(self) -> None:
        """Learn what was accepted meanwhile, unless something runs still, or there is no need."""
        if not self._again or self.runner.state.busy or self._workspace.training.state.busy:
            return
        self._again = False
        if not self.why_not:
            with suppress(BusyError):  # another thread started it just now
                self.start()

    def _project_changed(self) -> None:
        self._again, self.learned = False, ""
        project = self._workspace.project
        if project is not None and not project.read_only:
            try:
                drop_unfinished(project)
            except ProjectError as error:
                self._workspace.notified.emit(str(error))
        self.changed.emit()
