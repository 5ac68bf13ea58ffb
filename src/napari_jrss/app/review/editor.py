"""The label that a person corrects: every change is one action, and every action can be undone.

A window paints straight into :attr:`LabelEditor.label`, since nothing else is as fast; the editor
keeps a second copy and takes what differs as the action. So it needs to know nothing of the
painter's tools, and the brush, the tools here and whatever else wrote into the array share one
undo.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import RLock

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_jrss.snapshot import Label

BY_HAND = "paint"
"""Name of an action that was painted into the label."""
UNDO_BYTES = 2**28
"""Memory for actions that can be undone; the oldest are forgotten beyond it."""


@dataclass(frozen=True, eq=False)
class Origin:
    """What a label was drawn from: :meth:`Project.add_label_version`'s `draft`, and its voxels."""

    draft: str
    label: Label


@dataclass(frozen=True, eq=False)
class Edit:
    """One invertible action.

    Attributes
    ----------
    name
        What was done, for the person.
    indices
        The voxels that changed, as indices into the flattened (C order) label.
    before, after
        Their classes.
    origins
        Where another draft was begun: the origin before and after.
    shown
        Whether the painter shows it already: it was painted, and nothing of it was taken back.
    """

    name: str
    indices: NDArray[np.intp]
    before: Label
    after: Label
    origins: tuple[Origin, Origin] | None = None
    shown: bool = False

    @property
    def inverse(self) -> Edit:
        """The action that takes this one back."""
        origins = None if self.origins is None else (self.origins[1], self.origins[0])
        return Edit(self.name, self.indices, self.after, self.before, origins)

    @property
    def nbytes(self) -> int:
        """Memory it takes; an origin's label counts only here, as it is kept for this."""
        own = self.indices.nbytes + self.before.nbytes + self.after.nbytes
        return own if self.origins is None else own + self.origins[0].label.nbytes


@dataclass
class _History:
    """Actions with a limit on their memory."""

    limit: int
    edits: deque[Edit] = field(default_factory=deque)
    nbytes: int = 0

    def push(self, edit: Edit) -> None:
        self.edits.append(edit)
        self.nbytes += edit.nbytes
        while self.nbytes > self.limit and len(self.edits) > 1:
            self.nbytes -= self.edits.popleft().nbytes

    def pop(self) -> Edit | None:
        if not self.edits:
            return None
        edit = self.edits.pop()
        self.nbytes -= edit.nbytes
        return edit

    def clear(self) -> None:
        self.edits.clear()
        self.nbytes = 0


