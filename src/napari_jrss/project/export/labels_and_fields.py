"""Labels, displacement fields and data sets out of a project, in each scan's own geometry.

Labels are NIfTI files on the grid of the scan they belong to, with its orientation, qform,
sform and zooms as in the source. Displacement fields are what ITK and ANTs read. Every file is
written aside and renamed; a data set is one folder that is there in full or not at all. What can't
be exported is refused by the call; an iterator that it returns writes.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.errors import ProjectError, from_os_error
from napari_jrss.geometry import LPS_FROM_RAS, rows, spacing_mm
from napari_jrss.io.atomic import sync_folder, sync_tree, temp_path, write_bytes, write_text
from napari_jrss.io.nifti import file_checksum, nifti_bytes, write_nifti
from napari_jrss.io.predictions import prediction_path, read_prediction
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import ScanHeader, Volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.case_store import DICOM_SOURCE, SUFFIX, CaseAttributes, write_scan
from napari_jrss.preprocess.transform import GridTransform
from napari_jrss.project.export.folder import ExportFolder
from napari_jrss.project.project import Project
from napari_jrss.project.records import Split
from napari_jrss.snapshot import Label

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries

ITK_SNAP_NAMES = "labels.txt"
SLICER_NAMES = "labels.ctbl"

# ITK refuses a direction matrix that is further from orthonormal than this.
_ORTHONORMAL = 1e-4


def label_bytes(label: Label, chain: GridTransform, table: LabelTable, path: Path) -> bytes:
    """A label of the training grid as a NIfTI file on its scan's own grid.

    Parameters
    ----------
    label
        Class indices (z, y, x) on the training grid.
    chain
        The scan's way to the training grid.
    table
        The classes. The file holds the ids of the files that the project was made from where
        each class has exactly one, else the class indices.
    path
        What the file is to be called; ends in .nii or .nii.gz.
    """
    return nifti_bytes(path, table.to_source_ids(chain.label_to_source(label)), _header(chain))


def label_names(table: LabelTable) -> dict[str, bytes]:
    """Files with the names and colours of exported labels for ITK-SNAP and for 3D Slicer.

    ``labels.txt`` is an ITK-SNAP label description (Segmentation > Import Label Descriptions),
    ``labels.ctbl`` a Slicer colour table, where a name can't hold spaces.
    """
    snap = [
        "################################################",
        "# ITK-SnAP Label Description File",
        "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
        "################################################",
    ]
    slicer = ["# Color table of napari-jrss", f"# {len(table.classes)} values"]
    for entry in table.classes:
        number = entry.source_ids[0] if table.one_to_one else entry.index
        red, green, blue = bytes.fromhex(entry.colour[1:])
        shown = int(entry.index > 0)
        name = " ".join(entry.name.replace('"', "'").split())
        snap.append(
            f"{number:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:2d} {shown:2d}    "
            f'"{name}"'
        )
        slicer.append(f"{number} {name.replace(' ', '_')} {red} {green} {blue} {255 * shown}")
    files = {ITK_SNAP_NAMES: snap, SLICER_NAMES: slicer}
    return {name: ("\n".join(lines) + "\n").encode() for name, lines in files.items()}


def export_labels(
    project: Project, folder: Path, case_ids: Sequence[str] | None = None
) -> Iterator[Path]:
    """Write the labels in force as ``<case_id>.nii.gz``, with their names; yield each file.

    Parameters
    ----------
    project
        May be open read-only.
    folder
        Made if it isn't there; what an earlier export wrote there is replaced.
    case_ids
        Which cases; None for all that have a label in force.

    Raises
    ------
    ProjectError
        A case that was named has no label, or the folder holds files of these names that no
        export wrote or that were edited since.
    """
    if case_ids is None:
        case_ids = [case.case_id for case in project.cases() if case.label_version]
    for case_id in case_ids:
        if project.case(case_id).label_version is None:
            raise ProjectError(f"{project.path}: case {case_id} has no label")
    return _export(project, folder, case_ids, project.label)


def export_predictions(project: Project, predictions: Path, folder: Path) -> Iterator[Path]:
    """Write a teacher's labels as ``<case_id>.nii.gz``, with their names; yield each file.

    Parameters
    ----------
    project
        May be open read-only.
    predictions
        Where a round keeps its predictions, see :mod:`napari_jrss.io.predictions`.
    folder
        Made if it isn't there; what an earlier export wrote there is replaced.

    Raises
    ------
    ProjectError
        The folder holds files of these names that no export wrote or that were edited since.
    """
    cases = [case.case_id for case in project.cases()]
    case_ids = [case for case in cases if prediction_path(predictions, case).exists()]
    return _export(project, folder, case_ids, lambda c: read_prediction(predictions, c).label)


def _export(
    project: Project, folder: Path, case_ids: Sequence[str], label: Callable[[str], Label]
) -> Iterator[Path]:
    names = label_names(project.table)
    files = {case_id: f"{case_id}.nii.gz" for case_id in case_ids}
    out = ExportFolder(folder, [*names, *files.values()])

    def write() -> Iterator[Path]:
        out.make()
        for name, content in names.items():
            out.write(name, content)
        for case_id, name in files.items():
            chain = project.attributes(case_id).chain
            content = label_bytes(label(case_id), chain, project.table, folder / name)
            yield out.write(name, content)

    return write()


def scan_displacement(
    field: NDArray[np.floating[Any]], moving: GridTransform, fixed: GridTransform
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A displacement field of the training grid between the two scans' own worlds.

    A point x of the fixed scan's world lies at p on the training grid, is moved there to
    p + u(p), and that is a point y of the moving scan's world, pre-alignment included. The
    result is y - x. Beyond the training grid u goes on with its value at the border.

    Parameters
    ----------
    field
        (3, z, y, x), voxels of the training grid, order z, y, x; fixed grid -> moving.
    moving, fixed
        The ways of the two scans to the training grid.

    Returns
    -------
    displacement
        float32 (3, z, y, x), LPS mm, order x, y, z, as ITK has it.
    affine
        4x4, voxel (x, y, z, 1) of the result -> LPS mm. The grid is the fixed scan's own; a
        sheared scan, which ITK can't place, gets an upright grid that covers it.
    """
    if field.shape != (3, *fixed.shape) or moving.shape != fixed.shape:
        raise ValueError(
            f"a field of {field.shape} for training grids of {moving.shape} and {fixed.shape}"
        )
    affine, shape = _itk_grid(np.array(fixed.source_affine), fixed.source_shape)
    to_training = np.linalg.inv(fixed.grid_affine) @ affine
    if fixed.copies and np.array_equal(affine, np.array(fixed.source_affine)):
        to_training = np.rint(to_training)  # no value is interpolated, so none is rounded
    linear, shift = to_training[2::-1, 2::-1], to_training[2::-1, 3]
    moved = np.stack(
        [
            ndimage.affine_transform(
                part.astype(np.float32), linear, shift, output_shape=shape, order=1, mode="nearest"
            )
            for part in field[::-1]
        ]
    )
    to_world = moving.grid_affine
    still = to_world @ to_training - affine  # y - x where u is zero
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    displacement = np.empty_like(moved)
    for row in range(3):
        a, b, c, d = still[row]
        displacement[row] = (a * x + b * y + c * z + d) + np.tensordot(
            to_world[row, :3], moved, axes=1
        )
    return displacement, affine


