"""A scan in memory: an array and its place in the world, and how both come from files.

Arrays are (z, y, x); an affine is 4x4 and maps voxels (x, y, z, 1) to millimetres in a world
whose axes grow to Left, Posterior and Superior (LPS).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import nibabel as nib
import numpy as np
import psutil
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from napari_jrss.data.atomic import write_bytes
from napari_jrss.data.resample import Matrix, Shape, copy

if TYPE_CHECKING:
    from napari_jrss.data.dicom import DicomSeries

Triple: TypeAlias = tuple[float, float, float]
Row: TypeAlias = tuple[float, float, float, float]
Readable: TypeAlias = gzip.GzipFile | BinaryIO

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Axes that lean by less than this (half a degree) count as being at right angles.
_LEAN = 0.01
# deflate cannot pack more than this into one byte (zlib's technical notes)
_MOST_PER_BYTE = 1032
# Beyond these a header is damaged, or meant to keep us busy.
_FARTHEST_MM = 1e6
_MOST_BEFORE_VOXELS = 2**26
_MOST_AFTER_VOXELS = 2**24
# What reading needs for each voxel beside the file's own bytes: float32 and two masks.
_WORKING_BYTES = 6


class ScanError(ValueError):
    """A scan, a label or a folder that can't be used; one line that names it."""


class ScanHeader(BaseModel):
    """What a NIfTI header says about geometry, kept so that an export can repeat it.

    Attributes
    ----------
    version
        NIfTI version, 1 or 2.
    shape
        Voxels (x, y, z) in the file's own order.
    zooms
        Voxel size (x, y, z) in the header's unit.
    qform_code, sform_code
        Which of the two orientations hold, and in which space.
    qfac, quaternion, offset
        The qform: handedness, (b, c, d) and the first voxel's position, RAS.
    sform
        The three rows of the sform, RAS.
    units
        The header's ``xyzt_units``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1, 2] = 1
    shape: Shape
    zooms: Triple
    qform_code: int
    sform_code: int
    qfac: float
    quaternion: Triple
    offset: Triple
    sform: tuple[Row, Row, Row]
    units: int

    @classmethod
    def of_affine(cls, affine: Matrix, shape: Shape) -> ScanHeader:
        """Header for an array (z, y, x) whose voxels an LPS `affine` places in the world."""
        header = nib.Nifti1Header()
        header.set_data_shape(shape[::-1])
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        header.set_sform(LPS_FROM_RAS @ affine, code=1)
        # A quaternion holds no shear: better no qform than one that lies.
        header.set_qform(LPS_FROM_RAS @ affine, code=int(not leans(affine)), strip_shears=True)
        header.set_xyzt_units("mm")
        return cls.of_nifti(header)

    @classmethod
    def of_nifti(cls, header: nib.Nifti1Header) -> ScanHeader:
        """Record of a nibabel header."""

        def numbers(*names: str) -> tuple[float, ...]:
            # Real files keep NaN in the fields of an orientation they don't use.
            return tuple(float(np.nan_to_num(header[n], posinf=0, neginf=0)) for n in names)

        return cls.model_validate(
            {
                "version": 2 if isinstance(header, nib.Nifti2Header) else 1,
                "shape": header.get_data_shape()[:3],
                "zooms": [float(z) for z in np.nan_to_num(header["pixdim"][1:4])],
                "qform_code": int(header["qform_code"]),
                "sform_code": int(header["sform_code"]),
                "qfac": float(np.nan_to_num(header["pixdim"][0])),
                "quaternion": numbers("quatern_b", "quatern_c", "quatern_d"),
                "offset": numbers("qoffset_x", "qoffset_y", "qoffset_z"),
                "sform": [
                    [float(v) for v in np.nan_to_num(header[r])]
                    for r in ("srow_x", "srow_y", "srow_z")
                ],
                "units": int(header["xyzt_units"]),
            }
        )

    def nifti(self) -> nib.Nifti1Header:
        """A nibabel header with this geometry, field by field."""
        header = nib.Nifti2Header() if self.version == 2 else nib.Nifti1Header()
        header.set_data_shape(self.shape)
        header["pixdim"][:4] = (self.qfac, *self.zooms)
        header["qform_code"], header["sform_code"] = self.qform_code, self.sform_code
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = self.quaternion
        header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = self.offset
        header["srow_x"], header["srow_y"], header["srow_z"] = self.sform
        header["xyzt_units"] = self.units
        return header

    @property
    def affine(self) -> Matrix:
        """Voxel (x, y, z, 1) -> LPS mm: the sform if it holds, else the qform, else neither."""
        return LPS_FROM_RAS @ np.asarray(self.nifti().get_best_affine(), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Volume:
    """An array and where it lies; the two always travel together.

    Attributes
    ----------
    array
        (z, y, x). What a file gave keeps the file's own axes; see :meth:`to_lps`.
    affine
        4x4, voxel (x, y, z, 1) -> LPS mm.
    source
        File it came from, if any.
    header
        The geometry as that file's header states it, if any.
    """

    array: NDArray[Any]
    affine: Matrix
    source: Path | None = None
    header: ScanHeader | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise ValueError(f"a volume has 3 axes (z, y, x), not {self.array.ndim}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"an affine is 4x4, not {self.affine.shape}")

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size (z, y, x) in mm."""
        return spacing_mm(self.affine)

    def to_lps(self) -> Volume:
        """The same voxels with the axes nearest to LPS: z to Superior, y to Posterior, x to Left.

        No value is interpolated; an oblique scan stays oblique.
        """
        matrix = to_nearest_lps(self.affine, self.shape)
        affine = self.affine @ matrix
        return self._moved(matrix, affine)

    def to_axes_of(self, other: Volume) -> Volume:
        """Undo :meth:`to_lps`: the same voxels with the axes of `other`, which covers them."""
        matrix = np.rint(np.linalg.inv(self.affine) @ other.affine)
        return self._moved(matrix, other.affine)

    def _moved(self, matrix: Matrix, affine: Matrix) -> Volume:
        order = np.abs(matrix[2::-1, 2::-1]).argmax(0)
        z, y, x = (int(self.array.shape[i]) for i in order)
        return replace(self, array=copy(self.array, matrix, (z, y, x)), affine=affine, header=None)


