"""Corrections of a case while a person makes them, kept on the disk until they are accepted.

A case has one SQLite file for them, ``journal/<case_id>.sqlite``: the label that the person began
with and the label as it is now, slice by slice, each packed with zlib. The file is removed when
its label is in the ledger, or when the person gives the corrections up.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ValidationError

from napari_jrss.errors import (
    ProjectError,
    ScanError,
    from_os_error,
    from_validation,
    one_line,
)
from napari_jrss.io.atomic import sync_folder, write_bytes
from napari_jrss.preprocess.case_store import fingerprint
from napari_jrss.project import former_journal
from napari_jrss.project.database import connect
from napari_jrss.project.folder import CORRECTIONS_SUFFIX
from napari_jrss.project.integrity import check_version
from napari_jrss.project.labels import check_draft
from napari_jrss.project.project import Project
from napari_jrss.project.records import CorrectionsInfo, Status, now
from napari_jrss.snapshot import Label

_APPLICATION_ID = 0x4A525343  # "JRSC"
_SCHEMA = """
    CREATE TABLE corrections (
        only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
        info TEXT NOT NULL
    ) STRICT;
    CREATE TABLE slices (
        z INTEGER PRIMARY KEY,
        base BLOB NOT NULL,
        label BLOB NOT NULL
    ) STRICT;
