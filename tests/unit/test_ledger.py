from __future__ import annotations

import fcntl
import functools
import json
import math
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maintlock import config, entries, flock, history, ledger, marks, migrations, pending, process, program, tally
from maintlock.history import Snapshot, highest_fence, read_history, read_snapshot, typical_seconds
from maintlock.ledger import Ledger, LedgerUnavailable, drain
from maintlock.paths import PENDING_FILES, Places
from maintlock.states import Collision, TaskState
from maintlock.times import epoch_seconds, rfc3339
from tests.clock import Clock

ROOT = Path(pending.__file__).parents[1]
LEASE = "heavy-maintenance"
NOW = 1_778_960_000.0
DAY = 86400.0


def event(name: str, event_id: str, at: float, **fields: Any) -> dict[str, Any]:
    """Return an event, `at` seconds after the beginning of all tests."""
    return {"id": event_id, "event": name, "at": rfc3339(NOW + at), "lease": LEASE, **fields}


def acquired(grant: str, at: float, fence: int, task: str = "kbSync", **fields: Any) -> dict[str, Any]:
    """Return the beginning of a grant."""
    told = {"task": task, "lease_id": grant, "fence": fence, "source": "cli", "pid": 7, "seconds": 0.0, **fields}
    return event("acquired", f"{grant}:acquired", at, **told)


def released(grant: str, at: float, seconds: float, task: str = "kbSync", **fields: Any) -> dict[str, Any]:
    """Return the end of a grant."""
    told = {"task": task, "lease_id": grant, "seconds": seconds, "exit_code": 0, "outcome": "completed", **fields}
    return event("released", f"{grant}:end", at, **told)


def deferred(number: int, at: float, task: str = "kbSync", **fields: Any) -> dict[str, Any]:
    """Return a deferral."""
    told = {"task": task, "reason_code": "lease-held", "blocked_by": "backup", "seconds": 0.0, **fields}
    return event("deferred", f"d{number}", at, **told)


def enter(directory: Path, *events: dict[str, Any], now: float = NOW) -> None:
    """Append events and drain them."""
    assert pending.append(str(directory), events)
    drain(str(directory), now=now)


def snapshot(directory: Path) -> Snapshot:
    """Return what the ledger says of the lease."""
    return read_snapshot(str(directory), lease=LEASE)


def counter(directory: Path, name: str, **labels: str) -> float:
    """Return one counter's value, 0 where it has none."""
    return snapshot(directory).counters.get((name, tuple(sorted({"lease": LEASE, **labels}.items()))), 0.0)


def state(directory: Path, task: str = "kbSync") -> TaskState:
    """Return what is known of a task."""
    return snapshot(directory).tasks[task]


def told(directory: Path, *fields: str, **wanted: Any) -> list[tuple[Any, ...]]:
    """Return some fields of the history."""
    return [tuple(row[field] for field in fields) for row in read_history(str(directory), **wanted)]


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Give `spawn(code, *arguments)`, whose Python processes end with the test."""
    children: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that the kernel's locks are waited for by."""
    found = Clock()
    monkeypatch.setattr(flock, "time", found)
    monkeypatch.setattr(ledger, "time", found)
    return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give how long SQLite was to wait each time before it found the database locked still: on a busy machine it takes longer."""
    found: list[float] = []

    class Noting(sqlite3.Connection):
        def __init__(self, *arguments: Any, timeout: float = 5.0, **options: Any) -> None:
            super().__init__(*arguments, timeout=timeout, **options)
            self.patience = timeout

        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            if sql.startswith("PRAGMA busy_timeout"):
                self.patience = int(sql.partition("=")[2]) / 1000
            try:
                return super().execute(sql, *arguments)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                    found.append(self.patience)
                raise

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Noting))
    return found


def stop(child: subprocess.Popen[str]) -> None:
    """Stop a process, and wait until it is stopped."""
    child.send_signal(signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])


# Entering --------------------------------------------------------------------------------------------------------------


def test_a_grant_is_entered_with_all_that_it_counts(tmp_path: Path) -> None:
    """One grant has one `acquired` and one row with an outcome, and moves each of its counters once (R2, R10)."""
    enter(tmp_path, acquired("g", 0, 1, seconds=0.3), released("g", 90, 90.0))
    assert told(tmp_path, "event", "outcome") == [("acquired", None), ("released", "completed")]
    assert counter(tmp_path, "acquisitions_total", task="kbSync", source="cli") == 1
    assert counter(tmp_path, "runs_total", task="kbSync") == 1
    assert counter(tmp_path, "run_failures_total", task="kbSync") == 0
    buckets = [counter(tmp_path, "hold_seconds_bucket", task="kbSync", le=le) for le in ("60.0", "300.0", "+Inf")]
    assert buckets == [0, 1, 1]
    assert counter(tmp_path, "hold_seconds_sum", task="kbSync") == 90
    assert counter(tmp_path, "wait_seconds_count", task="kbSync") == 1
    assert counter(tmp_path, "wait_seconds_bucket", task="kbSync", le="0.1") == 0
    assert counter(tmp_path, "wait_seconds_bucket", task="kbSync", le="0.5") == 1
    assert not pending.waiting(str(tmp_path))


def test_history_has_exactly_the_public_fields(tmp_path: Path) -> None:
    """A row has the fields of the contract in its order, and none of the internal ones."""
    enter(tmp_path, acquired("g", 0, 1, detail="internal"))
    fields = (
        "at event task lease lease_id source reason pid reason_code blocked_by parent_task seconds exit_code outcome"
    )
    for _ in range(2):
        assert list(read_history(str(tmp_path))[0]) == fields.split()
        pending.append(str(tmp_path), [acquired("h", -1, 2)])


def test_what_is_told_twice_counts_once(tmp_path: Path) -> None:
    """The next holder re-enters the last grant's beginning and end, and nothing moves: the first writer wins."""
    grant = [acquired("g", 0, 1), released("g", 5, 5.0)]
    again = [acquired("g", 0, 1), event("stale_cleaned", "g:end", 9, lease_id="g", task="kbSync", outcome="lost")]
    enter(tmp_path, *grant, *again)
    before = snapshot(tmp_path)
    enter(tmp_path, *again, *grant)
    pending.append(str(tmp_path), again)
    assert snapshot(tmp_path) == before
    assert told(tmp_path, "event", "outcome") == [("acquired", None), ("released", "completed")]


def test_ids_of_a_grant_do_not_depend_on_who_tells(tmp_path: Path) -> None:
    """A beginning or end with an id of its own is still the one of its grant."""
    enter(tmp_path, acquired("g", 0, 1), {**acquired("g", 0, 1), "id": "else"}, {**released("g", 1, 1.0), "id": "odd"})
    enter(tmp_path, released("g", 2, 2.0, outcome="failed"))
    assert told(tmp_path, "event", "outcome") == [("acquired", None), ("released", "completed")]


