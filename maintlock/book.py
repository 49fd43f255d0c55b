"""The `Book`: what the ledger's tables say with more events entered.

A drain writes its book down, a reader lays it over what is written. So an event counts the same before and after it is
entered, and entering it twice is entering it once.
"""

from __future__ import annotations

import time
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from maintlock import marks
from maintlock.entries import (
    COLLISION_KINDS,
    NOTHING,
    STORED,
    as_natural,
    as_text,
    entry_of,
    fence_of,
)
from maintlock.events import PRESENT, end_id, finished_id
from maintlock.names import is_task_name
from maintlock.rows import OF_PRESENT, collisions_of, grant_of, labels_text, state_of
from maintlock.states import Collision, Grant, TaskState, is_after, task_after
from maintlock.tally import effects

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    from maintlock.entries import Entry
    from maintlock.tally import CounterKey

Key = TypeVar("Key")
Value = TypeVar("Value")
Fence = tuple[int, str | None]

TASKS = (
    "SELECT task, registered_at, last_run_at, last_run, last_run_seconds, last_outcome, last_ended_at, last_success_at,"
    " last_success_started_at, consecutive_deferrals, deferred_since, last_deferred_at, blocked_by, reason_code,"
    " last_failed_at FROM tasks WHERE lease = ?"
)
COLLISIONS = "SELECT kind, id, since, detail FROM collisions WHERE lease = ?"
GRANTS = "SELECT lease_id, fence, task, source, reason, pid FROM open_grants WHERE lease = ?"
FENCE = "SELECT fence, lease_id FROM leases WHERE lease = ?"
IDS_AT_ONCE = 500
UNSEEN = frozenset({"lost", "unknown"})  # ends that nobody has seen
INSERT_EVENT = (
    "INSERT OR IGNORE INTO events (id, at, event, task, lease, lease_id, source, reason, pid, reason_code, blocked_by,"
    " parent_task, seconds, exit_code, outcome, fence, detail, result)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
ADD = "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT (name, labels) DO UPDATE SET value = value + excluded.value"
PUT_TASK = "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
PUT_FENCE = "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)"
PUT_GRANT = "INSERT OR REPLACE INTO open_grants VALUES (?, ?, ?, ?, ?, ?, ?)"
PUT_COLLISION = "INSERT OR REPLACE INTO collisions VALUES (?, ?, ?, ?, ?)"
PUT_PRESENT = "INSERT OR REPLACE INTO presence VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
NESTED = "SELECT id FROM presence WHERE lease = ? AND role = 'nested'"
RUN = "SELECT task, lease_id, source, reason, pid, parent_task, detail FROM events WHERE id = ? AND event = 'nested_started'"
OF_RUN = ("task", "lease_id", "source", "reason", "pid", "parent_task", "detail")
STOPPED = (
    "SELECT 1 FROM events WHERE event NOT IN ('acquired', 'released', 'deferred', 'present')"  # as the index has it
    " AND event = 'stop_requested' AND lease_id = ? LIMIT 1"
)
DROP_GRANT = "DELETE FROM open_grants WHERE lease = ? AND lease_id = ?"
DROP_COLLISION = "DELETE FROM collisions WHERE lease = ? AND kind = ?"
DROP_PRESENT = "DELETE FROM presence WHERE id = ?"


class Known:
    """What the tables said when they were asked, and what was written since: true until another connection writes."""

    def __init__(self) -> None:
        self.tasks: dict[tuple[str, str], TaskState] = {}
        self.fences: dict[str, Fence] = {}
        self.grants: dict[str, dict[str, Grant]] = {}
        self.collisions: dict[tuple[str, str], Collision | None] = {}
        self.nested: dict[str, frozenset[str]] = {}

    def __len__(self) -> int:
        return len(self.tasks) + len(self.fences) + len(self.grants) + len(self.collisions) + len(self.nested)


class Book:
    """What the ledger says with more events entered, in the order in which they were told.

    What they change is in `entries`, `counters`, `tasks`, `fences`, `grants`, `collisions` and `present`, where None stands
    for what is no more; `write` puts it into the tables. Those that tell nothing are counted as `rejected`. `now` is when
    they are entered, in seconds since the epoch: at this moment unless it is given.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        events: Iterable[Mapping[str, object]],
        known: Known | None = None,
        now: float | None = None,
    ) -> None:
        self.rejected = 0
        self.entries: dict[str, Entry] = {}
        self.counters: dict[CounterKey, float] = {}
        self.tasks: dict[tuple[str, str], TaskState] = {}
        self.fences: dict[str, Fence] = {}
        self.grants: dict[tuple[str, str], Grant | None] = {}
        self._open: dict[str, dict[str, Grant]] = {}  # by lease, with our changes: a backlog has thousands of them
        self.collisions: dict[tuple[str, str], Collision | None] = {}
        self.present: dict[str, Entry | None] = {}
        self._nested: dict[str, set[str]] = {}  # by lease, with our changes: who has joined and not left
        self._db = db
        self._known = Known() if known is None else known
        self._now = time.time() if now is None else now
        self._is_written: dict[str, bool] = {}
        self._ends_to_come: set[str] = set()
        self._enter_all([entry_of(event) for event in events])

    def fence(self, lease: str) -> Fence:
        """Return the highest fence of a lease, and the grant that has it."""
        found = self.fences.get(lease) or self._known.fences.get(lease)
        if found is None:
            row = self._db.execute(FENCE, (lease,)).fetchone()
            found = (0, None) if row is None else (as_natural(row[0]), as_text(row[1]))
            self._known.fences[lease] = found
        return found

    def write(self) -> None:
        """Write everything down, inside the transaction that the caller has begun."""
        put = self._put
        put(INSERT_EVENT, [[entry[name] for name in STORED] for entry in self.entries.values()])
        put(ADD, [(name, labels_text(labels), amount) for (name, labels), amount in self.counters.items()])
        put(PUT_TASK, [(*key, *state) for key, state in self.tasks.items()])
        put(PUT_FENCE, [(lease, *fence) for lease, fence in self.fences.items()])
        put(DROP_GRANT, _gone(self.grants))
        put(PUT_GRANT, [(lease, *grant) for (lease, _), grant in _left(self.grants)])
        put(DROP_COLLISION, _gone(self.collisions))
        put(PUT_COLLISION, [(lease, *collision) for (lease, _), collision in _left(self.collisions)])
        put(DROP_PRESENT, [(event_id,) for event_id in _gone(self.present)])
        put(PUT_PRESENT, [[entry[name] for name in OF_PRESENT] for _, entry in _left(self.present)])
        known = self._known
        known.grants.update(
            {lease: self._open_grants(lease) for lease in {of for of, _ in self.grants} & {*known.grants}}
        )
        known.tasks.update(self.tasks)
        known.fences.update(self.fences)
        known.collisions.update(self.collisions)
        known.nested.update({lease: frozenset(self._joined(lease)) for lease in known.nested})

    def _put(self, statement: str, rows: Sequence[Any]) -> None:
        if rows:
            self._db.executemany(statement, rows)

    def _enter_all(self, told: Sequence[Entry | None]) -> None:
        entries = [entry for entry in told if entry is not None]
        self.rejected = len(told) - len(entries)
        self._ends_to_come = {entry["id"] for entry in entries if entry["outcome"] is not None}
        begun = [end_id(entry["lease_id"]) for entry in entries if entry["event"] == "acquired"]
        self._look_up([*{*begun, *[entry["id"] for entry in entries if entry["event"] != "absent"]}])
        for entry in entries:
            if entry["event"] == "absent":
                self._leave(entry["lease"], entry["of"] or "")
            elif not self._knows(entry["id"]):
                self._enter(entry)

    def _look_up(self, ids: Sequence[str]) -> None:
        for begin in range(0, len(ids), IDS_AT_ONCE):
            some = ids[begin : begin + IDS_AT_ONCE]
            places = ",".join("?" * len(some))
            rows = self._db.execute(f"SELECT id FROM events WHERE id IN ({places})", some)  # noqa: S608  only `?`
            self._is_written.update(dict.fromkeys(some, False) | {event_id: True for (event_id,) in rows})

    def _knows(self, event_id: str) -> bool:
        if event_id not in self.entries and event_id not in self._is_written:
            self._look_up([event_id])
        return event_id in self.entries or self._is_written[event_id]

    def _enter(self, entry: Entry) -> None:
        if entry["outcome"] in UNSEEN and self._is_stopped(entry["lease_id"]):
            entry = {**entry, "event": "released", "outcome": "stopped"}
        kind, lease, task = entry["event"], entry["lease"], entry["task"]
        if kind == "acquired":
            self._begin_grant(entry)
        elif entry["outcome"] is not None:
            self._end_runs(lease, entry["lease_id"], entry["at"])
        self.entries[entry["id"]] = entry
        fence = fence_of(entry)
        if fence and fence > self.fence(lease)[0]:
            self.fences[lease] = fence, entry["lease_id"]
        if kind == "present":
            self.present[entry["id"]] = entry
            if entry["role"] == "nested" and lease in self._nested:
                self._nested[lease].add(entry["id"])
        elif entry["outcome"] is not None:
            self._change_grant(lease, entry["lease_id"], None)
        elif kind in {"collision", "collision_cleared"}:
            self._collide(entry)
        for name, labels, amount in effects(entry):
            self.counters[name, labels] = self.counters.get((name, labels), 0.0) + amount
        if lease is not None and task is not None and is_task_name(task):
            before = self._task(lease, task)
            after = task_after(before, entry, self._now)
            if after != before:
                self.tasks[lease, task] = after

    def _begin_grant(self, entry: Entry) -> None:
        """Open a grant; since grants strictly follow one another, every earlier one of its lease has ended.

        One whose end nobody tells was lost. The end may be told a moment later, as the lock is freed before: then it counts.
        """
        lease, lease_id, at = entry["lease"], entry["lease_id"], entry["at"]
        new = Grant(lease_id, fence_of(entry), *[entry[name] for name in ("task", "source", "reason", "pid")])
        for earlier in sorted(self._open_grants(lease).values(), key=attrgetter("fence", "lease_id")):
            end = end_id(earlier.lease_id)
            if earlier.fence < new.fence and end not in self._ends_to_come and not self._knows(end):
                lost = {"id": end, "event": "stale_cleaned", "lease": lease, "at": at, "outcome": "lost"}
                self._enter(NOTHING | earlier._asdict() | lost)
        if not self._knows(end_id(lease_id)):
            self._change_grant(lease, lease_id, new)
        replaced = self._collision(lease, "lockfile_replaced")
        if replaced is not None and is_after(at, replaced.since, self._now):
            cleared = {"id": f"{replaced.id}:cleared", "event": "collision_cleared", "at": at, "lease": lease}
            about = {"reason_code": replaced.kind, "reason": replaced.detail, "detail": replaced.detail}
            self._enter(NOTHING | cleared | about)

    def _is_stopped(self, lease_id: str | None) -> bool:
        """Tell whether `maintlock stop` has ended a grant: nobody of its own may have been left to tell that."""
        told = self.entries.values()
        if lease_id is None or any(e["event"] == "stop_requested" and e["lease_id"] == lease_id for e in told):
            return lease_id is not None
        return self._db.execute(STOPPED, (lease_id,)).fetchone() is not None

    def _end_runs(self, lease: str, lease_id: str, at: float) -> None:
        """End what joined a grant and has not told its own end: killed, or become its command (`exec`)."""
        for present_id in sorted(self._joined(lease)):
            started_id = present_id.removesuffix(PRESENT)
            run = self._run(started_id) if started_id != present_id else None
            if run is None or run["lease_id"] != lease_id:
                continue
            if not self._knows(finished_id(started_id)):
                unseen = "unknown" if run["detail"] == "exec" else "lost"
                result = "stopped" if self._is_stopped(lease_id) else unseen
                end = {"id": finished_id(started_id), "event": "nested_finished", "lease": lease, "at": at}
                self._enter(NOTHING | run | end | {"result": result, "detail": None})
            self._leave(lease, present_id)

    def _run(self, started_id: str) -> Entry | None:
        """Return what is known of the run of a joined job by its beginning."""
        told = self.entries.get(started_id)
        if told is not None:
            return {name: told[name] for name in OF_RUN} if told["event"] == "nested_started" else None
        row = self._db.execute(RUN, (started_id,)).fetchone()
        return None if row is None else {name: STORED[name](value) for name, value in zip(OF_RUN, row, strict=True)}

    def _joined(self, lease: str) -> set[str]:
        if lease not in self._nested:
            if lease not in self._known.nested:
                rows = self._db.execute(NESTED, (lease,))
                self._known.nested[lease] = frozenset(found for (found,) in rows if isinstance(found, str))
            changes = {
                of: entry
                for of, entry in self.present.items()
                if entry is None or (entry["role"] == "nested" and entry["lease"] == lease)
            }
            self._nested[lease] = {*laid_over(dict.fromkeys(self._known.nested[lease], NOTHING), changes)}
        return self._nested[lease]

    def _leave(self, lease: str, present_id: str) -> None:
        self.present[present_id] = None
        if lease in self._nested:
            self._nested[lease].discard(present_id)

    def _collide(self, entry: Entry) -> None:
        lease, kind, at = entry["lease"], entry["reason_code"], entry["at"]
        if lease is None or kind not in COLLISION_KINDS:
            return
        known = self._collision(lease, kind)
        if entry["event"] == "collision":
            new = Collision(kind, entry["id"], at, entry["detail"])
            # One that is over and still open: the orchestrator was killed before it could report the end.
            if known is not None and not marks.is_over(known.id):
                new = known._replace(id=marks.joined(known.id, new.id), detail=new.detail)
            self.collisions[lease, kind] = new
        elif known is not None and is_after(at, known.since, self._now):
            self.collisions[lease, kind] = None

    def _task(self, lease: str, task: str) -> TaskState:
        key = lease, task
        state = self.tasks.get(key) or self._known.tasks.get(key)
        if state is None:
            row = self._db.execute(f"{TASKS} AND task = ?", key).fetchone()
            state = self._known.tasks[key] = TaskState() if row is None else state_of(row[1:])
        return state

    def _open_grants(self, lease: str) -> dict[str, Grant]:
        if lease not in self._known.grants:
            rows = self._db.execute(GRANTS, (lease,))
            self._known.grants[lease] = {grant.lease_id: grant for grant in map(grant_of, rows)}
        if lease not in self._open:
            changes = {lease_id: new for (of, lease_id), new in self.grants.items() if of == lease}
            self._open[lease] = laid_over(self._known.grants[lease], changes)
        return self._open[lease]

    def _change_grant(self, lease: str, lease_id: str, new: Grant | None) -> None:
        self.grants[lease, lease_id] = new
        if new is not None:
            self._open_grants(lease)[lease_id] = new
        else:
            self._open_grants(lease).pop(lease_id, None)

    def _collision(self, lease: str, kind: str) -> Collision | None:
        key = lease, kind
        if key in self.collisions:
            return self.collisions[key]
        if key not in self._known.collisions:
            rows = collisions_of(self._db.execute(f"{COLLISIONS} AND kind = ?", key))
            self._known.collisions[key] = rows[0] if rows else None
        return self._known.collisions[key]


def laid_over(written: Mapping[Key, Value], changes: Mapping[Key, Value | None]) -> dict[Key, Value]:
    """Return what is left of `written` after `changes`, in which None stands for what is no more."""
    return dict(_left({**written, **changes}))


def _left(changes: Mapping[Key, Value | None]) -> list[tuple[Key, Value]]:
    return [(key, value) for key, value in changes.items() if value is not None]


def _gone(changes: Mapping[Key, Value | None]) -> list[Key]:
    return [key for key, value in changes.items() if value is None]
