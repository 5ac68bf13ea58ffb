"""From the session's signals and errors to the window.

Any thread may emit a signal; its slots run in the window's thread. An error becomes one line.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from psygnal import SignalInstance
from qtpy.QtCore import QObject, Qt
from qtpy.QtCore import Signal as QtSignal

from napari_jrss.app.runner import JobRunner, JobState
from napari_jrss.errors import EXPECTED, one_line
from napari_jrss.logs import log_error

_logger = logging.getLogger(__name__)


@contextmanager
def report_errors(tell: Callable[[str], object]) -> Iterator[None]:
    """Tell the person in one line why something can't be done; log a fault of the program."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, EXPECTED):
            log_error(_logger, "unexpected error in the window", error)
        tell(line_of(error))


def line_of(error: BaseException) -> str:
    """Describe an error to the person; of a fault of the program, say where its details are."""
    if isinstance(error, EXPECTED):
        return one_line(error)
    return (
        f"Unexpected error ({type(error).__name__}: {one_line(error)}). The details are in the "
        "log: Plugins > JRSS > Log"
    )


def failure(state: JobState, job: JobRunner) -> str:
    """Why a job that is in this state has failed, in one line; empty if it has not."""
    error = job.error
    return line_of(error) if state is JobState.FAILED and error is not None else ""


class Relay(QObject):
    """Calls slots of its parent in the thread it lives in, wherever a signal is emitted."""

    _queued = QtSignal(object, object)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._undo: list[tuple[SignalInstance, Callable[..., None]]] = []
        self._queued.connect(self._call, Qt.ConnectionType.QueuedConnection)

    def connect(self, signal: SignalInstance, slot: Callable[..., Any]) -> None:
        """Call `slot` with what `signal` carries, in the window's thread, soon."""

        def forward(*values: object) -> None:
            self._queued.emit(slot, values)

        signal.connect(forward, check_nargs=False)
        self._undo.append((signal, forward))

    def disconnect_all(self) -> None:
        """Undo every connection; what is still queued is dropped."""
        for signal, forward in self._undo:
            signal.disconnect(forward, missing_ok=True)
        self._undo.clear()

    def _call(self, slot: Callable[..., None], values: tuple[object, ...]) -> None:
        if self._undo:
            slot(*values)
