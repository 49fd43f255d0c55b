"""Checks of what is ours: configuration, state directory, records, ledger, and the lease itself."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from maintlock import filesystem, history, holder, outside, paths, pending, process, sidecar, tokens
from maintlock import line as line_file
from maintlock.checkup.facts import DEFAULT
from maintlock.checkup.finding import fine, notice, of_error, problem, quoted, to_edit
from maintlock.entries import entry_of
from maintlock.errors import RefusedError
from maintlock.ledger import DATABASE, LedgerUnavailable, open_to_read
from maintlock.names import DEFAULT_LEASE
from maintlock.naming import named
from maintlock.redact import printable
from maintlock.schema import dotted
from maintlock.times import duration_text, epoch_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from maintlock.checkup.facts import Facts
    from maintlock.checkup.finding import Finding
    from maintlock.custody import Custody
    from maintlock.model import Event
    from maintlock.paths import Places

DIRECTORY_MODE, FILE_MODE = 0o700, 0o600
OURS = ("ledger.", "orchestrator.")
ENDINGS = (".lock", ".queue", ".nested", ".json", ".json.tmp")
FEW_BYTES = 16 << 20
# Every job that takes longer than a second drains, and every one that finds more than 32 KiB: more means that none can.
MUCH_WAITING_BYTES = 128 * 1024
LONG_WAITING_SECONDS = 3600.0


def configuration(facts: Facts) -> Iterable[Finding]:
    """Tell whether the configuration is valid, and nobody else can have written it."""
    error = facts.settings_error
    if error is not None:
        yield of_error(error, to_edit(facts.settings_path) if facts.settings_path else None)
    elif facts.settings.path is None:
        yield fine("there is no maintlock.toml: all defaults")
    else:
        yield fine(f"{facts.settings.path} is valid")
        for task in facts.settings.tasks.values():
            key = "interval" if task.interval > 0 else "inbox" if task.inbox is not None else None
            if task.command is None and key is not None:
                why = "the orchestrator never starts it, and only tells how late it is"
                yield notice(
                    f"{dotted('tasks', task.name)} has {key} and no command: {why}", to_edit(facts.settings.path)
                )


def permissions(facts: Facts) -> Iterable[Finding]:
    """Tell whether state directory and records are of their kind, and ours alone to write and read."""
    try:
        found = os.lstat(facts.directory)
    except FileNotFoundError:
        yield fine(f"{facts.directory} does not exist yet; the first request makes it")
        return
    is_ours = paths.is_for_us(facts.directory)
    yield from _judged(facts.directory, found, DIRECTORY_MODE, _another(facts))
    yield from _parents(facts.directory)
    for name, status in sorted(facts.files.items()) if is_ours else ():  # else they are somebody else's
        if name.startswith(OURS) or name.endswith(ENDINGS):
            yield from _judged(f"{facts.directory}/{name}", status, FILE_MODE)


def _another(facts: Facts) -> str | None:
    """Return the command that leads to another state directory; None where only a change of the command line does."""
    if facts.directory_source == DEFAULT:
        return quoted("export", f"{tokens.STATE_DIR}=/var/tmp/maintlock-{os.geteuid()}")
    if facts.said_state_dir is not None:
        return None
    if facts.directory_source == tokens.STATE_DIR:
        return f"unset {tokens.STATE_DIR}"
    return to_edit(facts.settings.path or "")


def _judged(path: str, found: os.stat_result, mode: int, another: str | None = None) -> Iterable[Finding]:
    is_directory = mode == DIRECTORY_MODE
    try:
        paths.check_trusted(path, found, directory=is_directory)
    except RefusedError as error:
        yield of_error(error, another)
        return
    if found.st_mode & mode != mode:
        yield problem(
            f"{path}: you may not read and write it", quoted("chmod", "u+rwx" if is_directory else "u+rw", path)
        )
    elif found.st_mode & 0o077 and (not is_directory or paths.is_for_us(path)):
        yield notice(f"{path}: others may read it", quoted("chmod", "go-rwx", path))


def _parents(directory: str) -> Iterable[Finding]:
    """Where everybody may write and there is no sticky bit, everybody may put another directory in the place of ours."""
    for parent in paths.upwards(os.path.dirname(directory)):
        mode = os.stat(parent).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            yield problem(
                f"{parent}: everybody may rename what is in it, the state directory too", quoted("chmod", "o-w", parent)
            )


def filesystems(facts: Facts) -> Iterable[Finding]:
    """Tell whether the state directory is on a filesystem whose flock is local, writable, and not full."""
    kind = filesystem.read_type(facts.directory)
    another = _another(facts)
    if not kind:
        yield notice(
            f"{facts.directory}: its filesystem cannot be determined; on a network filesystem a lock may protect nothing: if it is "
            "one, use another state directory"
        )
    elif kind not in filesystem.LOCAL:
        yield problem(
            f"{facts.directory}: is on a filesystem of type {kind}, where locks may be shared with other machines or "
            "not work at all; use a local one (--state-dir, MAINTLOCK_STATE_DIR), for everybody who starts jobs",
            another,
        )
    try:
        room = os.statvfs(facts.directory)
    except FileNotFoundError:
        return
    if room.f_flag & os.ST_RDONLY:
        yield problem(
            f"{facts.directory}: is on a read-only filesystem: no job can be put on record; use another (--state-dir, MAINTLOCK_STATE_DIR)",
            another,
        )
    elif room.f_bavail * room.f_frsize < FEW_BYTES or (room.f_files and not room.f_favail):
        yield problem(
            f"{facts.directory}: the disk is full: a job that cannot be put on record does not run; no command of ours mends "
            f"that: make room on it, see: {quoted('df', '-h', facts.directory)}"
        )


def records(facts: Facts) -> Iterable[Finding]:
    """Tell whether the lock's line and the sidecar can be read, and are of this lease and system."""
    for lease in facts.leases:
        places, look = facts.places(lease), facts.looks[lease]
        yield from _line(facts, places, look)
        yield from _sidecar(facts, places, look)


