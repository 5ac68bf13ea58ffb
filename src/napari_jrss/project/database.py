"""What happened to every case and every round, and who did it: one SQLite file.

The ledger holds no images. A row is written last, when the files that it is about are on the disk,
so a crash leaves at most a folder that no row mentions. Label versions and events are only ever
added: triggers in the database itself refuse to change or remove one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple
from hashlib import sha256
from pathlib import Path
from threading import RLock

from napari_jrss.errors import ProjectError, from_os_error, one_line
from napari_jrss.io.atomic import sync_file, sync_folder, temp_path, write_bytes
from napari_jrss.project import schema
from napari_jrss.project.integrity import check_version
from napari_jrss.project.records import (
    Case,
    Event,
    FailedImport,
    HistoryEntry,
    LabelVersion,
    Round,
    RoundKind,
    RoundOutcome,
    Split,
    Status,
    now,
    round_folder,
)

_CASE = "case_id, split, status, label_version, reference_version, subject_group"


class Ledger:
    """The database of one project; safe to call from several threads of one program.

    Opening it raises a :class:`ProjectError` for what is no ledger, a damaged one, or one made by a
    newer version.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._lock = RLock()
        try:
            self._connection = connect(path)
        except sqlite3.Error as error:
            raise ProjectError(_unreadable(path, error)) from error
        try:
            with self.reading() as connection:
                self._bring_up_to_date()
                connection.execute("PRAGMA foreign_keys = ON")
                if read_only:
                    connection.execute("PRAGMA query_only = ON")
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def create(
        cls,
        path: Path,
        label_table: str,
        preprocessing: str,
        made_by: str,
        plan: str | None = None,
        channels: str = "[]",
    ) -> None:
        """Write an empty ledger of the current schema into a folder that has none."""
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            schema.migrate(connection, 0)
            connection.execute(
                "INSERT INTO project (only_row, created, made_by, label_table, preprocessing, plan,"
                " channels) VALUES (1, ?, ?, ?, ?, ?, ?)",
                (now(), made_by, label_table, preprocessing, plan, channels),
            )
            _log(connection, Event.CREATED, f"by napari-jrss {made_by}")
            write_bytes(path, connection.serialize())

    def close(self) -> None:
        """Close the database; safe to call again."""
        with self._lock:
            self._connection.close()

    def _bring_up_to_date(self) -> None:
        try:
            version = check_version(
                self._connection,
                schema.APPLICATION_ID,
                schema.MIGRATIONS,
                "the ledger of a project",
            )
        except ProjectError as error:
            advice = "" if "newer version" in str(error) else _remedy(self.path)
            raise ProjectError(f"{self.path}: {error}{advice}") from None
        if version == len(schema.MIGRATIONS):
            return
        if self.read_only:
            raise ProjectError(
                f"{self.path}: made by an older version (schema {version}); open it once for "
                "writing, which brings it up to date"
            )
        self._keep_copy(version)
        schema.migrate(self._connection, version)

    def _keep_copy(self, version: int) -> None:
        """Copy the ledger as it is, before its schema changes."""
        path = schema.copy_before_migration(self.path, version)
        temporary = temp_path(path)
        try:
            with closing(sqlite3.connect(temporary)) as copy:
                self._connection.backup(copy)
            sync_file(temporary)
            temporary.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise ProjectError(f"{path}: can't be written ({from_os_error(error)})") from error
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries; damage found on the way is a :class:`ProjectError`."""
        with self._lock:
            try:
                yield self._connection
            except ProjectError:
                raise
            # A value that isn't one of ours, or that isn't UTF-8.
            except (sqlite3.Error, ValueError, TypeError, RecursionError) as error:
                raise ProjectError(_unreadable(self.path, error)) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed at the end, or rolled back whatever goes wrong."""
        if self.read_only:
            raise ProjectError(f"{self.path.parent}: is open read-only")
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    # -- the project itself

    def setting(self, name: str) -> str | None:
        """A column of the project's row, such as ``label_table``, ``preprocessing`` or ``grid``."""
        with self.reading() as connection:
            row = connection.execute(f"SELECT {name} FROM project").fetchone()
        if row is None:
            raise ProjectError(f"{self.path}: has no project row; the ledger is damaged")
        return None if row[0] is None else str(row[0])

    def set_grid(self, grid: str) -> None:
        """Record the training grid that preprocessing settled on for all cases."""
        with self.writing() as connection:
            connection.execute("UPDATE project SET grid = ?", (grid,))

    def change_plan(
        self, preprocessing: str, grid: str, plan: str, folder: str, author: str | None, detail: str
    ) -> None:
        """Let the cases be those of another folder, on another grid. No teacher is in force."""
        with self.writing() as connection:
            connection.execute(
                "UPDATE project SET preprocessing = ?, grid = ?, plan = ?, cases_folder = ?",
                (preprocessing, grid, plan, folder),
            )
            _log(connection, Event.PLAN_CHANGED, detail, author=author)

    def first_round(self) -> int:
        """Number of the first round since the plan was last changed."""
        with self.reading() as connection:
            (number,) = connection.execute(
                "SELECT coalesce(max(round) + 1, 0) FROM events WHERE kind = ? AND number < "
                "(SELECT max(number) FROM events WHERE kind = ?)",
                (Event.ROUND_STARTED, Event.PLAN_CHANGED),
            ).fetchone()
        return int(number)

    def set_label_table(self, table: str, author: str | None, detail: str) -> None:
        """Replace the label table, whose names or colours a person changed."""
        with self.writing() as connection:
            connection.execute("UPDATE project SET label_table = ?", (table,))
            _log(connection, Event.STRUCTURE_CHANGED, detail, author=author)

    # -- cases

    def cases(self) -> list[Case]:
        """All cases, by id."""
        with self.reading() as connection:
            rows = connection.execute(f"SELECT {_CASE} FROM cases ORDER BY case_id").fetchall()
            return [_case(row) for row in rows]

    def case(self, case_id: str) -> Case | None:
        """One case by its exact id."""
        with self.reading() as connection:
            row = connection.execute(
                f"SELECT {_CASE} FROM cases WHERE case_id = ?", (case_id,)
            ).fetchone()
            return None if row is None or row[0] != case_id else _case(row)

    def has_case(self, case_id: str) -> bool:
        """Whether a case has this id; upper and lower case don't count."""
        with self.reading() as connection:
            found = connection.execute("SELECT 1 FROM cases WHERE case_id = ?", (case_id,))
            return found.fetchone() is not None

    def add_case(
        self, case_id: str, group: str | None = None, first_label: LabelVersion | None = None
    ) -> None:
        """Register a case whose volumes are in place, with the label it came with."""
        with self.writing() as connection:
            version = None if first_label is None else first_label.version
            connection.execute(
                "INSERT INTO cases (case_id, split, status, label_version, subject_group, added) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    case_id,
                    Split.TRAIN,
                    Status.UNLABELLED if first_label is None else first_label.status,
                    version,
                    group,
                    now(),
                ),
            )
            if first_label is not None:
                _insert_version(connection, first_label)
            author = None if first_label is None else first_label.author
            _log(connection, Event.IMPORTED, author=author, case_id=case_id, version=version)

    def assign(self, cases: Sequence[Case], detail: str, groups: Mapping[str, str | None]) -> None:
        """Write the outcome of a split: where each case belongs and which label it shows."""
        with self.writing() as connection:
            connection.executemany(
                "UPDATE cases SET split = ?, status = ?, label_version = ?, reference_version = ?"
                " WHERE case_id = ?",
                [
                    (c.split, c.status, c.label_version, c.reference_version, c.case_id)
                    for c in cases
                ],
            )
            connection.executemany(
                "UPDATE cases SET subject_group = ? WHERE case_id = ?",
                [(group, case_id) for case_id, group in groups.items()],
            )
            _log(connection, Event.SPLIT, detail)

    def relinked(self, case_id: str, detail: str) -> None:
        """Record that a file which a case was made from was found elsewhere."""
        with self.writing() as connection:
            _log(connection, Event.RELINKED, detail, case_id=case_id)

    def fail_import(self, case_id: str, reason: str) -> None:
        """Record a scan that didn't become a case."""
        with self.writing() as connection:
            connection.execute(
                "INSERT INTO failed_imports (at, case_id, reason) VALUES (?, ?, ?)",
                (now(), case_id, reason),
            )

    def failed_imports(self) -> list[FailedImport]:
        """The latest failure of each scan that hasn't become a case since."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT at, case_id, reason FROM failed_imports WHERE number IN "
                "(SELECT max(number) FROM failed_imports GROUP BY case_id) "
                "AND case_id NOT IN (SELECT case_id FROM cases) ORDER BY case_id"
            ).fetchall()
        return [FailedImport(*row) for row in rows]

    # -- labels and decisions

    def versions(self, case_id: str | None = None) -> list[LabelVersion]:
        """All label versions of a case, or of all cases, oldest first."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT v.*, s.sha256 FROM label_versions v "
                "LEFT JOIN scan_labels s ON s.case_id = v.case_id AND s.version = v.version "
                "WHERE ?1 IS NULL OR v.case_id = ?1 ORDER BY v.rowid",
                (case_id,),
            ).fetchall()
            return [LabelVersion(a, b, Status(status), *rest) for a, b, status, *rest in rows]

    def add_version(self, label: LabelVersion, kind: Event, detail: str) -> None:
        """Register a label that is in place and put it in force."""
        with self.writing() as connection:
            _insert_version(connection, label)
            connection.execute(
                "UPDATE cases SET status = ?, label_version = ?, reference_version = NULL "
                "WHERE case_id = ?",
                (label.status, label.version, label.case_id),
            )
            _log(
                connection,
                kind,
                detail,
                author=label.author,
                case_id=label.case_id,
                version=label.version,
            )

    def add_scan_label(self, case_id: str, version: str, sha256: str) -> None:
        """Register that a label of an older project is in place on its scan's own voxels."""
        with self.writing() as connection:
            connection.execute(
                "INSERT INTO scan_labels VALUES (?, ?, ?)", (case_id, version, sha256)
            )

    def decide(
        self, case_id: str, kind: Event, author: str, round_number: int | None, reason: str
    ) -> None:
        """Record that a person rejected or skipped the pseudo-label of a case."""
        with self.writing() as connection:
            if kind is Event.REJECTED:
                # A pseudo-label's rejection leaves a label that a person made in force.
                connection.execute(
                    "UPDATE cases SET status = 'rejected' "
                    "WHERE case_id = ? AND status = 'unlabelled'",
                    (case_id,),
                )
            _log(
                connection, kind, reason, author=author, case_id=case_id, round_number=round_number
            )

    def history(self, case_id: str | None) -> list[HistoryEntry]:
        """What happened, oldest first: to one case, or to the whole project."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT at, kind, author, case_id, version, round, detail FROM events "
                "WHERE ?1 IS NULL OR case_id = ?1 ORDER BY number",
                (case_id,),
            ).fetchall()
            return [HistoryEntry(row[0], Event(row[1]), *row[2:]) for row in rows]

    # -- rounds

    def add_round(
        self,
        number: int,
        parent: int | None,
        config: str,
        roles: Mapping[str, tuple[str, str | None]],
        kind: RoundKind = RoundKind.TRAINING,
        detail: str = "",
    ) -> None:
        """Register a round whose folder is in place: case id -> (role, label version)."""
        with self.writing() as connection:
            for (left,) in connection.execute(
                "SELECT number FROM rounds WHERE outcome = 'running'"
            ).fetchall():
                _end_round(connection, left, RoundOutcome.CANCELLED, "left unfinished")
            connection.execute(
                "INSERT INTO rounds (number, parent, started, outcome, config_sha256, kind) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    number,
                    parent,
                    now(),
                    RoundOutcome.RUNNING,
                    sha256(config.encode()).hexdigest(),
                    kind,
                ),
            )
            connection.executemany(
                "INSERT INTO round_cases VALUES (?, ?, ?, ?)",
                [(number, case_id, *role) for case_id, role in roles.items()],
            )
            _log(connection, Event.ROUND_STARTED, detail, round_number=number)

    def resume_round(self, number: int) -> None:
        """Record that an unfinished round goes on."""
        with self.writing() as connection:
            connection.execute(
                "UPDATE rounds SET outcome = 'running', finished = NULL WHERE number = ?",
                (number,),
            )
            _log(connection, Event.ROUND_RESUMED, round_number=number)

    def end_round(self, number: int, outcome: RoundOutcome, metrics: str, promote: bool) -> None:
        """Record how a round ended and, if `promote`, that its teacher is the current one."""
        with self.writing() as connection:
            connection.execute("UPDATE rounds SET metrics = ? WHERE number = ?", (metrics, number))
            _end_round(connection, number, outcome, outcome)
            if promote:
                _log(connection, Event.PROMOTED, round_number=number)

    def set_metrics(self, number: int, metrics: str, reason: str) -> None:
        """Replace the metrics of a round that has ended, and record why."""
        with self.writing() as connection:
            connection.execute("UPDATE rounds SET metrics = ? WHERE number = ?", (metrics, number))
            _log(connection, Event.ROUND_ENDED, reason, round_number=number)

    def rounds(self, folder: Path) -> list[Round]:
        """All rounds by number; `folder` is where their folders lie."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT number, parent, outcome, started, finished, config_sha256, metrics, kind "
                "FROM rounds ORDER BY number"
            ).fetchall()
            used: dict[int, dict[str, str]] = {}
            for number, case_id, version in connection.execute(
                "SELECT number, case_id, version FROM round_cases WHERE version IS NOT NULL"
            ):
                used.setdefault(number, {})[case_id] = version
            return [
                Round(
                    number=row[0],
                    folder=folder / round_folder(row[0]),
                    parent=row[1],
                    outcome=RoundOutcome(row[2]),
                    started=row[3],
                    finished=row[4],
                    config_sha256=row[5],
                    label_versions=used.get(row[0], {}),
                    metrics=dict(json.loads(row[6])),
                    kind=RoundKind(row[7]),
                )
                for row in rows
            ]

    def roles(self, number: int) -> dict[str, tuple[str, str | None]]:
        """What each case was for in a round: case id -> (role, label version)."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT case_id, role, version FROM round_cases WHERE number = ?", (number,)
            ).fetchall()
        return {case_id: (role, version) for case_id, role, version in rows}

    def promote(self, number: int, author: str | None, detail: str) -> None:
        """Make a round's teacher the current one."""
        with self.writing() as connection:
            _log(connection, Event.PROMOTED, detail, author=author, round_number=number)

    def teacher(self) -> int | None:
        """Number of the round promoted last, since the plan was last changed."""
        with self.reading() as connection:
            row = connection.execute(
                "SELECT round FROM events WHERE kind IN (?, ?) ORDER BY number DESC LIMIT 1",
                (Event.PROMOTED, Event.PLAN_CHANGED),
            ).fetchone()
        return None if row is None or row[0] is None else int(row[0])


