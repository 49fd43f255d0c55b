"""Who is at work, proven without maintlock: record locks of fcntl(2), one for each process, and a journal.

`worker.c` says how it is done; here it is for Python, which works inside `hold()`, and stands in where no compiler is.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from typing import NamedTuple

SLOT = 64
EXITING = 4
FLOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, pid
JOURNAL, VIOLATIONS, WITNESS = "journal", "violations", "witness"


class Witness:
    """One process that works now and then; its descriptor of the witness file stays open, or the kernel frees its lock."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.fd = os.open(f"{directory}/{WITNESS}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.grant, self.fence, self.role = "", "", ""

    def begin(self, grant: str, fence: str, role: str) -> None:
        """Be at work for a grant, and look who else is."""
        self.grant, self.fence, self.role = grant, fence, role
        start = os.getpid() * SLOT
        os.pwrite(self.fd, f"{grant} {fence}\n".ljust(SLOT).encode(), start)
        self._put_lock(fcntl.F_WRLCK)
        self._record("B")
        self._look(SLOT, 0)

    def end(self) -> None:
        """Work no more."""
        self._record("E")
        self._put_lock(fcntl.F_UNLCK)

    def say(self, name: str, text: str) -> None:
        """Append a line to a file with one write."""
        fd = os.open(f"{self.directory}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode() + b"\n")
        finally:
            os.close(fd)

    def _record(self, what: str) -> None:
        now = time.monotonic_ns()
        self.say(JOURNAL, f"{what} {now} {os.getpid()} {self.grant} {self.fence} {self.role}")

    def _put_lock(self, kind: int) -> None:
        fcntl.fcntl(self.fd, fcntl.F_SETLK, struct.pack(FLOCK, kind, os.SEEK_SET, os.getpid() * SLOT, SLOT, 0))

    def _locked(self, begin: int, end: int) -> tuple[int, int] | None:
        """Return place and process of a lock in a range, not always the first."""
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, begin, end - begin if end else 0, 0)
        kind, _, start, _, pid = struct.unpack(FLOCK, fcntl.fcntl(self.fd, fcntl.F_GETLK, asked))
        return None if kind == fcntl.F_UNLCK else (start, pid)

    def _look(self, begin: int, end: int) -> None:
        if end and begin >= end:
            return
        found = self._locked(begin, end)
        if found is None:
            return
        start, pid = found
        self._compare(start, pid)
        self._look(begin, start)
        self._look(start + SLOT, end)

    def _compare(self, start: int, pid: int) -> None:
        other, fence, *_ = (*os.pread(self.fd, SLOT, start).decode("ascii", "replace").split(), "?", "?")
        if other == self.grant or self._locked(start, start + SLOT) is None or not is_at_work(pid):
            return
        mine = f"pid {os.getpid()} ({self.role}) of grant {self.grant} fence {self.fence}"
        self.say(VIOLATIONS, f"overlap {time.monotonic_ns()} {mine} met pid {pid} of grant {other} fence {fence}")


def is_at_work(pid: int) -> bool:
    """Tell whether a process still runs code of its own: one that is being taken down frees its locks one by one."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX" and not int(fields[6]) & EXITING


class Entry(NamedTuple):
    """A line of the journal; `what` is B or E."""

    what: str
    at_ns: int
    pid: int
    grant: str
    fence: int
    role: str


def read_journal(directory: str) -> list[Entry]:
    """Return begins and ends in the order of the machine's own clock."""
    try:
        with open(f"{directory}/{JOURNAL}") as file:
            rows = [line.split() for line in file]
    except FileNotFoundError:
        return []
    return sorted(
        (Entry(what, int(at), int(pid), grant, int(fence), role) for what, at, pid, grant, fence, role in rows),
        key=lambda entry: entry.at_ns,
    )


def read_violations(directory: str) -> list[str]:
    """Return what the workers have found."""
    try:
        with open(f"{directory}/{VIOLATIONS}") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []
