"""Which due tasks start in this pass, and why the others do not: at most one heavy one, the most overdue first. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock.model import record
from maintlock.standing import is_starved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from maintlock.orchestrator.cadence import Due
    from maintlock.states import TaskState

SOURCE = "orchestrator"  # of a grant: who asked for it


@record(frozen=True, kw_only=True)
class Gate:
    """What stands in the way of heavy work: `reason_code` as in the ledger, and the task that is to blame, if it is known."""

    reason_code: str
    blocked_by: str | None


@record(frozen=True, kw_only=True)
class Decision:
    """What becomes of a due task: it starts if no gate is shut."""

    due: Due
    gate: Gate | None = None


def gate_of(
    state: str,
    *,
    holder: str | None,
    source: str | None,
    waiters: Sequence[str | None],
    has_survivors: bool = False,
    is_replaced: bool = False,
) -> Gate | None:
    """Return the gate that a lease is, from its state in `status`, who holds it, and who waits for it; None if it is open.

    Held by a job that the orchestrator has started is `backpressure`, by anybody else `lease-held`; survivors of a job, and
    a lock file replaced under its holder, are named as such whoever started it. A waiter goes first: it was started by hand.
    What cannot be seen is left to the wrapper: it asks the kernel, and stands back by itself.
    """
    if state in {"free", "unknown"}:
        return Gate(reason_code="queued", blocked_by=waiters[0]) if waiters else None
    if is_replaced:
        reason_code = "lockfile-replaced"
    elif has_survivors:
        reason_code = "survivors"
    else:
        reason_code = "backpressure" if state == "held" and source == SOURCE else "lease-held"
    return Gate(reason_code=reason_code, blocked_by=holder)


def named(found: Gate | None, ours: Gate | None) -> Gate | None:
    """Return the gate that a lease is, given the one that is `ours`: that of a job of our own for it, whose wrapper lives.

    Where nothing shows who has the lease, and we have a job for it, it is that job, which may be in the queue for it.
    """
    if found is None or ours is None:
        return found or ours
    is_in_queue = found.reason_code == "queued" and found.blocked_by == ours.blocked_by
    return ours if found.blocked_by is None or is_in_queue else found


def decisions(
    dues: Sequence[Due],
    states: Mapping[str, TaskState],
    gates: Mapping[str, Gate | None],
    collision: Gate | None,
    *,
    now: float,
    starved_after: float,
) -> list[Decision]:
    """Decide on every due task, in the order in which they have a right to start (R4, L5).

    `gates` are by lease. Tasks that are not heavy always start. While `collision` stands, nothing heavy does (R8).
    """
    taken: Gate | None = None
    found = []
    for due in sorted(dues, key=lambda due: _precedence(due, states[due.task.name], now, starved_after)):
        gate = (collision or gates.get(due.task.lease) or taken) if due.task.heavy else None
        if gate is None and due.task.heavy:
            taken = Gate(reason_code="backpressure", blocked_by=due.task.name)
        found.append(Decision(due=due, gate=gate))
    return found


def _precedence(due: Due, state: TaskState, now: float, starved_after: float) -> tuple[bool, float, float]:
    """Return what to sort by: the starved first, the longest so; then the most overdue relative to their intervals."""
    starved = is_starved(due.task, state, now, starved_after)
    since = state.deferred_since if state.deferred_since is not None else now
    return (not starved, since if starved else -due.lateness(now), since)
