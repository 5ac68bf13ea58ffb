"""Choose the training grid: what the settings leave open is computed from the cohort."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_jrss.config import Prealign, PreprocessingConfig
from napari_jrss.errors import ScanError, did_you_mean
from napari_jrss.geometry import (
    Box,
    Matrix,
    Shape,
    Triple,
    map_points,
    rows,
    spacing_mm,
    to_upright_lps,
    whole_box,
)
from napari_jrss.io.label_files import read_classes
from napari_jrss.io.layouts import FoundCase, Scan
from napari_jrss.io.nifti import write_nifti
from napari_jrss.io.read import read_header, read_volume
from napari_jrss.labels import IGNORED, LabelTable
from napari_jrss.pool import Workers, in_processes
from napari_jrss.preprocess.padding import without_padding
from napari_jrss.preprocess.pipeline import foreground_box, grid_on_box
from napari_jrss.preprocess.prealign import align
from napari_jrss.preprocess.transform import TrainingGrid

# Networks halve the grid three times.
_MULTIPLE = 8
# A rounding error of the spacing in a header must not enlarge the grid by a voxel.
_SLACK_VOXELS = 0.05
# A scan is worth a word if the grid without it had less than this share of the voxels.
_MUCH_SMALLER = 0.7
# More voxels than any network of this package can train on.
_MOST_VOXELS = 2**30


def training_grid(
    cases: Sequence[FoundCase],
    config: PreprocessingConfig,
    table: LabelTable | None = None,
    workers: Workers = None,
    keep_reference: Path | None = None,
) -> TrainingGrid:
    """Choose the grid on which all cases of a project will lie.

    Scans that can't be read are ignored here; ingesting them reports why. Raises a
    :class:`ScanError` if the reference case is unknown, no scan can be read, the crop is
    ``labelled`` and no label can be read, or the grid would be too large.

    Parameters
    ----------
    config
        Preprocessing. If it gives no spacing, that of the reference case is used. If it gives
        no shape, the smallest multiple of 8 along each axis that holds the largest scan (or
        foreground, or the extent of all labels), turned to LPS.
    table
        The classes; needed to tell labels from background if the crop is ``labelled``.
    workers
        Processes that read the scans, if the crop is ``foreground`` or ``labelled``.
    keep_reference
        File (.nii.gz) to which the reference scan is copied if scans are aligned to it, so
        that later scans can be aligned as well. None: the grid refers to the scan's own file.
    """
    reference = _reference(cases, config)
    shape, affine = _turned(reference.image)
    spacing = config.spacing_mm or spacing_mm(affine)
    if config.crop == "labelled":
        one = partial(_label_box, prealign=config.prealign, table=table, reference=reference.image)
        labelled = [case for case in cases if case.label]
        box = _union(r for _, r in in_processes(one, labelled, workers))
        extents = [_size_mm(box, spacing_mm(affine))]
    elif config.crop == "foreground":
        box = foreground_box(read_volume(reference.image))
        images = [c.image for c in cases] if config.shape is None else []
        found = in_processes(_foreground_mm, images, workers)
        extents = [r for _, r in found if not isinstance(r, Exception)]
    else:
        box = whole_box(shape)
        extents = _scan_sizes_mm(cases) if config.shape is None else []
    wanted = config.shape or _shape(extents, spacing)
    if math.prod(wanted) > _MOST_VOXELS:
        raise ScanError(_too_large(cases, wanted))
    if config.resize:
        x, y, z = _size_mm(box, spacing_mm(affine)) / np.array(wanted[::-1])
        spacing = (float(z), float(y), float(x))
    if config.prealign == "none" and config.crop != "labelled":
        return TrainingGrid(shape=wanted, spacing_mm=spacing)
    aligned = config.prealign != "none"
    return TrainingGrid(
        shape=wanted,
        spacing_mm=spacing,
        affine=rows(affine @ grid_on_box(box, spacing_mm(affine), wanted, spacing)),
        reference=_kept(reference.image, keep_reference) if aligned else None,
    )


def _kept(reference: Scan, copy: Path | None) -> Path:
    """The file to which later scans are aligned."""
    if copy is not None:
        volume = without_padding(read_volume(reference))
        return write_nifti(copy, volume.array, volume)
    if not isinstance(reference, Path):
        raise ScanError(f"{reference.name}: aligning scans to a DICOM series needs a copy of it")
    return reference


def _reference(cases: Sequence[FoundCase], config: PreprocessingConfig) -> FoundCase:
    if config.reference_case is not None:
        for case in cases:
            if case.case_id == config.reference_case:
                return case
        hint = did_you_mean(config.reference_case, (case.case_id for case in cases))
        raise ScanError(f"there is no case {config.reference_case!r}, the reference case{hint}")
    first: ScanError | None = None
    for case in sorted(cases, key=lambda case: case.label is None):
        try:
            read_volume(case.image)
        except ScanError as error:
            first = first or error
            continue
        return case
    raise ScanError("no scan can be read" + (f" ({first})" if first else ""))


def _turned(image: Scan) -> tuple[Shape, Matrix]:
    """Shape (z, y, x) and affine of a scan turned upright to LPS; reads only its header."""
    header = read_header(image)
    turn, shape = to_upright_lps(header.affine, header.shape[::-1])
    return shape, header.affine @ turn


def _scan_sizes_mm(cases: Sequence[FoundCase]) -> list[NDArray[np.float64]]:
    """Extents (x, y, z) in mm of the scans that can be read."""
    sizes = []
    for case in cases:
        with suppress(ScanError):
            shape, affine = _turned(case.image)
            sizes.append(_size_mm(whole_box(shape), spacing_mm(affine)))
    return sizes


def _too_large(cases: Sequence[FoundCase], wanted: Shape) -> str:
    """Message that no grid holds all scans; names the largest, whose header may be wrong."""
    sizes = [max((float(s.max()) for s in _scan_sizes_mm([case])), default=0.0) for case in cases]
    largest = int(np.argmax(sizes))
    image = cases[largest].image
    z, y, x = wanted
    return (
        f"{image if isinstance(image, Path) else image.name}: is {sizes[largest]:.4g} mm long, so "
        f"that a training grid of {z} x {y} x {x} voxels would be needed to hold all scans: "
        "leave the scan out, or set a grid shape"
    )


def widest_scan(cases: Sequence[FoundCase], grid: TrainingGrid) -> list[str]:
    """A line about the scan that enlarges a grid for all, if without it the grid were much smaller.

    Parameters
    ----------
    cases
        The cohort.
    grid
        Its training grid, which holds the largest scan.
    """
    names, sizes = [], []
    for case in cases:
        with suppress(ScanError):
            sizes += _scan_sizes_mm([case])
            names.append(case.case_id)
    if len(sizes) < 3:
        return []
    lines = []
    all_mm = np.max(sizes, axis=0)
    for index, name in enumerate(names):
        others = np.max(sizes[:index] + sizes[index + 1 :], axis=0)
        share = float(np.prod(others) / np.prod(all_mm))
        if share < _MUCH_SMALLER:
            here, there = (
                " x ".join(f"{n:.0f}" for n in mm[::-1]) for mm in (sizes[index], others)
            )
            lines.append(
                f"{name} is {here} mm (z y x), the others at most {there}: without it the grid of "
                f"all cases had {100 * share:.0f} % of the voxels; a --shape or --crop would do too"
            )
    return lines


def _foreground_mm(image: Scan) -> NDArray[np.float64]:
    volume = read_volume(image)
    turn, _ = to_upright_lps(volume.affine, volume.shape)
    return _size_mm(foreground_box(volume), spacing_mm(volume.affine @ turn))


def _label_box(
    case: FoundCase, *, prealign: Prealign, table: LabelTable | None, reference: Scan
) -> Box:
    """First and last voxel (x, y, z) of a label, in voxels of the reference turned to LPS."""
    assert case.label is not None
    label = read_classes(case.label, table, image=case.image)
    _, affine = _turned(reference)
    moved = align(read_volume(case.image), reference, prealign) @ affine
    points = np.argwhere(label.array if table is None else label.array % IGNORED)[:, ::-1]
    if not len(points):
        raise ScanError(f"{label.source}: label is empty")
    placed = map_points(np.linalg.inv(moved) @ label.affine, points)
    return np.array([placed.min(0), placed.max(0)])


def _union(boxes: Iterable[Box | Exception]) -> Box:
    readable = [box for box in boxes if not isinstance(box, Exception)]
    if not readable:
        raise ScanError("the crop is set by the labels, but no label can be read")
    return np.array([np.min(readable, axis=0)[0], np.max(readable, axis=0)[1]])


def _size_mm(box: Box, spacing: Triple) -> NDArray[np.float64]:
    """Extent (x, y, z) in mm of a box given by its first and last voxel."""
    return np.asarray((box[1] - box[0] + 1) * np.array(spacing[::-1]))


def _shape(extents: Sequence[NDArray[np.float64]], spacing: Triple) -> Shape:
    if not extents:
        raise ScanError("no scan can be read")
    voxels = np.max(extents, axis=0) / np.array(spacing[::-1]) - _SLACK_VOXELS
    x, y, z = (int(n) * _MULTIPLE for n in np.ceil(voxels / _MULTIPLE))
    return z, y, x
