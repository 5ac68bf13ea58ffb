"""Two opinions on the case under review, gone through by what they dispute, the largest first."""

from __future__ import annotations

from typing import Literal, TypeAlias

from psygnal import Signal

from napari_jrss.app.review.open_case import CurrentCase, OpenCase, draft_in_words
from napari_jrss.app.review.opinions import Dispute, decided, disputes, slice_to_paint
from napari_jrss.app.review.prediction_review import PredictionReview
from napari_jrss.errors import ProjectError

Choice: TypeAlias = Literal["first", "second", "neither"]

MOST = 300
"""Disputes that are listed."""


class Disputed:
    """Commands on what two drafts of the case under review dispute.

    Attributes
    ----------
    drafts
        Keys of the two drafts that are compared; empty before :meth:`compare`.
    disputes
        What they dispute, the largest first.
    dispute
        The one that was gone to last, or None.
    """

    changed = Signal()  # other drafts are compared, or a dispute was decided
    dispute_changed = Signal()  # another dispute was gone to
    slice_wanted = Signal(int, int)  # axis and number of a slice to paint on

    def __init__(self, current: CurrentCase, prediction: PredictionReview) -> None:
        self._current, self._prediction = current, prediction
        self._case: OpenCase | None = None
        self._waiting: str | None = None  # the case that a label is propagated to
        self._open: list[Dispute] = []
        self.drafts: tuple[str, str] | tuple[()] = ()
        self.disputes: list[Dispute] = []
        self.dispute: Dispute | None = None
        prediction.draft_made.connect(self._draft_made)

    @property
    def left(self) -> int:
        """How many disputes nobody has looked at."""
        return len(self._open)

    def of(self, case: OpenCase) -> bool:
        """Whether the list is of this case."""
        return case is self._case

    def compare(self, first: str = "", second: str = "") -> None:
        """List what two drafts dispute, and go to the largest.

        Parameters
        ----------
        first, second
            Keys of drafts, as in :attr:`OpenCase.draft_choices`. By default the teacher's draft,
            and the label that was propagated last; if there is none, it is made first, as a job.

        Raises
        ------
        ProjectError
            There is no teacher's draft, or no other labelled case to propagate from.
        """
        case = self._current.open_case
        if not first:
            if case.prediction is None or case.teacher is None:
                raise ProjectError(f"case {case.case_id} has no draft of a teacher yet")
            first = f"round:{case.teacher.number}"
        if not second:
            propagated = [draft for draft in case.drafts if _is_vote(draft)]
            if not propagated:
                self._waiting = case.case_id
                self._prediction.propagate()
                return
            second = propagated[-1]
        self._current.queue.submit(lambda: self._compare(case, first, second))

    def next(self) -> None:
        """Go to the next dispute, and leave the present one as it is; the first time, compare."""
        case = self._current.open_case
        if case is not self._case:
            self.compare()
            return
        case.autosave.touch()
        self._current.queue.submit(lambda: self._go_on(case))

    def decide(self, choice: Choice) -> None:
        """Give the present dispute's voxels one draft's class, or neither, and go to the next.

        It is one action for undo. Accepted structures and what was painted by hand stay.
        """
        self._current.workspace.open_project.check_writable()
        case, dispute = self._current.open_case, self.dispute
        if dispute is None or case is not self._case:
            raise ProjectError("go to a disputed place first")
        case.editor.sync()

        def decide() -> None:
            if choice != "neither":
                draft = self.drafts[int(choice == "second")]
                seen = case.editor.snapshot()
                new = decided(seen, dispute, choice == "second", case.editor.painted())
                name = f"as the {draft_in_words(draft)} has it"
                if case.editor.replace(name, new, seen) is None:
                    self._current.workspace.notified.emit("It is so already")
            self._go_on(case)

        self._current.queue.submit(decide)

    def next_slice(self, index: int, axis: int = 0) -> None:
        """Go to the slice that interpolation of a structure needs most."""
        case = self._current.open_case
        case.editor.sync()

        def look() -> None:
            painted = case.editor.painted_slices(index, axis)
            number = slice_to_paint(case.editor.snapshot(), index, axis, painted)
            if number is None:
                self._current.workspace.notified.emit(
                    f"Interpolation needs no further slice of {case.table.names[index]}"
                )
            else:
                self.slice_wanted.emit(axis, number)

        self._current.queue.submit(look)

    def _compare(self, case: OpenCase, first: str, second: str) -> None:
        if case is not self._current.case:
            return
        labels = [self._current.label_from(case, draft) for draft in (first, second)]
        found = disputes(labels[0], labels[1], case.spacing_mm)[:MOST]
        self._case, self.drafts, self.disputes = case, (first, second), found
        self._open, self.dispute = list(found), None
        self.changed.emit()
        self._go_on(case)

    def _go_on(self, case: OpenCase) -> None:
        if case is not self._case or case is not self._current.case:
            return
        if not self._open:
            self.dispute = None
            self._current.workspace.notified.emit("The two opinions dispute nothing more")
        else:
            self.dispute = self._open.pop(0)
        self.changed.emit()
        self.dispute_changed.emit()

    def _draft_made(self, case_id: str, _draft: str) -> None:
        case = self._current.case
        if case_id == self._waiting:
            self._waiting = None
            if case is not None and case.case_id == case_id:
                self.compare()


def _is_vote(draft: str) -> bool:
    """Whether a draft was propagated, and isn't averaged with a teacher's."""
    return draft.startswith("case:") and "+round:" not in draft
