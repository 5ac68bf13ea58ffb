"""DICOM series written from arrays, with a patient's name in every field that can hold one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RTStructureSetStorage,
    generate_uid,
)

NAME, PATIENT, BIRTH = "Planted^Rosalinde", "PID-7731-planted", "19470311"
STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}


def lps_affine(
    order: str = "LPS", spacing: tuple[float, float, float] = (1, 1, 1), degrees: float = 0
) -> NDArray[np.float64]:
    """Affine (x, y, z, 1) -> LPS mm of axes x, y, z that point as `order` says, then turned."""
    world = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1)}
    world["I"] = (0, 0, -1)
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([world[axis] for axis in order], float).T * spacing
    affine[:3, 3] = (-31.5, 12.25, 7)
    return affine


def common(modality: str, series: str, study: str, patient: str = PATIENT) -> FileDataset:
    """What any object has: the patient, the study, the series."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    d.SpecificCharacterSet = "ISO_IR 192"
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = NAME, patient, BIRTH, "F"
    d.StudyInstanceUID, d.SeriesInstanceUID, d.SOPInstanceUID = study, series, generate_uid()
    d.Modality, d.SeriesDescription, d.StudyDescription = modality, f"scan of {NAME}", NAME
    d.StudyDate, d.StudyTime, d.AccessionNumber, d.StudyID = "20200102", "101112", "A1", "1"
    d.ReferringPhysicianName, d.SeriesNumber = "Doctor^No", 3
    d.Manufacturer, d.FrameOfReferenceUID = "none", generate_uid(entropy_srcs=[study])
    d.PositionReferenceIndicator, d.Laterality, d.PatientPosition = "", None, "HFS"
    return d


def pixels(d: pydicom.Dataset, values: NDArray[Any]) -> None:
    """Put integers (..., rows, columns) into a data set, in as many bits as they have."""
    bits = values.dtype.itemsize * 8
    d.Rows, d.Columns = values.shape[-2:]
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = bits
    d.HighBit, d.PixelRepresentation = bits - 1, int(values.dtype.kind == "i")
    d.PixelData = np.ascontiguousarray(values).tobytes()
    d["PixelData"].VR = "OB" if bits == 8 else "OW"


def slices(
    array: NDArray[Any],
    affine: NDArray[np.float64],
    modality: str = "CT",
    *,
    series: str | None = None,
    study: str | None = None,
    patient: str = PATIENT,
    slope: float = 1,
    intercept: float = 0,
) -> list[FileDataset]:
    """One object per slice of integers (z, y, x) that an LPS affine places."""
    series, study = series or generate_uid(), study or generate_uid()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    made = []
    for k, plane in enumerate(array):
        d = common(modality, series, study, patient)
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = STORAGE[modality]
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
        d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        d.InstanceNumber = len(array) - k  # no guide to the order
        d.ImagePositionPatient = [f"{v:.6f}" for v in (affine @ (0, 0, k, 1))[:3]]
        directions = affine[:3, :2] / spacing[:2]
        d.ImageOrientationPatient = [f"{v:.8f}" for v in directions.T.ravel()]
        d.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
        d.SliceThickness = f"{spacing[2]:.6f}"
        if modality == "CT":
            d.RescaleSlope, d.RescaleIntercept, d.RescaleType = slope, intercept, "HU"
            d.KVP, d.AcquisitionNumber = 120, 1
        pixels(d, plane)
        made.append(d)
    return made


def enhanced(array: NDArray[Any], affine: NDArray[np.float64], slope: float = 1) -> FileDataset:
    """The same as one Enhanced MR object with a frame per slice, last slice first."""
    d = common("MR", generate_uid(), generate_uid())
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = EnhancedMRImageStorage
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    d.ImageType, d.InstanceNumber = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], 1
    d.NumberOfFrames = len(array)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)

    def item(**values: Any) -> Sequence:
        held = pydicom.Dataset()
        for name, value in values.items():
            setattr(held, name, value)
        return Sequence([held])

    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = item(
        PixelSpacing=[spacing[1], spacing[0]], SliceThickness=spacing[2]
    )
    shared.PlaneOrientationSequence = item(
        ImageOrientationPatient=[round(v, 8) for v in (affine[:3, :2] / spacing[:2]).T.ravel()]
    )
    shared.PixelValueTransformationSequence = item(
        RescaleSlope=slope, RescaleIntercept=0, RescaleType="US"
    )
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in reversed(range(len(array))):
        frame = pydicom.Dataset()
        frame.PlanePositionSequence = item(
            ImagePositionPatient=[round(v, 6) for v in (affine @ (0, 0, k, 1))[:3]]
        )
        frame.FrameContentSequence = item(
            StackID="1", InStackPositionNumber=k + 1, DimensionIndexValues=[1, k + 1]
        )
        frames.append(frame)
    d.PerFrameFunctionalGroupsSequence = Sequence(frames)
    pixels(d, array[::-1])
    return d


def structures() -> FileDataset:
    """An RT structure set: DICOM, and no image."""
    d = common("RTSTRUCT", generate_uid(), generate_uid())
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = RTStructureSetStorage
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    d.StructureSetLabel = NAME
    return d


def save(folder: Path, objects: list[FileDataset], seed: int = 0) -> Path:
    """Write objects under names that say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(len(objects))
    for number, d in zip(order, objects, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            d.save_as(folder / f"IM{number:04d}", enforce_file_format=True)
    return folder
