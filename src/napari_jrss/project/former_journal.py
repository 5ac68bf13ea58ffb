"""Corrections in the format of schema version 1: one file of frames, read but no longer written.

The file is a line that names the format, a header in JSON, the first label, and one record per
change. Each part is a frame: its length, its CRC-32 and its content.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from napari_jrss.errors import ProjectError
from napari_jrss.preprocess.case_store import fingerprint
from napari_jrss.project.records import CorrectionsInfo
from napari_jrss.snapshot import Label

SUFFIX = ".journal"
_FORMAT = b"napari-jrss journal 2\n"
_FRAME = struct.Struct("<II")  # length of the content, its CRC-32
# UNIX time of the change, active seconds so far, voxels changed, structures accepted so far
_RECORD = struct.Struct("<ddQI")
_LARGEST_HEADER = 100_000
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


def read_former_journal(
    path: Path, shape: tuple[int, int, int], classes: int, dtype: np.dtype[np.unsignedinteger]
) -> tuple[CorrectionsInfo, Label, Label]:
    """What the file says of itself, its label (z, y, x) after the last whole record, the first one.

    `shape`, `classes` and `dtype` are those of the project's labels. A :class:`ProjectError`, which
    doesn't name the file, if it isn't such a journal, is damaged before the first record, or
    belongs to a project with other labels; an ``OSError`` if it can't be read.
    """
    with path.open("rb") as file:
        if file.read(len(_FORMAT)) != _FORMAT:
            raise ProjectError("not a file of corrections, or a damaged one")
        frames = _frames(file)
        try:
            known = json.loads(next(frames, b"")[:_LARGEST_HEADER])
            first = known.pop("sha256")
            header = CorrectionsInfo(**known, last_change=known["started"], accepted=frozenset())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ProjectError("its beginning is damaged") from error
        if header.shape != shape or header.classes != classes:
            raise ProjectError(
                f"made for a grid of {header.shape} and {header.classes} classes, the project has "
                f"{shape} and {classes}"
            )
        voxels, size = int(np.prod(shape)), dtype.itemsize
        raw = _unpacked(next(frames, b""), voxels * size)
        base = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)
        if base.size != voxels or fingerprint(base) != first:
            raise ProjectError("its first label is damaged")
        label, at = base.copy(), 0.0
        seconds: float = header.seconds
        accepted: NDArray[np.uint16] = np.zeros(0, np.uint16)
        for frame in frames:
            raw = _unpacked(frame, _RECORD.size + voxels * (8 + size) + 2 * classes)
            if len(raw) < _RECORD.size:
                break
            *times, count, structures = _RECORD.unpack_from(raw)
            if len(raw) != _RECORD.size + count * (8 + size) + 2 * structures:
                break
            indices = np.frombuffer(raw, "<u8", count, _RECORD.size)
            values = np.frombuffer(raw, dtype.newbyteorder("<"), count, _RECORD.size + 8 * count)
            ticks = np.frombuffer(raw, "<u2", structures, len(raw) - 2 * structures)
            if (
                not all(0 <= time < _LATEST for time in times)
                or indices.max(initial=0) >= voxels
                or values.max(initial=0) >= classes
                or not 0 < ticks.min(initial=1) <= ticks.max(initial=1) < classes
            ):
                break
            label[indices.astype(np.int64)] = values
            (at, seconds), accepted = times, ticks
    changes: dict[str, object] = {"seconds": seconds, "accepted": frozenset(accepted.tolist())}
    if at:
        changes["last_change"] = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    info = header.model_copy(update=changes)
    return info, label.reshape(shape), base.reshape(shape)


def _frames(file: BinaryIO) -> Iterator[bytes]:
    """The frames' contents, up to the first that is damaged or cut short."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(_FRAME.size)) == _FRAME.size:
        length, checksum = _FRAME.unpack(head)
        content = file.read(min(length, size))
        if len(content) != length or zlib.crc32(content) != checksum:
            return
        yield content


def _unpacked(content: bytes, largest: int) -> bytes:
    """The content unpacked; nothing if it is damaged or larger than it can be."""
    unpacking = zlib.decompressobj()
    try:
        raw = unpacking.decompress(content, largest + 1)
    except zlib.error:
        return b""
    return raw if unpacking.eof and len(raw) <= largest else b""
