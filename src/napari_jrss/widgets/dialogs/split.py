"""Dealing the cases to training, validation and test."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QLabel,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_jrss.app.cohort import SplitCounts
from napari_jrss.errors import EXPECTED, one_line
from napari_jrss.io.layouts import read_case_groups
from napari_jrss.widgets.path_field import PathField

if TYPE_CHECKING:
    from napari_jrss.app.session import Session

_ALL = -1


class SplitDialog(QDialog):
    """Asks how many cases train with their label, validate and test."""

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Split the cases")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setMinimumWidth(420)
        self._session = session
        self._workspace = session.workspace
        cases = session.workspace.open_project.cases()
        with_label = sum(bool(c.label_version or c.reference_version) for c in cases)
        usual = session.cohort.usual_split()
        about = QLabel(
            f"{len(cases)} cases, {with_label} with a label. Labels beyond the labelled set are "
            "hidden from training, to measure by. Nothing is deleted."
        )
        about.setWordWrap(True)
        self.labelled = _count(_ALL, with_label, usual.labelled, "N: training cases with a label")
        self.labelled.setSpecialValueText("all")
        self.validation = _count(
            0, with_label, usual.validation, "Cases that choose the best epoch and never train"
        )
        self.test = _count(0, with_label, usual.test, "Cases that only measure")
        self.training = _count(
            _ALL, len(cases), None, "K = N + J: all training cases; those beyond it are unused"
        )
        self.training.setSpecialValueText("all others")
        self.seed = _count(0, 2**31 - 1, 0, "Decides the shuffle; the same seed, the same split")
        self.file = PathField(
            "Subjects",
            "CSV file whose first column names the case and another one its subject: "
            "scans of one subject stay together",
            "CSV (*.csv)",
        )
        self.column = QComboBox()
        self.column.setToolTip("Column of the subject")
        self.column.setEnabled(False)
        self.file.changed.connect(self._read_columns)
        form = QFormLayout()
        form.addRow("Labelled (N)", self.labelled)
        form.addRow("Validation", self.validation)
        form.addRow("Test", self.test)
        form.addRow("Training (K)", self.training)
        form.addRow("Seed", self.seed)
        form.addRow("Subjects", self.file)
        form.addRow("Column", self.column)
        self._message = QLabel()
        self._message.setWordWrap(True)
        self._message.setTextFormat(Qt.TextFormat.PlainText)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel)
        self.start = buttons.addButton("Split", QDialogButtonBox.ButtonRole.AcceptRole)
        self.start.setToolTip("Deal the cases anew (Enter)")
        self.start.setDefault(True)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        for part in (about, form, self._message, buttons):
            layout.addLayout(part) if part is form else layout.addWidget(part)

    def accept(self) -> None:
        """Split; what stands in its way is shown, and the dialog stays."""
        labelled, training = self.labelled.value(), self.training.value()
        sizes = SplitCounts(
            None if labelled == _ALL else labelled, self.validation.value(), self.test.value()
        )
        try:
            groups = None
            file = self.file.path()
            if file is not None:
                ids = [case.case_id for case in self._workspace.open_project.cases()]
                groups = read_case_groups(file, self.column.currentText(), ids)
            self._session.cohort.split(
                sizes, None if training == _ALL else training, self.seed.value(), groups
            )
        except EXPECTED as error:
            self._message.setText(one_line(error))
            return
        super().accept()

    def _read_columns(self) -> None:
        self.column.clear()
        self.column.addItems(_columns(self.file.path()))
        self.column.setEnabled(self.column.count() > 0)


def _count(least: int, most: int, value: int | None, tooltip: str) -> QSpinBox:
    box = QSpinBox()
    box.setRange(least, most)
    box.setValue(_ALL if value is None else value)
    box.setToolTip(tooltip)
    return box


def _columns(file: Path | None) -> list[str]:
    """Columns after the first of a CSV file; none while it isn't one, which splitting reports."""
    try:
        if file is None or not file.is_file():
            return []
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return next(csv.reader(stream), [])[1:]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
