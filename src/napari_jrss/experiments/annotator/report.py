"""The annotator's report: seconds and strokes to the same Dice, what they went into, curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from napari_jrss.experiments.annotator.cohort import costs_of, settings_of
from napari_jrss.experiments.annotator.costs import CostModel, Effort
from napari_jrss.experiments.annotator.loops import LOOPS, OURS, RIVALS, Loop
from napari_jrss.experiments.annotator.session_work import Place
from napari_jrss.experiments.folder import RUNS, finished_runs
from napari_jrss.experiments.plots import COLOURS, JRSS_COLOUR, STYLE
from napari_jrss.experiments.protocol import Protocol, ProtocolError
from napari_jrss.experiments.report import REPORT, protocol_of, write_pages
from napari_jrss.experiments.tables import NONE, Cell, Table

LEVELS = (0.05, 0.03, 0.0)
"""How far the levels of the mean Dice lie below that which all loops end with."""
WORST_LEVELS = (0.05, 0.0)
"""The same for the Dice of the worst tenth."""
LEAST_SHOWN = 0.5
"""Least Dice in the figure of the curves."""
PLOTS = {
    "curves": "Dice of the cohort over the annotator's time: mean over all cases, and over the "
    "worst tenth of them. A case that isn't accepted yet counts with the draft that the loop has "
    "of it. Thin: single seeds.",
    "parts": "What the annotator's seconds went into, mean of the seeds.",
}


@dataclass(frozen=True)
class LoopResult:
    """One finished run."""

    loop: Loop
    seed: int
    rows: Sequence[Mapping[str, Any]]  # of each accepted case, see `session_work`
    costs: CostModel

    @cached_property
    def efforts(self) -> list[Effort]:
        """Of all cases up to each."""
        total, sums = Effort(), []
        for row in self.rows:
            total += Effort(**row["effort"])
            sums.append(total)
        return sums

    @cached_property
    def seconds(self) -> list[float]:
        """Of the annotator's time until each case was accepted."""
        return [effort.seconds(self.costs) for effort in self.efforts]

    def dice(self, what: str = "cohort_dice") -> list[float]:
        """Of the cohort after each case: its mean, or that of the worst tenth."""
        return [float(row[what]) for row in self.rows]

    def at(self, level: float, what: str = "cohort_dice") -> int | None:
        """The first case after which the cohort has a Dice; None if it never has."""
        found = np.flatnonzero(np.array(self.dice(what)) >= level)
        return int(found[0]) if found.size else None


def read_loops(out: Path) -> list[LoopResult]:
    """Every finished run of an experiment with an annotator."""
    costs = costs_of(settings_of(protocol_of(out)))
    known = list(LOOPS)
    found = [
        LoopResult(LOOPS[run["loop"]], run["seed"], Place(out / RUNS / run["run"]).rows(), costs)
        for run in finished_runs(out)
        if run["loop"] in LOOPS
    ]
    return sorted(found, key=lambda each: (known.index(each.loop.name), each.seed))


def write_annotator_report(out: Path) -> Path:
    """Write ``report/`` into the experiment's folder; returns the HTML page.

    A :class:`ProtocolError` if no loop is finished yet.
    """
    results = read_loops(out)
    if not results:
        raise ProtocolError(f"{out}: has no finished run yet")
    protocol, folder = protocol_of(out), out / REPORT
    folder.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, figure in (("curves", _curves(results)), ("parts", _parts(results))):
            figure.savefig(folder / f"{name}.png", dpi=160)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    tables = [_to_the_same_dice(results), _whole_cohort(results), _where_it_goes(results)]
    return write_pages(folder, protocol.title, tables, PLOTS, _remarks(protocol, results))


def _by_loop(results: Sequence[LoopResult]) -> dict[Loop, list[LoopResult]]:
    loops: dict[Loop, list[LoopResult]] = {}
    for each in results:
        loops.setdefault(each.loop, []).append(each)
    return loops


def levels_of(results: Sequence[LoopResult]) -> list[float]:
    """Levels of the mean Dice that every loop reaches, with two digits."""
    all_reach = min(each.dice()[-1] for each in results)
    return [float(np.floor(100 * (all_reach - below)) / 100) for below in LEVELS]


