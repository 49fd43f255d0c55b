"""Which processes a collision is about: told by its event's id, so that every reader can see whether they still live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock import process

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintlock.process import Stat

UNLEASED, INHERITED = "unleased_process", "inherited"
KINDS = frozenset({UNLEASED, INHERITED})
MAX_DIGITS = 18


def of(stat: Stat) -> str:
    """Return what names one process of this boot, and never another."""
    return f"{process.boot_id()[:8]}.{stat.pid}.{stat.start_ticks}"


def event_id(kind: str, stats: Iterable[Stat], milliseconds: int) -> str:
    """Return the id of a collision between some processes, told at a moment."""
    return f"{kind}:{'+'.join(sorted(map(of, stats)))}@{milliseconds}"


def within(event_id: str) -> frozenset[str]:
    """Return the marks in a collision's id; none in an id of another kind."""
    kind, _, rest = event_id.partition(":")
    return frozenset(rest.partition("@")[0].split("+")) - {""} if kind in KINDS else frozenset()


def joined(known: str, new: str) -> str:
    """Return the id of a collision that has gained new processes: it names them too, and leaves out dead ones."""
    if not within(known) or not within(new):
        return known
    kind, _, rest = new.partition(":")
    living = [mark for mark in within(known) if _is_alive(mark)]
    return f"{kind}:{'+'.join(sorted({*living, *within(new)}))}@{rest.partition('@')[2]}"


def is_over(event_id: str) -> bool:
    """Tell whether every process that a collision is about has ended; where the id names none, that is not known."""
    marks = within(event_id)
    return bool(marks) and not any(_is_alive(mark) for mark in marks)


def _is_alive(mark: str) -> bool:
    boot, _, rest = mark.partition(".")
    pid, _, ticks = rest.partition(".")
    if boot != process.boot_id()[:8] or not (pid.isascii() and pid.isdigit() and len(pid) < MAX_DIGITS):
        return False
    stat = process.read_stat(int(pid))
    return stat is not None and not stat.is_dead and str(stat.start_ticks) == ticks
