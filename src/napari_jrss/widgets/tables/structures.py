"""The structures of the case under review: colour, volume, confidence, accepted or not."""

from collections.abc import Sequence

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QCheckBox, QTableWidgetItem

from napari_jrss.app.review.open_case import StructureRow
from napari_jrss.widgets.tables.rows import RIGHT, RowTable, number_text

_COLUMNS = {
    "Structure": "The selected structure is the one that you paint and that the tools change",
    "Volume": "Volume in the label that you correct, in millilitres",
    "Confidence": "The teacher's mean confidence in the voxels of this structure, 0 to 1;\n"
    "struck out: at this tau the structure would not be used for training",
    "Accepted": "Tick to accept this structure: nothing changes it until you remove the tick",
}
NAME, VOLUME, CONFIDENCE, ACCEPTED = range(len(_COLUMNS))
_COLOUR_ROLE = Qt.ItemDataRole.UserRole + 1


class StructureTable(RowTable):
    """One row for each structure."""

    chosen = Signal(int)
    """The index of the structure whose row was chosen."""
    accepted = Signal(int, bool)
    """The index of a structure, and whether it was ticked."""

    def __init__(self) -> None:
        super().__init__(_COLUMNS, stretch=NAME)
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
            self.fill([[QTableWidgetItem() for _ in _COLUMNS] for _ in structures])
            for row in range(len(structures)):
                for column in (VOLUME, CONFIDENCE):
                    self.item(row, column).setTextAlignment(RIGHT)
                box = QCheckBox()
                box.setToolTip(_COLUMNS["Accepted"])
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
        if name.data(_COLOUR_ROLE) != structure.colour:
            swatch = QPixmap(12, 12)
            swatch.fill(QColor(structure.colour))
            icon = QIcon(swatch)
            icon.addPixmap(swatch, QIcon.Mode.Selected)  # which Qt would tint
            name.setIcon(icon)
            name.setData(_COLOUR_ROLE, structure.colour)
        volume.setText(f"{structure.volume_ml:,.2f} ml")
        mean = structure.mean_confidence
        confidence.setText(number_text(mean, ".2f"))
        font = confidence.font()
        font.setStrikeOut(structure.passes is False and mean is not None)
        confidence.setFont(font)
        confidence.setToolTip(
            {
                None: "There is no prediction of this structure yet",
                True: "Is used for training at this tau",
                False: "Would not be used for training at this tau",
            }[structure.passes]
        )
        box = self.cellWidget(row, ACCEPTED)
        box.blockSignals(True)
        box.setEnabled(not read_only)
        box.setChecked(structure.accepted)
        box.blockSignals(False)

    def _row_chosen(self) -> None:
        if self.index is not None:
            self.chosen.emit(self.index)
