"""The label that a person corrects: every change is one action, and every action can be undone.

A window paints straight into :attr:`LabelEditor.label`, which is the fastest way. The editor keeps
a second copy, and what differs is the action. So the brush, the tools here and any other code
that writes into the array share one undo.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import RLock
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_jrss.labels import IGNORED
from napari_jrss.snapshot import Label
from napari_jrss.threads import in_threads

_PAIRS_AT_ONCE = 2**20
Box: TypeAlias = tuple[slice, ...]

BY_HAND = "paint"
"""Name of an action that was painted into the label."""
REVERT = "revert"
"""Name of an action that goes back to the draft."""
UNDO_BYTES = 2**28
"""Memory for actions that can be undone; the oldest are forgotten beyond it."""


@dataclass(frozen=True, eq=False)
class Origin:
    """The draft that a label was drawn from: its key and its class indices (z, y, x)."""

    draft: str
    label: Label


@dataclass(frozen=True, eq=False)
class Edit:
    """One invertible action."""

    name: str  # what was done, for the person
    # The voxels that changed, as indices into the flattened (C order) label.
    indices: NDArray[np.intp]
    # Their classes.
    before: Label
    after: Label
    # The origin before and after, if the action started from another draft; else None.
    origins: tuple[Origin, Origin] | None = None
    # Whether the window shows it already: it was painted, and all of it stays.
    shown: bool = False
    # Whether voxels of it were refused, as their structures are protected or don't exist.
    refused: bool = False
    # Voxels that the person pointed at where a tool changed more than these; as `indices`.
    drawn: NDArray[np.intp] | None = None
    # Another program that made it, such as "nnInteractive 2.6"; empty otherwise.
    maker: str = ""
    undoes: bool = False  # whether it takes an action back

    @property
    def inverse(self) -> Edit:
        """The action that undoes this one; its `indices` are the same object."""
        origins = None if self.origins is None else (self.origins[1], self.origins[0])
        return Edit(
            *(self.name, self.indices, self.after, self.before, origins),
            drawn=self.drawn,
            maker=self.maker,
            undoes=not self.undoes,
        )

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps in memory, with the label of its former origin."""
        own = self.indices.nbytes + self.before.nbytes + self.after.nbytes
        own += 0 if self.drawn is None else self.drawn.nbytes
        return own if self.origins is None else own + self.origins[0].label.nbytes


