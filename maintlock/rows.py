"""What the rows of the ledger's tables say; nothing in them is believed, either."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from maintlock.entries import COLLISION_KINDS, OF_PRESENCE, as_natural, as_seconds, as_text, as_whole
from maintlock.jsontext import encoded_object
from maintlock.states import Collision, Grant, TaskState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from maintlock.tally import Labels

# The columns of `presence`, and those of `tasks` after its key, which are the fields of `TaskState`.
OF_PRESENT = ("id", "lease", "at", "task", "reason", "pid", *OF_PRESENCE)
OF_TASK: tuple[Callable[[object], Any], ...] = (
    *(as_seconds, as_seconds, as_text, as_seconds, as_text, as_seconds, as_seconds, as_seconds),
    *(as_natural, as_seconds, as_seconds, as_text, as_text, as_seconds),
)


def state_of(row: Sequence[object]) -> TaskState:
    """Return the state of a task from its row."""
    return TaskState(*[typed(value) for typed, value in zip(OF_TASK, row, strict=True)])


def collisions_of(rows: Iterable[Sequence[object]]) -> list[Collision]:
    """Return the collisions among rows."""
    typed = [(as_text(kind), as_text(told), as_seconds(since), as_text(detail)) for kind, told, since, detail in rows]
    return [
        Collision(kind, told or "", since, detail)
        for kind, told, since, detail in typed
        if kind is not None and kind in COLLISION_KINDS and since is not None
    ]


def grant_of(row: Sequence[object]) -> Grant:
    """Return an open grant from its row."""
    lease_id, fence, task, source, reason, pid = row
    return Grant(str(lease_id), as_natural(fence), as_text(task), as_text(source), as_text(reason), as_whole(pid))


@lru_cache(maxsize=4096)
def labels_of(text: object) -> Labels | None:
    """Return a counter's labels from their text, or None where it is none."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return None
    return tuple(sorted(found.items()))


@lru_cache(maxsize=4096)
def labels_text(labels: Labels) -> str:
    """Return a counter's labels as its row has them."""
    return encoded_object(dict(labels))
