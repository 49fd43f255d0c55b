"""The kernel lock, flock(2): the only module that locks.

The lock belongs to the open file description. Children inherit it, the kernel frees it with the last descriptor, and an
explicit unlock by anybody who shares it frees it at once: so only a holder's own normal end unlocks, children close.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from maintlock import paths
from maintlock.errors import RefusedError, UnavailableError, UsageError

POLL_SECONDS = 0.005
FLAG_LOOKS = 200
FLAG_SIGHTINGS = 8
FLAG_LOOK_SECONDS = 0.00025
FIRST_OWN_DESCRIPTOR = 3


def open_file(path: str) -> int:
    """Open a lock file, created 0600 where it is missing; the descriptor is close-on-exec and never 0, 1 or 2.

    Raises:
        RefusedError: It is a symlink or no regular file, or not ours alone to write.
        UnavailableError: It cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise paths.open_failure(path, error) from error
    if fd < FIRST_OWN_DESCRIPTOR:
        fd = moved_up(fd)
    found = os.fstat(fd)
    try:
        paths.check_trusted(path, found)
    except RefusedError:
        os.close(fd)
        raise
    if found.st_mode & 0o600 != 0o600:
        os.fchmod(fd, 0o600)  # the umask took more than it should
    return fd


def check_given(fd: int, path: str) -> None:
    """Refuse a descriptor that is not the lock file, open for reading and writing.

    Raises:
        UsageError: With how to open it.
    """
    try:
        fits = is_current(fd, path) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    except OSError:
        fits = False
    if not fits:
        raise UsageError(
            f"--fd {fd}: is not {path}, open for reading and writing; open that file with mode 0600 and try again"
        )


def moved_up(fd: int) -> int:
    """Return `fd` as a descriptor above the standard three: one of these was closed, and is the job's to find closed."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_DESCRIPTOR)
    finally:
        os.close(fd)


def duplicated(fd: int) -> int:
    """Return another descriptor of the same open file description, close-on-exec and none of the standard three."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_DESCRIPTOR)


def inherited(path: str) -> list[int]:
    """Return the descriptors of a lock file that we were started with: the job that we are inside of was handed them."""
    found = []
    for name in os.listdir("/dev/fd"):
        try:
            if os.get_inheritable(int(name)) and is_current(int(name), path):
                found.append(int(name))
        except OSError:
            continue  # the one that the listing itself had open
    return found


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock if that is possible at once.

    Raises:
        UnavailableError: The filesystem or the kernel cannot lock.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES, errno.EINTR}:
            return False
        raise _failure(error) from error
    return True


def lock(fd: int, *, shared: bool = False) -> None:
    """Wait for the lock in the kernel's queue, first come first served.

    Raises:
        UnavailableError: The filesystem or the kernel cannot lock.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        raise _failure(error) from error


def lock_within(fd: int, *, shared: bool = False, seconds: float) -> bool:
    """Take the lock, trying every 5 ms for at most `seconds`: for brief locks, where order does not matter."""
    deadline = time.monotonic() + seconds
    while not try_lock(fd, shared=shared):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def unlock(fd: int) -> None:
    """Free the lock for everybody who shares this open file description."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def unlock_and_close(fd: int) -> None:
    """Free the lock and close the file: closing alone would leave it to a fork of ours, or to whom the descriptor leaked."""
    unlock(fd)
    os.close(fd)


def is_current(fd: int, path: str) -> bool:
    """Tell whether `path` still names the file that `fd` has open: what was locked may have been replaced meanwhile."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    ours = os.fstat(fd)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def has_waiters(queue_fd: int) -> bool:
    """Tell whether somebody waits: a waiter holds the queue file shared, as a mere flag.

    Others who ask this question hold it for a moment, exclusively or shared, and are not taken for waiters: a waiter is there
    at several looks in a row, and always lets others hold it shared beside itself. One of them that loses its processor
    just then for all of these looks is mistaken for a waiter; whoever believes it makes an offer that nobody takes.
    """
    sightings = 0
    for _ in range(FLAG_LOOKS):
        if try_lock(queue_fd):
            unlock(queue_fd)
            return False
        if try_lock(queue_fd, shared=True):
            unlock(queue_fd)
            sightings += 1
            if sightings == FLAG_SIGHTINGS:
                return True
        else:
            sightings = 0
        time.sleep(FLAG_LOOK_SECONDS)
    return True


def _failure(error: OSError) -> UnavailableError:
    return UnavailableError(f"cannot lock: {error.strerror} (is the state directory on a local filesystem?)")
