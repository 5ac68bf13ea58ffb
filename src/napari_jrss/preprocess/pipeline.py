"""Bring a scan to the training grid that all cases of a project share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError
from napari_jrss.geometry import (
    Box,
    Matrix,
    Shape,
    Triple,
    corners,
    is_exact,
    map_points,
    move_voxels,
    rows,
    spacing_mm,
    to_upright_lps,
    whole_box,
)
from napari_jrss.io.volume import Volume
from napari_jrss.labels import IGNORED
from napari_jrss.preprocess.padding import without_padding
from napari_jrss.preprocess.prealign import align, foreground
from napari_jrss.preprocess.resample import inside, resample_image, resample_label
from napari_jrss.preprocess.transform import GridTransform, Intensity, TrainingGrid

# Headers keep 32-bit numbers: two grids count as equal if their voxels are nowhere further
# apart than this.
_DRIFT_VOXELS = 0.05
# What further images of a case are clipped to where the first is clipped to given values, as a CT.
OTHER_PERCENTILES = (0.5, 99.5)


class LabelError(ScanError):
    """A label doesn't fit its scan, which can be used without it."""


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """A case on the training grid.

    Attributes
    ----------
    image
        float32 (z, y, x), mean 0 and standard deviation 1 over the voxels that the scan covers,
        without its padding; or from -2 to 2 between two given intensities.
    label
        Class indices (z, y, x), if the case has a label.
    transform
        How the scan reached the grid, and the way back.
    scan_label
        The label on the scan's own voxels (z, y, x), turned to LPS.
    label_kept
        Fraction of the label's foreground voxels that the training grid covers.
    covered
        Fraction of the case's first image, on the training grid, that this one covers.
    """

    image: NDArray[np.float32]
    label: NDArray[Any] | None
    transform: GridTransform
    scan_label: NDArray[Any] | None = None
    label_kept: float | None = None
    covered: float = 1.0


def preprocess(
    image: Volume, label: Volume | None, config: PreprocessingConfig, grid: TrainingGrid
) -> Preprocessed:
    """Bring a case to the training grid.

    The label holds class indices on the voxels of the image, whose axes may be stored in another
    order or direction. Raises a :class:`LabelError` if image and label disagree, or the label is
    empty or lies outside the training grid, a :class:`ScanError` if the image is constant or lies
    outside it.
    """
    name = image.source or "image"
    image = without_padding(image)
    if label is not None:
        label = on_grid_of(image, label)
        if not (label.array % IGNORED).any():
            raise LabelError(f"{label.source or 'label'}: label is empty")
    matrix = _grid_to_source(image, config, grid)
    if not inside(matrix, grid.shape, image.shape).any():
        raise ScanError(f"{name}: lies outside the training grid")
    values, transform = _brought(image, matrix, grid.shape, config)
    if label is None:
        return Preprocessed(values, None, transform)
    classes = resample_label(label.array, matrix, grid.shape)
    if not (classes % IGNORED).any():
        raise LabelError(f"{label.source or 'label'}: label lies outside the training grid")
    return Preprocessed(
        values,
        classes,
        transform,
        transform.turn_to_scan(label.array),
        _kept(label.array, matrix, grid.shape),
    )


def preprocess_channel(
    image: Volume, reference: GridTransform, config: PreprocessingConfig
) -> Preprocessed:
    """Bring a further image of a case to the training grid, by its place in the world.

    It is scaled by itself: a window of given intensities is that of the first image alone, and
    here the percentiles 0.5 and 99.5 take its place.

    Parameters
    ----------
    image
        On its own voxels, which may be others than those of the first image.
    reference
        How the first image of the case reached the training grid; its pre-alignment counts here,
        too.

    Raises
    ------
    ScanError
        The image is constant, or has no voxel in common with the first one.
    """
    image = without_padding(image)
    matrix = np.linalg.inv(image.affine) @ reference.grid_affine
    matrix = _snap(matrix, reference.shape, any_shift=False)
    there = inside(reference.matrix, reference.shape, reference.source_shape)
    covered = float(inside(matrix, reference.shape, image.shape)[there].mean())
    if covered == 0:
        raise ScanError(
            f"{image.source or 'image'}: lies beside the first image of its case: they have no "
            "place in common"
        )
    if config.clip_values is not None:
        own = {"clip_values": None, "clip_percentiles": OTHER_PERCENTILES}
        config = config.model_copy(update=own)
    values, transform = _brought(image, matrix, reference.shape, config)
    return Preprocessed(values, None, transform, covered=covered)


def _brought(
    image: Volume, matrix: Matrix, shape: Shape, config: PreprocessingConfig
) -> tuple[NDArray[np.float32], GridTransform]:
    """An image on the training grid, scaled, and how it came there."""
    name = image.source or "image"
    covered = inside(matrix, shape, image.shape)
    # Where the grid reaches beyond the scan, it is filled with the scan's border value.
    faces = [image.array.take(i, axis).ravel() for axis in range(3) for i in (0, -1)]
    border = float(np.median(np.concatenate(faces)))
    values = resample_image(image.array, matrix, shape, border)
    scan = covered
    if image.padding is not None:
        scan = covered & (resample_image(image.padding, matrix, shape) < 0.5)
    intensity = _intensity(values[scan], config)
    if intensity is None:
        raise ScanError(f"{name}: image is constant")
    values = np.clip(values, intensity.low, intensity.high)
    values = ((values - intensity.mean) / intensity.std).astype(np.float32)
    transform = GridTransform(
        source_shape=image.shape,
        source_affine=rows(image.affine),
        header=image.header,
        shape=shape,
        grid_to_source=rows(matrix),
        intensity=intensity,
    )
    return values, transform


