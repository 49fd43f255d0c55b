"""What strikes: one small function for each fault. It tells whether it has struck; what it does is undone later, or stays."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from maintlock import line
from maintlock.paths import PENDING_FILES

if TYPE_CHECKING:
    from tests.torture.actors import Actor
    from tests.torture.ring import Ring, Seen

Fault = Callable[["Ring", random.Random], bool]
WRAPS = ("try", "wait", "close", "exec", "nested")
PROGRAMS = (*WRAPS, "npm", "hold", "coprocess")
FAVOUR_HOLDER = 0.6
LOCKER = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0.2)
db.execute("BEGIN EXCLUSIVE")
os.write(1, b"!")
os.kill(os.getpid(), signal.SIGSTOP)
"""
DATABASE_FILES = ("ledger.db", "ledger.db-wal", "ledger.db-shm")
PAGE = 4096
MAX_JUMP_SECONDS = 40 * 86400  # there and back is less than the history is long: what is older is forgotten, rightly
FILLER = "filler"


class StaleCopy(NamedTuple):
    """A lock file's content that was put back when another stood there; `at` in seconds since the epoch.

    `is_held`: a holder was there, whose lock file nobody has replaced before.
    """

    copied: bytes
    at: float
    is_held: bool


# Processes -------------------------------------------------------------------------------------------------------------


def _chosen(ring: Ring, rng: random.Random, *kinds: str) -> Actor | None:
    """Return one of these kinds, more often than not the holder if it is one."""
    holder = ring.read_holder() if rng.random() < FAVOUR_HOLDER else None
    if holder is not None and holder.kind in kinds:
        return holder
    found = ring.of_kind(*kinds)
    return rng.choice(found) if found else None


def _signalled(ring: Ring, actor: Actor | None, number: int, pids: Sequence[int] | None = None) -> bool:
    if actor is None or actor.pid not in ring.running:
        return False
    actor.struck_by.add(number)
    struck = [_send(pid, number) for pid in ([actor.pid] if pids is None else pids)]
    return any(struck)


