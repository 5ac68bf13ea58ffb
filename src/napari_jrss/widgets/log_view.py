"""The log of the project that was opened last, to be read or attached to a bug report."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QPlainTextEdit, QVBoxLayout, QWidget

from napari_jrss.errors import one_line
from napari_jrss.logs import LOG
from napari_jrss.widgets.controls import button, in_row, wrapped
from napari_jrss.widgets.preferences import recent_projects

_SHOWN_BYTES = 100_000


class LogView(QWidget):
    """``Plugins > JRSS > Log``: the end of the log, the latest line last."""

    def __init__(self) -> None:
        super().__init__()
        self.path: Path | None = None
        self.message = wrapped()
        self.text = QPlainTextEdit(readOnly=True)
        self.text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.refresh = button("Refresh", "Show what was logged since", self.show_log)
        self.open_file = button("Open file", "Open the log in another program", self._open_file)
        self.open_folder = button(
            "Open folder", "Open the project's folder, which holds the log", self._open_folder
        )
        layout = QVBoxLayout(self)
        layout.addWidget(self.message)
        layout.addWidget(self.text, 1)
        layout.addLayout(in_row(self.refresh, self.open_file, self.open_folder))
        self.show_log()

    def show_log(self) -> None:
        """Read the end of the log again."""
        project = next(iter(recent_projects()), None)
        self.path = None if project is None else project / LOG
        text = ""
        try:
            if self.path is None:
                self.message.setText("The log lies in the project's folder: open a project first.")
            else:
                self.message.setText(f"{self.path}: attach it to a bug report.")
                text = _end_of(self.path)
        except OSError as error:
            self.message.setText(f"There is no log to show: {one_line(error)}")
        for each in (self.open_file, self.open_folder):
            each.setEnabled(bool(text))
        self.text.setPlainText(text)
        self.text.verticalScrollBar().setValue(self.text.verticalScrollBar().maximum())

    def _open_file(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.path)))

    def _open_folder(self) -> None:
        assert self.path is not None
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.path.parent)))


def _end_of(path: Path) -> str:
    """The last whole lines of a file, at most 100 kB."""
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - _SHOWN_BYTES))
        text = file.read().decode("utf-8", "replace")
    return text if length <= _SHOWN_BYTES else text.partition("\n")[2]
