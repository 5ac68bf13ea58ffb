"""The layers of a registered pair: made when first shown, given new data for the next pair."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from napari.layers import Labels, Layer, Vectors
from napari.utils.colormaps import Colormap, DirectLabelColormap
from napari.viewer import Viewer
from numpy.typing import NDArray
from psygnal import Signal
from qtpy.QtCore import QTimer

from napari_jrss.app.pairs.registering import Pair
from napari_jrss.app.pairs.views import View, dashed_outline, dotted_outline, magnified, shown_range
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.transform import TrainingGrid
from napari_jrss.snapshot import Label
from napari_jrss.widgets.layers.common import (
    LayerSet,
    colormap,
    image_layer,
    labels_layer,
    placement,
    show_axially,
)

FOLDED_COLOUR, GRID_COLOUR = "#ff2222", "#f0e442"

# Blue and orange are told apart with the common kinds of colour blindness; what is as it should
# be (no difference, volume kept) is clear, so that the image below shows.
_DIVERGING = Colormap(
    [[0.0, 0.35, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 0.5, 0.0, 1.0]], name="blue clear orange"
)


@dataclass(frozen=True, eq=False)
class Scene:
    """A pair with what its layers need to know."""

    pair: Pair
    grid: TrainingGrid
    table: LabelTable
    view: Callable[[View, int], NDArray[Any] | None]
    """A view of it, seen along an axis; None until it has been made."""
    across: int = 0
    """Axis (z, y, x) along which the viewer looks."""


@dataclass(frozen=True)
class Kind:
    """One kind of layer: what its checkbox and tooltip say, and how it is made."""

    title: str
    tip: str
    name: str
    """Name of the layer, with `{fixed}` and `{moving}` for the names of the cases."""
    source: Callable[[Pair], NDArray[Any] | None] | View
    """What of the pair it shows (None where the pair has no such thing), or a view to be made."""
    make: Callable[[Scene, NDArray[Any], str], Layer]
    drawn: Callable[[Label, int], NDArray[Any]] | None = None
    """How a label of the pair is drawn for the axis that is looked along; None: as it is."""
    turns: bool = False
    """Whether its values depend on the axis that is looked along."""

    def named(self, pair: Pair) -> str:
        """Name of the layer of a pair."""
        return self.name.format(fixed=pair.fixed.name, moving=pair.moving.name)

    def data(self, scene: Scene) -> NDArray[Any] | None:
        """Its values; None if the pair has none, or none yet."""
        if callable(self.source):
            label = self.source(scene.pair)
            return label if label is None or not self.drawn else self.drawn(label, scene.across)
        values = scene.view(self.source, scene.across if self.turns else 0)
        return values.view(np.uint8) if values is not None and values.dtype == bool else values


def _image(scene: Scene, data: NDArray[Any], name: str) -> Layer:
    return image_layer(data, scene.grid, name, contrast_limits=shown_range(scene.pair.fixed.image))


def _diverging(limits: tuple[float, float]) -> Callable[[Scene, NDArray[Any], str], Layer]:
    def make(scene: Scene, data: NDArray[Any], name: str) -> Layer:
        look = {"contrast_limits": limits, "colormap": _DIVERGING, "opacity": 0.8}
        return image_layer(data, scene.grid, name, **look)

    return make


def _label(scene: Scene, data: NDArray[Any], name: str) -> Layer:
    return labels_layer(data, scene.grid, scene.table, name, opacity=0.5)


def _lines(
    scene: Scene, data: NDArray[Any], name: str, colours: DirectLabelColormap, opacity: float = 1
) -> Labels:
    where = placement(scene.grid) | _finer(scene.grid, data)
    return Labels(data, name=name, colormap=colours, opacity=opacity, **where)


def _in(colour: str) -> Callable[[Scene, NDArray[Any], str], Layer]:
    def make(scene: Scene, data: NDArray[Any], name: str) -> Layer:
        colours = DirectLabelColormap(color_dict={None: colour, 0: "transparent"})
        return _lines(scene, data, name, colours, opacity=0.9)

    return make


def _dotted(scene: Scene, data: NDArray[Any], name: str) -> Labels:
    return _lines(scene, data, name, colormap(scene.table))


def _solid(scene: Scene, data: NDArray[Any], name: str) -> Layer:
    layer = _dotted(scene, data, name)
    layer.contour = 2
    return layer


def _black_and_white(scene: Scene, data: NDArray[Any], name: str) -> Layer:
    colours = DirectLabelColormap(
        color_dict={None: "transparent", 0: "transparent", 1: "white", 2: "black"}
    )
    return _lines(scene, data, name, colours)


def _finer(grid: TrainingGrid, data: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Scale and place of a volume that covers the training grid with more voxels."""
    spacing = np.array(grid.spacing_mm)
    scale = spacing * grid.shape / data.shape
    return {"scale": scale, "translate": (scale - spacing) / 2}


def _lengths_mm(scene: Scene, data: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"mm": np.linalg.norm(data[:, 1] * np.array(scene.grid.spacing_mm), axis=1)}


