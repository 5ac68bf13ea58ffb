"""The tab Training: settings, progress, curves and the history of the teachers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from napari.utils import progress
from pydantic import ValidationError
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QGridLayout,
    QLabel,
    QLineEdit,
    QMessageBox,
    QProgressBar,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)
from superqt.utils import qthrottled

from napari_jrss.app.rounds.estimate import WontFitError, require_fit
from napari_jrss.app.rounds.launch import RunOn
from napari_jrss.app.rounds.progress import Curve, Progress, joined, words
from napari_jrss.app.runner import JobState
from napari_jrss.app.settings import SettingsError, training_config
from napari_jrss.config import ScreeningConfig, TrainingConfig
from napari_jrss.errors import from_validation
from napari_jrss.project.records import RoundOutcome, Split
from napari_jrss.training.events import Event
from napari_jrss.widgets.bridge import line_of
from napari_jrss.widgets.controls import button, in_row, say, scrolled, wrapped
from napari_jrss.widgets.curves import Line, Plot
from napari_jrss.widgets.forms import Form, editor, folded, label_of
from napari_jrss.widgets.preferences import default_tau, recent_run_on, remember_run_on
from napari_jrss.widgets.tables.rounds import RoundsTable
from napari_jrss.widgets.tabs.tab import Tab

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_jrss.app.rounds.estimate import Estimate
    from napari_jrss.app.session import Session

REDRAW_MS = 100
HERE = "this computer"
BASIC = ("preset", "seed", "screening.tau")


class RoundsTab(Tab):
    """The training: its settings, its progress, and the rounds so far."""

    def __init__(self, viewer: Viewer, session: Session) -> None:
        super().__init__(viewer, session)
        workspace = self._workspace
        self._progress = Progress()
        self._activity: progress | None = None
        self._followed: TrainingConfig | None = None
        self._wont_fit = False  # whether these settings were found to be too much

        fields = TrainingConfig.model_fields
        self.preset = editor(fields["preset"])
        self.seed = editor(fields["seed"])
        self.tau = editor(ScreeningConfig.model_fields["tau"])
        self.rounds = QSpinBox()
        self.rounds.setRange(0, 100)
        self.rounds.setValue(3)
        self.rounds.setToolTip(
            "Number of rounds (the paper's joint rounds). Where there is no teacher yet, a first "
            "training comes before them."
        )
        self.pretrain = QCheckBox("Train from the beginning")
        self.pretrain.setToolTip(
            "Train a new teacher from the beginning, for example with more labels, for longer, or\n"
            "with another network. The present teacher stays in use until the new one is ready."
        )
        self.device = QComboBox()
        self.device.addItems(["auto", "cpu", "mps" if sys.platform == "darwin" else "cuda"])
        self.device.setToolTip("Where the networks run; auto: on a CUDA GPU if there is one")
        self.devices = QSpinBox()
        self.devices.setRange(1, 64)
        self.devices.setToolTip(
            "Number of GPUs, or of processes on a CPU, that share each batch. The teacher is that\n"
            "of one device, sooner; the batch sizes (Advanced settings) must be as large at least"
        )
        self.run_on = QComboBox()
        self.run_on.setEditable(True)
        self.run_on.addItems([HERE, *(each.command for each in recent_run_on())])
        self.run_on.setToolTip(
            "Where the rounds run: this computer, or what stands before the training process,\n"
            "such as: ssh gpu, or: srun --gres=gpu:1"
        )
        self.remote_python = QLineEdit()
        self.remote_python.setToolTip(
            "Python on the other computer, in which napari-jrss is installed.\n"
            "Empty: python3 for ssh, else the Python of this window"
        )
        self.remote_folder = QLineEdit()
        self.remote_folder.setToolTip(
            "The project's folder as the other computer sees it, if both share it.\n"
            "Empty: for ssh, copies of the arrays go there, and the networks come back"
        )
        self.advanced = Form(TrainingConfig, BASIC)
        self.estimate = wrapped()
        self.start = button(
            "Start", "Train a first teacher if there is none, then run the rounds", self._start
        )
        self.pause = button(
            "Pause", "Stop after the present step; Resume continues later", session.rounds.pause
        )
        self.resume = button("Resume", "Continue where the training stopped", self._resume)
        self.cancel = button("Cancel", "Stop these rounds for good", self._cancel)
        self.measure = button(
            "Estimate", "Estimate the time and memory that these settings need", self._estimate
        )
        self.bar = QProgressBar()
        self.bar.setToolTip("Steps of the present stage")
        self.status = wrapped()
        self.losses = Plot("Error (loss)", "step", None)
        self.dice = Plot("Validation Dice", "step", (0.0, 1.0))
        self.counts = Plot("Cases", "round")
        self.table = RoundsTable()
        self.promote = button(
            "Use this teacher", "Use the teacher of the selected round from now on", self._promote
        )
        self._lay_out()

        self.preset.changed.connect(lambda _: self._show_preset())
        for signal in (self.preset.changed, self.seed.changed, self.tau.changed):
            signal.connect(self._forget_estimate)
        numbers = (self.rounds.valueChanged, self.devices.valueChanged)
        for signal in (*numbers, self.pretrain.toggled, self.advanced.changed):
            signal.connect(self._forget_estimate)
        self.device.currentTextChanged.connect(self._set_device)
        self.table.itemSelectionChanged.connect(self._show_buttons)
        self.run_on.currentTextChanged.connect(self._show_run_on)
        self.run_on.currentTextChanged.connect(self._forget_estimate)
        self._show_run_on(HERE)
        self.preset.set("fast")
        self._prefer_tau()

        self._redraw_soon = qthrottled(self._redraw, timeout=REDRAW_MS)
        relay, training = self._relay, workspace.training
        relay.connect(training.event, self._add)
        relay.connect(training.state_changed, self._job_changed)
        relay.connect(workspace.project_changed, self._show_project)
        relay.connect(workspace.cases_changed, self._forget_estimate)
        relay.connect(workspace.cases_changed, self._show_buttons)
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
            (label_of(ScreeningConfig.model_fields["tau"], "Threshold"), self.tau.widget),
            (label_of(fields["seed"], "Seed"), self.seed.widget),
            (QLabel("Device"), self.device),
            (QLabel("Devices"), self.devices),
        )
        for place, (label, widget) in enumerate(cells):
            row, column = divmod(place, 2)
            basic.addWidget(label, row, 2 * column)
            basic.addWidget(widget, row, 2 * column + 1)
        for row, (name, field) in enumerate(
            (
                ("Run on", self.run_on),
                ("Python there", self.remote_python),
                ("Folder there", self.remote_folder),
            ),
            start=3,
        ):
            basic.addWidget(QLabel(name), row, 0)
            basic.addWidget(field, row, 1, 1, 3)
        self._elsewhere = [
            basic.itemAtPosition(row, column).widget() for row in (4, 5) for column in (0, 1)
        ]
        basic.addWidget(self.pretrain, 6, 0, 1, 2)
        basic.addWidget(self.measure, 6, 2, 1, 2)
        basic.setColumnStretch(1, 1)
        basic.setColumnStretch(3, 1)
        fold = folded("Advanced settings")
        fold.setToolTip("All settings of the training; choosing a preset sets them all")
        fold.addWidget(self.advanced)
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.addLayout(basic)
        layout.addWidget(self.estimate)
        layout.addWidget(fold)
        layout.addLayout(in_row(self.start, self.pause, self.resume, self.cancel))
        layout.addWidget(self.bar)
        layout.addWidget(self.status)
        for plot in (self.losses, self.dice, self.counts):
            layout.addWidget(plot)
        layout.addWidget(self.table, 1)
        layout.addWidget(self.promote)
        scrolled(page, self)

    # -- the form

    def config(self) -> TrainingConfig:
        """The settings of the form; :class:`SettingsError` if they are invalid."""
        values = self.advanced.values()
        values |= {"preset": self.preset.get(), "seed": self.seed.get()}
        values["screening"]["tau"] = self.tau.get()
        try:
            return TrainingConfig.model_validate(values)
        except ValidationError as error:
            raise SettingsError(from_validation(error)) from None

    def _show_preset(self) -> None:
        project = self._workspace.project
        plan = None if project is None else project.plan
        settings = training_config(self.preset.get(), plan=plan)
        self.advanced.show_values(settings)
        self.tau.set(settings.screening.tau)

    def _prefer_tau(self) -> None:
        """Show the confidence threshold of the preferences, if they have one."""
        tau = default_tau()
        if tau is not None:
            self.tau.set(tau)

    def show_config(self, config: TrainingConfig) -> None:
        """Fill the form in."""
        self.preset.set(config.preset)
        self.advanced.show_values(config)
        self.tau.set(config.screening.tau)
        self.seed.set(config.seed)

    def _follow(self) -> None:
        """Show the settings of a round that a script or an earlier window started."""
        config = self._session.rounds.unfinished_config
        # once, so that what is filled in meanwhile for the next series stays
        if config is not None and config != self._followed:
            self._followed = config
            self.show_config(config)

    def _show_run_on(self, command: str) -> None:
        """Show what another computer needs, as it was said last."""
        elsewhere = command.strip() not in ("", HERE)
        for widget in self._elsewhere:
            widget.setVisible(elsewhere)
        for known in recent_run_on():
            if known.command == command.strip():
                self.remote_python.setText(known.python)
                self.remote_folder.setText(known.folder)

    def _place(self) -> RunOn | None:
        """Where the rounds are to run, None for this computer; it is remembered."""
        command = self.run_on.currentText().strip()
        if command in ("", HERE):
            return None
        python, folder = self.remote_python.text().strip(), self.remote_folder.text().strip()
        run_on = RunOn(command, python, folder)
        remember_run_on(run_on)
        if self.run_on.findText(command) < 0:
            self.run_on.addItem(command)
        return run_on

    def _set_device(self, name: str) -> None:
        self._workspace.device = name
        self._forget_estimate()

    # -- what a person does

    def _start(self) -> None:
        with self._reporting():
            rounds, entry = self._session.rounds, self._session.rounds.interrupted
            unfinished = (
                "This series has rounds still to come"
                if entry is None
                else f"Round {entry.number} isn't finished"
            )
            anew = rounds.resumable
            if anew and not self._sure(
                f"{unfinished} and can be resumed. Give it up and start new rounds?"
            ):
                return
            rounds.run_on, rounds.devices = self._place(), self.devices.value()
            rounds.start(
                self.config(),
                self.rounds.value(),
                anew=anew,
                pretrain=self.pretrain.isChecked(),
                anyway=self._wont_fit,
            )
            self.pretrain.setChecked(False)

    def _resume(self) -> None:
        with self._reporting():
            rounds = self._session.rounds
            rounds.run_on, rounds.devices = self._place(), self.devices.value()
            rounds.resume()

    def _cancel(self) -> None:
        if self._sure("Stop these rounds for good? Pause stops them so that you can resume."):
            with self._reporting():
                self._session.rounds.cancel()
                if not self._workspace.training.state.busy:
                    say(self.status, self._warning())

    def _promote(self) -> None:
        number = self.table.chosen
        if number is not None:
            self._do(self._session.rounds.promote, number, "chosen in the window")()

    def _estimate(self) -> None:
        with self._reporting():
            rounds = self._session.rounds
            rounds.run_on, rounds.devices = self._place(), self.devices.value()
            rounds.estimate(self.config(), self.rounds.value(), pretrain=self.pretrain.isChecked())

    def _sure(self, question: str) -> bool:
        return QMessageBox.question(self, "JRSS", question) == QMessageBox.StandardButton.Yes

    # -- what there is to see

    def _show_project(self) -> None:
        self._progress = self._curves()
        self.device.setCurrentText(self._workspace.device)
        if self.preset.get() == "fast":  # as the project's plan has it
            self._show_preset()
            self._prefer_tau()
        self._forget_estimate()
        say(self.status, self._warning())
        self._show_rounds()

    def _show_rounds(self) -> None:
        rows = []
        with self._reporting():
            rows = self._session.rounds.history()
            self._follow()
        self.table.show_rows(rows)
        done = [row for row in rows if row.labelled is not None and row.accepted is not None]
        numbers = [float(row.number) for row in done]
        self.counts.show_lines(
            [
                Line("labelled", Curve(numbers, [float(row.labelled or 0) for row in done]), True),
                Line(
                    "drafts used", Curve(numbers, [float(row.accepted or 0) for row in done]), True
                ),
            ]
        )
        self._show_buttons()
        self._redraw()

    def _show_buttons(self) -> None:
        with self._reporting():
            self._show_what_can_be_done()

    def _show_what_can_be_done(self) -> None:
        state, project = self._workspace.training.state, self._workspace.project
        validated = project is not None and any(
            case.split is Split.VALIDATION for case in project.cases()
        )
        self.dice.nothing = (
            "No data yet"
            if validated or project is None
            else "No validation cases; Split… in Cohort sets some aside before the first training"
        )
        self.dice.update()
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
            say(self.status, "The project is open read-only: rounds can't be started.")
        elif entry is not None and not self.status.text():
            how = "failed" if entry.outcome is RoundOutcome.FAILED else "is paused"
            say(self.status, f"Round {entry.number} {how}. Resume continues it.")
        elif resumable and not self.status.text():
            say(self.status, "More rounds were planned. Resume runs them.")

    def _add(self, event: Event) -> None:
        self._progress.add(event)
        self._redraw_soon()

    def _job_changed(self, state: JobState) -> None:
        error = self._workspace.training.error
        match state:
            case JobState.RUNNING:
                self._progress = self._curves()
                say(self.status, "Starting …")
            case JobState.CANCELLING:
                say(self.status, "Stopping after this step …")
            case JobState.FAILED if isinstance(error, WontFitError):
                say(self.status, line_of(error))
                self._show_fit(False)
            case JobState.FAILED if error is not None:
                say(self.status, f"Failed: {line_of(error)}. The teacher has not changed.")
            case JobState.CANCELLED:
                say(self.status, "")
            case _:
                say(self.status, f"Finished. {self._warning()}".strip())
        if not state.busy:
            self._progress.stage = ""
            self._end_activity()
        self._show_buttons()
        self._redraw()

    def _redraw(self) -> None:
        now = self._progress
        self.bar.setVisible(self._workspace.training.state.busy)
        self.bar.setRange(0, now.steps)
        self.bar.setValue(now.step)
        if now.stage and self._workspace.training.state is JobState.RUNNING:
            say(self.status, now.line())
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
        """What to know about the present teacher."""
        with self._reporting():
            rows = self._session.rounds.history()
            return " ".join(row.warning for row in rows if row.is_teacher)
        return ""

    def _curves(self) -> Progress:
        """What the rounds so far have recorded."""
        with self._reporting():
            return self._session.rounds.curves()
        return Progress()

    def _show_estimate(self, estimate: Estimate) -> None:
        say(self.estimate, estimate.line())
        with self._reporting():
            require_fit(estimate)

    def _estimator_changed(self, state: JobState) -> None:
        error = self._session.rounds.estimator.error
        if state is JobState.RUNNING:
            say(self.estimate, "Measuring a step …")
        elif state is JobState.FAILED and error is not None:
            say(self.estimate, line_of(error))

    def _forget_estimate(self, *_: object) -> None:
        say(self.estimate, "")
        self._show_fit(True)

    def _show_fit(self, fits: bool) -> None:
        """Let Start say that it starts what can't end, once that is known."""
        self._wont_fit = not fits
        self.start.setText("Start" if fits else "Start anyway")

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Draw no more."""
        self._redraw_soon.cancel()
        self._end_activity()
        super().closeEvent(event)


def _of_registration(stage: str) -> bool:
    return "registration" in stage
