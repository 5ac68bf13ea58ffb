"""Write files and folders completely or not at all: under a hidden name, flushed, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

PARTIAL = ".partial"


def temp_path(path: Path) -> Path:
    """A unique hidden name beside `path`, on the same file system."""
    return path.with_name(f".{uuid4().hex[:12]}-{path.name}{PARTIAL}")


def sweep(folder: Path) -> None:
    """Remove unfinished files of killed programs; only while no program writes there."""
    for unfinished in folder.glob(f".*{PARTIAL}") if folder.is_dir() else ():
        # A hidden file that can't be removed does no harm.
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
    """Fill a folder under a hidden name; at the end it is flushed and renamed to `path`.

    A folder of that name must be empty. The one that is yielded isn't made yet, lies beside `path`
    unless its name is given, and is removed if anything fails.
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
    """Add the file's name to an error of the system that has none, as for a full disk."""
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
    """Cut off a last line that a killed process wrote only in part."""
    regular = path.is_file() and not path.is_symlink()
    content = path.read_bytes() if regular else b""
    if content and not content.endswith(b"\n"):
        write_bytes(path, content[: content.rfind(b"\n") + 1])
