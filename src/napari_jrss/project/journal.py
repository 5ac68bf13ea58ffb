"""Corrections of one case, kept on the disk while they are made.

A journal is one file, ``journal/<case_id>.journal``: a line that says what it is, a header, the
label that the person began with, and then one record for each change. Header, label and records
are framed by their length and CRC-32, so a file that ends in the middle of a record, as kill -9
or a full disk leaves it, is read up to the last whole one. The file is removed only when its
label is in the ledger or the person gives the corrections up.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import BinaryIO, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from napari_jrss.data import store
from napari_jrss.data.atomic import sync_folder, write_bytes
from napari_jrss.data.batches import Label
from napari_jrss.project.errors import ProjectError
from napari_jrss.project.labels import check_draft
from napari_jrss.project.ledger import Status, now
from napari_jrss.project.project import Project

SUFFIX = ".journal"
PERIOD_S = 0.25
"""Changes are on the disk this long after they were made, plus the time of one flush.

The default of a journal's `period_s`.
"""
PAUSE_S = 30.0
"""Without a change for longer, a person counts as being away."""

_MAGIC = b"napari-jrss journal 1\n"
_FRAME = struct.Struct("<II")  # length of the content, its CRC-32
_RECORD = struct.Struct("<ddQ")  # time of the change (UNIX), active seconds so far, voxels
_LARGEST_HEADER = 100_000
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class _Header(BaseModel):
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
class Recovered:
    """A person's corrections as far as the journal holds them.

    Attributes
    ----------
    case_id
        The case.
    label, base
        Class indices (z, y, x) on the training grid: as last painted, and as at the beginning.
    draft, author
        What it was made from, and by whom.
    seconds
        Time spent on it.
    started, last_change
        UTC times, ISO 8601.
    """

    case_id: str
    label: Label
    base: Label
    draft: str
    author: str
    seconds: float
    started: str
    last_change: str

    @property
    def voxels_changed(self) -> int:
        """Number of voxels that differ from the beginning."""
        return int(np.count_nonzero(self.label != self.base))


@dataclass(frozen=True)
class JournalEntry:
    """A journal with corrections that no label version holds.

    Attributes
    ----------
    case_id, draft, author, started, last_change, voxels_changed
        As in :class:`Recovered`; empty and 0 where the file can't be read.
    bytes
        Size of the file.
    problem
        Why it can't be recovered, naming the file; empty if it can.
    """

    case_id: str
    draft: str
    author: str
    started: str
    last_change: str
    voxels_changed: int
    bytes: int
    problem: str = ""


class Journal:
    """The corrections of one case under way. Make one with :meth:`start` or :meth:`resume`.

    Call it from one thread, such as the window's: a call only takes a copy, and a thread of
    the journal's own writes it. Close it before its project.

    Attributes
    ----------
    case_id, draft, author
        As given at the start.
    path
        The file.
    """

    def __init__(self, project: Project, header: _Header, path: Path, held: _Held) -> None:
        self.case_id = header.case_id
        self.draft = header.draft
        self.author = header.author
        self.path = path
        self.period_s = PERIOD_S
        self._project = project
        self._base = held.base
        self._label = held.label  # the writing thread's own
        self._classes = header.classes
        self._seconds = held.seconds
        self._last = time.monotonic()
        self._end = held.end
        self._queue: list[tuple[NDArray[np.int64] | None, Label, float, float]] = []
        self._frames: list[bytes] = []
        self._error: OSError | None = None
        self._settled = True
        self._hurry = False
        self._wake = Condition()
        self._begin()

    @classmethod
    def start(
        cls,
        project: Project,
        case_id: str,
        draft: str,
        base_label: ArrayLike,
        author: str,
        seconds: float = 0.0,
    ) -> Self:
        """Begin the journal of a case; it is on the disk when this returns.

        Parameters
        ----------
        project
            Open for writing.
        case_id
            The case.
        draft
            What the corrections start from, as for :meth:`Project.add_label_version`.
        base_label
            That label: class indices (z, y, x) on the training grid.
        author
            Who corrects, by the name that the person gave.
        seconds
            Time spent on the case before.

        Raises
        ------
        ProjectError
            The case has a journal with corrections that were neither accepted nor given up,
            the label doesn't fit, or the file can't be written.
        """
        project.check_writable()
        project.case(case_id)
        check_draft(draft)
        if not author.strip():
            raise ProjectError("corrections need their author's name")
        base = project.checked_label(case_id, np.asarray(base_label)).copy()
        path = project.journal_path(case_id)
        if path.exists() and _is_unsaved(project, path):
            raise ProjectError(
                f"{path}: holds corrections of case {case_id} that were not accepted; recover "
                "or discard them first"
            )
        header = _Header(
            case_id=case_id,
            draft=draft,
            author=author,
            started=now(),
            seconds=seconds,
            shape=base.shape,
            classes=len(project.table.names),
            sha256=store.fingerprint(base),
        )
        content = _MAGIC + _framed(header.model_dump_json().encode())
        content += _framed(zlib.compress(base.tobytes(), 1))
        try:
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, content)
            return cls(project, header, path, _Held(base, base.copy(), seconds, 0.0, len(content)))
        except OSError as error:
            raise _unwritable(path, error) from error

    @classmethod
    def resume(cls, project: Project, case_id: str) -> tuple[Self, Recovered]:
        """Go on with a journal that lies in the project, from the label that it holds.

        Raises
        ------
        ProjectError
            As :func:`recover`, or the project or the file can't be written.
        """
        project.check_writable()
        path = project.journal_path(case_id)
        header, held = _read(project, path)
        try:
            return cls(project, header, path, held), _recovered(header, held)
        except OSError as error:
            raise _unwritable(path, error) from error

    @property
    def seconds(self) -> float:
        """Active time so far; a pause counts at most :data:`PAUSE_S`."""
        return self._seconds + min(time.monotonic() - self._last, PAUSE_S)

    @property
    def error(self) -> ProjectError | None:
        """Why the latest changes aren't on the disk (it is tried again), or None."""
        error = self._error
        return None if error is None else _unwritable(self.path, error)

    def record(self, indices_flat: ArrayLike, values: ArrayLike) -> None:
        """Note that voxels got new classes.

        Parameters
        ----------
        indices_flat
            Which, as indices into the flattened (C order) label.
        values
            Their classes now: one for each, or one for all.

        Raises
        ------
        ValueError
            An index or class that the label can't have.
        ProjectError
            What was noted before can't be written. These changes are kept too, and all are
            tried again; call :meth:`discard` or make room on the disk.
        """
        indices = np.array(indices_flat, np.int64).ravel()
        given = np.asarray(values)
        if indices.size and not 0 <= indices.min() <= indices.max() < self._label.size:
            raise ValueError(f"case {self.case_id}: an index lies outside the label")
        classes = np.broadcast_to(self._classed(given), indices.shape).copy()
        self._queue_up(indices, cast(Label, classes))
        self._raise_error()

    def checkpoint(self, label: ArrayLike) -> None:
        """Note the whole label, for changes whose voxels aren't known, such as an undo.

        Parameters
        ----------
        label
            Class indices (z, y, x); only what differs is written.

        Raises
        ------
        ValueError
            Another shape, or a class that the label can't have.
        ProjectError
            As :meth:`record`.
        """
        array = np.asarray(label)
        if array.shape != self._label.shape:
            raise ValueError(
                f"case {self.case_id}: label of shape {array.shape}, not {self._label.shape}"
            )
        self._queue_up(None, self._classed(array).reshape(-1).copy())
        self._raise_error()

    def accept(self, label: ArrayLike, *, status: Status | None = None) -> str:
        """Make the corrected label a version in force, then remove the journal.

        Parameters
        ----------
        label
            As it is now: class indices (z, y, x).
        status
            None: ACCEPTED where nothing was changed, MANUAL when begun from a blank label,
            else CORRECTED.

        Returns
        -------
        str
            The version. If the program is killed before the journal is gone, the next one sees
            that it holds nothing that was lost.

        Raises
        ------
        ProjectError
            The label couldn't be kept; the journal goes on.
        """
        array = self._project.checked_label(self.case_id, np.asarray(label))
        changed = int(np.count_nonzero(array != self._base))
        if status is None:
            corrected = Status.MANUAL if self.draft == "blank" else Status.CORRECTED
            status = corrected if changed or self.draft == "blank" else Status.ACCEPTED
        # The file shall hold the very label that the ledger gets: then a kill between the two
        # leaves a journal that `unsaved` knows to be kept.
        self._queue_up(None, cast(Label, array.reshape(-1).copy()))
        self._stop()
        try:
            version = self._project.add_label_version(
                self.case_id,
                array,
                self.author,
                draft=self.draft,
                status=status,
                voxels_changed=changed,
                seconds=round(self.seconds, 1),
            )
        except BaseException:
            self._begin()
            raise
        discard(self._project, self.case_id)
        return version

    def flush(self) -> None:
        """Wait until all that was noted is on the disk.

        Raises
        ------
        ProjectError
            It can't be written.
        """
        with self._wake:
            self._hurry = True
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._settled or self._error is not None)
            self._hurry = False
        self._raise_error()

    def close(self) -> None:
        """Write what is left and keep the file for :meth:`resume`; safe to call again.

        Raises
        ------
        ProjectError
            The last changes can't be written.
        """
        self._stop()
        self._raise_error()

    def discard(self) -> None:
        """Remove the journal: its label is in the ledger, or given up."""
        self._stop()
        discard(self._project, self.case_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- on the caller's thread

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _classed(self, values: NDArray[np.generic]) -> Label:
        if values.size and values.dtype.kind not in "iub":
            raise ValueError(f"case {self.case_id}: classes are integers, not {values.dtype}")
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < self._classes:
            raise ValueError(
                f"case {self.case_id}: the project has classes 0 to {self._classes - 1}"
            )
        return cast(Label, values.astype(self._label.dtype))

    def _queue_up(self, indices: NDArray[np.int64] | None, values: Label) -> None:
        if self._ended:
            raise ProjectError(f"{self.path}: the journal is closed")
        moment = time.monotonic()
        self._seconds += min(moment - self._last, PAUSE_S)
        self._last = moment
        with self._wake:
            self._queue.append((indices, values, time.time(), self._seconds))
            self._settled = False
            self._wake.notify_all()

    def _begin(self) -> None:
        self._file: BinaryIO = self.path.open("r+b")
        self._file.truncate(self._end)
        self._ended = False
        self._thread = Thread(target=self._write, name=f"journal of {self.case_id}", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        with self._wake:
            self._ended = True
            self._wake.notify_all()
        self._thread.join()

    # -- on the journal's thread

    def _write(self) -> None:
        with self._file:
            ended = False
            while not ended:
                with self._wake:
                    self._wake.wait_for(
                        lambda: self._queue or self._ended,
                        self.period_s if self._frames else None,
                    )
                    ended = self._ended
                    queue, self._queue = self._queue, []
                for indices, values, at, seconds in queue:
                    self._frames.append(self._change(indices, values, at, seconds))
                self._flush()
                with self._wake:  # strokes come in bursts: one flush for all of a moment
                    self._settled = not self._queue and not self._frames
                    self._wake.notify_all()
                    self._wake.wait_for(lambda: self._ended or self._hurry, self.period_s)

    def _change(
        self, indices: NDArray[np.int64] | None, values: Label, at: float, seconds: float
    ) -> bytes:
        """Bring the label up to date; the record of what really changed."""
        flat = self._label.reshape(-1)
        if indices is None:
            indices = np.flatnonzero(flat != values)
            flat[:] = values
        else:
            before = flat[indices]
            flat[indices] = values
            indices = np.unique(indices[before != flat[indices]])
        content = _RECORD.pack(at, seconds, indices.size)
        content += indices.astype("<u8").tobytes() + _little_endian(flat[indices])
        return _framed(zlib.compress(content, 1))

    def _flush(self) -> None:
        """Append the records that aren't on the disk yet; what fails is tried again."""
        if not self._frames:
            return
        content = b"".join(self._frames)
        try:
            self._file.seek(self._end)
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._error = error
            return
        self._end += len(content)
        self._frames.clear()
        self._error = None


def unsaved(project: Project) -> list[JournalEntry]:
    """Journals with corrections that no label version of their case holds, by case id.

    A journal under way is among them. A file that can't be read is named with its problem.
    """
    return [entry for path in _journals(project) if (entry := _entry(project, path)) is not None]


def recover(project: Project, case_id: str) -> Recovered:
    """The corrections in the journal of a case, up to the last whole record.

    The file stays; see :meth:`Journal.resume` for going on with it.

    Raises
    ------
    ProjectError
        There is no journal, it is damaged at its beginning, or of other classes or another
        grid. The message names the file.
    """
    project.case(case_id)
    return _recovered(*_read(project, project.journal_path(case_id)))


def discard(project: Project, case_id: str) -> None:
    """Remove the journal of a case, if there is one.

    Raises
    ------
    ProjectError
        The project is read-only, or the file can't be removed.
    """
    project.check_writable()
    path = project.journal_path(case_id)
    try:
        path.unlink(missing_ok=True)
        if path.parent.exists():
            sync_folder(path.parent)
    except OSError as error:
        raise ProjectError(f"{path}: can't be removed ({error.strerror})") from error


# -- reading


@dataclass(frozen=True)
class _Held:
    """What a journal file holds."""

    base: Label
    label: Label
    seconds: float
    last_change: float
    end: int  # of its last whole record


def _journals(project: Project) -> Iterator[Path]:
    folder = project.journal_path("any").parent  # checked for links
    yield from sorted(folder.glob(f"[!.]*{SUFFIX}")) if folder.is_dir() else ()


def _entry(project: Project, path: Path) -> JournalEntry | None:
    case_id = path.name.removesuffix(SUFFIX)
    try:
        size = path.stat().st_size
        found = recover(project, case_id)
    except FileNotFoundError:
        return None  # discarded meanwhile
    except OSError as error:
        problem = f"{path}: can't be read ({error.strerror})"
        return JournalEntry(case_id, "", "", "", "", 0, 0, problem)
    except ProjectError as error:
        problem = str(error) if str(path) in str(error) else f"{path}: {error}"
        return JournalEntry(case_id, "", "", "", "", 0, size, problem)
    if not _holds_more(project, found):
        return None
    return JournalEntry(
        case_id,
        found.draft,
        found.author,
        found.started,
        found.last_change,
        found.voxels_changed,
        size,
    )


def _is_unsaved(project: Project, path: Path) -> bool:
    return _entry(project, path) is not None


def _holds_more(project: Project, found: Recovered) -> bool:
    """Whether a label would be lost with its journal."""
    if not found.voxels_changed:
        return False
    kept = {entry.sha256 for entry in project.label_versions(found.case_id)}
    return store.fingerprint(found.label) not in kept


def _recovered(header: _Header, held: _Held) -> Recovered:
    last = datetime.fromtimestamp(held.last_change, UTC).isoformat(timespec="seconds")
    return Recovered(
        case_id=header.case_id,
        label=held.label.copy(),
        base=held.base,
        draft=header.draft,
        author=header.author,
        seconds=held.seconds,
        started=header.started,
        last_change=last if held.last_change else header.started,
    )


def _read(project: Project, path: Path) -> tuple[_Header, _Held]:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise ProjectError(f"{path}: not a journal of corrections")
        with path.open("rb") as file:
            return _parse(project, path, file)
    except FileNotFoundError:
        raise ProjectError(f"{path}: there is no such journal") from None
    except OSError as error:
        raise ProjectError(f"{path}: can't be read ({error.strerror})") from error


def _parse(project: Project, path: Path, file: BinaryIO) -> tuple[_Header, _Held]:
    size = os.fstat(file.fileno()).st_size
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ProjectError(f"{path}: not a journal of corrections, or a damaged one")
    content = _frame(file, min(size, _LARGEST_HEADER))
    try:
        header = _Header.model_validate_json(content or b"")
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
    if header.case_id != path.name.removesuffix(SUFFIX):
        raise ProjectError(f"{path}: the journal of another case, {header.case_id!r}")
    dtype = project.table.dtype
    voxels = int(np.prod(shape))
    content = _frame(file, size)
    raw = None if content is None else _inflated(content, voxels * dtype.itemsize)
    if raw is None or len(raw) != voxels * dtype.itemsize:
        raise ProjectError(f"{path}: the journal's first label is damaged")
    base = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    if store.fingerprint(base) != header.sha256:
        raise ProjectError(f"{path}: the journal's first label is damaged")
    label = base.copy()
    held = _Held(base, label, header.seconds, 0.0, file.tell())
    while (content := _frame(file, size)) is not None:
        raw = _inflated(content, _RECORD.size + voxels * (8 + dtype.itemsize))
        if raw is None or len(raw) < _RECORD.size:
            break
        at, seconds, count = _RECORD.unpack_from(raw)
        if len(raw) != _RECORD.size + count * (8 + dtype.itemsize):
            break
        if not (0 <= at < _LATEST and 0 <= seconds < _LATEST):
            break
        indices = np.frombuffer(raw, "<u8", count, _RECORD.size)
        values = np.frombuffer(raw, dtype.newbyteorder("<"), count, _RECORD.size + 8 * count)
        if count and (int(indices.max()) >= voxels or int(values.max()) >= header.classes):
            break
        label.reshape(-1)[indices.astype(np.int64)] = values
        held = _Held(base, label, seconds, at, file.tell())
    return header, held


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


def _little_endian(values: Label) -> bytes:
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def _unwritable(path: Path, error: OSError) -> ProjectError:
    return ProjectError(
        f"{path}: corrections can't be written ({error.strerror or error}); they are in memory only"
    )
