"""What happens, as the ledger records it: each event is a flat mapping with an `id` that makes entering it twice harmless.

A grant's beginning and its one end have ids made of its lease id, so that whoever tells of them, the holder or the next
one after a crash, tells the same event. A joined job's presence and end have ids made of its beginning's: where it is still
present when its grant ends, the ledger tells its end itself.
"""

from __future__ import annotations

import os

from maintlock.times import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from maintlock.model import Event, Line
    from maintlock.sidecar import Reading


PRESENT, FINISHED = ":present", ":finished"


def new_id() -> str:
    """Return an id that no other event has."""
    return os.urandom(12).hex()


def acquired_id(lease_id: str) -> str:
    """Return the id of a grant's beginning."""
    return f"{lease_id}:acquired"


def end_id(lease_id: str) -> str:
    """Return the id of a grant's one end."""
    return f"{lease_id}:end"


def present_id(started_id: str) -> str:
    """Return the id of a joined job's presence, from that of its beginning."""
    return started_id + PRESENT


def finished_id(started_id: str) -> str:
    """Return the id of a joined job's one end, from that of its beginning."""
    return started_id + FINISHED


def streak_id(lease: str, task: str, last_run: str | None) -> str:
    """Return the id of the one deferral that a streak of the orchestrator's is: it is named by the run that it follows (L5)."""
    return f"{lease}:{task}:held back since {last_run or 'the beginning'}"


def new(event: str, /, *, at: float, lease: str, event_id: str | None = None, **fields: object) -> Event:
    """Return an event; `at` in seconds since the epoch."""
    return {"id": event_id or new_id(), "event": event, "at": rfc3339(at), "lease": lease, **fields}


def acquired(lease: str, line: Line, *, reason: str | None, waited_seconds: float | None) -> Event:
    """Return the beginning of a grant."""
    told = new("acquired", event_id=acquired_id(line.lease_id), at=line.started_at, lease=lease)
    return told | _about(line, reason) | {"seconds": waited_seconds}


def ended(lease: str, line: Line, *, event: str, outcome: str, at: float, reason: str | None = None) -> Event:
    """Return the one end of a grant: `released`, or `stale_cleaned` after a crash."""
    told = new(event, event_id=end_id(line.lease_id), at=at, lease=lease)
    seconds = max(0.0, line.ended_at - line.started_at) if line.ended_at is not None else None
    return told | _about(line, reason) | {"seconds": seconds, "exit_code": line.exit_code, "outcome": outcome}


def _about(line: Line, reason: str | None) -> Event:
    return {
        "task": line.task,
        "lease_id": line.lease_id,
        "fence": line.fence,
        "source": line.source,
        "reason": reason,
        "pid": line.identity.pid,
    }


def of_grant(lease: str, line: Line, fields: Mapping[str, Any] | None, *, now: float) -> list[Event]:
    """Return beginning and end of a grant that somebody else held, from its line and, where there is one, its sidecar.

    An end that stands in the line is told as it was; a job that we became (`exec`) ended unseen; any other was lost.
    """
    reason = fields["reason"] if fields else None
    begun = acquired(lease, line, reason=reason, waited_seconds=fields["waited_seconds"] if fields else None)
    if line.outcome:
        at = line.started_at if line.ended_at is None else line.ended_at
        return [begun, ended(lease, line, event="released", outcome=line.outcome, at=at, reason=reason)]
    if line.mode == "exec":
        return [begun, ended(lease, line, event="released", outcome="unknown", at=now, reason=reason)]
    return [begun, ended(lease, line, event="stale_cleaned", outcome="lost", at=now, reason=reason)]


def of_last_grant(lease: str, line: Line | None, reading: Reading, beside: Line | None, *, now: float) -> list[Event]:
    """Return all that the records of the last grant tell the next holder.

    `beside` is the grant that the sidecar describes, where the line does not know it (a recreated lock file).
    """
    same = line is not None and reading.lease_id == line.lease_id
    told = [] if line is None else of_grant(lease, line, reading.fields if same else None, now=now)
    if beside is not None:
        return told + of_grant(lease, beside, reading.fields, now=now)
    swept = reading.state != "missing" and (line is None or bool(line.outcome) or not same)
    return [*told, new("stale_cleaned", at=now, lease=lease)] if swept else told