"""


@dataclass(frozen=True, eq=False)
class Recovered:
    """Corrections as the disk holds them.

    Attributes
    ----------
    info
        Whose they are and how far they got.
    label, base
        Class indices (z, y, x) on the scan's own voxels, turned to LPS: as last painted, and as
        at the beginning.
    carried
        Whether an older version drew them on the training grid, and its file still says so.
    """

    info: CorrectionsInfo
    label: Label
    base: Label
    carried: bool = False

    @property
    def voxels_changed(self) -> int:
        """Number of voxels that differ from the beginning."""
        return int(np.count_nonzero(self.label != self.base))


@dataclass(frozen=True)
class CorrectionsFile:
    """Corrections, or accepted structures, that no label version holds."""

    # As in `Recovered`; empty and 0 where the file can't be read.
    case_id: str
    author: str = ""
    last_change: str = ""
    voxels_changed: int = 0
    accepted: frozenset[int] = frozenset()
    problem: str = ""  # why it can't be read, naming the file; empty if it can


class Corrections:
    """The corrections of one case that a person makes now.

    There is no file before the first :meth:`save`. Every method returns when its work is on the
    disk. Two threads must not call the methods of one object at the same time.

    Parameters
    ----------
    project
        The project of the case.
    case_id
        The case.
    draft
        What the corrections start from, as for :meth:`Project.add_label_version`.
    base
        That label: class indices (z, y, x) on the scan's own voxels, turned to LPS. It is not
        copied.
    author
        Who corrects, by the name that the person gave.
    """

    def __init__(
        self, project: Project, case_id: str, draft: str, base: ArrayLike, author: str
    ) -> None:
        self._project = project
        shape = project.attributes(case_id).transform.scan_shape
        self._base = project.checked_label(case_id, base, shape)
        self._path = project.corrections_path(case_id)
        self._on_disk = False
        started = now()
        self._info = CorrectionsInfo(
            case_id=case_id,
            draft=draft,
            author=author,
            started=started,
            last_change=started,
            seconds=0.0,
            accepted=frozenset(),
            shape=self._base.shape,
            classes=len(project.table.names),
            on_scan=True,
        )

    @classmethod
    def resume(cls, project: Project, found: Recovered) -> Self:
        """Go on with corrections that :func:`recover` has read.

        A :class:`ProjectError` if a file of the former format can't be replaced.
        """
        project.check_writable()
        info = found.info
        resumed = cls(project, info.case_id, info.draft, found.base, info.author)
        resumed._info = info
        resumed._on_disk = resumed._path.exists()
        try:
            if found.carried:
                resumed._create(dict(enumerate(found.label)), info)
            _former_path(project, info.case_id).unlink(missing_ok=True)
        except OSError as error:
            raise resumed._unwritable(error) from error
        return resumed

    @property
    def on_disk(self) -> bool:
        """Whether there is a file with these corrections."""
        return self._on_disk

    @property
    def seconds(self) -> float:
        """Time spent on the case, as last saved."""
        return self._info.seconds

    @property
    def helped(self) -> Mapping[str, int]:
        """Actions of other programs, by their names, as last saved."""
        return self._info.helped

    def save(
        self,
        slices: Mapping[int, ArrayLike],
        *,
        accepted: Collection[int] = (),
        seconds: float = 0.0,
        helped: Mapping[str, int] | None = None,
    ) -> None:
        """Write slices that changed, class indices (y, x) by number along z, in one transaction.

        `accepted` are the structures, by class index, that the person has accepted so far,
        `seconds` the time spent on the case so far, `helped` the actions of other programs by their
        names (None: as before). A :class:`ProjectError` if the project has no such slice, class or
        structure, the disk can't be written, or there are other corrections of this case that were
        neither accepted nor given up.
        """
        case_id, shape, classes = self._info.case_id, self._info.shape, self._info.classes
        if not all(0 <= z < shape[0] for z in slices):
            raise ProjectError(f"case {case_id}: slices are 0 to {shape[0] - 1}")
        if not all(0 < index < classes for index in accepted):
            raise ProjectError(f"case {case_id}: structures are 1 to {classes - 1}")
        arrays = {
            z: self._project.checked_label(case_id, values, shape[1:])
            for z, values in slices.items()
        }
        info = self._info.model_copy(
            update={
                "accepted": frozenset(accepted),
                "seconds": seconds,
                "last_change": now(),
                "helped": self._info.helped if helped is None else dict(helped),
            }
        )
        self._project.check_writable()
        try:
            if self._on_disk:
                with closing(connect(self._path)) as db, db:
                    db.execute("BEGIN IMMEDIATE")
                    db.executemany(
                        "UPDATE slices SET label = ? WHERE z = ?",
                        [(self._packed(array), z) for z, array in arrays.items()],
                    )
                    db.execute("UPDATE corrections SET info = ?", (info.model_dump_json(),))
            else:
                self._check_startable()
                self._create(arrays, info)
        except (OSError, sqlite3.Error) as error:
            raise self._unwritable(error) from error
        self._info = info

    def accept(
        self,
        label: ArrayLike,
        author: str | None = None,
        seconds: float | None = None,
        helped: Mapping[str, int] | None = None,
    ) -> str:
        """Make the corrected label a version in force and remove the file; returns its name.

        Its status is ACCEPTED where nothing was changed, MANUAL when it was begun from a blank
        label, else CORRECTED. Without `author`, `seconds` or `helped` those of the corrections
        count. If the label couldn't be kept, that is a :class:`ProjectError`, and the file stays.
        """
        info = self._info
        array = self._project.checked_label(info.case_id, label, info.shape)
        seconds = info.seconds if seconds is None else seconds
        changed = int(np.count_nonzero(array != self._base))
        if info.draft == "blank":
            status = Status.MANUAL
        else:
            status = Status.CORRECTED if changed else Status.ACCEPTED
        if self._on_disk:
            # The file gets the very label that the ledger gets: if the program is killed between
            # the two, the next one sees that nothing is lost.
            self.save(dict(enumerate(array)), seconds=seconds)
        version = self._project.add_label_version(
            info.case_id,
            array,
            author or info.author,
            draft=info.draft,
            on_scan=True,
            status=status,
            voxels_changed=changed,
            seconds=round(seconds, 1),
            helped=info.helped if helped is None else helped,
        )
        self.discard()
        return version

    def discard(self) -> None:
        """Remove the file, if there is one."""
        if self._on_disk:
            discard(self._project, self._info.case_id)
            self._on_disk = False

    def _check_startable(self) -> None:
        info = self._info
        self._project.case(info.case_id)
        check_draft(info.draft)
        if not info.author.strip():
            raise ProjectError("corrections need their author's name")
        if recoverable(self._project, info.case_id) is not None:
            raise ProjectError(
                f"{self._path}: holds corrections of case {info.case_id} that were not accepted; "
                "recover or discard them first"
            )

    def _create(self, slices: Mapping[int, Label], info: CorrectionsInfo) -> None:
        base = [self._packed(array) for array in self._base]
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
            db.executescript(f"PRAGMA application_id = {_APPLICATION_ID}; {_SCHEMA}")
            db.execute("PRAGMA user_version = 1")
            db.execute("INSERT INTO corrections VALUES (1, ?)", (info.model_dump_json(),))
            db.executemany(
                "INSERT INTO slices VALUES (?, ?, ?)",
                [
                    (z, packed, self._packed(slices[z]) if z in slices else packed)
                    for z, packed in enumerate(base)
                ],
            )
            content = db.serialize()
        self._path.parent.mkdir(exist_ok=True)
        _rollback_path(self._path).unlink(missing_ok=True)
        write_bytes(self._path, content)
        self._on_disk = True

    def _packed(self, array: Label) -> bytes:
        little = self._project.table.dtype.newbyteorder("<")
        return zlib.compress(array.astype(little).tobytes(), 1)

    def _unwritable(self, error: OSError | sqlite3.Error) -> ProjectError:
        reason = from_os_error(error) if isinstance(error, OSError) else one_line(error)
        return ProjectError(
            f"{self._path}: corrections can't be written ({reason}); they are in memory only"
        )


def recover(project: Project, case_id: str) -> Recovered:
    """The corrections of a case as they were last saved.

    The file stays; see :meth:`Corrections.resume` for going on with them. A :class:`ProjectError`,
    which names the file, if there are none, the file is damaged, or it is of other classes or
    another grid.
    """
    project.case(case_id)
    path = project.corrections_path(case_id)
    former = _former_path(project, case_id)
    try:
        if not path.exists() and former.exists():
            path = former
        if not path.exists():
            raise ProjectError("there are no corrections")
        if not path.is_file():  # opening a pipe would wait for a writer
            raise ProjectError("not a file of corrections")
        return (_read_former if path == former else _read)(project, path)
    except OSError as error:
        raise ProjectError(f"{path}: can't be read ({from_os_error(error)})") from error
    except (ProjectError, ScanError, sqlite3.Error, UnicodeDecodeError) as error:
        raise ProjectError(f"{path}: {one_line(error)}") from error


def recoverable(project: Project, case_id: str) -> Recovered | None:
    """The corrections of a case that would be lost; None if there are none.

    There are none either where the label is a version already, as when a program was killed after
    it had accepted the corrections.
    """
    path = project.corrections_path(case_id)
    if not path.exists() and not _former_path(project, case_id).exists():
        return None
    found = recover(project, case_id)
    if found.info.accepted:
        return found  # accepting the case takes them out of the file
    if not found.voxels_changed and not found.carried:
        return None
    kept = {
        entry.scan_sha256 or fingerprint(project.scan_label(case_id, entry.version))
        for entry in project.label_versions(case_id)
    }
    return None if fingerprint(found.label) in kept else found


def unsaved(project: Project) -> list[CorrectionsFile]:
    """All corrections that no label version holds, by case id.

    Corrections under way are among them. A file that can't be read is named with its problem.
    """
    folder = project.corrections_path("any").parent  # checked for links
    paths = folder.glob("[!.]*") if folder.is_dir() else ()
    suffixes = (CORRECTIONS_SUFFIX, former_journal.SUFFIX)
    entries = []
    for case_id in sorted({path.stem for path in paths if path.suffix in suffixes}):
        try:
            found = recoverable(project, case_id)
        except (ProjectError, ScanError) as error:
            path = project.corrections_path(case_id)
            problem = str(error) if str(folder) in str(error) else f"{path}: {error}"
            entries.append(CorrectionsFile(case_id, problem=problem))
            continue
        if found is not None:
            info, changed = found.info, found.voxels_changed
            entries.append(
                CorrectionsFile(case_id, info.author, info.last_change, changed, info.accepted)
            )
    return entries


def discard(project: Project, case_id: str) -> None:
    """Remove the corrections of a case, if there are any; a ProjectError if that fails."""
    project.check_writable()
    path = project.corrections_path(case_id)
    try:
        # One of the former format first: it would be offered again without the newer one.
        for each in (_former_path(project, case_id), path, _rollback_path(path)):
            each.unlink(missing_ok=True)
        if path.parent.exists():
            sync_folder(path.parent)
    except OSError as error:
        raise ProjectError(f"{path}: can't be removed ({from_os_error(error)})") from error


def _former_path(project: Project, case_id: str) -> Path:
    return project.corrections_path(case_id, former_journal.SUFFIX)


def _rollback_path(path: Path) -> Path:
    """SQLite's own file beside a database, with what an unfinished transaction replaced."""
    return path.with_name(f"{path.name}-journal")


