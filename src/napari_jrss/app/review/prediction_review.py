"""What the networks say about the case under review: predicted, screened, propagated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_jrss.app.pairs.registering import (
    engine_of_votes,
    project_registrar,
    register_labelled,
    require_engine,
)
from napari_jrss.app.review.consensus import propagated_drafts
from napari_jrss.app.review.open_case import BLANK, CurrentCase, OpenCase, draft_in_words
from napari_jrss.app.review.regions import Region, uncertain_regions
from napari_jrss.app.rounds.train import UNLEARNED
from napari_jrss.app.runner import BusyError, JobState
from napari_jrss.config import ScreeningConfig
from napari_jrss.errors import ProjectError
from napari_jrss.io.predictions import Prediction
from napari_jrss.training.screening import Screened, Screening

if TYPE_CHECKING:
    from napari_jrss.project.project import Project
    from napari_jrss.project.records import Round
    from napari_jrss.snapshot import Label


class PredictionReview:
    """Commands on what the networks say about the case under review."""

    changed = Signal()  # the prediction, its screening, or the drafts to start from changed
    screened = Signal()  # another tau was chosen
    region_changed = Signal()  # another uncertain region was chosen
    draft_made = Signal(str, str)  # a case has a new draft: their ids

    def __init__(self, current: CurrentCase) -> None:
        self._workspace = workspace = current.workspace
        self._current = current
        self.region: Region | None = None  # the uncertain region that was chosen last, or None
        self._predicting: str | None = None
        workspace.rounds_changed.connect(self._rounds_changed)
        workspace.inference.state_changed.connect(self._inference_changed)

    def set_tau(self, tau: float) -> Screened:
        """Screen the prediction at another tau, without inference."""
        case = self._current.open_case
        if case.screening is None:
            raise ProjectError(f"case {case.case_id} has no prediction to screen")
        case.screened = case.screening.at(tau)
        case.autosave.touch()
        self.screened.emit()
        return case.screened

    def next_uncertain(self) -> None:
        """Go to the next uncertain region, worst first; emits :attr:`region_changed`."""
        case = self._current.open_case
        if case.prediction is None:
            raise ProjectError(f"case {case.case_id} has no prediction yet")
        case.autosave.touch()

        def choose() -> None:
            assert case.prediction is not None
            if case.regions is None:
                case.regions = uncertain_regions(case.prediction, case.grid.spacing_mm)
            if not case.regions:
                self._workspace.notified.emit("No region is less certain than the others")
                return
            after = case.regions.index(self.region) + 1 if self.region in case.regions else 0
            self.region = case.regions[after % len(case.regions)]
            self.region_changed.emit()

        self._current.queue.submit(choose)

    def propagate(self) -> None:
        """Register all labelled cases to this one; their vote becomes a draft. Runs as a job.

        Where there is a teacher, the average of the vote and its prediction is a second draft.

        By the engine of :attr:`napari_jrss.app.pairs.pairs.Pairs.engine`.
        """
        case, project = self._current.open_case, self._workspace.open_project
        cases = [c for c in project.snapshot().labelled if c != case.case_id]
        if not cases:
            raise ProjectError("label another case first: its label can be propagated to this one")
        engine = engine_of_votes(project, self._workspace.engine)
        require_engine(engine, project)

        def work(cancel: threading.Event) -> Iterator[object]:
            registrar = project_registrar(
                project,
                engine,
                watch=lambda done: not cancel.is_set(),
                device=self._workspace.device,
            )
            for found in register_labelled(project, case.case_id, registrar):
                if cancel.is_set():
                    return
                if isinstance(found, Prediction):
                    self._keep_drafts(case, cases, found)
                yield found

        self._workspace.inference.start(work)

    def _keep_drafts(self, case: OpenCase, voters: list[str], vote: Prediction) -> None:
        """Offer a vote as a draft, and its average with what the teacher predicts."""
        number = None if case.teacher is None else case.teacher.number
        found = propagated_drafts(voters, vote, case.prediction, number)
        for key, prediction in found.items():
            teacher = case.teacher if prediction is not vote else None
            case.drafts[key] = at_own_voxels(
                *(self._workspace.open_project, teacher, case.case_id, prediction),
                self._workspace.device,
            )
        best = next(reversed(found))
        self.changed.emit()
        self.draft_made.emit(case.case_id, best)
        self._workspace.notified.emit(
            f"{case.case_id}: a draft {draft_in_words(best)} is ready, see Draft"
        )

    def screen(self, case: OpenCase) -> None:
        """Prepare a case's prediction for screening at any tau."""
        if case.prediction is not None and case.teacher is not None:
            config = case.teacher.files.training_config().screening
            if case.screening is None:
                case.screening = Screening(
                    case.prediction, len(case.table.names), config, _held_back(case, config)
                )
            tau = config.tau if case.screened is None else case.screened.tau
            case.screened = case.screening.at(tau)
        self.changed.emit()

    def missing(self, case: OpenCase) -> bool:
        """Whether the teacher has yet to predict a case, or to draw its draft on its own voxels."""
        if case.teacher is None or case.prediction is None:
            return case.teacher is not None
        unlabelled = case.case.label_version is None
        return (
            unlabelled and case.prediction.scan_label is None and case.teacher.files.fine.exists()
        )

    def predict(self, case: OpenCase) -> None:
        """Let the teacher predict a case; if another short job runs, once that has ended."""
        self._predicting = None
        try:
            self._start_prediction(case)
        except BusyError:
            self._predicting = case.case_id  # _inference_changed tries again

    def _start_prediction(self, case: OpenCase) -> None:
        project, teacher = self._workspace.open_project, case.teacher
        assert teacher is not None

        def work(cancel: threading.Event) -> Iterator[object]:
            prediction = teacher_prediction(project, teacher, case.case_id, self._workspace.device)
            undrawn = case.prediction is not None and prediction.scan_label is None
            if cancel.is_set() or undrawn:  # its voxels are too unlike those of the training
                return
            self._current.queue.submit(lambda: self._predicted(case, teacher, prediction))
            yield prediction

        self._workspace.inference.start(work)

    def _predicted(self, case: OpenCase, teacher: Round, prediction: Prediction) -> None:
        """Take a new prediction; it becomes the draft only if the person changed nothing."""
        case.teacher, case.prediction = teacher, prediction
        case.screening = case.regions = case.carried = None
        editor = case.editor
        editor.sync()
        proposed = editor.origin.draft == BLANK or editor.origin.draft.startswith("round:")
        unlabelled = case.case.label_version is None
        touched = editor.undo_name is not None or editor.voxels_changed > 0 or bool(editor.locked)
        if proposed and unlabelled and not touched:
            editor.begin(
                "new draft of the teacher", case.teacher_label(), f"round:{teacher.number}"
            )
        elif touched:
            self._workspace.notified.emit(
                f"{case.case_id}: the teacher of round {teacher.number} has a new draft. Your "
                "label stays; choose the draft under Draft to start from it or to copy structures"
            )
        self.screen(case)

    def _inference_changed(self, state: JobState) -> None:
        case = self._current.case
        waiting = case is not None and case.case_id == self._predicting
        if case is not None and waiting and not state.busy and self.missing(case):
            self.predict(case)

    def _rounds_changed(self) -> None:
        case, project = self._current.case, self._workspace.project
        if case is None or project is None:
            return

        def look() -> None:
            teacher = project.teacher
            if teacher is None or (case.teacher is not None and case.teacher == teacher):
                return
            prediction = teacher.files.prediction(case.case_id)
            if prediction is not None:
                self._predicted(case, teacher, prediction)
                if self.missing(case):
                    self.predict(case)
            else:
                case.teacher, case.prediction = teacher, None
                case.screening = case.screened = case.regions = case.carried = None
                self.changed.emit()
                self.predict(case)

        self._current.queue.submit(look)


