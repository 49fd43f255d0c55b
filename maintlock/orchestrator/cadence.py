"""When a task is due, and how late it is: decided from its settings, what the ledger knows of it, and the time. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock.model import record
from maintlock.standing import next_due_at

if TYPE_CHECKING:
    from maintlock.settings import TaskSettings
    from maintlock.states import TaskState

UNTIMED_SECONDS = 600.0  # the interval that an inbox without one is measured by


@record(frozen=True, kw_only=True)
class Unread:
    """What waits in a task's inbox: how many files, and when the oldest and the newest of them changed (epoch seconds)."""

    count: int
    oldest_at: float
    newest_at: float


@record(frozen=True, kw_only=True)
class Due:
    """A task that is due since `since` (epoch seconds). `reason` is `periodic:SECONDSs` or `inbox:FILES`."""

    task: TaskSettings
    since: float
    reason: str

    def lateness(self, now: float) -> float:
        """Return how late it is, in intervals of its own."""
        return max(0.0, now - self.since) / (self.task.interval or UNTIMED_SECONDS)


def is_scheduled(task: TaskSettings) -> bool:
    """Tell whether a task can be due by itself: it has something to run, and an interval or an inbox."""
    return task.command is not None and (task.interval > 0 or task.inbox is not None)


def due(
    task: TaskSettings,
    state: TaskState,
    now: float,
    *,
    first_seen_at: float,
    unread: Unread | None = None,
    retry_seconds: float = 0.0,
) -> Due | None:
    """Return how a task is due, or None (R11, R12). `now` and `first_seen_at` are epoch seconds.

    A task that never ran is due at once, since it was first seen. Unread work makes it due before its interval, and is not
    delayed by its rest; but where its last run did not succeed and nothing has changed since it ended, it is tried again
    only when `retry_seconds` are over.
    """
    if unread is not None and unread.count > 0:
        ended_at = state.last_ended_at or 0.0
        again_at = ended_at + retry_seconds if retry_seconds > 0 and unread.newest_at <= ended_at else 0.0
        if now >= again_at:
            since = min(now, max(unread.oldest_at, again_at))
            return Due(task=task, since=since, reason=f"inbox:{unread.count}")
    at = next_due_at(task, state, now)
    if at is None or now < at:
        return None
    never_ran = state.last_run_at is None
    since = min(first_seen_at, state.deferred_since or first_seen_at) if never_ran else at
    return Due(task=task, since=min(since, now), reason=f"periodic:{_number(task.interval)}s")


def retry_seconds(attempts: int, *, first: float, longest: float) -> float:
    """Return how many seconds to wait after some attempts in a row that came to nothing: `first`, then twice as long each time.

    It is 0 after none, and never more than `longest`, unless `first` is.
    """
    if attempts == 0:
        return 0.0
    return min(max(longest, first), first * 2.0 ** min(attempts - 1, 30))


def _number(seconds: float) -> str:
    return str(int(seconds)) if seconds == int(seconds) else repr(seconds)