def _to_the_same_dice(results: Sequence[LoopResult]) -> Table:
    """Seconds and strokes until the cohort has a mean Dice, and beside the best rival's."""
    worst = float(np.floor(100 * min(each.dice("worst_tenth")[-1] for each in results)) / 100)
    wanted = [(level, "cohort_dice") for level in levels_of(results)]
    wanted += [(worst - below, "worst_tenth") for below in WORST_LEVELS]
    header = ["Loop", "seeds"]
    for level, what in wanted:
        of = "mean Dice" if what == "cohort_dice" else "worst tenth"
        header += [f"{of} {level:.2f}: s", "strokes"]
    rows = []
    for loop, group in _by_loop(results).items():
        cells = [Cell(loop.title), Cell(", ".join(str(each.seed) for each in group))]
        for level, what in wanted:
            for count in (_seconds_at, _strokes_at):
                value = _mean(count(each, level, what) for each in group)
                rival = _best_rival(results, group, partial(count, level=level, what=what))
                part = f" ({value / rival:.2f})" if rival and loop.name not in RIVALS else ""
                cells.append(Cell(f"{value:.0f}{part}"))
        rows.append(tuple(cells))
    return Table(
        "same_dice",
        "The annotator's seconds and strokes until the cohort has a Dice, mean of the seeds; in "
        "brackets, as a part of the best rival's with the same seeds",
        tuple(header),
        tuple(rows),
    )


def _seconds_at(result: LoopResult, level: float, what: str) -> float:
    at = result.at(level, what)
    return np.nan if at is None else result.seconds[at]


def _strokes_at(result: LoopResult, level: float, what: str) -> float:
    at = result.at(level, what)
    return np.nan if at is None else result.efforts[at].strokes


def _best_rival(
    results: Sequence[LoopResult],
    group: Sequence[LoopResult],
    count: Callable[[LoopResult], float],
) -> float | None:
    """The least mean of a rival over the seeds of a group; None if no rival has them all."""
    seeds = {each.seed for each in group}
    means = []
    for loop, rivals in _by_loop(results).items():
        common = [each for each in rivals if each.seed in seeds]
        if loop.name in RIVALS and len(common) == len(seeds):
            means.append(_mean(count(each) for each in common))
    return min(means, default=None)


def _whole_cohort(results: Sequence[LoopResult]) -> Table:
    """Counts of the whole cohort, until every case is accepted."""
    header = (
        "Loop",
        "cases",
        "Dice",
        "worst tenth",
        "draft Dice",
        "minutes",
        "slices looked at",
        "slices corrected",
        "strokes",
        "keys, clicks",
        "voxels changed",
        "short of the goal",
        "learning, CPU s",
    )
    rows = []
    for loop, group in _by_loop(results).items():
        efforts = [each.efforts[-1] for each in group]
        later = [row for each in group for row in each.rows[1:]]
        cells = [
            loop.title,
            f"{_mean(e.cases for e in efforts):.0f}",
            f"{_mean(each.dice()[-1] for each in group):.3f}",
            f"{_mean(each.dice('worst_tenth')[-1] for each in group):.3f}",
            f"{_mean(float(np.nanmean(row['draft_dice'])) for row in later):.3f}"
            if loop.draft != "blank"
            else NONE,
            f"{_mean(each.seconds[-1] for each in group) / 60:.1f}",
            f"{_mean(e.looks for e in efforts):.0f}",
            f"{_mean(e.slices for e in efforts):.0f}",
            f"{_mean(e.strokes for e in efforts):.0f}",
            f"{_mean(e.keys for e in efforts):.0f}, {_mean(e.clicks for e in efforts):.0f}",
            f"{_mean(e.voxels for e in efforts):,.0f}",
            f"{sum(not row['reached'] for each in group for row in each.rows)}",
            f"{_mean(sum(row['learning_cpu_s'] for row in each.rows) for each in group):.0f}",
        ]
        rows.append(tuple(Cell(text) for text in cells))
    return Table(
        "whole_cohort",
        "Until every case is accepted: counts of the whole cohort, mean of the seeds; the draft's "
        "Dice is that of each case as it is opened, without the first",
        header,
        tuple(rows),
    )


