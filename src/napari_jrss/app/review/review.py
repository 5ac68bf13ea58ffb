"""Review of one case at a time: open it, correct its label, and accept, reject or skip it."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from psygnal import Signal

from napari_jrss.app.review.ahead import DraftsAhead
from napari_jrss.app.review.disputed import Disputed
from napari_jrss.app.review.echoes import Echoes
from napari_jrss.app.review.editor import Edit
from napari_jrss.app.review.open_case import (
    CachedCase,
    CurrentCase,
    OpenCase,
    draft_in_words,
    read_case,
    read_volumes,
    version_in_words,
    visible_versions,
)
from napari_jrss.app.review.opinions import Dispute
from napari_jrss.app.review.other_images import OtherImage, other_image
from napari_jrss.app.review.prediction_review import PredictionReview
from napari_jrss.app.review.prompts import Prompts
from napari_jrss.app.review.tool_drafts import ToolDrafts
from napari_jrss.app.review.tools import Tools
from napari_jrss.app.runner import JobState
from napari_jrss.errors import JRSSError, ProjectError
from napari_jrss.project.corrections import CorrectionsFile, discard, unsaved
from napari_jrss.project.labels import check_draft
from napari_jrss.snapshot import Label
from napari_jrss.threads import step_back

if TYPE_CHECKING:
    from napari_jrss.app.cohort import Cohort
    from napari_jrss.app.next_case import Suggestion
    from napari_jrss.app.workspace import Workspace
    from napari_jrss.project.project import Project

_logger = logging.getLogger(__name__)

CACHED_CASES = 3
"""Most cases that stay in memory, so that going back to one is quick."""
CACHED_BYTES = 2**28
"""Most memory of their scans and drafts; the latest stays even if it is larger."""


class Leave(StrEnum):
    """What to do with unsaved corrections when a case is left."""

    ACCEPT = "accept"
    KEEP = "keep"
    DISCARD = "discard"


class UnsavedError(ProjectError):
    """The case under review has corrections, and the caller didn't say what to do with them."""


