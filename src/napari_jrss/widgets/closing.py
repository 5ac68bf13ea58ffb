"""What happens to a dock when its window closes, or when the dock is removed from it.

A dock that is hidden or floats stays open. A person who closes the window while a round runs is
asked first; a script isn't. The round is paused and can be resumed. napari removes a dock that is
closed by its cross without a question; its round is paused, too.
"""

from collections.abc import Callable

from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QMainWindow, QMessageBox, QWidget


class WindowWatch(QObject):
    """Closes a dock with its window; asks the person a question first, unless it is empty."""

    def __init__(self, dock: QWidget, question: Callable[[], str]) -> None:
        super().__init__(dock)
        self._dock = dock
        self._question = question
        self._window: QMainWindow | None = None
        self._closing = False
        dock.installEventFilter(self)

    def stop(self) -> None:
        """Stop watching."""
        self._dock.removeEventFilter(self)
        self._follow(None)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Notice that the dock changes its parent, or that the window closes."""
        if watched is self._dock:
            if event.type() in (QEvent.Type.ParentChange, QEvent.Type.Show):
                QTimer.singleShot(0, self._look)
        elif event.type() == QEvent.Type.Close and not self._closing:
            return self._close_with_window(event)
        return False

    def _look(self) -> None:
        """Find the window that the dock is in now; close the dock if there is none."""
        parent = self._dock.parentWidget()
        while parent is not None and not isinstance(parent, QMainWindow):
            parent = parent.parentWidget()
        if parent is None and self._window is not None:
            self.stop()
            self._dock.close()
        elif parent is not None:
            self._follow(parent)

    def _follow(self, window: QMainWindow | None) -> None:
        if self._window is not None:
            self._window.removeEventFilter(self)
        self._window = window
        if window is not None:
            window.installEventFilter(self)

    def _close_with_window(self, event: QEvent) -> bool:
        window = self._window
        assert window is not None
        question = self._question()
        if question and _a_person_closes(window, event) and not _agreed(window, question):
            event.ignore()
            return True
        # napari may still refuse to close, so its window handles the event first.
        self._closing = True
        try:
            window.event(event)
        finally:
            self._closing = False
        if event.isAccepted():
            self.stop()
            window.hide()  # its canvas is closed: nothing may be drawn while layers are removed
            self._dock.close()
        return True


def _agreed(window: QMainWindow, question: str) -> bool:
    box = QMessageBox(QMessageBox.Icon.Question, "JRSS", question, parent=window)
    pause = box.addButton("Pause and close", QMessageBox.ButtonRole.AcceptRole)
    stay = box.addButton("Keep training", QMessageBox.ButtonRole.RejectRole)
    box.setDefaultButton(stay)
    box.exec()
    return box.clickedButton() is pause


def _a_person_closes(window: QMainWindow, event: QEvent) -> bool:
    """By the window's cross, or a shortcut; a script's `viewer.close()` hides the canvas first."""
    canvas = window.centralWidget()
    parts = [] if canvas is None else canvas.findChildren(QWidget)
    return event.spontaneous() or any(part.isVisible() for part in parts)
