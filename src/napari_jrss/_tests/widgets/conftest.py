"""A real viewer with the dock in it; needs a display, such as Xvfb gives one."""

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from napari.settings import get_plugin_settings
from qtpy.QtCore import QCoreApplication, QSettings, Qt

from napari_jrss._tests.app.phantoms import give_teacher, make_project
from napari_jrss.app.author import VARIABLE
from napari_jrss.project.project import Project
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.preferences import PLUGIN


@pytest.fixture(autouse=True, scope="module")
def _quick_collection() -> None:
    """Pass over what former tests imported late where napari's fixture collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_settings(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Name, recent projects and preferences of the tests are nobody's, and not the next test's."""
    folder = str(tmp_path_factory.mktemp("settings"))
    for variable in ("HOME", "XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(variable, folder)
    monkeypatch.delenv(VARIABLE, raising=False)
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, folder)
    # A native dialog has no widgets that a test could click.
    QCoreApplication.setAttribute(Qt.ApplicationAttribute.AA_DontUseNativeDialogs)
    # Most teachers here have no networks to make drafts by, and none that is worth learning from:
    # who tests drafts ahead or learning turns them on.
    get_plugin_settings(PLUGIN).work.ahead = 0
    get_plugin_settings(PLUGIN).work.learn = False
    yield
    get_plugin_settings(PLUGIN).reset()


@pytest.fixture(scope="session")
def taught_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cases with a teacher that was never trained: N = 5."""
    path = make_project(tmp_path_factory.mktemp("taught"))
    with Project.open(path) as project:
        give_teacher(project)
    return path


@pytest.fixture
def taught(taught_once: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(taught_once, tmp_path / "brain.jrss"))


@pytest.fixture
def dock(make_napari_viewer: Callable[..., Any]) -> MainWidget:
    """The dock, opened as the plugin menu opens it."""
    viewer = make_napari_viewer()
    _, widget = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
    return widget


@pytest.fixture(autouse=True)
def _no_unexpected_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail where the window met a fault of the program, which it logs instead of raising."""
    yield
    faults = [record.getMessage() for record in caplog.get_records("call") if record.exc_info]
    assert faults == []
