"""What the ledger tells: history, the present state of a lease, its highest fence, and how long a task takes.

Every reader looks at `ledger.pending` first and at the database second: a drain in between must not hide events.
"""

from __future__ import annotations

import math
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from maintlock import pending
from maintlock.book import COLLISIONS, TASKS, Book, laid_over
from maintlock.entries import EVENTS, FIELDS, PUBLIC, as_seconds, as_text, entry_of, fence_of
from maintlock.events import acquired_id
from maintlock.ledger import LedgerUnavailable, open_nothing, open_to_read
from maintlock.model import ProcessIdentity
from maintlock.names import is_lease_name, is_task_name
from maintlock.rows import OF_PRESENT, collisions_of, labels_of, state_of
from maintlock.tally import cumulated
from maintlock.times import rfc3339

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from maintlock.entries import Entry
    from maintlock.model import Event
    from maintlock.states import Collision, TaskState
    from maintlock.tally import CounterKey

RECENT_HOLDS = 20
HISTORY_FIELDS = {"id": as_text, **PUBLIC, "at": as_seconds, "result": as_text}
HISTORY = (
    "SELECT id, at, event, task, lease, lease_id, source, reason, pid, reason_code, blocked_by, parent_task, seconds,"
    " exit_code, outcome, result FROM events WHERE event <> 'present'"
)
COMMON = frozenset({"acquired", "released", "deferred", "present"})
IS_RARE = "event NOT IN ('acquired', 'released', 'deferred', 'present')"  # as the index has it, or it would not be used
NEWEST = "ORDER BY at DESC, seq DESC LIMIT ?"
PRESENT_FIELDS = {name: FIELDS[name] for name in OF_PRESENT} | {"at": as_seconds}
PRESENT = (
    "SELECT id, lease, at, task, reason, pid, role, start_ticks, boot_id, pid_namespace FROM presence WHERE lease = ?"
)
ALL_TASKS = TASKS.replace("SELECT ", "SELECT lease, ").removesuffix(" WHERE lease = ?")
ALL_COLLISIONS = COLLISIONS.replace("SELECT ", "SELECT lease, ").removesuffix(" WHERE lease = ?")
ALL_PRESENT = PRESENT.removesuffix(" WHERE lease = ?")
HOLDS = (
    "SELECT at, seconds FROM events WHERE task = ? AND lease = ? AND event = 'released' AND outcome = 'completed'"
    " AND seconds IS NOT NULL ORDER BY at DESC LIMIT ?"
)


class Snapshot(NamedTuple):
    """What the ledger and its pending events say of one lease.

    `counters` has cumulative buckets and `_count` for each histogram. `present` are those who said that they wait or have
    joined, dead ones too: each is the event, and whether its process lives is the caller's to find out.
    """

    counters: dict[CounterKey, float]
    tasks: dict[str, TaskState]
    present: list[Event]
    collisions: list[Collision]
    dropped: int


def read_history(
    directory: str,
    *,
    lease: str | None = None,
    task: str | None = None,
    event: str | Sequence[str] | None = None,
    since: float | None = None,
    limit: int | None = None,
    extra: Sequence[Event] = (),
    is_entered_too: bool = True,
    fields: Iterable[str] = PUBLIC,
) -> list[Event]:
    """Return what happened, oldest first by `at`, with the public fields only (§4); `limit` keeps the newest.

    `event` is one kind or several; `since` is in seconds since the epoch; `extra` are events known from elsewhere, told
    last. Texts may be hostile. `is_entered_too=False` leaves the database alone, and returns what waits for it. `fields` may
    have `result` besides: how a joined job ended, whose row has no `outcome`.

    Raises:
        LedgerUnavailable: It cannot be read.
    """
    waiting = [*pending.read(directory), *extra]
    kinds = [kind for kind in ([event] if isinstance(event, str) else event or EVENTS) if kind in EVENTS]
    wanted = {name: value for name, value in (("lease", lease), ("task", task)) if value is not None}
    since = 0.0 if since is None else since
    limit = None if limit is None else max(0, limit)
    conditions = [HISTORY, "at >= ?", *[f"{name} = ?" for name in wanted]]
    if event is not None:
        conditions.append(f"event IN ({','.join('?' * len(kinds))})")
    if COMMON.isdisjoint(kinds):
        conditions.append(IS_RARE)
    with open_to_read(directory) if is_entered_too else open_nothing() as db:
        late = Book(db, waiting).entries.values()
        arguments = [since, *wanted.values(), *(kinds if event is not None else ()), -1 if limit is None else limit]
        rows = db.execute(f"{' AND '.join(conditions)} {NEWEST}", arguments).fetchall()
    found = [entry for row in reversed(rows) if (entry := _entry(row))["at"] is not None and entry["event"] in kinds]
    found += [e for e in late if e["event"] in kinds and e["at"] >= since and wanted.items() <= e.items()]
    found.sort(key=itemgetter("at"))
    kept = found if limit is None else found[max(0, len(found) - limit) :]
    return [{name: entry[name] for name in fields} | {"at": rfc3339(entry["at"])} for entry in kept]


