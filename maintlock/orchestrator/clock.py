"""The wall clock, and what to make of times that it has not reached: it was set back.

What is on record for a time to come is taken to have happened when it was first seen to be so; taken for now at every
look, it would never become due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maintlock.states import TaskState

GROUNDED = ("last_run_at", "last_ended_at", "last_success_started_at", "deferred_since")


class Clock:
    """Remembers which times to come were first seen when. All are epoch seconds."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, float], float] = {}  # by task and time to come

    def grounded(self, task: str, state: TaskState, now: float) -> TaskState:
        """Return a task's state without times to come."""
        if self._seen:
            self._seen = {(task, at): seen for (task, at), seen in self._seen.items() if at > now}
        times = (state.last_run_at, state.last_ended_at, state.last_success_started_at, state.deferred_since)
        if max([at for at in times if at is not None], default=now) <= now:
            return state
        ahead: dict[str, Any] = {
            name: self._seen.setdefault((task, at), now)
            for name, at in zip(GROUNDED, times, strict=True)
            if at is not None and at > now
        }
        return state._replace(**ahead)
