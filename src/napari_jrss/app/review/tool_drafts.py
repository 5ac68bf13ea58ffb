"""Drafts that another program makes, as a job beside the review."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from napari_jrss.app.drafting import DraftMade, DraftUnderWay, draft_by_totalsegmentator
from napari_jrss.app.review.open_case import BLANK, CurrentCase, OpenCase, draft_in_words
from napari_jrss.project.drafts import kept_draft, kept_drafts

if TYPE_CHECKING:
    from napari_jrss.app.review.prediction_review import PredictionReview
    from napari_jrss.inference.totalsegmentator import TotalSegmentator


class ToolDrafts:
    """Commands that let another program draft labels. They run as a job of the session."""

    def __init__(self, current: CurrentCase, prediction: PredictionReview) -> None:
        self._workspace = current.workspace
        self._current = current
        self._prediction = prediction

    def totalsegmentator(
        self,
        program: TotalSegmentator,
        cases: Sequence[str] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Let TotalSegmentator draft labels; see :func:`draft_by_totalsegmentator`.

        The case under review begins with its draft if its label is empty and wasn't touched;
        otherwise the draft is one more choice to start from. Cancelling the job ends the program.

        Raises
        ------
        JRSSError
            TotalSegmentator isn't installed, the project is read-only, or another job is running.
        """
        self._workspace.require_idle()
        project = self._workspace.writable_project
        program.find()

        def work(cancel: threading.Event) -> Iterator[DraftUnderWay | DraftMade]:
            made = 0
            events = draft_by_totalsegmentator.events(
                project, cases, program, names=names, cancel=cancel
            )
            with closing(events):
                for event in events:
                    if isinstance(event, DraftMade):
                        made += not event.problem
                        self._workspace.notified.emit(event.line())
                        if not event.problem:
                            self._take(event.case_id, event.draft)
                    yield event
            if made > 1:
                self._workspace.notified.emit(f"{made} drafts of TotalSegmentator are ready")

        self._workspace.inference.start(work)

    def _take(self, case_id: str, draft: str) -> None:
        """Offer a new draft of the case under review, and start from it if nothing is lost."""

        def take() -> None:
            case = self._current.case
            if case is None or case.case_id != case_id:
                return
            project = self._workspace.open_project
            case.kept = kept_drafts(project, case_id)
            if _untouched(case):
                label = kept_draft(project, case_id, draft)
                case.editor.begin(f"start from {draft_in_words(draft)}", label, draft)
            self._prediction.changed.emit()
            self._prediction.draft_made.emit(case_id, draft)

        self._current.queue.submit(take)


def _untouched(case: OpenCase) -> bool:
    """Whether the case has no label and the person has done nothing to it."""
    editor = case.editor
    editor.sync()
    fresh = editor.origin.draft == BLANK or editor.origin.draft.startswith("tool:")
    touched = editor.undo_name is not None or editor.voxels_changed > 0 or bool(editor.locked)
    return fresh and case.case.label_version is None and not touched
