"""`ledger.pending`: events that wait for the ledger, one JSON line each.

Whoever has something to tell appends one write under a shared lock; whoever has time drains the file into SQLite under the
exclusive one. Appending is on the way to a job's start: it costs microseconds, never waits long, and never fails the job.
What is appended without the lock could be cut off unread. So while a drain is stopped under its lock, what is told goes to
the next of several such files, and all that is told later too, until that one is drained: their order is that of the events.
"""

from __future__ import annotations

import errno
import os
from stat import S_ISREG

from maintlock import flock
from maintlock.errors import MaintlockError
from maintlock.jsontext import encoded_object
from maintlock.paths import PENDING_FILES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Self

    from maintlock.model import Event

PENDING = PENDING_FILES[0]
DROPPED = "ledger.dropped"
MAX_BYTES = 64 << 20  # beyond this nobody drains any more: the oldest events are worth more than the disk
MAX_READ_BYTES = MAX_BYTES + (1 << 20)  # room for what several appenders add at once
MAX_LINE_BYTES = 64 << 10
MAX_TEXT = 1000  # of each text in an event whose line would be longer than that
APPEND_LOCK_SECONDS = 0.2  # then it is the turn of the next file
LAST_LOCK_SECONDS = 0.75  # in all, where there is no next file: a drain keeps one while it waits for the database
_is_in_vain = [False]  # whether the last wait was: a program that tells several things waits for one of them
DRAIN_LOCK_SECONDS = 0.5
COUNTER_DIGITS = 20
FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # neither a symlink nor a FIFO in its place can lead or hold us


def append(directory: str, events: Sequence[Event]) -> bool:
    """Append events with one write; False if any was dropped, which is counted in `ledger.dropped`.

    Takes 0.95 s at worst, while drains are stopped, once; and raises nothing: no job waits for, or fails of, its own history.
    """
    try:
        lines = [_line(event) for event in events]
        lost, is_whole = _write(directory, lines) if lines else (0, True)
    except (OSError, TypeError, ValueError, RecursionError):
        lost, is_whole = len(events), False
    if lost:
        count_dropped(directory, lost)
    return is_whole


def read(directory: str) -> list[Event]:
    """Return the events that wait, oldest first, without locking; what is not an event is skipped."""
    events: list[Event] = []
    for name in PENDING_FILES:
        try:
            fd = _opened(directory, name, os.O_RDONLY)
            try:
                events += _events(_content(fd))[0]
            finally:
                os.close(fd)
        except (OSError, ValueError):
            pass
    return events


def waiting(directory: str) -> list[str]:
    """Return the names of the files in which something waits, those with older events first.

    Raises:
        OSError: The state directory cannot be read.
    """
    names = []
    for name in PENDING_FILES:
        try:
            found = os.lstat(f"{directory}/{name}")
        except FileNotFoundError:
            continue
        if found.st_size or not S_ISREG(found.st_mode):
            names.append(name)
    return names


def size(directory: str) -> int:
    """Return how many bytes of events wait."""
    try:
        return sum(os.lstat(f"{directory}/{name}").st_size for name in waiting(directory))
    except OSError:
        return 0


def dropped(directory: str) -> int:
    """Return how many events were ever dropped; 0 where that cannot be read."""
    try:
        fd = _opened(directory, DROPPED, os.O_RDONLY)
        try:
            return _count(fd)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return 0


def count_dropped(directory: str, lost: int) -> None:
    """Add to the count of dropped events, as well as that can be done.

    The digits are overwritten in place, which works on a full disk too.
    """
    try:
        fd = _opened(directory, DROPPED, os.O_RDWR | os.O_CREAT)
        try:
            is_locked = _is_locked(fd, shared=False, seconds=APPEND_LOCK_SECONDS)
            total = min(_count(fd) + lost, 10**COUNTER_DIGITS - 1)
            os.pwrite(fd, f"{total:0{COUNTER_DIGITS}d}\n".encode("ascii"), 0)
            if is_locked:
                flock.unlock(fd)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        pass


