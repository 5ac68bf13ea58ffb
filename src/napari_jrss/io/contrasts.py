"""Several images of each case, such as T1 and FLAIR: which files belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_jrss.errors import ScanError
from napari_jrss.io.found import FoundCohort, Scan, stem
from napari_jrss.io.text_files import read_json

if TYPE_CHECKING:
    from napari_jrss.io.dicom import LeftOut

NUMBER = re.compile(r"_(\d{4})$")
"""The end of the name of an image in nnU-Net's form."""

_CONTRAST = re.compile(
    r"(?:^|[._-])"
    r"(t1w?|t1-?(?:n|c|ce|gd|km|post)|t2w?|t2f|t2star|flair|adc|dwi|pdw?|swi|ct|cta|pet|suv)$",
    re.IGNORECASE,
)
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Groups:
    """The images of each case, by the case's name and the image's name.

    `channels` are the names of the images that each of `cases` has, the first is shown and
    registered; `left_out` are cases that lack one.
    """

    channels: tuple[str, ...]
    cases: Mapping[str, Mapping[str, Scan]]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def first(self) -> list[tuple[str, Any]]:
        """Name of each case, and its first image."""
        return [(name, images[self.channels[0]]) for name, images in self.cases.items()]

    def into(self, cohort: FoundCohort) -> FoundCohort:
        """The cohort of the first images, with the others."""
        by_first = {images[self.channels[0]]: images for images in self.cases.values()}
        return replace(
            cohort,
            cases=tuple(
                replace(
                    case, others=tuple(by_first[case.image][name] for name in self.channels[1:])
                )
                for case in cohort.cases
            ),
            channels=self.channels if len(self.channels) > 1 else (),
            left_out=(*cohort.left_out, *self.left_out),
        )


def complete(
    cases: Mapping[str, Mapping[str, Scan]],
    names: Sequence[str],
    wanted: Sequence[str],
    where: Path,
) -> Groups:
    """The cases that have all of the images `wanted`, or of all `names` if none is wanted.

    Raises a :class:`ScanError` if there is no image of a wanted name, or no case has all.
    """
    from napari_jrss.io.dicom import LeftOut

    if len(names) == 1 and wanted and list(wanted) != list(names):
        raise one_image(where, wanted)
    channels = tuple(wanted) or tuple(names)
    known = dict.fromkeys(names)
    if unknown := [name for name in channels if name not in known]:
        raise ScanError(f"{where}: has no images {unknown[0]!r}, only {', '.join(known)}")
    if len(set(channels)) < len(channels):
        raise ScanError(f"{where}: an image is named twice: {', '.join(channels)}")
    whole, left = {}, []
    for case, images in cases.items():
        lacking = [name for name in channels if name not in images]
        if lacking:
            left.append(LeftOut(case, f"has no {', '.join(lacking)}"))
        else:
            whole[case] = images
    if cases and not whole:
        reason = f" ({left[0].what} {left[0].reason})" if left else ""
        raise ScanError(f"{where}: no case has all of {', '.join(channels)}{reason}")
    return Groups(channels, whole, tuple(left))


def one_image(where: Path, wanted: Sequence[str]) -> ScanError:
    """The error of somebody who asked for named images where each case has one."""
    return ScanError(f"{where}: has one image of each case, so none is named {wanted[0]}")


def grouped(files: Iterable[Path], wanted: Sequence[str], where: Path) -> Groups | None:
    """The images of each case among the files of one folder; None where each file is a case.

    They are told by nnU-Net's numbers, or by contrasts at the end of all names, if more than half
    of the cases have all of these.
    """
    files = list(files)
    by_number: dict[str, dict[str, Scan]] = {}
    for path in files:
        if match := NUMBER.search(stem(path)):
            by_number.setdefault(stem(path)[: match.start()], {})[match[1]] = path
    numbers = sorted({number for images in by_number.values() for number in images})
    if by_number and any({"0000", "0001"} <= images.keys() for images in by_number.values()):
        if sum(map(len, by_number.values())) < len(files):
            return None
        names = dict(zip(numbers, _described(where, numbers), strict=True))
        cases = {
            case: {names[number]: path for number, path in images.items()}
            for case, images in by_number.items()
        }
        return complete(cases, list(names.values()), wanted, where)
    by_contrast: dict[str, dict[str, Scan]] = {}
    for path in files:
        split = split_contrast(stem(path))
        if split is None or not split[0]:
            return None
        by_contrast.setdefault(split[0], {})[split[1]] = path
    return surely(by_contrast, wanted, where)


def split_contrast(name: str) -> tuple[str, str] | None:
    """The name of a case, which may be empty, and the contrast that a file's name ends with."""
    match = _CONTRAST.search(name)
    return None if match is None else (name[: match.start()], match[1])


def surely(
    cases: Mapping[str, Mapping[str, Scan]], wanted: Sequence[str], where: Path
) -> Groups | None:
    """The groups if they are sure: more than half of the cases have all of several contrasts."""
    names = list(dict.fromkeys(name for images in cases.values() for name in sorted(images)))
    names.sort(key=str.lower)
    whole = sum(len(images) == len(names) for images in cases.values())
    if len(names) < 2 or whole * 2 <= len(cases):
        return None
    return complete(cases, names, wanted, where)


def _described(where: Path, numbers: Sequence[str]) -> Sequence[str]:
    """Names of nnU-Net's numbers by the ``dataset.json`` of a folder or of that above it."""
    for folder in (where, where.parent):
        path = folder / "dataset.json"
        if path.is_file():
            known = names_of(read_json(path), path)
            if len(known) > int(numbers[-1]):
                return [known[int(number)] for number in numbers]
    return numbers


def names_of(description: Mapping[str, Any], path: Path) -> list[str]:
    """Names of the images in the order of a ``dataset.json`` at `path`; one without a name."""
    listed = description.get("channel_names", description.get("modality"))
    if not isinstance(listed, dict) or not listed:
        return [""]
    try:
        ordered = [listed[key] for key in sorted(listed, key=int)]
    except ValueError as error:
        raise ScanError(f"{path}: images are numbered, not {next(iter(listed))!r}") from error
    names: list[str] = []
    for number, value in enumerate(ordered):
        name = " ".join(str(value).split()).replace(",", " ")[:_LONGEST_NAME] or f"{number:04d}"
        names.append(f"{name} {number + 1}" if name in names else name)
    return names
