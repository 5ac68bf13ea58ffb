"""Tables and JSON that a person or another program wrote: read whole, or refused by name.

A pipe, a device or a file too large for text is refused before it is read, so that a name in
the wrong place neither waits for ever nor fills the memory.
"""

from __future__ import annotations

import csv
import io
import json
import stat
from pathlib import Path
from typing import Any

from napari_jrss.errors import ScanError, from_os_error

_MOST_BYTES = 2**24


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, at most 16 MiB.

    Raises
    ------
    ScanError
        No such file, no file at all, too large, or not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ScanError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ScanError(f"{path}: larger than {_MOST_BYTES} bytes")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ScanError(f"{path}: {from_os_error(error)}") from error
    except UnicodeDecodeError as error:
        raise ScanError(f"{path}: not UTF-8 ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises
    ------
    ScanError
        As for :func:`read_text`, no JSON object, or one in which a name occurs twice.
    """
    text = read_text(path)
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ScanError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ScanError(f"{path}: not a JSON object")
    return content


def read_rows(path: Path) -> list[list[str]]:
    """Rows of a CSV file.

    Raises
    ------
    ScanError
        As for :func:`read_text`, or no CSV.
    """
    text = read_text(path)
    try:
        return list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ScanError(f"{path}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:100]!r} is there twice")
    return found
