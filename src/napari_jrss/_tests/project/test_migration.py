"""A project of an older version is brought up to date, one of a newer version is left alone."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from napari_jrss.errors import ProjectError
from napari_jrss.project import schema
from napari_jrss.project.project import Project

NOW = len(schema.MIGRATIONS)
TABLES = ("project", "cases", "label_versions", "rounds", "round_cases", "events", "failed_imports")
# Of the tables that got more columns since the first version: how many they had.
_FIRST_COLUMNS = {"project": 6, "rounds": 7}
NEXT = "ALTER TABLE cases ADD COLUMN note TEXT; UPDATE cases SET note = case_id"


@pytest.fixture
def a_version_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program as it may be one day: its schema has one more column."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, NEXT))


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return number


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()
            for table in TABLES
        }


def make_first_version(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Bring a ledger back to schema version 1; its rows."""
    found = rows(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(schema.MIGRATIONS[0])
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        for table, content in found.items():
            for row in content:
                row = row[: _FIRST_COLUMNS.get(table)]
                places = ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO {table} VALUES ({places})", row)
    return found


def test_the_tables_of_the_first_schema_become_strict_and_every_row_stays(
    project_path: Path,
) -> None:
    file = project_path / "project.sqlite"
    with Project.open(project_path) as project:
        project.restore("case0", "v0001", "Ada")
        project.reject("case1", "Ada", "leaks")
        project.split(labelled=2, validation=1)
        entry = project.start_round(None, "{}", project.snapshot().label_versions)
        project.finish_round(entry.number, "finished", {"dice": 0.5}, promote=True)
        history = project.history()
    before = make_first_version(file)
    assert before["round_cases"]
    with Project.open(project_path) as project:
        assert project.history() == history
        assert project.label("case0", "v0002").any()
        project.skip("case1", "Ada")
        assert len(project.history()) == len(history) + 1
    after = rows(file)
    assert {name: after[name][: len(content)] for name, content in before.items()} == before
    assert version(file) == NOW
    assert version(project_path / "project-schema1.sqlite") == 1
    with closing(sqlite3.connect(file)) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="cannot store BLOB value"):
            connection.execute("UPDATE cases SET added = x'00'")
        with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
            connection.execute("DELETE FROM label_versions")


def test_a_value_of_a_wrong_type_in_the_first_schema_is_named(project_path: Path) -> None:
    file = project_path / "project.sqlite"
    make_first_version(file)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE cases SET added = x'00' WHERE case_id = 'case0'")
    with pytest.raises(ProjectError, match=r"project\.sqlite: cannot store BLOB value in TEXT"):
        Project.open(project_path)
    assert version(file) == 1


def test_an_older_project_is_migrated_after_a_copy_was_kept(
    project_path: Path, a_version_later: None
) -> None:
    file = project_path / "project.sqlite"
    before = file.read_bytes()
    with pytest.raises(ProjectError, match="open it once for writing"):
        Project.open(project_path, read_only=True)
    assert file.read_bytes() == before
    assert version(file) == NOW
    with Project.open(project_path) as project:
        assert len(project.cases()) == 6
        assert project.label("case0").any()
    assert version(file) == NOW + 1
    copy = project_path / f"project-schema{NOW}.sqlite"
    assert version(copy) == NOW
    connection = sqlite3.connect(copy)
    assert connection.execute("SELECT count(*) FROM cases").fetchone() == (6,)
    connection.close()
    Project.open(project_path, read_only=True).close()
    assert {p.name for p in project_path.iterdir() if p.name.startswith((".", "project"))} == {
        "project.sqlite",
        f"project-schema{NOW}.sqlite",
        "project.lock",
    }


def test_a_migration_that_fails_changes_nothing(
    project_path: Path, a_version_later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = (*schema.MIGRATIONS[:-1], NEXT + "; SELECT nonsense FROM nowhere")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", broken)
        with pytest.raises(ProjectError, match=r"project\.sqlite: no such table: nowhere"):
            Project.open(project_path)
    assert version(project_path / "project.sqlite") == NOW
    Project.open(project_path).close()


KILLED = f"""
    import os, signal, sqlite3, sys
    from napari_jrss.project import (database as ledger, schema)
    from napari_jrss.project.project import (Project)

    schema.MIGRATIONS = (*schema.MIGRATIONS, {NEXT!r})
    moment = sys.argv[2]
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    def trace(statement):
        if statement.strip().startswith(moment):
            die()

    connect = sqlite3.connect
    def traced(*a, **k):
        connection = connect(*a, **k)
        connection.set_trace_callback(trace)
        return connection
    if moment == "rename":
        ledger.sync_file = die
    sqlite3.connect = traced
    Project.open(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
@pytest.mark.parametrize("moment", ["rename", "BEGIN", "ALTER", "UPDATE", "COMMIT"])
def test_a_migration_that_is_killed_is_done_at_the_next_opening(
    moment: str, project_path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(KILLED))
    killed = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(project_path), moment], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert version(project_path / "project.sqlite") == NOW
    Project.open(project_path).close()  # the older program still can
    request.getfixturevalue("a_version_later")
    with Project.open(project_path) as project:
        assert len(project.cases()) == 6
    assert version(project_path / "project.sqlite") == NOW + 1
    assert version(project_path / f"project-schema{NOW}.sqlite") == NOW
    assert not list(project_path.glob(".*"))
