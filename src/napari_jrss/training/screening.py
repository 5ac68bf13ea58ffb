"""Screening at tau (Eq. 3): which of a teacher's predictions become pseudo-labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_jrss.config import ScreeningConfig
from napari_jrss.io.predictions import Prediction
from napari_jrss.snapshot import Label

IGNORED = 255
"""Target value of a voxel that takes no part in the loss (there are at most 255 classes)."""


@dataclass(frozen=True)
class PseudoLabel:
    """One case's prediction after screening, (z, y, x) on the training grid.

    Attributes
    ----------
    label
        The whole most-probable-class map, but for classes that are held back; it supervises
        the registration if `accepted`.
    target
        The same with every voxel that failed a gate set to :data:`IGNORED`; it supervises
        the student.
    accepted
        Whether enough foreground classes passed for the case to count as labelled.
    class_confidence
        Gate statistic of each class, NaN where no voxel was predicted.
    classes_passed
        Which classes exceed tau.
    """

    label: Label
    target: NDArray[np.uint8]
    accepted: bool
    class_confidence: NDArray[np.float64]
    classes_passed: NDArray[np.bool_]

    @property
    def kept_fraction(self) -> float:
        """Fraction of voxels that enter training."""
        return float(np.mean(self.target != IGNORED))


def screen(
    prediction: Prediction,
    classes: int,
    required: Collection[int],
    config: ScreeningConfig,
    held_back: Collection[int] = (),
) -> PseudoLabel:
    """Hold a prediction against tau.

    Two gates (docs/explanation/method.md says why two): a voxel is kept where its confidence
    exceeds tau; a class is kept where the mean (or the largest) confidence of the voxels predicted
    as this class does. What fails is ignored, never background.

    Parameters
    ----------
    prediction
        The teacher's prediction of one case.
    classes
        Number of classes C, background included.
    required
        Foreground classes seen in the labelled set; the case is accepted when the
        configured fraction of them passes.
    config
        tau and the gates.
    held_back
        Classes that never pass, nor are they required: those that the teacher hasn't learned.
    """
    confidence = prediction.confidence.astype(np.float64)  # exact against any tau
    flat_label = prediction.label.ravel()
    counts = np.bincount(flat_label, minlength=classes)
    if config.class_gate == "max":
        statistic = np.full(classes, -np.inf)
        np.maximum.at(statistic, flat_label, confidence.ravel())
    else:
        sums = np.bincount(flat_label, weights=confidence.ravel(), minlength=classes)
        statistic = sums / np.maximum(counts, 1)
    statistic = np.where(counts > 0, statistic, np.nan)
    passed = counts > 0 if config.class_gate == "none" else np.nan_to_num(statistic) > config.tau
    passed[list(held_back)] = False

    kept = passed[prediction.label]
    if config.voxel_gate:
        kept = kept & (confidence > config.tau)
    target = np.where(kept, prediction.label, IGNORED).astype(np.uint8)
    label = prediction.label
    if held_back:
        label = np.where(np.isin(label, list(held_back)), IGNORED, label).astype(np.uint8)
    asked = set(required) - set(held_back)
    count = sum(bool(passed[c]) for c in asked)
    # A quotient, since 0.28 * 25 is above 7 in floating point.
    accepted = count > 0 and count / len(asked) >= config.accept_fraction
    return PseudoLabel(label, target, accepted, statistic, passed)
