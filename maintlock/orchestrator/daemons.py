"""Daemons: kept running outside the lease, whatever works under it (R5).

    up ──dies──> down ──its cooldown over──> started ──> up

The cooldown alone decides: neither the lease nor the poll delays a restart. A daemon outlives the orchestrator, and is
adopted by the next one by who it is: pid, start time, boot and pid namespace.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from maintlock import outside, process
from maintlock.model import replace
from maintlock.orchestrator import children
from maintlock.orchestrator.children import Child
from maintlock.orchestrator.record import Started
from maintlock.times import duration_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maintlock.settings import Config, DaemonSettings

MARK = "MAINTLOCK_DAEMON"  # in a daemon's environment: its name
STOP_GRACE_SECONDS = 10.0
LEAST_COOLDOWN_SECONDS = 0.1  # with none at all, a daemon that cannot live would take a processor
KILL_SECONDS = 2.0  # until a killed process is gone, if nothing in the kernel keeps it
LOOK_SECONDS = 0.02
EXECUTING_SECONDS = 0.5
STEADY_SECONDS = 600.0  # who has lived for so long does not die again and again
log = logging.getLogger("maintlock.orchestrator")


class Daemon:
    """One configured daemon. `start_deadline`, when its cooldown is over, is monotonic."""

    def __init__(self, settings: DaemonSettings) -> None:
        self.settings = settings
        self.child: Child | None = None
        self.restarts = 0
        self.start_deadline = 0.0
        self.trouble: str | None = None
        self.pidfd = -1
        self.died: Started | None = None  # the last one, while it is down
        self._last_death: str | None = None  # how it died, and how often in a row
        self._deaths = 0

    def adopt(self, started: Started) -> None:
        """Take over one that a predecessor has started."""
        self.child, self.restarts = Child(replace(started, restart_at=None)), started.restarts
        self._watch()

    def resume_cooldown(self, died: Started) -> None:
        """Go on where a predecessor was: it is down, and what is left of its cooldown has still to pass."""
        left = min(max(0.0, died.restart_at - time.time()), self.cooldown) if died.restart_at is not None else 0.0
        self.restarts = died.restarts + (died.restart_at is None)
        self.start_deadline = time.monotonic() + left
        if left:
            self.trouble, self.died = "ended; will be restarted after its cooldown", died

    @property
    def cooldown(self) -> float:
        """Seconds between its death and its next start."""
        return max(self.settings.cooldown, LEAST_COOLDOWN_SECONDS)

    def started(self) -> Started | None:
        """Return the process that runs, or the one that has died while that is made up for."""
        return self.child.started if self.child is not None else self.died

    def tend(self, now: float, directory: str, config: Config) -> None:
        """Note its death if it has died, start it if it is down and its cooldown is over; `now` is monotonic."""
        if self.child is None:
            if now >= self.start_deadline:
                self._start(now, directory, config)
        elif not self.child.is_alive():
            self._note_death(self.child, now)

    def _note_death(self, died: Child, now: float) -> None:
        self.child = None
        self.unwatch()
        self.restarts += 1
        self.start_deadline = now + self.cooldown
        self.died = replace(died.started, restarts=self.restarts, restart_at=time.time() + self.cooldown)
        code = died.exit_code
        how = "" if code is None else f" by signal {-code}" if code < 0 else f" with exit code {code}"
        self.trouble = f"ended{how}; will be restarted after its cooldown of {duration_text(self.cooldown)}"
        is_again = how == self._last_death and time.time() - died.started.at < STEADY_SECONDS
        self._last_death, self._deaths = how, self._deaths + 1 if is_again else 1
        log.log(
            logging.WARNING if self._is_loud else logging.DEBUG,
            "%s %s%s",
            self.settings.name,
            self.trouble,
            f" ({self._deaths} times in a row)" if self._deaths > 1 else "",
            extra={"event": "daemon_died", "daemon": self.settings.name, "exit_code": code, "deaths": self._deaths},
        )

    @property
    def _is_loud(self) -> bool:
        """Whether its present death or restart is logged: of those in a row that are alike the 1st, 2nd, 4th, 8th and so on."""
        return self._deaths & (self._deaths - 1) == 0

    def _start(self, now: float, directory: str, config: Config) -> None:
        name = self.settings.name
        environ = children.environment(
            os.environ, {**self.settings.env, MARK: name}, directory=directory, config=config.path
        )
        try:
            self.child = children.start(
                self.settings.command,
                directory=directory,
                log_name=log_name(name),
                cwd=self.settings.cwd or config.directory,
                environ=environ,
            )
        except (OSError, ValueError) as error:
            what = getattr(error, "filename", None) or self.settings.command[0]
            trouble = f"cannot be started: {getattr(error, 'strerror', None) or error}: {what}"
            is_new, self.trouble, self.start_deadline = trouble != self.trouble, trouble, now + self.cooldown
            if is_new:
                log.error("%s %s", name, trouble, extra={"event": "daemon_failed", "daemon": name})  # noqa: TRY400  no trace
            return
        self.child.started = replace(self.child.started, restarts=self.restarts)
        self.trouble = self.died = None
        self._watch()
        log.log(
            logging.INFO if self._is_loud else logging.DEBUG,
            "%s started (pid %d)",
            name,
            self.child.pid,
            extra={"event": "daemon_started", "daemon": name, "pid": self.child.pid},
        )

    def _watch(self) -> None:
        """Have the kernel tell us at once when it dies; where it cannot (macOS), the next poll finds out."""
        try:
            self.pidfd = os.pidfd_open(self.child.pid) if self.child is not None else -1
        except (AttributeError, OSError):
            self.pidfd = -1

    def unwatch(self) -> None:
        """Give up the descriptor that tells of its death."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pidfd = -1


