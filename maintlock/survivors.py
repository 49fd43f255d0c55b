"""Survivors: what may live on of a job whose grant did not end cleanly.

A killed wrapper frees the kernel's lock as soon as nobody has its descriptor, and npm, node and Python close it in their
children. What still works is found by the grant in its environment.
"""

from __future__ import annotations

import os
import time

from maintlock import process
from maintlock.errors import UnavailableError
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


def find(
    places: Places,
    line: Line | None,
    leaders: frozenset[int] = frozenset(),
    *,
    and_ancestors: bool = False,
    proven: bool = False,
    exempt: Exempt | None = None,
) -> list[Stat]:
    """Return the survivors of the last grant: found in one pass or, if that finds none, in a second one.

    With no line (empty or bad) they are those of any grant of this lease and state directory. `leaders` are the process
    groups of the job: a process whose environment is not readable counts if it is in one of them. One that is still executing
    a program after several looks counts too, for it may be of the job; who names or signals what was found wants the `proven`
    ones only. We ourselves and our ancestors are never survivors to a request of ours, and `exempt` knows afterwards who of
    them would have been; who only looks wants to see the ancestors too.

    Raises:
        UnavailableError: There was no descriptor left to look with.
    """
    if line is not None and line.hold_until == "main":
        return []
    search = _Search(places, line, leaders, Exempt(and_ancestors=and_ancestors) if exempt is None else exempt)
    blind = process.times_blind()
    found: list[Stat] = []
    for _ in range(PASSES):
        found, unclear = search.one_pass()
        if not proven and process.has_proc():
            found += [stat for stat in map(process.read_stat, unclear) if stat is not None]
        if found:
            break
    if not found and process.times_blind() != blind:
        raise UnavailableError(
            "whether anything of the last job still works cannot be seen: too many open files; see: ulimit -n"
        )
    return sorted(found, key=lambda stat: stat.pid)


class Exempt:
    """We ourselves and our ancestors, who are looked for only once somebody comes into question: a waiter is in a hurry."""

    def __init__(self, *, and_ancestors: bool = False) -> None:
        self.met: set[int] = set()  # who came into question
        self._us = os.getpid()
        self._ancestors: frozenset[int] | None = frozenset() if and_ancestors else None

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
    """Passes over the process table. Who cannot be a survivor is asked once: who lives keeps its pid, and who is new has another."""

    def __init__(self, places: Places, line: Line | None, leaders: frozenset[int], exempt: Exempt) -> None:
        self.places = places
        self.line = line
        self.leaders = leaders
        self.exempt = exempt
        self.session = line.session_id if line is not None and line.hold_until == "session" else None
        self._cleared: set[int] = set()

    def one_pass(self) -> tuple[list[Stat], list[int]]:
        """Return the survivors, and those whose environment was empty at every look."""
        found, unclear = self._sorted_out(pid for pid in process.read_pids() if pid not in self._cleared)
        for look in range(LOOKS):
            if not unclear:
                break
            time.sleep(LOOK_SECONDS * 2**look)
            more, unclear = self._sorted_out(unclear)
            found += more
        return found, unclear

    def _sorted_out(self, pids: Iterable[int]) -> tuple[list[Stat], list[int]]:
        """Return the survivors among these, and those whose environment is empty so far."""
        found, unclear = [], []
        for pid in pids:
            try:
                session = os.getsid(pid)  # of nearly all processes, nothing more is asked
            except OSError:
                continue
            if self.session is not None and session != self.session:
                self._cleared.add(pid)
                continue
            environ = process.read_environ(pid)
            if environ and not carries(environ, self.places, self.line, session):
                self._cleared.add(pid)
                continue
            stat = process.read_stat(pid)
            if stat is not None and _is_out_of_question(stat):
                self._cleared.add(pid)
                continue
            if stat is None or pid in self.exempt:
                continue
            if environ is None:
                found += [stat] if stat.pgid in self.leaders else []
            elif environ:
                found.append(stat)
            else:
                unclear.append(pid)
        return found, unclear


def _is_out_of_question(stat: Stat) -> bool:
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
