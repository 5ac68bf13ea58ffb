"""The tools of the tab Review, as buttons beside napari's own brush."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qtpy.QtWidgets import QGridLayout, QPushButton, QWidget

from napari_jrss.widgets.tabs.review_panels import button

REPAIRS = {
    "Interpolate": "Draw the chosen structure between the slices that you painted, or else into "
    "its gaps (I)",
    "Smooth": "Round off the chosen structure's surface",
    "Fill holes": "Fill what the chosen structure encloses",
    "Largest part": "Keep only the largest connected part of the chosen structure",
}
STEPS = {
    "Undo": "Take the latest action back (Ctrl+Z)",
    "Redo": "Do it again (Ctrl+Shift+Z)",
    "Revert": "Back to the draft, as one action (Ctrl+Z)",
}
NEXT = "Next uncertain region"


class ToolsPanel(QWidget):
    """One button for each command.

    Parameters
    ----------
    commands
        What the buttons do: of :data:`REPAIRS`, :data:`STEPS` and :data:`NEXT`.

    Attributes
    ----------
    buttons
        Each button by its text.
    """

    def __init__(self, commands: Mapping[str, Callable[[], object]]) -> None:
        super().__init__()
        self.buttons: dict[str, QPushButton] = {}
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for i, (text, tooltip) in enumerate({**REPAIRS, **STEPS}.items()):
            self.buttons[text] = button(text, tooltip, commands[text])
            layout.addWidget(self.buttons[text], i // 3, i % 3)
        tooltip = "Go to the next region where teacher and student disagree most (U)"
        self.buttons[NEXT] = button(NEXT, tooltip, commands[NEXT])
        layout.addWidget(self.buttons[NEXT], 2, 1, 1, 2)

    def show_steps(self, undo: str | None, redo: str | None) -> None:
        """Say what can be undone and done again."""
        for text, name, words in (("Undo", undo, "Take back"), ("Redo", redo, "Do again")):
            key = STEPS[text][STEPS[text].rindex("(") :]
            self.buttons[text].setEnabled(name is not None)
            self.buttons[text].setToolTip(f"{words}: {name or 'nothing'} {key}")
