"""Reviewing as a person does it: real clicks, strokes and keys in a real window."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt
from qtpy.QtGui import QIcon
from qtpy.QtWidgets import QTableWidget

from napari_jrss._tests.widgets.dialogs import answering, enter, pick, press, write
from napari_jrss._tests.widgets.person import Person
from napari_jrss.app.author import known_author
from napari_jrss.app.review.open_case import StructureRow
from napari_jrss.project.records import Status
from napari_jrss.training.events import Event, StageStarted
from napari_jrss.widgets.layers.review import ABOVE, IMAGE, LABEL, PSEUDO, UNCERTAINTY
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.tables.structures import ACCEPTED, NAME, StructureTable

CONTROL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


@pytest.fixture
def person(dock: MainWidget, qtbot: QtBot, taught: Path) -> Person:
    dock.session.workspace.author = "anna"
    person = Person(dock, qtbot)
    dock.session.open(taught)
    person.settle()
    return person


def test_open_paint_accept_and_n_grows_while_a_round_runs(person: Person) -> None:
    session, project = person.session, person.session.workspace.open_project
    stop = threading.Event()

    def fake_round(cancel: threading.Event) -> Iterator[Event]:
        yield StageStarted(stage="screening", steps=1)
        stop.wait(60)

    session.workspace.training.start(fake_round)
    try:
        case_id = person.open()
        assert person.dock.tabs.currentWidget() is person.tab
        assert "5 labelled" in person.dock._heading.text()
        proposed = person.label.copy()
        person.stroke(2)
        changed = int(np.count_nonzero(person.label != proposed))
        assert changed > 0
        assert set(np.unique(person.label[person.label != proposed])) == {2}
        assert f"{changed:,} voxels differ" in person.tab.status.text()
        painted = person.label.copy()
        person.click(person.tab.accept)
        assert "6 labelled" in person.dock._heading.text()
        assert session.workspace.training.state.busy
        np.testing.assert_array_equal(project.label(case_id), painted)
        version = project.label_versions(case_id)[-1]
        assert (version.status, version.voxels_changed) == (Status.CORRECTED, changed)
        assert person.tab.suggestion.text().startswith("To label next: ")
        assert case_id not in person.tab.suggestion.text()
    finally:
        stop.set()
        assert session.workspace.training.wait(5)


def test_the_layers_lie_in_the_world_as_the_scan_does(person: Person) -> None:
    case_id = person.open()
    kinds = [case_id, PSEUDO, "confidence", LABEL, UNCERTAINTY, ABOVE]
    assert person.names() == kinds
    spacing = person.review.open_case.spacing_mm
    for layer in person.viewer.layers:
        np.testing.assert_allclose(layer.scale, spacing)
        assert layer.axis_labels == ("z", "y", "x")
    assert person.viewer.layers.selection.active == person.layer
    assert person.viewer.dims.order == (0, 1, 2)
    visible = [layer.name for layer in person.viewer.layers if layer.visible]
    assert visible == [case_id, LABEL]
    assert person.layer.colormap.map(1)[3] == 1
    assert person.layer.colormap.map(0)[3] == 0


def test_keys_undo_strokes_and_tools_alike(person: Person) -> None:
    person.open()
    start = person.label.copy()
    person.stroke(1)
    stroke = person.label.copy()
    person.stroke(2, offset=20)
    both = person.label.copy()
    person.tab.table.choose(2)
    person.click(person.tab.tools.buttons["Largest part"])
    tooled = person.label.copy()
    person.click(person.tab.tools.buttons["Revert"])
    np.testing.assert_array_equal(person.label, start)
    person.press(Qt.Key.Key_Z, CONTROL)
    np.testing.assert_array_equal(person.label, tooled)
    if not np.array_equal(tooled, both):
        person.press(Qt.Key.Key_Z, CONTROL)
    np.testing.assert_array_equal(person.label, both)
    person.press(Qt.Key.Key_Z, CONTROL)
    np.testing.assert_array_equal(person.label, stroke)
    person.press(Qt.Key.Key_Z, CONTROL | SHIFT)
    np.testing.assert_array_equal(person.label, both)
    person.click(person.tab.steps.buttons["Undo"])
    person.click(person.tab.steps.buttons["Undo"])
    np.testing.assert_array_equal(person.label, start)
    # What the layer shows is what the editor holds.
    assert person.layer.data is person.label
    np.testing.assert_array_equal(person.shown(), person.label[person.z])


def test_undo_never_reaches_into_the_next_case(person: Person) -> None:
    person.open(0)
    person.stroke(2)
    with answering(press("Keep for later")):
        person.open(1)
    fresh = person.label.copy()
    person.press(Qt.Key.Key_Z, CONTROL)
    person.layer.undo()  # napari's own
    np.testing.assert_array_equal(person.label, fresh)
    assert not person.review.unsaved


def test_a_case_is_not_left_without_being_asked(person: Person) -> None:
    first = person.open(0)
    person.stroke(2)
    mine = person.label.copy()
    second = person.session.workspace.open_project.snapshot().unlabelled[1]
    with answering(press("Stay here")) as asked:
        person.review.open(second)
    changed = person.review.open_case.editor.voxels_changed
    assert asked == [f"{first} has {changed:,} corrected voxels."]
    person.settle()
    assert person.review.open_case.case_id == first
    with answering(press("Keep for later")):
        person.review.open(second)
    person.settle()
    assert person.review.open_case.case_id == second
    person.review.open(first)
    person.settle()
    np.testing.assert_array_equal(person.label, mine)
    assert "are back" in person.tab.notice.text()
    with answering(press("Discard")):
        person.review.open(second)
    person.settle()
    person.review.open(first)
    person.settle()
    assert person.review.open_case.editor.voxels_changed == 0
    person.stroke(2)
    mine = person.label.copy()
    with answering(press("Accept case")):
        person.review.open(second)
    person.settle()
    np.testing.assert_array_equal(person.session.workspace.open_project.label(first), mine)


def test_corrections_of_a_closed_window_are_offered(person: Person, taught: Path) -> None:
    case_id = person.open()
    person.stroke(2)
    mine = person.label.copy()
    person.session.close()
    person.session.open(taught)
    person.settle()
    assert person.tab.unfinished.isVisibleTo(person.tab)
    assert case_id in person.tab.unfinished.cases.currentText()
    person.click(person.tab.unfinished.go_on)
    assert person.review.open_case.case_id == case_id
    np.testing.assert_array_equal(person.label, mine)


def test_tau_shows_at_once_what_would_enter_training(person: Person) -> None:
    person.open()
    person.tab.prediction.slider.setValue(900)
    person.settle()
    case = person.review.open_case
    assert case.screened is not None
    assert case.screened.tau == 0.9
    assert person.tab.prediction.words.text() == case.screened.words + "."
    layer = person.tab.layers.layer(ABOVE)
    assert layer.visible
    assert case.prediction is not None
    kept = case.prediction.confidence.astype(float) > 0.9
    assert set(np.unique(layer.data[~kept])) == {255}


def test_an_overlay_is_ticked_wherever_it_was_shown(person: Person) -> None:
    person.open()
    box = person.tab.prediction.boxes[UNCERTAINTY]
    assert not box.isChecked()
    person.tab.layers.layer(UNCERTAINTY).visible = True
    assert box.isChecked()
    box.click()
    assert not person.tab.layers.layer(UNCERTAINTY).visible


def test_the_next_uncertain_region_is_looked_at(person: Person) -> None:
    person.open()
    person.press(Qt.Key.Key_U)
    region = person.review.prediction.region
    assert region is not None
    assert int(person.viewer.dims.current_step[0]) == region.at[0]
    assert any("Uncertain region 1 of" in line for line in person.said)


def test_an_accepted_structure_stays_under_the_brush(person: Person) -> None:
    person.open()
    person.label[:] = 1  # whatever the brush will hit
    person.tab._painted()
    before = person.label.copy()
    person.tab.table.item(0, ACCEPTED).setCheckState(Qt.CheckState.Checked)
    person.settle()
    person.stroke(2)
    np.testing.assert_array_equal(person.label == 1, before == 1)
    assert any("stays as it is" in line for line in person.said)
    np.testing.assert_array_equal(person.shown(), person.label[person.z])


def test_layers_that_were_deleted_renamed_or_moved_do_no_harm(person: Person) -> None:
    person.open(0)
    person.viewer.layers.remove(person.tab.layers.layer(UNCERTAINTY))
    person.tab.layers.layer(IMAGE).name = "my scan"
    person.viewer.layers.move(0, 3)
    person.tab.layers.layer(PSEUDO).visible = True
    person.stroke(2)
    person.viewer.layers.remove(person.layer)
    assert person.review.unsaved
    person.review.tools.undo()
    person.settle()
    order = [name for name in person.names() if name not in (LABEL, UNCERTAINTY)]
    person.open(1)
    assert [name for name in person.names() if name not in (LABEL, UNCERTAINTY)] == order
    assert {LABEL, UNCERTAINTY} <= set(person.names())
    assert person.tab.layers.layer(PSEUDO).visible
    person.viewer.add_image(np.zeros((4, 4, 4)), name="somebody else's")
    person.review.close_case()
    person.settle()
    assert person.names() == ["somebody else's"]


def test_the_name_is_asked_once_before_the_first_accept(person: Person) -> None:
    person.session.workspace.author = ""
    case_id = person.open()
    versions = len(person.session.workspace.open_project.label_versions(case_id))
    with answering(write("berta", button="Cancel")):
        person.click(person.tab.accept)
    assert len(person.session.workspace.open_project.label_versions(case_id)) == versions
    with answering(write("  berta ")) as asked:
        person.click(person.tab.accept)
    assert "asked only once" in asked[0]
    added = person.session.workspace.open_project.label_versions(case_id)[versions:]
    assert [version.author for version in added] == ["berta"]
    assert known_author() == "berta"
    person.open(0)
    person.click(person.tab.accept)  # asks no more


def test_a_read_only_project_says_so(dock: MainWidget, qtbot: QtBot, taught: Path) -> None:
    dock.session.open(taught, read_only=True)
    person = Person(dock, qtbot)
    person.open()
    assert "read-only" in person.tab.notice.text()
    assert not person.tab.accept.isEnabled()
    assert not person.layer.editable


def test_skip_and_reject_ask_why_and_say_what_is_next(person: Person) -> None:
    case_id = person.open()
    with answering(write("motion", button="Cancel")):
        person.click(person.tab.skip)
    decisions = len(person.session.workspace.open_project.history(case_id))
    with answering(write("it moved")) as asked:
        person.click(person.tab.skip)
    assert asked == ["Why is the case left for later?"]
    history = person.session.workspace.open_project.history(case_id)
    assert len(history) == decisions + 1
    assert (history[-1].kind, history[-1].detail) == ("skipped", "it moved")
    person.click(person.tab.open_next)
    following = person.review.open_case.case_id
    assert following != case_id
    with answering(write("mixed up")):
        person.click(person.tab.reject)
    assert person.session.workspace.open_project.history(following)[-1].detail == "mixed up"
    assert person.session.workspace.open_project.case(following).status is Status.REJECTED


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (enter("motion"), "motion"),
        (enter("Motion or artefacts"), "Motion or artefacts"),
        (write("too"), "too"),
        (pick(1), "anatomy unlike the others"),
    ],
)
def test_a_reason_is_recorded_as_it_was_typed(
    person: Person, answer: Callable[[Any], str], reason: str
) -> None:
    case_id = person.open()
    with answering(answer):
        person.click(person.tab.skip)
    assert person.session.workspace.open_project.history(case_id)[-1].detail == reason


def test_a_rejection_is_recorded_as_it_was_typed(person: Person) -> None:
    case_id = person.open()
    with answering(enter("the")):
        person.click(person.tab.reject)
    assert person.session.workspace.open_project.history(case_id)[-1].detail == "the"


def test_the_table_wants_no_more_room_than_its_rows(qtbot: QtBot) -> None:
    table = StructureTable()
    qtbot.addWidget(table)
    usual = QTableWidget().sizeHint().height()
    heights = []
    for count in (2, 4, 30):
        rows = [
            StructureRow(i, f"s{i}", "#ff0000", 1.0, None, None, False) for i in range(1, count)
        ]
        table.show_rows(rows, read_only=False)
        heights.append(table.sizeHint().height())
    assert heights[0] < heights[1] < heights[2] == usual


def test_the_chosen_structures_swatch_keeps_its_colour(person: Person) -> None:
    person.open()
    table = person.tab.table
    chosen = table.item(table.currentRow(), NAME).icon()
    swatch = chosen.pixmap(12, 12, QIcon.Mode.Selected).toImage().pixelColor(6, 6).name()
    assert swatch == person.review.open_case.structures()[table.currentRow()].colour.lower()


def test_a_draft_takes_the_place_of_corrections_only_if_the_person_says_so(person: Person) -> None:
    case_id = person.open()
    person.stroke(2)
    mine = person.label.copy()
    changed = person.review.open_case.editor.voxels_changed
    sources = person.tab.draft.sources
    sources.setCurrentIndex(sources.findData("blank"))
    with answering(press("Stay here")) as asked:
        person.click(person.tab.draft.begin)
    assert asked == [f"{case_id} has {changed:,} corrected voxels."]
    np.testing.assert_array_equal(person.label, mine)
    assert person.review.unsaved
    with answering(press("Replace them")):
        person.click(person.tab.draft.begin)
    person.settle()
    assert not person.label.any()
    person.click(person.tab.draft.begin)  # nothing is lost by this, so nothing is asked
    person.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    person.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(person.label, mine)
    assert person.review.unsaved


def test_an_accepted_version_is_a_source_at_once(person: Person) -> None:
    case_id = person.open()
    person.stroke(2)
    person.click(person.tab.accept)
    person.review.open(case_id)
    person.settle()
    version = person.review.open_case.versions[-1].version
    assert person.tab.draft.sources.findData(f"version:{version}") >= 0
    assert "are back" not in person.tab.notice.text()


def test_a_structure_that_there_is_not_is_not_painted_and_that_is_said(person: Person) -> None:
    person.open()
    before = person.label.copy()
    person.stroke(9)
    np.testing.assert_array_equal(person.label, before)
    assert person.said[-1] == "There is no such structure; choose one of the 2 in the table"


def test_new_names_and_colours_reach_the_case_on_the_table(person: Person) -> None:
    person.open()
    person.session.cohort.rename(1, "first")
    person.session.cohort.recolour(1, "#112233")
    person.settle()
    assert person.layer.features["structure"][1] == "first"
    red, green, blue, _ = person.layer.colormap.color_dict[1]
    assert (red, green, blue) == pytest.approx((0x11 / 255, 0x22 / 255, 0x33 / 255), abs=0.01)
    names = [person.tab.table.item(row, 0).text() for row in range(person.tab.table.rowCount())]
    assert any("first" in name for name in names)


def test_corrections_that_wait_are_listed_while_they_do(person: Person) -> None:
    first = person.open(0)
    person.stroke(2)
    second = person.session.workspace.open_project.snapshot().unlabelled[1]
    with answering(press("Keep for later")):
        person.review.open(second)
    person.settle()
    assert [entry.case_id for entry in person.review.unfinished] == [first]
    assert not person.tab.unfinished.isHidden()
    person.review.open(first)
    person.settle()
    assert person.review.unfinished == []
    person.click(person.tab.accept)
    assert person.review.unfinished == []
    assert person.tab.unfinished.isHidden()


def test_where_every_case_has_a_label_suggest_says_so(person: Person) -> None:
    for case_id in person.session.workspace.open_project.snapshot().unlabelled:
        person.review.open(case_id)
        person.settle()
        person.click(person.tab.accept)
    person.settle()
    assert person.tab.open_next.text() == "Suggest"
    person.click(person.tab.open_next)
    assert person.said[-1] == "Every other training case has a label"
