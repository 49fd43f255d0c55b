"""The sidecar: the JSON record that describes the holder. It decides nothing, and every reader survives a hostile one."""

from __future__ import annotations

import errno
import os
import stat

from maintlock import flock
from maintlock.jsontext import encoded_object
from maintlock.model import Line, ProcessIdentity, record
from maintlock.names import is_lease_name, is_task_name
from maintlock.paths import NO_DESCRIPTOR_LEFT, open_failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

SCHEMA = 1
_decoders: list[Callable[[str], Any]] = []  # made when it is first needed, by a waiter before it is in a hurry
MAX_BYTES = 1024 * 1024  # 64 arguments of 512 characters, each of them twelve letters in JSON, and a long path
FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # no FIFO in its place can hold us, who hold the lease
MAX_FENCE = 2**53  # beyond it, somebody else wrote this
MAX_NUMBER = 2**53
INTEGERS = ("fence", "pid", "pid_start_ticks", "session_id", "uid")
TEXTS = (
    "lease", "lease_id", "task", "owner", "source", "reason", "mode", "pid_started_at", "boot_id", "pid_namespace",
    "hostname", "cwd", "acquired_at",
)  # fmt: skip
NUMBERS = ("waited_seconds", "ttl_seconds")


@record(frozen=True, kw_only=True)
class Reading:
    """What was found: `state` is one of `valid missing malformed unreadable`; `fields` only where it is valid."""

    state: str
    fields: Mapping[str, Any] | None = None

    @property
    def lease_id(self) -> str:
        """The grant that it describes, or `""`."""
        return str(self.fields["lease_id"]) if self.fields is not None else ""

    @property
    def identity(self) -> ProcessIdentity | None:
        """The process that wrote it."""
        return None if self.fields is None else identity_in(self.fields)


def identity_in(fields: Mapping[str, Any]) -> ProcessIdentity:
    """Return who the sidecar says the holder is."""
    return ProcessIdentity(
        pid=fields["pid"],
        start_ticks=fields["pid_start_ticks"],
        boot_id=fields["boot_id"],
        pid_namespace=fields["pid_namespace"],
    )


def line_in(fields: Mapping[str, Any]) -> Line:
    """Return the line that a sidecar's grant had, as far as the sidecar tells; not how long its leftovers keep the lease."""
    from maintlock.times import epoch_seconds

    return Line(
        fence=fields["fence"],
        lease_id=fields["lease_id"],
        task=fields["task"],
        source=fields["source"],
        session_id=fields["session_id"],
        hold_until="session",
        mode=fields["mode"],
        identity=identity_in(fields),
        started_at=epoch_seconds(fields["acquired_at"]) or 0.0,
    )


def write(path: str, fields: Mapping[str, object], *, is_first: bool = False) -> None:
    """Write the record whole: one fixed temporary name, then rename(2). Only the holder may.

    A grant's first one removes what a crash has left, before it takes its place: to have one file replaced by another is
    dearer, as ext4 writes the new one out before that.

    Raises:
        OSError: It could not be written; what stood there before still stands.
    """
    temporary = f"{path}.tmp"
    content = encoded_object({"schema": SCHEMA, **fields}).encode("ascii") + b"\n"
    try:
        _write_new(temporary, content)
        if is_first:
            remove(path)
        os.rename(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # the failure that we are here for is told
        raise


def _write_new(path: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | FLAGS
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:  # left by a crash
        os.unlink(path)
        fd = os.open(path, flags, 0o600)
    try:
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Remove the record at the end of a grant; that it is gone already is no fault."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def keep_open(path: str) -> int:
    """Return a descriptor of what is to be removed or replaced, -1 where there is none; close it once nobody waits any more.

    The last close of a removed file gives its place on the disk back, and takes longer than the rest of a hand-off.
    """
    try:
        fd = os.open(path, os.O_RDONLY | FLAGS)
        return flock.moved_up(fd) if fd < flock.FIRST_OWN_DESCRIPTOR else fd
    except OSError:
        return -1


def read(path: str) -> Reading:
    """Return what stands in the sidecar's place, whatever that is.

    Raises:
        UnavailableError: There was no descriptor left to open it with.
    """
    try:
        fd = os.open(path, os.O_RDONLY | FLAGS)
    except FileNotFoundError:
        return Reading(state="missing")
    except OSError as error:
        if error.errno in NO_DESCRIPTOR_LEFT:
            raise open_failure(path, error) from error  # whose lease it is would be decided without it
        return Reading(state="unreadable")
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return Reading(state="unreadable")
        content = os.read(fd, MAX_BYTES + 1)
    except OSError:
        return Reading(state="unreadable")
    finally:
        os.close(fd)
    fields = None if len(content) > MAX_BYTES else decoded(content)
    return Reading(state="malformed") if fields is None else Reading(state="valid", fields=fields)


def decoded(content: bytes) -> Mapping[str, Any] | None:
    """Return the record's fields, or None where they are not all there and of their kinds."""
    if not _decoders:
        import json

        _decoders.append(json.JSONDecoder(parse_constant=_refuse_constant).decode)
    try:
        fields = _decoders[0](content.decode())
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and _is_complete(fields) else None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _is_complete(fields: dict[str, Any]) -> bool:
    return (
        all(_is_integer(fields.get(name)) for name in ("schema", *INTEGERS))
        and fields["schema"] >= SCHEMA
        and all(isinstance(fields.get(name), str) for name in TEXTS)
        and all(_is_number(fields.get(name)) for name in NUMBERS)
        and fields["fence"] <= MAX_FENCE
        and is_task_name(fields["task"])
        and is_lease_name(fields["lease"])
        and is_lease_name(fields["lease_id"])
        and (fields.get("job_pid") is None or _is_integer(fields["job_pid"]))
        and isinstance(fields.get("command"), list)
        and all(isinstance(item, str) for item in fields["command"])
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    # JSON has no infinity, but 1e999 is read as one.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER
