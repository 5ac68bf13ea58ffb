"""A scan in memory: an array and its place in the world, and how both come from files.

Arrays are (z, y, x); an affine is 4x4 and maps voxels (x, y, z, 1) to millimetres in a world
whose axes grow to Left, Posterior and Superior (LPS).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from napari_jrss.geometry import (
    LPS_FROM_RAS,
    Matrix,
    Row,
    Shape,
    Triple,
    copy,
    leans,
    spacing_mm,
    to_nearest_lps,
)

if TYPE_CHECKING:
    pass


class ScanHeader(BaseModel):
    """What a NIfTI header says about geometry, kept so that an export can repeat it.

    Attributes
    ----------
    version
        NIfTI version, 1 or 2.
    shape
        Voxels (x, y, z) in the file's own order.
    zooms
        Voxel size (x, y, z) in the header's unit.
    qform_code, sform_code
        Which of the two orientations hold, and in which space.
    qfac, quaternion, offset
        The qform: handedness, (b, c, d) and the first voxel's position, RAS.
    sform
        The three rows of the sform, RAS.
    units
        The header's ``xyzt_units``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1, 2] = 1
    shape: Shape
    zooms: Triple
    qform_code: int
    sform_code: int
    qfac: float
    quaternion: Triple
    offset: Triple
    sform: tuple[Row, Row, Row]
    units: int

    @classmethod
    def of_affine(cls, affine: Matrix, shape: Shape) -> ScanHeader:
        """Header for an array (z, y, x) whose voxels an LPS `affine` places in the world."""
        header = nib.Nifti1Header()
        header.set_data_shape(shape[::-1])
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        header.set_sform(LPS_FROM_RAS @ affine, code=1)
        # A quaternion holds no shear: better no qform than one that lies.
        header.set_qform(LPS_FROM_RAS @ affine, code=int(not leans(affine)), strip_shears=True)
        header.set_xyzt_units("mm")
        return cls.of_nifti(header)

    @classmethod
    def of_nifti(cls, header: nib.Nifti1Header) -> ScanHeader:
        """Record of a nibabel header."""

        def numbers(*names: str) -> tuple[float, ...]:
            # Real files keep NaN in the fields of an orientation they don't use.
            return tuple(float(np.nan_to_num(header[n], posinf=0, neginf=0)) for n in names)

        return cls.model_validate(
            {
                "version": 2 if isinstance(header, nib.Nifti2Header) else 1,
                "shape": header.get_data_shape()[:3],
                "zooms": [float(z) for z in np.nan_to_num(header["pixdim"][1:4])],
                "qform_code": int(header["qform_code"]),
                "sform_code": int(header["sform_code"]),
                "qfac": float(np.nan_to_num(header["pixdim"][0])),
                "quaternion": numbers("quatern_b", "quatern_c", "quatern_d"),
                "offset": numbers("qoffset_x", "qoffset_y", "qoffset_z"),
                "sform": [
                    [float(v) for v in np.nan_to_num(header[r])]
                    for r in ("srow_x", "srow_y", "srow_z")
                ],
                "units": int(header["xyzt_units"]),
            }
        )

    def nifti(self) -> nib.Nifti1Header:
        """A nibabel header with this geometry, field by field."""
        header = nib.Nifti2Header() if self.version == 2 else nib.Nifti1Header()
        header.set_data_shape(self.shape)
        header["pixdim"][:4] = (self.qfac, *self.zooms)
        header["qform_code"], header["sform_code"] = self.qform_code, self.sform_code
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = self.quaternion
        header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = self.offset
        header["srow_x"], header["srow_y"], header["srow_z"] = self.sform
        header["xyzt_units"] = self.units
        return header

    @property
    def affine(self) -> Matrix:
        """Voxel (x, y, z, 1) -> LPS mm: the sform if it holds, else the qform, else neither."""
        return LPS_FROM_RAS @ np.asarray(self.nifti().get_best_affine(), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Volume:
    """An array and where it lies; the two always travel together.

    Attributes
    ----------
    array
        (z, y, x). What a file gave keeps the file's own axes; see :meth:`to_lps`.
    affine
        4x4, voxel (x, y, z, 1) -> LPS mm.
    source
        File it came from, if any.
    header
        The geometry as that file's header states it, if any.
    """

    array: NDArray[Any]
    affine: Matrix
    source: Path | None = None
    header: ScanHeader | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise ValueError(f"a volume has 3 axes (z, y, x), not {self.array.ndim}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"an affine is 4x4, not {self.affine.shape}")

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""
        z, y, x = self.array.shape
        return z, y, x

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size (z, y, x) in mm."""
        return spacing_mm(self.affine)

    def to_lps(self) -> Volume:
        """The same voxels with the axes nearest to LPS: z to Superior, y to Posterior, x to Left.

        No value is interpolated; an oblique scan stays oblique.
        """
        matrix = to_nearest_lps(self.affine, self.shape)
        affine = self.affine @ matrix
        return self._moved(matrix, affine)

    def to_axes_of(self, other: Volume) -> Volume:
        """Undo :meth:`to_lps`: the same voxels with the axes of `other`, which covers them."""
        matrix = np.rint(np.linalg.inv(self.affine) @ other.affine)
        return self._moved(matrix, other.affine)

    def _moved(self, matrix: Matrix, affine: Matrix) -> Volume:
        order = np.abs(matrix[2::-1, 2::-1]).argmax(0)
        z, y, x = (int(self.array.shape[i]) for i in order)
        return replace(self, array=copy(self.array, matrix, (z, y, x)), affine=affine, header=None)
