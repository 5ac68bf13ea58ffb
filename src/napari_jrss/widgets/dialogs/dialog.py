"""What the dialogs share: a message, buttons, and how errors are told."""

from __future__ import annotations

from contextlib import AbstractContextManager

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QDialogButtonBox, QLayout, QVBoxLayout, QWidget

from napari_jrss.widgets.bridge import report_errors
from napari_jrss.widgets.controls import wrapped


class Dialog(QDialog):
    """A dialog that is gone once it is closed.

    Parameters
    ----------
    parent
        The widget that opens it.
    title
        Title of the window.
    action, tooltip
        Text and tooltip of the button that accepts, beside Cancel; there is only Close without
        it.

    Attributes
    ----------
    message
        A text, such as what stands in the way.
    start
        The button that accepts, if there is one.
    """

    def __init__(self, parent: QWidget, title: str, action: str = "", tooltip: str = "") -> None:
        super().__init__(parent)
        self.setWindowTitle(title)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.message = wrapped()
        standard = QDialogButtonBox.StandardButton
        self._buttons = QDialogButtonBox(standard.Cancel if action else standard.Close)
        if action:
            self.start = self._buttons.addButton(action, QDialogButtonBox.ButtonRole.AcceptRole)
            self.start.setToolTip(tooltip)
            self.start.setDefault(True)
        self._buttons.accepted.connect(self.accept)
        self._buttons.rejected.connect(self.reject)

    def lay_out(self, *parts: QWidget | QLayout) -> None:
        """Put parts one below the other, then the message, then the buttons."""
        layout = QVBoxLayout(self)
        for part in (*parts, self.message, self._buttons):
            (layout.addLayout if isinstance(part, QLayout) else layout.addWidget)(part)

    def reporting(self) -> AbstractContextManager[None]:
        """Report an error within the block in the message."""
        return report_errors(self.message.setText)
