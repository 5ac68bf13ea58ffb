"""The paper's tables from the outcomes of an experiment, as Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from napari_jrss.experiments.outcome import (
    Outcome,
    Sample,
    TaskName,
    holm,
    mean_std,
    paired_p,
    rank,
)
from napari_jrss.experiments.paper import PaperFigures
from napari_jrss.experiments.protocol import tau_text

NONE = "–"  # noqa: RUF001


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


SEGMENTATION = (
    Column("Dice", "dice", better=max),
    Column("HD95 (mm)", "hd95_mm", 2, min),
)
REGISTRATION = (
    Column("Dice", "dice", better=max),
    Column("HD95 (mm)", "hd95_mm", 2, min),
    Column("std(Jac)", "std_jacobian", better=min),
    Column("folded (%)", "folded_percent", 2),
    Column("time (s)", "seconds", 2),
)
TASKS: tuple[TaskName, ...] = ("segmentation", "registration")
COLUMNS: dict[TaskName, tuple[Column, ...]] = {
    "segmentation": SEGMENTATION,
    "registration": REGISTRATION,
}


def comparison(
    outcomes: Sequence[Outcome], labelled: int | str, task: TaskName, paper: PaperFigures
) -> Table:
    """Tables 1 and 2: all methods at one N, tested against JRSS on the same cases or pairs."""
    chosen = with_task(at(outcomes, labelled), task)
    jrss = next((o for o in chosen if o.method.name == "jrss"), None)
    dice = [o.samples(task, "dice") for o in chosen]
    reference = {} if jrss is None else jrss.samples(task, "dice")
    corrected = holm(
        [None if o is jrss else paired_p(d, reference) for o, d in zip(chosen, dice, strict=True)]
    )
    columns = [_column(chosen, task, column) for column in COLUMNS[task]]
    gains = [None if o is jrss else _gain(d, reference) for o, d in zip(chosen, dice, strict=True)]
    extra = [
        [Cell(NONE if gain is None else f"{gain:+.3f}") for gain in gains],
        [Cell(NONE if p is None else _p(p)) for p in corrected],
        [Cell(NONE if not (n := o.parameters(task)) else f"{n:,}") for o in chosen],
        [Cell(", ".join(map(str, o.seeds))) for o in chosen],
    ]
    known = paper.comparison(task) if labelled == paper.labelled else {}
    if known:
        columns.insert(1, [Cell(known.get(o.method.name, NONE)) for o in chosen])
    titles = [column.title for column in COLUMNS[task]]
    header = ("Method", *titles[:1], *(["paper's Dice"] if known else []), *titles[1:])
    header += ("Dice against JRSS", "p", "parameters", "seeds")
    names = [Cell(o.title) for o in chosen]
    rows = tuple(zip(names, *columns, *extra, strict=True))
    what = "test cases" if task == "segmentation" else "test pairs"
    return Table(f"{task}_n{labelled}", f"{task.title()}, N = {labelled}: {what}", header, rows)


def over_labelled(outcomes: Sequence[Outcome]) -> Table:
    """Table 3: every N, both tasks."""
    plain = [o for o in outcomes if not o.variant and o.method.labels != "none"]
    rows: list[tuple[Cell, ...]] = []
    for labelled in sorted({o.labelled for o in plain}, key=rank):
        chosen = [o for o in plain if o.labelled == labelled]
        columns = [
            _column(chosen, "segmentation", SEGMENTATION[0]),
            _column(chosen, "registration", REGISTRATION[0]),
            _column(chosen, "registration", REGISTRATION[2]),
        ]
        names = [Cell(o.title) for o in chosen]
        rows += zip([Cell(str(labelled))] * len(chosen), names, *columns, strict=True)
    header = ("N", "Method", "Segmentation Dice", "Registration Dice", "std(Jac)")
    return Table("labelled", "Every number N of labelled cases", header, tuple(rows))


def variants(
    outcomes: Sequence[Outcome], labelled: int | str, names: Sequence[str], kind: str
) -> Table:
    """JRSS with one setting changed, against JRSS on the same seeds and test cases.

    What it starts from and what is refined after it stand beside it where they change, too.
    """
    varied = {o.method.name for o in outcomes if o.labelled == labelled and o.variant in names}
    chosen = [
        o
        for o in outcomes
        if o.labelled == labelled
        and o.method.name in varied
        and (not o.variant or o.variant in names)
    ]
    whole = next(o for o in chosen if o.method.name == "jrss" and not o.variant)
    if kind == "tau":
        chosen.sort(key=lambda o: o.tau)
    rows = []
    for outcome in chosen:
        cells = [Cell(f"tau = {tau_text(outcome.tau)}" if kind == "tau" else outcome.title)]
        for task in TASKS:
            here, there = outcome.samples(task, "dice"), whole.samples(task, "dice")
            common = here.keys() & there.keys()
            mean, std = mean_std(here[s] for s in common)
            gain = None if outcome is whole else _gain(here, there)
            p = None if outcome is whole else paired_p(here, there)
            cells += [
                Cell(_figure(mean, std)),
                Cell(NONE if gain is None else f"{gain:+.3f}"),
                Cell(NONE if p is None else _p(p)),
            ]
        mean, std = mean_std(outcome.samples("registration", "std_jacobian").values())
        rows.append((*cells, Cell(_figure(mean, std)), Cell(", ".join(map(str, outcome.seeds)))))
    header = ("JRSS", "Segmentation Dice", "change", "p", "Registration Dice", "change", "p")
    what = "The threshold" if kind == "tau" else "One switch turned"
    caption = f"{what}, N = {labelled} (p: Wilcoxon, uncorrected, same test cases and seeds)"
    return Table(f"{kind}_n{labelled}", caption, (*header, "std(Jac)", "seeds"), tuple(rows))


def by_round(outcomes: Sequence[Outcome]) -> Table:
    """How JRSS moves from the Mono-Nets, round by round, at every N and on the same seeds."""
    columns = [(task, c) for task in TASKS for c in COLUMNS[task] if c.metric != "seconds"]
    rows: list[tuple[Cell, ...]] = []
    for jrss, mono in _against_mono(outcomes):
        seeds = set(jrss.seeds)
        steps = {"Mono-Nets": mono.values, **{f"round {n}": v for n, v in jrss.rounds.items()}}
        for name, values in steps.items():
            outcome = replace(jrss, values=values)
            figures = [
                mean_std(v for s, v in outcome.samples(task, c.metric).items() if s[0] in seeds)
                for task, c in columns
            ]
            cells = [
                Cell(_figure(*f, c.digits)) for f, (_, c) in zip(figures, columns, strict=True)
            ]
            about = (Cell(str(jrss.labelled)), Cell(", ".join(map(str, jrss.seeds))), Cell(name))
            rows.append((*about, *cells))
    titles = [f"{task}: {column.title}" for task, column in columns]
    header = ("N", "seeds", "after", *titles)
    return Table("rounds", "Mono-Nets and joint rounds", header, tuple(rows))


def gains(outcomes: Sequence[Outcome]) -> Table:
    """JRSS after its last round minus the Mono-Nets, on the same cases and pairs, by seed."""
    rows = []
    for jrss, mono in _against_mono(outcomes):
        for seed in jrss.seeds:
            cells = [Cell(str(jrss.labelled)), Cell(str(seed))]
            for task in TASKS:
                after, before = jrss.samples(task, "dice"), mono.samples(task, "dice")
                gain = [after[s] - before[s] for s in after if s[0] == seed and s in before]
                better = sum(g > 0 for g in gain)
                cells += [Cell(f"{np.mean(gain):+.3f}"), Cell(f"{better} of {len(gain)}")]
            rows.append(tuple(cells))
    header = ("N", "seed", "segmentation", "cases better", "registration", "pairs better")
    return Table("gains", "Dice of JRSS minus that of the Mono-Nets", header, tuple(rows))


def _against_mono(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    """JRSS at every N, and the Mono-Nets that it began with."""
    plain = [o for o in outcomes if not o.variant]
    monos = {o.labelled: o for o in plain if o.method.name == "mono"}
    for outcome in plain:
        if outcome.method.name == "jrss" and outcome.labelled in monos:
            yield outcome, monos[outcome.labelled]


def at(outcomes: Sequence[Outcome], labelled: int | str) -> list[Outcome]:
    """Plain outcomes at one N, and those of the methods that see no labels."""
    return [
        o
        for o in outcomes
        if not o.variant and (o.labelled == labelled or o.method.labels == "none")
    ]


def with_task(outcomes: Sequence[Outcome], task: TaskName) -> list[Outcome]:
    """Those that have figures for a task."""
    return [o for o in outcomes if o.samples(task, "dice")]


def _column(outcomes: Sequence[Outcome], task: TaskName, column: Column) -> list[Cell]:
    figures = [mean_std(o.samples(task, column.metric).values()) for o in outcomes]
    trivial = column.metric not in ("dice", "hd95_mm")  # what doing nothing is best at
    figures = [
        (np.nan, np.nan) if trivial and o.method.name == "initial" else figure
        for o, figure in zip(outcomes, figures, strict=True)
    ]
    # Means over other seeds are over other splits, some of which are easier.
    seeds = max((len(o.seeds) for o in outcomes), default=0)
    rounded = [
        None if np.isnan(mean) or len(o.seeds) < seeds else round(mean, column.digits)
        for o, (mean, _) in zip(outcomes, figures, strict=True)
    ]
    known = [mean for mean in rounded if mean is not None]
    best = column.better(known) if column.better is not None and known else None
    return [
        Cell(_figure(*figure, column.digits), best is not None and mean == best)
        for figure, mean in zip(figures, rounded, strict=True)
    ]


def _gain(dice: Mapping[Sample, float], reference: Mapping[Sample, float]) -> float | None:
    """Mean difference on the samples that both have."""
    common = dice.keys() & reference.keys()
    return mean_std(dice[s] - reference[s] for s in common)[0] if common else None


def _figure(mean: float, std: float, digits: int = 3) -> str:
    return NONE if np.isnan(mean) else f"{mean:.{digits}f} ({std:.{digits}f})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _latex(text: str) -> str:
    for plain, written in (("%", "\\%"), ("_", "\\_"), ("&", "\\&"), (NONE, "--"), ("<", "$<$")):
        text = text.replace(plain, written)
    return text