@pytest.mark.parametrize(
    ("outcome", "failures", "timeouts", "success"),
    [
        ("completed", 0, 0, True),
        ("failed", 1, 0, False),
        ("timed_out", 1, 1, False),
        ("stopped", 0, 0, False),
        ("unknown", 0, 0, False),
        ("lost", 1, 0, False),
    ],
)
def test_each_outcome_counts_as_the_contract_says(
    tmp_path: Path, outcome: str, failures: int, timeouts: int, *, success: bool
) -> None:
    """Every ended grant is a run; `failed timed_out lost` are failures; only `completed` is a success (L3, L4)."""
    end = released("g", 60, 60.0, outcome=outcome, exit_code=0 if success else None)
    enter(tmp_path, acquired("g", 0, 1), {**end, "event": "stale_cleaned"} if outcome == "lost" else end)
    assert counter(tmp_path, "runs_total", task="kbSync") == 1
    assert counter(tmp_path, "run_failures_total", task="kbSync") == failures
    assert counter(tmp_path, "timeouts_total", task="kbSync") == timeouts
    assert state(tmp_path).last_outcome == outcome
    assert (state(tmp_path).last_success_at is not None) == success


def test_rows_that_end_no_grant_have_no_outcome(tmp_path: Path) -> None:
    """A joined job's result and a swept-up sidecar are told without an outcome."""
    joined = {"task": "kbSync", "parent_task": "sync", "lease_id": "g", "pid": 9}
    enter(
        tmp_path,
        event("nested_started", "n1", 0, **joined),
        event("nested_finished", "n2", 3, **joined, result="completed", exit_code=0, seconds=3.0, outcome="completed"),
        event("stale_cleaned", "s1", 4, outcome="lost"),
        deferred(1, 5, outcome="completed"),
    )
    assert [outcome for (outcome,) in told(tmp_path, "outcome")] == [None] * 4
    assert counter(tmp_path, "stale_cleanups_total") == 1
    assert counter(tmp_path, "nested_runs_total", task="kbSync", parent_task="sync") == 1
    assert counter(tmp_path, "runs_total", task="kbSync") == 1


def test_a_joined_job_that_succeeded_is_a_success_of_its_task(tmp_path: Path) -> None:
    """Nested work is visible as its own task's run, success and start (R7)."""
    joined = {"task": "kbSync", "parent_task": "sync", "lease_id": "g", "pid": 9}
    start = event("nested_started", "n1", 10, **joined)
    enter(tmp_path, start, event("nested_finished", "n2", 13.5, **joined, result="completed", exit_code=0, seconds=3.4))
    found = state(tmp_path)
    assert (found.last_run_at, found.last_success_started_at, found.last_success_at) == (NOW + 10, NOW + 10, NOW + 13.5)
    assert (found.last_outcome, found.last_run_seconds) == ("completed", 3.4)


def joined(
    grant: str, number: int, at: float, *, mode: str = "supervised", task: str = "kbSync"
) -> list[dict[str, Any]]:
    """Return that a job has joined a grant, and is present."""
    of = {"task": task, "parent_task": "sync", "lease_id": grant, "pid": number, "source": "npm", "reason": "pulled"}
    present = event("present", f"n{number}:present", at, task=task, role="nested", pid=number, start_ticks=1)
    return [event("nested_started", f"n{number}", at, **of, detail=mode), present]


def left(grant: str, number: int, at: float, seconds: float, task: str = "kbSync") -> list[dict[str, Any]]:
    """Return that a joined job has told its own end."""
    of = {"task": task, "parent_task": "sync", "lease_id": grant, "pid": number, "result": "completed", "exit_code": 0}
    end = event("nested_finished", f"n{number}:finished", at, **of, seconds=seconds)
    return [end, event("absent", f"a{number}", at, of=f"n{number}:present")]


NESTED_ROWS = ("event", "task", "parent_task", "pid", "source", "reason", "seconds", "exit_code", "outcome")


@pytest.mark.parametrize("split", range(8))
def test_what_joined_ends_with_its_grant(tmp_path: Path, split: int) -> None:
    """A joined job that told no end of its own has one when its grant's is told, wherever a drain comes in between (R7)."""
    became = joined("g", 2, 11, mode="exec", task="dream")
    all_told = [acquired("g", 0, 1, "sync"), *joined("g", 1, 10), *became, released("g", 60, 60.0, "sync")]
    all_told += [*joined("h", 3, 70), acquired("h", 65, 2, "sync")]
    with Ledger(str(tmp_path)) as kept:
        pending.append(str(tmp_path), all_told[:split])
        kept.drain(now=NOW)
        pending.append(str(tmp_path), all_told[split:])
        before = snapshot(tmp_path), told(tmp_path, *NESTED_ROWS)
        kept.drain(now=NOW)
        for again in (all_told, left("g", 1, 80, 70.0), became[:1]):
            pending.append(str(tmp_path), again)
            kept.drain(now=NOW)
        assert told(tmp_path, *NESTED_ROWS) == before[1]
        assert snapshot(tmp_path)[1:] == before[0][1:] and snapshot(tmp_path).counters == before[0].counters
    rows = told(tmp_path, *NESTED_ROWS, event="nested_finished")
    assert rows == [
        ("nested_finished", "kbSync", "sync", 1, "npm", "pulled", None, None, None),
        ("nested_finished", "dream", "sync", 2, "npm", "pulled", None, None, None),
    ]
    assert (state(tmp_path, "kbSync").last_outcome, state(tmp_path, "dream").last_outcome) == ("lost", "unknown")
    assert counter(tmp_path, "run_failures_total", task="kbSync") == counter(tmp_path, "runs_total", task="kbSync") == 1
    assert counter(tmp_path, "run_failures_total", task="dream") == 0
    assert [row["id"] for row in snapshot(tmp_path).present] == ["n3:present"]


def test_an_end_that_was_told_is_the_one(tmp_path: Path) -> None:
    """What joined and told its end keeps that one, whether or not it said that it is gone; a lost one is of its own grant (R7)."""
    enter(tmp_path, acquired("g", 0, 1, "sync"), *joined("g", 1, 10), *left("g", 1, 20, 9.5)[:1], *joined("x", 2, 30))
    enter(tmp_path, released("g", 60, 60.0, "sync"))
    assert told(tmp_path, "pid", "seconds", event="nested_finished") == [(1, 9.5)]
    assert state(tmp_path, "kbSync").last_success_at == NOW + 20
    enter(tmp_path, {**acquired("g", 0, 1), "event": "stale_cleaned", "id": "e", "lease_id": "x", "outcome": "lost"})
    assert told(tmp_path, "pid", "seconds", event="nested_finished") == [(2, None), (1, 9.5)]


def test_a_deferral_touches_neither_last_run_nor_success(tmp_path: Path) -> None:
    """Deferrals make a streak with its cause, and leave run and success alone (L3, L5)."""
    enter(tmp_path, acquired("g", 0, 1), released("g", 5, 5.0))
    before = state(tmp_path)
    enter(tmp_path, deferred(1, 10), deferred(2, 20, blocked_by="dream", reason_code="queued"))
    assert state(tmp_path) == before._replace(
        consecutive_deferrals=2,
        deferred_since=NOW + 10,
        last_deferred_at=NOW + 20,
        blocked_by="dream",
        reason_code="queued",
    )
    assert counter(tmp_path, "deferrals_total", task="kbSync", reason="lease-held") == 1
    assert counter(tmp_path, "blocked_deferrals_total", task="kbSync", blocking_task="dream") == 1


def test_a_run_ends_the_streak_of_deferrals(tmp_path: Path) -> None:
    """A streak survives changes of blocker and ends with the task's next start, not before (L5, R11)."""
    enter(tmp_path, deferred(1, 10), deferred(2, 20, blocked_by=None), acquired("other", 25, 1, task="backup"))
    assert state(tmp_path).consecutive_deferrals == 2
    assert counter(tmp_path, "blocked_deferrals_total", task="kbSync", blocking_task="unknown") == 1
    enter(tmp_path, acquired("g", 30, 2))
    found = state(tmp_path)
    assert (found.consecutive_deferrals, found.deferred_since, found.blocked_by) == (0, None, None)
    assert (found.last_run_at, found.last_outcome) == (NOW + 30, None)


