"""Documents, cut into chunks, in a full-text index."""

import sqlite3
from typing import Any

from schema import count, transaction


def known(database: sqlite3.Connection, _request: dict[str, Any]) -> dict[str, Any]:
    """The content hash of each document we have."""
    return {"hashes": dict(database.execute("SELECT path, hash FROM documents"))}


def sync(database: sqlite3.Connection, request: dict[str, Any]) -> dict[str, Any]:
    """Replace the changed documents, drop those that are gone, merge the index and check it."""
    present = set(request["present"])
    with transaction(database):
        gone = [path for (path,) in database.execute("SELECT path FROM documents") if path not in present]
        for path in gone:
            remove(database, path)
        for document in request["changed"]:
            remove(database, document["path"])
            add(database, document)
        if gone or request["changed"]:
            database.execute("INSERT INTO chunks_fts (chunks_fts) VALUES ('optimize')")
        database.execute("INSERT INTO chunks_fts (chunks_fts, rank) VALUES ('integrity-check', 1)")
    return {
        "written": sum(len(document["chunks"]) for document in request["changed"]),
        "removed": len(gone),
        "chunks": count(database, "chunks"),
    }


def search(database: sqlite3.Connection, request: dict[str, Any]) -> dict[str, Any]:
    """The chunks that have all of some words, the best first."""
    words = " ".join('"' + word.replace('"', "") + '"' for word in request["query"].split() if word.strip('"'))
    if not words:
        return {"found": []}
    rows = database.execute(
        "SELECT path, chunks.heading, snippet(chunks_fts, 1, '[', ']', '…', 12) FROM chunks_fts "
        "JOIN chunks ON chunks.id = chunks_fts.rowid WHERE chunks_fts MATCH ? ORDER BY chunks_fts.rank LIMIT ?",
        (words, request["limit"]),
    )
    return {"found": [{"path": path, "heading": heading, "text": text} for path, heading, text in rows]}


def remove(database: sqlite3.Connection, path: str) -> None:
    for table in ("documents", "links", "chunks"):
        database.execute(f"DELETE FROM {table} WHERE path = ?", (path,))


def add(database: sqlite3.Connection, document: dict[str, Any]) -> None:
    path = document["path"]
    database.execute("INSERT INTO documents VALUES (?, ?, ?)", (path, document["title"], document["hash"]))
    database.executemany("INSERT INTO links VALUES (?, ?)", [(path, target) for target in document["links"]])
    database.executemany(
        "INSERT INTO chunks (path, position, heading, text) VALUES (?, ?, ?, ?)",
        [(path, position, chunk["heading"], chunk["text"]) for position, chunk in enumerate(document["chunks"])],
    )
