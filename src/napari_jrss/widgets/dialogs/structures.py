"""Names and colours of the structures; their ids are settled with the project."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QColorDialog,
    QDialog,
    QDialogButtonBox,
    QHeaderView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_jrss.errors import EXPECTED, one_line

if TYPE_CHECKING:
    from napari_jrss.app.session import Session

_COLOUR, _NAME, _IDS = range(3)


class StructuresDialog(QDialog):
    """A table of the structures: a double click changes a name or a colour at once."""

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Structures")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setMinimumSize(420, 360)
        self._session = session
        self._workspace = session.workspace
        self._filling = False
        self.table = QTableWidget(0, 3)
        self.table.setHorizontalHeaderLabels(["Colour", "Name", "Ids in the files"])
        self.table.setToolTip("Double click a name or a colour to change it")
        self.table.verticalHeader().setVisible(False)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(_NAME, QHeaderView.ResizeMode.Stretch)
        self.table.itemChanged.connect(self._renamed)
        self.table.cellDoubleClicked.connect(self._choose_colour)
        self._message = QLabel()
        self._message.setWordWrap(True)
        self._message.setTextFormat(Qt.TextFormat.PlainText)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        for part in (self.table, self._message, buttons):
            layout.addWidget(part)
        self._fill()

    def recolour(self, row: int, colour: str) -> None:
        """Give the structure of a row another colour, #rrggbb."""
        self._try(lambda: self._session.cohort.recolour(row + 1, colour))

    def _fill(self) -> None:
        self._filling = True
        structures = self._workspace.open_project.table.classes[1:]
        self.table.setRowCount(len(structures))
        for row, each in enumerate(structures):
            colour = QTableWidgetItem()
            colour.setBackground(QColor(each.colour))
            colour.setToolTip(f"{each.colour}: double click to change it")
            colour.setFlags(Qt.ItemFlag.ItemIsEnabled)
            ids = QTableWidgetItem(_ids(each.source_ids))
            ids.setFlags(Qt.ItemFlag.ItemIsEnabled)
            for column, item in ((_COLOUR, colour), (_NAME, QTableWidgetItem(each.name))):
                self.table.setItem(row, column, item)
            self.table.setItem(row, _IDS, ids)
        self._filling = False

    def _renamed(self, item: QTableWidgetItem) -> None:
        if not self._filling and item.column() == _NAME:
            self._try(lambda: self._session.cohort.rename(item.row() + 1, item.text()))

    def _choose_colour(self, row: int, column: int) -> None:
        if column == _COLOUR:
            before = QColor(self._workspace.open_project.table.classes[row + 1].colour)
            chosen = QColorDialog.getColor(before, self, "Colour of the structure")
            if chosen.isValid():
                self.recolour(row, chosen.name())

    def _try(self, command: Callable[[], None]) -> None:
        self._message.clear()
        try:
            command()
        except EXPECTED as error:
            self._message.setText(one_line(error))
        self._fill()


def _ids(ids: tuple[int, ...]) -> str:
    shown = ", ".join(str(i) for i in ids[:6])
    return f"{shown}, … ({len(ids)})" if len(ids) > 6 else shown
