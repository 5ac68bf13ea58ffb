"""Further scans into a project, and labels that were made elsewhere back into it."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.found import FoundCase, FoundCohort
from napari_jrss.io.layouts import labels_of
from napari_jrss.pool import Workers
from napari_jrss.progress_bar import counting, long_call
from napari_jrss.project.drafts import on_scan
from napari_jrss.project.importing import Found, ScanFolders, ScanRead, look_into, read_scans
from napari_jrss.project.project import Project


@long_call(lambda *_, **__: counting("reading scans"))
def add_scans(
    project: Project, folders: ScanFolders, workers: Workers = None
) -> Generator[Found | ScanRead, None, FoundCohort]:
    """Read further scans, with their labels if they have any, into a project.

    ``add_scans.events(...)`` yields a :class:`Found` with what the folders hold, then a
    :class:`ScanRead` for each scan.

    Parameters
    ----------
    project
        Open for writing. Its settings and structures hold for the new scans.
    folders
        Where the scans are.
    workers
        Processes; None: one per core.

    Returns
    -------
    FoundCohort
        What was found.

    Raises
    ------
    ScanError
        There are no scans.
    """
    folders = replace(folders, channels=folders.channels or project.channels)
    found = next(iter(look_into(folders)))
    yield found
    yield from read_scans(project, found.cohort, workers=workers)
    return found.cohort


@dataclass(frozen=True)
class LabelImported:
    """What became of one label.

    Attributes
    ----------
    done, total
        Number of labels read so far, and of all labels.
    case_id
        Its case.
    version
        The version that it is in the project; None if it can't be used.
    problem
        Why it can't be used; empty if it is.
    """

    done: int
    total: int
    case_id: str
    version: str | None = None
    problem: str = ""


@long_call(lambda *_, **__: counting("reading labels"))
def import_labels(
    project: Project, folder: str | Path, author: str
) -> Generator[LabelImported, None, list[LabelImported]]:
    """Make labels that were corrected elsewhere new versions of their cases, in force from now on.

    Earlier versions stay. A label that can't be used is left out, and the others go on.
    ``import_labels.events(...)`` yields a :class:`LabelImported` for each.

    Parameters
    ----------
    project
        Open for writing.
    folder
        Holds labels of any format by case id, as an export writes them, DICOM SEG too, on the
        voxels of their scans; or a folder of masks for each case.
    author
        Whose labels they are.

    Returns
    -------
    list of LabelImported
        What became of each label.

    Raises
    ------
    ScanError
        There is no such folder, or no label in it is of a case.
    ProjectError
        The project is read-only, or `author` is empty.
    """
    project.check_writable()
    if not author.strip():
        raise ProjectError("a label needs its author's name")
    results = []
    found = labels_of(Path(folder), [case.case_id for case in project.cases()])
    for done, case in enumerate(found, start=1):
        version, problem = None, ""
        try:
            version = _import(project, case, author)
        except (ScanError, ProjectError) as error:
            problem = str(error)
        results.append(LabelImported(done, len(found), case.case_id, version, problem))
        yield results[-1]
    return results


def _import(project: Project, case: FoundCase, author: str) -> str:
    assert case.label is not None
    label = on_scan(project, case.case_id, case.label, project.table)
    name = re.sub(r"\s+", "_", label.source.name) if label.source else case.case_id
    before = project.case(case.case_id).label_version
    changed = (
        None if before is None else int((project.scan_label(case.case_id) != label.array).sum())
    )
    return project.add_label_version(
        case.case_id,
        label.array,
        author,
        draft=f"file:{name}",
        on_scan=True,
        voxels_changed=changed,
    )
