"""Which structures a teacher has learned, judged on the labelled scans.

Its confidence doesn't tell: a Dice loss can leave one class on a plateau, predicted far too widely
and surely, and no threshold tau keeps such labels from the rounds (figures: docs/dev/choices.md).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import nn

from napari_jrss.inference.evaluate import none_for_nan
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training.events import Cancelled, CaseJudged, Event
from napari_jrss.training.loop import Cancel, stop_requested
from napari_jrss.training.stages import segmentation_dice

LEARNED_DICE, LOOKED_AT = 0.5, 5
"""Mean Dice below which a structure counts as not learned, and the most scans that it is of."""


def scans_to_judge(snapshot: CohortSnapshot) -> Sequence[str]:
    """The labelled cases on which :func:`judge` looks at a teacher."""
    return snapshot.labelled[:LOOKED_AT]


def judge(
    stage: str, teacher: nn.Module, snapshot: CohortSnapshot, fabric: Fabric, cancel: Cancel
) -> Generator[Event, None, tuple[int, ...] | None]:
    """Compare a teacher's labels of labelled cases with the person's.

    Yields
    ------
    CaseJudged
        One per case, as events of `stage`; or :class:`Cancelled`, and then the judgement ends.

    Returns
    -------
    tuple or None
        The foreground classes that it hasn't learned; None if cancelled.
    """
    scores: list[NDArray[np.float64]] = []
    for case in scans_to_judge(snapshot):
        if stop_requested(cancel, fabric):
            yield Cancelled(stage=stage, step=len(scores))
            return None
        voxels = np.bincount(snapshot.arrays.label(case).ravel(), minlength=snapshot.classes)[
            1 : snapshot.classes
        ]
        found = segmentation_dice(teacher, snapshot, case, fabric.device)
        dice = np.where(voxels > 0, found, np.nan)
        scores.append(dice)
        yield CaseJudged(stage=stage, case_id=case, dice=none_for_nan(dice))
    taught = np.flatnonzero(~np.isnan(scores).all(axis=0))
    means = {c: np.nanmean(np.array(scores)[:, c]) for c in taught}
    return tuple(int(c) + 1 for c, mean in means.items() if mean < LEARNED_DICE)


def warning(unlearned: Sequence[str], held_back: bool) -> str:
    """A warning to the person of a teacher that misses these structures; empty without any.

    `held_back`: whether the next round ignores them.
    """
    if not unlearned:
        return ""
    names = ", ".join(unlearned)
    return (
        f"Not learned yet: {names}. Even in the labelled scans the Dice is below "
        f"{LEARNED_DICE:g}: don't trust these labels, however sure the teacher is"
        + ("; the next round doesn't learn from them." if held_back else ".")
        + " Label another scan, or pre-train again for longer."
    )
