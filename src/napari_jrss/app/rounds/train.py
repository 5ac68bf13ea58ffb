"""Training a project: the pre-training where it is missing, then joint rounds, each recorded."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from napari_jrss.config import TrainingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.io.round_files import KEPT, QuickPlan, RoundDescription
from napari_jrss.preprocess.cost import learn_speed
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round, RoundKind, RoundOutcome

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from napari_jrss.training.events import Event
    from napari_jrss.training.loop import Cancel
    from napari_jrss.training.round import RoundTask

LEFT = "left"
STEP_SECONDS = "step_seconds"
DEVICE = "device"
WARNING = "warning"
VALIDATION_DICE = "validation_segmentation_dice"
CLEARLY = 0.005  # in Dice; of less nothing is said
UNLEARNED = "unlearned"


class InterruptedSeriesError(JRSSError):
    """A series can't start beside an interrupted one, or there is none to resume."""


class OutOfMemoryError(JRSSError):
    """The device's memory is not enough; the message says what to lower."""


class Executor(Protocol):
    """Where rounds run, such as :class:`InThisProcess`."""

    @property
    def device(self) -> str:
        """What rounds run on, once prepared: ``cpu``, ``cuda`` or ``mps``."""
        ...

    def prepare(self, config: TrainingConfig, cancel: Cancel) -> bool:
        """Get ready for a round of these settings, before it is recorded; False if cancelled.

        Raises a :class:`JRSSError` if the device isn't there, or a network has an unknown name.
        """
        ...

    def run(self, project: Project, entry: Round, cancel: Cancel) -> Iterator[Event]:
        """Run or resume the round that :meth:`prepare` got ready for, once it is recorded."""
        ...

    def close(self) -> None:
        """Release what :meth:`prepare` took; safe to call again."""
        ...


class InThisProcess:
    """Rounds run where they are asked for.

    With several `devices`, this is one process of so many, which do the same.
    """

    def __init__(self, device: str = "auto", devices: int = 1) -> None:
        self.device = device
        self._devices = devices
        self._fabric: Fabric | None = None
        self._config: TrainingConfig | None = None

    def prepare(self, config: TrainingConfig, cancel: Cancel) -> bool:
        """Open the device and check the names of both networks."""
        from napari_jrss.inference.device import make_fabric
        from napari_jrss.networks.build import check_network

        if self._fabric is None:
            self._fabric = make_fabric(self.device, config.precision, self._devices)
            self.device = device_name(self._fabric.device.type, self._devices)
        for network in (config.segmentation_network, config.registration_network):
            check_network(network)
        self._config = config
        return True

    def run(self, project: Project, entry: Round, cancel: Cancel) -> Iterator[Event]:
        """Run the round here; :class:`OutOfMemoryError` if the memory is not enough."""
        from napari_jrss.training.round import RoundTask

        assert self._config is not None
        snapshot = project.snapshot(entry.number)
        parent = None if entry.parent is None else project.round(entry.parent).folder
        anchor = project.before_quick(entry).folder
        task = RoundTask(entry.number, snapshot, self._config, entry.folder, parent, anchor)
        yield from self.run_task(task, cancel, entry.files.description().quick)

    def run_task(
        self, task: RoundTask, cancel: Cancel, quick: QuickPlan | None = None
    ) -> Iterator[Event]:
        """Run a round that is described without its project; errors as of :meth:`run`."""
        from napari_jrss.training.quick import run_quick_round
        from napari_jrss.training.round import run_round

        assert self._fabric is not None
        config, shape = task.config, task.snapshot.shape
        try:
            if quick is None:
                yield from run_round(task, self._fabric, cancel)
            else:
                yield from run_quick_round(task, quick, self._fabric, cancel)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            on_cpu = self._fabric.device.type == "cpu"
            raise OutOfMemoryError(
                f"the memory of {'this computer' if on_cpu else 'the GPU'} is not "
                f"enough for round {task.number} at {' x '.join(map(str, shape))} "
                f"voxels: lower the batch sizes (now {config.segmentation.batch_size} and "
                f"{config.registration.batch_size}), or close other programs"
                + ("" if on_cpu else ", use bf16-mixed precision, or train on cpu")
            ) from error
        self._fabric.barrier()

    def close(self) -> None:
        """Nothing to release."""


def device_name(kind: str, devices: int) -> str:
    """What a round runs on, as it is recorded: ``cuda``, or ``2 x cuda``."""
    return kind if devices == 1 else f"{devices} x {kind}"


