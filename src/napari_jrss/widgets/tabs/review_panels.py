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
    QPushButton,
    QSlider,
    QSpinBox,
    QToolButton,
    QWidget,
)

from napari_jrss.app.review.open_case import OpenCase, draft_in_words
from napari_jrss.project.corrections import CorrectionsFile
from napari_jrss.times import local_time
from napari_jrss.training.screening import Screened
from napari_jrss.widgets.controls import button, in_column, in_row, wrapped
from napari_jrss.widgets.layers.region import REGION_ADD, REGION_REMOVE
from napari_jrss.widgets.layers.review import (
    ABOVE,
    CONFIDENCE,
    PSEUDO,
    UNCERTAINTY,
)
from napari_jrss.widgets.planes import AVAILABLE
from napari_jrss.widgets.tabs.tool_menus import BrushMenu

_SLIDER_STEPS = 1000  # of tau, from 0 to 1

_OVERLAY_TOOLTIPS = {
    PSEUDO: "The teacher's most probable structure at each voxel (the paper's pseudo-label)",
    CONFIDENCE: "Probability of the most probable structure, 0 to 1",
    UNCERTAINTY: "Where teacher and student disagree (KL divergence); not known before the first\n"
    "round after the first training",
    ABOVE: "White: voxels that would not be used for training at this confidence threshold",
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
}
REVERT = "Revert"
_MODES = {
    "paint": ("Paint", "Paint the chosen structure (2)"),
    "erase": ("Erase", "Erase with the brush (1)"),
    REGION_ADD: (
        "Region +",
        "Draw a line over what the chosen structure lacks: the 3D region about it is added (R).\n"
        "The mouse wheel makes it larger or smaller, Enter takes it.",
    ),
    REGION_REMOVE: (
        "Region -",
        "Draw a line over what the chosen structure has too much of: the 3D region about it is\n"
        "removed (Shift+R). The mouse wheel makes it larger or smaller, Enter takes it.",
    ),
    "pan_zoom": ("Move", "Move and zoom the view (6; Space while it is held)"),
}
NEXT = "Next uncertain"


