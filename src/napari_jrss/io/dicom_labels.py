"""Labels of a DICOM series: DICOM SEG and RTSTRUCT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from napari_jrss.errors import ScanError
from napari_jrss.geometry import Matrix, Shape, is_exact, map_points, move_voxels
from napari_jrss.io.dicom_pixels import read_dataset

_SEG, _RTSTRUCT = "SEG", "RTSTRUCT"
# A contour may lie off its slice by this part of the distance between slices.
_OFF_SLICE = 0.25
# Voxels of a SEG may lie off those of the series by this part of a voxel.
_OFF_GRID = 0.1


def kind_of(path: Path) -> str:
    """``SEG`` or ``RTSTRUCT``; empty if a file holds no label of a series."""
    header = read_dataset(path, ["Modality", "SOPClassUID"])
    kind = "" if header is None else str(header.get("Modality", ""))
    return kind if kind in (_SEG, _RTSTRUCT) else ""


def series_labelled_by(path: Path) -> str:
    """Series Instance UID of the scan that a SEG or RTSTRUCT belongs to; empty if unknown."""
    header = read_dataset(
        path, ["Modality", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"]
    )
    if header is None:
        return ""
    try:
        for each in header.get("ReferencedSeriesSequence") or ():
            return str(each.get("SeriesInstanceUID", ""))
        for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
            for study in frame.get("RTReferencedStudySequence") or ():
                for series in study.get("RTReferencedSeriesSequence") or ():
                    return str(series.get("SeriesInstanceUID", ""))
    except (AttributeError, TypeError, ValueError):
        return ""  # damaged: it belongs to no series
    return ""


def structures_of(path: Path) -> dict[int, str]:
    """Name of each segment or region, by its number; a ScanError if it can't be read."""
    dataset = _whole(path)
    try:
        if kind_of(path) == _SEG:
            return {int(s.SegmentNumber): str(s.SegmentLabel) for s in dataset.SegmentSequence}
        return {int(r.ROINumber): str(r.ROIName) for r in dataset.StructureSetROISequence}
    except Exception as error:  # a damaged data set raises errors of any kind
        raise ScanError(f"{path}: names no structures ({type(error).__name__})") from error


def read_dicom_label(
    path: Path, affine: Matrix, shape: Shape
) -> tuple[NDArray[np.int32], dict[int, str], tuple[str, ...]]:
    """A SEG or RTSTRUCT on the voxels of its series.

    `affine` is that of the series, voxel (x, y, z, 1) -> LPS mm, `shape` its voxels (z, y, x).
    Raises a :class:`ScanError` if the file can't be read, or doesn't fit the series.

    Returns
    -------
    ids
        Numbers of the segments or regions (z, y, x). Of two that overlap, the later counts.
    names
        Their names.
    notes
        What was left out, a sentence each.
    """
    try:
        names = structures_of(path)
        read = _segmentation if kind_of(path) == _SEG else _contours
        ids, notes = read(path, affine, shape, list(names))
    except ScanError:
        raise
    except Exception as error:  # damaged data sets make the readers raise errors of any kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ScanError(f"{path}: can't be read as a label ({reason})") from error
    return ids, names, notes


def _whole(path: Path) -> pydicom.Dataset:
    if read_dataset(path, ["Modality"]) is None:
        raise ScanError(f"{path}: not DICOM")
    return pydicom.dcmread(path, stop_before_pixels=True)


def _segmentation(
    path: Path, affine: Matrix, shape: Shape, numbers: list[int]
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    from highdicom.seg import segread

    file = segread(path)
    ids = np.zeros(shape, np.int32)
    overlapping = 0
    for number in numbers:
        volume = file.get_volume(
            segment_numbers=[number], combine_segments=False, allow_missing_positions=True
        )
        # highdicom's voxels are (slice, row, column), its affine maps them in this order to LPS.
        place = np.asarray(volume.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
        turn = np.linalg.inv(place) @ affine
        if not is_exact(np.rint(turn)) or np.abs(turn - np.rint(turn)).max() > _OFF_GRID:
            raise ScanError(f"{path}: lies on other voxels than its series")
        mask = np.asarray(volume.array)[..., 0] >= 0.5
        here = move_voxels(mask, np.rint(turn), shape)
        overlapping += int((ids[here] > 0).sum())
        ids[here] = number
    return ids, _overlap(overlapping)


def _contours(
    path: Path, affine: Matrix, shape: Shape, numbers: list[int]
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    to_voxels = np.linalg.inv(affine)
    ids = np.zeros(shape, np.int32)
    overlapping, other = 0, 0
    for region in _whole(path).get("ROIContourSequence") or ():
        number = int(region.ReferencedROINumber)
        mask = np.zeros(shape, bool)
        for contour in region.get("ContourSequence") or ():
            points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
            x, y, z = map_points(to_voxels, points).T
            level = round(float(z.mean()))
            if contour.ContourGeometricType != "CLOSED_PLANAR" or len(points) < 3:
                other += 1
                continue
            if np.abs(z - level).max() > _OFF_SLICE or not 0 <= level < shape[0]:
                raise ScanError(f"{path}: a contour lies on no slice of the series")
            # A contour inside another is a hole of it.
            mask[level] ^= polygon2mask(shape[1:], np.stack([y, x], axis=1))
        if number in numbers:
            overlapping += int((ids[mask] > 0).sum())
            ids[mask] = number
    left = (f"{other} points and open contours are left out",) if other else ()
    return ids, (*left, *_overlap(overlapping))


def _overlap(voxels: int) -> tuple[str, ...]:
    return (f"{voxels} voxels are in two structures; the later counts",) if voxels else ()