@dataclass(frozen=True)
class PlannedRound:
    """One round to run: a new one, or an interrupted one to go on with."""

    config: TrainingConfig
    rounds_left: int  # how many rounds are to follow it
    pretraining: bool = False  # whether it starts from nothing
    interrupted: Round | None = None  # the round to go on with; None for a new one
    quick: QuickPlan | None = None  # what a quick round does; None: an ordinary one
    parent: int | None = None  # of a quick round: the round whose teacher it starts from


def plan_series(
    project: Project,
    config: TrainingConfig,
    rounds: int,
    *,
    resume: bool | None = None,
    pretrain: bool = False,
) -> PlannedRound:
    """Plan the first round of a series, and check that the series can be run.

    For `resume` and `pretrain` see :func:`napari_jrss.train`.

    Raises
    ------
    InterruptedSeriesError
        There is an interrupted series and `resume` is None, or none and it is True; or `resume`
        and `pretrain` are both asked for; or there is nothing to do.
    RoundError
        There is nothing that the rounds could learn from, or the settings of a network differ
        from those of the current teacher.
    """
    if rounds < 0:
        raise ValueError(f"rounds must be at least 0, not {rounds}")
    if resume and pretrain:
        raise InterruptedSeriesError(
            "a resumed series keeps its first settings: ask to resume or to pre-train, not both"
        )
    interrupted, left = interrupted_round(project), rounds_left(project)
    if resume is None and (interrupted is not None or left > 0):
        latest = project.rounds()[-1]
        raise InterruptedSeriesError(
            (
                f"round {latest.number} was interrupted ({latest.outcome})"
                if interrupted is not None
                else f"the series was interrupted after round {latest.number}, {left} still to come"
            )
            + ": resume it, or leave it and start anew (--resume, --no-resume)"
        )
    if resume and interrupted is not None:
        settings = interrupted.files.training_config()
        return PlannedRound(settings, left, interrupted=interrupted)
    if resume and left > 0:
        planned = PlannedRound(project.rounds()[-1].files.training_config(), left - 1)
    elif resume:
        raise InterruptedSeriesError(f"{project.path}: there is no interrupted round to resume")
    elif project.teacher is None or pretrain:
        planned = PlannedRound(config, rounds, pretraining=True)
    elif rounds == 0:
        raise InterruptedSeriesError(
            f"{project.path}: is pre-trained already; ask for rounds, or to pre-train it again"
        )
    else:
        planned = PlannedRound(config, rounds - 1)
    _check_trainable(project, planned)
    return planned


def run_series(
    project: Project, planned: PlannedRound, cancel: Cancel, executor: Executor
) -> Iterator[Event]:
    """Run a planned round and those that follow it; see :func:`plan_series`."""
    from napari_jrss.training.events import Cancelled

    try:
        while executor.prepare(planned.config, cancel):
            for event in _run(project, planned, executor, cancel):
                yield event
                if isinstance(event, Cancelled):
                    return
            if planned.rounds_left == 0:
                return
            planned = PlannedRound(planned.config, planned.rounds_left - 1)
            _check_trainable(project, planned)
    finally:
        executor.close()


def _check_trainable(project: Project, planned: PlannedRound) -> None:
    """Raise what would stop the rest of a series, as far as it can be known before."""
    from napari_jrss.training.trainable import RoundError, check_trainable

    joint = not planned.pretraining or planned.rounds_left > 0
    check_trainable(project.snapshot(), joint)
    teacher = project.teacher
    if planned.pretraining or teacher is None:
        return
    trained = teacher.files.training_config()
    if planned.config.trains_registration and not trained.trains_registration:
        raise RoundError(
            f"round {teacher.number}, from which the next one starts, has no registration network "
            "to go on with: pre-train again, or train without one"
        )
    for task in ("segmentation_network", "registration_network"):
        if getattr(planned.config, task) != getattr(trained, task):
            raise RoundError(
                f"the {task.replace('_', ' ')} has other settings than in round {teacher.number}, "
                "from which the next one starts: pre-train again, or keep its settings"
            )


