"""Displacement fields as ITK and ANTs read them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.geometry import LPS_FROM_RAS, isotropic_grid, spacing_mm
from napari_jrss.io.atomic import write_bytes
from napari_jrss.preprocess.transform import GridTransform

# ITK refuses a direction matrix that is further from orthonormal than this.
_ORTHONORMAL = 1e-4


def scan_displacement(
    field: NDArray[np.floating[Any]], moving: GridTransform, fixed: GridTransform
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A displacement field of the training grid between the two scans' own worlds.

    A point x of the fixed scan's world lies at p on the training grid, is moved there to p + u(p),
    and that is a point y of the moving scan's world, pre-alignment included. The result is y - x.
    Beyond the training grid u goes on with its value at the border.

    `field` is (3, z, y, x) in voxels of the training grid, order z, y, x; fixed grid -> moving.

    Returns
    -------
    displacement
        float32 (3, z, y, x), LPS mm, order x, y, z, as ITK has it.
    affine
        4x4, voxel (x, y, z, 1) of the result -> LPS mm. The grid is the fixed scan's own; a
        sheared scan, which ITK can't place, gets an upright grid that covers it.
    """
    if field.shape != (3, *fixed.shape) or moving.shape != fixed.shape:
        raise ValueError(
            f"a field of {field.shape} for training grids of {moving.shape} and {fixed.shape}"
        )
    affine, shape = _itk_grid(np.array(fixed.source_affine), fixed.source_shape)
    to_training = np.linalg.inv(fixed.grid_affine) @ affine
    if fixed.exact and np.array_equal(affine, np.array(fixed.source_affine)):
        to_training = np.rint(to_training)  # no value is interpolated, so none is rounded
    linear, shift = to_training[2::-1, 2::-1], to_training[2::-1, 3]
    moved = np.stack(
        [
            ndimage.affine_transform(
                part.astype(np.float32), linear, shift, output_shape=shape, order=1, mode="nearest"
            )
            for part in field[::-1]
        ]
    )
    to_world = moving.grid_affine
    still = to_world @ to_training - affine  # y - x where u is zero
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    displacement = np.empty_like(moved)
    for row in range(3):
        a, b, c, d = still[row]
        displacement[row] = (a * x + b * y + c * z + d) + np.tensordot(
            to_world[row, :3], moved, axes=1
        )
    return displacement, affine


def write_displacement(
    displacement: NDArray[np.float32], affine: NDArray[np.float64], path: Path
) -> Path:
    """Write what :func:`scan_displacement` gives: NIfTI with 5 axes, vectors in LPS mm.

    Resampling the moving scan's own file with this transform onto the fixed scan's own file
    shows the registration, in SimpleITK
    ``DisplacementFieldTransform(ReadImage(path, sitkVectorFloat64))`` and in
    ``antsApplyTransforms -t path``. `path` ends in .nii or .nii.gz.
    """
    image = nib.Nifti1Image(displacement.transpose(3, 2, 1, 0)[:, :, :, None], None)
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    placed = LPS_FROM_RAS @ affine
    image.header.set_zooms((*spacing_mm(affine)[::-1], 1.0, 1.0))
    image.set_sform(placed, code=1)
    image.set_qform(placed, code=1)
    content = image.to_bytes()
    write_bytes(path, gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)
    return path


def _itk_grid(
    affine: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """The grid itself if its axes are at right angles, else an upright one that covers it."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / steps
    if np.abs(direction.T @ direction - np.eye(3)).max() < _ORTHONORMAL:
        return affine, shape
    return isotropic_grid(affine, shape, float(steps.min()))
