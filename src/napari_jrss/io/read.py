"""Read a scan or a label from a path, whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_jrss.errors import ScanError
from napari_jrss.io.found import Label, Masks, Part, Scan
from napari_jrss.io.nifti import (
    image_of,
    label_of,
    open_scan_file,
    read_label_volume,
    read_nifti,
    read_nifti_header,
)
from napari_jrss.io.other_formats import read_geometry, read_voxels, reads, segments_of
from napari_jrss.io.volume import ScanHeader, Volume

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries


def read_header(path: Scan | str) -> ScanHeader:
    """Read the geometry of a scan without its voxels, and check it against the file's size.

    Raises a :class:`ScanError` as :func:`read_volume`, if the header or the file's size shows it.
    """
    if isinstance(path, Part):
        return read_nifti_header(_nifti_of(path), path.index)
    series = dicom_series_of(path)
    if series is not None:
        return series.header
    assert isinstance(path, Path | str)
    if reads(Path(path)):
        shape, affine = read_geometry(Path(path))
        return ScanHeader.of_affine(affine, shape)
    return read_nifti_header(Path(path))


def read_volume(path: Scan | str) -> Volume:
    """Read an image as float32 on its own grid, with slope and intercept applied.

    Parameters
    ----------
    path
        A DICOM series from :func:`~napari_jrss.io.dicom.find_series`, the folder of one, or
        one of its files. Or a .nii or .nii.gz file with three axes; further axes must have
        length 1. Or one image of such a file with four. Or a .hdr with its .img or .img.gz, as in
        LPBA40; Analyze 7.5 doesn't store the orientation, which is then LAS by convention. Or a
        file of NRRD, MetaImage or FreeSurfer (.nrrd, .nhdr, .mha, .mhd, .mgz, .mgh).

    Raises
    ------
    ScanError
        The file is missing, isn't a scan, is truncated or damaged, has several frames or
        colours, an affine that can't be inverted, or infinite values; or the folder holds no
        usable image series, or several.
    """
    if isinstance(path, Part):
        return read_nifti(_nifti_of(path), path.index)
    series = dicom_series_of(path)
    if series is not None:
        from napari_jrss.io.dicom import read_series

        return read_series(series)
    assert isinstance(path, Path | str)
    if not reads(Path(path)):
        return read_nifti(Path(path))
    values, affine = read_voxels(Path(path))
    if values.ndim != 3:
        raise ScanError(f"{path}: several values in each voxel, such as colours")
    with np.errstate(over="ignore"):
        return image_of(Path(path), values.astype(np.float32), affine)


def read_label(
    source: Label, image: Scan | ScanHeader | None = None
) -> tuple[Volume, dict[int, str] | None]:
    """Read a label as ids on its own grid, and the names of its structures if it holds them.

    Parameters
    ----------
    source
        A file of any format that :func:`read_volume` reads, a ``.seg.nrrd`` of Slicer, a DICOM
        SEG or RTSTRUCT, or a mask for each structure, of which the later counts where two overlap.
    image
        Its scan or the geometry of that, which a SEG or RTSTRUCT needs; the label is then on its
        voxels.

    Raises
    ------
    ScanError
        As for :func:`read_volume`; a value isn't a whole number; or the masks have different grids.
    """
    if isinstance(source, Masks):
        return _joined(source)
    if not source.is_dir() and _is_dicom(source):
        from napari_jrss.io.dicom_labels import read_dicom_label

        if image is None:
            raise ScanError(f"{source}: can't be read without its series")
        about = image if isinstance(image, ScanHeader) else read_header(image)
        ids, names, notes = read_dicom_label(source, about.affine, about.shape[::-1])
        return Volume(ids, about.affine, source, about, notes=notes), names
    if not reads(source):
        return read_label_volume(source), None
    segments = segments_of(source)
    values, affine = read_voxels(source)
    if segments:
        layers = values if values.ndim == 4 else values[..., None]
        ids = np.zeros(layers.shape[:3], np.int32)
        for number, (_, value, layer) in enumerate(segments, start=1):
            ids[layers[..., layer] == value] = number
        numbered = {n: name for n, (name, _, _) in enumerate(segments, start=1)}
        return Volume(ids, affine, source), numbered
    if values.ndim != 3:
        raise ScanError(f"{source}: several values in each voxel, such as colours")
    return label_of(source, values, affine), None


def structures_named_in(source: Label) -> list[str] | None:
    """Names of the structures that a label holds, in its order; None if it has only numbers."""
    if isinstance(source, Masks):
        return [name for name, _ in source.files]
    if not source.is_dir() and _is_dicom(source):
        from napari_jrss.io.dicom_labels import structures_of

        return list(structures_of(source).values())
    return [name for name, _, _ in segments_of(source)] or None


def _joined(masks: Masks) -> tuple[Volume, dict[int, str]]:
    """The ids 1, 2, ... of masks in their order."""
    first: Volume | None = None
    ids: NDArray[np.int32] | None = None
    overlapping = 0
    for number, (_, path) in enumerate(masks.files, start=1):
        mask, _ = read_label(path)
        if first is None or ids is None:
            first, ids = mask, np.zeros(mask.shape, np.int32)
        elif mask.shape != first.shape or not np.allclose(mask.affine, first.affine, atol=1e-2):
            raise ScanError(f"{path}: lies on other voxels than {first.source}")
        inside = mask.array > 0
        overlapping += int((ids[inside] > 0).sum())
        ids[inside] = number
    if first is None or ids is None:
        raise ScanError(f"{masks.folder}: no mask")
    notes = first.notes
    if overlapping:
        notes += (f"{overlapping} voxels are in two masks; the later name counts",)
    names = {number: name for number, (name, _) in enumerate(masks.files, start=1)}
    return Volume(ids, first.affine, masks.folder, first.header, notes=notes), names


def _nifti_of(part: Part) -> Path:
    if reads(part.file):
        raise ScanError(f"{part.file}: several images in one file are read of NIfTI only")
    return part.file


def dicom_series_of(path: Scan | str) -> DicomSeries | None:
    """The DICOM series of a folder or of a DICOM file; None for another file.

    Raises a :class:`ScanError` if the folder holds no series that can be used, or several.
    """
    if isinstance(path, Part):
        return None
    if not isinstance(path, Path | str):
        return path
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            return None  # reading it as NIfTI says what it is
        if not _is_dicom(path):
            return None
    from napari_jrss.io.dicom import series_at

    return series_at(path)


def _is_dicom(path: Path) -> bool:
    with open_scan_file(path) as file:
        return file.read(132)[128:] == b"DICM"
