"""Read OME-Zarr images and labels, at full resolution, as volumes.

OME-Zarr doesn't store a patient's orientation: the axes z, y, x are taken to point to Superior,
Posterior and Left, as in the files that this program writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from napari_jrss.errors import ScanError
from napari_jrss.io.volume import Volume
from napari_jrss.io.zarr_check import group_attributes, read_array

_MM = {"millimeter": 1.0, "micrometer": 1e-3, "centimeter": 10.0, "meter": 1e3, "nanometer": 1e-6}


def read_zarr_image(path: Path) -> Volume:
    """Read the image of an OME-Zarr folder.

    Raises
    ------
    ScanError
        It isn't OME-Zarr 0.5 with the axes z, y, x; or it is damaged, or compressed in a way
        that :mod:`napari_jrss.io.zarr_check` doesn't accept.
    """
    try:
        first = group_attributes(path)["ome"]["multiscales"][0]
        level = first["datasets"][0]
        names = [axis["name"] for axis in first["axes"]]
        units = np.array([_MM[axis.get("unit", "millimeter")] for axis in first["axes"]])
        scale, shift = np.ones(3), np.zeros(3)
        for step in level.get("coordinateTransformations", ()):
            if step["type"] == "scale":
                scale = np.array(step["scale"], dtype=float)
            elif step["type"] == "translation":
                shift = np.array(step["translation"], dtype=float)
        folder = str(level["path"])
        if names != ["z", "y", "x"] or scale.shape != (3,) or shift.shape != (3,):
            raise ScanError(f"{path}: needs the axes z, y, x, not {', '.join(names)}")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ScanError(f"{path}: not an OME-Zarr 0.5 image ({error!r})") from None
    if Path(folder).name != folder:
        raise ScanError(f"{path}: {folder!r} lies outside the folder")
    affine = np.diag([*(scale * units)[::-1], 1.0])
    affine[:3, 3] = (shift * units)[::-1]
    return Volume(read_array(path / folder), affine, path)


def read_zarr_labels(path: Path) -> Iterator[tuple[str, Volume]]:
    """Read the labels in an OME-Zarr image, each with its name."""
    if (path / "labels").is_dir():
        ome = group_attributes(path / "labels").get("ome", {})
        for name in ome.get("labels", ()):
            if Path(str(name)).name != name:
                raise ScanError(f"{path}: {name!r} lies outside the folder")
            yield name, read_zarr_image(path / "labels" / name)
