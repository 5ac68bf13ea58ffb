"""Screening at tau (Eq. 3): which of a teacher's predictions become pseudo-labels.

Two gates (docs/explanation/method.md says why two): a voxel is kept where its confidence exceeds
tau; a class is kept where the mean (or the largest) confidence of the voxels predicted as this
class does. What fails is ignored, never background.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from napari_jrss.config import ScreeningConfig
from napari_jrss.io.predictions import Prediction
from napari_jrss.labels import IGNORED as IGNORED  # it is a target's value as well
from napari_jrss.snapshot import Label

_NONE: Mapping[int, str] = MappingProxyType({})
_CODES = 0x3C01  # float16 values from 0 to 1, in order of their bits


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
        (C,), the gate's statistic of each class, NaN where no voxel was predicted.
    classes_passed
        (C,), which classes exceed tau.
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
    """Screen a prediction at the tau of the settings.

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
    screening = Screening(prediction, classes, config, dict.fromkeys(held_back, ""))
    passed = screening.classes_passed(config.tau)
    label = prediction.label
    if held_back:
        label = np.where(np.isin(label, list(held_back)), IGNORED, label).astype(np.uint8)
    asked = set(required) - set(held_back)
    count = sum(bool(passed[c]) for c in asked)
    # A quotient, since 0.28 * 25 is above 7 in floating point.
    accepted = count > 0 and count / len(asked) >= config.accept_fraction
    target = screening.target(config.tau)
    return PseudoLabel(label, target, accepted, screening.statistic, passed)


@dataclass(frozen=True)
class Screened:
    """What one tau lets into training.

    Attributes
    ----------
    tau
        The threshold.
    kept_fraction
        Fraction of voxels that enter training.
    classes_passed
        (C,), which classes pass, background first.
    held_back
        Names of the structures that pass at no tau, since the teacher hasn't learned them.
    """

    tau: float
    kept_fraction: float
    classes_passed: NDArray[np.bool_]
    held_back: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Such as "83 % of voxels and 9 of 11 structures are sure enough to train on"."""
        structures = self.classes_passed[1:]
        return (
            f"{100 * self.kept_fraction:.0f} % of voxels and {np.count_nonzero(structures)} of "
            f"{structures.size} structures are sure enough to train on"
            + (f"; not learned yet: {', '.join(self.held_back)}" if self.held_back else "")
        )


class Screening:
    """One prediction, ready to be screened at any tau at once.

    A confidence is one of the 15361 numbers that float16 has between 0 and 1, so a table of how
    many voxels of each class have which confidence answers any tau without reading the volume.

    Parameters
    ----------
    prediction
        The teacher's prediction of one case.
    classes
        Number of classes C, background included.
    config
        The gates.
    held_back
        Classes, and their names, that never pass: those that the teacher hasn't learned.

    Attributes
    ----------
    mean_confidence
        (C,), of each class over the voxels predicted as it; NaN where there are none.
    statistic
        (C,), what the class gate compares with tau: the mean or the largest confidence.
    """

    def __init__(
        self,
        prediction: Prediction,
        classes: int,
        config: ScreeningConfig,
        held_back: Mapping[int, str] = _NONE,
    ) -> None:
        self._config = config
        self._held_back = held_back
        self._label = prediction.label
        self._codes = np.ascontiguousarray(prediction.confidence).view(np.uint16)
        table = np.bincount(
            self._label.ravel().astype(np.int32) * _CODES + self._codes.ravel(),
            minlength=classes * _CODES,
        ).reshape(classes, _CODES)
        # How many voxels of a class have at least this confidence.
        self._at_least = table[:, ::-1].cumsum(1)[:, ::-1]
        counts, sums = confidence_by_class(prediction, classes)
        self.mean_confidence = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        self.statistic = self.mean_confidence
        if config.class_gate == "max":
            largest = np.where(table > 0, np.arange(_CODES, dtype=np.uint16), 0).max(1)
            values = largest.astype(np.uint16).view(np.float16).astype(np.float64)
            self.statistic = np.where(counts > 0, values, np.nan)

    def classes_passed(self, tau: float) -> NDArray[np.bool_]:
        """(C,), which classes pass the class gate."""
        found = self._at_least[:, 0] > 0
        exceeds = np.nan_to_num(self.statistic) > tau
        passed: NDArray[np.bool_] = found if self._config.class_gate == "none" else found & exceeds
        passed[list(self._held_back)] = False
        return passed

    def at(self, tau: float) -> Screened:
        """What this tau lets into training, in figures."""
        passed = self.classes_passed(tau)
        first = self._first_kept(tau)
        kept = int(self._at_least[passed, first].sum()) if first < _CODES else 0
        held_back = tuple(self._held_back.values())
        return Screened(tau, kept / self._label.size, passed, held_back)

    def target(self, tau: float, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Classes of the voxels that enter training, the others :data:`IGNORED`.

        Parameters
        ----------
        tau
            The threshold.
        out
            Where to write it, (z, y, x); none: a new array.
        """
        passed = self.classes_passed(tau)
        values = np.where(passed, np.arange(passed.size), IGNORED).astype(np.uint8)
        target = np.take(values, self._label, out=out, mode="clip")
        if self._config.voxel_gate:
            below = (self._codes < self._first_kept(tau)).view(np.uint8)
            below *= IGNORED
            target |= below
        return target

    def _first_kept(self, tau: float) -> int:
        """The bits of the smallest confidence that passes the voxel gate; beyond 1 for none."""
        if not self._config.voxel_gate:
            return 0
        nearest = np.float16(tau)
        code = int(nearest.view(np.uint16))
        return code + 1 if float(nearest) <= tau else code


def confidence_by_class(
    prediction: Prediction, classes: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Number of voxels predicted as each class, and the sum of their confidences: (C,) each."""
    label, confidence = prediction.label.ravel(), prediction.confidence.ravel()
    sums = np.bincount(label, weights=confidence.astype(np.float64), minlength=classes)
    return np.bincount(label, minlength=classes), sums.astype(np.float64)
