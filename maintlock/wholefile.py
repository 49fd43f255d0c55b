"""Files that others read at any time (package.json, maintlock.toml, our own records), written whole: beside the old one, to the disk, then renamed over it.

Whoever reads at any moment, also after a crash, finds the old contents or the new. One temporary name for each file, so that
what a crash has left is cleaned up by the next writer; writers of one directory take turns (`turn_in`).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager

from maintlock import flock
from maintlock.errors import RefusedError, UnavailableError
from maintlock.redact import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from maintlock.errors import MaintlockError

NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
PLAIN_MODE = 0o644
TURN_SECONDS = 10.0
REFUSED_ERRNOS = frozenset({errno.EACCES, errno.EPERM})


@contextmanager
def turn_in(directory: str) -> Iterator[None]:
    """Keep other writers of ours out of a directory meanwhile; where directories cannot be locked, nobody is kept out.

    Raises:
        UnavailableError: Another one does not come to its end.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(directory, error) from error
    try:
        if not _is_our_turn(fd):
            raise UnavailableError(f"{printable(directory)}: another maintlock is writing here; run it again")
        yield
    finally:
        os.close(fd)


def _is_our_turn(fd: int) -> bool:
    try:
        return flock.lock_within(fd, seconds=TURN_SECONDS)
    except UnavailableError:  # NFS, say: what is left is the comparison before the rename
        return True


def write(
    path: str,
    content: bytes,
    *,
    mode: int = PLAIN_MODE,
    like: os.stat_result | None = None,
    before_rename: Callable[[], None] | None = None,
    is_durable: bool = True,
) -> None:
    """Write a file whole, with the owner and mode of `like` where that is given.

    `before_rename` may raise to keep the old file. What need not outlive a crash of the machine does not wait for the disk.

    Raises:
        RefusedError: It may not be written, or not without changing whose it is.
        UnavailableError: It cannot be written.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.maintlock-new")
    try:
        _remove(temporary)
        try:
            _write_new(temporary, content, mode, like, is_durable=is_durable)
            if before_rename is not None:
                before_rename()
            os.rename(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
        if is_durable:
            _sync_directory(directory)
    except OSError as error:
        raise failure(path, error) from error


def _write_new(path: str, content: bytes, mode: int, like: os.stat_result | None, *, is_durable: bool) -> None:
    fd = os.open(path, NEW_FLAGS, 0o600)
    try:
        if like is not None:
            ours = os.fstat(fd)
            if (ours.st_uid, ours.st_gid) != (like.st_uid, like.st_gid):
                os.fchown(fd, like.st_uid, like.st_gid)
            mode = stat.S_IMODE(like.st_mode)
        os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        if is_durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _sync_directory(directory: str) -> None:
    fd = os.open(directory or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError:
        pass  # some filesystems cannot, and the file is in its place
    finally:
        os.close(fd)


def failure(path: str, error: OSError) -> MaintlockError:
    """Return the error to raise for a file that cannot be written: refused, or not available."""
    if error.errno in REFUSED_ERRNOS:
        return RefusedError(
            f"{printable(path)}: not written: {error.strerror}; it and its directory must be yours to write"
        )
    return UnavailableError(f"{printable(path)}: not written: {error.strerror}")
