"""One job at a time on a thread of its own; what it yields becomes signals."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from psygnal import Signal

Work = Callable[[threading.Event], Iterator[Any]]
"""Long work: given the event that asks it to stop, it yields what happens."""


class JobState(StrEnum):
    """What a runner's latest job is doing, or how it ended."""

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


class BusyError(ValueError):
    """A job was asked for while another one runs."""


class JobRunner:
    """Runs generators of events in the background, one at a time.

    Signals are emitted on the job's thread; a window brings them to its own (see
    ``widgets/bridge.py``).

    Attributes
    ----------
    state_changed
        The new :class:`JobState`.
    event
        Each thing that the job yields.
    state
        Of the latest job.
    error
        Why the latest job failed, else None.
    """

    state_changed = Signal(JobState)
    event = Signal(object)

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = JobState.IDLE
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, work: Work) -> None:
        """Begin a job; :class:`BusyError` if one is under way."""
        with self._lock:
            if self.state.busy:
                raise BusyError(f"{self.name} is still at work; wait for it or stop it first")
            self.error = None
            self._cancel = threading.Event()
            self.state = JobState.RUNNING
            self._thread = threading.Thread(
                target=self._run, args=(work, self._cancel), name=self.name, daemon=True
            )
        self.state_changed.emit(JobState.RUNNING)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the job to stop; it ends at its next step."""
        with self._lock:
            if self.state is not JobState.RUNNING:
                return
            self.state = JobState.CANCELLING
            self._cancel.set()
        self.state_changed.emit(JobState.CANCELLING)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no job runs, at most `timeout` seconds; whether that came to be."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _run(self, work: Work, cancel: threading.Event) -> None:
        try:
            for event in work(cancel):
                self.event.emit(event)
        except Exception as error:
            self.error = error
            self._end(JobState.FAILED)
        else:
            self._end(JobState.CANCELLED if cancel.is_set() else JobState.FINISHED)

    def _end(self, state: JobState) -> None:
        with self._lock:
            self.state = state
        self.state_changed.emit(state)