def export_displacement(
    field: NDArray[np.floating[Any]], moving: GridTransform, fixed: GridTransform, path: Path
) -> Path:
    """Write a displacement field as ITK and ANTs read it: NIfTI with 5 axes, vectors in LPS mm.

    Resampling the moving scan's own file with this transform onto the fixed scan's own file
    shows the registration, in SimpleITK
    ``DisplacementFieldTransform(ReadImage(path, sitkVectorFloat64))`` and in
    ``antsApplyTransforms -t path``.

    Parameters
    ----------
    field, moving, fixed
        See :func:`scan_displacement`.
    path
        Ends in .nii or .nii.gz.
    """
    return write_displacement(*scan_displacement(field, moving, fixed), path)


def write_displacement(
    displacement: NDArray[np.float32], affine: NDArray[np.float64], path: Path
) -> Path:
    """Write what :func:`scan_displacement` gives, see :func:`export_displacement`."""
    image = nib.Nifti1Image(displacement.transpose(3, 2, 1, 0)[:, :, :, None], None)
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    placed = LPS_FROM_RAS @ affine
    image.header.set_zooms((*spacing_mm(affine)[::-1], 1.0, 1.0))
    image.set_sform(placed, code=1)
    image.set_qform(placed, code=1)
    content = image.to_bytes()
    write_bytes(path, gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)
    return path


