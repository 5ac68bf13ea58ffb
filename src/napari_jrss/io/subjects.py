"""Which cases belong to one subject, read from a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from napari_jrss.errors import ScanError
from napari_jrss.io.layouts import stem
from napari_jrss.io.text_files import read_rows


def read_case_groups(path: Path, column: str, case_ids: Sequence[str]) -> dict[str, str]:
    """Subject group of each case.

    Parameters
    ----------
    path
        CSV file with a header; its first column names the case or its file.
    column
        Column of the group.
    case_ids
        The cases wanted; rows of others are passed over.

    Raises
    ------
    ScanError
        The file can't be read, lacks the column, or lacks a case.
    """
    rows = read_rows(path)
    header = rows[0] if rows else []
    if column not in header:
        names = " ".join(", ".join(header).split())[:200]
        raise ScanError(f"{path}: has no column {column!r}, but {names or 'none'}")
    index = header.index(column)
    known = {stem(Path(row[0])): row[index] for row in rows[1:] if len(row) > index}
    missing = [case_id for case_id in case_ids if not known.get(case_id)]
    if missing:
        raise ScanError(f"{path}: gives no {column} for case {missing[0]}")
    return {case_id: known[case_id] for case_id in case_ids}
