"""Figures of pairs as tables: Dice per structure, and the labelled cases on one case."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from napari_jrss.app.pairs.pairs import Comparison
from napari_jrss.app.pairs.registering import RegistrationReport
from napari_jrss.labels import LabelTable

_RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


class _Number(QTableWidgetItem):
    """A number that sorts by its value; those that are missing come first."""

    def __init__(self, value: float | None, digits: int) -> None:
        super().__init__("–" if value is None else f"{value:.{digits}f}")  # noqa: RUF001
        self.value = -1.0 if value is None else value
        self.setTextAlignment(_RIGHT)

    def __lt__(self, other: QTableWidgetItem) -> bool:
        if isinstance(other, _Number):
            return self.value < other.value
        return super().__lt__(other)


class _Table(QTableWidget):
    def __init__(self, headings: dict[str, str]) -> None:
        super().__init__(0, len(headings))
        self.setHorizontalHeaderLabels(list(headings))
        for column, tip in enumerate(headings.values()):
            self.horizontalHeaderItem(column).setToolTip(tip)
            self.horizontalHeader().setSectionResizeMode(
                column,
                QHeaderView.ResizeMode.ResizeToContents
                if column
                else QHeaderView.ResizeMode.Stretch,
            )
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(22)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)

    def fill(self, rows: list[list[QTableWidgetItem]]) -> None:
        """Put rows in place of the present ones, in this order."""
        self.setSortingEnabled(False)
        self.setRowCount(len(rows))
        for row, items in enumerate(rows):
            for column, item in enumerate(items):
                self.setItem(row, column, item)
        # no column is sorted by until a person clicks its heading
        self.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.setSortingEnabled(True)


class DiceTable(_Table):
    """Dice of each structure before and after the registration of a pair, and its folds."""

    def __init__(self) -> None:
        super().__init__(
            {
                "Structure": "With its colour",
                "Before": "Dice of the two labels as they were, 0 to 1",
                "After": "Dice of the warped and the fixed label, 0 to 1",
                "Gain": "After minus before",
                "Folded %": "Voxels of the warped structure where the field folds: don't trust "
                "it there",
            }
        )

    def show_report(self, report: RegistrationReport | None, table: LabelTable | None) -> None:
        """Show a pair's structures; none without a pair, or where the moving side has no label."""
        if report is None or table is None or not report.folded_in_structures:
            self.fill([])
            return
        rows: list[list[QTableWidgetItem]] = []
        unknown = [None] * len(report.structures)
        for each, before, after, folded in zip(
            table.classes[1:],
            report.dice_before or unknown,
            report.dice or unknown,
            report.folded_in_structures,
            strict=True,
        ):
            name = QTableWidgetItem(each.name)
            name.setData(Qt.ItemDataRole.DecorationRole, QColor(each.colour))
            gain = None if before is None or after is None else after - before
            change = _Number(gain, 3)
            if gain is not None:
                change.setText(f"{gain:+.3f}")
            rows.append([name, _Number(before, 3), _Number(after, 3), change, _Number(folded, 2)])
        self.fill(rows)


class ComparisonTable(_Table):
    """The labelled cases on one case, the best first.

    Attributes
    ----------
    chosen
        Id of the moving case whose row was double-clicked.
    """

    chosen = Signal(str)

    def __init__(self) -> None:
        super().__init__(
            {
                "Moving": "Labelled case; double click shows the pair",
                "Dice": "Mean over the structures, before and after, where the fixed case has "
                "a label",
                "Residual": "Root mean square difference of the two images after the "
                "registration, in standard deviations",
                "Folded %": "Voxels with a Jacobian determinant of 0 or less",
            }
        )
        self.itemDoubleClicked.connect(
            lambda item: self.chosen.emit(self.item(item.row(), 0).text())
        )

    def _choose(self, item: QTableWidgetItem) -> None:
        self.chosen.emit(self.item(item.row(), 0).text())

    def show_comparison(self, comparison: Comparison | None) -> None:
        """Show what is known so far; nothing without a comparison."""
        reports = () if comparison is None else comparison.reports
        self.fill(
            [
                [
                    QTableWidgetItem(report.moving),
                    _Number(report.mean_dice, 3),
                    _Number(report.residual, 3),
                    _Number(report.folded_percent, 2),
                ]
                for report in reports
            ]
        )
