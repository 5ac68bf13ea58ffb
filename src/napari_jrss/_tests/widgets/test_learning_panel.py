"""The box that lets the teacher learn after each accepted case."""

from __future__ import annotations

from pathlib import Path

import pytest
from napari.settings import get_plugin_settings
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, Qt

from napari_jrss._tests.app.phantoms import give_networks
from napari_jrss._tests.widgets.person import Person
from napari_jrss.app.rounds import learning
from napari_jrss.project.records import RoundKind
from napari_jrss.training import quick
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.preferences import PLUGIN

pytestmark = pytest.mark.slow


def test_a_tick_an_accepted_case_and_the_next_draft_is_of_the_new_teacher(
    dock: MainWidget, qtbot: QtBot, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_MOST_STEPS", 3)
    # what a network that never learned anything loses in three steps is no matter here
    monkeypatch.setattr(quick, "clearly_worse", lambda before, after: False)
    dock.session.open(taught)
    dock.session.workspace.author = "anna"
    project = dock.session.workspace.open_project
    give_networks(project)
    person, panel = Person(dock, qtbot), dock.review.learning
    dock.session.learning.own_process = False
    first = person.open()
    assert not panel.box.isChecked()
    assert panel.text.isHidden()
    qtbot.mouseClick(panel.box, Qt.MouseButton.LeftButton, pos=QPoint(8, panel.box.height() // 2))
    assert panel.box.isChecked()
    assert dock.session.learning.after_accept
    assert get_plugin_settings(PLUGIN).work.learn
    person.stroke(2)
    person.click(person.tab.accept)
    qtbot.waitUntil(lambda: project.rounds()[-1].number == 1, timeout=60_000)
    qtbot.waitUntil(lambda: not dock.session.learning.runner.state.busy, timeout=60_000)
    person.settle()
    told = f"The teacher learned from case {first}: the next draft uses it."
    assert panel.text.text() == told
    assert told in person.said
    entry = project.require_teacher()
    assert (entry.number, entry.kind) == (1, RoundKind.QUICK)
    qtbot.waitUntil(lambda: person.review.open_case.editor.origin.draft == "round:1")
    table = dock.rounds.table
    assert table.item(0, 0).text() == "1"
    assert table.item(0, 7).text() == f"quick: {first}"
    # preferences are still followed, and so are scripts
    get_plugin_settings(PLUGIN).work.learn = False
    qtbot.waitUntil(lambda: not panel.box.isChecked())
    assert not dock.session.learning.after_accept
    dock.session.learning.after_accept = True
    qtbot.waitUntil(panel.box.isChecked)


def test_it_is_on_unless_a_person_turns_it_off(dock: MainWidget, qtbot: QtBot) -> None:
    panel = dock.review.learning
    assert not panel.box.isChecked()  # the tests' own preference
    get_plugin_settings(PLUGIN).reset()
    qtbot.waitUntil(panel.box.isChecked)
    assert dock.session.learning.after_accept
