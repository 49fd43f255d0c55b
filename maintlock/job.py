"""One job: start it, pass signals on, wait for its leftovers, stop it.

    running ──main process ended──> lingering ──leftovers gone──> closing ──joined jobs gone──> over

In each phase the loop waits for a signal or the next deadline, reaps, and looks whether the phase is over.
"""

from __future__ import annotations

import os
import time

from maintlock import flock, process, signals, spawn, terminal, tokens
from maintlock.ending import STOPPED_BY, Ending, ending
from maintlock.errors import EXIT_SIGNAL_BASE
from maintlock.lease import Joined, Lease
from maintlock.members import Members
from maintlock.model import record
from maintlock.times import duration_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from maintlock.process import Stat
    from maintlock.signals import Signals

DEFAULT_GRACE_SECONDS = 10.0
NAME_LEFTOVERS_SECONDS = 1.0
LOOK_SECONDS = 0.2  # leftovers are our children and tell us of their end; this is for those that leave the session
KILL_AGAIN_SECONDS = 0.05
TO_MAIN_ONLY = frozenset({signals.USR1, signals.USR2})  # their default action would kill helpers that expect none
TERMINAL_STOPS = frozenset({signals.TSTP, signals.TTIN, signals.TTOU})


@record(frozen=True, kw_only=True)
class Settings:
    """How to run a job."""

    hold_until: str
    max_runtime_seconds: float | None
    grace_seconds: float
    passes_descriptor: bool


