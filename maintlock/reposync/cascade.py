"""What runs after a pull: a configured task, started as a part of the job that we are in (R7)."""

from __future__ import annotations

import subprocess
import tempfile
from typing import TYPE_CHECKING

from maintlock import launch, outcome, parents, signals, terminal, tokens
from maintlock.config import ttl_seconds
from maintlock.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_SIGNAL_BASE, UnavailableError
from maintlock.model import record
from maintlock.reposync.git import has_ended

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maintlock.config import Config, TaskSettings
    from maintlock.signals import Signals

OWN_TASK = "primary-dev-sync"
BY_TERMINAL = frozenset({signals.INT, signals.QUIT, signals.CONT})  # by the terminal, or the shell on it, to the group
PASSED_ON = (signals.ENDING | {signals.CONT}) - {signals.CLOSED}
STDERR = 2


@record(frozen=True, kw_only=True)
class Ending:
    """How a task ended: `outcome` as its wrapper tells it, or `unknown`; `signal` is what we have passed on, or 0."""

    outcome: str
    exit_code: int
    signal: int = 0

    @property
    def is_success(self) -> bool:
        """Whether it has run, to its end, with exit code 0: nothing else pays a debt (L3)."""
        return self.outcome == "completed" and self.exit_code == 0


def reason_text(parent: str | None) -> str:
    """Return why a task runs that a pull has made necessary: it names the task that we are."""
    return f"cascaded-from-{parent or OWN_TASK}"


def ending_of(fields: Mapping[str, object], status: int, *, signal: int = 0) -> Ending:
    """Return how a task ended, from its outcome file (empty: there is none to be read) and its wrapper's exit status."""
    code = EXIT_SIGNAL_BASE - status if status < 0 else status
    told = fields.get("outcome")
    if told == "deferred":
        return Ending(outcome="deferred", exit_code=code, signal=signal)
    if told == "completed" and code == 0:
        return Ending(outcome="completed", exit_code=0, signal=signal)
    return Ending(outcome=told if isinstance(told, str) else "unknown", exit_code=code or 1, signal=signal)


def exit_code_of(endings: Mapping[str, Ending], *, has_failed_root: bool) -> int:
    """Return our exit code: that of the first task that failed, else 1 for a root that failed; a deferral is no failure."""
    for ending in endings.values():
        if ending.outcome != "deferred" and not ending.is_success:
            return ending.exit_code
    signal = next((ending.signal for ending in endings.values() if ending.signal), 0)
    return EXIT_SIGNAL_BASE + signal if signal else int(has_failed_root)


def run_task(
    task: TaskSettings,
    settings: Config,
    *,
    directory: str,
    environ: Mapping[str, str],
    watch: Signals,
    more_options: tuple[str, ...] = (),
    is_stdout_ours: bool = False,
) -> Ending:
    """Run a task under its lease, which is joined where it is our job's, and return how it ended.

    Raises:
        UnavailableError: There is no place for its outcome.
    """
    argv = launch.wrap_arguments(
        task,
        directory=directory,
        ttl_seconds=ttl_seconds(settings, task.lease, task),
        reason=reason_text(parents.of_environment(environ, directory)),
    )
    try:
        with tempfile.TemporaryDirectory(prefix="maintlock-") as private:
            path = f"{private}/outcome.json"
            argv[1:1] = [f"--outcome={path}", *more_options]
            status, signal = _run(
                argv,
                cwd=task.cwd or settings.directory,
                environ=tokens.merged(environ, task.env),
                watch=watch,
                stdout=STDERR if is_stdout_ours else None,
            )
            return ending_of(outcome.read(path), status, signal=signal)
    except OSError as error:
        raise UnavailableError(f"{task.name}: cannot be run: {error.filename or ''}: {error.strerror}") from error


def _run(
    argv: list[str], *, cwd: str | None, environ: Mapping[str, str], watch: Signals, stdout: int | None
) -> tuple[int, int]:
    """Run the wrapper and pass signals on; return its exit status, and the last signal that should have ended us."""
    watch.check()
    is_foreground = terminal.is_foreground()
    try:
        # As the wrapper does with a job: in the foreground of a terminal all are of one group, for its signals.
        group = None if is_foreground else 0
        child = subprocess.Popen(argv, cwd=cwd, env=dict(environ), stdout=stdout, process_group=group)
    except OSError as error:
        if error.filename != argv[0]:
            raise
        return (EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE), 0
    last = 0
    while not has_ended(child):
        for number in watch.wait(None):
            if number in signals.ENDING:
                last = number
            if number in PASSED_ON and not (is_foreground and number in BY_TERMINAL):
                child.send_signal(number)
    return child.wait(), last
