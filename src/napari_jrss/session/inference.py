"""The current networks at work on scans: segment new ones, register a pair, propagate labels."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from napari_jrss.data.atomic import write_text
from napari_jrss.data.batches import Image, Label
from napari_jrss.data.chain import Chain
from napari_jrss.data.layouts import stem
from napari_jrss.data.preprocess import preprocess
from napari_jrss.data.volume import ScanError, Volume, read_volume, write_nifti
from napari_jrss.metrics import dice_per_class, jacobian_statistics
from napari_jrss.project.errors import ProjectError
from napari_jrss.project.export import (
    export_displacement,
    export_label,
    scan_displacement,
    write_label_names,
)
from napari_jrss.project.ledger import Round
from napari_jrss.project.project import Project

if TYPE_CHECKING:
    from napari_jrss.data.predictions import Prediction


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
        Mean probability of the structures' voxels, 0 to 1; NaN where there are none.
    seconds
        Time of the network alone.
    """

    scan: Path
    problem: str = ""
    label: Path | None = None
    volumes_ml: tuple[float, ...] = ()
    mean_confidence: float = float("nan")
    seconds: float = 0.0


class RegistrationReport(BaseModel):
    """Figures of one registered pair; Dice per structure where both sides have labels."""

    model_config = ConfigDict(frozen=True)
    moving: str
    fixed: str
    structures: list[str]
    dice_before: list[float | None]
    dice: list[float | None]
    std_jacobian: float
    sdlogj_plus3: float
    folded_percent: float
    seconds: float


@dataclass(frozen=True)
class _Side:
    """One side of a pair: on the training grid, and the scan itself."""

    name: str
    image: Image
    label: Label | None
    chain: Chain
    scan: Volume


def segment_scans(
    project: Project,
    scans: Sequence[Path],
    out: Path,
    *,
    maps: bool = False,
    device: str = "auto",
) -> Iterator[SegmentedScan]:
    """Segment scans with the current teacher, onto their own grids.

    Parameters
    ----------
    project
        With a teacher.
    scans
        NIfTI files.
    out
        Folder for ``<scan>_label.nii.gz`` and the names of the labels; made if missing.
    maps
        Write ``<scan>_confidence.nii.gz`` and, after a joint round, ``<scan>_uncertainty.nii.gz``
        (KL divergence of teacher and student, in nats).
    device
        See :func:`napari_jrss.engine.device.make_fabric`.

    Raises
    ------
    ProjectError
        Without a teacher, or if two scans would write the same files.
    """
    from napari_jrss.engine.device import make_fabric
    from napari_jrss.engine.predict import predict_case
    from napari_jrss.session.networks import load_student, load_teacher

    entry = _teacher(project)
    names = [stem(scan) for scan in scans]
    if len(set(names)) < len(names):
        raise ProjectError(f"{out}: two scans of the same name would overwrite each other's label")
    torch_device = make_fabric(device).device
    teacher = load_teacher(entry, torch_device)
    student = load_student(entry, torch_device) if maps else None
    out.mkdir(parents=True, exist_ok=True)
    write_label_names(out, project.table)
    for scan, name in zip(scans, names, strict=True):
        try:
            volume = read_volume(scan)
            ready = preprocess(volume, None, project.preprocessing, project.grid)
        except ScanError as error:
            yield SegmentedScan(scan, problem=str(error))
            continue
        started = time.perf_counter()
        prediction = predict_case(teacher, ready.image, torch_device, student)
        seconds = time.perf_counter() - started
        path = export_label(
            prediction.label, ready.chain, project.table, out / f"{name}_label.nii.gz"
        )
        if maps:
            _write_maps(prediction, ready.chain, volume, out, name)
        yield _summary(scan, path, prediction, ready.chain, project, seconds)


