"""Which registration engine is best on a project's own labelled cases."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import permutations
from pathlib import Path
from statistics import fmean, median
from typing import TypeAlias

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from napari_jrss.app.pairs.registering import (
    RegistrationReport,
    project_registrar,
    read_registration_input,
    register_sides,
)
from napari_jrss.errors import JRSSError, ProjectError
from napari_jrss.inference.engines import engine_named, engines
from napari_jrss.pool import Workers, mapped
from napari_jrss.progress_bar import Bar, counting, long_call
from napari_jrss.project.project import Project

_Job: TypeAlias = tuple[str, str, str]
"""An engine, a moving and a fixed case."""


@dataclass(frozen=True)
class EngineTried:
    """One engine registered one pair; `report` is None where it failed, and `problem` says why."""

    engine: str
    moving: str
    fixed: str
    report: RegistrationReport | None
    done: int  # registrations so far
    total: int  # registrations in all
    problem: str = ""


@dataclass(frozen=True)
class EngineFigures:
    """Means of one engine over the pairs that it registered.

    Attributes
    ----------
    engine
        Its name.
    dice
        Mean Dice of the carried label with the label of the fixed case, of each pair.
    std_jacobian, folded_percent
        See :class:`~napari_jrss.app.pairs.registering.RegistrationReport`.
    seconds
        Median time of a pair.
    failed
        Number of pairs that it failed on; the figures are of the others.
    problem
        Why it failed on the first of them.
    """

    engine: str
    dice: tuple[float, ...]
    std_jacobian: float
    folded_percent: float
    seconds: float
    failed: int = 0
    problem: str = ""

    @property
    def mean_dice(self) -> float:
        """Mean over the pairs."""
        return fmean(self.dice)


@dataclass(frozen=True)
class EngineComparison:
    """Engines on the same labelled pairs of a project.

    Attributes
    ----------
    pairs
        Moving and fixed case of each pair.
    dice_before
        Mean Dice without registration, on the training grid.
    figures
        Of each engine that registered any pair; the best first, after those that registered all.
    failed
        Why an engine registered none, by its name.
    """

    pairs: tuple[tuple[str, str], ...]
    dice_before: float
    figures: tuple[EngineFigures, ...]
    failed: dict[str, str]

    @property
    def best(self) -> str | None:
        """Name of the engine with the highest mean Dice of those that registered all pairs."""
        return next((each.engine for each in self.figures if not each.failed), None)

    def verdict(self) -> str:
        """Which engine is best here, and by how much, in a sentence."""
        whole = [each for each in self.figures if not each.failed]
        if not whole:
            return "no engine registered all pairs"
        first = whole[0]
        line = f"best here: {first.engine}, Dice {first.mean_dice:.3f}"
        if len(whole) == 1:
            return line
        second = whole[1]
        wins = sum(a > b for a, b in zip(first.dice, second.dice, strict=True))
        return (
            f"{line}; {first.mean_dice - second.mean_dice:.3f} above {second.engine}, "
            f"and better in {wins} of {len(self.pairs)} pairs"
        )

    def summary(self) -> str:
        """A table with one row per engine, and the verdict.

        Returns
        -------
        str
            Lines of at most 100 characters.
        """
        table = Table("engine", "Dice", "std(Jac)", "folded %", "seconds", "failed", box=SIMPLE)
        table.add_row("none", f"{self.dice_before:.3f}", "-", "-", "-", "-")
        for each in self.figures:
            table.add_row(
                each.engine,
                f"{each.mean_dice:.3f} ({np.std(each.dice):.3f})",
                f"{each.std_jacobian:.3f}",
                f"{each.folded_percent:.3f}",
                f"{each.seconds:.2f}",
                str(each.failed or "-"),
            )
        page = StringIO()
        plain = Console(file=page, width=100, markup=False, force_jupyter=False, color_system=None)
        plain.print(table)
        problems = {each.engine: each.problem for each in self.figures if each.failed}
        for name, problem in (problems | self.failed).items():
            plain.print(f"{name}: {problem}", soft_wrap=True)
        return page.getvalue() + (
            f"mean (std) over {len(self.pairs)} pairs of labelled cases, registered by their "
            f"images alone\n{self.verdict()}"
        )


def _bars(*_: object, **__: object) -> Callable[[EngineTried], Bar]:
    return counting("registering")


@long_call(_bars)
def compare_engines(
    project: Project,
    names: Sequence[str] | None = None,
    *,
    pairs: int = 20,
    seed: int = 0,
    device: str = "auto",
    workers: Workers = None,
) -> Generator[EngineTried, None, EngineComparison]:
    """Register pairs of labelled cases by each engine, and measure the carried labels.

    An engine sees the images alone, so each pair measures how well it would carry a label to a
    case that has none. Test cases have no part. The network isn't measured, since it has learned
    from these labels. ``compare_engines.events(...)`` yields an :class:`EngineTried` for each
    registration.

    Parameters
    ----------
    project
        With at least two labelled cases; those for validation count.
    names
        Of the engines; None: all that are installed.
    pairs
        Most pairs to register; of more, as many are drawn.
    seed
        Draws them.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    workers
        Processes that share the registrations, of this computer or of a cluster; None: one after
        the other in this process. The seconds of each are those beside the others.

    Returns
    -------
    EngineComparison
        Its :meth:`~EngineComparison.summary` is a table to print.

    Raises
    ------
    ProjectError
        There are fewer than two labelled cases.
    EngineError
        There is no such engine, or its package isn't installed.
    """
    snapshot = project.snapshot()
    labelled = [*snapshot.labelled, *snapshot.validation]
    if len(labelled) < 2:
        raise ProjectError(f"{project.path}: comparing engines needs two labelled cases")
    if names is None:
        names = [name for name, engine in engines().items() if not engine.problem]
    names = [engine_named(name).name for name in names]
    every = list(permutations(labelled, 2))
    drawn = np.random.default_rng(seed).permutation(len(every))[:pairs]
    chosen = [every[i] for i in sorted(drawn)]
    jobs = [(name, *pair) for pair in chosen for name in names]
    job: Callable[[_Job], RegistrationReport]
    if workers is None:
        job = partial(_register, project, device)
    else:
        job = partial(_in_worker, project.path, device)
    tried: dict[_Job, EngineTried] = {}
    with closing(mapped(job, jobs, workers)) as working_on:
        for each, outcome in working_on:
            if isinstance(outcome, Exception) and not isinstance(outcome, JRSSError):
                raise outcome
            name, moving, fixed = each
            problem = str(outcome) if isinstance(outcome, JRSSError) else ""
            report = None if isinstance(outcome, JRSSError) else outcome
            done = len(tried) + 1
            tried[each] = EngineTried(name, moving, fixed, report, done, len(jobs), problem)
            yield tried[each]
    return _compared(chosen, names, [tried[each] for each in jobs])


def _register(project: Project, device: str, job: _Job) -> RegistrationReport:
    """Register a pair by an engine."""
    name, *pair = job
    registrar = project_registrar(project, name, device=device)
    here, there = (read_registration_input(project, case) for case in pair)
    return register_sides(registrar, here, there, project.table.names).report


def _in_worker(path: Path, device: str, job: _Job) -> RegistrationReport:
    with Project.open(path, read_only=True) as project:
        return _register(project, device, job)


def _compared(
    pairs: Sequence[tuple[str, str]], names: Sequence[str], tried: Sequence[EngineTried]
) -> EngineComparison:
    figures: list[EngineFigures] = []
    failed: dict[str, str] = {}
    before: dict[tuple[str, str], float] = {}
    for name in names:
        own = [each for each in tried if each.engine == name]
        reports = [each.report for each in own if each.report is not None]
        problems = [each.problem for each in own if each.problem]
        before |= {(r.moving, r.fixed): r.mean_dice_before or 0.0 for r in reports}
        if not reports:
            failed[name] = problems[0]
            continue
        figures.append(
            EngineFigures(
                name,
                tuple(report.mean_dice or 0.0 for report in reports),
                fmean(report.std_jacobian for report in reports),
                fmean(report.folded_percent for report in reports),
                median(report.seconds for report in reports),
                len(problems),
                problems[0] if problems else "",
            )
        )
    figures.sort(key=lambda each: (each.failed > 0, -each.mean_dice))
    return EngineComparison(
        tuple(pairs), fmean(before.values()) if before else 0.0, tuple(figures), failed
    )
