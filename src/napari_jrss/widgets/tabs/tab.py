"""What the four tabs share: the session, the relay of its signals, and how errors are told."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from napari.viewer import Viewer
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QWidget

from napari_jrss.app.next_case import Suggestion
from napari_jrss.app.session import Session
from napari_jrss.widgets.bridge import Relay, report_errors


class Tab(QWidget):
    """A tab of the dock: it reads the session, calls its commands, and redraws from its signals."""

    def __init__(self, viewer: Viewer, session: Session) -> None:
        super().__init__()
        self._viewer = viewer
        self._session = session
        self._workspace = session.workspace
        self._relay = Relay(self)

    def _reporting(self) -> AbstractContextManager[None]:
        """Report an error within the block in the dock's message line."""
        return report_errors(self._workspace.notified.emit)

    def _do(self, command: Callable[..., object], *arguments: object) -> Callable[[], None]:
        """A slot that calls a command and reports why it can't be done."""

        def slot() -> None:
            with self._reporting():
                command(*arguments)

        return slot

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Undo what was connected."""
        self._relay.disconnect_all()
        super().closeEvent(event)


def next_case_text(suggestion: Suggestion) -> str:
    """Say which case comes next, and why."""
    reason = f"{suggestion.reason[:1].upper()}{suggestion.reason[1:]}"
    return f"To label next: {suggestion.case_id}. {reason}."
