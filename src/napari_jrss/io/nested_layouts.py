"""Layouts with folders in folders: BIDS, a folder for each case, masks; and a CSV of the cases."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_jrss.errors import ScanError
from napari_jrss.io.contrasts import complete, one_image, split_contrast, surely
from napari_jrss.io.found import (
    FoundCohort,
    Label,
    Masks,
    Scan,
    case_id_of,
    cohort_of,
    scan_files,
    stem,
)
from napari_jrss.io.label_files import label_table_from_file
from napari_jrss.io.text_files import read_rows
from napari_jrss.labels import LabelTable

if TYPE_CHECKING:
    from napari_jrss.io.dicom import LeftOut

_LABEL = r"(seg|segmentation|label|labels|labelmap|mask|dseg)"
LABEL_SUFFIX = re.compile(rf"[._-]{_LABEL}$", re.IGNORECASE)
"""The end of the name of a label that stands beside its scan."""

_LABEL_NAME = re.compile(rf"^(.*[._-])?{_LABEL}$", re.IGNORECASE)
_MASK_FOLDER = re.compile(r"^(seg|mask|label|structure)", re.IGNORECASE)
_SCAN_NAME = re.compile(r"^(ct|cta|mr|mri|t1|t1w|t2|t2w|image|img|imaging|scan|volume)$", re.I)
# Derivatives on the voxels of the scan itself; other spaces are templates.
_OWN_SPACE = ("space-orig", "space-T1w", "space-individual", "space-native")
_SPLITS = ("train", "validation", "test", "unused")


def masks_in(labels: Path, names: Iterable[str]) -> dict[str, Masks]:
    """Masks of the scans of these names: ``labels/<name>/<structure>.nii.gz``."""
    found = {}
    for name in names:
        folder = labels / name
        files = scan_files(folder) if folder.is_dir() else []
        if not files and folder.is_dir():
            inside = [p for p in sorted(folder.iterdir()) if p.is_dir()]
            files = scan_files(inside[0]) if len(inside) == 1 else []
        if files:
            found[name] = _masks(files)
    return found


def table_of_masks(masks: Iterable[Label | None]) -> LabelTable:
    """A class for each structure that has a mask, by name."""
    names = sorted({name for each in masks if isinstance(each, Masks) for name, _ in each.files})
    return LabelTable.from_ids(range(1, len(names) + 1), dict(enumerate(names, start=1)))


def _masks(files: Sequence[Path]) -> Masks:
    return Masks(files[0].parent, tuple((stem(path), path) for path in files))


def nested(root: Path, files: Sequence[Path], channels: Sequence[str] = ()) -> FoundCohort:
    """A folder for each case, with its scan and its label or its masks.

    Several scans of a folder are the images of one case if all are named by contrasts, such as T1
    and FLAIR, and most folders have all of these; `channels` are those that count.

    The label is named ``label``, ``seg``, ``mask`` or the like, or ends so. Masks lie in a folder
    ``segmentations`` or the like beside the scan; or in the scan's folder, if the scan alone is
    named ``ct``, ``image`` or the like.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        by_folder[path.parent].append(path)
    if (contrasts := _contrasts(root, by_folder, channels)) is not None:
        return contrasts
    if channels:
        raise one_image(root, channels)
    found: list[tuple[Path, Label | None]] = []
    alone: list[Path] = []
    for folder, inside in sorted(by_folder.items()):
        if _MASK_FOLDER.match(folder.name) and folder.parent in by_folder:
            continue  # the masks of the scan one folder up
        scans = [p for p in inside if not _LABEL_NAME.match(stem(p))]
        labels = [p for p in inside if _LABEL_NAME.match(stem(p))]
        named = [p for p in scans if _SCAN_NAME.match(stem(p))]
        below = [f for f in by_folder if f.parent == folder and _MASK_FOLDER.match(f.name)]
        if len(scans) == 1 and not labels and below:
            found.append((scans[0], _masks(by_folder[below[0]])))
        elif len(named) == 1 and len(scans) > 1 and not labels:
            found.append((named[0], _masks([p for p in scans if p != named[0]])))
        elif len(scans) == 1:
            found.append((scans[0], labels[0] if labels else None))
            alone += labels[1:]
        else:
            by_name = {LABEL_SUFFIX.sub("", stem(p)): p for p in labels}
            found += [(p, by_name.pop(stem(p), None)) for p in scans]
            alone += by_name.values()
    count = Counter(case_id_of(stem(image)).lower() for image, _ in found)
    named_cases = []
    for image, label in found:
        name = stem(image)
        if count[case_id_of(name).lower()] > 1:  # such as ct: the folder tells the case
            parts = list(image.parent.relative_to(root).parts)
            name = "_".join([*parts, *([name] if _several(image, found) else [])])
        named_cases.append((name, image, label))
    masks = [label for _, label in found if isinstance(label, Masks)]
    return cohort_of(
        *("masks" if masks else "nested", named_cases, root),
        table_of_masks(masks) if masks else None,
        alone,
    )