def test_a_streak_knows_what_was_told_late(tmp_path: Path) -> None:
    """Whether a deferral came before or after a start is judged by its time, not by when it was told (L5)."""
    enter(tmp_path, deferred(1, 10), deferred(2, 40), acquired("g", 30, 1))
    assert (state(tmp_path).consecutive_deferrals, state(tmp_path).deferred_since) == (1, NOW + 40)
    enter(tmp_path, deferred(3, 20))
    assert (state(tmp_path).consecutive_deferrals, state(tmp_path).deferred_since) == (1, NOW + 40)


def test_an_old_end_told_late_does_not_undo_a_newer_one(tmp_path: Path) -> None:
    """Last outcome and last success are those of the newest end, whatever the order of telling."""
    enter(tmp_path, acquired("new", 100, 2), released("new", 110, 10.0), released("old", 50, 9.0, outcome="failed"))
    assert state(tmp_path).last_outcome == "completed"
    assert (state(tmp_path).last_run_at, state(tmp_path).last_success_at) == (NOW + 100, NOW + 110)


def test_an_end_without_its_beginning_still_tells_when_the_run_began(tmp_path: Path) -> None:
    """A run whose start was dropped is dated by its end and length."""
    enter(tmp_path, released("g", 50, 20.0))
    assert (state(tmp_path).last_run_at, state(tmp_path).last_success_started_at) == (NOW + 30, NOW + 30)


def test_a_clock_that_was_set_back_freezes_no_task(tmp_path: Path) -> None:
    """What was told under a clock three days ahead gives way to what is told after, drained in between or not (L3, L5)."""
    ahead = [deferred(1, 3 * DAY), acquired("a", 3 * DAY + 1, 1), released("a", 3 * DAY + 60, 59.0)]
    for place in (tmp_path / "drained", tmp_path / "pending"):
        place.mkdir()
        pending.append(str(place), ahead)
        if place.name == "drained":
            drain(str(place), now=NOW + 3 * DAY + 60)
        pending.append(str(place), [deferred(2, 10), deferred(3, 20)])
        if place.name == "drained":
            drain(str(place), now=NOW + 20)
            assert (state(place).consecutive_deferrals, state(place).deferred_since) == (2, NOW + 10)
            assert state(place).last_run_at == NOW + 3 * DAY + 1  # a deferral is no run: the next one is not put off
        pending.append(str(place), [acquired("b", 30, 2), released("b", 40, 10.0, outcome="failed")])
        drain(str(place), now=NOW + 40)
        found = state(place)
        assert (found.last_run_at, found.last_outcome, found.has_succeeded) == (NOW + 30, "failed", False)
        assert (found.consecutive_deferrals, found.last_run_seconds) == (0, 10.0)


def test_a_clock_that_was_set_back_keeps_no_collision_open(tmp_path: Path) -> None:
    """A collision dated three days ahead is over with the clearing, or the grant, that is told after it (R8)."""
    replaced = event("collision", "c1", 3 * DAY, reason_code="lockfile_replaced")
    enter(tmp_path, event("collision", "c2", 3 * DAY, reason_code="inherited"), replaced, now=NOW + 3 * DAY)
    enter(tmp_path, event("collision_cleared", "c3", 5, reason_code="inherited"), acquired("a", 5, 1), now=NOW + 5)
    assert snapshot(tmp_path).collisions == []


@pytest.mark.parametrize(
    ("outcomes", "has_succeeded"),
    [
        ("stopped", False),
        ("completed stopped", True),
        ("failed completed stopped", True),
        ("completed failed unknown", False),
        ("completed lost", False),
        ("timed_out completed", True),
    ],
)
def test_a_run_that_was_stopped_is_neither_success_nor_failure(
    tmp_path: Path, outcomes: str, *, has_succeeded: bool
) -> None:
    """Whether a task succeeded last is told by its last run that did or failed, in whatever order they are told (R9)."""
    for number, outcome in reversed(list(enumerate(outcomes.split(), 1))):
        told = {"outcome": outcome, "exit_code": None}
        if outcome == "lost":
            told["event"] = "stale_cleaned"
        enter(tmp_path, released(f"g{number}", 10 * number, 5.0, **told))
    assert state(tmp_path).has_succeeded is has_succeeded


def test_a_run_of_unknown_length_leaves_the_known_one(tmp_path: Path) -> None:
    """A run that was lost, or became its command, says nothing of how long one takes; it is the last one all the same."""
    enter(tmp_path, acquired("a", 0, 1), released("a", 7, 7.0), acquired("b", 10, 2), acquired("c", 20, 3))
    assert (state(tmp_path).last_outcome, state(tmp_path).last_run_seconds) == ("lost", 7.0)


def test_the_next_grant_closes_every_earlier_open_one_as_lost(tmp_path: Path) -> None:
    """Grants follow one another, so one without an end has ended by the next beginning: exactly once, as `lost`."""
    enter(
        tmp_path, acquired("a", 0, 1), acquired("b", 10, 2, task="backup"), {**acquired("x", 11, 9), "lease": "other"}
    )
    enter(tmp_path, acquired("c", 20, 3))
    assert told(tmp_path, "event", "lease_id", "task", "outcome", lease=LEASE) == [
        ("acquired", "a", "kbSync", None),
        ("stale_cleaned", "a", "kbSync", "lost"),
        ("acquired", "b", "backup", None),
        ("stale_cleaned", "b", "backup", "lost"),
        ("acquired", "c", "kbSync", None),
    ]
    enter(tmp_path, released("a", 5, 5.0))
    assert counter(tmp_path, "stale_cleanups_total") == 2
    assert counter(tmp_path, "run_failures_total", task="kbSync") == 1


@pytest.mark.parametrize("is_drained", [False, True])
def test_an_end_that_stop_has_made_is_no_crash(tmp_path: Path, *, is_drained: bool) -> None:
    """What `maintlock stop` has killed, so that nobody was left to tell the end, was stopped; so were those who had joined."""
    joined = {"lease_id": "a", "task": "part", "parent_task": "kbSync"}
    here = {**joined, "role": "nested", "pid": 7}
    events = [
        acquired("a", 0, 1),
        event("nested_started", "run", 1, **joined),
        event("present", "run:present", 1, **here),
        event("stop_requested", "stop", 2, lease_id="a", task="kbSync"),
    ]
    if is_drained:
        enter(tmp_path, *events)
        events = []
    lost = event("stale_cleaned", "a:end", 3, lease_id="a", task="kbSync", outcome="lost")
    enter(tmp_path, *events, lost, acquired("b", 4, 2), acquired("c", 5, 3))
    assert told(tmp_path, "event", "outcome", event="released") == [("released", "stopped")]
    assert told(tmp_path, "lease_id", event="stale_cleaned") == [("b",)]
    assert state(tmp_path, "part").last_outcome == "stopped"
    assert counter(tmp_path, "stale_cleanups_total") == 1
    assert counter(tmp_path, "run_failures_total", task="part") == 0


