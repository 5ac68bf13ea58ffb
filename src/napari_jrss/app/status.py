"""The state of a project in numbers, and its history, as the command line shows them."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict

from napari_jrss.app.forecast import last_forecast
from napari_jrss.app.next_case import first_case
from napari_jrss.app.next_step import work_state
from napari_jrss.app.outlook import outlook
from napari_jrss.app.rounds.train import interrupted_round, rounds_left
from napari_jrss.project.corrections import unsaved
from napari_jrss.project.project import Project
from napari_jrss.project.records import LabelVersion


class RoundStatus(BaseModel):
    """One round: its parent, whether it was quick, how it ended, and its figures."""

    model_config = ConfigDict(frozen=True, from_attributes=True)
    number: int
    parent: int | None
    kind: str
    outcome: str
    started: str
    metrics: dict[str, object]


class UnsavedCorrections(BaseModel):
    """Corrections that are in no label version; `problem` says why they can't be recovered."""

    model_config = ConfigDict(frozen=True)
    case_id: str
    author: str
    last_change: str
    voxels_changed: int
    structures_accepted: int
    problem: str


class ProjectStatus(BaseModel):
    """Numbers of a project; `cases` counts by split and label status.

    Attributes
    ----------
    interrupted_round, rounds_left
        The round that can be resumed, and how many rounds were planned after the latest one.
    unsaved
        Corrections that were neither accepted nor discarded.
    missing_files
        Number of scans and labels that aren't where they were when they were imported.
    labels_without_source
        Cases whose label is exported as the training grid holds it.
    writer
        Who said last to be writing into the project, and since when; empty if that one has ended
        in an orderly way.
    plan
        The plan that the project follows, with what it costs; empty for a project without one.
    forecast
        What Dice to expect on unlabelled scans; empty if it wasn't made with today's labels.
    outlook
        What is done, how long the rest takes, and what Dice to expect of it, as far as known.
    next_step
        What to do next, in one sentence.
    """

    model_config = ConfigDict(frozen=True)
    project: str
    structures: list[str]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    cases: dict[str, dict[str, int]]
    labelled: int
    unlabelled: int
    failed_imports: dict[str, str]
    rounds: list[RoundStatus]
    teacher: int | None
    interrupted_round: int | None
    rounds_left: int
    unsaved: list[UnsavedCorrections]
    missing_files: int
    labels_without_source: list[str]
    writer: str
    plan: str
    forecast: str
    outlook: list[str]
    next_step: str


def project_status(project: Project) -> ProjectStatus:
    """Count a project's cases and list its rounds."""
    counts: dict[str, Counter[str]] = {}
    for case in project.cases():
        counts.setdefault(str(case.split), Counter())[str(case.status)] += 1
    snapshot = project.snapshot()
    teacher = project.teacher
    interrupted = interrupted_round(project)
    known = last_forecast(project)
    first = first_case(project)
    return ProjectStatus(
        project=str(project.path),
        structures=list(project.table.names[1:]),
        shape=snapshot.shape,
        spacing_mm=snapshot.spacing_mm,
        cases={split: dict(statuses) for split, statuses in counts.items()},
        labelled=len(snapshot.labelled),
        unlabelled=len(snapshot.unlabelled),
        failed_imports={f.case_id: f.reason for f in project.failed_imports()},
        rounds=[RoundStatus.model_validate(entry) for entry in project.rounds()],
        teacher=None if teacher is None else teacher.number,
        interrupted_round=None if interrupted is None else interrupted.number,
        rounds_left=rounds_left(project),
        unsaved=[
            UnsavedCorrections(
                case_id=entry.case_id,
                author=entry.author,
                last_change=entry.last_change,
                voxels_changed=entry.voxels_changed,
                structures_accepted=len(entry.accepted),
                problem=entry.problem,
            )
            for entry in unsaved(project)
        ],
        missing_files=len(project.missing_sources()),
        labels_without_source=project.labels_without_source(),
        writer=project.writer,
        plan="" if project.plan is None else project.plan.line(),
        forecast="" if known is None else known.line(),
        outlook=outlook(project).lines(),
        next_step=work_state(project, first=None if first is None else first.case_id).action,
    )


class HistoryLine(BaseModel):
    """One event; fields that don't apply to it are None or empty."""

    model_config = ConfigDict(frozen=True)
    at: str  # UTC time, ISO 8601
    event: str  # the kind of event, see `napari_jrss.project.records.Event`
    author: str | None
    # The case, label version or round that it is about.
    case_id: str | None
    version: str | None
    round: int | None
    # Of a label version: what it was made from, how many voxels differ from that, and the time
    # spent on it.
    draft: str | None
    voxels_changed: int | None
    seconds: float | None
    detail: str  # further text, such as the reason of a rejection


def history(project: Project, case_id: str | None = None) -> list[HistoryLine]:
    """What happened to one case, or in the whole project, oldest first: when, and who did it."""
    entries = project.history(case_id)
    labels: dict[tuple[str | None, str | None], LabelVersion] = {
        (label.case_id, label.version): label
        for case in {e.case_id for e in entries if e.case_id is not None and e.version is not None}
        for label in project.label_versions(case)
    }
    lines = []
    for entry in entries:
        label = labels.get((entry.case_id, entry.version))
        # The draft has a column of its own.
        told = "" if label is None else f"from {label.draft}"
        lines.append(
            HistoryLine(
                at=entry.at,
                event=str(entry.kind),
                author=entry.author,
                case_id=entry.case_id,
                version=entry.version,
                round=entry.round,
                draft=None if label is None else label.draft,
                voxels_changed=None if label is None else label.voxels_changed,
                seconds=None if label is None else label.seconds,
                detail=entry.detail.removeprefix(told).removeprefix(", "),
            )
        )
    return lines
