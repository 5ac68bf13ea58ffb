"""Image series among DICOM files: which there are, where their slices lie, and their voxels.

A series becomes a scan only if its slices make one regular stack; nothing is interpolated,
filled in or guessed. A gantry tilt is kept as it is, in an affine that shears.

Patients stay out of a project: a series found in a folder bears a pseudonym, which its messages
use, and neither paths nor DICOM's own identifiers leave this module but in the table of what
was left out, which is for the screen.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from napari_jrss.errors import ScanError
from napari_jrss.geometry import Matrix, Rows, Shape, rows
from napari_jrss.io.dicom_pixels import read_dataset, require_decodable, stored_values
from napari_jrss.io.volume import ScanHeader, Volume

# Images nearer to each other than this lie in one place: headers give a few digits.
_SAME_PLACE_MM = 1e-3
# A slice may lie off its place in the regular stack by this part of the slice spacing.
_OFF_PLACE = 0.05
_SAME_DIRECTION = 1e-3
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"),
    *("Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Objects with rows and columns that are nevertheless no scans.
_NO_SCANS = {
    "SEG": "a segmentation",
    "RTDOSE": "a dose distribution",
    "PR": "a presentation state",
    "REG": "a registration",
}


@dataclass(frozen=True)
class Slice:
    """One image of a series.

    Attributes
    ----------
    file, number
        The file, and which of its frames, from 0.
    slope, intercept
        Value = stored value * slope + intercept.
    """

    file: Path
    number: int
    slope: float
    intercept: float


@dataclass(frozen=True)
class DicomSeries:
    """A series whose slices make one regular stack.

    Attributes
    ----------
    name
        What messages call it: a pseudonym, or the folder that a person named.
    slices
        In the direction in which ``row x column`` points; becomes the z axis.
    affine
        4x4, voxel (x, y, z, 1) -> LPS mm, as rows.
    shape
        Voxels (z, y, x).
    uid, patient
        Series Instance UID, and Patient ID or else Study Instance UID. Never for a project.
    """

    name: str
    slices: tuple[Slice, ...]
    affine: Rows
    shape: Shape
    uid: str
    patient: str

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files, each once, in the order of the slices."""
        return tuple(dict.fromkeys(s.file for s in self.slices))

    @property
    def header(self) -> ScanHeader:
        """Its geometry as a NIfTI header says it."""
        return ScanHeader.of_affine(np.array(self.affine), self.shape)


@dataclass(frozen=True)
class LeftOut:
    """Files that are in no scan: which, in words for the screen, and why."""

    what: str
    reason: str


_NOT_DICOM = "not DICOM"


def most_telling(left: Sequence[LeftOut]) -> LeftOut | None:
    """What to name where there is room for one: before any file that isn't DICOM at all."""
    return min(left, key=lambda each: each.reason == _NOT_DICOM, default=None)


class UnusableDicomError(ScanError):
    """There is DICOM, but no image series that can be used."""


def no_series(path: Path | str, left: Sequence[LeftOut]) -> ScanError:
    """Why there is nothing to read, in a line."""
    first = most_telling(left)
    why = "" if first is None else f" ({first.what}: {first.reason})"
    is_dicom = first is not None and first.reason != _NOT_DICOM
    kind = UnusableDicomError if is_dicom else ScanError
    return kind(f"{path}: holds no image series that can be used{why}")


@dataclass(frozen=True)
class _Plane:
    """An image and its place: origin (x, y, z) in LPS mm, directions of a row and a column."""

    image: Slice
    series: str
    patient: str
    modality: str
    localizer: bool
    shape: tuple[int, int]
    origin: NDArray[np.float64]
    directions: NDArray[np.float64]  # (2, 3): along a row (x), along a column (y)
    spacing: tuple[float, float]  # between rows, between columns

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(*self.directions)


def find_series(
    folder: Path | str, salt: bytes | None = None
) -> tuple[list[DicomSeries], list[LeftOut]]:
    """All image series below a folder, and what is in none of them.

    Parameters
    ----------
    folder
        Searched with all folders in it; links to folders are not followed.
    salt
        Makes the pseudonyms, ``case-`` and ten digits of HMAC-SHA256(salt, series UID); none: a
        new random one, which is not kept, so that nobody can tell a series from its pseudonym.

    Raises
    ------
    ScanError
        There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ScanError(f"{root}: no such folder")
    salt = salt or secrets.token_bytes(32)
    series, left = _sorted(root, sorted(_files(root)))
    named = [replace(s, name=f"case-{pseudonym(s.uid, salt)}") for s in series]
    return sorted(named, key=lambda s: s.name), left


def patient_groups(series: Iterable[DicomSeries], salt: bytes | None = None) -> dict[str, str]:
    """Pseudonym of the patient of each series, by the series' name.

    Where a Patient ID is empty, as after anonymising, a study counts as a patient.
    """
    salt = salt or secrets.token_bytes(32)
    return {s.name: f"patient-{pseudonym(s.patient, salt)}" for s in series}


def pseudonym(identifier: str, salt: bytes) -> str:
    """Ten hexadecimal digits that say nothing to whom the salt is unknown."""
    return hmac.new(salt, identifier.encode(), hashlib.sha256).hexdigest()[:10]


def series_at(path: Path) -> DicomSeries:
    """The one image series of a folder, or the one that a DICOM file belongs to.

    Parameters
    ----------
    path
        A folder, searched with all folders in it; or a file, whose other slices are looked for
        in its own folder.

    Raises
    ------
    ScanError
        There is none, or several.
    """
    if path.is_dir():
        series, left = _sorted(path, sorted(_files(path)))
        if len(series) > 1:
            raise ScanError(f"{path}: holds {len(series)} image series; name the folder of one")
    else:
        one = read_dataset(path, ["SeriesInstanceUID"])
        uid = "" if one is None else str(one.get("SeriesInstanceUID", ""))
        siblings = sorted(p for p in path.parent.iterdir() if p.is_file()) if uid else [path]
        series, left = _sorted(path.parent, siblings, only=uid)
    if not series:
        raise no_series(path, left)
    return replace(series[0], name=str(path))


def read_series(series: DicomSeries) -> Volume:
    """The voxels of a series as float32, slope and intercept applied.

    Raises
    ------
    ScanError
        A file has gone, has changed or is damaged; the message names the series, no file.
    """
    slices: list[NDArray[np.float32] | None] = [None] * len(series.slices)
    places: dict[Path, list[int]] = defaultdict(list)
    for index, image in enumerate(series.slices):
        places[image.file].append(index)
    for file, indices in places.items():
        wanted = [series.slices[i] for i in indices]
        try:
            for index, image, stored in zip(
                indices, wanted, stored_values(file, [w.number for w in wanted]), strict=True
            ):
                if stored.shape != series.shape[1:]:
                    raise ScanError(f"{file}: has changed")
                slices[index] = _values(stored, image)
        except ScanError as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise ScanError(f"{series.name}: slice {indices[0] + 1}: {reason}") from None
    array = np.stack([s for s in slices if s is not None])
    if not np.isfinite(array).all():
        raise ScanError(f"{series.name}: values beyond what 32-bit floats hold")
    return Volume(array, np.array(series.affine), Path(series.name))


def checksum(volume: Volume) -> str:
    """SHA-256 of a scan's voxels, by which a series is found again wherever its files went.

    It stays the same when a series is sent again, anonymised or compressed without loss.
    """
    digest = hashlib.sha256(repr(volume.shape).encode())
    digest.update(np.ascontiguousarray(volume.array, "<f4").tobytes())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def _sorted(
    root: Path, files: Sequence[Path], only: str | None = None
) -> tuple[list[DicomSeries], list[LeftOut]]:
    """Series of some files, named by their folders, and what is left out of them."""
    planes: dict[str, list[_Plane]] = defaultdict(list)
    left: list[tuple[Path, str]] = []
    for file in files:
        try:
            for plane in _planes(file):
                if only is None or plane.series == only:
                    planes[plane.series].append(plane)
        except ScanError as error:
            left.append((file, str(error).removeprefix(f"{file}: ")))
    series, rest = [], _summed_up(root, left)
    for uid, group in sorted(planes.items()):
        where = _where(root, [p.image.file for p in group])
        what = f"{where} ({group[0].modality}, {_count(len(group), 'image')})"
        try:
            stack, dropped = _stack(group)
        except ScanError as error:
            rest.append(LeftOut(what, str(error)))
            continue
        y, x = stack[0].shape
        rest += [LeftOut(what, f"{reason}; the others are a case") for reason in dropped]
        series.append(
            DicomSeries(
                name=where,
                slices=tuple(p.image for p in stack),
                affine=rows(_affine(stack)),
                shape=(len(stack), y, x),
                uid=uid,
                patient=group[0].patient,
            )
        )
    return series, rest


def _planes(file: Path) -> list[_Plane]:
    """The images of one file, each with its place; a ScanError says why there is none."""
    header = read_dataset(file, _TAGS)
    if header is None:
        raise ScanError(f"{file}: {_NOT_DICOM}")
    modality = str(header.get("Modality", "") or "unknown kind")
    if file.name.upper() == "DICOMDIR":
        raise ScanError(f"{file}: a table of contents, no image")
    if "SOPClassUID" not in header:
        raise ScanError(f"{file}: damaged DICOM (no SOPClassUID)")
    if "Rows" not in header or "BitsAllocated" not in header:
        raise ScanError(f"{file}: {modality}, no image")
    if modality in _NO_SCANS:
        raise ScanError(f"{file}: {_NO_SCANS[modality]}, no scan")
    try:
        count = int(header.get("NumberOfFrames") or 1)
        require_decodable(header, count, file.stat().st_size)
        per_frame = header.get("PerFrameFunctionalGroupsSequence")
        if per_frame is None and count > 1:
            raise ScanError("several frames without a place for each")
        if per_frame is None:
            return [_plane(file, header, 0, [header])]
        if len(per_frame) != count:
            raise ScanError(f"places for {len(per_frame)} of {count} frames")
        shared = list(header.get("SharedFunctionalGroupsSequence") or [])
        return [
            _plane(file, header, number, [*_items(frame), *(i for s in shared for i in _items(s))])
            for number, frame in enumerate(per_frame)
        ]
    except ScanError as error:
        raise ScanError(f"{file}: {error}") from error
    except Exception as error:  # as in dicom_pixels: values of a damaged or hostile header
        raise ScanError(f"{file}: damaged DICOM header ({type(error).__name__})") from error


def _items(group: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """The functional groups of a frame of an enhanced image, of which each has one item."""
    for element in group:
        if element.VR == "SQ" and element.value:
            yield element.value[0]


def _plane(
    file: Path, header: pydicom.Dataset, number: int, where: Sequence[pydicom.Dataset]
) -> _Plane:
    def value(name: str) -> Any:
        return next((d[name].value for d in where if d.get(name) not in (None, "")), None)

    def numbers(name: str, length: int) -> NDArray[np.float64]:
        found = value(name)
        if found is None:
            raise ScanError(f"has no {name}, so no place in space")
        array = np.array(found, dtype=np.float64).ravel()
        if array.shape != (length,) or not np.isfinite(array).all():
            raise ScanError(f"bad {name}")
        return array

    directions = numbers("ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(directions[0] @ directions[1]) > 0.01:
        raise ScanError("bad ImageOrientationPatient: no two directions at right angles")
    between_rows, between_columns = numbers("PixelSpacing", 2).tolist()
    if min(between_rows, between_columns) <= 0:
        raise ScanError("bad PixelSpacing")
    slope, intercept = value("RescaleSlope"), value("RescaleIntercept")
    slope, intercept = 1.0 if slope is None else float(slope), float(intercept or 0)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ScanError("bad RescaleSlope or RescaleIntercept")
    uid = str(header.get("SeriesInstanceUID", ""))
    if not uid:
        raise ScanError("has no SeriesInstanceUID")
    kinds = value("FrameType") or header.get("ImageType") or ()
    return _Plane(
        image=Slice(file, number, slope, intercept),
        series=uid,
        patient=str(header.get("PatientID") or header.get("StudyInstanceUID") or uid),
        modality=str(header.get("Modality", "")),
        localizer="LOCALIZER" in [str(kind).upper() for kind in kinds],
        shape=(int(header.Rows), int(header.Columns)),
        origin=numbers("ImagePositionPatient", 3),
        directions=directions / lengths[:, None],
        spacing=(between_rows, between_columns),
    )


def _stack(planes: Sequence[_Plane]) -> tuple[list[_Plane], list[str]]:
    """The slices of a series in order along their normal, and what was dropped from it.

    Raises
    ------
    ScanError
        They make no regular stack; the message names no file.
    """
    scan = [p for p in planes if not p.localizer]
    if not scan:
        raise ScanError("localizer")
    dropped = len(planes) - len(scan)
    notes = [f"{_count(dropped, 'localizer')} left out"] if dropped else []
    first = scan[0]
    turned = [p for p in scan if np.abs(p.directions - first.directions).max() > _SAME_DIRECTION]
    if turned:
        raise ScanError(
            f"mixes orientations: {_count(len(scan) - len(turned), 'image')} in one, "
            f"{len(turned)} in others"
        )
    if any(p.shape != first.shape for p in scan):
        raise ScanError("images of different sizes")
    if any(not np.allclose(p.spacing, first.spacing, rtol=1e-3) for p in scan):
        raise ScanError("images of different pixel spacings")
    scan.sort(key=lambda p: float(p.origin @ first.normal))
    stack = [scan[0]]
    for plane in scan[1:]:
        if float((plane.origin - stack[-1].origin) @ first.normal) > _SAME_PLACE_MM:
            stack.append(plane)
        elif not _same(plane, stack[-1]):
            raise ScanError(
                "different images at one place (time points, echoes or b-values?); "
                "a case needs a series with one image at each"
            )
    if len(stack) < len(scan):
        notes.append(f"{_count(len(scan) - len(stack), 'repeated image')} left out")
    if len(stack) < 2:
        raise ScanError("a single slice")
    _require_regular(stack)
    return stack, notes


def _require_regular(stack: Sequence[_Plane]) -> None:
    """Raise a ScanError unless the slices lie at even distances along one line."""
    normal = stack[0].normal
    origins = np.array([p.origin for p in stack])
    gaps = np.diff(origins @ normal)
    usual = float(np.median(gaps))
    even = np.linspace(origins[0], origins[-1], len(stack))
    if np.linalg.norm(origins - even, axis=1).max() <= _OFF_PLACE * usual:
        return
    wide = int(gaps.argmax())
    missing = gaps[wide] / usual
    if missing > 1.5 and abs(missing - round(missing)) < 2 * _OFF_PLACE:
        raise ScanError(
            f"a slice is missing: {gaps[wide]:.4g} mm between slices {wide + 1} and {wide + 2}, "
            f"where others are {usual:.4g} mm apart"
        )
    if np.ptp(gaps) > 2 * _OFF_PLACE * usual:
        raise ScanError(f"slices {gaps.min():.4g} to {gaps.max():.4g} mm apart")
    raise ScanError("slices that don't lie on one line")


def _affine(stack: Sequence[_Plane]) -> Matrix:
    """Voxel (x, y, z, 1) -> LPS mm; DICOM PS3.3 C.7.6.2.1.1, with the step of the whole stack.

    Where the gantry was tilted, that step isn't at right angles to the slices: it shears.
    """
    first, last = stack[0], stack[-1]
    affine = np.eye(4)
    between_rows, between_columns = first.spacing
    affine[:3, 0] = first.directions[0] * between_columns
    affine[:3, 1] = first.directions[1] * between_rows
    affine[:3, 2] = (last.origin - first.origin) / (len(stack) - 1)
    affine[:3, 3] = first.origin
    return affine


def _same(one: _Plane, other: _Plane) -> bool:
    """Whether two images in one place show the very same: a file that was copied."""
    if np.abs(one.origin - other.origin).max() > _SAME_PLACE_MM:
        return False
    try:
        here, there = (
            _values(next(stored_values(p.image.file, [p.image.number])), p.image)
            for p in (one, other)
        )
    except ScanError:
        return False  # one of them is damaged: which is the right one isn't ours to say
    return np.array_equal(here, there)


def _values(stored: NDArray[Any], image: Slice) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return (stored * np.float64(image.slope) + image.intercept).astype(np.float32)


def _summed_up(root: Path, left: Iterable[tuple[Path, str]]) -> list[LeftOut]:
    """One row for all files of a folder that were left out for one reason."""
    together: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for file, reason in left:
        together[file.parent, reason].append(file)
    return [
        LeftOut(
            str(files[0].relative_to(root))
            if len(files) == 1
            else f"{_where(root, files)} ({_count(len(files), 'file')})",
            reason,
        )
        for (_, reason), files in together.items()
    ]


def _where(root: Path, files: Sequence[Path]) -> str:
    return str(Path(os.path.commonpath([f.parent for f in files])).relative_to(root))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
