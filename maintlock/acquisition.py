"""How a lease is come by.

request ──> inside a job? ─────────────────────────────────────────────────────────> Joined
   └──> .lock ──> .nested ──> nothing left of an earlier grant? ──> line ──> sidecar ──> Lease
"""

from __future__ import annotations

import os
import time

from maintlock import events, flock, holder, pending, process, recording, tokens
from maintlock import line as line_file
from maintlock.earlier import Earlier
from maintlock.errors import LeaseHeld
from maintlock.lease import Joined, Lease, absence, presence
from maintlock.model import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from maintlock.holder import Blocker
    from maintlock.lease import Request
    from maintlock.model import Event, Line
    from maintlock.paths import Places
    from maintlock.waiting import Patience

BEHIND_WAITERS_SECONDS = 0.1
OFFER_SECONDS = 0.01
FLAG_SECONDS = 0.2
LOOK_AGAIN_SECONDS = 0.05
ORCHESTRATOR = "orchestrator"  # the source of a request that it makes through a wrapper


def acquire(
    places: Places, request: Request, patience: Patience, environ: Mapping[str, str], *, lock_fd: int | None = None
) -> Lease | Joined:
    """Return the lease, or the job's own if we are inside one. `lock_fd` is an open lock file to put the lock on.

    Raises:
        LeaseHeld: Somebody else has it, at once or until the wait was over; the deferral is in the ledger.
        UnavailableError: The lock or its records cannot be had here.
        RefusedError: One of the files could be somebody else's.
        Interrupted: A signal ended the wait.
    """
    return _Acquisition(places, request, patience, environ, lock_fd).run()