def test_an_end_told_just_after_the_next_beginning_counts(tmp_path: Path) -> None:
    """The lock is free before its holder has told the end: with a lock file emptied then, the next holder cannot tell it."""
    enter(tmp_path, acquired("a", 0, 1))
    pending.append(str(tmp_path), [acquired("b", 10, 2, task="backup"), released("a", 9, 9.0)])
    for _ in range(2):
        assert told(tmp_path, "event", "lease_id", "outcome") == [
            ("acquired", "a", None), ("released", "a", "completed"), ("acquired", "b", None),
        ]  # fmt: skip
        assert counter(tmp_path, "run_failures_total", task="kbSync") == 0
        assert state(tmp_path, "kbSync").last_outcome == "completed"
        drain(str(tmp_path), now=NOW)
    enter(tmp_path, acquired("c", 20, 3))
    assert told(tmp_path, "lease_id", "outcome", event="stale_cleaned") == [("b", "lost")]


def test_an_old_beginning_told_late_closes_nothing(tmp_path: Path) -> None:
    """A beginning with a lower fence closes no newer grant, and opens none that has ended."""
    enter(tmp_path, acquired("b", 10, 2), released("a", 5, 5.0))
    enter(tmp_path, acquired("a", 0, 1), acquired("c", 30, 3))
    ends = told(tmp_path, "lease_id", "outcome", event="released") + told(
        tmp_path, "lease_id", "outcome", event="stale_cleaned"
    )
    assert sorted(ends) == [("a", "completed"), ("b", "lost")]


def test_collisions_open_count_and_clear(tmp_path: Path) -> None:
    """A collision is open from its first sight to its clearing, and each one told counts (R8, R10)."""
    kind = {"reason_code": "unleased-process"}
    enter(
        tmp_path,
        event("collision", "c1", 0, **kind, detail="pid 4"),
        event("collision", "c2", 5, **kind, detail="pid 5"),
    )
    assert snapshot(tmp_path).collisions == [Collision("unleased_process", "c1", NOW, "pid 5")]
    assert counter(tmp_path, "collisions_total", kind="unleased_process") == 2
    enter(tmp_path, event("collision_cleared", "c3", 9, reason_code="unleased_process"))
    assert snapshot(tmp_path).collisions == []


def collision(kind: str, at: float, *children: subprocess.Popen[str]) -> dict[str, Any]:
    """Return that heavy processes were found outside the lease."""
    named = marks.event_id(kind, [process.read_stat(child.pid) for child in children], round(at * 1000))
    return event("collision", named, at, reason_code=kind, detail=named)


def test_a_collision_whose_end_nobody_told_gives_way_to_a_new_one(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """When all that a collision names is gone, as under a killed orchestrator, the next of its kind is a new one (R8)."""
    first, second = spawn("input()"), spawn("input()")
    enter(tmp_path, collision("inherited", 0, first))
    first.kill()
    first.wait()
    told = collision("inherited", 10, second)
    enter(tmp_path, told)
    assert snapshot(tmp_path).collisions == [Collision("inherited", told["id"], NOW + 10, told["id"])]


def test_a_collision_names_all_who_are_part_of_it(tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]) -> None:
    """One that goes on with another process lasts since its beginning, and until the last of them is gone (R8)."""
    first, second = spawn("input()"), spawn("input()")
    enter(tmp_path, collision("unleased_process", 0, first), collision("unleased_process", 10, second))
    (found,) = snapshot(tmp_path).collisions
    assert found.since == NOW
    assert marks.within(found.id) == {marks.of(process.read_stat(child.pid)) for child in (first, second)}
    for child, is_over in ((first, False), (second, True)):
        child.kill()
        child.wait()
        assert marks.is_over(found.id) is is_over


def test_a_later_grant_clears_a_replaced_lock_file(tmp_path: Path) -> None:
    """A grant that began after `lockfile_replaced` was seen ends that collision; one from before does not."""
    enter(
        tmp_path, event("collision", "c1", 10, reason_code="lockfile_replaced", detail="inode 3"), acquired("a", 5, 1)
    )
    assert [found.kind for found in snapshot(tmp_path).collisions] == ["lockfile_replaced"]
    enter(tmp_path, acquired("b", 20, 2))
    assert snapshot(tmp_path).collisions == []
    assert told(tmp_path, "at", "reason_code", event="collision_cleared") == [(rfc3339(NOW + 20), "lockfile_replaced")]


def test_presence_lasts_until_its_absence_and_never_shows_in_history(tmp_path: Path) -> None:
    """Who waits or has joined is there with its process identity, and told again after leaving stays away (L1)."""
    identity = {"pid": 9, "start_ticks": 1234, "boot_id": "b", "pid_namespace": "pid:[1]"}
    waiter = event("present", "p1", 0, role="waiting", task="kbSync", reason="manual", **identity)
    enter(tmp_path, waiter)
    assert snapshot(tmp_path).present == [waiter]
    pending.append(str(tmp_path), [{"id": "p2", "event": "absent", "of": "p1"}])
    assert snapshot(tmp_path).present == []
    drain(str(tmp_path), now=NOW)
    enter(tmp_path, waiter)
    assert snapshot(tmp_path).present == []
    assert read_history(str(tmp_path)) == []


def test_the_highest_fence_is_known_after_its_grants_are_gone(tmp_path: Path) -> None:
    """A recreated lock file gets its fence from here, from what waits too; 0 where nothing can be read."""
    assert highest_fence(str(tmp_path), LEASE) == 0
    enter(tmp_path, acquired("a", 0, 41), released("a", 1, 1.0), {**acquired("z", 0, 99), "lease": "other"})
    assert highest_fence(str(tmp_path), LEASE) == 41
    pending.append(str(tmp_path), [acquired("b", 2, 42)])
    assert highest_fence(str(tmp_path), LEASE) == 42
    (tmp_path / ledger.DATABASE).write_bytes(b"rubbish" * 100)
    assert highest_fence(str(tmp_path), LEASE) == 42


def test_typical_seconds_is_the_median_of_the_last_twenty_completed(tmp_path: Path) -> None:
    """How long a task usually takes is judged by its newest 20 holds that completed, pending ones included."""
    assert typical_seconds(str(tmp_path), LEASE, "kbSync") is None
    enter(tmp_path, *[released(f"g{n}", n, 1000.0) for n in range(10)], released("f", 99, 5.0, outcome="failed"))
    enter(tmp_path, *[released(f"h{n}", 100 + n, 10.0) for n in range(19)])
    pending.append(str(tmp_path), [released("i", 200, 30.0), released("j", 201, 7.0, task="backup")])
    assert typical_seconds(str(tmp_path), LEASE, "kbSync") == 10.0
    assert typical_seconds(str(tmp_path), LEASE, "backup") == 7.0


@pytest.mark.parametrize(
    "bad",
    [
        {"at": None},
        {"at": "yesterday"},
        {"at": "2026-05-16T19:36:21"},
        {"at": 12},
        {"event": "party"},
        {"lease_id": 5},
        {"lease": "../etc"},
        {"id": ""},
    ],
)
def test_events_that_tell_nothing_are_dropped_and_counted(tmp_path: Path, bad: dict[str, Any]) -> None:
    """An event without a time, of no known kind, or without its grant is counted as dropped when drained, once."""
    enter(tmp_path, {**acquired("g", 0, 1), **bad}, released("h", 1, 1.0))
    assert told(tmp_path, "event") == [("released",)]
    assert snapshot(tmp_path).dropped == 1


