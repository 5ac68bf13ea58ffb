"""What Review asks a person: their name, a reason, and what to do with unsaved corrections."""

from collections.abc import Sequence
from typing import TypeVar

from qtpy.QtWidgets import QComboBox, QInputDialog, QLineEdit, QMessageBox, QWidget

from napari_jrss.app.review.open_case import OpenCase
from napari_jrss.app.review.review import Leave

T = TypeVar("T")
_NAMED = 12  # structures that a question names


def ask_leave(parent: QWidget, case: OpenCase) -> Leave | None:
    """What to do with the corrections of a case that is left; None to stay."""
    choices = {
        "Accept case": (QMessageBox.ButtonRole.AcceptRole, Leave.ACCEPT),
        "Keep for later": (QMessageBox.ButtonRole.ActionRole, Leave.KEEP),
        "Discard": (QMessageBox.ButtonRole.DestructiveRole, Leave.DISCARD),
    }
    question = (
        "Accept them as a new label version, keep them for later (they come back when you open "
        "the case again), or discard them?"
    )
    return _ask_of_corrections(parent, case, "Unsaved corrections", question, choices)


def ask_replace(parent: QWidget, case: OpenCase) -> bool:
    """Whether another draft may take the place of corrections."""
    choices = {"Replace them": (QMessageBox.ButtonRole.DestructiveRole, True)}
    question = "The draft replaces them. Undo brings them back, but only until you leave the case."
    return _ask_of_corrections(parent, case, "Start from another draft", question, choices) is True


def ask_missing(parent: QWidget, case: OpenCase, missing: Sequence[str]) -> bool:
    """Whether to accept a label although structures are empty in it."""
    shown = ", ".join(missing[:_NAMED]) + (" …" if len(missing) > _NAMED else "")
    which = "1 structure is" if len(missing) == 1 else f"{len(missing)} structures are"
    return (
        _ask(
            parent,
            "Empty structures",
            f"{case.case_id}: {which} empty.",
            f"{shown}\n\nTraining would learn that this scan has none of it.",
            {"Accept all the same": (QMessageBox.ButtonRole.AcceptRole, True)},
        )
        is True
    )


def _ask_of_corrections(
    parent: QWidget,
    case: OpenCase,
    title: str,
    question: str,
    choices: dict[str, tuple[QMessageBox.ButtonRole, T]],
) -> T | None:
    text = f"{case.case_id} has {case.editor.voxels_changed:,} corrected voxels."
    return _ask(parent, title, text, question, choices)


def _ask(
    parent: QWidget,
    title: str,
    text: str,
    question: str,
    choices: dict[str, tuple[QMessageBox.ButtonRole, T]],
) -> T | None:
    """The meaning of the button that was clicked; None for "Stay here"."""
    box = QMessageBox(QMessageBox.Icon.Question, title, text, parent=parent)
    box.setInformativeText(question)
    meanings = {box.addButton(text, role): meaning for text, (role, meaning) in choices.items()}
    stay = box.addButton("Stay here", QMessageBox.ButtonRole.RejectRole)
    box.setDefaultButton(stay)
    box.setEscapeButton(stay)
    box.exec()
    return meanings.get(box.clickedButton())


def ask_name(parent: QWidget) -> str:
    """The person's name; empty if they don't say."""
    name, given = QInputDialog.getText(
        parent,
        "Your name",
        "Your name is recorded with each label version. It is asked only once:",
        QLineEdit.EchoMode.Normal,
    )
    return name.strip() if given else ""


def ask_reason(parent: QWidget, title: str, question: str, usual: list[str]) -> str | None:
    """A reason, chosen from the usual ones or as it was typed; None if the person cancels."""
    dialog = QInputDialog(parent, windowTitle=title)
    dialog.setLabelText(question)
    dialog.setComboBoxItems(usual)
    dialog.setComboBoxEditable(True)
    combo = dialog.findChild(QComboBox)
    # What is typed stays as typed: neither completed nor made to match one of the list.
    combo.setCompleter(None)
    combo.setDuplicatesEnabled(True)
    return dialog.textValue().strip() if dialog.exec() else None
