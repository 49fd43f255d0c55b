"""How a task stands: decided from its settings, what the ledger knows of it, and the time. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock.entries import FAILURES
from maintlock.model import record

if TYPE_CHECKING:
    from maintlock.settings import TaskSettings
    from maintlock.states import TaskState

LATE_INTERVALS = 2.0  # a success older than this many intervals is overdue
LAPSE_SECONDS = 86400.0


@record(frozen=True, kw_only=True)
class Standing:
    """One task. `state` is one of `running starved failing overdue deferred resting idle`, the first that applies.

    Times are seconds since the epoch. `next_due_at` is None for a task that is never due by itself (R11).
    """

    task: str
    state: str
    deferred_since: float | None
    blocked_by: str | None
    reason_code: str | None
    consecutive_deferrals: int
    last_run_at: float | None
    last_success_at: float | None
    last_outcome: str | None
    next_due_at: float | None


def next_due_at(task: TaskSettings, state: TaskState, now: float) -> float | None:
    """Return when a task is due: an interval after its last start, and not before it has rested (R11, L6).

    A task that never ran is due at once. A last start in the future, as after a clock that was set back, counts as now.
    """
    if task.interval <= 0:
        return None
    if state.last_run_at is None:
        return now
    rested_at = min(state.last_ended_at, now) + task.rest_seconds if state.last_ended_at is not None else 0.0
    return max(min(state.last_run_at, now) + task.interval, rested_at)


def is_resting(task: TaskSettings, state: TaskState, now: float) -> bool:
    """Tell whether a task's last run has ended so recently that it is not started again (L6)."""
    return state.last_ended_at is not None and now < min(state.last_ended_at, now) + task.rest_seconds


def is_overdue(task: TaskSettings, state: TaskState, now: float) -> bool:
    """Tell whether a task's last success, or its first appearance, is more than two intervals ago (L3)."""
    since = state.last_success_at if state.last_success_at is not None else state.registered_at
    return task.interval > 0 and since is not None and now - since > LATE_INTERVALS * task.interval


def is_starved(task: TaskSettings, state: TaskState, now: float, starved_after: float) -> bool:
    """Tell whether a streak of deferrals has lasted too long, and still matters to somebody (L5)."""
    if state.deferred_since is None or now - state.deferred_since <= starved_after:
        return False
    return not has_lapsed(task, state, now, starved_after)


def has_lapsed(task: TaskSettings, state: TaskState, now: float, starved_after: float) -> bool:
    """Tell whether a streak of deferrals is over although the task has not run since.

    A task that nothing schedules asks for the lease only when somebody starts it: once nobody has for a day, or for
    `starved_after` where that is longer, nobody is kept from anything.
    """
    asked_at = state.deferred_since if state.last_deferred_at is None else state.last_deferred_at
    if asked_at is None or task.interval > 0 or task.inbox is not None:
        return False
    return now - asked_at > max(starved_after, LAPSE_SECONDS)


def standing(
    task: TaskSettings,
    state: TaskState,
    *,
    is_running: bool,
    now: float,
    starved_after: float,
    is_failing: bool = False,
) -> Standing:
    """Return how a task stands now; `is_failing` tells of one that cannot even be started."""
    applies = (
        ("running", is_running),
        ("starved", is_starved(task, state, now, starved_after)),
        ("failing", is_failing or state.last_outcome in FAILURES),
        ("overdue", is_overdue(task, state, now)),
        ("deferred", state.deferred_since is not None),
        ("resting", is_resting(task, state, now)),
    )
    return Standing(
        task=task.name,
        state=next((name for name, is_so in applies if is_so), "idle"),
        deferred_since=state.deferred_since,
        blocked_by=state.blocked_by,
        reason_code=state.reason_code,
        consecutive_deferrals=state.consecutive_deferrals,
        last_run_at=state.last_run_at,
        last_success_at=state.last_success_at,
        last_outcome=state.last_outcome,
        next_due_at=next_due_at(task, state, now),
    )
