"""Read label files and the tables that name their structures."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from napari_jrss.errors import ScanError, from_validation
from napari_jrss.io.found import Label, Scan
from napari_jrss.io.read import read_label, structures_named_in
from napari_jrss.io.text_files import read_json, read_rows, read_text
from napari_jrss.io.volume import ScanHeader, Volume
from napari_jrss.labels import BACKGROUND, MOST_CLASSES, LabelClass, LabelTable, default_colour

# Other names of the columns: BIDS, and American spelling.
_COLUMNS = {"index": "label", "color": "colour"}
_ITK_SNAP = re.compile(r'^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+[\d.]+\s+\d\s+\d\s+"(.*)"\s*$')
_COLOUR_TABLE = re.compile(r"^\s*(\d+)\s+(\S.*?)\s+(\d+)\s+(\d+)\s+(\d+)\s+\d+\s*$")


def label_table_from_file(path: Path | str, labels: Iterable[Label] | None = None) -> LabelTable:
    """Read a table of classes in any of the usual formats, told apart by its content.

    These are a CSV file as for :func:`label_table_from_csv`, the same with semicolons or tabs, such
    as the ``dseg.tsv`` of BIDS; a colour table of FreeSurfer or Slicer (number, name, red, green,
    blue, alpha); a label description of ITK-SNAP; or a ``dataset.json``. If the table lists more
    ids than a project can have, those in `labels` count. Other files are a :class:`ScanError`.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return label_table_from_dataset_json(path)
    lines = [line for line in read_text(path).splitlines() if line.strip() and line[0] != "#"]
    for pattern, order in ((_ITK_SNAP, (0, 4, 1, 2, 3)), (_COLOUR_TABLE, (0, 1, 2, 3, 4))):
        found = [match.groups() for line in lines if (match := pattern.match(line))]
        if found and len(found) == len(lines):
            entries: dict[int, tuple[str, str]] = {}
            for groups in found:
                label, name, red, green, blue = (groups[i] for i in order)
                if int(label) and int(label) not in entries:
                    rgb = bytes(min(int(part), 255) for part in (red, green, blue))
                    entries[int(label)] = (name, f"#{rgb.hex()}")
            return _table_of(path, entries, labels)
    return label_table_from_csv(path)


def _table_of(
    path: Path, entries: Mapping[int, tuple[str, str]], labels: Iterable[Label] | None
) -> LabelTable:
    """A class for each id with its name and colour; of too many, those that occur."""
    ids = sorted(entries)
    if len(ids) >= MOST_CLASSES and labels is not None:
        occur: set[int] = set()
        for label in labels:
            occur |= ids_in(label)
        ids = [i for i in ids if i in occur]
    try:
        classes = [
            LabelClass(index=n, name=entries[i][0], colour=entries[i][1], source_ids=(i,))
            for n, i in enumerate(ids, start=1)
        ]
        return LabelTable(classes=(BACKGROUND, *classes), unlisted_is_background=True)
    except ValidationError as error:
        raise ScanError(f"{path}: {from_validation(error)}") from error


def label_table_from_csv(path: Path | str) -> LabelTable:
    """Read a CSV table of classes; semicolons or tabs may separate the columns as well.

    It has the columns ``label`` (an id in label files; or ``index``) and ``name``. If it also has
    ``class_id`` and ``class_name``, ids with one ``class_id`` form one class; otherwise each id is
    a class. Ids that aren't listed are background. A column ``colour`` or ``color`` (#rrggbb) is
    optional.

    Raises a :class:`ScanError` if a column is missing, a number is not whole, or a class has two
    names or an id two classes.
    """
    path = Path(path)
    header, *table = read_rows(path) or [[]]
    if not header:
        raise ScanError(f"{path}: is empty")
    header = [_COLUMNS.get(name, name) for name in header]
    if len(set(header)) < len(header):
        raise ScanError(f"{path}: two columns have the same name")
    grouped = "class_id" in header
    index_column, name_column = ("class_id", "class_name") if grouped else ("label", "name")
    missing = [name for name in ("label", index_column, name_column) if name not in header]
    if missing:
        known = " ".join(", ".join(header).split())[:100]
        raise ScanError(f"{path}: has no column {missing[0]}, only {known}")
    ids: dict[int, list[int]] = defaultdict(list)
    names: dict[int, str] = {}
    colours: dict[int, str] = {}
    for line, cells in enumerate(table, start=2):
        if not cells:
            continue
        row = dict(zip(header, cells, strict=False))
        try:
            label, index, name = int(row["label"]), int(row[index_column]), row[name_column]
        except (KeyError, ValueError) as error:
            raise ScanError(
                f"{path}: line {line} needs whole numbers in label and {index_column}"
            ) from error
        if label == 0 or index == 0:
            continue
        if names.setdefault(index, name) != name:
            raise ScanError(f"{path}: line {line}: class {index} has two names")
        ids[index].append(label)
        if row.get("colour"):
            colours[index] = row["colour"].lower()
    if grouped and sorted(ids) != list(range(1, len(ids) + 1)):
        raise ScanError(f"{path}: class_id must run from 1 without gaps")
    try:
        classes = [
            LabelClass(
                index=index,
                name=names[key],
                colour=colours.get(key, default_colour(index)),
                source_ids=tuple(ids[key]),
            )
            for index, key in enumerate(sorted(ids), start=1)
        ]
        return LabelTable(classes=(BACKGROUND, *classes), unlisted_is_background=True)
    except ValidationError as error:
        raise ScanError(f"{path}: {from_validation(error)}") from error


