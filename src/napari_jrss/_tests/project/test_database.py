"""The ledger on a real file: versions for good, one transaction at a time, clear errors."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from napari_jrss.errors import ProjectError
from napari_jrss.project import schema
from napari_jrss.project.database import Ledger
from napari_jrss.project.records import Event, LabelVersion, Status, now
from napari_jrss.project.schema import APPLICATION_ID, MIGRATIONS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "project.sqlite"
    Ledger.create(path, "{}", "{}", "0.0")
    return path


def version(case_id: str, name: str) -> LabelVersion:
    return LabelVersion(case_id, name, Status.MANUAL, now(), "Ada", "blank", 3, 1.5, "0" * 64)


def test_label_versions_and_events_are_never_changed_or_deleted(path: Path) -> None:
    ledger = Ledger(path)
    ledger.add_case("a", None, version("a", "v0001"))
    ledger.close()
    bare = sqlite3.connect(path)  # even for somebody who goes round the program
    for statement in (
        "DELETE FROM label_versions",
        "UPDATE label_versions SET author = 'Eve'",
        "DELETE FROM events",
        "UPDATE events SET author = 'Eve'",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            bare.execute(statement)
    bare.close()


def test_a_case_cannot_show_a_label_that_does_not_exist(path: Path) -> None:
    ledger = Ledger(path)
    ledger.add_case("a")
    with (
        pytest.raises(ProjectError, match="FOREIGN KEY"),
        ledger.writing() as connection,
    ):
        connection.execute("UPDATE cases SET label_version = 'v0009', status = 'manual'")
    case = ledger.case("a")
    assert case is not None
    assert case.label_version is None


def test_an_error_inside_a_transaction_leaves_nothing(path: Path) -> None:
    ledger = Ledger(path)
    ledger.add_case("a", None, version("a", "v0001"))
    before = ledger.history(None)
    with pytest.raises(ProjectError, match="UNIQUE"):
        ledger.add_version(version("a", "v0001"), Event.LABELLED, "")
    assert ledger.history(None) == before


def test_ids_that_differ_by_case_only_are_one_id(path: Path) -> None:
    ledger = Ledger(path)
    ledger.add_case("Brain")
    with pytest.raises(ProjectError, match="UNIQUE"):
        ledger.add_case("brain")


def test_older_schema_is_brought_up_to_date_in_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(path).add_case("a")
    added = "ALTER TABLE cases ADD COLUMN note TEXT; UPDATE cases SET note = 'kept';"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    with pytest.raises(ProjectError, match="older version"):
        Ledger(path, read_only=True)
    with Ledger(path).reading() as connection:
        assert connection.execute("SELECT case_id, note FROM cases").fetchall() == [("a", "kept")]
    Ledger(path, read_only=True).close()


def test_a_migration_that_fails_leaves_the_old_ledger(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "ALTER TABLE cases ADD COLUMN note TEXT; INSERT INTO nowhere VALUES (1);"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(ProjectError, match="nowhere"):
            Ledger(path)
    ledger = Ledger(path)
    with ledger.reading() as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(cases)")]
    assert "note" not in columns


def test_newer_foreign_and_damaged_files_are_named(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(ProjectError, match=r"other\.sqlite: not the ledger"):
        Ledger(other)
    noise = tmp_path / "noise.sqlite"
    noise.write_bytes(b"no database at all" * 100)
    copy = schema.copy_before_migration(noise, 4)
    copy.touch()
    with pytest.raises(
        ProjectError, match=rf"noise\.sqlite: damaged .*backup.*beside it is {copy.name}"
    ):
        Ledger(noise)
    with pytest.raises(ProjectError, match=r"missing\.sqlite"):
        Ledger(tmp_path / "missing.sqlite")
    assert not (tmp_path / "missing.sqlite").exists()
    bare = sqlite3.connect(path)
    bare.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    bare.close()
    with pytest.raises(ProjectError, match=r"newer version.*update napari-jrss"):
        Ledger(path)


def test_read_only_refuses_changes(path: Path) -> None:
    ledger = Ledger(path, read_only=True)
    with pytest.raises(ProjectError, match="read-only"):
        ledger.add_case("a")
    with ledger.reading() as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM cases")


def test_a_transaction_cut_by_kill_is_rolled_back_even_for_a_reader(path: Path) -> None:
    """SIGKILL with pages already written into the database: the journal undoes them."""
    Ledger(path).add_case("before")
    script = textwrap.dedent(
        """
        import os, signal, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")  # spill to the file before the commit
        connection.execute("BEGIN IMMEDIATE")
        for i in range(2000):
            connection.execute(
                "INSERT INTO cases VALUES (?, 'train', 'unlabelled', NULL, NULL, NULL, '')",
                (f"half{i}" + "x" * 500,),
            )
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    size = path.stat().st_size
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert path.stat().st_size > size
    assert path.with_name("project.sqlite-journal").exists()
    assert [case.case_id for case in Ledger(path, read_only=True).cases()] == ["before"]
    assert path.stat().st_size == size


def test_the_file_says_what_it_is(path: Path) -> None:
    bare = sqlite3.connect(path)
    assert bare.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert bare.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    bare.close()
