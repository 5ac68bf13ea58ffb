"""Three linked planes: the case under review from three sides, each of which takes every tool.

The two other planes are those of the plugin napari-orthogonal-views. They share the arrays of the
window's own layers, so nothing is copied.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from napari.layers import Layer
from napari.viewer import Viewer

from napari_jrss.widgets.layers.common import turn_head_up, without_brush_box
from napari_jrss.widgets.layers.orientation import OrientationLetters, canvas_in
from napari_jrss.widgets.layers.review import ReviewLayers

AVAILABLE = find_spec("napari_orthogonal_views") is not None
"""Whether the other planes can be shown."""
_SAGITTAL = (-1, -3, -2)  # axes of the view on the right, from those of an axial view: z is upright


class LinkedPlanes:
    """The two other planes of a viewer, with letters and a crosshair; made once they are shown."""

    def __init__(self, viewer: Viewer, layers: ReviewLayers) -> None:
        self._viewer, self._layers = viewer, layers
        self._manager: Any = None
        self._letters: list[OrientationLetters] = []
        self._turns: list[Any] = []

    def show(self, shown: bool) -> None:
        """Show the other planes, or only the window's own."""
        if shown:
            self._open()
        elif self._manager is not None:
            self._let_go()
            self._manager.hide()
            self._manager.controls_tab.hide()

    def close(self) -> None:
        """Take the planes away, as the window's own is closed or used without them."""
        self.show(False)
        self._manager = None

    @property
    def views(self) -> list[Any]:
        """The viewers of the planes that are shown: sagittal, then coronal."""
        manager = self._manager
        if manager is None or not manager.is_shown():
            return []
        return [each.vm_container.viewer_model for each in self._widgets]

    @property
    def _widgets(self) -> tuple[Any, Any]:
        return self._manager.right_widget, self._manager.bottom_widget

    def _open(self) -> None:
        if self.views:
            return
        self._manager = manager = self._manager or _manager_of(self._viewer)
        manager.register_layer_hook(Layer, self._layers.mirror, "napari-jrss")
        manager.show()
        manager.controls_tab.show()
        manager.main_controls_widget.show_checkbox.hide()  # the box in Review does that
        for each in (manager.controls_tab, *self._widgets):
            each.setMinimumSize(1, 1)  # or the dock beside the canvas is cut off
        sagittal, _ = self._widgets
        # The plugin lays the sagittal plane on its side, to share its rows with the axial one.
        sagittal.order, sagittal.sync_axes = _SAGITTAL, []
        manager.update_dims_order()
        manager.set_axes(False)  # letters say it
        manager.set_cross_hairs(True)
        for view, widget in zip(self.views, self._widgets, strict=True):
            without_brush_box(view)
            letters = OrientationLetters(view, canvas_in(widget))
            letters.show(True)
            self._letters.append(letters)
            self._turns.append(lambda event=None, view=view: turn_head_up(view))
            view.dims.events.order.connect(self._turns[-1])
            turn_head_up(view)
            view.reset_view()

    def _let_go(self) -> None:
        for view, letters, turn in zip(self.views, self._letters, self._turns, strict=False):
            view.dims.events.order.disconnect(turn)
            letters.close()
        self._letters, self._turns = [], []


def _manager_of(viewer: Viewer) -> Any:
    """What shows the planes of a viewer; its own documentation names this function for plugins."""
    from napari_orthogonal_views.ortho_view_manager import _get_manager

    return _get_manager(viewer)
