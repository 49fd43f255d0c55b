"""Whose the lease is, told from its records and the kernel's view of it. Nothing here locks.

    on record as going on? ──> its process lives? ──> it has the lock? ──> held
                                       └──> parts of its job work on, or the lock is carried on? ──> orphaned
    not on record ──> locked all the same? ──> held, by somebody unknown

Records and lock change one after the other, so what does not fit together is looked at again before it is believed.
"""

from __future__ import annotations

import os
import time
from functools import cached_property

from maintlock import holder, locktable, process, survivors
from maintlock import line as line_file
from maintlock.model import Line, record, replace
from maintlock.redact import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from maintlock.errors import UnavailableError
    from maintlock.locktable import Carried, Row
    from maintlock.paths import Places
    from maintlock.process import Stat

LOOKS = 4
LOOK_SECONDS = 0.005
NAMED_PIDS = 12


@record(frozen=True, kw_only=True)
class Custody:
    """What was found. `state` and `sidecar` as in `report.Status`.

    `grant` is the one on record as going on, `fields` its sidecar, `alive` whether its process lives; `members` are what
    works on of an orphaned job; `replaced` tells of a lock file replaced under its holder. `is_passing`: worth another look.
    """

    state: str
    sidecar: str
    detail: str | None = None
    grant: Line | None = None
    fields: Mapping[str, Any] | None = None
    alive: bool | None = None
    members: tuple[Stat, ...] = ()
    replaced: str | None = None
    is_passing: bool = False


def read_custody(places: Places) -> Custody:
    """Return whose the lease is; takes 15 ms longer where records and lock do not fit together."""
    found = _Look(places).judged()
    for _ in range(LOOKS - 1):
        if not found.is_passing:
            break
        time.sleep(LOOK_SECONDS)
        found = _Look(places).judged()
    return found


