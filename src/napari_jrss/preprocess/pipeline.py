"""From a scan to the training grid that all cases of a project share, and exactly back.

Whatever happens to a scan's geometry (turning to LPS, pre-alignment, resampling, cropping) is
one affine map between two voxel grids, which the
:class:`~napari_jrss.preprocess.transform.GridTransform` keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError
from napari_jrss.geometry import Matrix, Shape, Triple, copies, rows, spacing_mm, to_upright_lps
from napari_jrss.io.volume import Volume
from napari_jrss.preprocess.prealign import align, foreground
from napari_jrss.preprocess.resample import inside, resample_image, resample_label
from napari_jrss.preprocess.transform import GridTransform, Intensity, TrainingGrid

# Two grids whose voxels drift apart by less than this over their whole extent count as one:
# headers keep 32-bit numbers.
_DRIFT_VOXELS = 0.05


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """A case on the training grid.

    Attributes
    ----------
    image
        float32 (z, y, x), mean 0 and standard deviation 1 over the voxels that the scan covers.
    label
        Class indices (z, y, x), if the case has a label.
    chain
        The way there and back.
    label_kept
        Fraction of the label's foreground voxels that the training grid covers.
    """

    image: NDArray[np.float32]
    label: NDArray[Any] | None
    chain: GridTransform
    label_kept: float | None = None


def preprocess(
    image: Volume, label: Volume | None, config: PreprocessingConfig, grid: TrainingGrid
) -> Preprocessed:
    """Bring a case to the training grid.

    Parameters
    ----------
    image
        As :func:`~napari_jrss.io.read.read_volume` gives it.
    label
        Class indices on the same grid, or none.
    config
        What is wanted.
    grid
        The project's training grid, from :func:`~napari_jrss.preprocess.grid.training_grid`.

    Raises
    ------
    ScanError
        Image and label disagree, the label is empty or lies outside the training grid, or the
        image is constant.
    """
    name = image.source or "image"
    if label is not None:
        require_same_grid(image, label)
        if not label.array.any():
            raise ScanError(f"{label.source or 'label'}: label is empty")
    matrix = _grid_to_source(image, config, grid)
    covered = inside(matrix, grid.shape, image.shape)
    if not covered.any():
        raise ScanError(f"{name}: lies outside the training grid")
    # Where the grid reaches beyond the scan, the scan goes on with what its border shows.
    border = float(np.median(np.concatenate([f.ravel() for f in _faces(image.array)])))
    values = resample_image(image.array, matrix, grid.shape, border)
    intensity = _intensity(values[covered], config)
    if intensity is None:
        raise ScanError(f"{name}: image is constant")
    values = np.clip(values, intensity.low, intensity.high)
    values = ((values - intensity.mean) / intensity.std).astype(np.float32)
    chain = GridTransform(
        source_shape=image.shape,
        source_affine=rows(image.affine),
        header=image.header,
        shape=grid.shape,
        grid_to_source=rows(matrix),
        intensity=intensity,
    )
    if label is None:
        return Preprocessed(values, None, chain)
    classes = resample_label(label.array, matrix, grid.shape)
    if not classes.any():
        raise ScanError(f"{label.source or 'label'}: label lies outside the training grid")
    return Preprocessed(values, classes, chain, _kept(label.array, matrix, grid.shape))


def require_same_grid(image: Volume, label: Volume) -> None:
    """Raise a ScanError unless image and label have one shape and lie in one place."""
    name = label.source or "label"
    if image.shape != label.shape:
        raise ScanError(f"{name}: label of shape {label.shape}, image of {image.shape}")
    apart = _apart(image.affine, label.affine, image.shape)
    if apart > 0.1 * min(image.spacing_mm):
        raise ScanError(f"{name}: label lies {apart:.3g} mm away from its image")


def place(
    box: NDArray[np.float64], spacing: Triple, shape: Shape, grid_spacing: Triple | None
) -> Matrix:
    """Matrix from voxels (x, y, z, 1) of a grid to those of a scan turned to LPS.

    Parameters
    ----------
    box
        First and last voxel (x, y, z) of the scan that the grid is centred on, 2x3.
    spacing
        Voxel size (z, y, x) in mm of the scan turned to LPS.
    shape
        The grid (z, y, x).
    grid_spacing
        Its voxel size (z, y, x) in mm; none: the grid spans the box, whatever that takes.
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
    # Half a voxel off centre is the price of not interpolating.
    matrix[:3, 3] = np.where(step == 1, np.floor(start + 1e-6), start)
    return matrix


