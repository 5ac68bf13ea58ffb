"""Menus of the tab Review: what the brush may change, and the tools that are needed less often."""

from collections.abc import Callable
from dataclasses import replace

from qtpy.QtCore import Signal
from qtpy.QtGui import QAction
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QLabel,
    QMenu,
    QToolButton,
    QWidget,
    QWidgetAction,
)

from napari_jrss.app.review.brush import BrushLimits
from napari_jrss.app.review.open_case import OpenCase
from napari_jrss.widgets.controls import in_column, in_row

_ANYTHING = "anything"
GROW, SHRINK, TAKE_PART = "Grow (G)", "Shrink (Shift+G)", "Take the draft here (C)"
_TIPS = {
    GROW: "Let the chosen structure grow into the background by its smallest voxel size",
    SHRINK: "Let the chosen structure shrink by its smallest voxel size; neighbours take it",
    TAKE_PART: "Under the mouse, take what the draft that is chosen above says, in the connected "
    "part\nwhere it differs from your label",
}


class _MenuButton(QToolButton):
    """A button that opens a menu, with room for its arrow beside the text."""

    def __init__(self, tooltip: str) -> None:
        super().__init__(toolTip=tooltip)
        self.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.setStyleSheet("QToolButton { padding-right: 14px; }")


class BrushMenu(_MenuButton):
    """What the brush changes, in a menu that opens below."""

    limited = Signal(object)
    """The :class:`BrushLimits` that were chosen."""
    ball = Signal(bool)
    """Whether the brush is a ball in 3D."""

    def __init__(self) -> None:
        super().__init__("What the brush may change")
        self._limits = BrushLimits()
        self.in_3d = QCheckBox("Ball: paint in 3D", toolTip="Not only on this slice")
        self.in_3d.toggled.connect(self.ball)
        self.over = QComboBox(
            toolTip="The only structure that is painted over or erased, or the background"
        )
        self.over.activated.connect(self._chosen)
        self.some = QCheckBox(
            "Only intensities", toolTip="Paint and erase only where the scan has these intensities"
        )
        self.some.toggled.connect(self._chosen)
        self.low, self.high = (
            QDoubleSpinBox(decimals=1, keyboardTracking=False, toolTip=tip)
            for tip in ("The least intensity", "The largest intensity")
        )
        for each in (self.low, self.high):
            each.valueChanged.connect(self._chosen)
        self.to_neighbour = QCheckBox(
            "Eraser gives to the neighbour",
            toolTip="What is erased becomes the nearest other structure, or background",
        )
        self.to_neighbour.toggled.connect(self._chosen)
        page = QWidget()
        in_column(
            page,
            self.in_3d,
            in_row(QLabel("Paint over"), self.over, stretch=(0, 1)),
            in_row(self.some, self.low, QLabel("to"), self.high),
            QLabel("K: only intensities like those under the mouse, or all"),
            self.to_neighbour,
        )
        action = QWidgetAction(self)
        action.setDefaultWidget(page)
        menu = QMenu(self)
        menu.addAction(action)
        self.setMenu(menu)
        self.show_limits(None, self._limits)

    def show_limits(self, case: OpenCase | None, limits: BrushLimits) -> None:
        """Show what the brush may change in a case."""
        self._limits = limits
        parts = (self.over, self.some, self.low, self.high, self.to_neighbour)
        for each in parts:
            each.blockSignals(True)
        self.over.clear()
        self.over.addItem(_ANYTHING, None)
        if case is not None:
            for index, name in enumerate(case.table.names):
                self.over.addItem(name if index else "background", index)
            for each in (self.low, self.high):
                each.setRange(*case.extremes)
                each.setSingleStep((case.extremes[1] - case.extremes[0]) / 100)
            self.low.setValue((limits.intensities or case.extremes)[0])
            self.high.setValue((limits.intensities or case.extremes)[1])
        self.over.setCurrentIndex(max(self.over.findData(limits.over), 0))
        self.some.setChecked(limits.intensities is not None)
        self.to_neighbour.setChecked(limits.to_neighbour)
        for each in parts:
            each.blockSignals(False)
        for each in (self.low, self.high):
            each.setEnabled(self.some.isChecked())
        # A brush that leaves voxels out says so.
        self.setText("Brush" if limits == BrushLimits() else "Limited")

    def _chosen(self, _: object = None) -> None:
        range_ = (self.low.value(), self.high.value()) if self.some.isChecked() else None
        self.limited.emit(
            replace(
                self._limits,
                intensities=range_,
                over=self.over.currentData(),
                to_neighbour=self.to_neighbour.isChecked(),
            )
        )


class MoreTools(_MenuButton):
    """The tools that are needed less often; `tools` by their text."""

    split = Signal(str, int)
    """The patient's side, and the structure that gets it."""

    def __init__(self, commands: dict[str, Callable[[], object]]) -> None:
        super().__init__("Further tools for the chosen structure")
        self.setText("More")
        menu = QMenu(self)
        menu.setToolTipsVisible(True)
        self.tools: dict[str, QAction] = {}
        for text, command in commands.items():
            action = self.tools[text] = menu.addAction(text)
            action.setToolTip(_TIPS[text])
            action.triggered.connect(lambda _=False, command=command: command())
        self.sides = {
            side: menu.addMenu(f"Give the patient's {side} part to") for side in ("left", "right")
        }
        self.setMenu(menu)

    def show_structures(self, names: list[str]) -> None:
        """Offer each structure (without the background) for a side."""
        for side, menu in self.sides.items():
            menu.clear()
            for index, name in enumerate(names, 1):
                action = menu.addAction(name)
                action.triggered.connect(
                    lambda _=False, side=side, index=index: self.split.emit(side, index)
                )