def voxel_ml(affine: Matrix) -> float:
    """Volume of a voxel in millilitres, of a grid with this affine to mm."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def spacing_mm(affine: Matrix) -> Triple:
    """Voxel size (z, y, x) in mm of a grid with this affine."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(z), float(y), float(x)


def to_nearest_lps(affine: Matrix, shape: Shape) -> Matrix:
    """Matrix from voxels (x, y, z, 1) of the grid turned to LPS to voxels of the grid itself.

    Parameters
    ----------
    affine
        4x4, voxel (x, y, z, 1) -> LPS mm, of the grid itself.
    shape
        Its voxels (z, y, x).
    """
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (world, sign) in enumerate(io_orientation(affine)):
        matrix[axis, int(world)] = sign
        if sign < 0:
            matrix[axis, 3] = shape[::-1][axis] - 1
    return matrix


def leans(affine: Matrix) -> bool:
    """Whether the axes are not at right angles: a CT with a tilted gantry, a sheared sform."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > _LEAN)


def to_upright_lps(affine: Matrix, shape: Shape) -> tuple[Matrix, Shape]:
    """As :func:`to_nearest_lps`, and for leaning axes a grid at right angles that covers them.

    Parameters
    ----------
    affine, shape
        See :func:`to_nearest_lps`.

    Returns
    -------
    matrix
        From voxels (x, y, z, 1) of the turned grid to voxels of the grid itself. Without a
        lean it only permutes, flips and shifts. With one, the x axis and the x-y plane stay
        as they are, so the slices of a tilted CT stay slices.
    shape
        Voxels (z, y, x) of the turned grid.
    """
    matrix = np.eye(4)
    lengths = np.array(shape[::-1])
    if leans(affine):
        turned, upper = np.linalg.qr(affine[:3, :3])
        upright = turned * np.diag(upper)
        matrix[:3, :3] = np.linalg.inv(affine[:3, :3]) @ upright
        ends = np.stack(np.meshgrid(*((0, n - 1) for n in lengths), indexing="ij"), -1)
        placed = ends.reshape(-1, 3) @ np.linalg.inv(matrix[:3, :3]).T
        matrix[:3, 3] = matrix[:3, :3] @ placed.min(0)
        lengths = np.ceil(np.ptp(placed, axis=0) - 1e-6).astype(int) + 1
    x, y, z = (int(n) for n in lengths)
    turn = to_nearest_lps(affine @ matrix, (z, y, x))
    x, y, z = (int(n) for n in np.abs(turn[:3, :3].T @ lengths))
    return matrix @ turn, (z, y, x)


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
    return _parse(Path(path))[1]


def read_volume(path: Path | str | DicomSeries) -> Volume:
    """Read an image as float32 on its own grid, slope and intercept applied.

    Parameters
    ----------
    path
        A DICOM series that :func:`~napari_jrss.data.dicom.find_series` found, the folder of
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
        from napari_jrss.data.dicom import read_series

        return read_series(series)
    assert isinstance(path, Path | str)
    path = Path(path)
    raw, slope, intercept, header = _load(path)
    with np.errstate(over="ignore", invalid="ignore"):
        array = raw.astype(np.float32)
        if (slope, intercept) != (1, 0):
            array = (raw * np.float64(slope) + np.float64(intercept)).astype(np.float32)
    _require_finite(path, array)
    return Volume(array, header.affine, path, header)


