"""Review: one case on the table, the teacher's proposal for it, and the person's own label."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from psygnal import Signal

from napari_jrss.app.review.drafts import Proposal
from napari_jrss.app.review.editor import Edit
from napari_jrss.app.review.open_case import (
    BLANK,
    Kept,
    OpenCase,
    draft_in_words,
    read_case,
    visible_versions,
)
from napari_jrss.app.review.repairs import Tools
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.errors import ProjectError
from napari_jrss.project.corrections import CorrectionsFile, discard, unsaved
from napari_jrss.project.labels import check_draft
from napari_jrss.snapshot import Label

if TYPE_CHECKING:
    from napari_jrss.app.next_case import Suggestion
    from napari_jrss.app.session import Session
    from napari_jrss.project.project import Project

KEPT_CASES = 3
"""So many cases stay in memory, for going back and forth."""


class Leave(StrEnum):
    """What to do with unsaved corrections when a case is left."""

    ACCEPT = "accept"
    KEEP = "keep"
    DISCARD = "discard"


class UnsavedError(ProjectError):
    """The case on the table has corrections, and nobody said what to do with them."""


class Review:
    """Commands of the tab of this name; made by its session.

    What takes time is done at the :attr:`queue`, and signals are emitted from its thread; a
    script calls :meth:`wait` after a command. Inference goes through ``session.inference``.

    Attributes
    ----------
    case_changed
        Another case is on the table, or none.
    label_changed
        The label under correction: the :class:`Edit` that was made, or taken back.
    status_changed
        The case was accepted, rejected or skipped, or a structure was accepted.
    suggestion_changed
        Another case is suggested as the next one.
    unfinished_changed
        There are other journals with corrections to recover.
    case, suggestion, unfinished
        What these signals tell of.
    proposal
        What the networks say of the case.
    tools
        Repairs of the label, and undo.
    ask
        Asks the person what to do with unsaved corrections; None: they don't want to leave.
        A script has nobody to ask and gets an :class:`UnsavedError`.
    """

    case_changed = Signal()
    label_changed = Signal(Edit)
    status_changed = Signal()
    suggestion_changed = Signal()
    unfinished_changed = Signal()

    def __init__(self, session: Session) -> None:
        self._session = session
        self.queue = WorkQueue("review")
        self.case: OpenCase | None = None
        self.suggestion: Suggestion | None = None
        self.unfinished: list[CorrectionsFile] = []
        self.ask: Callable[[OpenCase], Leave | None] | None = None
        self._wanted: str | None = None
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        session.project_changed.connect(self._project_changed)
        session.cases_changed.connect(self._cases_changed)
        self.proposal = Proposal(session, self)
        self.tools = Tools(session, self)

    # -- open and leave

    @property
    def unsaved(self) -> bool:
        """Whether the case on the table has corrections that no label version holds."""
        if self.case is None:
            return False
        self.case.editor.sync()
        return self.case.editor.voxels_changed > 0 and not self._session.open_project.read_only

    @property
    def on_table(self) -> OpenCase:
        """The case on the table; :class:`ProjectError` if there is none."""
        if self.case is None:
            raise ProjectError("no case is open for review")
        return self.case

    def open(self, case_id: str, unsaved: Leave | str | None = None) -> bool:
        """Put a case on the table, soon; :attr:`case_changed` tells when.

        False if the person would rather not leave the present one.

        Corrections that its journal holds are on it again.

        Parameters
        ----------
        case_id
            Which.
        unsaved
            What to do with corrections of the present one; None: ask.

        Raises
        ------
        ProjectError
            There is no such case.
        UnsavedError
            The present case has corrections and there is nobody to ask.
        """
        project = self._session.open_project
        project.case(case_id)
        here = self.case is not None and self.case.case_id == case_id
        if here and unsaved is None and self._wanted == case_id:
            self.case_changed.emit()
            return True
        if not self._leave(unsaved):
            return False
        self._wanted = case_id
        if here:  # its own journal is read again
            self.queue.submit(self._clear)
        self.queue.submit(lambda: self._fetch(project, case_id))
        return True

    def _fetch(self, project: Project, case_id: str) -> None:
        """Read a case; the present one stays on the table until that is done; the desk's own."""
        if not self._is_wanted(project, case_id):
            return
        known, session = self._kept.get(case_id), self._session
        try:
            case = read_case(
                project, case_id, self.queue, session.author, known, session.autosave_s
            )
        except Exception:
            if self._wanted == case_id:
                self._wanted = None if self.case is None else self.case.case_id
            if self.case is None:
                self.case_changed.emit()
            raise
        if self.case is not None:
            # What was painted meanwhile is journalled before the case is put away.
            self.case.editor.sync()
        self.queue.submit(lambda: self._put_on_table(project, case))

    def _put_on_table(self, project: Project, case: OpenCase) -> None:
        if not self._is_wanted(project, case.case_id):
            case.autosave.keep()
            return
        self._put_away()
        case.editor.changed.connect(self._edited)
        self.case, self.proposal.region = case, None
        self._list_unfinished()
        self.case_changed.emit()
        self.proposal.screen(case)
        if case.prediction is None and case.teacher is not None:
            self.proposal.predict(case)
        self.suggest_next()

    def _is_wanted(self, project: Project, case_id: str) -> bool:
        """Not if another one was asked for meanwhile, or another project."""
        return self._wanted == case_id and self._session.project is project

    def close_case(self, unsaved: Leave | str | None = None) -> None:
        """Take the case off the table."""
        if self.case is None or not self._leave(unsaved):
            return
        self._wanted = None

        def clear() -> None:
            self._clear()
            self._list_unfinished()
            self.case_changed.emit()

        self.queue.submit(clear)

    def leave_project(self, timeout: float = 2.0) -> bool:
        """Keep the corrections and put nothing more on the table; before the project closes."""
        case, self._wanted = self.case, None
        if case is not None:
            case.editor.sync()
            self.queue.submit(case.autosave.keep)
        done = self.queue.wait(timeout)
        self.case = self.proposal.region = self.suggestion = None
        self._kept.clear()
        self.unfinished = []
        if case is not None:
            self.case_changed.emit()
        return done

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the desk is empty; whether that came to be."""
        return self.queue.wait(timeout)

    def _leave(self, unsaved: Leave | str | None) -> bool:
        """See to the corrections of the present case; whether it may be left."""
        if not self.unsaved:
            return True
        case = self.on_table
        if unsaved is None:
            if self.ask is None:
                raise UnsavedError(
                    f"case {case.case_id} has unsaved corrections: accept, keep or discard them"
                )
            unsaved = self.ask(case)
        if unsaved is None:
            return False
        if Leave(unsaved) is Leave.ACCEPT:
            self.accept()
        elif Leave(unsaved) is Leave.DISCARD:
            for index in case.editor.locked:
                case.editor.lock(index, False)
            case.editor.replace("give up", case.editor.origin.label)
            self.queue.submit(case.autosave.discard)
        return True

    # -- drafts

    def draft_from(self, label: Label, draft: str) -> None:
        """Begin with a label that came from elsewhere; undo takes that back.

        A case that was asked for just before gets it as soon as it is on the table. Where there
        are corrections already, they stay, and the label is one more source to start from.

        Parameters
        ----------
        label
            Class indices (z, y, x) on the training grid.
        draft
            Where it came from, such as ``case:A``.
        """
        project = self._session.open_project
        check_draft(draft)
        self._require_writable()
        wanted = self._wanted or self.on_table.case_id
        array = project.checked_label(wanted, label)

        def begin() -> None:
            if self._wanted == wanted and (self.case is None or self.case.case_id != wanted):
                self.queue.submit(begin)  # once it is on the table
                return
            case = self.on_table
            if case.case_id != wanted:
                return
            case.drafts[draft] = array
            words = draft_in_words(draft)
            case.editor.sync()
            if case.editor.voxels_changed:
                told = f"was corrected, which stays; to start from it, choose {words!r} as draft"
            else:
                case.editor.begin(f"start from {words}", array, draft)
                told = f"starts from a label {words}"
            self._session.notified.emit(f"{case.case_id}: {told}")
            self.proposal.changed.emit()

        self.queue.submit(begin)

    def start_from(self, draft: str, *, replace: bool = False) -> None:
        """Begin with one of the case's sources; undo takes that back.

        Raises
        ------
        UnsavedError
            There are corrections, and `replace` doesn't say that they are to go. Undo brings
            them back, but only as long as the case is on the table.
        """
        self._require_writable()
        case = self.on_table
        if self.unsaved and not replace:
            raise UnsavedError(
                f"case {case.case_id} has {case.editor.voxels_changed} corrected voxels, which "
                "another draft would replace: accept them first, or say that they are to go"
            )
        self.queue.submit(
            lambda: case.editor.begin(
                f"start from {draft_in_words(draft)}", self.source(case, draft), draft
            )
        )

    def source(self, case: OpenCase, draft: str) -> Label:
        """Voxels of one of a case's sources."""
        if draft == BLANK:
            return np.zeros(case.grid.shape, case.table.dtype)
        if draft in case.drafts:
            return case.drafts[draft]
        if draft.startswith("version:"):
            version = draft.removeprefix("version:")
            return self._session.open_project.label(case.case_id, version)
        if (
            case.prediction is None
            or case.teacher is None
            or draft != f"round:{case.teacher.number}"
        ):
            raise ProjectError(f"case {case.case_id} has no label from {draft!r}")
        return case.prediction.label

    # -- decisions

    def accept_structure(self, index: int, accepted: bool = True) -> None:
        """Accept one structure: it is protected from further changes, until withdrawn."""
        self._require_writable()
        case = self.on_table
        case.editor.lock(index, accepted)
        case.autosave.note_accepted()
        self.status_changed.emit()

    def accept(self) -> None:
        """Make the label a version in force: ACCEPTED as it was drafted, or CORRECTED.

        A round under way isn't disturbed; the next one trains on it.

        Raises
        ------
        ProjectError
            The project is read-only, the person has no name, or there is nothing to accept.
        """
        author = self._require_author()
        case = self.on_table
        case.editor.sync()
        label, origin = case.editor.snapshot(), case.editor.origin
        if not label.any():
            raise ProjectError(f"case {case.case_id}: the label is empty; paint, or choose a draft")
        in_force = case.case.label_version
        if origin.draft == f"version:{in_force}" and np.array_equal(label, origin.label):
            raise ProjectError(f"case {case.case_id}: nothing was changed since {in_force}")

        def accept() -> None:
            ours = case.editor.origin
            if ours is not origin and np.array_equal(label, ours.label):
                return  # asked for twice
            version = case.autosave.accept(label, author)
            case.recovered = None
            self._refresh(case)
            changed = case.versions[-1].voxels_changed or 0
            how = f"{changed} voxels corrected" if changed else "unchanged"
            self._session.notified.emit(f"{case.case_id}: {version} is in force ({how})")
            self._decided(case)

        self.queue.submit(accept)

    def reject(self, reason: str = "") -> None:
        """Record that the pseudo-label is no good; a label in force stays."""
        self._decide("reject", reason)

    def skip(self, reason: str) -> None:
        """Leave the case for later, and say why."""
        if not reason.strip():
            raise ProjectError("say why the case is skipped")
        self._decide("skip", reason)

    def suggest_next(self, *, tell: bool = False) -> None:
        """Look for the case to label next, soon; :attr:`suggestion_changed` tells it.

        `tell`: whether to say so if there is none.
        """
        after = None if self.case is None else self.case.case_id

        def look() -> None:
            self.suggestion = self._session.cohort.suggest(after)
            self.suggestion_changed.emit()
            if tell and self.suggestion is None:
                self._session.notified.emit("There is no other training case without a label")

        self.queue.submit(look)

    def discard_unfinished(self, case_id: str) -> None:
        """Give up the corrections that a journal holds."""
        project = self._session.open_project
        project.check_writable()
        if self.case is not None and self.case.case_id == case_id:
            raise ProjectError(f"case {case_id} is on the table; revert it there")

        def give_up() -> None:
            discard(project, case_id)
            self._list_unfinished()

        self.queue.submit(give_up)

    def _decide(self, kind: str, reason: str) -> None:
        author = self._require_author()
        case, project = self.on_table, self._session.open_project
        number = None if case.teacher is None else case.teacher.number

        def decide() -> None:
            record = project.reject if kind == "reject" else project.skip
            record(case.case_id, author, reason.strip(), number)
            self._refresh(case)
            self._decided(case)

        self.queue.submit(decide)

    def _decided(self, case: OpenCase) -> None:
        self.status_changed.emit()
        self._session.cases_changed.emit()
        self.suggest_next()

    def _refresh(self, case: OpenCase) -> None:
        project = self._session.open_project
        case.case = project.case(case.case_id)
        case.versions = tuple(visible_versions(project, case.case))

    def _require_writable(self) -> None:
        self._session.open_project.check_writable()

    def _require_author(self) -> str:
        self._require_writable()
        if not self._session.author.strip():
            raise ProjectError("a label needs its author's name")
        return self._session.author

    # -- what others do

    def _cases_changed(self) -> None:
        self.queue.submit(self._follow)

    def _follow(self) -> None:
        """Take over what others did to the case on the table, such as a split or new names."""
        case, project = self.case, self._session.project
        if case is None or project is None or self._wanted != case.case_id:
            return
        now, before = project.case(case.case_id), case.case
        case.case, case.table = now, project.table
        if (now.label_version, now.reference_version, now.split) != (
            before.label_version,
            before.reference_version,
            before.split,
        ):
            self.open(case.case_id, Leave.KEEP)
        else:
            self.status_changed.emit()

    def _edited(self, edit: Edit) -> None:
        self.label_changed.emit(edit)

    def _clear(self) -> None:
        self._put_away()
        self.case = self.proposal.region = None

    def _put_away(self) -> None:
        """Keep the case's corrections on the disk, and its volumes in memory for a while."""
        if self.case is None:
            return
        self.case.autosave.keep()
        self._kept[self.case.case_id] = self.case.kept
        self._kept.move_to_end(self.case.case_id)
        while len(self._kept) > KEPT_CASES:
            self._kept.popitem(last=False)

    def _project_changed(self) -> None:
        if self._session.project is not None and not self._session.project.read_only:
            self.queue.submit(self._list_unfinished)
            self.suggest_next()

    def _list_unfinished(self) -> None:
        """Corrections that wait in journals, whether for later or left by a killed program."""
        project = self._session.project
        if project is None or project.read_only:
            return
        here = None if self.case is None else self.case.case_id
        self.unfinished = [e for e in unsaved(project) if e.case_id != here]
        self.unfinished_changed.emit()
