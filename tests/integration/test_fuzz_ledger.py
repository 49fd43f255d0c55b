"""A ledger or an orchestrator's record that somebody has spoilt, in any way: readers answer or say why not, and what was told is not lost."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maintlock import cli, entries, history, ledger, pending, process
from maintlock.errors import MaintlockError
from maintlock.ledger import LedgerUnavailable
from maintlock.names import is_task_name
from maintlock.times import rfc3339
from tests.protocol import PYTHON
from tests.support import Lock

LEASE = "heavy-maintenance"
NOW = 1_778_960_000.0
TEXT = st.text(max_size=12) | st.sampled_from(
    ["\x1b[31mred", "a\nb", "\u202e", "\udcff", "'; DROP TABLE events", "kbSync"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
IN_SQLITE = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary(max_size=12) | st.sampled_from(
    ["\x1b[31m", "deferred", "acquired", "released", LEASE, "kbSync", "x:end", "completed", "waiting", "", "2026"]
)  # fmt: skip


def deferred(number: int, **fields: Any) -> dict[str, Any]:
    """Return an event that counts."""
    return {
        "id": f"d{number}", "event": "deferred", "at": rfc3339(NOW + number), "lease": LEASE, "task": f"t{number}",
        "reason_code": "lease-held", "blocked_by": "backup", "seconds": 0.0, **fields,
    }  # fmt: skip


def is_no_event(value: object) -> bool:
    """Tell whether a JSON value is not even shaped like an event."""
    return not (isinstance(value, dict) and isinstance(value.get("id"), str) and isinstance(value.get("event"), str))


NO_EVENT = (
    st.binary(min_size=1, max_size=40).map(lambda raw: b"\xff" + raw.replace(b"\n", b""))
    | JSON.filter(is_no_event).map(lambda value: json.dumps(value).encode())
    | TEXT.filter(lambda text: text not in entries.EVENTS | entries.PRESENCE).map(
        lambda text: json.dumps({**deferred(0), "event": text}).encode()
    )
    | st.sampled_from(["", "soon", "99999-01-01T00:00:00Z", None, 7]).map(
        lambda at: json.dumps({**deferred(0), "at": at}).encode()
    )
    | st.integers(1, 100).map(lambda size: json.dumps(deferred(1)).encode()[:size])
)


@settings(max_examples=40)
@given(st.lists(st.none() | NO_EVENT, max_size=12))
def test_no_event_is_lost_beside_what_is_none(lines: list[bytes | None]) -> None:
    """Whatever stands between the events in `ledger.pending`, each is told once, before and after, and the rest is counted."""
    with tempfile.TemporaryDirectory() as directory:
        content = [json.dumps(deferred(n)).encode() if line is None else line for n, line in enumerate(lines, 1)]
        Path(directory, pending.PENDING).write_bytes(b"".join(line + b"\n" for line in content))
        expected = [f"t{n}" for n, line in enumerate(lines, 1) if line is None]
        for _ in range(2):
            assert [row["task"] for row in history.read_history(directory)] == expected
            ledger.drain(directory, now=NOW)
        assert not pending.waiting(directory)
        assert pending.dropped(directory) == len(lines) - len(expected)
        counted = history.read_snapshot(directory, lease=LEASE).counters
        assert sum(n for (name, _), n in counted.items() if name == "deferrals_total") == len(expected)


@functools.cache
def good_ledger() -> bytes:
    """Return a database in which something of each kind is entered."""
    with tempfile.TemporaryDirectory() as directory:
        grant = {"lease_id": "ab", "fence": 3, "task": "kbSync", "source": "cli", "pid": 7, "seconds": 1.0}
        told = [
            *[deferred(n) for n in range(3)],
            {**deferred(10), "id": "a", "event": "acquired", **grant},
            {**deferred(11), "id": "b", "event": "released", **grant, "outcome": "completed", "exit_code": 0},
            {**deferred(12), "id": "c", "event": "collision", "reason_code": "inherited", "detail": "x"},
            {
                **deferred(13),
                "id": "p",
                "event": "present",
                "role": "waiting",
                "pid": 7,
                "start_ticks": 1,
                "boot_id": "b",
            },
        ]
        pending.append(directory, told)
        ledger.drain(directory, now=NOW)
        return Path(directory, ledger.DATABASE).read_bytes()


READERS: list[Callable[[str], object]] = [
    history.read_history,
    lambda directory: history.read_history(directory, lease=LEASE, task="kbSync", event="released", limit=2),
    lambda directory: history.read_snapshot(directory, lease=LEASE),
    lambda directory: history.highest_fence(directory, LEASE),
    lambda directory: history.typical_seconds(directory, LEASE, "kbSync"),
]


def read_all(directory: str) -> None:
    """Let every reader answer, or say that it cannot."""
    for read in READERS:
        with contextlib.suppress(LedgerUnavailable):
            read(directory)


def shown(directory: str, *command: str, config: str = "none") -> str:
    """Return what a command prints for people, whatever its exit code."""
    out = io.StringIO()
    # The others take long to look at, and have no part in this.
    seen = mock.patch.object(process, "read_pids", return_value=[os.getpid()])
    with seen, contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = cli.main([*command, "--state-dir", directory, "--config", config])
    assert code in {0, 1, 2, 73}, (code, out.getvalue())
    return out.getvalue()


def assert_harmless(text: str) -> None:
    """No character of it steers a terminal."""
    assert not [letter for letter in text if letter != "\n" and not letter.isprintable()], text


@settings(max_examples=70)
@given(st.integers(0, 53248), st.binary(max_size=40), st.none() | st.integers(0, 53248), st.booleans())
def test_spoilt_bytes_are_told(place: int, noise: bytes, end: int | None, wal: bool) -> None:  # noqa: FBT001  drawn, not passed by hand
    """With any bytes of the database overwritten, or cut off, readers answer or say why not; a drain keeps what waits."""
    good = good_ledger()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, ledger.DATABASE)
        path.write_bytes((good[:place] + noise + good[place + len(noise) :])[:end])
        if wal:
            Path(f"{path}-wal").write_bytes(noise * 20)
        pending.append(directory, [deferred(99)])
        read_all(directory)
        trouble = None
        try:
            ledger.drain(directory, now=NOW)
        except LedgerUnavailable as error:
            trouble = str(error)
        if trouble is not None:
            assert trouble.isprintable()
            assert [event["id"] for event in pending.read(directory)] == ["d99"]
        read_all(directory)


def insert(db: sqlite3.Connection, table: str, row: list[object]) -> None:
    """Put a row into a table, if it takes it."""
    width = len(db.execute(f"PRAGMA table_info({table})").fetchall())
    with contextlib.suppress(sqlite3.Error):
        db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * width)})", (row * width)[:width])


TABLES = ["events", "counters", "tasks", "leases", "open_grants", "collisions", "presence", "meta"]
ROWS = st.lists(st.tuples(st.sampled_from(TABLES), st.lists(IN_SQLITE, min_size=1, max_size=20)), max_size=6)


@settings(max_examples=40)
@given(ROWS)
def test_rows_of_any_kind_are_told_harmlessly(rows: list[tuple[str, list[object]]]) -> None:
    """Rows of any values in any table: readers answer, a drain enters what waits, and nothing printed steers a terminal."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, ledger.DATABASE)
        path.write_bytes(good_ledger())
        with contextlib.closing(sqlite3.connect(path)) as db:
            for table, row in rows:
                insert(db, table, row)
            db.commit()
        pending.append(directory, [deferred(99)])
        for _ in range(2):
            found = history.read_history(directory)
            assert "t99" in [row["task"] for row in found]
            json.dumps(found)
            read_all(directory)
            assert_harmless(shown(directory, "history"))
            ledger.drain(directory, now=NOW)


