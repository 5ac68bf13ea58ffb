"""NRRD and MetaImage by SimpleITK, MGH and MGZ by nibabel: read, and labels written."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from napari_jrss.errors import ScanError
from napari_jrss.geometry import LPS_FROM_RAS, Matrix, Shape
from napari_jrss.io.limits import MOST_UNPACKED, require_memory
from napari_jrss.io.nifti import open_scan_file, voxel_file

_ITK = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
_MGH = (".mgz", ".mgh")
# The ending of a label for a scan of each ending.
_WRITTEN = {
    **{".nrrd": ".seg.nrrd", ".nhdr": ".seg.nrrd"},
    **{".mha": ".mha", ".mhd": ".mha", ".mgz": ".mgz", ".mgh": ".mgz"},
}
_WORKING_BYTES = 6  # as for NIfTI: float32 and two masks


def reads(path: Path) -> bool:
    """Whether a file's name says that it is in one of these formats."""
    return path.suffix.lower() in (*_ITK, *_MGH)


def read_geometry(path: Path) -> tuple[Shape, Matrix]:
    """Shape (z, y, x) and affine to LPS mm of a file of these formats.

    Raises a :class:`ScanError` if it can't be read, isn't one 3D scan, or needs more memory than
    there is.
    """
    with open_scan_file(path):  # says what is wrong with a file that can't be opened
        pass
    try:
        if path.suffix.lower() in _MGH:
            image: Any = nib.load(path)
            lengths, affine = image.shape, LPS_FROM_RAS @ image.affine
            itemsize = image.get_data_dtype().itemsize
        else:
            lengths, affine, itemsize = _itk_geometry(path)
    except ScanError:
        raise
    except Exception as error:  # the readers report damage with errors of many kinds
        raise ScanError(f"{path}: can't be read ({_reason(error)})") from error
    if len(lengths) < 3 or min(lengths) < 1 or any(n != 1 for n in lengths[3:]):
        raise ScanError(f"{path}: shape {lengths} is not that of one 3D scan")
    x, y, z = (int(n) for n in lengths[:3])
    if min(x, y, z) < 2:
        raise ScanError(f"{path}: a single slice")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ScanError(f"{path}: affine can't be inverted")
    stated = math.prod(lengths) * itemsize
    if stated > voxel_file(path).stat().st_size * MOST_UNPACKED:
        raise ScanError(f"{path}: truncated (the header promises {stated} bytes of voxels)")
    require_memory(path, math.prod(lengths) * (itemsize + _WORKING_BYTES))
    return (z, y, x), np.asarray(affine, dtype=np.float64)


def _itk_geometry(path: Path) -> tuple[tuple[int, ...], Matrix, int]:
    reader = _reader(path)
    lengths, size = reader.GetSize(), reader.GetDimension()
    affine = np.eye(4)
    direction = np.array(reader.GetDirection()).reshape(size, size)
    affine[:3, :3] = direction[:3, :3] * np.array(reader.GetSpacing())[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    return lengths, affine, 8 * reader.GetNumberOfComponents()


def _reader(path: Path) -> Any:
    import SimpleITK as sitk  # noqa: N813

    voxel_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_ITK[path.suffix.lower()])
    reader.ReadImageInformation()
    return reader


def read_voxels(path: Path) -> tuple[NDArray[Any], Matrix]:
    """Values (z, y, x) and affine to LPS mm; of several components in a voxel, a last axis.

    Raises
    ------
    ScanError
        As for :func:`read_geometry`, or the voxels are damaged.
    """
    shape, affine = read_geometry(path)
    try:
        if path.suffix.lower() in _MGH:
            volume: Any = nib.load(path)
            return np.asarray(volume.dataobj).reshape(shape[::-1], order="F").T, affine
        import SimpleITK as sitk  # noqa: N813

        image = _reader(path).Execute()
        array = sitk.GetArrayFromImage(image)
    except Exception as error:  # as above
        raise ScanError(f"{path}: can't be read ({_reason(error)})") from error
    components = image.GetNumberOfComponentsPerPixel()
    return array.reshape(shape if components == 1 else (*shape, components)), affine


def segments_of(path: Path) -> list[tuple[str, int, int]]:
    """Name, value and layer of each segment of Slicer's ``.seg.nrrd``; empty for other files."""
    if not path.name.lower().endswith(".nrrd"):
        return []
    try:
        reader = _reader(path)
        keys = reader.GetMetaDataKeys()
        count = sum(bool(re.fullmatch(r"Segment\d+_ID", key)) for key in keys)

        def value(index: int, name: str, usual: str) -> str:
            key = f"Segment{index}_{name}"
            return str(reader.GetMetaData(key)) if key in keys else usual

        return [
            (
                value(i, "Name", f"segment {i + 1}"),
                int(value(i, "LabelValue", str(i + 1))),
                int(value(i, "Layer", "0")),
            )
            for i in range(count)
        ]
    except ScanError:
        raise
    except Exception as error:  # as above
        raise ScanError(f"{path}: can't be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[-1].split())[:200]


def label_ending(source: str, label_source: str | None) -> str:
    """The ending with which a label is written back: the kind of its own file, or of its scan's."""
    if label_source is not None and label_source.lower().endswith(".nrrd"):
        return ".seg.nrrd" if label_source.lower().endswith(".seg.nrrd") else ".nrrd"
    for place in (label_source, source):
        ending = Path(place or "").suffix.lower()
        if ending in _WRITTEN:
            return _WRITTEN[ending]
        if ending:
            break
    return ".nii.gz"


def label_file(
    path: Path, ids: NDArray[Any], affine: Matrix, names: Mapping[int, tuple[str, str]]
) -> bytes:
    """Content of a label file (z, y, x); its name decides the format, see :func:`label_ending`.

    The axes of the affine, voxel (x, y, z, 1) -> LPS mm, must be at right angles, but for MGZ.
    Slicer's ``.seg.nrrd`` holds the name and colour (#rrggbb) of each id.
    """
    if path.suffix == ".mgz":
        kind = np.uint8 if ids.min() >= 0 and ids.max() < 256 else np.int32
        made = nib.MGHImage(ids.T.astype(kind), LPS_FROM_RAS @ affine)
        return gzip.compress(made.to_bytes(), 6, mtime=0)
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(np.ascontiguousarray(ids))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    if path.name.endswith(".seg.nrrd"):
        for index, (value, (name, colour)) in enumerate(names.items()):
            rgb = " ".join(f"{part / 255:.4f}" for part in bytes.fromhex(colour[1:]))
            about = {"ID": f"Segment_{value}", "Name": name, "Color": rgb}
            about |= {"LabelValue": str(value), "Layer": "0"}
            for key, text in about.items():
                image.SetMetaData(f"Segment{index}_{key}", text)
        image.SetMetaData("Segmentation_MasterRepresentation", "Binary labelmap")
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"label{path.suffix}"
        sitk.WriteImage(image, str(file), useCompression=True)
        return file.read_bytes()