def test_hostile_values_become_their_type_or_nothing(tmp_path: Path) -> None:
    """Whatever stands in an event, a row has text, numbers or null where the contract has them."""
    enter(
        tmp_path,
        acquired("g", 0, 10**30, task=["x"], source="\ud800\x00", reason="a" * 60_000, pid=10**40, seconds=-5),
        deferred(1, 1, task="../../x", reason_code="\n", blocked_by={"a": 1}, seconds=True, exit_code=0.5),
    )
    first, second = read_history(str(tmp_path))
    assert (first["task"], first["pid"], first["seconds"], first["source"]) == (None, None, None, "\\ud800\x00")
    assert len(first["reason"]) <= entries.MAX_TEXT
    assert (second["task"], second["blocked_by"], second["seconds"], second["exit_code"]) == (
        "../../x",
        None,
        None,
        None,
    )
    assert counter(tmp_path, "acquisitions_total", task="unknown", source="unknown") == 1
    assert counter(tmp_path, "deferrals_total", task="unknown", reason="unknown") == 1
    assert snapshot(tmp_path).tasks == {}


# Reading ---------------------------------------------------------------------------------------------------------------


def test_without_a_ledger_nothing_is_known_and_nothing_is_made(tmp_path: Path) -> None:
    """A ledger that does not exist yet is empty, no fault, and reading creates no file."""
    assert read_history(str(tmp_path)) == []
    assert snapshot(tmp_path) == Snapshot({}, {}, [], [], 0)
    drain(str(tmp_path), now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_history_is_oldest_first_and_the_limit_keeps_the_newest(tmp_path: Path) -> None:
    """Rows are ordered by their time, entered or not, and filtered by task, event, lease and age."""
    times = [5, 1, 4, 2, 3]
    enter(tmp_path, *[deferred(at, at) for at in times[:3]], {**deferred(9, 9), "lease": "other"})
    pending.append(str(tmp_path), [deferred(at, at, task="backup") for at in times[3:]])
    extra = [deferred(6, 6), deferred(1, 1), acquired("g", 0, 1)]

    def order(**wanted: Any) -> list[float]:
        rows = read_history(str(tmp_path), **{"lease": LEASE, **wanted})
        return [round(at - NOW) for row in rows if (at := epoch_seconds(row["at"])) is not None]

    assert order() == [1, 2, 3, 4, 5]
    assert order(extra=extra) == [0, 1, 2, 3, 4, 5, 6]
    assert order(extra=extra, event="acquired") == [0]
    assert order(limit=2) == [4, 5]
    assert order(limit=0) == []
    assert order(limit=99) == [1, 2, 3, 4, 5]
    assert order(task="backup") == [2, 3]
    assert order(task="kbSync", limit=1) == [5]
    assert order(since=NOW + 3) == [3, 4, 5]
    assert order(event="present") == order(event="released") == []
    assert order(extra=extra, event=("acquired", "released", "present")) == [0]
    pending.append(str(tmp_path), [acquired("h", 7, 2), released("h", 8, 1.0)])
    for _ in range(2):
        assert order(event=["acquired", "released"]) == [7, 8]
        assert order(event=["acquired", "released"], limit=1) == [8]
        drain(str(tmp_path), now=NOW)
    assert order(lease="other") == [9]


def test_a_reader_sees_what_a_drain_moves_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain between a reader's two looks hides no event and shows none twice."""
    pending.append(str(tmp_path), [acquired("g", 0, 1), deferred(1, 1)])
    real = pending.read

    def read_then_drained(directory: str) -> list[Any]:
        found = real(directory)
        drain(directory, now=NOW)
        return found

    monkeypatch.setattr(pending, "read", read_then_drained)
    assert told(tmp_path, "event") == [("acquired",), ("deferred",)]
    assert counter(tmp_path, "deferrals_total", task="kbSync", reason="lease-held") == 1


def test_reading_survives_hostile_rows(tmp_path: Path) -> None:
    """Rows of wrong types, with NULs or broken text, are coerced or left out, and break no reading."""
    enter(tmp_path, acquired("g", 0, 1), released("g", 1, 1.0), deferred(1, 2))
    db = sqlite3.connect(tmp_path / ledger.DATABASE)
    with db:
        db.execute("UPDATE events SET task = x'00ff', reason = CAST(x'ff00fe' AS TEXT), pid = 'x', seconds = 'long'")
        db.execute(
            "INSERT INTO events (id, at, event) VALUES ('a', 'never', 'released'), ('b', 1, x'00'), ('c', 2, 'odd')"
        )
        db.execute("INSERT INTO events (id, at, event, lease) VALUES ('d', 1e300, 'released', x'00')")
        db.executemany(
            "INSERT INTO counters VALUES (?, ?, ?)", [("a", "{", 1), ("b", '{"lease": 1}', 1), (b"c", "[]", "x")]
        )
        db.execute("INSERT INTO counters VALUES ('e', '{\"lease\":\"heavy-maintenance\"}', -9e999)")
        db.execute("UPDATE tasks SET last_run_at = 'x', consecutive_deferrals = -3.5, blocked_by = x'ff'")
        db.execute("INSERT INTO tasks (lease, task) VALUES ('heavy-maintenance', x'00')")
        db.execute("INSERT INTO collisions VALUES ('heavy-maintenance', 'odd', NULL, 1, 2)")
        db.execute("INSERT INTO collisions VALUES ('heavy-maintenance', 'inherited', 5, 'x', 2)")
        db.execute("INSERT INTO presence (id, lease, at) VALUES ('p', 'heavy-maintenance', 'x')")
        db.execute("INSERT INTO open_grants VALUES ('heavy-maintenance', 'w', 'x', 1, 2, 3, 'y')")
        db.execute("UPDATE leases SET fence = 'many'")
    db.close()
    assert told(tmp_path, "event", "task", "reason", "pid") == [
        ("acquired", None, "\ufffd\0\ufffd", None),
        ("released", None, "\ufffd\0\ufffd", None),
        ("deferred", None, "\ufffd\0\ufffd", None),
    ]
    found = snapshot(tmp_path)
    assert (found.present, found.collisions, list(found.tasks)) == ([], [], ["kbSync"])
    assert found.tasks["kbSync"].consecutive_deferrals == 0
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.counters.values())
    assert highest_fence(str(tmp_path), LEASE) == 0
    enter(tmp_path, acquired("next", 9, 5))


def test_buckets_are_cumulative_and_complete(tmp_path: Path) -> None:
    """A histogram that was ever observed has all its buckets, in which each counts what the lower ones do."""
    enter(tmp_path, *[acquired(f"g{n}", n, n, seconds=waited) for n, waited in enumerate([0.05, 0.1, 3, 1e6], 1)])
    counters = snapshot(tmp_path).counters
    values = {dict(labels)["le"]: value for (name, labels), value in counters.items() if name == "wait_seconds_bucket"}
    assert [values[tally.bound_text(bound)] for bound in tally.WAIT_BUCKETS] == [2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 4]


def test_long_histories_are_read_through_indexes(tmp_path: Path) -> None:
    """The newest rows, of all, of a task and of a rare event, are found without looking at the others."""
    enter(tmp_path, acquired("g", 0, 1))
    db = sqlite3.connect(tmp_path / ledger.DATABASE)
    for conditions, index in [
        ([], "events_by_time"),
        (["task = ?"], "events_by_task"),
        (["event = ?", history.IS_RARE], "rare_events_by_kind"),
    ]:
        query = " ".join((" AND ".join([history.HISTORY, "at >= ?", *conditions]), history.NEWEST))
        plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", ["x"] * query.count("?")))
        assert index in plan
        assert "TEMP B-TREE" not in plan
    db.close()


