"""The log of a project: ``napari-jrss.log`` in its folder, to be attached to a bug report.

The package logs with :mod:`logging`, each module under its own name below ``napari_jrss``. A
project that is open for writing keeps its log in its folder: its lock lets only one program
write, so only one program writes and rotates the log. Importing the package adds no handler.

A DICOM file's path can name the patient, so the log holds none. A scan that can't be imported is
logged as the project records it, by its pseudonym. Of another error about a scan, and of the
operating system's errors, the log tells the kind and the system's reason only, since their
messages name files.
"""

import logging
import platform
import traceback
from contextlib import suppress
from functools import cache
from importlib import metadata
from logging.handlers import RotatingFileHandler
from pathlib import Path

from napari_jrss.errors import EXPECTED, ScanError

LOG = "napari-jrss.log"
_LOGGER = logging.getLogger("napari_jrss")
_LARGEST_BYTES, _OLDER_FILES = 1_000_000, 2
_PACKAGES = ("napari-jrss", "torch", "monai", "numpy", "zarr", "napari", "PyQt6", "PySide6")


class _Formatter(logging.Formatter):
    """Local time with its zone, level, module, message; tracebacks without names of files."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def formatException(self, ei: object) -> str:  # noqa: N802
        error = ei[1] if isinstance(ei, tuple) else None
        return stack_of(error) if isinstance(error, BaseException) else ""


class ProjectLog(RotatingFileHandler):
    """Writes what the package logs into the folder of an open project, until it is closed.

    A record that can't be written, such as on a full disk, is dropped: the log never fails the
    work. A log that is a link, or anything but a file, isn't followed.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOG
        self._usable = not path.is_symlink() and (path.is_file() or not path.exists())
        super().__init__(
            path,
            maxBytes=_LARGEST_BYTES,
            backupCount=_OLDER_FILES,
            encoding="utf-8",
            errors="backslashreplace",
            delay=True,
        )
        self.setFormatter(_Formatter())
        _log_from_info()
        _LOGGER.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless something else lies where the log should."""
        if self._usable:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drop the record."""

    def close(self) -> None:
        """Log no more, and let go of the file."""
        _LOGGER.removeHandler(self)
        with suppress(OSError):  # what couldn't be written yet
            super().close()


def log_to_stderr() -> None:
    """Log to the standard error too, as ``--verbose`` asks for."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    _log_from_info()
    _LOGGER.addHandler(handler)


def _log_from_info() -> None:
    if _LOGGER.level == logging.NOTSET:
        _LOGGER.setLevel(logging.INFO)


@cache
def versions() -> str:
    """Versions of this package, Python, the system and the packages that matter most."""
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{', '.join(found)}, Python {platform.python_version()}, {platform.platform()}"


def log_error(logger: logging.Logger, what: str, error: BaseException) -> None:
    """Log an error: in one line if a person can act on it, else with its traceback."""
    expected = isinstance(error, EXPECTED)
    logger.log(
        logging.WARNING if expected else logging.ERROR,
        "%s: %s",
        what,
        without_paths(error),
        exc_info=None if expected else error,
    )


def without_paths(error: BaseException) -> str:
    """Describe an error for the log: its kind, and its message if that can name no scan."""
    if isinstance(error, OSError):
        message = error.strerror or ""
    else:
        message = "" if isinstance(error, ScanError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def stack_of(error: BaseException | None) -> str:
    """Where an error was raised, and the errors that it came of, the latest first."""
    parts = []
    while error is not None:
        lines = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"{without_paths(error)}\n{lines}".rstrip())
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\ncaused by ".join(parts)
