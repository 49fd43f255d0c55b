"""Survivors: what may live on of a job whose grant did not end cleanly.

A killed wrapper frees the kernel's lock as soon as nobody has its descriptor, and npm, node and Python close it in their
children. What still works is found by the grant in its environment.
"""

from __future__ import annotations

import os
import time

from maintlock import process
from maintlock.errors import UnavailableError
from maintlock.model import record
from maintlock.tokens import HELD, STATE_DIR, parsed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintlock.model import Line
    from maintlock.paths import Places
    from maintlock.process import Stat

PASSES = 2  # a fork may hide a process from one
LOOKS = 8  # an environment is empty while its process executes another program
LOOK_SECONDS = 0.001  # and twice as long at each further look


@record(frozen=True, kw_only=True)
class Found:
    """What is left of a grant: who carries it, and who may, but is still `loading` a program and cannot be asked."""

    carrying: list[Stat]
    loading: list[Stat]


def find(
    places: Places, line: Line | None, leaders: frozenset[int] = frozenset(), *, exempt: Exempt | None = None
) -> list[Stat]:
    """Return what keeps a request of ours from the lease; see `look`. We ourselves and our ancestors do not."""
    found = look(places, line, leaders, exempt=exempt or Exempt())
    return sorted([*found.carrying, *found.loading], key=lambda stat: stat.pid)


def look(
    places: Places, line: Line | None, leaders: frozenset[int] = frozenset(), *, exempt: Exempt | None = None
) -> Found:
    """Return the survivors of the last grant: found in one pass or, if that finds none, in a second one.

    With no line (empty or bad) they are those of any grant of this lease and state directory. `leaders` are the process
    groups of the job: a process whose environment is not readable counts if it is in one of them. In the job's session, one
    that is still executing a program after all looks may be a survivor: whoever wants the lease waits for it, and nobody
    signals it. `exempt` are not looked at, and it knows afterwards who of them would have been survivors.

    Raises:
        UnavailableError: There was no descriptor left to look with.
    """
    found = Found(carrying=[], loading=[])
    if line is not None and line.hold_until == "main":
        return found
    search = _Search(places, line, leaders, exempt)
    blind = process.times_blind()
    for _ in range(PASSES):
        found = search.one_pass()
        if found.carrying:
            return found
    if not found.loading and process.times_blind() != blind:
        raise UnavailableError(
            "whether anything of the last job still works cannot be seen: too many open files; see: ulimit -n"
        )
    return found


class Exempt:
    """We ourselves and our ancestors, who are looked for only once somebody comes into question: a waiter is in a hurry."""

    def __init__(self) -> None:
        self.met: set[int] = set()  # who came into question
        self._us = os.getpid()
        self._ancestors: frozenset[int] | None = None

    def __contains__(self, pid: int) -> bool:
        if pid != self._us:
            if self._ancestors is None:
                self._ancestors = frozenset(stat.pid for stat in process.ancestors(self._us))
            if pid not in self._ancestors:
                return False
        self.met.add(pid)
        return True

    def is_part_of(self, places: Places, line: Line) -> bool:
        """Tell whether one of those who came into question carries this grant, as parts of its job do."""
        stats = [stat for stat in map(process.read_stat, self.met) if stat is not None]
        return any(carries(process.read_environ(stat.pid) or b"", places, line, stat.sid) for stat in stats)


class _Search:
    """Passes over the process table. Another session stays another one: of nearly all processes, only that is asked, and once."""

    def __init__(self, places: Places, line: Line | None, leaders: frozenset[int], exempt: Exempt | None) -> None:
        self.places = places
        self.line = line
        self.leaders = leaders
        self.exempt = exempt
        self.session = line.session_id if line is not None and line.hold_until == "session" else None
        self._elsewhere: set[int] = set()

    def one_pass(self) -> Found:
        """Look at every process of the session, or of the machine where the grant is not bound to one."""
        found, unclear = self._sorted_out(pid for pid in process.read_pids() if pid not in self._elsewhere)
        for again in range(LOOKS):
            if not unclear:
                break
            time.sleep(LOOK_SECONDS * 2**again)
            more, unclear = self._sorted_out(unclear)
            found += more
        loading = filter(process.is_executing, unclear) if self.session is not None else ()
        stats = [stat for stat in map(process.read_stat, loading) if stat is not None]
        return Found(carrying=sorted(found, key=lambda stat: stat.pid), loading=stats)

    def _sorted_out(self, pids: Iterable[int]) -> tuple[list[Stat], list[int]]:
        """Return the survivors among these, and those whose environment is empty so far."""
        found, unclear = [], []
        for pid in pids:
            try:
                session = os.getsid(pid)
            except OSError:
                continue
            if self.session is not None and session != self.session:
                self._elsewhere.add(pid)
                continue
            environ = process.read_environ(pid)
            if environ and not carries(environ, self.places, self.line, session):
                continue
            stat = process.read_stat(pid)
            if stat is None or _cannot_be_one(stat) or (self.exempt is not None and pid in self.exempt):
                continue
            if environ is None:
                found += [stat] if stat.pgid in self.leaders else []
            elif environ:
                found.append(stat)
            else:
                unclear.append(pid)
        return found, unclear


def _cannot_be_one(stat: Stat) -> bool:
    """Tell whether a process is no survivor whatever its environment holds: it works no more, or has none."""
    is_ending = stat.is_exiting and stat.threads <= 1
    return stat.is_dead or is_ending or stat.is_kernel_thread or stat.has_no_environment


def carries(environ: bytes, places: Places, line: Line | None, session: int) -> bool:
    """Tell whether an environment carries the grant of `line`; without one, any grant of this lease in this session."""
    held = process.environ_value(environ, HELD.encode())
    if not held:
        return False
    tokens = [token for token in parsed(held.decode("utf-8", "replace")) if token.lease == places.lease]
    if line is not None:
        return any(token.lease_id == line.lease_id for token in tokens)
    directory = process.environ_value(environ, STATE_DIR.encode())
    return directory == os.fsencode(places.directory) and any(token.session_id == session for token in tokens)
