"""A copy of the database, checked before it counts."""

import gzip
import hashlib
import os
import shutil
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schema import count


def backup(database: sqlite3.Connection, request: dict[str, Any]) -> dict[str, Any]:
    """Copy online, check, pack, read back, rename, and drop all but the newest copies."""
    folder = Path(request["backups"])
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3] + "Z"
    final = folder / f"kb-{stamp}.sqlite.gz"
    plain, packed = folder / f".{os.getpid()}.sqlite", folder / f".{os.getpid()}.sqlite.gz"
    try:
        counts = copy(database, plain)
        pack(plain, packed)
        sizes = {"bytes": plain.stat().st_size, "packed_bytes": packed.stat().st_size}
        packed.replace(final)
    finally:
        for temporary in (plain, packed):
            temporary.unlink(missing_ok=True)
    old = sorted(folder.glob("kb-*.sqlite.gz"))[: -request["kept"]]
    for path in old:
        path.unlink()
    sweep(folder)
    kept = len(list(folder.glob("kb-*.sqlite.gz")))
    return {"path": str(final), **counts, **sizes, "kept": kept, "dropped": len(old)}


def copy(database: sqlite3.Connection, path: Path) -> dict[str, int]:
    target = sqlite3.connect(path)
    try:
        database.backup(target)
        (verdict,) = target.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"the copy is damaged: {verdict}")
        target.execute("INSERT INTO chunks_fts (chunks_fts, rank) VALUES ('integrity-check', 1)")
        target.commit()
        return {table: count(target, table) for table in ("documents", "chunks", "edges")}
    finally:
        target.close()


def pack(source: Path, target: Path) -> None:
    """Compress to disk, and read it back: a backup is what can be restored."""
    with source.open("rb") as reader, target.open("wb") as raw:
        with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6) as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
        raw.flush()
        os.fsync(raw.fileno())
    with source.open("rb") as plain, gzip.open(target) as packed:
        if digest(plain) != digest(packed):
            raise OSError(f"{target} does not read back as it was written")


def digest(stream: Any) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Remove what killed backups left behind: temporary files nobody has written for an hour."""
    for path in folder.glob(".*.sqlite*"):
        if time.time() - path.stat().st_mtime > 3600:
            path.unlink()
