"""Writes that are there in full or not at all: aside, flushed, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

PARTIAL = ".partial"


def temp_path(path: Path) -> Path:
    """A hidden name beside `path`, on the same file system, that nobody else uses."""
    return path.with_name(f".{uuid4().hex[:12]}-{path.name}{PARTIAL}")


def sweep(folder: Path) -> None:
    """Remove what killed programs left aside in a folder; only while nobody writes there."""
    for unfinished in folder.glob(f".*{PARTIAL}") if folder.is_dir() else ():
        # What can't be removed is in nobody's way, so it is no reason to fail.
        if unfinished.is_dir() and not unfinished.is_symlink():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            with suppress(OSError):
                unfinished.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; it is complete and on the disk when this returns."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; it is complete and on the disk when this returns."""
    temporary = temp_path(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, path)
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(path: Path, hidden: Path | None = None) -> Iterator[Path]:
    """A folder to fill under a hidden name; at the end it is flushed and gets its own.

    Parameters
    ----------
    path
        The name that it gets. A folder there must be empty.
    hidden
        Where it lies until then, on the same file system; none: beside `path`.

    Yields
    ------
    Path
        Not made yet. It is gone at the end if anything fails.
    """
    temporary = hidden or temp_path(path)
    try:
        yield temporary
        sync_tree(temporary)
        temporary.rename(path)
        sync_folder(path.parent)
    except BaseException as error:
        _name(error, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _name(error: BaseException, path: Path) -> None:
    """Let an error of the system say which file it is about; a full disk doesn't."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


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


def end_with_whole_line(path: Path) -> None:
    """Cut off what a killed process had half written at the end of a file of lines."""
    ours = path.is_file() and not path.is_symlink()
    content = path.read_bytes() if ours else b""
    if content and not content.endswith(b"\n"):
        write_bytes(path, content[: content.rfind(b"\n") + 1])
