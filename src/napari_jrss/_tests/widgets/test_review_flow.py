"""What Review tells and asks from case to case, and what is seen on the canvas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from napari.layers import Labels
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QLabel

from napari_jrss._tests.app.phantoms import give_teacher, make_project
from napari_jrss._tests.widgets.dialogs import answering, press
from napari_jrss._tests.widgets.person import Person
from napari_jrss.app.next_step import Step
from napari_jrss.app.review.open_case import StructureRow
from napari_jrss.project.project import Project
from napari_jrss.widgets.dialogs.keys import KeySheet
from napari_jrss.widgets.layers.orientation import letters
from napari_jrss.widgets.layers.review import ABOVE, IMAGE, OUTLINE, PSEUDO
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.tables.structures import ALL, EMPTY, HERE, HERE_FIRST, NAME, StructurePanel


@pytest.fixture
def person(dock: MainWidget, qtbot: QtBot, taught: Path) -> Person:
    dock.session.open(taught)
    dock.session.workspace.author = "anna"
    return Person(dock, qtbot)


def test_accept_goes_on_to_the_case_that_is_suggested(person: Person) -> None:
    first = person.open()
    person.stroke(2)
    person.click(person.tab.accept)
    assert person.review.open_case.case_id != first
    assert person.review.open_case.awaited
    assert any(f"{first}: saved as label" in line for line in person.said)


def test_accept_of_a_case_that_had_a_label_stays_on_it(person: Person) -> None:
    labelled = person.session.workspace.open_project.snapshot().labelled[0]
    person.review.open(labelled)
    person.settle()
    person.stroke(2)
    person.click(person.tab.accept)
    assert person.review.open_case.case_id == labelled


def test_a_structure_that_became_empty_is_asked_about(person: Person) -> None:
    case_id = person.open()
    person.label[person.label == 1] = 0
    person.tab._painted()
    versions = len(person.session.workspace.open_project.label_versions(case_id))
    with answering(press("Stay here")) as asked:
        person.click(person.tab.accept)
    assert asked == [f"{case_id}: 1 structure is empty."]
    assert len(person.session.workspace.open_project.label_versions(case_id)) == versions
    with answering(press("Accept all the same")):
        person.click(person.tab.accept)
    assert len(person.session.workspace.open_project.label_versions(case_id)) == versions + 1


def test_three_clicks_smooth_once(person: Person) -> None:
    person.open()
    before = person.label.copy()
    smooth = person.tab.tools.buttons["Smooth"]
    for _ in range(3):
        QTest.mouseClick(smooth, Qt.MouseButton.LeftButton)
    person.settle()
    assert not np.array_equal(person.label, before)
    assert smooth.isEnabled()
    person.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(person.label, before)


def test_the_draft_box_says_what_each_label_began_from(person: Person) -> None:
    person.open(0)
    draft = person.tab.draft
    assert draft.began.text() == "Your label began from: teacher's draft of round 0."
    draft.choose("blank")
    person.open(1)
    assert draft.draft == "round:0"


def test_a_draft_that_was_made_is_chosen_told_and_kept(person: Person) -> None:
    case_id = person.open(0)
    case = person.review.open_case
    case.drafts["case:case_01"] = np.ones_like(case.editor.label)
    person.review.prediction.draft_made.emit(case_id, "case:case_01")
    person.settle()
    assert person.tab.draft.draft == "case:case_01"
    person.open(1)
    person.open(0)
    assert person.tab.draft.sources.findData("case:case_01") >= 0


def test_an_uncertain_region_is_outlined_and_near(person: Person) -> None:
    person.open()
    camera = person.viewer.scene.camera
    camera.zoom = 0.5
    person.press(Qt.Key.Key_U)
    outline = person.tab.layers.layer(OUTLINE)
    assert outline.visible
    region = person.review.prediction.region
    assert region is not None
    assert outline.data[region.at] == 1
    assert camera.zoom > 0.5
    person.viewer.dims.ndisplay = 3
    assert not outline.visible
    person.viewer.dims.ndisplay = 2
    person.press(Qt.Key.Key_U)
    person.open(1)
    assert not outline.visible


@pytest.mark.parametrize(
    ("order", "orientation", "seen"),
    [
        ((0, 1, 2), ("down", "right"), "RLAP"),
        ((1, 0, 2), ("up", "right"), "RLSI"),
        ((2, 0, 1), ("up", "right"), "APSI"),
        ((0, 1, 2, 3), ("down", "left"), "LRAP"),
    ],
)
def test_letters_name_the_sides_of_each_view(
    order: tuple[int, ...], orientation: tuple[str, str], seen: str
) -> None:
    assert "".join(letters(order, orientation)) == seen


def test_the_canvas_says_where_right_and_front_are(person: Person) -> None:
    assert person.dock._letters.text == ""
    person.open()
    assert person.dock._letters.text == "RALP"
    person.viewer.dims.order = (1, 0, 2)
    person.settle()
    assert person.dock._letters.text == "RSLI"
    person.viewer.dims.ndisplay = 3
    assert person.dock._letters.text == ""


def test_the_status_bar_tells_the_scans_own_intensity(person: Person) -> None:
    person.open()
    image = person.tab.layers.layer(IMAGE)
    at = tuple(n // 2 for n in image.data.shape)
    told = person.layer.get_status(
        image.data_to_world(at), dims_displayed=[1, 2], view_direction=None, world=True
    )
    assert f"intensity {image.data[at]:.6g}" in told["coordinates"]
    assert "structure:" in told["coordinates"]


def test_of_many_structures_those_that_are_wanted_are_shown(
    dock: MainWidget, qtbot: QtBot, tmp_path: Path
) -> None:
    path = make_project(tmp_path, shape=(24, 24, 16), structures=10)
    with Project.open(path) as project:
        give_teacher(project)
    dock.session.open(path)
    person = Person(dock, qtbot)
    person.open()
    panel, table = person.tab.structures, person.tab.table

    def shown() -> list[str]:
        rows = (r for r in range(table.rowCount()) if not table.isRowHidden(r))
        return [table.item(r, NAME).text() for r in rows]

    QTest.keyClicks(panel.search, "struct 10")
    assert shown() == ["structure 10"]
    QTest.keyClick(panel.search, Qt.Key.Key_Return)
    person.settle()
    assert person.layer.selected_label == 10
    assert 10 in person.label[person.z]
    panel.search.clear()
    panel.kind.setCurrentText(HERE)
    assert shown() == [
        f"structure {i}" for i in sorted(set(np.unique(person.label[person.z])) - {0})
    ]
    panel.kind.setCurrentText(HERE_FIRST)
    number = 1 if person.z > person.label.shape[0] // 2 else -1
    for step in range(3):  # through slices that hold other structures
        here = [f"structure {i}" for i in sorted(set(np.unique(person.label[person.z])) - {0})]
        others = [f"structure {i}" for i in range(1, 11) if f"structure {i}" not in here]
        assert shown() == here + others, step
        person.viewer.dims.set_current_step(0, person.z - 3 * number)
        person.settle()
    panel.kind.setCurrentText(EMPTY)
    assert shown() == []
    panel.kind.setCurrentIndex(0)
    table.sortByColumn(NAME, Qt.SortOrder.DescendingOrder)
    person.settle()
    assert shown()[0] == "structure 9"
    place = table.visualItemRect(table.item(0, NAME)).center()
    QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=place)
    person.settle()
    assert person.layer.selected_label == 9
    assert 9 in person.label[person.z]
    QTest.keyClicks(panel.search, "1")
    assert shown() == ["structure 10", "structure 1"]
    table.sortByColumn(NAME, Qt.SortOrder.AscendingOrder)
    assert shown() == ["structure 1", "structure 10"]


def test_left_and_right_stand_together(qtbot: QtBot) -> None:
    names = ["Left-Caudate", "ctx-lh-insula", "brain stem", "ctx-rh-insula", "right caudate"]
    panel = StructurePanel(lambda: {5})
    qtbot.addWidget(panel)
    rows = [
        StructureRow(i, name, "#ff0000", 1.0, None, None, False) for i, name in enumerate(names, 1)
    ]
    panel.show_rows(rows, False)

    def shown() -> list[int]:
        return [names.index(panel.table.item(r, NAME).text()) + 1 for r in range(len(names))]

    assert shown() == [1, 5, 2, 4, 3]
    assert panel.table.index == 1
    panel.kind.setCurrentText(HERE_FIRST)
    assert shown() == [5, 1, 2, 4, 3]
    assert panel.table.index == 1
    panel.kind.setCurrentText(ALL)
    assert shown() == [1, 5, 2, 4, 3]


def test_only_the_label_can_be_painted(person: Person) -> None:
    person.open()
    for kind in (PSEUDO, ABOVE):
        box = person.tab.prediction.boxes[kind]
        QTest.mouseClick(box, Qt.MouseButton.LeftButton, pos=QPoint(8, box.height() // 2))
        person.settle()
        assert person.tab.layers.layer(kind).visible
    person.press(Qt.Key.Key_U)  # which outlines a region
    person.open(1)
    layers = [each for each in person.viewer.layers if isinstance(each, Labels)]
    assert {PSEUDO, ABOVE, OUTLINE} < {each.name for each in layers}
    assert [each for each in layers if each.editable] == [person.layer]
    before = person.review.open_case.prediction.label.copy()
    person.viewer.layers.selection.active = person.tab.layers.layer(PSEUDO)
    person.press(Qt.Key.Key_2)
    person.drag()
    np.testing.assert_array_equal(person.review.open_case.prediction.label, before)


def test_one_structure_alone_and_outlines_by_a_key(person: Person) -> None:
    person.open()
    person.press(Qt.Key.Key_S)
    assert person.layer.show_selected_label
    assert person.tab.view.alone.isChecked()
    person.press(Qt.Key.Key_O)
    assert person.layer.contour == 2
    person.open(1)
    assert person.layer.show_selected_label
    person.press(Qt.Key.Key_S)
    assert not person.layer.show_selected_label


def test_the_brush_is_ready_and_can_be_changed_in_the_dock(person: Person) -> None:
    person.open()
    brush = person.tab.brush
    assert person.layer.mode == "paint"
    assert brush.modes["paint"].isChecked()
    person.click(brush.modes["erase"])
    assert person.layer.mode == "erase"
    brush.size.setValue(4)
    assert person.layer.brush_size == 4
    person.layer.brush_size = 2
    assert brush.size.value() == 2
    person.open(1)
    assert person.layer.mode == "erase"


def test_a_scan_that_is_no_ct_has_no_windows_of_one(person: Person) -> None:
    person.open()
    view = person.tab.view.window
    assert [view.itemText(i) for i in range(view.count())] == ["Automatic", "Whole range"]
    person.tab.view.brightness.emit("Whole range")
    case = person.review.open_case
    assert tuple(person.tab.layers.layer(IMAGE).contrast_limits) == case.extremes


def test_the_strip_does_the_next_step(person: Person) -> None:
    strip = person.dock.steps
    assert strip.action.text() == "Correct and accept the next case (3 left)."
    person.dock.tabs.setCurrentWidget(person.dock.registration)
    QTest.mouseClick(strip.act, Qt.MouseButton.LeftButton)
    person.settle()
    assert person.dock.tabs.currentWidget() is person.tab
    assert person.review.open_case.awaited
    QTest.mouseClick(strip.buttons[Step.TRAIN], Qt.MouseButton.LeftButton)
    assert person.dock.tabs.currentWidget() is person.dock.rounds


def test_without_a_case_review_teaches_and_offers_nothing_else(person: Person) -> None:
    person.dock.tabs.setCurrentWidget(person.tab)
    assert "No case is open" in person.tab.empty.text()
    for each in (person.tab.reject, person.tab.accept, person.tab.draft):
        assert not each.isVisibleTo(person.tab)
    person.click(person.tab.open_next)
    assert person.review.open_case.awaited
    assert person.tab.accept.isVisibleTo(person.tab)


def test_without_a_teacher_nothing_of_it_can_be_pressed(
    dock: MainWidget, qtbot: QtBot, tmp_path: Path
) -> None:
    dock.session.open(make_project(tmp_path))
    person = Person(dock, qtbot)
    person.open()
    assert not person.tab.reject.isEnabled()
    assert person.tab.draft.propagate.isEnabled()  # there are labelled cases
    assert "no teacher yet" in person.tab.prediction.words.text()


def test_the_question_mark_shows_the_keys(person: Person) -> None:
    person.click(person.dock.keys)
    (sheet,) = person.dock.findChildren(KeySheet)
    texts = [label.text() for label in sheet.findChildren(QLabel)]
    assert "Accept the case" in texts
    sheet.close()


def test_a_message_goes_by_itself(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_jrss.widgets.main_widget._MESSAGE_MS", 50)
    monkeypatch.setattr("napari_jrss.widgets.main_widget._LETTER_MS", 0)
    person.session.workspace.notified.emit("something")
    person.qtbot.waitUntil(lambda: person.dock._message.text() == "something")
    person.qtbot.waitUntil(lambda: person.dock._message.isHidden())