@settings(max_examples=25)
@given(
    st.lists(st.dictionaries(st.sampled_from(sorted(entries.PUBLIC)), JSON, max_size=8), max_size=4),
    st.binary(max_size=60),
)
def test_hostile_events_and_records_are_shown_harmlessly(fields: list[dict[str, Any]], noise: bytes) -> None:
    """Events, a sidecar and a line of any content: `status` and `history` answer, and nothing printed steers a terminal."""
    with tempfile.TemporaryDirectory() as directory:
        for n, more in enumerate(fields):
            kept = {name: value for name, value in more.items() if name not in {"at", "event", "lease"}}
            pending.append(directory, [{**deferred(n), **kept}])
        Path(directory, f"{LEASE}.json").write_bytes(noise)
        Path(directory, f"{LEASE}.lock").write_bytes(noise)
        assert_harmless(shown(directory, "history"))
        assert_harmless(shown(directory, "status"))
        with contextlib.suppress(MaintlockError):
            json.loads(shown(directory, "status", "--json"))


CONFIGURED = """
[tasks.kbSync]
command = ["true"]
interval = "30m"
[tasks.t1]
heavy = false
[daemons.chroma]
command = ["true"]
"""
WHEN = st.floats(0, 4e9).map(rfc3339) | JSON
ME = process.own_identity()
IDENTITY = {
    "pid": st.just(ME.pid) | st.integers() | JSON, "pid_start_ticks": st.just(ME.start_ticks) | JSON,
    "boot_id": st.just(ME.boot_id) | TEXT, "pid_namespace": st.just(ME.pid_namespace) | TEXT,
}  # fmt: skip
STARTED = {**IDENTITY, "at": WHEN, "reason": TEXT, "restarts": JSON | st.integers(), "restart_at": WHEN}
BACK = {"reason_code": TEXT | JSON, "blocked_by": TEXT | JSON, "since": WHEN}
NAMES = st.sampled_from(["kbSync", "t1", "chroma", "gone"])
RECORD = st.fixed_dictionaries(
    {"schema": st.just(1), **IDENTITY},
    optional={
        "owner": TEXT | JSON, "started_at": WHEN, "stopped_at": WHEN, "poll_interval": JSON | st.floats(), "config": TEXT | JSON,
        "jobs": st.dictionaries(NAMES, st.fixed_dictionaries(STARTED) | JSON),
        "daemons": st.dictionaries(NAMES, st.fixed_dictionaries(STARTED) | JSON),
        "held": st.dictionaries(NAMES, st.fixed_dictionaries(BACK) | JSON),
        "troubles": st.dictionaries(TEXT, TEXT | JSON),
    },
)  # fmt: skip