class Review:
    """The commands of the tab Review.

    What takes time runs on :attr:`queue`, whose thread emits the signals; a script calls
    :meth:`wait` after a command. Networks run as jobs of ``workspace.inference``.
    """

    case_changed = Signal()  # another case is under review, or none
    # The label was edited; carries the `Edit`, which is the inverse one for an undo.
    label_changed = Signal(Edit)
    # The case was accepted, rejected or skipped, or a structure was accepted.
    status_changed = Signal()
    accepted = Signal(str)  # the case of this id has a new label version
    suggestion_changed = Signal()  # another case is suggested as the next one, see `suggestion`
    unfinished_changed = Signal()  # the list `unfinished` changed
    place_wanted = Signal(Dispute)  # a place of the case under review is to be shown

    def __init__(self, workspace: Workspace, cohort: Cohort) -> None:
        self._workspace = workspace
        self._cohort = cohort
        self._current = CurrentCase(workspace)
        # Runs the work of the review in the order it was asked for.
        self.queue = self._current.queue
        # Which case to label next, and why; None while it isn't known.
        self.suggestion: Suggestion | None = None
        # Corrections of other cases that are kept on the disk but are in no label version.
        self.unfinished: list[CorrectionsFile] = []
        # Asks the person what to do with unsaved corrections; returns None to stay on the case.
        # None in a script, which gets an `UnsavedError` instead.
        self.ask: Callable[[OpenCase], Leave | None] | None = None
        self._wanted: str | None = None
        self._cache: OrderedDict[str, CachedCase] = OrderedDict()
        workspace.project_changed.connect(self._project_changed)
        workspace.cases_changed.connect(self._cases_changed)
        cohort.summaries.state_changed.connect(self._summarised)
        self.prediction = PredictionReview(self._current)  # what the networks say about the case
        # What two drafts of the case dispute.
        self.disputed = Disputed(self._current, self.prediction)
        self.tools = Tools(self._current)  # repairs of the label, undo and redo
        self.prompts = Prompts(self._current)  # what an nnInteractive server draws
        self.tool_drafts = ToolDrafts(self._current, self.prediction)  # of other programs
        self.case_changed.connect(self.prompts.case_left)
        # Cases that may have an error which was corrected in another one.
        self.echoes = Echoes(workspace, cohort)
        self.accepted.connect(self.echoes.accepted)
        # Drafts of the cases that come next.
        self.ahead = DraftsAhead(self._current, cohort)

    # -- open and leave

    @property
    def case(self) -> OpenCase | None:
        """The case under review, or None."""
        return self._current.case

    @property
    def open_case(self) -> OpenCase:
        """The case under review; :class:`ProjectError` if there is none."""
        return self._current.open_case

    def other_image(self, name: str) -> OtherImage:
        """A further image of the case under review, such as FLAIR; a ScanError if damaged."""
        return other_image(self._workspace.open_project, self.open_case, name)

    @property
    def unsaved(self) -> bool:
        """Whether the case under review has corrections that no label version holds."""
        if self.case is None:
            return False
        self.case.editor.sync()
        return self.case.editor.voxels_changed > 0 and not self._workspace.open_project.read_only

    def open(self, case_id: str, unsaved: Leave | str | None = None) -> bool:
        """Open a case for review; :attr:`case_changed` is emitted once it is there.

        Corrections that were kept for it are restored. `unsaved` says what to do with those of the
        present case; None: call :attr:`ask`, or raise an :class:`UnsavedError` if that isn't set.
        Returns False if the person chose to stay on the present case.
        """
        project = self._workspace.open_project
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
        self.queue.submit(lambda: self._read(project, case_id))
        return True

    def open_at(self, case_id: str, place: Dispute) -> bool:
        """Open a case as :meth:`open` does, and show a place of it; :attr:`place_wanted`."""
        if not self.open(case_id):
            return False

        def show() -> None:
            if self._wanted != case_id:
                return
            if self.case is None or self.case.case_id != case_id:
                self.queue.submit(show)  # once the case is open
            else:
                self.place_wanted.emit(place)

        self.queue.submit(show)
        return True

    def _read(self, project: Project, case_id: str) -> None:
        """Read a case, on the queue; the present one stays under review until that is done."""
        if not self._is_wanted(project, case_id):
            return
        known, workspace = self._cache.get(case_id), self._workspace
        ahead = self.ahead.draft_of(case_id)
        try:
            case = read_case(
                project,
                case_id,
                self.queue,
                workspace.author,
                known,
                workspace.autosave_s,
                {} if ahead is None else ahead.drafts,
            )
        except Exception:
            if self._wanted == case_id:
                self._wanted = None if self.case is None else self.case.case_id
            if self.case is None:
                self.case_changed.emit()
            raise
        if self.case is not None:
            # What was painted meanwhile is saved before the case is left.
            self.case.editor.sync()
        self.queue.submit(lambda: self._show(project, case))

    def _show(self, project: Project, case: OpenCase) -> None:
        if not self._is_wanted(project, case.case_id):
            case.autosave.keep()
            return
        self._put_away()
        case.editor.changed.connect(self._edited)
        self._current.case, self.prediction.region = case, None
        self.tools.meet_case()
        self._list_unfinished()
        self.case_changed.emit()
        self.prediction.screen(case)
        if self.prediction.missing(case):
            self.prediction.predict(case)
        self.suggest_next()

    def _is_wanted(self, project: Project, case_id: str) -> bool:
        """Whether no other case, or project, was opened meanwhile."""
        return self._wanted == case_id and self._workspace.project is project

    def close_case(self, unsaved: Leave | str | None = None) -> None:
        """Close the case; `unsaved` as in :meth:`open`."""
        if self.case is None or not self._leave(unsaved):
            return
        self._wanted = None

        def clear() -> None:
            self._clear()
            self._list_unfinished()
            self.case_changed.emit()

        self.queue.submit(clear)

    def leave_project(self, timeout: float = 2.0) -> bool:
        """Keep the corrections and close the case, before the project closes.

        Returns whether that was done within `timeout` seconds.
        """
        case, self._wanted = self.case, None
        if case is not None:
            case.editor.sync()
            self.queue.submit(case.autosave.keep)
        done = self.queue.wait(timeout)
        self._current.case = self.prediction.region = self.suggestion = None
        self._cache.clear()
        self.unfinished = []
        if case is not None:
            self.case_changed.emit()
        return done

    def stop_background(self, timeout: float | None = 10.0) -> bool:
        """Stop what is done in other cases; whether that ended within `timeout` seconds."""
        self.echoes.stop()
        self.ahead.stop()
        return self._workspace.background.wait(timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until no work is left; whether that is so."""
        return self.queue.wait(timeout)

    def _leave(self, unsaved: Leave | str | None) -> bool:
        """Deal with unsaved corrections of the present case; whether it may be left."""
        if not self.unsaved:
            return True
        case = self.open_case
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
            case.editor.replace("discard", case.editor.origin.label)
            self.queue.submit(case.autosave.discard)
        return True

    # -- drafts

    def draft_from(self, label: Label, draft: str) -> None:
        """Start from a label (z, y, x) that came from elsewhere; undo takes that back.

        If the case is still being opened, the label is used once it is open. If the case has
        corrections, they stay, and the label becomes one more choice to start from. `draft` says
        where it came from, such as ``case:A``. A :class:`ProjectError` if the label doesn't fit the
        project.
        """
        project = self._workspace.open_project
        check_draft(draft)
        self._require_writable()
        wanted = self._wanted or self.open_case.case_id
        array = project.checked_label(wanted, label)

        def begin() -> None:
            if self._wanted == wanted and (self.case is None or self.case.case_id != wanted):
                self.queue.submit(begin)  # once the case is open
                return
            case = self.open_case
            if case.case_id != wanted:
                return
            on_scan = case.drafts[draft] = case.transform.label_to_scan(array)
            words = draft_in_words(draft)
            case.editor.sync()
            if case.editor.voxels_changed:
                message = f"your corrections stay; choose the draft {words!r} to start from it"
            else:
                case.editor.begin(f"start from {words}", on_scan, draft)
                message = f"starts from a label {words}"
            self._workspace.notified.emit(f"{case.case_id}: {message}")
            self.prediction.changed.emit()

        self.queue.submit(begin)

    def start_from(self, draft: str, *, replace: bool = False) -> None:
        """Start from one of :attr:`OpenCase.draft_choices`; undo takes that back.

        Corrections are an :class:`UnsavedError`, unless they are to be replaced, too; undo brings
        them back while the case is open.
        """
        self._require_writable()
        case = self.open_case
        if self.unsaved and not replace:
            raise UnsavedError(
                f"case {case.case_id} has {case.editor.voxels_changed} corrected voxels, which "
                "another draft would replace: accept them first, or agree to replace them"
            )
        self.queue.submit(
            lambda: case.editor.begin(
                f"start from {draft_in_words(draft)}", self._current.label_from(case, draft), draft
            )
        )

    # -- decisions

    def accept_structure(self, index: int, accepted: bool = True) -> None:
        """Accept one structure, which protects it from changes; or withdraw that."""
        self._require_writable()
        case = self.open_case
        case.editor.lock(index, accepted)
        case.autosave.note_accepted()
        self.status_changed.emit()

    def accept(self, *, go_on: bool = False) -> None:
        """Save the label as the version in force: ACCEPTED if unchanged, else CORRECTED.

        The next round trains on it; a round that runs now doesn't. With `go_on`, the case that is
        suggested next opens if this one had no label before. A :class:`ProjectError` if the author
        has no name, or there is nothing to accept.
        """
        author = self._require_author()
        case = self.open_case
        case.editor.sync()
        label, origin = case.editor.snapshot(), case.editor.origin
        if not label.any():
            raise ProjectError(
                f"case {case.case_id}: the label is empty; paint, or start from a draft"
            )
        in_force = case.case.label_version
        go_on = go_on and case.awaited
        if origin.draft == f"version:{in_force}" and np.array_equal(label, origin.label):
            raise ProjectError(f"case {case.case_id}: nothing was changed since {in_force}")

        def accept() -> None:
            ours = case.editor.origin
            if ours is not origin and np.array_equal(label, ours.label):
                return  # the command was given twice
            version = case.autosave.accept(label, author)
            case.recovered = None
            self._refresh(case)
            changed = case.versions[-1].voxels_changed or 0
            how = f"{changed:,} voxels corrected" if changed else "unchanged"
            self._workspace.notified.emit(
                f"{case.case_id}: saved as {version_in_words(version)} ({how})"
            )
            self._decided(go_on)
            self.accepted.emit(case.case_id)

        self.queue.submit(accept)

    def reject(self, reason: str = "", *, go_on: bool = False) -> None:
        """Record that the pseudo-label is unusable; a label in force stays.

        `go_on` as in :meth:`accept`.
        """
        self._decide("reject", reason, go_on)

    def skip(self, reason: str, *, go_on: bool = False) -> None:
        """Leave the case for later, with a reason; `go_on` as in :meth:`accept`."""
        if not reason.strip():
            raise ProjectError("skipping a case needs a reason")
        self._decide("skip", reason, go_on)

    def suggest_next(self, *, tell: bool = False) -> None:
        """Find the case to label next; :attr:`suggestion_changed` is emitted once it is known.

        With `tell` the person is notified if there is none.
        """
        after = None if self.case is None else self.case.case_id

        def look() -> None:
            self.suggestion = self._cohort.suggest(after)
            self.suggestion_changed.emit()
            if self.ahead.cases and self.suggestion is not None:
                wanted = partial(self._read_ahead, self.suggestion.case_id)
                self._workspace.background.submit(wanted)
            self.ahead.refresh()
            if tell and self.suggestion is None:
                self._workspace.notified.emit("Every other training case has a label")

        self.queue.submit(look)

    def discard_unfinished(self, case_id: str) -> None:
        """Delete the corrections that are kept for a case that isn't open."""
        project = self._workspace.writable_project
        if self.case is not None and self.case.case_id == case_id:
            raise ProjectError(f"case {case_id} is open for review; use Revert there")

        def give_up() -> None:
            discard(project, case_id)
            self._list_unfinished()

        self.queue.submit(give_up)

    def _decide(self, kind: str, reason: str, go_on: bool) -> None:
        author = self._require_author()
        go_on = go_on and self.open_case.awaited
        case, project = self._current.open_case, self._workspace.open_project
        number = None if case.teacher is None else case.teacher.number

        def decide() -> None:
            record = project.reject if kind == "reject" else project.skip
            record(case.case_id, author, reason.strip(), number)
            self._refresh(case)
            self._decided(go_on)

        self.queue.submit(decide)

    def _decided(self, go_on: bool) -> None:
        self.status_changed.emit()
        self._workspace.cases_changed.emit()
        self.suggest_next()
        if go_on:
            self.queue.submit(self._open_suggested)

    def _open_suggested(self) -> None:
        """Open the next case, unless the person paints or has opened another one meanwhile."""
        if self.suggestion is None:
            self._workspace.notified.emit("Every other training case has a label")
        elif self.case is not None and self._wanted == self.case.case_id and not self.unsaved:
            self.open(self.suggestion.case_id, Leave.KEEP)

    def _refresh(self, case: OpenCase) -> None:
        project = self._workspace.open_project
        case.case = project.case(case.case_id)
        case.versions = tuple(visible_versions(project, case.case))

    def _require_writable(self) -> None:
        self._workspace.open_project.check_writable()

    def _require_author(self) -> str:
        self._require_writable()
        if not self._workspace.author.strip():
            raise ProjectError("a label needs its author's name; set it in the preferences")
        return self._workspace.author

    # -- changes from elsewhere

    def _cases_changed(self) -> None:
        self.queue.submit(self._follow)

    def _summarised(self, state: JobState) -> None:
        """More is known of the cases, so another one may be the one to label next."""
        if state is JobState.FINISHED and self._workspace.project is not None:
            self.suggest_next()

    def _follow(self) -> None:
        """Follow changes of the open case from elsewhere, such as a split or new names."""
        case, project = self.case, self._workspace.project
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
        self._current.case = self.prediction.region = None

    def _put_away(self) -> None:
        """Keep the case's corrections on the disk, and its volumes in the cache."""
        if self.case is None:
            return
        self.case.autosave.keep()
        self._cache_case(self.case.case_id, self.case.cached)

    def _read_ahead(self, case_id: str) -> None:
        """Read the case that is suggested, on the background's thread, if it isn't in memory."""
        project = self._workspace.project
        if project is None or case_id in self._cache or self._wanted == case_id:
            return
        step_back()
        try:
            volumes = read_volumes(project, case_id)
        except JRSSError as error:  # who opens the case is told
            _logger.info("%s can't be read ahead: %s", case_id, error)
            return

        def keep() -> None:
            if self._workspace.project is project and case_id not in self._cache:
                self._cache_case(case_id, volumes)

        self.queue.submit(keep)

    def _cache_case(self, case_id: str, volumes: CachedCase) -> None:
        self._cache[case_id] = volumes
        self._cache.move_to_end(case_id)
        while len(self._cache) > 1 and (
            len(self._cache) > CACHED_CASES
            or sum(case.nbytes for case in self._cache.values()) > CACHED_BYTES
        ):
            self._cache.popitem(last=False)

    def _project_changed(self) -> None:
        if self._workspace.project is not None and not self._workspace.project.read_only:
            self.queue.submit(self._list_unfinished)
            self.suggest_next()

    def _list_unfinished(self) -> None:
        """List the corrections that are on the disk, left for later or by a program that died."""
        project = self._workspace.project
        if project is None or project.read_only:
            return
        here = None if self.case is None else self.case.case_id
        self.unfinished = [e for e in unsaved(project) if e.case_id != here]
        self.unfinished_changed.emit()
