"""The region stroke: draw over a fault on one slice, see the region, take it or drop it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psygnal import Signal

from napari_jrss.app.review import strokes
from napari_jrss.app.review.editor import Box
from napari_jrss.app.review.open_case import CurrentCase, OpenCase
from napari_jrss.snapshot import Label

STEP = 0.5
"""By how much :meth:`RegionStroke.more` and :meth:`RegionStroke.less` change the amount."""


@dataclass(frozen=True, eq=False)
class Preview:
    """A region that the person may take.

    Attributes
    ----------
    case
        The case that it belongs to.
    region
        What may change.
    amount
        How much of it changes, see :meth:`~napari_jrss.app.review.strokes.Region.mask`.
    seen
        The box's part of the label (z, y, x) as it was when the stroke was drawn.
    drawn
        Voxels that were drawn over, as indices into the flattened label.
    """

    case: OpenCase
    region: strokes.Region
    amount: float
    seen: Label
    drawn: NDArray[np.intp]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Voxels of the region's box that change."""
        return self.region.mask(self.amount)

    @property
    def name(self) -> str:
        """What it does, in words."""
        verb = "add to" if self.region.adding else "remove from"
        return f"{verb} {self.case.table.names[self.region.index]}"


class RegionStroke:
    """Commands of the region stroke on the case under review.

    :meth:`draw` makes a :attr:`preview` on the review's queue; :meth:`set_amount` sweeps it, and
    :meth:`take` makes it one action for undo. Accepted structures and voxels that were painted by
    hand stay.
    """

    preview_changed = Signal()  # another region is shown, another amount of it, or none

    def __init__(self, current: CurrentCase) -> None:
        self._current = current
        self.preview: Preview | None = None  # the region that could be taken, or None

    def draw(
        self, voxels: ArrayLike, index: int, *, adding: bool = True, amount: float = 0.0
    ) -> None:
        """Find the region that a stroke means; emits :attr:`preview_changed`.

        Parameters
        ----------
        voxels
            Voxels (n, 3) of the scan that were drawn over, in the order z, y, x.
        index
            The structure.
        adding
            Whether they belong to the structure, or don't.
        amount
            Less than 0 for a smaller region than usual, more for a larger one; see
            :data:`~napari_jrss.app.review.strokes.LESS`.
        """
        self._current.workspace.open_project.check_writable()
        case = self._current.open_case
        case.check_editable(index)
        case.editor.sync()
        places = np.asarray(voxels, np.intp).reshape(-1, 3)
        self._current.queue.submit(lambda: self._find(case, places, index, adding, amount))

    def draw_painted(self, index: int, *, adding: bool, within: Box | None = None) -> None:
        """Take back what was just painted into the label, and use it as a stroke.

        So a brush draws it. A region that is shown is taken first. `within` as in
        :meth:`LabelEditor.sync`, the others as in :meth:`draw`.
        """
        editor = self._current.open_case.editor
        painted = editor.take_back(within)
        self.take()
        if painted.size:
            voxels = np.stack(np.unravel_index(painted, editor.label.shape), 1)
            self.draw(voxels, index, adding=adding)

    def set_amount(self, amount: float) -> None:
        """Make the region larger or smaller, within the limits."""
        if self.preview is not None:
            amount = min(max(amount, strokes.LESS), strokes.MORE)
            self._show(replace(self.preview, amount=amount))

    def more(self) -> None:
        """Make the region a step larger."""
        if self.preview is not None:
            self.set_amount(self.preview.amount + STEP)

    def less(self) -> None:
        """Make the region a step smaller."""
        if self.preview is not None:
            self.set_amount(self.preview.amount - STEP)

    def take(self) -> None:
        """Change the label as the preview shows, as one action."""
        preview = self.preview
        if preview is None or preview.case is not self._current.case:
            return
        self._current.workspace.open_project.check_writable()
        editor, region = preview.case.editor, preview.region
        part = strokes.changed(preview.seen, region, preview.amount, editor.locked)
        editor.replace(preview.name, part, preview.seen, region.box, preview.drawn)
        self._show(None)

    def drop(self) -> None:
        """Forget the region; the label stays as it is."""
        if self.preview is not None:
            self._show(None)

    def _find(
        self, case: OpenCase, voxels: NDArray[np.intp], index: int, adding: bool, amount: float
    ) -> None:
        label = case.editor.snapshot()
        teacher = None
        if case.prediction is not None:
            teacher = strokes.Teacher(case.prediction, case.transform)
        region = strokes.region(
            label,
            case.image,
            voxels,
            index,
            case.spacing_mm,
            adding=adding,
            teacher=teacher,
            keep=case.editor.painted(),
            locked=case.editor.locked,
        )
        if region.empty:
            what = "is already" if adding else "holds nothing of"
            self._current.workspace.notified.emit(
                f"Nothing to change: what you drew over {what} {case.table.names[index]}, or stays"
            )
            self.drop()
            return
        inside = voxels[((voxels >= 0) & (voxels < label.shape)).all(1)]
        drawn = np.ravel_multi_index(tuple(inside.T), label.shape)
        self._show(Preview(case, region, amount, label[region.box].copy(), drawn))

    def _show(self, preview: Preview | None) -> None:
        self.preview = preview
        self.preview_changed.emit()
