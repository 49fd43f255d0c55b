from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock.orchestrator.cadence import Unread, due, is_scheduled, retry_seconds
from maintlock.orchestrator.clock import Clock
from maintlock.settings import TaskSettings
from maintlock.states import TaskState

NOW = 1_000_000.0
TASK = TaskSettings(name="kbSync", command=("true",), interval=1800.0)
SUMMARY = TaskSettings(name="summary", command=("true",), interval=600.0, inbox="/inbox/*")
SOME = Unread(count=3, oldest_at=NOW - 30, newest_at=NOW - 10)


def ran(ago: float, *, took: float | None = None, **fields: Any) -> TaskState:
    """Return the state of a task that started `ago` seconds ago, and ended `took` seconds later."""
    ended = None if took is None else NOW - ago + took
    return TaskState(last_run_at=NOW - ago, last_ended_at=ended, **fields)


@pytest.mark.parametrize(
    ("task", "state", "expected"),
    [
        (TASK, TaskState(), True),
        (TASK, ran(1799.9, took=10), False),
        (TASK, ran(1800, took=10), True),
        (TASK, ran(1800, took=1700), False),
        (TASK, ran(1880, took=1700), True),
        (TASK, ran(7200, took=7190), False),
        (TASK, ran(7200, took=7020), True),
        (TaskSettings(name="x", command=("true",), interval=60, rest=0), ran(60, took=59.9), True),
        (TaskSettings(name="x", command=("true",)), TaskState(), False),
        (TaskSettings(name="x", command=("true",)), ran(1e9), False),
        (TASK, ran(1800, took=10, deferred_since=NOW - 5, consecutive_deferrals=1), True),
        (TASK, ran(1800, took=10, last_outcome="failed"), True),
        (TASK, ran(-3600), False),
    ],
    ids="never before at rested-not rested long-not long no-rest by-hand by-hand-old held failed future".split(),
)
def test_when_a_task_is_due(task: TaskSettings, state: TaskState, *, expected: bool) -> None:
    """A task is due an interval after its last start, not before it has rested, at once if it never ran, and with an
    interval of 0 never by itself (R11, L6).
    """
    assert (due(task, state, NOW, first_seen_at=NOW) is not None) is expected


@pytest.mark.parametrize(
    ("expected", "settings"),
    [
        (True, {"command": ("true",), "interval": 60.0}),
        (True, {"command": ("true",), "inbox": "/inbox/*"}),
        (False, {"command": ("true",)}),
        (False, {"interval": 60.0, "inbox": "/inbox/*"}),
    ],
)
def test_which_tasks_are_scheduled(*, expected: bool, settings: dict[str, Any]) -> None:
    """A task is started by itself if it has a command, and an interval or an inbox (R11)."""
    assert is_scheduled(TaskSettings(name="x", **settings)) is expected


def test_the_reason_tells_why() -> None:
    """The reason names the interval, or how many files are unread (R12)."""
    periodic = due(TASK, ran(1800, took=1), NOW, first_seen_at=NOW)
    short = due(TaskSettings(name="x", command=("true",), interval=0.5), ran(9, took=1), NOW, first_seen_at=NOW)
    inbox = due(SUMMARY, ran(10, took=1), NOW, first_seen_at=NOW, unread=SOME)
    assert periodic and short and inbox
    assert (periodic.reason, short.reason, inbox.reason) == ("periodic:1800s", "periodic:0.5s", "inbox:3")


def test_unread_work_is_due_before_interval_and_rest() -> None:
    """Unread work makes a task due before its interval, and its rest does not delay it (R12, L6)."""
    state = ran(5, took=4.9, last_outcome="completed")
    assert due(SUMMARY, state, NOW, first_seen_at=NOW) is None
    found = due(SUMMARY, state, NOW, first_seen_at=NOW, unread=SOME)
    assert found is not None and found.since == NOW - 30
    assert due(SUMMARY, state, NOW, first_seen_at=NOW, unread=Unread(count=0, oldest_at=0, newest_at=0)) is None


def test_failed_work_is_tried_again_later_each_time() -> None:
    """What a task could not do stays unread, and is tried again after pauses that grow up to its rest, at once when a
    file has changed since its run ended (R12).
    """
    pauses = [retry_seconds(count, first=3, longest=60) for count in range(8)]
    assert pauses == [0, 3, 6, 12, 24, 48, 60, 60]
    assert retry_seconds(10_000, first=3, longest=60) == 60
    state = ran(5, took=4, last_outcome="failed")
    assert due(SUMMARY, state, NOW, first_seen_at=NOW, unread=SOME, retry_seconds=3) is None
    assert due(SUMMARY, state, NOW + 2, first_seen_at=NOW, unread=SOME, retry_seconds=3) is not None
    changed = Unread(count=3, oldest_at=NOW - 30, newest_at=NOW - 0.5)
    assert due(SUMMARY, state, NOW, first_seen_at=NOW, unread=changed, retry_seconds=3) is not None
    by_itself = Unread(count=3, oldest_at=NOW - 30, newest_at=NOW - 2)
    assert due(SUMMARY, state, NOW, first_seen_at=NOW, unread=by_itself, retry_seconds=3) is None


def test_lateness_is_relative() -> None:
    """A task is as late as the intervals of its own that have passed since it was due (L5)."""
    found = due(TASK, ran(1800 * 3, took=1), NOW, first_seen_at=NOW)
    assert found is not None and found.lateness(NOW) == 2.0
    never = due(TASK, TaskState(), NOW, first_seen_at=NOW - 900)
    assert never is not None and never.lateness(NOW) == 0.5
    assert never.lateness(NOW - 5000) == 0.0


@given(
    back=st.floats(1, 1e7), interval=st.floats(1, 1e6), took=st.floats(0, 1e4), poll=st.floats(0.05, 60),
    forward=st.booleans(),
)  # fmt: skip
def test_a_clock_that_was_moved(*, back: float, interval: float, took: float, poll: float, forward: bool) -> None:
    """After a jump of the clock in either direction a task is due within two intervals and a rest, and then
    not again.
    """
    task = TaskSettings(name="x", command=("true",), interval=interval)
    clock, state = Clock(), TaskState(last_run_at=NOW, last_ended_at=NOW + took)
    now = NOW + took + back if forward else NOW - back
    end = now + interval * 2.2 + took + poll
    while now < end:
        if due(task, clock.grounded("x", state, now), now, first_seen_at=now) is not None:
            break
        now += max(poll, interval / 20)
    found = due(task, clock.grounded("x", state, now), now, first_seen_at=now)
    assert found is not None and found.lateness(now) >= 0
    begun = state._replace(last_run_at=max(now, 0), last_ended_at=now)
    assert due(task, clock.grounded("x", begun, now), now, first_seen_at=now) is None


def test_the_clock_remembers_only_times_to_come() -> None:
    """What was once a time to come is forgotten when it has come, so that the memory does not grow."""
    clock = Clock()
    for index in range(1000):
        clock.grounded("x", TaskState(last_run_at=float(index + 1)), float(index))
    assert len(clock._seen) <= 1
