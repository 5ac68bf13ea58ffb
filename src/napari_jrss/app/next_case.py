"""Which case a person should label next, and why.

Each unlabelled training case is compared with the others by up to four criteria: disagreement of
teacher and student, confidence in the structure that the teacher is least sure of, agreement of
propagated labels with the teacher, and similarity to the labelled cases. The score of a case is
the mean of its ranks. Labels that are hidden from training aren't used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_jrss.app.case_summary import PredictionFigures, appearance_of, prediction_figures
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project
from napari_jrss.project.records import Event, Split

Criterion = dict[str, tuple[float, str]]
"""By case: how much it needs a label by one measure, and that in words."""


@dataclass(frozen=True)
class Suggestion:
    """A case to label next."""

    case_id: str
    reason: str
    score: float  # 0 (the others need a label more) to 1


def suggest(
    project: Project,
    appearances: Mapping[str, NDArray[np.float32]],
    figures: Mapping[str, PredictionFigures],
    agreement: Mapping[str, float] | None = None,
    after: str | None = None,
) -> Suggestion | None:
    """Suggest the case whose label would help most; None if every training case has one.

    Parameters are those of :func:`suggestions`.
    """
    found = suggestions(project, appearances, figures, agreement, after, most=1)
    return found[0] if found else None


def suggestions(
    project: Project,
    appearances: Mapping[str, NDArray[np.float32]],
    figures: Mapping[str, PredictionFigures],
    agreement: Mapping[str, float] | None = None,
    after: str | None = None,
    *,
    most: int,
) -> list[Suggestion]:
    """Suggest the cases whose labels would help most, the first one first.

    The unlabelled training cases are the candidates, but for `after`, which the person just left.
    Those that were skipped or rejected since the present teacher is in force come last.

    Parameters
    ----------
    appearances, figures
        What is known of the cases, see :mod:`napari_jrss.app.case_summary`.
    agreement
        Mean Dice of propagated labels and the teacher's, by case, where it was measured.
    most
        How many cases at most.
    """
    cases = project.cases()
    wanted = [c.case_id for c in cases if c.split is Split.TRAIN and not c.labelled]
    wanted = [case_id for case_id in wanted if case_id != after]
    put_off = _put_off(project)
    candidates = [case_id for case_id in wanted if case_id not in put_off] or wanted
    if not candidates:
        return []
    labelled = [c.case_id for c in cases if c.labelled]
    criteria = [
        _disagreement(candidates, figures),
        _least_sure(candidates, figures, project.table.names[1:]),
        _propagation(candidates, agreement or {}),
        _coverage(candidates, labelled, appearances),
    ]
    criteria = [criterion for criterion in criteria if criterion]
    if not criteria:
        why = "nothing is known of the cases yet, so by name"
        return [Suggestion(case_id, why, 0.0) for case_id in candidates[:most]]
    ranks = [_ranks(criterion) for criterion in criteria]
    scores = {
        case_id: float(np.mean([rank.get(case_id, 0.5) for rank in ranks]))
        for case_id in candidates
    }
    found = []
    for case_id in sorted(candidates, key=lambda case_id: -scores[case_id])[:most]:
        reason = _reason(case_id, ranks, criteria)
        if case_id in put_off:
            reason = f"all others are done; it was {put_off[case_id]} before; {reason}"
        found.append(Suggestion(case_id, reason, scores[case_id]))
    return found


def _reason(
    case_id: str, ranks: Sequence[Mapping[str, float]], criteria: Sequence[Criterion]
) -> str:
    """Why a case, in words: by the criteria in which it needs a label more than most."""
    reasons = sorted(
        (
            (rank[case_id], criterion[case_id][1])
            for rank, criterion in zip(ranks, criteria, strict=True)
            if case_id in rank
        ),
        key=lambda reason: -reason[0],
    )
    strong = [words for rank, words in reasons if rank >= 0.5][:2]
    return "; ".join(strong or [words for _, words in reasons[:1]]) or "nothing is known of it yet"


MOST_READ = 60
"""Cases that :func:`first_case` reads at most; it takes some 30 ms for each."""


def first_case(project: Project) -> Suggestion | None:
    """The most typical training case, where none has a label yet; else None.

    It reads every scan, and doesn't where there are more than :data:`MOST_READ`.
    """
    cases = [case for case in project.cases() if case.split is Split.TRAIN]
    if not cases or len(cases) > MOST_READ or any(case.labelled for case in cases):
        return None
    return suggest_now(project) if project.teacher is None else None


def suggest_now(
    project: Project,
    *,
    propagate: bool = False,
    device: str = "auto",
    watch: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Suggestion | None:
    """Read every case, then suggest one; for scripts, where nothing is known beforehand.

    Parameters
    ----------
    propagate
        Also register the N labelled cases to each unlabelled one, and compare the label that
        they vote for with the teacher's. Takes N registrations per case.
    watch
        Wraps the iteration over the cases to propagate to, such as in a progress bar.
    """
    teacher = project.require_teacher() if propagate else project.teacher
    cases = [case for case in project.cases() if case.split is Split.TRAIN]
    appearances = {case.case_id: appearance_of(project, case.case_id).vector for case in cases}
    figures = {}
    for case in cases:
        if teacher is not None and not case.labelled:
            known = prediction_figures(project, case, teacher, measure=False)
            if known is not None:
                figures[case.case_id] = known
    agreement = _agreement(project, watch(list(figures)), device) if propagate else None
    return suggest(project, appearances, figures, agreement)


def _agreement(project: Project, case_ids: Iterable[str], device: str) -> dict[str, float]:
    """Mean Dice of propagated labels and the teacher's, by case."""
    from napari_jrss.app.pairs.registering import propagate

    teacher = project.require_teacher()
    classes = len(project.table.classes)
    agreement = {}
    for case_id in case_ids:
        prediction = teacher.files.prediction(case_id, on_scan=False)
        assert prediction is not None
        draft = propagate(project, case_id, device=device).label
        scores = dice_per_class(draft, prediction.label, classes)
        if np.isfinite(scores).any():
            agreement[case_id] = float(np.nanmean(scores))
    return agreement


