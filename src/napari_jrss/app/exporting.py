"""Labels out of a project: the person's and the teacher's, as files in each scan's own geometry."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from napari_jrss.app.review.prediction_review import teacher_prediction
from napari_jrss.errors import ProjectError
from napari_jrss.preprocess.case_attributes import DICOM_SOURCE
from napari_jrss.progress_bar import counting, long_call
from napari_jrss.project.export.datasets import export_ome_zarr
from napari_jrss.project.export.dicom_seg import export_segmentations
from napari_jrss.project.export.labels import export_drawn_files, export_label_files
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Label

EXPORTED: Mapping[str, str] = {
    "labels": "labels",
    "predictions": "labels by the teacher",
    "dicom-seg": "DICOM SEG of labels",
    "dicom-seg-predictions": "DICOM SEG of labels by the teacher",
    "ome-zarr": "scans with their labels",
}
"""Folders that :func:`export_labels` makes, and what each holds."""


@dataclass(frozen=True)
class LabelWritten:
    """One label is exported."""

    # Number of files written so far, and of all files.
    done: int
    total: int
    path: Path


@long_call(lambda *_, **__: counting("exporting"))
def export_labels(
    project: Project,
    out: str | Path,
    *,
    dicom_source: str | Path | None = None,
    ome_zarr: bool = False,
    device: str = "auto",
    cancel: Event | None = None,
) -> Generator[LabelWritten, None, list[Path]]:
    """Write labels as NIfTI files in the geometry of their scans.

    The labels in force go to ``labels`` in the folder, the teacher's to ``predictions``. Where the
    teacher's round didn't draw them at the scan's own voxels, it is done now, which takes seconds
    for each; they are kept unless the project is open read-only. A file
    that no export wrote, or that was edited since, is never replaced: then nothing is written.
    ``export_labels.events(...)`` yields a :class:`LabelWritten` for each file.

    Parameters
    ----------
    project
        May be open read-only.
    out
        Folder to write to, outside the project; made if it is missing.
    dicom_source
        Folder of the DICOM series that cases came from. With it, their labels are also written
        as DICOM SEG, to ``dicom-seg`` and ``dicom-seg-predictions``.
    ome_zarr
        Whether the scans with their labels are also written as OME-Zarr, to ``ome-zarr``.
    device
        What draws: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    cancel
        Stops the work between two files.

    Returns
    -------
    list of Path
        The files that were written.

    Raises
    ------
    ProjectError
        There is nothing to export, a file that isn't an export's is in the way, or a series or a
        scan is missing.
    """
    out, source = Path(out), None if dicom_source is None else Path(dicom_source)
    labelled, predicted = cases_to_export(project)
    drawn = {case_id: partial(_by_teacher, project, case_id, device) for case_id in predicted}
    # Each call refuses what it can't export; none writes before its files are asked for.
    parts: list[Iterable[Path]] = [export_label_files(project, out / "labels")]
    total = len(labelled) + len(predicted)
    if project.teacher is not None:
        folder = out / "predictions"
        parts.append(export_drawn_files(project, folder, predicted, lambda case: drawn[case]()))
    if source is not None:
        parts.append(export_segmentations(project, out / "dicom-seg", source))
        if project.teacher is not None:
            folder = out / "dicom-seg-predictions"
            parts.append(export_segmentations(project, folder, source, drawn))
        total += sum(
            project.attributes(case_id).source == DICOM_SOURCE
            for case_id in (*labelled, *predicted)
        )
    if ome_zarr:
        parts.append(export_ome_zarr(project, out / "ome-zarr", source))
        total += len(labelled)
    written: list[Path] = []
    for part in parts:
        for path in part:
            written.append(path)
            yield LabelWritten(len(written), total, path)
            if cancel is not None and cancel.is_set():
                return written
    return written


def _by_teacher(project: Project, case_id: str, device: str) -> Label:
    """The teacher's label of a case on the scan's own voxels, turned to LPS."""
    prediction = teacher_prediction(project, project.require_teacher(), case_id, device)
    return project.attributes(case_id).transform.prediction_to_scan(prediction)


def cases_to_export(project: Project) -> tuple[list[str], list[str]]:
    """Ids of the cases with a label in force, and of those with one by the teacher.

    A :class:`ProjectError` if there are neither.
    """
    cases, teacher = project.cases(), project.teacher
    labelled = [case.case_id for case in cases if case.label_version]
    predicted = [
        case.case_id for case in cases if teacher and teacher.files.has_prediction(case.case_id)
    ]
    if not labelled and not predicted:
        raise ProjectError(f"{project.path}: has no labels to export yet")
    return labelled, predicted