def _contrasts(
    root: Path, by_folder: Mapping[Path, Sequence[Path]], channels: Sequence[str]
) -> FoundCohort | None:
    """Cases of several images each, a folder for each case; None if they aren't."""
    cases: dict[str, dict[str, Scan]] = {}
    labels: dict[str, Label] = {}
    alone: list[Path] = []
    for folder, inside in sorted(by_folder.items()):
        if _MASK_FOLDER.match(folder.name) and folder.parent in by_folder:
            continue
        split = {p: split_contrast(stem(p)) for p in inside if not _LABEL_NAME.match(stem(p))}
        starts = {None if each is None else each[0] for each in split.values()}
        if len(starts) != 1 or None in starts:
            return None
        name = starts.pop() or "_".join(folder.relative_to(root).parts)
        if not name or name in cases:
            return None
        cases[name] = {each[1]: path for path, each in split.items() if each is not None}
        found = [p for p in inside if p not in split]
        below = [f for f in by_folder if f.parent == folder and _MASK_FOLDER.match(f.name)]
        if found:
            labels[name] = found[0]
            alone += found[1:]
        elif below:
            labels[name] = _masks(by_folder[below[0]])
    groups = surely(cases, channels, root)
    if groups is None:
        return None
    masks = [label for label in labels.values() if isinstance(label, Masks)]
    firsts = ((name, image, labels.get(name)) for name, image in groups.first)
    table = table_of_masks(masks) if masks else None
    return groups.into(cohort_of("masks" if masks else "nested", firsts, root, table, alone))


def _several(image: Path, found: Sequence[tuple[Path, Label | None]]) -> bool:
    return sum(other.parent == image.parent for other, _ in found) > 1


def bids(
    root: Path,
    files: Sequence[Path],
    series: str | None = None,
    channels: Sequence[str] = (),
) -> FoundCohort:
    """BIDS: the scans in ``anat``, with the ``dseg`` of the first one's own space.

    A case has one image of each of the kinds `channels`. Without these it is `series` alone, or
    T1w if there are any, else the most frequent kind; and every kind that all of these cases have.
    """
    from napari_jrss.io.dicom import LeftOut

    labels = [p for p in files if stem(p).endswith("_dseg") and _own_space(p)]
    raw = [
        p
        for p in files
        if p.parent.name == "anat"
        and p.relative_to(root).parts[0].startswith("sub-")
        and not _LABEL_NAME.match(stem(p))
    ]
    kinds = Counter(_kind(p) for p in raw)
    if not kinds:
        raise ScanError(f"{root}: a BIDS folder without scans in anat")
    usual = "T1w" if "T1w" in kinds else kinds.most_common(1)[0][0]
    wanted = channels[0] if channels else usual if series is None else series
    if series is not None and channels:
        raise ScanError(f"{root}: give the series or the channels, not both")
    if unknown := [kind for kind in (wanted, *channels) if kind not in kinds]:
        raise ScanError(f"{root}: has no {unknown[0]} scans, only {', '.join(sorted(kinds))}")
    first = [p for p in raw if _kind(p) == wanted]
    images = {stem(p).removesuffix(f"_{wanted}"): _of_one_visit(p, raw) for p in first}
    if not channels:
        others = sorted(kinds) if series is None and len(images) == len(first) else []
        everywhere = [k for k in others if all(k in each for each in images.values())]
        channels = [wanted, *(kind for kind in everywhere if kind != wanted)]
    groups = complete(images, sorted(kinds), channels, root)
    found: list[tuple[str, Path, Label | None]] = []
    left: list[LeftOut] = [
        LeftOut(
            f"{kind} ({number} files)",
            f"the cases are the {' and '.join(channels)} scans; see --series and --channels",
        )
        for kind, number in sorted(kinds.items())
        if kind not in channels
    ]
    subjects = {}
    for name, scan in groups.first:
        fitting = [p for p in labels if stem(p).startswith(f"{name}_")]
        left += [LeftOut(p.name, f"{fitting[0].name} is the label of {name}") for p in fitting[1:]]
        found.append((name, scan, fitting[0] if fitting else None))
        subjects[case_id_of(name)] = name.split("_")[0]
    tables = sorted(root.rglob("*dseg.tsv"))
    table = label_table_from_file(tables[0]) if tables and any(f[2] for f in found) else None
    return groups.into(cohort_of("bids", found, root, table, left_out=tuple(left), groups=subjects))