def _put_off(project: Project) -> dict[str, str]:
    """Cases skipped or rejected since the present teacher is in force, and which of the two."""
    put_off: dict[str, str] = {}
    for entry in project.history():
        if entry.kind is Event.PROMOTED:
            put_off.clear()
        elif entry.kind in (Event.SKIPPED, Event.REJECTED) and entry.case_id is not None:
            put_off[entry.case_id] = str(entry.kind)
    return put_off


def _disagreement(candidates: Sequence[str], figures: Mapping[str, PredictionFigures]) -> Criterion:
    known = {case_id: figures[case_id].uncertainty for case_id in candidates if case_id in figures}
    need = {case_id: value for case_id, value in known.items() if value is not None}
    median = float(np.median(list(need.values()))) if need else 0.0
    return {
        case_id: (value, _disagreement_in_words(value, median)) for case_id, value in need.items()
    }


def _disagreement_in_words(value: float, median: float) -> str:
    """Disagreement of one case beside that of a typical one."""
    if median <= 0:
        return "teacher and student disagree"
    if value < 1.05 * median:
        return "teacher and student disagree about as much as usual"
    return f"teacher and student disagree {value / median:.1f} times as much as usual"


def _least_sure(
    candidates: Sequence[str], figures: Mapping[str, PredictionFigures], names: Sequence[str]
) -> Criterion:
    criterion = {}
    for case_id in candidates:
        if case_id not in figures:
            continue
        confidence = np.nan_to_num(figures[case_id].class_confidence)
        least = int(confidence.argmin())
        words = (
            f"the teacher is unsure of {names[least]} (confidence {confidence[least]:.2f})"
            if confidence[least]
            else f"the teacher finds no {names[least]}"
        )
        criterion[case_id] = 1 - float(confidence[least]), words
    return criterion


def _propagation(candidates: Sequence[str], agreement: Mapping[str, float]) -> Criterion:
    return {
        case_id: (
            1 - agreement[case_id],
            f"propagated labels and the teacher agree by Dice {agreement[case_id]:.2f}",
        )
        for case_id in candidates
        if case_id in agreement
    }


def _coverage(
    candidates: Sequence[str],
    labelled: Sequence[str],
    appearances: Mapping[str, NDArray[np.float32]],
) -> Criterion:
    """Least similar to any labelled case; while there is none, most similar to all others."""
    known = [case_id for case_id in candidates if case_id in appearances]
    examples = [case_id for case_id in labelled if case_id in appearances]
    if not known:
        return {}
    vectors = np.stack([appearances[case_id] for case_id in known])
    if not examples:
        others = max(len(known) - 1, 1)
        similarity = ((vectors @ vectors.T).sum(1) - 1) / others  # without itself
        words = "no case is labelled yet, and it looks most like the others (correlation {:+.2f})"
        return {
            case_id: (value, words.format(value))
            for case_id, value in zip(known, similarity.tolist(), strict=True)
        }
    correlation = vectors @ np.stack([appearances[case_id] for case_id in examples]).T
    nearest = correlation.argmax(1)
    return {
        case_id: (
            1 - float(row[i]),
            f"it is among those least like the labelled cases (correlation {row[i]:.2f} with "
            f"{examples[i]}, the nearest)",
        )
        for case_id, row, i in zip(known, correlation, nearest, strict=True)
    }


def _ranks(criterion: Criterion) -> dict[str, float]:
    """Rank of each case from 0 (least need) to 1; equal needs share a rank."""
    if len(criterion) == 1:
        return dict.fromkeys(criterion, 1.0)
    needs = np.array([need for need, _ in criterion.values()])
    below = (needs[None] < needs[:, None]).sum(1)
    equal = (needs[None] == needs[:, None]).sum(1) - 1
    ranks = (below + equal / 2) / (len(needs) - 1)
    return dict(zip(criterion, ranks.tolist(), strict=True))
