"""A path to type or to choose."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLineEdit, QPushButton, QWidget


class PathField(QWidget):
    """A path to type or to choose.

    Attributes
    ----------
    changed
        Another path, or none, stands there.
    """

    changed = Signal()

    def __init__(self, title: str, tooltip: str, pattern: str | None = None) -> None:
        super().__init__()
        self._title, self._pattern = title, pattern
        self.edit = QLineEdit()
        self.edit.setToolTip(tooltip)
        self.edit.textChanged.connect(self.changed)
        choose = QPushButton("…")
        choose.setToolTip(f"Choose: {tooltip}")
        choose.setFixedWidth(30)
        choose.setAutoDefault(False)
        choose.clicked.connect(self._choose)
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