def _of_one_visit(scan: Path, files: Sequence[Path]) -> dict[str, Scan]:
    """A scan, and the others of its subject and session by their kinds.

    Of several of one kind the one counts whose name differs in the kind alone; else none does.
    """
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if _visit(path) == _visit(scan):
            by_kind[_kind(path)].append(path)
    images: dict[str, Scan] = {_kind(scan): scan}
    start = stem(scan).removesuffix(_kind(scan))
    for kind, paths in by_kind.items():
        same = [path for path in paths if stem(path) == f"{start}{kind}"] or paths
        if kind not in images and len(same) == 1:
            images[kind] = same[0]
    return images


def _visit(path: Path) -> tuple[str, ...]:
    return tuple(part for part in stem(path).split("_") if part.startswith(("sub-", "ses-")))


def _kind(path: Path) -> str:
    return stem(path).rpartition("_")[2]


def _own_space(path: Path) -> bool:
    return "space-" not in path.name or any(space in path.name for space in _OWN_SPACE)


def cohort_in_table(path: Path, channels: Sequence[str] = ()) -> FoundCohort:
    """The cases of a CSV file with the columns image, label, subject and split.

    Only image is needed; of several images of a case, the columns are image:T1, image:FLAIR and the
    like, or image, image2 and so on. `channels` are those that count, all by default. Paths are
    relative to the file. The split is train, validation, test or unused. A column case gives ids
    other than the files' names. Raises a :class:`ScanError` if a column is missing or unknown, or a
    line names no file or no such split.
    """
    header, *rows = read_rows(path) or [[]]
    known = ("image", "label", "subject", "split", "case")
    columns_of = {name: key for key in header if (name := _image_name(key))}
    if not columns_of or set(header) - set(known) - set(columns_of.values()):
        raise ScanError(f"{path}: needs the column image, and of {', '.join(known[1:])} any")
    cases: dict[str, dict[str, Scan]] = {}
    labels: dict[str, Label | None] = {}
    columns: Mapping[str, dict[str, str]] = {"subject": {}, "split": {}}
    for line, cells in enumerate(rows, start=2):
        row = {key: cell.strip() for key, cell in zip(header, cells, strict=False) if cell.strip()}
        if not row:
            continue
        keys = ("label", *columns_of.values())
        places = {key: path.parent / row[key] for key in keys if key in row}
        missing = [place for place in places.values() if not place.is_file()]
        images: dict[str, Scan] = {n: places[k] for n, k in columns_of.items() if k in row}
        if not images or missing:
            what = f"{missing[0]}: no such file" if missing else "no image"
            raise ScanError(f"{path}: line {line}: {what}")
        if row.get("split", "train") not in _SPLITS:
            raise ScanError(f"{path}: line {line}: split is one of {', '.join(_SPLITS)}")
        name = row.get("case", stem(places[next(k for k in columns_of.values() if k in row)]))
        if name in cases:
            raise ScanError(f"{path}: line {line}: the case {name} is listed twice")
        cases[name], labels[name] = images, places.get("label")
        for key, values in columns.items():
            if key in row:
                values[case_id_of(name)] = row[key]
    groups = complete(cases, list(columns_of), channels, path)
    found = ((name, image, labels[name]) for name, image in groups.first)
    kept = {case_id_of(name) for name in groups.cases}
    subjects, splits = ({k: v for k, v in each.items() if k in kept} for each in columns.values())
    return groups.into(cohort_of("table", found, path, groups=subjects, splits=splits))


def _image_name(column: str) -> str:
    """The name of the images in a column of a table; empty for another column."""
    if column.startswith("image:"):
        return " ".join(column.removeprefix("image:").split())
    return column if re.fullmatch(r"image\d*", column) else ""
