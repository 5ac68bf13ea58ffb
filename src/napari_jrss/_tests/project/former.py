"""A file of corrections as the program wrote it before it kept them in SQLite."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

FORMAT = b"napari-jrss journal 2\n"


def framed(content: bytes) -> bytes:
    return struct.pack("<II", len(content), zlib.crc32(content)) + content


def record(
    at: float,
    seconds: float,
    indices: Sequence[int],
    classes: bytes,
    accepted: Collection[int] = (),
) -> bytes:
    """One change: flat indices, their classes now (uint8), and the structures accepted by now."""
    content = struct.pack("<ddQI", at, seconds, len(indices), len(accepted))
    content += np.array(indices, "<u8").tobytes() + classes
    content += np.array(sorted(accepted), "<u2").tobytes()
    return framed(zlib.compress(content, 1))


def former_file(
    case_id: str, draft: str, base: np.ndarray, author: str, classes: int, *records: bytes
) -> bytes:
    header = {
        "case_id": case_id,
        "draft": draft,
        "author": author,
        "started": "2026-11-20T10:00:00+00:00",
        "seconds": 0.0,
        "shape": base.shape,
        "classes": classes,
        "sha256": sha256(base.tobytes()).hexdigest(),
    }
    content = FORMAT + framed(json.dumps(header, separators=(",", ":")).encode())
    return content + framed(zlib.compress(base.tobytes(), 1)) + b"".join(records)


def write_former_file(folder: Path, case_id: str, content: bytes) -> Path:
    path = folder / "journal" / f"{case_id}.journal"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path