def read_snapshot(directory: str, *, lease: str) -> Snapshot:
    """Return counters, task states, presence and open collisions of one lease.

    Raises:
        LedgerUnavailable: It cannot be read.
    """
    waiting = pending.read(directory)
    with open_to_read(directory) as db:
        book = Book(db, waiting)
        tasks = {task: state_of(row) for task, *row in db.execute(TASKS, (lease,))}
        collisions = {found.kind: found for found in collisions_of(db.execute(COLLISIONS, (lease,)))}
        present = {entry["id"]: entry for row in db.execute(PRESENT, (lease,)) if (entry := _present(row)) is not None}
        counters = _counters(db, book, lease)
    tasks |= {task: state for (of, task), state in book.tasks.items() if of == lease}
    tasks = {task: state for task, state in tasks.items() if _is_name_of_task(task)}
    collisions = laid_over(collisions, {kind: found for (of, kind), found in book.collisions.items() if of == lease})
    present = laid_over(present, {of: e for of, e in book.present.items() if e is None or e["lease"] == lease})
    return Snapshot(
        counters=cumulated(counters),
        tasks=tasks,
        present=[
            {**{name: entry[name] for name in OF_PRESENT}, "event": "present", "at": rfc3339(entry["at"])}
            for entry in sorted(present.values(), key=itemgetter("at", "id"))
        ],
        collisions=sorted(collisions.values(), key=lambda found: (found.since, found.kind)),
        dropped=pending.dropped(directory),
    )


def identity_of(row: Mapping[str, Any]) -> ProcessIdentity:
    """Return whose row of presence this is."""
    return ProcessIdentity(
        pid=row["pid"] or 0,
        start_ticks=row["start_ticks"] or 0,
        boot_id=row["boot_id"] or "",
        pid_namespace=row["pid_namespace"] or "",
    )


class States(NamedTuple):
    """What the ledger and its pending events say of all leases: tasks and open collisions by lease, and who is present."""

    tasks: dict[tuple[str, str], TaskState]
    collisions: dict[str, list[Collision]]
    present: list[Entry]


def read_states(directory: str) -> States:
    """Return task states, open collisions and presence of every lease.

    Raises:
        LedgerUnavailable: It cannot be read.
    """
    waiting = pending.read(directory)
    with open_to_read(directory) as db:
        book = Book(db, waiting)
        tasks = {(lease, task): state_of(row) for lease, task, *row in db.execute(ALL_TASKS)}
        rows = [(lease, collisions_of([row])) for lease, *row in db.execute(ALL_COLLISIONS) if _is_name_of_lease(lease)]
        present = {entry["id"]: entry for row in db.execute(ALL_PRESENT) if (entry := _present(row)) is not None}
    open_now = laid_over({(lease, found[0].kind): found[0] for lease, found in rows if found}, book.collisions)
    collisions: dict[str, list[Collision]] = {}
    for (lease, _), found in sorted(open_now.items(), key=lambda item: item[1].since):
        collisions.setdefault(lease, []).append(found)
    entries = [entry for entry in laid_over(present, book.present).values() if entry["at"] is not None]
    return States(
        tasks={
            (lease, task): state
            for (lease, task), state in {**tasks, **book.tasks}.items()
            if _is_name_of_lease(lease) and _is_name_of_task(task)
        },
        collisions=collisions,
        present=sorted(entries, key=itemgetter("at", "id")),
    )


