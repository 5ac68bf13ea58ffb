"""Letters at the edges of the canvas that say where the patient's right, front and head are."""

from typing import Any

from napari.components.overlays import TextOverlay
from napari.viewer import Viewer

# By axis (z, y, x) of the layers, which are turned to LPS: the end with the first voxel, and the
# other one.
_ENDS = (("I", "S"), ("A", "P"), ("R", "L"))
_PLACES = ("middle_left", "middle_right", "top_center", "bottom_center")
_NAME = "napari_jrss {}"


def letters(order: tuple[int, ...], orientation: tuple[str, str]) -> tuple[str, str, str, str]:
    """Letters at the left, the right, the top and the bottom of a 2D view.

    Parameters
    ----------
    order
        The viewer's order of axes; the last two are displayed, rows first.
    orientation
        Where the view's vertical and horizontal axis point, such as ``("down", "right")``.
    """
    rows, columns = (_ENDS[axis - len(order) + 3] for axis in order[-2:])
    vertical, horizontal = (str(each) for each in orientation)
    left, right = columns if horizontal == "right" else columns[::-1]
    top, bottom = rows if vertical == "down" else rows[::-1]
    return left, right, top, bottom


class OrientationLetters:
    """The letters R, L, A, P, S and I on a viewer, in 2D views, while they are wanted."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._wanted = False
        self._overlays = [
            TextOverlay(position=place, font_size=14, gridded=True) for place in _PLACES
        ]
        for place, overlay in zip(_PLACES, self._overlays, strict=True):
            viewer.canvas.overlays[_NAME.format(place)] = overlay
        self._signals: tuple[Any, ...] = (
            viewer.dims.events.order,
            viewer.dims.events.ndisplay,
            viewer.scene.camera.events.orientation,
        )
        for signal in self._signals:
            signal.connect(self._draw)

    @property
    def text(self) -> str:
        """The letters that are seen, from the left clockwise; empty where there are none."""
        left, right, top, bottom = self._overlays
        shown = (left, top, right, bottom)
        return "".join(each.text for each in shown if each.visible)

    def show(self, wanted: bool) -> None:
        """Show the letters from now on, or no longer."""
        self._wanted = wanted
        self._draw()

    def close(self) -> None:
        """Take them off the viewer."""
        for signal in self._signals:
            signal.disconnect(self._draw)
        self.show(False)
        for place in _PLACES:
            self._viewer.canvas.overlays.pop(_NAME.format(place), None)

    def _draw(self, event: object = None) -> None:
        dims = self._viewer.dims
        flat = self._wanted and dims.ndisplay == 2 and dims.ndim >= 3
        if flat:
            texts = letters(tuple(dims.order), self._viewer.scene.camera.orientation2d)
            for overlay, text in zip(self._overlays, texts, strict=True):
                overlay.text = text
        for overlay in self._overlays:
            overlay.visible = flat
