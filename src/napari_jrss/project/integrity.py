"""Whether a ledger is sound: its pages, its schema and the types of its values.

SQLite itself lets any value into any column and takes a stranger's views and triggers for
tables. What is checked here once, at the opening, the rest of the program may rely on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing

from napari_jrss.errors import ProjectError

_ALLOWED = {
    "TEXT": "'text'",
    "INTEGER": "'integer'",
    "REAL": "'real', 'integer'",
}


def check_sound(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Raise a ProjectError, which names no file, unless a ledger is whole.

    Parameters
    ----------
    connection
        The ledger.
    migrations
        The scripts that made its schema.
    """
    with closing(sqlite3.connect(":memory:")) as fresh:
        for script in migrations:
            fresh.executescript(script)
        # Compared before anything is read from a table, which might be a view without an end.
        if _schema(connection) != _schema(fresh):
            raise ProjectError("damaged (its tables aren't those of a project)")
        tables = [name for kind, name, _ in sorted(_schema(fresh)) if kind == "table"]
        conditions = {table: _wrong_types(fresh, table) for table in tables}
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise ProjectError(f"damaged ({' '.join(str(found).split())[:200]})")
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise ProjectError("damaged (a row speaks of another that isn't there)")
    for table, condition in conditions.items():
        if connection.execute(f"SELECT 1 FROM {table} WHERE {condition}").fetchone() is not None:
            raise ProjectError(f"damaged (a value in {table} is of the wrong type)")


def _schema(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Kind, name and text of all that was ever created, white space aside."""
    rows = connection.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL "
        "AND name NOT IN ('sqlite_sequence', 'sqlite_stat1')"
    )
    return {(str(kind), str(name), " ".join(str(sql).split())) for kind, name, sql in rows}


def _wrong_types(fresh: sqlite3.Connection, table: str) -> str:
    """SQL that holds for a row with a value that its column's type doesn't allow."""
    terms = []
    for _, column, kind, not_null, _, key in fresh.execute(f"PRAGMA table_info({table})"):
        null = "" if not_null or key else ", 'null'"
        terms.append(f"typeof({column}) NOT IN ({_ALLOWED[kind]}{null})")
    return " OR ".join(terms)
