"""Answers modal dialogs as a person does: by clicks and keys on the dialog that came up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractButton,
    QApplication,
    QComboBox,
    QDialog,
    QFileDialog,
    QInputDialog,
    QLineEdit,
    QMessageBox,
    QWidget,
)

LOOK_MS, PATIENCE_S = 20, 20.0


@contextmanager
def answering(*answers: Callable[[Any], str]) -> Iterator[list[str]]:
    """Within the block these answers are given to modal dialogs, one after the other.

    Each answer gets the dialog and returns what it asked. A dialog that no answer fits is closed,
    so that no test hangs, and the answer's error raised at the end; so is a dialog that never
    came.
    """
    asked: list[str] = []
    faults: list[Exception] = []
    left = list(answers)
    done: list[QWidget] = []
    timer = QTimer()
    timer.setInterval(LOOK_MS)

    def look() -> None:
        dialog = QApplication.activeModalWidget()
        if not isinstance(dialog, QDialog) or not dialog.isVisible() or dialog in done:
            return
        done.append(dialog)
        try:
            assert left, f"a {type(dialog).__name__} that nobody expected"
            asked.append(left.pop(0)(dialog))
        except Exception as error:
            faults.append(error)
            dialog.reject()

    timer.timeout.connect(look)
    timer.start()
    try:
        yield asked
        until = time.monotonic() + PATIENCE_S
        while left and not faults and time.monotonic() < until:
            QTest.qWait(LOOK_MS)
    finally:
        timer.stop()
    if faults:
        raise faults[0]
    assert not left, f"{len(left)} dialogs never came up"


def press(text: str) -> Callable[[Any], str]:
    """Click this button of a question."""

    def answer(box: Any) -> str:
        assert isinstance(box, QMessageBox)
        asked = box.text()
        click(next(b for b in box.buttons() if b.text().replace("&", "") == text))
        return asked

    return answer


def write(text: str, button: str = "OK") -> Callable[[Any], str]:
    """Type into the one field of a dialog, in place of what is there, and click a button."""

    def answer(dialog: Any) -> str:
        assert isinstance(dialog, QInputDialog)
        asked = dialog.labelText()
        combo = dialog.findChild(QComboBox)
        field = dialog.findChild(QLineEdit) if combo is None else combo.lineEdit()
        retype(field, text)
        _click_text(dialog, button)
        return asked

    return answer


def enter(text: str) -> Callable[[Any], str]:
    """Type into the list of a dialog, in place of what is there, and press Enter."""

    def answer(dialog: Any) -> str:
        assert isinstance(dialog, QInputDialog)
        field = dialog.findChild(QComboBox).lineEdit()
        retype(field, text)
        QTest.keyClick(field, Qt.Key.Key_Return)
        assert not dialog.isVisible(), "Enter left the dialog open"
        return dialog.labelText()

    return answer


def pick(row: int) -> Callable[[Any], str]:
    """Choose this row of the list of a dialog by the arrow keys, and press Enter."""

    def answer(dialog: Any) -> str:
        assert isinstance(dialog, QInputDialog)
        combo = dialog.findChild(QComboBox)
        for _ in range(row):
            QTest.keyClick(combo, Qt.Key.Key_Down)
        QTest.keyClick(combo.lineEdit(), Qt.Key.Key_Return)
        return dialog.labelText()

    return answer


def choose_folder(folder: Path) -> Callable[[Any], str]:
    """Paste a folder's path into a file dialog, and choose it."""

    def answer(dialog: Any) -> str:
        assert isinstance(dialog, QFileDialog)
        asked = dialog.windowTitle()
        # typed letter by letter it is completed to another
        dialog.findChild(QLineEdit, "fileNameEdit").setText(str(folder))
        _click_text(dialog, "Choose")
        return asked

    return answer


def retype(field: Any, text: str) -> None:
    """Type into a line, or a number's box, in place of what is there."""
    field.selectAll()
    QTest.keyClick(field, Qt.Key.Key_Delete)
    QTest.keyClicks(field, text)


def click(button: QAbstractButton) -> None:
    """Click a button that can be clicked."""
    assert button.isEnabled(), f"{button.text()} can't be clicked"
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def _click_text(dialog: QDialog, text: str) -> None:
    buttons = dialog.findChildren(QAbstractButton)
    click(next(b for b in buttons if b.text().replace("&", "") == text and b.isVisible()))
