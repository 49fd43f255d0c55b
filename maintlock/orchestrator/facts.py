"""What a pass looks at: the ledger, the leases, the processes outside them. Each is looked at no more often than it must be."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from maintlock import custody, history, outside, process
from maintlock.ledger import DATABASE
from maintlock.model import record, replace
from maintlock.orchestrator.backpressure import Gate, gate_of
from maintlock.paths import PENDING_FILES, Places
from maintlock.states import TaskState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from maintlock.custody import Custody
    from maintlock.entries import Entry
    from maintlock.history import States
    from maintlock.orchestrator.record import Started
    from maintlock.outside import Outside
    from maintlock.settings import TaskSettings

OUTSIDE_SECONDS = 15.0  # between two looks at all processes, while nothing heavy is about to start
SETTLED_SECONDS = 0.1  # a file that changed less than that ago may change again at the same tick of its clock
FILES = (*PENDING_FILES, DATABASE, f"{DATABASE}-wal")
QUEUED_SECONDS = 10.0  # so long is somebody believed to wait for a lease that is free
NO_STATE = TaskState()


@record(frozen=True, kw_only=True)
class LeaseFacts:
    """One lease: the tasks that run under it by the records, its holder's and those that have joined it, and the gate that it is.

    `custody` is what that is told from.
    """

    running: frozenset[str]
    gate: Gate | None
    custody: Custody | None = None

    def is_running(self, task: TaskSettings) -> bool:
        """Tell whether a task that wants it runs under it: the unknown holder of a light task's own lease is that task."""
        return task.name in self.running or (self.gate is not None and not self.running and not task.heavy)


UNREADABLE = LeaseFacts(running=frozenset(), gate=Gate(reason_code="lease-held", blocked_by=None))


class History:
    """What the ledger tells, read anew only when one of its files has changed."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._seen: tuple[object, ...] = ()
        self.states: States | None = None  # as last read; None until that has worked once

    def read(self) -> None:
        """Bring `states` up to date.

        Raises:
            LedgerUnavailable: It cannot be read.
        """
        looked_at = time.time()
        seen, changed_at = self._look()
        if seen != self._seen:
            self._seen = ()  # where reading fails, it is tried again at the next look
            self.states = history.read_states(self._directory)
            self._seen = seen if looked_at >= changed_at + SETTLED_SECONDS else ()

    def state_of(self, task: TaskSettings) -> TaskState | None:
        """Return what the ledger tells of a task; None until it could be read once."""
        return None if self.states is None else self.states.tasks.get((task.lease, task.name), NO_STATE)

    def _look(self) -> tuple[tuple[object, ...], float]:
        seen: list[object] = []
        newest = 0.0
        for name in FILES:
            try:
                found = os.stat(f"{self._directory}/{name}")
            except OSError:
                seen.append(None)
                continue
            seen.append((found.st_ino, found.st_size, found.st_mtime_ns))
            newest = max(newest, found.st_mtime)
        return tuple(seen), newest


class Leases:
    """The leases that due tasks want, as far as what is read of them can be believed."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._queued_since: dict[str, float] = {}  # monotonic, by lease

    def read(self, lease: str, states: States | None) -> LeaseFacts:
        """Return who has a lease. Nobody waits for long for one that is free: that is not believed for ever."""
        queued_since = self._queued_since.pop(lease, None)
        present = [row for row in states.present if row["lease"] == lease] if states is not None else []
        found = read_lease(Places(directory=self._directory, lease=lease), present)
        if found.gate is None or found.gate.reason_code != "queued":
            return found
        now = time.monotonic()
        self._queued_since[lease] = since = now if queued_since is None else queued_since
        return found if now - since < QUEUED_SECONDS else replace(found, gate=None)


def read_lease(places: Places, present: Iterable[Entry]) -> LeaseFacts:
    """Return who has a lease, and what that is to a task of the orchestrator's; `present` are its rows of presence in the ledger."""
    living = [row for row in present if process.is_alive(history.identity_of(row)) is True]
    found = custody.read_custody(places)
    grant = found.grant if found.state != "free" else None
    gate = gate_of(
        found.state,
        holder=grant.task if grant is not None else None,
        source=grant.source if grant is not None else None,
        waiters=[row["task"] for row in living if row["role"] == "waiting" and not _is_stopped(row["pid"])],
        has_survivors=found.state == "orphaned" and bool(found.members),
        is_replaced=found.replaced is not None,
    )
    joined = {row["task"] for row in living if row["role"] == "nested"}
    running = frozenset(joined | ({grant.task} if grant is not None else set()))
    return LeaseFacts(running=running, gate=gate, custody=found)


def gates_of(jobs: Mapping[str, Started]) -> dict[str, Gate]:
    """Return, by lease, the gates that our jobs are for as long as their wrappers live.

    A wrapper may not have its lease yet; and if the state directory is removed, nothing else may tell that it has one.
    """
    found: dict[str, Gate] = {}
    for name, started in jobs.items():
        found.setdefault(started.lease, Gate(reason_code="backpressure", blocked_by=name))
    return found


def _is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped: then nobody has to wait for it."""
    stat = process.read_stat(pid)
    return stat is not None and stat.is_stopped


class Processes:
    """Heavy processes outside the lease: looked for before something heavy starts, while there are any, else now and then."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._look_deadline = 0.0  # monotonic
        self._found: list[Outside] = []
        self._watch = outside.Watch()

    def read(self, tasks: Iterable[TaskSettings], present: Iterable[Entry], *, is_urgent: bool) -> list[Outside]:
        """Return what is outside now, or was a short time ago; `present` as for `outside.find_uncovered`."""
        now = time.monotonic()
        if is_urgent or self._found or now >= self._look_deadline:
            found = outside.find_uncovered(tasks, lambda lease: Places(directory=self._directory, lease=lease), present)
            self._found = self._watch.timed(found, now)
            self._look_deadline = now + OUTSIDE_SECONDS
        return self._found
