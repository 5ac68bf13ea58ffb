"""Prompts as a person gives them: real clicks and drags, and a server process that answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QEvent, QPointF, Qt

from napari_jrss._tests.app.phantoms import blocks, make_project
from napari_jrss._tests.widgets.person import Person
from napari_jrss.inference.prompts import ADDRESS, PromptKind
from napari_jrss.widgets.main_widget import MainWidget

pytest.importorskip("nnInteractive", reason="nninteractive-client is not installed")
LEFT, NONE = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "napari_jrss._tests.app.nninteractive", "--max-sessions", "9"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def untaught_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("untaught"))


@pytest.fixture
def person(dock: MainWidget, qtbot: QtBot, untaught_once: Path, tmp_path: Path) -> Person:
    dock.session.workspace.author = "anna"
    person = Person(dock, qtbot)
    dock.session.open(shutil.copytree(untaught_once, tmp_path / "brain.jrss"))
    person.settle()
    person.open()
    person.tab.prompts.fold.expand(animate=False)
    return person


def answered(person: Person) -> None:
    prompts = person.review.prompts
    person.qtbot.waitUntil(lambda: not prompts.queue.busy and not prompts.working, timeout=20_000)
    person.settle()


def connect(person: Person, address: str) -> Any:
    panel = person.tab.prompts
    panel.address.setText(address)
    person.click(panel.connect_)
    answered(person)
    return panel


def at(person: Person, voxel: tuple[float, float, float]) -> QPointF:
    """Where a voxel of the slice that is looked at is on the canvas."""
    camera, canvas = person.viewer.scene.camera, person.canvas
    world = np.array(person.layer.data_to_world(voxel))[1:]
    from_middle = (world - np.array(camera.center)[-2:]) * camera.zoom
    middle = QPointF(canvas.rect().center())
    return middle + QPointF(from_middle[1], from_middle[0]) / canvas.devicePixelRatioF()


def drag(person: Person, *voxels: tuple[float, float, float]) -> None:
    path = [at(person, voxel) for voxel in voxels]
    person._mouse(QEvent.Type.MouseMove, path[0], NONE, NONE)
    person._mouse(QEvent.Type.MouseButtonPress, path[0], LEFT, LEFT)
    for place in path[1:]:
        person._mouse(QEvent.Type.MouseMove, place, NONE, LEFT)
    person._mouse(QEvent.Type.MouseButtonRelease, path[-1], LEFT, NONE)
    answered(person)


def test_a_click_draws_the_structure_and_ctrl_z_takes_it_back(person: Person, server: str) -> None:
    panel = person.tab.prompts
    assert panel.address.text() == ADDRESS
    assert "CC BY-NC-SA" in panel.about.text()
    assert not panel.kinds[PromptKind.POINT].isEnabled()
    connect(person, server)
    assert "nnInteractive 2.6.0" in panel.about.text()
    assert "no commercial use" in panel.about.text()
    number = int(person.review.open_case.case_id.removeprefix("case_"))
    wanted = blocks(person.label.shape, 2, number)
    z = person.z
    person.tab.table.choose(int(wanted[z].max()))
    person.click(panel.kinds[PromptKind.POINT])
    assert panel.kinds[PromptKind.POINT].isChecked()
    drag(person, (z, 9, 7))
    index = int(wanted[z].max())
    drawn = person.label == index
    assert 2 * (drawn & (wanted == index)).sum() / (drawn.sum() + (wanted == index).sum()) > 0.8
    assert person.layer.data is person.label
    np.testing.assert_array_equal(person.shown(), person.label[z])
    person.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert not person.label.any()


def test_lines_and_boxes_do_not_move_the_view(person: Person, server: str) -> None:
    panel = connect(person, server)
    person.tab.table.choose(1)
    z = person.z
    centre = tuple(person.viewer.scene.camera.center)
    for kind in (PromptKind.SCRIBBLE, PromptKind.LASSO, PromptKind.BOX):
        person.click(panel.kinds[kind])
        drag(person, (z, 7, 5), (z, 12, 6), (z, 15, 10))
        assert (person.label[z] == 1).sum() > 10, (kind, person.said)
        assert "drawing" not in person.names()
        person.click(person.tab.steps.buttons["Undo"])
    assert tuple(person.viewer.scene.camera.center) == centre
    person.click(person.tab.brush.modes["paint"])  # another tool gives the mouse back
    assert not any(made.isChecked() for made in panel.kinds.values())
    assert person.layer.mode == "paint"


def test_no_server_is_said_in_one_line(person: Person) -> None:
    panel = connect(person, "http://127.0.0.1:9")
    assert person.dock._message.text().startswith("nothing answers at http://127.0.0.1:9")
    assert panel.connect_.isEnabled()
    panel.address.setText("http://gpu-box:1527")
    assert "The scan leaves this computer" in panel.about.text()


def test_the_drawing_ends_with_its_tool_and_with_the_window(person: Person, server: str) -> None:
    panel = connect(person, server)
    person.click(panel.kinds[PromptKind.LASSO])
    callbacks = person.layer.mouse_drag_callbacks
    assert panel.drawing._drag in callbacks
    person.click(panel.connect_)  # disconnects
    assert panel.drawing._drag not in callbacks
    assert person.layer.mouse_pan
