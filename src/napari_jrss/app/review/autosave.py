"""Saving the corrections of the case under review while the person paints."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from napari_jrss.app.review.editor import Edit, LabelEditor
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.errors import ProjectError
from napari_jrss.project.corrections import Corrections
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Label

UNNAMED = "unnamed"
"""Author of corrections before the person gave a name; a label version needs a real one."""
PERIOD_S = 0.25
"""Usual time between two saves, in seconds."""
PAUSE_S = 30.0
"""Without a change for longer, in seconds, a person counts as being away."""


class Autosave:
    """Saves what an editor changes; a case that is only looked at leaves no trace.

    The person's thread calls :meth:`note`, :meth:`note_accepted` and :meth:`touch`, which only plan
    a save. The work on the disk is done on the queue's thread, and the other methods may be called
    there only. Connect :meth:`note` to the changes of the editor. The first change is saved at
    once, later ones not more often than every `period_s` seconds.
    """

    def __init__(
        self,
        project: Project,
        case_id: str,
        editor: LabelEditor,
        queue: WorkQueue,
        author: str,
        corrections: Corrections | None = None,
        period_s: float = PERIOD_S,
    ) -> None:
        self._project = project
        self._case_id = case_id
        self._editor = editor
        self._queue = queue
        self._author = author or UNNAMED
        self._period_s = period_s
        self._origin = editor.origin
        self._corrections = corrections or self._begun()
        self._ticks = editor.locked
        self._dirty: set[int] = set()
        self._helped = Counter(self._corrections.helped)
        self._kept = self._failed = False
        self._seconds = self._corrections.seconds
        self._last = time.monotonic()
        self._last_save = -period_s

    @property
    def seconds(self) -> float:
        """Active time on the case; a pause counts at most :data:`PAUSE_S`."""
        return self._seconds + min(time.monotonic() - self._last, PAUSE_S)

    def touch(self) -> None:
        """Count the time until now: the person did something."""
        self._seconds = self.seconds
        self._last = time.monotonic()

    def note(self, edit: Edit) -> None:
        """Save an action soon. The editor calls this, and it isn't changed meanwhile."""
        self.touch()
        if edit.maker:
            self._helped[edit.maker] += -1 if edit.undoes else 1
            self._helped = +self._helped
        slices = edit.indices // self._editor.label[0].size
        self._dirty.update(np.flatnonzero(np.bincount(slices)).tolist())
        self._plan()

    def note_accepted(self) -> None:
        """Save soon which structures are accepted."""
        self.touch()
        self._plan()

    def _plan(self) -> None:
        self._queue.submit(self.save, self._last_save + self._period_s - time.monotonic())

    def save(self) -> None:
        """Write the slices that changed since the last save, and which structures are accepted.

        That they can't be written (:class:`ProjectError`) is raised once; the next save tries
        again.
        """
        if self._kept:
            return
        editor = self._editor
        with editor.paused:
            origin, accepted = editor.origin, editor.locked
            anew = origin is not self._origin
            dirty = set(range(len(editor.label))) if anew else self._dirty
            self._dirty, helped = set(), dict(self._helped)
            slices = editor.slices(dirty)
        if not dirty and accepted == self._ticks:
            return
        try:
            if anew:
                self._corrections.discard()
                self._origin = origin
                self._corrections = self._begun()
                slices = {z: s for z, s in slices.items() if (s != origin.label[z]).any()}
            if self._corrections.on_disk or slices or accepted:
                self._corrections.save(
                    slices, accepted=accepted, seconds=self.seconds, helped=helped
                )
            self._ticks, self._failed = accepted, False
        except ProjectError:
            self._dirty |= dirty
            if not self._failed:
                self._failed = True
                raise
        finally:
            self._last_save = time.monotonic()

    def accept(self, label: Label, author: str) -> str:
        """Make a label as the author accepted it a version in force; returns its name.

        The editor goes on from it. If it can't be kept, that is a :class:`ProjectError`, and the
        corrections stay.
        """
        self.save()
        try:
            version = self._corrections.accept(label, author, self.seconds, self._helped)
        except ProjectError:
            self._dirty.update(range(len(label)))
            raise
        self._author = author
        self._seconds, self._last = 0.0, time.monotonic()
        self._helped = Counter()
        self._editor.rebase(f"version:{version}", label)
        self._origin = self._editor.origin
        self._corrections = self._begun()
        self._ticks = self._editor.locked
        if self._editor.voxels_changed:  # painted meanwhile
            self._dirty.update(range(len(label)))
            self.save()
        return version

    def keep(self) -> None:
        """Leave the corrections on the disk for later, if there are any; nothing follows."""
        if self._kept:
            return
        self._failed = False  # a failure now is the last that the person hears of
        self.save()
        self._kept = True
        if not self._editor.voxels_changed and not self._editor.locked:
            self._corrections.discard()

    def discard(self) -> None:
        """Give the corrections up."""
        self._dirty, self._ticks = set(), self._editor.locked
        self._corrections.discard()

    def _begun(self) -> Corrections:
        origin = self._origin
        return Corrections(self._project, self._case_id, origin.draft, origin.label, self._author)
