"""The tab Registration: a pair of cases, warped, with its figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from napari_jrss.app.pairs.registering import RegistrationReport
from napari_jrss.app.runner import JobState
from napari_jrss.errors import one_line
from napari_jrss.widgets.bridge import Relay, report_errors
from napari_jrss.widgets.layers.pair import KINDS, PairLayers, Scene
from napari_jrss.widgets.tables.pairs import ComparisonTable, DiceTable

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_jrss.app.session import Session
    from napari_jrss.project.records import Case

SHOWN_AT_FIRST = ("Fixed image", "Warped image", "Fixed contours", "Warped contours")


class RegistrationTab(QWidget):
    """Reads the session, calls its commands, and redraws from its signals."""

    def __init__(self, viewer: Viewer, session: Session) -> None:
        super().__init__()
        self._viewer = viewer
        self._workspace = session.workspace
        self._pairs = session.pairs
        self._asked = ""
        self.layers = PairLayers(viewer)

        self.moving, self.fixed = QComboBox(), QComboBox()
        self.moving.setToolTip("The case that is warped")
        self.fixed.setToolTip("The case that stays")
        self.register = _button("Register", "Warp the moving case onto the fixed one", "Alt+R")
        self.swap = _button("Swap", "Register the other way round", "Alt+S")
        self.next = _button("Next pair", "Register the next moving case", "Alt+N")
        self.refine = QCheckBox("Refine each pair")
        self.refine.setChecked(self._pairs.refined)
        self.refine.setToolTip(
            "Goes on from the network's field on this pair alone, by the images and what the "
            "teacher sees in them: a better fit and next to no folds, for some seconds more"
        )
        self.stop = _button(
            "Stop", "End the job: a refinement at once, else after the pair at work"
        )
        self.compare = _button(
            "All labelled cases onto the fixed one",
            "Registers every labelled case to the fixed one: a table of how well each fits, and "
            "a draft label that they vote for",
            "Alt+A",
        )
        self.message, self.figures = QLabel(), QLabel()
        for line in (self.message, self.figures):
            line.setTextFormat(Qt.TextFormat.PlainText)
            line.setWordWrap(True)
        self.figures.setToolTip(
            "std(Jac): standard deviation of the Jacobian determinant. Folded: voxels where it "
            "is 0 or less. Residual: root mean square difference of the images, in standard "
            "deviations, before → after. Time: of the field alone."
        )
        self.boxes: dict[str, QCheckBox] = {}
        for kind in KINDS:
            box = QCheckBox(kind.title)
            box.setToolTip(kind.tip)
            self.boxes[kind.title] = box
        self.key = QLabel(
            "Contours: fixed solid and moving dotted, both in the structures' colours; warped "
            "dashed in black and white."
        )
        self.key.setWordWrap(True)
        self.dice, self.ranking = DiceTable(), ComparisonTable()
        self.tables = QTabWidget()
        self.tables.addTab(self.dice, "Structures of the pair")
        self.tables.addTab(self.ranking, "All labelled cases")
        self.clear = _button("Remove layers", "Take the pair's layers off the viewer")
        self.draft = _button(
            "Warped label to Review",
            "Makes the warped label a draft of the fixed case, to be corrected in Review",
        )
        self.vote = _button(
            "Voted draft to Review",
            "Makes the label that all labelled cases vote for a draft of the fixed case",
        )
        self.export = _button(
            "Export field and warped volumes…",
            "Write the displacement field (LPS mm, read by ITK, SimpleITK and ANTs), the warped "
            "scan and label on the fixed scan's own grid, and the figures",
        )
        self._lay_out()
        self._connect()
        self._show_cases()
        self._show_pair()

    # -- what a person does

    def _start(self, doing: str, command: Callable[[], None]) -> None:
        """Start a job and remember what it does, so that its end is told here."""
        with report_errors(self._workspace):
            command()
            self._asked = doing
            self.message.setText(f"{doing} …")

    def _register(self) -> None:
        moving, fixed = self.moving.currentData() or "", self.fixed.currentData() or ""
        self._start(f"Registering {moving} to {fixed}", lambda: self._pairs.register(moving, fixed))

    def _swap(self) -> None:
        moving, fixed = self.moving.currentIndex(), self.fixed.currentIndex()
        self.moving.setCurrentIndex(fixed)
        self.fixed.setCurrentIndex(moving)
        self._register()

    def _next(self) -> None:
        with report_errors(self._workspace):
            pair = self._pairs.following(self.moving.currentData(), self.fixed.currentData())
            self._choose(*pair)
            self._register()

    def _compare(self) -> None:
        case_id = self.fixed.currentData() or ""
        self._start(f"All labelled cases onto {case_id}", lambda: self._pairs.compare(case_id))
        self.tables.setCurrentWidget(self.ranking)

    def _open_from_table(self, moving: str) -> None:
        assert self._pairs.comparison is not None
        self._choose(moving, self._pairs.comparison.fixed)
        self._register()

    def _export(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder for the field and warped volumes")
        if folder:
            self._start("Writing the pair", lambda: self._pairs.export(Path(folder)))

    def _send(self, command: Callable[[], None]) -> None:
        with report_errors(self._workspace):
            command()

    # -- what the session says

    def _show_cases(self) -> None:
        project = self._workspace.project
        cases = [] if project is None else project.cases()
        chosen = self.moving.currentData(), self.fixed.currentData()
        for combo in (self.moving, self.fixed):
            combo.clear()
            for case in cases:
                combo.addItem(_in_words(case), case.case_id)
        self._choose(*chosen)
        if len(cases) > 1 and self.moving.currentIndex() == self.fixed.currentIndex():
            labelled = next((i for i, case in enumerate(cases) if case.labelled), 0)
            self.moving.setCurrentIndex(labelled)
            self.fixed.setCurrentIndex((labelled + 1) % len(cases))
        self._show_what_can_be_done()

    def _choose(self, moving: str | None, fixed: str | None) -> None:
        for combo, case_id in ((self.moving, moving), (self.fixed, fixed)):
            combo.setCurrentIndex(max(0, combo.findData(case_id)))

    def _show_what_can_be_done(self) -> None:
        project, busy = self._workspace.project, self._workspace.inference.state.busy
        missing = "The project's rounds can't be read."
        with report_errors(self._workspace):
            missing = self._missing()
        for button in (self.register, self.swap, self.next, self.compare):
            button.setEnabled(not busy and not missing)
        self.stop.setEnabled(busy and bool(self._asked))
        pair, comparison = self._pairs.pair, self._pairs.comparison
        writable = project is not None and not project.read_only
        self.export.setEnabled(not busy and pair is not None)
        self.draft.setEnabled(writable and pair is not None and pair.registered.label is not None)
        self.vote.setEnabled(writable and comparison is not None and comparison.draft is not None)
        if not self._asked:
            self.message.setText(missing or self._pairs.outdated)

    def _missing(self) -> str:
        """What has to be there before anything is registered."""
        project = self._workspace.project
        if project is None:
            return "Open a project in Cohort first."
        if project.teacher is None:
            return "The project has no trained networks yet: train them in Rounds."
        return "" if self.fixed.count() > 1 else "Registration needs two cases."

    def _forget_outdated(self) -> None:
        with report_errors(self._workspace):
            self._pairs.forget_outdated()

    def _show_pair(self) -> None:
        pair, project = self._pairs.pair, self._workspace.project
        if pair is None or project is None:
            self.layers.forget()
            for title, box in self.boxes.items():
                box.setChecked(title in SHOWN_AT_FIRST)
                box.setEnabled(True)
            self.figures.clear()
            self.dice.show_report(None, None)
        else:
            self._choose(pair.moving.name, pair.fixed.name)
            self.layers.set_scene(Scene(pair, project.grid, project.table, self._pairs.view))
            for title, box in self.boxes.items():
                box.setEnabled(self.layers.has(title))
            self.figures.setText(_figures(pair.report))
            self.dice.show_report(pair.report, project.table)
        self._show_what_can_be_done()

    def _show_comparison(self) -> None:
        comparison = self._pairs.comparison
        self.ranking.show_comparison(comparison)
        self._show_what_can_be_done()
        if comparison is not None and comparison.draft is None:
            self.message.setText(
                f"{len(comparison.reports)} of {comparison.total} labelled cases are registered "
                f"to {comparison.fixed} …"
            )

    def _show_refining(self, done: float) -> None:
        if self._asked:
            self.message.setText(f"{self._asked} … refining, {done:.0%}")

    def _show_state(self, state: JobState) -> None:
        if not state.busy and self._asked:
            doing, self._asked = self._asked, ""
            self._show_what_can_be_done()
            error = self._workspace.inference.error
            self.message.setText(
                f"{doing}: {one_line(error) if error is not None else state.value}"
            )
        else:
            self._show_what_can_be_done()

    def _show_visible(self, title: str, visible: bool) -> None:
        self.boxes[title].setChecked(visible)

    # -- how it is put together

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        form = QFormLayout()
        form.addRow("Moving", self.moving)
        form.addRow("Fixed", self.fixed)
        form.addRow("", self.refine)
        layout.addLayout(form)
        layout.addLayout(_row(self.register, self.swap, self.next, self.stop))
        layout.addWidget(self.compare)
        layout.addWidget(self.message)
        layers = QGroupBox("Layers")
        grid = QGridLayout(layers)
        grid.setContentsMargins(6, 4, 6, 4)
        grid.setVerticalSpacing(2)
        for place, box in enumerate(self.boxes.values()):
            grid.addWidget(box, place // 3, place % 3)
        grid.addWidget(self.clear, len(self.boxes) // 3, 1, 1, 2)
        grid.addWidget(self.key, len(self.boxes) // 3 + 1, 0, 1, 3)
        layout.addWidget(layers)
        layout.addWidget(self.figures)
        layout.addWidget(self.tables, 1)
        layout.addLayout(_row(self.draft, self.vote))
        layout.addWidget(self.export)

    def _connect(self) -> None:
        self.register.clicked.connect(self._register)
        self.refine.toggled.connect(partial(setattr, self._pairs, "refined"))
        self.swap.clicked.connect(self._swap)
        self.next.clicked.connect(self._next)
        self.compare.clicked.connect(self._compare)
        self.stop.clicked.connect(self._workspace.inference.cancel)
        self.clear.clicked.connect(self.layers.clear)
        self.draft.clicked.connect(lambda: self._send(self._pairs.send_to_review))
        self.vote.clicked.connect(lambda: self._send(self._pairs.send_draft_to_review))
        self.export.clicked.connect(self._export)
        self.ranking.chosen.connect(self._open_from_table)
        for title, box in self.boxes.items():
            box.toggled.connect(partial(self.layers.show, title))
        self.layers.shown_changed.connect(self._show_visible)
        self._relay = Relay(self)
        self._relay.connect(self._workspace.project_changed, self._show_cases)
        self._relay.connect(self._workspace.cases_changed, self._show_cases)
        self._relay.connect(self._workspace.rounds_changed, self._show_what_can_be_done)
        for signal in (self._workspace.cases_changed, self._workspace.rounds_changed):
            self._relay.connect(signal, self._forget_outdated)
        self._relay.connect(self._workspace.inference.state_changed, self._show_state)
        self._relay.connect(self._pairs.pair_changed, self._show_pair)
        self._relay.connect(self._pairs.view_made, self.layers.view_made)
        self._relay.connect(self._pairs.comparison_changed, self._show_comparison)
        self._relay.connect(self._pairs.refining, self._show_refining)
        self._relay.connect(self._pairs.refined_changed, self._show_refined)

    def _show_refined(self, _refined: bool) -> None:
        # what it was when this was queued may be another by now
        self.refine.setChecked(self._pairs.refined)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Undo what was connected."""
        self._relay.disconnect_all()
        self.layers.close()
        super().closeEvent(event)


def _button(text: str, tip: str, shortcut: str = "") -> QPushButton:
    button = QPushButton(text)
    if shortcut:
        button.setShortcut(shortcut)
        tip = f"{tip} ({button.shortcut().toString(button.shortcut().SequenceFormat.NativeText)})"
    button.setToolTip(tip)
    return button


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget)
    return row


def _in_words(case: Case) -> str:
    return f"{case.case_id}  ({case.split}, {case.status})"


def _figures(report: RegistrationReport) -> str:
    fit, field = [], []
    if report.mean_dice is not None and report.mean_dice_before is not None:
        fit.append(f"Dice {report.mean_dice_before:.3f} → {report.mean_dice:.3f}")
    fit.append(f"residual {report.residual_before:.2f} → {report.residual:.2f} SD")
    field.append(f"std(Jac) {report.std_jacobian:.3f}")
    field.append(f"folded {report.folded_percent:.2f} %")
    field.append(f"{report.seconds:.2f} s" + (", refined" if report.refined else ""))
    return ",  ".join(fit) + "\n" + ",  ".join(field)
