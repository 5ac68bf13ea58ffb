"""The paper's tables from the results of an experiment, as Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import pandas as pd

from napari_jrss.experiments.protocol import tau_text
from napari_jrss.experiments.results import MethodResults, TaskName, by_labelled, holm, paired_p

NONE = "–"  # noqa: RUF001
PAPER_LABELLED = 5  # N of the paper's own figures


@dataclass(frozen=True)
class Cell:
    """One entry; `best` ones are printed in bold."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """As GitHub's Markdown."""
        lines = [f"**{self.caption}**", "", _line(self.header), _line(["---"] * len(self.header))]
        lines += [_line([f"**{c.text}**" if c.best else c.text for c in row]) for row in self.rows]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """As a LaTeX table with booktabs."""
        body = [
            " & ".join(f"\\textbf{{{_latex(c.text)}}}" if c.best else _latex(c.text) for c in row)
            for row in self.rows
        ]
        return "\n".join(
            [
                "\\begin{table}",
                f"\\caption{{{_latex(self.caption)}}}",
                f"\\begin{{tabular}}{{l{'c' * (len(self.header) - 1)}}}",
                "\\toprule",
                " & ".join(map(_latex, self.header)) + " \\\\",
                "\\midrule",
                *(f"{line} \\\\" for line in body),
                "\\bottomrule",
                "\\end{tabular}",
                "\\end{table}",
                "",
            ]
        )

    def html(self) -> str:
        """As an HTML table."""
        head = "".join(f"<th>{html.escape(each)}</th>" for each in self.header)
        body = "".join(
            "<tr>"
            + "".join(
                f"<td><b>{html.escape(c.text)}</b></td>"
                if c.best
                else f"<td>{html.escape(c.text)}</td>"
                for c in row
            )
            + "</tr>"
            for row in self.rows
        )
        return (
            f"<table><caption>{html.escape(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


@dataclass(frozen=True)
class Column:
    """A figure to tabulate: its metric, digits, and which direction is better."""

    title: str
    metric: str
    digits: int = 3
    better: Callable[[Sequence[float]], float] | None = None


SEGMENTATION = (Column("Dice", "dice", better=max), Column("HD95 (mm)", "hd95_mm", 2, min))
REGISTRATION = (
    *SEGMENTATION,
    Column("std(Jac)", "std_jacobian", better=min),
    Column("folded (%)", "folded_percent", 2),
    Column("time (s)", "seconds", 2),
)
TASKS: tuple[TaskName, ...] = ("segmentation", "registration")
COLUMNS = {"segmentation": SEGMENTATION, "registration": REGISTRATION}


def comparison(
    results: Sequence[MethodResults], labelled: int | str, task: TaskName, paper: str | None
) -> Table:
    """Tables 1 and 2: all methods at one N, tested against JRSS on the same cases or pairs."""
    chosen = with_task(at(results, labelled), task)
    jrss = next((r for r in chosen if r.method.name == "jrss"), None)
    others = [None if jrss is None or r is jrss else r for r in chosen]
    reference = None if jrss is None else jrss.samples(task, "dice")
    dice = [None if r is None else r.samples(task, "dice") for r in others]
    corrected = holm([None if d is None else paired_p(d, reference) for d in dice])
    columns = [_column(chosen, task, column) for column in COLUMNS[task]]
    extra = [
        [Cell(NONE if d is None else _gain(d, reference)) for d in dice],
        [Cell(_p(p)) for p in corrected],
        [Cell(NONE if not (n := r.parameters(task)) else f"{n:,}") for r in chosen],
        [Cell(_seeds(r)) for r in chosen],
    ]
    known = _paper_dice(paper, task) if labelled == PAPER_LABELLED else {}
    if known:
        columns.insert(1, [Cell(known.get(r.method.name, NONE)) for r in chosen])
    titles = [column.title for column in COLUMNS[task]]
    header = ("Method", *titles[:1], *(["paper's Dice"] if known else []), *titles[1:])
    header += ("Dice against JRSS", "p", "parameters", "seeds")
    names = [Cell(r.title) for r in chosen]
    rows = tuple(zip(names, *columns, *extra, strict=True))
    what = "test cases" if task == "segmentation" else "test pairs"
    return Table(f"{task}_n{labelled}", f"{task.title()}, N = {labelled}: {what}", header, rows)


def over_labelled(results: Sequence[MethodResults]) -> Table:
    """Table 3: every N, both tasks."""
    plain = [r for r in results if not r.variant and r.method.labels != "none"]
    rows: list[tuple[Cell, ...]] = []
    for labelled in sorted({r.labelled for r in plain}, key=by_labelled):
        chosen = [r for r in plain if r.labelled == labelled]
        columns = [
            _column(chosen, "segmentation", SEGMENTATION[0]),
            _column(chosen, "registration", REGISTRATION[0]),
            _column(chosen, "registration", REGISTRATION[2]),
        ]
        names = [Cell(r.title) for r in chosen]
        rows += zip([Cell(str(labelled))] * len(chosen), names, *columns, strict=True)
    header = ("N", "Method", "Segmentation Dice", "Registration Dice", "std(Jac)")
    return Table("labelled", "Every number N of labelled cases", header, tuple(rows))


def variants(
    results: Sequence[MethodResults], labelled: int | str, names: Sequence[str], kind: str
) -> Table:
    """JRSS with one setting changed, against JRSS on the same seeds and test cases.

    The methods before and after JRSS stand beside it where the setting changes them, too.
    """
    varied = {r.method.name for r in results if r.labelled == labelled and r.variant in names}
    chosen = [
        r
        for r in results
        if r.labelled == labelled
        and r.method.name in varied
        and (not r.variant or r.variant in names)
    ]
    whole = next(r for r in chosen if r.method.name == "jrss" and not r.variant)
    if kind == "tau":
        chosen.sort(key=lambda r: r.tau)
    rows = []
    for result in chosen:
        cells = [Cell(f"tau = {tau_text(result.tau)}" if kind == "tau" else result.title)]
        for task in TASKS:
            here, there = result.samples(task, "dice"), whole.samples(task, "dice")
            common = here[here.index.isin(there.index)]
            changed = result is not whole
            cells += [
                Cell(_figure(common)),
                Cell(_gain(here, there) if changed else NONE),
                Cell(_p(paired_p(here, there) if changed else None)),
            ]
        std_jacobian = _figure(result.samples("registration", "std_jacobian"))
        rows.append((*cells, Cell(std_jacobian), Cell(_seeds(result))))
    header = ("JRSS", "Segmentation Dice", "change", "p", "Registration Dice", "change", "p")
    what = "The threshold" if kind == "tau" else "One switch turned"
    caption = f"{what}, N = {labelled} (p: Wilcoxon, uncorrected, same test cases and seeds)"
    return Table(f"{kind}_n{labelled}", caption, (*header, "std(Jac)", "seeds"), tuple(rows))


def by_round(results: Sequence[MethodResults]) -> Table:
    """How JRSS moves from the Mono-Nets, round by round, at every N and on the same seeds."""
    columns = [(task, c) for task in TASKS for c in COLUMNS[task] if c.metric != "seconds"]
    rows: list[tuple[Cell, ...]] = []
    for jrss, mono in _against_mono(results):
        steps = {"Mono-Nets": mono, **{f"round {n}": jrss.after(n) for n in jrss.rounds}}
        for name, step in steps.items():
            figures = [step.samples(task, c.metric) for task, c in columns]
            cells = [
                Cell(_figure(f[f.index.isin(jrss.seeds, level="seed")], c.digits))
                for f, (_, c) in zip(figures, columns, strict=True)
            ]
            rows.append((Cell(str(jrss.labelled)), Cell(_seeds(jrss)), Cell(name), *cells))
    titles = [f"{task}: {column.title}" for task, column in columns]
    header = ("N", "seeds", "after", *titles)
    return Table("rounds", "Mono-Nets and joint rounds", header, tuple(rows))


def gains(results: Sequence[MethodResults]) -> Table:
    """JRSS after its last round minus the Mono-Nets, on the same cases and pairs, by seed."""
    rows = []
    for jrss, mono in _against_mono(results):
        for seed in jrss.seeds:
            cells = [Cell(str(jrss.labelled)), Cell(str(seed))]
            for task in TASKS:
                gain = (jrss.samples(task, "dice") - mono.samples(task, "dice")).dropna()
                gain = gain[gain.index.isin([seed], level="seed")]
                if gain.empty:
                    cells += [Cell(NONE), Cell(NONE)]
                    continue
                cells += [Cell(f"{gain.mean():+.3f}"), Cell(f"{(gain > 0).sum()} of {len(gain)}")]
            rows.append(tuple(cells))
    header = ("N", "seed", "segmentation", "cases better", "registration", "pairs better")
    return Table("gains", "Dice of JRSS minus that of the Mono-Nets", header, tuple(rows))


def _against_mono(
    results: Sequence[MethodResults],
) -> Iterator[tuple[MethodResults, MethodResults]]:
    """JRSS at every N, and the Mono-Nets that it began with."""
    plain = [r for r in results if not r.variant]
    monos = {r.labelled: r for r in plain if r.method.name == "mono"}
    for result in plain:
        if result.method.name == "jrss" and result.labelled in monos:
            yield result, monos[result.labelled]


def at(results: Sequence[MethodResults], labelled: int | str) -> list[MethodResults]:
    """Results without a variant at one N, and those of the methods that see no labels."""
    return [
        r
        for r in results
        if not r.variant and (r.labelled == labelled or r.method.labels == "none")
    ]


def with_task(results: Sequence[MethodResults], task: TaskName) -> list[MethodResults]:
    """Those that have figures for a task."""
    return [r for r in results if not r.samples(task, "dice").empty]


def _paper_dice(paper: str | None, task: str) -> Mapping[str, str]:
    """Mean Dice (standard deviation) by method, as the paper prints them; none for other data."""
    with (files("napari_jrss.experiments") / "paper.csv").open(encoding="utf-8") as file:
        return {
            row["method"]: f"{row['dice']} ({row['std']})"
            for row in csv.DictReader(file)
            if (row["paper"], row["task"]) == (paper, task)
        }


def _column(results: Sequence[MethodResults], task: TaskName, column: Column) -> list[Cell]:
    trivial = column.metric not in ("dice", "hd95_mm")  # what doing nothing is best at
    figures = [
        r.samples(task, column.metric).iloc[: 0 if trivial and r.method.name == "initial" else None]
        for r in results
    ]
    # Means over other seeds are over other splits, some of which are easier.
    seeds = max((len(r.seeds) for r in results), default=0)
    means = [
        None if f.empty or len(r.seeds) < seeds else round(float(f.mean()), column.digits)
        for r, f in zip(results, figures, strict=True)
    ]
    known = [mean for mean in means if mean is not None]
    best = column.better(known) if column.better is not None and known else None
    return [
        Cell(_figure(f, column.digits), best is not None and mean == best)
        for f, mean in zip(figures, means, strict=True)
    ]


def _gain(dice: pd.Series, reference: pd.Series) -> str:
    """Mean difference on the samples that both have."""
    difference = (dice - reference).dropna()
    return NONE if difference.empty else f"{difference.mean():+.3f}"


def _figure(values: pd.Series, digits: int = 3) -> str:
    """Mean and standard deviation over cases or pairs."""
    if values.empty:
        return NONE
    return f"{values.mean():.{digits}f} ({values.std(ddof=0):.{digits}f})"


def _seeds(result: MethodResults) -> str:
    return ", ".join(map(str, result.seeds))


def _p(value: float | None) -> str:
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex(text: str) -> str:
    for plain, written in (("%", "\\%"), ("_", "\\_"), ("&", "\\&"), (NONE, "--"), ("<", "$<$")):
        text = text.replace(plain, written)
    return text
