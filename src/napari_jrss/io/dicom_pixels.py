"""The stored pixel values of DICOM images, decoded one frame at a time.

Uncompressed pixels are read here. Compressed frames are handed to GDCM, which comes with
SimpleITK, each as a file of its own that holds the frame and nothing about the patient.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)

from napari_jrss.errors import ScanError, from_os_error

_PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_PACKED = (
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless),
    *(JPEGLSNearLossless, JPEG2000Lossless, JPEG2000, RLELossless),
)
# Blank slices pack a few hundred times; more than this no real file claims.
_MOST_PER_BYTE = 1032


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """The bytes of a file, mapped: a length that lies can't make anyone allocate it.

    Raises
    ------
    ScanError
        The file is empty or can't be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            yield held
    except ValueError as error:
        if path.stat().st_size:
            raise
        raise ScanError(f"{path}: empty") from error
    except OSError as error:
        raise ScanError(f"{path}: {from_os_error(error)}") from error


def read_dataset(path: Path, tags: Sequence[str] | None = None) -> pydicom.FileDataset | None:
    """Read a DICOM file, or only some of its attributes and never its pixels.

    Returns
    -------
    Dataset
        None where the file is no DICOM at all.

    Raises
    ------
    ScanError
        It is DICOM and damaged, or its data set is deflated as a whole.
    """
    try:
        with reading(path) as content, warnings.catch_warnings():
            # Values that break the standard's rules are no news to whoever has real data.
            warnings.simplefilter("ignore")
            bare = content[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00")
            if content[128:132] == b"DICM":
                # To inflate it would be to trust whatever size it unpacks to.
                syntax = read_file_meta_info(path).get("TransferSyntaxUID")
                if syntax == DeflatedExplicitVRLittleEndian:
                    raise ScanError(f"{path}: a deflated data set is not supported")
            elif not bare:
                return None
            dataset = pydicom.dcmread(
                content,
                force=bare,
                stop_before_pixels=tags is not None,
                specific_tags=None if tags is None else list(tags),
            )
            # Elements are parsed when they are asked for: now, while the file is open.
            for element in dataset.iterall():
                element.value  # noqa: B018
            return dataset
    except ScanError:
        raise
    # Whatever the parser of a hostile file stumbles over, it is the file that is at fault.
    except Exception as error:
        raise ScanError(f"{path}: damaged DICOM ({type(error).__name__})") from error


def require_decodable(dataset: pydicom.Dataset, frames: int, file_bytes: int) -> None:
    """Raise a ScanError, which names no file, unless the pixels can be decoded.

    Parameters
    ----------
    dataset
        Of an image, with or without its pixels.
    frames
        How many it claims.
    file_bytes
        Size of its file, against which its claims are held.
    """
    syntax = transfer_syntax(dataset)
    if syntax not in (*_PLAIN, *_PACKED):
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
    claimed = frames * rows * columns * allocated // 8
    if claimed > file_bytes * (1 if syntax in _PLAIN else _MOST_PER_BYTE):
        raise ScanError(f"truncated (the header promises {claimed} bytes of pixels)")


def transfer_syntax(dataset: pydicom.Dataset) -> UID:
    """How the pixels are encoded; a file without a preamble is Implicit VR Little Endian."""
    meta = getattr(dataset, "file_meta", None)
    return (
        UID(str(meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)))
        if meta
        else UID(ImplicitVRLittleEndian)
    )


def stored_values(path: Path, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Stored values (rows, columns) of frames of one file, in the order asked for.

    Parameters
    ----------
    path
        A DICOM file.
    numbers
        Frames, from 0.

    Raises
    ------
    ScanError
        The file has changed, or its pixels are damaged. It names the file.
    """
    dataset = read_dataset(path)
    if dataset is None or "PixelData" not in dataset:
        raise ScanError(f"{path}: holds no pixels")
    count = int(dataset.get("NumberOfFrames") or 1)
    try:
        require_decodable(dataset, count, path.stat().st_size)
        if transfer_syntax(dataset) in _PACKED:
            yield from _packed(dataset, count, numbers)
        else:
            yield from _plain(dataset, count, numbers)
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from error
    except Exception as error:  # as above: the decoder of a damaged file
        raise ScanError(f"{path}: damaged pixels ({type(error).__name__})") from error


def _plain(dataset: pydicom.Dataset, count: int, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    kind = "i" if int(dataset.get("PixelRepresentation", 0)) else "u"
    order = ">" if transfer_syntax(dataset) == ExplicitVRBigEndian else "<"
    dtype = np.dtype(f"{order}{kind}{int(dataset.BitsAllocated) // 8}")
    size = rows * columns * dtype.itemsize
    content = dataset.PixelData
    if len(content) < count * size:
        raise ScanError(f"truncated ({len(content)} of {count * size} bytes of pixels)")
    for number in numbers:
        values = np.frombuffer(content, dtype, rows * columns, number * size)
        yield _own_bits(values.reshape(rows, columns), dataset)


def _own_bits(values: NDArray[Any], dataset: pydicom.Dataset) -> NDArray[Any]:
    """Without what old files keep in the bits that no value uses; the sign goes on into them."""
    unused = int(dataset.BitsAllocated) - int(dataset.BitsStored)
    return (values << unused) >> unused if unused else values


def _packed(dataset: pydicom.Dataset, count: int, numbers: Sequence[int]) -> Iterator[NDArray[Any]]:
    import SimpleITK as sitk  # noqa: N813

    bare = pydicom.Dataset()
    for name in (
        *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
        *("SamplesPerPixel", "PhotometricInterpretation"),
    ):
        setattr(bare, name, dataset[name].value)
    bare.SOPClassUID, bare.SOPInstanceUID = CTImageStorage, generate_uid()
    bare.ensure_file_meta()
    bare.file_meta.TransferSyntaxUID = transfer_syntax(dataset)
    wanted = set(numbers)
    coded = {
        n: frame
        for n, frame in enumerate(generate_frames(dataset.PixelData, number_of_frames=count))
        if n in wanted
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        for number in numbers:
            bare.PixelData = pydicom.encaps.encapsulate([coded[number]])
            bare["PixelData"].VR = "OB"
            bare.save_as(path, enforce_file_format=True)
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
            yield values.reshape(int(dataset.Rows), int(dataset.Columns))
