"""Find the cases in a folder that follows one of the usual layouts."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from napari_jrss.errors import ScanError
from napari_jrss.geometry import corners, map_points, whole_box
from napari_jrss.io.contrasts import NUMBER, complete, grouped, names_of, one_image
from napari_jrss.io.found import (
    FoundCase,
    FoundCohort,
    Part,
    Scan,
    cohort_of,
    doubles,
    existing_folder,
    scan_files,
    stem,
)
from napari_jrss.io.label_files import ids_in, label_table_from_dataset_json
from napari_jrss.io.nested_layouts import (
    LABEL_SUFFIX,
    bids,
    cohort_in_table,
    masks_in,
    nested,
    table_of_masks,
)
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

__all__ = [
    "FoundCase",
    "FoundCohort",
    "Scan",
    "discover",
    "discover_dicom",
    "labels_of",
    "read_case_groups",
    "series_in_words",
    "stem",
    "write_dicom_map",
]

_LPBA40_IMAGE = re.compile(r"^(S\d\d)\.delineation\.skullstripped\.")
_NUMBERED_IMAGE = re.compile(r"^(?:pancreas|img|image)\D*0*(\d+)$", re.IGNORECASE)
_NUMBERED_LABEL = re.compile(r"^label\D*0*(\d+)$", re.IGNORECASE)
# Corners of a label and its series lie less far apart than this.
_SAME_PLACE_MM = 0.1
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
        return _described(root, channels)
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


def discover_dicom(
    folder: Path | str,
    labels: Path | str | None = None,
    series: str | None = None,
    channels: Sequence[str] = (),
) -> FoundCohort:
    """Find the image series in a folder of DICOM files; each is a case, or each study is one.

    Case ids and patient groups are pseudonyms, new ones at each call; see
    :func:`~napari_jrss.io.dicom.find_series`. A SEG or RTSTRUCT in the folder is the label of the
    series that it refers to.

    Parameters
    ----------
    folder
        Holds any number of patients, studies and series, in any order, and any other files.
    labels
        Folder of further labels: SEG or RTSTRUCT; or files such as NIfTI, named after the folder,
        the Series Instance UID or the Patient ID of a series, or the only ones on its voxels.
    series
        Only series whose description matches count, such as ``*T1*``; case doesn't matter.
    channels
        The images of a case, which are series of one study: a name, whose series' description
        holds it, or a name and a pattern of the description, such as ``FLAIR=*tirm*``. The first is
        registered. A study that lacks one, or has two, is left out. None: each series is a case.

    Raises
    ------
    ScanError
        There is no such folder, no usable series in it, or no label belongs to a series; or no
        study has all images.
    """
    from napari_jrss.io.dicom import (
        LeftOut,
        UnusableDicomError,
        find_labelled_series,
        no_series,
        patient_groups,
    )

    found, left, by_name = find_labelled_series(folder)
    if not found:
        raise no_series(folder, left)
    if series is not None:
        kept = [s for s in found if fnmatch(s.description.lower(), series.lower())]
        if not kept:
            known = sorted({s.description or "(none)" for s in found})
            raise UnusableDicomError(
                f"{folder}: no series is described as {series}: {', '.join(known)}"
            )
        others = Counter(s.description for s in found if s not in kept)
        left += [
            LeftOut(f"{n} x {name or '(no description)'}", f"not described as {series}")
            for name, n in sorted(others.items())
        ]
        found = kept
    further: dict[str, tuple[DicomSeries, ...]] = {}
    if channels:
        studies, of_no_case = _studies(found, channels, Path(folder))
        left += of_no_case
        further = {first.name: tuple(rest) for first, *rest in studies}
        left += [
            LeftOut(path.name, f"a label of another image than {_named(channels[0])[0]}")
            for s in found
            for path in (() if s.name in further else by_name.get(s.name, ()))
        ]
        found = [first for first, *_ in studies]
    files: dict[str, list[Path]] = {s.name: by_name.get(s.name, []) for s in found}
    alone: list[Path] = []
    if labels is not None:
        alone = _add_labels(found, files, existing_folder(labels))
    left += [
        LeftOut(path.name, "its series has another label")
        for paths in files.values()
        for path in paths[1:]
    ]
    return FoundCohort(
        "dicom",
        tuple(
            FoundCase(s.name, s, next(iter(files[s.name]), None), further.get(s.name, ()))
            for s in found
        ),
        unmatched_labels=tuple(alone),
        left_out=tuple(left),
        groups=patient_groups(found),
        channels=tuple(_named(channel)[0] for channel in channels) if len(channels) > 1 else (),
    )


def _named(channel: str) -> tuple[str, str]:
    """Name of an image, and the pattern that its series' description matches."""
    name, equals, pattern = channel.partition("=")
    return name.strip(), pattern.strip() if equals else f"*{name.strip()}*"


