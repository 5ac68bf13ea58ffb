"""The further images of the case under review, such as FLAIR beside T1, placed on its scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_jrss.app.review.open_case import OpenCase, intensity_range
from napari_jrss.geometry import Triple, linear_and_shift
from napari_jrss.preprocess.resample import resample_image
from napari_jrss.project.project import Project

# Steps between voxels that differ by less from those along the axes of the scan lie along them.
_UPRIGHT = 1e-3


@dataclass(frozen=True, eq=False)
class OtherImage:
    """A further image of a case (z, y, x) with its own intensities.

    Attributes
    ----------
    name
        Such as FLAIR.
    array
        On its own voxels; on those of the scan where its axes are others.
    spacing_mm, place_mm
        Size of its voxels (z, y, x), and where the first lies from the first voxel of the scan.
    limits, extremes
        Its intensities as they are shown, from black to white, and its least and largest.
    """

    name: str
    array: NDArray[Any]
    spacing_mm: Triple
    place_mm: Triple
    limits: tuple[float, float]
    extremes: tuple[float, float]


def other_image(project: Project, case: OpenCase, name: str) -> OtherImage:
    """Read a further image of a case under review.

    Raises
    ------
    ScanError
        It is gone or damaged.
    """
    number = project.channels.index(name)
    found = project.channel_scan(case.case_id, number)
    to_scan = np.linalg.inv(case.transform.scan_affine) @ found.transform.scan_affine
    linear, shift = linear_and_shift(to_scan)
    steps, array = linear.diagonal(), found.array
    if steps.min() <= 0 or not np.allclose(linear, np.diag(steps), rtol=0, atol=_UPRIGHT):
        shape = case.transform.scan_shape
        array = resample_image(array, np.asarray(np.linalg.inv(to_scan)), shape, float(array.min()))
        steps, shift = np.ones(3), np.zeros(3)
    (z, y, x), (at_z, at_y, at_x) = (np.array([steps, shift]) * case.spacing_mm).tolist()
    return OtherImage(name, array, (z, y, x), (at_z, at_y, at_x), *intensity_range(array))
