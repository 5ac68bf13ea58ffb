"""Training a project: the pre-training where it is missing, then joint rounds, recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_jrss.config import TrainingConfig
from napari_jrss.project.ledger import Outcome
from napari_jrss.project.ledger import Round as LedgerRound
from napari_jrss.project.project import Project
from napari_jrss.session.description import config_of, description_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from napari_jrss.engine.events import Event
    from napari_jrss.engine.fit import Cancel


class InterruptedSeriesError(ValueError):
    """An interrupted series of rounds stands in the way of a new one."""


@dataclass(frozen=True)
class _Planned:
    """One round to run: a new one, or an interrupted one to go on with."""

    config: TrainingConfig
    rounds_left: int
    interrupted: LedgerRound | None = None


def train(
    project: Project,
    config: TrainingConfig,
    rounds: int,
    cancel: Cancel,
    *,
    device: str = "auto",
    devices: int = 1,
    resume: bool | None = None,
) -> Iterator[Event]:
    """Pre-train a project that has no teacher yet, then run joint rounds.

    Each finished round's teacher becomes the current one; a cancelled or failed round leaves
    the teacher as it was and can be resumed.

    Parameters
    ----------
    project
        Open for writing; in a second process of a run on several devices, read-only.
    config
        Settings; a resumed round keeps those that it was started with.
    rounds
        Joint rounds to run after the pre-training or after the current teacher.
    cancel
        Checked before each step.
    device, devices
        See :func:`napari_jrss.engine.device.make_fabric`.
    resume
        True: go on with the interrupted series, as it was asked for. False: leave it and
        start anew. None: neither, an interrupted series is an error.

    Raises
    ------
    InterruptedSeriesError
        If there is an interrupted series and `resume` is None, or none and it is True.
    """
    from napari_jrss.engine.device import make_fabric
    from napari_jrss.engine.events import Cancelled

    plan = _plan(project, config, rounds, resume)
    fabric = make_fabric(device, plan.config.precision, devices)
    while True:
        for event in _run(project, plan, fabric, cancel):
            yield event
            if isinstance(event, Cancelled):
                return
        if plan.rounds_left == 0:
            return
        plan = _Planned(plan.config, plan.rounds_left - 1)


def _run(project: Project, plan: _Planned, fabric: Fabric, cancel: Cancel) -> Iterator[Event]:
    """Run one planned round; the first process records it and how it ended."""
    from napari_jrss.engine.events import RoundFinished
    from napari_jrss.engine.joint_round import Round, run_round

    number = _enter(project, plan) if fabric.is_global_zero else -1
    entry = project.round(fabric.broadcast(number))
    snapshot = project.snapshot(entry.number)
    parent = None if entry.parent is None else project.round(entry.parent).folder
    this = Round(entry.number, snapshot, plan.config, entry.folder, parent)
    outcome, metrics = Outcome.CANCELLED, {}
    try:
        for event in run_round(this, fabric, cancel):
            if isinstance(event, RoundFinished):
                outcome, metrics = Outcome.FINISHED, event.metrics
            yield event
    except Exception as error:
        outcome, metrics = Outcome.FAILED, {"error": str(error)}  # type: ignore[dict-item]
        raise
    finally:
        if fabric.is_global_zero:
            finished = outcome is Outcome.FINISHED
            project.finish_round(entry.number, outcome, metrics, promote=finished)
    fabric.barrier()


def _enter(project: Project, plan: _Planned) -> int:
    """Start the planned round in the project, or go on with it; its number."""
    from napari_jrss.engine.joint_round import describe

    if plan.interrupted is not None:
        return project.resume_round(plan.interrupted.number).number
    snapshot, teacher = project.snapshot(), project.teacher
    description = describe(snapshot, plan.config, plan.rounds_left)
    parent = None if teacher is None else teacher.number
    return project.start_round(parent, description, snapshot.label_versions).number


def _plan(project: Project, config: TrainingConfig, rounds: int, resume: bool | None) -> _Planned:
    """The first round to run."""
    if rounds < 0:
        raise ValueError(f"rounds must be at least 0, not {rounds}")
    history = project.rounds()
    interrupted = project.unfinished_round()
    left = description_of(history[-1]).rounds_left if history else 0
    if resume is None and interrupted is not None:
        raise InterruptedSeriesError(
            f"round {interrupted.number} was interrupted: --resume goes on with it, "
            "--no-resume starts anew"
        )
    if resume and interrupted is not None:
        return _Planned(config_of(interrupted), left, interrupted)
    if resume and left > 0:
        return _Planned(config_of(history[-1]), left - 1)
    if resume:
        raise InterruptedSeriesError(f"{project.path}: there is no interrupted round to resume")
    if project.teacher is None:
        return _Planned(config, rounds)
    if rounds == 0:
        raise InterruptedSeriesError(f"{project.path}: is pre-trained already; ask for rounds")
    return _Planned(config, rounds - 1)