def _place(series: Sequence[DicomSeries], folder: Path) -> str:
    """Where the files of a study lie, for the screen."""
    place = os.path.commonpath([f.parent.absolute() for s in series for f in s.files])
    return f"study in {os.path.relpath(place, folder.absolute())}"


def series_in_words(cohort: FoundCohort, folder: Path) -> list[str]:
    """What :func:`discover_dicom` took from a folder, a line each, for the screen.

    Each study with the series that are its images; where each series is a case, how many series
    have which description.
    """
    if cohort.layout != "dicom":
        return []
    cases = [cast("tuple[DicomSeries, ...]", (c.image, *c.others)) for c in cohort.cases]
    if not cohort.channels:
        counts = Counter(first.description or "(no description)" for first, *_ in cases)
        return [f"{n} x {description}" for description, n in sorted(counts.items())]
    lines = []
    for images in cases:
        named = zip(cohort.channels, images, strict=True)
        words = ", ".join(f"{name} is {series.description!r}" for name, series in named)
        lines.append(f"{_place(images, folder)}: {words}")
    return sorted(lines)


def _studies(
    series: Sequence[DicomSeries], channels: Sequence[str], folder: Path
) -> tuple[list[list[DicomSeries]], list[LeftOut]]:
    """The series of each study in the order of the images, and the studies that lack one.

    Raises a :class:`ScanError` if no study has all.
    """
    from napari_jrss.io.dicom import LeftOut, UnusableDicomError

    wanted = [_named(channel) for channel in channels]
    names = [name for name, _ in wanted]
    if len(set(names)) < len(names) or not all(names):
        raise ScanError(f"{folder}: name each image once: {', '.join(channels)}")
    by_study: dict[str, list[DicomSeries]] = defaultdict(list)
    for each in series:
        by_study[each.study].append(each)
    whole: list[list[DicomSeries]] = []
    left: list[LeftOut] = []
    unused: Counter[str] = Counter()
    for group in by_study.values():
        chosen: list[DicomSeries] = []
        problem = ""
        for name, pattern in wanted:
            fits = [s for s in group if fnmatch(s.description.lower(), pattern.lower())]
            if len(fits) == 1 and fits[0] not in chosen:
                chosen.append(fits[0])
            elif not fits:
                problem = problem or f"has no {name}: no series is described as {pattern}"
            else:
                told = ", ".join(sorted(repr(s.description) for s in fits))
                problem = problem or (
                    f"which series is {name}? {pattern} fits {told}: give a pattern that fits one, "
                    f"as {name}=PATTERN"
                )
        if problem:
            left.append(LeftOut(f"{_place(group, folder)} ({len(group)} series)", problem))
        else:
            whole.append(chosen)
            unused.update(s.description for s in group if s not in chosen)
    left.sort(key=lambda each: each.what)
    if not whole:
        (reason, _), *_ = Counter(each.reason for each in left).most_common(1)
        raise UnusableDicomError(f"{folder}: no study has all images ({reason})")
    left += [
        LeftOut(f"{n} x {name or '(no description)'}", f"none of {', '.join(names)}")
        for name, n in sorted(unused.items())
    ]
    return whole, left


def _add_labels(
    series: Sequence[DicomSeries], files: dict[str, list[Path]], folder: Path
) -> list[Path]:
    """Give each label of a folder to its series; returns those that belong to none.

    Raises a :class:`ScanError` if none belongs to a series, or which one can't be told.
    """
    from napari_jrss.io.dicom import UnusableDicomError
    from napari_jrss.io.dicom_labels import kind_of, series_labelled_by

    alone: list[Path] = []
    by_place: dict[str, list[Path]] = {s.name: [] for s in series}
    objects = [p for p in sorted(folder.rglob("*")) if p.is_file() and kind_of(p)]
    for path in objects:
        uid = series_labelled_by(path)
        of = [s for s in series if s.uid == uid]
        (files[of[0].name] if of else alone).append(path)
    for path in scan_files(folder, deep=True):
        names = {stem(path), LABEL_SUFFIX.sub("", stem(path))}
        of = [s for s in series if names & {s.uid, s.patient, s.files[0].parent.name}]
        if len(of) == 1:
            files[of[0].name].append(path)
            continue
        of = [s for s in series if _same_voxels(path, s)]
        if len(of) == 1:
            by_place[of[0].name].append(path)
        else:
            alone.append(path)
    for name, paths in by_place.items():
        if len(paths) > 1 and not files[name]:
            raise UnusableDicomError(
                f"{folder}: {paths[0].name} and {paths[1].name} both lie on the voxels of one "
                "series: name a label as the folder, SeriesInstanceUID or PatientID of its series"
            )
        files[name] += paths
    if not any(files.values()):
        raise UnusableDicomError(
            f"{folder}: no label belongs to a series: name a label as the folder, "
            "SeriesInstanceUID or PatientID of its series"
        )
    return alone


