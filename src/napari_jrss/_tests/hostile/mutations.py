"""Ways to spoil a file: bytes, JSON, NIfTI headers, tables, databases, and what a name stands for.

Each mutation is a small frozen value, so that a failing test prints how to make the file again.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import shutil
import sqlite3
import struct
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydicom.datadict import tag_for_keyword

DEEP, TWICE = "@deep@", "@twice@"
_ABYSS = "[" * 20_000 + "]" * 20_000

_INTEGERS = (0, -1, 1, 7, 255, 256, 2**15, 2**31 - 1, 2**31, 2**53, 2**63, -(2**63), 10**400)
_FLOATS = (0.5, -0.0, 1e-300, 1e-9, 1e5, 1e30, 1e308, float("nan"), float("inf"), -float("inf"))
_WORDS = ("", " ", "x", ".", "..", "0", "-1", "1e9", "NaN", "true", "null", "\0", "\n", "\ud800")
_PATHS = ("../../outside/loot", "/etc/passwd", "a/b", "C:\\x", "CON", "v0001", "v9999")
_SPELLS = ("[/red]", "\x1b[2J", "'; DROP TABLE cases; --", "🧠" * 60, "a" * 70_000, "9" * 6000)

numbers = st.sampled_from([*_INTEGERS, *_FLOATS])
texts = st.sampled_from([*_WORDS, *_PATHS, *_SPELLS])
values: SearchStrategy[Any] = st.one_of(
    numbers,
    texts,
    st.sampled_from([None, True, False, [], {}, [[]], [0] * 9, {"a": 1}, {"": {}}, DEEP, TWICE]),
)


class Mutation(Protocol):
    """Something done to a folder that held a sound thing."""

    def __call__(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Bytes:
    """Edits of a file's bytes: ``cut`` it, ``set`` or ``insert`` bytes, ``drop`` some.

    Positions are fractions of the file's length, so that one edit fits every file.
    """

    name: str
    edits: tuple[tuple[str, float, bytes], ...]

    def __call__(self, folder: Path) -> None:
        path = folder / self.name
        content = bytearray(path.read_bytes())
        for kind, where, noise in self.edits:
            at = int(where * len(content))
            match kind:
                case "cut":
                    del content[at:]
                case "set":
                    content[at : at + len(noise)] = noise
                case "flip" if content:
                    content[at - 1] ^= 1 << noise[0] % 8
                case "insert":
                    content[at:at] = noise
                case "drop":
                    del content[at : at + 4 * len(noise)]
                case "repeat":
                    content += content[at:]
        path.write_bytes(content)


@dataclass(frozen=True)
class Json:
    """Edits of a JSON file: follow the steps from its root, there put, remove or rename."""

    name: str
    edits: tuple[tuple[tuple[int, ...], str, Any], ...]
    start: int = 0  # where the JSON begins, for a file with a length before it

    def __call__(self, folder: Path) -> None:
        path = folder / self.name
        content = path.read_bytes()
        if self.start:
            (length,) = struct.unpack("<Q", content[: self.start])
            text = spoiled(content[self.start : self.start + length].decode(), self.edits).encode()
            rest = content[self.start + length :]
            path.write_bytes(struct.pack("<Q", len(text)) + text + rest)
        else:
            path.write_text(spoiled(content.decode(), self.edits), encoding="utf-8")


def spoiled(text: str, edits: tuple[tuple[tuple[int, ...], str, Any], ...]) -> str:
    """A JSON text after edits; one that an edit before made too deep stays as it is."""
    try:
        tree = [json.loads(text)]
    except RecursionError:
        return text
    for steps, kind, value in edits:
        parent: Any = tree
        key: Any = 0
        for step in steps:
            child = parent[key]
            if not isinstance(child, dict | list) or not child:
                break
            parent, key = child, list(child)[step % len(child)] if isinstance(child, dict) else step
            if isinstance(parent, list):
                key %= len(parent)
        match kind:
            case "remove" if parent is not tree:
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[str(value)[:1000]] = parent.pop(key)
            case _:
                parent[key] = copy.deepcopy(value)
        if not tree:
            tree = [None]
    result = json.dumps(tree[0]).replace(f'"{DEEP}"', _ABYSS)
    # A name that occurs twice: which of the two would hold?
    return result.replace(f'"{TWICE}"', '{"a": 1, "a": 2}')


@dataclass(frozen=True)
class NiftiHeader:
    """Values put into the fields of a NIfTI-1 header, the file being packed again if it was."""

    name: str
    fields: tuple[tuple[str, int, float], ...]

    def __call__(self, folder: Path) -> None:
        path = folder / self.name
        content = path.read_bytes()
        packed = content[:2] == b"\x1f\x8b"
        content = gzip.decompress(content) if packed else content
        block = np.frombuffer(content[:348], nib.nifti1.header_dtype).copy()
        for field, index, value in self.fields:
            with np.errstate(all="ignore"):
                flat = np.atleast_1d(block[field][0]).copy().reshape(-1)
                if np.issubdtype(flat.dtype, np.integer):
                    limits = np.iinfo(flat.dtype)
                    value = int(min(max(np.nan_to_num(value), limits.min), limits.max))
                flat[index % flat.size] = value
            block[field] = flat.reshape(block[field][0].shape)
        content = block.tobytes() + content[348:]
        path.write_bytes(gzip.compress(content, 1) if packed else content)


@dataclass(frozen=True)
class DicomElements:
    """Bytes put in the place of an element's value, in a file of explicit VR, little endian."""

    name: str
    elements: tuple[tuple[str, bytes], ...]

    def __call__(self, folder: Path) -> None:
        path = folder / self.name
        content = path.read_bytes()
        for keyword, value in self.elements:
            tag = tag_for_keyword(keyword)
            assert tag is not None
            start = content.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 128)
            if start < 0:
                continue
            vr = content[start + 4 : start + 6]
            value += b"\0" * (len(value) % 2)
            length = int.from_bytes(content[start + 6 : start + 8], "little")
            new = struct.pack("<H", len(value)) + value
            if vr in (b"OB", b"OW", b"SQ", b"UN"):
                continue
            content = content[: start + 6] + new + content[start + 8 + length :]
        path.write_bytes(content)


