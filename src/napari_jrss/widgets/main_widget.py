"""The dock widget: what is open, the steps of the work, and four tabs on one session."""

import gc
from collections.abc import Callable
from pathlib import Path

from napari.utils.notifications import show_info
from napari.viewer import Viewer
from qtpy.QtCore import QSize, QTimer
from qtpy.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent, QKeySequence, QShortcut
from qtpy.QtWidgets import QTabWidget, QWidget

from napari_jrss.app.next_step import Step, work_state
from napari_jrss.app.outlook import work_left
from napari_jrss.app.runner import JobState
from napari_jrss.app.session import Session
from napari_jrss.times import duration
from napari_jrss.widgets import keys
from napari_jrss.widgets.bridge import Relay, failure, report_errors
from napari_jrss.widgets.closing import WindowWatch
from napari_jrss.widgets.controls import button, in_column, in_row, say, wrapped
from napari_jrss.widgets.dialogs.keys import KeySheet
from napari_jrss.widgets.layers.common import turn_head_up
from napari_jrss.widgets.layers.orientation import OrientationLetters, canvas_in
from napari_jrss.widgets.preferences import follow_preferences
from napari_jrss.widgets.steps import StepStrip
from napari_jrss.widgets.tabs.cohort import CohortTab
from napari_jrss.widgets.tabs.registration import RegistrationTab
from napari_jrss.widgets.tabs.review import ReviewTab
from napari_jrss.widgets.tabs.rounds import RoundsTab

# What napari, Qt and this package made while they were imported is no garbage. To look through it
# would hold the window for 0.15 s in each full collection, and longer once PyTorch is loaded.
gc.freeze()

_WIDTH_PIXELS = 420
_MESSAGE_MS, _LETTER_MS = 10_000, 80
"""How long a message stays, and how much longer for each letter."""


