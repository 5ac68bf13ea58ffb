"""Registration as a person does it: real clicks in a real window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Image, Labels, Vectors
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QPushButton

from napari_jrss._tests.app.phantoms import make_project
from napari_jrss._tests.app.translating import add_translating_round
from napari_jrss.project.project import Project
from napari_jrss.widgets.layers.pair import TITLES
from napari_jrss.widgets.layers.review import IMAGE
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.tabs.registration import RegistrationTab

SHIFT = (0, 2, -1)


@pytest.fixture(scope="module")
def project_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project whose registration network translates by SHIFT."""
    path = make_project(tmp_path_factory.mktemp("pairs"))
    with Project.open(path) as project:
        add_translating_round(project, SHIFT)
    return path


class Person:
    """Uses the tab by what is on the screen."""

    def __init__(self, dock: MainWidget, qtbot: QtBot) -> None:
        self.dock, self.qtbot = dock, qtbot
        self.session = dock.session
        self.tab: RegistrationTab = dock.registration
        self.viewer: Any = self.tab._viewer
        dock.tabs.setCurrentWidget(self.tab)
        self.said: list[str] = []
        self.session.workspace.notified.connect(self.said.append)

    def open(self, path: Path) -> None:
        self.session.open(path)
        self.wait(lambda: self.tab.fixed.count() == 10)

    def wait(self, until: Callable[[], bool]) -> None:
        self.qtbot.waitUntil(until, timeout=30_000)

    def settle(self) -> None:
        """Wait until nothing is computed any more and the window has shown it."""
        runner, queue = self.session.workspace.inference, self.session.pairs.queue
        self.wait(lambda: not self.tab._asked and not runner.state.busy and not queue.busy)
        self.qtbot.wait(50)

    def click(self, button: QPushButton) -> None:
        assert button.isEnabled(), button.text()
        self.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
        self.settle()

    def turn(self, *order: int) -> None:
        """Look along another axis."""
        self.viewer.dims.order = order
        self.qtbot.wait(50)
        self.settle()

    def choose(self, moving: str, fixed: str) -> None:
        for combo, case in ((self.tab.moving, moving), (self.tab.fixed, fixed)):
            combo.setCurrentIndex(combo.findData(case))

    def tick(self, title: str) -> None:
        box = self.tab.boxes[title]
        self.qtbot.mouseClick(box, Qt.MouseButton.LeftButton, pos=QPoint(8, box.height() // 2))
        self.settle()

    def shown(self) -> set[str]:
        """Titles of the pair's layers that can be seen."""
        found = {title: self.tab.layers.layer(title) for title in TITLES}
        return {title for title, layer in found.items() if layer is not None and layer.visible}

    def ticked(self) -> set[str]:
        return {title for title, box in self.tab.boxes.items() if box.isChecked()}


@pytest.fixture
def person(dock: MainWidget, qtbot: QtBot, project_once: Path, tmp_path: Path) -> Person:
    """With that project open, and a labelled case on another one chosen."""
    person = Person(dock, qtbot)
    person.open(shutil.copytree(project_once, tmp_path / "brain.jrss"))
    person.choose(*person.session.workspace.open_project.snapshot().labelled[:2])
    return person


def test_what_is_missing_is_said(dock: MainWidget, qtbot: QtBot, tmp_path: Path) -> None:
    person = Person(dock, qtbot)
    assert "Open a project" in person.tab.message.text()
    assert not person.tab.register.isEnabled()
    person.session.pairs.engine = "jrss"
    person.open(make_project(tmp_path))
    assert "no trained networks" in person.tab.message.text()
    assert not person.tab.register.isEnabled()


def test_a_pair_is_shown_with_its_figures(person: Person) -> None:
    person.click(person.tab.register)
    first = {"Fixed image", "Warped image", "Fixed contours", "Warped contours"}
    assert person.shown() == person.ticked() == first
    pair = person.session.pairs.pair
    assert pair is not None
    layer = person.tab.layers.layer("Warped image")
    assert isinstance(layer, Image)
    np.testing.assert_array_equal(layer.data, pair.registered.image)
    np.testing.assert_array_equal(layer.scale, (2, 1, 1))
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    # from the bottom to the top, in the order of the boxes
    names = [layer.name for layer in person.viewer.layers]
    assert [name.split()[0] for name in names] == ["fixed", "warped", "fixed", "warped"]
    assert "roughness 0.000" in person.tab.figures.text()
    assert "folded 0.00 %" in person.tab.figures.text()
    assert person.tab.dice.rowCount() == 2
    after = pair.report.dice[0]
    assert after is not None
    assert person.tab.dice.item(0, 2).text() == f"{after:.3f}"
    assert person.viewer.dims.current_step[0] == 8
    assert tuple(person.viewer.dims.order) == (0, 1, 2)


def test_a_pair_is_refined_when_the_box_is_ticked(person: Person) -> None:
    person.click(person.tab.register)
    assert "refined" not in person.tab.figures.text()
    box = person.tab.refine
    person.qtbot.mouseClick(box, Qt.MouseButton.LeftButton, pos=QPoint(8, box.height() // 2))
    assert person.session.pairs.refined
    person.click(person.tab.register)
    assert person.tab.figures.text().endswith("s, refined")
    pair = person.session.pairs.pair
    assert pair is not None
    layer = person.tab.layers.layer("Warped image")
    assert layer is not None
    np.testing.assert_array_equal(layer.data, pair.registered.image)
    assert "roughness 0.000" not in person.tab.figures.text()


def test_fixed_moving_and_warped_contours_are_told_apart(person: Person) -> None:
    person.click(person.tab.register)
    person.tick("Moving contours")
    pair = person.session.pairs.pair
    assert pair is not None
    seen = {}
    for which in ("Fixed", "Moving", "Warped"):
        layer = person.tab.layers.layer(f"{which} contours")
        assert isinstance(layer, Labels)
        assert layer.name.startswith(f"{which.lower()} contours case_")
        assert not layer.editable
        np.testing.assert_allclose(
            layer.extent.world, person.tab.layers.layer("Fixed image").extent.world, atol=1
        )
        # as on the screen: after napari has drawn the contours
        seen[which] = layer.colormap.map(layer._slice.image.view)
    table = person.session.workspace.open_project.table
    structures = {tuple(bytes.fromhex(c.colour[1:])) for c in table.classes[1:]}
    colours = {which: _colours(pixels) for which, pixels in seen.items()}
    assert colours["Fixed"] <= structures
    assert colours["Moving"] <= structures
    assert colours["Warped"] == {(0, 0, 0), (255, 255, 255)}
    thick, dotted, thin = ((pixels[..., 3] > 0).sum() for pixels in seen.values())
    assert dotted < thin < thick
    for text in ("fixed solid", "moving dotted", "warped dashed"):
        assert text in person.tab.key.text()


def test_the_slider_steps_by_slices_and_stays_when_the_view_is_turned(person: Person) -> None:
    person.click(person.tab.register)
    for _ in range(2):
        person.tick("Moving contours")
    assert "Moving contours" not in person.shown()
    dims = person.viewer.dims
    assert dims.nsteps[0] == 16
    before = dims.point
    person.turn(1, 0, 2)
    assert dims.nsteps[1] == 24
    np.testing.assert_allclose(dims.point, before, atol=1)
    person.tick("Moving contours")
    assert {"Fixed contours", "Moving contours", "Warped contours"} <= person.shown()
    assert dims.nsteps[1] == 24
    person.turn(0, 1, 2)
    assert dims.nsteps[0] == 16
    np.testing.assert_allclose(dims.point, before, atol=1)


def _colours(pixels: np.ndarray) -> set[tuple[int, ...]]:
    """Red, green and blue of the pixels that aren't clear."""
    found = np.rint(255 * pixels[pixels[..., 3] > 0][:, :3]).astype(int)
    return {tuple(int(part) for part in colour) for colour in found}


def test_layers_are_made_when_they_are_first_shown(person: Person) -> None:
    person.click(person.tab.register)
    assert person.tab.layers.layer("Jacobian") is None
    for title in ("Jacobian", "Folded voxels", "Difference", "Checkerboard", "Displacement"):
        person.tick(title)
    pair = person.session.pairs.pair
    assert pair is not None
    jacobian = person.tab.layers.layer("Jacobian")
    assert jacobian is not None
    np.testing.assert_allclose(jacobian.data, 1, atol=1e-5)
    folded = person.tab.layers.layer("Folded voxels")
    assert folded is not None
    assert not folded.data.any()
    difference = person.tab.layers.layer("Difference")
    assert difference is not None
    np.testing.assert_array_equal(difference.data, pair.registered.image - pair.fixed.image)
    arrows = person.tab.layers.layer("Displacement")
    assert isinstance(arrows, Vectors)
    np.testing.assert_allclose(arrows.features["mm"], np.sqrt(2**2 + 1), rtol=1e-5)
    inner = (arrows.data[:, 0] > 3).all(1) & (arrows.data[:, 0, 1] < 20)
    np.testing.assert_allclose(
        arrows.data[inner, 1], np.broadcast_to(SHIFT, (inner.sum(), 3)), atol=1e-5
    )
    ends = arrows.data.sum(1)
    assert (ends > -0.01).all()
    assert (ends < np.array([16, 24, 16]) - 0.99).all()


def test_the_grid_lies_on_the_image_and_follows_the_view(person: Person) -> None:
    person.click(person.tab.register)
    person.viewer.dims.set_current_step(1, 11)
    person.tick("Deformed grid")
    layer, image = person.tab.layers.layer("Deformed grid"), person.tab.layers.layer("Fixed image")
    assert layer is not None
    assert image is not None
    finer = round(256 / 24)
    assert layer.data.shape == (16, 24 * finer, 16 * finer)
    np.testing.assert_allclose(layer.extent.world, image.extent.world, atol=1)
    corners = np.array([layer.data_to_world(np.zeros(3)), image.data_to_world(np.zeros(3))])
    half_pixel = (np.array(layer.scale) - np.array(image.scale)) / 2
    np.testing.assert_allclose(corners[0] - corners[1], half_pixel)
    before = person.viewer.dims.point
    person.turn(1, 0, 2)
    layer = person.tab.layers.layer("Deformed grid")
    assert layer is not None
    assert layer.data.shape == (16 * finer, 24, 16 * finer)
    np.testing.assert_allclose(person.viewer.dims.point, before, atol=1.1)
    assert person.viewer.layers.index(layer) == len(person.viewer.layers) - 1


def test_the_next_pair_uses_the_same_layers_as_the_person_left_them(person: Person) -> None:
    person.click(person.tab.register)
    viewer, tab = person.viewer, person.tab
    before = list(viewer.layers)
    warped = tab.layers.layer("Warped image")
    assert warped is not None
    warped.name = "mine"
    viewer.layers.move(0, 2)
    order = list(viewer.layers)
    fixed, moving = tab.fixed.currentData(), tab.moving.currentData()
    person.click(tab.swap)
    pair = person.session.pairs.pair
    assert pair is not None
    assert (pair.moving.name, pair.fixed.name) == (fixed, moving)
    assert list(viewer.layers) == order
    assert set(before) == set(order)
    assert warped.name == "mine"
    np.testing.assert_array_equal(warped.data, pair.registered.image)
    image = tab.layers.layer("Fixed image")
    assert image is not None
    assert image.name == f"fixed {moving}"
    person.click(tab.next)
    now = person.session.pairs.pair
    assert now is not None
    assert (now.moving.name, now.fixed.name) == person.session.pairs.following(fixed, moving)
    assert (tab.moving.currentData(), tab.fixed.currentData()) == (now.moving.name, now.fixed.name)


def test_a_deleted_layer_unticks_its_box_and_comes_back_when_asked_for(person: Person) -> None:
    person.click(person.tab.register)
    own = person.viewer.add_image(np.zeros((4, 4, 4)), name="the person's own")
    person.viewer.layers.remove(person.tab.layers.layer("Warped image"))
    assert "Warped image" not in person.ticked()
    person.click(person.tab.swap)
    assert person.tab.layers.layer("Warped image") is None
    person.tick("Warped image")
    assert "Warped image" in person.shown()
    # the eye in the layer list and the box are the same thing
    layer = person.tab.layers.layer("Fixed image")
    assert layer is not None
    layer.visible = False
    assert "Fixed image" not in person.ticked()
    person.click(person.tab.clear)
    assert list(person.viewer.layers) == [own]
    assert person.ticked() == set()
    person.tick("Fixed image")
    assert "Fixed image" in person.shown()


def test_a_hidden_layer_shows_the_present_pair_when_it_is_shown_again(person: Person) -> None:
    person.click(person.tab.register)
    person.tick("Jacobian")
    person.tick("Warped image")
    person.tick("Warped image")
    person.tick("Warped image")
    assert "Warped image" not in person.shown()
    person.click(person.tab.swap)
    pair, layer = person.session.pairs.pair, person.tab.layers.layer("Warped image")
    assert pair is not None
    assert layer is not None
    layer.visible = True
    person.settle()
    np.testing.assert_array_equal(layer.data, pair.registered.image)
    assert layer.name == f"warped {pair.moving.name}"


def test_a_pair_without_labels_has_no_contours_and_the_next_one_has_them_again(
    person: Person,
) -> None:
    labelled, unlabelled = (
        person.session.workspace.open_project.snapshot().labelled,
        person.session.workspace.open_project.snapshot().unlabelled,
    )
    person.click(person.tab.register)
    person.choose(*unlabelled[:2])
    person.click(person.tab.register)
    assert person.shown() == {"Fixed image", "Warped image"}
    assert not person.tab.boxes["Warped contours"].isEnabled()
    assert person.tab.dice.rowCount() == 0
    assert not person.tab.draft.isEnabled()
    person.choose(*labelled[:2])
    person.click(person.tab.register)
    assert {"Fixed contours", "Warped contours"} <= person.shown()


def test_all_labelled_cases_are_ranked_and_a_row_shows_its_pair(person: Person) -> None:
    fixed = person.session.workspace.open_project.snapshot().unlabelled[0]
    person.choose(person.tab.moving.currentData(), fixed)
    assert not person.tab.vote.isEnabled()
    person.click(person.tab.compare)
    table = person.tab.ranking
    assert table.rowCount() == 5
    residuals = [float(table.item(row, 2).text()) for row in range(5)]
    assert residuals == sorted(residuals)
    assert person.tab.vote.isEnabled()
    best = table.item(0, 0).text()
    table.itemDoubleClicked.emit(table.item(0, 1))
    person.settle()
    pair = person.session.pairs.pair
    assert pair is not None
    assert (pair.moving.name, pair.fixed.name) == (best, fixed)


def test_the_warped_label_opens_in_review(person: Person) -> None:
    moving = person.session.workspace.open_project.snapshot().labelled[0]
    fixed = person.session.workspace.open_project.snapshot().unlabelled[0]
    person.choose(moving, fixed)
    person.click(person.tab.register)
    seen, ticked = person.shown(), person.ticked()
    assert seen
    person.click(person.tab.draft)
    person.wait(lambda: not person.session.review.queue.busy)
    person.wait(lambda: not person.session.workspace.inference.state.busy)
    case, pair = person.session.review.case, person.session.pairs.pair
    assert case is not None
    assert pair is not None
    assert case.case_id == fixed
    np.testing.assert_array_equal(case.editor.label, pair.registered.label)
    person.wait(lambda: person.dock.tabs.currentWidget() is person.dock.review)
    # One thing on the canvas at a time, and the brush on the label.
    assert person.shown() == set()
    review = person.dock.review.layers
    assert review.label is not None
    assert person.viewer.layers.selection.active == review.label
    assert review.layer(IMAGE).visible
    assert any("starts from a label propagated from" in line for line in person.said)
    person.dock.tabs.setCurrentWidget(person.tab)
    person.settle()
    assert person.shown() == seen
    assert not review.layer(IMAGE).visible
    assert not review.label.visible
    person.dock.tabs.setCurrentWidget(person.dock.review)
    person.settle()
    assert review.layer(IMAGE).visible
    assert review.label.visible
    assert person.ticked() == ticked


def test_a_pair_that_is_ready_while_a_case_is_reviewed_stays_in_the_background(
    person: Person,
) -> None:
    person.session.review.open(person.session.workspace.open_project.snapshot().unlabelled[0])
    person.wait(lambda: not person.session.review.queue.busy)
    person.wait(lambda: person.dock.tabs.currentWidget() is person.dock.review)
    person.settle()
    person.tab.register.click()
    person.settle()
    assert person.session.pairs.pair is not None
    assert person.shown() == set()
    person.dock.tabs.setCurrentWidget(person.tab)
    person.settle()
    assert person.shown() == person.ticked() != set()


def test_a_corrected_label_takes_its_pair_away_and_says_so(person: Person) -> None:
    session, tab = person.session, person.tab
    session.workspace.author = "Ada"
    moving, fixed = session.workspace.open_project.snapshot().labelled[:2]
    person.click(tab.register)
    assert tab.draft.isEnabled()
    session.review.open(moving)
    person.wait(lambda: session.review.case is not None and not session.review.queue.busy)
    session.review.open_case.editor.replace("all", np.ones((16, 24, 16), np.uint8))
    session.review.accept()
    person.wait(lambda: not tab.draft.isEnabled())
    said = f"{moving} has a new label: register {moving} to {fixed} again"
    person.wait(lambda: tab.message.text() == said)
    assert not person.shown()
    assert not tab.export.isEnabled()
    person.dock.tabs.setCurrentWidget(tab)
    person.choose(moving, fixed)
    person.click(tab.register)
    assert tab.draft.isEnabled()
    assert "finished" in tab.message.text()


def test_an_error_of_the_job_is_one_line(person: Person) -> None:
    entry = person.session.workspace.open_project.teacher
    assert entry is not None
    (entry.folder / "registration.safetensors").unlink()
    person.click(person.tab.register)
    assert "registration.safetensors" in person.tab.message.text()
    assert "\n" not in person.tab.message.text()
    assert person.tab.register.isEnabled()


def test_another_project_takes_the_layers_away(
    person: Person, project_once: Path, tmp_path: Path
) -> None:
    person.click(person.tab.register)
    person.session.open(shutil.copytree(project_once, tmp_path / "other.jrss"))
    person.wait(lambda: not person.viewer.layers)
    assert person.tab.figures.text() == ""
    person.choose(*person.session.workspace.open_project.snapshot().labelled[:2])
    person.click(person.tab.register)
    assert "Warped image" in person.shown()


def test_without_networks_a_pair_is_registered_by_the_engine_in_the_box(
    dock: MainWidget, qtbot: QtBot, tmp_path: Path
) -> None:
    person = Person(dock, qtbot)
    person.open(make_project(tmp_path))
    tab = person.tab
    assert tab.engine.currentText() == "Automatic"
    assert not tab.refine.isEnabled()
    person.choose(*person.session.workspace.open_project.snapshot().labelled[:2])
    person.click(tab.register)
    assert "s, refine" in tab.figures.text()
    assert tab.layers.has("Warped contours")

    def choose_engine(name: str) -> None:
        index = tab.engine.findData(name)
        tab.engine.setCurrentIndex(index)
        tab.engine.activated.emit(index)
        person.settle()

    choose_engine("jrss")
    assert person.session.pairs.engine == "jrss"
    assert not tab.register.isEnabled()
    assert "choose another engine" in tab.message.text()
    choose_engine("refine")
    assert tab.register.isEnabled()
    person.click(tab.register)
    person.click(tab.draft)
    person.wait(lambda: dock.tabs.currentWidget() is dock.review)
