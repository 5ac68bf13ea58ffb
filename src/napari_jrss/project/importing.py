"""A folder of scans on its way to a project: what is in it, which structures, which grid."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, cast

import numpy as np

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.dicom_layout import discover_dicom
from napari_jrss.io.label_files import label_table_from_file, label_table_from_files
from napari_jrss.io.layouts import FoundCohort, discover
from napari_jrss.labels import LabelTable
from napari_jrss.pool import Workers
from napari_jrss.preprocess.cost import this_machine
from napari_jrss.preprocess.facts import ScanFacts, scan_facts
from napari_jrss.preprocess.grid import widest_scan
from napari_jrss.preprocess.ingest import IngestResult
from napari_jrss.preprocess.plan import FEWEST_VOXELS, Level, Plan, make_plans
from napari_jrss.progress_bar import Bar, counting
from napari_jrss.project.cases import ProjectCases

if TYPE_CHECKING:
    from collections.abc import Generator


@dataclass(frozen=True)
class ScanFolders:
    """Where scans, labels and the names of the structures are looked for."""

    # A folder of scans, a folder in a known layout or a CSV file, see `discover`, or a folder of
    # DICOM series.
    images: Path
    labels: Path | None = None  # folder of labels; None: those that the layout has
    groups: Path | None = None  # table of the structures, see `label_table_from_file`
    dicom: bool = False  # whether only DICOM series are looked for
    # Which images of a study count: a pattern of DICOM's series description, or the kind of a BIDS
    # image.
    series: str | None = None
    # Names of the images of each case that count, the one that is shown and registered first; none:
    # all that each case has. Of DICOM the series of each image, see `discover_dicom`; none: each
    # series is a case.
    channels: tuple[str, ...] = ()

    def discover(self) -> FoundCohort:
        """Find the scans; :class:`~napari_jrss.errors.ScanError` if there are none."""
        if self.dicom:
            return discover_dicom(self.images, self.labels, self.series, self.channels)
        from napari_jrss.io.dicom import UnusableDicomError

        try:
            return discover(
                self.images, labels=self.labels, series=self.series, channels=self.channels
            )
        except ScanError as error:
            if not self.images.is_dir():
                raise
            try:
                return discover_dicom(self.images, self.labels, self.series, self.channels)
            except UnusableDicomError:
                raise
            except ScanError:
                raise error from None


@dataclass(frozen=True)
class Found:
    """What a folder holds, as far as it is known."""

    cohort: FoundCohort  # the scans and their labels
    # The structures; None while they are being read, or where no scan has a label.
    table: LabelTable | None = None
    # The plan of each level that was asked for; empty until all scans were looked at, and if none
    # can be read.
    plans: Mapping[Level, Plan] = field(default_factory=dict)
    looked: int = 0  # number of scans that were looked at so far, to plan
    complete: bool = False  # whether everything was looked at

    @property
    def total(self) -> int:
        """Number of scans."""
        return len(self.cohort.cases)

    @property
    def labelled(self) -> int:
        """Number of scans with a label."""
        return sum(case.label is not None for case in self.cohort.cases)

    def require_table(self) -> LabelTable:
        """The structures; :class:`~napari_jrss.errors.ScanError` if nothing names them."""
        if self.table is None:
            raise ScanError("no scan has a label: name the structures in a CSV file (groups)")
        return self.table


@dataclass(frozen=True)
class ScanRead:
    """One scan of an import is done."""

    # Number of scans done so far, and of all scans.
    done: int
    total: int
    result: IngestResult  # what became of this one

    @property
    def problem(self) -> str:
        """Why the scan is left out; empty if it is a case now."""
        return self.result.reason


def look_into(
    folders: ScanFolders,
    wishes: PreprocessingConfig | None = None,
    cancel: Event | None = None,
    *,
    table: LabelTable | None = None,
    budget_s: float | None = None,
    workers: Workers = None,
) -> Iterator[Found]:
    """Find scans, then the structures in their labels, then plan the training grid.

    Yields at first the names of the files only, which is quick; the last is complete. `cancel`
    stops the work between two files. Raises a :class:`ScanError` if there are no scans, or the
    structures can't be read.

    Parameters
    ----------
    wishes
        Settings of the training grid that the plans keep; None: no plan is wanted.
    table
        The structures that a person chose; None: those that the folders have.
    budget_s
        Seconds of the pre-training and a round; None: a plan for each level.
    workers
        Processes that look at the scans; None: one per core.
    """
    cancel = cancel or Event()
    cohort = folders.discover()
    table = table or cohort.table
    if folders.groups is not None and table is cohort.table:
        labels = (case.label for case in cohort.cases if case.label is not None)
        table = label_table_from_file(folders.groups, labels)
    found = Found(cohort, table)
    yield found
    if table is None and found.labelled:
        files = (case.label for case in cohort.cases if case.label is not None)
        try:
            table = label_table_from_files(takewhile(lambda _: not cancel.is_set(), files))
        except ScanError:
            if not cancel.is_set():
                raise
        if cancel.is_set():
            return
        found = replace(found, table=table)
        yield found
    if wishes is not None and table is not None:
        facts: list[ScanFacts] = []
        with closing(scan_facts(cohort.cases, table, workers)) as looking:
            for fact in looking:
                facts += [] if fact is None else [fact]
                found = replace(found, looked=found.looked + 1)
                yield found
                if cancel.is_set():
                    return
        if facts:  # else the import says why no scan can be read
            images = 1 + len(cohort.cases[0].others)
            plans = make_plans(facts, table, this_machine(), wishes, budget_s, images=images)
            found = replace(found, plans=plans)
    yield replace(found, complete=True)


def import_summary(
    project: ProjectCases, cohort: FoundCohort, results: Sequence[IngestResult]
) -> list[str]:
    """What an import led to, a line each: grid, sizes of the structures, and what to know.

    Parameters
    ----------
    project
        Holds the cases now.
    cohort
        As :func:`look_into` found it.
    results
        Of the scans that are cases.
    """
    grid, config = project.grid, project.preprocessing
    shape = " x ".join(str(n) for n in grid.shape)
    spacing = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
    millions = np.prod(grid.shape, dtype=float) / 1e6
    lines = [f"training grid {shape} voxels of {spacing} mm (z y x), {millions:.2g} million"]
    counts = np.array([r.voxels for r in results if r.voxels], dtype=int)
    if counts.size:
        absent = np.iinfo(int).max
        smallest = np.where(counts > 0, counts, absent).min(0).tolist()
        sizes = dict(zip(project.table.names[1:], smallest, strict=True))
        listed = ", ".join(f"{n} {v if v < absent else 'in no label'}" for n, v in sizes.items())
        lines.append(f"{len(sizes)} structures, voxels where smallest: {listed}")
        if small := [name for name, voxels in sizes.items() if voxels < FEWEST_VOXELS]:
            lines.append(
                f"fewer than {FEWEST_VOXELS} voxels are hard to learn: {', '.join(small)}; a "
                "smaller --spacing keeps them larger"
            )
    unlisted = sum((Counter(r.unlisted) for r in results), Counter[str]())
    if unlisted:
        found = ", ".join(f"{name} ({n} voxels)" for name, n in unlisted.most_common(20))
        lines.append(f"background, since the table of structures doesn't list it: {found}")
    wanted = config if project.plan is None else project.plan.wishes
    if config.crop == "center" and wanted.shape is None:
        lines += widest_scan(cohort.cases, grid)
    extents = [r.label_extent for r in results if r.label_extent is not None]
    if config.crop == "labelled" and config.prealign == "none" and extents:
        needed = np.max(extents, axis=0)
        if (np.array(grid.shape) > 1.5 * needed + 8).any():
            lines.append(
                "the labels lie in different places, so the grid is larger than any of them: "
                "--prealign center_of_mass may make it smaller"
            )
    return lines


def import_bars(*_: object, **__: object) -> Callable[[Found | ScanRead], Bar]:
    """A bar for the scans that are looked at, to plan, and one for those that are read."""
    reading, looking = counting("reading scans"), counting("looking at scans")

    def bar(event: Found | ScanRead) -> Bar:
        if isinstance(event, ScanRead):
            return reading(event)
        return looking(event) if event.looked > 0 and not event.complete else Bar("", 0)

    return bar


def groups_file_of(folder: Path) -> Path | None:
    """The table of structures that a folder of scans brings along, if it does."""
    for name in ("groups.csv", "labels.csv", "labels.txt", "labels.ctbl", "FreeSurferColorLUT.txt"):
        for place in (folder, folder.parent):
            if (place / name).is_file():
                return place / name
    return None


def read_scans(
    project: ProjectCases,
    cohort: FoundCohort,
    cancel: Event | None = None,
    workers: Workers = None,
) -> Iterator[ScanRead]:
    """Preprocess scans in processes (None: one per core) and make each a case of a project.

    `cancel` stops the work after the scans under way.
    """
    cohort = cohort.using(project.channels)
    results = project.add_cases(cohort.cases, workers=workers, groups=cohort.groups)
    # Closing the generator ends its worker processes, wherever this one is left.
    with closing(cast("Generator[IngestResult]", results)):
        for done, result in enumerate(results, start=1):
            yield ScanRead(done, len(cohort.cases), result)
            if cancel is not None and cancel.is_set():
                return
    if cohort.splits and project.cases():
        project.assign_splits(cohort.splits)


def read_first_scans(
    project: ProjectCases,
    cohort: FoundCohort,
    cancel: Event | None = None,
    workers: Workers = None,
) -> Iterator[ScanRead]:
    """As :func:`read_scans`, into a project that was just made.

    However this ends: if the project has no case then, it is closed and its folder removed. If none
    of the scans could be used, that is a :class:`ProjectError`.
    """
    first = ""
    try:
        for event in read_scans(project, cohort, cancel, workers):
            first = first or event.problem
            yield event
        if not project.cases():
            raise ProjectError(
                f"none of {len(cohort.cases)} scans could be used, so {project.path} wasn't made"
                f" (the first reason: {first})"
            )
    finally:
        if not project.cases():
            project.close()
            shutil.rmtree(project.path)
