"""Labels as DICOM Segmentation objects beside the series that the scans came from.

A DICOM SEG refers to the images that it was drawn on and repeats their patient and study, so it
needs the source series and holds what they say of the patient: it is written outside the project.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_jrss import __version__
from napari_jrss.errors import ProjectError
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.case_attributes import DICOM_SOURCE
from napari_jrss.preprocess.transform import GridTransform
from napari_jrss.project.export.datasets import dicom_series
from napari_jrss.project.export.folder import ExportFolder
from napari_jrss.project.project import Project
from napari_jrss.project.records import Status
from napari_jrss.snapshot import Label

if TYPE_CHECKING:
    import pydicom

    from napari_jrss.io.dicom import DicomSeries

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
    project: Project,
    folder: Path,
    dicom_source: Path,
    predicted: Mapping[str, Callable[[], Label]] | None = None,
) -> Iterator[Path]:
    """Write the labels of DICOM cases as ``<case_id>.dcm``; yield each file.

    They are those in force, or what a teacher `predicted`: by case, what gives the label on the
    scan's own voxels, turned to LPS. The series are looked for in `dicom_source`. What an earlier
    export wrote is replaced. What can't be exported is refused by the call, and the iterator
    writes. A :class:`ProjectError` if no case came from DICOM, a series isn't there or can't be
    referred to, `folder` lies in the project, or it holds files of these names that no export
    wrote or that were edited since.
    """
    require_outside(project, folder)
    cases = [project.attributes(case.case_id) for case in project.cases()]
    cases = [case for case in cases if case.source == DICOM_SOURCE]
    if not cases:
        raise ProjectError(f"{project.path}: has no case that was made from DICOM")
    if predicted is None:
        cases = [case for case in cases if project.case(case.case_id).label_version]
    else:
        cases = [case for case in cases if case.case_id in predicted]
    out = ExportFolder(folder, [f"{case.case_id}.dcm" for case in cases])
    series = dicom_series(cases, dicom_source)
    for case in cases:
        if case.case_id not in series:
            raise ProjectError(f"{dicom_source}: doesn't hold the series of case {case.case_id}")
        with _one_line(f"{case.case_id}.dcm"):
            _images(series[case.case_id])

    def write() -> Iterator[Path]:
        out.make()
        for case in cases:
            case_id, name = case.case_id, f"{case.case_id}.dcm"
            if predicted is None:
                label, made_by = project.scan_label(case_id), _made_by(project, case_id)
            else:
                label, made_by = predicted[case_id](), "AUTOMATIC"
            content = segmentation_bytes(
                label, case.transform, project.table, series[case_id], name, made_by
            )
            yield out.write(name, content)

    return write()


def _made_by(project: Project, case_id: str) -> str:
    in_force = project.case(case_id).label_version
    versions = project.label_versions(case_id)
    return _ALGORITHM[next(v.status for v in versions if v.version == in_force)]


def require_outside(project: Project, folder: Path) -> None:
    """Raise a ProjectError if a folder for files that name a patient lies in the project."""
    if folder.resolve().is_relative_to(project.path.resolve()):
        raise ProjectError(f"{folder}: lies in the project, which holds no patient's identity")


def segmentation_bytes(
    label: Label,
    transform: GridTransform,
    table: LabelTable,
    series: DicomSeries,
    name: str,
    made_by: str = "AUTOMATIC",
) -> bytes:
    """A label as a DICOM SEG on the series that it was drawn on.

    Each class but the background is a segment of the same number, with its name and colour, and
    the code ``(number, 99JRSS, name)``, since no coding scheme is known to hold it.

    Parameters
    ----------
    label
        Class indices (z, y, x) on the scan's own voxels, turned to LPS.
    transform
        The scan's way to the training grid.
    table
        The classes.
    series
        The scan's series.
    name
        What the file is to be called.
    made_by
        ``MANUAL``, ``SEMIAUTOMATIC`` or ``AUTOMATIC``.

    Raises
    ------
    ProjectError
        The series can't be referred to: it lacks attributes, or lies in several files of
        several frames each.
    """
    on_scan = transform.turn_to_source(label)
    if on_scan.shape != series.shape:
        raise ValueError(f"a label of {on_scan.shape} for a series of {series.shape}")
    with _one_line(name):
        images = _images(series)
        return _segmentation(images, _frames(on_scan, series, images), table, made_by)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Raise any error as a ProjectError in one line that names the file."""
    try:
        with warnings.catch_warnings():
            # Warnings about the headers of the source say nothing about the label.
            warnings.simplefilter("ignore")
            yield
    except ProjectError as error:
        raise ProjectError(f"{name}: {error}") from error
    # highdicom raises many kinds of errors when a header of the source lacks something.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ProjectError(
            f"{name}: no DICOM SEG for this series ({type(error).__name__}: {reason})"
        ) from error


def _images(series: DicomSeries) -> list[pydicom.Dataset]:
    """Its files without their pixels, if a DICOM SEG can refer to them."""
    images = [_source(file) for file in series.files]
    if "NumberOfFrames" in images[0] and len(images) > 1:
        raise ProjectError("a DICOM SEG can't refer to several files of several frames each")
    return images


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
