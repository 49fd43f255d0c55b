from __future__ import annotations

from typing import Any

import pytest

from maintlock import process
from maintlock.history import States
from maintlock.model import ProcessIdentity, replace
from maintlock.orchestrator.health import Health, Readings, judged
from maintlock.orchestrator.record import Held, Record, Started
from maintlock.settings import Config, DaemonSettings, TaskSettings
from maintlock.states import TaskState

NOW = 1_000_000.0
LEASE = "heavy-maintenance"
CONFIG = Config(
    leases={},
    tasks={name: TaskSettings(name=name, command=("true",), interval=600.0) for name in ("kbSync", "backup")},
    daemons={"chroma": DaemonSettings(name="chroma", command=("true",))},
)
GONE = ProcessIdentity(pid=2**22 + 9, start_ticks=1, boot_id=process.boot_id(), pid_namespace=process.pid_namespace())
FREE: Any = {
    "lease": LEASE, "state": "free", "backend": "flock", "scope": "user", "path": "/x", "holder": None,
    "sidecar": "missing", "detail": None, "waiters": [], "nested": [], "collisions": [],
}  # fmt: skip
WELL = TaskState(
    registered_at=NOW - 9000, last_run_at=NOW - 500, last_ended_at=NOW - 400, last_success_at=NOW - 400,
    last_outcome="completed",
)  # fmt: skip


def living() -> Record:
    """Return the record of an orchestrator that lives, with a daemon that is up: both are we."""
    me = process.own_identity()
    return Record(
        identity=me, started_at=NOW - 100, polled_at=NOW - 1, daemons={"chroma": Started(identity=me, at=NOW - 90)}
    )


def readings(**changes: Any) -> Readings:
    """Return readings of a place where all is well, but for some."""
    states: dict[str, TaskState] = {"kbSync": WELL, "backup": WELL, **changes.pop("tasks", {})}
    usual = {
        "status": FREE, "record": living(), "running": frozenset(), "waiting": frozenset(), "is_used": True,
        "collisions": (), "dropped": 0, "trouble": None, "now": NOW,
        "states": States(tasks={(LEASE, name): state for name, state in states.items()}, collisions={}, present=[]),
    }  # fmt: skip
    return Readings(**{**usual, **changes})


def judge(**changes: Any) -> Health:
    """Return the judgement on such readings."""
    return judged(readings(**changes), CONFIG)


def test_all_is_well() -> None:
    """Where all is well nothing is said."""
    found = judge()
    assert (found["status"], found["reasons"]) == ("healthy", [])
    assert [task["state"] for task in found["tasks"].values()] == ["idle", "idle"]
    assert found["daemons"]["chroma"]["state"] == "up" and found["orchestrator"]["state"] == "running"


@pytest.mark.parametrize(
    ("fields", "state", "status"),
    [
        ({"deferred_since": NOW - 60, "blocked_by": "backup", "reason_code": "lease-held"}, "deferred", "healthy"),
        ({"deferred_since": NOW - 7201, "blocked_by": "backup", "reason_code": "lease-held"}, "starved", "degraded"),
        ({"last_outcome": "failed"}, "failing", "degraded"),
        ({"last_outcome": "timed_out"}, "failing", "degraded"),
        ({"last_outcome": "lost"}, "failing", "degraded"),
        ({"last_outcome": "stopped"}, "idle", "healthy"),
        ({"last_outcome": "unknown"}, "idle", "healthy"),
        ({"last_success_at": NOW - 1201}, "overdue", "degraded"),
        ({"last_ended_at": NOW - 10}, "resting", "healthy"),
    ],
)
def test_a_tasks_state(fields: dict[str, Any], state: str, status: str) -> None:
    """A deferral is healthy, a failure, starvation and an old success are not (R9, L3, L5)."""
    found = judge(tasks={"kbSync": WELL._replace(**fields)})
    assert (found["tasks"]["kbSync"]["state"], found["status"]) == (state, status)
    assert bool(found["reasons"]) == (status == "degraded")


def test_starvation_names_its_cause() -> None:
    """Who has starved is told with since when and for whom (L5)."""
    state = WELL._replace(deferred_since=NOW - 7201, blocked_by="backup", reason_code="lease-held")
    (reason,) = judge(tasks={"kbSync": state})["reasons"]
    assert "kbSync is starved since" in reason and "held back by backup" in reason


