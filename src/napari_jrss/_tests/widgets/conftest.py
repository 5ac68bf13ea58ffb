"""A real viewer with the dock in it; needs a display, such as Xvfb gives one."""

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from napari_jrss.widgets.main_widget import MainWidget


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a display a Qt program is killed, so its tests are passed over with the reason."""
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        skip = pytest.mark.skip(reason="no display: run under xvfb-run -a")
        for item in items:
            if "/widgets/" in item.nodeid:
                item.add_marker(skip)


@pytest.fixture
def dock(make_napari_viewer: Callable[..., Any]) -> MainWidget:
    """The dock, opened as the plugin menu opens it."""
    viewer = make_napari_viewer()
    _, widget = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
    return widget
