"""Find the cases in a folder that follows one of the usual layouts."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from unicodedata import combining, normalize
from zlib import crc32

from napari_jrss.errors import ScanError
from napari_jrss.io.label_files import ids_in, label_table_from_dataset_json
from napari_jrss.io.text_files import read_json, read_rows
from napari_jrss.labels import (
    LPBA40_GROUPS,
    TCIA_PUBLISHED,
    TCIA_RENUMBERED,
    LabelTable,
    tcia_table,
)

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries, LeftOut

# A scan that read_volume can read: a file, or a DICOM series that was found.
Scan: TypeAlias = "Path | DicomSeries"

_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_PAIR = re.compile(r"\.hdr$", re.IGNORECASE)
_LPBA40_IMAGE = re.compile(r"^(S\d\d)\.delineation\.skullstripped\.")
_NUMBERED_IMAGE = re.compile(r"^(?:pancreas|img|image)\D*0*(\d+)$", re.IGNORECASE)
_NUMBERED_LABEL = re.compile(r"^label\D*0*(\d+)$", re.IGNORECASE)


@dataclass(frozen=True)
class FoundCase:
    """One scan and, if it has one, its label.

    Attributes
    ----------
    case_id
        Holds only letters, digits, ``.``, ``_`` and ``-``, so that it can name a file.
    image, label
        The file or DICOM series of the scan, and the label file.
    """

    case_id: str
    image: Scan
    label: Path | None = None


@dataclass(frozen=True)
class FoundCohort:
    """The cases that :func:`discover` found.

    Attributes
    ----------
    layout
        ``plain``, ``decathlon``, ``nnunet``, ``lpba40``, ``tcia`` or ``dicom``.
    cases
        In the order of their ids.
    table
        The classes, if the layout defines them.
    unmatched_labels
        Label files without an image.
    left_out
        Files of a DICOM folder that belong to no case, with the reasons.
    groups
        Pseudonym of the patient of each case, by case id; only of DICOM.
    """

    layout: str
    cases: tuple[FoundCase, ...]
    table: LabelTable | None = None
    unmatched_labels: tuple[Path, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)


def discover(
    folder: Path | str | None = None,
    *,
    images: Path | str | None = None,
    labels: Path | str | None = None,
) -> FoundCohort:
    """Find the cases of a folder, or of a folder of images and one of labels.

    Parameters
    ----------
    folder
        These layouts are recognised, in this order: a ``dataset.json`` of the Decathlon or
        of nnU-Net, LPBA40 in delineation space, TCIA Pancreas-CT with the labels of Gibson
        et al., and ``images`` (or the folder itself) with ``labels``.
    images, labels
        Folders of images and labels with equal file names; instead of `folder`.

    Raises
    ------
    ScanError
        Nothing is found, two cases share an id, no label belongs to an image, or a
        ``dataset.json`` lists files outside its folder.
    """
    if (folder is None) == (images is None):
        raise ValueError("give either a folder or a folder of images")
    if images is not None:
        return _pairs(_folder(images), _folder(labels) if labels is not None else None)
    assert folder is not None
    root = _folder(folder)
    if (root / "dataset.json").is_file():
        return _described(root)
    lpba40 = [p for p in _scans(root, deep=True) if _LPBA40_IMAGE.match(p.name)]
    if lpba40:
        return _lpba40(lpba40)
    inside = sorted(p for p in root.iterdir() if p.is_dir())
    named_images = [p for p in inside if p.name in ("images", "image", "imagesTr")]
    numbered = [p for p in inside if any(_NUMBERED_IMAGE.match(stem(s)) for s in _scans(p))]
    labelled = [p for p in inside if p.name.lower().startswith("label")]
    return _pairs(next(iter(named_images or numbered), root), next(iter(labelled), None))


def discover_dicom(folder: Path | str) -> FoundCohort:
    """Find the image series in a folder of DICOM files; each is a case.

    Case ids and patient groups are pseudonyms, new ones at each call; see
    :func:`~napari_jrss.io.dicom.find_series`.

    Parameters
    ----------
    folder
        Holds any number of patients, studies and series, in any order, and any other files.

    Raises
    ------
    ScanError
        There is no such folder, or no usable series in it.
    """
    from napari_jrss.io.dicom import find_series, no_series, patient_groups

    series, left = find_series(folder)
    if not series:
        raise no_series(folder, left)
    return FoundCohort(
        "dicom",
        tuple(FoundCase(s.name, s) for s in series),
        left_out=tuple(left),
        groups=patient_groups(series),
    )


def stem(path: Path) -> str:
    """Name of a scan's file without .nii, .nii.gz or .hdr."""
    return _PAIR.sub("", _NIFTI.sub("", path.name))


