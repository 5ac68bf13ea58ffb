"""What all tables share: headings with tooltips, whole rows to select, numbers that sort."""

from collections.abc import Mapping, Sequence

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QTableView,
    QTableWidget,
    QTableWidgetItem,
)

RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


def number_text(value: float | None, form: str) -> str:
    """A number in a format such as ``.2f``; a dash where it isn't known."""
    return "–" if value is None else format(value, form)  # noqa: RUF001


def show_whole_rows(view: QTableView, stretch: int) -> None:
    """Let a person select one row at a time and edit nothing.

    The table must have its columns; column `stretch` takes the width that is left.
    """
    view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    view.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    view.setTabKeyNavigation(False)  # Tab goes on to the next part of the window
    view.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    view.verticalHeader().hide()
    columns = view.horizontalHeader()
    columns.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    columns.setSectionResizeMode(stretch, QHeaderView.ResizeMode.Stretch)


class NumberItem(QTableWidgetItem):
    """A number that sorts by its value; those that aren't known come first."""

    def __init__(self, value: float | None, form: str) -> None:
        super().__init__(number_text(value, form))
        self.value = -1.0 if value is None else value
        self.setTextAlignment(RIGHT)

    def __lt__(self, other: QTableWidgetItem) -> bool:
        if isinstance(other, NumberItem):
            return self.value < other.value
        return super().__lt__(other)


class RowTable(QTableWidget):
    """A table of rows to read and select, from headings with their tooltips."""

    def __init__(self, columns: Mapping[str, str], stretch: int = 0) -> None:
        super().__init__(0, len(columns))
        self.setHorizontalHeaderLabels(list(columns))
        for column, tooltip in enumerate(columns.values()):
            self.horizontalHeaderItem(column).setToolTip(tooltip)
        show_whole_rows(self, stretch)
        self.verticalHeader().setDefaultSectionSize(self.fontMetrics().height() + 8)

    def fill(self, rows: Sequence[Sequence[QTableWidgetItem]]) -> None:
        """Put rows in place of the present ones."""
        self.setRowCount(len(rows))
        for row, items in enumerate(rows):
            for column, item in enumerate(items):
                self.setItem(row, column, item)
