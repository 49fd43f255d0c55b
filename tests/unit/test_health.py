from __future__ import annotations

from typing import Any

import pytest

from maintlock import process
from maintlock.history import States
from maintlock.model import Line, ProcessIdentity, replace
from maintlock.orchestrator.health import Health, Readings, judged, read_alive
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
        "status": FREE, "record": living(), "running": frozenset(), "waiting": frozenset(), "lost": {},
        "is_used": True, "collisions": (), "dropped": 0, "trouble": None, "now": NOW,
        "states": States(tasks={(LEASE, name): state for name, state in states.items()}, collisions={}, present=[]),
    }  # fmt: skip
    told = {**usual, **changes}
    return Readings(**{"alive": read_alive(told["record"]), **told})


def judge(config: Config = CONFIG, **changes: Any) -> Health:
    """Return the judgement on such readings."""
    return judged(readings(**changes), config)


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


LOST = Line(
    fence=1, lease_id="g", task="kbSync", source="orchestrator", session_id=5, hold_until="session", mode="supervised",
    identity=GONE, started_at=NOW - 60,
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "outcome", "state"),
    [
        (LOST, "lost", "failing"),
        (replace(LOST, mode="exec"), "unknown", "idle"),
        (replace(LOST, started_at=NOW - 501), "completed", "idle"),
        (replace(LOST, task="other"), "completed", "idle"),
    ],
)
def test_a_grant_that_nobody_ended(line: Line, outcome: str, state: str) -> None:
    """A task whose job was killed with its wrapper is failing at once, and not only when somebody asks for the lease (R9)."""
    found = judge(lost={LEASE: line})
    assert (found["tasks"]["kbSync"]["last_outcome"], found["tasks"]["kbSync"]["state"]) == (outcome, state)
    assert found["reasons"] == (["kbSync is failing, its last run ended as lost"] if state == "failing" else [])


def test_a_task_that_cannot_be_started() -> None:
    """A task that cannot be started is failing with the reason, whoever held it back before; that is told once (R9)."""
    stuck = replace(living(), troubles={"start:kbSync": "cannot be started: no such directory"})
    held_back = WELL._replace(
        deferred_since=NOW - 9999, blocked_by="backup", reason_code="backpressure", consecutive_deferrals=1
    )
    found = judge(record=stuck, tasks={"kbSync": held_back})
    task = found["tasks"]["kbSync"]
    assert (task["state"], task["deferred_since"], task["blocked_by"]) == ("failing", None, None)
    assert task["detail"] == "cannot be started: no such directory"
    assert found["reasons"] == ["start:kbSync: cannot be started: no such directory"]


HAND = TaskSettings(name="kbSync", interval=600.0, npm_script="ai:sync-kb")


@pytest.mark.parametrize(
    ("task", "record", "last_run_at", "detail", "is_scheduled"),
    [
        (HAND, "living", NOW - 601, "has no command, so it is started by hand only", False),
        (HAND, None, NOW - 601, "has no command, so it is started by hand only", False),
        (HAND, "living", NOW - 500, "has no command, so it is started by hand only", False),
        (replace(HAND, interval=0.0), "living", NOW - 601, None, False),
        (replace(HAND, command=("true",)), "living", NOW - 601, None, True),
        (replace(HAND, command=("true",)), None, NOW - 601, "due; no orchestrator is running", True),
        (replace(HAND, command=("true",)), None, NOW - 500, None, True),
    ],
)
def test_who_starts_a_task(
    task: TaskSettings, record: str | None, last_run_at: float, detail: str | None, *, is_scheduled: bool
) -> None:
    """A due task that nothing starts by itself says so: it has no command, or there is no orchestrator. Neither is a fault."""
    config = Config(leases={}, tasks={"kbSync": task}, daemons={})
    told = living() if record is not None else None
    found = judge(
        config, record=told, is_used=told is not None, tasks={"kbSync": WELL._replace(last_run_at=last_run_at)}
    )
    kb_sync = found["tasks"]["kbSync"]
    assert (kb_sync["detail"], kb_sync["scheduled"], found["status"]) == (detail, is_scheduled, "healthy")


def test_what_a_pull_owes() -> None:
    """A task that a pull has made necessary says since when, until it has succeeded (L15)."""
    found = judge(owed={"kbSync": NOW - 60})
    assert found["tasks"]["kbSync"]["detail"] == "owed since 1970-01-12T13:45:40.000Z, after a pull"
    assert found["tasks"]["backup"]["detail"] is None


def test_tasks_that_only_the_ledger_knows() -> None:
    """Tasks that are not configured are shown as such, the most recent hundred of them, and do not count (R10)."""
    known = {
        f"t{number}": WELL._replace(last_run_at=NOW - 300 + number, last_outcome="failed") for number in range(150)
    }
    found = judge(tasks=known)
    assert len(found["tasks"]) == 102 and {"t50", "t149"} <= found["tasks"].keys() and "t49" not in found["tasks"]
    assert (found["tasks"]["t149"]["state"], found["tasks"]["t149"]["detail"]) == ("failing", "not configured")
    assert found["tasks"]["t149"]["configured"] is False and found["tasks"]["kbSync"]["configured"] is True
    assert found["status"] == "healthy"


def test_a_configuration_that_cannot_be_read() -> None:
    """Where the configuration is invalid that is the reason, once, and what the ledger knows is shown all the same."""
    told = replace(living(), troubles={"configuration": "bad key"})
    found = judge(Config(leases={}, tasks={}, daemons={}), record=told, bad_config="bad key")
    assert (found["status"], found["reasons"]) == ("degraded", ["configuration: bad key"])
    assert (found["tasks"]["kbSync"]["configured"], found["tasks"]["kbSync"]["detail"]) == (None, None)
