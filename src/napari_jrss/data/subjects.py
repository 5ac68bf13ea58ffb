"""Which cases belong to one subject, read from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from napari_jrss.data.layouts import stem
from napari_jrss.data.volume import ScanError


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
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScanError(f"{path}: not a readable CSV file ({error})") from None
    header = rows[0] if rows else []
    if column not in header:
        raise ScanError(f"{path}: has no column {column!r}, but {', '.join(header) or 'none'}")
    index = header.index(column)
    known = {stem(Path(row[0])): row[index] for row in rows[1:] if len(row) > index}
    missing = [case_id for case_id in case_ids if not known.get(case_id)]
    if missing:
        raise ScanError(f"{path}: gives no {column} for case {missing[0]}")
    return {case_id: known[case_id] for case_id in case_ids}
