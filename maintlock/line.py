"""The line: one record of fixed width inside the lock file, rewritten in place by the holder with one pwrite(2).

It survives what the sidecar does not (a full disk, a removed file), and it is the holder's proof of its own end. A bad
checksum reads as an empty line.
"""

from __future__ import annotations

import binascii
import errno
import os

from maintlock.model import Line, ProcessIdentity
from maintlock.names import is_lease_name, is_task_name
from maintlock.paths import NO_DESCRIPTOR_LEFT, open_failure

WIDTH = 480
MAGIC = "maintlock1"
NONE = "-"
FIELDS = 18
MAX_NUMBER = 2**53  # beyond it, somebody else wrote this
_known: dict[bytes, Line] = {}  # the last one that this process has written
MAX_MILLISECONDS = 253_402_300_799_999  # the end of the year 9999, which is the last that RFC 3339 can write


def encoded(line: Line) -> bytes:
    """Return the record as `WIDTH` bytes: magic, checksum, fields separated by blanks, padding, newline."""
    identity = line.identity
    values = (
        line.fence,
        line.lease_id,
        line.task,
        line.source,
        line.session_id,
        line.hold_until,
        line.mode,
        identity.pid,
        identity.start_ticks,
        identity.boot_id,
        identity.pid_namespace,
        round(line.started_at * 1000),
        line.group,
        line.outcome,
        NONE if line.exit_code is None else line.exit_code,
        NONE if line.ended_at is None else round(line.ended_at * 1000),
    )
    body = " ".join([str(value) or NONE for value in values])
    text = f"{MAGIC} {checksum(body)} {body}"
    content = text.encode("ascii").ljust(WIDTH - 1) + b"\n"
    if len(content) != WIDTH:
        raise ValueError("a field of the lock's line is too long")
    return content


def checksum(body: str) -> str:
    """Return the CRC-32 of a record's fields as eight hexadecimal digits."""
    return f"{binascii.crc32(body.encode()):08x}"


def decoded(content: bytes) -> Line | None:
    """Return the record, or None where it is empty, torn, hostile or of another kind."""
    return _known.get(content) or _decoded(content)


def _decoded(content: bytes) -> Line | None:
    try:
        fields = content[:WIDTH].decode("ascii").split()
        if (
            len(content) < WIDTH
            or len(fields) != FIELDS
            or fields[0] != MAGIC
            or fields[1] != checksum(" ".join(fields[2:]))
        ):
            return None
        value = ["" if field == NONE else field for field in fields[2:]]
        if not is_lease_name(value[1]) or not is_task_name(value[2]):
            return None
        return Line(
            fence=_number(value[0]),
            lease_id=value[1],
            task=value[2],
            source=value[3],
            session_id=_number(value[4]),
            hold_until=value[5],
            mode=value[6],
            identity=ProcessIdentity(
                pid=_number(value[7]), start_ticks=_number(value[8]), boot_id=value[9], pid_namespace=value[10]
            ),
            started_at=_number(value[11], MAX_MILLISECONDS) / 1000,
            group=_number(value[12]),
            outcome=value[13],
            exit_code=_number(value[14]) if value[14] else None,
            ended_at=_number(value[15], MAX_MILLISECONDS) / 1000 if value[15] else None,
        )
    except ValueError:
        return None


def _number(text: str, largest: int = MAX_NUMBER) -> int:
    number = int(text)
    if not 0 <= number <= largest:
        raise ValueError("a number that none of us writes")
    return number


def read(fd: int) -> Line | None:
    """Return the record of an open lock file."""
    return decoded(os.pread(fd, WIDTH, 0))


def read_path(path: str) -> Line | None:
    """Return the record of a lock file that is not ours to lock: opened for reading only, and never waited for.

    Raises:
        UnavailableError: There was no descriptor left to open it with.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in NO_DESCRIPTOR_LEFT:
            raise open_failure(path, error) from error  # an empty line says something else
        return None
    try:
        return read(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def write(fd: int, line: Line) -> None:
    """Put the record into the lock file. Only the holder may.

    Raises:
        OSError: The disk is full or read-only; what stood there before still stands, or reads as empty.
    """
    content = encoded(line)
    if os.pwrite(fd, content, 0) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _known.clear()
    _known[content] = line
