"""The cohort: its cases as a table, import, split, export, and which case to label next."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from psygnal import Signal

from napari_jrss.app.case_summary import (
    Appearance,
    PredictionFigures,
    appearance_of,
    ground_truth,
    prediction_figures,
)
from napari_jrss.app.exporting import LabelWritten, cases_to_export, export_labels
from napari_jrss.app.importing import LabelImported, import_labels
from napari_jrss.app.next_case import Suggestion, suggestions
from napari_jrss.app.outlook import Outlook, outlook
from napari_jrss.app.runner import BusyError, JobRunner, JobState
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.layouts import FoundCohort
from napari_jrss.pool import Workers
from napari_jrss.project.importing import ScanRead, read_scans
from napari_jrss.project.project import Project
from napari_jrss.project.records import Case, Round, Split, Status
from napari_jrss.project.split import Assignment

if TYPE_CHECKING:
    from napari_jrss.app.workspace import Workspace


@dataclass(frozen=True)
class CaseRow:
    """One case as a table shows it."""

    # Id, purpose and label status of the case.
    case_id: str
    split: Split
    status: Status
    labels: int  # number of label versions, without a hidden one
    # Figures of the present teacher's prediction; None while they aren't known.
    figures: PredictionFigures | None
    problem: str = ""  # why the case can't be read; empty if it can


@dataclass(frozen=True)
class CasePredicted:
    """The teacher has predicted one case: number `done` of `total`."""

    done: int
    total: int
    case_id: str


@dataclass(frozen=True)
class SplitCounts:
    """Numbers of cases that a split assigns; `labelled` None: all with a label that train."""

    labelled: int | None
    validation: int
    test: int


class Cohort:
    """The commands of the tab Cohort."""

    # Carries the id of a case whose appearance or figures are known now.
    case_summarised = Signal(str)

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.summaries = JobRunner("summaries")  # runs the job of `summarise`
        self.summaries.state_changed.connect(self._summarise_again)
        self._stale = threading.Event()
        self._appearances: dict[str, Appearance] = {}
        self._figures: dict[str, tuple[tuple[int, str | None], PredictionFigures]] = {}
        self._problems: dict[str, str] = {}
        # What imports since the project was opened said of cases, such as a label left out.
        self.import_notes: dict[str, str] = {}
        workspace.project_changed.connect(self._forget)

    # -- the table

    def rows(self) -> list[CaseRow]:
        """The project's cases with what is known of them; empty without a project."""
        project = self._workspace.project
        if project is None:
            return []
        counts = project.label_counts()
        teacher = project.teacher
        trained = None if teacher is None else project.before_quick(teacher)
        hidden = {c.case_id for c in project.cases() if c.reference_version and not c.label_version}
        return [
            CaseRow(
                case.case_id,
                case.split,
                case.status,
                counts.get(case.case_id, 0) - (case.case_id in hidden),
                self._known(case, teacher) or self._known(case, trained),
                self._problems.get(case.case_id, ""),
            )
            for case in project.cases()
        ]

    def appearance(self, case_id: str) -> Appearance | None:
        """Thumbnail of a case; None until :meth:`summarise` has read it."""
        return self._appearances.get(case_id)

    def summarise(self) -> None:
        """Bring appearances and figures up to date, in the background."""
        self._stale.set()
        if not self.summaries.state.busy:
            self._start_summaries()

    def stop(self, timeout: float = 2.0) -> bool:
        """Stop the summaries; whether they stopped within `timeout` seconds."""
        self._stale.clear()
        self.summaries.cancel()
        return self.summaries.wait(timeout)

    def _summarise_again(self, state: JobState) -> None:
        if self._stale.is_set() and state in (JobState.FINISHED, JobState.CANCELLED):
            self._start_summaries()

    def _start_summaries(self) -> None:
        project = self._workspace.project
        if project is not None:
            with suppress(BusyError):  # another thread started it just now
                self.summaries.start(lambda cancel: self._summarise(project, cancel))

    def _summarise(self, project: Project, cancel: threading.Event) -> Iterator[str]:
        while self._stale.is_set() and not cancel.is_set():
            self._stale.clear()
            teacher = project.teacher
            for case in project.cases():
                if cancel.is_set():
                    return
                if self._summarise_case(project, case, teacher):
                    self.case_summarised.emit(case.case_id)
                    yield case.case_id

    def _summarise_case(self, project: Project, case: Case, teacher: Round | None) -> bool:
        """Read what isn't known of a case; whether that changed anything."""
        case_id = case.case_id
        changed = False
        try:
            if case_id not in self._appearances:
                self._appearances[case_id] = appearance_of(project, case_id)
                changed = True
            if teacher is not None and self._known(case, teacher) is None:
                # a quick round predicts some cases only; for the others, the training before it
                for entry in (teacher, project.before_quick(teacher)):
                    figures = prediction_figures(project, case, entry)
                    if figures is not None:
                        known = (_basis(case, entry), figures)
                        changed = changed or self._figures.get(case_id) is None
                        changed = changed or self._figures[case_id][0] != known[0]
                        self._figures[case_id] = known
                        break
            self._problems.pop(case_id, None)
        except (ProjectError, ScanError, OSError) as error:
            changed = self._problems.get(case_id) != str(error)
            self._problems[case_id] = str(error)
        return changed

    def _known(self, case: Case, teacher: Round | None) -> PredictionFigures | None:
        basis, figures = self._figures.get(case.case_id, (None, None))
        return figures if teacher is not None and basis == _basis(case, teacher) else None

    def _forget(self) -> None:
        for known in (self._appearances, self._figures, self._problems, self.import_notes):
            known.clear()

    def suggest(self, after: str | None = None) -> Suggestion | None:
        """Which case to label next and why, by what is known so far; `after` was just left."""
        found = self.suggestions(1, after)
        return found[0] if found else None

    def suggestions(self, most: int, after: str | None = None) -> list[Suggestion]:
        """The cases to label next, at most so many, as :meth:`suggest` finds the first."""
        project = self._workspace.project
        if project is None or not project.cases():
            return []
        figures = {row.case_id: row.figures for row in self.rows() if row.figures is not None}
        appearances = {case_id: each.vector for case_id, each in self._appearances.items()}
        return suggestions(project, appearances, figures, after=after, most=most)

    def most_like(self, case_id: str, others: Iterable[str]) -> list[str]:
        """Other cases, those that look most like a case first, as far as that is known."""
        here = self._appearances.get(case_id)
        likeness: dict[str, float] = {}
        for name in others:
            there = self._appearances.get(name)
            known = here is not None and there is not None
            likeness[name] = float(here.vector @ there.vector) if known else 0.0  # type: ignore[union-attr]
        return sorted(likeness, key=lambda name: -likeness[name])

    def first(self) -> str | None:
        """The case to label first, where none has a label and all have been looked at."""
        project = self._workspace.project
        cases = [] if project is None else project.cases()
        training = [case for case in cases if case.split is Split.TRAIN]
        ready = all(case.case_id in self._appearances for case in training)
        if not training or not ready or any(case.labelled for case in training):
            return None
        suggestion = self.suggest()
        return None if suggestion is None else suggestion.case_id

    def outlook(self) -> Outlook:
        """What is done, how long the rest takes, and what Dice to expect of it."""
        return outlook(self._workspace.open_project)

    # -- import and split

    def add(self, cohort: FoundCohort, workers: Workers = None) -> None:
        """Read further scans into the open project, in the background."""
        self._workspace.require_idle()
        project = self._workspace.open_project
        self._workspace.inference.start(
            lambda cancel: self.announce(read_scans(project, cohort, cancel, workers))
        )

    def announce(self, events: Iterator[ScanRead]) -> Iterator[ScanRead]:
        """Pass the events of an import on, and say that there is a new case where there is."""
        for event in events:
            if event.result.notes:
                self.import_notes[event.result.case_id] = "; ".join(event.result.notes)
            if event.result.ok:
                self._workspace.cases_changed.emit()
            yield event

    def import_labels(self, folder: Path) -> None:
        """Make labels that were corrected elsewhere new versions, in the background.

        See :func:`~napari_jrss.app.importing.import_labels`.

        Raises
        ------
        ProjectError
            The project is read-only, or nobody's name is given.
        BusyError
            Another job is running.
        """
        self._workspace.require_idle()
        project, author = self._workspace.writable_project, self._workspace.author
        if not author:
            raise ProjectError("a label needs its author's name: give yours in Review")

        def work(cancel: threading.Event) -> Iterator[LabelImported]:
            results = []
            for event in import_labels.events(project, folder, author):
                results.append(event)
                yield event
                if cancel.is_set():
                    break
            self._workspace.cases_changed.emit()
            problems = [f"{each.case_id}: {each.problem}" for each in results if each.problem]
            said = f"{len(results) - len(problems)} labels are new versions"
            self._workspace.notified.emit("; ".join([said, *problems[:3]]))

        self._workspace.inference.start(work)

    def failed_imports(self) -> Mapping[str, str]:
        """Scans that couldn't be imported, and why."""
        project = self._workspace.project
        return {} if project is None else {f.case_id: f.reason for f in project.failed_imports()}

    def usual_split(self) -> SplitCounts:
        """A split that fits the labels of the project.

        If only some scans have labels, all of those train. If all have, the project is a
        measurement: five cases train with labels, and some validate and test.
        """
        cases = self._workspace.open_project.cases()
        with_label = sum(bool(c.label_version or c.reference_version) for c in cases)
        if with_label < len(cases) or len(cases) < 10:
            return SplitCounts(None, 0, 0)
        return SplitCounts(5, min(4, len(cases) // 5), len(cases) // 5)

    def split(
        self,
        sizes: SplitCounts,
        training: int | None = None,
        seed: int = 0,
        groups: Mapping[str, str | None] | None = None,
    ) -> Assignment:
        """Assign the cases again; see :meth:`napari_jrss.project.project.Project.split`."""
        assignment = self._workspace.open_project.split(
            labelled=sizes.labelled,
            validation=sizes.validation,
            test=sizes.test,
            training=training,
            seed=seed,
            groups=groups,
        )
        self._workspace.cases_changed.emit()
        return assignment

    # -- structures

    def rename(self, index: int, name: str) -> None:
        """Give a structure another name."""
        self._workspace.open_project.rename_structure(index, name, self._workspace.author or None)
        self._workspace.cases_changed.emit()

    def recolour(self, index: int, colour: str) -> None:
        """Give a structure another colour, #rrggbb."""
        self._workspace.open_project.recolour_structure(
            index, colour, self._workspace.author or None
        )
        self._workspace.cases_changed.emit()

    # -- figures that need the network

    def without_prediction(self) -> list[str]:
        """Cases without a label in training that the present teacher hasn't predicted.

        A round predicts its unlabelled cases. Others are for validation or test, or were added
        later.
        """
        project = self._workspace.project
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
        """Let the teacher predict the cases that it hasn't predicted. Runs as a job.

        A :class:`ProjectError` if there is no teacher or the project is read-only.
        """
        project = self._workspace.writable_project
        teacher = project.require_teacher()
        wanted = self.without_prediction()

        def work(cancel: threading.Event) -> Iterator[object]:
            from napari_jrss.inference.load import load_predictor

            files, joint = teacher.files, teacher.parent is not None
            predict = load_predictor(files, self._workspace.device, with_student=joint)
            for done, case_id in enumerate(wanted, start=1):
                if cancel.is_set():
                    return
                scan = partial(project.case_scan, case_id)
                made = predict(project.channel_images(case_id), scan)
                files.write_prediction(case_id, made)
                yield CasePredicted(done, len(wanted), case_id)
                self.summarise()

        self._workspace.inference.start(work)

    # -- out of the project

    def export(self, folder: Path) -> None:
        """Write labels in each scan's own geometry, in the background.

        See :func:`~napari_jrss.app.exporting.export_labels`. A :class:`ProjectError` if there is
        nothing to export yet.
        """
        self._workspace.require_idle()
        project = self._workspace.open_project
        cases_to_export(project)

        def work(cancel: threading.Event) -> Iterator[LabelWritten]:
            device = self._workspace.device
            written = yield from export_labels.events(project, folder, device=device, cancel=cancel)
            self._workspace.notified.emit(f"{len(written)} labels are in {folder}")

        self._workspace.inference.start(work)


def _basis(case: Case, teacher: Round) -> tuple[int, str | None]:
    """What figures depend on: the round of the prediction, and the label that gives the Dice."""
    return teacher.number, ground_truth(case)
