"""What the tab Cohort asks and shows: the split, the structures, and problems of scans."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QAbstractItemView, QColorDialog, QSpinBox, QTableWidgetItem, QWidget

from napari_jrss.app.cohort import SplitCounts
from napari_jrss.app.session import Session
from napari_jrss.io.layouts import read_case_groups
from napari_jrss.widgets.controls import PathField, choice, in_form, wrapped
from napari_jrss.widgets.dialogs.dialog import Dialog
from napari_jrss.widgets.tables.rows import RowTable

_ALL = -1


class SplitDialog(Dialog):
    """Asks how many cases are for training with a label, for validation and for test."""

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent, "Split the cases", "Split", "Divide the cases (Enter)")
        self.setMinimumWidth(420)
        self._session = session
        self._workspace = session.workspace
        cases = session.workspace.open_project.cases()
        with_label = sum(bool(c.label_version or c.reference_version) for c in cases)
        usual = session.cohort.usual_split()
        about = wrapped(
            f"{len(cases)} cases, {with_label} with a label. Training doesn't see the labels of "
            "cases beyond the labelled set; they only measure the results. Nothing is deleted."
        )
        self.labelled = _count(
            _ALL, with_label, usual.labelled, "Training cases that keep their label (the paper's N)"
        )
        self.labelled.setSpecialValueText("all")
        self.validation = _count(
            0, with_label, usual.validation, "Cases that choose the best epoch; never trained on"
        )
        self.test = _count(0, with_label, usual.test, "Cases that only measure the result")
        self.training = _count(
            _ALL,
            len(cases),
            None,
            "Training cases, labelled and unlabelled (the paper's K = N + J); the rest are unused",
        )
        self.training.setSpecialValueText("all others")
        self.seed = _count(0, 2**31 - 1, 0, "The same seed gives the same split")
        self.file = PathField(
            "Subjects",
            "CSV file with the case in the first column and its subject in another column; "
            "scans of one subject stay together",
            "CSV (*.csv)",
        )
        self.column = choice("Column that names the subject")
        self.column.setEnabled(False)
        self.file.changed.connect(self._read_columns)
        rows = {
            "Labelled": self.labelled,
            "Validation": self.validation,
            "Test": self.test,
            "Training": self.training,
            "Seed": self.seed,
            "Subjects": self.file,
            "Column": self.column,
        }
        self.lay_out(about, in_form(rows))

    def accept(self) -> None:
        """Split; if that fails, the reason is shown and the dialog stays."""
        labelled, training = self.labelled.value(), self.training.value()
        sizes = SplitCounts(
            None if labelled == _ALL else labelled, self.validation.value(), self.test.value()
        )
        with self.reporting():
            groups = None
            file = self.file.path()
            if file is not None:
                ids = [case.case_id for case in self._workspace.open_project.cases()]
                groups = read_case_groups(file, self.column.currentText(), ids)
            self._session.cohort.split(
                sizes, None if training == _ALL else training, self.seed.value(), groups
            )
            super().accept()

    def _read_columns(self) -> None:
        self.column.clear()
        self.column.addItems(_columns(self.file.path()))
        self.column.setEnabled(self.column.count() > 0)


def _count(least: int, most: int, value: int | None, tooltip: str) -> QSpinBox:
    shown = _ALL if value is None else value
    return QSpinBox(minimum=least, maximum=most, value=shown, toolTip=tooltip)


def _columns(file: Path | None) -> list[str]:
    """Columns after the first of a CSV file; none while it isn't one, which splitting reports."""
    try:
        if file is None or not file.is_file():
            return []
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return next(csv.reader(stream), [])[1:]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


_COLUMNS = {
    "Colour": "Double-click to change it",
    "Name": "Double-click to change it",
    "Ids in the files": "Numbers that stand for the structure in the label files",
}
_COLOUR, _NAME = range(2)


class StructuresDialog(Dialog):
    """A table of the structures: a double click changes a name or a colour at once."""

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent, "Structures")
        self.setMinimumSize(420, 360)
        self._session = session
        self._workspace = session.workspace
        self.table = RowTable(_COLUMNS, stretch=_NAME)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.DoubleClicked)
        self.table.itemChanged.connect(self._renamed)
        self.table.cellDoubleClicked.connect(self._choose_colour)
        self.lay_out(self.table)
        self._fill()

    def recolour(self, row: int, colour: str) -> None:
        """Give the structure of a row another colour, #rrggbb."""
        self._try(lambda: self._session.cohort.recolour(row + 1, colour))

    def _fill(self) -> None:
        rows = []
        for each in self._workspace.open_project.table.classes[1:]:
            colour = QTableWidgetItem()
            colour.setBackground(QColor(each.colour))
            colour.setToolTip(f"{each.colour}: double-click to change it")
            colour.setFlags(Qt.ItemFlag.ItemIsEnabled)
            ids = QTableWidgetItem(_ids(each.source_ids))
            ids.setFlags(Qt.ItemFlag.ItemIsEnabled)
            rows.append([colour, QTableWidgetItem(each.name), ids])
        self.table.blockSignals(True)  # no person edits here
        self.table.fill(rows)
        self.table.blockSignals(False)

    def _renamed(self, item: QTableWidgetItem) -> None:
        if item.column() == _NAME:
            self._try(lambda: self._session.cohort.rename(item.row() + 1, item.text()))

    def _choose_colour(self, row: int, column: int) -> None:
        if column == _COLOUR:
            before = QColor(self._workspace.open_project.table.classes[row + 1].colour)
            chosen = QColorDialog.getColor(before, self, "Colour of the structure")
            if chosen.isValid():
                self.recolour(row, chosen.name())

    def _try(self, command: Callable[[], None]) -> None:
        self.message.clear()
        with self.reporting():
            command()
        self._fill()


def _ids(ids: tuple[int, ...]) -> str:
    shown = ", ".join(str(i) for i in ids[:6])
    return f"{shown}, … ({len(ids)})" if len(ids) > 6 else shown


class ProblemsDialog(Dialog):
    """Scans and cases that can't be used, or were used with a remark, each with the reason."""

    def __init__(self, problems: Mapping[str, str], parent: QWidget) -> None:
        super().__init__(parent, "Problems")
        self.resize(640, 320)
        why = "Why it can't be used, or a remark"
        self.table = RowTable({"Scan": "The scan or case", "Reason": why}, stretch=1)
        self.table.setWordWrap(True)
        self.table.fill(
            [[QTableWidgetItem(name), QTableWidgetItem(why)] for name, why in problems.items()]
        )
        for row in range(self.table.rowCount()):
            self.table.item(row, 1).setToolTip(self.table.item(row, 1).text())
        self.table.resizeRowsToContents()
        self.lay_out(self.table)
