"""The tab Registration: a pair of cases, warped, with its figures."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from napari.viewer import Viewer
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QCheckBox, QComboBox, QGridLayout, QGroupBox, QTabWidget, QWidget

from napari_jrss.app.pairs.registering import NETWORK, RegistrationReport
from napari_jrss.app.runner import JobState
from napari_jrss.app.session import Session
from napari_jrss.project.records import Case
from napari_jrss.widgets.bridge import failure
from napari_jrss.widgets.controls import (
    ask_folder,
    button,
    in_column,
    in_form,
    in_row,
    scrolled,
    wrapped,
)
from napari_jrss.widgets.engine_box import EngineBox
from napari_jrss.widgets.layers.pair import KINDS, PairLayers, Scene
from napari_jrss.widgets.tables.pairs import ComparisonTable, DiceTable
from napari_jrss.widgets.tabs.tab import Tab
from napari_jrss.widgets.words import SPLITS, STATUSES

ENGINE_TIP = (
    "What registers pairs here, and labels that Propagate in Review carries. Automatic: the "
    "project's network, or refine while it has none. All but the network work without training."
)
SHOWN_AT_FIRST = ("Fixed image", "Warped image", "Fixed contours", "Warped contours")


class RegistrationTab(Tab):
    """A moving case registered to a fixed one, as layers and figures."""

    def __init__(self, viewer: Viewer, session: Session) -> None:
        super().__init__(viewer, session)
        self._pairs = session.pairs
        self._asked = ""
        self.layers = PairLayers(viewer)

        self.moving = QComboBox(toolTip="The case that is warped")
        self.fixed = QComboBox(toolTip="The case that the moving one is warped onto")
        self.register = button(
            "Register", "Warp the moving case onto the fixed one", self._register, "Alt+R"
        )
        self.swap = button("Swap", "Register in the other direction", self._swap, "Alt+S")
        self.next = button("Next pair", "Register the next moving case", self._next, "Alt+N")
        self.engine = EngineBox(ENGINE_TIP)
        self.refine = QCheckBox("Refine each pair", checked=self._pairs.refined)
        self.refine.setToolTip(
            "Improve the field of the network on this pair, by its images and the teacher's "
            "predictions: a better fit and almost no folds, in some seconds more"
        )
        self.stop = button(
            "Stop",
            "Stop the job: a refinement at once, other work after the present pair",
            self._workspace.inference.cancel,
        )
        self.compare = button(
            "All labelled cases onto the fixed one",
            "Register every labelled case to the fixed one: you get a table of how well each fits, "
            "and a draft label that they vote for",
            self._compare,
            "Alt+A",
        )
        self.message, self.figures = wrapped(), wrapped()
        self.figures.setToolTip(
            "Image difference: root mean square difference of the images before → after, in "
            "standard deviations of their intensities. Roughness: standard deviation of the "
            "Jacobian determinant, std(Jac). Folded: share of voxels where the determinant is 0 or "
            "less, so that tissue would turn inside out. Time: for the field alone."
        )
        self.boxes = {kind.title: QCheckBox(kind.title, toolTip=kind.tip) for kind in KINDS}
        self.key = wrapped(
            "Contours: fixed solid and moving dotted, both in the structures' colours; warped "
            "dashed in black and white."
        )
        self.dice, self.ranking = DiceTable(), ComparisonTable()
        self.tables = QTabWidget()
        self.tables.addTab(self.dice, "Structures of the pair")
        self.tables.addTab(self.ranking, "All labelled cases")
        self.clear = button(
            "Remove layers", "Remove the layers of this pair from the viewer", self.layers.clear
        )
        self.draft = button(
            "Warped label to Review",
            "Open the fixed case in Review with the warped label as its draft",
            self._do(self._pairs.send_to_review),
        )
        self.vote = button(
            "Voted draft to Review",
            "Open the fixed case in Review with the label that all labelled cases vote for",
            self._do(self._pairs.send_draft_to_review),
        )
        self.export = button(
            "Export field and warped volumes…",
            "Write the displacement field (LPS, mm; ITK, SimpleITK and ANTs read it), the warped "
            "scan and label on the grid of the fixed scan, and the figures",
            self._export,
        )
        self._lay_out()
        self._connect()
        self._show_cases()
        self._show_pair()

    # -- what a person does

    def _start(self, doing: str, command: Callable[[], None]) -> None:
        """Start a job and remember what it does, so that its end is told here."""
        with self._reporting():
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
        with self._reporting():
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
        def export(folder: Path) -> None:
            self._start("Writing the pair", lambda: self._pairs.export(folder))

        ask_folder(self, "Folder for the field and warped volumes", export)

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
        missing, in_use = "The rounds of this project can't be read.", NETWORK
        with self._reporting():
            missing = self._missing()
            in_use = NETWORK if project is None else self._pairs.engine_in_use
        for each in (self.register, self.swap, self.next, self.compare):
            each.setEnabled(not busy and not missing)
        self.refine.setEnabled(in_use == NETWORK)
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
        if project.teacher is None and self._pairs.engine_in_use == NETWORK:
            return (
                "The project has no trained networks yet: train them in Training, or choose "
                "another engine."
            )
        return "" if self.fixed.count() > 1 else "Registration needs two cases."

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
            self.message.setText(f"{self._asked} … {done:.0%}")

    def _show_state(self, state: JobState) -> None:
        ended = "" if state.busy else self._asked
        if ended:
            self._asked = ""
        self._show_what_can_be_done()
        if ended:
            why = failure(state, self._workspace.inference)
            self.message.setText(f"{ended}: {why or state.value}")

    # -- how it is put together

    def _lay_out(self) -> None:
        layers = QGroupBox("Layers")
        grid = QGridLayout(layers)
        grid.setContentsMargins(6, 4, 6, 4)
        grid.setVerticalSpacing(2)
        grid.setHorizontalSpacing(2)
        for place, box in enumerate(self.boxes.values()):
            grid.addWidget(box, place // 3, place % 3)
        grid.addWidget(self.clear, len(self.boxes) // 3, 1, 1, 2)
        grid.addWidget(self.key, len(self.boxes) // 3 + 1, 0, 1, 3)
        page = QWidget()
        layout = in_column(
            page,
            in_form(
                {"Moving": self.moving, "Fixed": self.fixed, "Engine": self.engine, "": self.refine}
            ),
            in_row(self.register, self.swap, self.next, self.stop),
            *(self.compare, self.message, layers, self.figures, self.tables),
            in_row(self.draft, self.vote),
            self.export,
        )
        layout.setStretchFactor(self.tables, 1)
        self.tables.setMinimumHeight(130)
        layout.setContentsMargins(4, 4, 4, 4)
        scrolled(page, self)

    def _connect(self) -> None:
        self.refine.toggled.connect(partial(setattr, self._pairs, "refined"))
        self.engine.chosen.connect(partial(setattr, self._pairs, "engine"))
        self.ranking.chosen.connect(self._open_from_table)
        for title, box in self.boxes.items():
            box.toggled.connect(partial(self.layers.show, title))
        self.layers.shown_changed.connect(lambda title, on: self.boxes[title].setChecked(on))
        self._relay.connect(self._workspace.project_changed, self._show_cases)
        self._relay.connect(self._workspace.cases_changed, self._show_cases)
        self._relay.connect(self._workspace.rounds_changed, self._show_what_can_be_done)
        for signal in (self._workspace.cases_changed, self._workspace.rounds_changed):
            self._relay.connect(signal, self._do(self._pairs.forget_outdated))
        self._relay.connect(self._workspace.inference.state_changed, self._show_state)
        self._relay.connect(self._pairs.pair_changed, self._show_pair)
        self._relay.connect(self._pairs.view_made, self.layers.view_made)
        self._relay.connect(self._pairs.comparison_changed, self._show_comparison)
        self._relay.connect(self._pairs.refining, self._show_refining)
        self._relay.connect(self._pairs.refined_changed, self._show_refined)
        self._relay.connect(self._pairs.engine_changed, self._show_engine)

    def _show_engine(self, _engine: str) -> None:
        self.engine.choose(self._pairs.engine)
        self._show_what_can_be_done()

    def _show_refined(self, _refined: bool) -> None:
        # what it was when this was queued may be another by now
        self.refine.setChecked(self._pairs.refined)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Let go of the viewer."""
        self.layers.close()
        super().closeEvent(event)


def _in_words(case: Case) -> str:
    return f"{case.case_id}  ({SPLITS[case.split]}, {STATUSES[case.status]})"


def _figures(report: RegistrationReport) -> str:
    dice = ""
    if report.mean_dice is not None and report.mean_dice_before is not None:
        dice = f"Dice {report.mean_dice_before:.3f} → {report.mean_dice:.3f},  "
    return (
        f"{dice}image difference {report.residual_before:.2f} → {report.residual:.2f}\n"
        f"roughness {report.std_jacobian:.3f},  folded {report.folded_percent:.2f} %,  "
        f"{report.seconds:.2f} s, {report.method}"
    )
