"""A library's lock around a command, as its documentation shows it: `guard.py KIND PATH TTL try|wait|hammer COMMAND…`.

`try` exits 75 when somebody has the lock, and 73 when it cannot be had at all. `wait` leaves a mark when it begins to wait. `hammer` takes it again and again without
waiting, until it is killed, and appends a line to the file that COMMAND names for each time that it had it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

DEFERRED, CANNOT = 75, 73
HAD_SECONDS = 0.002
BEGINS_AT = "PEERS_BEGIN_AT"  # the moment, in nanoseconds of the monotonic clock, at which several begin together
Release = Callable[[], object]


def take_filelock(path: str, *, is_waiting: bool, **_: Any) -> Release | None:
    """Take a FileLock of filelock."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=is_waiting)
    except filelock.Timeout:
        return None
    return lock.release


def take_portalocker(path: str, *, is_waiting: bool, **_: Any) -> Release | None:
    """Take a Lock of portalocker, with the interval that it has by itself."""
    import portalocker

    lock = portalocker.Lock(path, timeout=3600 if is_waiting else 0, fail_when_locked=not is_waiting)
    try:
        lock.acquire()
    except portalocker.AlreadyLocked:
        return None
    return lock.release


def take_pidfilelock(path: str, *, is_waiting: bool, **_: Any) -> Release | None:
    """Take a PidFileLock of portalocker."""
    import portalocker

    lock = portalocker.PidFileLock(path, timeout=3600 if is_waiting else 0, fail_when_locked=not is_waiting)
    try:
        lock.acquire()
    except portalocker.AlreadyLocked:
        return None
    return lock.release


def take_fasteners(path: str, *, is_waiting: bool, **_: Any) -> Release | None:
    """Take an InterProcessLock of fasteners, a record lock of fcntl(2)."""
    import fasteners  # type: ignore[import-untyped]  # it has no types

    lock = fasteners.InterProcessLock(path)
    return lock.release if lock.acquire(blocking=is_waiting) else None


def take_pid_ttl(path: str, *, is_waiting: bool, ttl: float, kind: str) -> Release | None:
    """Take the lock file with a PID and a TTL."""
    from tests.peers.pid_ttl import PidTtlLock

    lock = PidTtlLock(path, rule=kind, ttl_seconds=ttl)
    if is_waiting:
        lock.acquire()
        return lock.release
    return lock.release if lock.try_acquire() else None


def take_flock(path: str, **_: Any) -> Release | None:
    """Do what `flock -n` does, for hammering only."""
    import fcntl

    fd = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return lambda: os.close(fd)


def take_maintlock(path: str, **_: Any) -> Release | None:
    """Do what `hold()` does, for hammering only."""
    import maintlock

    holding = maintlock.hold("hammerer", state_dir=os.path.dirname(path))
    try:
        holding.__enter__()
    except maintlock.LeaseHeld:
        return None
    return lambda: holding.__exit__(None, None, None)


TAKERS: dict[str, Callable[..., Release | None]] = {
    "filelock": take_filelock,
    "portalocker": take_portalocker,
    "pidfilelock": take_pidfilelock,
    "fasteners": take_fasteners,
    "ttl": take_pid_ttl,
    "pid": take_pid_ttl,
    "flock": take_flock,
    "maintlock": take_maintlock,
}


def waiting_mark(path: str, pid: int) -> str:
    """Return the file by which somebody says that it begins to wait."""
    return f"{path}.waiting.{pid}"


def main() -> int:
    """Take the lock, run the command, give it back."""
    kind, path, ttl, how, *command = sys.argv[1:]
    options = {"ttl": float(ttl), "kind": kind}
    if how == "hammer":
        hammer(lambda: TAKERS[kind](path, is_waiting=False, **options), command[0])
    while time.monotonic_ns() < int(os.environ.get(BEGINS_AT, "0")):
        pass
    try:
        release = TAKERS[kind](path, is_waiting=False, **options)
        if release is None and how == "wait":
            open(waiting_mark(path, os.getpid()), "w").close()
            release = TAKERS[kind](path, is_waiting=True, **options)
    except OSError as error:
        print(f"guard: {error}", file=sys.stderr)
        return CANNOT
    if release is None:
        return DEFERRED
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        release()


def hammer(take: Callable[[], Release | None], log: str) -> None:
    """Have the lock as often as possible, for a moment each; there is a log from the first attempt on, which is in vain."""
    assert take() is None
    with open(log, "ab", buffering=0) as file:
        while True:
            release = take()
            if release is not None:
                file.write(b"hammerer\n")
                time.sleep(HAD_SECONDS)
                release()


if __name__ == "__main__":
    sys.exit(main())
