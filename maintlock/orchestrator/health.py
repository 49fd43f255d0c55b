"""Health: how the lease, each task, each daemon and the orchestrator are, and what that amounts to (R10).

Degraded means that something is wrong, unknown that it cannot be told; a deferral is neither (R9). Judged from readings,
in pure functions; nothing here locks.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, TypedDict

from maintlock import marks, observe, outside, pending, process
from maintlock.history import read_states
from maintlock.ledger import LedgerUnavailable
from maintlock.model import record as frozen
from maintlock.orchestrator import record
from maintlock.paths import Places
from maintlock.standing import standing
from maintlock.states import TaskState
from maintlock.times import duration_text, rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maintlock.config import Config
    from maintlock.history import States
    from maintlock.orchestrator.record import Record
    from maintlock.report import CollisionReport, Status
    from maintlock.settings import TaskSettings

HEALTHY, DEGRADED, UNKNOWN = "healthy", "degraded", "unknown"
BAD_TASK_STATES = frozenset({"starved", "failing", "overdue"})
TASK_TROUBLES = ("start", "command", "inbox", "task")  # those of a task, by what they are about
LATE_POLLS = 10.0
LATE_SECONDS = 60.0  # a pass may wait for a disk


class Health(TypedDict):
    """What `maintlock health --json` prints. Times are RFC 3339 UTC; `reasons` say why it is not healthy, for people."""

    status: str
    reasons: list[str]
    lease: Status
    tasks: dict[str, dict[str, Any]]
    daemons: dict[str, dict[str, Any]]
    collisions: list[CollisionReport]
    orchestrator: dict[str, Any]


@frozen(frozen=True, kw_only=True)
class Readings:
    """What health is judged from. `states` is None where the ledger cannot be read, and `trouble` says why.

    `running` are tasks that have a lease or have joined in one, `waiting` the pids of who waits for one; `is_used` tells
    whether there ever was an orchestrator. `dropped` counts events that could not be recorded; `now` is in epoch seconds.
    """

    status: Status
    states: States | None
    record: Record | None
    running: frozenset[str]
    waiting: frozenset[int]
    is_used: bool
    collisions: tuple[CollisionReport, ...]
    dropped: int
    trouble: str | None
    now: float


def read_health(places: Places, config: Config) -> Health:
    """Return how everything is.

    Raises:
        RefusedError: Directory, lock file or a record could be somebody else's.
        UnavailableError: The state directory cannot be looked at.
    """
    now = time.time()
    is_there = observe.check_places(places)
    states, trouble = None, None
    try:
        states = read_states(places.directory)
    except LedgerUnavailable as error:
        trouble = str(error)
    told = record.read(places.directory) if is_there else None
    leases = {places.lease, *(task.lease for task in config.tasks.values())}
    found = {lease: observe.read_status(Places(directory=places.directory, lease=lease), now) for lease in leases}
    readings = Readings(
        status=found[places.lease],
        states=states,
        record=told,
        running=frozenset(task for status in found.values() for task in _running_in(status)),
        waiting=frozenset(row["pid"] for status in found.values() for row in status["waiters"] if row["pid"]),
        is_used=os.path.lexists(f"{places.directory}/{record.LOCK_FILE}"),
        collisions=tuple(_read_collisions(states, places, config, now)),
        dropped=pending.dropped(places.directory) if is_there else 0,
        trouble=trouble,
        now=now,
    )
    return judged(readings, config)


def _read_collisions(states: States | None, places: Places, config: Config, now: float) -> list[CollisionReport]:
    """Return the open collisions of all leases whose processes still live, and heavy processes nobody has told of yet."""
    known = [found for some in (states.collisions if states is not None else {}).values() for found in some]
    found: list[CollisionReport] = [
        {"kind": one.kind, "detail": one.detail, "since": rfc3339(one.since)}
        for one in known
        if not marks.is_over(one.id)
    ]
    told = " ".join(one["detail"] or "" for one in found)
    new = outside.find(config.tasks.values(), lambda lease: Places(directory=places.directory, lease=lease))
    return found + [
        {
            "kind": marks.UNLEASED,
            "detail": f"{one} outside the lease",
            "since": rfc3339(process.started_at(process.read_identity(one.stat.pid)) or now),
        }
        for one in new
        if str(one) not in told
    ]


def _running_in(status: Status) -> list[str]:
    holder = status["holder"]
    nested = [row["task"] for row in status["nested"] if row["task"] is not None]
    return [*([holder["task"]] if holder is not None and status["state"] != "free" else []), *nested]


def judged(readings: Readings, config: Config) -> Health:
    """Return what the readings amount to."""
    orchestrator = _orchestrator(readings)
    lives = orchestrator["state"] in {"running", "stalled"}
    tasks = {name: _task(task, readings, config, lives=lives) for name, task in sorted(config.tasks.items())}
    is_wanted = lives or orchestrator["state"] == "died"
    daemons = {name: _daemon(name, readings, is_wanted=is_wanted) for name in sorted(config.daemons)}
    troubles = dict(readings.record.troubles) if lives and readings.record is not None else {}
    bad = [
        *_of_lease(readings.status),
        *[
            f"{name} is {task['state']}{_because(task)}"
            for name, task in tasks.items()
            if task["state"] in BAD_TASK_STATES
        ],
        *[f"daemon {name} is down: {found['detail']}" for name, found in daemons.items() if found["state"] == "down"],
        *[f"{found['kind']}: {found['detail']}" for found in readings.collisions],
        *([f"the orchestrator {orchestrator['state']}: {orchestrator['detail']}"] if orchestrator["is_bad"] else []),
        *[f"{about}: {text}" for about, text in sorted(troubles.items()) if not about.startswith("daemon:")],
        *([f"{readings.dropped} events could not be recorded"] if readings.dropped else []),
    ]
    unseen = f"the orchestrator cannot be seen: {orchestrator['detail']}" if orchestrator["state"] == UNKNOWN else None
    unknown = [text for text in (readings.trouble, _unknown_lease(readings.status), unseen) if text]
    del orchestrator["is_bad"]
    return {
        "status": UNKNOWN if unknown else DEGRADED if bad else HEALTHY,
        "reasons": [*unknown, *bad],
        "lease": readings.status,
        "tasks": tasks,
        "daemons": daemons,
        "collisions": list(readings.collisions),
        "orchestrator": orchestrator,
    }


def _of_lease(status: Status) -> list[str]:
    holder = status["holder"]
    found = [f"the lease is orphaned: {status['detail']}"] if status["state"] == "orphaned" else []
    if holder is not None and holder["overdue"] and holder["held_seconds"] is not None:
        found.append(f"{holder['task']} has held the lease for {duration_text(holder['held_seconds'])}, beyond its TTL")
    return found


def _unknown_lease(status: Status) -> str | None:
    return f"the lease cannot be seen: {status['detail']}" if status["state"] == "unknown" else None


def _because(task: Mapping[str, Any]) -> str:
    if task["state"] == "starved":
        return f" since {task['deferred_since']}, held back by {task['blocked_by'] or 'somebody unknown'}"
    if task["state"] == "failing":
        return f", its last run ended as {task['last_outcome']}"
    return f", its last success was at {task['last_success_at']}" if task["last_success_at"] else ", it never succeeded"


def _task(task: TaskSettings, readings: Readings, config: Config, *, lives: bool) -> dict[str, Any]:
    states = readings.states.tasks if readings.states is not None else {}
    state = states.get((task.lease, task.name), TaskState())
    told = readings.record if lives else None
    is_running = task.name in readings.running or (
        told is not None and task.name in told.jobs and _is_at_work(told.jobs[task.name], readings)
    )
    held = told.held.get(task.name) if told is not None else None
    if held is not None and state.deferred_since is None:
        state = state._replace(deferred_since=held.since)  # the ledger does not know yet, or cannot be written
    found = standing(task, state, is_running=is_running, now=readings.now, starved_after=config.starved_after)
    return {
        "state": found.state,
        "deferred_since": _moment(found.deferred_since),
        "blocked_by": held.blocked_by if held is not None else found.blocked_by,
        "reason_code": held.reason_code if held is not None else found.reason_code,
        "consecutive_deferrals": found.consecutive_deferrals,
        "last_run_at": _moment(found.last_run_at),
        "last_success_at": _moment(found.last_success_at),
        "last_outcome": found.last_outcome,
        "next_due_at": _moment(found.next_due_at),
        "heavy": task.heavy,
        "lease": task.lease,
        "interval_seconds": task.interval,
        "detail": _detail(task.name, told),
    }


def _detail(name: str, told: Record | None) -> str | None:
    troubles = told.troubles if told is not None else {}
    found = [troubles[f"{about}:{name}"] for about in TASK_TROUBLES if f"{about}:{name}" in troubles]
    return "; ".join(found) or None


def _daemon(name: str, readings: Readings, *, is_wanted: bool) -> dict[str, Any]:
    """Return one daemon: `up`, `down`, or `unsupervised` where no orchestrator was ever used, or the last has stopped."""
    told = readings.record
    started = told.daemons.get(name) if told is not None else None
    is_up = started is not None and _is_up(started)
    trouble = told.troubles.get(f"daemon:{name}") if told is not None else None
    return {
        "state": "up" if is_up else "down" if is_wanted else "unsupervised",
        "pid": started.identity.pid if started is not None and is_up else None,
        "since": _moment(started.at) if started is not None and is_up else None,
        "restarts": started.restarts if started is not None else 0,
        "detail": None if is_up else trouble or ("not started yet" if is_wanted else "no orchestrator looks after it"),
    }


def _is_at_work(job: record.Started, readings: Readings) -> bool:
    return job.identity.pid not in readings.waiting and _is_up(job)


def _is_up(started: record.Started) -> bool:
    return process.is_alive(started.identity) is True


def _orchestrator(readings: Readings) -> dict[str, Any]:
    """Return `never`, `running`, `stalled` (it lives and does not poll), `stopped` (in good order), `died` or `unknown`."""
    told = readings.record
    if told is None or not told.identity.pid:
        state, detail = ("unknown", f"{record.FILE} is no record of it") if readings.is_used else ("never", None)
        return {"state": state, "pid": None, "since": None, "polled_at": None, "detail": detail, "is_bad": False}
    alive = process.is_alive(told.identity)
    age = readings.now - told.polled_at
    if told.stopped_at is not None:
        state, detail, is_bad = "stopped", f"stopped at {rfc3339(told.stopped_at)}", False
    elif alive is False:
        state, detail, is_bad = "died", f"pid {told.identity.pid} is gone; start it again: maintlock orchestrate", True
    elif age > max(LATE_POLLS * told.poll_interval, LATE_SECONDS):
        state, detail, is_bad = "stalled", f"its last poll was {duration_text(age)} ago", True
    else:
        state, detail, is_bad = "running", None, False
    return {
        "state": state,
        "pid": told.identity.pid if alive is not False else None,
        "since": _moment(told.started_at),
        "polled_at": _moment(told.polled_at),
        "detail": detail,
        "is_bad": is_bad,
    }


def _moment(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)