class _Look:
    """One look at everything. The line is read first and last: what changes in between does not count."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.line = line_file.read_path(places.lock)
        self.reading = holder.read_sidecar(places)
        self.lock = _read_stat(places.lock)
        self.grant, self.fields = holder.on_record(self.line, self.reading)
        self.is_elsewhere = self.grant is not None and self._is_elsewhere(self.grant)
        self.alive = None if self.grant is None or self.is_elsewhere else process.is_alive(self.grant.identity)
        self._found = survivors.Found(carrying=[], loading=[])

    def judged(self) -> Custody:
        found = self._judged()
        again = line_file.read_path(self.places.lock)
        return replace(found, is_passing=found.is_passing or again != self.line)

    def _judged(self) -> Custody:
        if not process.has_proc():
            return self._without_proc("there is no /proc here")
        if self.grant is None:
            return self._of_nobody()
        if self.is_elsewhere:
            detail = f"the last grant ({self.grant.task}) belongs to another machine or pid namespace"
            detail = f"{detail}; whether it is still running cannot be seen from here"
            return self._verdict("unknown", f"{detail}; {self.foreign}" if self.foreign else detail)
        return self._of_dead(self.grant) if self.alive is False else self._of_living(self.grant)

    def _is_elsewhere(self, grant: Line) -> bool:
        """Tell whether a grant's processes cannot be seen from here: another pid namespace, or another running kernel."""
        if not process.is_of_other_boot(grant.identity):
            return process.is_in_other_namespace(grant.identity)
        booted = process.booted_at()
        return self.fields is not None and booted is not None and grant.started_at > booted

    # The kernel's view

    @cached_property
    def rows(self) -> list[Row] | None:
        """The table's rows on the lock file, from two reads at most; None where the table cannot be read."""
        if self.lock is None:
            return []
        found = locktable.read_rows_on(self.lock)
        if not found:
            _ = self.carried  # is needed next in any case, and takes long enough for the table to be another one
            found = locktable.read_rows_on(self.lock)
        return found

    @cached_property
    def carried(self) -> list[Carried]:
        """All descriptors of the lock file with the lock on it, as far as we can look into processes."""
        if self.lock is None:
            return []
        return [carried for carried in locktable.read_all_carried(self.places.lock) if carried.is_on(self.lock)]

    @cached_property
    def joined(self) -> list[Stat]:
        """Who keeps `.nested` locked: jobs that have joined, and whoever carries a descriptor of it on."""
        return holder.read_locking(self.places.nested)

    @cached_property
    def foreign(self) -> UnavailableError | None:
        """Why every request is refused, where the sidecar is of another system that runs now."""
        return holder.of_other_kernel(self.places, self.reading)

    # What follows from it

    def _of_living(self, grant: Line) -> Custody:
        pids = {grant.identity.pid, self._job_pid() or grant.identity.pid}
        looks = [locktable.read_carried(pid, self.places.lock) for pid in pids]
        own = [carried for look in looks for carried in look or ()]
        if any(carried.is_on(self.lock) for carried in own):
            return self._held()
        if own:
            return self._replaced(grant)
        if holder.holds_elsewhere(self.places.lock, grant.identity.pid, grant.lease_id):
            return self._replaced(grant)
        if self.rows is None and not self.carried:
            return self._without_proc("the kernel does not show its locks here")
        lockers = {found.locker for found in (*(self.rows or ()), *self.carried)}
        if grant.identity.pid in lockers:
            return self._held()
        if lockers:
            return self._by_unknown()
        if None in looks:
            hides = f"the recorded holder (pid {grant.identity.pid}) is alive, but its open files cannot be inspected"
            return self._verdict("unknown", hides)
        living = self._survivors(grant)
        lost = f"the recorded holder ({grant.task}, pid {grant.identity.pid}) is alive, but has lost the kernel's lock"
        if living:
            lost = f"{lost}; {_at_work(living, 'of its job')}"
        state = "orphaned" if living else "free"
        return replace(self._verdict(state, lost, members=living), sidecar=self._described("stale"), is_passing=True)

    def _replaced(self, grant: Line) -> Custody:
        replaced = f"{self.places.lock} was replaced while {grant.task} (pid {grant.identity.pid}) held it"
        return replace(self._held(), detail=replaced, replaced=replaced)

    def _held(self) -> Custody:
        """Return that the recorded holder has it; without its sidecar the owner is unknown, whatever the line says."""
        assert self.grant is not None
        detail = None
        if self.fields is None:
            about = f"by the lock's line it is {self.grant.task} (pid {self.grant.identity.pid})"
            detail = f"held by an unknown owner: its sidecar is {self._described('stale')}; {about}"
        # Between the line and the sidecar of a new grant there are some hundred microseconds.
        return replace(self._verdict("held", detail), is_passing=self.fields is None)

    def _of_dead(self, grant: Line) -> Custody:
        of_job = [*self._survivors(grant if self.line is not None else None), *self._client_elsewhere(grant)]
        known = {stat.pid for stat in of_job}
        leaked: list[Stat] = []
        for pid in sorted({carried.pid for carried in self.carried if carried.locker != carried.pid} - known):
            stat = process.read_stat(pid)
            if stat is not None and not stat.is_dead:
                (of_job if self._is_of_job(stat, grant) else leaked).append(stat)
        gone = f"the recorded holder ({grant.task}, pid {grant.identity.pid}) is dead"
        if of_job:
            of_job.sort(key=lambda stat: stat.pid)
            carry = "carries" if len(leaked) == 1 else "carry"
            also = f"; outside the job {_named(leaked)} {carry} the lock's descriptor too" if leaked else ""
            return self._verdict("orphaned", f"{gone}; {_at_work(of_job, 'of its job')}{also}", members=of_job)
        if leaked:
            only = "only processes outside its job carry the lock's descriptor, which leaked to them"
            return self._verdict("orphaned", f"{gone}; {only}: {_named(leaked)}")
        if self.carried or any(process.read_stat(row.locker) for row in self.rows or ()):
            return self._by_unknown()
        if self.rows:
            return self._verdict("orphaned", f"{gone}; which process still holds its lock cannot be seen from here")
        if self.rows is None:
            return self._verdict("unknown", f"{gone}; the kernel does not show its locks here")
        if self.joined:
            return self._of_joined(gone)
        if self._found.loading:
            are = "is" if len(self._found.loading) == 1 else "are"
            detail = f"{gone}; {_named(self._found.loading)} {are} loading a program, and may be of its job"
            return self._verdict("orphaned", detail)
        return self._free(f"{gone} and left no running process behind; the next request cleans up")

    def _survivors(self, grant: Line | None) -> list[Stat]:
        if grant is not None and process.is_of_other_boot(grant.identity):
            return []  # nothing outlives that, whatever has its numbers now
        leaders = holder.leaders_of(grant, self.fields) if grant is not None else frozenset()
        self._found = survivors.look(self.places, grant, leaders)
        return self._found.carrying

    def _client_elsewhere(self, grant: Line) -> list[Stat]:
        """Return a coprocess's client that has the lock on a file which was replaced."""
        client = holder.client_in(self.fields) if self.fields is not None else None
        if client is None or not holder.holds_elsewhere(self.places.lock, client, grant.lease_id):
            return []
        stat = process.read_stat(client)
        return [] if stat is None else [stat]

    def _is_of_job(self, stat: Stat, grant: Line) -> bool:
        """Tell whether a process that carries the lock is part of its job, rather than one that left it."""
        job_pid = self._job_pid()
        if stat.pid == job_pid or (grant.hold_until != "main" and stat.sid == grant.session_id):
            return True
        return grant.hold_until != "session" and any(parent.pid == job_pid for parent in process.ancestors(stat.pid))

    def _job_pid(self) -> int | None:
        return self.fields.get("job_pid") if self.fields is not None else None

    def _of_nobody(self) -> Custody:
        if self.rows or self.carried:
            return self._by_unknown()
        living = self._survivors(None) if self.line is None else []
        if living:
            is_there = os.path.lexists(self.places.directory)
            lost = "there is" if is_there else f"{self.places.directory} was removed: there is"
            detail = f"{lost} no record of the last grant, and {_at_work(living, 'of its job')}"
            return self._verdict("orphaned", detail, members=living)
        if self.rows is None:
            return self._verdict("unknown", "no grant is on record, and the kernel does not show its locks here")
        return self._of_joined("no grant is on record") if self.joined else self._free()

    def _of_joined(self, why: str) -> Custody:
        """Return that nothing is left but who has joined, be it only to find out in a moment that there is nothing to join."""
        detail = f"{why}; {_at_work(self.joined, 'of the jobs that joined it')}"
        return replace(self._verdict("orphaned", detail, members=self.joined), is_passing=True)

    def _free(self, detail: str | None = None) -> Custody:
        refused = f"nobody has it, and every request is refused: {self.foreign}" if self.foreign else detail
        return self._verdict("free", refused)

    def _by_unknown(self) -> Custody:
        """Return that somebody has the lock who is not on record, be it only for the moment until they are."""
        pids = {row.locker for row in self.rows or ()} | {found.locker or found.pid for found in self.carried}
        stats = [stat for stat in map(process.read_stat, sorted(pids - {0})) if stat is not None]
        who = _named(stats) if stats else "a process that cannot be seen from here"
        detail = f"held by an unknown owner: {who} holds the lock but left no record"
        return Custody(state="held", sidecar=self._described("stale"), detail=detail, is_passing=True)

    def _without_proc(self, why: str) -> Custody:
        """Return what the records alone can tell; what they cannot is unknown, never probed."""
        if self.fields is not None and self.alive:
            return self._held()
        if self.lock is None and (self.grant is None or self.alive is False):
            return self._verdict("free")
        return self._verdict("unknown", f"{why}, and no living holder is on record")

    def _verdict(self, state: str, detail: str | None = None, *, members: Iterable[Stat] = ()) -> Custody:
        is_shown = state != "free"
        return Custody(
            state=state,
            sidecar=self._described("valid" if is_shown and self.alive is not False else "stale"),
            detail=detail,
            grant=self.grant if is_shown else None,
            fields=self.fields if is_shown else None,
            alive=self.alive,
            members=tuple(members),
        )

    def _described(self, state: str) -> str:
        """Return the sidecar's reading: what it is, and where it is a record, whether of the present grant."""
        if self.reading.fields is None:
            return self.reading.state
        return state if self.fields is not None else "stale"


def _read_stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=False)
    except OSError:
        return None


def _at_work(stats: list[Stat], of_what: str) -> str:
    return f"{_named(stats)} {of_what} {'is' if len(stats) == 1 else 'are'} still running"


def _named(stats: list[Stat]) -> str:
    """Return processes for people: `pid 4243 (node)`, `pids 4243 (node), 4250 (sh)`."""
    shown = ", ".join(f"{stat.pid} ({printable(stat.name, 32)})" for stat in stats[:NAMED_PIDS])
    more = f" and {len(stats) - NAMED_PIDS} more" if len(stats) > NAMED_PIDS else ""
    return f"{'pid' if len(stats) == 1 else 'pids'} {shown}{more}"
