from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from maintlock.healthtable import of_health, of_tasks
from maintlock.times import rfc3339

NOW = 1_000_000.0
TASK: dict[str, Any] = {
    "state": "idle", "deferred_since": None, "blocked_by": None, "reason_code": None, "held_back": False,
    "last_run_at": None, "last_success_at": None, "last_outcome": None, "next_due_at": None, "scheduled": True,
    "inbox": None, "detail": None,
}  # fmt: skip
DEFERRED = {"deferred_since": rfc3339(NOW - 8.7), "blocked_by": "backup", "reason_code": "lease-held"}


def printed(shown: Any) -> str:
    """Return what people see, with one blank for several."""
    console = Console(file=io.StringIO(), width=300)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(" ".join(line.split()) for line in console.file.getvalue().splitlines())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "never never inbox"),
        ({"scheduled": False}, "never never by hand"),
        ({"next_due_at": rfc3339(NOW + 59)}, "never never in 59s"),
        ({"next_due_at": rfc3339(NOW - 60)}, "never never now"),
        ({"next_due_at": rfc3339(NOW - 60), "scheduled": False}, "never never by hand"),
        ({"last_run_at": rfc3339(NOW - 5), "last_success_at": rfc3339(NOW - 3)}, "5s ago 3s ago inbox"),
        ({**DEFERRED, "held_back": True}, "never never now held back by backup (lease-held) for 8.7s"),
        ({**DEFERRED, "scheduled": False}, "never never by hand deferred 8.7s ago by backup (lease-held)"),
        (
            {**DEFERRED, "detail": "due; no orchestrator is running"},
            "never never inbox due; no orchestrator is running; deferred 8.7s ago by backup (lease-held)",
        ),
        ({"state": "failing", "last_outcome": "lost"}, "never never inbox its last run ended as lost"),
        ({"state": "failing", "detail": "cannot be started"}, "never never inbox cannot be started"),
        ({"state": "running", **DEFERRED}, "never never inbox"),
    ],
)
def test_a_task_for_people(fields: dict[str, Any], expected: str) -> None:
    """When a task is due is what the orchestrator does; who stood back earlier is told apart from who is held back now."""
    task = {**TASK, **fields}
    assert printed(of_tasks({"kbSync": task}, NOW)).splitlines()[1] == f"kbSync {task['state']} {expected}"


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"orchestrator": {"state": "never", "pid": None}}, "orchestrator: never started"),
        (
            {"orchestrator": {"state": "running", "pid": 7, "polled_at": rfc3339(NOW - 2)}},
            "orchestrator: running (pid 7), polled 2s ago",
        ),
        (
            {"daemons": {"mlx": {"state": "up", "pid": 1, "since": rfc3339(NOW - 7.6)}}},
            "daemon mlx: up for 7.6s (pid 1)",
        ),
        ({"daemons": {"mlx": {"state": "down", "detail": "ended"}}}, "daemon mlx: down: ended"),
        ({"daemons": {"mlx": {"state": "unsupervised"}}}, "daemon mlx: not running (no orchestrator)"),
        ({}, "lease: free"),
    ],
)
def test_health_for_people(about: dict[str, Any], expected: str) -> None:
    """The lease, the orchestrator and each daemon are told in words."""
    usual: Any = {
        "status": "healthy", "reasons": [], "lease": {"state": "free", "holder": None}, "tasks": {}, "daemons": {},
        "collisions": [], "orchestrator": {"state": "never", "pid": None},
    }  # fmt: skip
    assert expected in printed(of_health({**usual, **about}, NOW)).splitlines()
