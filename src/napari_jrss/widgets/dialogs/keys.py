"""The sheet of keys."""

from collections.abc import Mapping

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QFormLayout, QGroupBox, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from napari_jrss.widgets import keys
from napari_jrss.widgets.controls import wrapped
from napari_jrss.widgets.dialogs.dialog import Dialog


class KeySheet(Dialog):
    """Every key of the window, with what it does."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent, "Keys")
        about = wrapped("Those of Review work while the mouse is over the scan.")
        ours, theirs = QVBoxLayout(), QVBoxLayout()
        ours.addWidget(_group("Review", keys.REVIEW))
        theirs.addWidget(_group("napari", keys.NAPARI))
        theirs.addWidget(_group("Registration", keys.REGISTRATION))
        columns = QHBoxLayout()
        columns.addLayout(ours)
        columns.addLayout(theirs)
        self.lay_out(about, columns)


def _group(title: str, of: Mapping[str, str]) -> QGroupBox:
    box = QGroupBox(title)
    rows = QFormLayout()
    rows.setVerticalSpacing(2)
    for key, meaning in of.items():
        name = QLabel(f"<b>{shown(key)}</b>", textFormat=Qt.TextFormat.RichText)
        rows.addRow(name, QLabel(meaning))
    layout = QVBoxLayout(box)
    layout.addLayout(rows)
    return box


def shown(key: str) -> str:
    """A key as this system writes it, such as ``Ctrl+Z``."""
    if " to " in key:
        first, _, last = key.partition(" to ")
        return f"{shown(first)} to {shown(last)}"
    if " " in key:
        return key
    written = key.replace("Control-", "Ctrl+").replace("Shift-", "Shift+").replace("Alt-", "Alt+")
    return QKeySequence(written).toString(QKeySequence.SequenceFormat.NativeText) or key
