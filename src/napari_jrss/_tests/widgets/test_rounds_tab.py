"""The tab Training, clicked and typed in as a person would."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from napari.utils import progress
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QColor, QWheelEvent
from qtpy.QtWidgets import QApplication, QCheckBox, QComboBox, QLineEdit, QSpinBox

import napari_jrss
from napari_jrss._tests.app import sshd
from napari_jrss._tests.app.conftest import trainable_once as trainable_once
from napari_jrss._tests.app.series import train
from napari_jrss._tests.training.phantoms import tiny_config
from napari_jrss._tests.widgets.dialogs import answering, press
from napari_jrss.app.cohort import SplitCounts
from napari_jrss.app.rounds.estimate import steps_of
from napari_jrss.app.rounds.measure import Measured, StepCost
from napari_jrss.app.rounds.progress import Curve
from napari_jrss.app.runner import JobState
from napari_jrss.app.settings import SettingsError
from napari_jrss.config import JointConfig, PresetName, TrainingConfig, preset
from napari_jrss.training.events import RoundFinished, StepEnd
from napari_jrss.widgets.curves import COLOURS, Line, Plot
from napari_jrss.widgets.forms import Form, NumberBox
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.preferences import recent_run_on
from napari_jrss.widgets.tabs.rounds import BASIC, RoundsTab

WAIT_MS = 150_000


@pytest.fixture
def tab(dock: MainWidget, trainable_once: Path, tmp_path: Path) -> Iterator[RoundsTab]:
    """On a project of its own, rounds in this process, settings that take seconds."""
    session = dock.session
    session.rounds.own_process = False
    session.open(shutil.copytree(trainable_once, tmp_path / "brain.jrss"))
    tab = dock.rounds
    dock.tabs.setCurrentWidget(tab)
    QApplication.processEvents()
    tab.device.setCurrentText("cpu")
    fill(tab, tiny_config())
    yield tab
    assert session.close()


def fill(tab: RoundsTab, config: TrainingConfig, rounds: int = 0) -> None:
    tab.show_config(config)
    tab.rounds.setValue(rounds)


def click(qtbot: QtBot, button: Any) -> None:
    assert button.isEnabled()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def wait_for(qtbot: QtBot, tab: RoundsTab, text: str) -> None:
    qtbot.waitUntil(lambda: text in tab.status.text(), timeout=WAIT_MS)


def enabled(tab: RoundsTab) -> set[str]:
    buttons = (tab.start, tab.pause, tab.resume, tab.cancel, tab.promote)
    return {button.text() for button in buttons if button.isEnabled()}


@pytest.mark.parametrize("name", get_args(PresetName))
def test_every_setting_of_a_preset_goes_through_the_form(tab: RoundsTab, name: Any) -> None:
    tab.preset.set("smoke" if name == "paper" else "paper")
    tab.preset.set(name)
    tab.seed.set(0)
    assert tab.config() == preset(name)
    shown = tab.advanced.values()
    left_out = {field for field in TrainingConfig.model_fields if field not in shown}
    assert left_out == {"preset", "seed"}
    assert set(JointConfig.model_fields) == set(shown["joint"])
    assert BASIC[2] == "screening.tau"
    assert "tau" not in shown["screening"]


def test_a_new_window_shows_the_settings_of_the_default_preset(dock: MainWidget) -> None:
    assert dock.rounds.config() == preset("fast")


def test_titles_descriptions_and_bounds_come_from_the_settings(qtbot: QtBot) -> None:
    form = Form(JointConfig)
    qtbot.addWidget(form)
    dropout = form.editors["dropout"].widget
    assert isinstance(dropout, NumberBox)
    assert dropout.toolTip() == "Fraction of feature maps that are set to 0 in a step."
    dropout.setValue(3)
    assert dropout.value() < 1
    epochs = form.editors["segmentation_epochs"].widget
    assert isinstance(epochs, QSpinBox)
    assert epochs.minimum() == 1
    assert isinstance(form.editors["registration_warp"].widget, QCheckBox)
    weighting = form.editors["uncertainty_weighting"].widget
    assert isinstance(weighting, QComboBox)
    assert [weighting.itemData(i) for i in range(weighting.count())] == ["exp_kl", "none"]
    assert weighting.itemText(0) == "less where teacher and student disagree"


def test_a_small_number_is_typed_as_it_is_written(qtbot: QtBot) -> None:
    box = NumberBox()
    qtbot.addWidget(box)
    box.setRange(0, 1)
    box.selectAll()
    qtbot.keyClicks(box, "4e-4")
    qtbot.keyClick(box, Qt.Key.Key_Return)
    assert box.value() == 4e-4
    assert box.text() == "0.0004"
    box.selectAll()
    qtbot.keyClicks(box, "0.02x5")
    assert box.text() == "0.025"


def test_the_wheel_over_the_form_changes_nothing(tab: RoundsTab) -> None:
    before = tab.rounds.value(), tab.seed.get()
    widget = tab.seed.widget
    wheel = QWheelEvent(
        QPointF(5, 5),
        QPointF(widget.mapToGlobal(QPoint(5, 5))),
        QPoint(),
        QPoint(0, 120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(widget, wheel)
    assert (tab.rounds.value(), tab.seed.get()) == before


def test_the_plot_of_validation_follows_the_split(tab: RoundsTab, qtbot: QtBot) -> None:
    project = tab._session.workspace.open_project
    assert tab.dice.nothing == "No data yet"
    project.split(labelled=2)
    tab._session.workspace.cases_changed.emit()
    qtbot.waitUntil(lambda: tab.dice.nothing.startswith("No validation cases"))
    tab._session.cohort.split(SplitCounts(2, 2, 2))
    qtbot.waitUntil(lambda: tab.dice.nothing == "No data yet")


def test_impossible_settings_are_told_by_name(tab: RoundsTab) -> None:
    tab.advanced.sections["segmentation"].editors["learning_rate"].widget.setMinimum(-1)
    tab.advanced.sections["segmentation"].editors["learning_rate"].set(-0.5)
    with pytest.raises(SettingsError, match=r"segmentation\.learning_rate: .*greater than 0"):
        tab.config()


def test_start_pause_resume_finish(tab: RoundsTab, qtbot: QtBot) -> None:
    session = tab._session
    assert enabled(tab) == {"Start"}
    fill(tab, tiny_config(segmentation={"epochs": 1, "minimum_steps": 60}))
    seen: list[StepEnd] = []
    session.workspace.training.event.connect(
        lambda e: seen.append(e) if isinstance(e, StepEnd) else None
    )
    click(qtbot, tab.start)
    wait_for(qtbot, tab, "first training, segmentation: ")
    assert enabled(tab) == {"Pause", "Cancel"}
    [bar] = [p for p in progress._all_instances if p.desc.startswith("JRSS")]
    qtbot.waitUntil(lambda: tab.bar.value() > 3 and bar.n > 3, timeout=WAIT_MS)
    assert tab.bar.maximum() == bar.total == 60
    click(qtbot, tab.pause)
    wait_for(qtbot, tab, "Round 0 is paused. Resume")
    assert session.workspace.training.state is JobState.CANCELLED
    assert enabled(tab) == {"Start", "Resume", "Cancel"}
    assert tab.table.item(0, 2).text() == "paused"
    assert not [p for p in progress._all_instances if p.desc.startswith("JRSS")]
    paused_at = seen[-1].step

    click(qtbot, tab.resume)
    wait_for(qtbot, tab, "Finished")
    assert seen[-1].stage == "mono_registration"
    resumed = [step.step for step in seen if step.stage == "mono_segmentation"]
    assert resumed == [*range(1, paused_at + 1), *range(paused_at + 1, 61)]
    assert [line.name for line in tab.losses.lines] == ["segmentation", "registration"]
    assert tab.table.rowCount() == 1
    assert tab.table.item(0, 0).font().bold()
    assert enabled(tab) == {"Start"}


def test_start_anew_and_cancel_ask_first(tab: RoundsTab, qtbot: QtBot) -> None:
    fill(tab, tiny_config(segmentation={"epochs": 1, "minimum_steps": 100_000}))
    click(qtbot, tab.start)
    wait_for(qtbot, tab, "first training, segmentation: ")
    with answering(press("No")) as asked:
        click(qtbot, tab.cancel)
    assert "Stop these rounds for good?" in asked[0]
    assert tab._workspace.training.state is JobState.RUNNING
    click(qtbot, tab.pause)
    qtbot.waitUntil(lambda: tab.resume.isEnabled(), timeout=WAIT_MS)
    fill(tab, tiny_config())
    with answering(press("No")) as asked:
        click(qtbot, tab.start)
    assert "Round 0 isn't finished and can be resumed" in asked[0]
    assert tab._workspace.training.state is JobState.CANCELLED
    with answering(press("Yes")):
        click(qtbot, tab.cancel)
    qtbot.waitUntil(lambda: not tab.resume.isEnabled())
    click(qtbot, tab.start)
    wait_for(qtbot, tab, "Finished")
    assert [str(row.outcome) for row in tab._session.rounds.history()] == ["cancelled", "finished"]
    # A handful of steps teaches nothing, and that is said.
    assert tab.status.text().startswith("Finished. Not learned yet: frontal")
    assert tab.table.item(0, 5).text().endswith(" (!)")
    assert "Not learned yet" in tab.table.item(0, 5).toolTip()


def test_a_series_stopped_between_two_rounds_can_be_left(tab: RoundsTab, qtbot: QtBot) -> None:
    session = tab._session
    events = train(
        session.workspace.open_project, tiny_config(), 2, threading.Event(), device="cpu"
    )
    while not isinstance(next(events), RoundFinished):
        pass
    events.close()  # type: ignore[attr-defined]
    session.workspace.rounds_changed.emit()
    wait_for(qtbot, tab, "More rounds were planned. Resume")
    assert enabled(tab) == {"Start", "Resume", "Cancel"}
    with answering(press("No")) as asked:
        click(qtbot, tab.start)
    assert "This series has rounds still to come" in asked[0]
    assert session.workspace.training.state is JobState.IDLE
    with answering(press("Yes")) as asked:
        click(qtbot, tab.cancel)
    assert "Stop these rounds for good?" in asked[0]
    qtbot.waitUntil(lambda: enabled(tab) == {"Start"})
    assert tab.table.item(0, 2).text() == "finished"
    assert "Resume" not in tab.status.text()


def test_pre_training_again_is_offered_once_there_is_a_teacher_and_asked_for_once(
    tab: RoundsTab, qtbot: QtBot
) -> None:
    session = tab._session
    assert tab.pretrain.isHidden()
    click(qtbot, tab.start)
    wait_for(qtbot, tab, "Finished")
    qtbot.waitUntil(lambda: not tab.pretrain.isHidden())
    tab.pretrain.click()
    click(qtbot, tab.start)
    qtbot.waitUntil(lambda: session.workspace.training.state.busy)
    qtbot.waitUntil(lambda: not session.workspace.training.state.busy, timeout=WAIT_MS)
    rounds = [(row.number, row.parent, row.is_teacher) for row in session.rounds.history()]
    assert rounds == [(0, None, False), (1, None, True)]
    assert not tab.pretrain.isChecked()
    # The warning of a teacher is there whenever its project is.
    path = session.workspace.open_project.path
    session.close()
    session.open(path)
    qtbot.waitUntil(lambda: tab.status.text().startswith("Not learned yet: frontal"))


def test_the_form_shows_the_settings_of_a_round_that_a_script_started(
    tab: RoundsTab, qtbot: QtBot
) -> None:
    config = tiny_config(
        seed=7, segmentation={"epochs": 1, "minimum_steps": 100_000, "learning_rate": 0.02}
    )
    assert tab.config() != config
    tab._session.rounds.start(config, 0)
    wait_for(qtbot, tab, "first training, segmentation: ")
    assert tab.config() == config
    tab.seed.set(8)  # for the next series
    click(qtbot, tab.pause)
    qtbot.waitUntil(lambda: tab.resume.isEnabled(), timeout=WAIT_MS)
    assert tab.config() == config.model_copy(update={"seed": 8})


def test_a_failed_round_says_why_and_an_earlier_teacher_can_be_used(
    tab: RoundsTab, qtbot: QtBot
) -> None:
    session = tab._session
    fill(tab, tiny_config(), rounds=1)
    click(qtbot, tab.start)
    wait_for(qtbot, tab, "Finished")
    assert [line.name for line in tab.counts.lines] == ["labelled", "drafts used"]
    tab.table.selectRow(1)  # the latest is first
    click(qtbot, tab.promote)
    qtbot.waitUntil(lambda: tab.table.item(1, 0).font().bold())
    assert session.workspace.open_project.teacher.number == 0

    fill(tab, tiny_config(screening={"tau": 1.0}), rounds=1)
    click(qtbot, tab.start)
    wait_for(qtbot, tab, "Failed: no structure of any unlabelled case passes tau = 1.0")
    assert session.workspace.open_project.teacher.number == 0
    assert "passes tau" in tab.table.item(0, 2).toolTip()
    tab.table.selectRow(0)
    assert not tab.promote.isEnabled()


def test_a_project_open_read_only_can_only_be_looked_at(tab: RoundsTab, qtbot: QtBot) -> None:
    path = tab._workspace.open_project.path
    tab._session.close()
    qtbot.waitUntil(lambda: enabled(tab) == set())
    tab._session.open(path, read_only=True)
    wait_for(qtbot, tab, "read-only")
    assert enabled(tab) == set()


def test_a_round_that_can_not_be_read_is_told_in_a_line(
    dock: MainWidget, qtbot: QtBot, taught: Path
) -> None:
    session, tab = dock.session, dock.rounds
    (taught / "rounds" / "0000" / "config.json").unlink()
    session.open(taught)
    qtbot.waitUntil(lambda: "unreadable description of a round" in dock._message.text())
    assert not session.rounds.resumable
    assert enabled(tab) == {"Start"}
    shutil.rmtree(taught)
    session.workspace.notified.emit("")
    session.workspace.rounds_changed.emit()
    qtbot.waitUntil(lambda: "unreadable description of a round" in dock._message.text())
    assert enabled(tab) == {"Start"}


def test_a_history_that_can_not_be_read_is_told_in_a_line(
    dock: MainWidget, qtbot: QtBot, taught: Path
) -> None:
    session, said = dock.session, list[str]()
    rounds = taught / "rounds"
    rounds.rename(taught / "moved")
    rounds.symlink_to(taught / "moved")
    session.workspace.notified.connect(said.append)
    session.open(taught)
    qtbot.waitUntil(lambda: "a symbolic link, which" in dock._message.text())
    session.workspace.training.start(lambda cancel: iter(()))
    qtbot.waitUntil(lambda: dock.rounds.status.text() == "Finished.")
    assert {line for line in said if line} == {
        f"{rounds}: a symbolic link, which a project doesn't follow"
    }


def test_the_estimate_is_shown_before_the_start(
    tab: RoundsTab, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = StepCost(seconds=(1.0, 0.0), memory=(0.0, 1e6))
    stages = ("mono_segmentation", "registration", "student", "prediction")
    measured = Measured(
        device="cpu", program=0.0, total=2.0**30, stages=dict.fromkeys(stages, cost)
    )
    monkeypatch.setattr(
        "napari_jrss.app.rounds.control.measure_in_own_process", lambda *_: measured
    )
    click(qtbot, tab.measure)
    qtbot.waitUntil(lambda: "about" in tab.estimate.text(), timeout=WAIT_MS)
    steps = steps_of(tab.config(), tab._workspace.open_project.snapshot(), False, 0)
    assert f"about {sum(steps.values())} s on cpu (from a measured step)" in tab.estimate.text()
    assert "5.7 of 1.0 GiB of memory: too much" in tab.estimate.text()
    tab.seed.set(5)
    assert tab.estimate.text() == ""


def test_curves_are_drawn_where_they_belong(qtbot: QtBot) -> None:
    plot = Plot("Validation Dice", "step", (0.0, 1.0))
    qtbot.addWidget(plot)
    plot.resize(360, 160)
    x = [float(i) for i in range(2000)]
    plot.show_lines([Line("low", Curve(x, [0.1] * 2000)), Line("high", Curve(x, [0.9] * 2000))])
    image = plot.grab().toImage()

    def row_of(colour: str) -> int:
        """Where the column x = 200 is closest to a colour; lines are drawn smoothly."""
        wanted = QColor(colour).getRgb()[:3]
        column = [image.pixelColor(200, y).getRgb()[:3] for y in range(20, 140)]
        far = [sum(abs(a - b) for a, b in zip(c, wanted, strict=True)) for c in column]
        assert min(far) < 120
        return far.index(min(far))

    assert row_of(COLOURS[1]) + 60 < row_of(COLOURS[0])


def test_two_devices_share_each_batch(tab: RoundsTab, qtbot: QtBot) -> None:
    tab.devices.setValue(3)
    click(qtbot, tab.start)
    wait_for(qtbot, tab, "can't share a step of 2 images")
    assert tab._session.rounds.history() == []
    tab.devices.setValue(2)
    click(qtbot, tab.start)
    wait_for(qtbot, tab, "Finished")
    assert tab._workspace.project.teacher.metrics["device"] == "2 x cpu"


def test_it_draws_ten_times_a_second_at_most(
    tab: RoundsTab, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(tab.losses, "show_lines", lambda lines: drawn.append(1))
    event = StepEnd(stage="student_1", step=1, steps=9, losses={"total": 1.0}, seconds=0.1)
    for _ in range(500):
        tab._workspace.training.event.emit(event)
    qtbot.wait(450)
    assert 1 <= len(drawn) <= 6


@pytest.mark.skipif(bool(sshd.MISSING), reason=sshd.MISSING)
def test_rounds_are_sent_to_another_computer_and_the_teacher_comes_back(
    tab: RoundsTab, qtbot: QtBot, tmp_path: Path
) -> None:
    def type_into(field: QLineEdit, text: str) -> None:
        field.selectAll()
        qtbot.keyClicks(field, text)

    assert tab.remote_python.isHidden()
    type_into(tab.run_on.lineEdit(), "ssh 'gpu")
    assert not tab.remote_python.isHidden()
    click(qtbot, tab.start)
    assert tab._session.rounds.history() == []  # it was told that a quote is missing
    environment = {"PYTHONPATH": str(Path(napari_jrss.__file__).parents[1])}
    with sshd.serving(tmp_path, environment) as server:
        type_into(tab.run_on.lineEdit(), server.command)
        type_into(tab.remote_python, sys.executable)
        click(qtbot, tab.start)
        wait_for(qtbot, tab, "Finished")
    teacher = tab._workspace.project.teacher
    assert teacher.metrics["device"] == "cpu by ssh"
    assert teacher.files.teacher.exists()
    (remembered,) = recent_run_on()
    assert (remembered.command, remembered.python) == (server.command, sys.executable)
