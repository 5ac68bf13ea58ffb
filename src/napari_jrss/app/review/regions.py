"""Regions of a case where the teacher is least certain, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.io.predictions import Prediction


@dataclass(frozen=True)
class Region:
    """One uncertain region."""

    at: tuple[int, int, int]  # voxel (z, y, x) where the uncertainty peaks
    index: int  # class that the teacher predicts at this voxel
    volume_ml: float  # volume of the uncertain voxels around the peak, in millilitres
    # Mean uncertainty: KL divergence in nats, or 1 - confidence before there is a student.
    mean: float
    # The box around the peak, and which of its voxels (z, y, x) are uncertain.
    box: tuple[slice, ...] = ()
    uncertain: NDArray[np.bool_] | None = field(default=None, compare=False)


def uncertain_regions(
    prediction: Prediction,
    spacing_mm: Sequence[float],
    count: int = 30,
    fraction: float = 0.005,
    sigma_mm: float = 1.5,
    apart_mm: float = 10.0,
) -> list[Region]:
    """Find the regions with the most uncertainty (volume times mean), worst first.

    Parameters
    ----------
    prediction
        Prediction of one case. Its uncertainty counts or, without one, 1 - confidence.
    spacing_mm
        Voxel size (z, y, x) in mm.
    count, fraction
        Largest number of regions, and fraction of the voxels that count as uncertain.
    sigma_mm
        Standard deviation of the Gaussian in mm that joins scattered voxels.
    apart_mm
        Edge of a region's box in mm, and least distance of two regions.
    """
    doubt = (
        1 - prediction.confidence.astype(np.float32)
        if prediction.uncertainty is None
        else prediction.uncertainty.astype(np.float32)
    )
    smoothed = ndimage.gaussian_filter(doubt, [sigma_mm / size for size in spacing_mm])
    window = [2 * int(np.ceil(apart_mm / 2 / size)) + 1 for size in spacing_mm]
    threshold = max(float(np.quantile(smoothed, 1 - fraction)), float(np.finfo(np.float16).eps))
    peaks = (smoothed == ndimage.maximum_filter(smoothed, window)) & (smoothed > threshold)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    regions = []
    for at in _apart(np.argwhere(peaks), smoothed[peaks], window):
        around = tuple(
            slice(max(int(i) - n // 2, 0), int(i) + n // 2 + 1)
            for i, n in zip(at, window, strict=True)
        )
        uncertain = smoothed[around] > threshold
        z, y, x = (int(i) for i in at)
        regions.append(
            Region(
                (z, y, x),
                int(prediction.label[z, y, x]),
                int(np.count_nonzero(uncertain)) * voxel_ml,
                float(doubt[around][uncertain].mean()),
                around,
                uncertain,
            )
        )
    regions.sort(key=lambda region: -region.volume_ml * region.mean)
    return regions[:count]


def _apart(
    places: NDArray[np.intp], values: NDArray[np.float32], window: Sequence[int]
) -> list[NDArray[np.intp]]:
    """Keep the largest of the peaks that lie in one box, such as those of a plateau."""
    kept: list[NDArray[np.intp]] = []
    half = np.array(window) // 2
    for place in places[np.argsort(-values, kind="stable")]:
        if not kept or not (np.abs(np.stack(kept) - place) <= half).all(1).any():
            kept.append(place)
    return kept
