"""Closing: the window, the dock, a second dock; with a round running in a process of its own."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from napari.utils.notifications import notification_manager
from pytestqt.qtbot import QtBot
from qtpy.QtWidgets import QMainWindow, QWidget

from napari_jrss._tests.app.conftest import trainable_once as trainable_once
from napari_jrss._tests.training.phantoms import tiny_config
from napari_jrss._tests.widgets.dialogs import answering, press
from napari_jrss.app.runner import JobState
from napari_jrss.app.session import Session
from napari_jrss.errors import ProjectError
from napari_jrss.project.project import Project
from napari_jrss.widgets.main_widget import MainWidget

LONG = {"segmentation": {"epochs": 1, "minimum_steps": 100_000}}
START_MS = 150_000


@pytest.fixture
def path(trainable_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trainable_once, tmp_path / "brain.jrss"))


@pytest.fixture
def nothing_left(path: Path) -> Iterator[None]:
    """No job's thread, no process and no lock remain."""
    yield
    names = {"training", "inference", "summaries", "estimate", "training messages"}
    assert not names & {thread.name for thread in threading.enumerate()}
    assert _children() == []
    with Project.open(path):
        pass


def _children() -> list[psutil.Process]:
    """The training processes of this program."""
    module = "napari_jrss.app.rounds.process"
    return [c for c in psutil.Process().children() if module in c.cmdline()]


def window_of(widget: QWidget) -> QMainWindow:
    while not isinstance(widget, QMainWindow):
        widget = widget.parentWidget()
    return widget


def train(session: Session, path: Path, qtbot: QtBot, own_process: bool = True) -> None:
    """Start a training that never ends by itself, and wait for its first step."""
    steps: list[object] = []
    session.workspace.training.event.connect(steps.append)
    session.workspace.device = "cpu"
    if session.workspace.project is None:
        session.open(path)
    session.rounds.own_process = own_process
    session.rounds.start(tiny_config(**LONG), 0)
    qtbot.waitUntil(
        lambda: len(steps) > 2 or session.workspace.training.error is not None, timeout=START_MS
    )
    assert session.workspace.training.error is None


@pytest.mark.usefixtures("nothing_left")
def test_closing_the_window_asks_and_leaves_a_round_to_resume(
    make_napari_viewer: Callable[..., Any], path: Path, qtbot: QtBot
) -> None:
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
    qtbot.waitUntil(dock.isVisible)
    session, window = dock.session, window_of(dock)
    train(session, path, qtbot)
    assert len(_children()) == 1
    case_id = session.workspace.open_project.snapshot().unlabelled[0]
    session.review.open(case_id)
    assert session.review.wait(10)
    session.review.open_case.editor.label[8, 8, 8:12] = 1
    session.review.open_case.editor.sync()

    with answering(press("Keep training")):
        assert not window.close()
    assert session.workspace.training.state is JobState.RUNNING
    assert window.isVisible()

    started = time.monotonic()
    with answering(press("Pause and close")) as asked:
        assert window.close()
    assert time.monotonic() - started < 3
    viewer.close()  # so that the fixture knows
    assert "paused; you can resume it" in asked[0]
    assert f"Your corrections of {case_id}, which aren't accepted yet, are kept" in asked[0]
    assert session.workspace.project is None
    assert _children() == []

    later = Session(device="cpu")
    later.open(path)
    assert later.rounds.interrupted is not None
    assert later.rounds.resumable
    assert later.review.wait(10)
    assert [entry.case_id for entry in later.review.unfinished] == [case_id]
    assert later.close()


@pytest.mark.usefixtures("nothing_left")
def test_a_script_that_closes_the_viewer_is_not_asked(
    make_napari_viewer: Callable[..., Any], path: Path, qtbot: QtBot
) -> None:
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
    qtbot.waitUntil(dock.isVisible)
    session = dock.session
    train(session, path, qtbot, own_process=False)
    viewer.close()
    assert session.workspace.training.state is JobState.CANCELLED
    assert session.workspace.project is None


@pytest.mark.usefixtures("nothing_left")
def test_a_hidden_or_floating_dock_goes_on_and_a_closed_one_pauses(
    dock: MainWidget, path: Path, qtbot: QtBot
) -> None:
    session = dock.session
    train(session, path, qtbot, own_process=False)
    panel = dock.parentWidget()
    panel.setFloating(True)
    qtbot.wait(50)
    panel.setFloating(False)
    panel.close()
    qtbot.wait(50)
    assert session.workspace.training.state is JobState.RUNNING
    assert session.workspace.project is not None

    panel.destroyOnClose()  # what the dock's cross calls
    qtbot.waitUntil(lambda: session.workspace.project is None)
    assert session.workspace.training.state is JobState.CANCELLED
    assert "The training is paused" in notification_manager.records[-1].message


@pytest.mark.usefixtures("nothing_left")
def test_a_second_dock_on_the_same_project_looks_on(
    make_napari_viewer: Callable[..., Any], dock: MainWidget, path: Path, qtbot: QtBot
) -> None:
    again = make_napari_viewer().window.add_plugin_dock_widget("napari-jrss", "JRSS")[1]
    assert again is not dock
    assert again.session is not dock.session
    dock.session.open(path)
    with pytest.raises(ProjectError, match="open for writing in this program already"):
        again.session.open(path)
    lines: list[str] = []
    again.session.workspace.notified.connect(lines.append)
    again.cohort.open_project(path)
    assert again.session.workspace.project.read_only
    assert "open for writing in this program already" in lines[-1]
    assert not again.rounds.start.isEnabled()
    qtbot.waitUntil(lambda: "read-only" in again.rounds.status.text())
    dock.session.close()
    again.session.close()


def test_the_menu_opened_twice_is_the_same_dock(
    make_napari_viewer: Callable[..., Any],
) -> None:
    viewer = make_napari_viewer()
    first = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")[1]
    assert viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")[1] is first
