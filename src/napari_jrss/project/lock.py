"""One writer per project: a lock of the operating system on ``project.lock``.

The system frees the lock when its process ends, however it ends. A lock whose process is gone
never stands in the way. ``project.writer`` beside it only says who holds the lock.
"""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from napari_jrss.errors import ProjectError, from_os_error
from napari_jrss.io.atomic import write_text
from napari_jrss.project.records import now

_TEXT = ".writer"


class WriterLock:
    """The right to write into one project, until :meth:`release` or the end of the process.

    A process that is forked meanwhile doesn't hold it. The lock file is made when it isn't there,
    and left there on release. A :class:`ProjectError` if another program, or this one a second
    time, holds the project, or the folder can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._text = path.with_suffix(_TEXT)
        # A lock that the system doesn't free by itself would outlive its process: no fallback.
        self._lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
        holder = {"process": os.getpid(), "computer": platform.node(), "since": now()}
        try:
            self._lock.acquire()
            write_text(self._text, json.dumps(holder))
        except Timeout:
            raise ProjectError(f"{path.parent}: {_holder(self._text)}") from None
        except OSError as error:
            self._lock.release()
            reason = from_os_error(error)
            raise ProjectError(f"{path.parent}: can't be written ({reason})") from error

    def release(self) -> None:
        """Give the lock back; safe to call again."""
        if self._lock.is_locked:
            # On a disk that is gone the text stays. It locks nothing.
            with suppress(OSError):
                self._text.unlink(missing_ok=True)
            self._lock.release()


def holder(path: Path) -> str:
    """Who said last to hold the project's lock, and since when; empty if it was given back."""
    text = path.with_suffix(_TEXT)
    return _holder(text) if text.exists() else ""


def _holder(path: Path) -> str:
    """Who holds the project and since when, as far as the text says."""
    unknown = "open for writing in another program"
    if not path.is_file():  # opening a pipe would wait for a writer
        return unknown
    try:
        with path.open(encoding="utf-8") as stream:
            holder = json.loads(stream.read(1000))
        process, computer = int(holder["process"]), str(holder["computer"])
        since = f"{datetime.fromisoformat(holder['since']).astimezone():%Y-%m-%d %H:%M:%S}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return unknown
    if process == os.getpid() and computer == platform.node():
        return f"open for writing in this program already, since {since}"
    return f"open for writing in process {process} on {computer} since {since}"
