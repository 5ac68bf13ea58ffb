"""Review: one case on the table, the teacher's proposal for it, and the person's own label."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from psygnal import Signal

from napari_jrss.data.batches import Label
from napari_jrss.data.predictions import PREDICTIONS, Prediction, write_prediction
from napari_jrss.project import journal
from napari_jrss.project.errors import ProjectError
from napari_jrss.project.labels import check_draft
from napari_jrss.session import shapes
from napari_jrss.session.description import config_of
from napari_jrss.session.desk import Desk
from napari_jrss.session.editing import Edit
from napari_jrss.session.open_case import (
    BLANK,
    Kept,
    OpenCase,
    draft_in_words,
    find_prediction,
    read_case,
    visible_versions,
)
from napari_jrss.session.regions import Region, uncertain_regions
from napari_jrss.session.runner import JobState
from napari_jrss.session.screening import Screened, Screening

if TYPE_CHECKING:
    from napari_jrss.project.ledger import Round
    from napari_jrss.session.session import Session
    from napari_jrss.session.suggest import Suggestion

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

    What takes time is done at the :attr:`desk`, and signals are emitted from its thread; a
    script calls :meth:`wait` after a command. Inference goes through ``session.inference``.

    Attributes
    ----------
    case_changed
        Another case is on the table, or none.
    prediction_changed
        The teacher's prediction of the case, its screening, or the sources are others.
    screened
        Another tau was chosen.
    label_changed
        The label under correction: the :class:`Edit` that was made, or taken back.
    status_changed
        The case was accepted, rejected or skipped, or a structure was accepted.
    suggestion_changed
        Another case is suggested as the next one.
    region_changed
        The next uncertain region is chosen.
    unfinished_changed
        There are other journals with corrections to recover.
    case, suggestion, region, unfinished
        What these signals tell of.
    ask
        Asks the person what to do with unsaved corrections; None: they don't want to leave.
        A script has nobody to ask and gets an :class:`UnsavedError`.
    """

    case_changed = Signal()
    prediction_changed = Signal()
    screened = Signal()
    label_changed = Signal(Edit)
    status_changed = Signal()
    suggestion_changed = Signal()
    region_changed = Signal()
    unfinished_changed = Signal()

    def __init__(self, session: Session) -> None:
        self._session = session
        self.desk = Desk("review")
        self.case: OpenCase | None = None
        self.suggestion: Suggestion | None = None
        self.region: Region | None = None
        self.unfinished: list[journal.JournalEntry] = []
        self.ask: Callable[[OpenCase], Leave | None] | None = None
        self._wanted: str | None = None
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._predicting: str | None = None
        session.project_changed.connect(self._project_changed)
        session.rounds_changed.connect(self._rounds_changed)
        session.inference.state_changed.connect(self._inference_changed)

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
        if not self._leave(unsaved):
            return False
        self._wanted = case_id

        def put_on_table() -> None:
            if self._wanted != case_id or self._session.project is not project:
                return  # another one was asked for meanwhile
            self._put_away()
            known = self._kept.get(case_id)
            case = read_case(project, case_id, self.desk, self._session.author, known)
            case.editor.changed.connect(self._edited)
            self.case, self.region = case, None
            self.case_changed.emit()
            self._screen(case)
            if case.prediction is None and case.teacher is not None:
                self._predict(case)
            self.suggest_next()

        self.desk.submit(put_on_table)
        return True

    def close_case(self, unsaved: Leave | str | None = None) -> None:
        """Take the case off the table."""
        if self.case is None or not self._leave(unsaved):
            return
        self._wanted = None

        def clear() -> None:
            self._put_away()
            self.case = self.region = None
            self.case_changed.emit()

        self.desk.submit(clear)

    def leave_project(self, timeout: float = 2.0) -> bool:
        """Keep the corrections and put nothing more on the table; before the project closes."""
        case, self._wanted = self.case, None
        if case is not None:
            case.editor.sync()
            self.desk.submit(case.autosave.keep)
        done = self.desk.wait(timeout)
        self.case = self.region = self.suggestion = None
        self._kept.clear()
        self.unfinished = []
        if case is not None:
            self.case_changed.emit()
        return done

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the desk is empty; whether that came to be."""
        return self.desk.wait(timeout)

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
            case.editor.replace("give up", case.editor.origin.label)
            self.desk.submit(case.autosave.discard)
        return True

    # -- the teacher's proposal

    def set_tau(self, tau: float) -> Screened:
        """Hold the prediction against another tau, without inference."""
        case = self.on_table
        if case.screening is None:
            raise ProjectError(f"case {case.case_id} has no prediction to screen")
        case.screened = case.screening.at(tau)
        case.autosave.touch()
        self.screened.emit()
        return case.screened

    def next_uncertain(self) -> None:
        """Choose the next uncertain region, worst first; :attr:`region_changed` tells it."""
        case = self.on_table
        if case.prediction is None:
            raise ProjectError(f"case {case.case_id} has no prediction yet")
        case.autosave.touch()

        def choose() -> None:
            assert case.prediction is not None
            if case.regions is None:
                case.regions = uncertain_regions(case.prediction, case.spacing_mm)
            if not case.regions:
                self._session.notified.emit("The teacher is equally sure of everything")
                return
            after = case.regions.index(self.region) + 1 if self.region in case.regions else 0
            self.region = case.regions[after % len(case.regions)]
            self.region_changed.emit()

        self.desk.submit(choose)

    def propagate(self) -> None:
        """Register the labelled cases to this one, in the background: a draft by their vote.

        Raises
        ------
        ProjectError
            There is no registration network yet.
        BusyError
            Another short job is under way.
        """
        case, project = self.on_table, self._session.open_project
        if project.teacher is None:
            raise ProjectError(f"{project.path}: has no trained networks yet (train)")

        def work(cancel: threading.Event) -> Iterator[object]:
            from napari_jrss.session.inference import register_labelled

            cases = [c for c in project.snapshot().labelled if c != case.case_id]
            for found in register_labelled(project, case.case_id, device=self._session.device):
                if cancel.is_set():
                    return
                if isinstance(found, Prediction):
                    case.drafts["case:" + ",".join(cases)] = found.label
                    self.prediction_changed.emit()
                yield found

        self._session.inference.start(work)

    # -- drafts and tools

    def draft_from(self, label: Label, draft: str) -> None:
        """Begin with a label that came from elsewhere; undo takes that back.

        A case that was asked for just before gets it as soon as it is on the table.

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
            case = self.on_table
            if case.case_id != wanted:
                return
            case.drafts[draft] = array
            case.editor.begin(f"start from {draft_in_words(draft)}", array, draft)
            self.prediction_changed.emit()

        self.desk.submit(begin)

    def start_from(self, draft: str) -> None:
        """Begin with one of the case's sources; undo takes that back."""
        self._require_writable()
        case = self.on_table
        self.desk.submit(
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

    def smooth(self, index: int) -> None:
        """Round off one structure's surface."""
        spacing = self.on_table.spacing_mm
        self._tool("smooth", index, lambda label: shapes.smooth(label, index, spacing))

    def fill_holes(self, index: int) -> None:
        """Fill what one structure encloses, in 3D."""
        self._tool("fill holes", index, lambda label: shapes.fill_holes(label, index))

    def keep_largest(self, index: int) -> None:
        """Keep the largest connected part of one structure."""
        self._tool("keep the largest part", index, lambda label: shapes.keep_largest(label, index))

    def interpolate(self, index: int, axis: int = 0) -> None:
        """Draw one structure between the slices that were painted, or else into its gaps."""
        painted = self.on_table.editor.painted_slices(index, axis)
        keys = painted if len(painted) > 1 else None
        self._tool("interpolate", index, lambda label: shapes.interpolate(label, index, axis, keys))

    def take_structure(self, index: int, draft: str) -> None:
        """Give one structure the extent that it has in a source."""
        case = self.on_table
        self._tool(
            f"take from {draft_in_words(draft)}",
            index,
            lambda label: shapes.take(label, index, self.source(case, draft)),
        )

    def revert(self) -> None:
        """Take every correction back to the draft, as one action."""
        self._require_writable()
        editor = self.on_table.editor
        editor.replace("revert", editor.origin.label)

    def undo(self) -> None:
        """Take the latest action back, whether painted or made by a tool."""
        self.on_table.editor.undo()

    def redo(self) -> None:
        """Do again what was undone last."""
        self.on_table.editor.redo()

    def _tool(self, name: str, index: int, tool: Callable[[Label], Label]) -> None:
        self._require_writable()
        case = self.on_table
        names = case.table.names
        if not 0 < index < len(names):
            raise ProjectError(f"there is no structure {index}")
        if index in case.editor.locked:
            raise ProjectError(f"{names[index]} is accepted; withdraw that before changing it")

        def work() -> None:
            seen = case.editor.snapshot()
            edit = case.editor.replace(f"{name}: {names[index]}", tool(seen), seen)
            if edit is None:
                self._session.notified.emit(f"{name}: nothing to change in {names[index]}")

        case.editor.sync()
        self.desk.submit(work)

    # -- decisions

    def accept_structure(self, index: int, accepted: bool = True) -> None:
        """Accept one structure: it is protected from further changes, until withdrawn."""
        self._require_writable()
        self.on_table.editor.lock(index, accepted)
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
            version = case.autosave.accept(label, author)
            case.editor.rebase(f"version:{version}", label)
            case.autosave.restart()
            self._refresh(case)
            changed = case.versions[-1].voxels_changed or 0
            how = f"{changed} voxels corrected" if changed else "unchanged"
            self._session.notified.emit(f"{case.case_id}: {version} is in force ({how})")
            self._decided(case)

        self.desk.submit(accept)

    def reject(self, reason: str = "") -> None:
        """Record that the pseudo-label is no good; a label in force stays."""
        self._decide("reject", reason)

    def skip(self, reason: str) -> None:
        """Leave the case for later, and say why."""
        if not reason.strip():
            raise ProjectError("say why the case is skipped")
        self._decide("skip", reason)

    def suggest_next(self) -> None:
        """Look for the case to label next, soon; :attr:`suggestion_changed` tells it."""
        after = None if self.case is None else self.case.case_id

        def look() -> None:
            self.suggestion = self._session.cohort.suggest(after)
            self.suggestion_changed.emit()

        self.desk.submit(look)

    def discard_unfinished(self, case_id: str) -> None:
        """Give up the corrections that a journal holds."""
        project = self._session.open_project
        project.check_writable()
        if self.case is not None and self.case.case_id == case_id:
            raise ProjectError(f"case {case_id} is on the table; revert it there")

        def discard() -> None:
            journal.discard(project, case_id)
            self._look_for_journals()

        self.desk.submit(discard)

    def _decide(self, kind: str, reason: str) -> None:
        author = self._require_author()
        case, project = self.on_table, self._session.open_project
        number = None if case.teacher is None else case.teacher.number

        def decide() -> None:
            record = project.reject if kind == "reject" else project.skip
            record(case.case_id, author, reason.strip(), number)
            self._refresh(case)
            self._decided(case)

        self.desk.submit(decide)

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

    def _edited(self, edit: Edit) -> None:
        self.label_changed.emit(edit)

    def _put_away(self) -> None:
        """Keep the case's corrections on the disk, and its volumes in memory for a while."""
        if self.case is None:
            return
        self.case.autosave.keep()
        self._kept[self.case.case_id] = self.case.kept
        self._kept.move_to_end(self.case.case_id)
        while len(self._kept) > KEPT_CASES:
            self._kept.popitem(last=False)

    def _screen(self, case: OpenCase) -> None:
        """Make a prediction ready for any tau."""
        if case.prediction is not None and case.teacher is not None:
            config = config_of(case.teacher).screening
            if case.screening is None:
                case.screening = Screening(case.prediction, len(case.table.names), config)
            tau = config.tau if case.screened is None else case.screened.tau
            case.screened = case.screening.at(tau)
        self.prediction_changed.emit()

    def _predict(self, case: OpenCase) -> None:
        """Let the teacher look at a case, unless another short job is under way: then later."""
        self._predicting = case.case_id
        if not self._session.inference.state.busy:
            self._start_prediction(case)

    def _start_prediction(self, case: OpenCase) -> None:
        project, teacher = self._session.open_project, case.teacher
        assert teacher is not None
        self._predicting = None

        def work(cancel: threading.Event) -> Iterator[object]:
            from napari_jrss.engine.device import make_fabric
            from napari_jrss.engine.predict import predict_case
            from napari_jrss.session.networks import load_student, load_teacher

            device = make_fabric(self._session.device).device
            network, student = load_teacher(teacher, device), load_student(teacher, device)
            if cancel.is_set():
                return
            prediction = predict_case(network, case.image, device, student)
            if not project.read_only:
                write_prediction(teacher.folder / PREDICTIONS, case.case_id, prediction)
            self.desk.submit(lambda: self._predicted(case, teacher, prediction))
            yield prediction

        self._session.inference.start(work)

    def _predicted(self, case: OpenCase, teacher: Round, prediction: Prediction) -> None:
        """Show a new prediction; it becomes the draft only of a label that nobody touched."""
        case.teacher, case.prediction = teacher, prediction
        case.screening = case.regions = None
        editor = case.editor
        editor.sync()
        proposed = editor.origin.draft == BLANK or editor.origin.draft.startswith("round:")
        unlabelled = case.case.label_version is None
        if proposed and unlabelled and editor.undo_name is None and not editor.voxels_changed:
            editor.begin("new pseudo-label", prediction.label, f"round:{teacher.number}")
        self._screen(case)

    def _inference_changed(self, state: JobState) -> None:
        case = self.case
        waiting = case is not None and case.case_id == self._predicting
        if case is not None and waiting and not state.busy and case.prediction is None:
            self._start_prediction(case)

    def _rounds_changed(self) -> None:
        case, project = self.case, self._session.project
        if case is None or project is None:
            return

        def look() -> None:
            teacher = project.teacher
            if teacher is None or (case.teacher is not None and case.teacher == teacher):
                return
            prediction = find_prediction(teacher, case.case_id)
            if prediction is not None:
                self._predicted(case, teacher, prediction)
            else:
                case.teacher, case.prediction = teacher, None
                case.screening = case.screened = case.regions = None
                self.prediction_changed.emit()
                self._predict(case)

        self.desk.submit(look)

    def _project_changed(self) -> None:
        if self._session.project is not None and not self._session.project.read_only:
            self.desk.submit(self._look_for_journals)
            self.suggest_next()

    def _look_for_journals(self) -> None:
        """Corrections that were left by a closed or killed program."""
        project = self._session.project
        if project is None:
            return
        here = None if self.case is None else self.case.case_id
        self.unfinished = [e for e in journal.unsaved(project) if e.case_id != here]
        self.unfinished_changed.emit()
