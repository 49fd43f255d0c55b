"""What people are told of processes: names with pids, and memory."""

from __future__ import annotations

from maintlock.redact import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from maintlock.process import Stat

MAX_NAMED = 12


def named(stats: Sequence[Stat]) -> str:
    """Return processes for people: `node (pid 42), sh (pid 43)`, at most `MAX_NAMED` of them."""
    shown = ", ".join(f"{printable(stat.name, 32)} (pid {stat.pid})" for stat in stats[:MAX_NAMED])
    return f"{shown} and {len(stats) - MAX_NAMED} more" if len(stats) > MAX_NAMED else shown


def size_text(size: float | None) -> str:
    """Return a number of bytes for people: `13 MiB`, `1.2 GiB`, `?` for None."""
    if size is None:
        return "?"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
