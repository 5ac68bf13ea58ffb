"""Which structures of the labels a new project has, and their names and colours."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QColorDialog,
    QLineEdit,
    QTableWidgetItem,
    QWidget,
)

from napari_jrss.errors import from_validation
from napari_jrss.labels import LabelTable, default_colour, without_side
from napari_jrss.widgets.controls import button, in_row
from napari_jrss.widgets.dialogs.dialog import Dialog
from napari_jrss.widgets.tables.rows import RowTable

_COLUMNS = {
    "Use": "Whether the project has this structure; the others are background",
    "Colour": "Double-click to change it",
    "Name": "Double-click to change it; structures of one name become one",
    "In the labels": "The structure's name in the label files",
}
_USE, _COLOUR, _NAME, _FOUND = range(4)


class ChooseStructures(Dialog):
    """A table of the structures that were found: tick, rename, merge and colour them."""

    def __init__(
        self,
        found: LabelTable,
        chosen: LabelTable,
        use: Callable[[LabelTable], None],
        parent: QWidget,
    ) -> None:
        super().__init__(parent, "Structures", "Use these", "Give the project these structures")
        self.resize(560, 480)
        self._found, self._use = found, use
        self.filter = QLineEdit(
            placeholderText="Filter by name",
            clearButtonEnabled=True,
            toolTip="Show only structures whose name holds this text",
        )
        self.filter.textChanged.connect(self._show_rows)
        self.table = RowTable(_COLUMNS, stretch=_NAME)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked)
        self.table.cellDoubleClicked.connect(self._choose_colour)
        self.table.itemChanged.connect(self._count)
        self.all = button("All", "Tick all that are shown", lambda: self._tick(True))
        self.none = button("None", "Tick none that is shown", lambda: self._tick(False))
        self.pairs = button(
            "Join left and right",
            "Give the left and the right of a structure one name, so that they become one",
            self._join_sides,
        )
        self.lay_out(self.filter, self.table, in_row(self.all, self.none, self.pairs))
        self._fill(chosen)

    def accept(self) -> None:
        """Use what is ticked; if that can't be, the reason is shown and the dialog stays."""
        try:
            table = self.chosen()
        except ValidationError as error:
            self.message.setText(from_validation(error))
            return
        self._use(table)
        super().accept()

    def chosen(self) -> LabelTable:
        """The table of what is ticked; pydantic's ValidationError if it can't be."""
        kept = {}
        for row in range(self.table.rowCount()):
            if self.table.item(row, _USE).checkState() is Qt.CheckState.Checked:
                name = " ".join(self.table.item(row, _NAME).text().split())
                kept[row + 1] = name, self.table.item(row, _COLOUR).background().color().name()
        return self._found.renamed(kept)

    def _fill(self, chosen: LabelTable) -> None:
        rows = []
        for each in self._found.classes[1:]:
            index = chosen.index_of(each.name)
            now = each if index is None else chosen.classes[index]
            tick = QTableWidgetItem()
            tick.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
            checked = Qt.CheckState.Unchecked if index is None else Qt.CheckState.Checked
            tick.setCheckState(checked)
            colour = QTableWidgetItem()
            colour.setBackground(QColor(now.colour or default_colour(each.index)))
            colour.setFlags(Qt.ItemFlag.ItemIsEnabled)
            origin = QTableWidgetItem(each.name)
            origin.setFlags(Qt.ItemFlag.ItemIsEnabled)
            rows.append([tick, colour, QTableWidgetItem(now.name), origin])
        self.table.blockSignals(True)  # no person edits here
        self.table.fill(rows)
        self.table.blockSignals(False)
        self._count()

    def _show_rows(self, text: str) -> None:
        for row in range(self.table.rowCount()):
            names = (self.table.item(row, column).text() for column in (_NAME, _FOUND))
            shown = any(text.casefold() in name.casefold() for name in names)
            self.table.setRowHidden(row, not shown)

    def _tick(self, on: bool) -> None:
        state = Qt.CheckState.Checked if on else Qt.CheckState.Unchecked
        for row in range(self.table.rowCount()):
            if not self.table.isRowHidden(row):
                self.table.item(row, _USE).setCheckState(state)

    def _join_sides(self) -> None:
        for row in range(self.table.rowCount()):
            item = self.table.item(row, _NAME)
            item.setText(without_side(item.text()))

    def _choose_colour(self, row: int, column: int) -> None:
        if column == _COLOUR:
            item = self.table.item(row, column)
            colour = QColorDialog.getColor(
                item.background().color(), self, "Colour of the structure"
            )
            if colour.isValid():
                item.setBackground(colour)

    def _count(self) -> None:
        try:
            count = len(self.chosen().names) - 1
        except ValidationError as error:
            self.message.setText(from_validation(error))
            self.start.setEnabled(False)
            return
        self.message.setText(f"{count} structures, of {self.table.rowCount()} found")
        self.start.setEnabled(True)
