"""A round in a process of its own: the window stays quick, and a GPU is free when it ends.

The parent holds the project's writer lock and records the round; the child opens the project
read-only, runs the round into its folder, and says what happens as lines of JSON. Nothing else
passes between them: ``run N`` and ``stop`` one way, events the other way. The child ends at once
when its parent does, however that ends: the pipe from it closes then.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from napari_jrss.errors import EXPECTED, JRSSError, one_line
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round as LedgerRound

if TYPE_CHECKING:
    from napari_jrss.config import TrainingConfig
    from napari_jrss.training.events import Event
    from napari_jrss.training.loop import Cancel

LOG = "training.log"
PATIENCE_S = 60.0
NICENESS = 5
_POLL_S = 0.05
_GRACE_S = 0.4


class TrainingProcessError(JRSSError):
    """What went wrong in the training process, or that it ended without a word."""


class InOwnProcess:
    """Rounds run in a spawned process each; a :class:`napari_jrss.app.rounds.train.Executor`.

    Parameters
    ----------
    project
        Folder of the project.
    device
        See :func:`napari_jrss.inference.device.make_fabric`.
    threads
        CPU threads of the process; all cores but one, for the window, by default.
    at_once
        Set when somebody can't wait for the end of a step: a process that was asked to stop
        is then ended, and the round goes on from its last saved state.
    patience
        Seconds that a process which was asked to stop is given for its present step.
    """

    first = True

    def __init__(
        self,
        project: Path,
        device: str = "auto",
        *,
        threads: int | None = None,
        at_once: Cancel | None = None,
        patience: float = PATIENCE_S,
    ) -> None:
        self.device = device
        self._asked_for = device
        self._project = project
        self._threads = threads or max(1, (os.cpu_count() or 2) - 1)
        self._at_once = at_once
        self._patience = patience
        self._child: _Child | None = None

    @property
    def process(self) -> int | None:
        """Id of the process while there is one."""
        return None if self._child is None else self._child.process.pid

    def prepare(self, config: TrainingConfig, cancel: Cancel) -> bool:
        """Start the process; it checks its device and the networks."""
        self.close()
        self._child = _Child(self._project, self._asked_for, config, self._threads)
        while (line := self._child.read()) is None:
            if cancel.is_set():
                return False
        self.device = str(_message(line).get("ready"))
        return True

    def agree(self, number: int) -> int:
        """The number itself: there is no other process to agree with."""
        return number

    def run(self, project: Project, entry: LedgerRound, cancel: Cancel) -> Iterator[Event]:
        """Relay the events of the round; :class:`TrainingProcessError` if it fails."""
        from napari_jrss.training.events import (
            Cancelled,
            EpochEnd,
            RoundFinished,
            StageStarted,
            parse_event,
        )

        child = self._child
        assert child is not None
        child.say(f"run {entry.number}")
        stage, saved = "", 0
        asked: float | None = None
        try:
            while True:
                if cancel.is_set() and asked is None:
                    asked = time.monotonic()
                    child.say("stop")
                if asked is not None and (
                    (self._at_once is not None and self._at_once.is_set())
                    or time.monotonic() - asked > self._patience
                ):
                    yield Cancelled(stage=stage, step=saved)
                    return
                line = child.read()
                if line is None:
                    continue
                _message(line)
                event = parse_event(line)
                if isinstance(event, StageStarted):
                    stage, saved = event.stage, event.first_step
                elif isinstance(event, EpochEnd) and event.validation is not None:
                    saved = event.step
                yield event
                if isinstance(event, RoundFinished | Cancelled):
                    return
        finally:
            self.close()

    def close(self) -> None:
        """End the process if it still runs: it is asked, then killed."""
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """The process as its parent sees it: a pipe each way, and a thread that reads."""

    def __init__(self, project: Path, device: str, config: TrainingConfig, threads: int) -> None:
        settings = config.model_dump_json()
        self._log = (project / LOG).open("wb")
        self.process = subprocess.Popen(
            # -P: no module is taken from the folder that the program happens to run in.
            [sys.executable, "-P", "-m", __name__, str(project), device, settings, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": _import_path()},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(
            target=_pass_on, args=(self.process.stdout, self._lines), name="training events"
        )
        self._reader.start()

    def say(self, word: str) -> None:
        """Send a line; a process that is gone is noticed when it is read from."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(f"{word}\n".encode())
            self.process.stdin.flush()

    def read(self) -> bytes | None:
        """The next line, or None if there is none for a moment.

        Raises
        ------
        TrainingProcessError
            If the process has ended and everything it said has been read.
        """
        try:
            line = self._lines.get(timeout=_POLL_S)
        except queue.Empty:
            return None
        if line:
            return line
        raise TrainingProcessError(f"the training process {_ending(self.process.wait())}")

    def end(self) -> None:
        """Hang up, which ends the process at once; else terminate it, else kill it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):  # there may be nobody left to read what is unsent
            self.process.stdin.close()
        for insist in (self.process.terminate, self.process.kill):
            try:
                self.process.wait(_GRACE_S)
                break
            except subprocess.TimeoutExpired:
                insist()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        self._log.close()


def _pass_on(stream: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(b"")


def _message(line: bytes) -> dict[str, object]:
    """A line of the child; its error, if that is what it says, is raised."""
    message: dict[str, object] = json.loads(line)
    if "error" in message:
        raise TrainingProcessError(str(message["error"]))
    return message


def _ending(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        short = ", perhaps because memory ran short" if name == "SIGKILL" else ""
        return f"was killed ({name}{short})"
    return f"ended unexpectedly (exit code {code}, see {LOG} in the project's folder)"


def _import_path() -> str:
    """What this process imports from, without the working folder."""
    return os.pathsep.join(path for path in sys.path if path)


# -- in the child


def main(arguments: list[str]) -> None:
    """The process: get ready, wait for a round's number, run the round."""
    project, device, settings, threads = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # What libraries print goes to the log; only events go to the parent.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(commands, stop), daemon=True).start()

    def tell(text: str) -> None:
        events.write(text + "\n")
        events.flush()

    try:
        import torch

        from napari_jrss.app.rounds.train import InThisProcess
        from napari_jrss.config import TrainingConfig

        torch.set_num_threads(int(threads))
        _step_back()
        place = InThisProcess(device)
        place.prepare(TrainingConfig.model_validate_json(settings), stop)
        tell(json.dumps({"ready": place.device}))
        number = int(commands.get())
        with Project.open(project, read_only=True) as opened:
            for event in place.run(opened, opened.round(number), stop):
                tell(event.model_dump_json())
    except Exception as error:
        if not isinstance(error, EXPECTED):
            import traceback

            traceback.print_exc()
            tell(json.dumps({"error": f"{type(error).__name__}: {one_line(error)} (see {LOG})"}))
        else:
            tell(json.dumps({"error": one_line(error)}))
        raise SystemExit(1) from None


def _listen(commands: queue.SimpleQueue[str], stop: threading.Event) -> None:
    """Obey the parent's lines; end, whatever else goes on, when it is gone."""
    with os.fdopen(0, "rb", buffering=0, closefd=False) as stream:
        for line in stream:
            word, _, number = line.decode().strip().partition(" ")
            if word == "stop":
                stop.set()
            else:
                commands.put(number)
    os._exit(0)


def _step_back() -> None:
    """Let the window, and everything else a person works with, go first."""
    process, windows = psutil.Process(), getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", None)
    process.nice(min(19, process.nice() + NICENESS) if windows is None else windows)


if __name__ == "__main__":
    main(sys.argv[1:])