def teacher_prediction(project: Project, teacher: Round, case_id: str, device: str) -> Prediction:
    """What a round's teacher predicts of a case, with its label on the scan's own voxels.

    What isn't known yet is computed, and kept unless the project is open read-only.
    """
    known = found = teacher.files.prediction(case_id)
    if found is None:
        from napari_jrss.inference.load import load_predictor

        joint = teacher.parent is not None
        predict = load_predictor(teacher.files, device, with_student=joint)
        scan = partial(project.case_scan, case_id)
        found = predict(project.channel_images(case_id), scan)
    elif found.scan_label is None:
        found = _with_fine_label(project, teacher, case_id, found, device)
    if found is not known and not project.read_only:
        teacher.files.write_prediction(case_id, found)
    return found


def at_own_voxels(
    project: Project, teacher: Round | None, case_id: str, prediction: Prediction, device: str
) -> Label:
    """The label of a prediction on the scan's own voxels, turned to LPS.

    `teacher` is the round whose teacher had a part in it; its fine network is used if it has one.
    """
    if teacher is not None:
        prediction = _with_fine_label(project, teacher, case_id, prediction, device)
    return project.attributes(case_id).transform.prediction_to_scan(prediction)


def _with_fine_label(
    project: Project, teacher: Round, case_id: str, prediction: Prediction, device: str
) -> Prediction:
    """The prediction with its label by the fine network; itself if there is none, or it can't."""
    if not teacher.files.fine.exists():
        return prediction
    from napari_jrss.inference.device import find_device
    from napari_jrss.inference.fine import fine_label
    from napari_jrss.inference.load import load_fine

    where = find_device(device)
    network = load_fine(teacher.files, where)
    assert network is not None
    label = fine_label(network, prediction, project.case_scan(case_id), where)
    return prediction if label is None else replace(prediction, scan_label=label)


def _held_back(case: OpenCase, config: ScreeningConfig) -> dict[int, str]:
    """Classes and names that pass at no tau, as the teacher hasn't learned them."""
    if case.teacher is None or not config.learned_gate:
        return {}
    unlearned = case.teacher.metrics.get(UNLEARNED)
    classes = unlearned if isinstance(unlearned, list) else []
    return {i: name for i, name in enumerate(case.table.names) if i in classes}
