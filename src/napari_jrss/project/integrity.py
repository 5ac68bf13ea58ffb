"""Whether a SQLite file is one of ours and whole: its version, its schema, its pages, its values.

SQLite runs the views and triggers of whoever made a file. What is checked here once, at the
opening, the rest of the program may rely on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing

from napari_jrss.errors import ProjectError


def check_version(
    connection: sqlite3.Connection, application_id: int, migrations: Sequence[str], what: str
) -> int:
    """Check a database and return the version of its schema.

    Script number i of `migrations` brings a schema of version i to i + 1. A :class:`ProjectError`,
    which names no file, if the database isn't `what`, is newer than `migrations`, or damaged.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != application_id or version < 0:
        raise ProjectError(f"not {what}")
    if version > len(migrations):
        raise ProjectError(
            f"made by a newer version of napari-jrss (schema {version}, this one knows "
            f"{len(migrations)}); update napari-jrss"
        )
    with closing(sqlite3.connect(":memory:")) as fresh:
        for script in migrations[:version]:
            fresh.executescript(script)
        # Compared before anything is read from a table, which might be a view without an end.
        if _schema(connection) != _schema(fresh):
            raise ProjectError(f"damaged (its tables aren't those of {what})")
    # Of tables that are STRICT, this checks the types of all values too.
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise ProjectError(f"damaged ({' '.join(str(found).split())[:200]})")
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise ProjectError("damaged (a row refers to another that isn't there)")
    return int(version)


def _schema(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Kind, name and SQL text of all that was ever created, white space aside."""
    rows = connection.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL "
        "AND name NOT IN ('sqlite_sequence', 'sqlite_stat1')"
    )
    return {(str(kind), str(name), " ".join(str(sql).split())) for kind, name, sql in rows}
