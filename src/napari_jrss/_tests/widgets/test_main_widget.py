"""The dock as a whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from npe2 import PluginManifest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt

from napari_jrss._tests.app.phantoms import make_project
from napari_jrss._tests.widgets.person import Person
from napari_jrss.app.next_case import first_case
from napari_jrss.project.project import Project
from napari_jrss.widgets.layers.review import IMAGE
from napari_jrss.widgets.main_widget import MainWidget


def test_the_manifest_is_valid() -> None:
    manifest = PluginManifest.from_distribution("napari-jrss")
    manifest.validate_imports()
    assert manifest.contributions.widgets is not None


def test_the_dock_has_four_tabs_and_says_that_nothing_is_open(dock: MainWidget) -> None:
    titles = [dock.tabs.tabText(i) for i in range(dock.tabs.count())]
    assert titles == ["Cohort", "Training", "Review", "Registration"]
    assert dock.session.workspace.project is None


def test_the_scan_keeps_a_third_of_the_window_that_napari_opens(
    make_napari_viewer: Callable[..., Any], qtbot: QtBot, taught: Path
) -> None:
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1200, 800)
    _, dock = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
    dock.session.open(taught)
    for index in range(dock.tabs.count()):
        dock.tabs.setCurrentIndex(index)
        qtbot.wait(100)
        canvas = viewer.window._qt_window.centralWidget().width()
        assert canvas + dock.width() < 1200
        assert canvas >= 400, dock.tabs.tabText(index)


def test_a_cohort_without_a_label_is_told_where_to_begin(
    dock: MainWidget, qtbot: QtBot, tmp_path: Path
) -> None:
    path = make_project(tmp_path)
    with Project.open(path) as project:
        project.split(labelled=0, validation=1, test=1)
        first = first_case(project)
    assert first is not None
    dock.session.open(path)
    said = f"Label {first.case_id}, the most typical scan: paint it, or begin with prompts"
    qtbot.waitUntil(lambda: dock.steps.action.text().startswith(said), timeout=20_000)
    qtbot.mouseClick(dock.steps.act, Qt.MouseButton.LeftButton)
    person = Person(dock, qtbot)
    person.settle()
    assert person.review.open_case.case_id == first.case_id
    for way in (person.tab.brush, person.tab.draft.totalsegmentator, person.tab.prompts):
        assert way.isVisibleTo(dock)
    assert not person.tab.draft.propagate.isEnabled()  # there is no label to carry here


@pytest.mark.parametrize(
    ("view", "bright"),
    [("axial", np.s_[:, :4, :]), ("coronal", np.s_[-4:, :, :]), ("sagittal", np.s_[-4:, :, :])],
)
def test_anterior_is_up_and_in_the_other_views_superior(
    make_napari_viewer: Callable[..., Any],
    qtbot: QtBot,
    taught: Path,
    view: str,
    bright: tuple[slice, ...],
) -> None:
    viewer = make_napari_viewer(show=True)  # a picture is taken
    _, dock = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
    person = Person(dock, qtbot)
    dock.session.open(taught)
    person.settle()
    person.open()
    viewer.dims.order = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}[view]
    for layer in viewer.layers:
        layer.visible = layer.name == person.review.open_case.case_id
    scan = np.zeros(dock.session.workspace.open_project.grid.shape, np.float32)
    scan[bright] = 1  # anterior, or superior
    person.tab.layers.layer(IMAGE).data = scan
    person.tab.layers.layer(IMAGE).contrast_limits = (0, 1)
    qtbot.wait(100)
    picture = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(float).mean(-1)
    picture -= picture.min()
    middle = picture.shape[0] // 2
    assert picture[:middle].sum() > 2 * picture[middle:].sum()
