"""A folder of scans on its way to a project: what is in it, which structures, which grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, cast

import numpy as np

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError
from napari_jrss.io.label_files import ids_in, label_table_from_csv
from napari_jrss.io.layouts import FoundCohort, discover, discover_dicom
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.grid import training_grid
from napari_jrss.preprocess.ingest import IngestResult
from napari_jrss.project.project import Project

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari_jrss.preprocess.transform import TrainingGrid

LARGEST_GRID = 160 * 192 * 160
"""Voxels of a training grid that ordinary machines train on: the paper's."""


@dataclass(frozen=True)
class Source:
    """Where scans are looked for.

    Attributes
    ----------
    images
        A folder of scans; or, without `labels`, a folder in a known layout.
    labels
        Folder of labels of the same names.
    groups
        CSV file with the structures.
    """

    images: Path
    labels: Path | None = None
    groups: Path | None = None


@dataclass(frozen=True)
class Found:
    """What a folder holds, as far as it is known.

    Attributes
    ----------
    cohort
        The scans and their labels.
    table
        The structures; None while they are being read, or where no scan has a label.
    grid
        The training grid that the configuration leads to; None while it isn't known.
    complete
        Whether everything was looked at.
    """

    cohort: FoundCohort
    table: LabelTable | None = None
    grid: TrainingGrid | None = None
    complete: bool = False

    @property
    def labelled(self) -> int:
        """Number of scans with a label."""
        return sum(case.label is not None for case in self.cohort.cases)


@dataclass(frozen=True)
class ScanRead:
    """One scan of an import is done: the how-manieth of how many, and what became of it."""

    done: int
    total: int
    result: IngestResult


def look_into(source: Source, config: PreprocessingConfig, cancel: Event) -> Iterator[Found]:
    """Find scans, then the structures in their labels, then the training grid.

    Parameters
    ----------
    source
        Where to look.
    config
        Preprocessing, which decides the grid.
    cancel
        Stops the work between two files.

    Yields
    ------
    Found
        At first with the names of the files only, which is quick; the last is complete.

    Raises
    ------
    ScanError
        There are no scans, or the structures' table can't be read.
    """
    cohort = _discover(source)
    table = cohort.table if source.groups is None else label_table_from_csv(source.groups)
    found = Found(cohort, table)
    yield found
    if table is None and found.labelled:
        ids: set[int] = set()
        for case in cohort.cases:
            if cancel.is_set():
                return
            ids |= ids_in(case.label) if case.label is not None else set()
        if not ids - {0}:
            raise ScanError("no label file holds anything but background")
        found = replace(found, table=LabelTable.from_ids(ids))
        yield found
    grid = None
    if config.crop == "center" and not cancel.is_set():  # by headers alone, so at once
        grid = training_grid(cohort.cases, config, found.table)
    yield replace(found, grid=grid, complete=True)


def _discover(source: Source) -> FoundCohort:
    if source.labels is not None:
        return discover(images=source.images, labels=source.labels)
    from napari_jrss.io.dicom import UnusableDicomError

    try:
        return discover(source.images)
    except ScanError as error:
        try:
            return discover_dicom(source.images)
        except UnusableDicomError:
            raise
        except ScanError:
            raise error from None


def fitting_spacing(grid: TrainingGrid) -> float | None:
    """A voxel size in mm at which the grid's extent trains on an ordinary machine.

    None if the grid does so already.
    """
    if np.prod(grid.shape, dtype=float) <= LARGEST_GRID:
        return None
    extent = np.array(grid.shape) * grid.spacing_mm
    tenths = np.ceil(10 * (np.prod(extent) / LARGEST_GRID) ** (1 / 3))
    return float(max(tenths / 10, min(grid.spacing_mm)))


def groups_file_of(folder: Path) -> Path | None:
    """The table of structures that a folder of scans brings along, if it does."""
    for name in ("groups.csv", "labels.csv"):
        for place in (folder, folder.parent):
            if (place / name).is_file():
                return place / name
    return None


def read_scans(
    project: Project, cohort: FoundCohort, cancel: Event, workers: int | None = None
) -> Iterator[ScanRead]:
    """Preprocess scans and make each a case of a project; stops after the scans under way."""
    results = project.add_cases(cohort.cases, workers=workers, groups=cohort.groups)
    # Closing the generator ends its worker processes, wherever this one is left.
    with closing(cast("Generator[IngestResult]", results)):
        for done, result in enumerate(results, start=1):
            yield ScanRead(done, len(cohort.cases), result)
            if cancel.is_set():
                return
