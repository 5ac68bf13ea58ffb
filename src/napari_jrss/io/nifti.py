"""Read NIfTI and Analyze files, which may be damaged; write NIfTI in the geometry of a scan."""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from napari_jrss.errors import ScanError, from_os_error
from napari_jrss.geometry import LPS_FROM_RAS, Matrix
from napari_jrss.io.atomic import write_bytes
from napari_jrss.io.limits import MOST_UNPACKED, require_memory
from napari_jrss.io.volume import ScanHeader, Volume

Readable: TypeAlias = gzip.GzipFile | BinaryIO
# Larger numbers in a header mean that it is damaged or hostile.
_FARTHEST_MM = 1e6
_MOST_BEFORE_VOXELS = 2**26
_MOST_AFTER_VOXELS = 2**24
# A label's value may be off a whole number by this much.
_WHOLE = 1e-3
# Headers of NRRD and MetaImage may name the file of the voxels; LOCAL: the same file.
_ITK_HEADERS = (".nrrd", ".nhdr", ".mha", ".mhd")
_DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.MULTILINE)
_MOST_HEADER = 2**16
# Memory that reading needs for each voxel, beside the file's own bytes: float32 and two masks.
_WORKING_BYTES = 6


def read_nifti_header(path: Path, index: int | None = None) -> ScanHeader:
    """Geometry of a NIfTI or Analyze file, checked against the size of the file.

    `index` is as for :func:`read_nifti`.
    """
    header = _parse(path, index)[1]
    if min(header.shape) < 2:  # as a DICOM series of one slice is no scan
        raise ScanError(f"{path}: a single slice")
    return header


def read_nifti(path: Path, index: int | None = None) -> Volume:
    """Read an image as float32 on its own grid; see :func:`napari_jrss.io.read.read_volume`.

    `index` is which image to read of a file with four axes, from 0; None: the file holds one image.
    """
    read_nifti_header(path, index)
    raw, slope, intercept, header = _load(path, index)
    with np.errstate(over="ignore", invalid="ignore"):
        array = raw.astype(np.float32)
        if (slope, intercept) != (1, 0):
            array = (raw * np.float64(slope) + np.float64(intercept)).astype(np.float32)
    return image_of(path, array, header.affine, header, (header.doubt,) if header.doubt else ())


def image_of(
    path: Path,
    array: NDArray[np.float32],
    affine: Matrix,
    header: ScanHeader | None = None,
    notes: tuple[str, ...] = (),
) -> Volume:
    """An image of values that were read; voxels that are NaN are no scan and get its lowest value.

    Raises a :class:`ScanError` if a value is infinite, or all are NaN.
    """
    nan = np.isnan(array)
    if not nan.any():
        _require_finite(path, array)
        return Volume(array, affine, path, header, notes=notes)
    if nan.all():
        raise ScanError(f"{path}: all voxels are NaN")
    array = np.where(nan, array[~nan].min(), array)
    _require_finite(path, array)
    return Volume(array, affine, path, header, notes=(*notes, _nan_note(nan)), padding=nan)


def read_label_volume(path: Path | str) -> Volume:
    """Read a NIfTI label file as int32 ids on its own grid.

    Raises a :class:`ScanError` as :func:`~napari_jrss.io.read.read_volume`; or if a value isn't a
    whole number or doesn't fit 32 bits.
    """
    path = Path(path)
    raw, slope, intercept, header = _load(path)
    values = raw if (slope, intercept) == (1, 0) else raw * np.float64(slope) + intercept
    notes = (header.doubt,) if header.doubt else ()
    dtype = raw.dtype.name  # without its byte order
    return replace(label_of(path, values, header.affine, header, notes), dtype=dtype)


def label_of(
    path: Path,
    values: NDArray[Any],
    affine: Matrix,
    header: ScanHeader | None = None,
    notes: tuple[str, ...] = (),
) -> Volume:
    """A label of values that were read: ids as int32. NaN is background.

    Programs that scale labels store 1.00000006 for 1: values are rounded within 0.001. Raises a
    :class:`ScanError` if a value is infinite, isn't a whole number or doesn't fit 32 bits.
    """
    dtype = values.dtype.name
    if not np.issubdtype(values.dtype, np.integer):
        nan = np.isnan(values)
        if nan.any():
            values, notes = np.where(nan, 0, values), (*notes, _nan_note(nan))
        _require_finite(path, values)
        fractions = np.abs(values - np.rint(values)) > _WHOLE
        if fractions.any():
            raise ScanError(f"{path}: label holds {values[fractions][0]:.9g}, not a whole number")
        values = np.rint(values)
    limits = np.iinfo(np.int32)
    if values.min() < limits.min or values.max() > limits.max:
        raise ScanError(f"{path}: label ids don't fit 32 bits")
    return Volume(values.astype(np.int32), affine, path, header, notes=notes, dtype=dtype)


