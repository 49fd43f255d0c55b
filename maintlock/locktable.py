"""What the kernel tells of locks that others hold: /proc/locks and /proc/PID/fdinfo, proc(5). Nothing here opens a lock file.

A row of /proc/locks is missing where its locker is of another pid namespace, or dead; with hundreds of locks a held one is
sometimes missed. A descriptor's own entry in fdinfo is sure, but can be read of our own processes only.
"""

from __future__ import annotations

import os

from maintlock import process
from maintlock.model import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_TABLE_BYTES = 16 << 20
MAX_DESCRIPTORS = 65536  # of one process
DELETED = " (deleted)"


@record(frozen=True, kw_only=True)
class Row:
    """One flock in the kernel's table. `locker` is the pid that took it, 0 where that is gone or not to be seen."""

    locker: int
    device: str
    inode: int
    is_waiting: bool


@record(frozen=True, kw_only=True)
class Carried:
    """One open descriptor of a lock file with a flock on it: who has it (`pid`), who took the lock, and on which file."""

    pid: int
    locker: int
    device: int
    inode: int

    def is_on(self, found: os.stat_result | None) -> bool:
        """Tell whether the locked file is the one that was found under the lock's path."""
        return found is not None and (self.device, self.inode) == (found.st_dev, found.st_ino)


def parsed_row(text: str) -> Row | None:
    """Return one row of /proc/locks, or of a descriptor's fdinfo, where it is a flock."""
    fields = text.split()
    is_waiting = "->" in fields[:2]
    if is_waiting:
        fields.remove("->")
    try:
        kind, locker, (major, minor, inode) = fields[1], fields[4], fields[5].split(":")
        if kind != "FLOCK":
            return None
        device = f"{int(major, 16)}:{int(minor, 16)}"
        return Row(locker=max(0, int(locker)), device=device, inode=int(inode), is_waiting=is_waiting)
    except (IndexError, ValueError):
        return None


def rows_on(rows: Iterable[Row], found: os.stat_result, devices: frozenset[str]) -> list[Row]:
    """Return the rows of locks held on a file; `devices` are the numbers of all mounted filesystems.

    On btrfs stat(2) tells another device number than the lock table, one that is never mounted: the inode decides alone.
    """
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    held = [row for row in rows if row.inode == found.st_ino and not row.is_waiting]
    return [row for row in held if row.device == device] if device in devices else held


def read_rows_on(found: os.stat_result) -> list[Row] | None:
    """Return the flocks that the kernel's table shows on a file, or None where it cannot be read."""
    table = process.read_text(f"{process.PROC}/locks", MAX_TABLE_BYTES)
    if table is None:
        return None
    rows = [row for row in map(parsed_row, table.splitlines()) if row is not None]
    return rows_on(rows, found, _read_devices())


def _read_devices() -> frozenset[str]:
    text = process.read_text(f"{process.PROC}/self/mountinfo", MAX_TABLE_BYTES) or ""
    return frozenset(fields[2] for fields in map(str.split, text.splitlines()) if len(fields) > 2)


def read_carried(pid: int, path: str) -> list[Carried] | None:
    """Return the flocks that a process has on the file of this path, or on one that was there; None if it hides them."""
    base = f"{process.PROC}/{pid}"
    try:
        numbers = os.listdir(f"{base}/fd")[:MAX_DESCRIPTORS]
    except FileNotFoundError:
        return []  # gone
    except OSError:
        return None
    found = []
    for number in numbers:
        try:
            if not _names(os.readlink(f"{base}/fd/{number}"), os.path.basename(path)):
                continue
            status = os.stat(f"{base}/fd/{number}")
        except OSError:
            continue  # closed meanwhile
        for text in (process.read_text(f"{base}/fdinfo/{number}") or "").splitlines():
            row = parsed_row(text.removeprefix("lock:")) if text.startswith("lock:") else None
            if row is not None:
                found.append(Carried(pid=pid, locker=row.locker, device=status.st_dev, inode=status.st_ino))
    return found


def _names(target: str, lock_name: str) -> bool:
    """Tell whether an open file is, or was before it was moved aside, the lock file; `x.lock.lock` is another lease's."""
    name = target.removesuffix(DELETED).rpartition("/")[2]
    return name == lock_name or (name.startswith(lock_name) and not name.endswith(".lock"))


def read_all_carried(path: str) -> list[Carried]:
    """Return the flocks that all processes we can look into have on the file of this path, by pid."""
    return [carried for pid in sorted(process.read_pids()) for carried in read_carried(pid, path) or ()]
