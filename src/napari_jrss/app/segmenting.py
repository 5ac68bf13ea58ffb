"""The teacher segments scans that are no cases, from files or in memory, on their own grids."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_jrss.app.new_scans import Images, NewScan, new_scans, volumes_of
from napari_jrss.app.rounds.train import teacher_warning
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.geometry import voxel_ml
from napari_jrss.io.atomic import write_bytes
from napari_jrss.io.layouts import stem
from napari_jrss.io.nifti import nifti_bytes
from napari_jrss.io.other_formats import label_ending
from napari_jrss.io.read import dicom_series_of, read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.pool import Workers, mapped
from napari_jrss.preprocess.pipeline import preprocess, preprocess_channel
from napari_jrss.preprocess.transform import GridTransform, at_own_resolution
from napari_jrss.processes import WorkerDiedError
from napari_jrss.progress_bar import counting, long_call
from napari_jrss.project.export.dicom_seg import require_outside, segmentation_bytes
from napari_jrss.project.export.folder import ExportFolder
from napari_jrss.project.export.labels import ending_for, label_bytes, label_names
from napari_jrss.project.project import Project
from napari_jrss.snapshot import CaseScan

if TYPE_CHECKING:
    from napari_jrss.app.workspace import Workspace
    from napari_jrss.io.predictions import Prediction

_LONGEST_NAME = 255  # bytes that the usual file systems allow


@dataclass(frozen=True)
class SegmentedScan:
    """What became of one scan.

    Attributes
    ----------
    scan
        The file.
    problem
        Why it could not be segmented; empty if it was.
    label
        The label file, on the scan's own grid.
    volumes_ml
        Volume of each structure in millilitres.
    mean_confidence
        Mean probability of the structures' voxels, 0 to 1; None where there are none.
    seconds
        Time of the network alone.
    notes
        What the reader had to decide about the scan, a sentence each.
    """

    scan: Path
    problem: str = ""
    label: Path | None = None
    volumes_ml: tuple[float, ...] = ()
    mean_confidence: float | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class VolumeSegmented:
    """A scan's label is there."""

    name: str  # as it was given
    label: NDArray[np.integer]  # class indices (z, y, x) on the scan's own grid
    table: LabelTable  # the classes
    # Mean probability of the structures' voxels, 0 to 1; None where there are none.
    mean_confidence: float | None
    warning: str  # what to know of the teacher before the label is trusted; empty for nothing


@dataclass(frozen=True, eq=False)
class _Segmented:
    """The teacher's label of a scan on the training grid, and the way back to the scan."""

    prediction: Prediction
    transform: GridTransform
    seconds: float

    def on_scan(self) -> NDArray[np.integer]:
        """Class indices (z, y, x) on the scan's own grid."""
        return self.transform.turn_to_source(self.transform.prediction_to_scan(self.prediction))

    def mean_confidence(self) -> float | None:
        """Mean probability of the structures' voxels in the scan; None where there are none."""
        inside = (self.prediction.label > 0) & self.transform.inside_scan()
        found = self.prediction.confidence[inside]
        return float(found.mean(dtype=np.float64)) if found.size else None


class _Teacher:
    """The networks of a project's teacher on one device, ready for any number of scans."""

    def __init__(self, project: Project, device: str, with_student: bool = False) -> None:
        from napari_jrss.inference.load import load_predictor

        entry = project.require_teacher()
        with_student = with_student and entry.parent is not None
        self._project = project
        self.table = project.table
        self._predict = load_predictor(entry.files, device, with_student=with_student)

    def segment(self, *volumes: Volume) -> _Segmented:
        """Segment a scan of one or several images, the one that is registered first.

        They may have any orientation; `seconds` are those of the network alone.
        """
        first, project = volumes[0], self._project
        if len(volumes) != project.inputs:
            seen = " and ".join(project.channels) or "one image"
            name = first.source or "the scan"
            raise ScanError(f"{name}: the teacher sees {seen} of each scan, not {len(volumes)}")
        ready = preprocess(first, None, project.preprocessing, project.grid)
        brought = [ready] + [
            preprocess_channel(each, ready.transform, project.preprocessing) for each in volumes[1:]
        ]
        images = [each.image for each in brought]
        transforms = [each.transform for each in brought]
        started = time.perf_counter()
        image = images[0] if len(images) == 1 else np.stack(images)
        prediction = self._predict(image, lambda: _own_voxels(volumes, transforms))
        return _Segmented(prediction, ready.transform, time.perf_counter() - started)