class ViewPanel(QWidget):
    """How scan and label are shown: brightness, one structure alone, outlines, planes."""

    brightness = Signal(str)
    """The name of a preset of the brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.window = QComboBox(
            toolTip="Brightness: intensities from black to white (window and level); those of a CT "
            "are in Hounsfield units"
        )
        self.window.setMinimumContentsLength(4)
        self.window.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.window.activated.connect(lambda _: self.brightness.emit(self.window.currentText()))
        self.alone = QCheckBox("Chosen only", toolTip="Show only the structure that is chosen (S)")
        self.outlines = QCheckBox("Outlines", toolTip="Show the label as outlines (O)")
        self.planes = QCheckBox(
            "3 planes",
            toolTip="Show the scan from three sides at once; each takes the brush and every tool "
            "(Shift+P). T moves the crosshair to the mouse."
            if AVAILABLE
            else "Shows the scan from three sides at once. It needs the plugin "
            "napari-orthogonal-views: pip install 'napari-jrss[planes]'",
            enabled=AVAILABLE,
        )
        row = in_row(self.window, self.alone, self.outlines, self.planes, stretch=(1,))
        in_column(self, row).setContentsMargins(0, 0, 0, 0)

    def show_case(self, case: OpenCase | None) -> str:
        """Offer the presets that fit the case; returns the one that is chosen, which stays."""
        kept = self.window.currentText()
        self.window.clear()
        self.window.addItems([] if case is None else list(case.windows))
        self.window.setCurrentIndex(max(self.window.findText(kept), 0))
        return self.window.currentText()


class BrushPanel(QWidget):
    """What the mouse does on the canvas, and how wide the brush is.

    `modes` has napari's names, and those of the region strokes.
    """

    chosen = Signal(str)
    """A mode of napari's Labels layer, or a region stroke."""
    sized = Signal(int)
    """Width of the brush in voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: dict[str, QPushButton] = {}
        for mode, (text, tip) in _MODES.items():
            made = QPushButton(text, checkable=True, toolTip=tip)
            made.clicked.connect(lambda _=False, mode=mode: self.chosen.emit(mode))
            self.modes[mode] = made
        self.size = QSpinBox(
            minimum=1, maximum=100, toolTip="Width of the brush in voxels ([ and ] change it)"
        )
        self.size.setButtonSymbols(QSpinBox.ButtonSymbols.NoButtons)
        self.size.setMinimumWidth(92)
        self._voxel_mm = 1.0
        self.size.valueChanged.connect(self.sized)
        self.menu = BrushMenu()
        row = in_row(*self.modes.values(), self.menu, self.size, stretch=(1,) * len(self.modes))
        row.setSpacing(3)
        in_column(self, row).setContentsMargins(0, 0, 0, 0)

    def show_size(self, voxel_mm: float) -> None:
        """Say how wide the brush is in mm, given the size of a voxel across it."""
        self._voxel_mm = voxel_mm
        self.size.setSuffix(f" ({self.size.value() * voxel_mm:.3g} mm)")

    def show_brush(self, mode: str, size: int) -> None:
        """Show what the layer has."""
        for each, made in self.modes.items():
            made.setChecked(each == mode)
        self.size.blockSignals(True)
        self.size.setValue(size)
        self.size.blockSignals(False)
        self.show_size(self._voxel_mm)


class PredictionPanel(QGroupBox):
    """What the teacher finds, and which of it is sure enough to train on."""

    tau_changed = Signal(float)
    shown = Signal(str, bool)
    """An overlay's kind, and whether to show it."""

    def __init__(self) -> None:
        super().__init__("Teacher")
        tooltip = (
            "Confidence threshold (the paper's tau): voxels and structures below it are not used\n"
            "for training. Move it to see what would be left out; that of the next training is\n"
            "set in Training."
        )
        self.slider = QSlider(Qt.Orientation.Horizontal, maximum=_SLIDER_STEPS, toolTip=tooltip)
        self.number = QDoubleSpinBox(
            maximum=1, singleStep=0.01, decimals=3, keyboardTracking=False, toolTip=tooltip
        )
        self.number.setMaximumWidth(105)
        self.slider.valueChanged.connect(lambda value: self._chosen(value / _SLIDER_STEPS))
        self.number.valueChanged.connect(self._chosen)
        self.words = wrapped()
        self.boxes: dict[str, QCheckBox] = {}
        boxes = QGridLayout()
        boxes.setVerticalSpacing(2)
        for i, (kind, tip) in enumerate(_OVERLAY_TOOLTIPS.items()):
            box = QCheckBox(kind[:1].upper() + kind[1:], toolTip=tip)
            box.toggled.connect(lambda on, kind=kind: self.shown.emit(kind, on))
            boxes.addWidget(box, i // 2, i % 2)
            self.boxes[kind] = box
        label = QLabel("Threshold", toolTip=tooltip)
        self._known = QWidget()
        inner = in_column(
            self._known, in_row(label, self.slider, self.number, stretch=(0, 1)), boxes
        )
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(4)
        column = in_column(self, self.words, self._known)
        column.setContentsMargins(6, 4, 6, 4)
        column.setSpacing(4)

    def show_case(self, case: OpenCase | None, visible: dict[str, bool]) -> None:
        """Show the case's screening, and which overlays are seen."""
        screened = None if case is None else case.screened
        self._known.setVisible(case is not None and case.teacher is not None)
        for each in (self.slider, self.number):
            each.setEnabled(screened is not None)
        if screened is not None:
            self._show_tau(screened.tau)
            self.show_words(screened)
        elif case is None:
            self.words.setText("")
        elif case.teacher is None:
            self.words.setText(
                "There is no teacher yet. Label this case and accept it: choose a structure and "
                "paint it, or begin with a draft (TotalSegmentator, Propagate) or with prompts. "
                "Then train one in Training."
            )
        else:
            self.words.setText(f"The teacher of round {case.teacher.number} looks at the case …")
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

    def __init__(
        self, propagate: Callable[[], object], totalsegmentator: Callable[[], object]
    ) -> None:
        super().__init__("Draft")
        self.began = wrapped()
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
            "This runs in the background and takes a while. It needs one labelled case.",
            propagate,
        )
        self.totalsegmentator = button(
            "TotalSegmentator…",
            "Let TotalSegmentator draw a draft of this case, or of every case without a label",
            totalsegmentator,
        )
        self._case_id: str | None = None
        layout = QGridLayout(self)
        layout.setContentsMargins(6, 4, 6, 4)
        layout.setVerticalSpacing(4)
        layout.addWidget(self.began, 0, 0, 1, 3)
        layout.addWidget(self.sources, 1, 0, 1, 2)
        layout.addWidget(self.totalsegmentator, 1, 2)
        for column, each in enumerate((self.begin, self.take_one, self.propagate)):
            layout.addWidget(each, 2, column)

    @property
    def draft(self) -> str:
        """The draft that is chosen."""
        return str(self.sources.currentData())

    def show_sources(self, case: OpenCase | None) -> None:
        """List the case's drafts; the chosen one stays chosen while the case does."""
        kept = self.sources.currentData()
        if case is not None and case.case_id != self._case_id:
            kept, self._case_id = case.editor.origin.draft, case.case_id
        self.sources.clear()
        for source in () if case is None else case.draft_choices:
            self.sources.addItem(source.title, source.draft)
        self.choose(kept)
        self.began.setText(
            ""
            if case is None
            else f"Your label began from: {draft_in_words(case.editor.origin.draft)}."
        )

    def choose(self, draft: object) -> None:
        """Choose one of the drafts; the first if there is no such one."""
        self.sources.setCurrentIndex(max(self.sources.findData(draft), 0))


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

    `commands` says what those of :data:`REPAIRS` and :data:`REVERT` do; `more` opens a menu.
    """

    def __init__(self, commands: Mapping[str, Callable[[], object]], more: QToolButton) -> None:
        super().__init__()
        tip = "Go back to the draft; this is one action (Ctrl+Z)"
        self.buttons = {
            text: button(text, tip, commands[text])
            for text, tip in {**REPAIRS, REVERT: tip}.items()
        }
        row = in_row(*self.buttons.values(), more, stretch=(1, 1, 1, 1, 1))
        row.setSpacing(2)
        in_column(self, row).setContentsMargins(0, 0, 0, 0)


class StepsPanel(QWidget):
    """Undo, Redo and the next uncertain region, which stay on the screen; `buttons` by text."""

    def __init__(self, commands: Mapping[str, Callable[[], object]]) -> None:
        super().__init__()
        tooltip = "Go to the next region where the teacher is most uncertain (U)"
        self.buttons = {
            text: button(text, tip, commands[text])
            for text, tip in {**_STEPS, NEXT: tooltip}.items()
        }
        row = in_row(*self.buttons.values(), stretch=(1, 1, 1))
        in_column(self, row).setContentsMargins(0, 0, 0, 0)

    def show_steps(self, undo: str | None, redo: str | None) -> None:
        """Say what Undo and Redo would do."""
        for text, name in (("Undo", undo), ("Redo", redo)):
            key = _STEPS[text][_STEPS[text].rindex("(") :]
            self.buttons[text].setEnabled(name is not None)
            self.buttons[text].setToolTip(f"{text}: {name or 'nothing'} {key}")
