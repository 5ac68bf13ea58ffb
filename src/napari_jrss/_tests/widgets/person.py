"""A person who reviews: real clicks, strokes and keys in a real window."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Labels
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent, QWheelEvent
from qtpy.QtWidgets import QApplication, QWidget

from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.tabs.review import ReviewTab


class Person:
    """Uses the dock by what is on the screen."""

    def __init__(self, dock: MainWidget, qtbot: QtBot) -> None:
        self.dock, self.qtbot = dock, qtbot
        self.session, self.review = dock.session, dock.session.review
        self.tab: ReviewTab = dock.review
        self.viewer: Any = self.tab._viewer
        self.said: list[str] = []
        self.session.workspace.notified.connect(self.said.append)

    def settle(self) -> None:
        """Wait until the queue is empty and the window has shown what came of it."""
        self.qtbot.waitUntil(lambda: not self.review.queue.busy, timeout=10_000)
        self.qtbot.wait(150)  # the numbers are redrawn ten times a second

    def open(self, number: int = 0) -> str:
        """Open one of the unlabelled cases."""
        case_id = self.session.workspace.open_project.snapshot().unlabelled[number]
        self.review.open(case_id)
        self.settle()
        assert self.review.open_case.case_id == case_id
        return case_id

    def click(self, widget: Any) -> None:
        assert widget.isEnabled()
        self.qtbot.mouseClick(widget, Qt.MouseButton.LeftButton)
        self.settle()

    def press(self, key: Any, modifier: Any = Qt.KeyboardModifier.NoModifier) -> None:
        self.qtbot.keyClick(self.canvas, key, modifier)
        self.settle()

    @property
    def canvas(self) -> Any:
        (found,) = (
            widget
            for widget in self.dock.window().findChildren(QWidget)
            if type(widget).__name__.startswith("CanvasBackend")
        )
        return found

    @property
    def layer(self) -> Labels:
        label = self.tab.layers.label
        assert label is not None
        return label

    @property
    def label(self) -> np.ndarray:
        return self.review.open_case.editor.label

    def stroke(self, index: int, offset: int = 0) -> None:
        """Drag the brush over the middle of the canvas."""
        self.layer.mode = "paint"
        self.layer.selected_label = index
        self.layer.brush_size = 3
        self.drag(offset)

    def drag(self, offset: int = 0) -> None:
        """Drag the mouse over the middle of the canvas."""
        middle = QPointF(self.canvas.rect().center())
        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        path = [middle + QPointF(d + offset, d) for d in (-40, -20, 0, 20, 40)]
        # QTest's moves hold no button down, so they wouldn't drag.
        self._mouse(QEvent.Type.MouseMove, path[0], none, none)
        self._mouse(QEvent.Type.MouseButtonPress, path[0], left, left)
        for place in path[1:]:
            self._mouse(QEvent.Type.MouseMove, place, none, left)
        self._mouse(QEvent.Type.MouseButtonRelease, path[-1], left, none)
        self.settle()

    def point(self) -> None:
        """Put the mouse in the middle of the canvas."""
        middle, none = QPointF(self.canvas.rect().center()), Qt.MouseButton.NoButton
        self._mouse(QEvent.Type.MouseMove, middle, none, none)

    def wheel(self, up: bool) -> None:
        """Turn the mouse wheel by one notch over the middle of the canvas."""
        place = QPointF(self.canvas.rect().center())
        everywhere = QPointF(self.canvas.mapToGlobal(place.toPoint()))
        turn, none = QPoint(0, 120 if up else -120), Qt.MouseButton.NoButton
        modifier, phase = Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase
        event = QWheelEvent(place, everywhere, QPoint(0, 0), turn, none, modifier, phase, False)
        QApplication.sendEvent(self.canvas, event)
        self.settle()

    def _mouse(self, kind: Any, place: QPointF, button: Any, buttons: Any) -> None:
        everywhere = QPointF(self.canvas.mapToGlobal(place.toPoint()))
        modifier = Qt.KeyboardModifier.NoModifier
        event = QMouseEvent(kind, place, everywhere, button, buttons, modifier)
        QApplication.sendEvent(self.canvas, event)
        self.qtbot.wait(20)

    @property
    def z(self) -> int:
        """The slice that is looked at."""
        return int(self.viewer.dims.current_step[0])

    def shown(self) -> np.ndarray:
        """The label as the layer shows it in this slice."""
        rows, columns = self.label.shape[1:]
        return np.array(
            [[self.layer.get_value((self.z, y, x)) for x in range(columns)] for y in range(rows)]
        )

    def names(self) -> list[str]:
        return [layer.name for layer in self.viewer.layers]
