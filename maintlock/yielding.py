"""`maintlock should-yield`: whether a job with checkpoints should end early, for somebody who needs the lease more (L5)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from maintlock import history, observe, parents
from maintlock.command import Command, add_places, read_config, read_places, seconds
from maintlock.ledger import LedgerUnavailable
from maintlock.times import epoch_seconds

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from maintlock.paths import Places
    from maintlock.report import Waiter
    from maintlock.states import TaskState

YES, NO = 0, 1


def is_wanted(
    waiters: Sequence[Waiter],
    tasks: dict[str, TaskState],
    own_task: str | None,
    *,
    now: float,
    after_seconds: float,
    starved_after: float,
) -> bool:
    """Tell whether somebody has waited for `after_seconds`, or another task is starved of the lease."""
    waits = any(now - (epoch_seconds(waiter["since"]) or now) >= after_seconds for waiter in waiters)
    return waits or any(
        state.deferred_since is not None and now - state.deferred_since > starved_after
        for task, state in tasks.items()
        if task != own_task
    )


def should_yield(places: Places, *, after_seconds: float, starved_after: float) -> bool:
    """Read whether somebody needs the lease; what cannot be read is nobody."""
    try:
        tasks = dict(history.read_snapshot(places.directory, lease=places.lease).tasks)
    except LedgerUnavailable:
        tasks = {}
    return is_wanted(
        observe.read_waiters(places),
        tasks,
        parents.of_environment(os.environ, places.directory),
        now=time.time(),
        after_seconds=after_seconds,
        starved_after=starved_after,
    )


def _arguments(parser: ArgumentParser) -> None:
    add_places(parser)
    parser.add_argument(
        "--after", metavar="D", type=seconds, default=0.0, help="count only who has waited that long (0)"
    )


def _run(said: Namespace) -> int:
    settings = read_config(said)
    places = read_places(said, settings)
    observe.check_places(places)
    wanted = should_yield(places, after_seconds=said.after, starved_after=settings.starved_after)
    return YES if wanted else NO


SHOULD_YIELD = Command(
    description="Tell a job with checkpoints whether somebody waits for the lease, or another task is starved of it.",
    epilog="""\
Exit codes: 0 yes, end at the next checkpoint; 1 go on; 77 refused for permissions.

Examples
  while next_batch; do maintlock should-yield --after 1m && break; done
""",
    add_arguments=_arguments,
    run=_run,
)
