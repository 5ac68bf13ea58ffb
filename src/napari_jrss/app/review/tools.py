"""Tools beside the brush: repairs of one structure, undo and redo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_jrss.app.review import repairs
from napari_jrss.app.review.brush import BrushLimits, intensities_like, nearest_others
from napari_jrss.app.review.editor import REVERT
from napari_jrss.app.review.open_case import CurrentCase, draft_in_words
from napari_jrss.app.review.region_stroke import RegionStroke
from napari_jrss.errors import ProjectError
from napari_jrss.labels import IGNORED
from napari_jrss.snapshot import Label


class Tools:
    """Commands on the label under correction; each is one action for undo.

    A tool computes on the review's queue; a voxel that is painted meanwhile stays as painted.
    """

    limits_changed = Signal()  # the brush may change other voxels, see `limits`
    working_changed = Signal()  # a tool began or ended, see `working`

    def __init__(self, current: CurrentCase) -> None:
        self._workspace = current.workspace
        self._current = current
        self.region = RegionStroke(current)  # from one stroke on a slice to a region in 3D
        self.limits = BrushLimits()  # what the brush may change
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

    def grow(self, index: int, by_mm: float | None = None) -> None:
        """Let one structure grow into the background; None: by its smallest voxel size."""
        spacing = self._current.open_case.spacing_mm
        by = min(spacing) if by_mm is None else by_mm
        self._tool("grow", index, lambda label: repairs.grow(label, index, spacing, by))

    def shrink(self, index: int, by_mm: float | None = None) -> None:
        """Let one structure shrink; its neighbours take what it gives up. See :meth:`grow`."""
        spacing = self._current.open_case.spacing_mm
        by = min(spacing) if by_mm is None else by_mm
        self._tool("shrink", index, lambda label: repairs.shrink(label, index, spacing, by))

    def split_sides(self, index: int, other: int, side: str) -> None:
        """Give what one structure has on the patient's left or right to another structure.

        Parameters
        ----------
        index, other
            The structure, and the one that gets its side.
        side
            ``left`` or ``right`` of the patient, as the scan's affine says.
        """
        if side not in ("left", "right"):
            raise ProjectError(f"a side is left or right, not {side!r}")
        case = self._current.open_case
        case.check_editable(other)
        if other == index:
            raise ProjectError("choose another structure to get that side")
        name, affine = case.table.names[index], case.transform.scan_affine

        def split(label: Label) -> Label:
            new = repairs.split_sides(label, index, other, affine, side)
            if new is None:
                self._workspace.notified.emit(
                    f"The two largest parts of {name} don't lie side by side, so it isn't split"
                )
                return label
            return new

        self._tool(f"{side} part to {case.table.names[other]}", index, split)

    def take_component(self, at: Sequence[int], draft: str) -> None:
        """Take what a draft says where it differs from the label, in one connected part.

        Parameters
        ----------
        at
            A voxel (z, y, x) of that part.
        draft
            One of :attr:`OpenCase.draft_choices`.
        """
        self._workspace.open_project.check_writable()
        case = self._current.open_case
        if not all(0 <= i < n for i, n in zip(at, case.editor.label.shape, strict=True)):
            raise ProjectError("that is beyond the scan")
        words = draft_in_words(draft)

        def work() -> None:
            seen = case.editor.snapshot()
            new = repairs.take_component(seen, self._current.label_from(case, draft), at)
            if case.editor.replace(f"take a part from {words}", new, seen) is None:
                self._workspace.notified.emit(f"Here the label is that of the {words}")

        case.editor.sync()
        self._current.queue.submit(work)

    # -- the brush

    def limit_brush(self, limits: BrushLimits) -> None:
        """Let the brush change only some voxels from now on; a new case takes any intensity."""
        case = self._current.case
        if case is not None:
            case.editor.sync()
            if limits.over is not None and limits.over >= len(case.table.names):
                raise ProjectError(f"there is no structure {limits.over}")
        self.limits = limits
        self._limit_case()
        self.limits_changed.emit()

    def limit_like(self, at: Sequence[int]) -> None:
        """Let the brush change only intensities like those about a voxel (z, y, x)."""
        case = self._current.open_case
        found = intensities_like(case.image, at, case.spacing_mm)
        self.limit_brush(replace(self.limits, intensities=found))

    def meet_case(self) -> None:
        """Forget what belongs to the case before."""
        self.region.drop()
        over, case = self.limits.over, self._current.open_case
        known = over is not None and over < len(case.table.names)
        self.limit_brush(replace(self.limits, intensities=None, over=over if known else None))

    def _limit_case(self) -> None:
        """Let the brush of the case under review follow :attr:`limits`."""
        case, limits = self._current.case, self.limits
        if case is None:
            return
        if limits == BrushLimits():
            case.editor.brush = None
            return
        editor = case.editor

        def brush(indices: NDArray[np.intp], before: Label, painted: Label) -> Label:
            after = painted
            erased = (painted == 0) & (before != 0)
            if limits.to_neighbour and erased.any():
                locked = np.isin(np.arange(IGNORED + 1), [*editor.locked, IGNORED])
                after = painted.copy()
                after[erased] = nearest_others(
                    editor.label, indices[erased], before[erased], locked
                )
            return np.where(limits.refused(case.image, indices, before), before, after)

        editor.brush = brush

    # -- undo

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
