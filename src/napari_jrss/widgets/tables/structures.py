"""The structures of the case under review: colour, volume, confidence, accepted or not."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QKeyEvent, QPixmap
from qtpy.QtWidgets import QLineEdit, QSizePolicy, QTableWidgetItem, QWidget

from napari_jrss.app.review.open_case import StructureRow
from napari_jrss.labels import without_side
from napari_jrss.widgets.controls import choice, in_column, in_row
from napari_jrss.widgets.tables.rows import RIGHT, RowTable, number_text

_COLUMNS = {
    "Structure": "The selected structure is the one that you paint and that the tools change",
    "Volume": "Volume in the label that you correct, in millilitres",
    "Sure": "The teacher's mean confidence in the voxels of this structure, 0 to 1;\n"
    "struck out: at this threshold the structure would not be used for training",
    "Done": "Tick to accept this structure: nothing changes it until you remove the tick",
}
NAME, VOLUME, CONFIDENCE, ACCEPTED = range(len(_COLUMNS))
_ORDER = len(_COLUMNS)  # a hidden column, by which rows are sorted until a heading is clicked
_FEW = 8  # structures that are seen without a search
_USE = {
    None: "There is no prediction of this structure yet",
    True: "Is used for training at this threshold",
    False: "Would not be used for training at this threshold",
}

ALL, HERE_FIRST, HERE = "All", "This slice first", "In this slice"
NOT_DONE, EMPTY = "Not done yet", "Empty"


class _Cell(QTableWidgetItem):
    """A cell that sorts by a value of its own, and by its text without one."""

    value: Any = None

    def __lt__(self, other: QTableWidgetItem) -> bool:
        if isinstance(other, _Cell) and self.value is not None:
            return bool(self.value < other.value)
        return bool(self.text().lower() < other.text().lower())


class StructureTable(RowTable):
    """One row for each structure.

    Until a heading is clicked they are in the label table's order, but left and right of one
    structure stand together.
    """

    chosen = Signal(int)
    """The index of the structure whose row was chosen."""
    visited = Signal(int)
    """The index of a structure whose row a person clicked, or reached by a key."""
    accepted = Signal(int, bool)
    """The index of a structure, and whether it was ticked."""

    def __init__(self) -> None:
        super().__init__({**_COLUMNS, "": ""}, stretch=NAME)
        self.setColumnHidden(_ORDER, True)
        self.horizontalHeader().setSortIndicator(_ORDER, Qt.SortOrder.AscendingOrder)
        self._cells: dict[int, list[_Cell]] = {}
        self._shown: dict[int, StructureRow] = {}
        self.itemSelectionChanged.connect(self._row_chosen)
        self.cellClicked.connect(self._clicked)
        self.itemChanged.connect(self._ticked)

    def sizeHint(self) -> QSize:  # noqa: N802
        """No higher than its rows, so that few structures leave the tab without a scroll bar."""
        hint = super().sizeHint()
        rows = self.verticalHeader().length() + self.horizontalHeader().sizeHint().height()
        return QSize(hint.width(), min(hint.height(), rows + 2 * self.frameWidth()))

    @property
    def index(self) -> int | None:
        """The structure that is chosen."""
        row = self.currentRow()
        return None if row < 0 else self._index_at(row)

    def choose(self, index: int) -> None:
        """Choose a structure's row."""
        if index in self._cells and index != self.index:
            self.selectRow(self._cells[index][NAME].row())

    def clear_rows(self) -> None:
        """Show no structure."""
        self._cells.clear()
        self._shown.clear()
        self.setRowCount(0)

    def show_rows(self, structures: Sequence[StructureRow], read_only: bool) -> None:
        """Show the structures as they are now; the chosen row stays."""
        self.blockSignals(True)
        self.setSortingEnabled(False)
        if [each.index for each in structures] != list(self._cells):
            self._make_rows(structures)
        for each in structures:
            if self._shown.get(each.index) != each:
                self._show_row(each)
                self._shown[each.index] = each
        self._set_ticks(not read_only)
        self.setSortingEnabled(True)
        if structures and self.currentRow() < 0:
            self.selectRow(0)
        self.blockSignals(False)

    def put_first(self, indices: Collection[int]) -> None:
        """Show some structures above all others; by the usual order, whatever heading it was."""
        wanted = {
            index: (index not in indices, *place)
            for index, place in _together(self._shown.values()).items()
        }
        if all(self._cells[index][_ORDER].value == value for index, value in wanted.items()):
            return
        self.blockSignals(True)
        self.setSortingEnabled(False)
        self.horizontalHeader().setSortIndicator(_ORDER, Qt.SortOrder.AscendingOrder)
        for index, value in wanted.items():
            self._cells[index][_ORDER].value = value
        self.setSortingEnabled(True)
        self.blockSignals(False)

    def show_only(self, wanted: Callable[[StructureRow], bool]) -> None:
        """Hide the rows of all other structures."""
        for index, each in self._shown.items():
            self.setRowHidden(self._cells[index][NAME].row(), not wanted(each))

    def _make_rows(self, structures: Sequence[StructureRow]) -> None:
        chosen = self.index
        self.clear_rows()
        self._cells = {each.index: [_Cell() for _ in range(_ORDER + 1)] for each in structures}
        self.fill(list(self._cells.values()))
        for index, place in _together(structures).items():
            self._cells[index][_ORDER].value = (False, *place)
        for index, cells in self._cells.items():
            cells[NAME].setData(Qt.ItemDataRole.UserRole, index)
            for column in (VOLUME, CONFIDENCE):
                cells[column].setTextAlignment(RIGHT)
            cells[ACCEPTED].setToolTip(_COLUMNS["Done"])
        if chosen in self._cells:
            self.selectRow(self._cells[chosen][NAME].row())
        rows = self.verticalHeader().length() + self.horizontalHeader().sizeHint().height()
        self.setMaximumHeight(max(self.minimumHeight(), rows + 2 * self.frameWidth()))
        self.updateGeometry()

    def _show_row(self, structure: StructureRow) -> None:
        name, volume, confidence, accepted, _ = self._cells[structure.index]
        before = self._shown.get(structure.index)
        if before is None or (before.name, before.colour) != (structure.name, structure.colour):
            name.setText(structure.name)
            name.setToolTip(f"{structure.name} (class {structure.index})")
            swatch = QPixmap(12, 12)
            swatch.fill(QColor(structure.colour))
            icon = QIcon(swatch)
            icon.addPixmap(swatch, QIcon.Mode.Selected)  # which Qt would tint
            name.setIcon(icon)
        volume.value = structure.volume_ml
        volume.setText(f"{structure.volume_ml:,.2f} ml")
        mean = structure.mean_confidence
        confidence.value = -1.0 if mean is None else mean
        confidence.setText(number_text(mean, ".2f"))
        font = confidence.font()
        font.setStrikeOut(structure.passes is False and mean is not None)
        confidence.setFont(font)
        confidence.setToolTip(_USE[structure.passes])
        accepted.value = structure.accepted
        ticked = Qt.CheckState.Checked if structure.accepted else Qt.CheckState.Unchecked
        accepted.setCheckState(ticked)

    def _set_ticks(self, enabled: bool) -> None:
        usual = Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsUserCheckable
        flags = usual | Qt.ItemFlag.ItemIsEnabled if enabled else usual
        for cells in self._cells.values():
            if cells[ACCEPTED].flags() != flags:
                cells[ACCEPTED].setFlags(flags)

    def _index_at(self, row: int) -> int:
        return int(self.item(row, NAME).data(Qt.ItemDataRole.UserRole))

    def _row_chosen(self) -> None:
        if self.index is not None:
            self.chosen.emit(self.index)

    def _clicked(self, row: int, column: int) -> None:
        if column != ACCEPTED:
            self.visited.emit(self._index_at(row))

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Arrow keys go to the structure."""
        before = self.index
        super().keyPressEvent(event)
        if self.index is not None and self.index != before:
            self.visited.emit(self.index)

    def _ticked(self, item: QTableWidgetItem) -> None:
        if item.column() == ACCEPTED:
            on = item.checkState() == Qt.CheckState.Checked
            self.accepted.emit(self._index_at(item.row()), on)


def _together(structures: Iterable[StructureRow]) -> dict[int, tuple[int, int]]:
    """A place in the order for each index: that of the first one of its name without a side."""
    first: dict[str, int] = {}
    return {
        each.index: (first.setdefault(without_side(each.name).lower(), each.index), each.index)
        for each in structures
    }


class StructurePanel(QWidget):
    """The table with a search and a filter above it, where there are many structures.

    `here` says which structures are in the slice that is looked at.
    """

    def __init__(self, here: Callable[[], Collection[int]]) -> None:
        super().__init__()
        self._here = here
        self.table = StructureTable()
        self.table.setMinimumHeight(90)
        self.search = QLineEdit(
            placeholderText="Search a structure",
            clearButtonEnabled=True,
            toolTip="Show only structures whose name holds each of these words (F3)",
        )
        self.kind = choice(
            "Show only structures of this kind, or those in this slice above all others",
            *(ALL, HERE_FIRST, HERE, NOT_DONE, EMPTY),
        )
        self.search.textChanged.connect(self.filter)
        self.search.returnPressed.connect(self._take_first)
        # Qt hides rows by their place, whatever is sorted into it.
        self.table.horizontalHeader().sortIndicatorChanged.connect(self.filter)
        self.kind.currentTextChanged.connect(self._kind_chosen)
        self._row = QWidget()
        in_column(self._row, in_row(self.search, self.kind, stretch=(1,))).setContentsMargins(
            0, 0, 0, 0
        )
        column = in_column(self, self._row, self.table)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)

    def show_rows(self, structures: Sequence[StructureRow], read_only: bool) -> None:
        """Show the structures as they are now."""
        self.table.show_rows(structures, read_only)
        many = len(structures) > _FEW
        self._row.setVisible(many)
        policy = QSizePolicy.Policy.Expanding if many else QSizePolicy.Policy.Maximum
        self.setSizePolicy(QSizePolicy.Policy.Preferred, policy)
        if self.kind.currentText() == HERE_FIRST:
            self._put_first()
        self.filter()

    def slice_changed(self) -> None:
        """Show the structures of another slice, if it matters which it is."""
        if self.kind.currentText() == HERE_FIRST:
            self._put_first()
        if self.kind.currentText() in (HERE, HERE_FIRST):
            self.filter()

    def _kind_chosen(self, kind: str) -> None:
        self._put_first()
        self.filter()

    def _put_first(self) -> None:
        self.table.put_first(self._here() if self.kind.currentText() == HERE_FIRST else ())

    def filter(self) -> None:
        """Show the rows that are wanted now."""
        words = self.search.text().lower().split()
        kind = self.kind.currentText()
        here = self._here() if kind == HERE else ()
        belongs: dict[str, Callable[[StructureRow], bool]] = {
            ALL: lambda each: True,
            HERE_FIRST: lambda each: True,
            HERE: lambda each: each.index in here,
            NOT_DONE: lambda each: not each.accepted,
            EMPTY: lambda each: not each.volume_ml,
        }
        self.table.show_only(
            lambda each: belongs[kind](each) and all(word in each.name.lower() for word in words)
        )

    def _take_first(self) -> None:
        """Enter chooses the first structure that was found, and goes there."""
        for row in range(self.table.rowCount()):
            if not self.table.isRowHidden(row):
                self.table.setFocus()
                self.table.selectRow(row)
                if self.table.index is not None:
                    self.table.visited.emit(self.table.index)
                return
