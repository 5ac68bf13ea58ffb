"""Open zarr arrays only if they are as this program writes them, or in a usual form of others.

A project may come from a stranger or a failing disk, and zarr trusts the metadata: format 2 has
a codec that unpickles, a shape or a compressed chunk may state terabytes, a missing chunk is
read as zeros, and symbolic links lead out of the folder. All this is checked here first, without
decoding anything.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from napari_jrss.errors import ScanError, from_validation
from napari_jrss.geometry import Shape
from napari_jrss.io.limits import require_memory
from napari_jrss.io.text_files import read_json
from napari_jrss.io.zarr_shard import in_one_shard, read_shard

_METADATA = "zarr.json"
_EMPTY = 2**64 - 1  # offset and length of a chunk that is missing in a shard
_CHECKSUM_BYTES = 4
_HEAD_BYTES = 18  # the longest header of a Zstandard frame
_MOST_FILES = 4096
_MOST_FOREIGN_FILES = 2**17
# None of these runs code, and their chunks can't unpack to more than they state or than deflate.
_FOREIGN_CODECS = {"bytes", "transpose", "blosc", "gzip", "zlib", "zstd", "crc32c"}

Kind = TypeVar("Kind", bound=BaseModel)


class _Codec(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Literal["sharding_indexed", "bytes", "blosc", "zstd", "crc32c"]
    configuration: dict[str, Any] = {}


class _Chunks(BaseModel):
    chunk_shape: tuple[int, int, int]


class _Grid(BaseModel):
    name: Literal["regular"]
    configuration: _Chunks


class _Keys(BaseModel):
    class _Separator(BaseModel):
        separator: Literal["/"] = "/"

    name: Literal["default"] = "default"
    configuration: _Separator = _Separator()


class _Sharding(_Chunks):
    model_config = ConfigDict(extra="forbid")

    codecs: list[_Codec]
    index_codecs: list[_Codec]
    index_location: Literal["end"] = "end"


class _Array(BaseModel):
    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: tuple[int, int, int]
    data_type: Literal["uint8", "uint16", "int16", "float16", "float32"]
    chunk_grid: _Grid
    chunk_key_encoding: _Keys
    codecs: list[_Codec] = Field(min_length=1, max_length=3)
    storage_transformers: tuple[()] = ()


class _Group(BaseModel):
    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: dict[str, Any] = {}


def group_attributes(path: Path) -> dict[str, Any]:
    """Attributes of a zarr group; a :class:`ScanError` if there is none, or a damaged one."""
    return _metadata(path, _Group).attributes


def open_array(path: Path, *, whole: bool = False) -> zarr.Array[Any]:
    """Open an array (z, y, x) for reading.

    With `whole`, a missing chunk is refused, which zarr would fill with zeros. Raises a
    :class:`ScanError` if there is no such array; or it is damaged, too large for the free memory,
    of a type or with a codec that this program doesn't write, or has a symbolic link in it.
    """
    array = _metadata(path, _Array)
    outer = array.chunk_grid.configuration.chunk_shape
    codecs, inner = array.codecs, outer
    if codecs[0].name == "sharding_indexed":
        sharding = _checked(path, _Sharding, codecs[0].configuration)
        codecs, inner = sharding.codecs, sharding.chunk_shape
        if [c.name for c in sharding.index_codecs] != ["bytes", "crc32c"]:
            raise ScanError(f"{path}: a shard's index isn't as this program writes it")
    names = [c.name for c in codecs]
    packing = [name for name in names if name in ("blosc", "zstd")]
    if names not in (["bytes", *packing], ["bytes", *packing, "crc32c"]) or len(packing) > 1:
        raise ScanError(f"{path}: compressed in a way that this program doesn't write")
    itemsize = np.dtype(array.data_type).itemsize
    _require_sizes(path, array.shape, outer, inner, itemsize)
    shards = [-(-n // c) for n, c in zip(array.shape, outer, strict=True)]
    if math.prod(shards) > _MOST_FILES:
        raise ScanError(f"{path}: too many chunks ({math.prod(shards)} files)")
    in_shard = None
    if codecs is not array.codecs:
        in_shard = math.prod(o // i for o, i in zip(outer, inner, strict=True))
    seen = 0
    for index in product(*map(range, shards)):
        file = path / "c" / "/".join(map(str, index))
        for head in _chunk_heads(file, in_shard):
            seen += 1
            if packing and _unpacked_bytes(packing[0], head) != math.prod(inner) * itemsize:
                raise ScanError(f"{file}: damaged")
    if whole and seen < math.prod(-(-n // i) for n, i in zip(array.shape, inner, strict=True)):
        raise ScanError(f"{path}: a part of its voxels is missing")
    try:
        opened = zarr.open_array(path, mode="r", zarr_format=3)
    except Exception as error:  # unexpected metadata make zarr raise errors of any kind
        raise ScanError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from error
    return opened


def read_array(path: Path, *, whole: bool = False) -> NDArray[Any]:
    """All values of an array (z, y, x); a ScanError as by :func:`open_array`."""
    array = open_array(path, whole=whole)
    try:
        return (
            read_shard(path / "c/0/0/0", array) if in_one_shard(array) else np.asarray(array[...])
        )
    except Exception as error:  # each codec reports damage with another exception
        raise ScanError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from error


def read_foreign_array(path: Path, index: tuple[int | slice, ...]) -> NDArray[Any]:
    """A part of an array that another program wrote, in format 2 or 3.

    Numbers of any type, uncompressed or packed by Blosc, gzip, zlib or Zstandard, in shards or not;
    a chunk that isn't there is read as the array's fill value.

    Parameters
    ----------
    path
        Folder of the array.
    index
        One entry for each axis of the array.

    Raises
    ------
    ScanError
        There is no such array; or it is damaged, too large for the free memory, or of another
        type or packing, or has a symbolic link in it.
    """
    old = (path / ".zarray").is_file()
    about = read_json(path / (".zarray" if old else _METADATA))
    try:
        chunk, dtype, packing, in_shard = (_format_2 if old else _format_3)(about)
        shape = [int(n) for n in about["shape"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ScanError(f"{path}: not a readable zarr array ({error!r})") from None
    if len(shape) != len(index):
        raise ScanError(f"{path}: has {len(shape)} axes, not {len(index)}")
    if set(packing) - _FOREIGN_CODECS or dtype.kind not in "iuf":
        raise ScanError(f"{path}: {dtype} packed by {', '.join(packing) or 'nothing'} isn't read")
    chosen = [n for n, i in zip(shape, index, strict=True) if isinstance(i, slice)]
    require_memory(path, 3 * math.prod(chosen) * dtype.itemsize)
    packer = next((name for name in packing if name in ("blosc", "zstd")), None)
    files = (file for file in path.rglob("*") if not file.name.startswith((".z", _METADATA)))
    for number, file in enumerate(files):
        if number > _MOST_FOREIGN_FILES:
            raise ScanError(f"{path}: too many chunks")
        _require_no_links(file)
        for head in _chunk_heads(file, in_shard) if file.is_file() else ():
            if packer and (_unpacked_bytes(packer, head) or 0) > chunk * dtype.itemsize:
                raise ScanError(f"{file}: damaged")
    try:
        return np.asarray(zarr.open_array(path, mode="r", zarr_format=2 if old else 3)[index])
    except Exception as error:  # each codec reports damage with another exception
        raise ScanError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from error


def _format_2(about: dict[str, Any]) -> tuple[int, np.dtype[Any], list[str], int | None]:
    """Values in a chunk, their type, codecs, and chunks in a shard, of a ``.zarray``."""
    packing = [about["compressor"], *(about.get("filters") or ())]
    names = [str(codec["id"]) for codec in packing if codec is not None]
    return math.prod(about["chunks"]), np.dtype(str(about["dtype"])), names, None


def _format_3(about: dict[str, Any]) -> tuple[int, np.dtype[Any], list[str], int | None]:
    """The same of a ``zarr.json``."""
    outer = inner = about["chunk_grid"]["configuration"]["chunk_shape"]
    codecs, in_shard = about["codecs"], None
    if codecs[0]["name"] == "sharding_indexed":
        sharding = codecs[0]["configuration"]
        codecs, inner = sharding["codecs"], sharding["chunk_shape"]
        index = [codec["name"] for codec in sharding["index_codecs"]]
        if index != ["bytes", "crc32c"] or sharding.get("index_location", "end") != "end":
            raise ValueError("the index of the shards")
        in_shard = math.prod(o // i for o, i in zip(outer, inner, strict=True))
    return math.prod(inner), np.dtype(about["data_type"]), [c["name"] for c in codecs], in_shard


def _metadata(path: Path, kind: type[Kind]) -> Kind:
    if not path.is_dir():
        raise ScanError(f"{path}: no such case, or damaged")
    _require_no_links(path, path / _METADATA)
    return _checked(path / _METADATA, kind, read_json(path / _METADATA))


def _require_no_links(*paths: Path) -> None:
    for path in paths:
        if path.is_symlink():
            raise ScanError(f"{path}: a symbolic link, which is not followed")


def _checked(path: Path, kind: type[Kind], content: Any) -> Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        reason = from_validation(error)
        raise ScanError(f"{path}: not as this program writes it ({reason})") from None


def _require_sizes(path: Path, shape: Shape, outer: Shape, inner: Shape, itemsize: int) -> None:
    """Raise a ScanError unless chunks tile the shape and two copies fit the free memory."""
    for length, shard, chunk in zip(shape, outer, inner, strict=True):
        if not 0 < chunk <= length <= 2**16 or shard % chunk or not chunk <= shard < length + chunk:
            raise ScanError(f"{path}: chunks of {inner} in {outer} don't tile a shape of {shape}")
    require_memory(path, 2 * math.prod(shape) * itemsize)


def _chunk_heads(file: Path, chunks: int | None) -> Iterator[bytes]:
    """First bytes of each chunk in a file; `chunks` is their number in a shard, else None."""
    _require_no_links(*file.parents[2::-1], file)
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(found.st_mode):
        raise ScanError(f"{file}: not a file")
    with file.open("rb") as stream:
        if chunks is None:
            yield stream.read(_HEAD_BYTES)
            return
        end = found.st_size - 16 * chunks - _CHECKSUM_BYTES
        if end < 0:
            raise ScanError(f"{file}: truncated")
        stream.seek(end)
        index = np.frombuffer(stream.read(16 * chunks), "<u8").reshape(-1, 2).tolist()
        for offset, length in index:
            if offset == length == _EMPTY:
                continue
            if offset + length > end:
                raise ScanError(f"{file}: damaged")
            stream.seek(offset)
            yield stream.read(min(length, _HEAD_BYTES))


def _unpacked_bytes(codec: str, head: bytes) -> int | None:
    """Unpacked size that the header of a compressed chunk states; None if it states none."""
    if codec == "blosc":  # the header of c-blosc: four bytes, then nbytes, blocksize, cbytes
        return int.from_bytes(head[4:8], "little") if len(head) >= 16 else None
    # A frame of Zstandard (RFC 8878, 3.1.1): magic number, descriptor, window, dictionary, size.
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < _HEAD_BYTES // 2:
        return None
    descriptor = head[4]
    single = descriptor >> 5 & 1
    at = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    size = (single, 2, 4, 8)[descriptor >> 6]
    if size == 0:
        return None
    return int.from_bytes(head[at : at + size], "little") + (256 if size == 2 else 0)
