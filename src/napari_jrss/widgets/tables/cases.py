"""The table of cases: a model of the cohort's rows, sorting and filtering, and the view."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from qtpy.QtCore import (
    QAbstractTableModel,
    QModelIndex,
    QObject,
    QSize,
    QSortFilterProxyModel,
    Qt,
    Signal,
)
from qtpy.QtGui import QColor, QIcon, QImage, QKeyEvent, QPixmap
from qtpy.QtWidgets import QTableView, QWidget

from napari_jrss.app.case_summary import THUMBNAIL_PIXELS, Appearance
from napari_jrss.app.cohort import CaseRow
from napari_jrss.project.records import Split, Status
from napari_jrss.widgets.tables.rows import RIGHT, show_whole_rows
from napari_jrss.widgets.words import SPLITS, STATUSES

_COLUMNS = {
    "Case": "The case and its middle axial slice: anterior is up, the patient's left on the "
    "right.\nA double click or Enter opens the case in Review.",
    "Split": "What the case is used for: training, validation, test, or unused",
    "Label": "Where the current label comes from; a training case with a label trains the teacher",
    "Ver.": "Number of label versions; no version is ever overwritten",
    "Conf.": "The teacher's mean confidence in the voxels of the structures, 0 to 1",
    "Dice": "Mean Dice of the teacher's label and a label that it never trained on, 0 to 1",
}
_HEADINGS, _TOOLTIPS = tuple(_COLUMNS), tuple(_COLUMNS.values())
CASE, SPLIT, LABEL, VERSIONS, CONFIDENCE, DICE = range(len(_COLUMNS))
SORT_ROLE = int(Qt.ItemDataRole.UserRole)

FILTERS: dict[str, Callable[[CaseRow], bool]] = {
    "All cases": lambda row: True,
    "To label": lambda row: row.split is Split.TRAIN and not row.status.has_label,
    "Labelled": lambda row: row.split is Split.TRAIN and row.status.has_label,
    "Validation": lambda row: row.split is Split.VALIDATION,
    "Test": lambda row: row.split is Split.TEST,
    "Unused": lambda row: row.split is Split.UNUSED,
    "Unreadable": lambda row: bool(row.problem),
}

_MIDDLE = 127  # lightness between black and white
_STATUS_COLOURS = {  # on a dark and on a light background
    Status.MANUAL: ("#56b4e9", "#00588f"),
    Status.ACCEPTED: ("#23c08e", "#00633f"),
    Status.CORRECTED: ("#e69f00", "#7a4d00"),
    Status.REJECTED: ("#ff7f2a", "#a33c00"),
}


class CaseTableModel(QAbstractTableModel):
    """The cohort's rows as Qt wants them; `view` tells what a case looks like, once known."""

    def __init__(self, view: Callable[[str], Appearance | None], parent: QObject) -> None:
        super().__init__(parent)
        self._view = view
        self._rows: list[CaseRow] = []
        self._icons: dict[str, QIcon] = {}

    def set_rows(self, rows: list[CaseRow]) -> None:
        """Show these rows; the same cases in the same order keep selection and scrolling."""
        if [row.case_id for row in rows] == [row.case_id for row in self._rows]:
            self._rows = rows
            if rows:
                last = self.index(len(rows) - 1, len(_COLUMNS) - 1)
                self.dataChanged.emit(self.index(0, 0), last)
            return
        self.beginResetModel()
        self._rows = rows
        self._icons.clear()
        self.endResetModel()

    def is_known(self, column: int) -> bool:
        """Whether a column has something to say of any case."""
        least = 1 if column == VERSIONS else 0
        return any(
            isinstance(value := _sort_key(row, column), str) or value > least for row in self._rows
        )

    def row_at(self, row: int) -> CaseRow:
        """The case of a row."""
        return self._rows[row]

    def rowCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802
        """Number of cases."""
        return 0 if parent is not None and parent.isValid() else len(self._rows)

    def columnCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802
        """Number of columns."""
        return 0 if parent is not None and parent.isValid() else len(_COLUMNS)

    def headerData(  # noqa: N802
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        """Names of the columns, explained by tooltips."""
        if orientation == Qt.Orientation.Horizontal:
            if role == Qt.ItemDataRole.DisplayRole:
                return _HEADINGS[section]
            if role == Qt.ItemDataRole.ToolTipRole:
                return _TOOLTIPS[section]
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Text, value to sort by, thumbnail, colour and tooltip of a cell."""
        row, column = self._rows[index.row()], index.column()
        if role == Qt.ItemDataRole.DisplayRole:
            return _text(row, column)
        if role == SORT_ROLE:
            return _sort_key(row, column)
        if role == Qt.ItemDataRole.ToolTipRole:
            return _tooltip(row, column)
        if role == Qt.ItemDataRole.DecorationRole and column == CASE:
            return self._icon(row.case_id)
        if role == Qt.ItemDataRole.ForegroundRole and column == LABEL:
            return _colour_of(row.status, self.parent())
        if role == Qt.ItemDataRole.ForegroundRole and column == CASE and row.problem:
            return _colour_of(Status.REJECTED, self.parent())
        if role == Qt.ItemDataRole.TextAlignmentRole and column >= VERSIONS:
            return int(RIGHT)
        return None

    def _icon(self, case_id: str) -> QIcon | None:
        if case_id not in self._icons:
            view = self._view(case_id)
            if view is None:
                return None
            self._icons[case_id] = QIcon(_pixmap(view))
        return self._icons[case_id]


class CaseFilter(QSortFilterProxyModel):
    """Cases whose id holds a text and that belong to one of :data:`FILTERS`."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._text = ""
        self._belongs = FILTERS["All cases"]
        self.setSortRole(SORT_ROLE)
        self.setDynamicSortFilter(True)

    def set_text(self, text: str) -> None:
        """Show only cases whose id holds this text, upper and lower case alike."""
        self._text = text.strip().lower()
        self.invalidateFilter()

    def set_group(self, name: str) -> None:
        """Show only the cases of one of :data:`FILTERS`."""
        self._belongs = FILTERS[name]
        self.invalidateFilter()

    def filterAcceptsRow(self, source_row: int, source_parent: QModelIndex) -> bool:  # noqa: N802
        """Whether a case is shown."""
        model = self.sourceModel()
        assert isinstance(model, CaseTableModel)
        row = model.row_at(source_row)
        return self._text in row.case_id.lower() and self._belongs(row)


class CaseTable(QTableView):
    """The table itself."""

    opened = Signal(str)
    """Id of a case that was double clicked, or chosen by Enter."""

    def __init__(self, view: Callable[[str], Appearance | None], parent: QWidget) -> None:
        super().__init__(parent)
        self.cases = CaseTableModel(view, self)
        self.shown = CaseFilter(self)
        self.shown.setSourceModel(self.cases)
        self.setModel(self.shown)
        show_whole_rows(self, stretch=CASE)
        self.setSortingEnabled(True)
        self.sortByColumn(CASE, Qt.SortOrder.AscendingOrder)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)  # names differ at their ends
        self.setAlternatingRowColors(False)
        self.setIconSize(QSize(THUMBNAIL_PIXELS - 8, THUMBNAIL_PIXELS - 8))
        self.verticalHeader().setDefaultSectionSize(THUMBNAIL_PIXELS - 4)
        self.horizontalHeader().setMinimumSectionSize(30)
        self.doubleClicked.connect(self._open)

    def set_rows(self, rows: list[CaseRow]) -> None:
        """Show these cases; columns that have nothing to say of any are hidden."""
        self.cases.set_rows(rows)
        for column in (VERSIONS, CONFIDENCE, DICE):
            self.setColumnHidden(column, not self.cases.is_known(column))

    def case_at(self, index: QModelIndex) -> str:
        """The case of a cell that is shown."""
        return self.cases.row_at(self.shown.mapToSource(index).row()).case_id

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        """Enter opens the selected case."""
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            for index in self.selectionModel().selectedRows():
                self._open(index)
            return
        super().keyPressEvent(event)

    def _open(self, index: QModelIndex) -> None:
        self.opened.emit(self.case_at(index))