@dataclass(frozen=True)
class Rows:
    """Cells put into a CSV file, by row and column."""

    name: str
    cells: tuple[tuple[int, int, str], ...]
    separator: str = ","

    def __call__(self, folder: Path) -> None:
        path = folder / self.name
        table = [line.split(",") for line in path.read_text().splitlines()]
        for row, column, text in self.cells:
            line = table[row % len(table)]
            line[column % len(line)] = text
        lines = (self.separator.join(line) for line in table)
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Sql:
    """Statements run on a database by somebody who keeps no rule; what fails is passed over."""

    name: str
    statements: tuple[tuple[str, tuple[Any, ...]], ...]

    def __call__(self, folder: Path) -> None:
        with closing(sqlite3.connect(folder / self.name, isolation_level=None)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA writable_schema = ON")
            for statement, arguments in self.statements:
                try:
                    connection.execute(statement, arguments)
                except (sqlite3.Error, OverflowError, UnicodeEncodeError, ValueError):
                    continue


@dataclass(frozen=True)
class Replaced:
    """A file or folder that is gone, or something else than it was."""

    name: str
    by: str

    def __call__(self, folder: Path) -> None:
        path = folder / self.name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        match self.by:
            case "nothing":
                pass
            case "empty file":
                path.write_bytes(b"")
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "link to itself":
                path.symlink_to(path.name)
            case "link outside":
                path.symlink_to(folder.parent / "outside" / "loot")
            case "link to a folder outside":
                path.symlink_to(folder.parent / "outside")
            case "endless":
                path.symlink_to("/dev/zero")


@dataclass(frozen=True)
class Frames:
    """Edits of the frames of a correction journal, their lengths and checksums made right again.

    A frame that begins as JSON is spoiled as such; of others, 8 bytes are set, packed again.
    """

    name: str
    first: int  # where the frames begin
    edits: tuple[tuple[int, float, bytes, tuple[tuple[int, ...], str, Any]], ...]

    def __call__(self, folder: Path) -> None:
        path = folder / self.name
        content = path.read_bytes()
        frames, at = [], self.first
        while at < len(content):
            length, _ = struct.unpack_from("<II", content, at)
            frames.append(content[at + 8 : at + 8 + length])
            at += 8 + length
        for which, where, noise, edit in self.edits:
            frame = frames[which % len(frames)]
            if which % len(frames) == 0:
                frame = spoiled(frame.decode(), (edit,)).encode()
            else:
                raw = bytearray(zlib.decompress(frame))
                at = int(where * len(raw)) // 8 * 8
                raw[at : at + 8] = (noise * 8)[:8]
                frame = zlib.compress(bytes(raw))
            frames[which % len(frames)] = frame
        path.write_bytes(
            content[: self.first]
            + b"".join(struct.pack("<II", len(f), zlib.crc32(f)) + f for f in frames)
        )


REPLACEMENTS = (
    *("nothing", "empty file", "folder", "pipe", "link to itself", "link outside"),
    *("link to a folder outside", "endless"),
)


def of_bytes(*names: str) -> SearchStrategy[Mutation]:
    """Byte edits of one of the files."""
    edit = st.tuples(
        st.sampled_from(["cut", "set", "flip", "flip", "insert", "drop", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=16),
            st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]),
        ),
    )
    return st.builds(
        Bytes, st.sampled_from(names), st.lists(edit, min_size=1, max_size=4).map(tuple)
    )


