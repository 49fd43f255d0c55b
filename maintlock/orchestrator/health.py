"""Health: how the lease, each task, each daemon and the orchestrator are, and what that amounts to (R10).

Degraded means that something is wrong, unknown that it cannot be told; a deferral is neither (R9). Judged from readings,
in pure functions; nothing here locks.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, TypedDict

from maintlock import holder, marks, observe, outside, owed, pending, process
from maintlock import line as line_file
from maintlock.history import events_of_grant, read_states
from maintlock.ledger import LedgerUnavailable
from maintlock.model import record as frozen
from maintlock.model import replace
from maintlock.orchestrator import record
from maintlock.orchestrator.taskhealth import Seen, task_health, trouble_of, unconfigured
from maintlock.paths import Places
from maintlock.states import TaskState
from maintlock.times import duration_text, epoch_seconds, rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from maintlock.config import Config
    from maintlock.history import States
    from maintlock.model import Line, ProcessIdentity
    from maintlock.orchestrator.record import Record
    from maintlock.report import CollisionReport, Status
    from maintlock.settings import TaskSettings

HEALTHY, DEGRADED, UNKNOWN = "healthy", "degraded", "unknown"
ENDS = frozenset({"released", "stale_cleaned"})
NOTHING_OWED: Mapping[str, float] = {}
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

    `alive` has each process of the record, and whether it lives as far as that can be known. `running` are tasks that have a
    lease or have joined in one, `waiting` the pids of who waits for one; `lost` are the lines of grants, by lease, that nobody
    ended and of which nothing works any more. `is_used` tells whether there ever was an orchestrator. `owed` has the tasks that
    a pull has made necessary, and since when; `dropped` counts events that could not be recorded. Times are in epoch seconds.
    `bad_config` says why the configuration could not be read: then nothing of it is known.
    """

    status: Status
    states: States | None
    record: Record | None
    alive: Mapping[ProcessIdentity, bool | None]
    running: frozenset[str]
    waiting: frozenset[int]
    is_used: bool
    lost: Mapping[str, Line]
    now: float
    owed: Mapping[str, float] = NOTHING_OWED
    collisions: tuple[CollisionReport, ...] = ()
    dropped: int = 0
    trouble: str | None = None
    bad_config: str | None = None


def read_health(places: Places, config: Config, *, bad_config: str | None = None) -> Health:
    """Return how everything is. Raises what `read` does."""
    return judged(read(places, config, bad_config=bad_config), config)


