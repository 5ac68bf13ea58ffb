"""What Review asks a person: their name, a reason, and what becomes of unsaved corrections."""

from __future__ import annotations

from qtpy.QtWidgets import QComboBox, QInputDialog, QLineEdit, QMessageBox, QWidget

from napari_jrss.session.open_case import OpenCase
from napari_jrss.session.review import Leave


def ask_leave(parent: QWidget, case: OpenCase) -> Leave | None:
    """What to do with the corrections of a case that is left; None to stay."""
    box = QMessageBox(parent)
    box.setIcon(QMessageBox.Icon.Question)
    box.setWindowTitle("Unsaved corrections")
    box.setText(f"{case.case_id} has {case.editor.voxels_changed:,} corrected voxels.")
    box.setInformativeText(
        "Accept them as a new label version, keep them for later (they come back when the case "
        "is opened), or give them up?"
    )
    role = QMessageBox.ButtonRole
    buttons = {
        box.addButton("Accept case", role.AcceptRole): Leave.ACCEPT,
        box.addButton("Keep for later", role.ActionRole): Leave.KEEP,
        box.addButton("Give up", role.DestructiveRole): Leave.DISCARD,
    }
    stay = box.addButton("Stay here", role.RejectRole)
    box.setDefaultButton(stay)
    box.setEscapeButton(stay)
    box.exec()
    return buttons.get(box.clickedButton())


def ask_replace(parent: QWidget, case: OpenCase) -> bool:
    """Whether another draft may take the place of corrections."""
    box = QMessageBox(parent)
    box.setIcon(QMessageBox.Icon.Question)
    box.setWindowTitle("Start from another draft")
    box.setText(f"{case.case_id} has {case.editor.voxels_changed:,} corrected voxels.")
    box.setInformativeText(
        "The draft takes their place. Undo brings them back, but only until the case is left."
    )
    replace = box.addButton("Replace them", QMessageBox.ButtonRole.DestructiveRole)
    stay = box.addButton("Stay here", QMessageBox.ButtonRole.RejectRole)
    box.setDefaultButton(stay)
    box.setEscapeButton(stay)
    box.exec()
    return box.clickedButton() is replace


def ask_name(parent: QWidget) -> str:
    """The person's name; empty if they don't say."""
    name, given = QInputDialog.getText(
        parent,
        "Your name",
        "Each label version says who made it.\nYour name, which is asked only once:",
        QLineEdit.EchoMode.Normal,
    )
    return name.strip() if given else ""


def ask_reason(parent: QWidget, title: str, question: str, usual: list[str]) -> str | None:
    """A reason, chosen from the usual ones or as it was typed; None if the person cancels."""
    dialog = QInputDialog(parent)
    dialog.setWindowTitle(title)
    dialog.setLabelText(question)
    dialog.setComboBoxItems(usual)
    dialog.setComboBoxEditable(True)
    combo = dialog.findChild(QComboBox)
    # What is typed stays as typed: neither completed nor made to match one of the list.
    combo.setCompleter(None)
    combo.setDuplicatesEnabled(True)
    return dialog.textValue().strip() if dialog.exec() else None
