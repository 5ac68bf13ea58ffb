"""A small plot, drawn by hand: a few curves, their names, and the ends of the axes."""

from collections.abc import Sequence
from dataclasses import dataclass

from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

from napari_jrss.app.rounds.progress import Curve

# Told apart by people who confuse red and green, on dark and on light.
COLOURS = ("#4c9be8", "#e8903c", "#8fbf6a", "#c78bd6")
_MARGIN, _POINTS = 4, 400


@dataclass(frozen=True)
class Line:
    """A named curve; `marks` its points, where they are few."""

    name: str
    curve: Curve
    marks: bool = False


class Plot(QWidget):
    """Lines over one x axis; `y_range` fixes the ends of the y axis, else the data do."""

    def __init__(self, title: str, x_name: str, y_range: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.nothing = "No data yet"  # what is said where there is no curve
        self._title, self._x_name, self._y_range = title, x_name, y_range
        self.lines: Sequence[Line] = ()
        self.setMinimumHeight(110)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.setToolTip(f"{title} over {x_name}")

    def sizeHint(self) -> QSize:  # noqa: N802
        """The size of a small plot."""
        return QSize(360, 120)

    def show_lines(self, lines: Sequence[Line]) -> None:
        """Draw these lines from now on."""
        self.lines = [line for line in lines if line.curve.x]
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        """Title and names above, the frame below, the curves in it."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        ink = self.palette().windowText().color()
        faint = QColor(ink)
        faint.setAlpha(90)
        row = painter.fontMetrics().height()
        low, high = self._ends()
        left = max(painter.fontMetrics().horizontalAdvance(_short(v)) for v in (low, high))
        frame = QRectF(self.rect()).adjusted(
            left + 2 * _MARGIN, row + 2 * _MARGIN, -_MARGIN, -(row + _MARGIN)
        )
        painter.setPen(ink)
        painter.drawText(_MARGIN, row, self._title)
        self._draw_names(painter, row)
        painter.setPen(faint)
        painter.drawRect(frame)
        if not self.lines:
            wrapped = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
            painter.drawText(frame, int(wrapped), self.nothing)
            return
        start = min(line.curve.x[0] for line in self.lines)
        end = max(line.curve.x[-1] for line in self.lines)
        for value, y in ((high, frame.top() + row * 0.7), (low, frame.bottom())):
            width = painter.fontMetrics().horizontalAdvance(_short(value))
            painter.drawText(QPointF(frame.left() - width - _MARGIN, y), _short(value))
        bottom = frame.bottom() + row
        painter.drawText(QPointF(frame.left(), bottom), f"{_short(start)}")
        last = f"{self._x_name} {_short(end)}"
        width = painter.fontMetrics().horizontalAdvance(last)
        painter.drawText(QPointF(frame.right() - width, bottom), last)
        for number, line in enumerate(self.lines):
            points = [
                QPointF(
                    frame.left() + frame.width() * _share(x, start, end),
                    frame.bottom() - frame.height() * _share(y, low, high),
                )
                for x, y in _thinned(line.curve)
            ]
            colour = QColor(COLOURS[number % len(COLOURS)])
            painter.setPen(QPen(colour, 1.6))
            painter.drawPolyline(QPolygonF(points))
            if line.marks or len(points) == 1:
                painter.setBrush(colour)
                for point in points:
                    painter.drawEllipse(point, 3, 3)
                painter.setBrush(Qt.BrushStyle.NoBrush)

    def _draw_names(self, painter: QPainter, row: int) -> None:
        right = self.width() - _MARGIN
        for number, line in reversed(list(enumerate(self.lines))):
            text = f"{line.name} {_short(line.curve.y[-1])}"
            right -= painter.fontMetrics().horizontalAdvance(text)
            painter.setPen(QColor(COLOURS[number % len(COLOURS)]))
            painter.drawText(right, row, text)
            right -= 3 * _MARGIN

    def _ends(self) -> tuple[float, float]:
        if self._y_range is not None:
            return self._y_range
        values = [y for line in self.lines for y in line.curve.y] or [0.0, 1.0]
        low, high = min(0.0, *values), max(values)
        return low, high if high > low else low + 1


def _share(value: float, low: float, high: float) -> float:
    """Where a value lies between two others, 0 to 1; the middle if they are the same."""
    return 0.5 if high == low else min(1.0, max(0.0, (value - low) / (high - low)))


def _short(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    """No more points than there are pixels; the latest is among them."""
    step = -(-len(curve.x) // _POINTS)
    points = list(zip(curve.x, curve.y, strict=True))
    return points[-1::-step][::-1]
