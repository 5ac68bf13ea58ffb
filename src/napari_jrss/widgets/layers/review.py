"""The layers of the case under review, from the scan to the label that is painted."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from napari.layers import Labels, Layer
from napari.utils.colormaps import Colormap, DirectLabelColormap
from napari.viewer import Viewer
from numpy.typing import NDArray

from napari_jrss.app.review.editor import Box, Edit
from napari_jrss.app.review.open_case import OpenCase
from napari_jrss.app.review.opinions import Dispute
from napari_jrss.app.review.regions import Region
from napari_jrss.geometry import Triple, linear_and_shift
from napari_jrss.labels import IGNORED, LabelTable
from napari_jrss.widgets.layers.common import (
    LayerSet,
    image_layer,
    labels_layer,
    look_of,
    mark,
    put,
    show_axially,
    show_voxels,
    tell_intensity,
    without_brush_box,
)
from napari_jrss.widgets.layers.region import DRAWN_BY, RegionView

IMAGE, PSEUDO, ABOVE, CONFIDENCE, UNCERTAINTY, LABEL, OUTLINE = (
    *("scan", "teacher's draft", "left out of training"),
    *("confidence", "uncertainty", "label", "uncertain region"),
)
OVERLAYS = (PSEUDO, ABOVE, CONFIDENCE, UNCERTAINTY)
_INDICES = (PSEUDO, ABOVE, OUTLINE)
_OVER_LABEL = (ABOVE, UNCERTAINTY)  # they say what to look at in the label, so they lie on it
# Nothing where the networks agree, so that the scan shows through. No structure has these colours.
_HEAT = Colormap([[0, 0, 0, 0], [0.9, 0, 0.9, 0.55], [1, 0.85, 1, 0.95]], name="uncertainty")
_LEFT_OUT = DirectLabelColormap(
    color_dict={None: "transparent", 0: "transparent", IGNORED: "white"}
)
_OUTLINE = DirectLabelColormap(color_dict={None: "transparent", 0: "transparent", 1: "#ff40ff"})
_ORIGIN: Triple = (0.0, 0.0, 0.0)
_EVERYWHERE = (slice(None),) * 3
_FIELD_MM = 60.0
"""Width of what is seen at least around an uncertain region."""


class ReviewLayers(LayerSet):
    """Shows one case after the other; call it in the window's thread.

    The layers stay and get other voxels, so the order, names and colours that a person gave
    them stay too, and a case shows several times faster than with new layers. A layer that the
    person removed comes back with the next case. Overlays get their voxels once they are seen.

    `commands` says what keys do while one of these layers is selected. `painted` is called after
    each stroke, with the box that holds it if it is known, `chosen` with the index of a structure
    that is chosen for painting, and `seen` with the kind of an overlay that is shown or hidden,
    from wherever, and whether it is shown. `brush` is called with the label's mode and the width
    of the brush when one of them changes.
    """

    def __init__(
        self,
        viewer: Viewer,
        commands: dict[str, Callable[[], object]],
        painted: Callable[[Box | None], None],
        chosen: Callable[[int], None],
        seen: Callable[[str, bool], None],
        brush: Callable[[str, int], None],
    ) -> None:
        super().__init__(viewer)
        self._keys = commands
        self._painted = painted
        self._chosen = chosen
        self._seen = seen
        self._brush = brush
        self._case: OpenCase | None = None
        self._table: LabelTable | None = None
        self._aside: list[Layer] = []
        self._mirrors: list[tuple[Layer, Layer]] = []
        self.region = RegionView(self)  # what a region stroke would change
        self._region = ""  # REGION_ADD, REGION_REMOVE or none; napari's mode is beside it
        self._size_before = 1  # of the brush, before the region stroke
        without_brush_box(viewer)
        self._outlines = False
        # Before the layers follow: napari draws no outlines in 3D, and warns of each.
        viewer.dims.events.ndisplay.connect(self._turn_outlines, position="first")

    @property
    def label(self) -> Labels | None:
        """The layer that is painted."""
        return self.layer(LABEL)

    def show(self, case: OpenCase, read_only: bool) -> None:
        """Put a case in the place of the one before."""
        image, before = self.layer(IMAGE), self._case
        fresh = image is None
        self._case = case
        if image is None:
            image = image_layer(
                case.image, case, case.case_id, contrast_limits=case.limits, colormap="gray"
            )
            self._add(IMAGE, image)
        else:
            image.data = case.image
            put(image, case.spacing_mm, _ORIGIN)
            image.contrast_limits = case.limits
            self._rename(IMAGE, case.case_id)
        image.contrast_limits_range = case.extremes
        for kind in (*OVERLAYS, OUTLINE):
            if (layer := self.layer(kind)) is not None:
                if case.prediction is None or kind == OUTLINE:
                    layer.visible = False
                self._place(case, kind, layer)
        self._show_label(case, read_only)
        self.recolour(case)
        # Scans of one frame are looked at in the same place, one after the other.
        if fresh or before is None or not np.allclose(_extent(before), _extent(case)):
            show_axially(self._viewer.dims, case.image.shape)
            self._viewer.reset_view()

    def show_prediction(self) -> None:
        """Show what the teacher says of the case, or nothing where it doesn't."""
        case = self._case
        if case is None or case.prediction is None:
            return
        for kind in OVERLAYS:
            if kind == UNCERTAINTY and case.prediction.uncertainty is None:
                continue
            if self.layer(kind) is None:
                self._add_overlay(case, kind)
            self._stale.add(kind)
            self._fill(kind)

    def show_tau(self) -> None:
        """Show the voxels that enter training at the present tau."""
        self._stale.add(ABOVE)
        self._fill(ABOVE)

    def put_aside(self) -> None:
        """Hide the layers while something else is at work on the canvas."""
        for kind in self._layers:
            if (layer := self.layer(kind)) is not None and layer.visible:
                self._aside.append(layer)
                layer.visible = False

    def take_up(self) -> None:
        """Bring them back, the label as the layer that the brush and the keys work on."""
        for layer in self._aside:
            layer.visible = True
        self._aside = []
        if self.label is not None:
            self._viewer.layers.selection.active = self.label

    def show_edit(self, edit: Edit) -> None:
        """Show a change of the label that wasn't painted."""
        if self.label is not None and not edit.shown:
            self.refresh(self.label)

    def recolour(self, case: OpenCase) -> None:
        """Show the structures' present colours and names."""
        if case.table == self._table:
            return
        self._table = case.table
        for kind in (PSEUDO, LABEL):
            if (layer := self.layer(kind)) is not None:
                for name, value in look_of(case.table).items():
                    setattr(layer, name, value)

    def set_visible(self, kind: str, visible: bool) -> None:
        """Show or hide an overlay."""
        if (layer := self.layer(kind)) is not None:
            layer.visible = visible

    def show_region(self, region: Region) -> None:
        """Outline an uncertain region, and bring it near."""
        case = self._case
        if case is None:
            return
        if region.uncertain is not None:
            layer = self._outline(case)
            if case.grid_placement is None:
                marked = np.zeros(case.grid.shape, np.uint8)
                marked[region.box] = region.uncertain
                self._mark(layer, case.image.shape, _EVERYWHERE, case.shown(marked))
            else:
                self._mark(layer, case.grid.shape, region.box, region.uncertain)
            put(layer, *self._where(case))
        linear, shift = linear_and_shift(case.transform.grid_to_scan)
        z, y, x = linear @ region.at + shift
        self._bring_near((z, y, x))

    def show_dispute(self, dispute: Dispute) -> None:
        """Outline a disputed place, and bring it near."""
        case = self._case
        if case is None:
            return
        layer = self._outline(case)
        self._mark(layer, case.image.shape, dispute.box, dispute.mask)
        put(layer, case.spacing_mm, _ORIGIN)
        self._bring_near(dispute.at)

    def show_slice(self, axis: int, number: int) -> None:
        """Show one slice of the scan across an axis."""
        image = self.layer(IMAGE) or self.label
        if image is not None:
            at = list(image.world_to_data(self._viewer.dims.point))
            at[axis] = number
            self._viewer.dims.point = tuple(image.data_to_world(at))

    def _outline(self, case: OpenCase) -> Layer:
        """The layer that outlines a place, shown in 2D."""
        layer = self.layer(OUTLINE)
        if layer is None:
            layer = self._add_overlay(case, OUTLINE)
        layer.visible = self._viewer.dims.ndisplay == 2
        return layer

    def _bring_near(self, at: tuple[float, float, float]) -> None:
        self.look_at(at)
        camera = self._viewer.scene.camera
        camera.zoom = max(camera.zoom, min(self._viewer.canvas.size) / _FIELD_MM)

    def _turn_outlines(self, event: object = None) -> None:
        flat = self._viewer.dims.ndisplay == 2
        if not flat and (layer := self.layer(OUTLINE)) is not None:
            layer.visible = False
        wanted = 2 if self._outlines and flat else 0
        if self.label is not None and self.label.contour != wanted:
            self.label.contour = wanted

    def close(self) -> None:
        """Let go of the viewer."""
        self._viewer.dims.events.ndisplay.disconnect(self._turn_outlines)
        self.clear()

    def look_at(self, at: tuple[float, float, float]) -> None:
        """Bring a voxel (z, y, x) of the scan to the middle of the view."""
        image = self.layer(IMAGE) or self.label
        if image is None:
            return
        world = np.asarray(image.data_to_world(at))
        self._viewer.dims.point = tuple(world)
        centre = np.array(self._viewer.scene.camera.center)
        displayed = list(self._viewer.dims.displayed)
        centre[-len(displayed) :] = world[displayed]
        self._viewer.scene.camera.center = tuple(centre)

    def set_outlines(self, outlines: bool) -> None:
        """Draw only the label's outlines, or fill it."""
        self._outlines = outlines
        self._turn_outlines()

    def set_alone(self, alone: bool) -> None:
        """Show only the structure that is chosen, or all of them."""
        if self.label is not None and self.label.show_selected_label != alone:
            self.label.show_selected_label = alone

    def set_limits(self, limits: tuple[float, float]) -> None:
        """Show the scan's intensities between black and white from now on, of this case."""
        if (layer := self.layer(IMAGE)) is not None and tuple(layer.contrast_limits) != limits:
            layer.contrast_limits = limits

    def clear(self) -> None:
        """Remove the layers, and nothing that isn't ours."""
        for kind in list(self._layers):
            layer = self._layers.pop(kind)
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
        self._case = None

    def _show_label(self, case: OpenCase, read_only: bool) -> None:
        label = self.label
        if label is None:
            label = labels_layer(
                case.editor.label,
                case,
                case.table,
                LABEL,
                opacity=0.6,
                blending="translucent_no_depth",  # or the scan hides it in 3D
            )
            self._add(LABEL, label)
            tell_intensity(label, self.layer(IMAGE))
            for changed in (label.events.mode, label.events.brush_size):
                changed.connect(self._tell_brush)
            label.brush_size = _brush(case)
            if not read_only:
                label.mode = "paint"
            label.events.paint.connect(self._stroke)
            label.mouse_wheel_callbacks.append(self.region.wheel)
            self._region = ""
            label.events.data.connect(self._replaced)
            label.events.selected_label.connect(self._choose)
        else:
            mode = label.mode
            # Not being editable clears the layer's own undo, which would write one case's
            # voxels into the next.
            label.editable = False
            label.data = case.editor.label
            put(label, case.spacing_mm, _ORIGIN)
            label.editable = True
            label.mode = mode
        label.editable = not read_only
        self._viewer.layers.selection.active = label

    def _add_overlay(self, case: OpenCase, kind: str) -> Layer:
        """A hidden layer without voxels of its own, below the label or upon it."""
        if kind in _INDICES:
            nothing = np.zeros((1, 1, 1), np.uint8)
            layer = labels_layer(nothing, case, case.table, kind, opacity=0.5, visible=False)
            layer.editable = False
            if kind == ABOVE:
                layer.colormap = _LEFT_OUT
            elif kind == OUTLINE:
                layer.colormap, layer.contour, layer.opacity = _OUTLINE, 1, 1.0
        else:
            colours: Any = "viridis" if kind == CONFIDENCE else _HEAT
            layer = image_layer(
                np.zeros((1, 1, 1), np.float32),
                case,
                kind,
                contrast_limits=(0, 1),
                blending="translucent",
                visible=False,
                colormap=colours,
                opacity=0.5 if kind == CONFIDENCE else 1.0,
            )
        self._place(case, kind, layer)
        label = self.label
        above = kind in (*_OVER_LABEL, OUTLINE)
        place = None if label is None else self._viewer.layers.index(label) + int(above)
        self._add(kind, layer, place)
        if kind in OVERLAYS:
            layer.events.visible.connect(lambda event: self._shown(kind))
        return layer

    def _place(self, case: OpenCase, kind: str, layer: Layer) -> None:
        """Put an overlay where the case's training grid lies, without voxels of its own."""
        shape = case.image.shape if case.grid_placement is None else case.grid.shape
        dtype = np.uint8 if kind in _INDICES else np.float32
        show_voxels(layer, np.broadcast_to(np.zeros((), dtype), shape))
        put(layer, *self._where(case))

    @staticmethod
    def _where(case: OpenCase) -> tuple[Triple, Triple]:
        """Scale and translation of the overlays."""
        return case.grid_placement or (case.spacing_mm, _ORIGIN)

    def _mark(
        self, layer: Labels, shape: Sequence[int], box: Box, values: NDArray[np.uint8]
    ) -> None:
        if mark(layer, shape, box, values):
            self.refresh(layer)

    def _shown(self, kind: str) -> None:
        self._fill(kind)
        if (layer := self.layer(kind)) is not None:
            self._seen(kind, layer.visible)

    def _fill(self, kind: str) -> None:
        """Give an overlay its voxels if it is seen and they are out of date."""
        layer, case = self.layer(kind), self._case
        if layer is None or case is None or case.prediction is None:
            return
        if not layer.visible or kind not in self._stale:
            return
        self._stale.remove(kind)
        prediction = case.prediction
        if kind == PSEUDO:
            show_voxels(layer, case.shown(prediction.label))
        elif kind == CONFIDENCE:
            show_voxels(layer, case.shown(prediction.confidence.astype(np.float32)))
        elif kind == UNCERTAINTY and prediction.uncertainty is not None:
            doubt = prediction.uncertainty.astype(np.float32)
            show_voxels(layer, case.shown(doubt))
            highest = float(np.percentile(doubt[::2, ::2, ::2], 99.8))
            layer.contrast_limits = (0, max(highest, 1e-3))
        elif kind == ABOVE and case.screening is not None and case.screened is not None:
            if not layer.data.flags.writeable:
                show_voxels(layer, np.zeros(layer.data.shape, np.uint8))
            if case.grid_placement is not None:
                case.screening.target(case.screened.tau, out=layer.data)
            else:
                case.shown(case.screening.target(case.screened.tau), out=layer.data)
            self.refresh(layer)

    def mirror(self, layer: Layer, copy: Layer) -> list[Any]:
        """Let a copy of a layer in another plane, of the same array, take its keys and strokes.

        Returns what ends that: pairs of a signal and what is connected to it, and functions.
        """
        if layer not in self._layers.values():
            return []
        self.bind_keys(copy)
        pair = (layer, copy)
        self._mirrors.append(pair)
        ends: list[Any] = [lambda: self._mirrors.remove(pair)]
        if layer is self.label:
            copy.events.paint.connect(self._stroke)
            ends.append((copy.events.paint, self._stroke))
            copy.mouse_wheel_callbacks.append(self.region.wheel)
            copy.mouse_zoom = not self.region.commands
        return ends

    def refresh(self, layer: Layer) -> None:
        """Draw a layer again, in every plane, after its voxels changed in place."""
        layer.refresh()
        for own, copy in self._mirrors:
            if own is layer:
                copy.refresh()

    def bind_keys(self, layer: Layer, keys: Iterable[str] | None = None) -> None:
        """Let a layer know what keys do now: these, or all."""
        commands = {**self._keys, **self.region.commands}
        for key in commands if keys is None else keys:
            command = commands.get(key)
            does = command and (lambda _, command=command: command())
            layer.bind_key(key, does, overwrite=True)

    @property
    def region_mode(self) -> str:
        """REGION_ADD or REGION_REMOVE while the mouse draws such a stroke, else empty."""
        drawn_by = DRAWN_BY.get(self._region)
        return self._region if self.label is not None and self.label.mode == drawn_by else ""

    @property
    def case(self) -> OpenCase | None:
        """The case that is shown."""
        return self._case

    def everything(self) -> list[Layer]:
        """All layers that are there, and their copies in other planes."""
        own = [layer for kind in self._layers if (layer := self.layer(kind)) is not None]
        return own + [copy for _, copy in self._mirrors]

    def add(self, kind: str, layer: Layer) -> None:
        """Put one more layer on top, with the same keys."""
        self._add(kind, layer)

    def refresh_label(self) -> None:
        """Draw the label again, after its voxels changed in place."""
        if self.label is not None:
            self.refresh(self.label)

    def _add(self, kind: str, layer: Layer, place: int | None = None) -> None:
        selected = self._viewer.layers.selection.active
        self._layers[kind] = layer  # other planes ask for it as soon as it is in the viewer
        if place is None:
            self._viewer.layers.append(layer)
        else:
            self._viewer.layers.insert(place, layer)
        self.bind_keys(layer)
        self._keep(kind, layer)
        if selected is not None and selected in self._viewer.layers:
            self._viewer.layers.selection.active = selected

    def _tell_brush(self, event: object = None) -> None:
        if self.label is None:
            return
        mode = str(self.label.mode)
        if self._region and mode not in (DRAWN_BY[self._region], "pan_zoom"):
            self._draw_regions("")  # by a key of napari's
        self._brush(self.region_mode or mode, int(self.label.brush_size))

    def set_mode(self, mode: str) -> None:
        """Choose what the mouse does on the label: a mode of napari's, or a region stroke."""
        if self.label is not None and self.label.editable:
            self._viewer.layers.selection.active = self.label
            self._draw_regions(mode if mode in DRAWN_BY else "", DRAWN_BY.get(mode, mode))
        self._tell_brush()

    def _draw_regions(self, region: str, mode: str = "") -> None:
        """Draw region strokes from now on, with a thin brush, or no longer."""
        before, self._region = self._region, region
        if self.label is None:
            return
        if mode:
            self.label.mode = mode
        if region and not before:
            self._size_before = self.label.brush_size
        if bool(region) != bool(before):
            self.label.brush_size = 1 if region else self._size_before

    def set_ball(self, ball: bool) -> None:
        """Let the brush paint a ball, or a disc on the slice."""
        if self.label is not None:
            self.label.n_edit_dimensions = 3 if ball else 2

    def set_brush(self, size: int) -> None:
        """Choose the width of the brush in voxels."""
        if self.label is not None:
            self.label.brush_size = size

    def _stroke(self, event: Any) -> None:
        boxes = [getattr(change, "slice_key", None) for change in event.value]
        self._painted(_around(boxes))

    def _choose(self, event: object) -> None:
        if self.label is not None:
            self._chosen(int(self.label.selected_label))

    def _replaced(self, event: object) -> None:
        """Somebody gave the layer another array: take its voxels, and paint on ours again."""
        label, case = self.label, self._case
        if label is None or case is None or label.data is case.editor.label:
            return
        if label.data.shape == case.editor.label.shape:
            np.copyto(case.editor.label, label.data, casting="unsafe")
            self._painted(None)
        label.data = case.editor.label


def _brush(case: OpenCase) -> int:
    """A brush, in voxels, for the first case: a twentieth of the shorter side of an axial slice."""
    return max(1, round(min(case.image.shape[1:]) / 20))


def _extent(case: OpenCase) -> list[float]:
    """Voxels and voxel size (z, y, x) of a case."""
    return [*case.image.shape, *case.spacing_mm]


def _around(boxes: Sequence[Any]) -> Box | None:
    """The box around several; None where one isn't known."""
    if not boxes or not all(_is_box(box) for box in boxes):
        return None
    sides = zip(*boxes, strict=True)
    return tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, tuple)
        and len(box) == 3
        and all(isinstance(s, slice) and s.start is not None and s.stop is not None for s in box)
    )
