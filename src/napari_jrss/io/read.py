"""What a path holds, a DICOM series or a NIfTI file, and its voxels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_jrss.io.nifti import open_scan_file, read_nifti, read_nifti_header
from napari_jrss.io.volume import ScanHeader, Volume

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries


def read_header(path: Path | str | DicomSeries) -> ScanHeader:
    """Geometry of a scan without its voxels, checked against the size of its files.

    Raises
    ------
    ScanError
        As for :func:`read_volume`, as far as the header and the file's size show it.
    """
    series = dicom_series_of(path)
    if series is not None:
        return series.header
    assert isinstance(path, Path | str)
    return read_nifti_header(Path(path))


def read_volume(path: Path | str | DicomSeries) -> Volume:
    """Read an image as float32 on its own grid, slope and intercept applied.

    Parameters
    ----------
    path
        A DICOM series that :func:`~napari_jrss.io.dicom.find_series` found, the folder of
        one, or one of its files. Or a .nii or .nii.gz file: three axes, or more whose length
        is 1. Also a .hdr with its .img or .img.gz, as LPBA40 has them; Analyze 7.5 says nothing
        about orientation and is taken as LAS, its convention.

    Raises
    ------
    ScanError
        The file is missing, no scan, truncated or damaged, has several frames or colours, an
        affine that can't be inverted, or values that are not finite; the folder holds no image
        series whose slices make one regular stack, or several.
    """
    series = dicom_series_of(path)
    if series is not None:
        from napari_jrss.io.dicom import read_series

        return read_series(series)
    assert isinstance(path, Path | str)
    return read_nifti(Path(path))


def dicom_series_of(path: Path | str | DicomSeries) -> DicomSeries | None:
    """The DICOM series that a folder or a DICOM file stands for; none for another file.

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
