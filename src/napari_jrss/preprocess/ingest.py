"""Bring scans into a project in worker processes; each scan that fails has its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError, from_os_error
from napari_jrss.geometry import Shape
from napari_jrss.io.atomic import sweep
from napari_jrss.io.found import FoundCase, Label, Masks, Part, Scan
from napari_jrss.io.label_files import read_classes
from napari_jrss.io.nifti import file_checksum
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.labels import IGNORED, LabelTable
from napari_jrss.pool import Workers, in_processes
from napari_jrss.preprocess.case_attributes import (
    DICOM_SOURCE,
    CaseAttributes,
    ChannelAttributes,
)
from napari_jrss.preprocess.case_store import (
    ChannelArrays,
    case_path,
    read_attributes,
    smallest,
    write_case,
)
from napari_jrss.preprocess.grid import training_grid
from napari_jrss.preprocess.pipeline import LabelError, preprocess, preprocess_channel
from napari_jrss.preprocess.transform import GridTransform, TrainingGrid
from napari_jrss.processes import WorkerDiedError

FEWEST_COVERED = 0.9
"""Fraction of a case's first image that another one has to cover, or a note says how little."""


@dataclass(frozen=True)
class IngestResult:
    """How the import of one scan ended."""

    case_id: str
    ok: bool  # whether it is in the project now
    reason: str = ""  # why not, in one line; empty if it is
    path: Path | None = None  # its folder in the project, if it is
    labelled: bool = False  # whether it has a label
    # Fraction of the label's foreground voxels that the training grid covers.
    label_kept: float | None = None
    # What the person should know of the scan or its label, a sentence each.
    notes: tuple[str, ...] = ()
    # Of its label on the training grid: voxels of each structure, and the length (z, y, x) of the
    # part that all of them take up. Empty and None without a label.
    voxels: tuple[int, ...] = ()
    label_extent: Shape | None = None
    # Voxels of each id or structure of the label that is background, since the table doesn't list
    # it.
    unlisted: Mapping[str, int] = field(default_factory=dict)


def ingest(
    cases: Sequence[FoundCase],
    config: PreprocessingConfig,
    table: LabelTable | None,
    folder: Path,
    workers: Workers = None,
    *,
    grid: TrainingGrid | None = None,
    version: str = "manual",
    channels: Sequence[str] = (),
) -> Iterator[IngestResult]:
    """Preprocess cases in worker processes and write each to the project's folder of cases.

    Yields one result for each case, in the order in which they end. If one fails, even by the death
    of its process, the others go on. Each worker has one case under way, so memory doesn't grow
    with their number.

    Parameters
    ----------
    folder
        The project's folder of cases; no other process may write to it. A case that is in it
        already, made of the same files in the same way, counts as done.
    workers
        Processes of one thread each; None: as many as this process may use cores.
    grid
        The training grid; None: :func:`~napari_jrss.preprocess.grid.training_grid` of these cases.
    version
        Name of the label version.
    channels
        Names of the images that each case has to have, the one that is registered first; none:
        each has one.
    """
    if table is None and any(case.label for case in cases):
        raise ValueError("labelled cases need a label table")
    sweep(folder)
    grid = grid or training_grid(cases, config, table, workers)
    one = partial(
        _ingest_one,
        config=config,
        table=table,
        grid=grid,
        folder=folder,
        version=version,
        channels=tuple(channels),
    )
    for case, result in in_processes(one, cases, workers):
        if isinstance(result, BaseException):
            yield IngestResult(case.case_id, ok=False, reason=_reason(result, case))
        else:
            yield result


