"""Find the image series among DICOM files, and read their geometry and voxels.

A series becomes a scan only if its slices form one regular stack; nothing is interpolated,
filled in or guessed. A gantry tilt is kept: the affine then shears. (highdicom's
``get_series_volume_positions`` refuses tilted stacks and gives no reason for a refusal.)

Patient data stay out of a project: a series found in a folder gets a pseudonym, which messages
about it use. Paths and DICOM's own identifiers leave this module only in the list of files that
were left out, which is shown on the screen.
"""

from __future__ import annotations

import hashlib
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
from napari_jrss.io.dicom_pixels import read_dataset, read_frames, require_decodable
from napari_jrss.io.volume import ScanHeader, Volume

# Headers give few digits: images less far apart than this count as being at one position.
_SAME_POSITION_MM = 1e-3
# Largest distance of a slice from its position in a regular stack, in slice spacings.
_IRREGULAR = 0.05
_SAME_DIRECTION = 1e-3
# Stands before the folder in place of a Series Instance UID that is missing.
_NO_UID = "no SeriesInstanceUID: "
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"),
    *(
        "SeriesDescription",
        "Modality",
        "ImageType",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SamplesPerPixel",
    ),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Modalities whose objects hold pixels but are no scans.
_NO_SCANS = {
    "RTDOSE": "a dose distribution",
    "PR": "a presentation state",
    "REG": "a registration",
}
_LABELS = {"SEG": "a segmentation", "RTSTRUCT": "contours"}


class _LabelOfSeriesError(ScanError):
    """A file is a label, no scan."""


@dataclass(frozen=True)
class Slice:
    """One image of a series."""

    # The file, and the frame in it, counted from 0.
    file: Path
    number: int
    # `value = stored value * slope + intercept`.
    slope: float
    intercept: float
    # Stored values from the first to the second are no scan; None: all are.
    padding: tuple[int, int] | None = None