class Job:
    """The command and all that it leaves behind, run under a grant."""

    def __init__(self, grant: Lease | Joined, command: Sequence[str], settings: Settings, watch: Signals) -> None:
        self.grant = grant
        self.command = command
        self.settings = settings
        self.watch = watch
        self.shares_group = terminal.is_foreground()
        self.gave_terminal = False
        self.was_continued = False
        self.was_interrupted = False  # after the main process had ended: that was meant for us
        self.members = Members(grant, settings.hold_until)
        self.pid = 0
        self.status: int | None = None
        self.has_children = True
        self.reaped = 0
        self.passed_on: set[int] = set()
        self.by_terminal: set[int] = set()
        self.timed_out = False
        self.kill_at: float | None = None
        self.killing = False
        self.name_at: float | None = None
        self.overdue_at: float | None = None

    def start(self, environ: Mapping[str, str]) -> None:
        """Start the command.

        Raises:
            CommandError: It cannot be started.
        """
        fd = self.grant.fd if isinstance(self.grant, Lease) and self.settings.passes_descriptor else None
        passed = self._inherited_descriptor() if isinstance(self.grant, Joined) else fd
        environ = tokens.merged(environ, self.grant.environment(environ, fd=passed))
        self.watch.leave_stopping_to_job()
        if fd is not None:
            os.set_inheritable(fd, True)  # noqa: FBT003  the standard library's signature
        try:
            own_group = not self.shares_group
            default = [n for n in (signals.PIPE, signals.XFSZ) if n not in self.watch.ignored]
            self.pid = spawn.started(
                self.command, environ, mask=self.watch.inherited_mask, default=default, own_group=own_group
            )
        finally:
            if fd is not None:
                os.set_inheritable(fd, False)  # noqa: FBT003  as above
        if self.settings.max_runtime_seconds is not None:
            self.overdue_at = time.monotonic() + self.settings.max_runtime_seconds

    def _inherited_descriptor(self) -> int | None:
        """Return the descriptor of the lock that we were handed as part of an outer job, unless ours is not to have it."""
        inherited = flock.inherited(self.grant.places.lock)
        if self.settings.passes_descriptor:
            return inherited[0] if inherited else None
        for fd in inherited:
            os.set_inheritable(fd, False)  # noqa: FBT003  as above
        return None

    def run(self) -> Ending:
        """Wait until nothing of the job works any more, and no joined job either."""
        while not self._main_ended():
            self._turn(None)
        self._take_terminal_back()
        self.name_at = time.monotonic() + NAME_LEFTOVERS_SECONDS
        while leftovers := self._leftovers():
            self._name(leftovers)
            self._turn(LOOK_SECONDS)
        self._name_departed()
        if isinstance(self.grant, Lease) and not self.grant.try_exclude_joined():
            joined = self.watch.lock_in_thread(self.grant.nested_fd)
            while not joined.outcome:
                self._turn(None)
        return self._ending()

    # One turn of the loop

    def _turn(self, at_most: float | None) -> None:
        deadlines = [at for at in (self.kill_at, self.overdue_at) if at is not None]
        left = [max(0.0, at - time.monotonic()) for at in deadlines]
        numbers = self.watch.wait(min([*left, *([] if at_most is None else [at_most])], default=None))
        if self.shares_group and signals.TSTP in numbers:
            numbers = [number for number in numbers if number != signals.CONT]  # as below: the Ctrl-Z is newer
        for number in numbers:
            self._on_signal(number)
        now = time.monotonic()
        if self.overdue_at is not None and now >= self.overdue_at:
            self.overdue_at, self.timed_out = None, True
            self._say_overdue()
            self._stop(now)
        if self.kill_at is not None and now >= self.kill_at:
            self.killing = True
            self.kill_at = now + KILL_AGAIN_SECONDS
            self._send_to_all(signals.KILL)

    def _on_signal(self, number: int) -> None:
        if number in {signals.CHLD, signals.WOKEN}:
            return
        if number in {signals.INT, signals.QUIT} and self.shares_group:
            self.by_terminal.add(number)  # the terminal has delivered it to the job too
            self.was_interrupted = self.was_interrupted or (number == signals.INT and self.status is not None)
            return
        if number == signals.TSTP:
            self._on_tstp()
            return
        if number == signals.CONT and self.was_continued:
            self.was_continued = False
            return
        if number == signals.CONT and self.shares_group:
            self._on_cont()
            return
        self.passed_on.add(number)
        self._pass_on(number)
        if number == signals.TERM and self.kill_at is None:
            self.kill_at = time.monotonic() + self.settings.grace_seconds

    def _on_cont(self) -> None:
        """Continue the job, unless a Ctrl-Z has come since: that has stopped the job too, and is the newer wish."""
        later = self.watch.wait(0)
        if signals.TSTP not in later:
            self.passed_on.add(signals.CONT)
            self._pass_on(signals.CONT)
        for number in later:
            self._on_signal(number)

    def _main_ended(self) -> bool:
        while self.has_children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                self.has_children = False
                break
            if pid == 0:
                break
            if os.WIFSTOPPED(status):
                if pid == self.pid and self.status is None:
                    self._on_stop(os.WSTOPSIG(status))
                continue
            self.reaped += 1
            if pid == self.pid:
                self.status = status
        return self.status is not None

    # Ctrl-Z, `fg` and `bg`

    def _on_tstp(self) -> None:
        """Have the job stop, which has got this from the terminal too if it shares our group; then we stop with it."""
        if not self.shares_group:
            self._send_to_all(signals.TSTP)
        if self.status is not None:
            self.watch.stop(signals.TSTP)

    def _on_stop(self, number: int) -> None:
        """Stop as the job has, so that the shell gives its prompt back; it was the terminal's signal, or the job's own.

        A job in a group of its own that reads or sets the terminal is stopped for that also when we are in the foreground
        by now (`fg`): then the terminal is handed to it.
        """
        if number not in TERMINAL_STOPS or terminal.foreground_group() is None:
            return
        is_about_terminal = number != signals.TSTP
        if not self.shares_group and is_about_terminal and terminal.is_foreground() and terminal.give_to(self.pid):
            self.gave_terminal = True
            self.by_terminal |= {signals.INT, signals.QUIT}
            self._send_to_all(signals.CONT)
        else:
            if self.shares_group:
                self._forget_cont()
            self.watch.stop(number, whole_group=not self.shares_group and (is_about_terminal or self.gave_terminal))
            self.was_continued = self._was_continued_too()

    def _forget_cont(self) -> None:
        """Handle what has come except CONT, which is older than the job's stop: passed on later, it would undo the next one."""
        for number in self.watch.wait(0):
            if number != signals.CONT:
                self._on_signal(number)

    def _was_continued_too(self) -> bool:
        """Tell whether the shell continued the job along with us; passed on, its CONT might come after the next Ctrl-Z."""
        stat = process.read_stat(self.pid) if self.shares_group else None
        return stat is not None and not stat.is_stopped

    def _take_terminal_back(self) -> None:
        if self.gave_terminal and terminal.foreground_group() == self.pid:
            terminal.give_to(os.getpgrp())

    # Who belongs to the job

    def _leftovers(self) -> list[Stat]:
        """Return what keeps the lease although the job's main process has ended.

        A process that forks and ends while the table is read may hide its child from us; then it was ours to reap, and we
        look again.
        """
        self._main_ended()
        if isinstance(self.grant, Joined) or self.settings.hold_until == "main":
            return self.members.living(self.pid) if self.killing or self.timed_out else []
        while self.has_children or not self.members.is_subreaper:  # as subreaper we get every orphan as our child
            reaped = self.reaped
            found = self.members.living(self.pid)
            self._main_ended()
            if found or self.reaped == reaped:
                return found
            self._turn(0)
        return []

    # Stopping

    def _stop(self, now: float) -> None:
        self._send_to_all(signals.TERM)
        self._send_to_all(signals.CONT)
        self.kill_at = now + self.settings.grace_seconds

    def _pass_on(self, number: int) -> None:
        is_alive = self.status is None  # not reaped yet: the pid is still the job's
        is_for_main = number in TO_MAIN_ONLY or (is_alive and self.shares_group and number != signals.TERM)
        if not is_for_main:
            self._send_to_all(number)
        elif is_alive:
            _send(os.kill, self.pid, number)

    def _send_to_all(self, number: int) -> None:
        members = self.members.living(self.pid, proven=True)
        if self.status is None:
            main = process.read_stat(self.pid)
            if main is not None and main.pid not in {stat.pid for stat in members}:
                members.append(main)
        if not self.shares_group and any(stat.pgid == self.pid for stat in members):
            _send(os.killpg, self.pid, number)
            members = [stat for stat in members if stat.pgid != self.pid]
        elif not members and self.status is None:
            _send(os.kill, self.pid, number)  # no process table here: the main process at least
        for stat in members:
            process.send_signal(stat, number)

    # What we say

    def _say_overdue(self) -> None:
        limit = duration_text(self.settings.max_runtime_seconds or 0.0)
        self.watch.tell("timeout", f"{self.grant.request.task} exceeded its maximum run time of {limit}; stopping it")

    def _name(self, leftovers: list[Stat]) -> None:
        if self.name_at is not None and time.monotonic() >= self.name_at:
            self.name_at = None
            self.watch.tell(
                "leftovers",
                f"{self.grant.request.task}: its main process has ended; the lease is kept until these processes end too: "
                + ", ".join(f"{stat.name} (pid {stat.pid})" for stat in leftovers[:12]),
                pids=[stat.pid for stat in leftovers],
            )

    def _name_departed(self) -> None:
        if self.has_children and self.watch.voice.verbosity > 0 and (departed := self.members.below()):
            self.watch.tell(
                "departed",
                f"{self.grant.request.task}: still running in its own session, without keeping the lease: "
                + ", ".join(f"{stat.name} (pid {stat.pid})" for stat in departed[:12]),
                verbose=True,
                pids=[stat.pid for stat in departed],
            )

    def _ending(self) -> Ending:
        status = self.status
        assert status is not None  # the main process has ended, or we would not be here
        died_of = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        late = signals.ENDING.intersection(self.watch.wait(0))  # the job may have died of it before we looked
        if self.shares_group:
            self.by_terminal |= late
        if died_of:  # `stop` tells us and the job, and may have killed it before we ran
            self.passed_on |= late & (STOPPED_BY if not self.shares_group else {signals.TERM})
        self.was_interrupted = self.was_interrupted or (signals.INT in late and not self.shares_group)
        code = EXIT_SIGNAL_BASE + died_of if died_of else os.WEXITSTATUS(status)
        return ending(
            code,
            died_of,
            passed_on=frozenset(self.passed_on),
            by_terminal=frozenset(self.by_terminal),
            timed_out=self.timed_out,
        )


def _send(send: Callable[[int, int], None], pid: int, number: int) -> None:
    """Send a signal; that its target has just ended, or has become somebody else's (sudo), is no fault of ours."""
    try:
        send(pid, number)
    except OSError:
        pass
