"""Find the cases in a folder that follows one of the usual layouts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from napari_jrss.errors import ScanError
from napari_jrss.io.contrasts import grouped, one_image
from napari_jrss.io.dataset_json import described
from napari_jrss.io.found import (
    FoundCase,
    FoundCohort,
    Scan,
    cohort_of,
    doubles,
    existing_folder,
    scan_files,
    stem,
)
from napari_jrss.io.label_files import ids_in
from napari_jrss.io.nested_layouts import (
    LABEL_SUFFIX,
    bids,
    cohort_in_table,
    masks_in,
    nested,
    table_of_masks,
)
from napari_jrss.io.text_files import read_rows
from napari_jrss.labels import (
    LPBA40_GROUPS,
    TCIA_PUBLISHED,
    TCIA_RENUMBERED,
    LabelTable,
    tcia_table,
)

__all__ = [
    "FoundCase",
    "FoundCohort",
    "Scan",
    "discover",
    "labels_of",
    "read_case_groups",
    "stem",
]

_LPBA40_IMAGE = re.compile(r"^(S\d\d)\.delineation\.skullstripped\.")
_NUMBERED_IMAGE = re.compile(r"^(?:pancreas|img|image)\D*0*(\d+)$", re.IGNORECASE)
_NUMBERED_LABEL = re.compile(r"^label\D*0*(\d+)$", re.IGNORECASE)
_LABEL_FOLDERS = ("label", "mask", "seg")


def discover(
    folder: Path | str | None = None,
    *,
    images: Path | str | None = None,
    labels: Path | str | None = None,
    series: str | None = None,
    channels: Sequence[str] = (),
) -> FoundCohort:
    """Find the cases of a folder, or of a folder of images and one of labels.

    Parameters
    ----------
    folder
        These layouts are recognised, in this order: a ``dataset.json`` of the Decathlon or
        of nnU-Net, LPBA40 in delineation space, BIDS, ``images`` with ``labels`` (TCIA Pancreas-CT
        by its numbers), labels beside their scans with a suffix such as ``_seg``, and a folder
        for each case, with a label or with one mask for each structure. Or a CSV file with the
        columns image, label, subject and split.
    images
        A folder of images, instead of `folder`.
    labels
        Folder of labels with the names of the images, which may end in ``_seg`` and the like;
        or with a folder of masks, one for each structure, for each image.
    series
        Kind of image that counts in BIDS, such as T2w.
    channels
        Names of the images of each case that count, such as T1 and FLAIR, where cases have several;
        the first is shown and registered. None: all that the layout gives each case. A case that
        lacks one is left out.

    Raises
    ------
    ScanError
        Nothing is found, two cases share an id, no label belongs to an image, or a
        ``dataset.json`` lists files outside its folder.
    """
    if (folder is None) == (images is None):
        raise ValueError("give either a folder or a folder of images")
    if images is not None:
        scans = scan_files(existing_folder(images))
        place = None if labels is None else existing_folder(labels)
        return _of_files(Path(images), scans, place, channels)
    assert folder is not None
    if Path(folder).suffix.lower() == ".csv":
        return cohort_in_table(Path(folder), channels)
    root = existing_folder(folder)
    found = _layout(root, series, channels)
    if twice := doubles(root):
        from napari_jrss.io.dicom import LeftOut

        left = (LeftOut(one.name, f"{first.name} of the same name is read") for one, first in twice)
        found = replace(found, left_out=(*found.left_out, *left))
    if labels is None:
        return found
    named = [(case.case_id, case.image) for case in found.cases]
    paired = _pairs(named, existing_folder(labels), root)
    others = {case.image: case.others for case in found.cases}
    return replace(
        paired,
        cases=tuple(replace(case, others=others[case.image]) for case in paired.cases),
        channels=found.channels,
        table=paired.table or found.table,
        left_out=found.left_out,
        groups={case.case_id: found.groups[case.case_id] for case in paired.cases}
        if found.groups
        else {},
    )


def _of_files(
    folder: Path, files: Sequence[Path], labels: Path | None, channels: Sequence[str]
) -> FoundCohort:
    """The scans of one folder, with their labels in another one or beside them."""
    alone = [p for p in files if not LABEL_SUFFIX.search(stem(p))] if labels is None else files
    groups = grouped(alone, channels, folder)
    if groups is None:
        if channels:
            raise one_image(folder, channels)
        if labels is None:
            return _beside(folder, files)
        return _pairs([(stem(path), path) for path in files], labels, folder)
    if labels is not None:
        return groups.into(_pairs(groups.first, labels, folder))
    beside = {LABEL_SUFFIX.sub("", stem(p)): p for p in files if p not in alone}
    found = ((name, image, beside.pop(name, None)) for name, image in groups.first)
    return groups.into(cohort_of("plain", list(found), folder, unmatched=beside.values()))


def _layout(root: Path, series: str | None, channels: Sequence[str]) -> FoundCohort:
    """The cases of a folder in one of the layouts that :func:`discover` names."""
    if (root / "dataset.json").is_file():
        return described(root, channels)
    deep = scan_files(root, deep=True)
    lpba40 = [p for p in deep if _LPBA40_IMAGE.match(p.name)]
    if lpba40:
        return _lpba40(lpba40)
    if any(path.parent.name == "anat" and "sub-" in str(path.relative_to(root)) for path in deep):
        return bids(root, deep, series, channels)
    inside = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    named_images = [p for p in inside if p.name in ("images", "image", "imagesTr")]
    numbered = [p for p in inside if any(_NUMBERED_IMAGE.match(stem(s)) for s in scan_files(p))]
    images = next(iter(named_images or numbered), root)
    scans = scan_files(images)
    labelled = [p for p in inside if p.name.lower().startswith(_LABEL_FOLDERS) and p != images]
    if scans or not deep:
        return _of_files(images, scans, labelled[0] if scans and labelled else None, channels)
    return nested(root, deep, channels)


def _beside(folder: Path, files: Sequence[Path]) -> FoundCohort:
    """The scans of one folder, some with a label beside them, such as ``x_seg`` beside ``x``."""
    scans = {stem(p): p for p in files if not LABEL_SUFFIX.search(stem(p))}
    labels: dict[str, Path] = {}
    alone: list[Path] = []
    for path in files:
        of = LABEL_SUFFIX.sub("", stem(path))
        if stem(path) in scans:
            continue
        if of in scans and of not in labels:
            labels[of] = path
        else:
            alone.append(path)
    if not labels:  # the names say nothing: all are scans
        scans, alone = {stem(p): p for p in files}, []
    return cohort_of(
        "plain", ((n, p, labels.get(n)) for n, p in scans.items()), folder, unmatched=alone
    )


def _pairs(named: Sequence[tuple[str, Scan]], labels: Path, where: Path) -> FoundCohort:
    """Pair scans and labels by name, apart from nnU-Net's channel or by TCIA's numbers."""
    names = {name for name, _ in named}
    label_files = scan_files(labels)

    def without_suffix(path: Path) -> str:
        return stem(path) if stem(path) in names else LABEL_SUFFIX.sub("", stem(path))

    masks = masks_in(labels, names)
    if masks and not any(without_suffix(path) in names for path in label_files):
        found = ((name, path, masks.get(name)) for name, path in named)
        return cohort_of("masks", found, where, table_of_masks(masks.values()))
    if not label_files:
        raise ScanError(f"{labels}: no label files found")
    keys: tuple[tuple[str, Callable[[str], str], _Key], ...] = (
        ("plain", str, without_suffix),
        ("nnunet", lambda name: name.removesuffix("_0000"), without_suffix),
        ("tcia", _number(_NUMBERED_IMAGE), lambda path: _number(_NUMBERED_LABEL)(stem(path))),
    )
    for layout, image_key, label_key in keys:
        known = {image_key(name) for name in names} - {""}
        by_key = {key: p for p in label_files if (key := label_key(p))}
        if layout == "nnunet":
            by_key = {stem(p): p for p in label_files}
        matched = known & set(by_key)
        if not matched:
            continue
        table: LabelTable | None = None
        if layout == "tcia":
            scans = [path for _, path in named if isinstance(path, Path)]
            table = _tcia_table(scans, [by_key[key] for key in sorted(matched)])
        return cohort_of(
            layout if layout != "tcia" or table else "plain",
            (
                (image_key(n) if layout == "nnunet" else n, p, by_key.get(image_key(n)))
                for n, p in named
            ),
            where,
            table,
            (p for key, p in sorted(by_key.items()) if key not in matched),
        )
    of = "a case" if where == labels else f"an image in {where}"
    raise ScanError(f"{labels}: no label has the name of {of}")


def labels_of(folder: Path, case_ids: Sequence[str]) -> list[FoundCase]:
    """The labels of a folder by the ids of the cases that they belong to; `image` is the label.

    Raises a :class:`ScanError` if there is no such folder, or no label in it is of one of these
    cases.
    """
    from napari_jrss.io.dicom_labels import kind_of

    objects = {p.stem: p for p in sorted(existing_folder(folder).glob("*.dcm")) if kind_of(p)}
    named = [FoundCase(c, objects[c], objects[c]) for c in case_ids if c in objects]
    if named:
        return named
    found = _pairs([(each, Path(each)) for each in case_ids], folder, folder)
    return [case for case in found.cases if case.label is not None]


# What files of images and labels are matched by; "" if it can't be.
_Key: TypeAlias = Callable[[Path], str]


def _number(pattern: re.Pattern[str]) -> Callable[[str], str]:
    def number(name: str) -> str:
        match = pattern.match(name)
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
    return cohort_of("lpba40", found, images[0].parent, LPBA40_GROUPS)


def read_case_groups(path: Path, column: str, case_ids: Sequence[str]) -> dict[str, str]:
    """Read the subject group of each case from a CSV file with a header.

    Its first column holds the case id or the file's name, `column` the group, such as ``patient``.
    Raises a :class:`ScanError` if it can't be read, or has no such column, or no group for a case.
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
