"""Deciding between two opinions by keys and buttons, in a real window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from napari_jrss._tests.widgets.person import Person
from napari_jrss.io.predictions import Prediction
from napari_jrss.widgets.layers.review import OUTLINE
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.tabs.opinions import DISPUTE, FIRST, SECOND, SLICE


@pytest.fixture
def person(dock: MainWidget, qtbot: QtBot, taught: Path) -> Person:
    dock.session.open(taught)
    dock.session.workspace.author = "anna"
    return Person(dock, qtbot)


def test_keys_take_one_opinion_after_the_other(person: Person) -> None:
    project = person.session.workspace.open_project
    name = project.snapshot().unlabelled[0]
    files = project.require_teacher().files
    found = files.prediction(name)
    assert isinstance(found, Prediction)
    propagated = found.label.copy()
    found.label[2:4, 4:8, 4:8] = 1  # the larger dispute
    propagated[13:15, 18:21, 10:12] = 2
    files.write_prediction(name, found)
    person.open()
    case, panel = person.review.open_case, person.tab.opinions
    assert case.case_id == name
    # as Propagate leaves it
    case.drafts["case:case_01"] = case.transform.label_to_scan(propagated)
    assert panel.text.isHidden()
    assert not panel.buttons[FIRST].isEnabled()

    person.press(Qt.Key.Key_D)
    assert panel.text.text().startswith("Dispute 1 of 2, 0.06 ml: structure 1 (teacher's draft")
    assert person.tab.table.index == 1
    layer = person.tab.layers.layer(OUTLINE)
    assert layer is not None
    assert layer.visible
    assert np.count_nonzero(layer.data) == 32
    at = person.tab.layers.label.world_to_data(person.viewer.dims.point)
    assert round(at[0]) in (2, 3)

    before = person.label.copy()
    person.press(Qt.Key.Key_W)
    assert (person.label[2:4, 4:8, 4:8] == 0).all()
    assert panel.text.text().startswith("Dispute 2 of 2, 0.02 ml: background (teacher's draft")
    person.click(panel.buttons[SECOND])
    assert (person.label[13:15, 18:21, 10:12] == 2).all()
    assert panel.text.text() == "Nothing more is disputed."
    assert not panel.buttons[SECOND].isEnabled()
    for _ in range(2):
        person.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(person.label, before)

    person.open(1)
    assert panel.text.isHidden()
    assert panel.buttons[DISPUTE].isEnabled()


def test_a_key_goes_to_the_slice_that_interpolation_needs(person: Person) -> None:
    person.open()
    shown = np.flatnonzero((person.label == 1).any((1, 2)))
    person.tab.table.choose(1)
    person.press(Qt.Key.Key_I, Qt.KeyboardModifier.ShiftModifier)
    at = person.tab.layers.label.world_to_data(person.viewer.dims.point)
    assert round(at[0]) == (shown[0] + shown[-1]) // 2
    assert person.tab.opinions.buttons[SLICE].isEnabled()
