"""Many scans at once into the cache of a project: one process each, one reason per failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError, from_os_error
from napari_jrss.io.atomic import sweep
from napari_jrss.io.label_files import read_classes
from napari_jrss.io.layouts import FoundCase, Scan
from napari_jrss.io.nifti import file_checksum
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.case_store import (
    DICOM_SOURCE,
    CaseAttributes,
    case_path,
    read_attributes,
    write_case,
)
from napari_jrss.preprocess.grid import training_grid
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.transform import TrainingGrid
from napari_jrss.processes import WorkerDiedError, in_processes


@dataclass(frozen=True)
class IngestResult:
    """What became of one scan.

    Attributes
    ----------
    case_id
        The case.
    ok
        Whether it is in the cache now.
    reason
        Why not, in one line; empty if it is.
    path
        Where it lies, if it does.
    labelled
        Whether it has a label.
    label_kept
        Fraction of the label's foreground voxels that the training grid covers.
    """

    case_id: str
    ok: bool
    reason: str = ""
    path: Path | None = None
    labelled: bool = False
    label_kept: float | None = None


def ingest(
    cases: Sequence[FoundCase],
    config: PreprocessingConfig,
    table: LabelTable | None,
    folder: Path,
    workers: int | None = None,
    *,
    grid: TrainingGrid | None = None,
    version: str = "manual",
) -> Iterator[IngestResult]:
    """Preprocess cases in worker processes and write them to the cache, as each gets ready.

    Parameters
    ----------
    cases
        As :func:`~napari_jrss.io.layouts.discover` finds them.
    config
        Preprocessing.
    table
        The classes; needed if any case has a label.
    folder
        The project's folder of cases, which nobody else writes to meanwhile. A case that is
        there already, made of the same files in the same way, counts as done.
    workers
        Processes of one thread each; none: as many as there are cores for this process.
    grid
        The training grid; none: :func:`~napari_jrss.preprocess.grid.training_grid` of these cases.
    version
        Name of the label version.

    Yields
    ------
    IngestResult
        One per case, in the order in which they end. A case that fails says why, and the
        others go on, also when its process dies.

    Notes
    -----
    Processes are spawned, so a script that calls this needs ``if __name__ == "__main__":``.
    Each worker has one case under way, so memory doesn't grow with their number.
    """
    if table is None and any(case.label for case in cases):
        raise ValueError("labelled cases need a label table")
    sweep(folder)
    grid = grid or training_grid(cases, config, table, workers)
    jobs = [_Job(case, config, table, grid, folder, version) for case in cases]
    for job, result in in_processes(_ingest_one, jobs, workers):
        if isinstance(result, BaseException):
            yield IngestResult(job.case.case_id, ok=False, reason=_reason(result, job.case))
        else:
            yield result


@dataclass(frozen=True)
class _Job:
    case: FoundCase
    config: PreprocessingConfig
    table: LabelTable | None
    grid: TrainingGrid
    folder: Path
    version: str


def _ingest_one(job: _Job) -> IngestResult:
    case, table = job.case, job.table
    image = read_volume(case.image)
    label = None
    if case.label is not None:
        assert table is not None
        label = read_classes(case.label, table)
    done = preprocess(image, label, job.config, job.grid)
    source, checksum = _origin(case.image, image)
    attributes = CaseAttributes(
        case_id=case.case_id,
        source=source,
        checksum=checksum,
        label_source=str(case.label.absolute()) if case.label else None,
        label_checksum=file_checksum(case.label) if case.label else None,
        chain=done.chain,
        spacing_mm=job.grid.spacing_mm,
    )
    try:
        path = write_case(job.folder, attributes, done.image, done.label, table, job.version)
    except FileExistsError:
        # The very same case is there already: an earlier run wrote it and was killed.
        path = case_path(job.folder, case.case_id)
        if read_attributes(path) != attributes:
            raise
    return IngestResult(
        case.case_id, True, "", path, labelled=label is not None, label_kept=done.label_kept
    )


def _origin(scan: Scan, image: Volume) -> tuple[str, str]:
    """What a case remembers of its scan's files: where they lie, and a checksum.

    Of a DICOM series no path is kept, since folders and files are named after patients.
    """
    if isinstance(scan, Path):
        return str(scan.absolute()), file_checksum(scan)
    from napari_jrss.io.dicom import checksum

    return DICOM_SOURCE, checksum(image)


def _reason(error: BaseException, case: FoundCase) -> str:
    if isinstance(error, WorkerDiedError | ScanError | FileExistsError):
        return str(error)
    if not isinstance(case.image, Path):  # the message may hold a path
        return f"{case.case_id}: {type(error).__name__}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {from_os_error(error)}"
    return f"{type(error).__name__}: {error}"