@dataclass(frozen=True)
class DicomSeries:
    """A series whose slices form one regular stack."""

    name: str  # its name in messages: a pseudonym, or the path that the user gave
    slices: tuple[Slice, ...]  # in the direction of `row x column`, which becomes the z axis
    affine: Rows  # 4x4, voxel (x, y, z, 1) -> LPS mm, as rows
    shape: Shape  # voxels (z, y, x)
    # Series Instance UID; Patient ID or else Study Instance UID; what the scanner's user called the
    # series; Study Instance UID or else that patient. Never stored in a project.
    uid: str
    patient: str
    description: str = ""
    study: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files, each once, in the order of the slices."""
        return tuple(dict.fromkeys(s.file for s in self.slices))

    @property
    def header(self) -> ScanHeader:
        """Its geometry as a NIfTI header."""
        return ScanHeader.of_affine(np.array(self.affine), self.shape)


@dataclass(frozen=True)
class LeftOut:
    """Files that belong to no scan."""

    what: str  # a file or folder, described for the screen
    reason: str  # why it was left out


_NOT_DICOM = "not DICOM"


def most_telling(left: Sequence[LeftOut]) -> LeftOut | None:
    """The entry to show if only one can be: preferably one about a DICOM file."""
    return min(left, key=lambda each: each.reason == _NOT_DICOM, default=None)


class UnusableDicomError(ScanError):
    """There are DICOM files, but no image series that can be used."""


def no_series(path: Path | str, left: Sequence[LeftOut]) -> ScanError:
    """The error for a folder or file without a usable series; it names one reason."""
    first = most_telling(left)
    why = "" if first is None else f" ({first.what}: {first.reason})"
    is_dicom = first is not None and first.reason != _NOT_DICOM
    kind = UnusableDicomError if is_dicom else ScanError
    return kind(f"{path}: holds no image series that can be used{why}")


@dataclass(frozen=True)
class _Plane:
    """An image and its position: origin (x, y, z) in LPS mm, directions of a row and a column."""

    image: Slice
    series: str
    patient: str
    description: str
    study: str
    modality: str
    localizer: bool
    shape: tuple[int, int]
    origin: NDArray[np.float64]
    directions: NDArray[np.float64]  # (2, 3): along a row (x), along a column (y)
    spacing: tuple[float, float]  # between rows, between columns

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(*self.directions)


def find_series(folder: Path | str) -> tuple[list[DicomSeries], list[LeftOut]]:
    """Find all image series below a folder, and the files that belong to none.

    The series get pseudonyms, ``case-`` and ten random digits, new ones at each call. Links to
    folders are not followed. Raises a :class:`ScanError` if there is no such folder.
    """
    return find_labelled_series(folder)[:2]


def find_labelled_series(
    folder: Path | str,
) -> tuple[list[DicomSeries], list[LeftOut], dict[str, list[Path]]]:
    """As :func:`find_series`, with the SEG and RTSTRUCT files of each series, by its name."""
    from napari_jrss.io.dicom_labels import series_labelled_by

    root = Path(folder)
    if not root.is_dir():
        raise ScanError(f"{root}: no such folder")
    labels: list[Path] = []
    series, left = _series_of(root, sorted(_files(root)), labels=labels)
    named = [replace(s, name=f"case-{secrets.token_hex(5)}") for s in series]
    by_uid = {s.uid: s.name for s in named}
    found: dict[str, list[Path]] = defaultdict(list)
    alone: list[tuple[Path, str]] = []
    for path in labels:
        name = by_uid.get(series_labelled_by(path))
        if name is None:
            alone.append((path, "a label whose series isn't here"))
        else:
            found[name].append(path)
    left += _summarised(root, alone)
    return sorted(named, key=lambda s: s.name), left, found


def patient_groups(series: Sequence[DicomSeries]) -> dict[str, str]:
    """Pseudonym of the patient of each series, by the name of the series.

    If the Patient ID is empty, as after anonymisation, each study counts as a patient.
    """
    pseudonyms = {s.patient: f"patient-{secrets.token_hex(5)}" for s in series}
    return {s.name: pseudonyms[s.patient] for s in series}


def series_at(path: Path) -> DicomSeries:
    """The only image series below a folder, or that of a DICOM file and others in its folder.

    Raises a :class:`ScanError` if there is none, or several.
    """
    if path.is_dir():
        series, left = _series_of(path, sorted(_files(path)))
        if len(series) > 1:
            raise ScanError(f"{path}: holds {len(series)} image series; name the folder of one")
    else:
        one = read_dataset(path, ["SeriesInstanceUID"])
        uid = "" if one is None else str(one.get("SeriesInstanceUID", ""))
        uid = uid or f"{_NO_UID}{path.parent}"
        siblings = sorted(p for p in path.parent.iterdir() if p.is_file())
        series, left = _series_of(path.parent, siblings, only=uid)
    if not series:
        raise no_series(path, left)
    return replace(series[0], name=str(path))


def read_series(series: DicomSeries) -> Volume:
    """Read the voxels of a series as float32, with slope and intercept applied.

    Raises a :class:`ScanError`, which names the series and no file, if a file is missing, has
    changed or is damaged.
    """
    array = np.empty(series.shape, np.float32)
    padding = np.zeros(series.shape, bool)
    positions: dict[Path, list[int]] = defaultdict(list)
    for index, image in enumerate(series.slices):
        positions[image.file].append(index)
    for file, indices in positions.items():
        try:
            frames = read_frames(file, [series.slices[i].number for i in indices])
            for index, stored in zip(indices, frames, strict=True):
                if stored.shape != series.shape[1:]:
                    raise ScanError(f"{file}: has changed")
                array[index] = _values(stored, series.slices[index])
                if (no_scan := series.slices[index].padding) is not None:
                    padding[index] = (stored >= no_scan[0]) & (stored <= no_scan[1])
        except ScanError as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise ScanError(f"{series.name}: slice {indices[0] + 1}: {reason}") from None
    if not np.isfinite(array).all():
        raise ScanError(f"{series.name}: values are too large for 32-bit floats")
    stated = padding if padding.any() and not padding.all() else None
    return Volume(array, np.array(series.affine), Path(series.name), padding=stated)


def checksum(volume: Volume) -> str:
    """SHA-256 of a scan's voxels, by which a series is recognised.

    It doesn't change if the series is moved, sent again, anonymised or compressed losslessly.
    """
    digest = hashlib.sha256(repr(volume.shape).encode())
    digest.update(np.ascontiguousarray(volume.array, "<f4").tobytes())
    return digest.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (path for name in names if (path := Path(folder, name)).is_file())


def _series_of(
    root: Path,
    files: Sequence[Path],
    only: str | None = None,
    labels: list[Path] | None = None,
) -> tuple[list[DicomSeries], list[LeftOut]]:
    """The series among files, named after their folders, and the files left out.

    SEG and RTSTRUCT files are added to `labels`; without it they are left out as well.
    """
    planes: dict[str, list[_Plane]] = defaultdict(list)
    left: list[tuple[Path, str]] = []
    for file in files:
        try:
            for plane in _planes(file):
                if only is None or plane.series == only:
                    planes[plane.series].append(plane)
        except _LabelOfSeriesError as error:
            if labels is None:
                left.append((file, str(error).removeprefix(f"{file}: ")))
            else:
                labels.append(file)
        except ScanError as error:
            left.append((file, str(error).removeprefix(f"{file}: ")))
    series, rest = [], _summarised(root, left)
    for uid, group in sorted(planes.items()):
        where = _where(root, [p.image.file for p in group])
        what = f"{where} ({group[0].modality}, {_count(len(group), 'image')})"
        try:
            stack, dropped = _stack(group)
        except ScanError as error:
            rest.append(LeftOut(what, str(error)))
            continue
        y, x = stack[0].shape
        rest += [LeftOut(what, f"{reason}; the other images are a case") for reason in dropped]
        if uid.startswith(_NO_UID):
            rest.append(LeftOut(what, "has no SeriesInstanceUID; taken as one series by its place"))
        series.append(
            DicomSeries(
                name=where,
                slices=tuple(p.image for p in stack),
                affine=rows(_affine(stack)),
                shape=(len(stack), y, x),
                uid=uid,
                patient=group[0].patient,
                description=group[0].description,
                study=group[0].study,
            )
        )
    return series, rest


def _planes(file: Path) -> list[_Plane]:
    """The images of one file with their positions; a ScanError that names it if there are none."""
    header = read_dataset(file, _TAGS)
    if header is None:
        raise ScanError(f"{file}: {_NOT_DICOM}")
    modality = str(header.get("Modality", "") or "unknown kind")
    if modality in _LABELS:
        raise _LabelOfSeriesError(f"{file}: {_LABELS[modality]}, no scan")
    if file.name.upper() == "DICOMDIR":
        raise ScanError(f"{file}: a table of contents, not an image")
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
            raise ScanError("several frames without a position for each")
        if per_frame is None:
            return [_plane(file, header, 0, [header])]
        if len(per_frame) != count:
            raise ScanError(f"positions for {len(per_frame)} of {count} frames")
        shared = list(header.get("SharedFunctionalGroupsSequence") or [])
        return [
            _plane(file, header, number, [*_items(frame), *(i for s in shared for i in _items(s))])
            for number, frame in enumerate(per_frame)
        ]
    except ScanError as error:
        raise ScanError(f"{file}: {error}") from error
    except Exception as error:  # the values of a damaged header raise errors of any kind
        raise ScanError(f"{file}: damaged DICOM header ({type(error).__name__})") from error


def _items(group: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """The functional groups of a frame of an enhanced image; each is a sequence of one item."""
    for element in group:
        if element.VR == "SQ" and element.value:
            yield element.value[0]


def _plane(
    file: Path, header: pydicom.Dataset, number: int, where: Sequence[pydicom.Dataset]
) -> _Plane:
    """Image `number` of a file, whose attributes are searched for in the data sets `where`."""

    def value(name: str) -> Any:
        return next((d[name].value for d in where if d.get(name) not in (None, "")), None)

    def numbers(name: str, length: int) -> NDArray[np.float64]:
        found = value(name)
        if found is None:
            raise ScanError(f"has no {name}, so its position is unknown")
        array = np.array(found, dtype=np.float64).ravel()
        if array.shape != (length,) or not np.isfinite(array).all():
            raise ScanError(f"bad {name}")
        return array

    directions = numbers("ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(directions[0] @ directions[1]) > 0.01:
        raise ScanError("bad ImageOrientationPatient: not two directions at right angles")
    between_rows, between_columns = numbers("PixelSpacing", 2).tolist()
    if min(between_rows, between_columns) <= 0:
        raise ScanError("bad PixelSpacing")
    slope, intercept = value("RescaleSlope"), value("RescaleIntercept")
    slope, intercept = 1.0 if slope is None else float(slope), float(intercept or 0)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ScanError("bad RescaleSlope or RescaleIntercept")
    # Without it, the images of one folder are a series if their geometry makes a stack.
    uid = str(header.get("SeriesInstanceUID", "")) or f"{_NO_UID}{file.parent}"
    patient = str(header.get("PatientID") or header.get("StudyInstanceUID") or uid)
    kinds = value("FrameType") or header.get("ImageType") or ()
    return _Plane(
        image=Slice(file, number, slope, intercept, _padding(header)),
        series=uid,
        patient=patient,
        description=str(header.get("SeriesDescription", "")),
        study=str(header.get("StudyInstanceUID") or patient),
        modality=str(header.get("Modality", "")),
        localizer="LOCALIZER" in [str(kind).upper() for kind in kinds],
        shape=(int(header.Rows), int(header.Columns)),
        origin=numbers("ImagePositionPatient", 3),
        directions=directions / lengths[:, None],
        spacing=(between_rows, between_columns),
    )


def _padding(header: pydicom.Dataset) -> tuple[int, int] | None:
    """Stored values that are no scan (PS3.3, C.7.5.1.1.2), from the lowest to the highest."""
    value = header.get("PixelPaddingValue")
    limit = header.get("PixelPaddingRangeLimit")
    ends = [v for v in (value, value if limit is None else limit) if isinstance(v, int)]
    return (min(ends), max(ends)) if ends else None


def _stack(planes: Sequence[_Plane]) -> tuple[list[_Plane], list[str]]:
    """The slices of a series in order along their normal, and what was left out of it.

    Raises a :class:`ScanError`, which names no file, if they form no regular stack.
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
        if float((plane.origin - stack[-1].origin) @ first.normal) > _SAME_POSITION_MM:
            stack.append(plane)
        elif not _same(plane, stack[-1]):
            raise ScanError(
                "different images at one position (time points, echoes or b-values?); "
                "a case needs a series with one image at each position"
            )
    if len(stack) < len(scan):
        notes.append(f"{_count(len(scan) - len(stack), 'repeated image')} left out")
    if len(stack) < 2:
        raise ScanError("a single slice")
    _require_regular(stack)
    return stack, notes


