"""A project on disk, with its cases, label versions and rounds.

The class is written in five steps, each in a module of its own, and each builds on the one before:
the folder, the cases, their labels, the rounds, and the files that the cases were made from.
"""

from __future__ import annotations

from napari_jrss.project.folder import check_case_id
from napari_jrss.project.relocate import ProjectSources

__all__ = ["Project", "check_case_id"]


class Project(ProjectSources):
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
