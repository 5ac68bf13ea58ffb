"""The cohort: its cases as a table, import, split, and which case comes next."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_jrss.app.case_summary import CaseFigures, CaseView, figures_of, ground_truth, view_of
from napari_jrss.app.importing import read_scans
from napari_jrss.app.next_case import Suggestion, suggest
from napari_jrss.app.runner import BusyError, JobRunner, JobState
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.layouts import FoundCohort
from napari_jrss.labels import LabelTable
from napari_jrss.project.export.labels import export_labels, export_predictions
from napari_jrss.project.project import Project
from napari_jrss.project.records import Case, Round, Split, Status
from napari_jrss.project.split import Assignment

if TYPE_CHECKING:
    from napari_jrss.app.session import Session


@dataclass(frozen=True)
class CaseRow:
    """One case as a table shows it.

    Attributes
    ----------
    case_id, split, status
        As the project has them.
    labels
        Number of label versions.
    figures
        What the current teacher's prediction says; None where it isn't known (yet).
    problem
        Why the case can't be read; empty if it can.
    """

    case_id: str
    split: Split
    status: Status
    labels: int
    figures: CaseFigures | None
    problem: str = ""


@dataclass(frozen=True)
class CasePredicted:
    """The teacher's prediction of one case is there: the how-manieth of how many."""

    done: int
    total: int
    case_id: str


@dataclass(frozen=True)
class LabelWritten:
    """One label is exported: the how-manieth of how many, and its file."""

    done: int
    total: int
    path: Path


@dataclass(frozen=True)
class SplitSizes:
    """How many cases a split deals to each purpose; None for `labelled`: all that have labels."""

    labelled: int | None
    validation: int
    test: int