@pytest.mark.parametrize(
    ("told", "is_used", "state", "status"),
    [
        (None, False, "never", "healthy"),
        (Record(), False, "never", "healthy"),
        (None, True, "unknown", "unknown"),
        ("living", True, "running", "healthy"),
        ({"identity": GONE}, True, "died", "degraded"),
        ({"polled_at": NOW - 61}, True, "stalled", "degraded"),
        ({"polled_at": NOW - 59}, True, "running", "healthy"),
        ({"polled_at": NOW - 300, "poll_interval": 60.0}, True, "running", "healthy"),
        ({"polled_at": NOW + 300}, True, "running", "healthy"),
        ({"identity": GONE, "stopped_at": NOW - 50}, True, "stopped", "healthy"),
    ],
    ids="never nobody unreadable living died stalled slow patient clock-set-back stopped".split(),
)
def test_the_orchestrator(told: Any, *, is_used: bool, state: str, status: str) -> None:
    """An orchestrator that was never used counts for nothing, one that stopped neither; one that died or does not poll is
    degraded, and one whose record cannot be read is unknown.
    """
    known = living() if told == "living" else replace(living(), **told) if isinstance(told, dict) else told
    found = judge(record=known, is_used=is_used)
    assert (found["orchestrator"]["state"], found["status"]) == (state, status)
    assert "is_bad" not in found["orchestrator"]


def test_a_daemon_that_is_down() -> None:
    """A daemon that is down is degraded and says why; after a stop in good order nobody supervises it, which is no fault."""
    down = replace(
        living(),
        daemons={"chroma": Started(identity=GONE, at=NOW)},
        troubles={"daemon:chroma": "ended with exit code 3"},
    )
    found = judge(record=down)
    assert (found["daemons"]["chroma"]["state"], found["status"]) == ("down", "degraded")
    assert found["reasons"] == ["daemon chroma is down: ended with exit code 3"]
    stopped = judge(record=replace(down, stopped_at=NOW))
    assert (stopped["daemons"]["chroma"]["state"], stopped["status"]) == ("unsupervised", "healthy")
    never = judge(record=None, is_used=False)
    assert (never["daemons"]["chroma"]["state"], never["status"]) == ("unsupervised", "healthy")


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"trouble": "ledger.db: corrupt", "states": None}, "unknown", "corrupt"),
        ({"status": {**FREE, "state": "unknown", "detail": "no /proc"}}, "unknown", "no /proc"),
        ({"status": {**FREE, "state": "orphaned", "detail": "pid 5 works on"}}, "degraded", "pid 5"),
        ({"dropped": 3}, "degraded", "3 events"),
        ({"collisions": ({"kind": "inherited", "detail": "two", "since": "x"},)}, "degraded", "inherited: two"),
        (
            {"status": {**FREE, "state": "held", "holder": {"task": "backup", "overdue": True, "held_seconds": 90.0}}},
            "degraded",
            "beyond its TTL",
        ),
        ({"record": replace(living(), troubles={"configuration": "bad key"})}, "degraded", "bad key"),
        (
            {"record": replace(living(), identity=GONE), "trouble": "ledger.db: busy", "states": None},
            "unknown",
            "busy",
        ),
    ],
    ids="ledger unseen orphaned dropped collision overdue configuration both".split(),
)
def test_degraded_and_unknown(changes: dict[str, Any], status: str, word: str) -> None:
    """What is wrong is degraded, what cannot be told is unknown, and each says why (R10)."""
    found = judge(**changes)
    assert found["status"] == status
    assert word in found["reasons"][0]


def test_a_dead_orchestrators_reasons_are_not_told() -> None:
    """What an orchestrator that died thought of a task is not told as if it were so now."""
    told = replace(
        living(), identity=GONE, troubles={"task:kbSync": "broken"},
        held={"kbSync": Held(reason_code="queued", blocked_by="x", since=NOW)},
    )  # fmt: skip
    found = judge(record=told)
    assert found["tasks"]["kbSync"]["state"] == "idle" and found["tasks"]["kbSync"]["detail"] is None
    assert not any("broken" in reason for reason in found["reasons"])


def test_what_holds_back_is_told_before_the_ledger_knows() -> None:
    """A task that is held back is deferred also while the ledger cannot be written, with the newest blocker."""
    told = replace(living(), held={"kbSync": Held(reason_code="queued", blocked_by="x", since=NOW - 5)})
    task = judge(record=told)["tasks"]["kbSync"]
    assert (task["state"], task["reason_code"], task["blocked_by"]) == ("deferred", "queued", "x")


def test_running_is_who_has_a_lease_or_is_about_to() -> None:
    """Who has a lease runs, and whose wrapper has just begun; a wrapper that waits in the queue does not run."""
    me = process.own_identity()
    told = replace(living(), jobs={"kbSync": Started(identity=me, at=NOW)})
    assert judge(running=frozenset({"backup"}))["tasks"]["backup"]["state"] == "running"
    assert judge(record=told)["tasks"]["kbSync"]["state"] == "running"
    assert judge(record=told, waiting=frozenset({me.pid}))["tasks"]["kbSync"]["state"] == "idle"
    gone = replace(living(), jobs={"kbSync": Started(identity=GONE, at=NOW)})
    assert judge(record=gone)["tasks"]["kbSync"]["state"] == "idle"