def register_pair(
    project: Project, moving: str, fixed: str, out: Path, *, device: str = "auto"
) -> RegistrationReport:
    """Register a moving case or scan to a fixed one with the current registration network.

    Writes, on the fixed scan's own grid, ``warped_image.nii.gz`` and, if the moving case has a
    label, ``warped_label.nii.gz``; ``displacement.nii.gz`` as ITK and ANTs read it; and the
    figures as ``report.json``.

    Parameters
    ----------
    project
        With a registration network.
    moving, fixed
        Case ids, or NIfTI files.
    out
        Folder to write to; made if missing.
    device
        See :func:`napari_jrss.engine.device.make_fabric`.
    """
    from napari_jrss.engine.device import make_fabric
    from napari_jrss.engine.predict import displacement_field, warp_array
    from napari_jrss.session.networks import load_registration

    entry = _teacher(project)
    torch_device = make_fabric(device).device
    network = load_registration(entry, torch_device)
    here, there = _side(project, moving), _side(project, fixed)
    started = time.perf_counter()
    field = displacement_field(network, here.image, there.image, torch_device)
    seconds = time.perf_counter() - started

    out.mkdir(parents=True, exist_ok=True)
    export_displacement(field, here.chain, there.chain, out / "displacement.nii.gz")
    displacement, affine = scan_displacement(field, here.chain, there.chain)
    like = (
        there.scan
        if displacement.shape[1:] == there.scan.shape
        else Volume(np.zeros(displacement.shape[1:], np.float32), affine)
    )
    warped = _pull(here.scan, displacement, affine)
    write_nifti(out / "warped_image.nii.gz", warped, like)
    dice_before, dice = np.array([]), np.array([])
    classes = len(project.table.names)
    if here.label is not None:
        label = Volume(here.chain.label_to_source(here.label), here.scan.affine)
        pulled = _pull(label, displacement, affine, nearest=True)
        write_nifti(out / "warped_label.nii.gz", project.table.to_source_ids(pulled), like)
        write_label_names(out, project.table)
        if there.label is not None:
            on_grid = warp_array(here.label, field, nearest=True)
            dice_before = dice_per_class(here.label, there.label, classes, "absent_in_either")
            dice = dice_per_class(on_grid, there.label, classes, "absent_in_either")
    regularity = jacobian_statistics(field)
    report = RegistrationReport(
        moving=moving,
        fixed=fixed,
        structures=list(project.table.names[1:]),
        dice_before=[None if np.isnan(v) else float(v) for v in dice_before],
        dice=[None if np.isnan(v) else float(v) for v in dice],
        std_jacobian=regularity.std,
        sdlogj_plus3=regularity.sdlogj_plus3,
        folded_percent=regularity.folded_percent,
        seconds=seconds,
    )
    write_text(out / "report.json", json.dumps(report.model_dump(), indent=1))
    return report


def propagate(project: Project, case_id: str, *, device: str = "auto") -> Prediction:
    """A draft for a case: the labelled cases registered to it, by weighted vote.

    Returns
    -------
    Prediction
        On the training grid, see :func:`napari_jrss.engine.predict.propagate_label`.
    """
    from napari_jrss.data.batches import CachedArrays
    from napari_jrss.engine.device import make_fabric
    from napari_jrss.engine.predict import propagate_label
    from napari_jrss.session.networks import load_registration

    entry = _teacher(project)
    torch_device = make_fabric(device).device
    network = load_registration(entry, torch_device)
    atlases = [case for case in project.snapshot().labelled if case != case_id]
    if not atlases:
        raise ProjectError(f"{project.path}: no labelled case to propagate from")
    arrays = CachedArrays(project.image, project.label)
    classes = len(project.table.names)
    return propagate_label(network, arrays, atlases, case_id, classes, torch_device)


def _teacher(project: Project) -> Round:
    entry = project.teacher
    if entry is None:
        raise ProjectError(f"{project.path}: has no trained networks yet (train)")
    return entry


def _side(project: Project, name: str) -> _Side:
    """A case of the project by its id, or a scan by its file."""
    cases = {case.case_id: case for case in project.cases()}
    if name in cases:
        attributes = project.attributes(name)
        version = cases[name].label_version
        return _Side(
            name,
            project.image(name),
            project.label(name) if version else None,
            attributes.chain,
            read_volume(Path(attributes.source)),
        )
    if not Path(name).exists():
        raise ProjectError(f"{name}: neither a case of {project.path} nor a file")
    volume = read_volume(Path(name))
    ready = preprocess(volume, None, project.preprocessing, project.grid)
    return _Side(name, ready.image, None, ready.chain, volume)


def _pull(
    moving: Volume,
    displacement: NDArray[np.float32],
    affine: NDArray[np.float64],
    nearest: bool = False,
) -> NDArray[np.generic]:
    """Resample a scan along a displacement in LPS mm (order x, y, z) on the grid of `affine`."""
    shape = displacement.shape[1:]
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    back = np.linalg.inv(moving.affine)
    start = back @ affine
    coordinates = [
        start[row, 0] * x
        + start[row, 1] * y
        + start[row, 2] * z
        + start[row, 3]
        + np.tensordot(back[row, :3], displacement, axes=1)
        for row in (2, 1, 0)
    ]
    order = 0 if nearest else 1
    array = moving.array if nearest else moving.array.astype(np.float32)
    warped: NDArray[np.generic] = ndimage.map_coordinates(array, coordinates, order=order)
    return warped


def _write_maps(prediction: Prediction, chain: Chain, scan: Volume, out: Path, name: str) -> None:
    maps = {"confidence": prediction.confidence, "uncertainty": prediction.uncertainty}
    for kind, values in maps.items():
        if values is not None:
            on_scan = chain.values_to_source(values.astype(np.float32))
            write_nifti(out / f"{name}_{kind}.nii.gz", on_scan, scan)


def _summary(
    scan: Path,
    path: Path,
    prediction: Prediction,
    chain: Chain,
    project: Project,
    seconds: float,
) -> SegmentedScan:
    counts = np.bincount(prediction.label.ravel(), minlength=len(project.table.names))[1:]
    voxel_ml = abs(float(np.linalg.det(chain.grid_affine[:3, :3]))) / 1000
    inside = prediction.label > 0
    return SegmentedScan(
        scan=scan,
        label=path,
        volumes_ml=tuple(float(count) * voxel_ml for count in counts),
        mean_confidence=(
            float(prediction.confidence[inside].mean(dtype=np.float64))
            if inside.any()
            else float("nan")
        ),
        seconds=seconds,
    )
