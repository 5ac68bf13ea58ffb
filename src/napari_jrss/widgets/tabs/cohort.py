"""The tab Cohort: the project, its cases, their import, and the names of the structures."""

from pathlib import Path

from napari.viewer import Viewer
from qtpy.QtCore import Qt, QUrl
from qtpy.QtGui import QCloseEvent, QDesktopServices
from qtpy.QtWidgets import (
    QGridLayout,
    QLineEdit,
    QMenu,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QStackedWidget,
    QWidget,
)
from superqt.utils import qthrottled

from napari_jrss.app.cohort import CasePredicted, CaseRow
from napari_jrss.app.exporting import LabelWritten
from napari_jrss.app.importing import LabelImported
from napari_jrss.app.runner import JobState
from napari_jrss.app.session import Session
from napari_jrss.errors import ProjectError, one_line
from napari_jrss.project.folder import LEDGER
from napari_jrss.project.importing import ScanRead
from napari_jrss.sample_data import make_cohort
from napari_jrss.widgets.bridge import failure
from napari_jrss.widgets.controls import ask_folder, button, choice, in_column, in_row, say, wrapped
from napari_jrss.widgets.dialogs.cohort import ProblemsDialog, SplitDialog, StructuresDialog
from napari_jrss.widgets.dialogs.import_scans import ImportDialog
from napari_jrss.widgets.dialogs.plan import PlanDialog
from napari_jrss.widgets.preferences import recent_projects, remember
from napari_jrss.widgets.tables.cases import FILTERS, CaseTable
from napari_jrss.widgets.tabs.tab import Tab, next_case_text

_WELCOME = (
    "Drop a folder here.\n\n"
    "A project (.jrss) opens. A folder of scans starts a new project: a few labelled scans and "
    "any number of unlabelled ones.\n\n"
    "Then: train a teacher on the labels, correct what it drafts for the other scans, train again, "
    "and export the labels."
)
_SAMPLE, _SAMPLE_CASES, _SAMPLE_SHAPE, _SAMPLE_STRUCTURES = "jrss-sample", 14, (32, 40, 32), 6

_DOCS = QUrl("https://napari-jrss.github.io/napari-jrss/tutorials/first_project_window/")
_DONE = {
    **{ScanRead: "read", CasePredicted: "predicted"},
    **{LabelWritten: "written", LabelImported: "read"},
}


