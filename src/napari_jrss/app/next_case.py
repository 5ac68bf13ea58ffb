"""Which case a person should label next, and why, in words with numbers.

Each unlabelled training case is held against the others by what is known of it: disagreement of
teacher and student, the structure that the teacher is least sure of, agreement of propagated
labels with the teacher, and likeness to the cases that are labelled already. A case's score is
the mean of its ranks; no label that is hidden from training is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_jrss.app.case_summary import CaseFigures, figures_of, view_of
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project
from napari_jrss.project.records import Event, Split


@dataclass(frozen=True)
class Suggestion:
    """A case to label next.

    Attributes
    ----------
    case_id
        Which.
    reason
        Why this one, in words.
    score
        0 (the others need it more) to 1.
    """

    case_id: str
    reason: str
    score: float


@dataclass(frozen=True)
class _Criterion:
    """How much each case asks for a label by one measure, and how to say so."""

    need: dict[str, float]
    words: dict[str, str]


def suggest(
    project: Project,
    appearances: Mapping[str, NDArray[np.float32]],
    figures: Mapping[str, CaseFigures],
    agreement: Mapping[str, float] | None = None,
    after: str | None = None,
) -> Suggestion | None:
    """The case whose label would help most.

    Parameters
    ----------
    project
        Its unlabelled training cases are the candidates. Those that were skipped or rejected
        since the current teacher took over come last.
    appearances, figures
        What is known of the cases, see :mod:`napari_jrss.app.case_summary`.
    agreement
        Mean Dice of propagated labels and the teacher's, by case, where somebody measured it.
    after
        A case that was just looked at and isn't suggested again.

    Returns
    -------
    Suggestion or None
        None if every training case has a label.
    """
    cases = project.cases()
    wanted = [c.case_id for c in cases if c.split is Split.TRAIN and not c.labelled]
    wanted = [case_id for case_id in wanted if case_id != after]
    put_off = _put_off(project)
    candidates = [case_id for case_id in wanted if case_id not in put_off] or wanted
    if not candidates:
        return None
    labelled = [c.case_id for c in cases if c.labelled]
    criteria = [
        criterion
        for criterion in (
            _disagreement(candidates, figures),
            _least_sure(candidates, figures, project.table.names[1:]),
            _dispute(candidates, agreement or {}),
            _coverage(candidates, labelled, appearances),
        )
        if criterion.need
    ]
    if not criteria:
        return Suggestion(candidates[0], "nothing is known of the cases yet, so by name", 0.0)
    ranks = [_ranks(criterion.need) for criterion in criteria]
    scores = {
        case_id: float(np.mean([rank.get(case_id, 0.5) for rank in ranks]))
        for case_id in candidates
    }
    best = max(candidates, key=lambda case_id: scores[case_id])
    pairs = sorted(
        (
            (rank[best], criterion.words[best])
            for rank, criterion in zip(ranks, criteria, strict=True)
            if best in rank
        ),
        key=lambda pair: -pair[0],
    )
    said = [words for rank, words in pairs if rank >= 0.5][:2] or [words for _, words in pairs[:1]]
    reason = "; ".join(said) or "nothing is known of it yet"
    if best in put_off:
        reason = f"all others are done; it was {put_off[best]} before; {reason}"
    return Suggestion(best, reason, scores[best])


def suggest_now(
    project: Project,
    *,
    propagate: bool = False,
    device: str = "auto",
    watch: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Suggestion | None:
    """Look at every case and suggest one: for scripts, where nothing is known beforehand.

    Parameters
    ----------
    project
        May be open read-only.
    propagate
        Also register the labelled cases to each unlabelled one and hold the label that they
        vote for against the teacher's. Takes about N registrations per case.
    device
        For that, see :func:`napari_jrss.inference.device.make_fabric`.
    watch
        Goes through the cases to propagate to, such as a progress bar.

    Raises
    ------
    ProjectError
        A case can't be read, or there is nothing to propagate with.
    """
    teacher = project.require_teacher() if propagate else project.teacher
    cases = [case for case in project.cases() if case.split is Split.TRAIN]
    appearances = {case.case_id: view_of(project, case.case_id).appearance for case in cases}
    figures = {}
    for case in cases:
        if teacher is not None and not case.labelled:
            known = figures_of(project, case, teacher, measure=False)
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
        prediction = teacher.files.prediction(case_id)
        assert prediction is not None
        draft = propagate(project, case_id, device=device).label
        scores = dice_per_class(draft, prediction.label, classes)
        if np.isfinite(scores).any():
            agreement[case_id] = float(np.nanmean(scores))
    return agreement


def _put_off(project: Project) -> dict[str, str]:
    """Cases skipped or rejected since the current teacher took over, and which of the two."""
    put_off: dict[str, str] = {}
    for entry in project.history():
        if entry.kind is Event.PROMOTED:
            put_off.clear()
        elif entry.kind in (Event.SKIPPED, Event.REJECTED) and entry.case_id is not None:
            put_off[entry.case_id] = str(entry.kind)
    return put_off


def _disagreement(candidates: list[str], figures: Mapping[str, CaseFigures]) -> _Criterion:
    known = {c: figures[c].uncertainty for c in candidates if c in figures}
    need = {case_id: value for case_id, value in known.items() if value is not None}
    usual = float(np.median(list(need.values()))) if need else 0.0
    words = {
        case_id: f"teacher and student disagree by {value:.3f} nats (median {usual:.3f})"
        for case_id, value in need.items()
    }
    return _Criterion(need, words)


def _least_sure(
    candidates: list[str], figures: Mapping[str, CaseFigures], names: tuple[str, ...]
) -> _Criterion:
    need, words = {}, {}
    for case_id in candidates:
        if case_id not in figures:
            continue
        of_class = np.nan_to_num(figures[case_id].class_confidence)
        worst = int(of_class.argmin())
        need[case_id] = 1 - float(of_class[worst])
        words[case_id] = (
            f"the teacher is unsure of {names[worst]} (confidence {of_class[worst]:.2f})"
            if of_class[worst]
            else f"the teacher finds no {names[worst]}"
        )
    return _Criterion(need, words)


def _dispute(candidates: list[str], agreement: Mapping[str, float]) -> _Criterion:
    need = {case_id: 1 - agreement[case_id] for case_id in candidates if case_id in agreement}
    words = {
        case_id: f"propagated labels and the teacher agree by Dice {agreement[case_id]:.2f}"
        for case_id in need
    }
    return _Criterion(need, words)


def _coverage(
    candidates: list[str],
    labelled: list[str],
    appearances: Mapping[str, NDArray[np.float32]],
) -> _Criterion:
    """Least like any labelled case; while there is none, most like all the others."""
    known = [case_id for case_id in candidates if case_id in appearances]
    examples = [case_id for case_id in labelled if case_id in appearances]
    if not known:
        return _Criterion({}, {})
    those = np.stack([appearances[case_id] for case_id in known])
    if not examples:
        likeness = (those @ those.T).mean(1)
        return _Criterion(
            {c: float(value) for c, value in zip(known, likeness, strict=True)},
            {
                c: f"no case is labelled yet, and it looks most like the others (correlation "
                f"{value:.2f})"
                for c, value in zip(known, likeness, strict=True)
            },
        )
    correlation = those @ np.stack([appearances[case_id] for case_id in examples]).T
    nearest = correlation.argmax(1)
    need, words = {}, {}
    for i, case_id in enumerate(known):
        value = float(correlation[i, nearest[i]])
        need[case_id] = 1 - value
        words[case_id] = (
            f"it is among those least like the labelled cases (correlation {value:.2f} with "
            f"{examples[nearest[i]]}, the nearest)"
        )
    return _Criterion(need, words)


def _ranks(need: Mapping[str, float]) -> dict[str, float]:
    """Rank of each case from 0 (least need) to 1; equal needs share a rank."""
    if len(need) == 1:
        return dict.fromkeys(need, 1.0)
    values = np.array(list(need.values()))
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1) - 1
    ranks = (below + equal / 2) / (len(values) - 1)
    return {case_id: float(rank) for case_id, rank in zip(need, ranks, strict=True)}
