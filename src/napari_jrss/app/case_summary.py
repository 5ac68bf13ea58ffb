"""Summary of a case for a table: what it looks like, and figures of the teacher's prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project
from napari_jrss.project.records import Case, Round, Split
from napari_jrss.snapshot import Image
from napari_jrss.training.screening import confidence_by_class

THUMBNAIL_PIXELS = 48
"""Longer side of a thumbnail."""

_BLOCKS = 8


@dataclass(frozen=True, eq=False)
class Appearance:
    """What a case looks like."""

    # Grey levels uint8 (y, x) of the middle axial slice: anterior up, the patient's left on the
    # right.
    thumbnail: NDArray[np.uint8]
    # float32 (512,), the image in 8 x 8 x 8 blocks, of mean 0 and length 1: the product of two
    # vectors is their correlation.
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class PredictionFigures:
    """Figures of the teacher's prediction of a case."""

    # Mean confidence over the voxels predicted as structures, 0 to 1; NaN if there are none.
    confidence: float
    # The same for each structure, class 1 first; NaN for a structure that isn't found.
    class_confidence: tuple[float, ...]
    # Mean KL divergence of teacher and student over the structures' voxels, in nats; None before
    # there is a student.
    uncertainty: float | None
    # Mean Dice with a label that the teacher wasn't trained on; None without one.
    dice: float | None


def appearance_of(project: Project, case_id: str) -> Appearance:
    """Read a case's image and sum it up as a thumbnail and a vector."""
    image = project.image(case_id)
    spacing = project.grid.spacing_mm
    return Appearance(thumbnail(image[image.shape[0] // 2], spacing[1:]), block_vector(image))


def prediction_figures(
    project: Project, case: Case, teacher: Round, *, measure: bool = True
) -> PredictionFigures | None:
    """Figures of a round's prediction of a case; None if the round didn't predict it.

    `measure` says whether to read the label that gives the Dice, if there is one.
    """
    prediction = teacher.files.prediction(case.case_id, on_scan=False)
    if prediction is None:
        return None
    classes = len(project.table.classes)
    counts, sums = (each[1:classes] for each in confidence_by_class(prediction, classes))
    of_class = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    found = int(counts.sum())
    uncertainty = None
    if prediction.uncertainty is not None and found:
        inside = prediction.uncertainty[prediction.label > 0]
        uncertainty = float(inside.mean(dtype=np.float64))
    dice = None
    version = ground_truth(case) if measure else None
    if version is not None:
        truth = project.label(case.case_id, version)
        scores = dice_per_class(prediction.label, truth, classes)
        dice = float(np.nanmean(scores)) if np.isfinite(scores).any() else None
    return PredictionFigures(
        confidence=float(sums.sum() / found) if found else float("nan"),
        class_confidence=tuple(float(value) for value in of_class),
        uncertainty=uncertainty,
        dice=dice,
    )


def ground_truth(case: Case) -> str | None:
    """The label version that a teacher can be measured by: one that it wasn't trained on."""
    if case.reference_version is not None:
        return case.reference_version
    return None if case.split is Split.TRAIN else case.label_version


def thumbnail(plane: NDArray[np.floating], spacing: tuple[float, float]) -> NDArray[np.uint8]:
    """An axial slice (y, x) as grey levels, at most 48 pixels long; `spacing` (y, x) in mm."""
    size_mm = np.array(plane.shape) * spacing
    height, width = np.maximum(np.rint(size_mm * THUMBNAIL_PIXELS / size_mm.max()), 1)
    zoom = (height / plane.shape[0], width / plane.shape[1])
    # Smoothed where it gets smaller, so that thin structures stay visible.
    sigma = [max(0.0, (1 / z - 1) / 2) for z in zoom]
    small = ndimage.zoom(ndimage.gaussian_filter(plane.astype(np.float32), sigma), zoom, order=1)
    low, high = np.percentile(small, (1, 99.5))
    scaled = (small - low) / max(float(high - low), 1e-6)
    return np.asarray(np.clip(scaled * 255, 0, 255).astype(np.uint8))


def block_vector(image: Image) -> NDArray[np.float32]:
    """An image (z, y, x) in 8 x 8 x 8 blocks as a vector of mean 0 and length 1."""
    coarse: NDArray[np.floating] = image
    for axis, size in enumerate(image.shape):
        edges = np.linspace(0, size, _BLOCKS + 1).astype(int)[:-1]
        lengths = np.diff([*edges, size])
        shape = [1, 1, 1]
        shape[axis] = _BLOCKS
        coarse = np.add.reduceat(coarse, edges, axis) / lengths.reshape(shape)
    vector = coarse.ravel() - coarse.mean()
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-6), np.float32)
