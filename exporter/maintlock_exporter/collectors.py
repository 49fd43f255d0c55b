"""One collector per kind of knowledge: a broken one leaves the others standing, and is told as failed.

A collector is a function from a view to metric families. `Exporter.collect` runs them all on a new view, and tells of each
whether it could, and how long it took.
"""

from __future__ import annotations

import logging
import platform
import time
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    StateSetMetricFamily,
)

import maintlock
from maintlock import entries, states
from maintlock.times import epoch_seconds
from maintlock_exporter import counters
from maintlock_exporter.scene import OTHER, SOURCES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

    from maintlock.report import Status
    from maintlock.states import TaskState
    from maintlock_exporter.scene import Scene
    from maintlock_exporter.view import View

    Collector = Callable[[View], Iterable[Metric]]

STATES = ("free", "held", "orphaned", "unknown")
log = logging.getLogger(__name__)


def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    """Return an empty gauge family with our prefix."""
    return GaugeMetricFamily(f"maintlock_{name}", text, labels=labels)


def collect_lease(view: View) -> Iterator[Metric]:
    """Yield who has each lease, by kernel and sidecar."""
    held = gauge("lease_held", "Whether somebody has the lease, survivors of a dead holder included.", "lease")
    state = StateSetMetricFamily("maintlock_lease_state", "State of the lease.", labels=["lease"])
    info = gauge("lease_holder_info", "1 for the task and source that have the lease.", "lease", "task", "source")
    for lease in view.scene.leases:
        status = view.status(lease)
        held.add_metric([lease], float(status["state"] in {"held", "orphaned"}))
        state.add_metric([lease], {name: name == status["state"] for name in STATES})
        _add_holder(view.scene, status, info)
    yield from (held, state, info)
    for name, text in LEASE_VALUES.items():
        family = gauge(name, text, "lease")
        for lease in view.scene.leases:
            family.add_metric([lease], lease_values(view.status(lease))[name])
        yield family


LEASE_VALUES = {
    "lease_holder_pid": "Process id of the holder, 0 if there is none or it is unknown.",
    "lease_acquired_timestamp_seconds": "When the current grant began, 0 if there is none.",
    "lease_ttl_seconds": "After how long the current holder is overdue, 0 if there is none.",
    "lease_nesting_depth": "How many jobs have joined the holder's.",
    "lease_holder_resident_memory_bytes": "Resident memory of all processes of the job that has the lease.",
    "waiters": "How many requests are queued for the lease.",
    "oldest_waiter_timestamp_seconds": "Since when the first in the queue waits, 0 if nobody does.",
}


def lease_values(status: Status) -> dict[str, float]:
    """Return the gauges of one lease that are plain numbers, by name."""
    holder = status["holder"]
    waiting_since = [at for waiter in status["waiters"] if (at := epoch_seconds(waiter["since"])) is not None]
    return {
        "lease_holder_pid": float(holder["pid"]) if holder else 0.0,
        "lease_acquired_timestamp_seconds": (epoch_seconds(holder["acquired_at"]) or 0.0) if holder else 0.0,
        "lease_ttl_seconds": float(holder["ttl_seconds"]) if holder else 0.0,
        "lease_nesting_depth": float(len(status["nested"])),
        "lease_holder_resident_memory_bytes": float(holder["rss_bytes"]) if holder else 0.0,
        "waiters": float(len(status["waiters"])),
        "oldest_waiter_timestamp_seconds": min(waiting_since, default=0.0),
    }


def _add_holder(scene: Scene, status: Status, info: GaugeMetricFamily) -> None:
    lease, holder = status["lease"], status["holder"]
    source = holder["source"] if holder else None
    current = (scene.label(holder["task"], lease), source if source in SOURCES else OTHER) if holder else None
    for task in scene.tasks(lease):
        for source in (*SOURCES, OTHER):
            info.add_metric([lease, task, source], float((task, source) == current))


TASK_VALUES = {
    "task_interval_seconds": "Configured interval, 0 if the task is never due by itself.",
    "task_registered_timestamp_seconds": "When the task was first known here.",
    "task_last_success_timestamp_seconds": "End of the last successful run, 0 if there is none.",
    "task_last_run_timestamp_seconds": "Start of the last run, 0 if there is none.",
    "task_last_run_duration_seconds": "Duration of the last run that ended.",
    "task_last_run_success": "Whether the last run that ended succeeded.",
    "task_consecutive_deferrals": "Deferrals since the task last ran.",
    "task_deferred_since_timestamp_seconds": "When the streak of deferrals began, 0 if there is none.",
}


def collect_tasks(view: View) -> Iterator[Metric]:
    """Yield how each configured task stands, by the ledger."""
    families = {name: gauge(name, text, "lease", "task") for name, text in TASK_VALUES.items()}
    scene = view.scene
    for lease in scene.leases:
        known = view.snapshot(lease).tasks
        for task in scene.configured(lease):
            state = known.get(task, states.TaskState())
            for name, value in task_values(state, scene.config.tasks[task].interval, scene.started_at).items():
                families[name].add_metric([lease, task], value)
    yield from families.values()


