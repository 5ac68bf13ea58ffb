"""What was found in a folder: scans, the labels that belong to them, and the ids of the cases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from unicodedata import combining, normalize
from zlib import crc32

from napari_jrss.errors import ScanError
from napari_jrss.labels import LabelTable

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries, LeftOut


@dataclass(frozen=True)
class Part:
    """One of the images that a file with four axes holds; `index` counts from 0."""

    file: Path
    index: int

    @property
    def name(self) -> str:
        """The file, and which image of it."""
        return f"{self.file} (image {self.index + 1})"


# A scan that read_volume can read: a file, a part of one, or a DICOM series that was found.
Scan: TypeAlias = "Path | Part | DicomSeries"

ENDINGS = (".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh")
"""Endings of the files that may hold a scan or a label, besides DICOM."""

_ENDING = re.compile(r"\.(nii(\.gz)?|hdr|nrrd|nhdr|mha|mhd|mgz|mgh)$", re.IGNORECASE)


@dataclass(frozen=True)
class Masks:
    """A label in several files, one mask for each structure."""

    folder: Path  # where they lie
    # By the name of the structure, in the order of the files' names.
    files: tuple[tuple[str, Path], ...]


# A label that read_classes can read: a file, or one mask for each structure.
Label: TypeAlias = "Path | Masks"


@dataclass(frozen=True)
class FoundCase:
    """One scan and, if it has one, its label."""

    case_id: str  # holds only letters, digits, `.`, `_` and `-`, so that it can name a file
    # The file or DICOM series of the scan, and its label. Of several images of a case it is the one
    # that is shown and registered, on whose voxels the label lies.
    image: Scan
    label: Label | None = None
    others: tuple[Scan, ...] = ()  # its other images, as the cohort names them


@dataclass(frozen=True)
class FoundCohort:
    """The cases that :func:`~napari_jrss.io.layouts.discover` found."""

    # `plain`, `decathlon`, `nnunet`, `lpba40`, `tcia`, `bids`, `masks`, `nested`, `table` or
    # `dicom`.
    layout: str
    cases: tuple[FoundCase, ...]  # in the order of their ids
    table: LabelTable | None = None  # the classes, if the layout defines them
    unmatched_labels: tuple[Path, ...] = ()  # label files without an image
    left_out: tuple[LeftOut, ...] = ()  # files that belong to no case, with the reasons
    # Subject of each case, by case id, where the layout tells it; of DICOM a pseudonym.
    groups: Mapping[str, str] = field(default_factory=dict)
    # `train`, `validation`, `test` or `unused` of each case, if a table tells it.
    splits: Mapping[str, str] = field(default_factory=dict)
    # Names of the images that each case has, `image` first, then `others`; empty where it has one.
    channels: tuple[str, ...] = ()

    def using(self, names: Sequence[str]) -> FoundCohort:
        """The same cases with the images of these names alone, in this order; none: the first.

        Raises a :class:`ScanError` if the cases have no image of a name.
        """
        if tuple(names) == self.channels:
            return self
        if not names:
            cases = tuple(replace(case, others=()) for case in self.cases)
            return replace(self, cases=cases, channels=())
        if lacking := [name for name in names if name not in self.channels]:
            known = ", ".join(self.channels) or "one image of each case"
            raise ScanError(f"there is no image {lacking[0]}, only {known}")
        order = [self.channels.index(name) for name in names]
        moved = []
        for case in self.cases:
            images = (case.image, *case.others)
            image, *others = (images[i] for i in order)
            moved.append(replace(case, image=image, others=tuple(others)))
        return replace(self, cases=tuple(moved), channels=tuple(names))


def stem(path: Path) -> str:
    """Name of a scan's file without its ending, such as .nii.gz or .mha."""
    return _ENDING.sub("", path.name)


def existing_folder(path: Path | str) -> Path:
    """The path; :class:`~napari_jrss.errors.ScanError` if there is no such folder."""
    path = Path(path)
    if not path.is_dir():
        raise ScanError(f"{path}: no such folder")
    return path


def scan_files(folder: Path, deep: bool = False) -> list[Path]:
    """The scan files of a folder, sorted; without hidden ones, such as a Mac's ``._`` files.

    Of one scan in two formats, such as a.nii and a.nii.gz, only the first counts.
    """
    once = {(path.parent, stem(path)): path for path in reversed(_all_files(folder, deep))}
    return sorted(once.values())


def doubles(folder: Path) -> list[tuple[Path, Path]]:
    """Files that don't count for :func:`scan_files`, each with the one of its name that does."""
    once = {(path.parent, stem(path)): path for path in scan_files(folder, deep=True)}
    pairs = [(path, once[path.parent, stem(path)]) for path in _all_files(folder, deep=True)]
    return [(path, first) for path, first in pairs if path != first]


def _all_files(folder: Path, deep: bool) -> list[Path]:
    return sorted(
        path
        for path in (folder.rglob("*") if deep else folder.iterdir())
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and _ENDING.search(path.name)
        and path.is_file()
    )


def cohort_of(
    layout: str,
    found: Iterable[tuple[str, Scan, Label | None]],
    where: Path,
    table: LabelTable | None = None,
    unmatched: Iterable[Path] = (),
    **others: object,
) -> FoundCohort:
    """The cohort of triples of name, scan and label.

    Raises a :class:`ScanError` if there is none, a name holds no letter or digit, or two scans
    would have one id.
    """
    cases: dict[str, FoundCase] = {}
    for name, image, label in found:
        case_id = case_id_of(name)
        if not case_id:
            file = " ".join(str(image.name if isinstance(image, Part) else image).split())
            raise ScanError(f"{file}: the name holds no letter or digit for a case id")
        # On many systems, ids that differ only in upper and lower case name the same file.
        if case_id.lower() in cases:
            raise ScanError(f"{image} and {cases[case_id.lower()].image} are both {case_id!r}")
        cases[case_id.lower()] = FoundCase(case_id, image, label)
    if not cases:
        raise ScanError(f"{where}: no scans ({', '.join(ENDINGS)}) found")
    ordered = tuple(sorted(cases.values(), key=lambda case: case.case_id))
    return FoundCohort(layout, ordered, table, tuple(unmatched), **others)  # type: ignore[arg-type]


def case_id_of(name: str) -> str:
    """A case id made of a name: accents are removed, so that "müller" becomes "muller".

    If letters of another script are lost, a checksum of the name is appended.
    """
    plain = "".join(c for c in normalize("NFKD", name) if not combining(c))
    case_id = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
    if any(c.isalnum() and not c.isascii() for c in plain):
        case_id = f"{case_id}-{crc32(normalize('NFC', name).encode()):08x}".strip("-")
    return case_id
