"""When to stop: what is done, how long the rest takes, and what Dice to expect of it.

Nothing is said where nothing is known: no time before a case was accepted, no Dice without a
forecast of today's labels, and no gain before there are a few comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from napari_jrss.app.forecast import former_forecast, last_forecast
from napari_jrss.io.round_files import ANCHOR_DRAFT_DICE, DRAFT_DICE
from napari_jrss.project.project import Project
from napari_jrss.project.records import Split
from napari_jrss.times import duration

LEVEL = 0.9
"""Of the intervals."""
_LEAST = 3  # values that an interval needs
_LATEST = 10  # accepted cases that the pace is of


@dataclass(frozen=True)
class Interval:
    """An estimate, and the bounds that hold in :data:`LEVEL` of such estimates."""

    mean: float
    low: float
    high: float

    def words(self, form: str = ".2f") -> str:
        """Such as ``0.84 (0.80 to 0.88)``."""
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class Outlook:
    """Where a cohort stands.

    Attributes
    ----------
    done, to_do
        Training cases with and without a label.
    pace_s
        Median of the active seconds on the cases that were accepted last; None before the first.
    paced
        How many cases that is the median of.
    expected
        By structure: the mean Dice that the teacher's drafts of the rest will have, by the last
        forecast. Empty without one.
    gain
        What one more corrected case has been worth, in mean Dice of drafts; None where that isn't
        known.
    compared
        On how many cases the gain was seen.
    """

    done: int
    to_do: int
    pace_s: float | None = None
    paced: int = 0
    expected: dict[str, Interval] = field(default_factory=dict)
    gain: Interval | None = None
    compared: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at the present pace; None where there is none yet."""
        return None if self.pace_s is None else self.pace_s * self.to_do

    def progress(self) -> str:
        """What is done, and how long the rest takes; empty for a cohort without cases."""
        if not self.done + self.to_do:
            return ""
        said = f"{self.done} of {self.done + self.to_do} done"
        if self.seconds_left is None or not self.to_do:
            return said
        assert self.pace_s is not None
        return (
            f"{said}, {self.to_do} to do: about {duration(self.seconds_left)} at your pace of "
            f"{duration(self.pace_s)} a case"
        )

    def lines(self) -> list[str]:
        """The outlook in sentences, one a line; those of which nothing is known are left out."""
        said = [f"{self.progress()}."] if self.progress() else []
        if self.expected and self.to_do:
            worst = sorted(self.expected.items(), key=lambda item: item[1].mean)
            of_each = "; ".join(f"{name} {value.words()}" for name, value in worst[:5])
            more = f"; {len(worst) - 5} structures are better" if len(worst) > 5 else ""
            said.append(
                f"Expected Dice of the drafts of the {self.to_do} others, {LEVEL:.0%} interval: "
                f"{of_each}{more}."
            )
        if self.gain is not None:
            unsure = " That may be chance." if self.gain.low <= 0 <= self.gain.high else ""
            said.append(
                f"One more corrected case was worth {self.gain.words('+.3f')} Dice in the drafts "
                f"of others so far, by {self.compared} comparisons.{unsure}"
            )
        return said


def outlook(project: Project) -> Outlook:
    """Say where a project's cohort stands."""
    gains = _gains_by_quick_rounds(project)
    if len(gains) < _LEAST:
        gains = _gains_by_forecasts(project)
    known = work_left(project)
    return replace(
        known,
        expected=_expected(project, known.to_do),
        gain=_slope(gains),
        compared=len(gains),
    )


def work_left(project: Project) -> Outlook:
    """The part of :func:`outlook` that only the ledger is asked for: what is done, and the pace."""
    training = [case for case in project.cases() if case.split is Split.TRAIN]
    done = sum(case.labelled for case in training)
    seconds: dict[str, float] = {}
    for version in project.every_label_version():
        if version.seconds:  # a case that was corrected again goes to the end
            before = seconds.pop(version.case_id, 0.0)
            seconds[version.case_id] = before + version.seconds
    latest = list(seconds.values())[-_LATEST:]
    return Outlook(
        done=done,
        to_do=len(training) - done,
        pace_s=float(np.median(latest)) if latest else None,
        paced=len(latest),
    )


def _expected(project: Project, rest: int) -> dict[str, Interval]:
    """Of each structure, the mean Dice over `rest` cases that are as the forecast's cases are."""
    known = last_forecast(project)
    if known is None or not rest:
        return {}
    found = {}
    for name, column in zip(known.structures, zip(*known.dice.values(), strict=True), strict=True):
        values = np.array([value for value in column if value is not None], float)
        if len(values) < _LEAST:
            continue
        # the mean of the rest differs from that of the sample by the chance in both
        error = float(values.std(ddof=1)) * np.sqrt(1 / len(values) + 1 / rest)
        found[name] = _interval(float(values.mean()), error, len(values) - 1, 0.0, 1.0)
    return found


def _gains_by_quick_rounds(project: Project) -> list[tuple[int, float]]:
    """How many cases had been learned at once, and the Dice of a draft above that without them.

    Each is of a case that neither teacher had seen: that in force, and that of the last training.
    """
    rounds = {entry.number: entry for entry in project.rounds()}
    found = []
    for entry in rounds.values():
        draft, former = entry.metrics.get(DRAFT_DICE), entry.metrics.get(ANCHOR_DRAFT_DICE)
        if entry.parent is None or not (isinstance(draft, float) and isinstance(former, float)):
            continue
        parent = rounds[entry.parent]
        learned = len(parent.label_versions) - len(project.before_quick(parent).label_versions)
        if learned > 0:
            found.append((learned, draft - former))
    return found


def _gains_by_forecasts(project: Project) -> list[tuple[int, float]]:
    """By how many labels the last two forecasts differ, and the Dice of each case in both."""
    now, before = last_forecast(project), former_forecast(project)
    if now is None or before is None or len(now.dice) <= len(before.dice):
        return []
    both = [(now.mean_of(case), before.mean_of(case)) for case in now.dice if case in before.dice]
    more = len(now.dice) - len(before.dice)
    return [(more, new - old) for new, old in both if np.isfinite(new - old)]


def _slope(points: Sequence[tuple[int, float]]) -> Interval | None:
    """Gain by each case: the line through zero that fits best, by least squares."""
    if len(points) < _LEAST:
        return None
    cases, gains = np.array(points, float).T
    square = float(cases @ cases)
    slope = float(cases @ gains) / square
    spread = float(((gains - slope * cases) ** 2).sum()) / (len(points) - 1)
    return _interval(slope, float(np.sqrt(spread / square)), len(points) - 1, -1.0, 1.0)


def _interval(mean: float, error: float, freedom: int, least: float, most: float) -> Interval:
    """By Student's t."""
    from scipy.special import stdtrit  # scipy.stats takes long to import

    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Interval(mean, max(least, mean - half), min(most, mean + half))
