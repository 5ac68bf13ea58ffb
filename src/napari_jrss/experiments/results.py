"""The figures of finished runs, pooled over seeds, and tests of one method against another."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests

from napari_jrss.experiments.folder import ROWS, RUNS, finished_runs, read_rows
from napari_jrss.experiments.methods import METHODS, Method
from napari_jrss.experiments.protocol import ABLATIONS

TaskName = Literal["segmentation", "registration"]
SAMPLE = ["seed", "case", "moving"]
"""What names one measurement: the seed, the case (the fixed one of a pair), the moving case."""


@dataclass(frozen=True, eq=False)
class MethodResults:
    """All runs of one method with one N and one variant."""

    # What was run; `labelled` is "K" for all training cases.
    method: Method
    labelled: int | str
    variant: str
    runs: tuple[Mapping[str, Any], ...]  # the content of each `run.json`
    # A tidy table of the figures, with the columns of `rows.csv.gz`: one row for each joint round,
    # test case or pair, structure ("" for a figure of the whole case) and metric.
    table: pd.DataFrame

    @property
    def title(self) -> str:
        """Name in the tables."""
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

    @property
    def rounds(self) -> list[int]:
        """Numbers of the joint rounds that have figures."""
        return sorted(number for number in self.table["round"].unique() if number > 0)

    def after(self, number: int) -> MethodResults:
        """Return the results after a joint round.

        A run that couldn't do this round keeps the figures of its round before.
        """
        rounds, seeds = self.table["round"], self.table["seed"]
        last = rounds.where(rounds <= number).groupby(seeds).transform("max")
        last = last.fillna(rounds.groupby(seeds).transform("min"))
        return replace(self, table=self.table[rounds == last])

    def samples(self, task: TaskName, metric: str, structure: str | None = None) -> pd.Series:
        """Return a figure of each case or pair after the last round, indexed by `SAMPLE`.

        The figure is that of one structure, or the mean over the structures that have one.
        """
        table = self._last
        chosen = (table["task"] == task) & (table["metric"] == metric)
        if structure is not None:
            chosen &= table["structure"] == structure
        return table[chosen].dropna(subset="value").groupby(SAMPLE)["value"].mean()

    @cached_property
    def _last(self) -> pd.DataFrame:
        """The figures after the last round of each run."""
        return self.after(max(self.rounds, default=0)).table

    def parameters(self, task: TaskName) -> int | None:
        """Trainable parameters of the network for a task; None where there is none."""
        return self.runs[0]["parameters"].get(task) or None

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures has to know of single runs."""
        return [f"{run['run']}: {run['note']}" for run in self.runs if run["note"]]


def read_results(out: Path) -> list[MethodResults]:
    """Read all finished runs of an experiment, in the order of the methods, N and variants."""
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in finished_runs(out):
        key = (run["method"], str(run["labelled"]), run["variant"])
        grouped.setdefault(key, []).append(run)
    results = []
    for (name, _, variant), runs in grouped.items():
        parts = [
            pd.read_csv(
                io.StringIO(read_rows(out / RUNS / run["run"] / ROWS)),
                dtype={"case": str, "moving": str, "structure": str, "variant": str},
                keep_default_na=False,
                na_values={"value": [""]},
            )
            for run in runs
        ]
        table = pd.concat(parts, ignore_index=True)
        results.append(MethodResults(METHODS[name], runs[0]["labelled"], variant, (*runs,), table))
    order = list(METHODS)
    return sorted(
        results, key=lambda r: (order.index(r.method.name), by_labelled(r.labelled), r.variant)
    )


def by_labelled(labelled: int | str) -> float:
    """Sort key of N, with K last."""
    return float("inf") if labelled == "K" else float(labelled)


def paired_p(first: pd.Series, second: pd.Series) -> float | None:
    """Two-sided Wilcoxon signed-rank test over the common cases or pairs; None if there are none.

    A case that is in the test sets of several seeds counts once, with its mean difference.
    """
    difference = (first - second).dropna().groupby(SAMPLE[1:]).mean()
    if difference.empty:
        return None
    return float(wilcoxon(difference).pvalue) if difference.any() else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct one family of tests with Holm's step-down method; None stays None."""
    known = [p for p in p_values if p is not None]
    corrected = iter(multipletests(known, method="holm")[1].tolist() if known else ())
    return [None if p is None else next(corrected) for p in p_values]
