"""How one scan reached the training grid: stored with the case, and exactly invertible.

Turning to LPS, pre-alignment, resampling and cropping together are one affine map between two
voxel grids. A :class:`GridTransform` keeps that map, and the way back is its inverse. If it only
turns, crops and pads, both ways move voxels unchanged.

There are three grids: the scan's own in its file's axes ("source"), the same voxels with the axes
nearest to LPS ("scan"), and the training grid. Between the first two no value ever changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from napari_jrss.errors import ScanError
from napari_jrss.geometry import (
    Matrix,
    Rows,
    Shape,
    Triple,
    is_exact,
    move_voxels,
    to_nearest_lps,
)
from napari_jrss.io.volume import ScanHeader
from napari_jrss.preprocess.resample import inside, nearest, resample_image, resample_label
from napari_jrss.snapshot import CaseScan

if TYPE_CHECKING:
    from napari_jrss.io.predictions import Prediction

_NOT_PAINTED = -1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Intensity(_Record):
    """How intensities were scaled: clipped to [low, high], then (value - mean) / std."""

    low: float
    high: float
    mean: float
    std: float

    def scaled(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Intensities of the scan as the networks see them."""
        scaled = values.astype(np.float32)
        np.clip(scaled, self.low, self.high, out=scaled)
        scaled -= self.mean
        scaled /= self.std
        return scaled


class GridTransform(_Record):
    """How one scan reached the training grid, and the way back."""

    source_shape: Shape  # the scan's own voxels (z, y, x)
    source_affine: Rows  # its voxel (x, y, z, 1) -> LPS mm, 4 rows
    header: ScanHeader | None  # its NIfTI header's geometry, if it came from a file
    shape: Shape  # training grid (z, y, x)
    grid_to_source: Rows  # training-grid voxel (x, y, z, 1) -> the scan's voxel, 4 rows
    intensity: Intensity  # how the scan's intensities were scaled

    @model_validator(mode="after")
    def _invertible(self) -> GridTransform:
        for rows in (self.source_affine, self.grid_to_source):
            if np.linalg.matrix_rank(np.array(rows)[:3, :3]) < 3:
                raise ValueError("an affine can't be inverted")
        return self

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

    @property
    def _turn(self) -> Matrix:
        return to_nearest_lps(np.array(self.source_affine), self.source_shape)

    @property
    def scan_shape(self) -> Shape:
        """The scan's own voxels (z, y, x) with its axes turned to LPS."""
        order = np.abs(self._turn[2::-1, 2::-1]).argmax(0)
        z, y, x = (self.source_shape[i] for i in order)
        return z, y, x

    @property
    def scan_affine(self) -> Matrix:
        """Voxel (x, y, z, 1) of the scan turned to LPS -> LPS mm."""
        return np.asarray(np.array(self.source_affine) @ self._turn)

    @property
    def grid_to_scan(self) -> Matrix:
        """Training-grid voxel (x, y, z, 1) -> voxel of the scan turned to LPS."""
        return np.asarray(np.rint(np.linalg.inv(self._turn)) @ self.matrix)

    @property
    def scan_to_grid(self) -> Matrix:
        """Undo :attr:`grid_to_scan`."""
        return np.asarray(np.linalg.inv(self.grid_to_scan), dtype=np.float64)

    def turn_to_scan(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array in the axes of the scan's file, turned to LPS; a view."""
        return move_voxels(array, self._turn, self.scan_shape)

    def turn_to_source(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undo :meth:`turn_to_scan`."""
        return move_voxels(array, np.rint(np.linalg.inv(self._turn)), self.source_shape)

    def label_to_grid(self, label: NDArray[Any]) -> NDArray[Any]:
        """A label of the scan turned to LPS on the training grid, see :func:`resample_label`."""
        return resample_label(self.turn_to_source(label), self.matrix, self.shape)

    def label_to_scan(self, label: NDArray[Any]) -> NDArray[Any]:
        """A label of the training grid on the scan turned to LPS; background elsewhere."""
        return np.ascontiguousarray(self.turn_to_scan(self.label_to_source(label)))

    def prediction_to_scan(self, prediction: Prediction) -> NDArray[Any]:
        """A teacher's label on the scan turned to LPS; background elsewhere.

        That of the fine network where the prediction holds one. Else the probabilities of its two
        most probable classes are interpolated linearly, and the class with the largest wins.
        """
        fine = prediction.scan_label
        if fine is not None:
            if fine.shape != self.scan_shape:
                raise ScanError(f"a predicted label of shape {fine.shape} isn't on its scan")
            return fine
        self._check(prediction.label.shape)
        return carry(prediction, self.scan_to_grid, self.scan_shape)

    def paint(self, label: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
        """Repeat on the scan's own voxels what was painted on the training grid.

        Parameters
        ----------
        label
            On the scan turned to LPS, as it was before.
        before, after
            On the training grid, before and after the painting.

        Returns
        -------
        array
            The label with the class in `after` where the nearest voxel of the training grid was
            painted; all other voxels are those of `label`.
        """
        painted = np.where(before != after, after.astype(np.int16), np.int16(_NOT_PAINTED))
        values = nearest(painted, self.scan_to_grid, self.scan_shape, _NOT_PAINTED)
        return np.where(values == _NOT_PAINTED, label, values.astype(label.dtype))

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


def carry(prediction: Prediction, scan_to_grid: Matrix, shape: Shape) -> NDArray[Any]:
    """The label of a prediction on other voxels (z, y, x), its probabilities interpolated.

    `scan_to_grid` maps these voxels (x, y, z, 1) to those of the training grid.
    """
    label, second, probability = prediction.label, prediction.second, prediction.confidence
    if second is not None and prediction.second_confidence is not None:
        shares = [(label, probability), (second, prediction.second_confidence)]
    else:  # of an older version
        shares = [(label, np.ones_like(probability))]
    return resample_label(label, scan_to_grid, shape, shares)


def at_own_resolution(
    images: Sequence[NDArray[Any]], transforms: Sequence[GridTransform]
) -> CaseScan:
    """The images of a case on the voxels of the first, scaled as on the training grid.

    Each image is on its own voxels (z, y, x), turned to LPS; `transforms` are theirs.
    """
    first = transforms[0]
    scan = np.empty((len(images), *first.scan_shape), np.float32)
    for number, (image, transform) in enumerate(zip(images, transforms, strict=True)):
        if number > 0:
            matrix = transform.grid_to_scan @ first.scan_to_grid
            image = resample_image(image, matrix, first.scan_shape, transform.intensity.low)
        scan[number] = transform.intensity.scaled(image)
    return CaseScan(scan, first.scan_to_grid)


class TrainingGrid(_Record):
    """The grid on which every case of a project lies."""

    shape: Shape  # voxels (z, y, x)
    # Voxel size (z, y, x) in mm; nominal if each scan's extent is resized to the grid.
    spacing_mm: Triple
    # Voxel (x, y, z, 1) -> LPS mm of the reference's world, 4 rows, if all scans lie in that frame;
    # None: the grid is centred on each scan.
    affine: Rows | None = None
    reference: Path | None = None  # image file to which scans are aligned, if any
