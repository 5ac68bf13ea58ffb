"""A registered pair as files, on the fixed scan's own grid."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.app.pairs.registering import Pair
from napari_jrss.io.atomic import write_text
from napari_jrss.io.nifti import nifti_bytes, write_nifti
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.project.export.fields import scan_displacement, write_displacement
from napari_jrss.project.export.folder import ExportFolder
from napari_jrss.project.export.labels import label_names
from napari_jrss.snapshot import Label


@dataclass(frozen=True, eq=False)
class ScanWarp:
    """A registered pair on the fixed scan's own grid."""

    # float32 (3, z, y, x), LPS mm, order x, y, z, see `scan_displacement`.
    displacement: NDArray[np.float32]
    affine: NDArray[np.float64]  # 4x4, voxel (x, y, z, 1) of these arrays -> LPS mm
    image: NDArray[np.float32]  # the moving scan, (z, y, x), linearly interpolated
    label: Label | None  # its label as class indices, if it has one


def on_fixed_scan(pair: Pair) -> ScanWarp:
    """Warp the moving scan itself onto the fixed scan's own grid."""
    here, transform = pair.moving, pair.moving.transform
    displacement, affine = scan_displacement(pair.registered.field, transform, pair.fixed.transform)
    scan = here.volume()
    label = None
    if here.label is not None:
        on_scan = Volume(transform.label_to_source(here.label), scan.affine)
        label = _pull(on_scan, displacement, affine, nearest=True)
    return ScanWarp(displacement, affine, _pull(scan, displacement, affine), label)


def write_pair(
    pair: Pair, table: LabelTable | None, out: Path, warp: ScanWarp | None = None
) -> list[Path]:
    """Write a registered pair on the fixed scan's own grid; the files.

    These are ``warped_image.nii.gz`` and, if the moving case has a label,
    ``warped_label.nii.gz``; ``displacement.nii.gz`` as ITK and ANTs read it; and the figures as
    ``report.json``. `warp` is what :func:`on_fixed_scan` gave, if that is known already.

    ``displacement.nii.gz`` is a transform for SimpleITK too:
    ``DisplacementFieldTransform(ReadImage(path, sitkVectorFloat64))``.
    """
    about = {} if table is None or pair.moving.label is None else label_names(table)
    folder = ExportFolder(out, [*about, "warped_label.nii.gz"] if about else [])
    files = [out / "displacement.nii.gz", out / "warped_image.nii.gz", out / "report.json"]
    warp, scan = warp or on_fixed_scan(pair), pair.fixed.volume()
    folder.make()
    write_displacement(warp.displacement, warp.affine, files[0])
    shape = warp.image.shape
    like = scan if shape == scan.shape else Volume(np.zeros(shape, np.float32), warp.affine)
    write_nifti(files[1], warp.image, like)
    if warp.label is not None and table is not None:
        ids = table.to_source_ids(warp.label)
        content = nifti_bytes(out / "warped_label.nii.gz", ids, like)
        files.append(folder.write("warped_label.nii.gz", content))
        for file, content in about.items():
            folder.write(file, content)
    write_text(files[2], json.dumps(pair.report.model_dump(), indent=1))
    return files


def _pull(
    moving: Volume,
    displacement: NDArray[np.float32],
    affine: NDArray[np.float64],
    nearest: bool = False,
) -> NDArray[Any]:
    """Resample a scan along a displacement in LPS mm (order x, y, z) on the grid of `affine`."""
    shape = displacement.shape[1:]
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    back = np.linalg.inv(moving.affine)
    start = back @ affine
    coordinates = [
        start[row, 0] * x
        + start[row, 1] * y
        + start[row, 2] * z
        + start[row, 3]
        + np.tensordot(back[row, :3], displacement, axes=1)
        for row in (2, 1, 0)
    ]
    order = 0 if nearest else 1
    array = moving.array if nearest else moving.array.astype(np.float32)
    # as ITK does: a voxel reaches half a voxel beyond its centre, and further out is nothing
    warped: NDArray[Any] = ndimage.map_coordinates(array, coordinates, order=order, mode="nearest")
    for along, size in zip(coordinates, array.shape, strict=True):
        warped[(along < -0.5) | (along >= size - 0.5)] = 0
    return warped
