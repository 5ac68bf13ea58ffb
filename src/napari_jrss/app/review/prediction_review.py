"""Screening at any tau, at once: what :func:`~napari_jrss.training.screening.screen` would say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from napari_jrss.config import ScreeningConfig
from napari_jrss.io.predictions import Prediction
from napari_jrss.training.screening import IGNORED

_NONE: Mapping[int, str] = MappingProxyType({})
_CODES = 0x3C01  # float16 values from 0 to 1, in order of their bits


@dataclass(frozen=True)
class Screened:
    """What one tau lets into training.

    Attributes
    ----------
    tau
        The threshold.
    kept_fraction
        Fraction of voxels that enter training.
    structures_passed, structures
        How many foreground classes enter, of how many.
    classes_passed
        Which classes pass, background first.
    held_back
        Names of the structures that pass at no tau, since the teacher hasn't learned them.
    """

    tau: float
    kept_fraction: float
    structures_passed: int
    structures: int
    classes_passed: NDArray[np.bool_]
    held_back: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """A sentence, such as "83 % of voxels and 9 of 11 structures would enter training"."""
        return (
            f"{100 * self.kept_fraction:.0f} % of voxels and {self.structures_passed} of "
            f"{self.structures} structures would enter training"
            + (f"; not learned yet: {', '.join(self.held_back)}" if self.held_back else "")
        )


class Screening:
    """One prediction, made ready for being held against many values of tau.

    A confidence is one of the 15361 numbers that float16 has between 0 and 1, so a table of how
    many voxels of each class have which confidence answers any tau without reading the volume.

    Parameters
    ----------
    prediction
        The teacher's prediction of one case.
    classes
        Number of classes C, background included.
    config
        The gates; its tau is where to begin.
    held_back
        Classes, and their names, that never pass: those that the teacher hasn't learned.

    Attributes
    ----------
    mean_confidence
        Of each class over the voxels predicted as it; NaN where there are none.
    """

    def __init__(
        self,
        prediction: Prediction,
        classes: int,
        config: ScreeningConfig,
        held_back: Mapping[int, str] = _NONE,
    ) -> None:
        self.config = config
        self._held_back = tuple(held_back.values())
        self._label = prediction.label
        self._codes = np.ascontiguousarray(prediction.confidence).view(np.uint16)
        label = prediction.label.ravel()
        table = np.bincount(
            label.astype(np.int32) * _CODES + self._codes.ravel(), minlength=classes * _CODES
        ).reshape(classes, _CODES)
        # How many voxels of a class have at least this confidence.
        self._at_least = table[:, ::-1].cumsum(1)[:, ::-1]
        counts = self._at_least[:, 0]
        confidence = prediction.confidence.ravel().astype(np.float64)
        sums = np.bincount(label, weights=confidence, minlength=classes)
        self.mean_confidence = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        if config.class_gate == "max":
            codes = np.arange(_CODES, dtype=np.uint16)
            largest = np.where(table > 0, codes, 0).max(1).astype(np.uint16)
            self._statistic = np.where(counts > 0, largest.view(np.float16), -1.0)
        else:
            self._statistic = np.where(counts > 0, self.mean_confidence, -1.0)
        if config.class_gate == "none":
            self._statistic = np.where(counts > 0, 2.0, -1.0)
        self._statistic[list(held_back)] = -1.0

    def at(self, tau: float) -> Screened:
        """What this tau lets into training, in figures."""
        passed = self._statistic > tau
        first = _first_above(tau) if self.config.voxel_gate else 0
        kept = int(self._at_least[passed, first].sum()) if first < _CODES else 0
        return Screened(
            tau,
            kept / self._label.size,
            int(np.count_nonzero(passed[1:])),
            passed.size - 1,
            passed,
            self._held_back,
        )

    def target(self, tau: float, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Classes of the voxels that enter training, the others :data:`IGNORED`.

        Parameters
        ----------
        tau
            The threshold.
        out
            Where to write it, (z, y, x).
        """
        passed = self._statistic > tau
        values = np.where(passed, np.arange(passed.size), IGNORED).astype(np.uint8)
        target = np.take(values, self._label, out=out, mode="clip")
        if self.config.voxel_gate:
            below = (self._codes < _first_above(tau)).view(np.uint8)
            below *= IGNORED
            target |= below
        return target


def _first_above(tau: float) -> int:
    """The bits of the smallest float16 above tau; beyond 1 for tau = 1."""
    nearest = np.float16(tau)
    code = int(nearest.view(np.uint16))
    return code + 1 if float(nearest) <= tau else code