def _send(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _to_wrapper(number: int) -> Fault:
    def strike(ring: Ring, rng: random.Random) -> bool:
        return _signalled(ring, _chosen(ring, rng, *WRAPS), number)

    return strike


def _kill_wrapper(ring: Ring, rng: random.Random) -> bool:
    """Kill a wrapper; under npm, the one that npm has started."""
    actor = _chosen(ring, rng, *WRAPS, "npm")
    if actor is None or actor.kind != "npm":
        return _signalled(ring, actor, signal.SIGKILL)
    wrappers = [seen.pid for seen in ring.members(actor) if _is_running(seen, b"maintlock-wrap", b"patched_wrap.py")]
    return _signalled(ring, actor, signal.SIGKILL, wrappers[:1])


def _is_running(seen: Seen, *programs: bytes) -> bool:
    try:
        with open(f"/proc/{seen.pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return any(word.endswith(programs) for word in words[:3])


def _kill_wrapper_beside_its_job(ring: Ring, _: random.Random) -> bool:
    """Kill the wrapper of a job that works and has no descriptor of the lock."""
    holder = ring.read_holder()
    if holder is None or holder.kind != "close" or not isinstance(ring.read_sidecar("job_pid"), int):
        return False
    return _signalled(ring, holder, signal.SIGKILL)


def _kill_job(ring: Ring, rng: random.Random) -> bool:
    """Kill one process of a job: its main process, a leftover, a shell, a wrapper inside, the helper of a client."""
    actor = _chosen(ring, rng, *PROGRAMS)
    if actor is None:
        return False
    parts = [seen.pid for seen in ring.members(actor) if seen.pid != actor.pid]
    return bool(parts) and _signalled(ring, actor, signal.SIGKILL, [rng.choice(parts)])


def _kill(*kinds: str) -> Fault:
    def strike(ring: Ring, rng: random.Random) -> bool:
        return _signalled(ring, _chosen(ring, rng, *kinds), signal.SIGKILL)

    return strike


def _kill_session(ring: Ring, rng: random.Random) -> bool:
    """Kill some of an actor's processes in any order, or all of them."""
    actor = _chosen(ring, rng, *PROGRAMS, "orchestrator")
    if actor is None:
        return False
    parts = [seen.pid for seen in ring.members(actor)]
    rng.shuffle(parts)
    keep = rng.choice((0, 0, 1))
    return _signalled(ring, actor, signal.SIGKILL, parts[: max(1, len(parts) - keep)])


def _kill_everything(ring: Ring, rng: random.Random) -> bool:
    """Kill wrappers, jobs, npm, orchestrator and holders, all of them at once."""
    pids = ring.marked()
    for actor in ring.running.values():
        actor.struck_by.add(signal.SIGKILL)
    rng.shuffle(pids)
    return sum(_send(pid, signal.SIGKILL) for pid in pids) > 0


def _stop_one(ring: Ring, rng: random.Random) -> bool:
    actor = _chosen(ring, rng, *PROGRAMS, "orchestrator")
    parts = [seen.pid for seen in ring.members(actor)] if actor is not None else []
    return bool(parts) and _stopped(ring, rng, actor, [rng.choice(parts)])


def _stop_session(ring: Ring, rng: random.Random) -> bool:
    actor = _chosen(ring, rng, *PROGRAMS)
    return actor is not None and _stopped(ring, rng, actor, [seen.pid for seen in ring.members(actor)])


def _stopped(ring: Ring, rng: random.Random, actor: Actor | None, pids: list[int]) -> bool:
    ring.later(rng.uniform(0.02, 0.9), lambda: [_send(pid, signal.SIGCONT) for pid in pids] and None)
    return _signalled(ring, actor, signal.SIGSTOP, pids)


def _terminate_group(ring: Ring, rng: random.Random) -> bool:
    actor = _chosen(ring, rng, *WRAPS, "npm", "coprocess")
    if actor is None or actor.pid not in ring.running:
        return False
    actor.struck_by.add(signal.SIGTERM)
    try:
        os.killpg(actor.pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    return True


def _terminate_helper(ring: Ring, rng: random.Random) -> bool:
    """Ask a helper to stop, and not its client, which is to be told."""
    actor = _chosen(ring, rng, "coprocess")
    parts = [seen.pid for seen in ring.members(actor) if _is_running(seen, b"maintlock")] if actor is not None else []
    return _signalled(ring, actor, signal.SIGTERM, parts[:1])


# Files -----------------------------------------------------------------------------------------------------------------


def _truncate_sidecar(ring: Ring, rng: random.Random) -> bool:
    try:
        size = os.stat(ring.path("json")).st_size
        os.truncate(ring.path("json"), rng.randrange(size) if size else 0)
    except OSError:
        return False
    return True


def _delete_sidecar(ring: Ring, _: random.Random) -> bool:
    return _is_unlinked(ring.path("json"))


def _garbage_as_sidecar(ring: Ring, rng: random.Random) -> bool:
    return _is_put(ring.path("json"), rng.choice((rng.randbytes(700), b"{}", b"[" * 5000, b'{"schema": 1, "pid": 1}')))


def _fifo_as_sidecar(ring: Ring, _: random.Random) -> bool:
    beside = ring.directory / "fifo"
    os.mkfifo(beside, 0o600)
    os.rename(beside, ring.path("json"))
    return True


def _unlink_lock_file(ring: Ring, _: random.Random) -> bool:
    ring.replaced_under.add(ring.read_sidecar("lease_id"))
    return _is_unlinked(ring.path("lock"))


def _empty_lock_file(ring: Ring, _: random.Random) -> bool:
    ring.replaced_under.add(ring.read_sidecar("lease_id"))
    return ring.path("lock").exists() and _is_put(ring.path("lock"), b"")


def _copy_of_lock_file(ring: Ring, _: random.Random) -> bool:
    return _is_put_back(ring, None)


def _earlier_lock_file(ring: Ring, rng: random.Random) -> bool:
    """Put back what it said some grants ago, as a backup does."""
    return len(ring.lock_contents) > 1 and _is_put_back(ring, rng.choice(list(ring.lock_contents)[:-1]))


def _is_put_back(ring: Ring, content: bytes | None) -> bool:
    """Replace the lock file by a copy, or by this content; what the new one does not know, the checks must.

    A holder of the original whose sidecar stands before and after, and whose end did not stand in its line after that,
    notices at its end.
    """
    before = ring.read_sidecar("lease_id")
    is_first = before not in ring.replaced_under
    ring.replaced_under.add(before)
    try:
        fd = os.open(ring.path("lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    copied = os.pread(fd, PAGE, 0) if content is None else content
    _is_put(ring.path("lock"), copied)
    there = os.pread(fd, PAGE, 0)
    os.close(fd)
    if there != copied:
        found = line.decoded(there)
        is_going_on = found is not None and not found.outcome and found.lease_id == before
        is_held = is_going_on and is_first and ring.read_sidecar("lease_id") == before
        ring.stale_copies.append(StaleCopy(copied, time.time(), is_held))
    return True


def _is_unlinked(path: Path) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _is_put(path: Path, content: bytes) -> bool:
    beside = path.parent.parent / "replacement"
    beside.touch(mode=0o600)
    beside.write_bytes(content)
    os.rename(beside, path)
    return True


# The ledger ------------------------------------------------------------------------------------------------------------


@contextmanager
def _pending_locked(ring: Ring) -> Iterator[bool]:
    """Keep drains away for a moment, or say that this cannot be had soon."""
    with ExitStack() as opened:
        fds = []
        try:
            for name in PENDING_FILES:
                fds.append(os.open(ring.state / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                opened.callback(os.close, fds[-1])
        except OSError:
            yield False
            return
        deadline = time.monotonic() + 0.05
        while not (is_locked := all(map(_is_locked, fds))) and time.monotonic() < deadline:
            time.sleep(0.001)
        yield is_locked


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_ledger(ring: Ring) -> bool:
    """Put the database aside, for the checks to find what was entered into it."""
    aside = ring.directory / f"ledger-{len(ring.taken_ledgers)}"
    if ring.has_bad_ledger or not (ring.state / DATABASE_FILES[0]).exists():
        return False
    aside.mkdir()
    for name in DATABASE_FILES:
        try:
            os.rename(ring.state / name, aside / name)
        except FileNotFoundError:
            continue
    ring.taken_ledgers.append(aside)
    return True


def _delete_ledger(ring: Ring, _: random.Random) -> bool:
    with _pending_locked(ring) as is_locked:
        return is_locked and take_ledger(ring)


def _garbage_as_ledger(ring: Ring, rng: random.Random) -> bool:
    """Put a file in its place that is none; after a while somebody removes it, as `maintlock doctor` says."""
    path = ring.state / DATABASE_FILES[0]
    with _pending_locked(ring) as is_locked:
        if not (is_locked and take_ledger(ring)):
            return False
        _is_put(path, rng.randbytes(3 * PAGE))
    number = os.stat(path).st_ino
    ring.has_bad_ledger = True

    def mend() -> None:
        ring.has_bad_ledger = False
        if path.exists() and os.stat(path).st_ino == number:
            path.unlink()

    ring.later(rng.uniform(0.1, 0.5), mend)
    return True


def _corrupt_page_of_ledger(ring: Ring, rng: random.Random) -> bool:
    """Overwrite the database's head; after a while it is put back, unless SQLite has written there itself."""
    path = ring.state / DATABASE_FILES[0]
    bad = rng.randbytes(100)
    with _pending_locked(ring) as is_locked:
        if not is_locked or ring.has_bad_ledger or not path.exists() or path.stat().st_size < PAGE:
            return False
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        good = os.pread(fd, len(bad), 0)
        os.pwrite(fd, bad, 0)
    ring.has_bad_ledger = True

    def mend() -> None:
        ring.has_bad_ledger = False
        if os.pread(fd, len(bad), 0) == bad:
            os.pwrite(fd, good, 0)
        os.close(fd)

    ring.later(rng.uniform(0.05, 0.5), mend)
    return True


def _ledger_locked(ring: Ring, rng: random.Random) -> bool:
    path = ring.state / DATABASE_FILES[0]
    if not path.exists():
        return False
    return _helped(ring, rng, [sys.executable, "-I", "-S", "-c", LOCKER, str(path)])


def _pending_locked_by_stopped(ring: Ring, rng: random.Random) -> bool:
    path = ring.state / "ledger.pending"
    script = "import fcntl,os,signal,sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB); os.write(1, b'!'); "
    script += "os.kill(os.getpid(), signal.SIGSTOP)"
    return path.exists() and _helped(ring, rng, [sys.executable, "-I", "-S", "-c", script, str(path)])


def _helped(ring: Ring, rng: random.Random, argv: list[str]) -> bool:
    """Have a process lock something and stop; after a while it is killed."""
    helper = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert helper.stdout is not None
    has_locked = helper.stdout.read(1) == b"!"
    helper.stdout.close()

    def end() -> None:
        helper.kill()
        helper.wait()

    ring.later(rng.uniform(0.1, 0.9), end)
    return has_locked


# Disk and clock --------------------------------------------------------------------------------------------------------


def _disk_full(ring: Ring, rng: random.Random) -> bool:
    path = ring.state / FILLER
    if not _is_good_disk(ring):
        return False
    since = time.monotonic()
    try:
        with open(path, "wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
    except OSError:
        pass
    _mend_later(ring, since, rng.uniform(0.1, 0.8), lambda: path.unlink(missing_ok=True))
    return path.exists()


def _read_only(ring: Ring, rng: random.Random) -> bool:
    """Let nothing new be opened for writing; who has a file open can go on, as when a disk fails and is mounted anew."""
    state, since = str(ring.state), time.monotonic()
    if not _is_good_disk(ring) or not (_mounted("--bind", state, state) and _mounted("-o", "remount,ro,bind", state)):
        return False
    _mend_later(
        ring, since, rng.uniform(0.1, 0.6), lambda: subprocess.run(["umount", "-l", state], check=True) and None
    )
    return True


def _is_good_disk(ring: Ring) -> bool:
    return os.path.ismount(ring.state) and not ring.has_bad_disk


def _mend_later(ring: Ring, since: float, seconds: float, mend: Callable[[], None]) -> None:
    """Have the disk good again after a while, and keep in mind from when until when it was not."""
    ring.has_bad_disk = True

    def end() -> None:
        mend()
        ring.has_bad_disk = False
        ring.bad_disk.append((since, time.monotonic()))

    ring.later(seconds, end)


def _mounted(*options: str) -> bool:
    return subprocess.run(["mount", *options], check=False, stderr=subprocess.DEVNULL).returncode == 0


def _clock_jumps(ring: Ring, rng: random.Random) -> bool:
    ahead = rng.choice((0, rng.randrange(-MAX_JUMP_SECONDS, MAX_JUMP_SECONDS), rng.randrange(-5, 5)))
    with open(ring.directory / "clock", "r+b") as file:
        file.write(ahead.to_bytes(8, sys.byteorder, signed=True))
    return ring.shim is not None


def read_rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Return what a database says, without maintlock; nothing where its maker was killed, or hindered, before it had tables."""
    db = sqlite3.connect(path, timeout=5)
    try:
        has_tables = db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
        return db.execute(statement).fetchall() if has_tables else []
    finally:
        db.close()


FAULTS: dict[str, Fault] = {
    "nothing": lambda _ring, _rng: True,
    "kill wrapper": _kill_wrapper,
    "kill wrapper beside its job": _kill_wrapper_beside_its_job,
    "kill job": _kill_job,
    "kill npm": _kill("npm"),
    "kill hold": _kill("hold"),
    "kill coprocess": _kill("coprocess"),
    "kill orchestrator": _kill("orchestrator"),
    "kill session": _kill_session,
    "kill everything": _kill_everything,
    "stop one": _stop_one,
    "stop session": _stop_session,
    "terminate wrapper": _to_wrapper(signal.SIGTERM),
    "terminate group": _terminate_group,
    "interrupt wrapper": _to_wrapper(signal.SIGINT),
    "hang up wrapper": _to_wrapper(signal.SIGHUP),
    "terminate helper": _terminate_helper,
    "truncate sidecar": _truncate_sidecar,
    "delete sidecar": _delete_sidecar,
    "garbage as sidecar": _garbage_as_sidecar,
    "fifo as sidecar": _fifo_as_sidecar,
    "unlink lock file": _unlink_lock_file,
    "empty lock file": _empty_lock_file,
    "copy of lock file": _copy_of_lock_file,
    "earlier lock file": _earlier_lock_file,
    "ledger locked by stopped process": _ledger_locked,
    "pending locked by stopped process": _pending_locked_by_stopped,
    "delete ledger": _delete_ledger,
    "garbage as ledger": _garbage_as_ledger,
    "corrupt page of ledger": _corrupt_page_of_ledger,
    "disk full": _disk_full,
    "read-only": _read_only,
    "clock jumps": _clock_jumps,
}
