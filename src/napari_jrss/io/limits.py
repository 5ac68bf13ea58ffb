"""What a file may ask of this machine before it is read: memory, and how much it unpacks to."""

from __future__ import annotations

from pathlib import Path

import psutil

from napari_jrss.errors import ScanError

MOST_UNPACKED = 1032
"""Most bytes that one compressed byte can hold: deflate's limit, which no DICOM codec reaches."""


def require_memory(path: Path, needed: int) -> None:
    """Raise a ScanError if reading `path` needs more bytes than are free.

    Otherwise the system would end this process.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise ScanError(
            f"{path}: needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
        )