def export_ome_zarr(
    project: Project, folder: Path, dicom_source: Path | None = None
) -> Iterator[Path]:
    """Write each case with a label in force as ``<case_id>.ome.zarr``; yield each.

    The image is the scan with its own intensities, and the label's class indices bear their
    names and colours, both turned to LPS without interpolation.

    Parameters
    ----------
    project
        May be open read-only.
    folder
        Made if it isn't there.
    dicom_source
        Folder in which the series of DICOM cases are looked for.

    Raises
    ------
    ProjectError
        A file of such a name exists, or a scan is gone or has changed.
    """
    cases = [project.attributes(case.case_id) for case in project.cases() if case.label_version]
    sources = dicom_series(cases, dicom_source)
    out = ExportFolder(folder, ())
    paths = [folder / f"{case.case_id}{SUFFIX}" for case in cases]
    there = [path for path in paths if path.exists()]
    if there:
        more = f", and {len(there) - 1} more" if len(there) > 1 else ""
        raise ProjectError(
            f"{there[0]}: exists already{more}; move it away or export into another folder"
        )
    for attributes in cases:
        _source(attributes, sources)

    def write() -> Iterator[Path]:
        out.make()
        for attributes, path in zip(cases, paths, strict=True):
            scan = read_volume(_source(attributes, sources))
            label = attributes.chain.label_to_source(project.label(attributes.case_id))
            turned = scan.to_lps()
            x, y, z = (float(v) for v in turned.affine[:3, 3])
            try:
                yield write_scan(
                    path,
                    turned.array,
                    turned.spacing_mm,
                    (z, y, x),
                    {"label": Volume(label, scan.affine).to_lps().array},
                    project.table,
                    rows(turned.affine),
                )
            except OSError as error:
                reason = from_os_error(error)
                raise ProjectError(f"{path}: can't be written ({reason})") from error

    return write()


