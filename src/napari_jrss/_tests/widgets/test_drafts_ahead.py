"""A case opens with the averaged draft, and the window says so."""

from __future__ import annotations

from pathlib import Path

from napari.settings import get_plugin_settings
from pytestqt.qtbot import QtBot

from napari_jrss._tests.widgets.person import Person
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.preferences import PLUGIN


def test_the_next_case_opens_with_it(dock: MainWidget, qtbot: QtBot, taught: Path) -> None:
    dock.session.pairs.engine = "refine"
    get_plugin_settings(PLUGIN).work.ahead = 1
    assert dock.session.review.ahead.cases == 1
    dock.session.open(taught)
    person, review = Person(dock, qtbot), dock.session.review

    def ready() -> bool:
        suggestion = review.suggestion
        return suggestion is not None and review.ahead.draft_of(suggestion.case_id) is not None

    qtbot.waitUntil(
        lambda: ready() and not dock.session.cohort.summaries.state.busy, timeout=60_000
    )
    person.settle()
    dock.tabs.setCurrentWidget(dock.review)
    person.click(person.tab.open_next)
    panel, editor = person.tab.draft, person.review.open_case.editor
    assert editor.origin.draft.startswith("case:")
    assert editor.origin.draft.endswith("+round:0")
    assert panel.draft == editor.origin.draft
    expected = "propagated from 5 labelled cases, averaged with the teacher's of round 0."
    assert panel.began.text() == f"Your label began from: {expected}"
    # the teacher's own is one click away
    panel.choose("round:0")
    person.click(panel.begin)
    assert editor.origin.draft == "round:0"
    get_plugin_settings(PLUGIN).work.ahead = 0
    assert dock.session.review.ahead.cases == 0
