"""The average of two opinions on a case: what the teacher finds, and what registered labels say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_jrss.io.predictions import Prediction


def average(one: Prediction, other: Prediction, weight: float = 1.0) -> Prediction:
    """The mean of two predictions' probabilities, of which each knows the two largest.

    The errors of a network and those of registrations differ, so that their mean has fewer than
    either. Where both are equally sure of different classes, `one` decides.

    Parameters
    ----------
    one, other
        Predictions on one grid (z, y, x).
    weight
        Of the other, beside 1 for the one.

    Returns
    -------
    Prediction
        The two most probable classes, without an uncertainty.
    """
    total = 1 + weight
    candidates = [
        *((label, share / total) for label, share in _ranked(one)),
        *((label, share * (weight / total)) for label, share in _ranked(other)),
    ]
    scores = [
        np.sum([np.where(label == its, share, 0) for label, share in candidates], axis=0)
        for its, _ in candidates
    ]
    label, confidence = _largest([label for label, _ in candidates], scores)
    left = [
        np.where(its == label, -1, score)
        for (its, _), score in zip(candidates, scores, strict=True)
    ]
    second, second_confidence = _largest([label for label, _ in candidates], left)
    second_confidence = np.maximum(second_confidence, 0)
    return Prediction(
        label,
        confidence.astype(np.float16),
        None,
        second,
        second_confidence.astype(np.float16),
    )


def with_votes(teacher: Prediction, vote: Prediction, voters: int) -> Prediction:
    """The average of a teacher's prediction and the vote of some registered labels."""
    return average(teacher, vote, weight_of_votes(voters))


def weight_of_votes(voters: int) -> float:
    """Weight of the vote of some registered labels, beside 1 for a teacher.

    One voter is always sure, however wrong its label lies. So the vote of n has the weight
    n / (n + 1): as if one more voter had no opinion.
    """
    return voters / (voters + 1)


def propagated_drafts(
    voters: Sequence[str],
    vote: Prediction,
    teacher: Prediction | None,
    round_number: int | None,
) -> dict[str, Prediction]:
    """The drafts that a vote gives, by their keys, the best last.

    These are the vote of some labelled cases and, where a teacher has predicted the case, in a
    round of this number, the average of both.
    """
    draft = "case:" + ",".join(voters)
    found = {draft: vote}
    if teacher is not None:
        found[f"{draft}+round:{round_number}"] = with_votes(teacher, vote, len(voters))
    return found


def _ranked(
    prediction: Prediction,
) -> list[tuple[NDArray[np.unsignedinteger], NDArray[np.float32]]]:
    """The most probable class of each voxel and its probability, then the second one."""
    ranked = [(prediction.label, prediction.confidence.astype(np.float32))]
    if prediction.second is not None and prediction.second_confidence is not None:
        ranked.append((prediction.second, prediction.second_confidence.astype(np.float32)))
    return ranked


def _largest(
    labels: list[NDArray[np.unsignedinteger]], scores: list[NDArray[np.float32]]
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float32]]:
    """At each voxel, the label with the largest score, the first of equal ones; and its score."""
    label, most = labels[0].copy(), scores[0].copy()
    for its, score in zip(labels[1:], scores[1:], strict=True):
        larger = score > most
        label[larger], most[larger] = its[larger], score[larger]
    return label, most