class _Acquisition:
    """One request on its way to a lease. Descriptors that do not end up in the lease are closed with it."""

    def __init__(
        self,
        places: Places,
        request: Request,
        patience: Patience,
        environ: Mapping[str, str],
        lock_fd: int | None,
    ) -> None:
        self.places = places
        self.request = request
        self.patience = patience
        self.environ = environ
        self.lock_fd = lock_fd
        self.session_id = os.getsid(0)
        self.started = time.monotonic()
        wait = request.wait_seconds
        self.deadline = None if wait is None or wait == float("inf") else self.started + wait
        self.queue_fd = -1
        self.present: Event | None = None
        self.survivors_told: set[str | None] = set()
        self.found: Blocker | None = None  # after the lock was ours

    def run(self) -> Lease | Joined:
        joined = self._join_by_token()
        if joined is not None:
            return joined
        self.queue_fd = flock.open_file(self.places.queue)
        try:
            while True:
                fd = self._locked()
                grant = fd if isinstance(fd, Joined) else self._granted(fd)
                if grant is not None:
                    return grant
        finally:
            self._leave_queue()

    # Joining

    def _join_by_token(self) -> Joined | None:
        token = tokens.innermost(self.environ, self.places.directory, self.session_id, lease=self.places.lease)
        if token is None:
            return None
        joined = self._join(lambda line: line.lease_id == token.lease_id)
        if joined is not None and tokens.innermost(self.environ, self.places.directory, self.session_id) != token:
            joined.parent_task = self._parent_task()  # a job of another lease, inside of this one
        if joined is None:
            at, parent = time.time(), self._parent_task()
            stale = events.new(
                "token_stale",
                at=at,
                lease=self.places.lease,
                task=self.request.task,
                lease_id=token.lease_id,
                source=self.request.source,
                reason=self.request.reason,
                pid=os.getpid(),
                parent_task=parent,
            )
            pending.append(self.places.directory, [stale])
            inside = f" ({parent})" if parent else ""
            self.patience.tell(
                "token_stale",
                f"{self.request.task}: the lease it was started under{inside} has ended; requesting it again",
            )
        return joined

    def _parent_task(self) -> str | None:
        """Return the task that this request is made inside of, be it of another lease."""
        if self.request.parent_task is None and tokens.HELD in self.environ:
            from maintlock import parents

            self.request = replace(
                self.request, parent_task=parents.of_environment(self.environ, self.places.directory)
            )
        return self.request.parent_task

    def _join_by_ancestry(self) -> Joined | None:
        lineage = {stat.pid: stat.start_ticks for stat in process.ancestors(os.getpid())}
        if self.lock_fd is not None:
            lineage.pop(os.getppid(), None)  # a client asks for itself, not as part of what else it holds
        return self._join(
            lambda line: (
                line.identity.boot_id == process.boot_id()
                and (
                    lineage.get(line.identity.pid) == line.identity.start_ticks
                    or holder.read_carrying_client(self.places, line) in lineage
                )
            )
        )

    def _join(self, is_ours: Callable[[Line], bool]) -> Joined | None:
        line = self._going_on()
        if line is None or not self._is_in_session(line) or not is_ours(line):
            return None
        nested_fd = flock.open_file(self.places.nested)
        try:
            if flock.try_lock(nested_fd, shared=True) or self.patience.lock(nested_fd, deadline=None, shared=True):
                again = self._going_on()
                if again is not None and again.lease_id == line.lease_id:
                    joined = Joined(self.places, self.request, line, nested_fd)
                    nested_fd = -1
                    return joined
            return None
        finally:
            if nested_fd >= 0:
                flock.unlock_and_close(nested_fd)

    def _is_in_session(self, line: Line) -> bool:
        """Tell whether we are in the session of a grant: its number means something in its own pid namespace only.

        In a container, every session that began outside of it has the number 0.
        """
        return line.session_id == self.session_id and line.identity.pid_namespace == process.pid_namespace()

    def _going_on(self) -> Line | None:
        """Return the grant that has not ended: the line's, or the sidecar's where the lock file was replaced or emptied.

        Its holder may be dead and its job work on. To ask anew from inside of that would end in a grant of our own, and with
        its clean end nobody would look for the rest of the job any more.
        """
        return holder.on_record(line_file.read_path(self.places.lock), holder.read_sidecar(self.places))[0]

    # The kernel lock

    def _locked(self) -> int | Joined:
        """Return the descriptor of the lock file with the lock on it; what it was locked under a moment ago still stands."""
        while True:
            fd = self._opened()
            keep = False
            try:
                joined = self._attempted(fd)
                if joined is not None:
                    return joined
                keep = flock.is_current(fd, self.places.lock)
                if keep:
                    return fd
            finally:
                if not keep:
                    os.close(fd)

    def _opened(self) -> int:
        if self.lock_fd is None:
            return flock.open_file(self.places.lock)
        flock.check_given(self.lock_fd, self.places.lock)
        return flock.duplicated(self.lock_fd)  # the same open file description: what we lock, the client has locked

    def _attempted(self, fd: int) -> Joined | None:
        """Get the lock (None), join the job that has it, or stand back."""
        if self.present is None:
            queued = flock.has_waiters(self.queue_fd)
            if not queued and flock.try_lock(fd):
                return None
            joined = self._join_by_ancestry()
            if joined is not None:
                return joined
            if self.request.wait_seconds is None:
                if queued and self._lock_behind_waiters(fd):
                    return None
                blocker = self._read_blocker()
                raise self._deferred("queued" if queued else blocker.reason_code or "lease-held", blocker)
            self._enter_queue()
        if not self._lock_in_turn(fd):
            raise self._deferred("wait-timeout", self._read_blocker())
        return None

    def _lock_in_turn(self, fd: int) -> bool:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return flock.try_lock(fd)  # those who wait may be stopped
        return self.patience.lock(fd, deadline=self.deadline)

    def _lock_behind_waiters(self, fd: int) -> bool:
        """Take the lock if those who wait leave it, which they do when they are stopped.

        From the moment it is freed until the first in the kernel's queue has woken, whoever asks gets in before that one. So
        what was got while somebody waits is offered again, until nobody has taken the offer: the grant in the line is the same.
        """
        deadline = time.monotonic() + BEHIND_WAITERS_SECONDS
        latest = deadline + 2 * OFFER_SECONDS  # an offer made at the last moment is one too
        offered_after: str | None = None
        while self.patience.lock(fd, deadline=deadline):
            line = line_file.read(fd)
            last = "" if line is None else line.lease_id
            if last == offered_after or not flock.has_waiters(self.queue_fd):
                return True
            offered_after = last
            deadline = latest
            flock.unlock(fd)
            self.patience.pause(OFFER_SECONDS)
        return False

    def _enter_queue(self, blocker: Blocker | None = None) -> None:
        from maintlock.waitline import Waitline  # not on the way to a job that need not wait

        # It is held exclusively for no longer than it takes to ask; who was stopped just then is waited for no longer.
        flock.lock_within(self.queue_fd, shared=True, seconds=FLAG_SECONDS)
        self.present = presence(self.places, self.request, "waiting")
        pending.append(self.places.directory, [self.present])
        blocker = blocker or self._read_blocker()
        words = Waitline(self.places, self.request.task)
        self.patience.keep_telling(
            "waiting",
            words.sentence(blocker),
            lambda: words.forms(self.found or self._read_blocker(), time.time()),
            task=self.request.task,
            lease=self.places.lease,
            blocked_by=blocker.task,
        )

    def _read_blocker(self) -> Blocker:
        blocker = holder.read_blocker(self.places, time.time())
        self._tell_survivors(blocker)
        return blocker

    def _tell_survivors(self, blocker: Blocker) -> None:
        """Record once per grant that something of it lives on."""
        if not blocker.survivors or blocker.lease_id in self.survivors_told:
            return
        self.survivors_told.add(blocker.lease_id)
        found = events.new(
            "survivors",
            event_id=f"{blocker.lease_id}:survivors" if blocker.lease_id else None,
            at=time.time(),
            lease=self.places.lease,
            task=blocker.task,
            lease_id=blocker.lease_id,
            pid=blocker.survivors[0].pid,
            reason_code="survivors",
            detail=blocker.sentence,
        )
        pending.append(self.places.directory, [found])

    def _leave_queue(self) -> None:
        self.patience.stop_telling()
        flock.unlock_and_close(self.queue_fd)
        if self.present is not None:
            pending.append(self.places.directory, [absence(self.present)])

    # The records

    def _granted(self, fd: int) -> Lease | None:
        """Return the lease, which tells together with its beginning that we wait no more: the job's start is in between."""
        lease = self._taken(fd)
        if lease is not None and self.present is not None:
            lease.waited_as, self.present = self.present, None
        return lease

    def _taken(self, fd: int) -> Lease | None:
        """Return the lease once nothing of an earlier grant works any more and the new one is on record.

        None where the lock file was replaced meanwhile: whoever locks the new one is in our way, and we are not in theirs.
        """
        nested_fd = -1
        try:
            nested_fd = flock.open_file(self.places.nested)
            earlier = Earlier(self.places, fd, nested_fd)
            while (blocker := earlier.blocker()) is not None:
                self.found = blocker
                self._tell_survivors(blocker)
                if self.request.wait_seconds is None:
                    raise self._deferred(blocker.reason_code, blocker)
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    raise self._deferred("wait-timeout", blocker)
                if self.present is None:
                    self._enter_queue(blocker)
                self.patience.pause(LOOK_AGAIN_SECONDS)
            if not flock.is_current(fd, self.places.lock):  # asked under `.nested`, which the other one needs too
                flock.unlock_and_close(nested_fd)
                flock.unlock_and_close(fd)
                return None
            waited = round(time.monotonic() - self.started, 6)
            return recording.put_on_record(earlier, self.request, waited_seconds=waited, patience=self.patience)
        except BaseException:
            if nested_fd >= 0:
                flock.unlock_and_close(nested_fd)
            flock.unlock_and_close(fd)
            raise

    def _streak_id(self) -> str:
        """Return the id of the orchestrator's present streak: however often it has us ask, that is one deferral (L5)."""
        from maintlock import history  # no job starts here
        from maintlock.ledger import LedgerUnavailable

        try:
            state = history.read_states(self.places.directory).tasks.get((self.places.lease, self.request.task))
        except LedgerUnavailable:
            state = None
        return events.streak_id(self.places.lease, self.request.task, state.last_run if state is not None else None)

    def _deferred(self, reason_code: str, blocker: Blocker) -> LeaseHeld:
        """Record the deferral, and return it to be raised."""
        waited = time.monotonic() - self.started
        event = events.new(
            "deferred",
            event_id=self._streak_id() if self.request.source == ORCHESTRATOR else None,
            at=time.time(),
            lease=self.places.lease,
            task=self.request.task,
            lease_id=None,
            source=self.request.source,
            reason=self.request.reason,
            pid=os.getpid(),
            reason_code=reason_code,
            blocked_by=blocker.task,
            parent_task=self._parent_task(),
            seconds=round(waited, 6),
        )
        pending.append(self.places.directory, [event])
        return LeaseHeld(
            f"{self.request.task} deferred due to active {self.places.lease} lease: {blocker.sentence}",
            reason_code=reason_code,
            holder=blocker.fields,
            blocked_by=blocker.task,
            waited_seconds=waited,
        )
