"""Names and colours of the structures; their ids were fixed when the project was made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QAbstractItemView, QColorDialog, QTableWidgetItem, QWidget

from napari_jrss.widgets.dialogs.dialog import Dialog
from napari_jrss.widgets.tables.rows import RowTable

if TYPE_CHECKING:
    from napari_jrss.app.session import Session

_COLUMNS = {
    "Colour": "Double-click to change it",
    "Name": "Double-click to change it",
    "Ids in the files": "Numbers that stand for the structure in the label files",
}
_COLOUR, _NAME = range(2)


class StructuresDialog(Dialog):
    """A table of the structures: a double click changes a name or a colour at once."""

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent, "Structures")
        self.setMinimumSize(420, 360)
        self._session = session
        self._workspace = session.workspace
        self.table = RowTable(_COLUMNS, stretch=_NAME)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked)
        self.table.itemChanged.connect(self._renamed)
        self.table.cellDoubleClicked.connect(self._choose_colour)
        self.lay_out(self.table)
        self._fill()

    def recolour(self, row: int, colour: str) -> None:
        """Give the structure of a row another colour, #rrggbb."""
        self._try(lambda: self._session.cohort.recolour(row + 1, colour))

    def _fill(self) -> None:
        rows = []
        for each in self._workspace.open_project.table.classes[1:]:
            colour = QTableWidgetItem()
            colour.setBackground(QColor(each.colour))
            colour.setToolTip(f"{each.colour}: double-click to change it")
            colour.setFlags(Qt.ItemFlag.ItemIsEnabled)
            ids = QTableWidgetItem(_ids(each.source_ids))
            ids.setFlags(Qt.ItemFlag.ItemIsEnabled)
            rows.append([colour, QTableWidgetItem(each.name), ids])
        self.table.blockSignals(True)  # no person edits here
        self.table.fill(rows)
        self.table.blockSignals(False)

    def _renamed(self, item: QTableWidgetItem) -> None:
        if item.column() == _NAME:
            self._try(lambda: self._session.cohort.rename(item.row() + 1, item.text()))

    def _choose_colour(self, row: int, column: int) -> None:
        if column == _COLOUR:
            before = QColor(self._workspace.open_project.table.classes[row + 1].colour)
            chosen = QColorDialog.getColor(before, self, "Colour of the structure")
            if chosen.isValid():
                self.recolour(row, chosen.name())

    def _try(self, command: Callable[[], None]) -> None:
        self.message.clear()
        with self.reporting():
            command()
        self._fill()


def _ids(ids: tuple[int, ...]) -> str:
    shown = ", ".join(str(i) for i in ids[:6])
    return f"{shown}, … ({len(ids)})" if len(ids) > 6 else shown