def _colour_of(status: Status, view: QObject) -> QColor | None:
    """The colour of a status on the background that the table has in this theme."""
    colours = _STATUS_COLOURS.get(status)
    if colours is None or not isinstance(view, QWidget):
        return None
    dark = view.palette().text().color().lightness() > _MIDDLE
    return QColor(colours[0] if dark else colours[1])


def _text(row: CaseRow, column: int) -> str:
    if column <= VERSIONS:
        return (row.case_id, SPLITS[row.split], STATUSES[row.status], str(row.labels or ""))[column]
    value = _sort_key(row, column)
    return "" if isinstance(value, str) or value < 0 else f"{value:.3f}"


def _sort_key(row: CaseRow, column: int) -> str | float:
    """Value of a cell; -1 where a number isn't known."""
    if column == VERSIONS:
        return float(row.labels)
    if column < VERSIONS:
        return _text(row, column)
    if row.figures is None:
        return -1.0
    value = row.figures.confidence if column == CONFIDENCE else row.figures.dice
    return -1.0 if value is None or math.isnan(value) else value


def _tooltip(row: CaseRow, column: int) -> str:
    if row.problem:
        return f"Can't be read: {row.problem}"
    if column == CONFIDENCE and row.figures is not None:
        kl = row.figures.uncertainty
        return _TOOLTIPS[column] + (
            "" if kl is None else f"\nDisagreement of teacher and student (KL divergence): {kl:.4f}"
        )
    return row.case_id if column == CASE else _TOOLTIPS[column]


def _pixmap(view: Appearance) -> QPixmap:
    grey = np.ascontiguousarray(view.thumbnail)
    height, width = grey.shape
    image = QImage(grey.data, width, height, width, QImage.Format.Format_Grayscale8)
    return QPixmap.fromImage(image)  # copies, so the array may go
