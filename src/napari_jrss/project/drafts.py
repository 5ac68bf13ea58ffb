"""Drafts of other programs: labels to start from, kept until a person accepts one.

Each is a NIfTI file of class indices on its scan's own voxels, ``drafts/<case>/<program>.nii.gz``.
It is no label version: nothing trains on it, and no export holds it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from napari_jrss.errors import ProjectError, from_os_error
from napari_jrss.io.found import Label as LabelSource
from napari_jrss.io.label_files import read_classes
from napari_jrss.io.nifti import write_nifti
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.pipeline import on_grid_of
from napari_jrss.project.export.labels import scan_header
from napari_jrss.project.labels import check_draft
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Label

KIND = "tool:"
_SUFFIX = ".nii.gz"


def keep_draft(project: Project, case_id: str, draft: str, label: Label) -> Path:
    """Keep a draft of another program; one of the same name is replaced. Returns its file.

    Parameters
    ----------
    project
        Open for writing.
    case_id
        The case.
    draft
        Its key, ``tool:`` and a name, such as ``tool:TotalSegmentator_2.4.0_total``.
    label
        Class indices (z, y, x) on the scan's own voxels, turned to LPS.

    Raises
    ------
    ProjectError
        The project is read-only, the label doesn't fit the case, or it can't be written.
    """
    project.check_writable()
    transform = project.attributes(project.case(case_id).case_id).transform
    array = project.checked_label(case_id, label, transform.scan_shape)
    path = _path(project, case_id, draft)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_nifti(path, transform.turn_to_source(array), scan_header(transform))
    except OSError as error:
        raise ProjectError(f"{path}: can't be written ({from_os_error(error)})") from error


def kept_drafts(project: Project, case_id: str) -> tuple[str, ...]:
    """Keys of the drafts that are kept for a case, the latest first."""
    folder = project.drafts_path(case_id)
    files = [p for p in folder.glob(f"*{_SUFFIX}") if p.is_file() and not p.name.startswith(".")]
    files.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    return tuple(KIND + path.name.removesuffix(_SUFFIX) for path in files)


def kept_draft(project: Project, case_id: str, draft: str) -> Label:
    """A draft that is kept: class indices (z, y, x) on the scan's own voxels, turned to LPS.

    A ``JRSSError`` if there is none of this key, or its file is damaged or of another scan.
    """
    path = _path(project, case_id, draft)
    if not path.is_file() or path.is_symlink():
        raise ProjectError(f"case {case_id} has no draft {draft!r}")
    shape = project.attributes(case_id).transform.scan_shape
    return project.checked_label(case_id, on_scan(project, case_id, path, None).array, shape)


def on_scan(
    project: Project, case_id: str, source: LabelSource, table: LabelTable | None
) -> Volume:
    """A label file of a case on the scan's own voxels, turned to LPS.

    Parameters
    ----------
    project, case_id
        The case.
    source
        The file, or one mask for each structure, anywhere on the scan's extent.
    table
        The classes that its ids or names stand for; None: it holds class indices.

    Raises
    ------
    JRSSError
        It can't be read, lies elsewhere, or holds an unknown id.
    """
    transform = project.attributes(case_id).transform
    voxels = Volume(
        np.empty(transform.source_shape, np.bool_),
        np.array(transform.source_affine),
        header=transform.header,
    )
    label = on_grid_of(voxels, read_classes(source, table, image=scan_header(transform)))
    return replace(label, array=transform.turn_to_scan(label.array))


def _path(project: Project, case_id: str, draft: str) -> Path:
    check_draft(draft)
    if not draft.startswith(KIND):
        raise ProjectError(f"{draft!r} is no draft of another program")
    return project.drafts_path(case_id) / f"{draft.removeprefix(KIND)}{_SUFFIX}"