def read(places: Places, config: Config, *, bad_config: str | None = None) -> Readings:
    """Return all that there is to judge from; `bad_config` says why nothing is known of the configuration.

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
    known = unconfigured(states.tasks if states is not None else {}, config)
    leases = {places.lease, *(task.lease for task in (*config.tasks.values(), *known))}
    leases |= states.collisions.keys() if states is not None else set()
    found = {lease: observe.read_status(Places(directory=places.directory, lease=lease), now) for lease in leases}
    readings = readings_of(places, found, states, config, now=now)
    return replace(
        readings,
        collisions=tuple(_read_collisions(found.values(), states, places, config, now)),
        dropped=pending.dropped(places.directory) if is_there else 0,
        trouble=trouble,
        bad_config=bad_config,
    )


def readings_of(
    places: Places, found: Mapping[str, Status], states: States | None, config: Config, *, now: float
) -> Readings:
    """Return what tells how tasks stand, from the leases' status by name, the ledger and the orchestrator's record."""
    told = record.read(places.directory)
    return Readings(
        status=found[places.lease],
        states=states,
        record=told,
        alive=read_alive(told),
        running=frozenset(task for status in found.values() for task in _running_in(status)),
        waiting=frozenset(row["pid"] for status in found.values() for row in status["waiters"] if row["pid"]),
        is_used=os.path.lexists(f"{places.directory}/{record.LOCK_FILE}"),
        lost=dict(_read_lost(places.directory, found.values())),
        owed=_read_owed(places.directory, config),
        now=now,
    )


def _read_owed(directory: str, config: Config) -> Mapping[str, float]:
    """Return which tasks of a configuration a pull has made necessary, and since when."""
    found: dict[str, float] = {}
    for debt in owed.read(directory).debts:
        at = epoch_seconds(debt.at)
        if debt.config == (config.path or "") and at is not None:
            found[debt.task] = min(at, found.get(debt.task, at))
    return found


def read_alive(told: Record | None) -> dict[ProcessIdentity, bool | None]:
    """Return of each process that a record names whether it lives."""
    if told is None:
        return {}
    started = [*told.jobs.values(), *told.daemons.values()]
    return {one: process.is_alive(one) for one in {told.identity, *(job.identity for job in started)}}


def _read_lost(directory: str, statuses: Iterable[Status]) -> Iterable[tuple[str, Line]]:
    """Yield the last grants of free leases that have no end: their holders died, nothing of them works, and nobody has asked since.

    One that was stopped on purpose has that for its outcome.
    """
    for status in statuses:
        places = Places(directory=directory, lease=status["lease"])
        grant, _ = holder.on_record(line_file.read_path(places.lock), holder.read_sidecar(places))
        if grant is None or status["state"] != "free" or process.is_alive(grant.identity) is not False:
            continue
        try:
            told = events_of_grant(directory, grant.lease_id)
        except LedgerUnavailable:
            told = frozenset()
        if told.isdisjoint(ENDS):
            yield status["lease"], replace(grant, outcome="stopped" if "stop_requested" in told else "")


def _read_collisions(
    statuses: Iterable[Status], states: States | None, places: Places, config: Config, now: float
) -> list[CollisionReport]:
    """Return the collisions of all leases, and heavy processes nobody has told of yet."""
    found = [one for status in statuses for one in status["collisions"]]
    known = states.collisions.values() if states is not None else ()
    told = {mark for open_now in known for one in open_now for mark in marks.within(one.id)}
    new = outside.find(config.tasks.values(), lambda lease: Places(directory=places.directory, lease=lease))
    return found + [
        {
            "kind": marks.UNLEASED,
            "detail": f"{one} outside the lease",
            "since": rfc3339(process.started_at(process.read_identity(one.stat.pid)) or now),
        }
        for one in new
        if marks.of(one.stat) not in told
    ]


def _running_in(status: Status) -> list[str]:
    holder = status["holder"]
    nested = [row["task"] for row in status["nested"] if row["task"] is not None]
    return [*([holder["task"]] if holder is not None and status["state"] != "free" else []), *nested]


def judged(readings: Readings, config: Config) -> Health:
    """Return what the readings amount to."""
    orchestrator = _orchestrator(readings)
    told = _told_by_a_living(orchestrator, readings)
    troubles = dict(told.troubles) if told is not None else {}
    tasks = tasks_of(readings, config)
    is_wanted = told is not None or orchestrator["state"] == "died"
    daemons = {name: _daemon(name, readings, is_wanted=is_wanted) for name in sorted(config.daemons)}
    bad = [
        *([f"configuration: {readings.bad_config}"] if readings.bad_config is not None else []),
        *_of_lease(readings.status),
        *[text for name, task in tasks.items() if (text := trouble_of(name, task, troubles)) is not None],
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
        "reasons": [*dict.fromkeys([*unknown, *bad])],
        "lease": readings.status,
        "tasks": tasks,
        "daemons": daemons,
        "collisions": list(readings.collisions),
        "orchestrator": orchestrator,
    }


def tasks_of(readings: Readings, config: Config) -> dict[str, dict[str, Any]]:
    """Return how each task stands: the configured ones, then those that only the ledger knows."""
    told = _told_by_a_living(_orchestrator(readings), readings)
    known = unconfigured(readings.states.tasks if readings.states is not None else {}, config)
    return {
        task.name: task_health(task, _seen(task, readings, config, told))
        for task in (*(config.tasks[name] for name in sorted(config.tasks)), *known)
    }


def _told_by_a_living(orchestrator: Mapping[str, Any], readings: Readings) -> Record | None:
    return readings.record if orchestrator["state"] in {"running", "stalled"} else None


def _of_lease(status: Status) -> list[str]:
    holder = status["holder"]
    found = [f"the lease is orphaned: {status['detail']}"] if status["state"] == "orphaned" else []
    if holder is not None and holder["overdue"] and holder["held_seconds"] is not None:
        found.append(f"{holder['task']} has held the lease for {duration_text(holder['held_seconds'])}, beyond its TTL")
    return found


def _unknown_lease(status: Status) -> str | None:
    return f"the lease cannot be seen: {status['detail']}" if status["state"] == "unknown" else None


def _seen(task: TaskSettings, readings: Readings, config: Config, told: Record | None) -> Seen:
    states = readings.states.tasks if readings.states is not None else {}
    lost = readings.lost.get(task.lease)
    is_at_work = told is not None and task.name in told.jobs and _is_at_work(told.jobs[task.name], readings)
    return Seen(
        state=states.get((task.lease, task.name), TaskState()),
        is_running=task.name in readings.running or is_at_work,
        lost=lost if lost is not None and lost.task == task.name else None,
        held=told.held.get(task.name) if told is not None else None,
        troubles=told.troubles if told is not None else {},
        has_orchestrator=told is not None,
        owed_since=readings.owed.get(task.name),
        is_configured=task.name in config.tasks if readings.bad_config is None else None,
        now=readings.now,
        starved_after=config.starved_after,
    )


def _daemon(name: str, readings: Readings, *, is_wanted: bool) -> dict[str, Any]:
    """Return one daemon: `up`, `down`, or `unsupervised` where no orchestrator was ever used, or the last has stopped."""
    told = readings.record
    started = told.daemons.get(name) if told is not None else None
    is_up = started is not None and readings.alive[started.identity] is True
    trouble = told.troubles.get(f"daemon:{name}") if told is not None else None
    return {
        "state": "up" if is_up else "down" if is_wanted else "unsupervised",
        "pid": started.identity.pid if started is not None and is_up else None,
        "since": _moment(started.at) if started is not None and is_up else None,
        "restarts": started.restarts if started is not None else 0,
        "detail": None if is_up else trouble or ("not started yet" if is_wanted else "no orchestrator looks after it"),
    }


def _is_at_work(job: record.Started, readings: Readings) -> bool:
    return job.identity.pid not in readings.waiting and readings.alive[job.identity] is True


def _orchestrator(readings: Readings) -> dict[str, Any]:
    """Return `never`, `running`, `stalled` (it lives and does not poll), `stopped` (in good order), `died` or `unknown`."""
    told = readings.record
    if told is None or not told.identity.pid:
        state, detail = ("unknown", f"{record.FILE} is no record of it") if readings.is_used else ("never", None)
        return {"state": state, "pid": None, "since": None, "polled_at": None, "detail": detail, "is_bad": False}
    alive = readings.alive[told.identity]
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
