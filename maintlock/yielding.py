"""`maintlock should-yield`: whether a job with checkpoints should end early, for somebody who needs the lease more (L5)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maintlock import observe, parents, wanted
from maintlock.command import Command, add_places, read_config, read_places, seconds

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

YES, NO = 0, 1


def _arguments(parser: ArgumentParser) -> None:
    add_places(parser)
    parser.add_argument(
        "--after", metavar="D", type=seconds, default=0.0, help="count only requests waiting at least this long (0)"
    )


def _run(said: Namespace) -> int:
    settings = read_config(said)
    places = read_places(said, settings)
    observe.check_places(places)
    own_task = parents.of_environment(os.environ, places.directory)
    return YES if wanted.read_wanted(places, settings, own_task, after_seconds=said.after) else NO


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
