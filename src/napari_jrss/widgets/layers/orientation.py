"""Letters at the edges of the canvas that say where the patient's right, front and head are."""

from typing import Any

from napari.components import ViewerModel
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QLabel, QWidget

# By axis (z, y, x) of the layers, which are turned to LPS: the end with the first voxel, and the
# other one.
_ENDS = (("I", "S"), ("A", "P"), ("R", "L"))
_PLACES = ((0.0, 0.5), (1.0, 0.5), (0.5, 0.0), (0.5, 1.0))  # parts of the width and the height
_MARGIN = 4  # pixels
_STYLE = """
    color: white; background: rgba(0, 0, 0, 120); border-radius: 4px;
    padding: 1px 5px; font-size: 14pt
"""


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


def canvas_in(area: QWidget) -> QWidget:
    """What a view is drawn on, inside the widget that shows the view."""
    return area.findChild(QOpenGLWidget) or area


class OrientationLetters(QObject):
    """The letters R, L, A, P, S and I on a 2D view, while they are wanted.

    They are labels of Qt. napari draws each text of its own with a program of its own, which took
    7 of 38 ms of a drawing in software for the four; these take 2 ms.
    """

    def __init__(self, viewer: ViewerModel, canvas: QWidget) -> None:
        super().__init__(canvas)
        self._viewer, self._canvas = viewer, canvas
        self._wanted = False
        self._labels = [QLabel(canvas) for _ in _PLACES]
        for label in self._labels:
            label.setStyleSheet(_STYLE)
            label.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        canvas.installEventFilter(self)
        self._signals: tuple[Any, ...] = (
            viewer.dims.events.order,
            viewer.dims.events.ndisplay,
            viewer.scene.camera.events.orientation,
        )
        for signal in self._signals:
            signal.connect(self._draw)
        self._draw()

    @property
    def text(self) -> str:
        """The letters that are seen, from the left clockwise; empty where there are none."""
        left, right, top, bottom = self._labels
        shown = (left, top, right, bottom)
        return "".join(each.text() for each in shown if each.isVisibleTo(self._canvas))

    def show(self, wanted: bool) -> None:
        """Show the letters from now on, or no longer."""
        self._wanted = wanted
        self._draw()

    def close(self) -> None:
        """Take them off the view."""
        for signal in self._signals:
            signal.disconnect(self._draw)
        self._canvas.removeEventFilter(self)
        for label in self._labels:
            label.hide()
            label.deleteLater()
        self.deleteLater()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Keep the letters at the edges, when the canvas gets another size."""
        if event.type() == QEvent.Type.Resize:
            self._place()
        return False

    def _draw(self, event: object = None) -> None:
        dims = self._viewer.dims
        flat = self._wanted and dims.ndisplay == 2 and dims.ndim >= 3
        if flat:
            texts = letters(tuple(dims.order), self._viewer.scene.camera.orientation2d)
            for label, text in zip(self._labels, texts, strict=True):
                label.setText(text)
        for label in self._labels:
            label.setVisible(flat)
        self._place()

    def _place(self) -> None:
        for label, (across, down) in zip(self._labels, _PLACES, strict=True):
            label.adjustSize()
            room = self._canvas.size() - label.size()
            label.move(
                round(_MARGIN + across * (room.width() - 2 * _MARGIN)),
                round(_MARGIN + down * (room.height() - 2 * _MARGIN)),
            )
