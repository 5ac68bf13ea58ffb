"""Parts of the tab Review: the prediction with tau, drafts, tools, and unfinished corrections."""

from collections.abc import Callable, Mapping

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QGroupBox,
    QLabel,
    QSlider,
    QWidget,
)

from napari_jrss.app.review.open_case import OpenCase
from napari_jrss.project.corrections import CorrectionsFile
from napari_jrss.training.screening import Screened
from napari_jrss.widgets.controls import button, in_column, in_row, local_time, wrapped
from napari_jrss.widgets.layers.review import ABOVE, CONFIDENCE, OVERLAYS, PSEUDO, UNCERTAINTY

_SLIDER_STEPS = 1000  # of tau, from 0 to 1


_OVERLAY_TOOLTIPS = {
    PSEUDO: "The teacher's most probable structure at each voxel",
    ABOVE: "Only the voxels that would be used for training at this tau",
    CONFIDENCE: "Probability of the most probable structure, 0 to 1",
    UNCERTAINTY: "Disagreement of teacher and student: KL divergence in nats; not known before\n"
    "the first joint round",
}
REPAIRS = {
    "Interpolate": "Draw the selected structure between the slices that you painted; if there are "
    "none, fill its gaps (I)",
    "Smooth": "Smooth the surface of the selected structure",
    "Fill holes": "Fill holes inside the selected structure",
    "Largest part": "Keep only the largest connected part of the selected structure",
}
_STEPS = {
    "Undo": "Undo the latest action (Ctrl+Z)",
    "Redo": "Redo it (Ctrl+Shift+Z)",
    "Revert": "Go back to the draft; this is one action (Ctrl+Z)",
}
NEXT = "Next uncertain region"


