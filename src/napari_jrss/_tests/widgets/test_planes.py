"""Three linked planes: each shows the case and takes strokes, keys and tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QWidget

from napari_jrss._tests.widgets.person import Person
from napari_jrss.widgets.main_widget import MainWidget

pytestmark = [
    pytest.mark.slow,
    # The other plugin's own; napari tells it early.
    pytest.mark.filterwarnings("ignore:Private attribute access:FutureWarning"),
]


class PersonWithPlanes(Person):
    """Uses one of the three planes."""

    def __init__(self, dock: MainWidget, qtbot: QtBot) -> None:
        super().__init__(dock, qtbot)
        self.plane: int | None = None  # None: the window's own

    @property
    def views(self) -> list[Any]:
        return self.tab.planes.views

    @property
    def canvas(self) -> Any:
        planes = self.tab.planes
        widgets = planes._widgets if planes.views else ()
        others = [each.qt_viewer.canvas.native for each in widgets]
        if self.plane is not None:
            return others[self.plane]
        (own,) = (
            widget
            for widget in self.dock.window().findChildren(QWidget)
            if type(widget).__name__.startswith("CanvasBackend") and widget not in others
        )
        return own


@pytest.fixture
def person(dock: MainWidget, qtbot: QtBot, taught: Path) -> PersonWithPlanes:
    person = PersonWithPlanes(dock, qtbot)
    person.session.open(taught)
    person.open()
    person.tab.view.planes.click()
    person.settle()
    return person


def test_strokes_in_the_other_planes_are_corrections_like_any(person: PersonWithPlanes) -> None:
    sagittal, coronal = person.views
    assert tuple(sagittal.dims.order) == (2, 0, 1)
    assert tuple(coronal.dims.order) == (1, 0, 2)
    texts = [letters.text for letters in person.tab.planes._letters]
    assert texts == ["ASPI", "RSLI"]  # from the left clockwise: the head is up
    for view in (sagittal, coronal):
        assert [layer.name for layer in view.layers] == person.names()
        assert view.layers["label"].data is person.label

    before, editor = person.label.copy(), person.review.open_case.editor
    for person.plane, across in enumerate((2, 1)):
        person.stroke(1)
        changed = np.argwhere(person.label != before)
        assert len(changed) > 0
        assert len(np.unique(changed[:, across])) == 1  # on one slice of that plane
        assert (person.label[tuple(changed.T)] == 1).all()
        assert editor.voxels_changed == len(changed)
        assert editor.undo_name == "paint"
        assert_shown(person)
        person.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
        assert np.array_equal(person.label, before)
        assert editor.voxels_changed == 0
        assert_shown(person)


def test_the_planes_keep_locks_follow_to_the_next_case_and_go_again(
    person: PersonWithPlanes,
) -> None:
    person.review.accept_structure(2)
    before = person.label.copy()
    person.plane = 1
    person.stroke(2)
    assert np.array_equal(person.label, before)
    assert any("accepted structure" in line for line in person.said)
    assert_shown(person)

    person.open(1)
    for view in person.views:
        assert view.layers["label"].data is person.label
        assert tuple(view.layers["label"].scale) == person.review.open_case.spacing_mm
    person.plane = None
    person.press(Qt.Key.Key_P, Qt.KeyboardModifier.ShiftModifier)
    assert person.views == []
    assert not person.tab.view.planes.isChecked()
    before = person.label.copy()
    person.stroke(1)
    assert (person.label != before).any()


def assert_shown(person: PersonWithPlanes) -> None:
    """Every plane shows the label as it is now."""
    for layer in (person.layer, *(view.layers["label"] for view in person.views)):
        (axis,) = layer._slice_input.not_displayed
        step = int(person.viewer.dims.current_step[axis])
        assert np.array_equal(layer._slice.image.raw, person.label.take(step, axis))
