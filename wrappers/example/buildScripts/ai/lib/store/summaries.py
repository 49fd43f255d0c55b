"""Summaries: in the database, and as files."""

import os
import sqlite3
from pathlib import Path
from typing import Any

from schema import transaction


def summarized(database: sqlite3.Connection, _request: dict[str, Any]) -> dict[str, Any]:
    """The content hash of each source at its last summary."""
    return {"hashes": dict(database.execute("SELECT source, hash FROM summaries"))}


def summaries(database: sqlite3.Connection, request: dict[str, Any]) -> dict[str, Any]:
    """Enter and write the new ones, drop those whose source is gone."""
    folder = Path(request["summaries"])
    present = set(request["present"])
    with transaction(database):
        gone = [source for (source,) in database.execute("SELECT source FROM summaries") if source not in present]
        for source in gone:
            database.execute("DELETE FROM summaries WHERE source = ?", (source,))
            file_of(folder, source).unlink(missing_ok=True)
        for made in request["made"]:
            text = " ".join(made["summary"])
            database.execute(
                "INSERT OR REPLACE INTO summaries VALUES (?, ?, ?, ?)",
                (made["source"], made["kind"], made["hash"], text),
            )
            write_whole(file_of(folder, made["source"]), f"# {made['source']}\n\n{text}\n")
    sentences = sum(len(made["summary"]) for made in request["made"])
    return {"written": len(request["made"]), "dropped": len(gone), "sentences": sentences}


def file_of(folder: Path, source: str) -> Path:
    return folder / (source.removesuffix(".md") + ".md")


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