def _read(project: Project, path: Path) -> Recovered:
    with closing(connect(path)) as db:
        check_version(db, _APPLICATION_ID, (_SCHEMA,), "a file of corrections")
        (text,) = db.execute("SELECT info FROM corrections").fetchone() or ("",)
        rows = db.execute("SELECT z, base, label FROM slices ORDER BY z").fetchall()
    try:
        info = CorrectionsInfo.model_validate_json(text)
    except ValidationError as error:
        raise ProjectError(f"damaged ({from_validation(error)})") from error
    _check(project, info, path)
    depth, *size = info.shape
    if [z for z, _, _ in rows] != list(range(depth)):
        raise ProjectError("damaged (a slice is missing)")
    dtype = project.table.dtype
    bases, labels = np.empty((2, depth, *size), dtype)
    for z, *packed in rows:
        for content, target in zip(packed, (bases, labels), strict=True):
            unpacking = zlib.decompressobj()
            try:
                raw = unpacking.decompress(content, target[z].nbytes + 1)
            except zlib.error as error:
                raise ProjectError(f"damaged (slice {z})") from error
            if len(raw) != target[z].nbytes or not unpacking.eof:
                raise ProjectError(f"damaged (slice {z})")
            target[z] = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(size)
    if max(bases.max(), labels.max()) >= len(project.table.names):
        raise ProjectError("damaged (a class that the project doesn't have)")
    return (
        Recovered(info, labels, bases) if info.on_scan else _carried(project, info, labels, bases)
    )


