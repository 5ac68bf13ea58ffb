"""What training grids would cost, and the change to one of them."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QButtonGroup, QDialog, QProgressBar, QRadioButton, QVBoxLayout, QWidget

from napari_jrss.app.planning import propose
from napari_jrss.app.runner import JobRunner, JobState
from napari_jrss.app.session import Session
from napari_jrss.preprocess.plan import Level, Plan
from napari_jrss.project.plans import CaseMoved
from napari_jrss.times import duration
from napari_jrss.widgets.bridge import Relay, failure
from napari_jrss.widgets.controls import wrapped
from napari_jrss.widgets.dialogs.dialog import Dialog

_LINES = 6  # of reasons
_BUDGETS: dict[Level, str] = {"quick": "20 min", "balanced": "2 h", "fine": "10 h"}


class PlanChoice(QWidget):
    """Three plans to choose from, and why the chosen one is as it is."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._plans: Mapping[Level, Plan] = {}
        self.buttons = {level: QRadioButton() for level in _BUDGETS}
        self._group = QButtonGroup(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for level, radio in self.buttons.items():
            self._group.addButton(radio)
            radio.setToolTip(
                f"As fine as pre-training and a round in {_BUDGETS[level]} on this computer allow"
            )
            layout.addWidget(radio)
        self.buttons["balanced"].setChecked(True)
        self.reasons = wrapped()
        self.reasons.setMinimumHeight(_LINES * self.fontMetrics().lineSpacing())
        self.reasons.setAlignment(Qt.AlignmentFlag.AlignTop)
        layout.addWidget(self.reasons)
        self._group.buttonToggled.connect(self._show_reasons)
        self.show_plans({})

    def show_plans(self, plans: Mapping[Level, Plan]) -> None:
        """Show what each level leads to; none while that isn't known."""
        self._plans = plans
        for level, radio in self.buttons.items():
            plan = plans.get(level)
            radio.setText(f"{level} ({_BUDGETS[level]})" if plan is None else _short(plan))
            radio.setEnabled(plan is not None)
        self._show_reasons()

    @property
    def plan(self) -> Plan | None:
        """The plan of the chosen level; None while it isn't known."""
        for level, radio in self.buttons.items():
            if radio.isChecked():
                return self._plans.get(level)
        return None

    def _show_reasons(self) -> None:
        plan = self.plan
        text = ""
        if plan is not None:
            reasons = [*plan.reasons, f"needs {plan.memory / 2**30:.1f} GiB of memory"]
            if plan.small:
                names = ", ".join(f"{name} ({n})" for name, n in list(plan.small.items())[:4])
                reasons.append(f"voxels where smallest: {names}")
            text = " ".join(f"{each[0].upper()}{each[1:]}." for each in reasons)
        self.reasons.setText(text)
        self.changed.emit()


def _short(plan: Plan) -> str:
    return (
        f"{plan.level}: {plan.grid}; about {duration(plan.pretraining_s)} + "
        f"{duration(plan.round_s)} a round" + ("" if plan.fits else " (too much)")
    )


class PlanDialog(Dialog):
    """Shows the plans for the open project, and changes to one of them."""

    def __init__(self, session: Session, parent: QWidget) -> None:
        super().__init__(parent, "Training grid", "Use this plan", "Bring all cases to this grid")
        self.setMinimumWidth(560)
        self.start.setEnabled(False)
        self._session = session
        self._changing = False
        project = session.workspace.open_project
        grid = project.grid
        shape, spacing = (" x ".join(f"{n:.3g}" for n in v) for v in (grid.shape, grid.spacing_mm))
        about = wrapped(
            f"Now: {shape} voxels of {spacing} mm (z y x). Labels, history and decisions stay as "
            "they are; the next training begins with a pre-training."
        )
        self.choice = PlanChoice()
        self.bar = QProgressBar(toolTip="Cases that are on the new grid")
        self.bar.hide()
        self.lay_out(about, self.choice, self.bar)
        self.message.setText("Looking at the scans …")
        self._runner = JobRunner("plans")
        self._relay = Relay(self)
        self._relay.connect(self._runner.event, self._show_plans)
        self._relay.connect(self._runner.state_changed, self._proposed)
        self._relay.connect(session.workspace.inference.event, self._moved)
        self._relay.connect(session.workspace.inference.state_changed, self._changed)
        self._runner.start(lambda cancel: iter([propose(project)]))

    def accept(self) -> None:
        """Begin the change; the dialog stays until it is done."""
        plan = self.choice.plan
        if plan is None:
            return
        with self.reporting():
            self._session.change_plan(plan)
            self._changing = True
            self.start.setEnabled(False)
            self.choice.setEnabled(False)
            self.bar.show()

    def done(self, result: int) -> None:
        """Stop a change under way, however the dialog ends; the former plan stays then."""
        self._relay.disconnect_all()
        self._runner.cancel()
        if self._changing:
            self._session.workspace.inference.cancel()
        super().done(result)

    def _show_plans(self, plans: Mapping[Level, Plan]) -> None:
        self.choice.show_plans(plans)
        self.message.setText("")
        project = self._session.workspace.project
        self.start.setEnabled(project is not None and not project.read_only)

    def _proposed(self, state: JobState) -> None:
        if why := failure(state, self._runner):
            self.message.setText(why)

    def _moved(self, event: object) -> None:
        if isinstance(event, CaseMoved):
            self.bar.setRange(0, event.total)
            self.bar.setValue(event.done)

    def _changed(self, state: JobState) -> None:
        if not self._changing or state.busy:
            return
        self._changing = False
        if why := failure(state, self._session.workspace.inference):
            self.message.setText(why)
            self.choice.setEnabled(True)
            self.start.setEnabled(True)
            self.bar.hide()
            return
        self._session.workspace.project_changed.emit()
        self.done(int(QDialog.DialogCode.Accepted))
