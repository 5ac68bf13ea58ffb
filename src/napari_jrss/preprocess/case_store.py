"""The cases of a project: each an OME-Zarr 0.5 image on the training grid, with its labels.

The folder ``scan`` holds what lies on the scan's own voxels, turned to LPS: the scan itself as
``image``, and each label under the name of its version. ``labels/<version>`` is the copy of a
label on the training grid, which can be made of the other. Where a case has several images, the
others are ``channels/1``, ``channels/2``, ..., each on the training grid and, in its folder
``scan``, on its own voxels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from napari_jrss.errors import ScanError, from_validation
from napari_jrss.geometry import spacing_mm
from napari_jrss.io.atomic import new_folder, temp_path, write_text
from napari_jrss.io.ome_zarr_writer import (
    ATTRIBUTES,
    LEVEL,
    NAME,
    OME_VERSION,
    SUFFIX,
    require_name,
    write_array,
    write_image,
    write_label,
)
from napari_jrss.io.zarr_check import group_attributes, open_array, read_array
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.case_attributes import CaseAttributes
from napari_jrss.preprocess.transform import GridTransform

_SCAN, _SCAN_IMAGE, _CHANNELS = "scan", "image", "channels"


@dataclass(frozen=True, eq=False)
class ChannelArrays:
    """A further image of a case: on the training grid, and with its own intensities.

    `image` is (z, y, x) on the training grid; `scan` on its own voxels, turned to LPS.
    """

    image: NDArray[np.float32]
    scan: NDArray[Any]


def case_path(folder: Path, case_id: str) -> Path:
    """Folder of a case in a project's folder of cases.

    Raises a :class:`ScanError` if the id holds other characters than letters, digits, ``.``, ``_``
    and ``-``.
    """
    return folder / (require_name(case_id) + SUFFIX)


def write_case(
    folder: Path,
    attributes: CaseAttributes,
    image: NDArray[np.float32],
    label: NDArray[Any] | None = None,
    table: LabelTable | None = None,
    version: str = "manual",
    scan_label: NDArray[Any] | None = None,
    scan_image: NDArray[Any] | None = None,
    channels: Sequence[ChannelArrays] = (),
) -> Path:
    """Write a case under a hidden name, then rename it: a reader never sees half of one.

    Parameters
    ----------
    folder
        The project's folder of cases.
    attributes
        What is stored about the scan; also gives the id of the case.
    image
        (z, y, x) on the training grid.
    label, table, version
        Its first label, class indices (z, y, x), with the classes and the version's name.
    scan_label, scan_image
        The same label, and the scan with its own intensities, on the scan's own voxels turned
        to LPS.
    channels
        The further images that `attributes` names.

    Raises
    ------
    FileExistsError
        The case exists.
    """
    path = case_path(folder, attributes.case_id)
    if label is not None and table is None:
        raise ValueError("a label needs its table")
    folder.mkdir(parents=True, exist_ok=True)

    def write_scan_part(case: Path) -> None:
        for name, array in ((version, scan_label), (_SCAN_IMAGE, scan_image)):
            if array is not None:
                target = case / _SCAN / name
                target.parent.mkdir(exist_ok=True)
                _write_on_scan(target, name, array, attributes.transform, table)
        pairs = zip(attributes.channels, channels, strict=True)
        for number, (about, arrays) in enumerate(pairs, start=1):
            group = zarr.create_group(_channel_folder(case, number), zarr_format=3)
            write_array(group, arrays.image, about.name, attributes.spacing_mm)
            own = group.create_group(_SCAN)
            write_array(own, arrays.scan, about.name, spacing_mm(about.transform.scan_affine))

    return write_image(
        path,
        image,
        attributes.case_id,
        attributes.spacing_mm,
        {} if label is None else {version: label},
        table,
        attributes.model_dump(mode="json"),
        beside=write_scan_part,
    )


def add_label(
    path: Path,
    version: str,
    label: NDArray[Any],
    table: LabelTable,
    scan_label: NDArray[Any] | None = None,
) -> None:
    """Add a label version to a case; existing versions are never changed.

    Parameters
    ----------
    path
        The case.
    version
        Name of the new version.
    label
        Class indices (z, y, x) on the training grid.
    table
        The classes.
    scan_label
        The same label on the scan's own voxels, turned to LPS.

    Raises
    ------
    FileExistsError
        The version exists.
    ScanError
        The label doesn't fit the case's image, or its scan.
    """
    require_name(version)
    if version in label_versions(path):
        raise FileExistsError(f"{path}: label version {version} exists")
    if label.shape != open_array(path / LEVEL).shape:
        raise ScanError(f"{path}: label of shape {label.shape} doesn't fit the image")
    spacing = read_attributes(path).spacing_mm
    if scan_label is not None:
        add_to_scan(path, version, scan_label, table)
    with _replacing(path, path / "labels" / version) as unfinished:
        write_label(zarr.create_group(unfinished, zarr_format=3), label, table, spacing, version)
    with _changing(path / "labels") as attributes:
        attributes["ome"] = {"version": OME_VERSION, "labels": [*label_versions(path), version]}


def add_scan_image(path: Path, image: NDArray[Any]) -> None:
    """Add the scan itself to a case of an older project, see :func:`read_scan_image`."""
    add_to_scan(path, _SCAN_IMAGE, image)


def add_to_scan(
    path: Path, name: str, array: NDArray[Any], table: LabelTable | None = None
) -> None:
    """Add a label version, or ``image``, on the scan's own voxels turned to LPS.

    One that a killed writer left under this name, and that no ledger knows, is replaced.
    """
    transform = read_attributes(path).transform
    if array.shape != transform.scan_shape:
        raise ScanError(f"{path}: an array of shape {array.shape} doesn't fit the scan")
    target = path / _SCAN / require_name(name)
    target.parent.mkdir(exist_ok=True)
    with _replacing(path, target) as unfinished:
        _write_on_scan(unfinished, name, array, transform, table)


@contextmanager
def _replacing(path: Path, target: Path) -> Iterator[Path]:
    """A new folder, complete or not there, in the place of what a killed writer left."""
    if target.exists():  # it was renamed, but nothing speaks of it yet
        shutil.rmtree(target)
    with new_folder(target, hidden=temp_path(path)) as unfinished:
        yield unfinished


def update_sources(
    path: Path,
    *,
    source: str | None = None,
    label_source: str | None = None,
    channels: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Store in a case where the files that it was made from lie now; None: as before.

    `channels` has those of its further images, by name.
    """
    with _changing(path) as attributes:
        about = attributes[ATTRIBUTES]
        for channel in about.get("channels", ()):
            channel["source"] = channels.get(channel["name"], channel["source"])
        about["source"] = source or about["source"]
        about["label_source"] = label_source or about["label_source"]
        CaseAttributes.model_validate(about)


