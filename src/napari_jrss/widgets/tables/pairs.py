"""Figures of pairs as tables: Dice per structure, and all labelled cases on one case."""

from collections.abc import Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QTableWidgetItem

from napari_jrss.app.pairs.pairs import Comparison
from napari_jrss.app.pairs.registering import RegistrationReport
from napari_jrss.labels import LabelTable
from napari_jrss.widgets.tables.rows import NumberItem, RowTable


class _SortedTable(RowTable):
    """Rows in the order in which they come, until a person clicks a heading."""

    def fill(self, rows: Sequence[Sequence[QTableWidgetItem]]) -> None:
        self.setSortingEnabled(False)
        super().fill(rows)
        self.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.setSortingEnabled(True)


class DiceTable(_SortedTable):
    """Dice of each structure before and after the registration of a pair, and its folds."""

    def __init__(self) -> None:
        super().__init__(
            {
                "Structure": "The structure in its colour",
                "Before": "Dice of the moving and the fixed label before the registration, 0 to 1",
                "After": "Dice of the warped and the fixed label, 0 to 1",
                "Gain": "After minus before",
                "Folded %": "Share of the warped structure's voxels where the field folds: don't "
                "trust the result there",
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
            dice = [NumberItem(before, ".3f"), NumberItem(after, ".3f"), NumberItem(gain, "+.3f")]
            rows.append([name, *dice, NumberItem(folded, ".2f")])
        self.fill(rows)


class ComparisonTable(_SortedTable):
    """The labelled cases on one case, the best first."""

    chosen = Signal(str)
    """Id of the moving case whose row was double-clicked."""

    def __init__(self) -> None:
        super().__init__(
            {
                "Moving": "Labelled case; a double click shows the pair",
                "Dice": "Mean Dice over the structures after the registration, 0 to 1; known where "
                "the fixed case has a label",
                "Residual": "Root mean square difference of the two images after the "
                "registration, in standard deviations",
                "Folded %": "Share of voxels with a Jacobian determinant of 0 or less",
            }
        )
        self.itemDoubleClicked.connect(
            lambda item: self.chosen.emit(self.item(item.row(), 0).text())
        )

    def show_comparison(self, comparison: Comparison | None) -> None:
        """Show what is known so far; nothing without a comparison."""
        rows: list[list[QTableWidgetItem]] = []
        for each in () if comparison is None else comparison.reports:
            figures = [NumberItem(each.mean_dice, ".3f"), NumberItem(each.residual, ".3f")]
            folded = NumberItem(each.folded_percent, ".2f")
            rows.append([QTableWidgetItem(each.moving), *figures, folded])
        self.fill(rows)
