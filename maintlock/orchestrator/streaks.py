"""Why due tasks are held back: the ledger is told once for each streak, the log once for each blocker and reason in one.

A streak is named by the run that it follows, so that a successor of ours names it the same, and tells nothing twice.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from maintlock import events, pending
from maintlock.orchestrator.backpressure import SOURCE, Gate
from maintlock.orchestrator.record import Held
from maintlock.redact import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from maintlock.orchestrator.backpressure import Decision
    from maintlock.settings import TaskSettings
    from maintlock.states import TaskState

STANDS_BACK, WAITS = "is due, but held back by", "is due, and waits for"
EVENTS = {STANDS_BACK: "deferred", WAITS: "waiting"}
log = logging.getLogger("maintlock.orchestrator")


def held_by(decided: Iterable[Decision], before: Mapping[str, Held], now: float) -> dict[str, Held]:
    """Return why which tasks are held back now, and since when, from the decisions and what held them back before."""
    found = {}
    for decision in decided:
        name, gate = decision.due.task.name, decision.gate
        if gate is not None:
            since = before[name].since if name in before else now
            found[name] = Held(reason_code=gate.reason_code, blocked_by=gate.blocked_by, since=since)
    return found


def streak_of(task: TaskSettings, told: TaskState | None) -> str:
    """Return what names a task's present streak of deferrals, from what the ledger told of it, if that could be read."""
    run = told.last_run if told is not None else None
    return events.streak_id(task.lease, task.name, run)


class Streaks:
    """What is held back now, and what of it has been told."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.held: dict[str, Held] = {}
        self._told: dict[str, str] = {}  # by task: the streak that the ledger has been told of
        self._explained: dict[
            str, tuple[str, set[tuple[str, Gate]]]
        ] = {}  # by task: a streak, and what the log has of it

    def tell(self, held: Decision, told: TaskState | None, now: float) -> None:
        """Tell why a due task is not started; the ledger counts the streak once (L5). `now` is in epoch seconds."""
        due, gate, task = held.due, held.gate, held.due.task
        assert gate is not None
        streak = streak_of(task, told)
        self._explain(task.name, streak, gate, STANDS_BACK)
        if told is None or self._told.get(task.name) == streak:
            return  # while the ledger cannot be read, nobody knows which streak it is
        self._told[task.name] = streak
        event = events.new(
            "deferred",
            event_id=streak,
            at=now,
            lease=task.lease,
            task=task.name,
            source=SOURCE,
            reason=due.reason,
            pid=os.getpid(),
            reason_code=gate.reason_code,
            blocked_by=gate.blocked_by,
        )
        pending.append(self._directory, [event])

    def stood_back(self, task: TaskSettings, gate: Gate, told: TaskState | None) -> None:
        """Tell why a task's wrapper stood back, which has told the ledger itself."""
        streak = self._told[task.name] = streak_of(task, told)
        self._explain(task.name, streak, gate, STANDS_BACK)

    def explain_waiting(self, task: TaskSettings, held: Held, told: TaskState | None) -> None:
        """Tell for whom a task's wrapper waits in the queue."""
        gate = Gate(reason_code=held.reason_code, blocked_by=held.blocked_by)
        self._explain(task.name, streak_of(task, told), gate, WAITS)

    def forget(self) -> None:
        """Forget what the ledger has been told: it is a new one."""
        self._told.clear()

    def _explain(self, name: str, streak: str, gate: Gate, words: str) -> None:
        """Log for whom a task stands back or waits, once for each blocker and reason in a streak (R9, L10)."""
        if self._explained.get(name, ("", ()))[0] != streak:
            self._explained[name] = streak, set()
        known = self._explained[name][1]
        if (words, gate) in known:
            return
        known.add((words, gate))
        log.info(
            "%s %s %s (%s)",
            name,
            words,
            printable(gate.blocked_by or "an unknown owner", 80),
            printable(gate.reason_code, 80),
            extra={
                "event": EVENTS[words],
                "task": name,
                "reason_code": gate.reason_code,
                "blocked_by": gate.blocked_by,
            },
        )
