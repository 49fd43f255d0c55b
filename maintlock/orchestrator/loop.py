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
from maintlock.orchestrator.jobs import Begun, Jobs, Orphaned
from maintlock.orchestrator.memory import Memory
from maintlock.orchestrator.planner import Planner
from maintlock.orchestrator.record import Record
from maintlock.orchestrator.recorder import Recorder
from maintlock.orchestrator.streaks import Streaks
from maintlock.orchestrator.troubles import Troubles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from maintlock.config import Config
    from maintlock.orchestrator.cadence import Due
    from maintlock.orchestrator.ends import End
    from maintlock.orchestrator.planner import Scene

# Troubles in which the configuration has no part: they outlast a new one.
LASTING = frozenset({"state directory", "ledger", "ledger reading", "processes"})
MAX_PIDS = 12
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
        self.memory.adopted(self.jobs.recorded())
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
        before = self.config
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
        if self.config.state_dir != before.state_dir:
            log.warning(
                "state_dir has changed: restart the orchestrator for that; until then it stays with %s",
                self.directory,
                extra={"event": "restart_needed", "path": self.directory},
            )

    def run_pass(self) -> None:
        """Observe, decide, act."""
        attempt = self.troubles.attempt
        attempt("state directory", self._keep_place)
        self.tend()
        now = self.now()
        attempt("ledger", lambda: self.ledger.drain(now=now))
        scene = self.planner.look(self.config, self.jobs.started(), now)
        if scene is not None:
            attempt("action", lambda: self._act(scene, now))
        self.write_record()

    def tend(self) -> None:
        """Look after what we have started: jobs that have ended, daemons that have died."""
        self.troubles.attempt("jobs", self.tend_jobs)
        self.troubles.attempt("daemons", lambda: self.daemons.tend(time.monotonic(), self.config))

    def tend_jobs(self) -> None:
        """Hear what has become of jobs: which have got their lease, and which have ended."""
        for news in self.jobs.news():
            self.troubles.attempt(f"job:{news.task}", partial(self._note, news))

    def write_record(self, *, stopped_at: float | None = None) -> None:
        """Bring our record up to date; `stopped_at` (epoch seconds) once we leave in good order."""
        told = Record(
            identity=process.own_identity(),
            owner=default_owner(),
            started_at=self.started_at,
            stopped_at=stopped_at,
            poll_interval=self.config.poll_interval,
            config=self.config.path,
            jobs=self.jobs.recorded(),
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
        self.streaks.forget()
        self.planner.collisions.forget()
        log.warning("%s was removed, and has been recreated", self.directory, extra={"event": "state_directory_lost"})

    def _act(self, scene: Scene, now: float) -> None:
        """Start what may start, and tell of what may not; the turn of a task that cannot be started is the next one's."""
        dues: Sequence[Due] = scene.dues
        while True:
            decided = scene.decided(dues)
            failed = [one for one in decided if one.gate is None and not self._start(one.due)]
            held = [one for one in decided if one.gate is not None]
            if not any(one.due.task.heavy for one in failed):
                break
            dues = [one.due for one in held]
        waiting = self.planner.waiting(self.jobs.waiting(), now)
        self.streaks.held = {**streaks.held_by(held, self.streaks.held, now), **waiting}
        for name in waiting.keys() & self.config.tasks.keys():
            task = self.config.tasks[name]
            self.streaks.explain_waiting(task, waiting[name], self.planner.history.state_of(task))
        for one in held:
            told = self.planner.history.state_of(one.due.task)
            self.troubles.attempt(f"deferral:{one.due.task.name}", partial(self.streaks.tell, one, told, now))

    def _start(self, due: Due) -> bool:
        """Start a due task; False if that cannot be done."""
        name = due.task.name
        try:
            self.jobs.start(due, self.config)
        except Exception as error:  # noqa: BLE001  whatever it is, it is that task's alone
            self.troubles.note(f"start:{name}", f"cannot be started: {error}")
            self.memory.not_begun(name, time.monotonic())
            return False
        self.memory.begun(name, self.now())
        return True

    def _note(self, news: Begun | Orphaned | End) -> None:
        if isinstance(news, Begun):
            self._note_begin(news)
        elif isinstance(news, Orphaned):
            self._note_orphan(news)
        else:
            self._note_end(news)

    def _note_begin(self, begun: Begun) -> None:
        self.troubles.note(f"start:{begun.task}", None)
        log.info(
            "%s started (%s)",
            begun.task,
            begun.reason,
            extra={"event": "task_started", "task": begun.task, "reason": begun.reason, "pid": begun.pid},
        )

    def _note_orphan(self, orphaned: Orphaned) -> None:
        log.warning(
            "%s is still running, but its wrapper was killed (pids %s)",
            orphaned.task,
            ", ".join(map(str, orphaned.pids[:MAX_PIDS])),
            extra={"event": "task_orphaned", "task": orphaned.task, "pids": orphaned.pids[:MAX_PIDS]},
        )

    def _note_end(self, end: End) -> None:
        """Remember what the end of a job means for its next start, and tell of it."""
        self.memory.ended(end.task, end.outcome, time.monotonic(), is_begun=end.is_begun)
        self._note_not_begun(end)
        if end.is_begun:
            self.troubles.note(f"command:{end.task}", ends.bad_command(end))
            ends.log_end(end)
        task = self.config.tasks.get(end.task)
        if end.outcome == "deferred" and task is not None:
            gate = Gate(reason_code=end.reason_code or "lease-held", blocked_by=end.blocked_by)
            self.streaks.stood_back(task, gate, self.planner.history.state_of(task))

    def _note_not_begun(self, end: End) -> None:
        about, reason = f"start:{end.task}", ends.not_begun(end)
        if reason is None or end.outcome != "stopped":
            self.troubles.note(about, reason)
            return
        shown = self.troubles.let_stand(about, reason)  # somebody wanted that: no error, and still due
        log.info("%s %s", end.task, shown, extra={"event": "task_not_begun", "task": end.task})
