from __future__ import annotations

from typing import Any

import pytest

from maintlock.model import ProcessIdentity
from maintlock.orchestrator.memory import RETRY_SECONDS, Known, Memory, after_end, merged, retry_seconds
from maintlock.orchestrator.record import Held, Started
from maintlock.settings import TaskSettings
from maintlock.states import TaskState

AT = 1_000_000.0  # epoch seconds
NOW = 500.0  # monotonic
POLL = 3.0
BEGUN = Known(first_seen_at=AT - 9, began_at=AT, succeeded_at=AT - 5, failures=2)
HELD = Held(reason_code="lease-held", blocked_by="backup", since=AT - 3)


@pytest.mark.parametrize(
    ("outcome", "is_begun", "changed"),
    [
        ("completed", True, {"succeeded_at": AT, "failures": 0}),
        ("failed", True, {"failures": 3}),
        ("timed_out", True, {"failures": 3}),
        ("stopped", True, {"failures": 3}),
        ("lost", True, {"failures": 3}),
        (None, True, {"failures": 3}),
        ("deferred", False, {"began_at": None}),
        ("not_run", False, {"began_at": None, "not_before": NOW + RETRY_SECONDS}),
        ("stopped", False, {"began_at": None, "not_before": NOW + RETRY_SECONDS}),
    ],
)
def test_what_an_end_means(outcome: str | None, *, is_begun: bool, changed: dict[str, Any]) -> None:
    """A success is remembered by its start, a failure counted. What never had its lease has not begun: where it stood back it
    asks again at the next poll, else after a pause (R11).
    """
    assert after_end(BEGUN, outcome, NOW, is_begun=is_begun) == Known(**{**vars(BEGUN), **changed})


def test_a_success_whose_start_is_unknown() -> None:
    """A run that succeeded without our knowing its start changes nothing about what its inbox has been read up to."""
    assert after_end(Known(succeeded_at=AT), "completed", NOW, is_begun=True).succeeded_at == AT


@pytest.mark.parametrize(
    ("told", "known", "held", "expected"),
    [
        (TaskState(), TaskState(), None, TaskState()),
        (TaskState(), TaskState(last_run_at=AT), None, TaskState(last_run_at=AT)),
        (TaskState(last_run_at=AT), TaskState(last_run_at=AT - 1), None, TaskState(last_run_at=AT)),
        (TaskState(last_run_at=AT), TaskState(last_run_at=AT + 1), None, TaskState(last_run_at=AT + 1)),
        (TaskState(last_run_at=AT), TaskState(), None, TaskState(last_run_at=AT)),
        (
            TaskState(last_success_started_at=AT - 1),
            TaskState(last_success_started_at=AT),
            None,
            TaskState(last_success_started_at=AT),
        ),
        (TaskState(), TaskState(), HELD, TaskState(deferred_since=AT - 3)),
        (TaskState(deferred_since=AT - 7), TaskState(), HELD, TaskState(deferred_since=AT - 7)),
    ],
)
def test_what_the_ledger_may_not_know_yet(
    told: TaskState, known: TaskState, held: Held | None, expected: TaskState
) -> None:
    """The later of what the ledger tells and what we know counts; a streak is as long as the ledger tells, if it does."""
    assert merged(told, known, held) == expected


@pytest.mark.parametrize(
    ("failures", "rest", "expected"), [(0, 60, 0), (1, 60, 3), (3, 60, 12), (9, 60, 60), (9, 0, 60)]
)
def test_when_failed_work_is_made_up_for(failures: int, rest: float, expected: float) -> None:
    """Work that failed is tried again after pauses up to the task's rest, or a minute where it has none (R12)."""
    task = TaskSettings(name="summary", inbox="/inbox/*", rest=rest)
    assert retry_seconds(Known(failures=failures), task, poll_interval=POLL) == expected


def test_a_task_is_remembered() -> None:
    """What happens to a task is remembered, and what is known of one does not touch another."""
    memory = Memory()
    assert memory.first_seen_at("kbSync", AT) == memory.first_seen_at("kbSync", AT + 9) == AT
    identity = ProcessIdentity(pid=1, start_ticks=1, boot_id="", pid_namespace="")
    memory.adopted({"kbSync": Started(identity=identity, at=AT + 1)})
    assert memory.state_of("kbSync", None, None, AT + 2) == TaskState(last_run_at=AT + 1)
    memory.ended("kbSync", "completed", NOW, is_begun=True)
    assert memory.state_of("kbSync", None, None, AT + 2).last_success_started_at == AT + 1
    assert memory.state_of("backup", None, None, AT + 2) == TaskState()


def test_delays() -> None:
    """After a start in vain a task waits, until its delay is over, or the configuration is new."""
    memory = Memory()
    assert memory.may_start("kbSync", NOW)
    memory.not_begun("kbSync", NOW)
    assert not memory.may_start("kbSync", NOW + RETRY_SECONDS - 1) and memory.may_start("kbSync", NOW + RETRY_SECONDS)
    memory.forget_delays()
    assert memory.may_start("kbSync", NOW)


def test_a_clock_that_was_set_back() -> None:
    """A start of ours that lies in a time to come is taken to have happened when that was first seen."""
    memory = Memory()
    memory.begun("kbSync", AT + 3600)
    states = [memory.state_of("kbSync", None, None, AT + seconds) for seconds in (0, 60, 120)]
    assert [state.last_run_at for state in states] == [AT] * 3
