"""Small parts that tabs and dialogs are made of: buttons, texts, rows, and a field for a path."""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from qtpy.QtCore import QEvent, QObject, QSize, Qt, Signal
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QLineEdit,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)


def button(
    text: str, tooltip: str, command: Callable[[], object], shortcut: str = ""
) -> QPushButton:
    """A push button that calls one command; its tooltip names the shortcut."""
    made = QPushButton(text)
    if shortcut:
        made.setShortcut(shortcut)
        key = made.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
        tooltip = f"{tooltip} ({key})"
    made.setToolTip(tooltip)
    made.clicked.connect(lambda: command())
    return made


def wrapped(text: str = "") -> QLabel:
    """A text of several lines, shown as it is."""
    return QLabel(text, textFormat=Qt.TextFormat.PlainText, wordWrap=True)


def say(label: QLabel, text: str) -> None:
    """Show a text, or hide the label if the text is empty."""
    label.setText(text)
    label.setVisible(bool(text))


def choice(tooltip: str, *texts: str) -> QComboBox:
    """A box that offers some texts."""
    box = QComboBox(toolTip=tooltip)
    box.addItems(texts)
    return box


def in_row(*widgets: QWidget, stretch: Sequence[int] = ()) -> QHBoxLayout:
    """Widgets side by side, with their shares of the width that is left."""
    layout = QHBoxLayout()
    for widget, share in zip_longest(widgets, stretch, fillvalue=0):
        layout.addWidget(widget, share)
    return layout


def in_column(owner: QWidget, *parts: QWidget | QLayout) -> QVBoxLayout:
    """Lay out a widget: its parts one below the other."""
    layout = QVBoxLayout(owner)
    for part in parts:
        (layout.addLayout if isinstance(part, QLayout) else layout.addWidget)(part)
    return layout


def in_form(rows: Mapping[str, QWidget]) -> QFormLayout:
    """Widgets one below the other, each with its name."""
    form = QFormLayout()
    for name, widget in rows.items():
        form.addRow(name, widget)
    return form


class Scroller(QScrollArea):
    """A page with a scroll bar where the window is too low for it; it is as wide as it needs."""

    def __init__(self, page: QWidget) -> None:
        super().__init__(widgetResizable=True, frameShape=QScrollArea.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidget(page)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """The width of the page with its scroll bar; any height."""
        bar = self.verticalScrollBar().sizeHint().width()
        return QSize(self.widget().minimumSizeHint().width() + bar, 0)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Ask for more width when the page needs more."""
        if event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
            if self.minimumSizeHint().width() > self.width():
                above = self.parentWidget()
                while above is not None and not above.isWindow():  # tabs and docks pass nothing on
                    above.updateGeometry()
                    above = above.parentWidget()
        return super().eventFilter(watched, event)


def scrolled(page: QWidget, tab: QWidget) -> None:
    """Let a page fill a tab, with a scroll bar where the window is too low for it."""
    in_column(tab, Scroller(page)).setContentsMargins(0, 0, 0, 0)


def ask_folder(parent: QWidget, title: str, use: Callable[[Path], object]) -> None:
    """Ask for a folder, and use it unless the person cancels."""
    chosen = QFileDialog.getExistingDirectory(parent, title)
    if chosen:
        use(Path(chosen))


class PathField(QWidget):
    """A path to type or to choose: a folder, or a file of a pattern as Qt writes them.

    :attr:`changed` is emitted with every change of its text.
    """

    changed = Signal()

    def __init__(self, title: str, tooltip: str, pattern: str | None = None) -> None:
        super().__init__()
        self._title, self._pattern = title, pattern
        self.edit = QLineEdit(toolTip=tooltip)
        self.edit.textChanged.connect(self.changed)
        choose = button("…", f"Choose: {tooltip}", self._choose)
        choose.setFixedWidth(30)
        choose.setAutoDefault(False)
        in_column(self, in_row(self.edit, choose)).setContentsMargins(0, 0, 0, 0)

    def path(self) -> Path | None:
        """The path, or None if the field is empty."""
        text = self.edit.text().strip()
        return Path(text).expanduser() if text else None

    def set_path(self, path: Path | None) -> None:
        """Show a path."""
        self.edit.setText("" if path is None else str(path))

    def _choose(self) -> None:
        start = str(self.path() or "")
        if self._pattern is None:
            chosen = QFileDialog.getExistingDirectory(self, self._title, start)
        else:
            chosen, _ = QFileDialog.getOpenFileName(self, self._title, start, self._pattern)
        if chosen:
            self.edit.setText(chosen)
