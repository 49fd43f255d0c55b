"""`maintlock health` and `maintlock tasks`: as JSON for programs, as tables for people."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from maintlock import config
from maintlock.command import Command, add_places, read_config, read_places
from maintlock.errors import ConfigError, UnavailableError
from maintlock.orchestrator.health import DEGRADED, HEALTHY, UNKNOWN, Health, judged, read, read_health

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

EXIT_CODES = {HEALTHY: 0, DEGRADED: 1, UNKNOWN: 2}


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    add_places(parser)


def _read(said: Namespace) -> Health:
    """Return how everything is, as far as can be known; an invalid configuration is a reason, and not the end of it."""
    try:
        settings = read_config(said)
    except ConfigError as error:
        settings = config.load(None)
        return read_health(read_places(said, settings), settings, bad_config=str(error))
    return read_health(read_places(said, settings), settings)


def _run_health(said: Namespace) -> int:
    found = _read(said)
    if said.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        from maintlock import healthtable, tables

        tables.write(healthtable.of_health(found, time.time()))
    return EXIT_CODES[found["status"]]


def _run_tasks(said: Namespace) -> int:
    settings = read_config(said)
    readings = read(read_places(said, settings), settings)
    found = judged(readings, settings)["tasks"]
    if said.json:
        sys.stdout.write(json.dumps({"tasks": found}) + "\n")
    else:
        from maintlock import healthtable, tables

        tables.write(healthtable.of_tasks(found, time.time()))
    if readings.trouble is not None:  # then only the settings are known
        raise UnavailableError(readings.trouble)
    return 0


HEALTH = Command(
    description="Tell whether all is well: the lease, each task, each daemon, the orchestrator.",
    epilog="""\
A task that stands back is healthy; one that has stood back for too long is starved. Where
maintlock.toml is invalid, that is given as a reason; everything else known is still shown.

Exit codes: 0 healthy; 1 degraded, and why; 2 unknown, it cannot be told; 77 state
directory or configuration could be somebody else's: nothing of them is read.

Examples
  maintlock health
  maintlock health --json | jq .reasons
  maintlock health >/dev/null || notify-send "maintenance needs a look"
""",
    add_arguments=_arguments,
    run=_run_health,
)

TASKS = Command(
    description="Tell how each task stands: when it ran, when it is due, and what holds it back.",
    epilog="""\
States, the first that applies
  running   it has the lease, or takes part in a job that has it
  starved   held back for longer than starved_after (2h)
  failing   its last run failed, timed out or was lost
  overdue   no success for two intervals
  deferred  held back, but not for long
  resting   its last run has just ended
  idle      none of these

Tasks known only from the history are listed as not configured; health ignores them.

Exit codes: 0; 73 the history cannot be read: then only the settings are known.

Examples
  maintlock tasks
  maintlock tasks --json | jq '.tasks.kbSync.next_due_at'
""",
    add_arguments=_arguments,
    run=_run_tasks,
)
