"""`maintlock orchestrate`: the scheduler as a program."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from maintlock import paths
from maintlock.command import Command, add_state, read_config
from maintlock.errors import ConfigError
from maintlock.logs import log_as_json, log_as_text
from maintlock.names import DEFAULT_LEASE
from maintlock.orchestrator.daemons import STOP_GRACE_SECONDS
from maintlock.orchestrator.instance import Instance
from maintlock.orchestrator.loop import Orchestrator
from maintlock.orchestrator.waker import Waker

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

LOGGERS = {"text": log_as_text, "json": log_as_json}
STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
LOOK_SECONDS = 0.05
ASKED_SECONDS = 0.1  # between two looks at whether what was just started has got its lease
log = logging.getLogger("maintlock.orchestrator")


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="make one pass, and exit")
    parser.add_argument("--stop-jobs", action="store_true", help="on exit, also stop the jobs it started")
    parser.add_argument("--stop-daemons", action="store_true", help="on exit, also stop the daemons")
    parser.add_argument(
        "--log-format", choices=sorted(LOGGERS), default="json", help="how to log on standard error (json)"
    )
    add_state(parser)


def _run(said: Namespace) -> int:
    waker = Waker()
    config = read_config(said)
    if config.path is None:
        raise ConfigError("no maintlock.toml here or above: it says what is to run when; to make one: maintlock init")
    directory = paths.state_directory(said.state_dir, os.environ, config.state_dir)
    paths.open_state_directory(directory)
    paths.check_records(paths.Places(directory=directory, lease=DEFAULT_LEASE))
    instance = Instance(directory)
    LOGGERS[said.log_format]()
    orchestrator = Orchestrator(config, directory, instance, is_single_pass=said.once)
    orchestrator.take_over()
    if said.once:
        orchestrator.run_pass()
        _settle(orchestrator, waker)
    else:
        _loop(orchestrator, waker)
    _leave(orchestrator, waker, said)
    return 0


def _loop(orchestrator: Orchestrator, waker: Waker) -> None:
    """Pass after pass, until TERM or INT."""
    poll_deadline = 0.0
    while True:
        now = time.monotonic()
        if now >= poll_deadline:
            poll_deadline = now + orchestrator.config.poll_interval
            orchestrator.run_pass()
        until = min(poll_deadline, orchestrator.daemons.next_start_deadline()) - time.monotonic()
        if orchestrator.jobs.is_asking():
            until = min(until, ASKED_SECONDS)
        numbers = waker.wait(max(0.0, until), orchestrator.daemons.pidfds())
        if numbers & STOPPING:
            return
        if signal.SIGHUP in numbers:
            orchestrator.reload()
            poll_deadline = 0.0
        elif time.monotonic() < poll_deadline:
            orchestrator.tend()
            orchestrator.write_record()


def _settle(orchestrator: Orchestrator, waker: Waker) -> None:
    """Give what a single pass has started the time to get its lease or to be refused, and tell of that."""
    while orchestrator.jobs.is_asking() and not waker.wait(LOOK_SECONDS) & STOPPING:
        orchestrator.troubles.attempt("jobs", orchestrator.tend_jobs)
    orchestrator.write_record()


def _leave(orchestrator: Orchestrator, waker: Waker, said: Namespace) -> None:
    """Stop scheduling. What runs, runs on under supervisors of its own, unless it is to be stopped; a second TERM waits for none."""
    if said.stop_jobs:
        orchestrator.jobs.stop()
        while orchestrator.jobs.recorded():
            orchestrator.troubles.attempt("jobs", lambda: orchestrator.jobs.stop_orphaned(orchestrator.config.tasks))
            if waker.wait(LOOK_SECONDS) & STOPPING:
                break
            orchestrator.troubles.attempt("jobs", orchestrator.tend_jobs)
    if said.stop_daemons:
        orchestrator.daemons.stop()
    orchestrator.ledger.close()
    orchestrator.write_record(stopped_at=time.time())
    log.info("stopped", extra={"event": "stopped", "running": sorted(orchestrator.jobs.recorded())})
    sys.stderr.flush()


ORCHESTRATE = Command(
    description="Start due tasks, never two heavy ones, and keep daemons alive outside the lease, as maintlock.toml says.",
    epilog=f"""\
TERM ends it: jobs and daemons run on, and the next orchestrator adopts them. With --stop-jobs each job is
stopped as its task says; with --stop-daemons each daemon gets TERM, and KILL {STOP_GRACE_SECONDS:g}s later. HUP
reloads the configuration; an invalid one is reported, and the old one stays.

What a task prints is in logs/TASK.log below the state directory, that of its run before in logs/TASK.log.1;
what a daemon prints is in logs/daemon@NAME.log.

Exit codes: 0 ended by TERM or INT, or after --once; 75 another one runs here; 78 the configuration is invalid.

Examples
  maintlock orchestrate
  maintlock orchestrate --once
  maintlock orchestrate --log-format text --stop-jobs --stop-daemons
""",
    add_arguments=_arguments,
    run=_run,
)