def read_label_volume(path: Path | str) -> Volume:
    """Read a label as int32 ids on the file's own grid, exactly.

    Raises
    ------
    ScanError
        As for :func:`read_volume`, and where a value is no integer or doesn't fit 32 bits.
    """
    path = Path(path)
    raw, slope, intercept, header = _load(path)
    values = raw if (slope, intercept) == (1, 0) else raw * np.float64(slope) + intercept
    if not np.issubdtype(values.dtype, np.integer):
        _require_finite(path, values)
        fractions = values != np.rint(values)
        if fractions.any():
            raise ScanError(f"{path}: label holds {values[fractions][0]:g}, which is no integer")
    limits = np.iinfo(np.int32)
    if values.min() < limits.min or values.max() > limits.max:
        raise ScanError(f"{path}: label ids don't fit 32 bits")
    return Volume(values.astype(np.int32), header.affine, path, header)


def write_nifti(path: Path | str, array: NDArray[Any], like: ScanHeader | Volume) -> Path:
    """Write an array (z, y, x) in the geometry of a scan, aside and then renamed.

    Parameters
    ----------
    path
        Ends in .nii or .nii.gz.
    array
        (z, y, x) on the scan's own grid, as :class:`~napari_jrss.data.preprocess.Chain` gives it.
    like
        Header of the scan: its qform, sform, their codes, zooms and orientation are repeated.

    Raises
    ------
    ScanError
        `array` doesn't have the scan's shape, or `path` isn't named as NIfTI.
    """
    path = Path(path)
    write_bytes(path, nifti_bytes(path, array, like))
    return path


