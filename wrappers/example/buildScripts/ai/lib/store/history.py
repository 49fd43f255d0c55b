"""The history of repositories: commits, what they touched, which files change together."""

import sqlite3
from collections import Counter
from itertools import combinations
from typing import Any

from schema import transaction

MOST_FILES = 30  # a commit of more says nothing about which of them belong together


def heads(database: sqlite3.Connection, request: dict[str, Any]) -> dict[str, Any]:
    """Up to where we have read this repository."""
    rows = database.execute("SELECT hash FROM heads WHERE repository = ?", (request["repository"],))
    return {"heads": [hash_ for (hash_,) in rows]}


def history(database: sqlite3.Connection, request: dict[str, Any]) -> dict[str, Any]:
    """Add the commits we do not have yet, and count again what changes together."""
    repository = request["repository"]
    with transaction(database):
        if request["rebuild"]:
            forget(database, repository)
        added = [commit for commit in request["commits"] if add(database, repository, commit)]
        pairs = count_pairs(database, repository)
        database.execute("DELETE FROM changed_together WHERE repository = ?", (repository,))
        database.executemany(
            "INSERT INTO changed_together VALUES (?, ?, ?, ?)",
            [(repository, a, b, number) for (a, b), number in pairs.items()],
        )
        database.execute("INSERT INTO commits_fts (commits_fts) VALUES ('optimize')")
        database.execute("INSERT OR REPLACE INTO heads VALUES (?, ?)", (repository, request["head"]))
        (commits,) = database.execute("SELECT count(*) FROM commits WHERE repository = ?", (repository,)).fetchone()
    return {
        "written": len(added),
        "files": sum(len(commit["files"]) for commit in added),
        "commits": commits,
        "pairs": len(pairs),
    }


def forget(database: sqlite3.Connection, repository: str) -> None:
    ids = database.execute("SELECT id FROM commits WHERE repository = ?", (repository,)).fetchall()
    database.executemany("DELETE FROM commit_files WHERE commit_id = ?", ids)
    database.executemany("DELETE FROM commits_fts WHERE rowid = ?", ids)
    database.execute("DELETE FROM commits WHERE repository = ?", (repository,))


def add(database: sqlite3.Connection, repository: str, commit: dict[str, Any]) -> bool:
    """False when we have it already."""
    row = database.execute(
        "INSERT OR IGNORE INTO commits (repository, hash, author, at, subject) VALUES (?, ?, ?, ?, ?)",
        (repository, commit["hash"], commit["author"], commit["at"], commit["subject"]),
    )
    if row.rowcount == 0:
        return False
    database.execute(
        "INSERT INTO commits_fts (rowid, message, added) VALUES (?, ?, ?)",
        (row.lastrowid, f"{commit['subject']}\n\n{commit['body']}", commit["added"]),
    )
    database.executemany(
        "INSERT OR REPLACE INTO commit_files VALUES (?, ?, ?, ?)",
        [(row.lastrowid, file["path"], file["added"], file["removed"]) for file in commit["files"]],
    )
    return True


def count_pairs(database: sqlite3.Connection, repository: str) -> Counter[tuple[str, str]]:
    files: dict[int, list[str]] = {}
    rows = database.execute(
        "SELECT commit_id, path FROM commit_files JOIN commits ON id = commit_id WHERE repository = ? ORDER BY commit_id, path",
        (repository,),
    )
    for commit_id, path in rows:
        files.setdefault(commit_id, []).append(path)
    return Counter(pair for paths in files.values() if len(paths) <= MOST_FILES for pair in combinations(paths, 2))
