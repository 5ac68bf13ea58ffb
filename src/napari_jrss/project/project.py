"""A project on disk, with its cases, label versions and rounds.

The class is written in five steps, each in a module of its own, and each builds on the one before:
the folder, the cases, their labels, the rounds, and the files that the cases were made from.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.io.dicom_layout import write_dicom_map
from napari_jrss.pool import Workers
from napari_jrss.preprocess.plan import BUDGETS_S, Level, budget_seconds
from napari_jrss.progress_bar import long_call
from napari_jrss.project.folder import check_case_id
from napari_jrss.project.importing import (
    Found,
    ScanFolders,
    ScanRead,
    import_bars,
    look_into,
    read_first_scans,
)
from napari_jrss.project.plans import ProjectPlans

__all__ = ["Project", "check_case_id"]


class Project(ProjectPlans):
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

    @staticmethod
    @long_call(import_bars)
    def from_folders(
        path: str | Path,
        images: str | Path,
        labels: str | Path | None = None,
        *,
        groups: str | Path | None = None,
        dicom: bool = False,
        series: str | None = None,
        channels: Sequence[str] = (),
        keep_map: str | Path | None = None,
        preprocessing: PreprocessingConfig | None = None,
        plan: Level = "balanced",
        budget: str | None = None,
        workers: Workers = None,
    ) -> Generator[Found | ScanRead, None, Project]:
        """Make a project of a folder of scans and, for some or all of them, their labels.

        Each scan is checked, brought to the training grid and kept in the project. One that
        can't be used is left out, see :meth:`failed_imports`. The files are only read.
        ``Project.from_folders.events(...)`` yields a :class:`Found` with what the folders hold,
        another as each scan was looked at, the last one with the plan, and then a
        :class:`ScanRead` for each scan.

        Parameters
        ----------
        path
            The project's new folder, by custom ``<name>.jrss``.
        images
            Folder of scans, of scans and labels in a known layout, or of DICOM series, whose cases
            get pseudonyms; or a CSV file that lists them. See
            :func:`~napari_jrss.io.layouts.discover`.
        labels
            Folder of labels with the names of the scans; None: those that the layout has.
        groups
            Table of the structures: CSV with label, name and, to make one structure of several
            labels, class_id and class_name; or a table of FreeSurfer, ITK-SNAP, Slicer or BIDS.
            None: each number or name in the labels is a structure.
        dicom
            Whether only DICOM series are looked for.
        series
            Which images of a study count: a pattern of DICOM's series description such as
            ``*T1*``, or the kind of a BIDS image such as ``T2w``.
        channels
            Names of the images of each case that count, where cases have several, such as T1 and
            FLAIR: the segmentation sees all, the first is shown and registered. None: all that each
            case has. Of DICOM the series of a study whose description holds the name, or fits a
            pattern, as ``FLAIR=*tirm*``; none: each series is a case.
        keep_map
            CSV file to write which DICOM series each case is; nothing else keeps that.
        preprocessing
            How scans reach the training grid that all cases share. What isn't set is planned, by
            the scans, the structures and this machine.
        plan
            How fine the training grid is: pre-training and a round are to take at most 20 minutes
            (``quick``), 2 hours (``balanced``) or 10 hours (``fine``) on this machine.
        budget
            That time itself, such as ``45min``, ``3h`` or ``night``, which is 10 hours.
        workers
            Processes; None: one per core.

        Returns
        -------
        Project
            Open for writing. Close it when done, or use it as a context manager.

        Raises
        ------
        ScanError
            There are no scans, or the structures can't be read.
        ProjectError
            Something is at `path` already, or none of the scans could be used.
        """
        folders = ScanFolders(
            Path(images),
            None if labels is None else Path(labels),
            None if groups is None else Path(groups),
            dicom,
            series,
            tuple(channels),
        )
        budget_s = None if budget is None else budget_seconds(budget)
        if plan not in BUDGETS_S:
            raise ProjectError(f"{plan!r} is no plan: quick, balanced or fine")
        wishes = preprocessing or PreprocessingConfig()
        for found in look_into(folders, wishes, budget_s=budget_s, workers=workers):
            if not found.complete:
                yield found
        table = found.require_table()
        chosen = found.plans.get(plan if budget_s is None else "balanced")
        if chosen is not None:
            wishes = chosen.preprocessing
            found = replace(found, plans={chosen.level: chosen})
        if keep_map is not None:  # before the cases, which could never be told again
            if found.cohort.layout != "dicom":
                raise ProjectError(f"{keep_map}: only scans from DICOM have a map")
            if Path(keep_map).resolve().is_relative_to(Path(path).resolve()):
                raise ProjectError(
                    f"{keep_map}: lies in the project, which holds no patient's identity"
                )
            write_dicom_map(Path(keep_map), found.cohort.cases, found.cohort.channels)
        project = Project.create(path, table, wishes, chosen, found.cohort.channels)
        try:
            yield found
            yield from read_first_scans(project, found.cohort, workers=workers)
        except BaseException:
            project.close()
            raise
        return project