def of_json(*names: str, start: int = 0) -> SearchStrategy[Mutation]:
    """Edits of the tree of one of the files."""
    edit = st.tuples(
        st.lists(st.integers(0, 40), max_size=9).map(tuple),
        st.sampled_from(["put", "put", "put", "remove", "rename"]),
        values,
    )
    edits = st.lists(edit, min_size=1, max_size=3).map(tuple)
    return st.builds(Json, st.sampled_from(names), edits, st.just(start))


def of_nifti(*names: str) -> SearchStrategy[Mutation]:
    """Values in the header's fields, those of shape, place and type more often."""
    often = ["dim"] * 6 + ["pixdim"] * 4 + ["datatype", "bitpix", "vox_offset", "magic_"] * 2
    often += ["srow_x", "srow_y", "srow_z", "qform_code", "sform_code", "scl_slope", "scl_inter"]
    often += ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "sizeof_hdr", "xyzt_units"]
    known = [name for name in often if name in nib.nifti1.header_dtype.names]
    field = st.tuples(
        st.sampled_from(known),
        st.integers(0, 7),
        numbers.map(_float),
    )
    return st.builds(
        NiftiHeader, st.sampled_from(names), st.lists(field, min_size=1, max_size=4).map(tuple)
    )


def of_dicom(*names: str) -> SearchStrategy[Mutation]:
    """Values of elements that decide about shape, place, values and encoding."""
    keywords = (
        *("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit"),
        *("SamplesPerPixel", "PixelRepresentation", "PhotometricInterpretation", "PixelSpacing"),
        *("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"),
        *("SeriesInstanceUID", "SOPClassUID", "TransferSyntaxUID", "Modality", "ImageType"),
        *("PatientID", "SpecificCharacterSet", "SliceThickness"),
    )
    numbers_in_text = [b"0", b"-1", b"1e308", b"NaN", b"inf", b"1\\1", b"1e-300\\1", b"9" * 300]
    words = [b"", b"\\", b"1\\0\\0\\0\\1", b"0\\0\\0\\0\\0\\0", b"1\\0\\0\\1\\0\\0", b"\xff\xfe"]
    syntaxes = [f"1.2.840.10008.1.2{end}".encode() for end in ("", ".2", ".1.99", ".5", ".4.90")]
    shorts = [struct.pack("<H", n) for n in (0, 1, 2, 12, 16, 32, 64, 1000, 32767, 65535)]
    element = st.tuples(
        st.sampled_from(keywords),
        st.one_of(
            st.sampled_from([*numbers_in_text, *words, *syntaxes, *shorts, *shorts]),
            st.binary(max_size=20),
        ),
    )
    return st.builds(
        DicomElements, st.sampled_from(names), st.lists(element, min_size=1, max_size=3).map(tuple)
    )


def of_rows(name: str) -> SearchStrategy[Mutation]:
    """Cells of a table."""
    cell = st.tuples(
        st.integers(0, 9),
        st.integers(0, 9),
        st.one_of(texts, numbers.map(_short), st.just('"'), st.just('a"b'), st.just("a,b,c")),
    )
    separators = st.sampled_from([",", ",", ",", ";", "\t", ",,", "\0,"])
    return st.builds(
        Rows, st.just(name), st.lists(cell, min_size=1, max_size=3).map(tuple), separators
    )


