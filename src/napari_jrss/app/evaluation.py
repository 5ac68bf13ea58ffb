"""Evaluating a project's rounds on its test cases; every row is kept beside the round."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from napari_jrss.app.forecast import last_forecast
from napari_jrss.errors import ProjectError
from napari_jrss.io.atomic import write_text
from napari_jrss.pool import Workers, mapped
from napari_jrss.progress_bar import Bar, counting, long_call
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round, RoundOutcome, Split
from napari_jrss.snapshot import CachedArrays

if TYPE_CHECKING:
    import torch
    from torch import nn

    from napari_jrss.inference.evaluate import CaseEvaluated, PairEvaluated, Pairs
    from napari_jrss.io.round_files import RoundFiles

_Item: TypeAlias = str | tuple[str, str]
"""A case, or a moving and a fixed one."""
_Row: TypeAlias = "CaseEvaluated | PairEvaluated"


class RoundEvaluated(BaseModel):
    """Summary of one round: means and standard deviations over test cases and pairs."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["round_evaluated"] = "round_evaluated"
    number: int
    name: str
    segmentation: dict[str, Any]
    registration: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Figures of rounds on the test cases.

    Attributes
    ----------
    rounds
        One summary per round, in the order in which they were evaluated. Its `segmentation` and
        `registration` hold mean and standard deviation of Dice, HD95 (mm) and the regularity of
        the fields, over all structures and for each.
    forecast
        Mean Dice that :func:`napari_jrss.app.forecast.forecast` expected, if there is a forecast
        of today's labels.
    """

    rounds: tuple[RoundEvaluated, ...]
    forecast: float | None = None

    def summary(self) -> str:
        """A table with one row per round: mean and, in brackets, standard deviation.

        Returns
        -------
        str
            Lines of at most 100 characters.
        """
        if not self.rounds:
            return "no round was evaluated"
        headings = ("Dice", "HD95 mm", "ECE", "reg. Dice", "std(Jac)", "folded %")
        table = Table("", *headings, box=SIMPLE)
        first, last = self.rounds[0], self.rounds[-1]
        table.add_row(
            "initial", "-", "-", "-", _mean_std(first.registration["dice_before"]), "-", "-"
        )
        for entry in self.rounds:
            segmentation, registration = entry.segmentation, entry.registration
            table.add_row(
                entry.name,
                _mean_std(segmentation["dice"]),
                _mean_std(segmentation["hd95_mm"], 2),
                _mean_std(segmentation["calibration_error"]),
                _mean_std(registration["dice"]),
                _mean_std(registration["std_jacobian"]),
                _mean_std(registration["folded_percent"], 2),
            )
        page = StringIO()
        plain = Console(file=page, width=100, markup=False, force_jupyter=False, color_system=None)
        plain.print(table)
        told = "" if self.forecast is None else f"\nforecast: a Dice of {self.forecast:.3f}"
        return page.getvalue() + (
            f"mean (std) over {first.segmentation['cases']} test cases and "
            f"{first.registration['pairs']} pairs of them; "
            f"{last.segmentation['seconds_per_case']['mean']:.2f} s per case, "
            f"{last.registration['seconds_per_pair']['mean']:.2f} s per pair\n"
            "ECE: how far the confidence is from how often it is right, 0 at best" + told
        )


def _mean_std(statistics: dict[str, Any], digits: int = 3) -> str:
    if statistics["mean"] is None:
        return "-"
    return f"{statistics['mean']:.{digits}f} ({statistics['std']:.{digits}f})"


def _bars(*_: object, **__: object) -> Callable[[object], Bar | None]:
    count = counting("evaluating")
    return lambda event: None if isinstance(event, RoundEvaluated) else count(event)


@long_call(_bars)
def evaluate(
    project: Project,
    *,
    rounds: Sequence[int] | None = None,
    pairs: Pairs = "two-fixed",
    seed: int = 0,
    refine: bool = False,
    device: str = "auto",
    workers: Workers = None,
) -> Generator[CaseEvaluated | PairEvaluated | RoundEvaluated, None, Evaluation]:
    """Measure rounds on the test cases, on the training grid.

    ``evaluate.events(...)`` yields a row per case and per pair, and the summary of each round.
    The rows are written to ``evaluation.jsonl`` in the round's folder, or to
    ``evaluation_refined.jsonl``.

    Parameters
    ----------
    project
        With at least two test cases that have labels, see :meth:`Project.split`.
    rounds
        Numbers of finished rounds; None: all of them. Rounds without a parent are pre-trained
        networks (Mono-Nets).
    pairs
        Which pairs of test cases to register: two fixed cases with all others moving, or all.
    seed
        Draws the two fixed cases.
    refine
        Whether each displacement field is improved on its pair.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    workers
        Processes that share the cases and pairs, of this computer or of a cluster; None: one after
        the other in this process. The seconds of each are those beside the others.

    Returns
    -------
    Evaluation
        Its :meth:`~Evaluation.summary` is a table to print.

    Raises
    ------
    ProjectError
        There is no finished round, or fewer than two labelled test cases.
    """
    from napari_jrss.inference import evaluate as engine

    cases = [c.case_id for c in project.cases() if c.split is Split.TEST and c.label_version]
    if len(cases) < 2:
        raise ProjectError(
            f"{project.path}: an evaluation needs at least two test cases with labels: split the "
            "cases first"
        )
    finished = [
        r
        for r in project.rounds()
        if r.outcome is RoundOutcome.FINISHED and project.of_this_plan(r)
    ]
    chosen = finished if rounds is None else [project.round(n) for n in rounds]
    if not chosen or any(r.outcome is not RoundOutcome.FINISHED for r in chosen):
        raise ProjectError(f"{project.path}: an evaluation needs a finished round: train first")

    for entry in chosen:
        if not project.of_this_plan(entry):
            raise ProjectError(
                f"{project.path}: round {entry.number} was trained on the grid of another plan"
            )

    names = tuple(project.table.names)
    items: list[_Item] = [*cases, *engine.evaluation_pairs(cases, pairs, seed)]
    every = [(entry.number, item) for entry in chosen for item in items]
    if workers is None:
        job = partial(_measure, _Networks(project, refine, device))
    else:
        job = partial(_in_worker, project.path, refine, device)
    found: dict[tuple[int, _Item], _Row] = {}
    summaries = {}
    with closing(mapped(job, every, workers)) as working_on:
        for (number, item), row in working_on:
            if isinstance(row, Exception):
                raise row
            found[number, item] = row
            yield row
            rows = [found[number, each] for each in items if (number, each) in found]
            if len(rows) < len(items):
                continue
            entry = project.round(number)
            lines = "".join(row.model_dump_json() + "\n" for row in rows)
            write_text(entry.files.evaluation(refine), lines)
            of_cases = [row for row in rows if isinstance(row, engine.CaseEvaluated)]
            of_pairs = [row for row in rows if isinstance(row, engine.PairEvaluated)]
            summaries[number] = RoundEvaluated(
                number=number,
                name=_name(entry) + (", refined" if refine else ""),
                segmentation=engine.summarise_segmentation(of_cases, names),
                registration=engine.summarise_registration(of_pairs, names),
            )
            yield summaries[number]
    known = last_forecast(project)
    return Evaluation(
        tuple(summaries[entry.number] for entry in chosen),
        None if known is None else known.mean()[0],
    )


class _Networks:
    """A project's test cases, and the networks of one round after the other."""

    def __init__(self, project: Project, refine: bool, device: str) -> None:
        from napari_jrss.inference.device import find_device

        self.project, self._refine = project, refine
        self.device = find_device(device)
        self.arrays = CachedArrays(project.channel_images, project.label)
        self._number, self._networks = -1, cast("dict[str, nn.Module]", {})

    def teacher(self, number: int) -> nn.Module:
        from napari_jrss.inference.load import load_teacher

        return self._of(number, "teacher", load_teacher)

    def registration(self, number: int) -> nn.Module:
        from napari_jrss.inference.load import load_refined, load_registration

        return self._of(number, "registration", load_refined if self._refine else load_registration)

    def _of(
        self, number: int, name: str, load: Callable[[RoundFiles, torch.device], nn.Module]
    ) -> nn.Module:
        if number != self._number:
            self._number, self._networks = number, {}
        if name not in self._networks:
            self._networks[name] = load(self.project.round(number).files, self.device)
        return self._networks[name]


def _measure(networks: _Networks, what: tuple[int, _Item]) -> _Row:
    """Measure a round on a case, or on a pair of cases."""
    from napari_jrss.inference.evaluate import evaluate_registration, evaluate_segmentation

    (number, item), project = what, networks.project
    about = (len(project.table.names), project.spacing_of, networks.device)
    if isinstance(item, str):
        network = networks.teacher(number)
        return next(evaluate_segmentation(network, networks.arrays, [item], *about))
    network = networks.registration(number)
    return next(evaluate_registration(network, networks.arrays, [item], *about))


def _in_worker(path: Path, refine: bool, device: str, what: tuple[int, _Item]) -> _Row:
    with Project.open(path, read_only=True) as project:
        return _measure(_Networks(project, refine, device), what)


def _name(entry: Round) -> str:
    if entry.parent is not None:
        return f"JRSS round {entry.number}"
    return "Mono-Nets" if entry.number == 0 else f"Mono-Nets, round {entry.number}"
