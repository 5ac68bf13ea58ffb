"""Whether an error that was corrected in one case is in another one, too: pure functions.

All arrays are (z, y, x) on the training grid. What decides was measured by ``benchmarks/echo.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_jrss.app.review.opinions import Dispute, disputes
from napari_jrss.snapshot import Label

LEAST_ML, LEAST_VOXELS = 0.03, 10
"""Smaller corrections aren't looked for, and smaller places aren't named."""
SUPPORT = 0.5
"""Share of the other labelled cases that has to agree with the corrected one at a place."""
_MOST = 10  # corrections of a case, the largest ones


def corrections(
    draft: Label, accepted: Label, spacing_mm: Sequence[float], most: int = _MOST
) -> list[Dispute]:
    """Places where a teacher's draft differs from the accepted label, the largest first."""
    found = disputes(draft, accepted, spacing_mm, least_ml=LEAST_ML)
    return [each for each in found if np.count_nonzero(each.mask) >= LEAST_VOXELS][:most]


def carried_place(correction: Dispute, field: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where a correction of the moving case lies in the fixed one.

    Parameters
    ----------
    correction
        A place in the moving case.
    field
        Displacement (3, z, y, x) in voxels that warps the moving case onto the fixed one.
    """
    from napari_jrss.inference.predict import warp_array

    mask = np.zeros(field.shape[1:], np.float32)
    mask[correction.box][correction.mask] = 1
    inside: NDArray[np.bool_] = warp_array(mask, field) > 0.5
    return inside


def same_confusion(
    correction: Dispute, place: NDArray[np.bool_], draft: Label, carried: Label
) -> NDArray[np.bool_]:
    """Voxels of a carried place where the draft there may be wrong in the same way.

    It has the class that was wrong, and the corrected case's label, `carried` there, has the
    right one. All False where these are fewer than :data:`LEAST_VOXELS`.
    """
    here = place & (draft == correction.first) & (carried == correction.second)
    return here if np.count_nonzero(here) >= LEAST_VOXELS else np.zeros_like(here)


def support(correction: Dispute, here: NDArray[np.bool_], others: Sequence[Label]) -> float:
    """How far other cases' labels, carried to the same case, agree with a correction, 0 to 1.

    The mean over the labels of the share of the voxels `here` that have the corrected class; 0
    without any label.
    """
    if not others:
        return 0.0
    return float(np.mean([np.mean(label[here] == correction.second) for label in others]))