def _float(number: float) -> float:
    return float(min(number, 10**308)) if isinstance(number, int) else number


def _short(number: float) -> str:
    return str(number)[:500]


def of_frames(name: str, first: int) -> SearchStrategy[Mutation]:
    """Frames of a journal, with right checksums."""
    edit = st.tuples(
        st.lists(st.integers(0, 40), max_size=3).map(tuple),
        st.sampled_from(["put", "put", "remove", "rename"]),
        values,
    )
    doubles = st.sampled_from([float("nan"), float("inf"), 1e300, -1.0, 1e18]).map(
        lambda v: struct.pack("<d", v)
    )
    frame = st.tuples(
        st.integers(0, 5),
        st.floats(0, 1, exclude_max=True),
        st.one_of(doubles, st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)),
        edit,
    )
    frames = st.lists(frame, min_size=1, max_size=2).map(tuple)
    return st.builds(Frames, st.just(name), st.just(first), frames)


def of_replacement(*names: str) -> SearchStrategy[Mutation]:
    """Something else in the place of one of the files or folders."""
    return st.builds(Replaced, st.sampled_from(names), st.sampled_from(REPLACEMENTS))


def of_sql(name: str, tables: dict[str, tuple[str, ...]]) -> SearchStrategy[Mutation]:
    """Rows, schema and header of a database, given its columns by table."""
    cells: SearchStrategy[Any] = st.one_of(
        st.none(),
        st.sampled_from([0, 1, -1, 2**62, 0.5, 1e308, b"", b"\xff\xfe", b"x" * 9]),
        texts.filter(lambda t: "\ud800" not in t),
        st.just(_ABYSS),
        st.just('{"a": 1}'),
    )
    columns = [(table, column) for table, names in tables.items() for column in names]
    objects = sorted(tables)

    def update(where: tuple[str, str], value: Any) -> tuple[str, tuple[Any, ...]]:
        return f"UPDATE {where[0]} SET {where[1]} = ?", (value,)

    def cast(where: tuple[str, str], value: bytes) -> tuple[str, tuple[Any, ...]]:
        return f"UPDATE {where[0]} SET {where[1]} = CAST(? AS TEXT)", (value,)

    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"

    def plain(text: str) -> tuple[str, tuple[Any, ...]]:
        return text, ()

    statement = st.one_of(
        st.builds(update, st.sampled_from(columns), cells),
        st.builds(update, st.sampled_from(columns), cells),
        st.builds(cast, st.sampled_from(columns), st.sampled_from([b"\xff\xfe", b"\xed\xa0\x80"])),
        st.sampled_from(objects).map(lambda t: plain(f"DELETE FROM {t}")),
        st.sampled_from(objects).map(lambda t: plain(f"DROP TABLE {t}")),
        st.sampled_from(columns).map(lambda c: plain(f"ALTER TABLE {c[0]} DROP COLUMN {c[1]}")),
        st.sampled_from(columns).map(lambda c: plain(f"ALTER TABLE {c[0]} RENAME {c[1]} TO zz")),
        st.sampled_from(["application_id", "user_version"]).flatmap(
            lambda p: st.sampled_from([-1, 0, 1, 2, 99, 2**31 - 1]).map(
                lambda v: plain(f"PRAGMA {p} = {v}")
            )
        ),
        st.sampled_from(
            [
                "DROP TRIGGER label_version_kept",
                "CREATE TRIGGER extra AFTER UPDATE ON cases BEGIN DELETE FROM failed_imports; END",
                "ALTER TABLE cases RENAME TO cases_before",
                f"CREATE VIEW cases AS {endless} 'x' || i AS case_id, 'train' AS split, "
                "'unlabelled' AS status, NULL AS label_version, NULL AS reference_version, "
                "NULL AS subject_group, '' AS added FROM n",
                "DELETE FROM sqlite_schema WHERE name = 'events'",
                "UPDATE sqlite_schema SET rootpage = 99999 WHERE name = 'cases'",
                "UPDATE sqlite_schema SET sql = 'CREATE TABLE cases (case_id)' "
                "WHERE name = 'cases'",
                "PRAGMA journal_mode = WAL",
            ]
        ).map(plain),
    )
    return st.builds(Sql, st.just(name), st.lists(statement, min_size=1, max_size=3).map(tuple))
