"""A scan in memory: an array and its position in the world.

Arrays are (z, y, x); an affine is 4x4 and maps voxels (x, y, z, 1) to millimetres in a world
whose axes grow to Left, Posterior and Superior (LPS).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
    leans,
    move_voxels,
    spacing_mm,
    to_nearest_lps,
)

# Lengths by the last three bits of xyzt_units; none stated means mm.
_MM = {1: 1e3, 3: 1e-3}
# Headers keep 32-bit numbers: voxel sizes that differ by less are equal.
_SAME_SIZE = 1e-4


class ScanHeader(BaseModel):
    """The geometry in a NIfTI header, kept so that an export can repeat it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1, 2] = 1  # NIfTI version, 1 or 2
    shape: Shape  # voxels (x, y, z), in the order of the file
    zooms: Triple  # voxel size (x, y, z) in the header's unit
    # Whether the qform and the sform are valid (above 0), and in which space.
    qform_code: int
    sform_code: int
    # The qform: handedness, the quaternion's (b, c, d), and the first voxel's position (RAS).
    qfac: float
    quaternion: Triple
    offset: Triple
    sform: tuple[Row, Row, Row]  # the three rows of the sform (RAS)
    units: int  # the header's `xyzt_units`

    @classmethod
    def of_affine(cls, affine: Matrix, shape: Shape) -> ScanHeader:
        """Header of an array of `shape` (z, y, x) with an affine to LPS mm."""
        header = nib.Nifti1Header()
        header.set_data_shape(shape[::-1])
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        header.set_sform(LPS_FROM_RAS @ affine, code=1)
        # A quaternion can't express shear, so a sheared grid gets no valid qform.
        header.set_qform(LPS_FROM_RAS @ affine, code=int(not leans(affine)), strip_shears=True)
        header.set_xyzt_units("mm")
        return cls.of_nifti(header)

    @classmethod
    def of_nifti(cls, header: nib.Nifti1Header) -> ScanHeader:
        """Geometry of a nibabel header."""

        def values(name: str) -> Any:
            # Real files keep NaN in the fields of an orientation that they don't use.
            return np.nan_to_num(header[name], posinf=0, neginf=0).tolist()

        return cls.model_validate(
            {
                "version": 2 if isinstance(header, nib.Nifti2Header) else 1,
                "shape": header.get_data_shape()[:3],
                "zooms": values("pixdim")[1:4],
                "qform_code": values("qform_code"),
                "sform_code": values("sform_code"),
                "qfac": values("pixdim")[0],
                "quaternion": [values(f"quatern_{axis}") for axis in "bcd"],
                "offset": [values(f"qoffset_{axis}") for axis in "xyz"],
                "sform": [values(f"srow_{axis}") for axis in "xyz"],
                "units": values("xyzt_units"),
            }
        )

    def nifti(self) -> nib.Nifti1Header:
        """A nibabel header with this geometry."""
        header = nib.Nifti2Header() if self.version == 2 else nib.Nifti1Header()
        header.set_data_shape(self.shape)
        header["pixdim"][:4] = (self.qfac, *self.zooms)
        header["qform_code"], header["sform_code"] = self.qform_code, self.sform_code
        for axis, value in zip("bcd", self.quaternion, strict=True):
            header[f"quatern_{axis}"] = value
        for axis, start, row in zip("xyz", self.offset, self.sform, strict=True):
            header[f"qoffset_{axis}"], header[f"srow_{axis}"] = start, row
        header["xyzt_units"] = self.units
        return header

    @property
    def affine(self) -> Matrix:
        """Voxel (x, y, z, 1) -> LPS mm, by the sform if valid, else by the qform or zooms."""
        mm = _MM.get(self.units & 7, 1.0)
        return np.asarray(np.diag([mm, mm, mm, 1.0]) @ LPS_FROM_RAS @ self._placed[0])

    @property
    def doubt(self) -> str:
        """What the header says in two ways or not at all, and what counts; usually empty."""
        return self._placed[1]

    @property
    def _placed(self) -> tuple[Matrix, str]:
        """Voxel -> RAS in the header's unit, and the doubt.

        Where a header is at odds with itself, ITK's reading counts, so that a displacement field
        that is written for ITK fits the scan's own file.
        """
        header, zooms = self.nifti(), np.array(self.zooms)
        sform, qform = header.get_sform(), header.get_qform()
        if not self.sform_code and not self.qform_code:
            base = LPS_FROM_RAS @ np.diag([*np.abs(zooms), 1.0])
            return base, (
                "the header says nothing of orientation (qform and sform codes 0); its axes are "
                "taken to point to Left, Posterior and Superior, as ITK does"
            )
        if not self.sform_code:
            return qform, ""
        steps = np.linalg.norm(sform[:3, :3], axis=0)
        if steps.min() == 0:
            return (
                (qform, "the sform is empty; the qform counts") if self.qform_code else (sform, "")
            )
        if zooms.min() > 0 and np.abs(steps / zooms - 1).max() > _SAME_SIZE:
            sizes = [" x ".join(f"{n:.4g}" for n in lengths) for lengths in (zooms, steps)]
            sform[:3, :3] *= zooms / steps
            return sform, (
                f"pixdim says voxels of {sizes[0]}, the sform {sizes[1]}; pixdim counts, as for ITK"
            )
        return sform, ""


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D array with its position in the world.

    Attributes
    ----------
    array
        (z, y, x). The array of a file keeps the file's axes; see :meth:`to_lps`.
    affine
        4x4, voxel (x, y, z, 1) -> LPS mm.
    source
        The file, if it was read from one.
    header
        The geometry in the file's NIfTI header, if there is one.
    notes
        What the reader had to decide, a sentence each.
    padding
        Mask of voxels that are no scan, as its file states them; None if it states none.
    dtype
        Type of the file's voxels, such as ``int16``, if it is known.
    """

    array: NDArray[Any]
    affine: Matrix
    source: Path | None = None
    header: ScanHeader | None = None
    notes: tuple[str, ...] = ()
    padding: NDArray[np.bool_] | None = None
    dtype: str | None = None

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

        Nothing is interpolated; an oblique scan stays oblique.
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
        array, padding = (
            None if each is None else move_voxels(each, matrix, (z, y, x))
            for each in (self.array, self.padding)
        )
        assert array is not None
        return replace(self, array=array, affine=affine, header=None, padding=padding)