class Drain:
    """A pending file under its exclusive lock: `events` to enter, `bad_lines` that are none."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        content = _content(fd)
        self.events, self.bad_lines = _events(content)
        self.bad_lines += os.fstat(fd).st_size > len(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        flock.unlock(self._fd)  # also for a descriptor that a fork in another thread took along
        os.close(self._fd)

    def truncate(self) -> None:
        """Empty the file once its events are entered.

        Raises:
            OSError: The file cannot be cut.
        """
        os.ftruncate(self._fd, 0)


def locked_for_drain(directory: str, name: str = PENDING, *, seconds: float = DRAIN_LOCK_SECONDS) -> Drain:
    """Lock a pending file exclusively and read it; leaving the returned context gives it back.

    Raises:
        TimeoutError: Somebody else kept it for `seconds`.
        OSError: It cannot be opened, locked, read, or is no regular file.
    """
    fd = _opened(directory, name, os.O_RDWR)
    try:
        if not _is_locked(fd, shared=False, seconds=seconds):
            raise TimeoutError(errno.ETIMEDOUT, "is being drained or appended to by a process that does not finish")
        return Drain(fd)
    except BaseException:
        os.close(fd)
        raise


def _opened(directory: str, name: str, flags: int) -> int:
    fd = os.open(f"{directory}/{name}", flags | FLAGS, 0o600)
    if fd < flock.FIRST_OWN_DESCRIPTOR:
        fd = flock.moved_up(fd)
    if not S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file", f"{directory}/{name}")
    return fd


def _is_locked(fd: int, *, shared: bool, seconds: float) -> bool:
    try:
        return flock.lock_within(fd, shared=shared, seconds=seconds)
    except MaintlockError:
        return False


def _line(event: Mapping[str, object]) -> str:
    line = encoded_object(event)
    if len(line) >= MAX_LINE_BYTES:
        cut = {key: value[:MAX_TEXT] if isinstance(value, str) else value for key, value in event.items()}
        line = encoded_object(cut)
    if len(line) >= MAX_LINE_BYTES:
        raise ValueError("too long for a line")
    return line + "\n"


def _write(directory: str, lines: list[str]) -> tuple[int, bool]:
    """Return how many lines are not in the file at all, and whether all are there whole."""
    fd, is_locked = opened_to_append(directory)
    try:
        size = os.fstat(fd).st_size
        if size > MAX_BYTES:
            return len(lines), False
        if size == 0:
            _prepare(directory, fd)
        # A line that a full disk has torn must not swallow ours.
        lead = "\n" if size and os.pread(fd, 1, size - 1) != b"\n" else ""
        text = lead + "".join(lines)
        written = os.write(fd, text.encode("ascii"))
    finally:
        if is_locked:
            flock.unlock(fd)
        os.close(fd)
    if written == len(text):
        return 0, True
    return _unwritten(lines, written - len(lead)), False


def opened_to_append(directory: str, *, at_most: float = LAST_LOCK_SECONDS) -> tuple[int, bool]:
    """Return the descriptor of a pending file, and whether it is locked: it is not where no drain could lock it either.

    `at_most` seconds are waited in all, and none after a wait in vain, until an append has succeeded again.

    Raises:
        TimeoutError: Drains are stopped under the locks of all files that are left.
        OSError: The file cannot be opened.
    """
    left = 0.0 if _is_in_vain[0] else at_most
    seconds = min(APPEND_LOCK_SECONDS, left)
    for name in PENDING_FILES[_newest(directory) :]:
        seconds = left if name == PENDING_FILES[-1] else seconds
        fd = _opened(directory, name, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            if flock.lock_within(fd, shared=True, seconds=seconds):
                _is_in_vain[0] = False
                return fd, True
        except MaintlockError:
            return fd, False
        os.close(fd)
        left -= seconds
        seconds = 0.0
    _is_in_vain[0] = True
    raise TimeoutError(errno.ETIMEDOUT, "is being drained by processes that do not finish")


def _newest(directory: str) -> int:
    """Return which file has the newest events, the first one if none has any."""
    if not os.access(f"{directory}/{PENDING_FILES[1]}", os.F_OK):
        return 0  # nearly always, and this is on the way to a job's start
    newest = 0
    for index in range(1, len(PENDING_FILES)):
        try:
            size = os.lstat(f"{directory}/{PENDING_FILES[index]}").st_size
        except OSError:
            break  # each of them was made after the one before it
        if size:
            newest = index
    return newest


def _unwritten(lines: list[str], written: int) -> int:
    """Return how many lines begin past a short write; a line torn by it is counted by the drain that meets it."""
    begin, lost = 0, 0
    for line in lines:
        lost += begin >= written
        begin += len(line)
    return lost


def _prepare(directory: str, fd: int) -> None:
    if os.fstat(fd).st_mode & 0o777 != 0o600:
        os.fchmod(fd, 0o600)  # the umask took more than it should
    if not os.path.lexists(f"{directory}/{DROPPED}"):
        count_dropped(directory, 0)  # while there is room: on a full disk it can only be overwritten


def _content(fd: int) -> bytes:
    parts: list[bytes] = []
    left = min(os.fstat(fd).st_size, MAX_READ_BYTES)
    offset = 0
    while left > 0 and (part := os.pread(fd, left, offset)):
        parts.append(part)
        offset += len(part)
        left -= len(part)
    return b"".join(parts)


def _count(fd: int) -> int:
    digits = os.pread(fd, COUNTER_DIGITS, 0)
    return int(digits) if digits.isdigit() else 0


def _events(content: bytes) -> tuple[list[Event], int]:
    """Return the events among the lines, and how many lines are none."""
    from io import BytesIO
    from json import JSONDecoder

    decode = JSONDecoder(parse_constant=_no_constant).decode
    events: list[Event] = []
    bad_lines = 0
    for line in BytesIO(content):
        event = _event(line, decode)
        if event is not None:
            events.append(event)
        elif not line.isspace():
            bad_lines += 1
    return events, bad_lines


def _event(line: bytes, decode: Callable[[str], Any]) -> Event | None:
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        event = decode(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(event, dict) and isinstance(event.get("id"), str) and isinstance(event.get("event"), str)
    return event if is_event else None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
