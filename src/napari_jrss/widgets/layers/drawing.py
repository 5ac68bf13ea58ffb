"""Drawing on the canvas with the mouse, where the line isn't to be painted into the label."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from napari.layers import Labels, Shapes
from napari.viewer import Viewer

TRAIL = "drawing"
_GREEN, _RED = "#30d060", "#ff5050"
_SHOWN_AS = {"path": "path", "rectangle": "rectangle", "point": "path"}


class Drawing:
    """Takes the mouse on a label in 2D: a press, a drag and a release are one drawing.

    `drawn` is called with the points (n, 3) in voxels, the axis that the view looks along, and
    whether they show what is inside (Ctrl: outside). `ended` is called when the person goes back
    to another tool. A line shows what is being drawn.
    """

    def __init__(
        self,
        viewer: Viewer,
        drawn: Callable[[np.ndarray, int, bool], object],
        ended: Callable[[], object],
    ) -> None:
        self._viewer = viewer
        self._drawn = drawn
        self._ended = ended
        self._label: Labels | None = None
        self._trail: Shapes | None = None
        self._shape = "path"
        self.inside = True  # what a drawing shows where Ctrl isn't held

    @property
    def active(self) -> bool:
        """Whether the mouse draws."""
        return self._label is not None

    def begin(self, label: Labels, shape: str) -> None:
        """Draw on a label from now on: a ``path``, a ``rectangle`` or a ``point``."""
        self.end()
        self._label, self._shape = label, shape
        self._viewer.layers.selection.active = label
        label.mode = "pan_zoom"
        label.mouse_pan = False
        label.mouse_drag_callbacks.append(self._drag)
        label.events.mode.connect(self._mode_changed)

    def end(self) -> None:
        """Give the mouse back; safe to call again."""
        label, self._label = self._label, None
        if label is None:
            return
        label.mouse_drag_callbacks.remove(self._drag)
        label.events.mode.disconnect(self._mode_changed)
        if label.mode == "pan_zoom":
            label.mouse_pan = True
        self.clear()
        self._ended()

    def clear(self) -> None:
        """Take the line away."""
        trail, self._trail = self._trail, None
        if trail is not None and trail in self._viewer.layers:
            self._viewer.layers.remove(trail)

    def _mode_changed(self, event: object = None) -> None:
        if self._label is not None and self._label.mode != "pan_zoom":
            self.end()

    def _drag(self, label: Labels, event: Any) -> Iterator[None]:
        if event.button != 1 or self._viewer.dims.ndisplay != 2:
            return
        inside = self.inside and "Control" not in event.modifiers
        axis = int(self._viewer.dims.order[0])
        points = [self._voxel(label, event.position)]
        yield
        while event.type == "mouse_move":
            if self._shape != "point":
                points.append(self._voxel(label, event.position))
                self._show(label, points, axis, inside)
            yield
        self.clear()
        found = np.array(points)
        found[:, axis] = np.rint(points[0][axis])
        if self._shape == "rectangle":
            found = found[[0, -1]]
        self._drawn(found, axis, inside)

    @staticmethod
    def _voxel(label: Labels, position: Any) -> np.ndarray:
        return np.asarray(label.world_to_data(position), float)

    def _show(self, label: Labels, points: list[np.ndarray], axis: int, inside: bool) -> None:
        if self._trail is None:
            self._trail = Shapes(
                ndim=3,
                name=TRAIL,
                scale=label.scale,
                translate=label.translate,
                units=label.units,
                axis_labels=label.axis_labels,
            )
            self._viewer.layers.append(self._trail)
            self._viewer.layers.selection.active = label
        line = np.array(points)
        if self._shape == "rectangle":
            line = _corners(line[0], line[-1], axis)
        voxel = float(np.delete(label.scale, axis).min())
        self._trail.data = []
        self._trail.add(
            line,
            shape_type=_SHOWN_AS[self._shape],
            edge_color=_GREEN if inside else _RED,
            edge_width=max(0.6, 0.6 / max(voxel, 1e-3)),
            face_color="transparent",
        )


def _corners(first: np.ndarray, last: np.ndarray, axis: int) -> np.ndarray:
    """The four corners (4, 3) of a rectangle on a slice."""
    a, b = (each for each in range(3) if each != axis)
    corners = np.repeat(first[None], 4, axis=0)
    corners[1:3, a], corners[2:, b] = last[a], last[b]
    return corners
