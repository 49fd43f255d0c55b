"""The one orchestrator of a state directory: a lock of its own, which it keeps for as long as it lives (L11)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import portalocker

from maintlock import flock, locktable, process
from maintlock.errors import AlreadyRunningError
from maintlock.orchestrator import record
from maintlock.redact import printable
from maintlock.times import rfc3339

if TYPE_CHECKING:
    from typing import IO


class Instance:
    """The lock that makes us the one orchestrator here. It is freed by the kernel, with our process."""

    def __init__(self, directory: str) -> None:
        """Take it.

        Raises:
            AlreadyRunningError: Another orchestrator has it.
            RefusedError: The file could be somebody else's.
            UnavailableError: It cannot be opened.
        """
        self._path = f"{directory}/{record.LOCK_FILE}"
        self._file: IO[bytes] = os.fdopen(flock.open_file(self._path), "r+b", buffering=0)
        try:
            portalocker.lock(self._file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.LockException as error:
            self._file.close()
            raise AlreadyRunningError(_refusal(directory)) from error

    def is_current(self) -> bool:
        """Tell whether our lock is still on the file that everybody else would lock."""
        return flock.is_current(self._file.fileno(), self._path)

    def close(self) -> None:
        """Let another one take over."""
        self._file.close()


def _refusal(directory: str) -> str:
    known = record.read(directory)
    if known is None or known.stopped_at is not None or process.is_alive(known.identity) is False:
        return f"another orchestrator runs on {directory}{_locker(directory)}; see: maintlock health"
    since = f", since {rfc3339(known.started_at)}" if known.started_at else ""
    return (
        f"another orchestrator runs on {directory}: pid {known.identity.pid}, owner {printable(known.owner, 80)}{since}; "
        f"stop it with: kill {known.identity.pid}"
    )


def _locker(directory: str) -> str:
    """Return who has the lock by the kernel's own table, for one that is not on record."""
    try:
        rows = locktable.read_rows_on(os.stat(f"{directory}/{record.LOCK_FILE}"))
    except OSError:
        return ""
    pids = sorted({row.locker for row in rows or () if row.locker})
    return f": pid {pids[0]}" if pids else ""
