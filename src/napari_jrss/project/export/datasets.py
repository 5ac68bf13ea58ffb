"""Scans with their labels out of a project: OME-Zarr, and data sets for other tools.

What can't be exported is refused by the call; an iterator that it returns writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_jrss.errors import ProjectError, from_os_error
from napari_jrss.geometry import rows
from napari_jrss.io.atomic import new_folder, write_text
from napari_jrss.io.found import Part
from napari_jrss.io.nifti import file_checksum, write_nifti
from napari_jrss.io.ome_zarr_writer import SUFFIX, write_scan
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.labels import IGNORED
from napari_jrss.preprocess.case_attributes import (
    DICOM_SOURCE,
    CaseAttributes,
    ChannelAttributes,
)
from napari_jrss.preprocess.resample import resample_image
from napari_jrss.project.export.folder import ExportFolder
from napari_jrss.project.export.labels import scan_header
from napari_jrss.project.project import Project
from napari_jrss.project.records import Split

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries

# Headers keep 32-bit numbers: no voxel of two images on the same ones lies further apart.
_SAME_VOXELS = 0.05


def export_ome_zarr(
    project: Project, folder: Path, dicom_source: Path | None = None
) -> Iterator[Path]:
    """Write each case with a label in force as ``<case_id>.ome.zarr``; yield each.

    The image is the scan with its own intensities, and the label's class indices bear their names
    and colours, both turned to LPS without interpolation. The series of DICOM cases are looked for
    in `dicom_source`. A :class:`ProjectError` if a file of such a name exists, or a scan is gone or
    has changed.
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
        _source(attributes.case_id, attributes, sources)

    def write() -> Iterator[Path]:
        out.make()
        for attributes, path in zip(cases, paths, strict=True):
            scan = read_volume(_source(attributes.case_id, attributes, sources))
            turned = scan.to_lps()
            x, y, z = (float(v) for v in turned.affine[:3, 3])
            try:
                yield write_scan(
                    path,
                    turned.array,
                    turned.spacing_mm,
                    (z, y, x),
                    {"label": project.scan_label(attributes.case_id)},
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

    Images are the scans as their files hold them; labels are class indices on the same grids. Test
    cases go to imagesTs without their labels. Where cases have several images, nnU-Net's form has
    all of them, on the voxels of the first, and the Decathlon's the first. A :class:`ProjectError`
    if the folder exists, no case is labelled, or a scan's file is gone or has changed.

    Parameters
    ----------
    folder
        A new one; nnU-Net wants it named such as ``Dataset001_Brain``.
    layout
        nnU-Net's (version 2) or the Medical Segmentation Decathlon's.
    modality
        What the scans are; nnU-Net normalises ``CT`` in its own way. Several images of a case have
        their own names.
    dicom_source
        Folder in which the series of DICOM cases are looked for.
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
        raise ProjectError(
            f"{project.path}: nnU-Net reserves the name 'ignore'; rename the structure"
        )
    if folder.exists():
        raise ProjectError(f"{folder}: exists already")
    sources = dicom_series([project.attributes(c) for c in (*training, *testing)], dicom_source)
    channel = "_0000" if layout == "nnunet" else ""
    images = project.channels or (modality,)
    further = len(images) - 1 if layout == "nnunet" else 0
    description: dict[str, Any] = {
        "name": folder.name,
        "description": "The labelled set of a napari-jrss project",
        "numTraining": len(training),
        "numTest": len(testing),
    }
    if layout == "nnunet":
        description |= {
            "channel_names": {str(n): name for n, name in enumerate(images)},
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
    table, ignored = project.table, len(names)
    if layout == "nnunet" and table.ignored_id is not None:
        description["labels"]["ignore"] = ignored  # nnU-Net wants it to be the highest
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as out:
            for part in ("imagesTr", "labelsTr", "imagesTs"):
                (out / part).mkdir(parents=True)
            for part, case_ids in (("imagesTr", training), ("imagesTs", testing)):
                for case_id in case_ids:
                    attributes = project.attributes(case_id)
                    volume = read_volume(_source(case_id, attributes, sources))
                    header = scan_header(attributes.transform)
                    write_nifti(out / part / f"{case_id}{channel}.nii.gz", volume.array, header)
                    for number, other in enumerate(attributes.channels[:further], start=1):
                        scan = _source(f"{case_id}/{other.name}", other, sources)
                        image = _on_voxels_of(volume, read_volume(scan))
                        file = out / part / f"{case_id}_{number:04d}.nii.gz"
                        write_nifti(file, image, header)
                    if part == "imagesTr":
                        label = attributes.transform.turn_to_source(project.scan_label(case_id))
                        label = np.where(label == IGNORED, ignored, label).astype(label.dtype)
                        write_nifti(out / "labelsTr" / f"{case_id}.nii.gz", label, header)
            write_text(out / "dataset.json", json.dumps(description, indent=2) + "\n")
    except OSError as error:
        raise ProjectError(f"{folder}: can't be written ({from_os_error(error)})") from error
    return folder


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


def _on_voxels_of(first: Volume, other: Volume) -> NDArray[np.float32]:
    """Another image of a case (z, y, x) on the voxels of its first, as nnU-Net wants it.

    On the same voxels, whatever the order of their axes, nothing is interpolated.
    """
    matrix = np.linalg.inv(other.affine) @ first.affine
    whole = np.rint(matrix)
    if np.abs(matrix - whole).max() * max(first.shape) < _SAME_VOXELS:
        matrix = whole
    return resample_image(other.array, matrix, first.shape, float(other.array.min()))


def _source(
    case_id: str,
    attributes: CaseAttributes | ChannelAttributes,
    series: Mapping[str, DicomSeries],
) -> Path | Part | DicomSeries:
    """The file or series of a case's image, if it is still there and still that image.

    `case_id` is followed by the image's name for a further image, as in `series`.
    """
    if attributes.source == DICOM_SOURCE:
        if case_id not in series:
            raise ProjectError(f"the DICOM series of case {case_id} isn't in that folder")
        return series[case_id]
    path = Path(attributes.source)
    try:
        checksum = file_checksum(path)
    except OSError as error:
        reason = from_os_error(error)
        raise ProjectError(
            f"{path}: the scan of case {case_id} can't be read ({reason}); "
            "'napari-jrss relink' finds scans that were moved"
        ) from error
    if checksum != attributes.checksum:
        raise ProjectError(f"{path}: has changed since case {case_id} was made from it")
    return path if attributes.part is None else Part(path, attributes.part - 1)
