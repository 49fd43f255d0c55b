from __future__ import annotations

from typing import Any

import pytest

from maintlock.settings import TaskSettings
from maintlock.standing import is_resting, is_starved, next_due_at, standing
from maintlock.states import TaskState

NOW = 1_000_000.0
STARVED_AFTER = 7200.0
KB_SYNC = TaskSettings(name="kbSync", interval=600.0)
BY_HAND = TaskSettings(name="backup")


def state(**fields: Any) -> TaskState:
    """Return the state of a task; what is not said is a task that ran and succeeded a while ago."""
    usual = {
        "registered_at": NOW - 5000,
        "last_run_at": NOW - 500,
        "last_ended_at": NOW - 400,
        "last_success_at": NOW - 400,
    }
    return TaskState(**{**usual, "last_outcome": "completed", **fields})


DEFERRED: dict[str, Any] = {
    "consecutive_deferrals": 3, "deferred_since": NOW - 60, "last_deferred_at": NOW, "blocked_by": "backup",
    "reason_code": "lease-held",
}  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "fields", "is_running"),
    [
        ("running", {**DEFERRED, "last_outcome": "failed", "deferred_since": NOW - 7201}, True),
        ("starved", {**DEFERRED, "last_outcome": "failed", "deferred_since": NOW - 7201}, False),
        ("failing", {**DEFERRED, "last_outcome": "failed", "last_success_at": NOW - 1201}, False),
        ("failing", {"last_outcome": "timed_out"}, False),
        ("failing", {"last_outcome": "lost"}, False),
        ("overdue", {**DEFERRED, "last_success_at": NOW - 1201}, False),
        ("overdue", {"last_success_at": None, "registered_at": NOW - 1201}, False),
        ("deferred", {**DEFERRED, "last_ended_at": NOW - 10}, False),
        ("resting", {"last_ended_at": NOW - 10}, False),
        ("idle", {}, False),
        ("idle", {"last_outcome": "stopped"}, False),
        ("idle", {"last_outcome": "unknown"}, False),
    ],
)
def test_the_first_state_that_applies(expected: str, fields: dict[str, Any], *, is_running: bool) -> None:
    """Of the states that apply the first is told, and neither a stopped run nor an unknown end is a failure (R9, L3)."""
    found = standing(KB_SYNC, state(**fields), is_running=is_running, now=NOW, starved_after=STARVED_AFTER)
    assert found.state == expected


@pytest.mark.parametrize(
    ("expected", "task", "asked", "starved_after"),
    [
        (True, BY_HAND, 3 * 3600, 7200.0),
        (True, BY_HAND, 1.5, 1.0),
        (True, BY_HAND, 86400, 7200.0),
        (False, BY_HAND, 86401, 7200.0),
        (True, BY_HAND, 2 * 86400, 2 * 86400.0),
        (True, KB_SYNC, 86401, 7200.0),
        (True, TaskSettings(name="kbSync", inbox="/x/*"), 86401, 7200.0),
    ],
)
def test_whom_nothing_schedules_starves_while_somebody_asks(
    task: TaskSettings, asked: float, starved_after: float, *, expected: bool
) -> None:
    """A task that stood back once, by hand, is not starved for ever; it is still on record as deferred (L5)."""
    one = state(**{**DEFERRED, "deferred_since": NOW - asked - 1, "last_deferred_at": NOW - asked})
    assert is_starved(task, one, NOW, starved_after) is expected
    found = standing(task, one._replace(last_success_at=NOW), is_running=False, now=NOW, starved_after=starved_after)
    assert found.state == ("starved" if expected else "deferred")


def test_a_deferral_is_told_with_its_cause() -> None:
    """A task that stood back tells since when, how often, for whom and why, and keeps its last success (L3, L5)."""
    found = standing(KB_SYNC, state(**DEFERRED), is_running=False, now=NOW, starved_after=STARVED_AFTER)
    assert (found.deferred_since, found.consecutive_deferrals) == (NOW - 60, 3)
    assert (found.blocked_by, found.reason_code, found.last_success_at) == ("backup", "lease-held", NOW - 400)


def test_a_task_that_never_ran_is_idle_and_due() -> None:
    """A task without a history is due at once, and not overdue before it was known for two intervals (R16)."""
    found = standing(KB_SYNC, TaskState(), is_running=False, now=NOW, starved_after=STARVED_AFTER)
    assert (found.state, found.next_due_at, found.last_run_at) == ("idle", NOW, None)


@pytest.mark.parametrize(
    ("expected", "task", "fields"),
    [
        (None, BY_HAND, {}),
        (NOW + 100, KB_SYNC, {}),
        (NOW + 100, TaskSettings(name="kbSync", interval=600.0, rest=430.0), {}),
        (NOW + 500, TaskSettings(name="kbSync", interval=600.0, rest=900.0), {}),
        (NOW + 50, KB_SYNC, {"last_run_at": NOW - 5000, "last_ended_at": NOW - 10}),
        (NOW + 600, KB_SYNC, {"last_run_at": NOW + 9000, "last_ended_at": None}),
    ],
)
def test_next_due(expected: float | None, task: TaskSettings, fields: dict[str, Any]) -> None:
    """A task is due an interval after its last start and never before it has rested; a clock set back does not put it off (R11, L6)."""
    assert next_due_at(task, state(**fields), NOW) == expected


def test_rest() -> None:
    """After a run a task rests for a tenth of its interval (L6)."""
    assert is_resting(KB_SYNC, state(last_ended_at=NOW - 59), NOW)
    assert not is_resting(KB_SYNC, state(last_ended_at=NOW - 60), NOW)
    assert not is_resting(KB_SYNC, TaskState(), NOW)
