"""Finding the cases of a folder, for the ways in which such folders are usually laid out."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from unicodedata import combining, normalize
from zlib import crc32

from napari_jrss.errors import ScanError
from napari_jrss.io.label_files import ids_in, label_table_from_dataset_json
from napari_jrss.io.text_files import read_json
from napari_jrss.labels import (
    LPBA40_GROUPS,
    TCIA_PUBLISHED,
    TCIA_RENUMBERED,
    LabelTable,
    tcia_table,
)

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries, LeftOut

# What read_volume takes: a file, or a series whose slices were found.
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
        Letters, digits, ``.``, ``_`` and ``-`` only, so that it can name a file.
    image, label
        The file, or the DICOM series, and the label's file.
    """

    case_id: str
    image: Scan
    label: Path | None = None


@dataclass(frozen=True)
class FoundCohort:
    """What :func:`discover` found.

    Attributes
    ----------
    layout
        ``plain``, ``decathlon``, ``nnunet``, ``lpba40``, ``tcia`` or ``dicom``.
    cases
        In the order of their ids.
    table
        The classes, where the layout knows them.
    unmatched_labels
        Label files without an image.
    left_out
        Files of a DICOM folder that are in no case, and why.
    groups
        Pseudonym of the patient of each case, by case id, where DICOM tells.
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
        Recognised, in this order: a ``dataset.json`` of the Decathlon or nnU-Net, LPBA40 in
        delineation space, TCIA Pancreas-CT with Gibson's labels, and ``images`` (or the
        folder itself) with ``labels``.
    images, labels
        Folders of files that bear the same names; instead of `folder`.

    Raises
    ------
    ScanError
        Nothing is found, two cases share an id, labels belong to no image at all, or a
        ``dataset.json`` leads out of its folder.
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
    """Find the image series in a folder of DICOM files: each a case, by series UID.

    Case ids and patient groups are pseudonyms, new ones each time; see
    :func:`~napari_jrss.io.dicom.find_series`.

    Parameters
    ----------
    folder
        Any number of patients, studies and series, in any order and with other files between.

    Raises
    ------
    ScanError
        No such folder, or no series that can be used.
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
    """A file's name without .nii, .nii.gz or .hdr."""
    return _PAIR.sub("", _NIFTI.sub("", path.name))


def _folder(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise ScanError(f"{path}: no such folder")
    return path


def _scans(folder: Path, deep: bool = False) -> list[Path]:
    """Scan files in order; hidden ones, such as a Mac's ``._`` twins, are none."""
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
            raise ScanError(f"{' '.join(str(image).split())}: its name makes no case id")
        # Two ids that differ in case only would be one file on many machines.
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
    """A name that can be a file's anywhere; one that loses letters gets a checksum in their place.

    Accents are taken off, "müller" becomes "muller".
    """
    plain = "".join(c for c in normalize("NFKD", name) if not combining(c))
    case_id = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
    if any(c.isalnum() and not c.isascii() for c in plain):
        case_id = f"{case_id}-{crc32(normalize('NFC', name).encode()):08x}".strip("-")
    return case_id


def _pairs(images: Path, labels: Path | None) -> FoundCohort:
    """Files of two folders that bear the same name, nnU-Net's channel or TCIA's number aside."""
    image_files = _scans(images)
    label_files = _scans(labels) if labels else []
    if labels is None:
        return _cohort("plain", ((stem(p), p, None) for p in image_files), None, images)
    keys: tuple[tuple[str, Callable[[str], str | None], Callable[[str], str | None]], ...] = (
        ("plain", str, str),
        ("nnunet", lambda name: name.removesuffix("_0000"), str),
        ("numbered", _number(_NUMBERED_IMAGE), _number(_NUMBERED_LABEL)),
    )
    for layout, of_image, of_label in keys:
        by_key = {of_label(stem(p)): p for p in label_files}
        by_key.pop(None, None)
        matched = {of_image(stem(p)) for p in image_files} & set(by_key)
        if not matched:
            continue
        name = of_image if layout == "nnunet" else str
        channels = {stem(p) for p in image_files} if layout == "nnunet" else set()
        for other in channels:
            if other.endswith("_0001") and other.removesuffix("1") + "0" in channels:
                raise ScanError(
                    f"{images}: scans with several channels are not supported ({other})"
                )
        table = None
        if layout == "numbered":
            table = _tcia_table(image_files, [by_key[key] for key in sorted(matched, key=str)])
        layout = "tcia" if table else {"numbered": "plain"}.get(layout, layout)
        return _cohort(
            layout,
            ((name(stem(p)) or "", p, by_key.get(of_image(stem(p)))) for p in image_files),
            table,
            images,
            (p for key, p in sorted(by_key.items(), key=str) if key not in matched),
        )
    if label_files:
        raise ScanError(f"{labels}: no label bears the name of an image in {images}")
    raise ScanError(f"{labels}: no label files (.nii, .nii.gz) found")


def _number(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def number(name: str) -> str | None:
        match = pattern.match(name)
        return match[1] if match else None

    return number


def _tcia_table(images: list[Path], labels: list[Path]) -> LabelTable | None:
    """The convention of the files, or none where they are no TCIA labels at all.

    Gibson et al. labelled 43 of the 82 scans; the others are plain unlabelled cases.
    """
    names = " ".join(f"{p.parent.name} {p.name}" for p in (*images, *labels)).lower()
    if not ("pancreas" in names or "tcia" in names):
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
    def found() -> Iterable[tuple[str, Path, Path | None]]:
        for image in images:
            label = image.with_name(image.name.replace("skullstripped", "structure.label"))
            match = _LPBA40_IMAGE.match(image.name)
            assert match is not None
            yield match[1], image, label if label.is_file() else None

    return _cohort("lpba40", found(), LPBA40_GROUPS, images[0].parent)


def _described(root: Path) -> FoundCohort:
    """A folder with a dataset.json: the Decathlon lists its files, nnU-Net names them by rule."""
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
    if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
        raise ScanError(f"{path}: a training entry names no image")
    label = entry.get("label")
    files = []
    for name in (entry["image"], label) if isinstance(label, str) else (entry["image"],):
        file = root / name
        try:
            inside = file.resolve().is_relative_to(root.resolve())
            file.exists()
        except (OSError, ValueError, RuntimeError) as error:  # no name of a file at all
            raise ScanError(f"{path}: {name[:100]!r} can't be a file") from error
        if not inside:
            raise ScanError(f"{path}: {name[:100]!r} leads out of the folder")
        if not file.exists():  # nnU-Net 1 lists names without their channel
            channel = _NIFTI.sub(r"_0000\g<0>", file.name)
            file = file.with_name(channel) if file.with_name(channel).exists() else file
        files.append(file)
    return files[0], files[1] if len(files) == 2 else None


def write_dicom_map(path: Path, cases: Iterable[FoundCase]) -> None:
    """Write which patient and series each case is: a CSV that only its owner may read.

    Parameters
    ----------
    path
        Outside the project, which holds nothing of it. An earlier map is never overwritten.
    cases
        As :func:`~napari_jrss.io.layouts.discover_dicom` finds them.

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