def _run(
    project: Project, planned: PlannedRound, executor: Executor, cancel: Cancel
) -> Iterator[Event]:
    """Run one planned round, and record it and how it ended."""
    from napari_jrss.training.events import RoundFinished

    entry = project.round(_record_start(project, planned))
    clock = _Clock()
    outcome, promote = RoundOutcome.CANCELLED, False
    metrics: dict[str, object] = {}
    try:
        for event in executor.run(project, entry, cancel):
            clock.add(event)
            if isinstance(event, RoundFinished):
                warnings = (event.warning, _behind(project, entry, event.metrics))
                event = event.model_copy(update={"warning": " ".join(filter(None, warnings))})
                outcome, promote = RoundOutcome.FINISHED, event.metrics.get(KEPT, 1.0) > 0
                snapshot = project.snapshot(entry.number)
                learn_speed(
                    executor.device,
                    clock.steps,
                    planned.config,
                    snapshot.shape,
                    snapshot.classes,
                    snapshot.inputs,
                )
                metrics = {
                    **event.metrics,
                    STEP_SECONDS: clock.seconds_per_step(),
                    DEVICE: executor.device,
                    **({WARNING: event.warning} if event.warning else {}),
                    **({UNLEARNED: event.unlearned} if event.unlearned else {}),
                }
            yield event
    except Exception as error:
        outcome, metrics = RoundOutcome.FAILED, {"error": str(error)}
        raise
    finally:
        project.finish_round(entry.number, outcome, metrics, promote=promote)
        if planned.quick is not None and outcome is not RoundOutcome.FINISHED:
            entry.files.drop()  # it isn't resumed


def _record_start(project: Project, planned: PlannedRound) -> int:
    """Record in the project that the planned round starts, or goes on; its number."""
    if planned.interrupted is not None:
        return project.resume_round(planned.interrupted.number).number
    snapshot, teacher = project.snapshot(), project.teacher
    description = RoundDescription.of(snapshot, planned.config, planned.rounds_left, planned.quick)
    text = description.model_dump_json(indent=1)
    if planned.quick is not None:
        why = f"learns from {', '.join(planned.quick.new)}"
        return project.start_round(
            planned.parent, text, snapshot.label_versions, RoundKind.QUICK, why
        ).number
    parent = None if planned.pretraining or teacher is None else teacher.number
    return project.start_round(parent, text, snapshot.label_versions).number


def _behind(project: Project, entry: Round, metrics: dict[str, float]) -> str:
    """Which round before this one left a clearly better segmentation; empty if none did."""
    reached = {
        earlier.number: dice
        for earlier in lineage(project, entry)[1:]
        if isinstance(dice := earlier.metrics.get(VALIDATION_DICE), float)
    }
    now = metrics.get(VALIDATION_DICE)
    best = max(reached, key=reached.__getitem__, default=None)
    if now is None or best is None or now >= reached[best] - CLEARLY:
        return ""
    return (
        f"On the validation cases round {best} segments better (Dice {reached[best]:.3f}, now "
        f"{now:.3f}); its teacher can be made the current one again."
    )


def lineage(project: Project, entry: Round) -> list[Round]:
    """A round, its parent, the parent's parent, and so on to the pre-training."""
    line = [entry]
    while (parent := line[-1].parent) is not None:
        line.append(project.round(parent))
    return line


class _Clock:
    """Measures the seconds per step of each stage, with validation and saving."""

    def __init__(self) -> None:
        self._last: float | None = None
        self.steps: dict[str, list[float]] = {}  # seconds of each, by stage

    def add(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind in ("step_end", "case_screened", "case_judged") and self._last is not None:
            # A round's stages carry its number; the next round's steps cost the same.
            stage = re.sub(r"_\d+$", "", event.stage)
            self.steps.setdefault(stage, []).append(now - self._last)
        self._last = now if event.kind != "epoch_end" else self._last

    def seconds_per_step(self) -> dict[str, float]:
        return {stage: sum(steps) / len(steps) for stage, steps in self.steps.items()}


def series_in_words(project: Project) -> str:
    """What is resumed, with its first settings, in one line."""
    entry, left = interrupted_round(project), rounds_left(project)
    config = (entry or project.rounds()[-1]).files.training_config()
    what = "the series" if entry is None else f"round {entry.number}"
    return (
        f"resuming {what}{f', {left} more to come' if left else ''}, with its first settings: "
        f"preset {config.preset}, seed {config.seed}, tau {config.screening.tau:g}"
    )


def interrupted_round(project: Project) -> Round | None:
    """The latest round, if it was paused, failed or killed, and its series wasn't given up."""
    entry = project.unfinished_round()
    return None if entry is None or entry.metrics.get(LEFT) else entry


def rounds_left(project: Project) -> int:
    """How many rounds of the last series are still to come after its latest one."""
    history = project.rounds()
    if not history or history[-1].metrics.get(LEFT) or not project.of_this_plan(history[-1]):
        return 0
    return history[-1].files.description().rounds_left


def teacher_warning(project: Project) -> str:
    """The warning that the current teacher's round ended with; empty if there was none."""
    return "" if project.teacher is None else str(project.teacher.metrics.get(WARNING, ""))


def leave_series(project: Project) -> None:
    """Give up the interrupted series: its interrupted round, and the rounds still to come."""
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
