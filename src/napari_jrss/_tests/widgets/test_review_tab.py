"""Reviewing as a person does it: real clicks, strokes and keys in a real window."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Labels
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QEvent, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication, QWidget

from napari_jrss._tests.session.phantoms import give_teacher, make_project
from napari_jrss.engine.events import Event, StageStarted
from napari_jrss.project.ledger import Status
from napari_jrss.project.project import Project
from napari_jrss.session.review import Leave
from napari_jrss.widgets import review_tab
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.review_layers import ABOVE, IMAGE, LABEL, PSEUDO, UNCERTAINTY
from napari_jrss.widgets.review_tab import ReviewTab

CONTROL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


@pytest.fixture(scope="module")
def project_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project with a teacher: N = 5."""
    path = make_project(tmp_path_factory.mktemp("review"))
    with Project.open(path) as project:
        give_teacher(project)
    return path


@pytest.fixture
def path(project_once: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return shutil.copytree(project_once, tmp_path / "brain.jrss")


class Person:
    """Uses the dock by what is on the screen."""

    def __init__(self, dock: MainWidget, qtbot: QtBot) -> None:
        self.dock, self.qtbot = dock, qtbot
        self.session, self.review = dock.session, dock.session.review
        self.tab: ReviewTab = dock.review
        self.viewer: Any = self.tab._viewer
        self.said: list[str] = []
        self.session.notified.connect(self.said.append)

    def settle(self) -> None:
        """Wait until the desk is empty and the window has shown what came of it."""
        self.qtbot.waitUntil(lambda: not self.review.desk.busy, timeout=10_000)
        self.qtbot.wait(150)  # the numbers are redrawn ten times a second

    def open(self, number: int = 0) -> str:
        """Open one of the unlabelled cases."""
        case_id = self.session.open_project.snapshot().unlabelled[number]
        self.review.open(case_id)
        self.settle()
        assert self.review.on_table.case_id == case_id
        return case_id

    def click(self, widget: Any) -> None:
        assert widget.isEnabled()
        self.qtbot.mouseClick(widget, Qt.MouseButton.LeftButton)
        self.settle()

    def press(self, key: Any, modifier: Any = Qt.KeyboardModifier.NoModifier) -> None:
        self.qtbot.keyClick(self.canvas, key, modifier)
        self.settle()

    @property
    def canvas(self) -> Any:
        (found,) = (
            widget
            for widget in self.dock.window().findChildren(QWidget)
            if type(widget).__name__.startswith("CanvasBackend")
        )
        return found

    @property
    def layer(self) -> Labels:
        label = self.tab.layers.label
        assert label is not None
        return label

    @property
    def label(self) -> np.ndarray:
        return self.review.on_table.editor.label

    def stroke(self, index: int, offset: int = 0) -> None:
        """Drag the brush over the middle of the canvas."""
        self.layer.mode = "paint"
        self.layer.selected_label = index
        self.layer.brush_size = 3
        middle = QPointF(self.canvas.rect().center())
        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        path = [middle + QPointF(d + offset, d) for d in (-40, -20, 0, 20, 40)]
        # QTest's moves hold no button down, so they wouldn't drag.
        self._mouse(QEvent.Type.MouseMove, path[0], none, none)
        self._mouse(QEvent.Type.MouseButtonPress, path[0], left, left)
        for place in path[1:]:
            self._mouse(QEvent.Type.MouseMove, place, none, left)
        self._mouse(QEvent.Type.MouseButtonRelease, path[-1], left, none)
        self.settle()

    def _mouse(self, kind: Any, place: QPointF, button: Any, buttons: Any) -> None:
        everywhere = QPointF(self.canvas.mapToGlobal(place.toPoint()))
        modifier = Qt.KeyboardModifier.NoModifier
        event = QMouseEvent(kind, place, everywhere, button, buttons, modifier)
        QApplication.sendEvent(self.canvas, event)
        self.qtbot.wait(20)

    @property
    def z(self) -> int:
        """The slice that is looked at."""
        return int(self.viewer.dims.current_step[0])

    def shown(self) -> np.ndarray:
        """The label as the layer shows it in this slice."""
        rows, columns = self.label.shape[1:]
        return np.array(
            [[self.layer.get_value((self.z, y, x)) for x in range(columns)] for y in range(rows)]
        )

    def names(self) -> list[str]:
        return [layer.name for layer in self.viewer.layers]


@pytest.fixture
def person(dock: MainWidget, qtbot: QtBot, path: Path) -> Iterator[Person]:
    dock.session.author = "anna"
    person = Person(dock, qtbot)
    dock.session.open(path)
    person.settle()
    yield person
    person.review.ask = None


def test_open_paint_accept_and_n_grows_while_a_round_runs(person: Person) -> None:
    session, project = person.session, person.session.open_project
    stop = threading.Event()

    def fake_round(cancel: threading.Event) -> Iterator[Event]:
        yield StageStarted(stage="screening", steps=1)
        stop.wait(60)

    session.training.start(fake_round)
    try:
        case_id = person.open()
        assert person.dock.tabs.currentWidget() is person.tab
        assert "N = 5" in person.dock._heading.text()
        proposed = person.label.copy()
        person.stroke(2)
        changed = int(np.count_nonzero(person.label != proposed))
        assert changed > 0
        assert set(np.unique(person.label[person.label != proposed])) == {2}
        assert f"{changed:,} voxels differ" in person.tab.status.text()
        painted = person.label.copy()
        person.click(person.tab.accept)
        assert "N = 6" in person.dock._heading.text()
        assert session.training.state.busy
        np.testing.assert_array_equal(project.label(case_id), painted)
        version = project.label_versions(case_id)[-1]
        assert (version.status, version.voxels_changed) == (Status.CORRECTED, changed)
        assert person.tab.suggestion.text().startswith("Next: ")
        assert case_id not in person.tab.suggestion.text()
    finally:
        stop.set()
        assert session.training.wait(5)


def test_the_layers_lie_in_the_world_as_the_scan_does(person: Person) -> None:
    case_id = person.open()
    kinds = [case_id, PSEUDO, ABOVE, "confidence", UNCERTAINTY, LABEL]
    assert person.names() == kinds
    spacing = person.review.on_table.spacing_mm
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
    person.click(person.tab.tools.buttons["Undo"])
    person.click(person.tab.tools.buttons["Undo"])
    np.testing.assert_array_equal(person.label, start)
    # What the layer shows is what the editor holds.
    assert person.layer.data is person.label
    np.testing.assert_array_equal(person.shown(), person.label[person.z])


def test_undo_never_reaches_into_the_next_case(person: Person) -> None:
    person.review.ask = lambda case: Leave.KEEP
    person.open(0)
    person.stroke(2)
    person.open(1)
    fresh = person.label.copy()
    person.press(Qt.Key.Key_Z, CONTROL)
    person.layer.undo()  # napari's own
    np.testing.assert_array_equal(person.label, fresh)
    assert not person.review.unsaved


def test_a_case_is_not_left_without_being_asked(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = person.open(0)
    person.stroke(2)
    mine = person.label.copy()
    answers = iter([None, Leave.KEEP])
    monkeypatch.setattr(review_tab, "ask_leave", lambda parent, case: next(answers))
    second = person.session.open_project.snapshot().unlabelled[1]
    person.review.open(second)
    person.settle()
    assert person.review.on_table.case_id == first
    person.review.open(second)
    person.settle()
    assert person.review.on_table.case_id == second
    person.review.open(first)
    person.settle()
    np.testing.assert_array_equal(person.label, mine)
    assert "are back" in person.tab.notice.text()


def test_corrections_of_a_closed_window_are_offered(person: Person, path: Path) -> None:
    case_id = person.open()
    person.stroke(2)
    mine = person.label.copy()
    person.session.close()
    person.session.open(path)
    person.settle()
    assert person.tab.unfinished.isVisibleTo(person.tab)
    assert case_id in person.tab.unfinished.cases.currentText()
    person.click(person.tab.unfinished.go_on)
    assert person.review.on_table.case_id == case_id
    np.testing.assert_array_equal(person.label, mine)


def test_tau_shows_at_once_what_would_enter_training(person: Person) -> None:
    person.open()
    person.tab.proposal.slider.setValue(900)
    person.settle()
    case = person.review.on_table
    assert case.screened is not None
    assert case.screened.tau == 0.9
    assert person.tab.proposal.words.text() == case.screened.words + "."
    layer = person.tab.layers.layer(ABOVE)
    assert layer.visible
    assert case.prediction is not None
    kept = case.prediction.confidence.astype(float) > 0.9
    assert set(np.unique(layer.data[~kept])) == {255}


def test_an_overlay_is_ticked_wherever_it_was_shown(person: Person) -> None:
    person.open()
    box = person.tab.proposal.boxes[UNCERTAINTY]
    assert not box.isChecked()
    person.tab.layers.layer(UNCERTAINTY).visible = True
    assert box.isChecked()
    box.click()
    assert not person.tab.layers.layer(UNCERTAINTY).visible


def test_the_next_uncertain_region_is_looked_at(person: Person) -> None:
    person.open()
    person.press(Qt.Key.Key_U)
    region = person.review.proposal.region
    assert region is not None
    assert int(person.viewer.dims.current_step[0]) == region.at[0]
    assert any("Uncertain region 1 of" in line for line in person.said)


def test_an_accepted_structure_stays_under_the_brush(person: Person) -> None:
    person.open()
    person.label[:] = 1  # whatever the brush will hit
    person.tab._painted()
    before = person.label.copy()
    box = person.tab.table.cellWidget(0, 3)
    box.setChecked(True)
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


def test_the_name_is_asked_once_before_the_first_accept(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    person.session.author = ""
    kept: list[str] = []
    asked = iter(["", "berta"])
    monkeypatch.setattr(review_tab, "known_author", lambda: "")
    monkeypatch.setattr(review_tab, "remember_author", kept.append)
    monkeypatch.setattr(review_tab, "ask_name", lambda parent: next(asked))
    case_id = person.open()
    person.click(person.tab.accept)
    versions = len(person.session.open_project.label_versions(case_id))
    person.click(person.tab.accept)
    added = person.session.open_project.label_versions(case_id)[versions:]
    assert [version.author for version in added] == ["berta"]
    assert kept == ["berta"]


def test_a_read_only_project_says_so(dock: MainWidget, qtbot: QtBot, project_once: Path) -> None:
    dock.session.open(project_once, read_only=True)
    person = Person(dock, qtbot)
    person.open()
    assert "read-only" in person.tab.notice.text()
    assert not person.tab.accept.isEnabled()
    assert not person.layer.editable


def test_skip_asks_why_and_says_what_is_next(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review_tab, "ask_reason", lambda *arguments: "motion")
    case_id = person.open()
    person.click(person.tab.skip)
    assert person.session.open_project.history(case_id)[-1].detail == "motion"
    person.click(person.tab.open_next)
    assert person.review.on_table.case_id != case_id
