"""The history of a project or a case: what happened, when, and who did it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from napari_jrss.project.project import Project
from napari_jrss.project.records import LabelVersion


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
    """The events of one case, or of the whole project, oldest first."""
    labels: dict[str, dict[str, LabelVersion]] = {}
    lines = []
    for entry in project.history(case_id):
        label = None
        if entry.case_id is not None and entry.version is not None:
            if entry.case_id not in labels:
                versions = project.label_versions(entry.case_id)
                labels[entry.case_id] = {v.version: v for v in versions}
            label = labels[entry.case_id].get(entry.version)
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
                detail=""
                if label is not None and entry.detail == f"from {label.draft}"
                else entry.detail,
            )
        )
    return lines
