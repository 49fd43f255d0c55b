"""`orchestrator.json`: who the orchestrator is, what it has started, and why what is due has not been started.

Written whole by the orchestrator alone, when something has changed; that it lives, and when it last polled, is told by the
file's time of change. Nothing in it is believed without a look at the process that it names.
"""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

from maintlock import wholefile
from maintlock.errors import MaintlockError
from maintlock.model import ProcessIdentity, record
from maintlock.names import is_task_name
from maintlock.times import epoch_seconds, rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = "orchestrator.json"
LOCK_FILE = "orchestrator.lock"  # who has this locked writes the record
SCHEMA = 1
MAX_BYTES = 8 * 1024 * 1024
MAX_TEXT = 1000
PRIVATE = 0o600
NOBODY = ProcessIdentity(pid=0, start_ticks=0, boot_id="", pid_namespace="")


@record(frozen=True, kw_only=True)
class Started:
    """A process that the orchestrator has started: who it is, since when (epoch seconds), and for a job why and for which lease.

    Of a daemon that is down, `restart_at` tells when its cooldown is over (epoch seconds).
    """

    identity: ProcessIdentity
    at: float
    reason: str = ""
    lease: str = ""
    restarts: int = 0
    restart_at: float | None = None


@record(frozen=True, kw_only=True)
class Held:
    """Why a task is not started although it is due, since when (epoch seconds)."""

    reason_code: str
    blocked_by: str | None
    since: float


@record(frozen=True, kw_only=True)
class Record:
    """What the orchestrator tells of itself. Times are epoch seconds; `stopped_at` is set once it has ended in good order.

    `poll_interval` is in seconds. `troubles` are by what they are about: `start:TASK`, `daemon:NAME`, `configuration`, …
    """

    identity: ProcessIdentity = NOBODY
    owner: str = ""
    started_at: float = 0.0
    polled_at: float = 0.0
    stopped_at: float | None = None
    poll_interval: float = 3.0
    config: str | None = None
    jobs: Mapping[str, Started] = {}
    daemons: Mapping[str, Started] = {}
    held: Mapping[str, Held] = {}
    troubles: Mapping[str, str] = {}


def write(directory: str, told: Record) -> tuple[int, ...] | None:
    """Write the record whole, and return what tells the file from others; None if it cannot be written."""
    content = json.dumps(encoded(told), indent=1).encode() + b"\n"
    try:
        wholefile.write(f"{directory}/{FILE}", content, mode=PRIVATE, is_durable=False)
    except MaintlockError:
        return None
    written = _opened(directory)  # by now it may be another's already
    return written[1] if written is not None and written[0] == content else ()


def touch(directory: str, file: tuple[int, ...]) -> bool:
    """Tell that we have polled just now; False if what is there is not the file that we have written."""
    try:
        os.utime(f"{directory}/{FILE}", follow_symlinks=False)
        return _told_apart(os.lstat(f"{directory}/{FILE}")) == file
    except OSError:
        return False


def _told_apart(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_mode, found.st_size


def read(directory: str) -> Record | None:
    """Return the record, or None where there is none that can be believed."""
    found = _opened(directory)
    return None if found is None else decoded(found[0], polled_at=found[2])


def _opened(directory: str) -> tuple[bytes, tuple[int, ...], float] | None:
    """Return the content of the record's file, what tells it apart, and when it was changed; None if it is none of ours."""
    try:
        fd = os.open(f"{directory}/{FILE}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size > MAX_BYTES:
            return None
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1), _told_apart(found), found.st_mtime
    except OSError:
        return None
    finally:
        os.close(fd)


def encoded(told: Record) -> dict[str, Any]:
    """Return the record as JSON has it."""
    return {
        "schema": SCHEMA,
        **_identity_fields(told.identity),
        "owner": told.owner,
        "started_at": rfc3339(told.started_at),
        "stopped_at": None if told.stopped_at is None else rfc3339(told.stopped_at),
        "poll_interval": told.poll_interval,
        "config": told.config,
        "jobs": {name: _started_fields(job) for name, job in told.jobs.items()},
        "daemons": {name: _started_fields(daemon) for name, daemon in told.daemons.items()},
        "held": {
            name: {"reason_code": held.reason_code, "blocked_by": held.blocked_by, "since": rfc3339(held.since)}
            for name, held in told.held.items()
        },
        "troubles": dict(told.troubles),
    }


def decoded(content: bytes, *, polled_at: float) -> Record | None:
    """Return the record in a file's content, or None; what is wrong in a part of it leaves out that part."""
    try:
        fields = json.loads(content)
        if not isinstance(fields, dict) or not isinstance(fields.get("schema"), int):
            return None
        return Record(
            identity=_identity(fields),
            owner=_text(fields.get("owner")),
            started_at=_moment(fields.get("started_at")) or 0.0,
            polled_at=polled_at,
            stopped_at=_moment(fields.get("stopped_at")),
            poll_interval=_number(fields.get("poll_interval")),
            config=_text(fields.get("config")) or None,
            jobs=_each(fields.get("jobs"), _started),
            daemons=_each(fields.get("daemons"), _started),
            held=_each(fields.get("held"), _held),
            troubles=_each(fields.get("troubles"), _text, named_like_tasks=False),
        )
    except (ValueError, TypeError, RecursionError):
        return None


def _identity_fields(identity: ProcessIdentity) -> dict[str, Any]:
    return {
        "pid": identity.pid,
        "pid_start_ticks": identity.start_ticks,
        "boot_id": identity.boot_id,
        "pid_namespace": identity.pid_namespace,
    }


def _started_fields(started: Started) -> dict[str, Any]:
    about = {
        "at": rfc3339(started.at),
        "reason": started.reason,
        "lease": started.lease,
        "restarts": started.restarts,
        "restart_at": None if started.restart_at is None else rfc3339(started.restart_at),
    }
    return {**_identity_fields(started.identity), **about}


def _identity(fields: Mapping[str, Any]) -> ProcessIdentity:
    return ProcessIdentity(
        pid=_whole(fields.get("pid")),
        start_ticks=_whole(fields.get("pid_start_ticks")),
        boot_id=_text(fields.get("boot_id")),
        pid_namespace=_text(fields.get("pid_namespace")),
    )


def _started(fields: Any) -> Started:
    at = _moment(fields["at"])
    if at is None:
        raise ValueError("no time")
    restarts = _whole(fields.get("restarts"))
    return Started(
        identity=_identity(fields),
        at=at,
        reason=_text(fields.get("reason")),
        lease=_text(fields.get("lease")),
        restarts=restarts,
        restart_at=_moment(fields.get("restart_at")),
    )


def _held(fields: Any) -> Held:
    since = _moment(fields["since"])
    if since is None:
        raise ValueError("no time")
    return Held(
        reason_code=_text(fields["reason_code"]), blocked_by=_text(fields.get("blocked_by")) or None, since=since
    )


def _each(found: Any, typed: Any, *, named_like_tasks: bool = True) -> dict[str, Any]:
    if not isinstance(found, dict):
        return {}
    kept = {}
    for name, fields in found.items():
        if named_like_tasks and not is_task_name(name):
            continue
        try:
            kept[name] = typed(fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return kept


def _text(value: object) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def _whole(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 < value < 2**40 else 3.0


def _moment(value: object) -> float | None:
    return epoch_seconds(value) if isinstance(value, str) and len(value) < 40 else None