def _remedy(path: Path) -> str:
    """What to do about a damaged ledger."""
    copies = sorted(path.parent.glob(schema.copy_before_migration(path, 0).name.replace("0", "*")))
    older = f" (beside it is {copies[-1].name}, from before an update)" if copies else ""
    return (
        f". Put this file of your latest backup in its place{older}; nothing was changed, and "
        "scans and labels are still in the folder"
    )


def _unreadable(path: Path, error: Exception) -> str:
    """Why a ledger can't be read, and what to do if its file is damaged."""
    if type(error) is sqlite3.DatabaseError:  # its subclasses say that it is locked, for example
        return f"{path}: damaged ({one_line(error)}){_remedy(path)}"
    return f"{path}: {one_line(error)[:300]}"


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing database in autocommit mode; ``sqlite3.Error`` if it can't be opened."""
    # "rw" never makes a file; where the file can't be written, SQLite reads it all the same. Even
    # a reader may have to roll back what a killed writer left unfinished.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=10.0,
        check_same_thread=False,
    )
    connection.execute("PRAGMA trusted_schema = OFF")
    # A transaction is committed when the rollback file is deleted: flush the folder after that.
    connection.execute("PRAGMA synchronous = EXTRA")
    return connection


def _case(row: tuple[str, str, str, str | None, str | None, str | None]) -> Case:
    return Case(row[0], Split(row[1]), Status(row[2]), row[3], row[4], row[5])


def _insert_version(connection: sqlite3.Connection, label: LabelVersion) -> None:
    # The fields of the record are the columns of the tables.
    *values, scan_sha256 = astuple(label)
    connection.execute("INSERT INTO label_versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    if scan_sha256 is not None:
        connection.execute(
            "INSERT INTO scan_labels VALUES (?, ?, ?)", (label.case_id, label.version, scan_sha256)
        )


def _end_round(
    connection: sqlite3.Connection, number: int, outcome: RoundOutcome, detail: str
) -> None:
    connection.execute(
        "UPDATE rounds SET outcome = ?, finished = ? WHERE number = ?", (outcome, now(), number)
    )
    _log(connection, Event.ROUND_ENDED, detail, round_number=number)


def _log(
    connection: sqlite3.Connection,
    kind: Event,
    detail: str = "",
    *,
    author: str | None = None,
    case_id: str | None = None,
    version: str | None = None,
    round_number: int | None = None,
) -> None:
    connection.execute(
        "INSERT INTO events (at, kind, author, case_id, version, round, detail) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (now(), kind, author, case_id, version, round_number, detail),
    )
