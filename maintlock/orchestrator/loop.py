"""The orchestrator: observe, decide, act, sleep.

    look at what has ended ─ ledger ─ processes ─ inboxes ─ leases ──▶ cadence, backpressure ──▶ start, or tell why not

Whatever goes wrong in one step is that step's alone: it is told once, stands in health, and the rest goes on (R6).
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING

from maintlock import config as configuration
from maintlock import paths, process
from maintlock.identity import default_owner
from maintlock.ledger import Ledger
from maintlock.orchestrator import ends, record, streaks
from maintlock.orchestrator.backpressure import Gate
from maintlock.orchestrator.daemons import Daemons
from maintlock.orchestrator.instance import Instance
from maintlock.orchestrator.jobs import Jobs
from maintlock.orchestrator.memory import Memory
from maintlock.orchestrator.planner import Planner
from maintlock.orchestrator.record import Record
from maintlock.orchestrator.recorder import Recorder
from maintlock.orchestrator.streaks import Streaks
from maintlock.orchestrator.troubles import Troubles

if TYPE_CHECKING:
    from collections.abc import Callable

    from maintlock.config import Config
    from maintlock.orchestrator.backpressure import Decision
    from maintlock.orchestrator.cadence import Due
    from maintlock.orchestrator.ends import End

# Troubles in which the configuration has no part: they outlast a new one.
LASTING = frozenset({"state directory", "ledger", "ledger reading", "processes"})
log = logging.getLogger("maintlock.orchestrator")


class Orchestrator:
    """The one scheduler of a state directory, from its first pass to its last. `clock` tells epoch seconds."""

    def __init__(
        self,
        config: Config,
        directory: str,
        instance: Instance,
        *,
        is_single_pass: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.now = clock
        self.started_at = clock()
        self.config = config
        self.directory = directory
        self.instance = instance
        self.ledger = Ledger(directory, history_seconds=config.history)
        self.jobs = Jobs(directory)
        self.daemons = Daemons(directory)
        self.memory = Memory()
        self.streaks = Streaks(directory)
        self.troubles = Troubles()
        self.planner = Planner(
            directory, self.memory, self.streaks, self.troubles, clock=clock, is_patient=is_single_pass
        )
        self.recorder = Recorder(directory)

    def take_over(self) -> None:
        """Adopt what an orchestrator before us has started: its jobs, its daemons (R8)."""
        known = record.read(self.directory) or Record()
        self.troubles.attempt("jobs", lambda: self.jobs.adopt(known.jobs))
        self.memory.adopted(self.jobs.started())
        self.daemons.configure(self.config.daemons, known.daemons)
        self.write_record()
        adopted = sorted(self.jobs.running)
        log.info(
            "started%s",
            f"; adopted {', '.join(adopted)}" if adopted else "",
            extra={
                "event": "started",
                "pid": os.getpid(),
                "path": self.directory,
                "config": self.config.path,
                "adopted_jobs": adopted,
            },
        )
        if not self.config.tasks and not self.config.daemons:
            log.warning("there is nothing to do: no tasks and no daemons are configured", extra={"event": "nothing"})

    def reload(self) -> None:
        """Read the configuration anew; one that is invalid is reported, and the old one stays."""
        try:
            self.config = configuration.load(self.config.path)
        except Exception as error:  # noqa: BLE001  whatever it is, the old one stays
            text = self.troubles.let_stand("configuration", str(error))
            log.error("%s; the old configuration stays", text, extra={"event": "config_invalid"})  # noqa: TRY400  no trace
            return
        self.troubles.forget(but=LASTING)
        self.memory.forget_delays()
        self.daemons.configure(self.config.daemons, {})
        self.planner.inboxes.configure(self.config.tasks)
        self.ledger.history_seconds = self.config.history
        log.info("configuration read anew", extra={"event": "reloaded", "config": self.config.path})

    def run_pass(self) -> None:
        """Observe, decide, act."""
        attempt = self.troubles.attempt
        attempt("state directory", self._keep_place)
        self.tend()
        now = self.now()
        attempt("ledger", lambda: self.ledger.drain(now=now))
        decided = self.planner.decisions(self.config, self.jobs.started(), now)
        attempt("action", lambda: self._act(decided, now))
        self.write_record()

    def tend(self) -> None:
        """Look after what we have started: jobs that have ended, daemons that have died."""
        self.troubles.attempt("jobs", self.tend_jobs)
        self.troubles.attempt("daemons", lambda: self.daemons.tend(time.monotonic(), self.config))

    def tend_jobs(self) -> None:
        """Hear of the ends of jobs."""
        for end in self.jobs.ended():
            self.troubles.attempt(f"end:{end.task}", partial(self._note_end, end))

    def write_record(self, *, stopped_at: float | None = None) -> None:
        """Bring our record up to date; `stopped_at` (epoch seconds) once we leave in good order."""
        told = Record(
            identity=process.own_identity(),
            owner=default_owner(),
            started_at=self.started_at,
            stopped_at=stopped_at,
            poll_interval=self.config.poll_interval,
            config=self.config.path,
            jobs=self.jobs.started(),
            daemons=self.daemons.started(),
            held=dict(self.streaks.held),
            troubles={**self.troubles.standing, **self.daemons.troubles()},
        )
        is_told = self.recorder.write(told)
        self.troubles.note("record", None if is_told else f"{self.directory}/{record.FILE} cannot be written")

    def _keep_place(self) -> None:
        """See to it that nobody else can become the orchestrator of our state directory, should that be removed."""
        if self.instance.is_current():
            return
        paths.open_state_directory(self.directory)
        lost, self.instance = self.instance, Instance(self.directory)
        lost.close()
        self.recorder = Recorder(self.directory)
        log.warning("%s was removed, and has been made anew", self.directory, extra={"event": "state_directory_lost"})

    def _act(self, decided: list[Decision], now: float) -> None:
        self.streaks.held = streaks.held_by(decided, self.streaks.held, now)
        for decision in decided:
            due, gate = decision.due, decision.gate
            if gate is None:
                self._start(due)
                continue
            self.memory.held_back(due.task.name)
            told = self.planner.history.state_of(due.task)
            self.troubles.attempt(f"deferral:{due.task.name}", partial(self.streaks.tell, due, gate, told, now))

    def _start(self, due: Due) -> None:
        name = due.task.name
        try:
            child = self.jobs.start(due, self.config)
        except Exception as error:  # noqa: BLE001  whatever it is, it is that task's alone
            self.troubles.note(f"start:{name}", f"cannot be started: {error}")
            self.memory.not_begun(name, time.monotonic())
            return
        self.memory.begun(name, self.now())
        log.info(
            "%s started (%s)",
            name,
            due.reason,
            extra={"event": "task_started", "task": name, "reason": due.reason, "pid": child.pid},
        )

    def _note_end(self, end: End) -> None:
        """Remember what the end of a job means for its next start, and tell of it."""
        self.memory.ended(end.task, end.outcome, time.monotonic(), poll_interval=self.config.poll_interval)
        task = self.config.tasks.get(end.task)
        if end.outcome == "deferred":
            if task is not None:
                gate = Gate(reason_code=end.reason_code or "lease-held", blocked_by=end.blocked_by)
                self.streaks.stood_back(task, gate, self.planner.history.state_of(task))
            return
        self.troubles.note(f"start:{end.task}", ends.trouble_of(end))
        if end.outcome != "not_run":
            ends.log_end(end)