def highest_fence(directory: str, lease: str) -> int:
    """Return the highest fence ever told of a lease, for a lock file that was recreated; 0 where nothing is known."""
    waiting = pending.read(directory)
    try:
        with open_to_read(directory) as db:
            return Book(db, waiting).fence(lease)[0]
    except LedgerUnavailable:
        entries = [entry for entry in map(entry_of, waiting) if entry is not None and entry["lease"] == lease]
        return max(map(fence_of, entries), default=0)


def task_of_grant(directory: str, lease_id: str) -> str | None:
    """Return the task that a grant was of, None where its beginning is not on record.

    Raises:
        LedgerUnavailable: It cannot be read.
    """
    beginning = acquired_id(lease_id)
    told = next((event.get("task") for event in pending.read(directory) if event["id"] == beginning), None)
    with open_to_read(directory) as db:
        row = db.execute("SELECT task FROM events WHERE id = ?", (beginning,)).fetchone()
    task = told if row is None else row[0]
    return task if isinstance(task, str) and is_task_name(task) else None


def events_of_grant(directory: str, lease_id: str) -> frozenset[str]:
    """Return which kinds of events are on record of a grant itself, not of jobs that joined it.

    Raises:
        LedgerUnavailable: It cannot be read.
    """
    told = {event["event"] for event in pending.read(directory) if event.get("lease_id") == lease_id}
    with open_to_read(directory) as db:
        rows = db.execute("SELECT DISTINCT event FROM events WHERE lease_id = ?", (lease_id,)).fetchall()
    return frozenset(told | {row[0] for row in rows})


def typical_seconds(directory: str, lease: str, task: str) -> float | None:
    """Return the median of a task's last 20 holds that completed, in seconds; None where nothing is known."""
    waiting = pending.read(directory)
    try:
        with open_to_read(directory) as db:
            late = Book(db, waiting).entries.values()
            rows = db.execute(HOLDS, (task, lease, RECENT_HOLDS)).fetchall()
    except LedgerUnavailable:
        return None
    wanted = {"lease": lease, "task": task, "event": "released", "outcome": "completed"}
    rows += [(entry["at"], entry["seconds"]) for entry in late if wanted.items() <= entry.items()]
    holds = [
        (at, held)
        for at, held in ((as_seconds(at), as_seconds(held)) for at, held in rows)
        if at is not None and held is not None
    ]
    from statistics import median  # takes as long to import as SQLite, and few ask for this

    newest = sorted(holds)[-RECENT_HOLDS:]
    return median(held for _, held in newest) if newest else None


def _is_name_of_task(found: object) -> bool:
    return isinstance(found, str) and is_task_name(found)


def _is_name_of_lease(found: object) -> bool:
    return isinstance(found, str) and is_lease_name(found)


def _entry(row: Sequence[object]) -> Entry:
    return {name: typed(value) for (name, typed), value in zip(HISTORY_FIELDS.items(), row, strict=True)}


def _present(row: Sequence[object]) -> Entry | None:
    entry: Entry = {name: typed(value) for (name, typed), value in zip(PRESENT_FIELDS.items(), row, strict=True)}
    return entry if entry["id"] and entry["at"] is not None else None


def _counters(db: sqlite3.Connection, book: Book, lease: str) -> dict[CounterKey, float]:
    found: dict[CounterKey, float] = {}
    for name, text, value in db.execute("SELECT name, labels, value FROM counters"):
        labels = labels_of(text)
        if isinstance(name, str) and labels is not None and isinstance(value, float) and 0 <= value < math.inf:
            found[name, labels] = value
    for key, amount in book.counters.items():
        found[key] = found.get(key, 0.0) + amount
    return {key: value for key, value in found.items() if ("lease", lease) in key[1]}
