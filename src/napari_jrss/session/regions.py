"""Where in a case the teacher is least certain: a list of places to look at, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from napari_jrss.data.predictions import Prediction


@dataclass(frozen=True)
class Region:
    """One uncertain place.

    Attributes
    ----------
    at
        Voxel (z, y, x) of its peak.
    index
        Class that the teacher gives to this voxel.
    volume_ml
        Volume that is about as uncertain.
    mean
        Mean uncertainty: KL divergence in nats, or 1 - confidence before there is a student.
    """

    at: tuple[int, int, int]
    index: int
    volume_ml: float
    mean: float


def uncertain_regions(
    prediction: Prediction,
    spacing_mm: Sequence[float],
    count: int = 30,
    fraction: float = 0.005,
    sigma_mm: float = 1.5,
) -> list[Region]:
    """The connected regions whose uncertainty sums to most, worst first.

    Parameters
    ----------
    prediction
        Of one case; its uncertainty or, without one, 1 - confidence is looked at.
    spacing_mm
        Voxel size (z, y, x).
    count
        At most so many.
    fraction
        Part of the volume that counts as uncertain.
    sigma_mm
        Standard deviation of the Gaussian that joins speckles to regions.
    """
    doubt = (
        1 - prediction.confidence.astype(np.float32)
        if prediction.uncertainty is None
        else prediction.uncertainty.astype(np.float32)
    )
    smoothed = ndimage.gaussian_filter(doubt, [sigma_mm / size for size in spacing_mm])
    threshold = max(float(np.quantile(smoothed, 1 - fraction)), float(np.finfo(np.float16).eps))
    parts, found = ndimage.label(smoothed > threshold)
    if not found:
        return []
    numbers = np.arange(1, found + 1)
    sums = ndimage.sum_labels(doubt, parts, numbers)
    worst = numbers[np.argsort(-sums, kind="stable")[:count]]
    peaks = ndimage.maximum_position(smoothed, parts, worst)
    sizes = np.bincount(parts.ravel())
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    regions = []
    for number, (z, y, x) in zip(worst, peaks, strict=True):
        size = int(sizes[number])
        regions.append(
            Region(
                (int(z), int(y), int(x)),
                int(prediction.label[z, y, x]),
                size * voxel_ml,
                float(sums[number - 1]) / size,
            )
        )
    return regions
