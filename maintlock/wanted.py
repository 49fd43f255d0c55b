"""Whether somebody needs the lease more than who has it: a job with checkpoints then ends early (L5)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from maintlock import history, observe
from maintlock.ledger import LedgerUnavailable
from maintlock.settings import TaskSettings
from maintlock.standing import is_starved
from maintlock.times import epoch_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from maintlock.paths import Places
    from maintlock.report import Waiter
    from maintlock.settings import Config
    from maintlock.states import TaskState


def is_wanted(
    waiters: Sequence[Waiter],
    states: Mapping[str, TaskState],
    config: Config,
    own_task: str | None,
    *,
    now: float,
    after_seconds: float,
) -> bool:
    """Tell whether somebody has waited for `after_seconds`, or another task is starved of the lease."""
    waits = any(now - (epoch_seconds(waiter["since"]) or now) >= after_seconds for waiter in waiters)
    return waits or any(
        is_starved(config.tasks.get(name) or TaskSettings(name=name), state, now, config.starved_after)
        for name, state in states.items()
        if name != own_task
    )


def read_wanted(places: Places, config: Config, own_task: str | None, *, after_seconds: float = 0.0) -> bool:
    """Read whether somebody needs the lease; what cannot be read is nobody."""
    try:
        states = history.read_snapshot(places.directory, lease=places.lease).tasks
    except LedgerUnavailable:
        states = {}
    waiters = observe.read_waiters(places)
    return is_wanted(waiters, states, config, own_task, now=time.time(), after_seconds=after_seconds)
