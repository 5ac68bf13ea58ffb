"""Scans that are no cases, of one image or of as many as the cases of a project have."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.found import Part, Scan, scan_files, stem
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.project.project import Project

Images: TypeAlias = str | Path | Volume | Mapping[str, str | Path | Volume]
"""A scan: one image, or several by the names that a project has for them."""


@dataclass(frozen=True)
class NewScan:
    """A scan to be segmented: its images, the one that is registered first.

    `path` has the name that the label is named after; `problem` says what is missing.
    """

    path: Path
    images: tuple[Scan, ...]
    problem: str = ""


def volumes_of(project: Project, scan: Images) -> list[Volume]:
    """The images of one scan, in the order of the project.

    Raises
    ------
    ScanError
        An image is missing or can't be read.
    """
    if isinstance(scan, Mapping):
        names = project.channels
        if set(scan) != set(names):
            given = ", ".join(map(str, scan))
            raise ScanError(f"the images are {given}, not {', '.join(names) or 'one'}")
        images = [scan[name] for name in names]
    elif isinstance(scan, Volume) or not project.channels:
        images = [scan]
    else:
        found, *more = new_scans(project, [scan])
        if more:
            raise ScanError(f"{scan}: holds {1 + len(more)} scans, not the images of one")
        if found.problem:
            raise ScanError(found.problem)
        return [read_volume(image) for image in found.images]
    return [each if isinstance(each, Volume) else read_volume(each) for each in images]


def new_scans(project: Project, given: Sequence[str | Path]) -> list[NewScan]:
    """The scans of files, each of which is a scan, or one of the images of a scan.

    Where cases have several images, the files of a scan are told by the ends of their names, which
    are those of the project's own files or the names of the images; or they are named, as
    ``T1=a.nii.gz``. A file that holds several images, as the project's own, is a scan. So is each
    case of a folder of such files.

    Raises
    ------
    ProjectError
        Which image a file is can't be told.
    """
    paths = [Path(each) for each in given]
    if not project.channels:
        return [NewScan(path, (path,)) for path in paths]
    parts = _parts(project)
    named: list[dict[str, Path]] = []
    told: dict[tuple[Path, str], dict[str, Path]] = {}
    found: list[NewScan] = []
    for path in paths:
        name, equals, file = str(path).partition("=")
        if equals and name in project.channels:
            if not named or name in named[-1]:
                named.append({})
            named[-1][name] = Path(file)
            continue
        for each in scan_files(path) if path.is_dir() else [path]:
            if parts:
                found.append(NewScan(each, tuple(Part(each, part) for part in parts)))
                continue
            case, channel = _told(project, each)
            told.setdefault((each.parent, case), {})[channel] = each
    found += [_scan(project, images, next(iter(images.values()))) for images in named]
    found += [
        _scan(project, images, folder / f"{case}{_ending(next(iter(images.values())))}")
        for (folder, case), images in told.items()
    ]
    if not found:
        raise ProjectError(f"{paths[0]}: holds no scan")
    return found


def _scan(project: Project, images: Mapping[str, Path], path: Path) -> NewScan:
    lacking = [name for name in project.channels if name not in images]
    if lacking:
        return NewScan(path, (), f"{path}: has no {', '.join(lacking)}")
    return NewScan(path, tuple(images[name] for name in project.channels))


def _told(project: Project, path: Path) -> tuple[str, str]:
    """Name of the scan that a file belongs to, and which of its images it is."""
    endings = _endings(project)
    for name in project.channels:
        for ending in filter(None, (endings.get(name), name)):
            match = re.search(rf"(?:^|[._-]){re.escape(ending)}$", stem(path), re.IGNORECASE)
            if match is not None:
                return stem(path)[: match.start()] or path.absolute().parent.name, name
    names = " ".join(f"{name}=FILE" for name in project.channels)
    raise ProjectError(f"{path}: which image of its scan is it? Give the files as {names}")


def _endings(project: Project) -> dict[str, str]:
    """What the names of the project's own files end with, by the names of the images."""
    for case in project.cases()[:1]:
        about = project.attributes(case.case_id)
        sources = [about.source, *(channel.source for channel in about.channels)]
        stems = [stem(Path(source)) for source in sources]
        start = len(re.sub(r"[^._-]*$", "", _common_start(stems)))
        ends = [each[start:] for each in stems]
        if all(ends) and len(set(ends)) == len(ends):
            return dict(zip(project.channels, ends, strict=True))
    return {}


def _common_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in same)


def _parts(project: Project) -> list[int]:
    """Which image of one file each is, where the project's own files hold all images of a case."""
    for case in project.cases()[:1]:
        about = project.attributes(case.case_id)
        parts = [about.part, *(channel.part for channel in about.channels)]
        return [part - 1 for part in parts if part is not None]
    return []


def _ending(path: Path) -> str:
    return path.name.removeprefix(stem(path))