def _folder(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise ScanError(f"{path}: no such folder")
    return path


def _scans(folder: Path, deep: bool = False) -> list[Path]:
    """The scan files of a folder, sorted; without hidden ones, such as a Mac's ``._`` files."""
    return sorted(
        path
        for path in (folder.rglob("*") if deep else folder.iterdir())
        if not path.name.startswith(".")
        and (_NIFTI.search(path.name) or _PAIR.search(path.name))
        and path.is_file()
    )


def _cohort(
    layout: str,
    found: Iterable[tuple[str, Path, Path | None]],
    table: LabelTable | None,
    where: Path,
    unmatched: Iterable[Path] = (),
) -> FoundCohort:
    cases: dict[str, FoundCase] = {}
    for name, image, label in found:
        case_id = _case_id(name)
        if not case_id:
            file = " ".join(str(image).split())
            raise ScanError(f"{file}: the name holds no letter or digit for a case id")
        # On many systems, ids that differ only in upper and lower case name the same file.
        if case_id.lower() in cases:
            raise ScanError(f"{image} and {cases[case_id.lower()].image} are both {case_id!r}")
        cases[case_id.lower()] = FoundCase(case_id, image, label)
    if not cases:
        raise ScanError(f"{where}: no scans (.nii, .nii.gz, .hdr) found")
    return FoundCohort(
        layout,
        tuple(sorted(cases.values(), key=lambda case: case.case_id)),
        table,
        tuple(unmatched),
    )


def _case_id(name: str) -> str:
    """A case id made of a name: accents are removed, so that "müller" becomes "muller".

    If letters of another script are lost, a checksum of the name is appended.
    """
    plain = "".join(c for c in normalize("NFKD", name) if not combining(c))
    case_id = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
    if any(c.isalnum() and not c.isascii() for c in plain):
        case_id = f"{case_id}-{crc32(normalize('NFC', name).encode()):08x}".strip("-")
    return case_id


def _pairs(images: Path, labels: Path | None) -> FoundCohort:
    """Pair images and labels by name, apart from nnU-Net's channel or by TCIA's numbers."""
    image_files = _scans(images)
    if labels is None:
        return _cohort("plain", ((stem(p), p, None) for p in image_files), None, images)
    label_files = _scans(labels)
    if not label_files:
        raise ScanError(f"{labels}: no label files (.nii, .nii.gz) found")
    keys: tuple[tuple[str, _Key, _Key], ...] = (
        ("plain", stem, stem),
        ("nnunet", lambda path: stem(path).removesuffix("_0000"), stem),
        ("tcia", _number(_NUMBERED_IMAGE), _number(_NUMBERED_LABEL)),
    )
    for layout, image_key, label_key in keys:
        by_key = {key: p for p in label_files if (key := label_key(p))}
        matched = {image_key(p) for p in image_files} & set(by_key)
        if not matched:
            continue
        table: LabelTable | None = None
        name: _Key = stem
        if layout == "nnunet":
            name, channels = image_key, {stem(p) for p in image_files}
            for other in channels:
                if other.endswith("_0001") and other.removesuffix("1") + "0" in channels:
                    raise ScanError(
                        f"{images}: scans with several channels are not supported ({other})"
                    )
        elif layout == "tcia":
            table = _tcia_table(image_files, [by_key[key] for key in sorted(matched)])
        return _cohort(
            layout if layout != "tcia" or table else "plain",
            ((name(p), p, by_key.get(image_key(p))) for p in image_files),
            table,
            images,
            (p for key, p in sorted(by_key.items()) if key not in matched),
        )
    raise ScanError(f"{labels}: no label has the name of an image in {images}")


# What files of images and labels are matched by; "" if it can't be.
_Key: TypeAlias = Callable[[Path], str]


def _number(pattern: re.Pattern[str]) -> _Key:
    def number(path: Path) -> str:
        match = pattern.match(stem(path))
        return match[1] if match else ""

    return number


def _tcia_table(images: list[Path], labels: list[Path]) -> LabelTable | None:
    """The classes, or None if the files aren't those of TCIA Pancreas-CT."""
    names = " ".join(f"{p.parent.name} {p.name}" for p in (*images, *labels)).lower()
    if "pancreas" not in names and "tcia" not in names:
        return None
    ids: set[int] = set()
    known = {i for t in (TCIA_PUBLISHED, TCIA_RENUMBERED) for c in t.classes for i in c.source_ids}
    for label in labels:
        ids |= ids_in(label)
        if ids - known:
            return None
        if ids & {2, 8, 11, 14}:
            break
    return tcia_table(ids)


def _lpba40(images: list[Path]) -> FoundCohort:
    labels = [p.with_name(p.name.replace("skullstripped", "structure.label")) for p in images]
    found = (
        (image.name[:3], image, label if label.is_file() else None)
        for image, label in zip(images, labels, strict=True)
    )
    return _cohort("lpba40", found, LPBA40_GROUPS, images[0].parent)


def _described(root: Path) -> FoundCohort:
    """Cases of a dataset.json: the Decathlon lists the files, nnU-Net names them by a rule."""
    path = root / "dataset.json"
    description = read_json(path)
    table = label_table_from_dataset_json(path)
    listed = description.get("training")
    if isinstance(listed, list) and not {"file_ending", "channel_names"} & set(description):
        pairs = [_listed(root, path, entry) for entry in listed]
        return _cohort(
            "decathlon", ((stem(i).removesuffix("_0000"), i, k) for i, k in pairs), table, root
        )
    ending = str(description.get("file_ending", ".nii.gz"))
    channels = description.get("channel_names", description.get("modality", {"0": ""}))
    if not isinstance(channels, dict) or len(channels) != 1:
        raise ScanError(f"{path}: scans with several channels are not supported")
    images = [p for p in _scans(_folder(root / "imagesTr")) if p.name.endswith(f"_0000{ending}")]
    labels = {p.name: p for p in _scans(root / "labelsTr")} if (root / "labelsTr").is_dir() else {}
    names = [p.name.removesuffix(f"_0000{ending}") for p in images]
    return _cohort(
        "nnunet",
        ((n, p, labels.get(n + ending)) for n, p in zip(names, images, strict=True)),
        table,
        root / "imagesTr",
        (p for name, p in labels.items() if name.removesuffix(ending) not in names),
    )


def _listed(root: Path, path: Path, entry: Any) -> tuple[Path, Path | None]:
    """Image and label that an entry of a dataset.json names."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
        raise ScanError(f"{path}: a training entry names no image")
    label = entry.get("label")
    image = _inside(root, path, entry["image"])
    return image, _inside(root, path, label) if isinstance(label, str) else None


def _inside(root: Path, path: Path, name: str) -> Path:
    """The file of a name in a dataset.json, which must lie in its folder."""
    file = root / name
    try:
        if not file.resolve().is_relative_to(root.resolve()):
            raise ScanError(f"{path}: {name[:100]!r} lies outside the folder")
        if file.exists():
            return file
        # nnU-Net 1 lists names without the channel that the files have.
        channel = file.with_name(_NIFTI.sub(r"_0000\g<0>", file.name))
        return channel if channel.exists() else file
    except ScanError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # not a possible name of a file
        raise ScanError(f"{path}: {name[:100]!r} can't be a file") from error


def write_dicom_map(path: Path, cases: Iterable[FoundCase]) -> None:
    """Write a CSV of the patient and series of each case, which only its owner may read.

    Parameters
    ----------
    path
        A new file outside the project.
    cases
        From :func:`discover_dicom`.

    Raises
    ------
    OSError
        The file exists, or can't be written.
    """
    from napari_jrss.io.dicom import DicomSeries

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", newline="", encoding="utf-8") as file:  # noqa: PTH123
        table = csv.writer(file)
        table.writerow(["case_id", "patient_id", "series_instance_uid", "folder"])
        for case in cases:
            if isinstance(case.image, DicomSeries):
                folder = os.path.commonpath([f.parent.absolute() for f in case.image.files])
                table.writerow([case.case_id, case.image.patient, case.image.uid, folder])


def read_case_groups(path: Path, column: str, case_ids: Sequence[str]) -> dict[str, str]:
    """Read the subject group of each case from a CSV file.

    Parameters
    ----------
    path
        CSV file with a header, whose first column holds the case id or the file's name.
    column
        Name of the column of the group, such as ``patient``.
    case_ids
        The cases; other rows are ignored.

    Raises
    ------
    ScanError
        The file can't be read, or has no such column, or no group for a case.
    """
    rows = read_rows(path)
    header = rows[0] if rows else []
    if column not in header:
        names = " ".join(", ".join(header).split())[:200]
        raise ScanError(f"{path}: has no column {column!r}; its columns: {names or 'none'}")
    index = header.index(column)
    known = {stem(Path(row[0])): row[index] for row in rows[1:] if len(row) > index}
    missing = [case_id for case_id in case_ids if not known.get(case_id)]
    if missing:
        raise ScanError(f"{path}: has no {column} for case {missing[0]}")
    return {case_id: known[case_id] for case_id in case_ids}
