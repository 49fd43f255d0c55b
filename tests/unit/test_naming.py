"""What people are told of processes."""

from __future__ import annotations

from maintlock.naming import MAX_NAMED, named, size_text
from maintlock.process import Stat


def stat(pid: int, name: str = "node") -> Stat:
    """Return a row of the process table."""
    return Stat(pid=pid, name=name, state="S", ppid=1, pgid=pid, sid=pid, threads=1, start_ticks=1)


def test_processes_are_named_with_their_pids() -> None:
    """Each has name and pid, and a hostile name is shown as text."""
    assert named([stat(42), stat(43, "s\x1b[31mh")]) == "node (pid 42), s\\x1b[31mh (pid 43)"


def test_many_processes_are_counted() -> None:
    """Of many, the first are named and the others counted."""
    told = named([stat(pid) for pid in range(1, MAX_NAMED + 4)])
    assert told.endswith(f"node (pid {MAX_NAMED}) and 3 more")


def test_sizes() -> None:
    """Memory is told in MiB, and from one GiB on in GiB; what is not known is a question mark."""
    assert [size_text(size) for size in (None, 0, 13 << 20, 1 << 30, 3 << 29)] == [
        *("?", "0 MiB", "13 MiB", "1.0 GiB", "1.5 GiB")
    ]
