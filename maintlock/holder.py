"""Who has the lease, as far as its records tell a request that was refused: for one sentence, not for status.

Nothing here locks. `observe` looks longer and sees more.
"""

from __future__ import annotations

import os
import stat
import time

from maintlock import line as line_file
from maintlock import locktable, process, sidecar, survivors
from maintlock.errors import UnavailableError
from maintlock.model import record, replace
from maintlock.redact import printable
from maintlock.times import duration_text, epoch_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from maintlock.model import Line
    from maintlock.paths import Places
    from maintlock.process import Stat
    from maintlock.sidecar import Reading

LOOKS = 4  # between the lock and its sidecar there are some hundred microseconds
LOOK_SECONDS = 0.005
NAMED_PIDS = 12
CLOCK_SLACK_SECONDS = 2.0  # the wall clock may have been set meanwhile, by a little


@record(frozen=True, kw_only=True)
class Blocker:
    """What stands in the way: one sentence for people, and the parts of it for programs.

    `reason_code` is set where it is another than that of the attempt that found it.
    """

    sentence: str
    reason_code: str = ""
    lease_id: str | None = None
    task: str | None = None
    fields: Mapping[str, Any] | None = None
    survivors: tuple[Stat, ...] = ()


def read_sidecar(places: Places) -> Reading:
    """Return what stands in the sidecar's place; another lease's record is none of ours."""
    reading = sidecar.read(places.sidecar)
    if reading.fields is not None and reading.fields["lease"] != places.lease:
        return sidecar.Reading(state="malformed")
    return reading


def unknown_to(line: Line | None, reading: Reading) -> Line | None:
    """Return the sidecar's grant where the lock's line does not know it: the lock file is new, or a copy from before it."""
    if reading.fields is None or (line is not None and reading.fields["fence"] <= line.fence):
        return None
    return sidecar.line_in(reading.fields)


def on_record(line: Line | None, reading: Reading) -> tuple[Line | None, Mapping[str, Any] | None]:
    """Return the grant that goes on by the records, and its sidecar: the line's, or one that the line does not know."""
    newer = unknown_to(line, reading)
    if newer is not None:
        return newer, reading.fields
    if line is None or line.outcome:
        return None, None
    return line, reading.fields if reading.lease_id == line.lease_id else None


def read_blocker(places: Places, now: float) -> Blocker:
    """Return who has the lease by its records: a living holder, survivors of a dead one, or somebody unknown."""
    reading = sidecar.Reading(state="missing")
    for look in range(LOOKS):
        line = line_file.read_path(places.lock)
        reading = read_sidecar(places)
        if reading.fields is not None and (line is None or line.lease_id == reading.lease_id) and not ended(line):
            identity = reading.identity
            if identity is not None and process.is_alive(identity) is not False:
                return of_holder(reading.fields, now)
            client = client_in(reading.fields)
            stat = process.read_stat(client) if client is not None else None
            if stat is not None:
                return of_survivors(line or sidecar.line_in(reading.fields), [stat], reading.fields)
        if line is not None and not line.outcome and process.is_alive(line.identity) is False:
            # With `main` nothing of a job keeps the lease but its main process, by the lock itself; and it is locked.
            sought = replace(line, hold_until="session") if line.hold_until == "main" else line
            living = survivors.look(
                places, sought, leaders_of(line, reading.fields), exempt=survivors.Exempt()
            ).carrying
            if living:
                return of_survivors(line, living, reading.fields)
        if look < LOOKS - 1:
            time.sleep(LOOK_SECONDS)
    state = reading.state if reading.fields is None else "stale"
    return Blocker(sentence=f"held by an unknown owner (sidecar {state}, see: maintlock status)")


def of_other_kernel(places: Places, reading: Reading) -> UnavailableError | None:
    """Return why no request gets the lease while the sidecar is of another system that runs now, or None where it is not."""
    identity, here = reading.identity, process.boot_id()
    if reading.fields is None or identity is None or not here or identity.boot_id in {"", here}:
        return None
    granted, booted = epoch_seconds(reading.fields["acquired_at"]), process.booted_at()
    if granted is None or booted is None or granted <= booted:
        return None
    from shlex import quote

    host = printable(reading.fields["hostname"], 80)
    return UnavailableError(
        f"{places.sidecar}: describes a holder on another running system ({host}); two systems must not share a state "
        "directory; if that is an error, remove it",
        mend=f"rm {quote(places.sidecar)}",
    )


