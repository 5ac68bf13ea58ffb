"""Small parts that tabs and dialogs are made of: buttons, texts, rows, and a field for a path."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)


def button(
    text: str, tooltip: str, command: Callable[[], object], shortcut: str = ""
) -> QPushButton:
    """A push button that calls one command; its tooltip names the shortcut."""
    made = QPushButton(text)
    if shortcut:
        made.setShortcut(shortcut)
        key = made.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
        tooltip = f"{tooltip} ({key})"
    made.setToolTip(tooltip)
    made.clicked.connect(lambda: command())
    return made


def wrapped(text: str = "") -> QLabel:
    """A text of several lines, shown as it is."""
    label = QLabel(text)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    return label


def say(label: QLabel, text: str) -> None:
    """Show a text, or hide the label if the text is empty."""
    label.setText(text)
    label.setVisible(bool(text))


def local_time(utc: str) -> str:
    """A time of the project, ISO 8601 in UTC, as the clock on the wall had it."""
    return datetime.fromisoformat(utc).astimezone().strftime("%Y-%m-%d %H:%M")


def in_row(*widgets: QWidget) -> QHBoxLayout:
    """Widgets side by side."""
    layout = QHBoxLayout()
    for widget in widgets:
        layout.addWidget(widget)
    return layout


def scrolled(page: QWidget, tab: QWidget) -> None:
    """Let a page fill a tab, with a scroll bar where the window is too low for it."""
    scroll = QScrollArea()
    scroll.setWidget(page)
    scroll.setWidgetResizable(True)
    scroll.setFrameShape(QScrollArea.Shape.NoFrame)
    layout = QVBoxLayout(tab)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.addWidget(scroll)


class PathField(QWidget):
    """A path to type or to choose.

    Parameters
    ----------
    title
        Title of the dialog in which the path is chosen.
    tooltip
        What the path is for.
    pattern
        Files to choose from, as Qt writes them; a folder is chosen without it.

    Attributes
    ----------
    changed
        The text has changed.
    """

    changed = Signal()

    def __init__(self, title: str, tooltip: str, pattern: str | None = None) -> None:
        super().__init__()
        self._title, self._pattern = title, pattern
        self.edit = QLineEdit()
        self.edit.setToolTip(tooltip)
        self.edit.textChanged.connect(self.changed)
        choose = button("…", f"Choose: {tooltip}", self._choose)
        choose.setFixedWidth(30)
        choose.setAutoDefault(False)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.edit)
        layout.addWidget(choose)

    def path(self) -> Path | None:
        """The path, or None if the field is empty."""
        text = self.edit.text().strip()
        return Path(text).expanduser() if text else None

    def set_path(self, path: Path | None) -> None:
        """Show a path."""
        self.edit.setText("" if path is None else str(path))

    def _choose(self) -> None:
        start = str(self.path() or "")
        if self._pattern is None:
            chosen = QFileDialog.getExistingDirectory(self, self._title, start)
        else:
            chosen, _ = QFileDialog.getOpenFileName(self, self._title, start, self._pattern)
        if chosen:
            self.edit.setText(chosen)
