"""The tables of the ledger, and the scripts that bring an older ledger up to date."""

from __future__ import annotations

import sqlite3
from pathlib import Path

APPLICATION_ID = 0x4A525353  # "JRSS", which marks the database as ours

_TABLES = """
    CREATE TABLE project (
        only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
        created TEXT NOT NULL,
        made_by TEXT NOT NULL,
        label_table TEXT NOT NULL,
        preprocessing TEXT NOT NULL,
        grid TEXT
    ) STRICT;
    CREATE TABLE cases (
        case_id TEXT PRIMARY KEY COLLATE NOCASE,
        split TEXT NOT NULL CHECK (split IN ('train', 'validation', 'test', 'unused')),
        status TEXT NOT NULL
            CHECK (status IN ('unlabelled', 'manual', 'accepted', 'corrected', 'rejected')),
        label_version TEXT,
        reference_version TEXT,
        subject_group TEXT,
        added TEXT NOT NULL,
        CHECK ((status IN ('manual', 'accepted', 'corrected')) = (label_version IS NOT NULL)),
        FOREIGN KEY (case_id, label_version) REFERENCES label_versions (case_id, version)
            DEFERRABLE INITIALLY DEFERRED,
        FOREIGN KEY (case_id, reference_version) REFERENCES label_versions (case_id, version)
            DEFERRABLE INITIALLY DEFERRED
    ) STRICT;
    CREATE TABLE label_versions (
        case_id TEXT NOT NULL COLLATE NOCASE REFERENCES cases (case_id),
        version TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('manual', 'accepted', 'corrected')),
        created TEXT NOT NULL,
        author TEXT NOT NULL,
        draft TEXT NOT NULL,
        voxels_changed INTEGER,
        seconds REAL,
        sha256 TEXT NOT NULL,
        PRIMARY KEY (case_id, version)
    ) STRICT;
    CREATE TABLE rounds (
        number INTEGER PRIMARY KEY CHECK (number >= 0),
        parent INTEGER REFERENCES rounds (number),
        started TEXT NOT NULL,
        finished TEXT,
        outcome TEXT NOT NULL CHECK (outcome IN ('running', 'finished', 'cancelled', 'failed')),
        config_sha256 TEXT NOT NULL,
        metrics TEXT NOT NULL DEFAULT '{}'
    ) STRICT;
    CREATE TABLE round_cases (
        number INTEGER NOT NULL REFERENCES rounds (number),
        case_id TEXT NOT NULL COLLATE NOCASE REFERENCES cases (case_id),
        role TEXT NOT NULL CHECK (role IN ('labelled', 'unlabelled', 'validation')),
        version TEXT,
        PRIMARY KEY (number, case_id),
        CHECK ((role = 'unlabelled') = (version IS NULL)),
        FOREIGN KEY (case_id, version) REFERENCES label_versions (case_id, version)
    ) STRICT;
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        author TEXT,
        case_id TEXT COLLATE NOCASE REFERENCES cases (case_id),
        version TEXT,
        round INTEGER REFERENCES rounds (number),
        detail TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE INDEX events_of_case ON events (case_id);
    CREATE TABLE failed_imports (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        case_id TEXT NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    CREATE TRIGGER label_version_kept BEFORE DELETE ON label_versions
        BEGIN SELECT RAISE(ABORT, 'a label version is never deleted'); END;
    CREATE TRIGGER label_version_unchanged BEFORE UPDATE ON label_versions
        BEGIN SELECT RAISE(ABORT, 'a label version is never changed'); END;
    CREATE TRIGGER event_kept BEFORE DELETE ON events
        BEGIN SELECT RAISE(ABORT, 'an event is never deleted'); END;
    CREATE TRIGGER event_unchanged BEFORE UPDATE ON events
        BEGIN SELECT RAISE(ABORT, 'an event is never changed'); END;
"""
_NAMES = ("project", "cases", "label_versions", "rounds", "round_cases", "events", "failed_imports")

# SQLite can't make a table STRICT, so each is copied aside and made anew, in the order of its rows.
_MAKE_STRICT = "\n".join(
    (
        *(f"CREATE TEMP TABLE old_{n} AS SELECT * FROM {n} ORDER BY rowid;" for n in _NAMES),
        *(f"DROP TABLE {n};" for n in _NAMES),
        _TABLES,
        *(f"INSERT INTO {n} SELECT * FROM old_{n} ORDER BY rowid;" for n in _NAMES),
        *(f"DROP TABLE old_{n};" for n in _NAMES),
    )
)

# A label of an older project gets its row once it is known on the scan's own voxels.
_SCAN_LABELS = """
    CREATE TABLE scan_labels (
        case_id TEXT NOT NULL COLLATE NOCASE,
        version TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        PRIMARY KEY (case_id, version),
        FOREIGN KEY (case_id, version) REFERENCES label_versions (case_id, version)
    ) STRICT;
    CREATE TRIGGER scan_label_kept BEFORE DELETE ON scan_labels
        BEGIN SELECT RAISE(ABORT, 'a label version is never deleted'); END;
    CREATE TRIGGER scan_label_unchanged BEFORE UPDATE ON scan_labels
        BEGIN SELECT RAISE(ABORT, 'a label version is never changed'); END;
"""

# The plan that a project follows, and the folder with its cases on the grid of that plan.
_PLAN = """
    ALTER TABLE project ADD COLUMN plan TEXT;
    ALTER TABLE project ADD COLUMN cases_folder TEXT NOT NULL DEFAULT 'cases';
"""

# Whether a round is a training, or a short one after a label was accepted.
_ROUND_KIND = """
    ALTER TABLE rounds ADD COLUMN kind TEXT NOT NULL DEFAULT 'training'
        CHECK (kind IN ('training', 'quick'));
"""

# Names of the images that each case has, as JSON, the registered one first; none: it has one.
_CHANNELS = """
    ALTER TABLE project ADD COLUMN channels TEXT NOT NULL DEFAULT '[]';
"""

MIGRATIONS: tuple[str, ...] = (
    _TABLES.replace(") STRICT;", ");"),
    _MAKE_STRICT,
    _SCAN_LABELS,
    _PLAN,
    _ROUND_KIND,
    _CHANNELS,
)
"""Script number i brings a ledger of schema version i to i + 1."""


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring a ledger up to date, each step in one transaction."""
    connection.execute("PRAGMA foreign_keys = OFF")  # tables are dropped and made anew
    for step, script in enumerate(MIGRATIONS[version:], start=version + 1):
        try:
            connection.executescript(
                f"BEGIN EXCLUSIVE; {script}; PRAGMA user_version = {step}; COMMIT;"
            )
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def copy_before_migration(path: Path, version: int) -> Path:
    """Where a ledger's copy of an older schema version is kept."""
    return path.with_name(f"{path.stem}-schema{version}{path.suffix}")
