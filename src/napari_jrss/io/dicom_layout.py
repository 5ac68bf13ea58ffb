"""Find the cases in a folder of DICOM files: each series is one, or each study."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from napari_jrss.errors import ScanError
from napari_jrss.geometry import corners, map_points, whole_box
from napari_jrss.io.found import FoundCase, FoundCohort, existing_folder, scan_files, stem
from napari_jrss.io.nested_layouts import LABEL_SUFFIX

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries, LeftOut

# Corners of a label and its series lie less far apart than this.
_SAME_PLACE_MM = 0.1


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
