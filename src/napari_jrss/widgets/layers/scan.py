"""Scans as layers of their own: turned to LPS, in millimetres, with the way back in the metadata.

napari slices badly along permuted and oblique axes, so a layer gets scale and translation only;
the true affine and the file's header travel in ``layer.metadata["napari_jrss"]``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from napari_jrss.errors import ScanError, from_validation
from napari_jrss.geometry import Rows, rows
from napari_jrss.io.read import read_label
from napari_jrss.io.volume import ScanHeader, Volume

KEY = "napari_jrss"
LayerTuple = tuple[NDArray[Any], dict[str, Any], str]

# Neighbours of a label are mostly alike, those of an image hardly ever.
_ALIKE = 0.6


class ScanMetadata(BaseModel):
    """What a layer knows of the scan it shows: its file or folder, if any, and its header.

    An affine maps voxels (x, y, z, 1) to LPS mm, 4 rows: `affine` those of the layer, which is
    turned to LPS, `source_affine` the scan's own, whose axes may be permuted and flipped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None
    affine: Rows
    source_affine: Rows
    header: ScanHeader


def layer_of(volume: Volume, name: str, kind: str = "image", **options: Any) -> LayerTuple:
    """A scan or label as it was read as a layer of kind ``image`` or ``labels``, LPS, in mm."""
    turned = volume.to_lps()
    header = volume.header or ScanHeader.of_affine(volume.affine, volume.shape)
    metadata = ScanMetadata(
        source=None if volume.source is None else str(volume.source),
        affine=rows(turned.affine),
        source_affine=rows(volume.affine),
        header=header,
    )
    own = {"name": name, "metadata": {KEY: metadata.model_dump(mode="json")}}
    return turned.array, {**own, **upright_placement(turned), **options}, kind


def upright_placement(volume: Volume) -> dict[str, Any]:
    """Scale and translation (z, y, x) in mm that put an LPS volume upright about its centre."""
    spacing = np.array(volume.spacing_mm)
    middle = (np.array(volume.shape) - 1) / 2
    centre = (volume.affine @ [*middle[::-1], 1])[2::-1]
    return {
        "scale": tuple(spacing.tolist()),
        "translate": tuple((centre - spacing * middle).tolist()),
        "units": ("mm", "mm", "mm"),
        "axis_labels": ("z", "y", "x"),
    }


def metadata_of(metadata: Mapping[str, Any], name: str) -> ScanMetadata:
    """What a layer knows of its scan; a ScanError if that is nothing, or not understood."""
    if KEY not in metadata:
        raise ScanError(
            f"layer {name!r} doesn't know the geometry of its scan: paint on a layer made by "
            "Layers > Annotate > New labels for the selected scan"
        )
    try:
        return ScanMetadata.model_validate(metadata[KEY])
    except ValidationError as error:
        raise ScanError(f"layer {name!r}: {from_validation(error)} in its metadata") from None


def volume_of(data: NDArray[Any], metadata: ScanMetadata) -> Volume:
    """A layer's voxels, turned to LPS, as a volume."""
    source = None if metadata.source is None else Path(metadata.source)
    return Volume(np.asarray(data), np.array(metadata.affine), source)


def in_source_axes(data: NDArray[Any], metadata: ScanMetadata) -> NDArray[Any]:
    """A layer's voxels with the axes of the scan's own file, bit for bit.

    It is a ScanError if the layer has another shape than its scan.
    """
    shape = metadata.header.shape[::-1]
    like = Volume(np.empty(shape, np.bool_), np.array(metadata.source_affine))
    if data.shape != like.to_lps().shape:
        raise ScanError(f"a layer of shape {data.shape} for a scan of {like.to_lps().shape}")
    return volume_of(data, metadata).to_axes_of(like).array


def read_as_label(path: Path) -> Volume | None:
    """A file as a label, if it looks like one: whole numbers in patches of the same value."""
    try:
        volume, _ = read_label(path)
    except ScanError:
        return None
    ids = volume.array
    if ids.min() < 0 or not ids.any():
        return None
    pairs = (ids[..., 1:] > 0) & (ids[..., :-1] > 0)
    alike = ids[..., 1:][pairs] == ids[..., :-1][pairs]
    return volume if alike.size and alike.mean() > _ALIKE else None
