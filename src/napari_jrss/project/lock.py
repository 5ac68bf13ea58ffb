"""One writer per project: a lock of the operating system on ``project.lock``.

The system frees the lock when its process ends, however it ends. So a lock whose process is
gone never stands in the way, and no process id is ever guessed to be alive or dead. The text
in the file only says who holds it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from napari_jrss.errors import ProjectError, from_os_error

if sys.platform == "win32":
    import msvcrt

    # Windows locks are mandatory: a byte far beyond the text leaves the text readable.
    _LOCKED_BYTE = 2**30

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class WriterLock:
    """The right to write into one project, held until :meth:`release` or the process's end.

    Parameters
    ----------
    path
        The lock file; made when it isn't there, and left (empty) on release, since removing
        a lock file would let two programs lock two files of one name.

    Raises
    ------
    ProjectError
        Another program, or this one a second time, holds the project; or the folder can't be
        written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        project = path.parent
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise ProjectError(f"{project}: can't be written ({from_os_error(error)})") from error
        try:
            if not _try_lock(descriptor):
                raise ProjectError(f"{project}: {_holder(path)}")
            text = json.dumps(
                {
                    "process": os.getpid(),
                    "computer": platform.node(),
                    "since": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            )
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, text.encode())
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise ProjectError(f"{path}: can't be locked ({from_os_error(error)})") from error
            raise
        self._descriptor: int | None = descriptor
        if hasattr(os, "register_at_fork"):
            # A forked worker must not keep the lock alive when this process is gone.
            this = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _forget(this()))

    def release(self) -> None:
        """Give the lock back; safe to call again."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            # On a disk that is gone the text stays; it holds nobody off.
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            _unlock(descriptor)
        finally:
            os.close(descriptor)


def _forget(lock: WriterLock | None) -> None:
    """In a forked child: drop the descriptor without giving up the parent's lock."""
    if lock is not None and lock._descriptor is not None:
        os.close(lock._descriptor)
        lock._descriptor = None


def holder(path: Path) -> str:
    """Who said last to hold the project, and since when; empty if that one let go of it."""
    with suppress(OSError):
        return _holder(path) if path.stat().st_size else ""
    return ""


def _holder(path: Path) -> str:
    """Who holds the project and since when, as far as the lock file says."""
    try:
        with path.open(encoding="utf-8") as stream:
            holder = json.loads(stream.read(1000))
        process, computer = int(holder["process"]), str(holder["computer"])
        since = datetime.fromisoformat(holder["since"]).astimezone()
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return "held by another program"
    if process == os.getpid() and computer == platform.node():
        return f"held by this program already, since {since:%Y-%m-%d %H:%M:%S}"
    return f"held by process {process} on {computer} since {since:%Y-%m-%d %H:%M:%S}"