def _own_voxels(volumes: Sequence[Volume], transforms: Sequence[GridTransform]) -> CaseScan:
    images = [t.turn_to_scan(v.array) for v, t in zip(volumes, transforms, strict=True)]
    return at_own_resolution(images, transforms)


def segment(project: Project, scan: Images, *, device: str = "auto") -> Volume:
    """Segment a scan with the current teacher; nothing is written.

    Parameters
    ----------
    project
        With a teacher.
    scan
        NIfTI file, folder of one DICOM series, or a scan in memory; in any orientation. Where cases
        have several images, these by their names, such as ``{"T1": ..., "FLAIR": ...}``, or a
        folder that holds them.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns
    -------
    Volume
        The label (z, y, x) on the scan's own grid, or that of its first image. Its values are the
        numbers of the label files that the project was made from, where each structure has exactly
        one, else the index of the structure in ``project.table.names``; 0 is the background.

    Raises
    ------
    ScanError
        The scan can't be read or used.
    ProjectError
        The project has no teacher.
    """
    teacher = _Teacher(project, device)
    volumes = volumes_of(project, scan)
    ids = project.table.to_source_ids(teacher.segment(*volumes).on_scan())
    return replace(volumes[0], array=ids, source=None)


@dataclass(frozen=True)
class _Order:
    """What is to be made of each scan, and where the files go."""

    out: Path
    maps: bool
    dicom_seg: bool
    device: str


@dataclass(frozen=True)
class _Made:
    """What was made of one scan: its files by name, labels apart from maps."""

    result: SegmentedScan
    labels: dict[str, bytes]
    maps: dict[str, bytes]


@long_call(lambda project, scans, *_, **__: counting("segmenting", len(scans)))
def segment_scans(
    project: Project,
    scans: Sequence[str | Path],
    out: str | Path,
    *,
    maps: bool = False,
    dicom_seg: bool = False,
    device: str = "auto",
    workers: Workers = None,
) -> Generator[SegmentedScan, None, list[SegmentedScan]]:
    """Segment scans with the current teacher and write their labels, on the scans' own grids.

    A scan that can't be used is left out, and the others go on. ``segment_scans.events(...)``
    yields a :class:`SegmentedScan` for each.

    Parameters
    ----------
    project
        With a teacher.
    scans
        Files, or folders of one DICOM series each. Where cases have several images, all files of
        the scans, or folders of them; see :func:`~napari_jrss.app.new_scans.new_scans`.
    out
        Folder for ``<scan>_label.nii.gz`` (of NRRD, MetaImage and MGZ, a label in kind) and the
        names of the labels; made if it is missing.
        Before scans of one name stand the names of their folders.
    maps
        Whether to write ``<scan>_confidence.nii.gz`` and, after a joint round,
        ``<scan>_uncertainty.nii.gz`` (KL divergence of teacher and student, in nats).
    dicom_seg
        Whether to write ``<scan>_label.dcm`` for each DICOM series, a DICOM SEG in the study of
        the patient.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    workers
        Processes that share the scans, of this computer or of a cluster; None: one scan after the
        other in this process.

    Returns
    -------
    list of SegmentedScan
        What became of each scan.

    Raises
    ------
    ProjectError
        There is no teacher, a scan is given twice, or a label is there that no export wrote or
        that was edited since.
    """
    entry = project.require_teacher()
    found_scans, out = new_scans(project, scans), Path(out)
    paths = [scan.path for scan in found_scans]
    names = _names_of(paths)
    if dicom_seg:
        require_outside(project, out)
    about = label_names(project.table)
    labels = [
        f"{name}_label{ending}"
        for path, name in zip(paths, names, strict=True)
        for ending in {label_ending(path.name, None), ".nii.gz", *([".dcm"] if dicom_seg else [])}
        if not _too_long(name)
    ]
    folder = ExportFolder(out, [*about, *labels])
    order = _Order(out, maps, dicom_seg, device)
    if workers is None:
        job = partial(_segment_scan, _Teacher(project, device, with_student=maps), order)
    else:
        job = partial(_in_worker, project.path, entry.number, order)
    folder.make()
    for file, content in about.items():
        folder.write(file, content)
    results: dict[Path, SegmentedScan] = {}
    items = list(zip(found_scans, names, strict=True))
    with closing(mapped(job, items, workers)) as working_on:
        for (new, _), made in working_on:
            if isinstance(made, ScanError | WorkerDiedError):
                results[new.path] = SegmentedScan(new.path, problem=str(made))
            elif isinstance(made, Exception):
                raise made
            else:
                for file, content in made.labels.items():
                    folder.write(file, content)
                for file, content in made.maps.items():
                    write_bytes(out / file, content)
                results[new.path] = made.result
            yield results[new.path]
    return [results[path] for path in paths]