class Daemons:
    """All configured daemons of one orchestrator."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.known: dict[str, Daemon] = {}

    def configure(self, settings: Mapping[str, DaemonSettings], recorded: Mapping[str, Started]) -> None:
        """Supervise these from now on; those that are not configured any more run on, unsupervised."""
        for name in [*self.known]:
            if name not in settings:
                daemon = self.known.pop(name)
                daemon.unwatch()
                if daemon.child is not None:
                    pid = daemon.child.pid
                    log.info(
                        "%s is not configured any more; it runs on, unsupervised (pid %d)",
                        name,
                        pid,
                        extra={"event": "daemon_released", "daemon": name, "pid": pid},
                    )
        for name, wanted in settings.items():
            if name in self.known:
                self.known[name].settings = wanted
            else:
                self.known[name] = self._adopted(wanted, recorded.get(name))

    def _adopted(self, settings: DaemonSettings, recorded: Started | None) -> Daemon:
        daemon = Daemon(settings)
        found = recorded if recorded is not None and children.is_ours(recorded) else None
        if found is None:  # killed between the start and its record
            found = _find_marked(settings, self._directory, is_sure=recorded is None)
        if found is not None:
            daemon.adopt(found)
            log.info(
                "%s adopted (pid %d)",
                settings.name,
                found.identity.pid,
                extra={"event": "daemon_adopted", "daemon": settings.name, "pid": found.identity.pid},
            )
        elif recorded is not None:
            daemon.resume_cooldown(recorded)
        return daemon

    def tend(self, now: float, config: Config) -> None:
        """Look after each; one that cannot be looked after is no reason to leave out the others (R6). `now` is monotonic."""
        for daemon in self.known.values():
            try:
                daemon.tend(now, self._directory, config)
            except Exception as error:  # noqa: BLE001  whatever it is, it is that daemon's alone
                daemon.trouble = f"{type(error).__name__}: {error}"
                daemon.start_deadline = now + daemon.cooldown

    def next_start_deadline(self) -> float:
        """Return when the next cooldown is over, in monotonic seconds."""
        return min(
            (daemon.start_deadline for daemon in self.known.values() if daemon.child is None), default=float("inf")
        )

    def pidfds(self) -> list[int]:
        """Return the descriptors that become readable when a daemon dies."""
        return [daemon.pidfd for daemon in self.known.values() if daemon.pidfd >= 0]

    def started(self) -> dict[str, Started]:
        """Return those that run or will again, for the record."""
        return {name: started for name, daemon in self.known.items() if (started := daemon.started()) is not None}

    def troubles(self) -> dict[str, str]:
        """Return what is wrong with which."""
        return {f"daemon:{name}": daemon.trouble for name, daemon in self.known.items() if daemon.trouble is not None}

    def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """End them all: TERM, and KILL for those that are still there when the grace is over."""
        running = [daemon.child for daemon in self.known.values() if daemon.child is not None]
        for child in running:
            child.send_signal(signal.SIGTERM, to_group=True)
        left = _left_after(running, grace_seconds)
        for child in left:
            child.send_signal(signal.SIGKILL, to_group=True)
        _left_after(left, KILL_SECONDS)
        for daemon in self.known.values():
            if daemon.child is not None and not daemon.child.is_alive():
                daemon.child = None
            daemon.unwatch()
        log.info("daemons stopped", extra={"event": "daemons_stopped", "killed": [child.pid for child in left]})


def log_name(daemon: str) -> str:
    """Return a daemon's name among logs, which no task can have: names have no `@`."""
    return f"daemon@{daemon}"


def _left_after(running: list[Child], seconds: float) -> list[Child]:
    deadline = time.monotonic() + seconds
    while (left := [child for child in running if child.is_alive()]) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    return left


def _await_program(pid: int) -> None:
    """Return when a process has become the program that it is about to become, or after a while."""
    deadline = time.monotonic() + EXECUTING_SECONDS
    while process.is_executing(pid) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def _find_marked(settings: DaemonSettings, directory: str, *, is_sure: bool) -> Started | None:
    """Return the daemon that runs here without being on record: the oldest that carries our mark.

    Unless `is_sure`, it must have the command line of the daemon: what a dead one has left behind carries its mark too.
    """
    marks = {f"{MARK}={settings.name}".encode(), b"MAINTLOCK_STATE_DIR=" + os.fsencode(directory)}
    leaders = [stat for stat in process.read_table().values() if stat.sid == stat.pid and not stat.is_dead]
    for stat in leaders:
        _await_program(stat.pid)
    found = [stat for stat in leaders if marks <= {*(process.read_environ(stat.pid) or b"").split(b"\0")}]
    exact = [stat for stat in found if outside.is_command(outside.read_argv(stat.pid), settings.command)]
    candidates = exact or (found if is_sure else [])
    if not candidates:
        return None
    oldest = min(candidates, key=lambda stat: stat.start_ticks)
    identity = process.read_identity(oldest.pid)
    return Started(identity=identity, at=process.started_at(identity) or time.time())
