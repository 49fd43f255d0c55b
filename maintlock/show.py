"""`maintlock status` and `maintlock history`: as JSON for programs, as tables for people."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from maintlock import observe
from maintlock.command import Command, add_places, count, read_config, read_places, seconds, task_name
from maintlock.entries import EVENTS, PUBLIC
from maintlock.errors import UsageError
from maintlock.ledger import LedgerUnavailable
from maintlock.names import DEFAULT_LEASE
from maintlock.voice import Voice

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from maintlock.config import Config
    from maintlock.model import Event
    from maintlock.paths import Places

EXIT_CODES = {"free": 0, "held": 1, "orphaned": 1, "unknown": 2}
ROWS_FOR_PEOPLE = 50
WATCH_SECONDS = 1.0
MIN_WATCH_SECONDS = 0.1


def _add_status_arguments(parser: ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object on one line")
    form.add_argument("--watch", action="store_true", help="keep it up to date, until q or Ctrl-C")
    parser.add_argument("--interval", metavar="D", type=seconds, help="with --watch: refresh every D (1s)")
    parser.add_argument(
        "--exit-code",
        action="store_true",
        help="exit 0 if the lease is free, 1 if held or orphaned, 2 if unknown; with --watch: as it was last",
    )
    add_places(parser)


def _run_status(said: Namespace) -> int:
    if said.watch:
        return _watch(said)
    if said.interval is not None:
        raise UsageError("--interval goes with --watch; see: maintlock status --help")
    settings = read_config(said)
    places = read_places(said, settings)
    found = observe.read_status(places, time.time())
    if said.lease is not None and not _is_known(places, settings):
        Voice().tell("unused", f"no lease named {said.lease} is configured, or was ever used here")
    if said.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        from maintlock import tables

        tables.write_status(found, time.time())
    return EXIT_CODES[found["state"]] if said.exit_code else 0


def _is_known(places: Places, settings: Config) -> bool:
    """Tell whether a lease was used or is configured: a name that is mistyped is free, too."""
    configured = {DEFAULT_LEASE, *settings.leases, *(task.lease for task in settings.tasks.values())}
    return places.lease in configured or os.path.lexists(places.lock) or os.path.lexists(places.sidecar)


def _watch(said: Namespace) -> int:
    interval = WATCH_SECONDS if said.interval is None else said.interval
    if interval < MIN_WATCH_SECONDS:
        raise UsageError(f"--interval: expected at least {MIN_WATCH_SECONDS:g}s")
    from maintlock.watch import watch

    code, state = watch(read_places(said), interval)
    return EXIT_CODES[state] if said.exit_code and not code else code


def _add_history_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--task", metavar="NAME", type=task_name, help="of this task only")
    known = sorted(EVENTS)
    parser.add_argument("--event", metavar="EVENT", choices=known, help=f"of this kind only: {', '.join(known)}")
    parser.add_argument("--since", metavar="D", type=seconds, help="only the last D: 90s 10m 2h 1d")
    parser.add_argument(
        "--limit", metavar="N", type=count, help=f"the newest N (with --json: all, else {ROWS_FOR_PEOPLE})"
    )
    add_places(parser, lease_help="of this lease only")


def _run_history(said: Namespace) -> int:
    rows, trouble = _read_history(said)
    if said.json:
        sys.stdout.writelines(json.dumps(row) + "\n" for row in rows)
    elif rows or trouble is None:
        from maintlock import tables

        is_selection = said.limit == 0 or any((said.task, said.event, said.lease, said.since is not None))
        tables.write_history(rows, is_selection=is_selection)
    if trouble is not None:
        raise trouble
    return 0


def _read_history(said: Namespace) -> tuple[list[Event], LedgerUnavailable | None]:
    """Return what can be read: without the ledger that is what waits for it, and why it is not all."""
    places = read_places(said)
    if not observe.check_places(places):
        return [], None
    read = partial(
        observe.read_history,
        places.directory,
        lease=said.lease,
        task=said.task,
        event=said.event,
        since=None if said.since is None else time.time() - said.since,
        limit=said.limit if said.json or said.limit is not None else ROWS_FOR_PEOPLE,
        fields=PUBLIC if said.json else (*PUBLIC, "result"),
    )
    try:
        return read(), None
    except LedgerUnavailable as error:
        return read(is_entered_too=False), error


STATUS = Command(
    description="Show who has the lease. Looking takes no lock, so no job stands back because of it.",
    epilog="""\
States
  free      nobody has it
  held      a job has it, or somebody unknown
  orphaned  the holder is dead, but parts of its job keep running
  unknown   it cannot be seen from here

Examples
  maintlock status
  maintlock status --json | jq .holder.task
  maintlock status --watch
  maintlock status --exit-code >/dev/null && echo free
""",
    add_arguments=_add_status_arguments,
    run=_run_status,
)

HISTORY = Command(
    description="Show what happened, oldest first.",
    epilog="""\
Examples
  maintlock history --since 1d
  maintlock history --task kbSync --event deferred
  maintlock history --json --limit 1000 | jq 'select(.outcome == "failed")'
""",
    add_arguments=_add_history_arguments,
    run=_run_history,
)
