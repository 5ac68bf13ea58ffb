"""What a project holds, in numbers."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict

from napari_jrss.project.project import Project


class RoundStatus(BaseModel):
    """One round: where it came from, how it ended, what it reached."""

    model_config = ConfigDict(frozen=True)
    number: int
    parent: int | None
    outcome: str
    started: str
    metrics: dict[str, object]


class ProjectStatus(BaseModel):
    """Numbers of a project; `cases` counts by split and label status."""

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


def project_status(project: Project) -> ProjectStatus:
    """Count a project's cases and list its rounds."""
    counts: dict[str, Counter[str]] = {}
    for case in project.cases():
        counts.setdefault(str(case.split), Counter())[str(case.status)] += 1
    snapshot = project.snapshot()
    teacher = project.teacher
    return ProjectStatus(
        project=str(project.path),
        structures=list(project.table.names[1:]),
        shape=snapshot.shape,
        spacing_mm=snapshot.spacing_mm,
        cases={split: dict(statuses) for split, statuses in counts.items()},
        labelled=len(snapshot.labelled),
        unlabelled=len(snapshot.unlabelled),
        failed_imports={f.case_id: f.reason for f in project.failed_imports()},
        rounds=[
            RoundStatus(
                number=r.number,
                parent=r.parent,
                outcome=str(r.outcome),
                started=r.started,
                metrics=dict(r.metrics),
            )
            for r in project.rounds()
        ],
        teacher=None if teacher is None else teacher.number,
    )
