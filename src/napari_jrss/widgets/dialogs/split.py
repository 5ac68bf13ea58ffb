"""Divides the cases into training, validation and test."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QComboBox, QFormLayout, QSpinBox, QWidget

from napari_jrss.app.cohort import SplitCounts
from napari_jrss.io.layouts import read_case_groups
from napari_jrss.widgets.controls import PathField, wrapped
from napari_jrss.widgets.dialogs.dialog import Dialog

if TYPE_CHECKING:
    from napari_jrss.app.session import Session

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
            _ALL, with_label, usual.labelled, "N: number of training cases with a label"
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
            "K = N + J: number of training cases, labelled and unlabelled; the rest are unused",
        )
        self.training.setSpecialValueText("all others")
        self.seed = _count(0, 2**31 - 1, 0, "The same seed gives the same split")
        self.file = PathField(
            "Subjects",
            "CSV file with the case in the first column and its subject in another column; "
            "scans of one subject stay together",
            "CSV (*.csv)",
        )
        self.column = QComboBox()
        self.column.setToolTip("Column that names the subject")
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
        self.lay_out(about, form)

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
