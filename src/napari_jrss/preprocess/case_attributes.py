"""What is stored with a case about the scan that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from napari_jrss.geometry import Triple
from napari_jrss.preprocess.transform import GridTransform

DICOM_SOURCE = "dicom"


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True
    )

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A case of one image is stored as before there were several."""
        return {k: v for k, v in write(self).items() if v or k not in ("channels", "part")}


class ChannelAttributes(_Record):
    """What is stored about a further image of a case.

    Attributes
    ----------
    name
        Such as FLAIR.
    source, checksum, part
        As for :class:`CaseAttributes`.
    transform
        How this image reached the training grid.
    """

    name: str
    source: str
    checksum: str
    part: int | None = None
    transform: GridTransform = Field(alias="chain")


class CaseAttributes(_Record):
    """What is stored with a case about the scan it was made from.

    Attributes
    ----------
    case_id
        The case.
    source, label_source
        Files from which it was made. For a DICOM series, whose paths may contain the patient's
        name, ``dicom``.
    checksum, label_checksum
        Their SHA-256, see :func:`napari_jrss.io.nifti.file_checksum`. For a DICOM series, that
        of its voxels, see :func:`napari_jrss.io.dicom.checksum`.
    label_dtype
        Type of the label file's voxels, such as ``int16``; None where it isn't known.
    transform
        How the scan reached the training grid, and the way back; ``chain`` on disk.
    spacing_mm
        Voxel size (z, y, x) of the training grid.
    grid_sha256
        Of each label that was brought to the grid of another plan: the SHA-256 of its voxels there.
    part
        Which image of the source's file it is, from 1; None where the file holds one.
    channels
        The further images of the case.
    """

    case_id: str
    source: str
    checksum: str
    label_source: str | None = None
    label_checksum: str | None = None
    label_dtype: str | None = None
    transform: GridTransform = Field(alias="chain")
    spacing_mm: Triple
    grid_sha256: Mapping[str, str] = {}
    part: int | None = None
    channels: tuple[ChannelAttributes, ...] = ()

    @property
    def transforms(self) -> list[GridTransform]:
        """How each image reached the training grid, that of the first one first."""
        return [self.transform, *(each.transform for each in self.channels)]
