"""Training a project: the pre-training where it is missing, then joint rounds, recorded."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from napari_jrss.app.description import config_of, description_of
from napari_jrss.config import TrainingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round as LedgerRound
from napari_jrss.project.records import RoundOutcome

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from napari_jrss.training.events import Event
    from napari_jrss.training.loop import Cancel

LEFT = "left"
STEP_SECONDS = "step_seconds"
DEVICE = "device"
WARNING = "warning"
VALIDATION_DICE = "validation_segmentation_dice"
CLEARLY = 0.005  # in Dice; of less nothing is said
UNLEARNED = "unlearned"


class InterruptedSeriesError(JRSSError):
    """An interrupted series of rounds stands in the way of a new one."""


class OutOfMemoryError(JRSSError):
    """The device's memory is not enough; the message says what to lower."""


class Executor(Protocol):
    """Where rounds run, such as :class:`InThisProcess`."""

    @property
    def first(self) -> bool:
        """Whether this is the process that records the rounds."""
        ...

    @property
    def device(self) -> str:
        """What rounds run on, once prepared: ``cpu``, ``cuda`` or ``mps``."""
        ...

    def prepare(self, config: TrainingConfig, cancel: Cancel) -> bool:
        """Get ready for a round before it is recorded; False if cancelled meanwhile.

        Raises what the round's device or the names of its networks would.
        """
        ...

    def agree(self, number: int) -> int:
        """The round's number, as the first process knows it."""
        ...

    def run(self, project: Project, entry: LedgerRound, cancel: Cancel) -> Iterator[Event]:
        """Run or resume a recorded round; events as of :func:`engine.joint_round.run_round`."""
        ...

    def close(self) -> None:
        """Let go of what :meth:`prepare` took; safe to call again."""
        ...


class InThisProcess:
    """Rounds run where they are asked for, on one or several devices.

    Parameters
    ----------
    device, devices
        See :func:`napari_jrss.inference.device.make_fabric`.
    """

    def __init__(self, device: str = "auto", devices: int = 1) -> None:
        self.device = device
        self._devices = devices
        self._fabric: Fabric | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that records the rounds."""
        return self._fabric is None or bool(self._fabric.is_global_zero)

    def prepare(self, config: TrainingConfig, cancel: Cancel) -> bool:
        """Open the device and check the names of both networks."""
        from napari_jrss.inference.device import make_fabric
        from napari_jrss.networks.build import check_network

        if self._fabric is None:
            self._fabric = make_fabric(self.device, config.precision, self._devices)
            self.device = self._fabric.device.type
        for network in (config.segmentation_network, config.registration_network):
            check_network(network)
        return True

    def agree(self, number: int) -> int:
        """The first process's number, sent to all processes."""
        assert self._fabric is not None
        agreed: int = self._fabric.broadcast(number)
        return agreed

    def run(self, project: Project, entry: LedgerRound, cancel: Cancel) -> Iterator[Event]:
        """Run the round here; :class:`OutOfMemoryError` if the memory is not enough."""
        from napari_jrss.training.round import Round, run_round

        assert self._fabric is not None
        config = config_of(entry)
        snapshot = project.snapshot(entry.number)
        parent = None if entry.parent is None else project.round(entry.parent).folder
        this = Round(entry.number, snapshot, config, entry.folder, parent)
        try:
            yield from run_round(this, self._fabric, cancel)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"the memory of {'this computer' if self.device == 'cpu' else 'the GPU'} is not "
                f"enough for round {entry.number} at {' x '.join(map(str, snapshot.shape))} "
                f"voxels: lower the batch sizes (now {config.segmentation.batch_size} and "
                f"{config.registration.batch_size}), or close other programs"
                + ("" if self.device == "cpu" else ", use bf16-mixed precision, or train on cpu")
            ) from error
        self._fabric.barrier()

    def close(self) -> None:
        """Nothing to release."""


