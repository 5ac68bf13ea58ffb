"""Progress of a series of rounds, computed from its events: for a progress bar and for curves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# `duration` is known from here, too.
from napari_jrss.times import duration as duration
from napari_jrss.training.events import (
    CaseJudged,
    CaseScreened,
    EpochEnd,
    Event,
    FileSent,
    PairRegistered,
    RoundFinished,
    StageFinished,
    StageStarted,
    StepEnd,
)

_SMOOTHING = 0.1


@dataclass
class Curve:
    """Points of one curve: x and y."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def add(self, x: float, y: float) -> None:
        """Append a point."""
        self.x.append(x)
        self.y.append(y)


@dataclass
class Progress:
    """Where a running series is, how good it is, and how long it still takes."""

    stage: str = ""  # name of the present stage, empty before the first
    # Of the present stage.
    step: int = 0
    steps: int = 0
    epoch: int = 0  # of the present stage, from 0
    # Latest total loss; best validation Dice of the stage so far, if there is one.
    loss: float | None = None
    best: float | None = None
    # Mean total loss per epoch, by stage; x counts the stage's steps.
    losses: dict[str, Curve] = field(default_factory=dict)
    # Validation Dice per validated epoch, by stage; x counts the stage's steps.
    dice: dict[str, Curve] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic  # returns the time in seconds, from any start
    _last: float | None = field(default=None, repr=False)
    _pace: float | None = field(default=None, repr=False)

    def add(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case StageStarted():
                self.stage, self.step, self.steps = event.stage, event.first_step, event.steps
                self.epoch, self.loss, self.best = 0, None, event.best
                self._last, self._pace = self.clock(), None
                self._forget_after(event.stage, event.first_step)
            case StepEnd():
                self.loss = event.losses["total"]
                self._advance(event.step)
            case FileSent():
                self._advance(event.step)
            case CaseScreened() | CaseJudged() | PairRegistered() if event.stage == self.stage:
                self._advance(self.step + 1)
            case EpochEnd():
                self.epoch, self.best = event.epoch, event.best
                self._draw(event)
            case StageFinished() if event.stage == self.stage:
                self.step, self.best = self.steps, event.best
            case RoundFinished():
                self.stage, self.step, self.steps = "", 0, 0
            case _:
                pass

    def read(self, events: Iterable[Event]) -> None:
        """Add the epochs of an earlier run to the curves."""
        for event in events:
            if isinstance(event, EpochEnd):
                self._draw(event)

    @property
    def seconds_left(self) -> float | None:
        """Time that the present stage still takes at its pace; None before its second step."""
        return None if self._pace is None else self._pace * max(0, self.steps - self.step)

    def line(self) -> str:
        """One line: stage, step, epoch, loss, best Dice, time left."""
        if not self.stage:
            return ""
        parts = [f"{words(self.stage)}: {self.step} of {self.steps}"]
        if self.epoch:
            parts.append(f"epoch {self.epoch}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        if self.best is not None:
            parts.append(f"best Dice {self.best:.3f}")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)

    def _advance(self, step: int) -> None:
        now = self.clock()
        if self._last is not None and step > self.step:
            pace = (now - self._last) / (step - self.step)
            before = pace if self._pace is None else self._pace
            self._pace = (1 - _SMOOTHING) * before + _SMOOTHING * pace
        self.step, self._last = step, now

    def _forget_after(self, stage: str, step: int) -> None:
        """Remove the epochs that a resumed stage will repeat."""
        for curves in (self.losses, self.dice):
            curve = curves.get(stage)
            while curve is not None and curve.x and curve.x[-1] > step:
                curve.x.pop()
                curve.y.pop()

    def _draw(self, event: EpochEnd) -> None:
        self.losses.setdefault(event.stage, Curve()).add(event.step, event.losses["total"])
        if event.validation is not None:
            self.dice.setdefault(event.stage, Curve()).add(event.step, event.validation)


def words(stage: str) -> str:
    """A stage's name for a person, such as ``student, round 2``."""
    name, _, number = stage.rpartition("_")
    if number.isdigit():
        return f"{name.replace('_', ' ')}, round {number}"
    known = {
        "mono_segmentation": "first training, segmentation",
        "mono_registration": "first training, registration",
        "sending": "MB sent to the other computer",
    }
    return known.get(stage, stage.replace("_", " "))


def joined(curves: Iterable[Curve], *, relative: bool = False) -> Curve:
    """Stages one after the other as one curve; `relative` to the first value of each."""
    whole, start = Curve(), 0.0
    for curve in curves:
        unit = abs(curve.y[0]) if relative and curve.y and curve.y[0] else 1.0
        for x, y in zip(curve.x, curve.y, strict=True):
            whole.add(start + x, y / unit)
        start = whole.x[-1] if whole.x else start
    return whole
