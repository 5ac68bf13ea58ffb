"""Read tables and JSON files of a user or of another program.

Pipes, devices and files too large for a text are refused before they are read: they would block
the program or fill the memory.
"""

from __future__ import annotations

import csv
import io
import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from napari_jrss.errors import ScanError, from_os_error

_MOST_BYTES = 2**24


def read_text(path: Path) -> str:
    """Read a text file in UTF-8 of at most 16 MiB.

    Raises a :class:`ScanError` if there is no such file, it isn't a regular file, is too large, or
    isn't UTF-8.
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
    """Read a JSON object; a :class:`ScanError` if it is none, or a name occurs twice in it."""
    text = read_text(path)
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ScanError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ScanError(f"{path}: not a JSON object")
    return content


def read_rows(path: Path) -> list[list[str]]:
    """Read the rows of a CSV file, whose columns commas, semicolons or tabs separate.

    Raises a :class:`ScanError` as :func:`read_text`, or if it isn't CSV.
    """
    text = read_text(path)
    try:
        first = text.partition("\n")[0]
        comma = max(",;\t", key=first.count)
        return list(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=comma))
    except csv.Error as error:
        raise ScanError(f"{path}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name occurs twice."""
    name, count = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 1)
    if count > 1:
        raise ValueError(f"{name[:100]!r} occurs twice")
    return dict(pairs)