def _line(facts: Facts, places: Places, look: Custody) -> Iterable[Finding]:
    content = process.read_bytes(places.lock, line_file.WIDTH) if _is_file(places.lock) else b""
    if not content or line_file.decoded(content) is not None or look.is_passing:
        return
    yield problem(
        f"{places.lock}: its line is damaged, or of another version: who had the lease last is unknown, and every process "
        "with any of its grants in the environment counts as a survivor",
        facts.job_command(places.lease, "true") if look.state == "free" else facts.stop_command(places.lease),
    )


def _sidecar(facts: Facts, places: Places, look: Custody) -> Iterable[Finding]:
    reading = sidecar.read(places.sidecar)
    fields = reading.fields
    if fields is not None and fields["schema"] > sidecar.SCHEMA:
        return  # told with the versions
    if fields is not None and fields["lease"] != places.lease:
        text = f"{places.sidecar}: is the record of another lease, {printable(fields['lease'])}"
        yield problem(text, quoted("rm", places.sidecar))
    elif (foreign := holder.of_other_kernel(places, reading)) is not None:
        yield of_error(foreign)
    elif reading.state in {"malformed", "unreadable"} or (
        reading.state == "missing" and look.state == "held" and look.grant
    ):
        text = f"{places.sidecar}: is {reading.state}"
        if look.state == "held":
            yield problem(
                f"{text} while the lease is held: requests that stand back cannot name its owner",
                facts.stop_command(places.lease),
            )
        else:
            yield problem(f"{text}; the next request removes it", facts.job_command(places.lease, "true"))


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def ledger(facts: Facts) -> Iterable[Finding]:
    """Tell whether the ledger can be read, is whole, and has been told everything."""
    if not facts.is_ledger_trusted:
        return
    yield from _database(facts)
    dropped = pending.dropped(facts.directory)
    if dropped:
        were = "event was" if dropped == 1 else "events were"
        yield notice(
            f"{dropped} {were} dropped since the beginning: the history is incomplete, and no command completes it"
        )


def _database(facts: Facts) -> Iterable[Finding]:
    path = f"{facts.directory}/{DATABASE}"
    aside = f'for f in {quoted(path)}*; do mv "$f" "$f.broken"; done'
    anew = "history and counters begin anew without it"
    try:
        with open_to_read(facts.directory) as db:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except LedgerUnavailable as error:
        if error.kind == "corrupt":
            yield problem(f"{error}; {anew}", aside)
        elif error.kind not in {"older", "newer"}:  # that is told with the versions
            yield problem(
                f"{error}; jobs run all the same, and their events wait in {pending.PENDING}; no command of ours mends that: "
                "it ends with whatever keeps the file from being read (its rights, the disk, another program)"
            )
        return
    if found != "ok":
        yield problem(f"{path}: {found}; {anew}", aside)


def waiting(facts: Facts) -> Iterable[Finding]:
    """Tell what waits for the ledger, and whether it will ever be entered."""
    size = pending.size(facts.directory)
    if not size or not facts.is_ledger_trusted:
        return
    path = f"{facts.directory}/{pending.PENDING}"
    events = pending.read(facts.directory)
    many = f"{len(events)} event{'' if len(events) == 1 else 's'}"
    enter = facts.job_command(DEFAULT_LEASE, "sleep", "1")
    if size > MUCH_WAITING_BYTES:
        yield problem(
            f"{path}: {many} wait for the ledger, more than any job leaves there: nothing seems able to enter them",
            enter,
        )
    elif not events:
        yield problem(f"{path}: contains no valid event; the next entry counts it as dropped", enter)
    elif (lasted := facts.now - _oldest_at(events, facts.now)) > LONG_WAITING_SECONDS:
        text = f"{path}: {many} wait for the ledger, the oldest for {duration_text(lasted)}; readers see them"
        yield notice(f"{text}, and the next job of a second or more enters them", enter)
    else:
        yield fine(f"{many} wait for the ledger, as after every short job; readers see them")


def _oldest_at(events: Sequence[Event], now: float) -> float:
    entries = [entry_of(event) for event in events]
    return min((entry["at"] for entry in entries if entry is not None and entry["at"] is not None), default=now)