def _carried(project: Project, info: CorrectionsInfo, label: Label, base: Label) -> Recovered:
    """Corrections that an older version drew on the training grid, on the scan's own voxels."""
    base, label = project.carry_to_scan(info.case_id, info.draft, base, label)
    info = info.model_copy(update={"shape": base.shape, "on_scan": True})
    return Recovered(info, label, base, carried=True)


def _read_former(project: Project, path: Path) -> Recovered:
    shape, table = project.grid.shape, project.table
    found = former_journal.read_former_journal(path, shape, len(table.names), table.dtype)
    _check(project, found[0], path)
    return _carried(project, *found)


def _check(project: Project, info: CorrectionsInfo, path: Path) -> None:
    """Raise a ProjectError unless a file belongs to its case and this project."""
    check_draft(info.draft)
    if not info.author.strip():
        raise ProjectError("doesn't say whose corrections it holds")
    if info.case_id != path.stem:
        raise ProjectError(f"holds the corrections of another case, {info.case_id!r}")
    transform = project.attributes(info.case_id).transform
    shape = transform.scan_shape if info.on_scan else project.grid.shape
    classes = len(project.table.names)
    if info.shape != shape or info.classes != classes:
        raise ProjectError(
            f"made for a grid of {json.dumps(info.shape)} and {info.classes} classes, the project "
            f"has {json.dumps(shape)} and {classes}"
        )
    if not all(0 < index < classes for index in info.accepted):
        raise ProjectError("damaged (an accepted structure that the project doesn't have)")