def _same_voxels(path: Path, series: DicomSeries) -> bool:
    """Whether a label's voxels are those of a series, whatever the order of their axes."""
    from napari_jrss.io.read import read_header

    try:
        label = read_header(path)
    except ScanError:
        return False
    ends = [
        np.sort(map_points(affine, corners(whole_box(shape))), axis=0)
        for affine, shape in (
            (label.affine, label.shape[::-1]),
            (np.array(series.affine), series.shape),
        )
    ]
    same = sorted(label.shape) == sorted(series.shape)
    return same and bool(np.abs(ends[0] - ends[1]).max() < _SAME_PLACE_MM)


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


def _described(root: Path, wanted: Sequence[str]) -> FoundCohort:
    """Cases of a dataset.json: the Decathlon lists the files, nnU-Net names them by a rule."""
    path = root / "dataset.json"
    description = read_json(path)
    names = names_of(description, path)
    table = label_table_from_dataset_json(path)
    listed = description.get("training")
    if isinstance(listed, list) and not {"file_ending", "channel_names"} & set(description):
        tests = description.get("test")
        further = [_listed(root, path, e) for e in tests] if isinstance(tests, list) else []
        pairs = [_listed(root, path, entry) for entry in listed]
        pairs += [pair for pair in further if pair[0].is_file()]  # scans without a label
        label_of = {NUMBER.sub("", stem(i)): label for i, label in pairs}
        cases = {NUMBER.sub("", stem(i)): _images_in(i, names) for i, _ in pairs}
        if len(cases) < len(pairs):
            return cohort_of("decathlon", ((stem(i), i, k) for i, k in pairs), root, table)
        groups = complete(cases, names, wanted, root)
        firsts = ((name, image, label_of[name]) for name, image in groups.first)
        return groups.into(cohort_of("decathlon", firsts, root, table))
    ending = str(description.get("file_ending", ".nii.gz"))
    found: dict[str, dict[str, Scan]] = {}
    labelled: dict[str, Path | None] = {}
    alone: list[Path] = []
    existing_folder(root / "imagesTr")
    for part in ("Tr", "Ts"):  # imagesTs are scans without a label, or with one in labelsTs
        folders = [root / f"{kind}{part}" for kind in ("images", "labels")]
        images, labels = (scan_files(f) if f.is_dir() else [] for f in folders)
        by_name = {p.name.removesuffix(ending): p for p in labels}
        for number, channel in enumerate(names):
            end = f"_{number:04d}{ending}"
            for image in (each for each in images if each.name.endswith(end)):
                name = image.name.removesuffix(end)
                found.setdefault(name, {})[channel] = image
                labelled.setdefault(name, by_name.pop(name, None))
        alone += by_name.values()
    groups = complete(found, names, wanted, root / "imagesTr")
    firsts = ((name, image, labelled[name]) for name, image in groups.first)
    return groups.into(cohort_of("nnunet", firsts, root / "imagesTr", table, alone))


def _images_in(image: Path, names: Sequence[str]) -> dict[str, Scan]:
    """The images of a case of the Decathlon, or of nnU-Net 1 with a file for each, by name."""
    if len(names) == 1:
        return {names[0]: image}
    if not NUMBER.search(stem(image)):
        return {name: Part(image, number) for number, name in enumerate(names)}
    base, ending = NUMBER.sub("", stem(image)), image.name.removeprefix(stem(image))
    files = {n: image.with_name(f"{base}_{i:04d}{ending}") for i, n in enumerate(names)}
    return {name: file for name, file in files.items() if file.is_file()}


def _listed(root: Path, path: Path, entry: Any) -> tuple[Path, Path | None]:
    """Image and label that an entry of a dataset.json names; a scan for tests is only a name."""
    if isinstance(entry, str):
        return _inside(root, path, entry), None
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
        name = stem(file)
        channel = file.with_name(f"{name}_0000{file.name.removeprefix(name)}")
        return channel if channel.exists() else file
    except ScanError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # not a possible name of a file
        raise ScanError(f"{path}: {name[:100]!r} can't be a file") from error


def write_dicom_map(path: Path, cases: Iterable[FoundCase], channels: Sequence[str] = ()) -> None:
    """Write a CSV of the patient and series of each case, which only its owner may read.

    Where cases have several images, named `channels`, there is a row for each.

    It is a new file outside the project; an ``OSError`` if it exists or can't be written.
    """
    from napari_jrss.io.dicom import DicomSeries

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", newline="", encoding="utf-8") as file:  # noqa: PTH123
        table = csv.writer(file)
        about = ["case_id", "patient_id", "series_instance_uid", "folder", "description"]
        table.writerow([*about, *(["image"] if channels else [])])
        for case in cases:
            images = zip(channels or ("",), (case.image, *case.others), strict=True)
            for name, series in images:
                if isinstance(series, DicomSeries):
                    folder = os.path.commonpath([f.parent.absolute() for f in series.files])
                    row = [case.case_id, series.patient, series.uid, folder, series.description]
                    table.writerow([*row, *([name] if channels else [])])


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
