"""Tools that repair a region, by mouse, wheel and keys in a real window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from napari_jrss._tests.widgets.person import Person
from napari_jrss.widgets import keys
from napari_jrss.widgets.layers.region import REGION, REGION_ADD, REGION_REMOVE
from napari_jrss.widgets.main_widget import MainWidget

CONTROL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


@pytest.fixture
def person(dock: MainWidget, qtbot: QtBot, taught: Path) -> Person:
    dock.session.workspace.author = "anna"
    person = Person(dock, qtbot)
    dock.session.open(taught)
    person.settle()
    person.open()
    person.tab.table.choose(1)
    return person


def test_a_region_is_drawn_swept_by_the_wheel_and_taken_by_enter(person: Person) -> None:
    start, brush = person.label.copy(), person.layer.brush_size
    panel, tool = person.tab.mouse.region, person.review.tools.region
    assert panel.isHidden()
    person.click(person.tab.brush.modes[REGION_ADD])
    assert person.tab.brush.modes[REGION_ADD].isChecked()
    assert not person.tab.brush.modes["paint"].isChecked()
    assert person.layer.brush_size == 1
    person.drag()
    assert tool.preview is not None
    np.testing.assert_array_equal(person.label, start)  # only shown
    shown = person.tab.layers.layer(REGION)
    assert shown.visible
    mask = tool.preview.mask
    np.testing.assert_array_equal(shown.data[tool.preview.region.box] > 0, mask)
    assert np.count_nonzero(shown.data) == np.count_nonzero(mask)
    np.testing.assert_allclose(shown.scale, person.review.open_case.spacing_mm)
    assert not panel.isHidden()
    assert panel.text.text().startswith("Adds ")

    assert not person.viewer.scene.camera.mouse_zoom
    person.wheel(True)
    person.wheel(True)
    person.wheel(False)
    person.press(Qt.Key.Key_Up)
    assert tool.preview.amount == 1.0
    mask = tool.preview.mask
    box = tool.preview.region.box
    person.press(Qt.Key.Key_Return)
    assert tool.preview is None
    assert not shown.visible
    assert panel.isHidden()
    changed = np.zeros(start.shape, bool)
    changed[box] = mask
    np.testing.assert_array_equal(person.label != start, changed)
    assert (person.label[changed] == 1).all()
    np.testing.assert_array_equal(person.shown(), person.label[person.z])

    assert person.viewer.scene.camera.mouse_zoom  # as the wheel does otherwise
    person.press(Qt.Key.Key_Z, CONTROL)
    np.testing.assert_array_equal(person.label, start)
    person.press(Qt.Key.Key_R)  # back to the brush
    assert person.tab.brush.modes["paint"].isChecked()
    assert person.layer.brush_size == brush


def test_a_region_is_removed_dropped_and_undone(person: Person) -> None:
    start, tool = person.label.copy(), person.review.tools.region
    person.tab.table.choose(2)  # what the slice in the middle shows
    person.press(Qt.Key.Key_R, SHIFT)
    assert person.tab.brush.modes[REGION_REMOVE].isChecked()
    person.layer.brush_size = 4
    for end in (Qt.Key.Key_Escape, Qt.Key.Key_Z):
        person.drag()
        assert tool.preview is not None
        assert person.tab.mouse.region.text.text().startswith("Removes ")
        person.press(end, CONTROL if end == Qt.Key.Key_Z else Qt.KeyboardModifier.NoModifier)
        assert tool.preview is None
        np.testing.assert_array_equal(person.label, start)
    person.drag()
    person.click(person.tab.mouse.region.buttons[keys.MORE])
    person.click(person.tab.mouse.region.buttons[keys.TAKE])
    lost = person.label != start
    assert lost.any()
    assert (start[lost] == 2).all()
    assert (person.label[lost] != 2).all()


def test_the_next_stroke_and_accept_take_what_is_shown(person: Person) -> None:
    start, tool = person.label.copy(), person.review.tools.region
    person.tab.table.choose(2)  # what the slice in the middle shows
    person.press(Qt.Key.Key_R, SHIFT)
    person.drag()
    first = tool.preview
    assert first is not None
    person.drag(offset=30)
    assert tool.preview is not first
    assert (person.label != start).any()
    case_id = person.review.open_case.case_id
    person.click(person.tab.accept)
    project = person.session.workspace.open_project
    saved = project.scan_label(case_id)
    assert (saved != start).any()
    assert person.review.open_case.case_id != case_id
    assert tool.preview is None
    assert person.tab.mouse.region.isHidden()


def test_an_accepted_structure_takes_no_region(person: Person) -> None:
    start = person.label.copy()
    person.review.accept_structure(1)
    person.press(Qt.Key.Key_R)
    person.drag()
    assert any("is accepted" in line for line in person.said)
    np.testing.assert_array_equal(person.label, start)
    np.testing.assert_array_equal(person.shown(), person.label[person.z])


def point(person: Person) -> tuple[int, int, int]:
    """Put the mouse in the middle of the canvas; the voxel there."""
    person.point()
    at = person.tab.mouse.under_mouse()
    return at


def test_the_brush_keeps_to_intensities_and_to_one_structure(person: Person) -> None:
    case, menu = person.review.open_case, person.tab.brush.menu
    start, at = person.label.copy(), point(person)
    person.press(Qt.Key.Key_K)
    limits = person.review.tools.limits
    assert limits.intensities is not None
    low, high = limits.intensities
    assert low < case.image[at] < high
    assert menu.text() == "Limited"
    assert menu.some.isChecked()
    assert menu.low.value() == pytest.approx(low, abs=0.1)
    menu.some.setChecked(False)
    assert person.review.tools.limits.intensities is None

    menu.over.setCurrentIndex(menu.over.findData(2))
    menu.over.activated.emit(menu.over.currentIndex())
    assert person.review.tools.limits.over == 2
    person.said.clear()
    person.stroke(1)
    changed = person.label != start
    assert changed.any()
    assert (start[changed] == 2).all()
    assert person.said == []
    np.testing.assert_array_equal(person.shown(), person.label[person.z])


def test_a_ball_paints_on_several_slices_and_its_width_is_in_mm(person: Person) -> None:
    start = person.label.copy()
    person.tab.brush.menu.in_3d.setChecked(True)
    person.layer.selected_label, person.layer.brush_size = 1, 7
    person.drag()
    assert len(np.unique(np.argwhere(person.label != start)[:, 0])) > 1
    assert person.tab.brush.size.text() == "7 (7 mm)"


def test_more_tools_by_keys_and_menu(person: Person) -> None:
    start, at = person.label.copy(), point(person)
    editor, menu = person.review.open_case.editor, person.tab.mouse.more
    person.press(Qt.Key.Key_G)
    assert editor.undo_name == "grow: structure 1"
    person.press(Qt.Key.Key_Z, CONTROL)
    menu.tools["Shrink (Shift+G)"].trigger()
    person.settle()
    assert editor.undo_name == "shrink: structure 1"
    person.press(Qt.Key.Key_Z, CONTROL)
    menu.sides["left"].actions()[1].trigger()
    person.settle()
    assert editor.undo_name == "left part to structure 2: structure 1"
    assert (person.label[start == 1] == 2).any()
    person.press(Qt.Key.Key_Z, CONTROL)
    np.testing.assert_array_equal(person.label, start)

    person.stroke(1)
    assert person.label[at] != start[at]
    person.press(Qt.Key.Key_C)
    assert person.label[at] == start[at]
    assert str(editor.undo_name).startswith("take a part from teacher")
