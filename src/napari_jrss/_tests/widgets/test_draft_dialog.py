"""Drafts by TotalSegmentator from the window, with a program that stands in for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialogButtonBox

from napari_jrss._tests.app.phantoms import make_project
from napari_jrss._tests.app.total_segmentator import install
from napari_jrss._tests.widgets.person import Person
from napari_jrss.inference.totalsegmentator import VARIABLE
from napari_jrss.project.drafts import kept_drafts
from napari_jrss.widgets.dialogs.totalsegmentator import DraftDialog
from napari_jrss.widgets.main_widget import MainWidget

KEY = "tool:TotalSegmentator_2.4.0_total"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("untaught"))


@pytest.fixture
def person(
    dock: MainWidget,
    qtbot: QtBot,
    made_once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Person:
    monkeypatch.setenv(VARIABLE, str(install(tmp_path)))
    dock.session.workspace.author = "anna"
    person = Person(dock, qtbot)
    dock.session.open(shutil.copytree(made_once, tmp_path / "brain.jrss"))
    person.settle()
    person.open()
    return person


def dialog_of(person: Person) -> DraftDialog:
    person.click(person.tab.draft.totalsegmentator)
    (dialog,) = person.tab.findChildren(DraftDialog)
    return dialog


def ended(person: Person) -> None:
    job = person.session.workspace.inference
    person.qtbot.waitUntil(lambda: not job.state.busy, timeout=30_000)
    person.settle()


def test_the_case_under_review_begins_with_its_draft(person: Person) -> None:
    case = person.review.open_case
    dialog = dialog_of(person)
    assert dialog.message.text().startswith("Found: ")
    assert dialog.this.isChecked()
    with person.qtbot.waitSignal(dialog.finished, timeout=30_000):
        person.qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    ended(person)
    assert case.editor.origin.draft == KEY
    assert set(person.label.ravel().tolist()) == {0, 1, 2}
    assert person.tab.draft.sources.currentText() == "Draft of TotalSegmentator 2.4.0 total"
    assert person.tab.draft.began.text() == (
        "Your label began from: draft of TotalSegmentator 2.4.0 total."
    )


def test_a_failure_stays_in_the_dialog_and_can_be_tried_again(person: Person) -> None:
    dialog = dialog_of(person)
    dialog.task.setText("broken")
    person.qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    ended(person)
    assert dialog.message.text().endswith("RuntimeError: CUDA out of memory")
    dialog.task.setText("organs")
    person.qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    ended(person)
    assert "has no structure of this project (structure 1, structure 2)" in dialog.message.text()
    dialog.names.setText("spleen = structure 1, liver=structure 2")
    with person.qtbot.waitSignal(dialog.finished, timeout=30_000):
        person.qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)


def test_cancel_ends_the_program(
    person: Person, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "pids"
    monkeypatch.setenv("STAND_IN_WAITS", str(told))
    dialog = dialog_of(person)
    dialog.all.setChecked(True)
    person.qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    person.qtbot.waitUntil(lambda: told.exists() and bool(told.read_text()), timeout=30_000)
    cancel = dialog._buttons.button(QDialogButtonBox.StandardButton.Cancel)
    person.qtbot.mouseClick(cancel, Qt.MouseButton.LeftButton)
    ended(person)
    for pid in map(int, told.read_text().split()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"
    project = person.session.workspace.open_project
    assert not any(kept_drafts(project, case.case_id) for case in project.cases())


def test_a_missing_program_is_said_before_the_start(person: Person) -> None:
    dialog = dialog_of(person)
    dialog.executable.edit.setText("/nowhere/TotalSegmentator")
    assert "no such program: pip install TotalSegmentator" in dialog.message.text()
    assert not dialog.start.isEnabled()
