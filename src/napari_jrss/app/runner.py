"""Run one job at a time on a thread of its own; the events it yields are emitted as signals."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from psygnal import EmitLoopError, Signal, SignalInstance

from napari_jrss.errors import JRSSError
from napari_jrss.logs import log_error

_logger = logging.getLogger(__name__)

Work = Callable[[threading.Event], Iterator[Any]]
"""A job: a function that takes the event which asks it to stop, and yields events."""


class JobState(StrEnum):
    """State of a runner's latest job."""

    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self in (JobState.RUNNING, JobState.CANCELLING)


class BusyError(JRSSError):
    """A job can't start since another one runs."""


class JobRunner:
    """Runs generators of events in the background, one at a time.

    Signals are emitted on the job's thread; ``widgets/bridge.py`` brings them to the window's
    thread. An error in a slot doesn't stop the job; it goes to :data:`threading.excepthook`.
    """

    state_changed = Signal(JobState)  # carries the new `JobState`
    event = Signal(object)  # carries each event that the job yields

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = JobState.IDLE  # state of the latest job
        self.error: Exception | None = None  # why the latest job failed, else None
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, work: Work) -> None:
        """Start a job; :class:`BusyError` if another one runs."""
        with self._lock:
            if self.state.busy:
                raise BusyError(f"{self.name} is still running; wait for it, or stop it first")
            self.error = None
            self._cancel = threading.Event()
            self.state = JobState.RUNNING
            self._thread = threading.Thread(
                target=self._run, args=(work, self._cancel), name=self.name, daemon=True
            )
            thread = self._thread
        _emit(self.state_changed, JobState.RUNNING)
        thread.start()

    def cancel(self) -> None:
        """Ask the job to stop, which it does at its next step."""
        with self._lock:
            if self.state is not JobState.RUNNING:
                return
            self.state = JobState.CANCELLING
            self._cancel.set()
        _emit(self.state_changed, JobState.CANCELLING)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until no job runs; whether that is so.

        In a slot that the job itself calls, it returns False at once, since the job can't end.
        """
        with self._lock:
            thread = self._thread
        if thread is None:
            return True
        if thread is threading.current_thread() or thread.ident is None:
            return False
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self, work: Work, cancel: threading.Event) -> None:
        try:
            for event in work(cancel):
                _emit(self.event, event)
        except Exception as error:
            self.error = error
            log_error(_logger, f"{self.name} failed", error)
            self._end(JobState.FAILED)
        else:
            self._end(JobState.CANCELLED if cancel.is_set() else JobState.FINISHED)

    def _end(self, state: JobState) -> None:
        with self._lock:
            self.state = state
        _emit(self.state_changed, state)


def _emit(signal: SignalInstance, value: object) -> None:
    """Emit a signal; an error in a slot is reported and not raised in the job."""
    try:
        signal.emit(value)
    except EmitLoopError as error:
        fault = error.__cause__ or error
        threading.excepthook(
            threading.ExceptHookArgs(
                (type(fault), fault, fault.__traceback__, threading.current_thread())
            )
        )
