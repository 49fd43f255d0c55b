"""The outcome file: how one call of `maintlock-wrap` or `maintlock hold` ended, for the program that made it (L3)."""

from __future__ import annotations

import errno
import os
import stat

from maintlock import process
from maintlock.errors import UnavailableError
from maintlock.jsontext import encoded_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_BYTES = 1 << 20


def write(
    path: str,
    *,
    outcome: str,
    exit_code: int | None,
    task: str | None,
    lease_id: str | None = None,
    fence: int | None = None,
    reason_code: str | None = None,
    held_seconds: float = 0.0,
    waited_seconds: float = 0.0,
    holder: Mapping[str, object] | None = None,
) -> None:
    """Write the file whole, by rename.

    Raises:
        UnavailableError: It cannot be written.
    """
    fields = {
        "outcome": outcome,
        "exit_code": exit_code,
        "task": task,
        "lease_id": lease_id,
        "fence": fence,
        "reason_code": reason_code,
        "held_seconds": round(held_seconds, 3),
        "waited_seconds": round(waited_seconds, 3),
        "holder": holder,
    }
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        _write_new(temporary, encoded_object(fields).encode() + b"\n")
        os.rename(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise UnavailableError(f"{path}: outcome cannot be written: {error.strerror}") from error


def read(path: str) -> dict[str, Any]:
    """Return the fields of an outcome file; none where it is missing, or is none."""
    import json

    try:
        found = json.loads(process.read_bytes(path, MAX_BYTES) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_new(path: str, content: bytes) -> None:
    _remove(path)  # whoever may write to the directory could have put something there, and would own what we write
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def clear(path: str) -> None:
    """Remove what an earlier run left, so that nobody takes it for ours, and make sure that ours could be written.

    Raises:
        UnavailableError: It could not.
    """
    directory = os.path.dirname(path) or "."
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # /dev/null, say: root could remove it
            raise UnavailableError(f"{path}: outcome cannot be written: not a regular file; the job was not run")
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UnavailableError(f"{path}: outcome cannot be written: {error.strerror}; the job was not run") from error
    if not os.access(directory, os.W_OK | os.X_OK) or os.stat(directory).st_nlink == 0:  # removed under us
        raise UnavailableError(f"{path}: outcome cannot be written: no directory to write to; the job was not run")
