"""Tools beside the brush: repairs of one structure, undo and redo."""

from __future__ import annotations

from collections.abc import Callable

from psygnal import Signal

from napari_jrss.app.review import repairs
from napari_jrss.app.review.editor import REVERT
from napari_jrss.app.review.open_case import CurrentCase, draft_in_words
from napari_jrss.app.review.region_stroke import RegionStroke
from napari_jrss.snapshot import Label


class Tools:
    """Commands on the label under correction; each is one action for undo.

    A tool computes on the review's queue; a voxel that is painted meanwhile stays as painted.
    """

    working_changed = Signal()  # a tool began or ended, see `working`

    def __init__(self, current: CurrentCase) -> None:
        self._workspace = current.workspace
        self._current = current
        self.region = RegionStroke(current)  # from one stroke on a slice to a region in 3D
        self.working = ""  # what the tools are at, such as "smooth: liver"; empty if at nothing

    def smooth(self, index: int) -> None:
        """Round off one structure's surface."""
        spacing = self._current.open_case.spacing_mm
        self._tool("smooth", index, lambda label: repairs.smooth(label, index, spacing))

    def fill_holes(self, index: int) -> None:
        """Fill what one structure encloses, in 3D."""
        self._tool("fill holes", index, lambda label: repairs.fill_holes(label, index))

    def keep_largest(self, index: int) -> None:
        """Keep the largest connected part of one structure."""
        self._tool("keep the largest part", index, lambda label: repairs.keep_largest(label, index))

    def interpolate(self, index: int, axis: int = 0) -> None:
        """Draw one structure between its painted slices; with fewer than two, fill its gaps."""
        painted = self._current.open_case.editor.painted_slices(index, axis)
        keys = painted if len(painted) > 1 else None
        self._tool(
            "interpolate", index, lambda label: repairs.interpolate(label, index, axis, keys)
        )

    def take_structure(self, index: int, draft: str) -> None:
        """Give one structure the extent that it has in a draft."""
        case = self._current.open_case
        self._tool(
            f"take from {draft_in_words(draft)}",
            index,
            lambda label: repairs.take(label, index, self._current.label_from(case, draft)),
        )

    def revert(self) -> None:
        """Replace the label by its draft, as one action."""
        self._workspace.open_project.check_writable()
        editor = self._current.open_case.editor
        editor.replace(REVERT, editor.origin.label)

    def undo(self) -> None:
        """Undo the latest action, whether painted or made by a tool."""
        self._current.open_case.editor.undo()

    def redo(self) -> None:
        """Redo the action that was undone last."""
        self._current.open_case.editor.redo()

    def _tool(self, name: str, index: int, tool: Callable[[Label], Label]) -> None:
        self._workspace.open_project.check_writable()
        case = self._current.open_case
        case.check_editable(index)
        names = case.table.names

        def work() -> None:
            try:
                seen = case.editor.snapshot()
                edit = case.editor.replace(f"{name}: {names[index]}", tool(seen), seen)
            finally:
                self._work_at("")
            if edit is None:
                self._workspace.notified.emit(f"{name}: nothing to change in {names[index]}")

        case.editor.sync()
        self._work_at(f"{name}: {names[index]}")
        self._current.queue.submit(work)

    def _work_at(self, what: str) -> None:
        self.working = what
        self.working_changed.emit()
