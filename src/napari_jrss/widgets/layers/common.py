"""Volumes of the training grid or of a scan as layers: their scale, axes and colours."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from napari.components.overlays import BrushCircleOverlay
from napari.layers import Image, Labels, Layer
from napari.utils.colormaps import DirectLabelColormap
from napari.viewer import Viewer
from numpy.typing import NDArray

from napari_jrss.app.review.editor import Box
from napari_jrss.geometry import Triple
from napari_jrss.labels import LabelTable

AXES = ("z", "y", "x")
_MARKED = "marked"  # metadata of a layer: the box that holds values


class LayerSet:
    """Our layers in a viewer, by kind; a person may rename, move and remove them."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._layers: dict[str, Layer] = {}
        self._names: dict[str, str] = {}
        self._stale: set[str] = set()  # kinds whose layer shows what was there before

    def layer(self, kind: str) -> Any:
        """One of the layers, or None where the person removed it or it never was."""
        layer = self._layers.get(kind)
        return layer if layer is not None and layer in self._viewer.layers else None

    def _keep(self, kind: str, layer: Layer) -> None:
        self._layers[kind], self._names[kind] = layer, layer.name

    def _rename(self, kind: str, name: str) -> None:
        """Give a layer its new name, unless the person gave it another one."""
        layer = self._layers[kind]
        if layer.name == self._names[kind]:
            layer.name = name
            self._names[kind] = layer.name


class Grid(Protocol):
    """Something whose voxels have a size: the training grid, or a scan."""

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size (z, y, x)."""
        ...


def placement(grid: Grid) -> dict[str, Any]:
    """What places a volume (z, y, x) of a grid in the world, in millimetres."""
    return {"scale": grid.spacing_mm, "units": ("mm", "mm", "mm"), "axis_labels": AXES}


def image_layer(array: NDArray[Any], grid: Grid, name: str, **options: Any) -> Image:
    """An image of a grid as a layer."""
    return Image(array, name=name, **placement(grid), **options)


def labels_layer(
    array: NDArray[Any], grid: Grid, table: LabelTable, name: str, **options: Any
) -> Labels:
    """Class indices of a grid as a layer with the structures' names and colours."""
    return Labels(array, name=name, **look_of(table), **placement(grid), **options)


def show_voxels(layer: Layer, array: NDArray[Any]) -> None:
    """Give a layer voxels that nobody paints; napari lets every new array be painted."""
    layer.data = array
    layer.editable = False


def put(layer: Layer, scale: Triple, translate: Triple) -> None:
    """Place a layer in the world; napari draws a layer anew for each of the two, changed or not."""
    for name, wanted in (("scale", scale), ("translate", translate)):
        if not np.array_equal(getattr(layer, name), wanted):
            setattr(layer, name, wanted)


def mark(layer: Labels, shape: Sequence[int], box: Box, values: NDArray[np.uint8]) -> bool:
    """Let a layer hold values in a box of a volume (z, y, x), and zeros elsewhere.

    It is written in place where the volume has this shape already: for a new array napari builds
    the shaders anew.

    Returns
    -------
    bool
        Whether it was written in place, so that the layer has to be refreshed.
    """
    held = layer.data
    in_place = _MARKED in layer.metadata and held.shape == tuple(shape) and held.flags.writeable
    if in_place:
        held[layer.metadata[_MARKED]] = 0
    else:
        held = np.zeros(shape, np.uint8)
    held[box] = values
    layer.metadata[_MARKED] = box
    if not in_place:
        show_voxels(layer, held)
    return in_place


def look_of(table: LabelTable) -> dict[str, Any]:
    """Colours of the structures, and their names for napari's status bar."""
    features = {
        "index": [c.index for c in table.classes],
        "structure": [c.name for c in table.classes],
    }
    return {"colormap": colormap(table), "features": features}


def colormap(table: LabelTable) -> DirectLabelColormap:
    """Stable colours of the structures; background and unknown values are clear."""
    colours: dict[int | None, Any] = {None: "transparent", 0: "transparent"}
    for each in table.classes[1:]:
        colours[each.index] = each.colour
    return DirectLabelColormap(color_dict=colours)


def tell_intensity(label: Labels, image: Image) -> None:
    """Let napari's status bar tell the scan's own intensity beside the label's structure."""
    own = label.get_status

    def status(position: Any = None, **view: Any) -> dict[str, str]:
        told = own(position, **view)
        if position is not None and image.visible:
            value = image.get_value(position, **view)
            if isinstance(value, np.generic):
                told["coordinates"] += f"; intensity {value:.6g}"
        return told

    label.get_status = status


def show_axially(dims: Any, shape: Sequence[int]) -> None:
    """Look at the middle axial slice: anterior is up, the patient's left on the right."""
    dims.ndisplay = 2
    dims.order = (0, 1, 2)
    dims.set_current_step(0, int(np.asarray(shape)[0]) // 2)


def turn_head_up(viewer: Viewer) -> None:
    """Where z is upright, as in coronal and sagittal views, superior is up; else anterior is."""
    upright = viewer.dims.order[-2]
    viewer.scene.camera.orientation2d = ("up" if upright == AXES.index("z") else "down", "right")


def without_brush_box(viewer: Viewer) -> None:
    """Take away the box behind the brush's circle.

    napari 0.9.2 draws it from the first stroke on, also where there is no circle. Once the layers
    are removed and it is all that is left, drawing it was seen to end in a segmentation fault of
    Mesa's software OpenGL; why is not known.
    """
    for overlay in viewer.canvas.overlays.values():
        if isinstance(overlay, BrushCircleOverlay):
            overlay.box = False
