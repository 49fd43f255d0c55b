"""The status page: the current state and the last day, without JavaScript."""

from __future__ import annotations

import os
import secrets
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import maintlock
from maintlock import history, observe, paths, process
from maintlock.errors import MaintlockError, UnavailableError
from maintlock.names import DEFAULT_LEASE
from maintlock.naming import size_text
from maintlock.orchestrator import health
from maintlock.redact import printable
from maintlock.times import duration_text, epoch_seconds, rfc3339
from maintlock_exporter import timeline
from maintlock_exporter.sentences import mood, sentence
from maintlock_exporter.trees import joined, tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from maintlock.outside import Outside
    from maintlock.report import Nested, Process, Status
    from maintlock_exporter.scene import Scene
    from maintlock_exporter.timeline import Lane
    from maintlock_exporter.view import View

LAST_EVENTS = 20
MAX_GRANT_EVENTS = 2 * timeline.MAX_BARS
MAX_ROWS = 50  # of each list that has no other bound
REFRESH_SECONDS = 5
TICKS = 4
SOON_SECONDS = 1.0
BAD_SIDECARS = frozenset({"malformed", "unreadable"})


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something that is wrong, and the command to run next."""

    kind: str
    text: str
    since: float | None
    command: str


@dataclass(frozen=True, kw_only=True)
class LeaseView:
    """Everything that the page shows of one lease: processes and joined jobs with their depth.

    `known` is None if the ledger cannot be read.
    """

    status: Status
    tree: list[tuple[int, Process]]
    nested: list[tuple[int, Nested]]
    troubles: list[Trouble]
    known: Known | None


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the ledger knows of one lease: how its tasks stand, by name, the last events, and who held it over the last day."""

    tasks: Mapping[str, Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    lanes: list[Lane]


def command(scene: Scene, *words: str, lease: str = DEFAULT_LEASE) -> str:
    """Return a command to run in a terminal, with what leads it to this lease."""
    more = ["--lease", lease] if lease != DEFAULT_LEASE else []
    if scene.directory != paths.default_or_none(os.environ):
        more += ["--state-dir", scene.directory]
    return shlex.join(["maintlock", *words, *more])


def troubles(scene: Scene, status: Status, outside: Iterable[Outside], errors: Iterable[str]) -> list[Trouble]:
    """Return what is wrong with a lease, the worst first; `errors` say what cannot be read."""
    lease, holder = status["lease"], status["holder"]
    doctor, stop = command(scene, "doctor"), command(scene, "stop", lease=lease)
    look = command(scene, "status", lease=lease)
    found = [Trouble(kind="unreadable", text=error, since=None, command=doctor) for error in dict.fromkeys(errors)]
    found += [
        Trouble(
            kind=collision["kind"].replace("_", " "),
            text=collision["detail"] or "",
            since=epoch_seconds(collision["since"]),
            command=stop if collision["kind"] == "lockfile_replaced" else doctor,
        )
        for collision in status["collisions"][:MAX_ROWS]
    ]
    names = [str(one) for one in outside]
    if names:
        text = f"works outside the lease: {', '.join(names[:MAX_ROWS])}"
        found.append(Trouble(kind="unleased process", text=text, since=None, command=doctor))
    if status["state"] == "orphaned":
        found.append(Trouble(kind="orphaned", text=status["detail"] or "", since=None, command=stop))
    if holder and holder["overdue"]:
        text = f"held longer than its TTL of {duration_text(holder['ttl_seconds'])}; it is not evicted"
        found.append(Trouble(kind="overdue", text=text, since=None, command=stop))
    if status["sidecar"] in BAD_SIDECARS or (status["state"] == "unknown" and status["detail"]):
        text = status["detail"] or f"the sidecar is {status['sidecar']}"
        is_damaged = holder is None and status["sidecar"] in BAD_SIDECARS
        kind = status["sidecar"] if is_damaged else "unknown"
        found.append(Trouble(kind=kind, text=text, since=None, command=look))
    return found


def read_tasks(view: View, statuses: Mapping[str, Status]) -> dict[str, dict[str, Any]]:
    """Return how each configured task stands, as `maintlock tasks` tells it, as far as its lease's part of the ledger can be read.

    Raises:
        MaintlockError: What else tells of tasks could be somebody else's.
    """
    tasks = {}
    for lease in statuses:
        try:
            tasks.update({(lease, name): state for name, state in view.snapshot(lease).tasks.items()})
        except MaintlockError:
            continue  # its own part of the page will tell
    known = history.States(tasks=tasks, collisions={}, present=[])
    readings = health.readings_of(view.scene.places(DEFAULT_LEASE), statuses, known, view.scene.config, now=view.now)
    found = health.tasks_of(readings, view.scene.config)
    return {name: found[name] for name in view.scene.config.tasks}


def read_status(view: View, lease: str) -> Status:
    """Return who has a lease. Without a state directory a job may still be seen, but nothing says that the lease is free.

    Raises:
        MaintlockError: It cannot be read.
    """
    status = view.status(lease)
    if status["state"] == "free" and view.directory_trouble is not None:
        raise UnavailableError(view.directory_trouble)
    return status


def unreadable(scene: Scene, lease: str) -> Status:
    """Return the status of a lease that cannot be read."""
    return {
        "lease": lease,
        "state": "unknown",
        "backend": "flock",
        "scope": "user",
        "path": scene.places(lease).lock,
        "holder": None,
        "sidecar": "missing",
        "detail": None,
        "waiters": [],
        "nested": [],
        "collisions": [],
    }


def read_known(view: View, status: Status, tasks: Mapping[str, Mapping[str, Any]]) -> Known:
    """Return what the ledger knows of a lease; grants are read apart from deferrals, of which there may be thousands.

    Raises:
        MaintlockError: It cannot be read.
    """
    scene, now, lease = view.scene, view.now, status["lease"]
    if view.directory_trouble is not None:
        raise UnavailableError(view.directory_trouble)
    view.snapshot(lease)
    day = observe.read_history(
        scene.directory, lease=lease, event=timeline.EVENTS, since=now - timeline.DAY_SECONDS, limit=MAX_GRANT_EVENTS
    )
    return Known(
        tasks={name: task for name, task in sorted(tasks.items()) if task["lease"] == lease},
        events=observe.read_history(scene.directory, lease=lease, limit=LAST_EVENTS)[::-1],
        lanes=timeline.lanes(timeline.spans(day, holder=status["holder"], now=now), now=now),
    )


def read_lease(view: View, status: Status, errors: list[str], tasks: Mapping[str, Mapping[str, Any]]) -> LeaseView:
    """Return what the page shows of one lease: what can be read, and what cannot be."""
    lease = status["lease"]
    try:
        known, outside = read_known(view, status, tasks), view.untold(lease)
    except MaintlockError as error:
        known, outside, errors = None, [], [*errors, str(error)]
        with suppress(MaintlockError):
            outside = [one for one in view.outside() if one.lease == lease]
    processes = status["holder"]["processes"][:MAX_ROWS] if status["holder"] else []
    stats = [process.read_stat(row["pid"]) for row in processes]
    return LeaseView(
        status=status,
        tree=tree(processes, {stat.pid: stat.ppid for stat in stats if stat is not None}),
        nested=joined(status["nested"]),
        troubles=troubles(view.scene, status, outside, errors),
        known=known,
    )


def read_leases(view: View) -> list[LeaseView]:
    """Return what the page shows of all leases: the default one first, then those in use."""
    statuses: dict[str, Status] = {}
    errors: dict[str, list[str]] = {}
    for lease in view.scene.leases:
        try:
            statuses[lease] = read_status(view, lease)
        except MaintlockError as error:
            statuses[lease], errors[lease] = unreadable(view.scene, lease), [str(error)]
    tasks: dict[str, dict[str, Any]] = {}
    try:
        tasks = read_tasks(view, statuses)
    except MaintlockError as error:
        errors.setdefault(DEFAULT_LEASE, []).append(str(error))
    found = [read_lease(view, status, errors.get(lease, []), tasks) for lease, status in statuses.items()]
    return sorted(found, key=lambda one: (one.status["lease"] != DEFAULT_LEASE, one.status["state"] == "free"))


# Words and marks


@dataclass(frozen=True)
class Clock:
    """Turns times into words; all times are seconds since the epoch, or RFC 3339 text."""

    now: float

    def seconds(self, at: float | str | None) -> float | None:
        """Return a time in seconds since the epoch."""
        return epoch_seconds(at) if isinstance(at, str) else at

    def iso(self, at: float | str | None) -> str:
        """Return a time as `<time datetime>` wants it."""
        seconds = self.seconds(at)
        return "" if seconds is None else rfc3339(seconds)

    def local(self, at: float | str | None) -> str:
        """Return a time of this machine's own zone in full."""
        seconds = self.seconds(at)
        return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))

    def hour(self, at: float) -> str:
        """Return the time of day."""
        return time.strftime("%H:%M", time.localtime(at))

    def lasting(self, since: float | str | None) -> str:
        """Return how long something has lasted."""
        seconds = self.seconds(since)
        return "?" if seconds is None else duration_text(self.now - seconds)

    def distance(self, at: float | str | None) -> str:
        """Return how far off a time is, before or after now."""
        seconds = self.seconds(at)
        if seconds is None:
            return "never"
        if abs(seconds - self.now) < SOON_SECONDS:
            return "now"
        return (
            f"in {duration_text(seconds - self.now)}"
            if seconds > self.now
            else f"{duration_text(self.now - seconds)} ago"
        )

    def due(self, at: float) -> str:
        """Return how far off the time is at which something is due."""
        late = self.now - at
        return f"{duration_text(late)} late" if late >= SOON_SECONDS else self.distance(at)

    def next_due(self, task: Mapping[str, Any]) -> str:
        """Return when the orchestrator starts a task next: it starts no other."""
        at = self.seconds(task["next_due_at"])
        if not task["scheduled"]:
            return "by hand"
        if task["held_back"] and (at is None or at > self.now):
            return "now"
        return "inbox" if at is None else self.due(at)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("maintlock_exporter"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(printable=printable, duration=duration_text, size=size_text)
    environment.globals.update(
        refresh=REFRESH_SECONDS,
        version=maintlock.__version__,
        max_rows=MAX_ROWS,
        ticks=TICKS,
        day=timeline.DAY_SECONDS,
        mood=mood,
        sentence=sentence,
    )
    return environment


def rendered(view: View) -> tuple[bytes, str]:
    """Return the page, and the content security policy that allows its one style sheet and nothing else."""
    nonce = secrets.token_urlsafe(16)
    text = (
        _environment()
        .get_template("page.html")
        .render(
            leases=read_leases(view),
            directory=view.scene.directory,
            clock=Clock(view.now),
            now=view.now,
            nonce=nonce,
        )
    )
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode("utf-8", "backslashreplace"), policy
