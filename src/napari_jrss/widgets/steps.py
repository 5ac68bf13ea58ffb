"""The strip of steps above the tabs: where the work stands, and the one next action."""

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QHBoxLayout, QPushButton, QSizePolicy, QToolButton, QWidget

from napari_jrss.app.next_step import Step, StepState, WorkState
from napari_jrss.widgets.controls import button, in_column, in_row, wrapped

_MARKS = {
    StepState.DONE: "✓ ",
    StepState.NEXT: "▸ ",
    StepState.RUNNING: "… ",
    StepState.LATER: "",
}
_TIPS = {
    Step.IMPORT: "Import scans and the labels that there are",
    Step.LABEL: "Label a few cases by hand",
    Step.TRAIN: "Train: the teacher learns from the labels and drafts labels of all other cases",
    Step.REVIEW: "Correct and accept the teacher's drafts, the most useful case first",
    Step.EXPORT: "Write the labels, each in the geometry of its scan",
}
_GO = {
    Step.IMPORT: "Import…",
    Step.LABEL: "Open a case",
    Step.TRAIN: "To Training",
    Step.REVIEW: "Open next",
    Step.EXPORT: "Export…",
}


class StepStrip(QWidget):
    """The steps of the work in a row, and a line with the next one.

    :attr:`asked` carries a step that a person clicked, :attr:`go` the one whose action is wanted.
    """

    asked = Signal(object)
    go = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.buttons: dict[Step, QToolButton] = {}
        row = QHBoxLayout()
        row.setSpacing(2)
        for step in Step:
            made = QToolButton(autoRaise=True)
            made.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
            made.clicked.connect(lambda _=False, step=step: self.asked.emit(step))
            row.addWidget(made)
            self.buttons[step] = made
        self.action = wrapped()
        self.act: QPushButton = button("", "Do this now", self._go)
        self._next = Step.IMPORT
        column = in_column(self, row, in_row(self.action, self.act, stretch=(1,)))
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)

    def show_state(self, work: WorkState) -> None:
        """Show where the work stands."""
        self._next = work.next
        self.action.setText(work.action)
        self.act.setText(_GO[work.next])
        self.act.setEnabled(work.states[work.next] is not StepState.RUNNING)
        for step, made in self.buttons.items():
            state, detail = work.states[step], work.details[step]
            made.setText(f"{_MARKS[state]}{step.value.capitalize()}")
            made.setToolTip(f"{_TIPS[step]}\n{state}" + (f": {detail}" if detail else ""))
            font = made.font()
            font.setBold(state is StepState.NEXT)
            made.setFont(font)

    def _go(self) -> None:
        self.go.emit(self._next)