class PredictionPanel(QGroupBox):
    """The teacher's prediction, and what of it exceeds tau."""

    tau_changed = Signal(float)
    shown = Signal(str, bool)
    """An overlay's kind, and whether to show it."""

    def __init__(self) -> None:
        super().__init__("Prediction of the teacher")
        tooltip = (
            "Confidence threshold tau: voxels and structures below it are not used for training.\n"
            "Move it to see what would be used; the tau of the next round is set in Rounds."
        )
        self.slider = QSlider(Qt.Orientation.Horizontal, maximum=_SLIDER_STEPS, toolTip=tooltip)
        self.number = QDoubleSpinBox(
            maximum=1, singleStep=0.01, decimals=3, keyboardTracking=False, toolTip=tooltip
        )
        self.slider.valueChanged.connect(lambda value: self._chosen(value / _SLIDER_STEPS))
        self.number.valueChanged.connect(self._chosen)
        self.words = wrapped()
        self.boxes: dict[str, QCheckBox] = {}
        boxes = QGridLayout()
        for i, kind in enumerate(OVERLAYS):
            box = QCheckBox(kind.capitalize(), toolTip=_OVERLAY_TOOLTIPS[kind])
            box.toggled.connect(lambda on, kind=kind: self.shown.emit(kind, on))
            boxes.addWidget(box, i // 2, i % 2)
            self.boxes[kind] = box
        row = in_row(QLabel("tau"), self.slider, self.number, stretch=(0, 1))
        in_column(self, row, self.words, boxes)

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
            self.words.setText(
                "There is no teacher yet: train one in Rounds, paint a label, or propagate others."
            )
        else:
            self.words.setText(f"The teacher of round {case.teacher.number} predicts the case …")
        for kind, box in self.boxes.items():
            box.setEnabled(kind in visible)
            self.show_overlay(kind, visible.get(kind, False))

    def show_overlay(self, kind: str, visible: bool) -> None:
        """Tick the box of an overlay that is shown."""
        box = self.boxes[kind]
        box.blockSignals(True)
        box.setChecked(visible)
        box.blockSignals(False)

    def show_words(self, screened: Screened) -> None:
        """Say what would be used for training."""
        self.words.setText(screened.words + ".")

    def _chosen(self, tau: float) -> None:
        self._show_tau(tau)
        self.tau_changed.emit(tau)

    def _show_tau(self, tau: float) -> None:
        for each, value in ((self.slider, round(tau * _SLIDER_STEPS)), (self.number, tau)):
            each.blockSignals(True)
            each.setValue(value)
            each.blockSignals(False)


class DraftPanel(QGroupBox):
    """The drafts of the case: to `start` from one, or to `take` the selected structure from it."""

    start = Signal(str)
    take = Signal(str)

    def __init__(self, propagate: Callable[[], object]) -> None:
        super().__init__("Draft")
        self.sources = QComboBox(toolTip="Labels to start from, or to copy one structure from")
        self.sources.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.begin = button(
            "Start from it",
            "Replace the present label by this draft (Ctrl+Z undoes it)",
            lambda: self.start.emit(self.draft),
        )
        self.take_one = button(
            "Copy structure",
            "Copy the selected structure from this draft into the label",
            lambda: self.take.emit(self.draft),
        )
        self.propagate = button(
            "Propagate…",
            "Make another draft: register all labelled cases to this one and let them vote.\n"
            "This runs in the background and takes a while.",
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
        """List the case's drafts; the chosen one stays chosen."""
        kept = self.sources.currentData()
        self.sources.clear()
        for source in () if case is None else case.draft_choices:
            self.sources.addItem(source.title, source.draft)
        self.sources.setCurrentIndex(max(self.sources.findData(kept), 0))


class UnfinishedPanel(QWidget):
    """Corrections of cases, by id, that were never accepted: continue, or delete them."""

    recover = Signal(str)
    discard = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.text = wrapped()
        self.cases = QComboBox(toolTip="Cases with corrections that were never accepted")
        self.go_on = button(
            "Continue",
            "Open the case with its corrections",
            lambda: self.recover.emit(self.cases.currentData()),
        )
        self.give_up = button(
            "Delete",
            "Delete these corrections for good",
            lambda: self.discard.emit(self.cases.currentData()),
        )
        row = in_row(self.cases, self.go_on, self.give_up, stretch=(1,))
        in_column(self, self.text, row).setContentsMargins(0, 0, 0, 0)
        self.hide()

    def show_entries(self, entries: list[CorrectionsFile]) -> None:
        """List the unfinished corrections; hide where there are none."""
        self.setVisible(bool(entries))
        self.text.setText(
            "Corrections of one case are not accepted yet:"
            if len(entries) == 1
            else f"Corrections of {len(entries)} cases are not accepted yet:"
        )
        self.cases.clear()
        for entry in entries:
            work = [f"{entry.voxels_changed:,} voxels"] if entry.voxels_changed else []
            work += [f"{len(entry.accepted)} structures accepted"] if entry.accepted else []
            about = entry.problem or ", ".join([*work, local_time(entry.last_change)])
            self.cases.addItem(f"{entry.case_id} ({about})", entry.case_id)


class ToolsPanel(QWidget):
    """One button for each tool, by its text.

    `commands` says what those of :data:`REPAIRS`, Undo, Redo, Revert and :data:`NEXT` do.
    """

    def __init__(self, commands: Mapping[str, Callable[[], object]]) -> None:
        super().__init__()
        tooltip = "Go to the next region where the prediction is most uncertain (U)"
        self.buttons = {
            text: button(text, tip, commands[text])
            for text, tip in {**REPAIRS, **_STEPS, NEXT: tooltip}.items()
        }
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for i, made in enumerate(self.buttons.values()):
            layout.addWidget(made, i // 3, i % 3, 1, 2 if made.text() == NEXT else 1)

    def show_steps(self, undo: str | None, redo: str | None) -> None:
        """Say what Undo and Redo would do."""
        for text, name in (("Undo", undo), ("Redo", redo)):
            key = _STEPS[text][_STEPS[text].rindex("(") :]
            self.buttons[text].setEnabled(name is not None)
            self.buttons[text].setToolTip(f"{text}: {name or 'nothing'} {key}")