def _in_worker(path: Path, number: int, order: _Order, item: tuple[NewScan, str]) -> _Made:
    """In another process: segment a scan with the teacher of a round."""
    with Project.open(path, read_only=True) as project:
        if project.require_teacher().number != number:
            raise ProjectError("another teacher was put in use meanwhile; start again")
        return _segment_scan(_Teacher(project, order.device, order.maps), order, item)


def _segment_scan(teacher: _Teacher, order: _Order, item: tuple[NewScan, str]) -> _Made:
    """Segment a scan that is to have a name; a ScanError if it can't be used."""
    new, name = item
    scan, table = new.path, teacher.table
    if new.problem:
        raise ScanError(new.problem)
    if _too_long(name):
        raise ScanError(f"{scan.parent / name[:40]}...: the name is too long for a label")
    series = dicom_series_of(new.images[0])
    volume, *others = (read_volume(each) for each in (series or new.images[0], *new.images[1:]))
    found = teacher.segment(volume, *others)
    transform = found.transform
    label = transform.prediction_to_scan(found.prediction)
    file = f"{name}_label{ending_for(scan.name, None, volume.affine)}"
    labels = {file: label_bytes(label, transform, table, order.out / file)}
    path = order.out / file
    maps: dict[str, bytes] = {}
    for kind in ("confidence", "uncertainty") if order.maps else ():
        values = getattr(found.prediction, kind)
        if values is not None:
            on_scan = transform.values_to_source(values.astype(np.float32))
            file = f"{name}_{kind}.nii.gz"
            maps[file] = nifti_bytes(order.out / file, on_scan, volume)
    if order.dicom_seg and series is not None:
        file = f"{name}_label.dcm"
        labels[file] = segmentation_bytes(label, transform, table, series, file)
    counts = np.bincount(label.ravel(), minlength=len(table.names))[1:]
    each_ml = voxel_ml(np.array(transform.source_affine))
    volumes = tuple(float(count) * each_ml for count in counts)
    confidence, seconds = found.mean_confidence(), found.seconds
    result = SegmentedScan(scan, "", path, volumes, confidence, seconds, volume.notes)
    return _Made(result, labels, maps)


def _names_of(paths: Sequence[Path]) -> list[str]:
    """Name of each scan, with as many of its folders as scans of one name need."""
    whole = [path.absolute() for path in paths]
    twice = [path for path, count in Counter(whole).items() if count > 1]
    if twice:
        raise ProjectError(f"{twice[0]}: is given twice")
    names = [stem(path) for path in whole]
    for depth in range(1, max(len(path.parts) for path in whole)):
        counts = Counter(names)
        if max(counts.values()) == 1:
            return names
        names = [
            "_".join([*path.parent.parts[1:][-depth:], stem(path)]) if counts[name] > 1 else name
            for name, path in zip(names, whole, strict=True)
        ]
    raise ProjectError(f"{whole[0].parent}: holds one scan in two formats; give one of them")


def _too_long(name: str) -> bool:
    """Whether a label can't have this scan's name."""
    return len(os.fsencode(f"{name}_uncertainty.nii.gz")) > _LONGEST_NAME


def segment_volume(workspace: Workspace, volume: Volume, name: str) -> None:
    """Segment a scan with the current teacher in the background; nothing is written.

    The result is an event of ``workspace.inference``, a :class:`VolumeSegmented`.
    """
    project, device = workspace.open_project, workspace.device
    project.require_teacher()

    def work(cancel: threading.Event) -> Iterator[VolumeSegmented]:
        teacher = _Teacher(project, device)
        if cancel.is_set():
            return
        found = teacher.segment(volume)
        yield VolumeSegmented(
            name, found.on_scan(), project.table, found.mean_confidence(), teacher_warning(project)
        )

    workspace.inference.start(work)
