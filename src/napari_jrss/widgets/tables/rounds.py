"""The rounds of a project as a table: where each came from, what it reached, which teaches."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtGui import QFont
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from napari_jrss.app.rounds.control import RoundRow
from napari_jrss.project.records import RoundOutcome

COLUMNS = {
    "Round": "Number of the round; the one whose teacher is in force is bold",
    "From": "The round whose teacher it started from",
    "RoundOutcome": "How it ended",
    "N": "Labelled training cases",
    "Acc.": "Unlabelled cases whose pseudo-label its teacher had accepted",
    "Seg.": "Mean Dice of the segmentation on the validation cases; (!) where structures are not "
    "learned, which the row's tooltip names",
    "Reg.": "Mean Dice of the registration on the validation pairs",
    "Settings": "Preset, threshold tau and seed",
}


class RoundsTable(QTableWidget):
    """One row per round, the latest first."""

    def __init__(self) -> None:
        super().__init__(0, len(COLUMNS))
        self.setHorizontalHeaderLabels(list(COLUMNS))
        for column, tip in enumerate(COLUMNS.values()):
            self.horizontalHeaderItem(column).setToolTip(tip)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.verticalHeader().hide()
        self.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.horizontalHeader().setStretchLastSection(True)
        self.setWordWrap(False)
        self.setMinimumHeight(120)
        self._rows: Sequence[RoundRow] = ()

    @property
    def chosen(self) -> int | None:
        """Number of the selected round, if its teacher could be put in force."""
        rows = self.selectionModel().selectedRows()
        row = self._rows[rows[0].row()] if rows else None
        if row is None or row.outcome is not RoundOutcome.FINISHED or row.is_teacher:
            return None
        return row.number

    def show_rows(self, rows: Sequence[RoundRow]) -> None:
        """Show these rounds; what was selected stays so."""
        if list(reversed(rows)) == list(self._rows):
            return
        chosen = self.chosen
        self._rows = list(reversed(rows))
        self.setRowCount(len(self._rows))
        for number, row in enumerate(self._rows):
            for column, text in enumerate(_texts(row)):
                item = QTableWidgetItem(text)
                item.setToolTip(_tip(row))
                font = QFont(item.font())
                font.setBold(row.is_teacher)
                item.setFont(font)
                if column < 7 and column != 2:
                    item.setTextAlignment(
                        Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                    )
                self.setItem(number, column, item)
            if row.number == chosen:
                self.selectRow(number)


def outcome_of(row: RoundRow) -> str:
    """How a round ended, for a person: one that was stopped and can go on is paused."""
    paused = row.resumable and row.outcome is not RoundOutcome.FAILED
    return "paused" if paused else str(row.outcome)


def _texts(row: RoundRow) -> tuple[str, ...]:
    return (
        str(row.number),
        "" if row.parent is None else str(row.parent),
        outcome_of(row),
        "" if row.labelled is None else str(row.labelled),
        "" if row.accepted is None else str(row.accepted),
        ("" if row.segmentation_dice is None else f"{row.segmentation_dice:.3f}")
        + (" (!)" if row.warning else ""),
        "" if row.registration_dice is None else f"{row.registration_dice:.3f}",
        _settings(row),
    )


def _settings(row: RoundRow) -> str:
    return "" if row.preset is None else f"{row.preset}, tau {row.tau:g}, seed {row.seed}"


def _tip(row: RoundRow) -> str:
    lines = ["its teacher is in force"] if row.is_teacher else []
    lines += filter(None, (row.problem, row.warning, _settings(row)))
    lines += [f"started {row.started}", f"{len(row.label_versions)} labels used:"]
    lines += [f"{case} {version}" for case, version in sorted(row.label_versions.items())[:12]]
    if len(row.label_versions) > 12:
        lines.append("…")
    return "\n".join(lines)
