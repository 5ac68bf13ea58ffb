"""Labels out of a project: NIfTI files, each on the grid of the scan that it belongs to.

A file has the orientation, qform, sform and zooms of its scan. What can't be exported is refused
by the call; the iterator that it returns writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from napari_jrss.errors import ProjectError
from napari_jrss.geometry import Matrix, leans
from napari_jrss.io.nifti import nifti_bytes
from napari_jrss.io.other_formats import label_ending, label_file
from napari_jrss.io.volume import ScanHeader
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.transform import GridTransform
from napari_jrss.project.export.folder import ExportFolder
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Label

ITK_SNAP_NAMES = "labels.txt"
SLICER_NAMES = "labels.ctbl"


def label_bytes(
    label: Label,
    transform: GridTransform,
    table: LabelTable,
    path: Path,
    dtype: str | None = None,
) -> bytes:
    """A label as a file on its scan's own grid.

    Parameters
    ----------
    label
        Class indices (z, y, x) on the scan's own voxels, turned to LPS.
    transform
        The scan's way to the training grid.
    table
        The classes. The file holds the ids of the files that the project was made from where
        each class has exactly one, else the class indices.
    path
        What the file is to be called; the ending decides its format, see :func:`ending_for`.
    dtype
        Type of the file's voxels; None, or one that can't hold the ids: the smallest that can.
    """
    ids = table.to_source_ids(transform.turn_to_source(label))
    if dtype is not None and np.can_cast(ids.dtype, dtype, "same_kind"):
        typed = ids.astype(dtype)
        ids = typed if np.array_equal(typed, ids) else ids
    if path.name.endswith((".nii", ".nii.gz")):
        return nifti_bytes(path, ids, scan_header(transform))
    names = {
        c.source_ids[0] if table.one_to_one else c.index: (c.name, c.colour)
        for c in table.classes[1:]
    }
    return label_file(path, ids, np.array(transform.source_affine), names)


def ending_for(source: str, label_source: str | None, affine: Matrix) -> str:
    """The ending of a label's file: as its source, or .nii.gz where that can't hold its grid."""
    ending = label_ending(source, label_source)
    return ".nii.gz" if leans(affine) and ending != ".mgz" else ending


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


def export_label_files(
    project: Project, folder: Path, case_ids: Sequence[str] | None = None
) -> Iterator[Path]:
    """Write the labels in force as ``<case_id>.nii.gz``, with their names; yield each file.

    What an earlier export wrote is replaced. Without `case_ids`, all cases with a label are
    written. A :class:`ProjectError` if a named case has none, or the folder holds files of these
    names that no export wrote or that were edited since.
    """
    if case_ids is None:
        case_ids = [case.case_id for case in project.cases() if case.label_version]
    for case_id in case_ids:
        if project.case(case_id).label_version is None:
            raise ProjectError(f"{project.path}: case {case_id} has no label")
    return export_drawn_files(project, folder, case_ids, project.scan_label)


def export_drawn_files(
    project: Project, folder: Path, case_ids: Sequence[str], scan_label: Callable[[str], Label]
) -> Iterator[Path]:
    """As :func:`export_label_files`, for any labels of cases.

    `scan_label` gives that of a case on the scan's own voxels, turned to LPS, when it is written.
    """
    names = label_names(project.table)
    about = {case_id: project.attributes(case_id) for case_id in case_ids}
    files = {
        case_id: case_id + ending_for(a.source, a.label_source, np.array(a.transform.source_affine))
        for case_id, a in about.items()
    }
    out = ExportFolder(folder, [*names, *files.values()])

    def write() -> Iterator[Path]:
        out.make()
        for name, content in names.items():
            out.write(name, content)
        for case_id, name in files.items():
            one, label = about[case_id], scan_label(case_id)
            content = label_bytes(
                label, one.transform, project.table, folder / name, one.label_dtype
            )
            yield out.write(name, content)

    return write()


def scan_header(transform: GridTransform) -> ScanHeader:
    """The header of a case's scan; of a DICOM series, one with its geometry."""
    return transform.header or ScanHeader.of_affine(
        np.array(transform.source_affine), transform.source_shape
    )