def label_table_from_dataset_json(path: Path | str) -> LabelTable:
    """Read the labels of a Decathlon (id -> name) or nnU-Net (name -> id) ``dataset.json``.

    A label named ``ignore`` is no structure: its voxels are ignored. Raises a :class:`ScanError` if
    there are no usable ``labels``, or they are nnU-Net's regions, which overlap.
    """
    path = Path(path)
    entries = read_json(path).get("labels")
    if not isinstance(entries, dict) or not entries:
        raise ScanError(f"{path}: no labels")
    ids: dict[int, str] = {}
    for key, value in entries.items():
        if isinstance(value, list):
            raise ScanError(f"{path}: region {key!r} overlaps others; list plain labels")
        number, name = (key, value) if key.lstrip("-").isdigit() else (value, key)
        try:
            if not isinstance(number, str | int) or not isinstance(name, str):
                raise TypeError
            ids[int(number)] = name
        except (TypeError, ValueError) as error:
            raise ScanError(f"{path}: label {key[:100]!r} has no number or name") from error
    if len(ids) != len(entries):
        raise ScanError(f"{path}: two labels share a number")
    if len(set(ids.values())) < len(ids):
        raise ScanError(f"{path}: two labels share a name")
    # nnU-Net reserves this name for voxels that nobody labelled.
    ignored = next((i for i, name in ids.items() if name == "ignore"), None)
    ids.pop(ignored, None)  # type: ignore[arg-type]
    try:
        return LabelTable.from_ids(ids, ids).model_copy(update={"ignored_id": ignored})
    except ValidationError as error:
        raise ScanError(f"{path}: {from_validation(error)}") from error


def label_table_from_files(paths: Iterable[Label]) -> LabelTable:
    """Table with a class for each id that occurs in the files; unreadable files are ignored.

    Files that name their structures, such as DICOM SEG, give a class for each name. Raises a
    :class:`ScanError` if no file holds an id other than 0, or there are more than 254 ids.
    """
    ids: set[int] = set()
    named: dict[str, None] = {}
    first: ScanError | None = None
    for path in paths:
        try:
            names = structures_named_in(path)
            if names is None:
                ids |= _ids(path)
            else:
                named.update(dict.fromkeys(names))
        except ScanError as error:
            first = first or error  # reported when the case is read
        if len(ids) > MOST_CLASSES:
            raise ScanError(
                f"{path}: the labels have more than {MOST_CLASSES - 1} ids; give a CSV table "
                "that groups them into structures"
            )
    if named:
        return LabelTable.from_ids(range(1, len(named) + 1), dict(enumerate(named, start=1)))
    if not ids and first is not None:
        raise ScanError(f"no label file can be read ({first})")
    if not ids - {0}:
        raise ScanError("no label file holds anything but background")
    return LabelTable.from_ids(ids)


def ids_in(label: Label) -> set[int]:
    """Ids in a label file; none if it can't be read, which is reported when the case is read."""
    try:
        return _ids(label)
    except ScanError:
        return set()


def _ids(label: Label) -> set[int]:
    return set(np.unique(read_label(label)[0].array).tolist())


def read_classes(
    source: Label,
    table: LabelTable | None,
    unlisted: Counter[str] | None = None,
    image: Scan | ScanHeader | None = None,
) -> Volume:
    """Read a label file as class indices of a table; without a table, as its ids.

    Parameters
    ----------
    source
        The label.
    table
        The classes. If the label names its structures, these count, not its numbers, unless the
        table has none of the names.
    unlisted
        Gets the voxels of each id or structure that is background because the table doesn't
        list it.
    image
        The scan of the label or its geometry, without which some kinds can't be read.

    Raises
    ------
    ScanError
        The file can't be read, or holds an id that the table must list but doesn't.
    """
    label, names = read_label(source, image)
    if table is None:
        return label
    if names is not None and any(table.index_of(name) is not None for name in names.values()):
        classes = np.zeros(max(names) + 1, table.dtype)
        for number, name in names.items():
            index = table.index_of(name)
            if index is not None:
                classes[number] = index
            elif unlisted is not None and (voxels := int((label.array == number).sum())):
                unlisted[name] += voxels
        return replace(label, array=classes[label.array])
    try:
        return replace(label, array=table.to_classes(label.array, unlisted))
    except ScanError as error:
        raise ScanError(f"{label.source}: {error}") from error
