"""How each task stands, for health: from its settings, the ledger, its lease, and what a living orchestrator tells of it. Pure."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from maintlock.entries import FAILURES
from maintlock.model import record as frozen
from maintlock.orchestrator import cadence
from maintlock.settings import TaskSettings
from maintlock.standing import standing
from maintlock.times import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maintlock.config import Config
    from maintlock.model import Line
    from maintlock.orchestrator.record import Held
    from maintlock.standing import Standing
    from maintlock.states import TaskState

BAD_STATES = frozenset({"starved", "failing", "overdue"})
TROUBLES = ("start", "command", "inbox", "task")  # those of a task, by what they are about
MAX_UNCONFIGURED = 100


@frozen(frozen=True, kw_only=True)
class Seen:
    """What is known of one task besides its settings.

    `lost` is the line of a grant of its that nobody ended, and of which nothing works any more; its outcome is `stopped` where
    that was asked for. `held` and `troubles`
    (`start:TASK`, …) are what the orchestrator tells while it lives. `is_configured` is None where the configuration cannot
    be read; `owed_since` is when a pull made a run necessary that has still to succeed. Times are in epoch seconds.
    """

    state: TaskState
    is_running: bool
    lost: Line | None
    held: Held | None
    troubles: Mapping[str, str]
    has_orchestrator: bool
    owed_since: float | None
    is_configured: bool | None
    now: float
    starved_after: float


def unconfigured(known: Mapping[tuple[str, str], TaskState], config: Config) -> list[TaskSettings]:
    """Return the tasks that only the ledger knows, those that something last happened to: nothing is expected of them."""
    found = sorted(((_last_at(state), name, lease) for (lease, name), state in known.items()), reverse=True)
    newest: dict[str, str] = {}
    for _, name, lease in found:
        if name not in config.tasks and len(newest) < MAX_UNCONFIGURED:
            newest.setdefault(name, lease)
    return [TaskSettings(name=name, lease=lease) for name, lease in sorted(newest.items(), key=itemgetter(0))]


def _last_at(state: TaskState) -> float:
    times = (state.last_run_at, state.last_ended_at, state.last_deferred_at, state.registered_at)
    return max((at for at in times if at is not None), default=0.0)


def task_health(task: TaskSettings, seen: Seen) -> dict[str, Any]:
    """Return how a task stands, as `maintlock health --json` has it."""
    held, is_stuck = seen.held, f"start:{task.name}" in seen.troubles
    state = _told(seen)
    found = standing(
        task,
        state if not is_stuck else _without_streak(state),
        is_running=seen.is_running,
        is_failing=is_stuck,
        now=seen.now,
        starved_after=seen.starved_after,
    )
    return {
        "state": found.state,
        "deferred_since": _moment(found.deferred_since),
        "blocked_by": held.blocked_by if held is not None else found.blocked_by,
        "reason_code": held.reason_code if held is not None else found.reason_code,
        "held_back": held is not None,
        "consecutive_deferrals": found.consecutive_deferrals,
        "last_run_at": _moment(found.last_run_at),
        "last_success_at": _moment(found.last_success_at),
        "last_outcome": found.last_outcome,
        "next_due_at": _moment(found.next_due_at),
        "scheduled": cadence.is_scheduled(task),
        "inbox": task.inbox,
        "configured": seen.is_configured,
        "heavy": task.heavy if seen.is_configured else None,
        "lease": task.lease,
        "interval_seconds": task.interval,
        "detail": _detail(task, found, seen),
    }


def _told(seen: Seen) -> TaskState:
    """Return a task's state with what the ledger does not know yet: a run that was lost, a streak that cannot be written."""
    state, lost, held = seen.state, seen.lost, seen.held
    if lost is not None and (state.last_run_at is None or round(lost.started_at, 3) >= state.last_run_at):
        state = state._replace(
            last_run_at=lost.started_at, last_outcome=lost.outcome or ("unknown" if lost.mode == "exec" else "lost")
        )
    if held is not None and state.deferred_since is None:
        state = state._replace(deferred_since=held.since)
    return state


def _without_streak(state: TaskState) -> TaskState:
    """Return the state of a task that cannot be started: nobody holds it back."""
    return state._replace(consecutive_deferrals=0, deferred_since=None, blocked_by=None, reason_code=None)


def _detail(task: TaskSettings, found: Standing, seen: Seen) -> str | None:
    """Return what there is to say of a task that its fields do not, for people."""
    said = [seen.troubles[key] for about in TROUBLES if (key := f"{about}:{task.name}") in seen.troubles]
    is_due = found.next_due_at is not None and found.next_due_at <= seen.now and found.state != "running"
    if seen.is_configured is False:
        said.append("not configured")
    elif task.command is None and (task.interval > 0 or task.inbox is not None):
        said.append("has no command, so it is started by hand only")
    elif is_due and not seen.has_orchestrator:
        said.append("due; no orchestrator is running")
    if seen.owed_since is not None:
        said.append(f"owed since {rfc3339(seen.owed_since)}, after a pull")
    return "; ".join(said) or None


def trouble_of(name: str, task: Mapping[str, Any], troubles: Mapping[str, str]) -> str | None:
    """Return why a task makes health degraded, or None; one that cannot be started is told as that."""
    if task["state"] not in BAD_STATES or not task["configured"] or f"start:{name}" in troubles:
        return None
    if task["state"] == "starved":
        why = f" since {task['deferred_since']}, held back by {task['blocked_by'] or 'somebody unknown'}"
    elif task["state"] == "failing" and task["last_outcome"] in FAILURES:
        why = f", its last run ended as {task['last_outcome']}"
    else:
        why = (
            f", its last success was at {task['last_success_at']}"
            if task["last_success_at"]
            else ", it never succeeded"
        )
    return f"{name} is {task['state']}{why}"


def _moment(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)