def note_fingerprints(path: Path, grid_sha256: Mapping[str, str]) -> None:
    """Store in a case what its labels are on the training grid."""
    with _changing(path) as attributes:
        attributes[ATTRIBUTES]["grid_sha256"] = dict(grid_sha256)


def labels_on_disk(path: Path) -> set[str]:
    """Names of a case's label folders, including those that a killed writer didn't list."""
    folders = [folder for folder in (path / "labels", path / _SCAN) if folder.is_dir()]
    names = {p.name for folder in folders for p in folder.iterdir() if p.is_dir()}
    return names - {_SCAN_IMAGE}


def fingerprint(array: NDArray[np.generic]) -> str:
    """SHA-256 (hexadecimal) of an array's voxels in C order."""
    return sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def read_image(path: Path) -> NDArray[np.float32]:
    """Image float32 (z, y, x) of a case; a ScanError if there is none, or it is damaged."""
    return read_array(image_folder(path), whole=True).astype(np.float32, copy=False)


def read_channels(path: Path, count: int) -> NDArray[np.float32]:
    """All images of a case (count, z, y, x), float32, the one that is registered first.

    Raises
    ------
    ScanError
        One is gone or damaged.
    """
    first = read_image(path)
    if count == 1:
        return first[None]
    images = [first]
    for number in range(1, count):
        folder = channel_folder(path, number)
        image = read_array(folder, whole=True)
        if image.shape != first.shape:
            raise ScanError(f"{folder}: isn't on the training grid")
        images.append(image.astype(np.float32, copy=False))
    return np.stack(images)


def channel_folder(path: Path, number: int) -> Path:
    """The array of further image `number`, from 1, on the training grid, as `image_folder`."""
    return _channel_folder(path, number) / LEVEL


def read_channel_scan(path: Path, number: int) -> NDArray[Any]:
    """Further image `number`, from 1, of a case: (z, y, x) on its own voxels, turned to LPS.

    Raises
    ------
    ScanError
        It is gone or damaged.
    """
    return read_array(channel_scan_folder(path, number), whole=True)


def channel_scan_folder(path: Path, number: int) -> Path:
    """The array of further image `number`, from 1, on its own voxels."""
    return _channel_folder(path, number) / _SCAN / LEVEL


