"""Write images and labels as OME-Zarr 0.5, in the one form that this program reads back.

The metadata is written with zarr itself, not with the ome-zarr package, which would load dask
and cloud clients into each process. A test validates it with ome-zarr-models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from napari_jrss.errors import ScanError
from napari_jrss.geometry import Rows, Triple
from napari_jrss.io.atomic import new_folder
from napari_jrss.labels import IGNORED, LabelTable

SUFFIX = ".ome.zarr"
OME_VERSION = "0.5"
ATTRIBUTES = "napari_jrss"
"""Key of what this program stores beside the metadata of OME-Zarr."""
LEVEL = "0"
"""Name of the only resolution."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a case or a label version may be called."""
# One shard holds a whole volume, so that a case is seven files. A slice along any axis decodes
# only the chunks that it cuts; an axial one cuts the fewest.
_CHUNKS = (32, 64, 64)


def require_name(name: str) -> str:
    """The name; a :class:`ScanError` if it can't be one of a case or a label version."""
    if not NAME.fullmatch(name):
        raise ScanError(f"{name!r}: use letters, digits, '.', '_' and '-' only")
    return name


def write_scan(
    path: Path,
    image: NDArray[np.float32],
    spacing_mm: Triple,
    origin_mm: Triple,
    labels: Mapping[str, NDArray[Any]],
    table: LabelTable,
    affine: Rows,
) -> Path:
    """Write a scan and its labels as an OME-Zarr image for other programs.

    A ``FileExistsError`` if it exists.

    Parameters
    ----------
    path
        Ends in ``.ome.zarr``.
    image, labels
        The scan (z, y, x), turned to LPS, and class indices (z, y, x) by name.
    spacing_mm, origin_mm
        Voxel size, and position of the first voxel (z, y, x), in mm. OME-Zarr 0.5 stores no
        more about the orientation.
    affine
        4x4, voxel (x, y, z, 1) -> LPS mm, as rows. It is stored as an attribute, for scans
        whose axes aren't those of the world.
    """
    about = {"affine_lps_mm": affine}
    name = path.name.removesuffix(SUFFIX)
    return write_image(path, image, name, spacing_mm, labels, table, about, origin_mm)


def write_image(
    path: Path,
    image: NDArray[Any],
    name: str,
    spacing: Triple,
    labels: Mapping[str, NDArray[Any]],
    table: LabelTable | None,
    attributes: Mapping[str, Any],
    origin: Triple | None = None,
    beside: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Write an OME-Zarr image with labels and attributes of ours; it must not exist.

    `beside` writes more into the unfinished folder.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists")
    with new_folder(path) as unfinished:
        root = zarr.create_group(unfinished, zarr_format=3)
        write_array(root, image, name, spacing, origin)
        root.attrs[ATTRIBUTES] = attributes
        group = root.create_group("labels")
        group.attrs["ome"] = {"version": OME_VERSION, "labels": sorted(labels)}
        for version, label in labels.items():
            assert table is not None
            one = group.create_group(require_name(version))
            write_label(one, label, table, spacing, version, origin)
        beside(unfinished)
    return path


def write_label(
    group: zarr.Group,
    label: NDArray[Any],
    table: LabelTable,
    spacing: Triple,
    version: str,
    origin: Triple | None = None,
) -> None:
    """Write class indices (z, y, x) into an empty group, with names and colours of the classes.

    `spacing` and `origin` are (z, y, x) in mm.
    """
    if int(label[label != IGNORED].max(initial=0)) >= len(table.classes):
        raise ValueError(f"class {label.max()} is beyond the table's {len(table.classes)}")
    ome = write_array(group, label.astype(table.dtype), version, spacing, origin)
    ome["image-label"] = {
        "colors": [
            {
                "label-value": c.index,
                "rgba": [*bytes.fromhex(c.colour[1:]), 255 if c.index else 0],
            }
            for c in table.classes
        ],
        "properties": [{"label-value": c.index, "name": c.name} for c in table.classes],
        "source": {"image": "../../"},
    }
    group.attrs["ome"] = ome


def write_array(
    group: zarr.Group,
    array: NDArray[Any],
    name: str,
    spacing: Triple,
    origin: Triple | None = None,
) -> dict[str, Any]:
    """Write an array (z, y, x) into an empty group, and return its OME metadata.

    `spacing` and `origin` are (z, y, x) in mm.
    """
    chunks = tuple(min(c, n) for c, n in zip(_CHUNKS, array.shape, strict=True))
    shards = tuple(-(-n // c) * c for n, c in zip(array.shape, chunks, strict=True))
    group.create_array(
        LEVEL,
        data=np.ascontiguousarray(array),
        chunks=chunks,
        shards=shards,
        # The checksum finds a flipped bit, which Blosc would decode into other voxels.
        # Unshuffled, as most scans hold few different values (docs/benchmarks.md).
        compressors=(BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle"), Crc32cCodec()),
        config={"write_empty_chunks": True},  # so that a missing chunk is damage
        dimension_names=("z", "y", "x"),
    )
    place: list[dict[str, Any]] = [{"type": "scale", "scale": list(spacing)}]
    if origin is not None:
        place.append({"type": "translation", "translation": list(origin)})
    ome: dict[str, Any] = {
        "version": OME_VERSION,
        "multiscales": [
            {
                "name": name,
                "axes": [{"name": a, "type": "space", "unit": "millimeter"} for a in "zyx"],
                "datasets": [{"path": "0", "coordinateTransformations": place}],
            }
        ],
    }
    group.attrs["ome"] = ome
    return ome
