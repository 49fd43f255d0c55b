#!/usr/bin/env python3
"""The Python that the example's store runs on in tests: it says that it has come, waits at a gate, and leaves witness.

    EXAMPLE_PYTHON=gated_store.py  GATE=DIRECTORY

It comes as DIRECTORY/<operation>.<pid>, and goes on when nobody has the exclusive lock on DIRECTORY/gate: if the test that
shut the gate dies, it opens. While the operation runs, a row in the table `inside` of the example's own database says so;
whom it has met there is entered into `met`.
"""

import contextlib
import fcntl
import os
import runpy
import sqlite3
import sys
from pathlib import Path

GATE = Path(os.environ["GATE"])
DATABASE = Path(os.environ["EXAMPLE_WORK"]) / "kb.sqlite"
BUSY_SECONDS = 20


def witness(*statements: tuple[str, tuple[object, ...]]) -> None:
    """Leave witness in the example's database, if there is one yet."""
    if not DATABASE.exists():
        return
    with contextlib.closing(sqlite3.connect(DATABASE, timeout=BUSY_SECONDS, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE TABLE IF NOT EXISTS inside (operation TEXT, pid INTEGER)")
        database.execute("CREATE TABLE IF NOT EXISTS met (operation TEXT, other TEXT)")
        for statement, values in statements:
            database.execute(statement, values)
        database.execute("COMMIT")


def main(store: str, operation: str) -> None:
    """Come, wait at the gate, and do the store's work."""
    witness(
        ("INSERT INTO met SELECT ?, operation FROM inside", (operation,)),
        ("INSERT INTO inside VALUES (?, ?)", (operation, os.getpid())),
    )
    (GATE / f"{operation}.{os.getpid()}").touch()
    with (GATE / "gate").open() as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)
    sys.argv = [store, operation]
    try:
        runpy.run_path(store, run_name="__main__")
    finally:
        witness(("DELETE FROM inside WHERE pid = ?", (os.getpid(),)))


if __name__ == "__main__":
    main(*[word for word in sys.argv[1:] if not word.startswith("-")])
