"""Read label files and the tables that name their structures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from napari_jrss.errors import ScanError, from_validation
from napari_jrss.io.nifti import read_label_volume
from napari_jrss.io.text_files import read_json, read_rows
from napari_jrss.io.volume import Volume
from napari_jrss.labels import BACKGROUND, MOST_CLASSES, LabelClass, LabelTable, default_colour


def label_table_from_csv(path: Path | str) -> LabelTable:
    """Read a CSV table of classes.

    Parameters
    ----------
    path
        Has the columns ``label`` (an id in label files) and ``name``. If it also has
        ``class_id`` and ``class_name``, ids with one ``class_id`` form one class, and ids that
        aren't listed are background; otherwise each id is a class, and other ids are an error.
        A column ``colour`` (#rrggbb) is optional.

    Raises
    ------
    ScanError
        A column is missing, a number is not whole, or a class has two names or an id two
        classes.
    """
    path = Path(path)
    header, *table = read_rows(path) or [[]]
    if not header:
        raise ScanError(f"{path}: is empty")
    if len(set(header)) < len(header):
        raise ScanError(f"{path}: two columns have the same name")
    grouped = "class_id" in header
    index_column, name_column = ("class_id", "class_name") if grouped else ("label", "name")
    missing = [name for name in ("label", index_column, name_column) if name not in header]
    if missing:
        known = " ".join(", ".join(header).split())[:100]
        raise ScanError(
            f"{path}: has no column {missing[0]}, only {known}; commas must separate the columns"
        )
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
        return LabelTable(classes=(BACKGROUND, *classes), unlisted_is_background=grouped)
    except ValidationError as error:
        raise ScanError(f"{path}: {from_validation(error)}") from error


def label_table_from_dataset_json(path: Path | str) -> LabelTable:
    """Read the labels of a Decathlon (id -> name) or nnU-Net (name -> id) ``dataset.json``.

    Raises
    ------
    ScanError
        There are no usable ``labels``, or they are nnU-Net's regions, which overlap.
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
    try:
        return LabelTable.from_ids(ids, ids)
    except ValidationError as error:
        raise ScanError(f"{path}: {from_validation(error)}") from error


def label_table_from_files(paths: Iterable[Path]) -> LabelTable:
    """Table with a class for each id that occurs in the files; unreadable files are ignored.

    Raises
    ------
    ScanError
        No file holds an id other than 0, or there are more than 254 ids.
    """
    ids: set[int] = set()
    first: ScanError | None = None
    for path in paths:
        try:
            ids.update(np.unique(read_label_volume(path).array).tolist())
        except ScanError as error:
            first = first or error  # reported when the case is read
        if len(ids) > MOST_CLASSES:
            raise ScanError(
                f"{path}: the labels have more than {MOST_CLASSES - 1} ids; give a CSV table "
                "that groups them into structures"
            )
    if not ids and first is not None:
        raise ScanError(f"no label file can be read ({first})")
    if not ids - {0}:
        raise ScanError("no label file holds anything but background")
    return LabelTable.from_ids(ids)


def ids_in(path: Path) -> set[int]:
    """Ids in a label file; none if it can't be read, which is reported when the case is read."""
    try:
        return set(np.unique(read_label_volume(path).array).tolist())
    except ScanError:
        return set()


def read_classes(path: Path, table: LabelTable | None) -> Volume:
    """Read a label file as class indices of a table; without a table, as its ids.

    Raises
    ------
    ScanError
        The file can't be read, or holds an id that the table doesn't list.
    """
    label = read_label_volume(path)
    if table is None:
        return label
    try:
        return replace(label, array=table.to_classes(label.array))
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from error
