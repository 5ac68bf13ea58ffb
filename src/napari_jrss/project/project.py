"""A project on disk: cases, label versions and rounds; open, create, split, promote, roll back."""

from __future__ import annotations

from napari_jrss.project.folder import check_case_id
from napari_jrss.project.labels import ProjectLabels
from napari_jrss.project.relocate import ProjectSources
from napari_jrss.project.rounds import ProjectRounds

__all__ = ["Project", "check_case_id"]


class Project(ProjectLabels, ProjectRounds, ProjectSources):
    """One project folder. Make one with :meth:`create` or :meth:`open`; close it when done.

    A project open for writing holds its lock until :meth:`close`, so use it as a context
    manager. Its methods may be called from several threads of one program.

    Attributes
    ----------
    path
        The folder.
    read_only
        Whether changes are refused.
    """
