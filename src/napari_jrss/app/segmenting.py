"""The teacher at work on scans that are no cases, from files or in memory, on their own grids."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_jrss.app.rounds.train import teacher_warning
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.geometry import voxel_ml
from napari_jrss.io.layouts import stem
from napari_jrss.io.nifti import write_nifti
from napari_jrss.io.read import dicom_series_of, read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.transform import GridTransform
from napari_jrss.project.export.dicom_seg import require_outside, segmentation_bytes
from napari_jrss.project.export.folder import ExportFolder
from napari_jrss.project.export.labels import label_bytes, label_names
from napari_jrss.project.project import Project

if TYPE_CHECKING:
    from torch import device as Device
    from torch.nn import Module

    from napari_jrss.app.workspace import Workspace
    from napari_jrss.io.predictions import Prediction


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
    """

    scan: Path
    problem: str = ""
    label: Path | None = None
    volumes_ml: tuple[float, ...] = ()
    mean_confidence: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class VolumeSegmented:
    """A scan's label is there.

    Attributes
    ----------
    name
        As it was given.
    label
        Class indices (z, y, x) on the scan's own grid.
    table
        The classes.
    mean_confidence
        Mean probability of the structures' voxels, 0 to 1; None where there are none.
    warning
        What to know of the teacher before the label is trusted; empty for nothing.
    """

    name: str
    label: NDArray[np.integer]
    table: LabelTable
    mean_confidence: float | None
    warning: str


def segment_scans(
    project: Project,
    scans: Sequence[Path],
    out: Path,
    *,
    maps: bool = False,
    dicom_seg: bool = False,
    device: str = "auto",
) -> Iterator[SegmentedScan]:
    """Segment scans with the current teacher, onto their own grids.

    Parameters
    ----------
    project
        With a teacher.
    scans
        NIfTI files, or folders of one DICOM series each.
    out
        Folder for ``<scan>_label.nii.gz`` and the names of the labels; made if missing.
    maps
        Write ``<scan>_confidence.nii.gz`` and, after a joint round, ``<scan>_uncertainty.nii.gz``
        (KL divergence of teacher and student, in nats).
    dicom_seg
        Write ``<scan>_label.dcm`` for each DICOM series, a DICOM SEG in the patient's study.
    device
        See :func:`napari_jrss.inference.device.make_fabric`.

    Raises
    ------
    ProjectError
        Without a teacher, if two scans would write the same files, or if a label is there that no
        export wrote or that was edited since.
    """
    from napari_jrss.inference.device import make_fabric
    from napari_jrss.inference.load import load_student, load_teacher

    entry = project.require_teacher()
    names = [stem(scan.absolute()) for scan in scans]
    if len(set(names)) < len(names):
        raise ProjectError(f"{out}: two scans of the same name would overwrite each other's label")
    if dicom_seg:
        require_outside(project, out)
    endings = (".nii.gz", ".dcm") if dicom_seg else (".nii.gz",)
    about = label_names(project.table)
    labels = [f"{name}_label{ending}" for name in names for ending in endings]
    folder = ExportFolder(out, [*about, *labels])
    torch_device = make_fabric(device).device
    teacher = load_teacher(entry.files, torch_device)
    student = load_student(entry.files, torch_device) if maps else None
    folder.make()
    for file, content in about.items():
        folder.write(file, content)
    segment = partial(
        _segment_scan,
        project=project,
        networks=(teacher, student),
        device=torch_device,
        folder=folder,
        maps=maps,
        dicom_seg=dicom_seg,
    )
    return map(segment, scans, names)


def _segment_scan(
    scan: Path,
    name: str,
    *,
    project: Project,
    networks: tuple[Module, Module | None],
    device: Device,
    folder: ExportFolder,
    maps: bool,
    dicom_seg: bool,
) -> SegmentedScan:
    from napari_jrss.inference.predict import predict_case

    try:
        series = dicom_series_of(scan)
        volume = read_volume(series or scan)
        ready = preprocess(volume, None, project.preprocessing, project.grid)
    except ScanError as error:
        return SegmentedScan(scan, problem=str(error))
    started = time.perf_counter()
    prediction = predict_case(networks[0], ready.image, device, networks[1])
    seconds = time.perf_counter() - started
    file = f"{name}_label.nii.gz"
    content = label_bytes(prediction.label, ready.chain, project.table, folder.path / file)
    path = folder.write(file, content)
    if maps:
        _write_maps(prediction, ready.chain, volume, folder.path, name)
    if dicom_seg and series is not None:
        file = f"{name}_label.dcm"
        content = segmentation_bytes(prediction.label, ready.chain, project.table, series, file)
        folder.write(file, content)
    return _summary(scan, path, prediction, ready.chain, project, seconds)


def segment_volume(workspace: Workspace, volume: Volume, name: str) -> None:
    """Segment a scan with the current teacher in the background; nothing is written.

    The result is an event of ``workspace.inference``, a :class:`VolumeSegmented`.

    Parameters
    ----------
    workspace
        With a project that has a teacher.
    volume
        The scan, in any orientation.
    name
        Comes back with the result.

    Raises
    ------
    ProjectError
        No project is open, or it has no teacher.
    BusyError
        Another short job is under way.
    """
    project = workspace.open_project
    teacher = project.require_teacher()
    device = workspace.device

    def work(cancel: threading.Event) -> Iterator[VolumeSegmented]:
        from napari_jrss.inference.device import make_fabric
        from napari_jrss.inference.load import load_teacher
        from napari_jrss.inference.predict import predict_case

        torch_device = make_fabric(device).device
        ready = preprocess(volume, None, project.preprocessing, project.grid)
        if cancel.is_set():
            return
        prediction = predict_case(
            load_teacher(teacher.files, torch_device), ready.image, torch_device
        )
        yield VolumeSegmented(
            name,
            ready.chain.label_to_source(prediction.label),
            project.table,
            mean_confidence(prediction, ready.chain),
            teacher_warning(project),
        )

    workspace.inference.start(work)


def _write_maps(
    prediction: Prediction, chain: GridTransform, scan: Volume, out: Path, name: str
) -> None:
    maps = {"confidence": prediction.confidence, "uncertainty": prediction.uncertainty}
    for kind, values in maps.items():
        if values is not None:
            on_scan = chain.values_to_source(values.astype(np.float32))
            write_nifti(out / f"{name}_{kind}.nii.gz", on_scan, scan)


def _summary(
    scan: Path,
    path: Path,
    prediction: Prediction,
    chain: GridTransform,
    project: Project,
    seconds: float,
) -> SegmentedScan:
    on_scan = chain.label_to_source(prediction.label)
    counts = np.bincount(on_scan.ravel(), minlength=len(project.table.names))[1:]
    each_ml = voxel_ml(np.array(chain.source_affine))
    return SegmentedScan(
        scan=scan,
        label=path,
        volumes_ml=tuple(float(count) * each_ml for count in counts),
        mean_confidence=mean_confidence(prediction, chain),
        seconds=seconds,
    )


def mean_confidence(prediction: Prediction, chain: GridTransform) -> float | None:
    """Mean probability of the structures' voxels in the scan; None where there are none."""
    found = prediction.confidence[(prediction.label > 0) & chain.inside_scan()]
    return float(found.mean(dtype=np.float64)) if found.size else None