def _channel_folder(path: Path, number: int) -> Path:
    folder = path / _CHANNELS / str(number)
    if any(part.is_symlink() for part in (folder / _SCAN, folder, folder.parent)):
        raise ScanError(f"{folder}: a symbolic link, which is not followed")
    return folder


def read_label(path: Path, version: str) -> NDArray[Any]:
    """Class indices (z, y, x), uint8, of a label version; a ScanError if it is gone or damaged."""
    _require_version(path, version)
    return read_array(label_folder(path, version))


def image_folder(path: Path) -> Path:
    """The array of a case's image: nothing in it tells where the scan came from."""
    return path / LEVEL


def label_folder(path: Path, version: str) -> Path:
    """The array of a label version on the training grid."""
    return path / "labels" / require_name(version) / LEVEL


def scan_folder(path: Path, version: str = _SCAN_IMAGE) -> Path:
    """The array of a label version, or of the scan itself, on the scan's own voxels."""
    return path / _SCAN / require_name(version) / LEVEL


def has_on_scan(path: Path, name: str) -> bool:
    """Whether a label version, or ``image``, is there on the scan's own voxels."""
    return (path / _SCAN / name).is_dir()


def read_scan_label(path: Path, version: str) -> NDArray[Any]:
    """Class indices (z, y, x) of one label version on the scan's own voxels, turned to LPS.

    Raises
    ------
    ScanError
        There is no such label, or it is damaged.
    """
    return _read_on_scan(path, version)


def read_scan_image(path: Path) -> NDArray[Any] | None:
    """The scan (z, y, x) with its own intensities, turned to LPS; None where it isn't kept.

    Raises
    ------
    ScanError
        It is damaged.
    """
    return _read_on_scan(path, _SCAN_IMAGE) if has_on_scan(path, _SCAN_IMAGE) else None


def smallest(image: NDArray[np.float32]) -> NDArray[Any]:
    """The same intensities as int16 if that holds them, as it does those of CT and most MR."""
    whole = image.min() >= -(2**15) and image.max() < 2**15
    if whole and np.array_equal(small := image.astype(np.int16), image):
        return small
    return image


def _read_on_scan(path: Path, name: str) -> NDArray[Any]:
    folder = scan_folder(path, name)
    for part in folder.parents[:2]:
        if part.is_symlink():
            raise ScanError(f"{part}: a symbolic link, which is not followed")
    return read_array(folder, whole=True)


def label_versions(path: Path) -> tuple[str, ...]:
    """Names of the label versions of a case, oldest first; a ScanError if it is gone or damaged."""
    folder = path / "labels"
    try:
        names = _LabelList.model_validate(group_attributes(folder)).ome.labels
    except ValidationError as error:
        raise ScanError(f"{folder}: damaged ({from_validation(error)})") from error
    for name in names:
        if not NAME.fullmatch(name) or (folder / name).is_symlink():
            raise ScanError(f"{folder}: {name[:100]!r} can't be a label of this case")
    return tuple(names)


def read_attributes(path: Path) -> CaseAttributes:
    """What is stored with a case about its scan; a ScanError if it is gone or damaged."""
    attributes = group_attributes(path)
    if ATTRIBUTES not in attributes:
        raise ScanError(f"{path}: not a case of a project")
    try:
        return CaseAttributes.model_validate(attributes[ATTRIBUTES])
    except ValidationError as error:
        raise ScanError(f"{path}: damaged ({from_validation(error)})") from error


@contextmanager
def _changing(folder: Path) -> Iterator[dict[str, Any]]:
    """Attributes of a zarr group, to be changed; written back at the end.

    zarr itself doesn't flush its metadata: after a power cut a half-written list of labels
    would make all labels unreadable.
    """
    file = folder / "zarr.json"
    group = json.loads(file.read_bytes())
    yield group["attributes"]
    write_text(file, json.dumps(group, indent=2))


class _LabelList(BaseModel):
    class _Ome(BaseModel):
        labels: list[str] = []

    ome: _Ome


def _require_version(path: Path, version: str) -> None:
    if version not in label_versions(path):
        raise ScanError(f"{path}: no label version {version!r}")


def _write_on_scan(
    target: Path,
    name: str,
    array: NDArray[Any],
    transform: GridTransform,
    table: LabelTable | None,
) -> None:
    """Write the scan itself, or a label of it, into a new folder."""
    group, spacing = zarr.create_group(target, zarr_format=3), spacing_mm(transform.scan_affine)
    if name == _SCAN_IMAGE:
        write_array(group, array, name, spacing)
    else:
        assert table is not None
        write_label(group, array, table, spacing, name)
