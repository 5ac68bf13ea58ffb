"""What a region stroke would change, as a layer that keys and the mouse wheel sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from napari.layers import Layer
from napari.utils.colormaps import DirectLabelColormap

from napari_jrss.app.review.open_case import OpenCase
from napari_jrss.app.review.region_stroke import Preview
from napari_jrss.widgets import keys
from napari_jrss.widgets.layers.common import labels_layer, mark, put

REGION = "region"
REGION_ADD, REGION_REMOVE = "region_add", "region_remove"
"""Modes of the mouse beside those of napari."""
DRAWN_BY = {REGION_ADD: "paint", REGION_REMOVE: "erase"}
"""napari's mode that draws the stroke."""
_ADDS, _REMOVES = 1, 2
_COLOURS = DirectLabelColormap(
    color_dict={None: "transparent", 0: "transparent", _ADDS: "#40ff40", _REMOVES: "#ff3030"}
)


class Layers(Protocol):
    """The layers beside which the region is shown, see :class:`ReviewLayers`."""

    @property
    def case(self) -> OpenCase | None: ...  # noqa: D102

    def layer(self, kind: str) -> Any: ...  # noqa: D102

    def add(self, kind: str, layer: Layer) -> None: ...  # noqa: D102

    def everything(self) -> list[Layer]: ...  # noqa: D102

    def refresh(self, layer: Layer) -> None: ...  # noqa: D102

    def bind_keys(self, layer: Layer, keys: Iterable[str]) -> None: ...  # noqa: D102


class RegionView:
    """The layer of the region, there once it is first shown.

    `commands` says what keys do while a region is shown; the mouse wheel does what
    :data:`~napari_jrss.widgets.keys.MORE` and :data:`~napari_jrss.widgets.keys.LESS` do.
    """

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self.commands: Mapping[str, Callable[[], object]] = {}

    def show(self, preview: Preview | None, commands: Mapping[str, Callable[[], object]]) -> None:
        """Show what a stroke would change, or nothing."""
        case, layer = self._layers.case, self._layers.layer(REGION)
        if case is None or preview is None or preview.case is not case:
            if layer is not None:
                layer.visible = False
            self._sweep({})
            return
        if layer is None:
            nothing = np.zeros((1, 1, 1), np.uint8)
            layer = labels_layer(nothing, case, case.table, REGION, opacity=0.7)
            layer.colormap, layer.editable = _COLOURS, False
            layer.blending = "translucent_no_depth"
            self._layers.add(REGION, layer)
        values = preview.mask * np.uint8(_ADDS if preview.region.adding else _REMOVES)
        if mark(layer, case.image.shape, preview.region.box, values):
            self._layers.refresh(layer)
        put(layer, case.spacing_mm, (0.0, 0.0, 0.0))
        layer.visible = True
        self._sweep(commands)

    def wheel(self, layer: Layer, event: Any) -> None:
        """Sweep the region; with a key held, the wheel does what it always does."""
        if self.commands and not event.modifiers:
            self.commands[keys.MORE if event.delta[1] > 0 else keys.LESS]()
            event.handled = True

    def _sweep(self, commands: Mapping[str, Callable[[], object]]) -> None:
        if commands.keys() == self.commands.keys():
            return
        former, self.commands = self.commands, commands
        for layer in self._layers.everything():
            self._layers.bind_keys(layer, {*former, *commands})
            layer.mouse_zoom = not commands
