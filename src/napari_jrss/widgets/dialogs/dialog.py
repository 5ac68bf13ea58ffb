"""What the dialogs share: a message, buttons, and how errors are told."""

from contextlib import AbstractContextManager

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDialog, QDialogButtonBox, QLayout, QWidget

from napari_jrss.widgets.bridge import report_errors
from napari_jrss.widgets.controls import in_column, wrapped


class Dialog(QDialog):
    """A dialog that is gone once it is closed.

    With an `action`, its button `start` accepts, beside Cancel; else there is only Close. Its
    `message` says what stands in the way.
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
        in_column(self, *parts, self.message, self._buttons)

    def reporting(self) -> AbstractContextManager[None]:
        """Report an error within the block in the message."""
        return report_errors(self.message.setText)