def _inside(scene: Scene, data: NDArray[Any]) -> NDArray[Any]:
    """Arrows cut off where they leave the grid, since the viewer's sliders would follow them."""
    start, arrow = data[:, 0], data[:, 1]
    to_edge = np.where(arrow > 0, np.array(scene.grid.shape) - 1 - start, start)
    part = np.min(to_edge / np.maximum(np.abs(arrow), 1e-6), axis=1, keepdims=True)
    return np.stack([start, arrow * np.minimum(part, 1)], axis=1)


def _arrows(scene: Scene, data: NDArray[Any], name: str) -> Layer:
    return Vectors(
        _inside(scene, data),
        name=name,
        features=_lengths_mm(scene, data),
        edge_color="mm",
        edge_colormap="plasma",
        edge_width=0.4,
        vector_style="arrow",
        opacity=1,
        **placement(scene.grid),
    )


KINDS = (
    Kind(
        "Fixed image",
        "The image that the moving one is warped onto",
        "fixed {fixed}",
        lambda pair: pair.fixed.image,
        _image,
    ),
    Kind(
        "Moving image",
        "The moving image before the registration",
        "moving {moving}",
        lambda pair: pair.moving.image,
        _image,
    ),
    Kind(
        "Warped image",
        "The moving image, warped onto the fixed one",
        "warped {moving}",
        lambda pair: pair.registered.image,
        _image,
    ),
    Kind(
        "Checkerboard",
        "Squares of the fixed and the warped image in turn: edges should continue across them",
        "checkerboard",
        "checkerboard",
        _image,
    ),
    Kind(
        "Difference",
        "Warped minus fixed image, from -2 (blue) to 2 (orange) standard deviations",
        "difference",
        "difference",
        _diverging((-2, 2)),
    ),
    Kind(
        "Jacobian",
        "Jacobian determinant of the field: 0 (blue) where the moving image is stretched, 1 "
        "(clear) where its volume is kept, 2 (orange) where it is shrunk",
        "Jacobian determinant",
        "jacobian",
        _diverging((0, 2)),
    ),
    Kind(
        "Warped label",
        "The moving label, warped onto the fixed image",
        "warped label {moving}",
        lambda pair: pair.registered.label,
        _label,
    ),
    Kind(
        "Fixed contours",
        "Outlines of the fixed label: solid, in the structures' colours",
        "fixed contours {fixed}",
        lambda pair: pair.fixed.label,
        _solid,
        magnified,
        turns=True,
    ),
    Kind(
        "Moving contours",
        "Outlines of the moving label before the registration: dotted, in the structures' colours",
        "moving contours {moving}",
        lambda pair: pair.moving.label,
        _dotted,
        dotted_outline,
        turns=True,
    ),
    Kind(
        "Warped contours",
        "Outlines of the warped label: dashed, black and white",
        "warped contours {moving}",
        lambda pair: pair.registered.label,
        _black_and_white,
        dashed_outline,
        turns=True,
    ),
    Kind(
        "Deformed grid",
        "A regular grid of the moving image, as the field deforms it (yellow)",
        "deformed grid",
        "grid",
        _in(GRID_COLOUR),
        turns=True,
    ),
    Kind(
        "Folded voxels",
        "Where the field folds: a Jacobian determinant of 0 or less, by central or forward "
        "differences (red)",
        "folded voxels",
        "folded",
        _in(FOLDED_COLOUR),
    ),
    Kind(
        "Displacement",
        "Arrows from points of the fixed image to the same points in the moving image; the colour "
        "is the length in mm",
        "displacement",
        "displacement",
        _arrows,
        turns=True,
    ),
)
"""From the bottom to the top of the layer list."""
TITLES = tuple(kind.title for kind in KINDS)


