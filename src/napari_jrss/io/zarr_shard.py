"""Read an array from the one shard that this program writes of a volume, with all cores.

zarr itself takes three times as long, and holds all chunks and the whole array at once.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from napari_jrss.threads import in_threads

_CHECKSUM_BYTES = 4


def in_one_shard(array: zarr.Array[Any]) -> bool:
    """Whether :func:`read_shard` can read an array: one shard, packed as this program does."""
    packing = tuple(map(type, array.compressors))
    return (
        array.shards is not None
        and all(shard >= n for shard, n in zip(array.shards, array.shape, strict=True))
        and packing == (BloscCodec, Crc32cCodec)
        and array.serializer in (BytesCodec(), BytesCodec(endian=None))  # None: single bytes
    )


def read_shard(file: Path, array: zarr.Array[Any]) -> NDArray[Any]:
    """All values of an array (z, y, x) from the file of its shard, which holds every chunk.

    A ValueError or RuntimeError if it is damaged.
    """
    assert array.shards is not None
    stored = np.fromfile(file, np.uint8)
    chunk = array.chunks
    in_shard = tuple(shard // n for shard, n in zip(array.shards, chunk, strict=True))
    index = _checked(stored[-16 * int(np.prod(in_shard)) - _CHECKSUM_BYTES :])
    places = index.view("<u8").reshape(*in_shard, 2)
    out: NDArray[Any] = np.empty(array.shape, array.dtype)

    def unpack(row: int) -> None:
        values = np.empty(chunk, array.dtype)
        for column, rank in product(*map(range, in_shard[1:])):
            offset, length = places[row, column, rank].tolist()
            packed = _checked(stored[offset : offset + length])
            if int.from_bytes(packed[12:16], "little") != packed.size:  # Blosc trusts its header
                raise ValueError("a chunk isn't as long as it states")
            blosc.decompress(packed, values)
            starts = (row * chunk[0], column * chunk[1], rank * chunk[2])
            part = out[tuple(slice(at, at + n) for at, n in zip(starts, chunk, strict=True))]
            part[...] = values[tuple(map(slice, part.shape))]

    in_threads(unpack, range(in_shard[0]))
    return out


def _checked(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes without the checksum (CRC32C) at their end, which must be theirs."""
    found = stored[:-_CHECKSUM_BYTES]
    if google_crc32c.value(found.tobytes()) != int.from_bytes(stored[-_CHECKSUM_BYTES:], "little"):
        raise ValueError("a checksum isn't that of its bytes")
    return found
