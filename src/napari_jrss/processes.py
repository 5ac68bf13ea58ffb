"""A child process that exchanges lines of JSON with this one.

Every child is spawned, never forked: a fork copies locks that other threads may hold, and CUDA
doesn't survive it. Every child ends when its parent ends, however that ends, and ignores Ctrl-C,
which is its parent's to handle.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from napari_jrss.errors import EXPECTED, JRSSError, from_os_error, one_line

_logger = logging.getLogger(__name__)

_POLL_S = 0.05
_TAIL_BYTES = 2000  # of what a failed child printed; they go to the log
_GRACE_S = 0.4
_START = "import sys; from napari_jrss import processes; processes._run_child(*sys.argv[1:])"
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "ZARR_THREADING__MAX_WORKERS",
    "ZARR_ASYNC__CONCURRENCY",
)


class ProcessError(JRSSError):
    """A child process reported an error, died, or couldn't start."""


class WorkerDiedError(ProcessError):
    """The process that did a job died."""


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables that limit the libraries of a new process to so many threads."""
    return dict.fromkeys(_THREADS, str(threads))


# -- one child, and lines of JSON


class ChildProcess:
    """A process that is ended when it is closed, and whose streams are taken.

    Error messages call it by its `name`. What it prints to its standard error goes to `log`, or is
    dropped. It has the variables of `environment` beside those of this process. With `apart` no
    Ctrl-C reaches it, and the processes that it has started end with it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        apart: bool = False,
    ) -> None:
        self._name = name
        self._see = "" if log is None else f"see {log.name}"
        self._tree = apart
        self._apart = apart and os.name != "nt"  # there are no sessions on Windows
        self._log = Path(log or os.devnull).open("wb")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **(environment or {})},
                start_new_session=self._apart,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            self._log.close()
            reason = from_os_error(error)
            raise ProcessError(f"the {name} can't start: {command[0]}: {reason}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.stdin, self.stdout = self._process.stdin, self._process.stdout
        _logger.info("the %s %d starts", name, self.pid)

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process hasn't ended."""
        return self._process.poll() is None

    @property
    def code(self) -> int:
        """Its exit code, once it ends; below 0 the number of a signal."""
        return self._process.wait()

    def end(self, grace: float = _GRACE_S) -> None:
        """Hang up, which ends the process; else terminate it, else kill it. Safe to call again.

        It is given `grace` seconds each time.
        """
        with suppress(OSError):  # there may be nobody left to read what is unsent
            self.stdin.close()
        below = []
        if self._tree:
            with suppress(psutil.Error):
                below = psutil.Process(self.pid).children(recursive=True)
        for insist in (self.terminate, self.kill):
            try:
                self._process.wait(grace)
                break
            except subprocess.TimeoutExpired:
                insist()
        code = self._process.wait()
        for process in below:
            with suppress(psutil.Error):  # it knows a process that has ended by its start
                process.kill()
        if not self._log.closed:
            self._log.close()
            text = f"; it printed:\n{printed}" if code and (printed := self.printed()) else ""
            text = f"the {self._name} {self.pid} ends with code {code}{text}"
            _logger.log(logging.WARNING if code else logging.INFO, text)

    def terminate(self) -> None:
        """Ask the process to end, and those with it in a session apart."""
        if self._apart:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)
        else:
            self._process.terminate()

    def kill(self) -> None:
        """End the process at once, and those with it in a session apart."""
        if self._apart:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        else:
            self._process.kill()

    def printed(self) -> str:
        """The end of what the process has printed to its standard error."""
        with suppress(OSError):
            return Path(self._log.name).read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
        return ""

    def ending(self) -> str:
        """How the process ended, once it does, as the end of a sentence about it."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            reason = ", perhaps because memory ran short" if name == "SIGKILL" else ""
            return f"was killed ({name}{reason})"
        return f"ended unexpectedly ({', '.join(filter(None, (f'exit code {code}', self._see)))})"


class Child(ChildProcess):
    """A function in a process of its own; each side sends the other lines of JSON.

    The function is importable by name and called with a :class:`Parent`. Nothing else of this
    program is imported there, not even a script's ``__main__``. Error messages call the process
    by its `name`, such as ``training``. What it prints goes to `log`, or is dropped. It has the
    variables of `environment` beside those of this process.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Parent], None],
        *,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        spec = sys.modules[function.__module__].__spec__  # a module run by -m has another name
        module = function.__module__ if spec is None else spec.name
        super().__init__(
            f"{name} process",
            # -P: no module is taken from the folder that the program happens to run in.
            [sys.executable, "-P", "-c", _START, module, function.__name__],
            log=log,
            environment={**(environment or {}), "PYTHONPATH": import_path()},
        )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name=f"{name} messages", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: str) -> None:
        """Send a line of JSON; that the child is gone is noticed by :meth:`receive`."""
        with suppress(OSError):
            self.stdin.write(f"{message}\n".encode())
            self.stdin.flush()

    def stop(self) -> None:
        """Ask the child to stop: sets its :attr:`Parent.stop`."""
        self.send('"stop"')

    def receive(self) -> bytes | None:
        """The child's next line of JSON; None if there is none within a moment.

        It is a ProcessError if the child's function raised an error, or the process has ended
        and all its lines have been read.
        """
        try:
            line = self._lines.get(timeout=_POLL_S)
        except queue.Empty:
            return None
        if not line:
            raise ProcessError(f"the {self._name} {self.ending()}")
        message = json.loads(line)
        if isinstance(message, dict) and "error" in message:
            see = f" ({self._see})" if message["fault"] and self._see else ""
            raise ProcessError(message["error"] + see)
        return line

    def close(self) -> None:
        """Hang up, which ends the process; else terminate it, else kill it. Safe to call again."""
        self.end()
        self._reader.join()
        self.stdout.close()

    def _read(self) -> None:
        for line in self.stdout:
            self._lines.put(line)
        self._lines.put(b"")


def import_path() -> str:
    """What this process imports from, without the working folder."""
    return os.pathsep.join(path for path in sys.path if path)


class Parent:
    """What a child knows of the process that started it; `stop` is set when that asks it to."""

    def __init__(self) -> None:
        # What libraries print goes to the log; only messages go to the parent.
        self._to_parent = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
        os.dup2(2, 1)
        self.stop = threading.Event()
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: str) -> None:
        """Send a line of JSON."""
        self._to_parent.write(message + "\n")
        self._to_parent.flush()

    def receive(self) -> bytes:
        """Wait for the next line of JSON."""
        return self._lines.get()

    def _listen(self) -> None:
        """Take in the parent's lines; end this process when the parent is gone."""
        with os.fdopen(0, "rb", buffering=0, closefd=False) as stream:
            for line in stream:
                if line.strip() == b'"stop"':
                    self.stop.set()
                else:
                    self._lines.put(line)
        os._exit(0)


def _run_child(module: str, function: str) -> None:
    """What a child does: call the function, and tell the parent of an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = Parent()
    try:
        getattr(importlib.import_module(module), function)(parent)
    except Exception as error:
        fault = not isinstance(error, EXPECTED)
        text = one_line(error)
        if fault:
            traceback.print_exc()
            text = f"{type(error).__name__}: {text}"
        parent.send(json.dumps({"error": text, "fault": fault}))
        raise SystemExit(1) from None