def ended(line: Line | None) -> bool:
    """Tell whether the last grant has ended cleanly."""
    return line is not None and bool(line.outcome)


def leaders_of(line: Line, fields: Mapping[str, Any] | None) -> frozenset[int]:
    """Return the process groups that a grant's job may be in: one of its own, or its wrapper's."""
    job = fields.get("job_pid") if fields is not None and fields["lease_id"] == line.lease_id else None
    return frozenset(pid for pid in (line.identity.pid, line.group, job) if pid)


def read_carrying_client(places: Places, line: Line) -> int | None:
    """Return the client of a coprocess that carries the lock of this grant too (`--fd`), while it lives."""
    fields = read_sidecar(places).fields
    client = client_in(fields) if fields is not None and fields["lease_id"] == line.lease_id else None
    carries = client is not None and any(
        carried.is_on(_read_stat(places.lock)) for carried in locktable.read_carried(client, places.lock) or ()
    )
    return client if carries else None


def read_locking(path: str) -> list[Stat]:
    """Return the living processes that have a lock on the file at `path`, by pid, as far as we can look into processes."""
    found = _read_stat(path)
    pids = {carried.pid for carried in locktable.read_all_carried(path) if carried.is_on(found)}
    stats = [stat for stat in map(process.read_stat, sorted(pids)) if stat is not None]
    return [stat for stat in stats if not stat.is_dead]


def client_in(fields: Mapping[str, Any]) -> int | None:
    """Return the client that a coprocess's sidecar names, while it lives. With `--fd` it carries the lock itself."""
    pid, told = fields.get("job_pid"), epoch_seconds(fields.get("job_started_at") or "")
    if fields["mode"] != "coprocess" or not pid or told is None:
        return None
    started = process.started_at(process.read_identity(pid))
    return pid if started is not None and abs(started - told) < CLOCK_SLACK_SECONDS else None


def of_holder(fields: Mapping[str, Any], now: float) -> Blocker:
    """Return the sentence for a living holder."""
    since = epoch_seconds(fields["acquired_at"])
    lasted = "unknown" if since is None else duration_text(now - since)
    details = f"owner {printable(fields['owner'], 80)}, pid {fields['pid']}, for {lasted}, reason {printable(fields['reason'], 120)}"
    return Blocker(sentence=f"held by {fields['task']} ({details})", task=fields["task"], fields=fields)


def of_survivors(line: Line | None, living: list[Stat], fields: Mapping[str, Any] | None) -> Blocker:
    """Return the sentence for what lives on of a dead holder's job."""
    pids = ", ".join(str(stat.pid) for stat in living[:NAMED_PIDS])
    more = f" and {len(living) - NAMED_PIDS} more" if len(living) > NAMED_PIDS else ""
    return Blocker(
        sentence=f"held by survivors of {line.task if line else 'an unknown job'} (pids {pids}{more})",
        reason_code="survivors",
        lease_id=line.lease_id if line else None,
        task=line.task if line else None,
        fields=fields,
        survivors=tuple(living),
    )


def holds_elsewhere(path: str, pid: int, lease_id: str) -> bool | None:
    """Tell whether a process has the lock of this grant on another file than the one at `path`; None where nothing shows.

    The file may have been deleted, or have any name by now: that its line names the grant is the proof.
    """
    base = f"{process.PROC}/{pid}"
    try:
        numbers = os.listdir(f"{base}/fd")
    except OSError:
        return None
    there = _read_stat(path)
    for number in numbers:
        try:
            found = os.stat(f"{base}/fd/{number}")
        except OSError:
            continue  # closed meanwhile
        # What has another size is no lock file, and perhaps our own ledger: to open and close that would take SQLite's locks.
        is_like_it = stat.S_ISREG(found.st_mode) and found.st_size == line_file.WIDTH
        if is_like_it and not (there is not None and os.path.samestat(found, there)):
            line = line_file.decoded(process.read_bytes(f"{base}/fd/{number}", line_file.WIDTH) or b"")
            is_of_grant = line is not None and line.lease_id == lease_id
            if is_of_grant and "FLOCK" in (process.read_text(f"{base}/fdinfo/{number}") or ""):
                return True
    return False


def _read_stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=False)
    except OSError:
        return None  # moved away, and nothing put in its place
