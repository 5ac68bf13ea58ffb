"""Corrections of one case, kept on the disk while they are made.

A journal is one file, ``journal/<case_id>.journal``: the label that the person began with, and
one record for each change (:mod:`napari_jrss.project.journal_file`). It is removed only when its
label is in the ledger or the person gives the corrections up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import BinaryIO, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_jrss.errors import ProjectError, from_os_error
from napari_jrss.io.atomic import sync_folder, write_bytes
from napari_jrss.preprocess import case_store as store
from napari_jrss.project.journal_file import Header, Held, beginning, encoded, read_journal
from napari_jrss.project.labels import check_draft
from napari_jrss.project.project import Project
from napari_jrss.project.records import Status, now
from napari_jrss.snapshot import Label

SUFFIX = ".journal"
PERIOD_S = 0.25
"""The usual `period_s` of a journal."""
PAUSE_S = 30.0
"""Without a change for longer, a person counts as being away."""


@dataclass(frozen=True)
class Recovered:
    """A person's corrections as far as the journal holds them.

    Attributes
    ----------
    case_id
        The case.
    label, base
        Class indices (z, y, x) on the training grid: as last painted, and as at the beginning.
    accepted
        Structures that the person accepted.
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
    accepted: frozenset[int]
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
    """A journal with corrections, or accepted structures, that no label version holds.

    Attributes
    ----------
    case_id, draft, author, started, last_change, voxels_changed, accepted
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
    accepted: frozenset[int] = frozenset()
    problem: str = ""


@dataclass(frozen=True, eq=False)
class _Change:
    """What waits to be written; `indices` is None where `values` are the whole label."""

    indices: NDArray[np.int64] | None
    values: Label
    accepted: frozenset[int]
    at: float
    seconds: float


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

    def __init__(
        self, project: Project, header: Header, path: Path, held: Held, period_s: float
    ) -> None:
        self.case_id = header.case_id
        self.draft = header.draft
        self.author = header.author
        self.path = path
        self._period_s = period_s
        self._project = project
        self._base = held.base
        self._label = held.label  # the writing thread's own
        self._accepted = held.accepted
        self._classes = header.classes
        self._seconds = held.seconds
        self._last = time.monotonic()
        self._end = held.end
        self._queue: list[_Change] = []
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
        period_s: float = PERIOD_S,
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
        period_s
            Changes are on the disk this long after they were made, plus the time of one flush.

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
        if unsaved_of(project, case_id) is not None:
            raise ProjectError(
                f"{path}: holds corrections of case {case_id} that were not accepted; recover "
                "or discard them first"
            )
        header = Header(
            case_id=case_id,
            draft=draft,
            author=author,
            started=now(),
            seconds=seconds,
            shape=base.shape,
            classes=len(project.table.names),
            sha256=store.fingerprint(base),
        )
        content = beginning(header, base)
        try:
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, content)
            held = Held(base, base.copy(), frozenset(), seconds, 0.0, len(content))
            return cls(project, header, path, held, period_s)
        except OSError as error:
            raise _unwritable(path, error) from error

    @classmethod
    def resume(
        cls, project: Project, case_id: str, period_s: float = PERIOD_S
    ) -> tuple[Self, Recovered]:
        """Go on with a journal that lies in the project, from the label that it holds.

        Raises
        ------
        ProjectError
            As :func:`recover`, or the project or the file can't be written.
        """
        project.check_writable()
        path = project.journal_path(case_id)
        header, held = read_journal(project, path)
        try:
            return cls(project, header, path, held, period_s), _recovered(header, held)
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
        self._queue_up(indices, cast(Label, classes), self._accepted)
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
        self._queue_up(None, self._classed(array).reshape(-1).copy(), self._accepted)
        self._raise_error()

    def note_accepted(self, accepted: Collection[int]) -> None:
        """Note which structures, by class index, the person has accepted by now.

        Raises
        ------
        ValueError
            One that the label can't have.
        ProjectError
            As :meth:`record`.
        """
        if not all(0 < index < self._classes for index in accepted):
            raise ValueError(
                f"case {self.case_id}: the project has structures 1 to {self._classes - 1}"
            )
        nothing = np.zeros(0, self._label.dtype)
        self._queue_up(np.zeros(0, np.int64), nothing, frozenset(accepted))
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
        self._queue_up(None, cast(Label, array.reshape(-1).copy()), frozenset())
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

    def _queue_up(
        self, indices: NDArray[np.int64] | None, values: Label, accepted: frozenset[int]
    ) -> None:
        if self._ended:
            raise ProjectError(f"{self.path}: the journal is closed")
        moment = time.monotonic()
        self._seconds += min(moment - self._last, PAUSE_S)
        self._last = moment
        self._accepted = accepted
        with self._wake:
            self._queue.append(_Change(indices, values, accepted, time.time(), self._seconds))
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
                        self._period_s if self._frames else None,
                    )
                    ended = self._ended
                    queue, self._queue = self._queue, []
                self._frames += [self._made(change) for change in queue]
                self._flush()
                with self._wake:  # strokes come in bursts: one flush for all of a moment
                    self._settled = not self._queue and not self._frames
                    self._wake.notify_all()
                    self._wake.wait_for(lambda: self._ended or self._hurry, self._period_s)

    def _made(self, change: _Change) -> bytes:
        """Bring the label up to date; the record of what really changed."""
        flat, indices = self._label.reshape(-1), change.indices
        if indices is None:
            indices = np.flatnonzero(flat != change.values)
            flat[:] = change.values
        else:
            before = flat[indices]
            flat[indices] = change.values
            indices = np.unique(indices[before != flat[indices]])
        return encoded(change.at, change.seconds, indices, flat[indices], change.accepted)

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
    """Journals that hold more than the label versions of their case, by case id.

    That is corrections, or structures that were accepted one by one. A journal under way is among
    them. A file that can't be read is named with its problem.
    """
    found = (unsaved_of(project, path.stem) for path in _journals(project))
    return [entry for entry in found if entry is not None]


def unsaved_of(project: Project, case_id: str) -> JournalEntry | None:
    """The same of one case; None if it has no journal, or one whose label is a version."""
    path = project.journal_path(case_id)
    try:
        size = path.stat().st_size
        found = recover(project, case_id)
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = f"{path}: can't be read ({from_os_error(error)})"
        return JournalEntry(case_id, "", "", "", "", 0, 0, problem=problem)
    except ProjectError as error:
        problem = str(error) if str(path) in str(error) else f"{path}: {error}"
        return JournalEntry(case_id, "", "", "", "", 0, size, problem=problem)
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
        found.accepted,
    )


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
    return _recovered(*read_journal(project, project.journal_path(case_id)))


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
        raise ProjectError(f"{path}: can't be removed ({from_os_error(error)})") from error


# -- reading


def _journals(project: Project) -> Iterator[Path]:
    folder = project.journal_path("any").parent  # checked for links
    yield from sorted(folder.glob(f"[!.]*{SUFFIX}")) if folder.is_dir() else ()


def _holds_more(project: Project, found: Recovered) -> bool:
    """Whether a label would be lost with its journal."""
    if found.accepted:
        return True  # accepting the case takes them out of the journal
    if not found.voxels_changed:
        return False
    kept = {entry.sha256 for entry in project.label_versions(found.case_id)}
    return store.fingerprint(found.label) not in kept


def _recovered(header: Header, held: Held) -> Recovered:
    last = datetime.fromtimestamp(held.last_change, UTC).isoformat(timespec="seconds")
    return Recovered(
        case_id=header.case_id,
        label=held.label.copy(),
        base=held.base,
        accepted=held.accepted,
        draft=header.draft,
        author=header.author,
        seconds=held.seconds,
        started=header.started,
        last_change=last if held.last_change else header.started,
    )


def _unwritable(path: Path, error: OSError) -> ProjectError:
    return ProjectError(
        f"{path}: corrections can't be written ({from_os_error(error)}); they are in memory only"
    )