class CohortTab(Tab):
    """The cases of the project, and how they come in and go out."""

    def __init__(self, viewer: Viewer, session: Session) -> None:
        super().__init__(viewer, session)
        workspace = self._workspace
        self._suggested: str | None = None
        self.importing = False

        self.new = button("New…", "Make a project from a folder of scans", self.ask_import)
        self.open = button("Open…", "Open a project folder (.jrss)", self._ask_open)
        self.recent = QPushButton("Recent", toolTip="Open a project that was open before")
        self.recent.setMenu(QMenu(self.recent))
        self.recent.menu().aboutToShow.connect(self._fill_recent)
        self.add = button(
            "Add…",
            "Add more scans to the project",
            lambda: ImportDialog(session, self, adding=True).open(),
        )

        tooltip = "Show only cases whose name holds this text"
        self.filter = QLineEdit(
            placeholderText="Filter by name", clearButtonEnabled=True, toolTip=tooltip
        )
        self.group = choice("Show only cases of this kind", *FILTERS)
        self.table = CaseTable(session.cohort.appearance, self)
        self.filter.textChanged.connect(self.table.shown.set_text)
        self.group.currentTextChanged.connect(self.table.shown.set_group)
        self.table.opened.connect(self.open_case)

        self.suggestion = wrapped()
        self.suggestion.setToolTip("The case whose label would help training most, and why")
        self.outlook = wrapped()
        self.outlook.setToolTip(
            "The time is the median of your last cases, without pauses. The Dice is that of "
            "'napari-jrss forecast', while no label has changed since."
        )
        self.next = button("Open next", "Open the suggested case for review", self._open_next)
        self.split = button(
            "Split…", "Divide the cases into training, validation and test", self._ask_split
        )
        self.structures = button(
            "Structures…",
            "Names and colours of the structures",
            lambda: StructuresDialog(session, self).open(),
        )
        self.plan = button(
            "Training grid…",
            "What training grids would cost on this computer, and the change to one of them",
            lambda: PlanDialog(session, self).open(),
        )
        self.predict = button("Predict", "", self._do(session.cohort.predict))
        self.export = button(
            "Export…",
            "Write the current labels and the teacher's predictions as NIfTI, each in the geometry "
            "of its scan",
            self._ask_export,
        )
        self.bring = button(
            "Labels from folder…",
            "Make labels that were corrected elsewhere new versions: files named by case, as an "
            "export writes them",
            self._ask_labels,
        )
        self.problems = button(
            "Problems", "Scans and cases that can't be read, and why", self.show_problems
        )
        self.progress = QProgressBar(toolTip="Scans read, cases predicted, or labels written")
        self.cancel = button(
            "Stop",
            "Stop after the present scan or case; finished ones stay",
            workspace.inference.cancel,
        )

        self._pages = QStackedWidget()
        welcome = wrapped(_WELCOME)
        welcome.setAlignment(Qt.AlignmentFlag.AlignCenter)
        # The text wraps: that it could be one long line must not take width from the scan
        welcome.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.sample = button(
            "Try it with sample scans…",
            "Write 14 synthetic brain-like scans with labels into a folder, and import them",
            self._ask_sample,
        )
        self.help = button(
            "Tutorial", "Open the tutorial in the browser", lambda: QDesktopServices.openUrl(_DOCS)
        )
        empty = QWidget()
        column = in_column(empty, welcome, in_row(self.sample, self.help))
        column.insertStretch(0, 1)
        column.addStretch(2)
        self._pages.addWidget(empty)
        self._pages.addWidget(self._page())
        head = in_row(self.new, self.open, self.recent, self.add, self.export)
        head.setSpacing(4)
        self._busy = QWidget()
        in_column(self._busy, in_row(self.progress, self.cancel)).setContentsMargins(0, 0, 0, 0)
        self._busy.hide()
        in_column(self, head, self._pages, self._busy)

        cohort = session.cohort
        self._redraw_soon = qthrottled(self._redraw_table, timeout=200)
        self._relay.connect(workspace.project_changed, self._show_project)
        self._relay.connect(workspace.cases_changed, self._show_news)
        self._relay.connect(workspace.rounds_changed, self._show_news)
        self._relay.connect(cohort.case_summarised, lambda _: self._redraw_soon())
        self._relay.connect(cohort.summaries.state_changed, self._summaries_ended)
        self._relay.connect(workspace.inference.event, self._show_progress)
        self._relay.connect(workspace.inference.state_changed, self._job_changed)
        self._show_project()

    def _page(self) -> QWidget:
        page = QWidget()
        filters = in_row(self.filter, self.group, stretch=(2, 1))
        foot = QGridLayout()
        foot.addWidget(self.outlook, 3, 0, 1, 4)
        foot.addWidget(self.suggestion, 0, 0, 1, 3)
        foot.addWidget(self.next, 0, 3)
        for column, each in enumerate((self.split, self.structures, self.predict, self.problems)):
            foot.addWidget(each, 1, column)
        foot.addWidget(self.bring, 2, 0, 1, 2)
        foot.addWidget(self.plan, 2, 2, 1, 2)
        in_column(page, filters, self.table, foot).setContentsMargins(0, 0, 0, 0)
        return page

    # -- what a person does

    def take(self, path: Path) -> None:
        """Open a project folder, or begin the import of a folder of scans."""
        if (path / LEDGER).is_file() or path.suffix == ".jrss":
            self.open_project(path)
        else:
            self.ask_import(path)

    def open_project(self, path: Path) -> None:
        """Open a project; if it can't be written, open it read-only and say why.

        A project that is open for writing already stays open.
        """
        here = self._workspace.project
        if here is not None and not here.read_only and path.resolve() == here.path.resolve():
            self._workspace.notified.emit(f"{here.path}: is open already")
            return
        with self._reporting():
            self._require_quiet()
            try:
                self._session.open(path)
            except ProjectError as error:
                self._session.open(path, read_only=True)
                self._workspace.notified.emit(f"{one_line(error)}: opened read-only")

    def open_case(self, case_id: str) -> None:
        """Open a case in the tab Review."""
        self._do(self._session.review.open, case_id)()

    def ask_import(self, folder: Path | None = None) -> None:
        """Ask for scans and make a project from them."""
        with self._reporting():
            self._require_quiet()
            ImportDialog(self._session, self, folder or None).open()

    def _ask_sample(self) -> None:
        ask_folder(self, "Folder for the sample scans", self.make_sample)

    def make_sample(self, folder: Path) -> None:
        """Write sample scans into a folder of that folder, and begin their import."""
        with self._reporting():
            cohort = make_cohort(
                folder / _SAMPLE, _SAMPLE_CASES, _SAMPLE_SHAPE, structures=_SAMPLE_STRUCTURES
            )
            self.ask_import(cohort)

    def add_or_import(self) -> None:
        """Add scans to the project that is open; without one, make one."""
        if self._workspace.project is None:
            self.ask_import()
        else:
            self.add.click()

    def show_problems(self) -> None:
        """List the scans that couldn't become cases, with the reasons."""
        cohort = self._session.cohort
        problems = {**cohort.import_notes, **cohort.failed_imports()}
        problems |= {row.case_id: row.problem for row in self._session.cohort.rows() if row.problem}
        ProblemsDialog(problems, self).open()

    def _require_quiet(self) -> None:
        if self._workspace.training.state.busy or self._workspace.inference.state.busy:
            raise ProjectError("a job is still running on this project; stop it first")

    def _ask_open(self) -> None:
        ask_folder(self, "Open a project", self.open_project)

    def _ask_split(self) -> None:
        SplitDialog(self._session, self).open()

    def _ask_export(self) -> None:
        export = self._session.cohort.export
        ask_folder(self, "Folder for the labels", lambda folder: self._do(export, folder)())

    def _ask_labels(self) -> None:
        bring = self._session.cohort.import_labels
        ask_folder(self, "Folder of labels", lambda folder: self._do(bring, folder)())

    def _open_next(self) -> None:
        if self._suggested is not None:
            self.open_case(self._suggested)

    def _fill_recent(self) -> None:
        menu = self.recent.menu()
        menu.clear()
        for path in recent_projects():
            action = menu.addAction(path.name)
            action.setToolTip(str(path))
            action.triggered.connect(lambda _=False, path=path: self.open_project(path))
        if menu.isEmpty():
            menu.addAction("No project yet").setEnabled(False)

    # -- what the session says

    def _show_project(self) -> None:
        project = self._workspace.project
        self._pages.setCurrentIndex(int(project is not None))
        self.add.setEnabled(project is not None)
        self.filter.clear()
        self.group.setCurrentIndex(0)
        self.table.set_rows([])  # nor their thumbnails: another project's may have the ids
        if project is not None:
            remember(project.path)
        self._show_news()

    def _show_news(self) -> None:
        """Redraw after a change of cases, labels or teacher; look again in the background."""
        self._redraw()
        self._session.cohort.summarise()

    def _redraw_table(self) -> list[CaseRow]:
        rows: list[CaseRow] = []
        with self._reporting():
            rows = self._session.cohort.rows()
            self.table.set_rows(rows)
        return rows

    def _redraw(self) -> None:
        with self._reporting():
            cohort = self._session.cohort
            project = self._workspace.project
            rows = self._redraw_table()
            suggestion = cohort.suggest()
            self._suggested = None if suggestion is None else suggestion.case_id
            self.next.setEnabled(suggestion is not None)
            done = "Every training case has a label." if rows and not self.importing else ""
            self.suggestion.setText(done if suggestion is None else next_case_text(suggestion))
            lines = [] if project is None else cohort.outlook().lines()
            say(self.outlook, "\n".join(lines))
            missing = len(cohort.without_prediction())
            self.predict.setToolTip(
                f"Predict the {missing} cases without a prediction of the teacher, such as those "
                "for validation and test, to know their confidence and Dice"
            )
            writable = project is not None and not project.read_only
            for each in (self.add, self.structures, self.bring):
                each.setEnabled(writable)
            self.predict.setEnabled(writable and missing > 0)
            self.export.setEnabled(bool(rows))
            self.plan.setEnabled(bool(rows))
            untrained = project is not None and not project.rounds()
            self.split.setEnabled(writable and untrained and bool(rows))
            self.split.setToolTip(
                "Divide the cases into training, validation and test"
                if untrained or project is None
                else "The split can't change any more: a teacher was trained with it"
            )
            failed = len(cohort.failed_imports()) + len(cohort.import_notes)
            failed += sum(bool(row.problem) for row in rows)
            self.problems.setText(f"Problems ({failed})" if failed else "Problems")
            self.problems.setEnabled(failed > 0)

    def _summaries_ended(self, state: JobState) -> None:
        if not state.busy:
            self._redraw()
        if why := failure(state, self._session.cohort.summaries):
            self._workspace.notified.emit(why)

    def _show_progress(self, event: object) -> None:
        if isinstance(event, ScanRead | CasePredicted | LabelWritten | LabelImported):
            self.importing = isinstance(event, ScanRead)
            self._busy.show()
            self.progress.setRange(0, event.total)
            self.progress.setValue(event.done)
            self.progress.setFormat(f"{event.done} of {event.total} {_DONE[type(event)]}")

    def _job_changed(self, state: JobState) -> None:
        if state.busy:
            return
        imported, self.importing = self.importing, False
        self._busy.hide()
        self._redraw()
        if why := failure(state, self._workspace.inference):
            self._workspace.notified.emit(why)
        if imported:
            self._import_ended(state)

    def _import_ended(self, state: JobState) -> None:
        project = self._workspace.project
        if project is None:
            return  # no scan could be used, and the error says why
        rows = self._session.cohort.rows()
        failed = len(self._session.cohort.failed_imports())
        noted = len(self._session.cohort.import_notes)
        self._workspace.notified.emit(
            f"{len(rows)} cases"
            + (f"; {failed} scans can't be read, see Problems" if failed else "")
            + (f"; {noted} have a remark, see Problems" if noted else "")
            + ("; stopped" if state is JobState.CANCELLED else "")
        )
        # Where every scan has a label, the project is there to measure, so it needs a split.
        if rows and not project.rounds() and all(row.status.has_label for row in rows):
            self._ask_split()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Draw no more."""
        self._redraw_soon.cancel()
        super().closeEvent(event)
