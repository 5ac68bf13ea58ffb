"""Layers > Register, on images that no project knows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Image
from pytestqt.qtbot import QtBot

from napari_jrss._tests.app.phantoms import make_project
from napari_jrss._tests.app.translating import add_translating_round
from napari_jrss.errors import ScanError
from napari_jrss.project.project import Project
from napari_jrss.widgets import contributions
from napari_jrss.widgets.layers import register as module
from napari_jrss.widgets.layers.register import TITLE, open_form, volume_of_layer
from napari_jrss.widgets.main_widget import MainWidget

SHIFT = (0, 2, -1)  # voxels of the training grid, whose spacing is 2 x 1 x 1 mm


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the person is told by napari."""
    lines: list[str] = []
    monkeypatch.setattr(contributions, "show_error", lines.append)
    monkeypatch.setattr(module, "show_error", lines.append)
    monkeypatch.setattr(module, "show_info", lines.append)
    return lines


@pytest.fixture
def viewer(dock: MainWidget) -> Any:
    return dock.registration._viewer


def smooth(seed: int, shape: tuple[int, int, int] = (16, 24, 16)) -> np.ndarray[Any, Any]:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.random.default_rng(seed).normal(0, 1, shape), 2).astype(np.float32)


def two_images(viewer: Any, **placement: Any) -> tuple[Image, Image]:
    """Fixed below moving, both selected."""
    where = {"scale": (2, 1, 1), "units": ("mm",) * 3, "axis_labels": ("z", "y", "x")} | placement
    fixed = viewer.add_image(smooth(0), name="fixed", **where)
    moving = viewer.add_image(smooth(1), name="moving", colormap="magma", **where)
    viewer.layers.selection = {fixed, moving}
    return moving, fixed


def register(viewer: Any) -> None:
    """As the menu entry does it, and a click on the form's button."""
    open_form(viewer)
    viewer.window.dock_widgets[f"{TITLE} (napari-jrss)"].call_button.native.click()


def warped(viewer: Any, dock: MainWidget, qtbot: QtBot, said: list[str]) -> Image:
    before = set(viewer.layers)
    register(viewer)
    qtbot.waitUntil(lambda: bool(said), timeout=30_000)
    qtbot.waitUntil(lambda: not dock.session.workspace.inference.state.busy, timeout=30_000)
    assert "residual" in said[0], said
    (layer,) = set(viewer.layers) - before
    return layer


def form_of(viewer: Any) -> Any:
    return viewer.window.dock_widgets[f"{TITLE} (napari-jrss)"]


def test_what_is_missing_is_one_line(
    viewer: Any, dock: MainWidget, said: list[str], tmp_path: Path
) -> None:
    register(viewer)
    two_images(viewer)
    open_form(viewer)
    form_of(viewer).engine.value = "jrss"
    register(viewer)
    dock.session.open(make_project(tmp_path))
    register(viewer)
    viewer.add_image(np.zeros((8, 8)), name="flat")
    viewer.layers.selection = list(viewer.layers)[1:]
    register(viewer)
    assert len(said) == 4
    assert "two different images" in said[0]
    assert "no project is open" in said[1]
    assert "no trained networks" in said[2]
    assert "layer 'flat' is no scan with three axes" in said[3]


def test_two_images_are_registered_without_a_project(
    viewer: Any, dock: MainWidget, qtbot: QtBot, said: list[str]
) -> None:
    moving, fixed = two_images(viewer, translate=(100, -40, 7))
    moving.data = np.roll(fixed.data, (2, -1), (1, 2))
    open_form(viewer)
    form = form_of(viewer)
    assert [name for name in form.engine.choices][:3] == ["", "jrss", "refine"]
    form.engine.value, form.start.value = "refine", "none"
    layer = warped(viewer, dock, qtbot, said)
    assert "s, refine" in said[0]
    assert layer.data.shape == fixed.data.shape
    for corner in ((0, 0, 0), (15, 23, 15)):
        np.testing.assert_allclose(
            layer.data_to_world(corner), fixed.data_to_world(corner), rtol=1e-6, atol=1e-6
        )
    before, after = (
        np.corrcoef(each.data.ravel(), fixed.data.ravel())[0, 1] for each in (moving, layer)
    )
    assert after > before + 0.2


@pytest.mark.parametrize(
    "placement",
    [
        {"translate": (100, -40, 7)},
        {"scale": (2000, 1000, 1000), "units": ("um",) * 3},
        {"scale": (1, 1, 1), "affine": np.diag([2.0, 1.0, 1.0, 1.0])},
    ],
    ids=["translated", "micrometres", "affine"],
)
def test_the_upper_image_is_warped_onto_the_lower_one_where_it_lies(
    placement: dict[str, Any],
    viewer: Any,
    dock: MainWidget,
    qtbot: QtBot,
    said: list[str],
    tmp_path: Path,
) -> None:
    path = make_project(tmp_path)
    with Project.open(path) as project:
        add_translating_round(project, SHIFT)
    dock.session.open(shutil.copytree(path, tmp_path / "copy.jrss"))
    moving, fixed = two_images(viewer, **placement)
    layer = warped(viewer, dock, qtbot, said)
    assert layer.name == "moving on fixed"
    assert layer.colormap.name == "magma"
    assert layer.units == fixed.units
    # same voxels in the same place, so moving(p + u): down in y, up in x
    for corner in ((0, 0, 0), (15, 23, 15)):
        np.testing.assert_allclose(
            layer.data_to_world(corner), fixed.data_to_world(corner), rtol=1e-6, atol=1e-6
        )
    np.testing.assert_allclose(layer.data[:, :-2, 1:], moving.data[:, 2:, :-1], atol=1e-4)


def test_a_layer_is_a_volume_where_the_screen_shows_it() -> None:
    layer = Image(
        np.zeros((4, 5, 6)),
        scale=(3, 2, 1),
        translate=(10, 20, 30),
        rotate=[[1, 0, 0], [0, 0, -1], [0, 1, 0]],
        units=("mm", "mm", "mm"),
    )
    affine = volume_of_layer(layer).affine
    for z, y, x in ((0, 0, 0), (1, 2, 3), (3, 0, 5)):
        expected = np.array(layer.data_to_world((z, y, x)))[::-1]
        np.testing.assert_allclose((affine @ [x, y, z, 1])[:3], expected)


def test_units_that_are_no_lengths_are_refused() -> None:
    layer = Image(np.zeros((4, 5, 6)), units=("second", "mm", "mm"))
    with pytest.raises(ScanError, match="measured in second, which is no length"):
        volume_of_layer(layer)
