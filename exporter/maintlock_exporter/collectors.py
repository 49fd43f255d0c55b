"""One collector per kind of knowledge: a broken one leaves the others standing, and is told as failed.

A collector is a function from a view to metric families. `Exporter.collect` runs them all on a new view, and reports for each
whether it succeeded and how long it took. What a collector yields before it fails is kept.
"""

from __future__ import annotations

import logging
import platform
import time
from typing import TYPE_CHECKING, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    StateSetMetricFamily,
)

import maintlock
from maintlock import marks, states
from maintlock.options import SOURCES
from maintlock.standing import has_lapsed
from maintlock.times import epoch_seconds
from maintlock_exporter import counters, trees
from maintlock_exporter.scene import OTHER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from maintlock.report import Holder, Status
    from maintlock.settings import TaskSettings
    from maintlock.states import TaskState
    from maintlock_exporter.scene import Scene
    from maintlock_exporter.view import View

    Collector = Callable[[View], Iterable[Metric]]
    LeaseGauge = tuple[str, str, Callable[[Status], float]]
    TaskGauge = tuple[str, str, Callable[[TaskSettings, TaskState, View], float]]

STATES = ("free", "held", "orphaned", "unknown")
Value = TypeVar("Value")
log = logging.getLogger(__name__)


def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    """Return an empty gauge family with our prefix."""
    return GaugeMetricFamily(f"maintlock_{name}", text, labels=labels)


def read_each(leases: Iterable[str], read: Callable[[str], Value]) -> tuple[dict[str, Value], list[Exception]]:
    """Return what can be read of each lease, and why some cannot be: one bad lock file does not affect the other leases.

    Raises:
        Exception: None of them can be read.
    """
    found, errors = {}, []
    for lease in leases:
        try:
            found[lease] = read(lease)
        except Exception as error:  # noqa: BLE001  raised again once the others are told
            errors.append(error)
    if errors and not found:
        raise errors[0]
    return found, errors


def raise_first(errors: Sequence[Exception]) -> None:
    """Raise the first error, if there is one."""
    if errors:
        raise errors[0]


def of_statuses(gauges: Iterable[LeaseGauge], statuses: Mapping[str, Status]) -> Iterator[Metric]:
    """Yield gauges of leases that are plain numbers."""
    for name, text, value in gauges:
        family = gauge(name, text, "lease")
        for lease, status in statuses.items():
            family.add_metric([lease], value(status))
        yield family


def collect_lease(view: View) -> Iterator[Metric]:
    """Yield who has each lease, by kernel and sidecar."""
    statuses, errors = read_each(view.scene.leases, view.status)
    held = gauge("lease_held", "Whether somebody has the lease, survivors of a dead holder included.", "lease")
    state = StateSetMetricFamily("maintlock_lease_state", "State of the lease.", labels=["lease"])
    info = gauge("lease_holder_info", "1 for the task and source that have the lease.", "lease", "task", "source")
    for lease, status in statuses.items():
        held.add_metric([lease], float(status["state"] in {"held", "orphaned"}))
        state.add_metric([lease], {name: name == status["state"] for name in STATES})
        _add_holder(view.scene, status, info)
    yield from (held, state, info, *of_statuses(LEASE_GAUGES, statuses))
    raise_first(errors)


def _add_holder(scene: Scene, status: Status, info: GaugeMetricFamily) -> None:
    lease, holder = status["lease"], status["holder"]
    source = holder["source"] if holder else None
    current = (scene.label(holder["task"], lease), source if source in SOURCES else OTHER) if holder else None
    for task in scene.tasks(lease):
        for source in (*SOURCES, OTHER):
            info.add_metric([lease, task, source], float((task, source) == current))


def of_holder(value: Callable[[Holder], float | None]) -> Callable[[Status], float]:
    """Return how to read a number of the holder; 0 where there is none."""
    return lambda status: 0.0 if status["holder"] is None else float(value(status["holder"]) or 0.0)


