"""TotalSegmentator (Wasserthal et al. 2023) on one scan: the user's own installation, run apart."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from napari_jrss.errors import JRSSError
from napari_jrss.io.found import Masks, scan_files, stem
from napari_jrss.processes import ChildProcess

PROGRAM = "TotalSegmentator"
VARIABLE = "NAPARI_JRSS_TOTALSEGMENTATOR"
INSTALL = (
    f"pip install {PROGRAM}, best in an environment of its own, then tell where its executable is "
    f"(--executable, or the variable {VARIABLE})"
)
_POLL_S, _LINES = 0.1, 5


class DraftError(JRSSError):
    """The other program isn't there, or failed."""


@dataclass(frozen=True)
class TotalSegmentator:
    """How it is run.

    Attributes
    ----------
    task
        Which of its models, such as ``total`` for CT or ``total_mr`` for MR.
    fast
        Whether to use the model of 3 mm, which a CPU can do.
    device
        ``gpu``, ``cpu``, ``mps``; empty: its own default.
    executable
        Its path; empty: that of the environment variable, else the one on the search path.
    """

    task: str = "total"
    fast: bool = False
    device: str = ""
    executable: str = ""

    def find(self) -> str:
        """The path of the executable; a :class:`DraftError` says what to install."""
        wanted = self.executable or os.environ.get(VARIABLE, "")
        found = shutil.which(wanted or PROGRAM)
        if found is None:
            where = f"{wanted}: no such program" if wanted else f"{PROGRAM} is not installed"
            raise DraftError(f"{where}: {INSTALL}")
        return found

    def version(self) -> str:
        """Its version, which takes seconds; a :class:`DraftError` if it can't be run."""
        with _run("version", [self.find(), "--version"]) as running:
            while running.child.running:
                time.sleep(_POLL_S)
            said = running.result().split()
        return said[-1] if said else "unknown"

    def segment(self, scan: Path, out: Path) -> Generator[str, None, None]:
        """Segment a NIfTI file into a folder of masks; yields now and then what it said last.

        Closing the generator ends the program and all that it has started. A :class:`DraftError`
        if it fails.
        """
        command = [self.find(), "-i", str(scan), "-o", str(out), "-ta", self.task]
        command += ["--fast"] if self.fast else []
        command += ["-d", self.device] if self.device else []
        with _run(self.task, command) as running:
            while running.child.running:
                time.sleep(_POLL_S)
                yield running.said
            running.result()
        if not out.is_dir():
            raise DraftError(f"{PROGRAM} ended without a result")


class _Running:
    """The program at work; what it prints is read, so that it never waits for a reader."""

    def __init__(self, child: ChildProcess) -> None:
        self.child = child
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def said(self) -> str:
        """The last line that it printed."""
        return self._lines[-1] if self._lines else ""

    def result(self) -> str:
        """What it printed last, once it has ended well; else a :class:`DraftError`."""
        self._reader.join(1.0)
        code = self.child.code
        if code:
            told = [line for line in self.child.printed().splitlines() if line.strip()]
            last = " ".join((told[-1] if told else self.said).split())[:300]
            raise DraftError(f"{PROGRAM} failed (exit code {code}): {last or 'it said nothing'}")
        return self.said

    def _read(self) -> None:
        with self.child.stdout as printed:
            for line in printed:
                if text := line.decode(errors="replace").strip():
                    self._lines.append(text)


@contextmanager
def _run(name: str, command: Sequence[str]) -> Iterator[_Running]:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log.txt"
        child = ChildProcess(f"{PROGRAM} {name}", command, log=log, apart=True)
        try:
            yield _Running(child)
        finally:
            child.end()


def masks_of(folder: Path) -> Masks:
    """The masks that it wrote, by the names of its structures."""
    return Masks(folder, tuple((stem(path), path) for path in scan_files(folder)))
