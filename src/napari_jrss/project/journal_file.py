"""The file of a journal: a line that says what it is, a header, a label, and a record per change.

Header, first label and records are framed by their length and CRC-32, so a file that ends in the
middle of a record, as kill -9 or a full disk leaves it, is read up to the last whole one.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from napari_jrss.errors import ProjectError, from_os_error
from napari_jrss.preprocess import case_store as store
from napari_jrss.project.labels import check_draft
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Label

_NAME = b"napari-jrss journal "
_MAGIC = _NAME + b"2\n"
_FRAME = struct.Struct("<II")  # length of the content, its CRC-32
# time of the change (UNIX), active seconds so far, voxels changed, structures accepted by now
_RECORD = struct.Struct("<ddQI")
_LARGEST_HEADER = 100_000
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class Header(BaseModel):
    """What a journal says of itself, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    case_id: str
    draft: str
    author: str
    started: str
    seconds: float
    shape: tuple[int, int, int]
    classes: int
    sha256: str


@dataclass(frozen=True)
class Held:
    """What a journal file holds.

    Attributes
    ----------
    base, label
        Class indices (z, y, x): as at the beginning, and after the last whole record.
    accepted
        Structures that the person accepted by then.
    seconds
        Active time by then.
    last_change
        When it was made (UNIX time); 0 without a record.
    end
        Where the last whole record ends, in bytes.
    """

    base: Label
    label: Label
    accepted: frozenset[int]
    seconds: float
    last_change: float
    end: int


def beginning(header: Header, base: Label) -> bytes:
    """The file before the first change."""
    content = _MAGIC + _framed(header.model_dump_json().encode())
    return content + _framed(zlib.compress(base.tobytes(), 1))


def encoded(
    at: float,
    seconds: float,
    indices: NDArray[np.int64],
    values: Label,
    accepted: frozenset[int],
) -> bytes:
    """One change: voxels (flat indices) with their classes now, and the structures accepted."""
    content = _RECORD.pack(at, seconds, indices.size, len(accepted))
    content += indices.astype("<u8").tobytes()
    content += values.astype(values.dtype.newbyteorder("<")).tobytes()
    content += np.array(sorted(accepted), "<u2").tobytes()
    return _framed(zlib.compress(content, 1))


def read_journal(project: Project, path: Path) -> tuple[Header, Held]:
    """Header and content, up to the last whole record.

    Raises
    ------
    ProjectError
        There is none, it is damaged at its beginning, or not of this case, grid and classes.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise ProjectError(f"{path}: not a journal of corrections")
        with path.open("rb") as file:
            return _parse(project, path, file)
    except FileNotFoundError:
        raise ProjectError(f"{path}: there is no such journal") from None
    except OSError as error:
        raise ProjectError(f"{path}: can't be read ({from_os_error(error)})") from error


def _parse(project: Project, path: Path, file: BinaryIO) -> tuple[Header, Held]:
    size = os.fstat(file.fileno()).st_size
    header = _checked_header(project, path, file, size)
    dtype = project.table.dtype
    voxels = int(np.prod(header.shape))
    content = _frame(file, size)
    raw = None if content is None else _inflated(content, voxels * dtype.itemsize)
    if raw is None or len(raw) != voxels * dtype.itemsize:
        raise ProjectError(f"{path}: the journal's first label is damaged")
    base = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(header.shape)
    if store.fingerprint(base) != header.sha256:
        raise ProjectError(f"{path}: the journal's first label is damaged")
    label = base.copy()
    held = Held(base, label, frozenset(), header.seconds, 0.0, file.tell())
    largest = _RECORD.size + voxels * (8 + dtype.itemsize) + 2 * header.classes
    while (content := _frame(file, size)) is not None:
        raw = _inflated(content, largest)
        if raw is None or len(raw) < _RECORD.size:
            break
        at, seconds, count, structures = _RECORD.unpack_from(raw)
        if len(raw) != _RECORD.size + count * (8 + dtype.itemsize) + 2 * structures:
            break
        if not (0 <= at < _LATEST and 0 <= seconds < _LATEST):
            break
        indices = np.frombuffer(raw, "<u8", count, _RECORD.size)
        values = np.frombuffer(raw, dtype.newbyteorder("<"), count, _RECORD.size + 8 * count)
        accepted = np.frombuffer(raw, "<u2", structures, len(raw) - 2 * structures)
        if count and (int(indices.max()) >= voxels or int(values.max()) >= header.classes):
            break
        if structures and not 0 < int(accepted.min()) <= int(accepted.max()) < header.classes:
            break
        label.reshape(-1)[indices.astype(np.int64)] = values
        held = Held(base, label, frozenset(accepted.tolist()), seconds, at, file.tell())
    return header, held


def _checked_header(project: Project, path: Path, file: BinaryIO, size: int) -> Header:
    magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        if magic.startswith(_NAME) and magic.endswith(b"\n"):
            raise ProjectError(f"{path}: a journal of another version of napari-jrss")
        raise ProjectError(f"{path}: not a journal of corrections, or a damaged one")
    content = _frame(file, min(size, _LARGEST_HEADER))
    try:
        header = Header.model_validate_json(content or b"")
    except ValidationError as error:
        raise ProjectError(f"{path}: the journal's beginning is damaged") from error
    try:
        check_draft(header.draft)
    except ProjectError as error:
        raise ProjectError(f"{path}: {error}") from error
    if not header.author.strip():
        raise ProjectError(f"{path}: doesn't say whose corrections it holds")
    shape, names = project.grid.shape, project.table.names
    if header.shape != shape or header.classes != len(names):
        raise ProjectError(
            f"{path}: made for a grid of {header.shape} and {header.classes} classes, the "
            f"project has {shape} and {len(names)}"
        )
    if header.case_id != path.stem:
        raise ProjectError(f"{path}: the journal of another case, {header.case_id!r}")
    return header


def _framed(content: bytes) -> bytes:
    return _FRAME.pack(len(content), zlib.crc32(content)) + content


def _frame(file: BinaryIO, largest: int) -> bytes | None:
    """The next frame's content; None if no whole one follows."""
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    length, checksum = _FRAME.unpack(head)
    if length > largest:
        return None
    content = file.read(length)
    return content if len(content) == length and zlib.crc32(content) == checksum else None


def _inflated(content: bytes, largest: int) -> bytes | None:
    """The content unpacked; None if it is damaged or larger than it can be."""
    unpacking = zlib.decompressobj()
    try:
        raw = unpacking.decompress(content, largest + 1)
    except zlib.error:
        return None
    return raw if unpacking.eof and len(raw) <= largest else None
