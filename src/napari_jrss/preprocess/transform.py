"""How one scan reached the training grid: stored with the case, and exactly invertible.

Turning to LPS, pre-alignment, resampling and cropping together are one affine map between two
voxel grids. A :class:`GridTransform` keeps that map, and the way back is its inverse. If it only
turns, crops and pads, both ways move voxels unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from napari_jrss.geometry import Matrix, Rows, Shape, Triple, is_exact
from napari_jrss.io.volume import ScanHeader
from napari_jrss.preprocess.resample import inside, resample_image, resample_label


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Intensity(_Record):
    """How intensities were scaled: clipped to [low, high], then (value - mean) / std."""

    low: float
    high: float
    mean: float
    std: float


class GridTransform(_Record):
    """How one scan reached the training grid, and the way back."""

    source_shape: Shape  # the scan's own voxels (z, y, x)
    source_affine: Rows  # its voxel (x, y, z, 1) -> LPS mm, 4 rows
    header: ScanHeader | None  # its NIfTI header's geometry, if it came from a file
    shape: Shape  # training grid (z, y, x)
    grid_to_source: Rows  # training-grid voxel (x, y, z, 1) -> the scan's voxel, 4 rows
    intensity: Intensity  # how the scan's intensities were scaled

    @property
    def matrix(self) -> Matrix:
        """`grid_to_source` as a 4x4 array."""
        return np.array(self.grid_to_source)

    @property
    def grid_affine(self) -> Matrix:
        """Training-grid voxel (x, y, z, 1) -> LPS mm of the scan's own world.

        This includes the pre-alignment. A displacement field u (fixed grid -> moving, voxels)
        therefore moves the point ``fixed.grid_affine @ p`` to
        ``moving.grid_affine @ (p + u)``.
        """
        return np.asarray(np.array(self.source_affine) @ self.matrix)

    @property
    def exact(self) -> bool:
        """Whether the scan was only turned, cropped and padded, without interpolation."""
        return is_exact(self.matrix)

    @property
    def _back(self) -> Matrix:
        back = np.linalg.inv(self.matrix)
        return np.asarray(np.rint(back) if self.exact else back)

    def inside_scan(self) -> NDArray[np.bool_]:
        """Mask (z, y, x) of the training grid's voxels that the scan covers, without padding."""
        return inside(self.matrix, self.shape, self.source_shape)

    def label_to_source(self, label: NDArray[Any]) -> NDArray[Any]:
        """A label (z, y, x) of the training grid on the scan's own grid; background elsewhere.

        Equal to the original label if the transform is :attr:`exact` and the grid covers it.
        """
        self._check(label.shape)
        return resample_label(label, self._back, self.source_shape)

    def image_to_source(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """An image of the training grid with the scan's intensities, on the scan's own grid.

        Voxels outside the training grid get the lower clipping value.
        """
        self._check(image.shape)
        scale = self.intensity
        values = image.astype(np.float64) * scale.std + scale.mean
        return resample_image(values, self._back, self.source_shape, scale.low)

    def values_to_source(self, values: NDArray[Any], fill: float = 0) -> NDArray[np.float32]:
        """A map such as confidence or uncertainty (z, y, x) on the scan's own grid."""
        self._check(values.shape)
        return resample_image(values, self._back, self.source_shape, fill)

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape:
            raise ValueError(f"shape {shape} is not that of the training grid {self.shape}")


class TrainingGrid(_Record):
    """The grid on which every case of a project lies."""

    shape: Shape  # voxels (z, y, x)
    # Voxel size (z, y, x) in mm; nominal if each scan's extent is resized to the grid.
    spacing_mm: Triple
    # Voxel (x, y, z, 1) -> LPS mm of the reference's world, 4 rows, if all scans lie in that frame;
    # None: the grid is centred on each scan.
    affine: Rows | None = None
    reference: Path | None = None  # image file to which scans are aligned, if any
