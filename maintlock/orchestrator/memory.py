"""What we remember of tasks beside the ledger, which may not know yet, or cannot be written: starts, ends, attempts in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock.model import record, replace
from maintlock.orchestrator import cadence
from maintlock.orchestrator.clock import Clock
from maintlock.states import TaskState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maintlock.orchestrator.record import Held, Started
    from maintlock.settings import TaskSettings

RETRY_SECONDS = 60.0  # after a start that came to nothing, other than one that stood back


@record(frozen=True, kw_only=True)
class Known:
    """What we know of one task. Times are epoch seconds, but `not_before`: it is monotonic.

    `began_at` is its last start, `succeeded_at` the start of its last run that succeeded. `failures` are runs in a row that
    did not succeed.
    """

    first_seen_at: float | None = None
    began_at: float | None = None
    succeeded_at: float | None = None
    not_before: float = 0.0
    failures: int = 0


NOTHING = Known()


def after_end(known: Known, outcome: str | None, now: float, *, is_begun: bool) -> Known:
    """Return what is known of a task after a job of its has ended; `now` is monotonic.

    One that never had its lease has not begun: it stays due. Where it stood back, it asks again at the next poll, so that it
    is not late when the lease is freed; where something else was in its way, after a pause.
    """
    if outcome == "deferred":
        return replace(known, began_at=None)
    if not is_begun:
        return replace(known, began_at=None, not_before=now + RETRY_SECONDS)
    if outcome != "completed":
        return replace(known, failures=known.failures + 1)
    succeeded_at = known.succeeded_at if known.began_at is None else known.began_at
    return replace(known, failures=0, succeeded_at=succeeded_at)


def merged(told: TaskState, known: TaskState, held: Held | None) -> TaskState:
    """Return a task's state, from what the ledger told, what is known beside it, and why it is held back now."""
    deferred_since = held.since if held is not None and told.deferred_since is None else told.deferred_since
    return told._replace(
        last_run_at=_later(told.last_run_at, known.last_run_at),
        last_success_started_at=_later(told.last_success_started_at, known.last_success_started_at),
        deferred_since=deferred_since,
    )


def retry_seconds(known: Known, task: TaskSettings, *, poll_interval: float) -> float:
    """Return how many seconds after its end a run that did not succeed is made up for; 0 where the last one did."""
    return cadence.retry_seconds(known.failures, first=poll_interval, longest=task.rest_seconds or RETRY_SECONDS)


class Memory:
    """What we know of all tasks, and what happens to it."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self._clock = Clock()

    def known(self, task: str) -> Known:
        """Return what we know of a task."""
        return self._known.get(task, NOTHING)

    def adopted(self, jobs: Mapping[str, Started]) -> None:
        """Remember the starts of jobs that a predecessor has started."""
        for task, started in jobs.items():
            self.begun(task, started.at)

    def first_seen_at(self, task: str, now: float) -> float:
        """Return when a task was first asked for (epoch seconds)."""
        known = self.known(task)
        if known.first_seen_at is not None:
            return known.first_seen_at
        self._known[task] = replace(known, first_seen_at=now)
        return now

    def begun(self, task: str, at: float) -> None:
        """Remember that a task was started (epoch seconds)."""
        self._known[task] = replace(self.known(task), began_at=at)

    def not_begun(self, task: str, now: float) -> None:
        """Remember that a task could not be started; `now` is monotonic."""
        self._known[task] = replace(self.known(task), not_before=now + RETRY_SECONDS)

    def ended(self, task: str, outcome: str | None, now: float, *, is_begun: bool) -> None:
        """Remember how a task's job has ended; `now` is monotonic."""
        self._known[task] = after_end(self.known(task), outcome, now, is_begun=is_begun)

    def forget_delays(self) -> None:
        """Let every task start as soon as it is due: what stood in its way may have been mended."""
        self._known = {task: replace(known, not_before=0.0) for task, known in self._known.items()}

    def may_start(self, task: str, now: float) -> bool:
        """Tell whether a task is not to wait after a start in vain; `now` is monotonic."""
        return now >= self.known(task).not_before

    def state_of(self, task: str, told: TaskState | None, held: Held | None, now: float) -> TaskState:
        """Return a task's state without times to come, from what the ledger told, if it could be read, and from what we know."""
        state = self._clock.grounded(task, told or TaskState(), now)
        known = self.known(task)
        if known.began_at is None and known.succeeded_at is None and held is None:
            return state
        beside = TaskState(last_run_at=known.began_at, last_success_started_at=known.succeeded_at)
        return merged(state, self._clock.grounded(task, beside, now), held)


def _later(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else max(one, other)
