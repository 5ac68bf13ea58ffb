"""Drafts by TotalSegmentator: of the case under review, or of every case without a label."""

from __future__ import annotations

from qtpy.QtWidgets import (
    QCheckBox,
    QDialog,
    QLineEdit,
    QProgressBar,
    QRadioButton,
    QWidget,
)

from napari_jrss.app.drafting import DraftMade, DraftUnderWay, without_label
from napari_jrss.app.runner import JobState
from napari_jrss.app.session import Session
from napari_jrss.errors import ProjectError
from napari_jrss.inference.totalsegmentator import DraftError, TotalSegmentator
from napari_jrss.widgets.bridge import Relay, failure
from napari_jrss.widgets.controls import PathField, in_form, wrapped
from napari_jrss.widgets.dialogs.dialog import Dialog

_ABOUT = (
    "TotalSegmentator is a program of its own, which you install; some of its tasks need a licence "
    "of their own. Structures are told by their names. A draft is nobody's label until you accept "
    "the case."
)


class DraftDialog(Dialog):
    """Starts the program, shows how far it is, and ends it when the dialog is closed."""

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent, "Drafts by TotalSegmentator", "Start", "Run it in the background")
        self.setMinimumWidth(520)
        self._session, self._running = session, False
        self._problems: list[str] = []
        project, case = session.workspace.open_project, session.review.case
        self._cases = without_label(project)
        self.this = QRadioButton(f"This case ({case.case_id})" if case else "This case")
        self.all = QRadioButton(f"All {len(self._cases)} cases without a label")
        self.this.setEnabled(case is not None)
        self.all.setEnabled(bool(self._cases))
        (self.this if case is not None else self.all).setChecked(True)
        self.task = QLineEdit("total", toolTip="One of its tasks, such as total (CT), total_mr")
        self.fast = QCheckBox("Fast", toolTip="Its model of 3 mm, for a computer without a GPU")
        self.names = QLineEdit(
            placeholderText="spleen=Milz, …",
            toolTip="Its names and yours where they differ: THEIRS=OURS, separated by commas",
        )
        self.executable = PathField("Executable", "TotalSegmentator's executable", "All files (*)")
        self.bar = QProgressBar(toolTip="Cases that are done")
        self.bar.hide()
        self.lay_out(
            wrapped(_ABOUT),
            self.this,
            self.all,
            in_form(
                {
                    "Task": self.task,
                    "": self.fast,
                    "Other names": self.names,
                    "Executable": self.executable,
                }
            ),
            self.bar,
        )
        self.executable.changed.connect(self._look)
        self._relay = Relay(self)
        self._relay.connect(session.workspace.inference.event, self._happened)
        self._relay.connect(session.workspace.inference.state_changed, self._changed)
        self._look()

    def accept(self) -> None:
        """Start; the dialog stays until all is done."""
        with self.reporting():
            pairs = [each.partition("=") for each in self.names.text().split(",") if each.strip()]
            if any(not ours.strip() for _, _, ours in pairs):
                raise ProjectError("other names are THEIRS=OURS, separated by commas")
            case = self._session.review.case
            cases = [case.case_id] if case and self.this.isChecked() else self._cases
            names = {theirs.strip(): ours.strip() for theirs, _, ours in pairs}
            self._session.review.tool_drafts.totalsegmentator(self._program(), cases, names)
            self._running, self._problems = True, []
            self._let_choose(False)
            self.message.setText("Starting …")
            self.bar.setRange(0, len(cases))
            self.bar.setValue(0)
            self.bar.show()

    def done(self, result: int) -> None:
        """End the program, however the dialog ends; drafts that are made stay."""
        self._relay.disconnect_all()
        if self._running:
            self._session.workspace.inference.cancel()
        super().done(result)

    def _program(self) -> TotalSegmentator:
        path = self.executable.path()
        return TotalSegmentator(
            self.task.text().strip() or "total",
            self.fast.isChecked(),
            executable="" if path is None else str(path),
        )

    def _look(self) -> None:
        """Say whether the program is there."""
        try:
            self.message.setText(f"Found: {self._program().find()}")
            self.start.setEnabled(True)
        except DraftError as error:
            self.message.setText(str(error))
            self.start.setEnabled(False)

    def _let_choose(self, on: bool) -> None:
        for each in (self.this, self.all, self.task, self.fast, self.names, self.executable):
            each.setEnabled(on)
        self.start.setEnabled(on)

    def _happened(self, event: object) -> None:
        if isinstance(event, DraftUnderWay):
            self.message.setText(f"{event.case_id}: {event.seconds:.0f} s. {event.said}"[:200])
        elif isinstance(event, DraftMade):
            self.message.setText(event.line())
            self._problems += [event.line()] if event.problem else []
        else:
            return
        self.bar.setValue(event.done)

    def _changed(self, state: JobState) -> None:
        if not self._running or state.busy:
            return
        self._running = False
        why = failure(state, self._session.workspace.inference)
        if why or self._problems:
            self.message.setText(why or self._problems[-1])
            self._let_choose(True)
            self.bar.hide()
            return
        self.done(int(QDialog.DialogCode.Accepted))
