"""Writes that are there in full or not at all: aside, flushed, renamed."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def aside(path: Path) -> Path:
    """A hidden name beside `path`, on the same file system, that nobody else uses."""
    return path.with_name(f".{uuid4().hex[:12]}-{path.name}")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; it is complete and on the disk when this returns."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; it is complete and on the disk when this returns."""
    temporary = aside(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush a file that a library has written."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut (nothing on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Flush every file and folder below a folder, innermost first."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            sync_file(Path(folder) / name)
        sync_folder(Path(folder))