def train(
    project: Project,
    config: TrainingConfig,
    rounds: int,
    cancel: Cancel,
    *,
    device: str = "auto",
    devices: int = 1,
    resume: bool | None = None,
    pretrain: bool = False,
    place: Executor | None = None,
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
        See :func:`napari_jrss.inference.device.make_fabric`.
    resume
        True: go on with the interrupted series, as it was asked for. False: leave it and
        start anew. None: neither, an interrupted series is an error.
    pretrain
        Pre-train from nothing though there is a teacher, which stays in force until that is
        done: with more labels, for longer, or another network.
    place
        Where rounds run; in this process, on `device` and `devices`, by default.

    Raises
    ------
    InterruptedSeriesError
        If there is an interrupted series and `resume` is None, or none and it is True, or if
        `resume` and `pretrain` are both asked for.
    """
    from napari_jrss.training.events import Cancelled

    plan = _plan(project, config, rounds, resume, pretrain)
    place = InThisProcess(device, devices) if place is None else place
    try:
        while place.prepare(plan.config, cancel):
            for event in _run(project, plan, place, cancel):
                yield event
                if isinstance(event, Cancelled):
                    return
            if plan.rounds_left == 0:
                return
            plan = _Planned(plan.config, plan.rounds_left - 1)
    finally:
        place.close()


@dataclass(frozen=True)
class _Planned:
    """One round to run: a new one, or an interrupted one to go on with."""

    config: TrainingConfig
    rounds_left: int
    pretraining: bool = False
    interrupted: LedgerRound | None = None


def _run(project: Project, plan: _Planned, place: Executor, cancel: Cancel) -> Iterator[Event]:
    """Run one planned round; the first process records it and how it ended."""
    from napari_jrss.training.events import RoundFinished

    number = _enter(project, plan) if place.first else -1
    entry = project.round(place.agree(number))
    clock = _Clock()
    outcome = RoundOutcome.CANCELLED
    metrics: dict[str, object] = {}
    try:
        for event in place.run(project, entry, cancel):
            clock.add(event)
            if isinstance(event, RoundFinished):
                said = (event.warning, _behind(project, entry, event.metrics))
                event = event.model_copy(update={"warning": " ".join(filter(None, said))})
                outcome = RoundOutcome.FINISHED
                metrics = {
                    **event.metrics,
                    STEP_SECONDS: clock.seconds_per_step(),
                    DEVICE: place.device,
                    **({WARNING: event.warning} if event.warning else {}),
                    **({UNLEARNED: event.unlearned} if event.unlearned else {}),
                }
            yield event
    except Exception as error:
        outcome, metrics = RoundOutcome.FAILED, {"error": str(error)}
        raise
    finally:
        if place.first:
            finished = outcome is RoundOutcome.FINISHED
            project.finish_round(entry.number, outcome, metrics, promote=finished)


def _behind(project: Project, entry: LedgerRound, metrics: dict[str, float]) -> str:
    """Which round before this one left a clearly better segmentation; empty if none did."""
    reached: dict[int, float] = {}
    parent = entry.parent
    while parent is not None:
        earlier = project.round(parent)
        dice = earlier.metrics.get(VALIDATION_DICE)
        if isinstance(dice, float):
            reached[parent] = dice
        parent = earlier.parent
    now = metrics.get(VALIDATION_DICE)
    best = max(reached, key=reached.__getitem__, default=None)
    if now is None or best is None or now >= reached[best] - CLEARLY:
        return ""
    return (
        f"On the validation cases round {best} segments better (Dice {reached[best]:.3f}, now "
        f"{now:.3f}); its teacher can be put in force again."
    )


class _Clock:
    """Seconds that a step of each stage takes, validation and saving included."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._steps: dict[str, list[float]] = {}

    def add(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind in ("step_end", "case_screened", "case_judged") and self._last is not None:
            # A round's stages carry its number; the next round's steps cost the same.
            stage = re.sub(r"_\d+$", "", event.stage)
            self._steps.setdefault(stage, []).append(now - self._last)
        self._last = now if event.kind != "epoch_end" else self._last

    def seconds_per_step(self) -> dict[str, float]:
        return {stage: sum(steps) / len(steps) for stage, steps in self._steps.items()}


def _enter(project: Project, plan: _Planned) -> int:
    """Start the planned round in the project, or go on with it; its number."""
    from napari_jrss.training.description import describe

    if plan.interrupted is not None:
        return project.resume_round(plan.interrupted.number).number
    snapshot, teacher = project.snapshot(), project.teacher
    _check_trainable(project, plan)
    description = describe(snapshot, plan.config, plan.rounds_left)
    parent = None if plan.pretraining or teacher is None else teacher.number
    return project.start_round(parent, description, snapshot.label_versions).number


def _check_trainable(project: Project, plan: _Planned) -> None:
    """Whether all that is left of a series can be run, as far as that can be told before it."""
    from napari_jrss.training.description import RoundError, check_trainable

    check_trainable(project.snapshot(), joint=not plan.pretraining or plan.rounds_left > 0)
    teacher = project.teacher
    if plan.pretraining or teacher is None:
        return
    trained = config_of(teacher)
    for task in ("segmentation_network", "registration_network"):
        if getattr(plan.config, task) != getattr(trained, task):
            raise RoundError(
                f"the {task.replace('_', ' ')} of round {teacher.number}, from which the next one "
                "starts, has other settings: pre-train again, or leave it as it is"
            )


def _plan(
    project: Project,
    config: TrainingConfig,
    rounds: int,
    resume: bool | None,
    pretrain: bool,
) -> _Planned:
    """The first round to run."""
    if rounds < 0:
        raise ValueError(f"rounds must be at least 0, not {rounds}")
    if resume and pretrain:
        raise InterruptedSeriesError(
            "a series is resumed as it was begun: ask for that or to pre-train again, not for both"
        )
    history = project.rounds()
    interrupted = interrupted_round(project)
    if resume is None and interrupted is not None:
        raise InterruptedSeriesError(
            f"round {interrupted.number} was interrupted: --resume goes on with it, "
            "--no-resume starts anew"
        )
    left = rounds_left(project)
    if resume is None and left > 0:
        raise InterruptedSeriesError(
            f"the series was interrupted after round {history[-1].number}, {left} still to come: "
            "--resume goes on with it, --no-resume starts anew"
        )
    if resume and interrupted is not None:
        return _Planned(config_of(interrupted), left, interrupted=interrupted)
    if resume and left > 0:
        return _Planned(config_of(history[-1]), left - 1)
    if resume:
        raise InterruptedSeriesError(f"{project.path}: there is no interrupted round to resume")
    if project.teacher is None or pretrain:
        return _Planned(config, rounds, pretraining=True)
    if rounds == 0:
        raise InterruptedSeriesError(
            f"{project.path}: is pre-trained already; ask for rounds, or to pre-train it again"
        )
    return _Planned(config, rounds - 1)


def check_series(
    project: Project,
    config: TrainingConfig,
    rounds: int,
    resume: bool | None = None,
    pretrain: bool = False,
) -> None:
    """Raise what :func:`train` would raise before its first round, but for the device."""
    project.check_writable()
    plan = _plan(project, config, rounds, resume, pretrain)
    if plan.interrupted is None:
        _check_trainable(project, plan)


def series_in_words(project: Project) -> str:
    """What a resumed series goes on with: the settings that it was begun with."""
    entry = interrupted_round(project)
    config = config_of(entry or project.rounds()[-1])
    left = rounds_left(project)
    if entry is not None:
        what = f"round {entry.number}" + (f" and {left} more" if left else "")
    else:
        what = "the round" if left == 1 else f"the {left} rounds"
        what += " still to come"
    begun = "as it was begun" if entry is not None and not left else "as the series was begun"
    return (
        f"going on with {what} {begun}: preset {config.preset}, seed {config.seed}, "
        f"tau {config.screening.tau:g}"
    )


def interrupted_round(project: Project) -> LedgerRound | None:
    """The latest round, if it was paused, failed or killed, and nobody left it for good."""
    entry = project.unfinished_round()
    return None if entry is None or entry.metrics.get(LEFT) else entry


def rounds_left(project: Project) -> int:
    """How many rounds of the last series are still to come after its latest one."""
    history = project.rounds()
    if not history or history[-1].metrics.get(LEFT):
        return 0
    return description_of(history[-1]).rounds_left


def teacher_warning(project: Project) -> str:
    """What to know of the teacher in force before its labels are trusted; empty for nothing."""
    return "" if project.teacher is None else str(project.teacher.metrics.get(WARNING, ""))


def leave_series(project: Project) -> None:
    """Say that nobody will go on with the last series: its interrupted round, or the next ones."""
    entry = interrupted_round(project)
    if entry is not None:
        project.finish_round(entry.number, RoundOutcome.CANCELLED, {**entry.metrics, LEFT: True})
    elif rounds_left(project) > 0:
        latest = project.rounds()[-1].number
        project.add_metrics(latest, {LEFT: True}, "the rounds still to come were left")


def _is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has a class of its own for CUDA only."""
    text = str(error)
    return (
        isinstance(error, MemoryError) or "out of memory" in text or "DefaultCPUAllocator" in text
    )
