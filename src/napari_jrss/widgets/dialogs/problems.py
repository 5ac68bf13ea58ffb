"""Scans and cases that can't be used, or were used with a remark, in one table."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtWidgets import QTableWidgetItem, QWidget

from napari_jrss.widgets.dialogs.dialog import Dialog
from napari_jrss.widgets.tables.rows import RowTable


class ProblemsDialog(Dialog):
    """Scans and cases that can't be used, or were used with a remark, each with the reason."""

    def __init__(self, problems: Mapping[str, str], parent: QWidget) -> None:
        super().__init__(parent, "Problems")
        self.resize(640, 320)
        columns = {
            "Scan": "The scan or case",
            "Reason": "Why it can't be used, or a remark",
        }
        self.table = RowTable(columns, stretch=1)
        self.table.setWordWrap(True)
        self.table.fill(
            [[QTableWidgetItem(name), QTableWidgetItem(why)] for name, why in problems.items()]
        )
        for row in range(self.table.rowCount()):
            self.table.item(row, 1).setToolTip(self.table.item(row, 1).text())
        self.table.resizeRowsToContents()
        self.lay_out(self.table)
