"""Files sent over a :class:`~napari_jrss.io.channel.Channel`, checked by their SHA-256."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath

from napari_jrss.errors import JRSSError
from napari_jrss.io.atomic import sync_folder, sync_tree, temp_path
from napari_jrss.io.channel import Channel, Message

PIECE, COMMIT = "piece", "commit"
_PIECE_BYTES = 2**18
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class TransferError(JRSSError):
    """A file that was sent is damaged, or may not be written here."""


def checksum(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file."""
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """The regular files of a folder and of those in it, but for hidden ones and links."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            yield from files_below(path)
        elif path.is_file():
            yield path


def checksums(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The checksums of files by their names below `root`, with ``/``."""
    return {path.relative_to(root).as_posix(): checksum(path) for path in paths}


def is_safe(name: str) -> bool:
    """Whether a name stays below the folder that it is put into, on every system."""
    return all(_PART.fullmatch(part) for part in name.split("/"))


def send_files(channel: Channel, root: Path, files: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Send files below `root` with the checksums that they should have.

    Yields each piece that has gone: the name of its file, and its bytes. A :data:`COMMIT`, which
    the caller sends, then has the other side put the files in their places.
    """
    for name, known in files.items():
        with (root / name).open("rb") as stream:
            piece = stream.read(_PIECE_BYTES)
            while following := stream.read(_PIECE_BYTES):
                channel.send(PIECE, piece, file=name)
                yield name, len(piece)
                piece = following
            channel.send(PIECE, piece, file=name, sha256=known)
        yield name, len(piece)


class Incoming:
    """Takes in what :func:`send_files` sends: nothing is in its place before all is there.

    Parameters
    ----------
    root
        The folder that the names are below.
    accepted
        Says of a safe name whether it may be written here.
    """

    def __init__(self, root: Path, accepted: Callable[[str], bool] = lambda name: True) -> None:
        self._root, self._accepted = root, accepted
        self._aside = temp_path(root / "incoming")
        self._hash = sha256()

    def add(self, message: Message) -> None:
        """Take in a piece; a :class:`TransferError` if the file that it completes is damaged."""
        name = str(message.body.get("file"))
        if not is_safe(name) or not self._accepted(name):
            raise TransferError(f"the other side sent a file that isn't wanted: {name[:100]!r}")
        path = self._aside / PurePosixPath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            stream.write(message.payload)
        self._hash.update(message.payload)
        if "sha256" in message.body:
            digest, self._hash = self._hash.hexdigest(), sha256()
            if digest != message.body["sha256"]:
                raise TransferError(f"{name}: damaged on its way (its checksum is another)")

    def commit(self) -> None:
        """Put all files in their places; a folder that is new comes whole."""
        if self._aside.is_dir():
            sync_tree(self._aside)
            _merge(self._aside, self._root)
        self.discard()

    def discard(self) -> None:
        """Remove what isn't in its place yet."""
        shutil.rmtree(self._aside, ignore_errors=True)


def _merge(new: Path, place: Path) -> None:
    for path in sorted(new.iterdir()):
        target = place / path.name
        if path.is_dir() and target.is_dir() and not target.is_symlink():
            _merge(path, target)
        else:
            path.replace(target)
    sync_folder(place)
