"""Parts of the tab Review: the proposal with its tau, drafts and tools, and what was left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from napari_jrss.widgets.layers.review import OVERLAYS

if TYPE_CHECKING:
    from napari_jrss.app.review.open_case import OpenCase
    from napari_jrss.project.corrections import CorrectionsFile
    from napari_jrss.training.screening import Screened

_STEPS = 1000  # of the tau slider, from 0 to 1


def button(text: str, tooltip: str, command: Callable[[], object]) -> QPushButton:
    """A push button that calls one command."""
    made = QPushButton(text)
    made.setToolTip(tooltip)
    made.clicked.connect(lambda: command())
    return made


def wrapped(text: str = "") -> QLabel:
    """A text of several lines, shown as it is."""
    label = QLabel(text)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    return label


class ProposalPanel(QGroupBox):
    """What the teacher says, held against tau.

    Attributes
    ----------
    tau_changed
        Another tau was chosen.
    shown
        An overlay's kind, and whether it shall be seen.
    """

    tau_changed = Signal(float)
    shown = Signal(str, bool)

    def __init__(self) -> None:
        super().__init__("The teacher's proposal")
        tooltip = (
            "Confidence threshold tau: only voxels above it, of structures above it, enter "
            "training.\nMoving it shows what that would be; it doesn't change the round's own tau."
        )
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(0, _STEPS)
        self.number = QDoubleSpinBox()
        self.number.setRange(0, 1)
        self.number.setSingleStep(0.01)
        self.number.setDecimals(3)
        self.number.setKeyboardTracking(False)
        for each in (self.slider, self.number):
            each.setToolTip(tooltip)
        self.slider.valueChanged.connect(lambda value: self._chosen(value / _STEPS))
        self.number.valueChanged.connect(self._chosen)
        self.words = wrapped()
        row = QHBoxLayout()
        row.addWidget(QLabel("tau"))
        row.addWidget(self.slider, 1)
        row.addWidget(self.number)

        self.boxes: dict[str, QCheckBox] = {}
        boxes = QGridLayout()
        for i, kind in enumerate(OVERLAYS):
            box = QCheckBox(kind.capitalize())
            box.setToolTip(_OVERLAY_TOOLTIPS[kind])
            box.toggled.connect(lambda on, kind=kind: self.shown.emit(kind, on))
            boxes.addWidget(box, i // 2, i % 2)
            self.boxes[kind] = box
        layout = QVBoxLayout(self)
        layout.addLayout(row)
        layout.addWidget(self.words)
        layout.addLayout(boxes)

    def show_case(self, case: OpenCase | None, visible: dict[str, bool]) -> None:
        """Show the case's screening, and which overlays are seen."""
        screened = None if case is None else case.screened
        for each in (self.slider, self.number):
            each.setEnabled(screened is not None)
        if screened is not None:
            self._show_tau(screened.tau)
            self.show_words(screened)
        elif case is None:
            self.words.setText("")
        elif case.teacher is None:
            self.words.setText("There is no teacher yet. Train one in Rounds, or paint.")
        else:
            self.words.setText(f"The teacher of round {case.teacher.number} looks at the case…")
        for kind, box in self.boxes.items():
            box.setEnabled(kind in visible)
            self.show_overlay(kind, visible.get(kind, False))

    def show_overlay(self, kind: str, visible: bool) -> None:
        """Tick an overlay that is seen."""
        box = self.boxes[kind]
        box.blockSignals(True)
        box.setChecked(visible)
        box.blockSignals(False)

    def show_words(self, screened: Screened) -> None:
        """Say what would enter training."""
        self.words.setText(screened.words + ".")

    def _chosen(self, tau: float) -> None:
        self._show_tau(tau)
        self.tau_changed.emit(tau)

    def _show_tau(self, tau: float) -> None:
        for each, value in ((self.slider, round(tau * _STEPS)), (self.number, tau)):
            each.blockSignals(True)
            each.setValue(value)
            each.blockSignals(False)


_OVERLAY_TOOLTIPS = dict(
    zip(
        OVERLAYS,
        (
            "The teacher's most probable structure of each voxel",
            "Only the voxels that would enter training at this tau",
            "Probability of the most probable structure, 0 to 1",
            "Disagreement of teacher and student: KL divergence in nats; there is none before\n"
            "the first joint round",
        ),
        strict=True,
    )
)


class DraftPanel(QGroupBox):
    """Where the label comes from: sources to begin with, or to take one structure from.

    Attributes
    ----------
    start, take
        A draft to begin with; a draft to take the chosen structure from.
    """

    start = Signal(str)
    take = Signal(str)

    def __init__(self, propagate: Callable[[], object]) -> None:
        super().__init__("Draft")
        self.sources = QComboBox()
        self.sources.setToolTip("Labels to begin with, or to take one structure from")
        self.sources.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.begin = button(
            "Start from it",
            "Begin with this label in place of the present one (Ctrl+Z takes it back)",
            lambda: self.start.emit(self.draft),
        )
        self.take_one = button(
            "Take structure",
            "Give the chosen structure the extent that it has there",
            lambda: self.take.emit(self.draft),
        )
        self.propagate = button(
            "Propagate…",
            "Register all labelled cases to this one and let them vote: a further draft.\n"
            "It takes a while, in the background.",
            propagate,
        )
        layout = QGridLayout(self)
        layout.addWidget(self.sources, 0, 0, 1, 3)
        for column, each in enumerate((self.begin, self.take_one, self.propagate)):
            layout.addWidget(each, 1, column)

    @property
    def draft(self) -> str:
        """The draft that is chosen."""
        return str(self.sources.currentData())

    def show_sources(self, case: OpenCase | None) -> None:
        """List the case's sources; the chosen one stays chosen."""
        kept = self.sources.currentData()
        self.sources.clear()
        for source in () if case is None else case.draft_choices:
            self.sources.addItem(source.title, source.draft)
        self.sources.setCurrentIndex(max(self.sources.findData(kept), 0))


class UnfinishedPanel(QWidget):
    """Corrections that were left in journals: go on with them, or give them up.

    Attributes
    ----------
    recover, discard
        The case.
    """

    recover = Signal(str)
    discard = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.text = wrapped()
        self.cases = QComboBox()
        self.cases.setToolTip("Cases with corrections that were never accepted")
        self.go_on = button(
            "Go on",
            "Open the case with its corrections",
            lambda: self.recover.emit(self.cases.currentData()),
        )
        self.give_up = button(
            "Give up",
            "Remove these corrections for good",
            lambda: self.discard.emit(self.cases.currentData()),
        )
        row = QHBoxLayout()
        row.addWidget(self.cases, 1)
        row.addWidget(self.go_on)
        row.addWidget(self.give_up)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.text)
        layout.addLayout(row)
        self.hide()

    def show_entries(self, entries: list[CorrectionsFile]) -> None:
        """List what was left, or nothing."""
        self.setVisible(bool(entries))
        self.text.setText(
            "Corrections of one case were not accepted:"
            if len(entries) == 1
            else f"Corrections of {len(entries)} cases were not accepted:"
        )
        self.cases.clear()
        for entry in entries:
            work = [f"{entry.voxels_changed:,} voxels"] if entry.voxels_changed else []
            work += [f"{len(entry.accepted)} structures accepted"] if entry.accepted else []
            about = entry.problem or ", ".join([*work, entry.last_change[:16]])
            self.cases.addItem(f"{entry.case_id} ({about})", entry.case_id)