def nifti_bytes(path: Path, array: NDArray[Any], like: ScanHeader | Volume) -> bytes:
    """What :func:`write_nifti` writes; no time stamp, so the same array gives the same bytes."""
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
    """SHA-256 of a scan's file; of a ``.hdr`` together with its voxels, as two may share a header.

    Raises
    ------
    OSError
        A file can't be read.
    ScanError
        A ``.hdr`` has no voxels beside it.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: digest)
    voxels = _voxel_file(path)
    if voxels != path:
        with voxels.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


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
        with _reading(path) as file:
            if file.read(132)[128:] != b"DICM":
                return None
    from napari_jrss.data.dicom import series_at

    return series_at(path)


@contextmanager
def _reading(path: Path) -> Iterator[Readable]:
    """Open a file that may be gzipped, whatever its name says; a damaged one is a ScanError."""
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
        raise ScanError(f"{path}: {error.strerror or error}") from error


def _voxel_file(path: Path) -> Path:
    """Where the voxels are: in the file itself, or beside a ``.hdr``."""
    if not path.name.lower().endswith(".hdr"):
        return path
    stem = path.name[: -len(".hdr")]
    for suffix in (".img", ".img.gz"):
        if (path.parent / (stem + suffix)).is_file():
            return path.parent / (stem + suffix)
    raise ScanError(f"{path}: has no .img beside it")


def _parse(path: Path) -> tuple[nib.analyze.AnalyzeHeader, ScanHeader]:
    """Read and check a header, also against the size of the file that holds the voxels."""
    with _reading(path) as file:
        start = file.read(540)
    kind: Any = _header_kind(path, start)
    try:
        header = kind(start[: kind.sizeof_hdr], check=False)
        lengths = header.get_data_shape()
        if len(lengths) < 3 or min(lengths) < 1 or any(n != 1 for n in lengths[3:]):
            raise ScanError(f"{path}: shape {lengths} is not that of one 3D scan")
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
    # A shape or an offset that lies must not make anyone allocate what the file can't hold.
    voxels = _voxel_file(path)
    with _reading(voxels) as file:
        most = _MOST_PER_BYTE if isinstance(file, gzip.GzipFile) else 1
        held = voxels.stat().st_size * most
    claimed = _offset(header) + math.prod(lengths) * dtype.itemsize
    if claimed > held:
        raise ScanError(f"{path}: truncated (the header promises {claimed} bytes of voxels)")
    if _offset(header) > _MOST_BEFORE_VOXELS:
        raise ScanError(f"{path}: bad header (its voxels begin at byte {_offset(header)})")
    return header, record


def _header_kind(path: Path, start: bytes) -> type[nib.analyze.AnalyzeHeader]:
    """Class of a header by its first bytes: NIfTI 1 or 2, a NIfTI pair's, or Analyze 7.5's."""
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
    """Whether an affine takes voxels to points that numbers can tell apart, and back."""
    if not np.isfinite(affine).all() or np.abs(affine).max() > _FARTHEST_MM:
        return False
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(steps.min() > 1e-6 and abs(np.linalg.det(affine[:3, :3] / steps)) > 1e-3)


def _offset(header: nib.analyze.AnalyzeHeader) -> int:
    offset = float(header["vox_offset"])
    own = header.sizeof_hdr if isinstance(header, nib.Nifti1Header) and header.is_single else 0
    return max(int(offset) if np.isfinite(offset) else 0, int(own))


def _load(path: Path) -> tuple[NDArray[Any], float, float, ScanHeader]:
    """Raw values (z, y, x), slope, intercept and header."""
    header, record = _parse(path)
    dtype = header.get_data_dtype()
    wanted = math.prod(record.shape) * dtype.itemsize
    _require_room(path, math.prod(record.shape) * (dtype.itemsize + _WORKING_BYTES))
    with _reading(_voxel_file(path)) as file:
        file.seek(_offset(header))
        content = bytearray()
        while len(content) < wanted:
            piece = file.read(min(wanted - len(content), 2**24))
            if not piece:
                raise ScanError(f"{path}: truncated ({len(content)} of {wanted} bytes of voxels)")
            content += piece
        # To the end, where gzip keeps its checksum; a bomb has none.
        if len(file.read(_MOST_AFTER_VOXELS)) == _MOST_AFTER_VOXELS:
            raise ScanError(f"{path}: goes on long after its voxels")
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise ScanError(f"{path}: bad header ({error})") from error
    # The file's x runs fastest, so its (x, y, z) is (z, y, x) in memory order.
    raw = np.frombuffer(content, dtype).reshape(record.shape[::-1])
    return raw, 1 if slope is None else slope, 0 if intercept is None else intercept, record


def _require_room(path: Path, needed: int) -> None:
    """Raise a ScanError rather than have the system end this process for want of memory."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise ScanError(
            f"{path}: needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
        )


def _require_finite(path: Path, array: NDArray[Any]) -> None:
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise ScanError(f"{path}: {bad} voxels are NaN or infinite")