class LabelEditor:
    """A label under correction, with undo and redo.

    Its methods may be called from several threads.

    Parameters
    ----------
    label
        Class indices (z, y, x) to begin with; copied.
    draft
        What that is, as for :meth:`Project.add_label_version`.
    classes
        Number of classes C, background included.
    base
        The draft's own voxels, where the label was corrected already.

    Attributes
    ----------
    changed
        Each :class:`Edit` once it is made; an undo emits the inverse.
    label
        The label itself. Paint into it, then call :meth:`sync`.
    counts
        Voxels of each class.
    """

    changed = Signal(Edit)

    def __init__(
        self,
        label: Label,
        draft: str,
        classes: int,
        base: Label | None = None,
        undo_bytes: int = UNDO_BYTES,
    ) -> None:
        self.label: Label = label.copy()
        self.origin = Origin(draft, (label if base is None else base).copy())
        self.counts = np.bincount(self.label.ravel(), minlength=classes)
        self._known = self.label.copy()
        self._locked = np.zeros(classes, bool)
        self._done = _History(undo_bytes)
        self._undone = _History(undo_bytes)
        self._lock = RLock()

    # -- what there is

    @property
    def voxels_changed(self) -> int:
        """Voxels that differ from the draft."""
        return int(np.count_nonzero(self._known != self.origin.label))

    @property
    def undo_name(self) -> str | None:
        """What :meth:`undo` would take back."""
        return self._done.edits[-1].name if self._done.edits else None

    @property
    def redo_name(self) -> str | None:
        """What :meth:`redo` would do again."""
        return self._undone.edits[-1].name if self._undone.edits else None

    @property
    def locked(self) -> Set[int]:
        """Classes whose voxels nothing but an undo changes."""
        return frozenset(int(c) for c in np.flatnonzero(self._locked))

    def lock(self, index: int, locked: bool = True) -> None:
        """Protect a class from any change, or no longer."""
        with self._lock:
            self.sync()
            self._locked[index] = locked

    def snapshot(self) -> Label:
        """A copy of the label after the latest action, whatever is being painted into it."""
        with self._lock:
            return self._known.copy()

    @property
    def paused(self) -> AbstractContextManager[object]:
        """Nothing here changes inside ``with editor.paused``."""
        return self._lock

    def slices(self, numbers: Iterable[int]) -> dict[int, Label]:
        """Copies of slices (y, x) along z after the latest action, by number."""
        with self._lock:
            return {z: self._known[z].copy() for z in numbers}

    def painted_slices(self, index: int, axis: int) -> list[int]:
        """Slices across an axis on which a class was painted by hand and not undone."""
        found: set[int] = set()
        with self._lock:
            for edit in self._done.edits:
                if edit.name != BY_HAND:
                    continue
                ours = edit.indices[(edit.after == index) | (edit.before == index)]
                found.update(np.unravel_index(ours, self.label.shape)[axis].tolist())
        return sorted(found)

    # -- changes

    def sync(self, name: str = BY_HAND) -> Edit | None:
        """Take what was written into :attr:`label` since the last action as one action.

        Voxels of locked structures, and those that were given a class that there isn't, get
        their class back.
        """
        with self._lock:
            flat, known = self.label.reshape(-1), self._known.reshape(-1)
            indices = np.flatnonzero(flat != known)
            if not indices.size:
                return None
            before, after = known[indices], flat[indices]
            forbidden = self._forbidden(before, after)
            shown = not forbidden.any()
            if not shown:
                flat[indices[forbidden]] = before[forbidden]
                allowed = ~forbidden
                indices, before, after = indices[allowed], before[allowed], after[allowed]
            known[indices] = after
            self._count(before, after)
            return self._finish(Edit(name, indices, before, after, shown=shown))

    def apply(self, name: str, indices: NDArray[np.intp], values: Label) -> Edit | None:
        """Set voxels (flat indices) to classes as one action; locked structures stay."""
        with self._lock:
            self.sync()
            flat = self.label.reshape(-1)
            before = flat[indices]
            after = np.broadcast_to(np.asarray(values, flat.dtype), before.shape)
            wanted = (before != after) & ~self._forbidden(before, after)
            if not wanted.any():
                return None
            edit = Edit(name, np.asarray(indices)[wanted], before[wanted], after[wanted])
            self._write(edit)
            return self._finish(edit)

    def replace(self, name: str, label: Label, seen: Label | None = None) -> Edit | None:
        """Make the label equal to another one as one action; locked structures stay.

        Parameters
        ----------
        name
            For the person.
        label
            The new one.
        seen
            The label that the new one was computed from; a voxel that was painted since then
            stays as painted.
        """
        new = label.reshape(-1)
        with self._lock:
            self.sync()
            flat = self.label.reshape(-1)
            changed = flat != new
            if seen is not None:
                changed &= flat == seen.reshape(-1)
            indices = np.flatnonzero(changed)
            return self.apply(name, indices, new[indices])

    def begin(self, name: str, label: Label, draft: str) -> Edit | None:
        """Begin with another draft as one action, which undo takes back; locked structures stay."""
        with self._lock:
            self.sync()
            origins = (self.origin, Origin(draft, label.copy()))
            flat, new = self.label.reshape(-1), origins[1].label.reshape(-1)
            indices = np.flatnonzero(flat != new)
            indices = indices[~self._forbidden(flat[indices], new[indices])]
            edit = Edit(name, indices, flat[indices], new[indices], origins)
            self._write(edit)
            return self._finish(edit)

    def rebase(self, draft: str, label: Label) -> None:
        """From now on count changes from another draft, such as the version just accepted."""
        with self._lock:
            self.origin = Origin(draft, label.copy())

    def undo(self) -> Edit | None:
        """Take the latest action back; None if there is none."""
        with self._lock:
            self.sync()
            return self._step(self._done, self._undone)

    def redo(self) -> Edit | None:
        """Do again what was undone last; None if there is nothing."""
        with self._lock:
            self.sync()
            return self._step(self._undone, self._done)

    def _step(self, source: _History, target: _History) -> Edit | None:
        edit = source.pop()
        if edit is None:
            return None
        inverse = edit.inverse
        self._write(inverse)
        target.push(inverse)
        self.changed.emit(inverse)
        return inverse

    def _write(self, edit: Edit) -> None:
        self.label.reshape(-1)[edit.indices] = edit.after
        self._known.reshape(-1)[edit.indices] = edit.after
        self._count(edit.before, edit.after)
        if edit.origins is not None:
            self.origin = edit.origins[1]

    def _count(self, before: Label, after: Label) -> None:
        classes = self.counts.size
        self.counts += np.bincount(after, minlength=classes)
        self.counts -= np.bincount(before, minlength=classes)

    def _finish(self, edit: Edit) -> Edit:
        self._done.push(edit)
        self._undone.clear()
        self.changed.emit(edit)
        return edit

    def _forbidden(self, before: Label, after: Label) -> NDArray[np.bool_]:
        unknown: NDArray[np.bool_] = after >= self._locked.size
        if not self._locked.any():
            return unknown
        unknown |= self._locked[before] | self._locked[np.where(unknown, 0, after)]
        return unknown
