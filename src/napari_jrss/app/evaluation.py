"""Evaluating a project's rounds on its test cases; every row is kept beside the round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from napari_jrss.errors import ProjectError
from napari_jrss.io.atomic import write_text
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round, RoundOutcome, Split
from napari_jrss.snapshot import CachedArrays

if TYPE_CHECKING:
    from napari_jrss.inference.evaluate import CaseEvaluated, PairEvaluated, Pairs


class RoundEvaluated(BaseModel):
    """Summary of one round: means and standard deviations over test cases and pairs."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["round_evaluated"] = "round_evaluated"
    number: int
    name: str
    segmentation: dict[str, Any]
    registration: dict[str, Any]


def evaluate(
    project: Project,
    *,
    rounds: Sequence[int] | None = None,
    pairs: Pairs = "two-fixed",
    seed: int = 0,
    refined: bool = False,
    device: str = "auto",
) -> Iterator[CaseEvaluated | PairEvaluated | RoundEvaluated]:
    """Evaluate rounds on the test cases, on the training grid.

    Parameters
    ----------
    project
        With test cases that have labels.
    rounds
        Numbers of finished rounds; all of them by default. Rounds without a parent are the
        Mono-Nets.
    pairs, seed
        Which pairs to register, see
        :func:`napari_jrss.inference.evaluate.evaluation_pairs`.
    refined
        Whether each field is improved on its pair, see :mod:`napari_jrss.inference.refine`.
    device
        See :func:`napari_jrss.inference.device.make_fabric`.

    Yields
    ------
    CaseEvaluated, PairEvaluated, RoundEvaluated
        The rows of a round, then its summary. Rows are written to the round's
        ``evaluation.jsonl``, or ``evaluation_refined.jsonl``.

    Raises
    ------
    ProjectError
        Without finished rounds or fewer than two labelled test cases.
    """
    from napari_jrss.inference import evaluate as engine
    from napari_jrss.inference.device import make_fabric
    from napari_jrss.inference.load import load_refined, load_registration, load_teacher

    cases = [c.case_id for c in project.cases() if c.split is Split.TEST and c.label_version]
    if len(cases) < 2:
        raise ProjectError(f"{project.path}: evaluating needs two test cases with labels (split)")
    finished = [r for r in project.rounds() if r.outcome is RoundOutcome.FINISHED]
    chosen = finished if rounds is None else [project.round(n) for n in rounds]
    if not chosen or any(r.outcome is not RoundOutcome.FINISHED for r in chosen):
        raise ProjectError(f"{project.path}: evaluating needs a finished round (train)")

    names = tuple(project.table.names)
    arrays = CachedArrays(project.image, project.label)
    torch_device = make_fabric(device).device
    ordered_pairs = engine.evaluation_pairs(cases, pairs, seed)
    for entry in chosen:
        segmentation, registration = [], []
        teacher = load_teacher(entry.files, torch_device)
        for case in engine.evaluate_segmentation(
            teacher, arrays, cases, len(names), project.spacing_of, torch_device
        ):
            segmentation.append(case)
            yield case
        network = (load_refined if refined else load_registration)(entry.files, torch_device)
        for pair in engine.evaluate_registration(
            network, arrays, ordered_pairs, len(names), project.spacing_of, torch_device
        ):
            registration.append(pair)
            yield pair
        rows = [*segmentation, *registration]
        lines = "".join(row.model_dump_json() + "\n" for row in rows)
        write_text(entry.files.evaluation(refined), lines)
        yield RoundEvaluated(
            number=entry.number,
            name=_name(entry) + (", refined" if refined else ""),
            segmentation=engine.summarise_segmentation(segmentation, names),
            registration=engine.summarise_registration(registration, names),
        )


def _name(entry: Round) -> str:
    if entry.parent is not None:
        return f"JRSS round {entry.number}"
    return "Mono-Nets" if entry.number == 0 else f"Mono-Nets, round {entry.number}"
