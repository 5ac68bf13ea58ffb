"""The current networks at work on scans: segment new ones, register a pair, propagate labels."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from napari_jrss.data.atomic import write_text
from napari_jrss.data.batches import Image, Label
from napari_jrss.data.chain import Chain
from napari_jrss.data.layouts import stem
from napari_jrss.data.preprocess import preprocess
from napari_jrss.data.store import DICOM_SOURCE
from napari_jrss.data.volume import (
    ScanError,
    Volume,
    dicom_series_of,
    nifti_bytes,
    read_volume,
    voxel_ml,
    write_nifti,
)
from napari_jrss.metrics import dice_per_class, jacobian_statistics
from napari_jrss.project.dicom_seg import require_outside, segmentation_bytes
from napari_jrss.project.errors import ProjectError
from napari_jrss.project.export import (
    label_bytes,
    label_names,
    scan_displacement,
    write_displacement,
)
from napari_jrss.project.exported import ExportFolder
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round
from napari_jrss.session.pair_views import folded_in_structures, jacobian_map

if TYPE_CHECKING:
    from torch import device as Device
    from torch.nn import Module

    from napari_jrss.data.labels import LabelTable
    from napari_jrss.data.predictions import Prediction
    from napari_jrss.engine.predict import RegisteredPair
    from napari_jrss.engine.refine import Watch


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


class RegistrationReport(BaseModel):
    """Figures of one registered pair; Dice per structure where both sides have labels.

    Residuals are root mean square differences of the two normalised images, whose standard
    deviation is 1, before and after the registration. The folds in each structure of the warped
    label, in % of its voxels, say which of them not to trust. `refined` is whether the network's
    field was improved on the pair.
    """

    model_config = ConfigDict(frozen=True)
    moving: str
    fixed: str
    structures: list[str]
    dice_before: list[float | None]
    dice: list[float | None]
    residual_before: float
    residual: float
    std_jacobian: float
    sdlogj_plus3: float
    folded_percent: float
    folded_in_structures: list[float | None]
    seconds: float
    refined: bool = False

    @property
    def mean_dice(self) -> float | None:
        """Mean over the structures that both sides have; None without any."""
        return _mean(self.dice)

    @property
    def mean_dice_before(self) -> float | None:
        """The same before the registration."""
        return _mean(self.dice_before)


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a pair on the training grid, and where the scan itself is."""

    name: str
    image: Image
    label: Label | None
    chain: Chain
    scan: Path | Volume

    def volume(self) -> Volume:
        """The scan itself, read if it is a file."""
        if isinstance(self.scan, Volume):
            return self.scan
        self.require_scan()
        return read_volume(self.scan)

    def require_scan(self) -> None:
        """Raise a ProjectError if the scan's file isn't where it was."""
        if isinstance(self.scan, Path) and not self.scan.exists():
            raise ProjectError(
                f"{self.scan}: the scan of {self.name} isn't there any more; "
                "'napari-jrss relink' finds scans that were moved"
            )


@dataclass(frozen=True, eq=False)
class Pair:
    """A moving side registered to a fixed one, in memory, with its figures."""

    moving: Side
    fixed: Side
    registered: RegisteredPair
    report: RegistrationReport


@dataclass(frozen=True, eq=False)
class ScanWarp:
    """A registered pair on the fixed scan's own grid.

    Attributes
    ----------
    displacement
        float32 (3, z, y, x), LPS mm, order x, y, z, see :func:`scan_displacement`.
    affine
        4x4, voxel (x, y, z, 1) of these arrays -> LPS mm.
    image
        The moving scan, (z, y, x), linearly interpolated.
    label
        Its label as class indices, if it has one.
    """

    displacement: NDArray[np.float32]
    affine: NDArray[np.float64]
    image: NDArray[np.float32]
    label: Label | None


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
        See :func:`napari_jrss.engine.device.make_fabric`.

    Raises
    ------
    ProjectError
        Without a teacher, if two scans would write the same files, or if a label is there that no
        export wrote or that was edited since.
    """
    from napari_jrss.engine.device import make_fabric
    from napari_jrss.session.networks import load_student, load_teacher

    entry = _teacher(project)
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
    teacher = load_teacher(entry, torch_device)
    student = load_student(entry, torch_device) if maps else None
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
    from napari_jrss.engine.predict import predict_case

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


def register_pair(
    project: Project,
    moving: str,
    fixed: str,
    out: Path,
    *,
    refine: Watch | None = None,
    device: str = "auto",
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
        Case ids, NIfTI files or folders of a DICOM series.
    out
        Folder to write to; made if missing.
    refine, device
        See :func:`registration_network`.
    """
    network, torch_device = registration_network(project, device, refine)
    here, there = read_side(project, moving), read_side(project, fixed)
    for side in (here, there):
        side.require_scan()
    pair = register_sides(network, here, there, project.table.names, torch_device)
    write_pair(pair, project.table, out)
    return pair.report


