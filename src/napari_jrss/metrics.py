"""Measures of quality: overlap, surface distance, regularity of a displacement field.

Labels are arrays of class indices (z, y, x). The background, class 0, is not measured: results
have one entry for each foreground class, class 1 first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.measure import marching_cubes, mesh_surface_area

from napari_jrss.labels import IGNORED

FloatArray = NDArray[np.float64]
Labels = NDArray[np.integer]
Displacement = NDArray[np.floating]


def dice_per_class(
    prediction: Labels,
    truth: Labels,
    classes: int,
    undefined: Literal["absent_in_both", "absent_in_either"] = "absent_in_both",
) -> FloatArray:
    """Dice similarity coefficient of each foreground class of two labels, (classes - 1,).

    `undefined` says when the Dice of a class is NaN, so that ``nanmean`` ignores it.
    ``absent_in_both`` is for segmentation: a class in only one label has Dice 0.
    ``absent_in_either`` is for registration, in which no warp can make or remove a class (the
    rule of Learn2Reg). Voxels that are IGNORED in a label don't count. Labels of different
    shapes or with other values are a ValueError.
    """
    prediction, truth = _compared(prediction, truth, classes)
    pairs = truth.ravel().astype(np.intp) * classes + prediction.ravel()
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    in_truth, in_prediction = counts.sum(1)[1:], counts.sum(0)[1:]
    both = undefined == "absent_in_both"
    present = (in_truth + in_prediction if both else in_truth * in_prediction) > 0
    dice = np.full(classes - 1, np.nan)
    np.divide(2 * counts.diagonal()[1:], in_truth + in_prediction, out=dice, where=present)
    return dice


def calibration_error(
    prediction: Labels, confidence: NDArray[np.floating], truth: Labels, bins: int = 15
) -> float:
    """Expected calibration error: how far the confidence is from how often it is right.

    Voxels are sorted into `bins` of equal width by their confidence; the result is the mean over
    the bins of the difference between mean confidence and accuracy, weighted by their voxels (Guo
    et al. 2017). Only voxels count in which the prediction or the truth has a structure, since the
    background of a scan would hide everything else; where neither has one, it is NaN. The three
    arrays have one shape, (z, y, x); voxels that are IGNORED in the truth don't count.
    """
    counted = ((prediction > 0) | (truth > 0)) & (truth != IGNORED)
    sure = confidence[counted].astype(np.float64)
    if not sure.size:
        return float("nan")
    right = (prediction[counted] == truth[counted]).astype(np.float64)
    places = np.minimum((sure * bins).astype(np.intp), bins - 1)
    gaps = np.bincount(places, sure - right, bins)
    return float(np.abs(gaps).sum() / sure.size)


def hd95_mm(
    prediction: Labels, truth: Labels, classes: int, spacing_mm: Sequence[float]
) -> FloatArray:
    """95th percentile of the symmetric surface distance of each foreground class, in mm.

    The definition is that of ``compute_robust_hausdorff`` in DeepMind's *surface-distance*:
    surface elements lie between voxels, distances are weighted by the elements' areas, and the
    larger of the two directed percentiles counts. The result is (classes - 1,), NaN for a class
    that is absent in either label. Voxels that are IGNORED in a label don't count. Labels of
    different shapes or with other values are a ValueError.
    """
    prediction, truth = _compared(prediction, truth, classes)
    spacing = tuple(float(size) for size in spacing_mm)
    result = np.full(classes - 1, np.nan)
    boxes = zip(
        find_objects(prediction, classes - 1), find_objects(truth, classes - 1), strict=True
    )
    for index, (box_a, box_b) in enumerate(boxes):
        if box_a is None or box_b is None:
            continue
        box = tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop))
            for a, b in zip(box_a, box_b, strict=True)
        )
        one, other = (_surface_codes(labels[box] == index + 1) for labels in (prediction, truth))
        pairs = ((one, other), (other, one))
        result[index] = max(_directed_hd95(*pair, spacing) for pair in pairs)
    return result


@dataclass(frozen=True)
class JacobianStatistics:
    """Regularity of a displacement field, from the determinant J of its Jacobian."""

    std: float
    """Standard deviation of J over all voxels, std(Jac) of the paper, by central differences."""
    sdlogj_plus3: float
    """Standard deviation of ``log(clip(J + 3, 1e-9, 1e9))`` without the outer 2 voxels, which is
    SDlogJ in the evaluation of Learn2Reg. It differs from std(log J)."""
    folded_percent: float
    """Voxels with J <= 0 by central differences, in %."""
    folded_percent_forward: float
    """The same by forward differences, which also detect folds that alternate."""


def jacobian_statistics(displacement: Displacement) -> JacobianStatistics:
    """Statistics of det(I + grad u) for a displacement field (3, z, y, x) in voxels.

    Components are z, y, x. Less than 5 voxels along an axis are a ValueError.
    """
    if displacement.ndim != 4 or len(displacement) != 3 or min(displacement.shape[1:]) < 5:
        raise ValueError(f"not a displacement field of at least 5x5x5: {displacement.shape}")
    central = jacobian_map(displacement)
    forward = _forward_map(displacement)
    inner = central[2:-2, 2:-2, 2:-2].astype(np.float64)
    return JacobianStatistics(
        std=float(central.std(dtype=np.float64)),
        sdlogj_plus3=float(np.log(np.clip(inner + 3, 1e-9, 1e9)).std()),
        folded_percent=float(100 * np.mean(central <= 0)),
        folded_percent_forward=float(100 * np.mean(forward <= 0)),
    )


def jacobian_map(displacement: Displacement) -> Displacement:
    """det(I + grad u) of each voxel, by central differences (one-sided at the border).

    1: the volume is kept. Above 1: the moving image is shrunk there, since a voxel of the fixed
    image covers more of it. 0 or less: the field folds. The displacement is (3, z, y, x) in
    voxels, components z, y, x, with at least 2 voxels along each axis.
    """
    return _determinant([np.gradient(component) for component in displacement])


def folds(displacement: Displacement) -> NDArray[np.bool_]:
    """Where a field folds: a determinant of 0 or less, by central or by forward differences.

    Parameters
    ----------
    displacement
        (3, z, y, x) in voxels; at least 2 voxels along each axis.

    Returns
    -------
    NDArray[np.bool_]
        (z, y, x).
    """
    folded = jacobian_map(displacement) <= 0
    folded[:-1, :-1, :-1] |= _forward_map(displacement) <= 0
    return folded


def folded_in_structures(
    folded: NDArray[np.bool_], label: Labels, classes: int
) -> list[float | None]:
    """How much of each structure of a warped label (z, y, x) is folded, in %.

    `folded` is where the field folds. The result has classes - 1 values, None for a structure
    that isn't there.
    """
    voxels = np.bincount(label.ravel(), minlength=classes)[1:classes]
    inside = np.bincount(label[folded], minlength=classes)[1:classes]
    pairs = zip(inside, voxels, strict=True)
    return [100 * float(part) / float(size) if size else None for part, size in pairs]


def _compared(prediction: Labels, truth: Labels, classes: int) -> tuple[Labels, Labels]:
    """Both labels, with background in both where a voxel of either is ignored."""
    if prediction.shape != truth.shape:
        raise ValueError(f"label shapes differ: {prediction.shape} and {truth.shape}")
    ignored = (prediction == IGNORED) | (truth == IGNORED)
    if ignored.any():
        prediction, truth = (np.where(ignored, 0, each) for each in (prediction, truth))
    for labels in (prediction, truth):
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"labels must lie in 0..{classes - 1}, not up to {labels.max()}")
    return prediction, truth


def _surface_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """For each voxel corner, a byte whose bits are the 8 voxels around it; (z+1, y+1, x+1)."""
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([size + 1 for size in mask.shape], np.uint8)
    for bit, corner in enumerate(np.ndindex(2, 2, 2)):
        window = tuple(
            slice(start, start + size) for start, size in zip(corner, codes.shape, strict=True)
        )
        codes |= padded[window] << bit
    return codes


@cache
def _surface_areas(spacing: tuple[float, ...]) -> FloatArray:
    """Area in mm^2 of the surface within 2x2x2 voxels, by their code.

    It is the smaller of the areas that marching cubes gives for the voxels and their complement.
    """
    areas = np.zeros(256)
    for code in range(1, 255):
        cube = np.array([code >> bit & 1 for bit in range(8)], np.float32).reshape(2, 2, 2)
        vertices, faces, *_ = marching_cubes(cube, 0.5, spacing=spacing, method="lorensen")
        areas[code] = mesh_surface_area(vertices, faces)
    return np.minimum(areas, areas[::-1])


def _directed_hd95(
    codes: NDArray[np.uint8], other: NDArray[np.uint8], spacing: tuple[float, ...]
) -> float:
    surface = (codes > 0) & (codes < 255)
    to_other = distance_transform_edt((other == 0) | (other == 255), sampling=spacing)
    distances, areas = to_other[surface], _surface_areas(spacing)[codes[surface]]
    order = np.argsort(distances)
    covered = np.cumsum(areas[order]) / areas.sum()
    rank = min(int(np.searchsorted(covered, 0.95)), len(order) - 1)
    return float(distances[order[rank]])


def _determinant(gradients: Sequence[Sequence[Displacement]]) -> Displacement:
    """det(I + gradients[component][axis]) per voxel."""
    (zz, zy, zx), (yz, yy, yx), (xz, xy, xx) = gradients
    zz, yy, xx = zz + 1, yy + 1, xx + 1
    return zz * (yy * xx - yx * xy) - zy * (yz * xx - yx * xz) + zx * (yz * xy - yy * xz)


def _forward_map(displacement: Displacement) -> Displacement:
    """det(I + grad u) by forward differences, without the last voxel of each axis."""
    return _determinant(
        [
            [np.diff(component, axis=axis)[_without_last(axis)] for axis in range(3)]
            for component in displacement
        ]
    )


def _without_last(differenced: int) -> tuple[slice, ...]:
    """Index that cuts the last voxel of the two axes that were not differenced."""
    return tuple(slice(None) if axis == differenced else slice(-1) for axis in range(3))
