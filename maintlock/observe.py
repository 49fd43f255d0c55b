"""Who has the lease, who waits, and what has happened: seen without touching it.

Nothing here locks, opens a lock file for writing, or makes a file or directory: watching cannot cause a deferral.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, cast

from maintlock import events, history, holder, marks, paths, pending, process, survivors
from maintlock import line as line_file
from maintlock.custody import Custody, read_custody
from maintlock.entries import PUBLIC, entry_of
from maintlock.ledger import LedgerUnavailable
from maintlock.names import is_lease_name
from maintlock.paths import Places
from maintlock.times import epoch_seconds, rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from maintlock.model import Event
    from maintlock.process import Stat
    from maintlock.report import CollisionReport, Holder, Process, Status, Waiter

SIDECAR_FIELDS = (
    "schema", "lease", "lease_id", "fence", "task", "owner", "source", "reason", "mode", "pid", "pid_started_at",
    "pid_start_ticks", "boot_id", "pid_namespace", "session_id", "hostname", "uid", "job_pid", "job_started_at", "command",
    "cwd", "acquired_at", "waited_seconds", "ttl_seconds",
)  # fmt: skip
JOB_TOLD_WITHIN_SECONDS = 5.0  # a process that began later than the sidecar tells has inherited the job's pid
MAX_LEASES = 1000
LOCK_ENDING = ".lock"


def check_places(places: Places) -> bool:
    """Tell whether the state directory exists; what stands in it is trusted from here on.

    Raises:
        RefusedError: Directory, lock file or a record could be somebody else's.
        UnavailableError: It cannot be looked at.
    """
    try:
        paths.check_trusted(places.directory, os.lstat(places.directory), directory=True)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise paths.open_failure(places.directory, error) from error
    try:
        paths.check_trusted(places.lock, os.lstat(places.lock))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise paths.open_failure(places.lock, error) from error
    paths.check_records(places)
    return True


def read_status(places: Places, now: float | None = None) -> Status:
    """Return who has the lease; `now` in seconds since the epoch.

    Raises:
        RefusedError: Directory, lock file or a record could be somebody else's.
        UnavailableError: The state directory cannot be looked at.
    """
    now = time.time() if now is None else now
    is_there = check_places(places)
    custody = read_custody(places)  # also where nothing is: it may have been removed under a job
    present, collisions, trouble = _read_ledger(places) if is_there else ([], [], None)
    details = [text for text in (custody.detail, trouble) if text]
    if custody.state == "free":  # who held the replaced file is gone; the next grant tells the ledger
        collisions = [known for known in collisions if known["kind"] != "lockfile_replaced"]
    if custody.replaced is not None and not any(known["kind"] == "lockfile_replaced" for known in collisions):
        since = rfc3339(_read_replaced_at(places, custody, now))
        collisions.append({"kind": "lockfile_replaced", "detail": custody.replaced, "since": since})
    return {
        "lease": places.lease,
        "state": custody.state,
        "backend": "flock",
        "scope": "user",
        "path": places.lock,
        "holder": _holder(places, custody, now),
        "sidecar": custody.sidecar,
        "detail": "; ".join(details) if details else None,
        "waiters": _waiters(present),
        "nested": [
            {"task": row["task"], "pid": row["pid"], "reason": row["reason"], "started_at": row["at"]}
            for row in present
            if row["role"] == "nested"
        ],
        "collisions": collisions,
    }


def _read_replaced_at(places: Places, custody: Custody, now: float) -> float:
    """Return when the lock file may have been replaced: at the new one's last change, or since the grant if there is none."""
    begun = custody.grant.started_at if custody.grant is not None else now
    try:
        return min(now, max(begun, os.lstat(places.lock).st_ctime))
    except OSError:
        return begun


def read_waiters(places: Places) -> list[Waiter]:
    """Return who waits for the lease, first come first."""
    return _waiters(_read_ledger(places)[0])


def _waiters(present: Iterable[Mapping[str, Any]]) -> list[Waiter]:
    return [{"task": row["task"], "pid": row["pid"], "since": row["at"]} for row in present if row["role"] == "waiting"]


# The holder and its processes


def _holder(places: Places, custody: Custody, now: float) -> Holder | None:
    fields = custody.fields
    if fields is None:
        return None
    stats = _read_job(places, custody, fields)
    processes: list[Process] = [{"pid": row.pid, "name": row.name, "rss_bytes": _read_rss(row.pid)} for row in stats]
    since = epoch_seconds(fields["acquired_at"])
    held_seconds = None if since is None else round(max(0.0, now - since), 3)
    leaders = {custody.grant.identity.pid if custody.grant else 0, fields.get("job_pid")}
    about = {name: fields.get(name) for name in SIDECAR_FIELDS}
    if not isinstance(about["job_started_at"], str):
        about["job_started_at"] = None
    seen = {
        "alive": custody.alive,
        "stopped": any(row.pid in leaders and row.is_stopped for row in stats),
        "held_seconds": held_seconds,
        "overdue": held_seconds is not None and held_seconds > fields["ttl_seconds"],
        "processes": processes,
        "rss_bytes": sum(row["rss_bytes"] or 0 for row in processes),
    }
    return cast("Holder", about | seen)


