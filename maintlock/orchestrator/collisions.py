"""Heavy processes outside the lease, as events: told once when they are found, and once when they are gone (R8).

What is told says by its id which processes it is about, so that a successor neither tells it again nor forgets to clear it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from maintlock import events, marks, pending
from maintlock.marks import INHERITED, KINDS, UNLEASED
from maintlock.redact import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from maintlock.custody import Custody
    from maintlock.model import Event
    from maintlock.outside import Outside
    from maintlock.states import Collision

REPLACED = "lockfile_replaced"
MAX_TEXT = 1000
log = logging.getLogger("maintlock.orchestrator")


class Collisions:
    """What has been told of collisions that the ledger cannot say yet, and what we have inherited."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._inherited: frozenset[str] | None = None
        self._told: frozenset[tuple[object, ...]] = frozenset()
        self._told_replaced: set[str] = set()  # ids

    def tell(self, found: Sequence[Outside], known: Mapping[str, Sequence[Collision]] | None, *, now: float) -> None:
        """Tell ledger and log what has changed; nothing while the ledger could not be read once (`known` is None)."""
        if self._inherited is None:
            self._inherited = inherited_marks(found, known or {})
        if known is None:
            return
        wanted = {_key(event): event for event in changes(found, known, self._inherited, now=now)}
        new = [event for key, event in wanted.items() if key not in self._told]
        self._told = frozenset(wanted)
        self._publish(new)

    def tell_replaced(
        self, lease: str, found: Custody, known: Mapping[str, Sequence[Collision]] | None, *, now: float
    ) -> None:
        """Tell ledger and log, once for each grant, of a lock file that was replaced under its holder.

        The event has the id that a request which finds the same gives it; it is cleared by the next grant.
        """
        grant = found.grant
        assert grant is not None  # it is whose file was replaced
        event_id = f"{grant.lease_id}:{REPLACED}"
        is_known = known is not None and any(one.id == event_id for one in known.get(lease, ()))
        if event_id not in self._told_replaced and not is_known:
            self._publish([_event("collision", REPLACED, lease, now, found.replaced, event_id, task=grant.task)])
        self._told_replaced.add(event_id)

    def forget(self) -> None:
        """Forget what the ledger has been told: it is a new one."""
        self._told = frozenset()
        self._told_replaced.clear()

    def _publish(self, told: Sequence[Event]) -> None:
        pending.append(self._directory, told)
        for event in told:
            log.log(
                logging.WARNING if event["event"] == "collision" else logging.INFO,
                "%s: %s",
                event["event"],
                printable(event["detail"] or "", MAX_TEXT),
                extra={"event": event["event"], "kind": event["reason_code"], "task": event["task"]},
            )


def _key(event: Event) -> tuple[object, ...]:
    """Return what is the same whenever the same change is told: all of its id but the moment."""
    return event["event"], event["reason_code"], event["lease"], event["id"].partition("@")[0]


def changes(
    found: Sequence[Outside], known: Mapping[str, Sequence[Collision]], inherited: frozenset[str], *, now: float
) -> list[Event]:
    """Return what is to be told, from what is found now and what the ledger has open.

    `known` is by lease; `inherited` are the marks of those that were there when the orchestrator started, if there were two
    or more: they are told together, at once, as one collision. Any other is told once it has lasted.
    """
    told: list[Event] = []
    for lease in sorted({*known, *(one.lease for one in found)}):
        here = [one for one in found if one.lease == lease]
        is_open = {collision.kind: collision for collision in known.get(lease, ()) if collision.kind in KINDS}
        unleased = is_open.get(UNLEASED)
        later = [one for one in here if mark(one) not in inherited and (one.is_lasting or _is_told(one, unleased))]
        told += _of_kind(INHERITED, [one for one in here if mark(one) in inherited], is_open.get(INHERITED), lease, now)
        told += _of_kind(UNLEASED, later, unleased, lease, now)
    return told


def inherited_marks(found: Sequence[Outside], known: Mapping[str, Sequence[Collision]]) -> frozenset[str]:
    """Return the marks of what an orchestrator that has just started has inherited: two or more, or what it was told of."""
    here = frozenset(mark(one) for one in found) if len(found) > 1 else frozenset()
    ids = [collision.id for open_now in known.values() for collision in open_now if collision.kind == INHERITED]
    return here.union(*(marks.within(event_id) for event_id in ids))


def mark(one: Outside) -> str:
    """Return what names one process, and never another."""
    return marks.of(one.stat)


def _of_kind(kind: str, found: Sequence[Outside], known: Collision | None, lease: str, now: float) -> list[Event]:
    if not found:
        return [_event("collision_cleared", kind, lease, now, known.detail, f"{known.id}:cleared")] if known else []
    detail = f"{' and '.join(str(one) for one in found)} outside the lease"
    new = [one for one in found if not _is_told(one, known)]
    if not new:
        return []
    about = [new] if kind == INHERITED else [[one] for one in new]
    ids = [marks.event_id(kind, [one.stat for one in some], round(now * 1000)) for some in about]
    return [
        _event("collision", kind, lease, now, detail, event_id, task=some[0].task, pid=some[0].stat.pid)
        for event_id, some in zip(ids, about, strict=True)
    ]


def _is_told(one: Outside, known: Collision | None) -> bool:
    return known is not None and mark(one) in marks.within(known.id)


def _event(
    name: str,
    kind: str,
    lease: str,
    now: float,
    detail: str | None,
    event_id: str,
    *,
    task: str | None = None,
    pid: int | None = None,
) -> Event:
    about = {"task": task, "pid": pid, "reason": detail, "reason_code": kind, "detail": detail}
    return events.new(name, event_id=event_id, at=now, lease=lease, **about)