def lease(facts: Facts) -> Iterable[Finding]:
    """Tell whether who has a lease is known and at work, and not for too long."""
    for name in facts.leases:
        look = facts.looks[name]
        if look.state == "orphaned":
            yield problem(f"{name}: {look.detail}", facts.stop_command(name))
        elif look.state == "unknown":
            yield notice(
                f"{name}: who has it cannot be determined: {look.detail}; no command tells it here: ask where its processes "
                "can be seen, in the container or on the host that they run in"
            )
        elif look.state == "held":
            known = (
                f"{name} is held by {look.grant.task} (pid {look.grant.identity.pid})" if look.grant is not None else ""
            )
            yield from list(_holder(facts, name, look)) or [fine(known)]
        elif holder.of_other_kernel(facts.places(name), sidecar.read(facts.places(name).sidecar)) is not None:
            continue  # told with the records
        elif look.detail:
            yield notice(f"{name}: {look.detail}", facts.job_command(name, "true"))
        else:
            yield fine(f"{name} is free")


def _holder(facts: Facts, name: str, look: Custody) -> Iterable[Finding]:
    grant, fields = look.grant, look.fields
    if grant is None:
        yield problem(f"{name}: {look.detail}", facts.stop_command(name))
        return
    pids = {grant.identity.pid, *([fields["job_pid"]] if fields is not None and fields.get("job_pid") else [])}
    stopped = [row for row in (facts.table.get(pid) for pid in sorted(pids)) if row is not None and row.is_stopped]
    if stopped:
        text = (
            f"{name}: {grant.task} has it and is stopped: {named(stopped)}; everyone else is blocked until it resumes"
        )
        yield problem(text, quoted("kill", "-CONT", *[str(row.pid) for row in stopped]))
    since = epoch_seconds(fields["acquired_at"]) if fields is not None else None
    held = None if since is None else facts.now - since
    if fields is not None and held is not None and held > fields["ttl_seconds"]:
        text = f"{name}: {grant.task} has had it for {duration_text(held)}, longer than its {duration_text(fields['ttl_seconds'])}"
        yield problem(text, facts.stop_command(name))


def lock_file(facts: Facts) -> Iterable[Finding]:
    """Tell whether somebody has a lock on a file that is no more in the lock's place."""
    for name in facts.leases:
        places, look = facts.places(name), facts.looks[name]
        if look.replaced is not None:
            yield problem(f"{name}: {look.replaced}; it still counts as held", facts.stop_command(name))
            continue
        for lock in facts.open_locks:
            was_it = os.path.basename(lock.path).startswith(f"{name}.lock") and lock.directory == facts.directory
            if was_it and lock.is_locked and not any(lock.is_same(found) for found in facts.files.values()):
                text = f"{places.lock}: was replaced or removed, and {named([facts.table[lock.pid]])} still has a lock on the old one"
                yield problem(text, quoted("kill", str(lock.pid)))


def descriptors(facts: Facts) -> Iterable[Finding]:
    """Tell whether only the job carries its lock's descriptor."""
    for name in facts.leases:
        places, look, status = facts.places(name), facts.looks[name], facts.files.get(f"{name}.lock")
        pids = dict.fromkeys(lock.pid for lock in facts.open_locks if lock.is_locked and lock.is_same(status))
        leaked = [
            facts.table[pid]
            for pid in pids
            if pid != os.getpid() and not outside.is_covered(facts.table[pid], facts.table, places, look)
        ]
        if not leaked or (look.state == "held" and look.grant is None):
            continue  # somebody unknown who has it is told with the lease
        task = look.grant.task if look.grant is not None else "an earlier job"
        text = f"{places.lock}: its descriptor leaked from {task} to {named(leaked)}, outside the job"
        if look.state == "orphaned":
            end = quoted("kill", *[str(stat.pid) for stat in leaked])
            yield problem(f"{text}: nothing else keeps the lease", end)
        else:
            yield notice(
                f"{text}; should the wrapper be killed, it would keep the lease; no command takes it away from a running "
                "process: start the job with -o, or close the descriptor in it"
            )


def collisions(facts: Facts) -> Iterable[Finding]:
    """Tell whether heavy processes work outside the lease, or beside each other."""
    found = outside.find(facts.settings.tasks.values(), facts.places)
    for one in found:
        yield problem(
            f"{one.task}: {named([one.stat])} runs outside the {one.lease} lease; start it through maintlock-wrap",
            quoted("kill", str(one.stat.pid)),
        )
    for name in facts.leases if facts.is_ledger_trusted else ():
        try:
            told = history.read_snapshot(facts.directory, lease=name).collisions
        except LedgerUnavailable:
            continue  # told with the ledger
        for collision in told:
            if collision.kind == "inherited":  # the other kinds are told by what is seen now
                text = f"{name}: several heavy processes were found at once: {printable(collision.detail or '', 1000)}"
                yield problem(
                    f"{text}; nothing heavy is started until they have ended: let them, or kill them by these pids"
                )