@settings(max_examples=40)
@given(RECORD | st.binary(max_size=60), ROWS)
def test_health_is_told_of_anything(told: dict[str, Any] | bytes, rows: list[tuple[str, list[object]]]) -> None:
    """With any orchestrator's record and any rows, `health` and `tasks` answer, and nothing printed steers a terminal."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "maintlock.toml")
        config.write_text(CONFIGURED)
        Path(directory, ledger.DATABASE).write_bytes(good_ledger())
        with contextlib.closing(sqlite3.connect(Path(directory, ledger.DATABASE))) as db:
            for table, row in rows:
                insert(db, table, row)
            db.commit()
        record = Path(directory, "orchestrator.json")
        record.write_bytes(told if isinstance(told, bytes) else json.dumps(told).encode())
        record.chmod(0o600)
        for command in ("health", "tasks"):
            assert_harmless(shown(directory, command, config=str(config)))
        found = json.loads(shown(directory, "health", "--json", config=str(config)))
        assert found["status"] in {"healthy", "degraded", "unknown"}
        assert {name for name, task in found["tasks"].items() if task["configured"]} == {"kbSync", "t1"}
        assert all(map(is_task_name, found["tasks"]))


DRAIN = "import sys; from maintlock import ledger; ledger.drain(sys.argv[1], now=1e9)"


def test_a_ledger_whose_making_was_cut_short(lock: Lock, require: Callable[[str], str]) -> None:
    """Who was killed while making the database leaves a journal behind: readers take that back, and tell what waits."""
    lock.directory.mkdir(mode=0o700)
    pending.append(str(lock.directory), [deferred(1)])
    path = lock.directory / ledger.DATABASE
    kill = ["-e", "inject=unlink:signal=KILL:when=1", "-P", f"{path}-journal"]
    argv = [require("strace"), "-qq", "-o", os.devnull, *kill, PYTHON, "-c", DRAIN, str(lock.directory)]
    done = subprocess.run(argv, capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.stat().st_size and Path(f"{path}-journal").exists()
    assert [row["task"] for row in lock.history()] == ["t1"]
    assert history.read_snapshot(str(lock.directory), lease=LEASE).tasks["t1"].consecutive_deferrals == 1
    ledger.drain(str(lock.directory), now=NOW)
    assert [row["task"] for row in lock.history()] == ["t1"]


def test_a_database_whose_error_is_no_text(tmp_path: Path) -> None:
    """A damaged schema, which SQLite's complaint quotes byte for byte, is told as a corrupt ledger like any other."""
    good = good_ledger()
    place = good.index(b"CREATE TABLE events") + 7
    (tmp_path / ledger.DATABASE).write_bytes(good[:place] + b"\x80" + good[place + 1 :])
    pending.append(str(tmp_path), [deferred(99)])
    with pytest.raises(LedgerUnavailable, match="corrupt"):
        history.read_history(str(tmp_path))
    with pytest.raises(LedgerUnavailable, match="corrupt"):
        ledger.drain(str(tmp_path), now=NOW)
    assert [event["id"] for event in pending.read(str(tmp_path))] == ["d99"]