# Text of any characters at all would cost a table of all of them.
TEXTS = st.sampled_from(["", "a", "0 ", '":\\', "\0\n\x1b", "\xe4\u202e", "\uffff\U0001f512"])
EVENTS = st.builds(
    lambda kind, n, at, lease, fields: {
        "id": f"{kind}{n}",
        "event": kind,
        "at": rfc3339(NOW + at),
        "lease": lease,
        **fields,
    },
    st.sampled_from(sorted(entries.EVENTS | entries.PRESENCE)),
    st.integers(0, 6),
    st.integers(0, 30),
    st.sampled_from([LEASE, LEASE, LEASE, "other", None]),
    st.fixed_dictionaries(
        {
            "task": st.sampled_from(["kbSync", "backup", None]),
            "lease_id": st.sampled_from(["a", "b", "c", "d", None]),
        },
        optional={
            "fence": st.integers(0, 5),
            "source": st.sampled_from(["cli", "npm"]),
            "reason": TEXTS,
            "pid": st.integers(1, 3),
            "of": st.integers(0, 6).map(lambda n: f"present{n}"),
            "role": st.sampled_from(["waiting", "nested"]),
            "reason_code": st.sampled_from(["lease-held", "queued", "lockfile-replaced", "inherited", "odd"]),
            "blocked_by": st.sampled_from(["backup", "dream"]),
            "parent_task": st.just("primary-dev-sync"),
            "seconds": st.floats(0, 40000, allow_subnormal=False),
            "exit_code": st.integers(0, 1),
            "outcome": st.sampled_from(sorted(entries.RESULTS)),
            "result": st.sampled_from(sorted(entries.RESULTS)),
            "detail": TEXTS,
        },
    ),
)


@pytest.mark.timeout(600)
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(EVENTS, max_size=25), cuts=st.sets(st.integers(0, 25), max_size=3), seed=st.integers())
def test_an_event_says_the_same_before_and_after_it_is_entered(
    events: list[dict[str, Any]], cuts: set[int], seed: int
) -> None:
    """Whatever happened, what is read through pending events equals what is read once they are entered, told again or not."""
    with tempfile.TemporaryDirectory() as directory:
        begun = 0
        for cut in sorted(cuts):
            pending.append(directory, events[begun:cut])
            drain(directory, now=NOW)
            begun = max(begun, cut)
        again = random.Random(seed).sample(events[:begun], k=min(begun, len(events)) // 2)
        pending.append(directory, again + events[begun:])
        before, history = read_snapshot(directory, lease=LEASE), read_history(directory)
        fence, typical = highest_fence(directory, LEASE), typical_seconds(directory, LEASE, "kbSync")
        drain(directory, now=NOW)
        assert not pending.waiting(directory)
        after = read_snapshot(directory, lease=LEASE)
        assert after.counters == pytest.approx(before.counters)
        assert after._replace(counters={}, dropped=0) == before._replace(counters={}, dropped=0)
        assert read_history(directory) == history
        assert highest_fence(directory, LEASE) == fence
        assert typical_seconds(directory, LEASE, "kbSync") == typical
        grants = [row for row in history if row["outcome"] is not None]
        assert len({row["lease_id"] for row in grants}) == len(grants)


# Processes -------------------------------------------------------------------------------------------------------------

WORKER = """
import sys, time
from maintlock import ledger, pending
from maintlock.times import rfc3339
directory, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
kept = ledger.Ledger(directory)
print("ready", flush=True)
sys.stdin.readline()
lost = 0
for number in range(count):
    at = rfc3339(time.time())
    lost += not pending.append(directory, [dict(id=f"{name}-{number}", event="deferred", at=at, lease="heavy-maintenance",
                                                task="kbSync", reason_code="lease-held", blocked_by="backup")])
    try:
        kept.drain(now=time.time()) if number % 2 else ledger.drain(directory, now=time.time())
    except ledger.LedgerUnavailable as error:
        assert "busy" in error.reason, error
print(lost, flush=True)
"""


def test_eight_processes_lose_and_double_nothing(tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]) -> None:
    """Processes that append and drain at once enter each event exactly once; what found all files kept for too long, as on a
    machine that stands still, is counted (R1).
    """
    workers = [spawn(WORKER, tmp_path, name, 40) for name in "abcdefgh"]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 8
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    lost = sum(int(worker.stdout.readline()) for worker in workers)
    assert [worker.wait() for worker in workers] == [0] * 8
    told = 320 - lost
    assert len(read_history(str(tmp_path))) == told > 0
    drain(str(tmp_path), now=NOW)
    assert counter(tmp_path, "deferrals_total", task="kbSync", reason="lease-held") == told
    assert len(read_history(str(tmp_path))) == told
    assert (state(tmp_path).consecutive_deferrals, snapshot(tmp_path).dropped) == (told, lost)


def test_a_stopped_drain_costs_the_next_less_than_a_second(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]], clock: Clock
) -> None:
    """While a drain is stopped another gives up in time, and after it goes on nothing is lost or doubled."""
    pending.append(str(tmp_path), [deferred(1, 1)])
    code = """
import sys
from maintlock import book, ledger, migrations
real = book.Book.write
def slowly(book):
    real(book)
    print("inside", flush=True)
    sys.stdin.readline()
book.Book.write = slowly
ledger.drain(sys.argv[1], now=float(sys.argv[2]))
"""
    child = spawn(code, tmp_path, NOW)
    assert child.stdout.readline() == "inside\n"
    stop(child)
    assert pending.append(str(tmp_path), [deferred(2, 2)])
    before = clock.now
    with pytest.raises(LedgerUnavailable, match="busy"):
        drain(str(tmp_path), now=NOW)
    assert 0 < clock.now - before < 1
    assert len(read_history(str(tmp_path))) == 2
    child.send_signal(signal.SIGCONT)
    child.communicate("\n")
    assert child.returncode == 0
    drain(str(tmp_path), now=NOW)
    assert counter(tmp_path, "deferrals_total", task="kbSync", reason="lease-held") == 2
    assert len(read_history(str(tmp_path))) == 2


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_locked_database_costs_less_than_a_second(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]], clock: Clock, waits: list[float], *, is_kept: bool
) -> None:
    """While a stopped process keeps the database locked a drain gives up in time and leaves the events where they are."""
    enter(tmp_path, deferred(1, 1))
    code = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""
    with Ledger(str(tmp_path)) as kept:
        if is_kept:
            pending.append(str(tmp_path), [deferred(2, 2)])
            kept.drain(now=NOW)
        child = spawn(code, tmp_path / ledger.DATABASE)
        assert child.stdout.readline() == "locked\n"
        stop(child)
        pending.append(str(tmp_path), [deferred(9, 9)])
        with pytest.raises(LedgerUnavailable, match="busy") as caught:
            kept.drain(now=NOW)
        assert caught.value.exit_code == 73
        assert 0 < sum(waits) + clock.now < 1
        assert pending.waiting(str(tmp_path))
        assert len(read_history(str(tmp_path))) == 2 + is_kept
        child.kill()
        child.wait()
        kept.drain(now=NOW)
    assert not pending.waiting(str(tmp_path))


