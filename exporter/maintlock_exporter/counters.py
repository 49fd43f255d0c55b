"""The ledger's counters as series: every configured one from the first scrape on, every other name folded into `other`."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from maintlock import entries, tally
from maintlock.options import SOURCES
from maintlock_exporter.scene import OTHER

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from maintlock.tally import CounterKey
    from maintlock_exporter.scene import Scene

# name without prefix and `_total`, help, labels beside `lease`
COUNTERS = (
    ("acquisitions", "Grants of the lease.", ("task", "source")),
    ("runs", "Ended grants and joined jobs.", ("task",)),
    ("run_failures", "Runs that failed, timed out or were lost in a crash.", ("task",)),
    ("deferrals", "Requests that stood back.", ("task", "reason")),
    ("blocked_deferrals", "Requests that stood back, by the task that had the lease.", ("task", "blocking_task")),
    ("stale_cleanups", "Records of dead holders that were cleaned up.", ()),
    ("collisions", "Collisions that were found.", ("kind",)),
    ("nested_runs", "Jobs that joined another.", ("task", "parent_task")),
    ("timeouts", "Runs that were stopped at their maximum run time.", ("task",)),
)
HISTOGRAMS = (
    ("hold_seconds", "How long the lease was held."),
    ("wait_seconds", "How long the lease was waited for before it was granted."),
)
Grouped = dict[str, list[tuple[dict[str, str], float]]]
TASK_LABELS = frozenset({"task", "blocking_task", "parent_task"})


def by_name(counters: Mapping[CounterKey, float]) -> Grouped:
    """Return what the ledger has counted, by the counter's name."""
    found: Grouped = {}
    for (name, labels), value in counters.items():
        found.setdefault(name, []).append((dict(labels), value))
    return found


def totals(
    scene: Scene, lease: str, name: str, labels: Sequence[str], counted: Grouped
) -> dict[tuple[str, ...], float]:
    """Return one counter's values of a lease, by the values of its labels."""
    known = [_known_values(scene, lease, label) for label in labels]
    found = dict.fromkeys(product(*known), 0.0)
    if labels == ("kind",):  # one that was counted under another configuration keeps its name
        known = [tuple(entries.COLLISION_KINDS)]
    for values, value in counted.get(f"{name}_total", ()):
        key = tuple(_folded(values.get(label), known[place]) for place, label in enumerate(labels))
        found[key] = found.get(key, 0.0) + value
    return found


def distributions(
    scene: Scene, lease: str, name: str, counted: Grouped
) -> dict[str, tuple[list[tuple[str, float]], float]]:
    """Return one histogram's cumulative buckets and sum of a lease, by task."""
    bounds = [tally.bound_text(bound) for bound in tally.HISTOGRAMS[name]]
    counts = {task: dict.fromkeys(bounds, 0.0) for task in scene.tasks(lease)}
    sums = dict.fromkeys(counts, 0.0)
    for values, value in counted.get(f"{name}_bucket", ()):
        buckets, bound = counts[_folded(values.get("task"), counts)], values.get("le", "")
        if bound in buckets:
            buckets[bound] += value
    for values, value in counted.get(f"{name}_sum", ()):
        sums[_folded(values.get("task"), sums)] += value
    return {task: (list(buckets.items()), sums[task]) for task, buckets in counts.items()}


def _known_values(scene: Scene, lease: str, label: str) -> tuple[str, ...]:
    if label in TASK_LABELS:
        return scene.tasks(lease)
    return {
        "source": (*SOURCES, OTHER),
        "reason": (*sorted(entries.REASON_CODES), OTHER),
        "kind": scene.kinds(lease),
    }[label]


def _folded(value: str | None, known: Container[str]) -> str:
    """Return the label of a value: itself where it is known, else `other`, whatever names jobs bear."""
    return value if value is not None and value in known else OTHER
