"""From the session's signals, which any thread may emit, to slots in the window's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psygnal import SignalInstance
from qtpy.QtCore import QObject, Qt
from qtpy.QtCore import Signal as QtSignal

from napari_jrss.errors import EXPECTED, one_line

if TYPE_CHECKING:
    from napari_jrss.app.workspace import Workspace


@contextmanager
def report_errors(workspace: Workspace) -> Iterator[None]:
    """Say in the message line why something can't be done; any fault of ours still raises."""
    try:
        yield
    except EXPECTED as error:
        workspace.notified.emit(one_line(error))


class Relay(QObject):
    """Calls slots in the thread it lives in, whatever thread a signal is emitted in.

    Parameters
    ----------
    parent
        The widget whose slots are called; what it connected is undone by :meth:`disconnect_all`,
        which the widget calls when it is closed.
    """

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