class MainWidget(QWidget):
    """``Plugins > JRSS``: everything a button does is a command of its session.

    napari passes the viewer by its name. A session of its own follows the preferences.
    """

    def __init__(self, napari_viewer: Viewer, session: Session | None = None) -> None:
        super().__init__()
        self.session = Session() if session is None else session
        self._workspace = self.session.workspace
        self.cohort = CohortTab(napari_viewer, self.session)
        self.review = ReviewTab(napari_viewer, self.session)
        self.rounds = RoundsTab(napari_viewer, self.session)
        self.registration = RegistrationTab(napari_viewer, self.session)
        self._heading, self._message = wrapped(), wrapped()
        self._message.hide()
        self.tabs = QTabWidget()
        self.tabs.addTab(self.cohort, "Cohort")
        self.tabs.addTab(self.rounds, "Training")
        self.tabs.addTab(self.review, "Review")
        self.tabs.addTab(self.registration, "Registration")
        self.steps = StepStrip()
        self.steps.asked.connect(self._show_step)
        self.steps.go.connect(self._do_step)
        self.keys = button("?", "Keys of this window (?)", self.show_keys)
        self.keys.setFixedWidth(28)
        for key in keys.SHEET.split(" or "):
            QShortcut(QKeySequence(key), self).activated.connect(self.show_keys)
        for place in range(self.tabs.count()):
            shortcut = QShortcut(QKeySequence(f"Alt+{place + 1}"), self)
            shortcut.activated.connect(lambda place=place: self.tabs.setCurrentIndex(place))
        head = in_row(self._heading, self.keys, stretch=(1,))
        column = in_column(self, head, self.steps, self.tabs, self._message)
        column.setStretchFactor(self.tabs, 1)
        column.setSpacing(4)
        self._silence = QTimer(self, singleShot=True)
        self._silence.timeout.connect(lambda: self._tell(""))
        self._letters = OrientationLetters(
            napari_viewer, canvas_in(napari_viewer.window.main_menu.window().centralWidget())
        )
        self.setAcceptDrops(True)
        self._watch = WindowWatch(self, self._question)
        self._viewer = napari_viewer
        self._viewer.dims.events.order.connect(self._turned)

        self.tabs.currentChanged.connect(self._show_tabs_layers)

        self._relay = Relay(self)
        work = self._workspace
        for signal in (work.project_changed, work.cases_changed, work.rounds_changed):
            self._relay.connect(signal, self._show_heading)
        for runner in (work.training, work.inference, self.session.cohort.summaries):
            self._relay.connect(runner.state_changed, self._show_heading)
        self._relay.connect(work.training.state_changed, self._training_changed)
        self._relay.connect(work.project_changed, lambda: self._tell(""))
        self._relay.connect(work.notified, self._tell)
        self._relay.connect(self.session.review.case_changed, self._show_review)
        self._relay.connect(self.session.pairs.pair_changed, self._show_tabs_layers)
        self._end_preferences: Callable[[], None] | None = None
        if session is None:
            with report_errors(self._workspace.notified.emit):
                self._end_preferences = follow_preferences(self.session)
        self._show_heading()

    def _show_heading(self, _state: object = None) -> None:
        with report_errors(self._workspace.notified.emit):
            self._heading.setText(self._summary())
            work = self._workspace
            self.steps.show_state(
                work_state(
                    work.project,
                    importing=work.inference.state.busy and self.cohort.importing,
                    training=work.training.state.busy,
                    first=self.session.cohort.first(),
                )
            )

    def _summary(self) -> str:
        project = self._workspace.project
        if project is None:
            return "No project is open"
        work, teacher = work_left(project), project.teacher
        left = work.seconds_left
        return (
            f"{project.path.name}: {work.done} labelled, {work.to_do} to label"
            + (f" (about {duration(left)}), " if left else ", ")
            + ("no teacher yet" if teacher is None else f"teacher of round {teacher.number}")
            + (" (read-only)" if project.read_only else "")
        )

    def show_keys(self) -> None:
        """Show the sheet of keys."""
        KeySheet(self).open()

    def _show_step(self, step: Step) -> None:
        """Go to the tab where a step is done."""
        tabs = {Step.TRAIN: self.rounds, Step.LABEL: self.review, Step.REVIEW: self.review}
        self.tabs.setCurrentWidget(tabs.get(step, self.cohort))

    def _do_step(self, step: Step) -> None:
        """Do the next action, or go to where a person does it."""
        self._show_step(step)
        if step in (Step.LABEL, Step.REVIEW):
            self.review.open_suggested()
        elif step is Step.EXPORT:
            self.cohort.export.click()
        elif step is Step.IMPORT:
            self.cohort.add_or_import()

    def _training_changed(self, state: JobState) -> None:
        """Say in every tab how a training has ended."""
        with report_errors(self._workspace.notified.emit):
            project = self._workspace.project
            teacher = None if project is None else project.teacher
            if state is JobState.FINISHED and teacher is not None:
                self._workspace.notified.emit(
                    f"The training has finished. The teacher of round {teacher.number} drafts the "
                    "labels now."
                )
            elif why := failure(state, self._workspace.training):
                self._workspace.notified.emit(f"The training has failed: {why}")

    def _show_review(self) -> None:
        self._show_letters()
        if self.session.review.case is not None:
            self.tabs.setCurrentWidget(self.review)

    def _show_tabs_layers(self) -> None:
        """Show either the case under review or the pair on the canvas, by the current tab."""
        self._show_letters()
        current = self.tabs.currentWidget()
        if current is self.review:
            self.registration.layers.put_aside(True)
            self.review.layers.take_up()
        elif current is self.registration and self.session.pairs.pair is not None:
            self.review.layers.put_aside()
            self.registration.layers.put_aside(False)

    def _show_letters(self) -> None:
        """Say where right and left are once there is a scan of ours to look at."""
        session = self.session
        self._letters.show(session.review.case is not None or session.pairs.pair is not None)

    def _turned(self) -> None:
        if self._workspace.project is not None:
            turn_head_up(self._viewer)

    def _tell(self, line: str) -> None:
        say(self._message, line)
        self._message.setToolTip(line)
        if line:
            self._silence.start(_MESSAGE_MS + _LETTER_MS * len(line))

    def sizeHint(self) -> QSize:  # noqa: N802
        """Wide enough for the names of cases; the scan keeps the rest of the window."""
        hint = super().sizeHint()
        return QSize(max(self.minimumSizeHint().width(), _WIDTH_PIXELS), hint.height())

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        """A folder may be dropped anywhere on the dock."""
        if _dropped_folder(event) is not None:
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        """A project opens; a folder of scans starts the import."""
        folder = _dropped_folder(event)
        if folder is not None:
            event.acceptProposedAction()
            self.tabs.setCurrentWidget(self.cohort)
            self.cohort.take(folder)

    def _question(self) -> str:
        """What to ask when the window closes: nothing, unless a round runs."""
        if not self._workspace.training.state.busy:
            return ""
        lines = [
            "A round is training. It will be paused; you can resume it when you open the project "
            "again."
        ]
        case = self.session.review.case
        if case is not None and case.editor.voxels_changed:
            lines.append(
                f"Your corrections of {case.case.case_id}, which aren't accepted yet, are kept "
                "until then."
            )
        return "\n\n".join([*lines, "Close the window?"])

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Stop what runs so that it can be resumed, and close the project."""
        if self._workspace.training.state.busy:
            show_info(
                "The training is paused: to continue, open the project again and press Resume in "
                "the tab Training."
            )
        self._watch.stop()
        self._silence.stop()
        self._letters.close()
        self._viewer.dims.events.order.disconnect(self._turned)
        for tab in (self.cohort, self.review, self.rounds, self.registration):
            tab.close()
        self._relay.disconnect_all()
        if self._end_preferences is not None:
            self._end_preferences()
            self._end_preferences = None
        self.session.close()
        super().closeEvent(event)


def _dropped_folder(event: QDropEvent) -> Path | None:
    """The one folder that is dragged or dropped, if it is one."""
    urls = event.mimeData().urls()
    if len(urls) != 1 or not urls[0].isLocalFile():
        return None
    path = Path(urls[0].toLocalFile())
    return path if path.is_dir() else None