def export_dataset(
    project: Project,
    folder: Path,
    layout: Literal["nnunet", "decathlon"] = "nnunet",
    modality: str = "MRI",
    dicom_source: Path | None = None,
) -> Path:
    """Write the labelled set for other tools: dataset.json, imagesTr, labelsTr, imagesTs.

    Images are the scans as their files hold them; labels are class indices on the same grids.
    Test cases go to imagesTs without their labels.

    Parameters
    ----------
    project
        May be open read-only.
    folder
        Must not exist; nnU-Net wants it named such as ``Dataset001_Brain``.
    layout
        nnU-Net's (version 2) or the Medical Segmentation Decathlon's.
    modality
        What the scans are; nnU-Net normalises ``CT`` in its own way.
    dicom_source
        Folder in which the series of DICOM cases are looked for.

    Raises
    ------
    ProjectError
        The folder exists, no case is labelled, or a scan's file is gone or has changed.
    """
    cases = project.cases()
    training = [case.case_id for case in cases if case.labelled]
    testing = [case.case_id for case in cases if case.split is Split.TEST]
    names = ("background", *project.table.names[1:])
    if not training:
        raise ProjectError(f"{project.path}: has no labelled cases to export")
    if len(set(names)) < len(names):
        raise ProjectError(f"{project.path}: two classes share a name, which {layout} can't hold")
    if layout == "nnunet" and "ignore" in names:
        raise ProjectError(f"{project.path}: to nnU-Net 'ignore' is no class; rename it")
    if folder.exists():
        raise ProjectError(f"{folder}: exists already")
    sources = dicom_series([project.attributes(c) for c in (*training, *testing)], dicom_source)
    channel = "_0000" if layout == "nnunet" else ""
    temporary = temp_path(folder)
    try:
        for part in ("imagesTr", "labelsTr", "imagesTs"):
            (temporary / part).mkdir(parents=True)
        for part, case_ids in (("imagesTr", training), ("imagesTs", testing)):
            for case_id in case_ids:
                attributes = project.attributes(case_id)
                volume = read_volume(_source(attributes, sources))
                header = _header(attributes.chain)
                write_nifti(temporary / part / f"{case_id}{channel}.nii.gz", volume.array, header)
                if part == "imagesTr":
                    label = attributes.chain.label_to_source(project.label(case_id))
                    write_nifti(temporary / "labelsTr" / f"{case_id}.nii.gz", label, header)
        description: dict[str, Any] = {
            "name": folder.name,
            "description": "The labelled set of a napari-jrss project",
            "numTraining": len(training),
            "numTest": len(testing),
        }
        if layout == "nnunet":
            description |= {
                "channel_names": {"0": modality},
                "labels": {name: index for index, name in enumerate(names)},
                "file_ending": ".nii.gz",
            }
        else:
            description |= {
                "tensorImageSize": "3D",
                "modality": {"0": modality},
                "labels": {str(index): name for index, name in enumerate(names)},
                "training": [
                    {"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"}
                    for c in training
                ],
                "test": [f"./imagesTs/{c}.nii.gz" for c in testing],
            }
        write_text(temporary / "dataset.json", json.dumps(description, indent=2) + "\n")
        sync_tree(temporary)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise ProjectError(f"{folder}: can't be written ({from_os_error(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _header(chain: GridTransform) -> ScanHeader:
    return chain.header or ScanHeader.of_affine(np.array(chain.source_affine), chain.source_shape)


def dicom_series(cases: Sequence[CaseAttributes], folder: Path | None) -> dict[str, DicomSeries]:
    """The DICOM series of those cases that came from one, by case id, found in a folder."""
    wanted = [case.case_id for case in cases if case.source == DICOM_SOURCE]
    if not wanted:
        return {}
    if folder is None:
        raise ProjectError(
            f"case {wanted[0]} was made from DICOM, of which no path is kept: name the folder "
            "of its series"
        )
    from napari_jrss.project.relocate import find_dicom_sources

    return find_dicom_sources(folder, cases)


def _source(attributes: CaseAttributes, series: Mapping[str, DicomSeries]) -> Path | DicomSeries:
    """The file or series that a case was made from, if it is still there and still that scan."""
    if attributes.source == DICOM_SOURCE:
        if attributes.case_id not in series:
            raise ProjectError(
                f"the DICOM series of case {attributes.case_id} isn't in that folder"
            )
        return series[attributes.case_id]
    path = Path(attributes.source)
    try:
        checksum = file_checksum(path)
    except OSError as error:
        reason = from_os_error(error)
        raise ProjectError(
            f"{path}: the scan of case {attributes.case_id} can't be read ({reason}); "
            "'napari-jrss relink' finds scans that were moved"
        ) from error
    if checksum != attributes.checksum:
        raise ProjectError(
            f"{path}: isn't the scan any more that case {attributes.case_id} was made from"
        )
    return path


def _itk_grid(
    affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """The grid itself if its axes are at right angles, else an upright one that covers it."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / steps
    if np.abs(direction.T @ direction - np.eye(3)).max() < _ORTHONORMAL:
        return affine, shape
    ends = np.array(shape[::-1]) - 1.0
    corners = np.stack(np.meshgrid(*((0, end) for end in ends), indexing="ij"), -1).reshape(-1, 3)
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    step = float(steps.min())
    upright = np.diag([step, step, step, 1.0])
    upright[:3, 3] = world.min(0)
    x, y, z = (int(n) + 1 for n in np.ceil(np.ptp(world, axis=0) / step))
    return upright, (z, y, x)