class PairLayers(LayerSet):
    """The layers of the pair on the screen, by the titles of :data:`KINDS`.

    A layer is made when it is first shown, and gets the data of another pair when it is shown
    again. One that a person deleted is made anew when it is asked for; one that was renamed or
    moved stays as it is. :attr:`shown_changed` tells a title, and whether it is seen now.
    """

    shown_changed = Signal(str, bool)

    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        self._scene: Scene | None = None
        self._wanted: set[str] = set()
        self._aside = False
        viewer.layers.events.removed.connect(self._removed)
        viewer.dims.events.order.connect(self._turn_soon)

    def close(self) -> None:
        """Let go of the viewer; the layers stay in it."""
        self._viewer.layers.events.removed.disconnect(self._removed)
        self._viewer.dims.events.order.disconnect(self._turn_soon)
        self._scene = None
        for title in list(self._layers):
            self._let_go(title)

    def has(self, title: str) -> bool:
        """Whether the pair has something to show of a kind."""
        source = KINDS[TITLES.index(title)].source
        return self._scene is not None and (
            not callable(source) or source(self._scene.pair) is not None
        )

    def clear(self) -> None:
        """Take the layers of the pair off the viewer; they can be shown again."""
        for title in TITLES:
            if title in self._layers:
                self._drop(title)
            if title in self._wanted:
                self._wanted.remove(title)
                self.shown_changed.emit(title, False)

    def forget(self) -> None:
        """Take them off, and forget the pair."""
        self._scene = None
        self.clear()

    def set_scene(self, scene: Scene) -> None:
        """Show another pair with the same kinds of layers."""
        self._scene = replace(scene, across=self._across())
        self._renew(TITLES)

    def show(self, title: str, visible: bool) -> None:
        """Show or hide a kind, with this pair and those to come."""
        (self._wanted.add if visible else self._wanted.discard)(title)
        layer = self._layers.get(title)
        if layer is not None and layer.visible != visible:
            layer.visible = visible
        self._fill(title)

    def put_aside(self, aside: bool) -> None:
        """Hide all layers while something else is at work on the canvas, or bring them back.

        A layer that a person shows meanwhile is shown.
        """
        self._aside = aside
        layers = self._viewer.layers
        ours = sorted(layers.index(layer) for layer in self._layers.values())
        if ours:  # nothing of a pair lies upon what is worked on
            layers.move_multiple(ours, 0 if aside else len(layers))
        for title, layer in list(self._layers.items()):
            with layer.events.visible.blocker(self._visible):
                layer.visible = not aside and title in self._wanted
        if not aside:
            for title in TITLES:
                self._fill(title)

    def view_made(self, view: str) -> None:
        """Show what had to be made first."""
        for kind in KINDS:
            if kind.source == view:
                self._fill(kind.title)

    def _renew(self, titles: Iterable[str]) -> None:
        for title in titles:
            if title in self._layers:
                self._stale.add(title)
            self._fill(title)

    def _fill(self, title: str) -> None:
        """Make a layer that is wanted and not there, or give it the data that it lacks."""
        kind, scene = KINDS[TITLES.index(title)], self._scene
        layer = self._layers.get(title)
        if scene is None or title not in self._wanted or (layer and title not in self._stale):
            return
        if self._aside and layer is None:
            return  # made when it is looked at
        data = kind.data(scene)
        if data is None:
            # Nothing of another pair stays on the screen.
            if layer is not None and callable(kind.source):
                self._drop(title)
        elif layer is None:
            self._make(kind, scene, data)
        else:
            self._stale.discard(title)
            self._refresh(kind, scene, data, layer)

    def _make(self, kind: Kind, scene: Scene, data: NDArray[Any]) -> None:
        layers, first = self._viewer.layers, not self._viewer.layers
        layer = kind.make(scene, data, kind.named(scene.pair))
        layer.editable = False
        higher = TITLES[TITLES.index(kind.title) + 1 :]
        above = [layers.index(self._layers[title]) for title in higher if title in self._layers]
        layers.insert(min(above, default=len(layers)), layer)
        self._keep(kind.title, layer)
        layer.events.visible.connect(self._visible)
        if first:
            show_axially(self._viewer.dims, scene.grid.shape)
            self._viewer.reset_view()

    def _refresh(self, kind: Kind, scene: Scene, data: NDArray[Any], layer: Layer) -> None:
        if isinstance(layer, Vectors):
            layer.data = _inside(scene, data)
            layer.features = _lengths_mm(scene, data)
        elif data.shape == layer.data.shape:
            layer.data = data
        else:
            # A new shape and its new scale can't be set at once: the sliders would jump.
            self._drop(kind.title)
            self._make(kind, scene, data)
            return
        if kind.make is _image:
            layer.contrast_limits = shown_range(scene.pair.fixed.image)
        layer.editable = False
        self._rename(kind.title, kind.named(scene.pair))

    def _drop(self, title: str) -> None:
        layer, dims = self._layers[title], self._viewer.dims
        self._let_go(title)
        if layer in self._viewer.layers:
            # Sliders keep their step, not their place, when the finest layer goes.
            point = dims.point
            self._viewer.layers.remove(layer)
            dims.point = point[len(point) - dims.ndim :]

    def _let_go(self, title: str) -> None:
        self._layers.pop(title).events.visible.disconnect(self._visible)
        del self._names[title]
        self._stale.discard(title)

    def _across(self) -> int:
        """The axis (z, y, x) that isn't on the screen: the view goes along it."""
        dims = self._viewer.dims
        shown = {axis - dims.ndim + 3 for axis in dims.order[-2:]}
        return min({0, 1, 2} - shown)

    def _turn_soon(self) -> None:
        # Sliders whose steps change while their order does jump to their ends.
        QTimer.singleShot(0, self._turned)

    def _turned(self) -> None:
        across = self._across()
        if self._scene is not None and across != self._scene.across:
            self._scene = replace(self._scene, across=across)
            turning = [kind.title for kind in KINDS if kind.turns]
            for title in turning:
                # The slider would take the steps of a hidden layer's finer pixels.
                if title in self._layers and title not in self._wanted:
                    self._drop(title)
            self._renew(turning)

    def _removed(self, event: Any) -> None:
        for title, layer in list(self._layers.items()):
            if layer is event.value:
                self._let_go(title)
                self._wanted.discard(title)
                self.shown_changed.emit(title, False)

    def _visible(self, event: Any) -> None:
        for title, layer in list(self._layers.items()):
            if layer is event.source:
                self.show(title, layer.visible)
                self.shown_changed.emit(title, layer.visible)
