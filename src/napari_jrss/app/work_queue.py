"""Short work in the order it was asked for, on a thread that ends when there is none left."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from psygnal import Signal


class WorkQueue:
    """Does one thing after another, away from the thread that asks for it.

    Unlike a :class:`~napari_jrss.app.runner.JobRunner`, which refuses a second job, it
    takes as many as it is given; each should last well under a second.

    Attributes
    ----------
    failed
        The error of work that raised; emitted on the desk's thread. The next work goes on.
    """

    failed = Signal(Exception)

    def __init__(self, name: str) -> None:
        self.name = name
        self._waiting: deque[Callable[[], object]] = deque()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def busy(self) -> bool:
        """Whether there is work under way or waiting."""
        return self._thread is not None

    def submit(self, work: Callable[[], object]) -> None:
        """Do this after everything that was submitted before."""
        with self._changed:
            self._waiting.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is no work left, at most `timeout` seconds; whether that came to be."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._thread is not None:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    return
                work = self._waiting.popleft()
            try:
                work()
            except Exception as error:
                self.failed.emit(error)