def task_values(state: TaskState, interval: float, known_since: float) -> dict[str, float]:
    """Return the gauges of one task; a task that the ledger does not know is known since the exporter's start."""
    return {
        "task_interval_seconds": interval,
        "task_registered_timestamp_seconds": state.registered_at or known_since,
        "task_last_success_timestamp_seconds": state.last_success_at or 0.0,
        "task_last_run_timestamp_seconds": state.last_run_at or 0.0,
        "task_last_run_duration_seconds": state.last_run_seconds or 0.0,
        "task_last_run_success": float(state.last_outcome == "completed"),
        "task_consecutive_deferrals": float(state.consecutive_deferrals),
        "task_deferred_since_timestamp_seconds": state.deferred_since or 0.0,
    }


def collect_counters(view: View) -> Iterator[Metric]:
    """Yield what the ledger has counted since it began."""
    snapshots = {lease: view.snapshot(lease) for lease in view.scene.leases}
    counted = {lease: counters.by_name(snapshot.counters) for lease, snapshot in snapshots.items()}
    for name, text, labels in counters.COUNTERS:
        family = CounterMetricFamily(f"maintlock_{name}", text, labels=["lease", *labels])
        for lease, found in counted.items():
            for values, total in counters.totals(view.scene, lease, name, labels, found).items():
                family.add_metric([lease, *values], total)
        yield family
    dropped = max((snapshot.dropped for snapshot in snapshots.values()), default=0)
    yield CounterMetricFamily("maintlock_events_dropped", "Events that could not be recorded at all.", value=dropped)
    for name, text in counters.HISTOGRAMS:
        histogram = HistogramMetricFamily(f"maintlock_{name}", text, labels=["lease", "task"])
        for lease, found in counted.items():
            for task, (buckets, total) in counters.distributions(view.scene, lease, name, found).items():
                histogram.add_metric([lease, task], buckets=buckets, sum_value=total)
        yield histogram


def collect_collisions(view: View) -> Iterator[Metric]:
    """Yield what collides now: what the ledger has open, and what is seen of processes outside the lease (L13)."""
    active = gauge("collision_active", "Whether there is a collision of this kind now.", "lease", "kind")
    for lease in view.scene.leases:
        kinds = {found["kind"] for found in view.status(lease)["collisions"]}
        if any(found.lease == lease for found in view.outside()):
            kinds.add("unleased_process")
        for kind in sorted(entries.COLLISION_KINDS):
            active.add_metric([lease, kind], float(kind in kinds))
    yield active


def collect_daemons(view: View) -> Iterator[Metric]:
    """Yield which configured daemons run, whoever started them."""
    up = gauge("daemon_up", "Whether a process with the daemon's command line runs.", "daemon")
    for name, is_up in view.daemons().items():
        up.add_metric([name], float(is_up))
    yield up


def collect_build(_view: View) -> Iterator[Metric]:
    """Yield what is running here."""
    info = gauge("build_info", "Version of maintlock and of the Python that runs it.", "version", "python_version")
    info.add_metric([maintlock.__version__, platform.python_version()], 1.0)
    yield info


class Exporter:
    """What a registry collects from: `look` gives a new view."""

    def __init__(self, look: Callable[[], View], seconds: Callable[[], float] = time.perf_counter) -> None:
        self.collectors: dict[str, Collector] = {
            "lease": collect_lease,
            "tasks": collect_tasks,
            "counters": collect_counters,
            "collisions": collect_collisions,
            "daemons": collect_daemons,
            "build": collect_build,
        }
        self._look = look
        self._seconds = seconds
        self._failing: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield everything, and how reading it went."""
        view = self._look()
        up = view.trouble is None
        yield GaugeMetricFamily("maintlock_up", "Whether state directory and ledger can be read.", value=float(up))
        success = gauge("scrape_collector_success", "Whether a collector could read what it tells.", "collector")
        duration = gauge("scrape_duration_seconds", "How long a collector took.", "collector")
        for name, collector in self.collectors.items():
            began = self._seconds()
            families = self._collected(name, collector, view)
            duration.add_metric([name], self._seconds() - began)
            success.add_metric([name], float(families is not None))
            yield from families or ()
        yield from (success, duration)

    def _collected(self, name: str, collector: Collector, view: View) -> list[Metric] | None:
        try:
            families = list(collector(view))
        except Exception as error:  # noqa: BLE001  the other collectors go on, and this one is told as failed
            self._tell(name, f"{type(error).__name__}: {error}")
            return None
        if self._failing.pop(name, None) is not None:
            log.info("collects %s again", name, extra={"event": "collect_recovered", "collector": name})
        return families

    def _tell(self, name: str, error: str) -> None:
        """Log a failure once, however often it is met (R9)."""
        if self._failing.get(name) != error:
            told = {"event": "collect_failed", "collector": name, "error": error}
            log.warning("cannot collect %s: %s", name, error, extra=told)
        self._failing[name] = error
