"""Tables, and how the database is opened."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (path TEXT PRIMARY KEY, title TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS links (path TEXT NOT NULL, target TEXT NOT NULL, PRIMARY KEY (path, target)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL, position INTEGER NOT NULL, heading TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS chunks_of_document ON chunks (path);
CREATE VIRTUAL TABLE IF NOT EXISTS chunks_fts USING fts5 (
    heading, text, content='chunks', content_rowid='id', tokenize='porter unicode61');
CREATE TRIGGER IF NOT EXISTS chunk_added AFTER INSERT ON chunks BEGIN
    INSERT INTO chunks_fts (rowid, heading, text) VALUES (new.id, new.heading, new.text);
END;
CREATE TRIGGER IF NOT EXISTS chunk_removed AFTER DELETE ON chunks BEGIN
    INSERT INTO chunks_fts (chunks_fts, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text);
END;

CREATE TABLE IF NOT EXISTS nodes (path TEXT PRIMARY KEY, rank REAL NOT NULL, terms TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS edges (
    source TEXT NOT NULL, target TEXT NOT NULL, weight REAL NOT NULL, PRIMARY KEY (source, target)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS golden_paths (position INTEGER PRIMARY KEY, score REAL NOT NULL, documents TEXT NOT NULL);

CREATE TABLE IF NOT EXISTS heads (repository TEXT NOT NULL, hash TEXT NOT NULL, PRIMARY KEY (repository));
CREATE TABLE IF NOT EXISTS commits (
    id INTEGER PRIMARY KEY, repository TEXT NOT NULL, hash TEXT NOT NULL, author TEXT NOT NULL, at TEXT NOT NULL,
    subject TEXT NOT NULL, UNIQUE (repository, hash));
CREATE TABLE IF NOT EXISTS commit_files (
    commit_id INTEGER NOT NULL, path TEXT NOT NULL, added INTEGER NOT NULL, removed INTEGER NOT NULL,
    PRIMARY KEY (commit_id, path)) WITHOUT ROWID;
CREATE VIRTUAL TABLE IF NOT EXISTS commits_fts USING fts5 (message, added, tokenize='porter unicode61');
CREATE TABLE IF NOT EXISTS changed_together (
    repository TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL, commits INTEGER NOT NULL,
    PRIMARY KEY (repository, a, b)) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS summaries (source TEXT PRIMARY KEY, kind TEXT NOT NULL, hash TEXT NOT NULL, summary TEXT NOT NULL);
"""


def open_database(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """Open the database, made when missing; transactions are explicit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    with transaction(database):
        for statement in statements(SCHEMA):
            database.execute(statement)
    return database


def open_to_read(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """Open the database for who only reads, and so waits for no writer."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=busy_seconds, uri=True)


def statements(script: str) -> Iterator[str]:
    """The statements of a script; executescript() would commit the transaction around it."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; the write lock is taken at once, so that nothing is read before it that others may change."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def count(database: sqlite3.Connection, table: str) -> int:
    return database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
