"""What the tests of the lease protocol look at and set up: records, the kernel's queue, crashes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maintlock import history, line, locktable, process, sidecar
from maintlock.model import Line, ProcessIdentity, replace
from maintlock.paths import Places
from tests.support import Lock, Running, read_patiently, until, until_stopped

LEASE = "heavy-maintenance"
PROBES = Path(__file__).resolve().parent / "probes"
PYTHON = sys.executable
SAYS_HELD = "deferred due to active heavy-maintenance lease: held by "


def places(lock: Lock, lease: str = LEASE) -> Places:
    """Return the files of a lease."""
    return Places(directory=str(lock.directory), lease=lease)


def told(lock: Lock, **fields: object) -> list[dict[str, Any]]:
    """Return what the ledger and its pending events tell, oldest first, those that have these fields."""
    rows = read_patiently(history.read_history, str(lock.directory))
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]


def ends(lock: Lock) -> list[tuple[str, str, str]]:
    """Return task, event and outcome of every grant's end."""
    return [(row["task"], row["event"], row["outcome"]) for row in told(lock) if row["outcome"] is not None]


def assert_each_grant_ended_once(lock: Lock) -> None:
    """Every grant has one beginning and one end, except perhaps the last."""
    begun = [row["lease_id"] for row in told(lock, event="acquired")]
    ended = [row["lease_id"] for row in told(lock) if row["outcome"] is not None]
    assert len(set(begun)) == len(begun)
    assert len(set(ended)) == len(ended)
    assert set(ended) <= set(begun)
    assert len(begun) - len(ended) <= 1


def snapshot(lock: Lock) -> history.Snapshot:
    """Return what the ledger and its pending events say of the lease."""
    found: history.Snapshot = read_patiently(history.read_snapshot, str(lock.directory), lease=LEASE)
    return found


def waiting(lock: Lock) -> list[str]:
    """Return the tasks of those who count as waiting."""
    present = snapshot(lock).present
    return [row["task"] for row in present if row["role"] == "waiting" and is_present(row)]


def is_present(row: Mapping[str, Any]) -> bool:
    """Tell whether the process of a presence row lives."""
    fields = ("pid", "start_ticks", "boot_id", "pid_namespace")
    return process.is_alive(ProcessIdentity(**{name: row[name] for name in fields})) is True


def line_of(lock: Lock, lease: str = LEASE) -> Line:
    """Return the record inside the lock file."""
    found = line.read_path(places(lock, lease).lock)
    assert found is not None
    return found


def edit_line(lock: Lock, *, lease: str = LEASE, **changes: Any) -> Line:
    """Rewrite the record inside a lock file that nobody holds."""
    changed = replace(line_of(lock, lease), **changes)
    fd = os.open(places(lock, lease).lock, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        line.write(fd, changed)
    finally:
        os.close(fd)
    return changed


def edit_sidecar(lock: Lock, **changes: object) -> None:
    """Rewrite the sidecar."""
    fields = {**lock.sidecar(), **changes}
    sidecar.write(places(lock).sidecar, {name: value for name, value in fields.items() if name != "schema"})


def is_locked(path: str | Path, *, shared: bool = False) -> bool:
    """Tell whether somebody has a lock on a file that would keep out ours."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _rows_of(path: str | Path) -> list[locktable.Row]:
    inode = os.stat(path).st_ino
    rows = [locktable.parsed_row(text) for text in Path("/proc/locks").read_text().splitlines()]
    return [row for row in rows if row is not None and row.inode == inode]


def pids_in_kernel_queue(path: str | Path) -> list[int]:
    """Return who waits for a file's lock, first come first."""
    return [row.locker for row in _rows_of(path) if row.is_waiting]


def stop_without(running: Running, path: str | Path) -> None:
    """Stop a program at a moment when it has no lock on a file that it locks now and then: its own descriptors tell for sure."""
    while True:
        running.signal(signal.SIGSTOP)
        until_stopped(running.pid)
        if not locktable.read_carried(running.pid, str(path)):
            return
        running.signal(signal.SIGCONT)


def until_queued(lock: Lock, running: Running, lease: str = LEASE) -> None:
    """Return when a process waits in the kernel's queue for the lease."""
    until(lambda: running.pid in pids_in_kernel_queue(places(lock, lease).lock), f"pid {running.pid} to wait")


def until_asleep(daemon: int) -> None:
    """Return when a daemon has its own session, has become `sleep`, and sleeps: while it executes, it has no environment."""

    def is_daemon() -> bool:
        stat = process.read_stat(daemon)
        return stat is not None and (stat.name, stat.state, stat.sid) == ("sleep", "S", daemon)

    until(is_daemon, "the daemon to sleep in a session of its own")


def show_without_memory(patch: pytest.MonkeyPatch, pid: int, *, flags: int = 0, env: int = 0) -> None:
    """Have the kernel's files show a process as it is while it becomes another program or, with `flags`, while it ends."""
    real, base = process.read_bytes, f"{process.PROC}/{pid}"

    def read(path: str, limit: int = 65536) -> bytes | None:
        content = real(path, limit)
        if content is None or not path.startswith(f"{base}/"):
            return content
        if path != f"{base}/stat":
            return b""
        left, _, right = content.rpartition(b")")
        fields = right.split()
        fields[6] = b"%d" % (int(fields[6]) | flags)
        fields[23] = b"0"
        fields[47] = fields[48] = b"%d" % env
        return b") ".join([left, b" ".join(fields)])

    patch.setattr(process, "read_bytes", read)


def until_gone(pid: int) -> None:
    """Return when a process works no more."""

    def is_gone() -> bool:
        stat = process.read_stat(pid)
        return stat is None or stat.is_dead

    until(is_gone, f"pid {pid} to end")


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def crash(running: Running, *others: int) -> None:
    """Kill a program and other processes with SIGKILL, and return when they are gone."""
    for pid in (running.pid, *others):
        kill(pid)
    running.popen.wait()
    for pid in others:
        until_gone(pid)


def leave_crashed(lock: Lock, task: str = "crashed", *options: str) -> None:
    """Leave behind the records of a grant whose wrapper and job were killed."""
    running = lock.start("-t", task, *options, "--", "sh", "-c", "echo ready $$; read x", stdin=subprocess.PIPE)
    job = int(running.until_line("ready").split()[1])
    until(lambda: told(lock, event="acquired", task=task), "the grant to be told")
    crash(running, job)


@contextmanager
def survivor_of_a_crash(lock: Lock, task: str = "crashed", *options: str, **more: Any) -> Iterator[int]:
    """Give the pid of what works on of a job although its wrapper and its main process were killed (npm's way to run)."""
    running = lock.start(
        "-t", task, *options, "--", PYTHON, str(PROBES / "like_npm.py"), "sleep", "1000", stdin=subprocess.PIPE, **more
    )
    main, child = map(int, running.until_line("ready").split()[1:])
    crash(running, main)
    try:
        yield child
    finally:
        kill(child)
        until_gone(child)
