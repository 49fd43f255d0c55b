"""What the ledger keeps of an event: its entry, with every field there and typed. Whoever wrote the event is not trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maintlock.events import acquired_id, end_id
from maintlock.names import is_lease_name
from maintlock.times import epoch_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

Entry = dict[str, Any]

MAX_TEXT = 4000
END_OF_TIME = 253_402_300_800.0  # the year 10000, which RFC 3339 cannot write

EVENTS = frozenset(
    "acquired released deferred nested_started nested_finished token_stale stale_cleaned survivors"
    " collision collision_cleared stop_requested".split()
)
PRESENCE = frozenset({"present", "absent"})
RELEASE_OUTCOMES = frozenset("completed failed timed_out stopped unknown".split())
RESULTS = RELEASE_OUTCOMES | {"lost"}
FAILURES = frozenset({"failed", "timed_out", "lost"})
REASON_CODES = frozenset("lease-held queued wait-timeout survivors lockfile-replaced backpressure collision".split())
COLLISION_KINDS = frozenset({"unleased_process", "inherited", "lockfile_replaced"})


def as_text(value: object) -> str | None:
    """Return a text as SQLite takes it and no longer than `MAX_TEXT`, or None."""
    if not isinstance(value, str):
        return None
    # SQLite takes no lone surrogates, which is what JSON and file names can bring.
    return value[:MAX_TEXT] if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")[:MAX_TEXT]


def as_whole(value: object) -> int | None:
    """Return a whole number that JSON and SQLite can both carry, or None."""
    return value if type(value) is int and abs(value) < 2**53 else None


def as_natural(value: object) -> int:
    """Return a whole number that is not negative, 0 for anything else."""
    return max(0, as_whole(value) or 0)


def as_seconds(value: object) -> float | None:
    """Return a duration, or a moment since the epoch, in seconds, or None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value < END_OF_TIME else None


def _as_moment(value: object) -> float | None:
    at = epoch_seconds(value) if isinstance(value, str) and len(value) < 40 else None
    return round(at, 3) if at is not None and 0 <= at < END_OF_TIME else None


def _as_lease(value: object) -> str | None:
    return value if isinstance(value, str) and is_lease_name(value) else None


PUBLIC = {
    "at": _as_moment,
    "event": as_text,
    "task": as_text,
    "lease": _as_lease,
    "lease_id": as_text,
    "source": as_text,
    "reason": as_text,
    "pid": as_whole,
    "reason_code": as_text,
    "blocked_by": as_text,
    "parent_task": as_text,
    "seconds": as_seconds,
    "exit_code": as_whole,
    "outcome": as_text,
}
STORED = {"id": as_text, **PUBLIC, "fence": as_whole, "detail": as_text, "result": as_text}
OF_PRESENCE = {"role": as_text, "start_ticks": as_whole, "boot_id": as_text, "pid_namespace": as_text}
FIELDS = {**STORED, **OF_PRESENCE, "of": as_text}
NOTHING: Entry = dict.fromkeys(FIELDS)


def entry_of(event: Mapping[str, object]) -> Entry | None:
    """Return an event with every field there and typed, or None where it tells nothing; its writer is not trusted.

    A grant's beginning and end get their ids from its lease id: no grant has two of either. `at` is in seconds.
    """
    entry = NOTHING.copy()
    for name, value in event.items():
        if value is not None and (typed := FIELDS.get(name)) is not None:
            entry[name] = typed(value)
    kind, lease_id, outcome = entry["event"], entry["lease_id"], entry["outcome"]
    entry["outcome"] = None
    if not entry["id"] or (kind not in EVENTS and kind not in PRESENCE) or (entry["at"] is None and kind != "absent"):
        return None
    if kind in {"acquired", "released"}:
        if not lease_id or entry["lease"] is None:
            return None
        entry["id"] = acquired_id(lease_id) if kind == "acquired" else end_id(lease_id)
    if kind == "released":
        entry["outcome"] = outcome if outcome in RELEASE_OUTCOMES else "unknown"
    elif kind == "stale_cleaned" and lease_id and outcome:
        entry.update(id=end_id(lease_id), outcome="lost")
    elif kind == "nested_finished":
        entry["result"] = entry["result"] if entry["result"] in RESULTS else "unknown"
    elif kind in {"collision", "collision_cleared"} and entry["reason_code"]:
        entry["reason_code"] = entry["reason_code"].replace("-", "_")
    return entry


def outcome_of(entry: Entry) -> str | None:
    """Return how the run went that this event ends: a grant, or a joined job; None for an event that ends none."""
    outcome: str | None = entry["result"] if entry["event"] == "nested_finished" else entry["outcome"]
    return outcome


def fence_of(entry: Entry) -> int:
    """Return the fence that the beginning or end of a grant tells, else 0: others may quote one that is not theirs."""
    is_grant = entry["event"] == "acquired" or (entry["outcome"] is not None and entry["lease"] is not None)
    return as_natural(entry["fence"]) if is_grant else 0