def registration_network(
    project: Project, device: str = "auto", refine: Watch | None = None
) -> tuple[Module, Device]:
    """The current registration network and the device that it was put on.

    Parameters
    ----------
    project
        With trained networks.
    device
        See :func:`napari_jrss.engine.device.make_fabric`.
    refine
        Given, each field is improved on its pair while this watches, see
        :mod:`napari_jrss.engine.refine`.
    """
    from napari_jrss.engine.device import make_fabric
    from napari_jrss.session.networks import load_refined, load_registration

    entry = _teacher(project)
    torch_device = make_fabric(device).device
    if refine is None:
        return load_registration(entry, torch_device), torch_device
    return load_refined(entry, torch_device, refine), torch_device


def register_sides(
    network: Module, moving: Side, fixed: Side, names: Sequence[str], device: Device
) -> Pair:
    """Register one side to another, in memory.

    Parameters
    ----------
    network
        See :func:`registration_network`.
    moving, fixed
        See :func:`read_side`.
    names
        Of the C classes, background first.
    device
        Where the network is.
    """
    from napari_jrss.engine.predict import displacement_field, follow
    from napari_jrss.engine.refine import RefinedRegistration

    started = time.perf_counter()
    field = displacement_field(network, moving.image, fixed.image, device)
    seconds = time.perf_counter() - started
    registered = follow(field, moving.image, moving.label)
    regularity = jacobian_statistics(field)
    label = registered.label
    folds = (
        [] if label is None else folded_in_structures(jacobian_map(field) <= 0, label, len(names))
    )

    def dice(label: Label | None) -> list[float | None]:
        if label is None or fixed.label is None:
            return []
        values = dice_per_class(label, fixed.label, len(names), "absent_in_either")
        return [None if np.isnan(value) else float(value) for value in values]

    report = RegistrationReport(
        moving=moving.name,
        fixed=fixed.name,
        structures=list(names[1:]),
        dice_before=dice(moving.label),
        dice=dice(registered.label),
        residual_before=_residual(moving.image, fixed.image),
        residual=_residual(registered.image, fixed.image),
        std_jacobian=regularity.std,
        sdlogj_plus3=regularity.sdlogj_plus3,
        folded_percent=regularity.folded_percent,
        folded_in_structures=folds,
        seconds=seconds,
        refined=isinstance(network, RefinedRegistration),
    )
    return Pair(moving, fixed, registered, report)


def on_fixed_scan(pair: Pair) -> ScanWarp:
    """Warp the moving scan itself onto the fixed scan's own grid."""
    here, chain = pair.moving, pair.moving.chain
    displacement, affine = scan_displacement(pair.registered.field, chain, pair.fixed.chain)
    scan = here.volume()
    label = None
    if here.label is not None:
        on_scan = Volume(chain.label_to_source(here.label), scan.affine)
        label = _pull(on_scan, displacement, affine, nearest=True)
    return ScanWarp(displacement, affine, _pull(scan, displacement, affine), label)


