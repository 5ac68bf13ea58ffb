"""Short work in the order in which it was asked for, on one thread that ends when it is idle."""

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
    """

    # The error of work that raised; emitted on the queue's thread. The next work goes on.
    failed = Signal(Exception)

    def __init__(self, name: str) -> None:
        self.name = name
        self._waiting: deque[Callable[[], object]] = deque()
        self._later: dict[Callable[[], object], float] = {}
        self._working = False
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def busy(self) -> bool:
        """Whether there is work under way or due."""
        with self._changed:
            return self._working or bool(self._waiting)

    def submit(self, work: Callable[[], object], after_s: float = 0.0) -> None:
        """Do this after everything that is due before; its error goes to :attr:`failed`.

        With `after_s` it is due in so many seconds, and isn't planned a second time meanwhile.
        """
        with self._changed:
            if after_s > 0:
                self._later.setdefault(work, time.monotonic() + after_s)
            else:
                self._waiting.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Do all planned work now; whether it is done within `timeout` seconds (None: no limit)."""
        with self._changed:
            self._waiting.extend(self._later)
            self._later.clear()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._working and not self._waiting, timeout)

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception as error:
                self.failed.emit(error)

    def _next(self) -> Callable[[], object] | None:
        """The next work once it is due; None when there is none left, which ends the thread."""
        with self._changed:
            self._working = False
            self._changed.notify_all()
            while not self._waiting:
                if not self._later:
                    self._thread = None
                    return None
                work, due = min(self._later.items(), key=lambda item: item[1])
                left = due - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                else:
                    del self._later[work]
                    self._waiting.append(work)
            self._working = True
            return self._waiting.popleft()