def _where_it_goes(results: Sequence[LoopResult]) -> Table:
    parts = _seconds_by_part(results)
    names = list(next(iter(parts.values())))
    rows = [
        (Cell(loop.title), *(Cell(f"{values[name]:.0f}") for name in names))
        for loop, values in parts.items()
    ]
    return Table(
        "parts",
        "What the annotator's seconds went into, whole cohort, mean of the seeds",
        ("Loop", *names),
        tuple(rows),
    )


def _seconds_by_part(results: Sequence[LoopResult]) -> dict[Loop, dict[str, float]]:
    found = {}
    for loop, group in _by_loop(results).items():
        each = [result.efforts[-1].parts(result.costs) for result in group]
        found[loop] = {name: _mean(parts[name] for parts in each) for name in each[0]}
    return found


def _remarks(protocol: Protocol, results: Sequence[LoopResult]) -> list[str]:
    settings = settings_of(protocol)
    done = {(each.loop.name, each.seed) for each in results}
    missing = [
        f"{name} ({', '.join(seeds)})"
        for name in LOOPS
        if (seeds := [str(s) for s in protocol.seeds if (name, s) not in done])
    ]
    remarks = [
        f"Cohorts of {settings.cases} cases, one for each seed. A structure is good enough at a "
        f"Dice of {settings.goal_dice:g} with the manual label. The first case is labelled by "
        "hand, alike in all loops, and teaches the first teacher; it is counted. The computer's "
        "time isn't: who waits for it waits in every loop that learns.",
        f"The model of seconds: {json.dumps(costs_of(settings).__dict__)}.",
        f"Settings: preset {protocol.preset}, changes {json.dumps(protocol.settings)}; "
        f"{settings.steps_on_labels} steps on labels after each case but the first.",
    ]
    if missing:
        remarks.append(f"Not run (seeds in brackets): {'; '.join(missing)}.")
    return remarks


def _colour(loop: Loop) -> str:
    if loop == OURS:
        return JRSS_COLOUR
    others = [colour for colour in COLOURS[::2] if colour != JRSS_COLOUR]
    return others[list(LOOPS).index(loop.name) % len(others)]


def _curves(results: Sequence[LoopResult]) -> Figure:
    figure = Figure((9, 3.8), layout="constrained")
    shown = {n: g for n, g in _by_loop(results).items() if n.name in (*RIVALS, OURS.name)}
    shown = shown or _by_loop(results)
    kinds = (("cohort_dice", "mean of all cases"), ("worst_tenth", "worst tenth of the cases"))
    for axes, (what, title) in zip(figure.subplots(1, 2), kinds, strict=True):
        for loop, group in shown.items():
            style = {"color": _colour(loop), "drawstyle": "steps-post"}
            bold = 2.4 if loop == OURS else 1.4
            times = [np.array(each.seconds) / 60 for each in group]
            dice = [np.array(each.dice(what)) for each in group]
            for x, y in zip(times, dice, strict=True):
                axes.plot(x, y, lw=0.5, alpha=0.5, **style)
            axes.plot(
                np.mean(times, 0), np.mean(dice, 0), "o-", ms=3, lw=bold, label=loop.title, **style
            )
        axes.set(
            xlabel="annotator's time (minutes)",
            ylabel="Dice",
            title=title,
            ylim=(LEAST_SHOWN, 0.95),
        )
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _parts(results: Sequence[LoopResult]) -> Figure:
    figure = Figure((8, 0.34 * len(_by_loop(results)) + 1.2), layout="constrained")
    axes = figure.subplots()
    parts = _seconds_by_part(results)
    left = np.zeros(len(parts))
    for i, name in enumerate(next(iter(parts.values()))):
        widths = np.array([values[name] for values in parts.values()]) / 60
        axes.barh(
            [loop.title for loop in parts], widths, left=left, color=COLOURS[2 * i], label=name
        )
        left += widths
    axes.invert_yaxis()
    axes.set(xlabel="annotator's time (minutes)")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