def write_pair(pair: Pair, table: LabelTable, out: Path) -> list[Path]:
    """Write what :func:`register_pair` says; the files.

    ``displacement.nii.gz`` is a transform for SimpleITK too:
    ``DisplacementFieldTransform(ReadImage(path, sitkVectorFloat64))``.
    """
    about = label_names(table) if pair.moving.label is not None else {}
    folder = ExportFolder(out, [*about, "warped_label.nii.gz"] if about else [])
    files = [out / "displacement.nii.gz", out / "warped_image.nii.gz", out / "report.json"]
    warp, scan = on_fixed_scan(pair), pair.fixed.volume()
    folder.make()
    write_displacement(warp.displacement, warp.affine, files[0])
    shape = warp.image.shape
    like = scan if shape == scan.shape else Volume(np.zeros(shape, np.float32), warp.affine)
    write_nifti(files[1], warp.image, like)
    if warp.label is not None:
        ids = table.to_source_ids(warp.label)
        content = nifti_bytes(out / "warped_label.nii.gz", ids, like)
        files.append(folder.write("warped_label.nii.gz", content))
        for file, content in about.items():
            folder.write(file, content)
    write_text(files[2], json.dumps(pair.report.model_dump(), indent=1))
    return files


def propagate(project: Project, case_id: str, *, device: str = "auto") -> Prediction:
    """A draft for a case: the labelled cases registered to it, by weighted vote.

    Returns
    -------
    Prediction
        On the training grid, see :class:`napari_jrss.engine.predict.Votes`.
    """
    *_, draft = register_labelled(project, case_id, device=device)
    assert not isinstance(draft, RegistrationReport)
    return draft


def register_labelled(
    project: Project, case_id: str, *, refine: Watch | None = None, device: str = "auto"
) -> Iterator[RegistrationReport | Prediction]:
    """Register every other labelled case to a case.

    Yields
    ------
    RegistrationReport, Prediction
        The figures of each pair as it comes; last, the draft that all of them vote for.
    """
    from napari_jrss.engine.predict import Votes

    network, torch_device = registration_network(project, device, refine)
    atlases = [case for case in project.snapshot().labelled if case != case_id]
    if not atlases:
        raise ProjectError(f"{project.path}: no other labelled case to propagate from")
    names = project.table.names
    fixed = read_side(project, case_id)
    votes = Votes(fixed.image, len(names))
    for atlas in atlases:
        pair = register_sides(network, read_side(project, atlas), fixed, names, torch_device)
        votes.add(pair.registered)
        yield pair.report
    yield votes.prediction()


def read_side(project: Project, name: str) -> Side:
    """A case of the project by its id, or a scan by its file."""
    cases = {case.case_id: case for case in project.cases()}
    if name in cases:
        attributes = project.attributes(name)
        label = project.label(name) if cases[name].label_version else None
        image, chain = project.image(name), attributes.chain
        scan: Path | Volume = Path(attributes.source)
        if attributes.source == DICOM_SOURCE:
            # No path to it is kept: what the project holds of it, on its own grid, has to do.
            scan = Volume(chain.image_to_source(image), np.array(chain.source_affine))
        return Side(name, image, label, chain, scan)
    if not Path(name).exists():
        raise ProjectError(f"{name}: neither a case of {project.path} nor a file")
    return prepare_side(project, name, read_volume(Path(name)))


def prepare_side(project: Project, name: str, volume: Volume) -> Side:
    """A volume that is no case, brought to the training grid as the cases were."""
    ready = preprocess(volume, None, project.preprocessing, project.grid)
    return Side(name, ready.image, None, ready.chain, volume)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _residual(image: Image, fixed: Image) -> float:
    return float(np.sqrt(np.mean((image - fixed) ** 2, dtype=np.float64)))


def _teacher(project: Project) -> Round:
    entry = project.teacher
    if entry is None:
        raise ProjectError(f"{project.path}: has no trained networks yet (train)")
    return entry


def _pull(
    moving: Volume,
    displacement: NDArray[np.float32],
    affine: NDArray[np.float64],
    nearest: bool = False,
) -> NDArray[Any]:
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
    # as ITK does: a voxel reaches half a voxel beyond its centre, and further out is nothing
    warped: NDArray[Any] = ndimage.map_coordinates(array, coordinates, order=order, mode="nearest")
    for along, size in zip(coordinates, array.shape, strict=True):
        warped[(along < -0.5) | (along >= size - 0.5)] = 0
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


def mean_confidence(prediction: Prediction, chain: Chain) -> float | None:
    """Mean probability of the structures' voxels in the scan; None where there are none."""
    found = prediction.confidence[(prediction.label > 0) & chain.inside_scan()]
    return float(found.mean(dtype=np.float64)) if found.size else None