def _read_job(places: Places, custody: Custody, fields: Mapping[str, Any]) -> list[Stat]:
    """Return the living processes that the grant is used by, by pid: the holder, its job, and what has come off it."""
    grant = custody.grant
    if grant is None or not custody.alive:
        return [row for row in custody.members if not row.is_dead]
    table = process.read_table()
    roots = [grant.identity.pid, *_living_job(fields)]
    found = [row for pid in roots for row in process.descendants(table, pid)]
    found += survivors.look(places, grant, holder.leaders_of(grant, fields)).carrying
    kept = {row.pid: row for row in found if grant.hold_until == "tree" or row.sid == grant.session_id}
    kept.update({pid: table[pid] for pid in roots if pid in table})
    return [kept[pid] for pid in sorted(kept) if not kept[pid].is_dead]


def _living_job(fields: Mapping[str, Any]) -> list[int]:
    """Return the pid of the job's main process, unless it is another's by now."""
    job_pid, told_at = fields.get("job_pid"), fields.get("job_started_at")
    told = epoch_seconds(told_at) if isinstance(told_at, str) else None
    started = process.started_at(process.read_identity(job_pid)) if job_pid and told is not None else None
    is_it = started is not None and told is not None and started <= told + JOB_TOLD_WITHIN_SECONDS
    return [job_pid] if job_pid and is_it else []


def _read_rss(pid: int) -> int | None:
    """Return the resident memory of a process in bytes, proc_pid_statm(5)."""
    text = process.read_text(f"{process.PROC}/{pid}/statm", 4096)
    if text is not None:
        words = text.split()
        return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else None
    if process.has_proc():
        return None
    try:
        import psutil

        return int(psutil.Process(pid).memory_info().rss)
    except Exception:  # noqa: BLE001  gone, hidden, or a platform where psutil cannot work: nothing is known
        return None


# What the ledger adds


def _read_ledger(places: Places) -> tuple[list[Mapping[str, Any]], list[CollisionReport], str | None]:
    """Return who is present and lives, the open collisions, and why that may not be all."""
    try:
        snapshot = history.read_snapshot(places.directory, lease=places.lease)
    except LedgerUnavailable as error:
        return (
            _living(_present_in(pending.read(places.directory), places.lease)),
            [],
            f"the ledger cannot be read: {error}",
        )
    collisions: list[CollisionReport] = [
        {"kind": found.kind, "detail": found.detail, "since": rfc3339(found.since)}
        for found in snapshot.collisions
        if not marks.is_over(found.id)  # no orchestrator has lived to see its end
    ]
    return _living(snapshot.present), collisions, None


def _present_in(waiting: Iterable[Event], lease: str) -> list[Mapping[str, Any]]:
    """Return who is present by the events that have not reached the ledger yet."""
    entries = [entry for entry in map(entry_of, waiting) if entry is not None]
    gone = {entry["of"] for entry in entries if entry["event"] == "absent"}
    return [
        {**entry, "at": rfc3339(entry["at"])}
        for entry in entries
        if entry["event"] == "present" and entry["lease"] == lease and entry["id"] not in gone
    ]


def _living(present: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows whose process lives: one that is gone, or cannot be seen from here, counts for nothing."""
    return [row for row in present if process.is_alive(history.identity_of(row)) is True]


# History


def read_history(
    directory: str,
    *,
    lease: str | None = None,
    task: str | None = None,
    event: str | Sequence[str] | None = None,
    since: float | None = None,
    limit: int | None = None,
    is_entered_too: bool = True,
    fields: Iterable[str] = PUBLIC,
) -> list[Event]:
    """Return what happened, oldest first (§4): the ledger, its pending events, and what the locks' lines imply.

    `is_entered_too=False` leaves the ledger alone, and returns the rest; for `fields` see `history.read_history`.

    Raises:
        LedgerUnavailable: It cannot be read.
    """
    leases = _read_leases(directory) if lease is None else [lease]
    told = [known for name in leases for known in read_implied(Places(directory=directory, lease=name))]
    return history.read_history(
        directory,
        lease=lease,
        task=task,
        event=event,
        since=since,
        limit=limit,
        extra=told,
        is_entered_too=is_entered_too,
        fields=fields,
    )


def read_implied(places: Places) -> list[Event]:
    """Return what the lock's line tells of the last grant, whose wrapper may have died before telling it: no end unseen."""
    line, reading = line_file.read_path(places.lock), holder.read_sidecar(places)
    if line is None:
        return []
    if line.outcome:
        return events.of_grant(places.lease, line, None, now=0.0)
    _, fields = holder.on_record(line, reading)
    fields = fields if fields is not None and fields["lease_id"] == line.lease_id else None
    reason, waited = (fields["reason"], fields["waited_seconds"]) if fields is not None else (None, None)
    return [events.acquired(places.lease, line, reason=reason, waited_seconds=waited)]


def _read_leases(directory: str) -> list[str]:
    """Return the names of all leases that were ever asked for here."""
    try:
        with os.scandir(directory) as entries:
            found = [
                entry.name.removesuffix(LOCK_ENDING)
                for entry in entries
                if entry.name.endswith(LOCK_ENDING) and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
            ]
    except OSError:
        return []
    return [name for name in sorted(found)[:MAX_LEASES] if is_lease_name(name)]