def on_grid_of(image: Volume, label: Volume) -> Volume:
    """The label with the axes of the image, on whose voxels it lies; nothing is interpolated.

    Raises a :class:`LabelError` if they don't have the same voxels.
    """
    name = label.source or "label"
    turn = np.rint(np.linalg.inv(label.affine) @ image.affine)
    ends = map_points(turn, corners(whole_box(image.shape)))
    box = np.array([ends.min(0), ends.max(0)])
    turned = is_exact(turn) and np.array_equal(box, whole_box(label.shape))
    if not turned and image.shape != label.shape:
        raise LabelError(f"{name}: label of shape {label.shape}, image of {image.shape}")
    affine = label.affine @ turn if turned else label.affine
    apart = _apart(image.affine, affine, image.shape)
    if apart > 0.1 * min(image.spacing_mm):
        raise LabelError(f"{name}: label lies {apart:.3g} mm away from its image")
    if np.array_equal(turn, np.eye(4)):
        return label
    array = np.ascontiguousarray(move_voxels(label.array, turn, image.shape))
    return replace(label, array=array, affine=image.affine, header=image.header)


def grid_on_box(box: Box, spacing: Triple, shape: Shape, grid_spacing: Triple | None) -> Matrix:
    """Matrix from voxels (x, y, z, 1) of a grid to those of a scan turned to LPS.

    The grid (z, y, x) is centred on `box`, a part of the scan. `spacing` is the scan's voxel size
    (z, y, x) in mm, turned to LPS; `grid_spacing` the grid's, or None for the extent of the box.
    """
    first, last = box
    size = np.array(shape[::-1])
    if grid_spacing is None:
        step = (last - first + 1) / size
    else:
        step = np.array(grid_spacing[::-1]) / np.array(spacing[::-1])
    step = np.where(np.abs(step - 1) * size < _DRIFT_VOXELS, 1.0, step)
    start = (first + last) / 2 - step * (size - 1) / 2
    matrix = np.diag([*step, 1.0])
    # A whole shift needs no interpolation; the grid may then be half a voxel off centre.
    matrix[:3, 3] = np.where(step == 1, np.floor(start + 1e-6), start)
    return matrix


def foreground_box(image: Volume) -> Box:
    """First and last voxel (x, y, z) of the foreground in the scan turned upright to LPS."""
    image = without_padding(image)
    turn, _ = to_upright_lps(image.affine, image.shape)
    ((z, y, x),) = ndimage.find_objects(foreground(image).view(np.uint8))
    box = np.array([(x.start, y.start, z.start), (x.stop - 1, y.stop - 1, z.stop - 1)], float)
    placed = map_points(np.linalg.inv(turn), corners(box))
    placed = np.rint(placed) if is_exact(turn) else placed
    return np.array([placed.min(0), placed.max(0)])


def _grid_to_source(image: Volume, config: PreprocessingConfig, grid: TrainingGrid) -> Matrix:
    """Training-grid voxel -> the scan's own voxel; whole voxels if it nearly maps to them."""
    if grid.affine is not None:
        affine = np.array(grid.affine)
        moved = align(image, grid.reference, config.prealign) @ affine
        matrix = np.linalg.inv(image.affine) @ moved
        return _snap(matrix, grid.shape, any_shift=config.prealign == "center_of_mass")
    turn, shape = to_upright_lps(image.affine, image.shape)
    box = foreground_box(image) if config.crop == "foreground" else whole_box(shape)
    spacing = spacing_mm(image.affine @ turn)
    return turn @ grid_on_box(box, spacing, grid.shape, None if config.resize else grid.spacing_mm)


def _snap(matrix: Matrix, shape: Shape, any_shift: bool) -> Matrix:
    """The matrix rounded to whole voxels, if no voxel moves noticeably by that."""
    whole = np.rint(matrix)
    if not is_exact(whole):
        return matrix
    drift = np.abs(matrix - whole)
    turned = drift[:3, :3].max() * max(shape) < _DRIFT_VOXELS
    return whole if turned and (any_shift or drift[:3, 3].max() < _DRIFT_VOXELS) else matrix


def _intensity(values: NDArray[np.float32], config: PreprocessingConfig) -> Intensity | None:
    """The scale for the values of a scan, or None if they are constant."""
    low, high = float(values.min()), float(values.max())
    if config.clip_values is not None:
        if low == high:
            return None
        low, high = config.clip_values
        return Intensity(low=low, high=high, mean=(low + high) / 2, std=(high - low) / 4)
    if config.clip_percentiles is not None:
        low, high = map(float, np.percentile(values, config.clip_percentiles))
    kept = np.clip(values, low, high).astype(np.float64)
    mean, std = float(kept.mean()), float(kept.std())
    if std <= 1e-6 * max(abs(low), abs(high)):
        return None
    return Intensity(low=low, high=high, mean=mean, std=std)


def _kept(label: NDArray[Any], matrix: Matrix, shape: Shape) -> float:
    """Fraction of a label's foreground voxels that lie on the training grid."""
    placed = map_points(np.linalg.inv(matrix), np.argwhere(label % IGNORED)[:, ::-1])
    covered = (placed >= -0.5) & (placed <= np.array(shape[::-1]) - 0.5)
    return float(covered.all(1).mean())


def _apart(one: Matrix, other: Matrix, shape: Shape) -> float:
    """Largest distance in mm between where two affines put a corner of one array."""
    ends = corners(whole_box(shape))
    return float(np.linalg.norm(map_points(one, ends) - map_points(other, ends), axis=1).max())
