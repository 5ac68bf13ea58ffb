"""Layouts with folders in folders: BIDS, a folder for each case, masks; and a CSV of the cases."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_jrss.errors import ScanError
from napari_jrss.io.found import FoundCohort, Label, Masks, case_id_of, cohort_of, scan_files, stem
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


def nested(root: Path, files: Sequence[Path]) -> FoundCohort:
    """A folder for each case, with its scan and its label or its masks.

    The label is named ``label``, ``seg``, ``mask`` or the like, or ends so. Masks lie in a folder
    ``segmentations`` or the like beside the scan; or in the scan's folder, if the scan alone is
    named ``ct``, ``image`` or the like.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        by_folder[path.parent].append(path)
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


def _several(image: Path, found: Sequence[tuple[Path, Label | None]]) -> bool:
    return sum(other.parent == image.parent for other, _ in found) > 1


def bids(root: Path, files: Sequence[Path], series: str | None = None) -> FoundCohort:
    """BIDS: the scans of one kind in ``anat``, with the ``dseg`` of the scan's own space.

    The kind is `series`, or T1w if there are any, else the most frequent one.
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
    wanted = usual if series is None else series
    if wanted not in kinds:
        raise ScanError(f"{root}: has no {wanted} scans, only {', '.join(sorted(kinds))}")
    found: list[tuple[str, Path, Label | None]] = []
    left: list[LeftOut] = [
        LeftOut(f"{kind} ({number} files)", f"the cases are the {wanted} scans; see --series")
        for kind, number in sorted(kinds.items())
        if kind != wanted
    ]
    groups = {}
    for scan in (p for p in raw if _kind(p) == wanted):
        name = stem(scan).removesuffix(f"_{wanted}")
        fitting = [p for p in labels if stem(p).startswith(f"{name}_")]
        left += [LeftOut(p.name, f"{fitting[0].name} is the label of {name}") for p in fitting[1:]]
        found.append((name, scan, fitting[0] if fitting else None))
        groups[case_id_of(name)] = name.split("_")[0]
    tables = sorted(root.rglob("*dseg.tsv"))
    table = label_table_from_file(tables[0]) if tables and any(f[2] for f in found) else None
    return cohort_of("bids", found, root, table, left_out=tuple(left), groups=groups)


def _kind(path: Path) -> str:
    return stem(path).rpartition("_")[2]


def _own_space(path: Path) -> bool:
    return "space-" not in path.name or any(space in path.name for space in _OWN_SPACE)


def cohort_in_table(path: Path) -> FoundCohort:
    """The cases of a CSV file with the columns image, label, subject and split.

    Only image is needed. Paths are relative to the file. The split is train, validation, test or
    unused. A column case gives ids other than the files' names. Raises a :class:`ScanError` if a
    column is missing or unknown, or a line names no file or no such split.
    """
    header, *rows = read_rows(path) or [[]]
    known = ("image", "label", "subject", "split", "case")
    if "image" not in header or set(header) - set(known):
        raise ScanError(f"{path}: needs the column image, and of {', '.join(known[1:])} any")
    found: list[tuple[str, Path, Label | None]] = []
    columns: Mapping[str, dict[str, str]] = {"subject": {}, "split": {}}
    for line, cells in enumerate(rows, start=2):
        row = {key: cell.strip() for key, cell in zip(header, cells, strict=False) if cell.strip()}
        if not row:
            continue
        places = {key: path.parent / row[key] for key in ("image", "label") if key in row}
        missing = [place for place in places.values() if not place.is_file()]
        if "image" not in row or missing:
            what = f"{missing[0]}: no such file" if missing else "no image"
            raise ScanError(f"{path}: line {line}: {what}")
        if row.get("split", "train") not in _SPLITS:
            raise ScanError(f"{path}: line {line}: split is one of {', '.join(_SPLITS)}")
        name = row.get("case", stem(places["image"]))
        found.append((name, places["image"], places.get("label")))
        for key, values in columns.items():
            if key in row:
                values[case_id_of(name)] = row[key]
    return cohort_of("table", found, path, groups=columns["subject"], splits=columns["split"])
