"""The structures of the case under review: colour, volume, confidence, accepted or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
)

if TYPE_CHECKING:
    from napari_jrss.app.review.open_case import StructureRow

COLUMNS = ("Structure", "Volume", "Confidence", "Accepted")
_TOOLTIPS = (
    "The structure that is painted and that the tools work on",
    "Volume in the label under correction, in millilitres",
    "The teacher's mean confidence in this structure's voxels, 0 to 1;\n"
    "struck out where the structure would not enter training at this tau",
    "Tick to accept one structure: nothing changes it until the tick is taken away",
)
NAME, VOLUME, CONFIDENCE, ACCEPTED = range(len(COLUMNS))


class StructureTable(QTableWidget):
    """One row for each structure.

    Attributes
    ----------
    chosen
        The index of the structure whose row was chosen.
    accepted
        The index of a structure and whether it was ticked.
    """

    chosen = Signal(int)
    accepted = Signal(int, bool)

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.setHorizontalHeaderLabels(COLUMNS)
        for column, text in enumerate(_TOOLTIPS):
            self.horizontalHeaderItem(column).setToolTip(text)
        self.verticalHeader().hide()
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Stretch)
        self.verticalHeader().setDefaultSectionSize(self.fontMetrics().height() + 8)
        self.itemSelectionChanged.connect(self._row_chosen)

    def sizeHint(self) -> QSize:  # noqa: N802
        """No higher than its rows, so that few structures leave the tab without a scroll bar."""
        hint = super().sizeHint()
        rows = self.verticalHeader().length() + self.horizontalHeader().sizeHint().height()
        return QSize(hint.width(), min(hint.height(), rows + 2 * self.frameWidth()))

    @property
    def index(self) -> int | None:
        """The structure that is chosen."""
        row = self.currentRow()
        return None if row < 0 else int(self.item(row, NAME).data(Qt.ItemDataRole.UserRole))

    def choose(self, index: int) -> None:
        """Choose a structure's row."""
        if 0 < index <= self.rowCount() and index != self.index:
            self.selectRow(index - 1)

    def show_rows(self, structures: Sequence[StructureRow], read_only: bool) -> None:
        """Show the structures as they are now; the chosen row stays."""
        self.blockSignals(True)
        if self.rowCount() != len(structures):
            self.setRowCount(len(structures))
            for row in range(len(structures)):
                for column in range(len(COLUMNS)):
                    self.setItem(row, column, QTableWidgetItem())
                box = QCheckBox()
                box.setToolTip(_TOOLTIPS[ACCEPTED])
                box.toggled.connect(lambda on, index=row + 1: self.accepted.emit(index, on))
                self.setCellWidget(row, ACCEPTED, box)
            self.updateGeometry()
        for row, structure in enumerate(structures):
            self._show_row(row, structure, read_only)
        if structures and self.currentRow() < 0:
            self.selectRow(0)
        self.blockSignals(False)

    def _show_row(self, row: int, structure: StructureRow, read_only: bool) -> None:
        name, volume, confidence = (self.item(row, c) for c in (NAME, VOLUME, CONFIDENCE))
        if name.text() != structure.name:
            name.setText(structure.name)
            name.setToolTip(f"{structure.name} (class {structure.index})")
            name.setData(Qt.ItemDataRole.UserRole, structure.index)
        colour = QColor(structure.colour)
        if name.data(Qt.ItemDataRole.UserRole + 1) != structure.colour:
            swatch = QPixmap(12, 12)
            swatch.fill(colour)
            icon = QIcon(swatch)
            icon.addPixmap(swatch, QIcon.Mode.Selected)  # which Qt would tint
            name.setIcon(icon)
            name.setData(Qt.ItemDataRole.UserRole + 1, structure.colour)
        volume.setText(f"{structure.volume_ml:,.2f} ml")
        mean = structure.mean_confidence
        confidence.setText("–" if mean is None else f"{mean:.2f}")  # noqa: RUF001
        font = confidence.font()
        font.setStrikeOut(structure.passes is False and mean is not None)
        confidence.setFont(font)
        confidence.setToolTip(
            {
                None: "The teacher said nothing of it yet",
                True: "Enters training at this tau",
                False: "Would not enter training at this tau",
            }[structure.passes]
        )
        for item in (volume, confidence):
            item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        box = self.cellWidget(row, ACCEPTED)
        box.blockSignals(True)
        box.setEnabled(not read_only)
        box.setChecked(structure.accepted)
        box.blockSignals(False)

    def _row_chosen(self) -> None:
        if self.index is not None:
            self.chosen.emit(self.index)
