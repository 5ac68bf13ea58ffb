"""Read OME-Zarr images and labels, at full resolution, as volumes.

OME-Zarr doesn't store a patient's orientation: the axes z, y, x are taken to point to Superior,
Posterior and Left, as in the files that this program writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from napari_jrss.errors import ScanError
from napari_jrss.io.text_files import read_json
from napari_jrss.io.volume import Volume
from napari_jrss.io.zarr_check import read_foreign_array

_MM = {"millimeter": 1.0, "micrometer": 1e-3, "centimeter": 10.0, "meter": 1e3, "nanometer": 1e-6}


def read_zarr_image(path: Path, channel: int = 0) -> Volume:
    """Read the image of an OME-Zarr folder: version 0.4 or 0.5, or as bioformats2raw lays it out.

    Parameters
    ----------
    path
        The folder; of several images in it, the first is read.
    channel
        Which channel, from 0. Of several points in time, the first is read.

    Raises
    ------
    ScanError
        It isn't OME-Zarr with the axes z, y, x; or it is damaged, or compressed in a way that
        :func:`~napari_jrss.io.zarr_check.read_foreign_array` doesn't accept.
    """
    try:
        ome = _ome(path)
        if "bioformats2raw.layout" in ome and "multiscales" not in ome:
            path = path / "0"
            ome = _ome(path)
        first = ome["multiscales"][0]
        level = first["datasets"][0]
        axes = [{"name": axis} if isinstance(axis, str) else axis for axis in first["axes"]]
        names = [axis["name"] for axis in axes]
        space = [names.index(name) for name in "zyx"]
        units = np.array([_MM[axes[i].get("unit", "millimeter")] for i in space])
        scale, shift = np.ones(3), np.zeros(3)
        steps = [*level.get("coordinateTransformations", ())]
        for step in (*steps, *first.get("coordinateTransformations", ())):
            if step["type"] == "scale":
                factor = np.array(step["scale"], dtype=float)[space]
                scale, shift = scale * factor, shift * factor
            elif step["type"] == "translation":
                shift = shift + np.array(step["translation"], dtype=float)[space]
        folder = str(level["path"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ScanError(
            f"{path}: not an OME-Zarr image with the axes z, y, x ({error!r})"
        ) from None
    if Path(folder).name != folder:
        raise ScanError(f"{path}: {folder!r} lies outside the folder")
    affine = np.diag([*(scale * units)[::-1], 1.0])
    affine[:3, 3] = (shift * units)[::-1]
    others = {"c": channel}
    index = tuple(slice(None) if name in "zyx" else others.get(name, 0) for name in names)
    array = read_foreign_array(path / folder, index)
    order = np.argsort(np.argsort(space))
    return Volume(np.ascontiguousarray(array.transpose(order)), affine, path)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


def _ome(path: Path) -> Mapping[str, Any]:
    """What OME-Zarr says of a group: in version 0.4 at the top of its attributes."""
    if (path / ".zattrs").is_file():
        return read_json(path / ".zattrs")
    attributes = read_json(path / "zarr.json").get("attributes", {})
    ome: Mapping[str, Any] = attributes.get("ome", attributes)
    return ome


def read_zarr_labels(path: Path) -> Iterator[tuple[str, Volume]]:
    """Read the labels in an OME-Zarr image, each with its name."""
    if (path / "labels").is_dir():
        for name in _ome(path / "labels").get("labels", ()):
            if Path(str(name)).name != name:
                raise ScanError(f"{path}: {name!r} lies outside the folder")
            yield name, read_zarr_image(path / "labels" / name)
