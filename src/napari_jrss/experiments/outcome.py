"""The figures of finished runs, pooled over seeds, and what they say about two methods."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import wilcoxon

from napari_jrss.experiments.folder import ROWS, RUNS, finished_runs, read_rows
from napari_jrss.experiments.methods import METHODS, Method
from napari_jrss.experiments.protocol import ABLATIONS

TaskName = Literal["segmentation", "registration"]
Sample = tuple[int, str, str]
"""One measurement: seed, case (the fixed one of a pair), moving case."""
Values = Mapping[tuple[str, str], Mapping[Sample, Mapping[str, float]]]
"""Figures by task and metric, then by sample, then by structure ("" for a plain number)."""


@dataclass(frozen=True)
class Outcome:
    """All runs of one method with one N and one variant.

    Attributes
    ----------
    method, labelled, variant
        What was run; `labelled` is "K" for all.
    runs
        Their ``run.json``.
    values
        Its figures.
    rounds
        Those after each joint round, by its number.
    """

    method: Method
    labelled: int | str
    variant: str
    runs: tuple[Mapping[str, Any], ...]
    values: Values
    rounds: Mapping[int, Values] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """As tables call it."""
        if self.variant in ABLATIONS:
            return f"{self.method.title} {ABLATIONS[self.variant].title}"
        return self.method.title

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that were run."""
        return tuple(sorted({run["seed"] for run in self.runs}))

    @property
    def tau(self) -> float:
        """Confidence threshold of its runs."""
        return float(self.runs[0]["config"]["screening"]["tau"])

    def samples(
        self, task: TaskName, metric: str, structure: str | None = None
    ) -> dict[Sample, float]:
        """A figure of each case or pair: of one structure, or the mean of the defined ones."""
        result = {}
        for sample, by_structure in self.values.get((task, metric), {}).items():
            if structure is not None:
                figures = [by_structure.get(structure, np.nan)]
            else:
                figures = list(by_structure.values())
            known = [figure for figure in figures if not np.isnan(figure)]
            if known:
                result[sample] = float(np.mean(known))
        return result

    def parameters(self, task: TaskName) -> int | None:
        """Trainable parameters of the network for a task; None where there is none."""
        return self.runs[0]["parameters"].get(task) or None

    @property
    def notes(self) -> list[str]:
        """What the runs have to say beside their figures."""
        return [f"{run['run']}: {run['note']}" for run in self.runs if run["note"]]


def read_outcomes(out: Path) -> list[Outcome]:
    """Everything that is finished, in the order of the methods, N and variants."""
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in finished_runs(out):
        key = (run["method"], str(run["labelled"]), run["variant"])
        grouped.setdefault(key, []).append(run)
    outcomes = []
    for (name, _, variant), runs in grouped.items():
        parts = [_read_rows(out / RUNS / run["run"] / ROWS) for run in runs]
        values = _together(part[max(part)] for part in parts if part)
        numbers = sorted({number for part in parts for number in part if number > 0})
        rounds = {n: _together(_after(n, part) for part in parts if part) for n in numbers}
        n = runs[0]["labelled"]
        outcomes.append(Outcome(METHODS[name], n, variant, tuple(runs), values, rounds))
    order = list(METHODS)
    return sorted(outcomes, key=lambda o: (order.index(o.method.name), rank(o.labelled), o.variant))


def rank(labelled: int | str) -> float:
    """For sorting by N, K last."""
    return float("inf") if labelled == "K" else float(labelled)


def mean_std(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation over cases or pairs; NaN without any."""
    known = list(values)
    return (float(np.mean(known)), float(np.std(known))) if known else (np.nan, np.nan)


def paired_p(first: Mapping[Sample, float], second: Mapping[Sample, float]) -> float | None:
    """Two-sided Wilcoxon signed-rank test over the common cases or pairs; None if there are none.

    A case that several seeds have in their test set is one case: its differences are averaged.
    """
    differences: dict[tuple[str, str], list[float]] = {}
    for sample in sorted(first.keys() & second.keys()):
        differences.setdefault(sample[1:], []).append(first[sample] - second[sample])
    if not differences:
        return None
    difference = np.array([np.mean(values) for values in differences.values()])
    if not difference.any():
        return 1.0
    return float(wilcoxon(difference).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of one family of tests; None stays None."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for step, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - step)))
        corrected[i] = highest
    return corrected


def _read_rows(path: Path) -> dict[int, Values]:
    """A run's figures by joint round, 0 for what has none."""
    rounds: dict[int, dict[tuple[str, str], dict[Sample, dict[str, float]]]] = {}
    for row in csv.DictReader(read_rows(path).splitlines()):
        values = rounds.setdefault(int(row["round"]), {})
        by_sample = values.setdefault((row["task"], row["metric"]), {})
        sample = (int(row["seed"]), row["case"], row["moving"])
        figure = float(row["value"]) if row["value"] else np.nan
        by_sample.setdefault(sample, {})[row["structure"]] = figure
    return dict(rounds)


def _after(number: int, rounds: Mapping[int, Values]) -> Values:
    """A run's figures after a round; one that couldn't be run leaves those of the one before."""
    return rounds[max((n for n in rounds if n <= number), default=min(rounds))]


def _together(parts: Iterable[Values]) -> Values:
    """The figures of several seeds."""
    pooled: dict[tuple[str, str], dict[Sample, Mapping[str, float]]] = {}
    for part in parts:
        for figure, by_sample in part.items():
            pooled.setdefault(figure, {}).update(by_sample)
    return pooled
