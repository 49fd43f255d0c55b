"""The ledger's tables, and how a database of an older version gets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

MIGRATIONS = (
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at REAL NOT NULL, event TEXT NOT NULL, task TEXT, lease TEXT,
        lease_id TEXT, source TEXT, reason TEXT, pid INTEGER, reason_code TEXT, blocked_by TEXT, parent_task TEXT, seconds REAL,
        exit_code INTEGER, outcome TEXT, fence INTEGER, detail TEXT, result TEXT);
    CREATE INDEX events_by_time ON events (at);
    CREATE INDEX events_by_task ON events (task, at);
    CREATE INDEX rare_events_by_kind ON events (event, at)
        WHERE event NOT IN ('acquired', 'released', 'deferred', 'present');
    CREATE TABLE counters (name TEXT, labels TEXT, value REAL NOT NULL, PRIMARY KEY (name, labels)) WITHOUT ROWID;
    CREATE TABLE tasks (
        lease TEXT, task TEXT, registered_at REAL, last_run_at REAL, last_run TEXT, last_run_seconds REAL, last_outcome TEXT,
        last_ended_at REAL, last_success_at REAL, last_success_started_at REAL, consecutive_deferrals INTEGER,
        deferred_since REAL, last_deferred_at REAL, blocked_by TEXT, reason_code TEXT, PRIMARY KEY (lease, task)) WITHOUT ROWID;
    CREATE TABLE leases (lease TEXT PRIMARY KEY, fence INTEGER NOT NULL, lease_id TEXT) WITHOUT ROWID;
    CREATE TABLE open_grants (
        lease TEXT, lease_id TEXT, fence INTEGER, task TEXT, source TEXT, reason TEXT, pid INTEGER,
        PRIMARY KEY (lease, lease_id)) WITHOUT ROWID;
    CREATE TABLE collisions (
        lease TEXT, kind TEXT, id TEXT, since REAL, detail TEXT, PRIMARY KEY (lease, kind)) WITHOUT ROWID;
    CREATE TABLE presence (
        id TEXT PRIMARY KEY, lease TEXT, at REAL, task TEXT, reason TEXT, pid INTEGER, role TEXT, start_ticks INTEGER,
        boot_id TEXT, pid_namespace TEXT) WITHOUT ROWID;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value REAL) WITHOUT ROWID
    """,
    """
    ALTER TABLE tasks ADD COLUMN last_failed_at REAL;
    UPDATE tasks SET last_failed_at = last_ended_at WHERE last_outcome IN ('failed', 'timed_out', 'lost')
    """,
)


def schema_version(db: sqlite3.Connection) -> int:
    """Return how many of the migrations a database has had."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def migrate(db: sqlite3.Connection) -> None:
    """Bring a database up to the newest schema, in one transaction."""
    db.execute("BEGIN IMMEDIATE")
    for version in range(schema_version(db), len(MIGRATIONS)):
        for statement in MIGRATIONS[version].split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {version + 1}")
    db.execute("COMMIT")