def _ingest_one(
    case: FoundCase,
    *,
    config: PreprocessingConfig,
    table: LabelTable | None,
    grid: TrainingGrid,
    folder: Path,
    version: str,
    channels: tuple[str, ...],
) -> IngestResult:
    if 1 + len(case.others) != max(1, len(channels)):
        images = ", ".join(channels) or "one image"
        raise ScanError(f"{case.case_id}: has {1 + len(case.others)} images, not {images}")
    image = read_volume(case.image)
    label, notes, unlisted = None, image.notes, Counter[str]()
    if case.label is not None:
        assert table is not None
        try:
            label = read_classes(case.label, table, unlisted, case.image)
            notes += label.notes
        except ScanError as error:
            notes += (f"without its label: {error}",)
    try:
        done = preprocess(image, label, config, grid)
    except LabelError as error:
        label, notes = None, (*notes, f"without its label: {error}")
        done = preprocess(image, None, config, grid)
    others = [
        _channel(name, scan, done.transform, config)
        for name, scan in zip(channels[1:], case.others, strict=True)
    ]
    notes += tuple(note for _, _, of in others for note in of)
    source, checksum = _origin(case.image, image)
    label_source, label_checksum = None, None
    if label is not None and case.label is not None:
        label_source, label_checksum = _label_origin(case, case.label)
    attributes = CaseAttributes(
        case_id=case.case_id,
        source=source,
        checksum=checksum,
        label_source=label_source,
        label_checksum=label_checksum,
        label_dtype=label.dtype if label else None,
        transform=done.transform,
        spacing_mm=grid.spacing_mm,
        part=_part(case.image),
        channels=tuple(about for about, _, _ in others),
    )
    try:
        path = write_case(
            folder,
            attributes,
            done.image,
            done.label,
            table,
            version,
            done.scan_label,
            smallest(done.transform.turn_to_scan(image.array)),
            [arrays for _, arrays, _ in others],
        )
    except FileExistsError:
        # An earlier run may have written the same case before it was killed.
        path = case_path(folder, case.case_id)
        if read_attributes(path) != attributes:
            raise
    voxels: tuple[int, ...] = ()
    extent: Shape | None = None
    if done.label is not None and table is not None:
        counts = np.bincount(done.label.ravel(), minlength=len(table.names))
        voxels = tuple(int(n) for n in counts[1 : len(table.names)])
        z, y, x = (int(np.ptp(axis)) + 1 for axis in np.nonzero(done.label % IGNORED))
        extent = z, y, x
    return IngestResult(
        *(case.case_id, True, "", path),
        labelled=label is not None,
        label_kept=done.label_kept,
        notes=tuple(dict.fromkeys(notes)),  # image and label may say the same
        voxels=voxels,
        label_extent=extent,
        unlisted=unlisted,
    )


def _channel(
    name: str, scan: Scan, reference: GridTransform, config: PreprocessingConfig
) -> tuple[ChannelAttributes, ChannelArrays, tuple[str, ...]]:
    """A further image of a case as it is stored, and what to know of it."""
    image = read_volume(scan)
    done = preprocess_channel(image, reference, config)
    source, checksum = _origin(scan, image)
    about = ChannelAttributes(
        name=name, source=source, checksum=checksum, part=_part(scan), transform=done.transform
    )
    arrays = ChannelArrays(done.image, smallest(done.transform.turn_to_scan(image.array)))
    notes = tuple(f"{name}: {note}" for note in image.notes)
    if done.covered < FEWEST_COVERED:
        notes += (f"{name} covers {100 * done.covered:.0f} % of the first image",)
    return about, arrays, notes


def _part(scan: Scan) -> int | None:
    return scan.index + 1 if isinstance(scan, Part) else None


def _origin(scan: Scan, image: Volume) -> tuple[str, str]:
    """Path and checksum of a scan's file.

    The path of a DICOM series is not stored, since it may contain the patient's name.
    """
    if isinstance(scan, Part):
        scan = scan.file
    if isinstance(scan, Path):
        return str(scan.absolute()), file_checksum(scan)
    from napari_jrss.io.dicom import checksum

    return DICOM_SOURCE, checksum(image)


def _label_origin(case: FoundCase, label: Label) -> tuple[str, str]:
    """Path and checksum of a label; beside DICOM the path isn't stored, as for the scan."""
    place = label.folder if isinstance(label, Masks) else label
    path = str(place.absolute()) if isinstance(case.image, Path | Part) else DICOM_SOURCE
    files = [file for _, file in label.files] if isinstance(label, Masks) else [label]
    sums = [file_checksum(file) for file in files]
    return path, sums[0] if len(sums) == 1 else sha256("".join(sums).encode()).hexdigest()


def _reason(error: BaseException, case: FoundCase) -> str:
    if isinstance(error, WorkerDiedError | ScanError | FileExistsError):
        return str(error)
    if not isinstance(case.image, Path | Part):  # the message may hold a path
        return f"{case.case_id}: {type(error).__name__}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {from_os_error(error)}"
    return f"{type(error).__name__}: {error}"