def test_a_drain_killed_before_it_empties_the_file_doubles_nothing(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """Death between commit and truncation leaves the events to be met, and known, again."""
    pending.append(str(tmp_path), [acquired("g", 0, 1), deferred(1, 1)])
    code = """
import os, sys
from maintlock import ledger, pending
pending.Drain.truncate = lambda self: os.kill(os.getpid(), 9)
ledger.drain(sys.argv[1], now=float(sys.argv[2]))
"""
    assert spawn(code, tmp_path, NOW).wait() == -9
    assert pending.waiting(str(tmp_path))
    before = snapshot(tmp_path)
    drain(str(tmp_path), now=NOW)
    assert snapshot(tmp_path) == before
    assert counter(tmp_path, "deferrals_total", task="kbSync", reason="lease-held") == 1


def test_a_kept_ledger_survives_a_fork(tmp_path: Path) -> None:
    """A forked child drains with a connection of its own, and its parent's goes on working."""
    with Ledger(str(tmp_path)) as kept:
        pending.append(str(tmp_path), [deferred(1, 1)])
        kept.drain(now=NOW)
        child = os.fork()
        if child == 0:
            try:
                pending.append(str(tmp_path), [deferred(2, 2)])
                kept.drain(now=NOW)
                os._exit(2 if pending.waiting(str(tmp_path)) else 0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        pending.append(str(tmp_path), [deferred(3, 3)])
        kept.drain(now=NOW)
    assert len(read_history(str(tmp_path))) == 3


def test_kept_ledgers_know_what_others_have_written(tmp_path: Path) -> None:
    """Drains through connections that take turns say what drains through one would: none counts on what it once read."""
    events = [deferred(1, 1), deferred(2, 2), acquired("g", 3, 1), deferred(3, 4), acquired("h", 5, 2), deferred(4, 6)]
    with Ledger(str(tmp_path)) as one, Ledger(str(tmp_path)) as other:
        for number, told_now in enumerate(events):
            pending.append(str(tmp_path), [told_now])
            (one, other)[number % 2].drain(now=NOW)
    assert (state(tmp_path).consecutive_deferrals, state(tmp_path).last_run) == (1, "h")
    assert told(tmp_path, "event", "lease_id", event="stale_cleaned") == [("stale_cleaned", "g")]
    assert highest_fence(str(tmp_path), LEASE) == 2


def test_a_kept_ledger_forgets_what_it_failed_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain that fails after writing, before it commits, leaves no trace in what the next one builds on."""
    with Ledger(str(tmp_path)) as kept:
        pending.append(str(tmp_path), [deferred(1, 1)])
        kept.drain(now=NOW)
        pending.append(str(tmp_path), [deferred(2, 2)])
        with monkeypatch.context() as patched:
            patched.setattr(ledger, "PRUNE_EVERY_SECONDS", -1.0)
            patched.setattr(ledger, "PRUNE", "no SQL")
            with pytest.raises(LedgerUnavailable):
                kept.drain(now=NOW)
        kept.drain(now=NOW)
    assert (state(tmp_path).consecutive_deferrals, len(read_history(str(tmp_path)))) == (2, 2)


def test_a_kept_ledger_notices_a_removed_database(tmp_path: Path) -> None:
    """When the database is taken away a kept connection enters into a new one, not into the deleted file."""
    with Ledger(str(tmp_path)) as kept:
        for number in (1, 2):
            pending.append(str(tmp_path), [deferred(number, number)])
            kept.drain(now=NOW)
            assert len(read_history(str(tmp_path))) == 1
            for file in tmp_path.glob("ledger.db*"):
                file.unlink()


# What can be wrong with the file ---------------------------------------------------------------------------------------


def test_closing_does_not_take_the_next_database_along(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is moved under the locks of drains is closed before or after that: SQLite removes its log by name."""
    aside, clock = tmp_path_factory.mktemp("aside"), Clock()
    monkeypatch.setattr(flock, "time", clock)
    kept, following = Ledger(str(tmp_path)), Ledger(str(tmp_path))
    assert pending.append(str(tmp_path), [deferred(1, 0)])
    kept.drain(now=NOW)
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT, 0o600) for name in PENDING_FILES]
    for fd in fds:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def move() -> None:
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / f"ledger.db{suffix}").rename(aside / f"ledger.db{suffix}")
        for fd in fds:
            os.close(fd)
        assert pending.append(str(tmp_path), [deferred(2, 1)])
        following.drain(now=NOW)

    clock.at_sleep[1] = move
    kept.close()
    assert (tmp_path / "ledger.db-wal").exists()
    assert [row["at"] for row in read_history(str(tmp_path))] == [rfc3339(NOW + 1)]
    following.close()


@pytest.mark.parametrize("umask", [0, 0o077, 0o277])
def test_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """The database and its companions have mode 0600."""
    pending.append(str(tmp_path), [deferred(1, 1)])
    before = os.umask(umask)
    try:
        with Ledger(str(tmp_path)) as kept:
            kept.drain(now=NOW)
            found = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("ledger.db*")}
    finally:
        os.umask(before)
    assert found == dict.fromkeys(["ledger.db", "ledger.db-wal", "ledger.db-shm"], 0o600)


def _rubbish(path: Path) -> None:
    path.write_bytes(b"this is no database, and long enough to be looked at" * 100)


def _torn(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(len(content) - 100))


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _symlink(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


def _strange(path: Path) -> None:
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE events (a)")
    db.execute(f"PRAGMA user_version = {len(migrations.MIGRATIONS)}")
    db.close()


def _foreign(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_rubbish, "corrupt"),
        (_torn, "corrupt"),
        (_strange, "corrupt"),
        (_directory, "regular file"),
        (_symlink, "regular file"),
        (_fifo, "regular file"),
        (_newer, "upgrade maintlock"),
        (_foreign, "belongs to uid 12345"),
    ],
)
def test_a_ledger_that_cannot_be_trusted_is_left_alone(
    tmp_path: Path, clock: Clock, waits: list[float], spoil: Callable[[Path], None], reason: str
) -> None:
    """What is corrupt, newer, not ours or no file is neither read nor written; events only gather, and nobody waits."""
    enter(tmp_path, deferred(1, 1))
    path = tmp_path / ledger.DATABASE
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    pending.append(str(tmp_path), [acquired("g", 2, 7)])
    with pytest.raises(LedgerUnavailable, match=reason) as caught:
        drain(str(tmp_path), now=NOW)
    assert (str(path) in str(caught.value)) and reason in caught.value.reason
    for read in (snapshot, lambda directory: read_history(str(directory))):
        with pytest.raises(LedgerUnavailable, match=reason):
            read(tmp_path)
    assert (waits, clock.now) == ([], 0.0)
    assert highest_fence(str(tmp_path), LEASE) == 7
    assert pending.append(str(tmp_path), [deferred(3, 3)])
    assert [found["id"] for found in pending.read(str(tmp_path))] == ["g:acquired", "d3"]
    assert before is None or path.read_bytes() == before


def test_a_pending_file_that_is_none_is_told(tmp_path: Path) -> None:
    """A directory in the pending file's place makes a drain say so."""
    (tmp_path / pending.PENDING).mkdir()
    with pytest.raises(LedgerUnavailable, match="regular file"):
        drain(str(tmp_path), now=NOW)


