"""`maintlock stop`: end the job that keeps the lease, and whatever of it lives on without a wrapper.

Whom to signal is proven by a descriptor with the lock on it or by the grant in the environment, never by a pid that a file
names. A living wrapper is asked to stop its own job; what does not heed TERM within the grace is killed.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from maintlock import custody, events, locktable, observe, pending, process, signals, survivors
from maintlock import line as line_file
from maintlock.command import Command, add_places, read_places, seconds
from maintlock.errors import UnavailableError, UsageError
from maintlock.identity import default_owner
from maintlock.job import DEFAULT_GRACE_SECONDS
from maintlock.model import record
from maintlock.naming import named

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable

    from maintlock.custody import Custody
    from maintlock.locktable import Carried
    from maintlock.paths import Places
    from maintlock.process import Stat

LOOKS = 10
LOOK_SECONDS = 0.05
UNSEEN = 0  # the locker is gone, or of another pid namespace
AFTER_KILL_SECONDS = 10.0  # a killed process may have to come back from the disk first
WRAPPER_SECONDS = 2.0  # what a wrapper needs to put the end on record once its job is gone


@record(frozen=True, kw_only=True)
class Keepers:
    """Who keeps the lease: a living wrapper that supervises its job (or None), and all others."""

    wrapper: Stat | None
    others: tuple[Stat, ...]

    @property
    def all(self) -> tuple[Stat, ...]:
        """Everybody, the wrapper first."""
        return self.others if self.wrapper is None else (self.wrapper, *self.others)


def read_kept(places: Places) -> tuple[Custody, Keepers]:
    """Return whose the lease is, and who keeps it: nobody if it has changed hands again and again while we looked."""
    looks = 0
    while True:
        line = line_file.read_path(places.lock)
        found = custody.read_custody(places)
        keepers = read_keepers(places, found)
        looks += 1
        if line_file.read_path(places.lock) == line:  # or a job of the next grant could be among them
            return found, keepers
        if looks == LOOKS:
            return found, Keepers(wrapper=None, others=())


def read_keepers(places: Places, found: Custody) -> Keepers:
    """Return who keeps the lease, proven by lock or environment."""
    grant = found.grant
    carrying = _read_carrying(places, found)
    supervised = grant is not None and found.alive is True and grant.mode == "supervised"
    wrapper = process.read_stat(grant.identity.pid) if grant is not None and supervised else None
    stats = {stat.pid: stat for stat in (*found.members, *survivors.look(places, grant).carrying)}
    for pid in carrying:
        stat = process.read_stat(pid)
        if stat is not None and not stat.is_dead and (not supervised or grant is None or stat.sid == grant.session_id):
            stats[pid] = stat  # under a living wrapper a daemon that left the session is none of the job
    if grant is not None and not supervised and found.alive and not process.has_proc():
        holder = process.read_stat(grant.identity.pid)
        stats.update({holder.pid: holder} if holder is not None else {})
    exempt = {os.getpid(), *([wrapper.pid] if wrapper is not None else [])}
    return Keepers(wrapper=wrapper, others=tuple(stats[pid] for pid in sorted(stats) if pid not in exempt))


def _read_carrying(places: Places, found: Custody) -> set[int]:
    """Return who has the lock on exactly this file: many directories have lock files of the same name.

    A request that has just won the lock, or keeps it until the survivors are gone, is not what keeps the lease.
    """
    try:
        lock = os.stat(places.lock, follow_symlinks=False)
    except OSError:
        lock = None
    waiting = {waiter["pid"] for waiter in observe.read_waiters(places)}
    carried = {
        carried.pid
        for carried in locktable.read_all_carried(places.lock)
        if carried.is_on(lock) and carried.pid not in waiting and _is_of_grant(carried, found)
    }
    if found.replaced is not None and found.grant is not None:  # its own lock is on the file that was replaced
        carried.add(found.grant.identity.pid)
    return carried


def _is_of_grant(carried: Carried, found: Custody) -> bool:
    """Tell whether a lock may be the one of the grant on record: a request that has won since, and its job, carry their own."""
    return found.grant is None or carried.locker in {found.grant.identity.pid, UNSEEN}


def stop(places: Places, stopped: str | None, *, grace_seconds: float) -> bool:
    """End what keeps the lease under this grant (None: nobody knows which); False if something does when all has been tried.

    Raises:
        UnavailableError: Nobody knew under which, and now it is known: that is none that anybody was asked about.
    """
    found, keepers = read_kept(places)
    if stopped is None and found.grant is not None:
        raise UnavailableError(
            f"the {places.lease} lease was being taken, and nothing was stopped; {found.grant.task} has it now; see: maintlock status"
        )
    if _is_over(found, stopped):
        return True
    _record(places, found)
    asked = keepers.all
    for stat in (keepers.wrapper,) if keepers.wrapper is not None else keepers.others:
        process.send_signal(stat, signals.TERM)
        process.send_signal(stat, signals.CONT)
    kill_at = time.monotonic() + grace_seconds
    while time.monotonic() < kill_at + AFTER_KILL_SECONDS:
        time.sleep(LOOK_SECONDS)
        found = custody.read_custody(places)
        if _is_over(found, stopped):
            if found.state == "free" or found.grant is not None or not _is_carried(places, asked):
                return True
            continue  # the end is on record before the lock is free, and who asks in between would be refused
        if time.monotonic() >= kill_at:  # who is to be killed is proven anew
            found, keepers = read_kept(places)
            if _is_over(found, stopped):
                continue
            _kill(keepers, with_wrapper=time.monotonic() >= kill_at + WRAPPER_SECONDS)
    return False


def _is_over(found: Custody, lease_id: str | None) -> bool:
    """Tell whether a grant keeps the lease no more."""
    return found.state == "free" or _lease_id(found) != lease_id


def _is_carried(places: Places, stats: Iterable[Stat]) -> bool:
    """Tell whether one of these has the lock."""
    return any(locktable.read_carried(stat.pid, places.lock) for stat in stats)


def _lease_id(found: Custody) -> str | None:
    return found.grant.lease_id if found.grant is not None else None


def _kill(keepers: Keepers, *, with_wrapper: bool) -> None:
    for stat in keepers.all if with_wrapper else keepers.others:
        process.send_signal(stat, signals.KILL)
    if keepers.wrapper is not None:
        process.send_signal(keepers.wrapper, signals.CONT)  # one that was stopped has an end to put on record


def _record(places: Places, found: Custody) -> None:
    grant = found.grant
    event = events.new(
        "stop_requested",
        at=time.time(),
        lease=places.lease,
        task=grant.task if grant is not None else None,
        lease_id=_lease_id(found),
        reason=f"maintlock stop by {default_owner()}",
        pid=os.getpid(),
    )
    pending.append(places.directory, [event])


def _arguments(parser: ArgumentParser) -> None:
    add_places(parser)
    parser.add_argument(
        "--grace", metavar="D", type=seconds, default=DEFAULT_GRACE_SECONDS, help="time between TERM and KILL (10s)"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _run(said: Namespace) -> int:
    places = read_places(said)
    observe.check_places(places)
    found, keepers = read_kept(places)
    if found.state == "free":
        print(f"nothing holds the {places.lease} lease")
        return 0
    if not keepers.all:
        raise UnavailableError(
            f"the {places.lease} lease is {found.state}, and who keeps it cannot be proven from here"
            f"{': ' + found.detail if found.detail else ''}; see: maintlock doctor"
        )
    task = found.grant.task if found.grant is not None else "an unknown job"
    keeping = named(keepers.all)
    if not said.yes and not _is_confirmed(f"stop {task}: {keeping}? [y/N] "):
        print("nothing was stopped")
        return 1
    if stop(places, _lease_id(found), grace_seconds=said.grace):
        print(f"stopped {task}: {keeping}")
        return 0
    raise UnavailableError(f"{task} still holds the {places.lease} lease; see: maintlock status")


def _is_confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("stop asks before it stops anything, and there is no terminal to ask on; add --yes")
    try:
        return input(question).strip().lower() in {"y", "yes"}
    except EOFError:  # Ctrl-D
        print()
        return False


STOP = Command(
    description="End the job that keeps the lease, or what is left of one whose wrapper was killed: TERM, grace, KILL.",
    epilog="""\
Exit codes: 0 stopped, or nothing held it; 1 not confirmed; 73 it could not be
stopped; 77 refused for permissions.

Examples
  maintlock stop
  maintlock stop --grace 30s --yes
""",
    add_arguments=_arguments,
    run=_run,
)