def foreground_box(image: Volume) -> NDArray[np.float64]:
    """First and last voxel (x, y, z) of the foreground in the scan turned upright to LPS, 2x3."""
    turn, _ = to_upright_lps(image.affine, image.shape)
    back = np.linalg.inv(turn)
    ends = box_of(foreground(image))
    corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(-1, 3)
    placed = corners @ back[:3, :3].T + back[:3, 3]
    placed = np.rint(placed) if copies(turn) else placed
    return np.array([placed.min(0), placed.max(0)])


def box_of(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """First and last voxel (x, y, z) of a mask (z, y, x), 2x3."""
    first, last = [], []
    for axis in (2, 1, 0):
        held = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))
        first.append(held[0])
        last.append(held[-1])
    return np.array([first, last], dtype=np.float64)


def whole_box(shape: Shape) -> NDArray[np.float64]:
    """First and last voxel (x, y, z) of an array (z, y, x), 2x3."""
    return np.array([[0, 0, 0], shape[::-1]]) - [[0.0], [1.0]]


def _grid_to_source(image: Volume, config: PreprocessingConfig, grid: TrainingGrid) -> Matrix:
    """Training-grid voxel -> the scan's own voxel, snapped to whole voxels where it almost is."""
    if grid.affine is not None:
        affine = np.array(grid.affine)
        moved = align(image, grid.reference, config.prealign) @ affine
        matrix = np.linalg.inv(image.affine) @ moved
        return _snap(matrix, grid.shape, any_shift=config.prealign == "center_of_mass")
    turn, shape = to_upright_lps(image.affine, image.shape)
    box = foreground_box(image) if config.crop == "foreground" else whole_box(shape)
    spacing = spacing_mm(image.affine @ turn)
    return turn @ place(box, spacing, grid.shape, None if config.resize else grid.spacing_mm)


def _snap(matrix: Matrix, shape: Shape, any_shift: bool) -> Matrix:
    whole = np.rint(matrix)
    if not copies(whole):
        return matrix
    drift = np.abs(matrix - whole)
    turned = drift[:3, :3].max() * max(shape) < _DRIFT_VOXELS
    return whole if turned and (any_shift or drift[:3, 3].max() < _DRIFT_VOXELS) else matrix


def _intensity(values: NDArray[np.float32], config: PreprocessingConfig) -> Intensity | None:
    low, high = float(values.min()), float(values.max())
    if config.clip_percentiles is not None:
        low, high = map(float, np.percentile(values, config.clip_percentiles))
    kept = np.clip(values, low, high).astype(np.float64)
    mean, std = float(kept.mean()), float(kept.std())
    if std <= 1e-6 * max(abs(low), abs(high)):
        return None
    return Intensity(low=low, high=high, mean=mean, std=std)


def _faces(array: NDArray[Any]) -> Iterable[NDArray[Any]]:
    for axis in range(3):
        yield array.take(0, axis)
        yield array.take(-1, axis)


def _kept(label: NDArray[Any], matrix: Matrix, shape: Shape) -> float:
    points = np.argwhere(label)[:, ::-1]
    back = np.linalg.inv(matrix)
    placed = points @ back[:3, :3].T + back[:3, 3]
    held = (placed >= -0.5) & (placed <= np.array(shape[::-1]) - 0.5)
    return float(held.all(1).mean())


def _apart(one: Matrix, other: Matrix, shape: Shape) -> float:
    """How far two affines take a corner of one array apart, in mm."""
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape[::-1]), indexing="ij"), -1)
    difference = one - other
    return float(
        np.linalg.norm(
            corners.reshape(-1, 3) @ difference[:3, :3].T + difference[:3, 3], axis=1
        ).max()
    )