def test_a_full_disk_keeps_what_waits(tmp_path: Path, tiny_disk: Path) -> None:
    """When the disk is full a drain says so and the events stay; with room again they are entered, each once."""
    events = [deferred(number, number, reason="x" * 200) for number in range(300)]
    assert pending.append(str(tiny_disk), events)
    ballast = tiny_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        file.writelines(bytes(4096) for _ in range(1000))
    with pytest.raises(LedgerUnavailable, match="full|space"):
        drain(str(tiny_disk), now=NOW)
    assert len(pending.read(str(tiny_disk))) == 300
    ballast.unlink()
    drain(str(tiny_disk), now=NOW)
    assert len(read_history(str(tiny_disk))) == 300
    assert not pending.waiting(str(tiny_disk))


def test_a_read_only_directory_is_told(tmp_path: Path, tiny_disk: Path) -> None:
    """On a read-only disk appending says False and draining why; what is there can be read or is told as unavailable."""
    enter(tiny_disk, deferred(1, 1))
    pending.append(str(tiny_disk), [deferred(2, 2)])
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    assert not pending.append(str(tiny_disk), [deferred(3, 3)])
    with pytest.raises(LedgerUnavailable, match="read-only"):
        drain(str(tiny_disk), now=NOW)
    with pytest.raises(LedgerUnavailable, match="cannot be opened"):
        read_history(str(tiny_disk))
    assert highest_fence(str(tiny_disk), LEASE) == 0
    assert typical_seconds(str(tiny_disk), LEASE, "kbSync") is None


# Growing old -----------------------------------------------------------------------------------------------------------


def test_a_ledger_is_brought_to_the_newest_schema_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older ledger is migrated by the next drain, inside one transaction, and loses nothing."""
    enter(tmp_path, acquired("g", 0, 1), released("g", 1, 1.0))
    before, history = snapshot(tmp_path), read_history(str(tmp_path))
    broken = (
        *migrations.MIGRATIONS,
        "ALTER TABLE events ADD COLUMN note TEXT",
        "ALTER TABLE nowhere ADD COLUMN note TEXT",
    )
    pending.append(str(tmp_path), [deferred(1, 2)])
    monkeypatch.setattr(migrations, "MIGRATIONS", broken)
    with pytest.raises(LedgerUnavailable):
        drain(str(tmp_path), now=NOW)
    with pytest.raises(LedgerUnavailable, match="next drain"):
        read_history(str(tmp_path))
    monkeypatch.setattr(migrations, "MIGRATIONS", (*broken[:-1], "ALTER TABLE events ADD COLUMN remark TEXT"))
    drain(str(tmp_path), now=NOW)
    db = sqlite3.connect(tmp_path / ledger.DATABASE)
    assert db.execute("PRAGMA user_version").fetchone() == (len(migrations.MIGRATIONS),)
    db.close()
    assert read_history(str(tmp_path))[:2] == history
    assert snapshot(tmp_path).counters.items() > before.counters.items()


def test_a_ledger_of_the_first_schema_knows_its_failing_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose last run had failed when the ledger was migrated is still known to have failed, and no other is."""
    db = sqlite3.connect(tmp_path / ledger.DATABASE)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:1])
        migrations.migrate(db)
    for task, outcome in (("kbSync", "timed_out"), ("backup", "completed"), ("dream", "stopped")):
        row = (LEASE, task, outcome, NOW - 5, NOW - 9, 0)
        columns = "lease, task, last_outcome, last_ended_at, last_success_at, consecutive_deferrals"
        db.execute(f"INSERT INTO tasks ({columns}) VALUES (?, ?, ?, ?, ?, ?)", row)
    db.commit()
    db.close()
    enter(tmp_path, deferred(1, 0))
    assert {task: state(tmp_path, task).has_succeeded for task in ("kbSync", "backup", "dream")} == {
        "kbSync": False, "backup": True, "dream": True,
    }  # fmt: skip


def test_history_is_forgotten_and_totals_are_not(tmp_path: Path) -> None:
    """Rows past the history go, in portions; the newest 1000, each lease's last grant and all totals stay."""
    enter(tmp_path, acquired("g", 0, 1), released("g", 1, 1.0), deferred(-1, 2), now=NOW)
    enter(tmp_path, *[deferred(number, 10 + number / 100) for number in range(2500)])
    last = NOW + 100 * DAY
    enter(tmp_path, deferred(9999, 100 * DAY), now=last)
    assert len(read_history(str(tmp_path))) == 2504 - ledger.PRUNE_AT_ONCE
    for number in range(1, 4):
        enter(tmp_path, deferred(9999 + number, 100 * DAY + number), now=last + number)
    rows = told(tmp_path, "event", "at")
    assert rows[:2] == [("acquired", rfc3339(NOW)), ("released", rfc3339(NOW + 1))]
    assert ledger.ALWAYS_KEPT <= len(rows) <= ledger.ALWAYS_KEPT + 4
    assert counter(tmp_path, "deferrals_total", task="kbSync", reason="lease-held") == 2505
    enter(tmp_path, acquired("g", 0, 1), released("g", 1, 1.0), now=last)
    assert counter(tmp_path, "runs_total", task="kbSync") == 1


def test_forgetting_happens_once_an_hour(tmp_path: Path) -> None:
    """A drain is not slowed by looking for old rows again and again, whoever looked last."""
    enter(tmp_path, *[deferred(number, number) for number in range(1100)], now=NOW + 100 * DAY)
    kept = len(read_history(str(tmp_path)))
    assert kept == ledger.ALWAYS_KEPT
    enter(tmp_path, deferred(5000, 5000), now=NOW + 100 * DAY + 3000)
    assert len(read_history(str(tmp_path))) == kept + 1
    enter(tmp_path, deferred(5001, 5001), now=NOW + 100 * DAY + 3700)
    assert len(read_history(str(tmp_path))) == kept


def test_whoever_knows_no_configuration_keeps_what_the_last_one_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of the orchestrator reads no configuration, and forgets nothing that its history has room for."""
    monkeypatch.setattr(ledger, "ALWAYS_KEPT", 1)
    monkeypatch.setattr(ledger, "PRUNE_EVERY_SECONDS", -1.0)
    told_by = {name: ledger.Ledger(str(tmp_path), history_seconds=days * DAY) for name, days in (("a", 365), ("b", 30))}

    def kept_by_a_job() -> int:
        program.settle(Places(directory=str(tmp_path), lease=LEASE), config.load(None).history, lasted_seconds=2.0)
        return len(read_history(str(tmp_path)))

    now = time.time()
    since = now - NOW
    enter(tmp_path, deferred(1, since - 200 * DAY), deferred(2, since - 80 * DAY), now=now - 120 * DAY)
    told_by["a"].drain(now=now)  # with nothing to enter
    pending.append(str(tmp_path), [deferred(3, since - 60 * DAY), deferred(4, since)])
    assert kept_by_a_job() == 4
    told_by["b"].drain(now=now)
    pending.append(str(tmp_path), [deferred(5, since)])
    assert kept_by_a_job() == 2
    for one in told_by.values():
        one.close()


def test_counters_are_stored_as_canonical_text(tmp_path: Path) -> None:
    """A counter's labels are one JSON object with sorted keys, so that every process means the same row."""
    enter(tmp_path, acquired("g", 0, 1))
    db = sqlite3.connect(tmp_path / ledger.DATABASE)
    texts = [text for (text,) in db.execute("SELECT labels FROM counters")]
    db.close()
    assert texts and all(text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) for text in texts)
