"""What looking costs those who work: nothing, since it takes and tests no lock."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

from tests.bench.bench import Bench, tool
from tests.bench.measure import Program
from tests.bench.row import NotMeasuredError, Row

READERS = (("status", "--json"), ("history", "--json"))
# With -y strace names the file of a descriptor: flock(3</…/heavy-maintenance.lock>, LOCK_SH|LOCK_NB) = 0
LOCK_CALL = re.compile(r"\b(?:flock|fcntl)\(\d+<(?P<path>[^>]*)>, (?:LOCK_|F_(?:OFD_)?(?:SETLK|GETLK))")


def readers(bench: Bench) -> Row:
    """Count the lock calls of `status` and `history` on our files, while the lease is free and while it is held.

    SQLite locks its own database to read it, for microseconds and shared; that is shown beside.
    """
    strace = tool("strace")
    with bench.scratch() as scratch:
        env = bench.env(scratch)
        state, trace = scratch / "state", scratch / "trace"
        _make_history(bench, env, scratch)
        calls = _locked_by_readers(bench, strace, trace, env)
        holder = Program([bench.wrap, "-t", "backup", "--", bench.probe, "hold"], env, scratch)
        holder.line()
        try:
            calls += _locked_by_readers(bench, strace, trace, env)
        finally:
            holder.end()
        databases = [path for path in calls if path.name.startswith("ledger.db")]
        ours = [path for path in calls if path.parent == state and path not in databases]
    return Row(
        what="lock calls of status, history", ours=len(ours), peer=len(databases), beside="SQLite's own", unit="",
        bar=0.0, is_absolute=True,
    )  # fmt: skip


def locked_paths(trace: str) -> list[Path]:
    """Return the files of all lock calls in what strace has written, one for each call."""
    return [Path(found["path"]) for found in LOCK_CALL.finditer(trace)]


def _locked_by_readers(bench: Bench, strace: str, trace: Path, env: dict[str, str]) -> list[Path]:
    found: list[Path] = []
    for reader in READERS:
        argv = [strace, "-f", "-y", "-e", "trace=flock,fcntl", "-o", trace, bench.maintlock, *reader]
        done = subprocess.run(argv, env=env, cwd=trace.parent, capture_output=True, text=True)
        if done.returncode or not done.stdout:
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise NotMeasuredError(f"maintlock {reader[0]} did not work under strace: {last}")
        found += locked_paths(trace.read_text(encoding="utf-8", errors="replace"))
    return found


def _make_history(bench: Bench, env: dict[str, str], scratch: Path) -> None:
    from maintlock import ledger

    subprocess.run([bench.wrap, "-t", "kbSync", "--", "true"], env=env, cwd=scratch, check=True)
    ledger.drain(env["MAINTLOCK_STATE_DIR"], now=time.time())
