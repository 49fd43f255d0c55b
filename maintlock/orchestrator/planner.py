"""What a pass sees, and what follows from it: which tasks are due, and what becomes of each. It starts nothing.

A look that fails is a trouble of what it is about. What cannot be seen is taken for what would be worst: a lease for held, the
processes outside it for a collision, a ledger for what it was when it could be read.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from maintlock.model import record
from maintlock.orchestrator import backpressure, cadence, facts
from maintlock.orchestrator.backpressure import Gate
from maintlock.orchestrator.collisions import Collisions
from maintlock.orchestrator.facts import History, Leases, Processes
from maintlock.orchestrator.inbox import PATIENT_SECONDS, WAIT_SECONDS, Inboxes
from maintlock.orchestrator.memory import retry_seconds
from maintlock.orchestrator.record import Held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from maintlock.config import Config
    from maintlock.orchestrator.backpressure import Decision
    from maintlock.orchestrator.cadence import Due, Unread
    from maintlock.orchestrator.facts import LeaseFacts
    from maintlock.orchestrator.memory import Memory
    from maintlock.orchestrator.record import Started
    from maintlock.orchestrator.streaks import Streaks
    from maintlock.orchestrator.troubles import Troubles
    from maintlock.outside import Outside
    from maintlock.settings import TaskSettings
    from maintlock.states import Collision, TaskState

QUEUED = Gate(reason_code="queued", blocked_by=None)


@record(frozen=True, kw_only=True)
class Scene:
    """What a pass has seen: the tasks that are due, and all that decides on them. `now` is in epoch seconds."""

    dues: tuple[Due, ...]
    states: Mapping[str, TaskState]
    gates: Mapping[str, Gate | None]
    collision: Gate | None
    now: float
    starved_after: float

    def decided(self, dues: Sequence[Due]) -> list[Decision]:
        """Return what becomes of these of them, in the order in which they have a right to start."""
        return backpressure.decisions(
            dues, self.states, self.gates, self.collision, now=self.now, starved_after=self.starved_after
        )


class Planner:
    """All that a pass looks at. `clock` tells epoch seconds."""

    def __init__(
        self,
        directory: str,
        memory: Memory,
        streaks: Streaks,
        troubles: Troubles,
        *,
        clock: Callable[[], float],
        is_patient: bool,
    ) -> None:
        self.memory = memory
        self.streaks = streaks
        self.troubles = troubles
        self.history = History(directory)
        self.processes = Processes(directory)
        self.collisions = Collisions(directory)
        self.inboxes = Inboxes(clock, wait_seconds=PATIENT_SECONDS if is_patient else WAIT_SECONDS)
        self.leases = Leases(directory)

    def look(self, config: Config, jobs: Mapping[str, Started], now: float) -> Scene | None:
        """Return what is to be decided on, None if that cannot be seen; `jobs` are ours that run, `now` is in epoch seconds."""
        self.troubles.attempt("ledger reading", self.history.read)
        dues = self._dues(config, jobs, now)
        outside = self._outside(config.tasks.values(), now, is_urgent=any(due.task.heavy for due in dues))
        return self.troubles.attempt("decision", partial(self._scene, config, jobs, dues, outside, now))

    def waiting(self, jobs: Mapping[str, Started], now: float) -> dict[str, Held]:
        """Return which of our jobs wait in the queue for their lease, by the ledger, for whom, and since when."""
        present = self.history.states.present if self.history.states is not None else ()
        since = {row["pid"]: row["at"] for row in present if row["role"] == "waiting"}
        found = {}
        for task, started in jobs.items():
            if started.identity.pid in since:
                gate = self._lease(started.lease, now).gate or QUEUED
                gate = (
                    QUEUED if gate.blocked_by in {None, task} else gate
                )  # it may have the lock, and wait for survivors
                at = since[started.identity.pid]
                found[task] = Held(reason_code=gate.reason_code, blocked_by=gate.blocked_by, since=at)
        return found

    def _dues(self, config: Config, jobs: Mapping[str, Started], now: float) -> list[Due]:
        found = []
        for task in config.tasks.values():
            if not cadence.is_scheduled(task) or task.name in jobs:
                continue
            due = self.troubles.attempt(f"task:{task.name}", partial(self._due, task, now, config.poll_interval))
            if due is not None and self.memory.may_start(task.name, time.monotonic()):
                found.append(due)
        return found

    def _due(self, task: TaskSettings, now: float, poll_interval: float) -> Due | None:
        state = self._state_of(task, now)
        return cadence.due(
            task,
            state,
            now,
            first_seen_at=self.memory.first_seen_at(task.name, now),
            unread=self._unread(task, state),
            retry_seconds=retry_seconds(self.memory.known(task.name), task, poll_interval=poll_interval),
        )

    def _scene(
        self, config: Config, jobs: Mapping[str, Started], dues: list[Due], outside: list[Outside] | None, now: float
    ) -> Scene:
        collision = collision_gate(outside)
        is_sure = outside is None or any(one.is_lasting for one in outside)
        ours = facts.gates_of(jobs)
        leases = {lease: self._lease(lease, now) for lease in {due.task.lease for due in dues}}
        dues = [due for due in dues if not leases[due.task.lease].is_running(due.task)]
        return Scene(
            dues=tuple(dues),
            states={due.task.name: self._state_of(due.task, now) for due in dues},
            gates={
                lease: backpressure.named(found.gate, ours.get(lease)) or collision for lease, found in leases.items()
            },
            collision=collision if is_sure else None,
            now=now,
            starved_after=config.starved_after,
        )

    def _state_of(self, task: TaskSettings, now: float) -> TaskState:
        return self.memory.state_of(task.name, self.history.state_of(task), self.streaks.held.get(task.name), now)

    def _unread(self, task: TaskSettings, state: TaskState) -> Unread | None:
        if task.inbox is None:
            return None
        look = partial(self.inboxes.read, task.name, task.inbox, state.last_success_started_at)
        return self.troubles.attempt(f"inbox:{task.name}", look)

    def _outside(self, tasks: Iterable[TaskSettings], now: float, *, is_urgent: bool) -> list[Outside] | None:
        """Return heavy processes outside the lease, None where they cannot be seen, and tell of them and of their end."""
        present = self.history.states.present if self.history.states is not None else ()
        look = partial(self.processes.read, tasks, present, is_urgent=is_urgent)
        found = self.troubles.attempt("processes", look)
        if found is not None:
            tell = partial(self.collisions.tell, found, self._known_collisions(), now=now)
            self.troubles.attempt("collisions", tell)
        return found

    def _lease(self, lease: str, now: float) -> LeaseFacts:
        look = partial(self.leases.read, lease, self.history.states)
        found = self.troubles.attempt(f"lease:{lease}", look) or facts.UNREADABLE
        if found.custody is not None and found.custody.replaced is not None:
            tell = partial(self.collisions.tell_replaced, lease, found.custody, self._known_collisions(), now=now)
            self.troubles.attempt("collisions", tell)
        return found

    def _known_collisions(self) -> Mapping[str, Sequence[Collision]] | None:
        return self.history.states.collisions if self.history.states is not None else None


def collision_gate(found: Sequence[Outside] | None) -> Gate | None:
    """Return the gate that heavy processes outside the lease are, if only for a moment; None stands for unseen, and counts as one."""
    if found is None:
        return Gate(reason_code="collision", blocked_by=None)
    return Gate(reason_code="collision", blocked_by=found[0].task) if found else None