class LabelEditor:
    """A label under correction, with undo and redo.

    The methods may be called from several threads.

    Parameters
    ----------
    label
        Class indices (z, y, x) to start from. It isn't written to, and must not change afterwards.
    draft
        Its key, as in :meth:`Project.add_label_version`.
    classes
        Number of classes C, background included.
    base
        Class indices of the draft, if the label was corrected already; as `label`.
    undo_bytes
        Limit on the memory of the actions that can be undone.

    Attributes
    ----------
    changed
        Carries each :class:`Edit` that was made; an undo emits the inverse one.
    label
        The label itself. Paint into it, then call :meth:`sync`.
    counts
        Voxels of each value from 0 to 255: of each class, and of ignored voxels.
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
        self.label: Label
        self.label, self._known = in_threads(lambda _: label.copy(), range(2))
        self.origin = Origin(draft, label if base is None else base)
        self._classes = classes
        # Voxels that are ignored keep their value until somebody paints there.
        self.counts: NDArray[np.int64] = _count_values(self.label)
        self._differing = 0 if base is None else self._count_differing()
        self._locked = np.zeros(IGNORED + 1, bool)
        # Changed before, by whatever means, or painted in an action that is forgotten.
        self._kept = None if base is None else self.label != base
        self._undo_stack: deque[Edit] = deque()
        self._redo_stack: deque[Edit] = deque()
        self._stack_bytes = 0
        self._undo_bytes = undo_bytes
        self._lock = RLock()
        # What voxels become that were painted by hand, given their indices into the flattened
        # label, their former classes and those that were painted; None: the latter.
        self.brush: Callable[[NDArray[np.intp], Label, Label], Label] | None = None

    # -- state

    @property
    def voxels_changed(self) -> int:
        """Voxels that differ from the draft."""
        return self._differing

    @property
    def undo_name(self) -> str | None:
        """Name of the action that :meth:`undo` would undo."""
        return self._undo_stack[-1].name if self._undo_stack else None

    @property
    def redo_name(self) -> str | None:
        """Name of the action that :meth:`redo` would redo."""
        return self._redo_stack[-1].name if self._redo_stack else None

    @property
    def locked(self) -> Set[int]:
        """Protected classes: only an undo changes their voxels."""
        return frozenset(int(c) for c in np.flatnonzero(self._locked))

    def lock(self, index: int, locked: bool = True) -> None:
        """Protect a class from changes, or no longer."""
        with self._lock:
            self.sync()
            self._locked[index] = locked

    def snapshot(self) -> Label:
        """A copy of the label as of the latest action."""
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
            for edit in self._undo_stack:
                if edit.name != BY_HAND:
                    continue
                ours = edit.indices[(edit.after == index) | (edit.before == index)]
                found.update(np.unravel_index(ours, self.label.shape)[axis].tolist())
        return sorted(found)

    def painted(self) -> NDArray[np.bool_]:
        """Voxels (z, y, x) that a person painted or pointed at, and that nothing changed since.

        In corrections that were restored, all that differ from the draft count as painted.
        """
        with self._lock:
            found = np.zeros(self.label.shape, bool) if self._kept is None else self._kept.copy()
            for edit in self._undo_stack:
                _mark_painted(found, edit)
        return found

    # -- changes

    def sync(self, name: str = BY_HAND, within: Box | None = None) -> Edit | None:
        """Make what was written into :attr:`label` since the last action one action.

        Voxels of locked structures, and those that got a class that doesn't exist, get their
        former class back.

        Parameters
        ----------
        name
            Name of the action, for the person.
        within
            Where to look, which saves time; None: everywhere.
        """
        with self._lock:
            flat, known = self.label.reshape(-1), self._known.reshape(-1)
            indices = self._written(within)
            if not indices.size:
                return None
            before, painted = known[indices], flat[indices]
            after = painted
            if self.brush is not None and name == BY_HAND:
                after = self.brush(indices, before, painted)
            forbidden = self._forbidden(before, after)
            after = np.where(forbidden, before, after)
            shown = bool((after == painted).all())
            flat[indices] = known[indices] = after
            kept = after != before
            indices, before, after = indices[kept], before[kept], after[kept]
            self._count(indices, before, after)
            edit = Edit(name, indices, before, after, shown=shown, refused=bool(forbidden.any()))
            if indices.size:
                return self._finish(edit)
            self.changed.emit(edit)  # the window shows what was refused
            return edit

    def take_back(self, within: Box | None = None) -> NDArray[np.intp]:
        """Give what was written into :attr:`label` since the last action its former classes back.

        Returns the voxels, as indices into the flattened label; `within` as in :meth:`sync`.
        """
        with self._lock:
            indices = self._written(within)
            self.label.reshape(-1)[indices] = self._known.reshape(-1)[indices]
            return indices

    def _written(self, within: Box | None) -> NDArray[np.intp]:
        """Voxels that differ from the last action's, as indices into the flattened label."""
        if within is not None:
            return self._flat(np.nonzero(self.label[within] != self._known[within]), within)
        # Slice by slice, which the processor's cache holds.
        found = [
            np.flatnonzero(differs) + z * differs.size
            for z, (now, before) in enumerate(zip(self.label, self._known, strict=True))
            if (differs := now != before).any()
        ]
        return np.concatenate(found) if found else np.zeros(0, np.intp)

    def replace(
        self,
        name: str,
        label: Label,
        seen: Label | None = None,
        within: Box | None = None,
        drawn: NDArray[np.intp] | None = None,
        maker: str = "",
    ) -> Edit | None:
        """Make the label equal to another one as one action; locked structures stay.

        Returns None if nothing changed.

        Parameters
        ----------
        name
            Name of the action, for the person.
        label
            The other one (z, y, x), or its part in a box.
        seen
            What it was computed from; a voxel that was painted since then stays as painted.
        within
            The box; None: the whole volume.
        drawn
            Voxels that the person pointed at, as indices into the flattened label; they count as
            painted by hand.
        maker
            Another program that made it; empty: none did.
        """
        with self._lock:
            self.sync()
            edit = self._edit(name, label, seen, within)
            edit = dataclasses.replace(edit, drawn=drawn, maker=maker)
            return self._make(edit) if edit.indices.size else None

    def begin(self, name: str, label: Label, draft: str) -> Edit:
        """Start from another draft as one action; locked structures stay."""
        with self._lock:
            self.sync()
            origins = (self.origin, Origin(draft, label.copy()))
            return self._make(dataclasses.replace(self._edit(name, label), origins=origins))

    def rebase(self, draft: str, label: Label) -> None:
        """Count changes from another draft from now on, such as the version just accepted."""
        with self._lock:
            self.origin = Origin(draft, label.copy())
            self._differing = self._count_differing()

    def undo(self) -> Edit | None:
        """Undo the latest action; None if there is none."""
        with self._lock:
            self.sync()
            return self._step(self._undo_stack, self._redo_stack)

    def redo(self) -> Edit | None:
        """Redo the action that was undone last; None if there is none."""
        with self._lock:
            self.sync()
            return self._step(self._redo_stack, self._undo_stack)

    def _step(self, source: deque[Edit], target: deque[Edit]) -> Edit | None:
        if not source:
            return None
        inverse = source.pop().inverse
        self._write(inverse)
        target.append(inverse)
        self.changed.emit(inverse)
        return inverse

    def _edit(
        self, name: str, label: Label, seen: Label | None = None, within: Box | None = None
    ) -> Edit:
        """The action that leads to another label, but for locked structures."""
        now = self.label if within is None else self.label[within]
        changed = now != label
        if seen is not None:
            changed &= now == seen
        before, after = now[changed], label[changed]
        if within is None:
            indices = np.flatnonzero(changed)
        else:
            indices = self._flat(np.nonzero(changed), within)
        allowed = ~self._forbidden(before, after)
        return Edit(name, indices[allowed], before[allowed], after[allowed])

    def _flat(self, places: tuple[NDArray[np.intp], ...], within: Box) -> NDArray[np.intp]:
        """Voxels of a box as indices into the flattened label."""
        starts = [s.indices(n)[0] for s, n in zip(within, self.label.shape, strict=True)]
        whole = tuple(found + start for found, start in zip(places, starts, strict=True))
        return np.ravel_multi_index(whole, self.label.shape)

    def _make(self, edit: Edit) -> Edit:
        self._write(edit)
        return self._finish(edit)

    def _write(self, edit: Edit) -> None:
        self.label.reshape(-1)[edit.indices] = edit.after
        self._known.reshape(-1)[edit.indices] = edit.after
        self._count(edit.indices, edit.before, edit.after)
        if edit.origins is not None:
            self.origin = edit.origins[1]
            self._differing = self._count_differing()

    def _count_differing(self) -> int:
        pairs = zip(self._known, self.origin.label, strict=True)
        return sum(int(np.count_nonzero(now != before)) for now, before in pairs)

    def _count(self, indices: NDArray[np.intp], before: Label, after: Label) -> None:
        classes, drawn = self.counts.size, self.origin.label.reshape(-1)[indices]
        self._differing += int(np.count_nonzero(after != drawn))
        self._differing -= int(np.count_nonzero(before != drawn))
        self.counts += np.bincount(after, minlength=classes)
        self.counts -= np.bincount(before, minlength=classes)

    def _finish(self, edit: Edit) -> Edit:
        self._stack_bytes += edit.nbytes - sum(undone.nbytes for undone in self._redo_stack)
        self._redo_stack.clear()
        self._undo_stack.append(edit)
        while self._stack_bytes > self._undo_bytes and len(self._undo_stack) > 1:
            self._forget(self._undo_stack.popleft())
        self.changed.emit(edit)
        return edit

    def _forget(self, edit: Edit) -> None:
        """Let go of the oldest action, but not of what was painted in it."""
        self._stack_bytes -= edit.nbytes
        if self._kept is None:
            self._kept = np.zeros(self.label.shape, bool)
        _mark_painted(self._kept, edit)

    def _forbidden(self, before: Label, after: Label) -> NDArray[np.bool_]:
        unknown: NDArray[np.bool_] = (after >= self._classes) & (after != IGNORED)
        if not self._locked.any():
            return unknown
        unknown |= self._locked[before] | self._locked[np.where(unknown, 0, after)]
        return unknown


def _mark_painted(mask: NDArray[np.bool_], edit: Edit) -> None:
    """Say of the voxels of an action whether a person painted them last."""
    flat = mask.reshape(-1)
    flat[edit.indices] = edit.name == BY_HAND
    if edit.drawn is not None:
        flat[edit.drawn] = True


def _count_values(label: Label) -> NDArray[np.int64]:
    """How many voxels have each value from 0 to :data:`IGNORED`.

    Two voxels of a byte each are counted as one number, since NumPy makes each number one of eight
    bytes first; part by part for the same reason.
    """
    flat = np.ascontiguousarray(label, np.uint8).reshape(-1)
    pairs = flat[: flat.size // 2 * 2].view(np.uint16)
    found = np.zeros(2**16, np.int64)
    for start in range(0, pairs.size, _PAIRS_AT_ONCE):
        found += np.bincount(pairs[start : start + _PAIRS_AT_ONCE], minlength=2**16)
    both = found.reshape(256, 256)
    counts: NDArray[np.int64] = both.sum(0) + both.sum(1)
    counts[flat[pairs.size * 2 :]] += 1
    return counts
