"""The tab Rounds: settings, progress, curves and the history of the teachers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from napari.utils import progress
from pydantic import ValidationError
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import qthrottled

from napari_jrss.app.rounds.progress import Curve, Progress, joined, words
from napari_jrss.app.runner import JobState
from napari_jrss.app.settings import SettingsError
from napari_jrss.config import ScreeningConfig, TrainingConfig, preset
from napari_jrss.errors import EXPECTED, from_validation, one_line
from napari_jrss.project.records import RoundOutcome
from napari_jrss.training.events import Event
from napari_jrss.widgets.bridge import Relay, report_errors
from napari_jrss.widgets.curves import Line, Plot
from napari_jrss.widgets.forms import Form, editor, folded, label_of
from napari_jrss.widgets.preferences import default_tau
from napari_jrss.widgets.tables.rounds import RoundsTable

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_jrss.app.rounds.estimate import Estimate
    from napari_jrss.app.session import Session

REDRAW_MS = 100
BASIC = ("preset", "seed", "screening.tau")


class RoundsTab(QWidget):
    """Reads the session, calls its commands, and redraws from its signals."""

    def __init__(self, viewer: Viewer, session: Session) -> None:
        super().__init__()
        self._viewer = viewer
        self._session = session
        self._workspace = workspace = session.workspace
        self._relay = Relay(self)
        self._progress = Progress()
        self._activity: progress | None = None
        self._followed: TrainingConfig | None = None

        fields = TrainingConfig.model_fields
        self.preset = editor(fields["preset"])
        self.seed = editor(fields["seed"])
        self.tau = editor(ScreeningConfig.model_fields["tau"])
        self.rounds = QSpinBox()
        self.rounds.setRange(0, 100)
        self.rounds.setValue(3)
        self.rounds.setToolTip("Joint rounds to run, after the pre-training where that is missing")
        self.pretrain = QCheckBox("Pre-train again")
        self.pretrain.setToolTip(
            "Start from nothing though there is a teacher: with more labels, for longer, or\n"
            "another network. The teacher stays in force until the new one is there."
        )
        self.device = QComboBox()
        self.device.addItems(["auto", "cpu", "mps" if sys.platform == "darwin" else "cuda"])
        self.device.setToolTip("Where networks run; auto: a CUDA GPU where there is one")
        self.advanced = Form(TrainingConfig, BASIC)
        self.estimate = QLabel()
        self.estimate.setWordWrap(True)
        self.start = _button("Start", "Pre-train where needed, then run the rounds", self._start)
        self.pause = _button(
            "Pause", "Stop after this step and keep the training state", session.rounds.pause
        )
        self.resume = _button("Resume", "Go on where the training was interrupted", self._resume)
        self.cancel = _button("Cancel", "Stop and leave this series for good", self._cancel)
        self.measure = _button(
            "Estimate", "Time and memory of these settings, before the start", self._estimate
        )
        self.bar = QProgressBar()
        self.bar.setToolTip("Steps of the present stage")
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.losses = Plot("Loss, of each stage's first", "step", None)
        self.dice = Plot("Validation Dice", "step", (0.0, 1.0))
        self.counts = Plot("Cases", "round")
        self.table = RoundsTable()
        self.promote = _button(
            "Use this teacher", "Put the teacher of the chosen round in force", self._promote
        )
        self._lay_out()

        self.preset.changed.connect(self._show_preset)
        for signal in (self.preset.changed, self.seed.changed, self.tau.changed):
            signal.connect(self._forget_estimate)
        for signal in (self.rounds.valueChanged, self.pretrain.toggled, self.advanced.changed):
            signal.connect(self._forget_estimate)
        self.device.currentTextChanged.connect(self._set_device)
        self.table.itemSelectionChanged.connect(self._show_buttons)
        self.preset.set("fast")
        self.tau.set(default_tau())

        self._redraw_soon = qthrottled(self._redraw, timeout=REDRAW_MS)
        relay, training = self._relay, workspace.training
        relay.connect(training.event, self._add)
        relay.connect(training.state_changed, self._job_changed)
        relay.connect(workspace.project_changed, self._show_project)
        relay.connect(workspace.cases_changed, self._forget_estimate)
        relay.connect(workspace.rounds_changed, self._show_rounds)
        relay.connect(session.rounds.estimator.event, self._show_estimate)
        relay.connect(session.rounds.estimator.state_changed, self._estimator_changed)
        self._show_project()

    def _lay_out(self) -> None:
        fields = TrainingConfig.model_fields
        basic = QGridLayout()
        cells = (
            (label_of(fields["preset"], "Preset"), self.preset.widget),
            (QLabel("Rounds"), self.rounds),
            (label_of(ScreeningConfig.model_fields["tau"], "Threshold tau"), self.tau.widget),
            (label_of(fields["seed"], "Seed"), self.seed.widget),
            (QLabel("Device"), self.device),
        )
        for place, (label, widget) in enumerate(cells):
            row, column = divmod(place, 2)
            basic.addWidget(label, row, 2 * column)
            basic.addWidget(widget, row, 2 * column + 1)
        basic.addWidget(self.measure, 2, 2, 1, 2)
        basic.addWidget(self.pretrain, 3, 0, 1, 4)
        basic.setColumnStretch(1, 1)
        basic.setColumnStretch(3, 1)
        fold = folded("Advanced settings")
        fold.setToolTip("Every setting of the training; a preset sets them all")
        fold.addWidget(self.advanced)
        buttons = QHBoxLayout()
        for button in (self.start, self.pause, self.resume, self.cancel):
            buttons.addWidget(button)
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.addLayout(basic)
        layout.addWidget(self.estimate)
        layout.addWidget(fold)
        layout.addLayout(buttons)
        layout.addWidget(self.bar)
        layout.addWidget(self.status)
        for plot in (self.losses, self.dice, self.counts):
            layout.addWidget(plot)
        layout.addWidget(self.table, 1)
        layout.addWidget(self.promote)
        scroll = QScrollArea()
        scroll.setWidget(page)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(scroll)

    # -- the form

    def config(self) -> TrainingConfig:
        """The settings as they stand; :class:`SettingsError` if they can't be."""
        values = self.advanced.values()
        values |= {"preset": self.preset.get(), "seed": self.seed.get()}
        values["screening"]["tau"] = self.tau.get()
        try:
            return TrainingConfig.model_validate(values)
        except ValidationError as error:
            raise SettingsError(from_validation(error)) from None

    def _show_preset(self, name: str) -> None:
        settings = preset(name)  # type: ignore[arg-type]
        self.advanced.show_values(settings)
        self.tau.set(settings.screening.tau)

    def show_config(self, config: TrainingConfig) -> None:
        """Fill the form in."""
        self.preset.set(config.preset)
        self.advanced.show_values(config)
        self.tau.set(config.screening.tau)
        self.seed.set(config.seed)

    def _follow(self) -> None:
        """Show the settings of a round that a script started, or the program before this one."""
        config = self._session.rounds.unfinished_config
        # once, so that what is filled in meanwhile for the next series stays
        if config is not None and config != self._followed:
            self._followed = config
            self.show_config(config)

    def _set_device(self, name: str) -> None:
        self._workspace.device = name
        self._forget_estimate()

    # -- what a person does

    def _start(self) -> None:
        with report_errors(self._workspace):
            rounds, entry = self._session.rounds, self._session.rounds.interrupted
            unfinished = (
                "This series has rounds still to come"
                if entry is None
                else f"Round {entry.number} isn't finished"
            )
            anew = rounds.resumable
            if anew and not self._sure(
                f"{unfinished} and can be resumed. Leave it for good and start anew?"
            ):
                return
            rounds.start(
                self.config(),
                self.rounds.value(),
                anew=anew,
                pretrain=self.pretrain.isChecked(),
            )
            self.pretrain.setChecked(False)

    def _resume(self) -> None:
        with report_errors(self._workspace):
            self._session.rounds.resume()

    def _cancel(self) -> None:
        if self._sure("Leave this series for good? Pause keeps it, to be resumed later."):
            with report_errors(self._workspace):
                self._session.rounds.cancel()
                if not self._workspace.training.state.busy:
                    self._say(self._warning())

    def _promote(self) -> None:
        number = self.table.chosen
        if number is not None:
            with report_errors(self._workspace):
                self._session.rounds.promote(number, "chosen in the window")

    def _estimate(self) -> None:
        with report_errors(self._workspace):
            self._session.rounds.estimate(
                self.config(), self.rounds.value(), pretrain=self.pretrain.isChecked()
            )

    def _sure(self, question: str) -> bool:
        return QMessageBox.question(self, "JRSS", question) == QMessageBox.StandardButton.Yes

    # -- what there is to see

    def _show_project(self) -> None:
        self._progress = self._curves()
        self.device.setCurrentText(self._workspace.device)
        self._forget_estimate()
        self._say(self._warning())
        self._show_rounds()

    def _show_rounds(self) -> None:
        rows = []
        with report_errors(self._workspace):
            rows = self._session.rounds.history()
            self._follow()
        self.table.show_rows(rows)
        done = [row for row in rows if row.labelled is not None and row.accepted is not None]
        numbers = [float(row.number) for row in done]
        self.counts.show_lines(
            [
                Line("N", Curve(numbers, [float(row.labelled or 0) for row in done]), True),
                Line("accepted", Curve(numbers, [float(row.accepted or 0) for row in done]), True),
            ]
        )
        self._show_buttons()
        self._redraw()

    def _show_buttons(self) -> None:
        with report_errors(self._workspace):
            self._show_what_can_be_done()

    def _show_what_can_be_done(self) -> None:
        state, project = self._workspace.training.state, self._workspace.project
        writable = project is not None and not project.read_only
        idle = writable and not state.busy
        entry = self._session.rounds.interrupted if idle else None
        self.start.setEnabled(idle)
        self.pause.setEnabled(state is JobState.RUNNING)
        resumable = idle and self._session.rounds.resumable
        self.resume.setEnabled(resumable)
        self.cancel.setEnabled(state is JobState.RUNNING or resumable)
        self.measure.setEnabled(project is not None and not state.busy)
        self.pretrain.setVisible(project is not None and project.teacher is not None)
        self.promote.setEnabled(writable and self.table.chosen is not None)
        if project is not None and project.read_only:
            self._say("The project is open read-only: rounds can be looked at, not started.")
        elif entry is not None and not self.status.text():
            how = "failed" if entry.outcome is RoundOutcome.FAILED else "is paused"
            self._say(f"Round {entry.number} {how}; Resume goes on with it.")
        elif resumable and not self.status.text():
            self._say("Rounds of this series are still to come; Resume goes on with them.")

    def _add(self, event: Event) -> None:
        self._progress.add(event)
        self._redraw_soon()

    def _job_changed(self, state: JobState) -> None:
        error = self._workspace.training.error
        match state:
            case JobState.RUNNING:
                self._progress = self._curves()
                self._say("Starting…")
            case JobState.CANCELLING:
                self._say("Stopping after this step…")
            case JobState.FAILED if error is not None:
                self._say(f"Failed: {one_line(error)}. The teacher is the one it was.")
            case JobState.CANCELLED:
                self._say("")
            case _:
                self._say(f"Finished. {self._warning()}".strip())
        if not state.busy:
            self._progress.stage = ""
            self._end_activity()
        self._show_buttons()
        self._redraw()
        if state is JobState.FAILED and error is not None and not isinstance(error, EXPECTED):
            raise error

    def _redraw(self) -> None:
        now = self._progress
        self.bar.setVisible(self._workspace.training.state.busy)
        self.bar.setRange(0, now.steps)
        self.bar.setValue(now.step)
        if now.stage and self._workspace.training.state is JobState.RUNNING:
            self._say(now.line())
            self._show_activity()
        for plot, curves, relative in (
            (self.losses, now.losses, True),
            (self.dice, now.dice, False),
        ):
            segmentation = [curves[s] for s in curves if not _of_registration(s)]
            registration = [curves[s] for s in curves if _of_registration(s)]
            plot.show_lines(
                [
                    Line("segmentation", joined(segmentation, relative=relative)),
                    Line("registration", joined(registration, relative=relative)),
                ]
            )

    def _show_activity(self) -> None:
        """The same bar in napari's activity dock."""
        now = self._progress
        name = f"JRSS {words(now.stage)}"
        if self._activity is None or self._activity.desc.rstrip(": ") != name:
            self._end_activity()
            self._activity = progress(total=now.steps, desc=name)
        self._activity.update(now.step - self._activity.n)

    def _end_activity(self) -> None:
        if self._activity is not None:
            self._activity.close()
            self._activity = None

    def _warning(self) -> str:
        """What to know of the teacher in force."""
        with report_errors(self._workspace):
            rows = self._session.rounds.history()
            return " ".join(row.warning for row in rows if row.is_teacher)
        return ""

    def _curves(self) -> Progress:
        """What the rounds so far have recorded."""
        with report_errors(self._workspace):
            return self._session.rounds.curves()
        return Progress()

    def _say(self, line: str) -> None:
        self.status.setText(line)
        self.status.setVisible(bool(line))

    def _show_estimate(self, estimate: Estimate) -> None:
        self._tell_estimate(estimate.line())

    def _estimator_changed(self, state: JobState) -> None:
        error = self._session.rounds.estimator.error
        if state is JobState.RUNNING:
            self._tell_estimate("Measuring a step…")
        elif state is JobState.FAILED and error is not None:
            self._tell_estimate(one_line(error))
            if not isinstance(error, EXPECTED):
                raise error

    def _forget_estimate(self, *_: object) -> None:
        self._tell_estimate("")

    def _tell_estimate(self, line: str) -> None:
        self.estimate.setText(line)
        self.estimate.setVisible(bool(line))

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Undo what was connected."""
        self._relay.disconnect_all()
        self._redraw_soon.cancel()
        self._end_activity()
        super().closeEvent(event)


def _button(text: str, tip: str, command: Callable[[], None]) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tip)
    button.clicked.connect(lambda: command())
    return button


def _of_registration(stage: str) -> bool:
    return "registration" in stage
