"""`maintlock-wrap`: run a command under the lease, or stand back.

Until the job has started only what that needs is imported; what it costs is measured in docs/performance.md.
"""

from __future__ import annotations

import os
import sys
import time

from maintlock import flock, lease, options, process, signals, tokens
from maintlock.errors import CommandError, Interrupted, MaintlockError, UsageError
from maintlock.job import DEFAULT_GRACE_SECONDS, Job, Settings
from maintlock.program import (
    Wish,
    at_edge,
    clear_outcome,
    finish,
    granted,
    print_about,
    read_command_line,
    read_environ,
    write_not_run,
)
from maintlock.spawn import become
from maintlock.terminal import is_foreground

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from maintlock.lease import Joined, Lease
    from maintlock.voice import Voice


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code."""
    return at_edge(lambda voice: _run(sys.argv[1:] if argv is None else argv, voice))


def _run(argv: Sequence[str], voice: Voice) -> int:
    said = read_command_line(argv, options.WRAP, voice)
    if said.help or said.version:
        return print_about(said, "maintlock-wrap")
    watch = signals.Signals(voice)
    clear_outcome(said)
    wish, grant, began = None, None, time.monotonic()
    try:
        options.check_together(said)
        wish = Wish(said, read_environ(), voice)
        _check_limit(wish)
        places = wish.open_places()
        if not said.exec:
            process.become_subreaper()  # before we wait: afterwards the job would wait for what that has to load
        grant = granted(wish, places, watch, mode="exec" if said.exec else "supervised")
        if said.exec:
            _run_exec(wish, grant, watch)
        return _run_job(wish, grant, watch)
    except MaintlockError as error:
        if grant is None:
            write_not_run(said, wish, error, voice, waited_seconds=time.monotonic() - began)
        raise


def _check_limit(wish: Wish) -> None:
    """Refuse to become a command that the configuration limits: nobody would be left to keep the limit.

    Raises:
        UsageError: As for `--max-runtime` on the command line.
    """
    if wish.said.exec and wish.settings is not None and wish.settings.max_runtime is not None:
        raise UsageError(
            f"--exec leaves no process of ours behind to keep the max_runtime of [tasks.{wish.task}] in maintlock.toml; "
            "leave out one of the two"
        )


def _job_settings(wish: Wish) -> Settings:
    said, settings = wish.said, wish.settings
    grace = said.stop_grace if said.stop_grace is not None else settings.stop_grace if settings else None
    limit = said.max_runtime if said.max_runtime is not None else settings.max_runtime if settings else None
    return Settings(
        hold_until=said.hold_until or "session",
        max_runtime_seconds=limit,
        grace_seconds=DEFAULT_GRACE_SECONDS if grace is None else grace,
        passes_descriptor=not said.close,
    )


def _run_job(wish: Wish, grant: Lease | Joined, watch: signals.Signals) -> int:
    job = Job(grant, wish.said.command, _job_settings(wish), watch)
    try:
        watch.check()
        job.start(wish.environ)
    except (CommandError, Interrupted) as error:
        stopped = isinstance(error, Interrupted)
        grant.record_begin()
        finish(wish, grant, "stopped" if stopped else "failed", error.exit_code)
        raise
    grant.record_begin()
    if isinstance(grant, lease.Lease):
        grant.describe_job(job.pid)
    ending = job.run()
    finish(wish, grant, ending.outcome, ending.exit_code)
    interrupted = signals.INT in {ending.signal, *watch.wait(0)} or job.was_interrupted
    if interrupted and (job.shares_group or is_foreground()):
        signals.die_of(signals.INT)  # or a loop around us would go on
    return ending.exit_code


def _run_exec(wish: Wish, grant: Lease | Joined, watch: signals.Signals) -> NoReturn:
    """Become the command. Only a failure to do so returns from here."""
    grant.record_begin()
    kept: int | None
    passed: int | None
    if isinstance(grant, lease.Lease):
        grant.describe_job(os.getpid())
        kept = passed = grant.fd
    else:
        kept, passed = grant.nested_fd, next(iter(flock.inherited(grant.places.lock)), None)
    if kept is not None:
        os.set_inheritable(kept, True)  # noqa: FBT003  the standard library's signature
    try:
        watch.check()
        watch.restore()
        become(wish.said.command, tokens.merged(wish.environ, grant.environment(wish.environ, fd=passed)))
    except (CommandError, Interrupted) as error:
        stopped = isinstance(error, Interrupted)
        finish(wish, grant, "stopped" if stopped else "failed", error.exit_code)
        raise
