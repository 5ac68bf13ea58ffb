"""A project of an older version is brought up to date, one of a newer version is left alone."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from napari_jrss.errors import ProjectError
from napari_jrss.project import schema
from napari_jrss.project.project import Project

NEXT = "ALTER TABLE cases ADD COLUMN note TEXT; UPDATE cases SET note = case_id"


@pytest.fixture
def a_version_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program as it may be one day: its schema has one more column."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, NEXT))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return number


def test_an_older_project_is_migrated_after_a_copy_was_kept(
    project_path: Path, a_version_later: None
) -> None:
    file = project_path / "project.sqlite"
    before = file.read_bytes()
    with pytest.raises(ProjectError, match="open it once for writing"):
        Project.open(project_path, read_only=True)
    assert file.read_bytes() == before
    assert version(file) == 1
    with Project.open(project_path) as project:
        assert len(project.cases()) == 6
        assert project.label("case0").any()
    assert version(file) == 2
    copy = project_path / "project-schema1.sqlite"
    assert version(copy) == 1
    connection = sqlite3.connect(copy)
    assert connection.execute("SELECT count(*) FROM cases").fetchone() == (6,)
    connection.close()
    Project.open(project_path, read_only=True).close()
    assert {p.name for p in project_path.iterdir() if p.name.startswith((".", "project"))} == {
        "project.sqlite",
        "project-schema1.sqlite",
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
    assert version(project_path / "project.sqlite") == 1
    Project.open(project_path).close()


KILLED = f"""
    import os, signal, sqlite3, sys
    from napari_jrss.project import (database as ledger, schema)
    from napari_jrss.project.project import (Project)

    schema.MIGRATIONS = (*schema.MIGRATIONS, {NEXT!r})
    schema.SCHEMA_VERSION += 1
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
    assert version(project_path / "project.sqlite") == 1
    Project.open(project_path).close()  # the older program still can
    request.getfixturevalue("a_version_later")
    with Project.open(project_path) as project:
        assert len(project.cases()) == 6
    assert version(project_path / "project.sqlite") == 2
    assert version(project_path / "project-schema1.sqlite") == 1
    assert not list(project_path.glob(".*"))
