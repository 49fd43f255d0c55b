"""What an event adds to which counters and histograms (§7).

Pure, and the one place where it is said: an event counts the same before and after it is entered into the ledger.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache
from typing import TYPE_CHECKING

from maintlock.entries import COLLISION_KINDS, FAILURES, REASON_CODES, outcome_of
from maintlock.names import is_task_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maintlock.entries import Entry

Labels = tuple[tuple[str, str], ...]
CounterKey = tuple[str, Labels]
Increment = tuple[str, Labels, float]

HOLD_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, math.inf)
WAIT_BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, math.inf)
HISTOGRAMS = {"hold_seconds": HOLD_BUCKETS, "wait_seconds": WAIT_BUCKETS}


def effects(entry: Entry) -> list[Increment]:
    """Return by how much an event raises which counters (§7); a histogram's buckets are stored each on its own."""
    lease, kind, seconds = entry["lease"], entry["event"], entry["seconds"]
    if lease is None:
        return []
    task, found = _label(entry["task"]), []
    if kind == "acquired":
        found.append(_one("acquisitions_total", lease=lease, source=_label(entry["source"]), task=task))
        found += _observed("wait_seconds", seconds, lease, task)
    elif kind == "released":
        found += _observed("hold_seconds", seconds, lease, task)
    elif kind == "deferred":
        reason = entry["reason_code"] if entry["reason_code"] in REASON_CODES else "unknown"
        found.append(_one("deferrals_total", lease=lease, reason=reason, task=task))
        found.append(_one("blocked_deferrals_total", blocking_task=_label(entry["blocked_by"]), lease=lease, task=task))
    elif kind == "stale_cleaned":
        found.append(_one("stale_cleanups_total", lease=lease))
    elif kind == "collision" and entry["reason_code"] in COLLISION_KINDS:
        found.append(_one("collisions_total", kind=entry["reason_code"], lease=lease))
    elif kind == "nested_started":
        found.append(_one("nested_runs_total", lease=lease, parent_task=_label(entry["parent_task"]), task=task))
    outcome = outcome_of(entry)
    if outcome is not None:
        found.append(_one("runs_total", lease=lease, task=task))
    if outcome in FAILURES:
        found.append(_one("run_failures_total", lease=lease, task=task))
    if outcome == "timed_out":
        found.append(_one("timeouts_total", lease=lease, task=task))
    return found


@lru_cache(maxsize=4096)
def _one(name: str, **labels: str) -> Increment:
    return name, tuple(sorted(labels.items())), 1.0


@lru_cache(maxsize=4096)
def _label(value: str | None) -> str:
    return value if value is not None and is_task_name(value) else "unknown"


def _observed(name: str, seconds: float | None, lease: str, task: str) -> list[Increment]:
    if seconds is None:
        return []
    bounds = HISTOGRAMS[name]
    le = bound_text(bounds[bisect_left(bounds, seconds)])
    return [
        _one(f"{name}_bucket", le=le, lease=lease, task=task),
        (f"{name}_sum", (("lease", lease), ("task", task)), seconds),
    ]


def bound_text(bound: float) -> str:
    """Return a bucket's bound as the label `le` has it."""
    return "+Inf" if bound == math.inf else repr(bound)


def cumulated(counters: Mapping[CounterKey, float]) -> dict[CounterKey, float]:
    """Return counters with each histogram's buckets cumulative, and its `_count`."""
    found = {key: value for key, value in counters.items() if not key[0].endswith("_bucket")}
    for name, bounds in HISTOGRAMS.items():
        for labels in [labels for of, labels in counters if of == f"{name}_sum"]:
            total = 0.0
            for bound in bounds:
                key = tuple(sorted((*labels, ("le", bound_text(bound)))))
                total += counters.get((f"{name}_bucket", key), 0.0)
                found[f"{name}_bucket", key] = total
            found[f"{name}_count", labels] = total
    return found
