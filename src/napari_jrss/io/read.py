"""Read a scan from a path, which may be a DICOM series or a NIfTI file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_jrss.io.nifti import open_scan_file, read_nifti, read_nifti_header
from napari_jrss.io.volume import ScanHeader, Volume

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries


def read_header(path: Path | str | DicomSeries) -> ScanHeader:
    """Read the geometry of a scan without its voxels, and check it against the file's size.

    Raises
    ------
    ScanError
        As for :func:`read_volume`, if the header or the file's size shows it.
    """
    series = dicom_series_of(path)
    if series is not None:
        return series.header
    assert isinstance(path, Path | str)
    return read_nifti_header(Path(path))


def read_volume(path: Path | str | DicomSeries) -> Volume:
    """Read an image as float32 on its own grid, with slope and intercept applied.

    Parameters
    ----------
    path
        A DICOM series from :func:`~napari_jrss.io.dicom.find_series`, the folder of one, or
        one of its files. Or a .nii or .nii.gz file with three axes; further axes must have
        length 1. Or a .hdr with its .img or .img.gz, as in LPBA40; Analyze 7.5 doesn't store
        the orientation, which is then LAS by convention.

    Raises
    ------
    ScanError
        The file is missing, isn't a scan, is truncated or damaged, has several frames or
        colours, an affine that can't be inverted, or values that are not finite; or the folder
        holds no usable image series, or several.
    """
    series = dicom_series_of(path)
    if series is not None:
        from napari_jrss.io.dicom import read_series

        return read_series(series)
    assert isinstance(path, Path | str)
    return read_nifti(Path(path))


def dicom_series_of(path: Path | str | DicomSeries) -> DicomSeries | None:
    """The DICOM series of a folder or of a DICOM file; None for another file.

    Raises
    ------
    ScanError
        The folder holds no series that can be used, or several.
    """
    if not isinstance(path, Path | str):
        return path
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            return None  # reading it as NIfTI says what it is
        with open_scan_file(path) as file:
            if file.read(132)[128:] != b"DICM":
                return None
    from napari_jrss.io.dicom import series_at

    return series_at(path)