# name without prefix, help, value
LEASE_GAUGES: tuple[LeaseGauge, ...] = (
    (
        "lease_holder_pid",
        "Process id of the holder, 0 if there is none or it is unknown.",
        of_holder(lambda holder: holder["pid"]),
    ),
    (
        "lease_acquired_timestamp_seconds",
        "When the current grant began, 0 if there is none.",
        of_holder(lambda holder: epoch_seconds(holder["acquired_at"])),
    ),
    (
        "lease_ttl_seconds",
        "After how long the current holder is overdue, 0 if there is none.",
        of_holder(lambda holder: holder["ttl_seconds"]),
    ),
    (
        "lease_holder_resident_memory_bytes",
        "Resident memory of all processes of the job that has the lease.",
        of_holder(lambda holder: holder["rss_bytes"]),
    ),
)
PRESENCE_GAUGES: tuple[LeaseGauge, ...] = (
    (
        "lease_nesting_depth",
        "How deep jobs run inside the holder's: 1 if some have joined it, 2 if some have joined those, and so on.",
        lambda status: float(trees.depth(status["nested"])),
    ),
    ("waiters", "How many requests are queued for the lease.", lambda status: float(len(status["waiters"]))),
    (
        "oldest_waiter_timestamp_seconds",
        "Since when the first in the queue waits, 0 if nobody does.",
        lambda status: min(filter(None, (epoch_seconds(waiter["since"]) for waiter in status["waiters"])), default=0.0),
    ),
)
TASK_GAUGES: tuple[TaskGauge, ...] = (
    (
        "task_interval_seconds",
        "Configured interval, 0 if the task is never due by itself.",
        lambda task, _state, _view: task.interval,
    ),
    (
        "task_registered_timestamp_seconds",
        "When the task was first requested, or when the exporter started if it never was.",
        lambda _task, state, view: state.registered_at or view.scene.started_at,
    ),
    (
        "task_last_success_timestamp_seconds",
        "End of the last successful run, 0 if there is none.",
        lambda _task, state, _view: state.last_success_at or 0.0,
    ),
    (
        "task_last_run_timestamp_seconds",
        "Start of the last run, 0 if there is none.",
        lambda _task, state, _view: state.last_run_at or 0.0,
    ),
    (
        "task_last_run_duration_seconds",
        "Duration of the last run whose duration is known, 0 if there is none.",
        lambda _task, state, _view: state.last_run_seconds or 0.0,
    ),
    (
        "task_last_run_success",
        "Whether the last run that either succeeded or failed succeeded; one that was stopped did neither.",
        lambda _task, state, _view: float(state.has_succeeded),
    ),
    (
        "task_consecutive_deferrals",
        "Deferrals since the task last ran.",
        lambda _task, state, _view: float(state.consecutive_deferrals),
    ),
    (
        "task_deferred_since_timestamp_seconds",
        "When the streak of deferrals began, 0 if there is none; without a schedule it ends a day after the last attempt.",
        lambda task, state, view: (
            0.0 if has_lapsed(task, state, view.now, view.scene.config.starved_after) else state.deferred_since or 0.0
        ),
    ),
)


def collect_presence(view: View) -> Iterator[Metric]:
    """Yield who waits for each lease, and who has joined its job, by the ledger."""

    def read(lease: str) -> Status:
        view.snapshot(lease)  # without the ledger, a status shows an empty queue
        return view.status(lease)

    statuses, errors = read_each(view.scene.leases, read)
    yield from of_statuses(PRESENCE_GAUGES, statuses)
    raise_first(errors)


def collect_tasks(view: View) -> Iterator[Metric]:
    """Yield how each configured task stands, by the ledger."""
    scene = view.scene
    known = {lease: view.snapshot(lease).tasks for lease in scene.leases}
    for name, text, value in TASK_GAUGES:
        family = gauge(name, text, "lease", "task")
        for lease, states_of in known.items():
            for task in scene.configured(lease):
                state = states_of.get(task, states.TaskState())
                family.add_metric([lease, task], value(scene.config.tasks[task], state, view))
        yield family


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

    def read(lease: str) -> set[str]:
        kinds = {found["kind"] for found in view.status(lease)["collisions"]}
        return kinds | {marks.UNLEASED} if view.untold(lease) else kinds

    kinds_now, errors = read_each(view.scene.leases, read)
    active = gauge("collision_active", "Whether there is a collision of this kind now.", "lease", "kind")
    for lease, kinds in kinds_now.items():
        for kind in sorted({*view.scene.kinds(lease), *kinds}):
            active.add_metric([lease, kind], float(kind in kinds))
    yield active
    raise_first(errors)


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
            "presence": collect_presence,
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
            families: list[Metric] = []
            is_success = self._has_collected(name, collector, view, families)
            duration.add_metric([name], self._seconds() - began)
            success.add_metric([name], float(is_success))
            yield from families
        yield from (success, duration)

    def _has_collected(self, name: str, collector: Collector, view: View, families: list[Metric]) -> bool:
        """Put what a collector yields into `families`, and tell whether it came to its end without failing."""
        try:
            for family in collector(view):
                families.append(family)  # noqa: PERF402  what came before a failure is kept
        except Exception as error:  # noqa: BLE001  the other collectors go on, and this one is told as failed
            self._tell(name, f"{type(error).__name__}: {error}")
            return False
        if self._failing.pop(name, None) is not None:
            log.info("collects %s again", name, extra={"event": "collect_recovered", "collector": name})
        return True

    def _tell(self, name: str, error: str) -> None:
        """Log a failure once, however often it is met (R9)."""
        if self._failing.get(name) != error:
            told = {"event": "collect_failed", "collector": name, "error": error}
            log.warning("cannot collect %s: %s", name, error, extra=told)
        self._failing[name] = error
