"""What is held: a grant of one's own, or a part in somebody else's. How one gets there is told in `acquisition`."""

from __future__ import annotations

import os
import time

from maintlock import events, flock, pending, process, sidecar, tokens
from maintlock import line as line_file
from maintlock.model import Line, record, replace
from maintlock.times import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from maintlock.model import Event
    from maintlock.paths import Places


@record(frozen=True, kw_only=True)
class Request:
    """What is asked for. `wait_seconds` is None to stand back at once, infinity to wait for ever."""

    task: str
    owner: str
    reason: str
    source: str
    mode: str
    hold_until: str
    ttl_seconds: float
    command: tuple[str, ...]
    wait_seconds: float | None
    parent_task: str | None = None


class Lease:
    """One grant, held by this process until `release`, or until the last process with its descriptor is gone."""

    told_whole = ""  # the last grant whose beginning and end this process has entered: nobody needs to tell them again

    def __init__(
        self,
        places: Places,
        request: Request,
        line: Line,
        fields: dict[str, Any],
        fd: int,
        nested_fd: int,
        *,
        inside: Line | None = None,
        removed_fd: int = -1,
    ) -> None:
        self.places = places
        self.request = request
        self.line = line
        self.owner_pid = line.identity.pid
        self.fd = fd
        self._fields = fields
        self.nested_fd = nested_fd
        self._removed_fds = [removed_fd]  # of sidecars: the grant's before ours, then our own
        self._inside = inside  # the grant of a job that has lost its wrapper, goes on, and has made this request
        self._begun = time.monotonic()
        self._begin_is_told = False
        self.waited_as: Event | None = None  # the presence of a waiter, which ends with our beginning

    @property
    def held_seconds(self) -> float:
        """How long it has been held."""
        return time.monotonic() - self._begun

    @property
    def waited_seconds(self) -> float:
        """How long it was waited for."""
        return float(self._fields["waited_seconds"])

    def environment(self, environ: Mapping[str, str], *, fd: int | None = None) -> dict[str, str]:
        """Return what a child's environment needs to be known as part of this work."""
        return tokens.environment(environ, self.places, self.line, task=self.request.task, fd=fd)

    def describe_job(self, pid: int, started_at: float | None = None) -> None:
        """Put the job's process into the sidecar; that this fails changes nothing. It started just now, if not said."""
        self._fields.update(job_pid=pid, job_started_at=rfc3339(time.time() if started_at is None else started_at))
        try:
            sidecar.write(self.places.sidecar, self._fields)
        except OSError:
            pass
        self._close_removed()

    def record_begin(self) -> None:
        """Enter the beginning into the ledger."""
        begun = events.acquired(
            self.places.lease, self.line, reason=self.request.reason, waited_seconds=self.waited_seconds
        )
        gone = [] if self.waited_as is None else [absence(self.waited_as)]
        self._begin_is_told = pending.append(self.places.directory, [begun, *gone])

    def record_end(self, ended: Event) -> None:
        """Enter the end into the ledger: what `release` has returned."""
        if pending.append(self.places.directory, [ended]) and self._begin_is_told:
            Lease.told_whole = self.line.lease_id

    def try_exclude_joined(self) -> bool:
        """Let no more jobs join, if none runs at the moment."""
        return flock.try_lock(self.nested_fd)

    def release(self, outcome: str, exit_code: int | None) -> Event:
        """End the grant: outcome into the line, sidecar away, lock free; return the event that the ledger still needs.

        The caller has excluded joined jobs before, and is the process that was given the lease, not a fork of it (§5).
        """
        self.line = replace(
            self.line, outcome=outcome, exit_code=exit_code, ended_at=max(time.time(), self.line.started_at)
        )
        ended = {
            **events.ended(
                self.places.lease,
                self.line,
                event="released",
                outcome=outcome,
                at=self.line.ended_at or 0.0,
                reason=self.request.reason,
            ),
            "seconds": round(self.held_seconds, 6),
        }
        self._leave_line(ended)
        if flock.is_current(self.fd, self.places.lock):
            self._remove_sidecar()
        else:
            self._leave_replaced(ended)
        flock.unlock_and_close(self.nested_fd)  # first, or the next holder would find it locked for a moment
        flock.unlock_and_close(self.fd)
        self._close_removed()
        return ended

    def _leave_line(self, ended: Event) -> None:
        """Put our end into the line; or, where a job goes on that has lost its wrapper, its own grant again.

        Then our end does not stand there, so it is told beforehand, and the next request looks for that job once more.
        """
        left = self.line
        if self._inside is not None:
            self.record_end(ended)
            left = replace(self._inside, fence=self.line.fence)
        try:
            line_file.write(self.fd, left)
        except OSError:
            pass  # the next holder will have to look for survivors; our end is told in the ledger

    def _close_removed(self) -> None:
        while self._removed_fds:
            fd = self._removed_fds.pop()
            if fd >= 0:
                os.close(fd)

    def _remove_sidecar(self) -> None:
        if self._fields["job_pid"] is not None:  # it was replaced since, and is on the disk
            self._removed_fds.append(sidecar.keep_open(self.places.sidecar))
        try:
            sidecar.remove(self.places.sidecar)
        except OSError:
            pass  # swept up by the next holder

    def _leave_replaced(self, ended: Event) -> None:
        """Leave a lock file that others do not see any more: our end does not stand in theirs, so it is told beforehand.

        If theirs is a copy from before our grant, the sidecar stays, and with it our fence.
        """
        self.record_end(ended)
        there = line_file.read_path(self.places.lock)
        if there is None or there.fence >= self.line.fence:
            self._remove_sidecar()


class Joined:
    """A request inside a job: part of that job's grant until it ends."""

    def __init__(self, places: Places, request: Request, line: Line, nested_fd: int | None) -> None:
        self.places = places
        self.request = request
        self.line = line
        self.nested_fd = nested_fd  # None inside the holder's own thread, which needs no proof
        self.owner_pid = os.getpid()
        self._id = events.new_id()
        self._present = presence(places, request, "nested", event_id=events.present_id(self._id))
        self.parent_task = request.parent_task  # looked up once its own job has begun, where it is not known yet
        self._begun = time.monotonic()

    @property
    def held_seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._begun

    @property
    def waited_seconds(self) -> float:
        """A joined job waits for nobody."""
        return 0.0

    def environment(self, environ: Mapping[str, str], *, fd: int | None = None) -> dict[str, str]:
        """Return what a child's environment needs to be known as part of this work."""
        return tokens.environment(environ, self.places, self.line, task=self.request.task, fd=fd)

    def record_begin(self) -> None:
        """Enter the beginning into the ledger, with the mode: it says how an end that nobody tells is to be called."""
        if self.parent_task is None:
            from maintlock import parents

            self.parent_task = parents.of_grant(self.places, self.line.lease_id) or self.line.task
        started = self._event("nested_started", self._id, detail=self.request.mode)
        pending.append(self.places.directory, [started, self._present])

    def record_end(self, ended: Event) -> None:
        """Do nothing: `release` has entered it."""

    def release(self, outcome: str, exit_code: int | None) -> Event:
        """Enter the end into the ledger, then leave the job: told after the grant's end it would count as lost."""
        seconds = round(self.held_seconds, 6)
        finished = self._event(
            "nested_finished", events.finished_id(self._id), seconds=seconds, exit_code=exit_code, result=outcome
        )
        pending.append(self.places.directory, [finished, absence(self._present)])
        if self.nested_fd is not None:
            flock.unlock_and_close(self.nested_fd)
        return finished

    def _event(self, name: str, event_id: str, **fields: float | str | None) -> Event:
        return (
            events.new(
                name,
                event_id=event_id,
                at=time.time(),
                lease=self.places.lease,
                task=self.request.task,
                lease_id=self.line.lease_id,
                source=self.request.source,
                reason=self.request.reason,
                pid=os.getpid(),
                parent_task=self.parent_task,
            )
            | fields
        )


def presence(places: Places, request: Request, role: str, *, event_id: str | None = None) -> Event:
    """Return that we are here, waiting or nested, as the ledger keeps it for as long as our process lives."""
    identity = process.own_identity()
    return events.new(
        "present",
        event_id=event_id,
        at=time.time(),
        lease=places.lease,
        role=role,
        task=request.task,
        reason=request.reason,
        pid=identity.pid,
        start_ticks=identity.start_ticks,
        boot_id=identity.boot_id,
        pid_namespace=identity.pid_namespace,
    )


def absence(present: Event) -> Event:
    """Return that we are not any more."""
    return events.new("absent", at=time.time(), lease=present["lease"], of=present["id"])
