"""Labels as DICOM Segmentation objects beside the series that the scans came from.

A DICOM SEG refers to the images that it was drawn on and repeats their patient and study, so it
needs the source series and holds what they say of the patient: it is written outside the project.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_jrss import __version__
from napari_jrss.data.atomic import write_bytes
from napari_jrss.data.batches import Label
from napari_jrss.data.chain import Chain
from napari_jrss.data.labels import LabelTable
from napari_jrss.data.predictions import prediction_path, read_prediction
from napari_jrss.data.store import DICOM_SOURCE
from napari_jrss.project.errors import ProjectError
from napari_jrss.project.export import dicom_series
from napari_jrss.project.ledger import Status
from napari_jrss.project.project import Project

if TYPE_CHECKING:
    import pydicom

    from napari_jrss.data.dicom import DicomSeries

# Attributes that every object has and that may be empty (type 2): anonymising often removes
# them, and a SEG without them would be refused.
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "StudyID", "PositionReferenceIndicator"),
)
_ALGORITHM = {
    Status.MANUAL: "MANUAL",
    Status.CORRECTED: "SEMIAUTOMATIC",
    Status.ACCEPTED: "AUTOMATIC",
}


def export_segmentations(
    project: Project, folder: Path, dicom_source: Path, predictions: Path | None = None
) -> Iterator[Path]:
    """Write the labels of DICOM cases as ``<case_id>.dcm``; yield each file.

    Parameters
    ----------
    project
        May be open read-only.
    folder
        Outside the project. Made if it isn't there; files of these names are replaced.
    dicom_source
        Folder in which the series of the cases are looked for.
    predictions
        Where a round keeps its predictions; none: the labels in force.

    Raises
    ------
    ProjectError
        No case came from DICOM, a series isn't in that folder, or `folder` lies in the project.
    """
    require_outside(project, folder)
    cases = [project.attributes(case.case_id) for case in project.cases()]
    cases = [case for case in cases if case.source == DICOM_SOURCE]
    if not cases:
        raise ProjectError(f"{project.path}: has no case that was made from DICOM")
    drawn: dict[str, tuple[Label, str]] = {}
    for case in cases:
        in_force = project.case(case.case_id).label_version
        if predictions is not None and prediction_path(predictions, case.case_id).exists():
            drawn[case.case_id] = read_prediction(predictions, case.case_id).label, "AUTOMATIC"
        elif predictions is None and in_force is not None:
            status = next(
                v.status for v in project.label_versions(case.case_id) if v.version == in_force
            )
            drawn[case.case_id] = project.label(case.case_id), _ALGORITHM[status]
    cases = [case for case in cases if case.case_id in drawn]
    series = dicom_series(cases, dicom_source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProjectError(f"{folder}: can't be made ({error.strerror})") from error
    for case in cases:
        if case.case_id not in series:
            raise ProjectError(f"{dicom_source}: doesn't hold the series of case {case.case_id}")
        label, made_by = drawn[case.case_id]
        yield export_segmentation(
            label,
            case.chain,
            project.table,
            series[case.case_id],
            folder / f"{case.case_id}.dcm",
            made_by,
        )


def require_outside(project: Project, folder: Path) -> None:
    """Raise a ProjectError if a folder for files that name a patient lies in the project."""
    if folder.resolve().is_relative_to(project.path.resolve()):
        raise ProjectError(f"{folder}: lies in the project, which holds no patient's identity")


def export_segmentation(
    label: Label,
    chain: Chain,
    table: LabelTable,
    series: DicomSeries,
    path: Path,
    made_by: str = "AUTOMATIC",
) -> Path:
    """Write a label of the training grid as a DICOM SEG on the series that it was drawn on.

    Each class but the background is a segment of the same number, with its name and colour, and
    the code ``(number, 99JRSS, name)``, since no coding scheme is known to hold it.

    Parameters
    ----------
    label
        Class indices (z, y, x) on the training grid.
    chain
        The scan's way to the training grid.
    table
        The classes.
    series
        The scan's series.
    path
        The file.
    made_by
        ``MANUAL``, ``SEMIAUTOMATIC`` or ``AUTOMATIC``.

    Raises
    ------
    ProjectError
        The series can't be referred to: it lacks attributes, or lies in several files of
        several frames each.
    """
    on_scan = chain.label_to_source(label)
    if on_scan.shape != series.shape:
        raise ValueError(f"a label of {on_scan.shape} for a series of {series.shape}")
    try:
        with warnings.catch_warnings():
            # What the source's headers break of the standard is not this label's doing.
            warnings.simplefilter("ignore")
            images = [_source(file) for file in series.files]
            content = _segmentation(images, _frames(on_scan, series, images), table, made_by)
    except ProjectError as error:
        raise ProjectError(f"{path.name}: {error}") from error
    # highdicom and the source's headers: whatever they lack, it is this series that can't be used.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ProjectError(
            f"{path.name}: no DICOM SEG for this series ({type(error).__name__}: {reason})"
        ) from error
    write_bytes(path, content)
    return path


def _source(file: Path) -> pydicom.Dataset:
    import pydicom

    image = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    for name in _MAY_BE_EMPTY:
        if name not in image:
            setattr(image, name, "")
    if not image.get("FrameOfReferenceUID"):
        raise ProjectError("its series names no frame of reference, which a DICOM SEG needs")
    return image


def _frames(
    on_scan: NDArray[Any], series: DicomSeries, images: list[pydicom.Dataset]
) -> NDArray[Any]:
    """The label's slices as the images' frames follow each other."""
    if "NumberOfFrames" not in images[0]:
        return on_scan
    if len(images) > 1:
        raise ProjectError("a DICOM SEG can't refer to several files of several frames each")
    count = int(images[0].NumberOfFrames)
    frames = np.zeros((count, *on_scan.shape[1:]), on_scan.dtype)
    for drawn, image in zip(on_scan, series.slices, strict=True):
        frames[image.number] = drawn
    return frames


def _segmentation(
    images: list[pydicom.Dataset], frames: NDArray[Any], table: LabelTable, made_by: str
) -> bytes:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = None
    if made_by != "MANUAL":
        algorithm = hd.AlgorithmIdentificationSequence(
            name="napari-jrss", version=__version__, family=codes.cid7162.ArtificialIntelligence
        )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=c.index,
            segment_label=c.name[:64],
            segmented_property_category=codes.cid7150.AnatomicalStructure,
            segmented_property_type=hd.sr.CodedConcept(str(c.index), "99JRSS", c.name[:64]),
            algorithm_type=made_by,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*bytes.fromhex(c.colour[1:])),
        )
        for c in table.classes[1:]
    ]
    segmentation = hd.seg.Segmentation(
        source_images=images,
        pixel_array=frames,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=999,
        series_description="napari-jrss labels",
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="napari-jrss",
        manufacturer_model_name="napari-jrss",
        software_versions=__version__,
        device_serial_number="none",
        content_label="LABELS",
    )
    with BytesIO() as file:
        segmentation.save_as(file)
        return file.getvalue()
