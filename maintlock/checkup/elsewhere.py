"""Other state directories in use (L9): two directories are two locks, and nobody who uses one sees the other.

They are found by the lock files that processes have open, by the environments of our user's processes, and where the
default or the configuration would lead. What is seen of a process in a container is compared by inode, not by name.
"""

from __future__ import annotations

import os
import stat

from maintlock import line as line_file
from maintlock import locktable, process, tokens
from maintlock.model import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from maintlock.process import Stat

LOCK_ENDING = ".lock"
RECENTLY_SECONDS = 7 * 86400.0
MAX_DESCRIPTORS = 4096  # of one process
MAX_LEASES = 1000


@record(frozen=True, kw_only=True)
class OpenLock:
    """One lock file of ours that a process has open; `is_locked` by this very descriptor, `path` as it was opened."""

    pid: int
    path: str
    device: int
    inode: int
    is_locked: bool

    @property
    def directory(self) -> str:
        """The state directory that it is, or was, in."""
        return os.path.dirname(self.path)

    def is_same(self, found: os.stat_result | None) -> bool:
        """Tell whether it is the file that was found under some path."""
        return found is not None and (self.device, self.inode) == (found.st_dev, found.st_ino)


@record(frozen=True, kw_only=True)
class Neighbour:
    """Another state directory: who works there now, whose environment names it, and when it was used last."""

    path: str
    source: str
    working: tuple[Stat, ...] = ()
    pointed: tuple[Stat, ...] = ()
    used_at: float | None = None


def read_open_locks(directory: str, table: Mapping[int, Stat]) -> list[OpenLock]:
    """Return the lock files of ours that processes have open, as far as we can look into them, by pid."""
    return [found for pid in sorted(table) for found in _read_open_in(pid, directory)]


def _read_open_in(pid: int, directory: str) -> Iterable[OpenLock]:
    base = f"{process.PROC}/{pid}"
    try:
        numbers = os.listdir(f"{base}/fd")[:MAX_DESCRIPTORS]
    except OSError:
        return
    for number in numbers:
        try:
            target = os.readlink(f"{base}/fd/{number}").removesuffix(locktable.DELETED)
            if not target.endswith(LOCK_ENDING) and os.path.dirname(target) != directory:
                continue
            status = os.stat(f"{base}/fd/{number}")
        except OSError:
            continue  # closed meanwhile
        if stat.S_ISREG(status.st_mode) and _is_lock_file(f"{base}/fd/{number}"):
            rows = (process.read_text(f"{base}/fdinfo/{number}") or "").splitlines()
            flocks = [locktable.parsed_row(row.removeprefix("lock:")) for row in rows if row.startswith("lock:")]
            is_locked = any(row is not None and not row.is_waiting for row in flocks)
            yield OpenLock(pid=pid, path=target, device=status.st_dev, inode=status.st_ino, is_locked=is_locked)


def _is_lock_file(path: str) -> bool:
    """Tell whether a file has our record in it: many programs have files named so."""
    return line_file.decoded(process.read_bytes(path, line_file.WIDTH) or b"") is not None


def find(
    directory: str, chosen: Mapping[str, str | None], open_locks: Sequence[OpenLock], table: Mapping[int, Stat]
) -> dict[str, Neighbour]:
    """Return the other state directories, by path; `chosen` are those where a request might lead to, by the reason."""
    ours = _identity(directory)
    found: dict[str, Neighbour] = {}
    for source, path in chosen.items():
        used_at = None if path is None else read_last_use(path)
        if path is not None and used_at is not None and not _is_same(path, directory, ours):
            found[path] = Neighbour(path=path, source=source, used_at=used_at)
    locks = _locks_in(directory)
    for lock in open_locks:
        if (lock.device, lock.inode) not in locks and not _is_same(lock.directory, directory, ours):
            _add(found, lock.directory, "lock files that are open", working=table[lock.pid])
    for pid, path in _read_environments(table):
        if not _is_same(path, directory, ours, root=f"{process.PROC}/{pid}/root"):
            _add(found, path, "MAINTLOCK_STATE_DIR of running processes", pointed=table[pid])
    return found


def _add(
    found: dict[str, Neighbour], path: str, source: str, *, working: Stat | None = None, pointed: Stat | None = None
) -> None:
    known = found.get(path) or Neighbour(path=path, source=source, used_at=read_last_use(path))
    found[path] = Neighbour(
        path=path,
        source=known.source,
        working=_with(known.working, working),
        pointed=_with(known.pointed, pointed),
        used_at=known.used_at,
    )


def _with(stats: tuple[Stat, ...], more: Stat | None) -> tuple[Stat, ...]:
    return stats if more is None or more in stats else (*stats, more)


def _read_environments(table: Mapping[int, Stat]) -> Iterable[tuple[int, str]]:
    """Return which of our user's processes have a state directory in their environment, but for us and our ancestors."""
    name = tokens.STATE_DIR.encode()
    exempt = {os.getpid(), *[parent.pid for parent in process.ancestors(os.getpid())]}
    for pid, row in table.items():
        environ = None if pid in exempt or row.is_dead else process.read_environ(row.pid)
        value = process.environ_value(environ, name) if environ else b""
        if value and os.path.isabs(value):
            yield pid, os.path.normpath(os.fsdecode(value))


def read_last_use(directory: str) -> float | None:
    """Return when a state directory was last used, in seconds since the epoch; None if it never was, or is none."""
    used = []
    try:
        names = [name for name in os.listdir(directory) if name.endswith(LOCK_ENDING)]
    except OSError:
        return None
    for name in names[:MAX_LEASES]:
        line = line_file.read_path(f"{directory}/{name}")
        if line is not None:
            used.append(line.ended_at if line.ended_at is not None else line.started_at)
    return max(used, default=None)


def is_recent(used_at: float | None, now: float) -> bool:
    """Tell whether a use was within the last week."""
    return used_at is not None and now - used_at < RECENTLY_SECONDS


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_same(path: str, directory: str, ours: tuple[int, int] | None, root: str = "") -> bool:
    """Tell whether a path leads to our directory; below `root` for a process that may see other filesystems."""
    found = _identity(root + path) or (_identity(path) if root else None)
    return path == directory if found is None or ours is None else found == ours


def _locks_in(directory: str) -> set[tuple[int, int]]:
    try:
        names = [name for name in os.listdir(directory) if name.endswith(LOCK_ENDING)][:MAX_LEASES]
    except OSError:
        return set()
    return {found for found in (_identity(f"{directory}/{name}") for name in names) if found is not None}
