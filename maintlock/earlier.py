"""What an earlier grant may have left behind although the lock is free: joined jobs, survivors, a replaced lock file.

The requester has the lock here, writes nothing, and still counts as waiting.
"""

from __future__ import annotations

import os
import time

from maintlock import events, flock, holder, pending, process, sidecar, survivors
from maintlock import line as line_file
from maintlock.model import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from maintlock.holder import Blocker
    from maintlock.model import Line
    from maintlock.paths import Places
    from maintlock.process import Stat
    from maintlock.sidecar import Reading

NESTED_BRIEFLY_SECONDS = 0.05  # a joining job holds `.nested` for a moment before it finds that its grant is over


class Earlier:
    """The grants before ours, looked at under the lock `fd`; the last look's records stand until we write our own."""

    def __init__(self, places: Places, fd: int, nested_fd: int) -> None:
        self.places = places
        self.fd = fd
        self.nested_fd = nested_fd
        self.content = b""
        self.line: Line | None = None
        self.reading = sidecar.Reading(state="missing")
        self.inside: Line | None = None  # the grant whose job, which has lost its wrapper, makes this request
        self._told: str | None = None

    @property
    def beside(self) -> Line | None:
        """The grant that the sidecar tells of and the line does not know."""
        return holder.unknown_to(self.line, self.reading)

    def blocker(self) -> Blocker | None:
        """Return what still works although the lock is free; if nothing does, `.nested` is ours."""
        is_alone = flock.lock_within(self.nested_fd, seconds=NESTED_BRIEFLY_SECONDS)
        self.content = os.pread(self.fd, line_file.WIDTH, 0)
        self.line, self.reading = line_file.decoded(self.content), holder.read_sidecar(self.places)
        line, reading = self.line, self.reading
        if not is_alone:
            return self._survivors(line, reading) or self._joined(line, reading)
        self._refuse_other_kernel(reading)
        blocker = self._replaced(line, reading)
        beside = self.beside if line is not None else None
        if blocker is None and beside is not None and flock.is_current(self.fd, self.places.lock):
            # That the line has an end tells nothing of a later grant; nor that its holder lives, which may be about to die.
            blocker = self._survivors(beside, reading)
        if blocker is None and not holder.ended(line):
            blocker = self._survivors(line, reading)
        if blocker is not None:
            flock.unlock(self.nested_fd)  # a survivor may still start a job that joins it
        return blocker

    def _survivors(self, line: Line | None, reading: Reading) -> Blocker | None:
        if line is not None and (
            process.is_of_other_boot(line.identity) or process.is_in_other_namespace(line.identity)
        ):
            return None  # they are gone, or cannot be seen from here
        leaders = holder.leaders_of(line, reading.fields) if line is not None else frozenset()
        exempt = survivors.Exempt()
        living = survivors.find(self.places, line, leaders, exempt=exempt)
        if living and line is None:
            line = self._line_beside(reading, living)
        elif not living and line is not None and exempt.is_part_of(self.places, line):
            self.inside = line
        return holder.of_survivors(line, living, reading.fields) if living else None

    def _line_beside(self, reading: Reading, living: list[Stat]) -> Line | None:
        """Return whose job lives on by the sidecar, where the lock file is new: if all that lives is of that grant."""
        if reading.fields is None:
            return None
        line = sidecar.line_in(reading.fields)
        known = {stat.pid for stat in survivors.find(self.places, line, holder.leaders_of(line, reading.fields))}
        return line if known >= {stat.pid for stat in living} else None

    def _joined(self, line: Line | None, reading: Reading) -> Blocker:
        """Return who keeps `.nested` locked, by name where the kernel shows that."""
        found = holder.read_locking(self.places.nested)
        if found:
            return holder.of_survivors(line, found, reading.fields)
        task = line.task if line is not None else None
        return holder.Blocker(
            sentence=f"held by a job that joined {task or 'an earlier one'} and still runs",
            reason_code="survivors",
            task=task,
        )

    def _refuse_other_kernel(self, reading: Reading) -> None:
        refusal = holder.of_other_kernel(self.places, reading)
        if refusal is not None:
            raise refusal

    def _replaced(self, line: Line | None, reading: Reading) -> Blocker | None:
        """Return the holder that has its lock on another file than the one we have just locked.

        A coprocess and its client both have it, and either may be dead.
        """
        fields, identity = reading.fields, reading.identity
        if fields is None or identity is None:
            return None
        is_alive = process.is_alive(identity)
        client = holder.client_in(fields)
        living = [pid for pid in (identity.pid if is_alive else None, client) if pid is not None]
        elsewhere = {holder.holds_elsewhere(self.places.lock, pid, reading.lease_id) for pid in living}
        knows_it = line is not None and line.lease_id == reading.lease_id  # or the file was replaced by its copy
        if True not in elsewhere and (None not in elsewhere or knows_it):
            return None
        stat = process.read_stat(client) if client is not None and not is_alive else None
        blocker = (
            holder.of_holder(fields, time.time())
            if stat is None
            else holder.of_survivors(sidecar.line_in(fields), [stat], fields)
        )
        blocker = replace(blocker, reason_code="lockfile-replaced", lease_id=reading.lease_id)
        self._tell_replaced(blocker)
        return blocker

    def _tell_replaced(self, blocker: Blocker) -> None:
        if self._told == blocker.lease_id:
            return
        self._told = blocker.lease_id
        what = f"{self.places.lock} was replaced while {blocker.sentence.removeprefix('held by ')} held it"
        collision = events.new(
            "collision",
            event_id=f"{blocker.lease_id}:lockfile_replaced",
            at=time.time(),
            lease=self.places.lease,
            task=blocker.task,
            lease_id=blocker.lease_id,
            reason_code="lockfile_replaced",
            reason=what,
            detail=what,
        )
        pending.append(self.places.directory, [collision])
