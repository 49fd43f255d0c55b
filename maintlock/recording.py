"""Putting a grant on record: what the last one left is told, then the line, then the sidecar.

If either cannot be written, it is as if nothing had happened, and the job does not run.
"""

from __future__ import annotations

import errno
import os
import time

from maintlock import events, flock, identity, pending, process, sidecar, terminal
from maintlock import line as line_file
from maintlock.errors import UnavailableError
from maintlock.lease import Lease
from maintlock.model import Line
from maintlock.paths import PENDING_FILES, working_directory
from maintlock.redact import storable
from maintlock.times import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from maintlock.earlier import Earlier
    from maintlock.lease import Request
    from maintlock.model import ProcessIdentity
    from maintlock.paths import Places
    from maintlock.sidecar import Reading
    from maintlock.waiting import Patience

MAX_PATH = 4096
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
UNSEEN = "the last grant was in another pid namespace; any of its processes still running cannot be seen from here"


def put_on_record(earlier: Earlier, request: Request, *, waited_seconds: float, patience: Patience) -> Lease:
    """Return the lease, once line and sidecar say so; `.nested` is excluded until then.

    Raises:
        UnavailableError: They cannot be written (disk full, read-only); the records are as they were.
    """
    places, last, reading = earlier.places, earlier.line, earlier.reading
    now = time.time()
    beside = earlier.beside
    _tell_of_last_grant(places, last, reading, beside, patience, now)
    line = _new_line(places, request, last, beside, now)
    fields = _sidecar_fields(places, request, line, waited_seconds)
    removed_fd = sidecar.keep_open(places.sidecar) if reading.state != "missing" else -1
    try:
        line_file.write(earlier.fd, line)
        sidecar.write(places.sidecar, fields, is_first=reading.state != "missing")
    except OSError as error:
        if removed_fd >= 0:
            os.close(removed_fd)
        _put_back(earlier.fd, earlier.content)
        path = places.lock if error.filename is None else os.fsdecode(error.filename)
        raise UnavailableError(
            f"{path}: the grant cannot be put on record: {error.strerror}; the job was not run; see: "
            f"{'df' if error.errno in NO_ROOM else 'ls -ld'} {places.directory}"
        ) from error
    flock.unlock(earlier.nested_fd)
    return Lease(
        places, request, line, fields, earlier.fd, earlier.nested_fd, inside=earlier.inside, removed_fd=removed_fd
    )


def _tell_of_last_grant(
    places: Places, last: Line | None, reading: Reading, beside: Line | None, patience: Patience, now: float
) -> None:
    if last is not None and last.lease_id == Lease.told_whole and reading.state == "missing":
        return
    told = events.of_last_grant(places.lease, last, reading, beside, now=now)
    if last is not None and not last.outcome and _is_unseen(last.identity):
        told.append(
            events.new("survivors", at=now, lease=places.lease, task=last.task, lease_id=last.lease_id, detail=UNSEEN)
        )
        patience.tell("survivors", f"{last.task}: {UNSEEN}", verbose=True)
    if told:
        pending.append(places.directory, told)


def _new_line(places: Places, request: Request, last: Line | None, beside: Line | None, now: float) -> Line:
    fences = [known.fence for known in (last, beside) if known is not None]
    if last is None and any(os.path.exists(f"{places.directory}/{name}") for name in ("ledger.db", *PENDING_FILES)):
        from maintlock import history

        fences.append(history.highest_fence(places.directory, places.lease))
    return Line(
        fence=max(fences, default=0) + 1,
        lease_id=os.urandom(16).hex(),
        task=request.task,
        source=request.source,
        session_id=os.getsid(0),
        hold_until=request.hold_until,
        mode=request.mode,
        identity=process.own_identity(),
        started_at=now,
        group=os.getpgrp() if request.mode != "supervised" or terminal.is_foreground() else 0,
    )


def _is_unseen(identity: ProcessIdentity) -> bool:
    return process.is_in_other_namespace(identity) and not process.is_of_other_boot(identity)


def _sidecar_fields(places: Places, request: Request, line: Line, waited_seconds: float) -> dict[str, Any]:
    started = process.own_started_at()
    return {
        "lease": places.lease,
        "lease_id": line.lease_id,
        "fence": line.fence,
        "task": line.task,
        "owner": request.owner,
        "source": line.source,
        "reason": request.reason,
        "mode": line.mode,
        "pid": line.identity.pid,
        "pid_started_at": rfc3339(line.started_at if started is None else started),
        "pid_start_ticks": line.identity.start_ticks,
        "boot_id": line.identity.boot_id,
        "pid_namespace": line.identity.pid_namespace,
        "session_id": line.session_id,
        "hostname": identity.host(),
        "uid": os.geteuid(),
        "job_pid": None,
        "job_started_at": None,
        "command": list(request.command),
        "cwd": storable(working_directory(gone=""), MAX_PATH),
        "acquired_at": rfc3339(line.started_at),
        "waited_seconds": waited_seconds,
        "ttl_seconds": request.ttl_seconds,
    }


def _put_back(fd: int, before: bytes) -> None:
    try:
        os.pwrite(fd, before, 0)
        if len(before) < line_file.WIDTH:
            os.ftruncate(fd, len(before))
    except OSError:
        pass