def write_nifti(path: Path | str, array: NDArray[Any], like: ScanHeader | Volume) -> Path:
    """Write an array (z, y, x) in the geometry of a scan; the file is complete or not there.

    The array lies on the scan's own grid, as
    :class:`~napari_jrss.preprocess.transform.GridTransform` gives it; the qform, sform, their codes
    and the zooms of the scan's header are repeated. Raises a :class:`ScanError` if the shapes
    differ, or `path` doesn't end in .nii or .nii.gz.
    """
    path = Path(path)
    write_bytes(path, nifti_bytes(path, array, like))
    return path


def nifti_bytes(path: Path, array: NDArray[Any], like: ScanHeader | Volume) -> bytes:
    """Content of a file of :func:`write_nifti`; without a time stamp, so it can be compared."""
    if isinstance(like, Volume):
        like = like.header or ScanHeader.of_affine(like.affine, like.shape)
    if array.shape != like.shape[::-1]:
        raise ScanError(f"{path}: array of {array.shape} doesn't fit a scan of {like.shape[::-1]}")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ScanError(f"{path}: a NIfTI file ends in .nii or .nii.gz")
    header = like.nifti()
    header.set_data_dtype(array.dtype)
    kind: Any = nib.Nifti2Image if like.version == 2 else nib.Nifti1Image
    content: bytes = kind(array.T, None, header).to_bytes()
    return gzip.compress(content, 6, mtime=0) if path.suffix == ".gz" else content


def file_checksum(path: Path) -> str:
    """SHA-256 (hexadecimal) of a scan's file, or of a ``.hdr`` together with its ``.img``.

    Raises an ``OSError`` if a file can't be read, a :class:`ScanError` for a ``.hdr`` without an
    ``.img``.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: digest)
    if (voxels := voxel_file(path)) != path:
        with voxels.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def open_scan_file(path: Path) -> Iterator[Readable]:
    """Open a file, gzipped or not, whatever its name; damage raises a ScanError."""
    try:
        # Opening a pipe would wait for a writer.
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise ScanError(f"{path}: not a file")
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if packed else plain as file:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanError(f"{path}: truncated or damaged ({error})") from error
    except OSError as error:
        raise ScanError(f"{path}: {from_os_error(error)}") from error


def voxel_file(path: Path) -> Path:
    """The file that holds the voxels: the file itself, or the one that a header belongs to.

    Raises
    ------
    ScanError
        It isn't beside the header.
    """
    ending = path.suffix.lower()
    if ending in _ITK_HEADERS and path.is_file():
        with path.open("rb") as file:
            named = _DATA_FILE.search(file.read(_MOST_HEADER).partition(b"\n\n")[0])
        name = "LOCAL" if named is None else named[1].decode(errors="replace")
        if name == "LOCAL":
            return path
        if Path(name).name != name or not (path.parent / name).is_file():
            raise ScanError(f"{path}: its voxels must be in one file beside it, not {name[:100]!r}")
        return path.parent / name
    if ending != ".hdr":
        return path
    stem = path.name[: -len(".hdr")]
    for suffix in (".img", ".img.gz"):
        if (path.parent / (stem + suffix)).is_file():
            return path.parent / (stem + suffix)
    raise ScanError(f"{path}: has no .img beside it")


def _parse(path: Path, index: int | None = None) -> tuple[nib.analyze.AnalyzeHeader, ScanHeader]:
    """Read and check a header, also against the size of the file that holds the voxels."""
    with open_scan_file(path) as file:
        start = file.read(540)
    kind: Any = _header_kind(path, start)
    try:
        header = kind(start[: kind.sizeof_hdr], check=False)
        lengths = header.get_data_shape()
        single = all(n == 1 for n in lengths[3:] if index is None) and len(lengths) >= 3
        if min(lengths, default=0) < 1 or not (single if index is None else len(lengths) == 4):
            raise ScanError(f"{path}: shape {lengths} is not that of one 3D scan")
        if index is not None and index >= lengths[3]:
            raise ScanError(f"{path}: holds {lengths[3]} images, not {index + 1}")
        dtype = header.get_data_dtype()
        if dtype.kind not in "iuf":
            raise ScanError(f"{path}: voxels of type {dtype} are not supported")
        if isinstance(header, nib.Nifti1Header):
            record = ScanHeader.of_nifti(header)
        else:
            x, y, z = lengths[:3]
            record = ScanHeader.of_affine(LPS_FROM_RAS @ header.get_base_affine(), (z, y, x))
        affine = record.affine
    except ScanError:
        raise
    except KeyError as error:
        raise ScanError(f"{path}: bad header (no voxels of type {error})") from error
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise ScanError(f"{path}: bad header ({str(error).splitlines()[0]})") from error
    if not _invertible(affine):
        raise ScanError(f"{path}: affine can't be inverted")
    # A false shape or offset must not allocate more memory than the file can fill.
    voxels, start_byte = voxel_file(path), _offset(header)
    with open_scan_file(voxels) as file:
        unpacked = MOST_UNPACKED if isinstance(file, gzip.GzipFile) else 1
    stated = start_byte + math.prod(lengths) * dtype.itemsize
    if stated > voxels.stat().st_size * unpacked:
        raise ScanError(f"{path}: truncated (the header promises {stated} bytes of voxels)")
    if start_byte > _MOST_BEFORE_VOXELS:
        raise ScanError(f"{path}: bad header (its voxels begin at byte {start_byte})")
    return header, record


def _header_kind(path: Path, start: bytes) -> type[nib.analyze.AnalyzeHeader]:
    """Kind of a header by its first bytes: NIfTI 1 or 2, a NIfTI pair, or Analyze 7.5."""
    pair = path.name.lower().endswith(".hdr")
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    if 348 in sizes and len(start) >= 348:
        magic = start[344:347]
        if not pair and magic == b"n+1":
            return nib.Nifti1Header
        if pair and magic == b"ni1":
            return nib.Nifti1Pair.header_class
        if pair and magic not in (b"n+1", b"n+2"):
            return nib.analyze.AnalyzeHeader
    if 540 in sizes and len(start) == 540 and not pair and start[4:7] == b"n+2":
        return nib.Nifti2Header
    raise ScanError(f"{path}: not a NIfTI file")


def _invertible(affine: Matrix) -> bool:
    """Whether an affine is invertible with the precision of its numbers."""
    if not np.isfinite(affine).all() or np.abs(affine).max() > _FARTHEST_MM:
        return False
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(steps.min() > 1e-6 and abs(np.linalg.det(affine[:3, :3] / steps)) > 1e-3)


def _offset(header: nib.analyze.AnalyzeHeader) -> int:
    """Byte at which the voxels begin."""
    single = isinstance(header, nib.Nifti1Header) and header.is_single
    least = int(header.sizeof_hdr) if single else 0
    return max(int(np.nan_to_num(float(header["vox_offset"]), posinf=0, neginf=0)), least)


def _load(path: Path, index: int | None = None) -> tuple[NDArray[Any], float, float, ScanHeader]:
    """Raw values (z, y, x), slope, intercept and header; see :func:`read_nifti`."""
    header, record = _parse(path, index)
    dtype = header.get_data_dtype()
    wanted = math.prod(record.shape) * dtype.itemsize
    require_memory(path, math.prod(record.shape) * (dtype.itemsize + _WORKING_BYTES))
    with open_scan_file(voxel_file(path)) as file:
        file.seek(_offset(header) + (index or 0) * wanted)
        content = bytearray()
        while len(content) < wanted:
            piece = file.read(min(wanted - len(content), 2**24))
            if not piece:
                raise ScanError(f"{path}: truncated ({len(content)} of {wanted} bytes of voxels)")
            content += piece
        if index is not None:
            file.seek(_offset(header) + header.get_data_shape()[3] * wanted)
        # Read to the end, where gzip has its checksum, unless that unpacks without end.
        if len(file.read(_MOST_AFTER_VOXELS)) == _MOST_AFTER_VOXELS:
            raise ScanError(f"{path}: more than {_MOST_AFTER_VOXELS} bytes follow the voxels")
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise ScanError(f"{path}: bad header ({error})") from error
    # The file's x runs fastest, so its (x, y, z) is (z, y, x) in memory order.
    raw = np.frombuffer(content, dtype).reshape(record.shape[::-1])
    return raw, 1 if slope is None else slope, 0 if intercept is None else intercept, record


def _require_finite(path: Path, array: NDArray[Any]) -> None:
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise ScanError(f"{path}: {bad} voxels are infinite")


def _nan_note(nan: NDArray[np.bool_]) -> str:
    return f"{int(nan.sum())} voxels are NaN and count as background"
