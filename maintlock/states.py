"""What the ledger knows of open grants, collisions and tasks, and how an event changes what it knows of its task: pure.

Events that arrive late are ordered by their times. A time in the future orders nothing: the clock has been set back since
then, so whatever arrives now happened later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from maintlock.entries import FAILURES, outcome_of

if TYPE_CHECKING:
    from maintlock.entries import Entry


AHEAD_SECONDS = 300.0  # a clock that was less than this ahead holds things up for no longer than this
MOMENTS = (
    "registered_at", "last_run_at", "last_ended_at", "last_success_at", "last_success_started_at", "deferred_since",
    "last_deferred_at", "last_failed_at",
)  # fmt: skip
# No deferral tells when a task last ran: put at its time, a run to come would put off the next one by an interval.
OF_RUNS = ("last_run_at", "last_ended_at", "last_success_at", "last_success_started_at", "last_failed_at")


class Grant(NamedTuple):
    """A grant whose end nobody has told yet."""

    lease_id: str
    fence: int
    task: str | None
    source: str | None
    reason: str | None
    pid: int | None


class Collision(NamedTuple):
    """Two heavy pieces of work at once, or a state that would allow it, since `since` (seconds since the epoch)."""

    kind: str
    id: str
    since: float
    detail: str | None


class TaskState(NamedTuple):
    """What is known of one task. Times are in seconds since the epoch.

    `last_run_at` is a start, also of a run that is still going on. `last_outcome` is that of the last run that ended, and
    `last_run_seconds` that of the last one of which it is known. `last_success_at` and `last_failed_at` are ends: a run that
    was stopped, or whose end nobody saw, changes neither. The streak of deferrals lasts until the task runs.
    """

    registered_at: float | None = None
    last_run_at: float | None = None
    last_run: str | None = None
    last_run_seconds: float | None = None
    last_outcome: str | None = None
    last_ended_at: float | None = None
    last_success_at: float | None = None
    last_success_started_at: float | None = None
    consecutive_deferrals: int = 0
    deferred_since: float | None = None
    last_deferred_at: float | None = None
    blocked_by: str | None = None
    reason_code: str | None = None
    last_failed_at: float | None = None

    @property
    def has_succeeded(self) -> bool:
        """Whether the last run that either succeeded or failed succeeded."""
        return self.last_success_at is not None and self.last_success_at >= (self.last_failed_at or 0.0)


def is_after(at: float, earlier: float, now: float) -> bool:
    """Tell whether an event of time `at` that arrives `now` happened after what is on record for `earlier`."""
    return at >= earlier or (earlier > now + AHEAD_SECONDS >= at)


def task_after(state: TaskState, entry: Entry, now: float) -> TaskState:
    """Return what is known of a task after one more event of its own, which may be told late and out of order."""
    kind, at = entry["event"], entry["at"]
    before, state = state, _grounded(state, at, now)
    if kind in {"acquired", "nested_started"}:
        state = _begun(state, at, _run(entry))
    elif kind == "deferred":
        state = _deferred(state, entry)._replace(**{name: getattr(before, name) for name in OF_RUNS})
    elif outcome_of(entry) is not None:
        state = _ended(state, entry)
    else:
        return state
    return state._replace(registered_at=at) if state.registered_at is None or at < state.registered_at else state


def _grounded(state: TaskState, at: float, now: float) -> TaskState:
    """Return a state without times in the future: an event of time `at` happened after them."""
    known = state._asdict()
    ahead = {name: at for name in MOMENTS if (known[name] or at) > at and is_after(at, known[name], now)}
    return TaskState(**{**known, **ahead}) if ahead else state


def _run(entry: Entry) -> str:
    """Return what beginning and end of one run have in common: the grant, and for joined jobs their process."""
    return f"{entry['lease_id']}/{entry['pid']}" if entry["event"].startswith("nested") else str(entry["lease_id"])


def _begun(state: TaskState, at: float, run: str) -> TaskState:
    if state.last_run_at is None or at >= state.last_run_at:
        state = state._replace(last_run_at=at, last_run=run)
    if state.last_deferred_at is None or state.deferred_since is None or at < state.deferred_since:
        return state
    if at < state.last_deferred_at:  # told late: at least the newest deferral came after it
        return state._replace(consecutive_deferrals=1, deferred_since=state.last_deferred_at)
    return state._replace(
        consecutive_deferrals=0, deferred_since=None, last_deferred_at=None, blocked_by=None, reason_code=None
    )


def _deferred(state: TaskState, entry: Entry) -> TaskState:
    at = entry["at"]
    if state.last_run_at is not None and at < state.last_run_at:
        return state  # told late: the task has run since
    if state.last_deferred_at is None or at >= state.last_deferred_at:
        state = state._replace(last_deferred_at=at, blocked_by=entry["blocked_by"], reason_code=entry["reason_code"])
    since = at if state.deferred_since is None else min(at, state.deferred_since)
    return state._replace(consecutive_deferrals=state.consecutive_deferrals + 1, deferred_since=since)


def _ended(state: TaskState, entry: Entry) -> TaskState:
    at, seconds, outcome, run = entry["at"], entry["seconds"], outcome_of(entry), _run(entry)
    if entry["event"] == "nested_finished" and seconds is None and state.last_run not in {None, run}:
        return state  # nobody saw when it ended, and the task has run again since
    started = state.last_run_at if state.last_run == run else None
    if started is None and seconds is not None:
        started = max(0.0, at - seconds)
        state = _begun(state, started, run)
    if state.last_ended_at is None or at >= state.last_ended_at:
        known = state.last_run_seconds if seconds is None else seconds
        state = state._replace(last_ended_at=at, last_outcome=outcome, last_run_seconds=known)
    if outcome in FAILURES and (state.last_failed_at is None or at >= state.last_failed_at):
        state = state._replace(last_failed_at=at)
    if outcome != "completed" or entry["exit_code"]:
        return state
    if state.last_success_at is None or at >= state.last_success_at:
        state = state._replace(last_success_at=at, last_success_started_at=started)
    return state