class Cohort:
    """Commands of the tab of this name; made by its session.

    Attributes
    ----------
    looked_at
        Id of a case whose view or figures are known now; :meth:`look` brings them.
    survey
        Runner of :meth:`look`.
    """

    looked_at = Signal(str)

    def __init__(self, session: Session) -> None:
        self._session = session
        self.survey = JobRunner("survey")
        self.survey.state_changed.connect(self._look_again)
        self._stale = threading.Event()
        self._views: dict[str, CaseView] = {}
        self._figures: dict[str, tuple[tuple[int, str | None], CaseFigures]] = {}
        self._problems: dict[str, str] = {}
        session.project_changed.connect(self._forget)

    # -- the table

    def rows(self) -> list[CaseRow]:
        """The project's cases with what is known of them; none without a project."""
        project = self._session.project
        if project is None:
            return []
        counts = project.label_counts()
        teacher = project.teacher
        return [
            CaseRow(
                case.case_id,
                case.split,
                case.status,
                counts.get(case.case_id, 0),
                self._known(case, teacher),
                self._problems.get(case.case_id, ""),
            )
            for case in project.cases()
        ]

    def view(self, case_id: str) -> CaseView | None:
        """What a case looks like, once :meth:`look` has come to it."""
        return self._views.get(case_id)

    def look(self) -> None:
        """Bring views and figures up to date in the background."""
        self._stale.set()
        if not self.survey.state.busy:
            self._start_survey()

    def stop(self, timeout: float = 2.0) -> bool:
        """Stop looking; whether it ended in time."""
        self._stale.clear()
        self.survey.cancel()
        return self.survey.wait(timeout)

    def _look_again(self, state: JobState) -> None:
        if self._stale.is_set() and state in (JobState.FINISHED, JobState.CANCELLED):
            self._start_survey()

    def _start_survey(self) -> None:
        project = self._session.project
        if project is not None:
            with suppress(BusyError):  # someone else asked at the same moment
                self.survey.start(lambda cancel: self._survey(project, cancel))

    def _survey(self, project: Project, cancel: threading.Event) -> Iterator[str]:
        while self._stale.is_set() and not cancel.is_set():
            self._stale.clear()
            teacher = project.teacher
            for case in project.cases():
                if cancel.is_set():
                    return
                if self._examine(project, case, teacher):
                    self.looked_at.emit(case.case_id)
                    yield case.case_id

    def _examine(self, project: Project, case: Case, teacher: Round | None) -> bool:
        """Look at what isn't known of a case; whether that was anything."""
        case_id = case.case_id
        news = False
        try:
            if case_id not in self._views:
                self._views[case_id] = view_of(project, case_id)
                news = True
            if teacher is not None and self._known(case, teacher) is None:
                figures = figures_of(project, case, teacher)
                if figures is not None:
                    self._figures[case_id] = (_basis(case, teacher), figures)
                    news = True
            self._problems.pop(case_id, None)
        except (ProjectError, ScanError, OSError) as error:
            news = self._problems.get(case_id) != str(error)
            self._problems[case_id] = str(error)
        return news

    def _known(self, case: Case, teacher: Round | None) -> CaseFigures | None:
        basis, figures = self._figures.get(case.case_id, (None, None))
        return figures if teacher is not None and basis == _basis(case, teacher) else None

    def _forget(self) -> None:
        for known in (self._views, self._figures, self._problems):
            known.clear()

    def suggest(self, after: str | None = None) -> Suggestion | None:
        """Which case to label next and why, by what is known so far.

        Parameters
        ----------
        after
            The case that was just looked at, which isn't suggested again.
        """
        project = self._session.project
        if project is None or not project.cases():
            return None
        figures = {row.case_id: row.figures for row in self.rows() if row.figures is not None}
        appearances = {case_id: view.appearance for case_id, view in self._views.items()}
        return suggest(project, appearances, figures, after=after)

    # -- import and split

    def make(
        self,
        path: Path,
        cohort: FoundCohort,
        table: LabelTable,
        config: PreprocessingConfig,
        workers: int | None = None,
    ) -> None:
        """Make a project, open it, and read the scans in the background.

        Parameters
        ----------
        path
            The new folder, by custom ``<name>.jrss``.
        cohort
            The scans, as :func:`~napari_jrss.app.importing.look_into` finds them.
        table, config
            The structures, and how scans reach the training grid.
        workers
            Processes; None: one per core.

        Raises
        ------
        ProjectError
            Something is at `path` already, or it can't be written.
        BusyError
            A round or another short job is under way.
        """
        self._require_idle()
        if self._session.training.state.busy:
            raise BusyError("a round is running; pause it before another project is made")
        self._session.adopt(Project.create(path, table, config))
        self.add(cohort, workers)

    def add(self, cohort: FoundCohort, workers: int | None = None) -> None:
        """Read further scans into the open project, in the background."""
        self._require_idle()
        project = self._session.open_project

        def work(cancel: threading.Event) -> Iterator[object]:
            for event in read_scans(project, cohort, cancel, workers):
                if event.result.ok:
                    self._session.cases_changed.emit()
                yield event

        self._session.inference.start(work)

    def failed_imports(self) -> Mapping[str, str]:
        """Scans that couldn't become cases, and why."""
        project = self._session.project
        return {} if project is None else {f.case_id: f.reason for f in project.failed_imports()}

    def usual_split(self) -> SplitSizes:
        """A split that fits the labels that there are.

        Where only some scans have labels, all of those train: nothing is to be measured.
        Where all have them, the project is there to measure: five labelled ones, and some of
        the others for validation and test.
        """
        cases = self._session.open_project.cases()
        with_label = sum(bool(c.label_version or c.reference_version) for c in cases)
        if with_label < len(cases) or len(cases) < 10:
            return SplitSizes(None, 0, 0)
        return SplitSizes(5, min(4, len(cases) // 5), len(cases) // 5)

    def split(
        self,
        sizes: SplitSizes,
        training: int | None = None,
        seed: int = 0,
        groups: Mapping[str, str | None] | None = None,
    ) -> Assignment:
        """Deal the cases anew; see :meth:`napari_jrss.project.project.Project.split`."""
        assignment = self._session.open_project.split(
            labelled=sizes.labelled,
            validation=sizes.validation,
            test=sizes.test,
            training=training,
            seed=seed,
            groups=groups,
        )
        self._session.cases_changed.emit()
        return assignment

    # -- structures

    def rename(self, index: int, name: str) -> None:
        """Give a structure another name."""
        self._session.open_project.rename_structure(index, name, self._session.author or None)
        self._session.cases_changed.emit()

    def recolour(self, index: int, colour: str) -> None:
        """Give a structure another colour, #rrggbb."""
        self._session.open_project.recolour_structure(index, colour, self._session.author or None)
        self._session.cases_changed.emit()

    # -- figures that need the network

    def without_prediction(self) -> list[str]:
        """Cases that the current teacher said nothing of yet and that a figure could be had of.

        A round predicts its unlabelled cases; the others are those for validation and test,
        and those that came later.
        """
        project = self._session.project
        teacher = None if project is None else project.teacher
        if project is None or teacher is None:
            return []
        return [
            case.case_id
            for case in project.cases()
            if case.split is not Split.UNUSED
            and (not case.labelled)
            and not teacher.files.has_prediction(case.case_id)
        ]

    def predict(self) -> None:
        """Let the current teacher predict the cases that it hasn't yet, in the background.

        Raises
        ------
        ProjectError
            There is no teacher, or the project is read-only.
        BusyError
            Another short job is under way.
        """
        project = self._session.open_project
        teacher = project.require_teacher()
        project.check_writable()
        wanted = self.without_prediction()

        def work(cancel: threading.Event) -> Iterator[object]:
            from napari_jrss.inference.device import make_fabric
            from napari_jrss.inference.load import load_student, load_teacher
            from napari_jrss.inference.predict import predict_case

            device, files = make_fabric(self._session.device).device, teacher.files
            network, student = load_teacher(files, device), load_student(files, device)
            for done, case_id in enumerate(wanted, start=1):
                if cancel.is_set():
                    return
                prediction = predict_case(network, project.image(case_id), device, student)
                files.write_prediction(case_id, prediction)
                yield CasePredicted(done, len(wanted), case_id)
                self.look()

        self._session.inference.start(work)

    # -- out of the project

    def export(self, folder: Path) -> None:
        """Write labels in each scan's own geometry, in the background.

        Those in force go to ``labels`` of the folder, the present teacher's to ``predictions``;
        a file of these names that no export wrote, or that was edited since, is never replaced.

        Raises
        ------
        ProjectError
            There is nothing to export yet.
        BusyError
            Another short job is under way.
        """
        self._require_idle()
        project = self._session.open_project
        cases, teacher = project.cases(), project.teacher
        labelled = [case.case_id for case in cases if case.label_version]
        total = len(labelled) + sum(
            teacher is not None and teacher.files.has_prediction(case.case_id) for case in cases
        )
        if not total:
            raise ProjectError(f"{project.path}: has no labels to export yet")

        def work(cancel: threading.Event) -> Iterator[LabelWritten]:
            files = export_labels(project, folder / "labels", labelled)
            if teacher is not None:
                predictions = teacher.files.predictions
                files = chain(
                    files, export_predictions(project, predictions, folder / "predictions")
                )
            for done, path in enumerate(files, start=1):
                yield LabelWritten(done, total, path)
                if cancel.is_set():
                    return
            self._session.notified.emit(f"{total} labels are in {folder}")

        self._session.inference.start(work)

    def _require_idle(self) -> None:
        if self._session.inference.state.busy:
            raise BusyError("another short job is under way; wait for it or stop it")


def _basis(case: Case, teacher: Round) -> tuple[int, str | None]:
    """What figures depend on: the round that predicted, and the label it is measured by."""
    return teacher.number, ground_truth(case)
