"""Folders that exports write to; files that a person made or edited stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from hashlib import file_digest, sha256
from pathlib import Path

from napari_jrss.errors import ProjectError, from_os_error
from napari_jrss.io.atomic import write_bytes, write_text
from napari_jrss.project.folder import LEDGER

RECORD = "napari-jrss.sha256"


class ExportFolder:
    """A folder, and what each of its files held when an export wrote it.

    ``napari-jrss.sha256`` in the folder lists these: a digest and a name per line. Nothing is
    written before :meth:`make`. A :class:`ProjectError` if one of the files that are going to be
    written is there and isn't as an export wrote it, `path` is a file, or it lies in a project.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path = path
        self._record = path / RECORD
        self._written: defaultdict[str, set[str]] = defaultdict(set)
        for parent in (path.resolve(), *path.resolve().parents):
            if (parent / LEDGER).is_file():
                raise ProjectError(f"{path}: lies in the project {parent}; choose another folder")
        if path.exists() and not path.is_dir():
            raise ProjectError(f"{path}: can't be made (it is a file)")
        if self._record.is_file():
            for line in self._record.read_text("utf-8", errors="replace").splitlines():
                digest, _, name = line.partition("  ")
                self._written[name].add(digest)
        theirs = [name for name in names if not self._is_ours(name)]
        if theirs:
            more = f" and {len(theirs) - 1} more" if len(theirs) > 1 else ""
            raise ProjectError(
                f"{path}: holds files that no export wrote or that were edited since: "
                f"{theirs[0]}{more}; move them away or export into another folder"
            )

    def make(self) -> None:
        """Make the folder where it isn't there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProjectError(f"{self.path}: can't be made ({from_os_error(error)})") from error

    def write(self, name: str, content: bytes) -> Path:
        """Write a file, so that a later export knows it even if this program dies."""
        digest = sha256(content).hexdigest()
        if digest not in self._written[name]:
            # Before the file is written, and beside the digest of its present content.
            self._written[name].add(digest)
            entries = sorted((n, d) for n, digests in self._written.items() for d in digests)
            write_text(self._record, "".join(f"{d}  {n}\n" for n, d in entries))
        write_bytes(self.path / name, content)
        self._written[name] = {digest}
        return self.path / name

    def _is_ours(self, name: str) -> bool:
        path = self.path / name
        if not path.is_file():
            return not path.exists()
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest() in self._written[name]
