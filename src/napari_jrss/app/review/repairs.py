"""Tools beside the brush: repairs of one structure, and undo across all that was done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from napari_jrss.app.review import shapes
from napari_jrss.app.review.open_case import draft_in_words
from napari_jrss.errors import ProjectError
from napari_jrss.snapshot import Label

if TYPE_CHECKING:
    from napari_jrss.app.review.review import Review
    from napari_jrss.app.session import Session


class Tools:
    """Commands on the label under correction; made by its review.

    Each is one action for undo. What a tool computes it computes at the review's desk; a voxel
    that is painted meanwhile stays as painted.
    """

    def __init__(self, session: Session, review: Review) -> None:
        self._session = session
        self._review = review

    def smooth(self, index: int) -> None:
        """Round off one structure's surface."""
        spacing = self._review.on_table.spacing_mm
        self._tool("smooth", index, lambda label: shapes.smooth(label, index, spacing))

    def fill_holes(self, index: int) -> None:
        """Fill what one structure encloses, in 3D."""
        self._tool("fill holes", index, lambda label: shapes.fill_holes(label, index))

    def keep_largest(self, index: int) -> None:
        """Keep the largest connected part of one structure."""
        self._tool("keep the largest part", index, lambda label: shapes.keep_largest(label, index))

    def interpolate(self, index: int, axis: int = 0) -> None:
        """Draw one structure between the slices that were painted, or else into its gaps."""
        painted = self._review.on_table.editor.painted_slices(index, axis)
        keys = painted if len(painted) > 1 else None
        self._tool("interpolate", index, lambda label: shapes.interpolate(label, index, axis, keys))

    def take_structure(self, index: int, draft: str) -> None:
        """Give one structure the extent that it has in a source."""
        case = self._review.on_table
        self._tool(
            f"take from {draft_in_words(draft)}",
            index,
            lambda label: shapes.take(label, index, self._review.source(case, draft)),
        )

    def revert(self) -> None:
        """Take every correction back to the draft, as one action."""
        self._session.open_project.check_writable()
        editor = self._review.on_table.editor
        editor.replace("revert", editor.origin.label)

    def undo(self) -> None:
        """Take the latest action back, whether painted or made by a tool."""
        self._review.on_table.editor.undo()

    def redo(self) -> None:
        """Do again what was undone last."""
        self._review.on_table.editor.redo()

    def _tool(self, name: str, index: int, tool: Callable[[Label], Label]) -> None:
        self._session.open_project.check_writable()
        case = self._review.on_table
        names = case.table.names
        if not 0 < index < len(names):
            raise ProjectError(f"there is no structure {index}")
        if index in case.editor.locked:
            raise ProjectError(f"{names[index]} is accepted; withdraw that before changing it")

        def work() -> None:
            seen = case.editor.snapshot()
            edit = case.editor.replace(f"{name}: {names[index]}", tool(seen), seen)
            if edit is None:
                self._session.notified.emit(f"{name}: nothing to change in {names[index]}")

        case.editor.sync()
        self._review.queue.submit(work)