def _require_regular(stack: Sequence[_Plane]) -> None:
    """Raise a ScanError unless the slices lie at equal distances along one line."""
    normal = stack[0].normal
    origins = np.array([p.origin for p in stack])
    gaps = np.diff(origins @ normal)
    usual = float(np.median(gaps))
    even = np.linspace(origins[0], origins[-1], len(stack))
    if np.linalg.norm(origins - even, axis=1).max() <= _IRREGULAR * usual:
        return
    wide = int(gaps.argmax())
    missing = gaps[wide] / usual
    if missing > 1.5 and abs(missing - round(missing)) < 2 * _IRREGULAR:
        raise ScanError(
            f"a slice is missing: {gaps[wide]:.4g} mm between slices {wide + 1} and {wide + 2}, "
            f"where others are {usual:.4g} mm apart"
        )
    if np.ptp(gaps) > 2 * _IRREGULAR * usual:
        raise ScanError(f"slices {gaps.min():.4g} to {gaps.max():.4g} mm apart")
    raise ScanError("slices that don't lie on one line")


def _affine(stack: Sequence[_Plane]) -> Matrix:
    """Voxel (x, y, z, 1) -> LPS mm, as in DICOM PS3.3, C.7.6.2.1.1.

    The step along z is that from the first slice to the last. If the gantry was tilted, it is
    not at right angles to the slices.
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
    """Whether two images are equal in position and values, as those of a copied file are."""
    if np.abs(one.origin - other.origin).max() > _SAME_POSITION_MM:
        return False
    try:
        here, there = (
            _values(next(read_frames(p.image.file, [p.image.number])), p.image)
            for p in (one, other)
        )
    except ScanError:
        return False  # one of them is damaged
    return np.array_equal(here, there)


def _values(stored: NDArray[Any], image: Slice) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return (stored * np.float64(image.slope) + image.intercept).astype(np.float32)


def _summarised(root: Path, left: Iterable[tuple[Path, str]]) -> list[LeftOut]:
    """One entry for all files of a folder that were left out for the same reason."""
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
