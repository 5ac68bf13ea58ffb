"""The stored pixel values of DICOM images, decoded one frame at a time.

pydicom reads uncompressed pixels. Compressed frames go to GDCM, which is part of SimpleITK:
pydicom itself would need further packages, and the one for JPEG Lossless is under the GPL.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
    UncompressedTransferSyntaxes,
    generate_uid,
)

from napari_jrss.errors import ScanError, from_os_error
from napari_jrss.io.limits import MOST_UNPACKED

_COMPRESSED = {
    *(*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes),
    *(JPEG2000Lossless, JPEG2000, RLELossless),
}
_UNCOMPRESSED = {*UncompressedTransferSyntaxes} - {DeflatedExplicitVRLittleEndian}

_IMAGE_PIXEL = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SamplesPerPixel", "PhotometricInterpretation"),
)


@contextmanager
def map_file(path: Path) -> Iterator[Any]:
    """The bytes of a file as a memory map, from which a false length allocates nothing.

    Raises a :class:`ScanError` if the file is empty or can't be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except ValueError as error:
        if path.stat().st_size:
            raise
        raise ScanError(f"{path}: empty") from error
    except OSError as error:
        raise ScanError(f"{path}: {from_os_error(error)}") from error


def read_dataset(path: Path, tags: Sequence[str]) -> pydicom.FileDataset | None:
    """Read some attributes of a DICOM file, by keyword; None if the file isn't DICOM.

    The pixels are read only if ``PixelData`` is among the tags. Raises a :class:`ScanError` if the
    file is damaged, or its data set is compressed as a whole (deflated).
    """
    try:
        with map_file(path) as content, warnings.catch_warnings():
            # pydicom warns of values that break the standard, which real data often hold.
            warnings.simplefilter("ignore")
            bare = content[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00")
            if content[128:132] == b"DICM":
                # Nothing says how large an inflated data set would be.
                syntax = read_file_meta_info(path).get("TransferSyntaxUID")
                if syntax == DeflatedExplicitVRLittleEndian:
                    raise ScanError(f"{path}: a deflated data set is not supported")
            elif not bare:
                return None
            dataset = pydicom.dcmread(
                content,
                force=bare,
                stop_before_pixels="PixelData" not in tags,
                specific_tags=list(tags),
            )
            # pydicom parses an element at its first use: use all while the file is open.
            for element in dataset.iterall():
                element.value  # noqa: B018
            return dataset
    except ScanError:
        raise
    except Exception as error:  # a damaged file makes the parser raise errors of any kind
        raise ScanError(f"{path}: damaged DICOM ({type(error).__name__})") from error


def require_decodable(dataset: pydicom.Dataset, frames: int, file_bytes: int) -> None:
    """Raise a ScanError, which doesn't name the file, unless the pixels can be decoded.

    The header's numbers, with so many `frames` of it, are compared with the size of the file.
    """
    syntax = transfer_syntax(dataset)
    if syntax not in _UNCOMPRESSED | _COMPRESSED:
        raise ScanError(f"{syntax.name} can't be decoded")
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise ScanError("a colour image")
    if dataset.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise ScanError("not an image in grey levels")
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated:
        raise ScanError(f"pixels of {stored} in {allocated} bits are not supported")
    if int(dataset.get("HighBit", stored - 1)) != stored - 1:
        raise ScanError("pixels that don't begin at the lowest bit are not supported")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if min(rows, columns, frames) < 1:
        raise ScanError(f"{frames} frames of {rows} x {columns} pixels")
    stated = frames * rows * columns * allocated // 8
    if stated > file_bytes * (1 if syntax in _UNCOMPRESSED else MOST_UNPACKED):
        raise ScanError(f"truncated (the header promises {stated} bytes of pixels)")


def transfer_syntax(dataset: pydicom.Dataset) -> UID:
    """How the pixels are encoded; a file without a preamble is Implicit VR Little Endian."""
    meta = getattr(dataset, "file_meta", None) or {}
    return UID(str(meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)))


def read_frames(path: Path, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Stored values (rows, columns) of frames of one DICOM file, by numbers from 0, in that order.

    Raises a :class:`ScanError` that names the file if it has changed or its pixels are damaged.
    """
    dataset = read_dataset(path, (*_IMAGE_PIXEL, "NumberOfFrames", "PixelData"))
    if dataset is None or "PixelData" not in dataset:
        raise ScanError(f"{path}: holds no pixels")
    count = int(dataset.get("NumberOfFrames") or 1)
    try:
        require_decodable(dataset, count, path.stat().st_size)
        if transfer_syntax(dataset) in _COMPRESSED:
            yield from _decompressed(dataset, count, numbers)
        else:
            yield from _uncompressed(dataset, numbers)
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from error
    except Exception as error:  # damaged pixels make a decoder raise errors of any kind
        raise ScanError(f"{path}: damaged pixels ({type(error).__name__})") from error


def _uncompressed(dataset: pydicom.Dataset, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
    options = {"pixel_representation": 0, "samples_per_pixel": 1, **as_pixel_options(dataset)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frames = get_decoder(transfer_syntax(dataset)).iter_array(
            dataset, indices=numbers, raw=True, view_only=True, **options
        )
        yield from (values for values, _ in frames)


def _decompressed(
    dataset: pydicom.Dataset, count: int, numbers: Sequence[int]
) -> Iterator[NDArray[Any]]:
    """Frames decoded by GDCM, each from a file of its own that holds nothing about the patient."""
    import SimpleITK as sitk  # noqa: N813

    bare = pydicom.Dataset()
    for name in _IMAGE_PIXEL:
        setattr(bare, name, dataset[name].value)
    bare.SOPClassUID, bare.SOPInstanceUID = CTImageStorage, generate_uid()
    bare.ensure_file_meta()
    bare.file_meta.TransferSyntaxUID = transfer_syntax(dataset)
    wanted = set(numbers)
    frames = enumerate(generate_frames(dataset.PixelData, number_of_frames=count))
    coded = {number: frame for number, frame in frames if number in wanted}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        for number in numbers:
            bare.PixelData = encapsulate([coded[number]])
            bare["PixelData"].VR = "OB"
            bare.save_as(path, enforce_file_format=True)
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
            yield values.reshape(int(dataset.Rows), int(dataset.Columns))
