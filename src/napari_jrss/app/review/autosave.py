"""The journal of the case under review, kept while the person paints."""

from __future__ import annotations

import time

import numpy as np

from napari_jrss.app.review.editor import Edit, LabelEditor
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.project.corrections import PAUSE_S, PERIOD_S, Journal
from napari_jrss.project.project import Project
from napari_jrss.project.records import Status
from napari_jrss.snapshot import Label

UNNAMED = "unnamed"
"""Author of a journal before the person gave a name; a label version needs a real one."""


class Autosave:
    """Journals an editor's actions; a case that is only looked at leaves no trace.

    Everything that touches the disk happens at the desk, one thing after another. Methods are
    called by the person's thread, but for those marked as the desk's own.

    Parameters
    ----------
    project, case_id
        Whose journal.
    editor
        What to keep. Connect :meth:`note` to its actions.
    desk
        Where the work is done.
    author
        The person, if known yet.
    journal
        One that goes on, or None.
    period_s
        Seconds after which a change is on the disk, in a journal that begins here.
    """

    def __init__(
        self,
        project: Project,
        case_id: str,
        editor: LabelEditor,
        queue: WorkQueue,
        author: str,
        journal: Journal | None = None,
        period_s: float = PERIOD_S,
    ) -> None:
        self._project = project
        self._case_id = case_id
        self._editor = editor
        self._desk = queue
        self._author = author or UNNAMED
        self._journal = journal
        self._period_s = period_s
        self._seconds = 0.0 if journal is None else journal.seconds
        self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Active time on the case; a pause counts at most :data:`PAUSE_S`."""
        return self._seconds + min(time.monotonic() - self._last, PAUSE_S)

    def touch(self) -> None:
        """The person did something."""
        self._seconds = self.seconds
        self._last = time.monotonic()

    def note(self, edit: Edit) -> None:
        """Keep one action."""
        self.touch()
        if edit.origins is not None:
            self._desk.submit(self.restart)
        else:
            self._desk.submit(lambda: self._record(edit))

    def note_accepted(self) -> None:
        """Keep which structures are accepted."""
        self.touch()
        self._desk.submit(self._record_accepted)

    def accept(self, label: Label, author: str) -> str:
        """Make a label a version in force, and remove the journal; the desk's own."""
        origin = self._editor.origin
        if self._journal is None:
            changed = int(np.count_nonzero(label != origin.label))
            version = self._project.add_label_version(
                self._case_id,
                label,
                author,
                draft=origin.draft,
                status=Status.CORRECTED if changed else Status.ACCEPTED,
                voxels_changed=changed,
                seconds=round(self.seconds, 1),
            )
        else:
            self._journal.author = author
            version = self._journal.accept(label)
        self._journal = None
        self._author = author
        self._seconds, self._last = 0.0, time.monotonic()
        return version

    def restart(self) -> None:
        """Begin anew from the editor's origin, with what differs from it; the desk's own."""
        self.discard()
        if self._worth_keeping:
            self._start()

    def keep(self) -> None:
        """Leave the work on the disk for later, if there is any; the desk's own."""
        if self._journal is None:
            return
        journal, self._journal = self._journal, None
        if self._worth_keeping:
            journal.close()
        else:
            journal.discard()

    def discard(self) -> None:
        """Give the corrections up; the desk's own."""
        if self._journal is not None:
            journal, self._journal = self._journal, None
            journal.discard()

    @property
    def _worth_keeping(self) -> bool:
        return self._editor.voxels_changed > 0 or bool(self._editor.locked)

    def _record_accepted(self) -> None:
        if self._journal is None:
            self._start()
        else:
            self._journal.note_accepted(self._editor.locked)

    def _record(self, edit: Edit) -> None:
        if self._journal is None:
            self._start()
        else:
            self._journal.record(edit.indices, edit.after)

    def _start(self) -> None:
        origin = self._editor.origin
        self._journal = Journal.start(
            self._project,
            self._case_id,
            origin.draft,
            origin.label,
            self._author,
            self._seconds,
            self._period_s,
        )
        self._journal.checkpoint(self._editor.snapshot())
        self._journal.note_accepted(self._editor.locked)
