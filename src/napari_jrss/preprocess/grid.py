"""Choosing the training grid: what the configuration leaves open, the cohort decides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError
from napari_jrss.geometry import Matrix, Shape, Triple, rows, spacing_mm, to_upright_lps
from napari_jrss.io.label_files import read_classes
from napari_jrss.io.layouts import FoundCase, Scan
from napari_jrss.io.nifti import write_nifti
from napari_jrss.io.read import read_header, read_volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.pipeline import foreground_box, place, whole_box
from napari_jrss.preprocess.prealign import align
from napari_jrss.preprocess.transform import TrainingGrid
from napari_jrss.processes import in_processes

# Networks halve the grid three times.
_MULTIPLE = 8
# A scan whose spacing is off in the last digits of its header needs no further voxel.
_SLACK_VOXELS = 0.05
# No network of this package trains on more.
_MOST_VOXELS = 2**30

Box = NDArray[np.float64]


def training_grid(
    cases: Sequence[FoundCase],
    config: PreprocessingConfig,
    table: LabelTable | None = None,
    workers: int | None = None,
    keep_reference: Path | None = None,
) -> TrainingGrid:
    """The grid that all cases are brought to.

    Parameters
    ----------
    cases
        The cohort. A scan that can't be read doesn't count; ingesting it says why.
    config
        Preprocessing. Where it leaves the spacing open, it is the reference case's; the shape:
        the smallest multiple of 8 along each axis that holds the largest scan (or foreground,
        or the labels' common extent), turned to LPS.
    table
        The classes, where the crop goes by labels: what is background doesn't count.
    workers
        Processes, where extents need the voxels (crop by foreground or by labels).
    keep_reference
        File (.nii.gz) to write the reference scan to, if later scans are aligned to it: its
        own files may go away, and of a DICOM series no path is kept. None: the grid refers to
        the scan's own file.

    Raises
    ------
    ScanError
        The reference case is unknown or can't be read, no scan can be read, or the crop goes
        by labels and there are none.
    """
    reference = _reference(cases, config)
    shape, affine = _turned(reference.image)
    spacing = config.spacing_mm or spacing_mm(affine)
    if config.crop == "labelled":
        jobs = [_Labelled(c, c.label, config, table, reference.image) for c in cases if c.label]
        box = _union(r for _, r in in_processes(_label_box, jobs, workers))
        extents = [_size_mm(box, spacing_mm(affine))]
    elif config.crop == "foreground":
        box = foreground_box(read_volume(reference.image))
        extents = []
        if config.shape is None:
            found = in_processes(_foreground_mm, [c.image for c in cases], workers)
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
    kept = None
    if config.prealign != "none":
        kept = _kept(reference.image, keep_reference)
    return TrainingGrid(
        shape=wanted,
        spacing_mm=spacing,
        affine=rows(affine @ place(box, spacing_mm(affine), wanted, spacing)),
        reference=kept,
    )


def _kept(reference: Scan, copy: Path | None) -> Path:
    """The file that later scans are aligned to."""
    if copy is not None:
        volume = read_volume(reference)
        return write_nifti(copy, volume.array, volume)
    if not isinstance(reference, Path):
        raise ScanError(f"{reference.name}: to align scans to a DICOM series takes a copy")
    return reference


@dataclass(frozen=True)
class _Labelled:
    case: FoundCase
    label: Path
    config: PreprocessingConfig
    table: LabelTable | None
    reference: Scan


def _reference(cases: Sequence[FoundCase], config: PreprocessingConfig) -> FoundCase:
    if config.reference_case is not None:
        for case in cases:
            if case.case_id == config.reference_case:
                return case
        raise ScanError(f"there is no case {config.reference_case!r} to be the reference")
    first: ScanError | None = None
    for case in sorted(cases, key=lambda case: case.label is None):
        try:
            read_volume(case.image)
        except ScanError as error:
            first = first or error
            continue  # ingesting it says why; the next one serves as well
        return case
    raise ScanError("no scan can be read" + (f" ({first})" if first else ""))


def _turned(image: Scan) -> tuple[Shape, Matrix]:
    """Shape (z, y, x) and affine of a scan turned upright to LPS, from its header alone."""
    header = read_header(image)
    turn, shape = to_upright_lps(header.affine, header.shape[::-1])
    return shape, header.affine @ turn


def _scan_sizes_mm(cases: Sequence[FoundCase]) -> list[NDArray[np.float64]]:
    sizes = []
    for case in cases:
        try:
            shape, affine = _turned(case.image)
        except ScanError:
            continue  # ingesting it says why
        sizes.append(_size_mm(whole_box(shape), spacing_mm(affine)))
    return sizes


def _too_large(cases: Sequence[FoundCase], wanted: Shape) -> str:
    """Why no grid holds all scans, naming the largest: its voxel size may well be wrong."""
    largest, name = 0.0, ""
    for case in cases:
        (size, *_) = [*_scan_sizes_mm([case]), np.zeros(3)]
        if size.max() > largest:
            largest, name = float(size.max()), str(getattr(case.image, "name", case.case_id))
            name = str(case.image) if isinstance(case.image, Path) else name
    z, y, x = wanted
    return (
        f"{name}: is {largest:.4g} mm long, so that a training grid of {z} x {y} x {x} voxels "
        "would be needed to hold all scans: leave it out, or give a shape"
    )


def _foreground_mm(image: Scan) -> NDArray[np.float64]:
    volume = read_volume(image)
    turn, _ = to_upright_lps(volume.affine, volume.shape)
    return _size_mm(foreground_box(volume), spacing_mm(volume.affine @ turn))


def _label_box(job: _Labelled) -> Box:
    """First and last voxel (x, y, z) of a label, in voxels of the reference turned to LPS."""
    label = read_classes(job.label, job.table)
    _, affine = _turned(job.reference)
    moved = align(read_volume(job.case.image), job.reference, job.config.prealign) @ affine
    points = np.argwhere(label.array)[:, ::-1]
    if not len(points):
        raise ScanError(f"{job.label}: label is empty")
    back = np.linalg.inv(moved) @ label.affine
    placed = points @ back[:3, :3].T + back[:3, 3]
    return np.array([placed.min(0), placed.max(0)])


def _union(boxes: Iterable[Box | Exception]) -> Box:
    readable = [box for box in boxes if not isinstance(box, Exception)]
    if not readable:
        raise ScanError("the crop goes by labels, and no case has one that can be read")
    return np.array(
        [np.min([b[0] for b in readable], axis=0), np.max([b[1] for b in readable], axis=0)]
    )


def _size_mm(box: Box, spacing: Triple) -> NDArray[np.float64]:
    """Extent (x, y, z) in mm of a box given by its first and last voxel."""
    return np.asarray((box[1] - box[0] + 1) * np.array(spacing[::-1]))


def _shape(extents: Sequence[NDArray[np.float64]], spacing: Triple) -> Shape:
    if not extents:
        raise ScanError("no scan can be read")
    voxels = np.max(extents, axis=0) / np.array(spacing[::-1]) - _SLACK_VOXELS
    x, y, z = (int(n) * _MULTIPLE for n in np.ceil(voxels / _MULTIPLE))
    return z, y, x
