"""A lock file that is replaced under its holder: noticed, and treated as held."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from maintlock import holder as holders
from maintlock import ledger
from tests.protocol import (
    LEASE,
    PROBES,
    PYTHON,
    SAYS_HELD,
    assert_each_grant_ended_once,
    crash,
    ends,
    is_locked,
    kill,
    places,
    snapshot,
    survivor_of_a_crash,
    told,
    until_gone,
    waiting,
)
from tests.support import PATIENCE_SECONDS, WRAP, Lock, Running, until


def removed(path: Path) -> None:
    """Remove the file."""
    path.unlink()


def recreated(path: Path) -> None:
    """Put an empty file in its place."""
    path.unlink()
    path.touch(mode=0o600)


def moved(path: Path) -> None:
    """Move the file aside."""
    path.rename(path.with_suffix(".old"))


def copied(path: Path) -> None:
    """Put a copy in its place, as an editor or a restored backup does."""
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)


def collisions(lock: Lock) -> list[str]:
    """Return the kinds of open collisions."""
    return [found.kind for found in snapshot(lock).collisions]


def library_holder(lock: Lock, task: str) -> Running:
    """Start a Python program that holds the lease in itself, without a job."""
    running = lock.start(str(PROBES / "hold.py"), task, program=PYTHON, stdin=subprocess.PIPE)
    running.until_line("holding")
    return running


@pytest.mark.parametrize(
    ("kind", "replace"),
    [
        *(("wrap", replace) for replace in (removed, recreated, moved, copied)),
        ("library", removed),
        ("library", copied),
    ],
)
def test_it_stays_held(lock: Lock, replace: Callable[[Path], None], kind: str) -> None:
    """Whatever was done to the lock file, its living holder still has the lease (R1), and what happened is a collision."""
    holder = lock.hold("backup") if kind == "wrap" else library_holder(lock, "backup")
    replace(lock.directory / f"{LEASE}.lock")
    for _ in range(2):
        done = lock.wrap("-t", "next", "-E", "9", "--", "echo", "ran")
        assert (done.returncode, done.stdout) == (9, ""), done.stderr
        assert f"{SAYS_HELD}backup (owner " in done.stderr
        assert f"pid {holder.pid}" in done.stderr
    assert [(r["reason_code"], r["blocked_by"]) for r in told(lock, event="deferred")] == [
        ("lockfile-replaced", "backup")
    ] * 2
    rows = told(lock, event="collision")
    assert [(row["reason_code"], row["task"]) for row in rows] == [("lockfile_replaced", "backup")]
    assert "was replaced while backup (owner " in rows[0]["reason"]
    assert collisions(lock) == ["lockfile_replaced"]
    holder.popen.communicate()
    assert lock.wrap("-t", "next", "-E", "9", "--", "echo", "ran").stdout == "ran\n"
    assert collisions(lock) == []
    assert len(told(lock, event="collision_cleared")) == 1
    assert [(task, event) for task, event, _ in ends(lock)] == [("backup", "released"), ("next", "released")]
    assert_each_grant_ended_once(lock)


def test_a_waiter_waits_for_it(lock: Lock) -> None:
    """Who waits gets the lease when the holder of the replaced file ends, and never before."""
    holder = lock.hold("backup")
    recreated(lock.directory / f"{LEASE}.lock")
    waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
    until(lambda: told(lock, event="collision"), "the collision")
    until(lambda: waiting(lock) == ["waiter"], "the waiter to be told")
    assert is_locked(places(lock).lock)
    holder.popen.communicate()
    assert waiter.end()[0] == 0
    assert [row["task"] for row in told(lock, event="acquired")] == ["backup", "waiter"]
    assert len(told(lock, event="collision")) == 1


def test_a_crashed_holder_of_a_replaced_file(lock: Lock) -> None:
    """When the holder of a replaced file is killed, its grant is lost like any other, and the next one runs."""
    holder = lock.hold("backup")
    job = until(lambda: lock.sidecar()["job_pid"], "the job")
    recreated(lock.directory / f"{LEASE}.lock")
    lock.wrap("-t", "next", "--", "true")
    crash(holder, job)
    until_gone(job)
    assert lock.wrap("-t", "next", "-w", "forever", "--", "echo", "ran").stdout == "ran\n"
    assert ends(lock)[0] == ("backup", "stale_cleaned", "lost")
    assert collisions(lock) == []
    assert_each_grant_ended_once(lock)


def test_survivors_of_a_replaced_file_are_named(lock: Lock) -> None:
    """When the wrapper is killed and the lock file is new, the sidecar still says whose job works on."""
    with survivor_of_a_crash(lock, "backup") as survivor:
        recreated(lock.directory / f"{LEASE}.lock")
        done = lock.wrap("-t", "next", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert f"held by survivors of backup (pids {survivor})" in done.stderr
        assert told(lock, event="deferred")[0]["blocked_by"] == "backup"
        assert (
            f"backup, pid {lock.sidecar()['pid']}) is dead; pid {survivor} (sleep) of its job is still running"
            in str(lock.status()["detail"])
        )


@contextmanager
def survivor_under_an_older_file(lock: Lock) -> Iterator[int]:
    """Give the pid of what lives on of a killed `backup`, with a lock file put back from before its grant."""
    lock.wrap("-t", "first", "--", "true")
    path = lock.directory / f"{LEASE}.lock"
    before = path.with_suffix(".before")
    shutil.copy2(path, before)
    with survivor_of_a_crash(lock, "backup") as survivor:
        before.rename(path)
        yield survivor


def test_survivors_of_a_grant_that_a_copy_does_not_know(lock: Lock) -> None:
    """A lock file put back from before the grant says that all has ended; the sidecar still leads to a killed job's rest."""
    with survivor_under_an_older_file(lock) as survivor:
        done = lock.wrap("-t", "next", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert f"held by survivors of backup (pids {survivor})" in done.stderr
    assert lock.wrap("-t", "next", "-E", "9", "--", "sh", "-c", "echo $MAINTLOCK_FENCE").stdout == "3\n"
    assert ends(lock)[1] == ("backup", "stale_cleaned", "lost")
    assert_each_grant_ended_once(lock)


def test_survivors_of_a_holder_that_is_about_to_die(lock: Lock) -> None:
    """A killed holder lives for a moment after it has lost its lock: its job is looked for all the same."""
    with survivor_under_an_older_file(lock) as survivor:
        from maintlock import process, sidecar

        fields, identity = lock.sidecar(), process.read_identity(os.getpid())
        del fields["schema"]
        fields.update(pid=identity.pid, pid_start_ticks=identity.start_ticks)
        sidecar.write(places(lock).sidecar, fields)
        done = lock.wrap("-t", "next", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert f"held by survivors of backup (pids {survivor})" in done.stderr


@pytest.mark.parametrize("put_back", ["empty", "from before"])
def test_a_request_inside_such_a_job_joins_it(lock: Lock, put_back: str) -> None:
    """Wrapper killed and lock file replaced: a request inside belongs to the job, of which the rest is not forgotten then."""
    lock.wrap("-t", "first", "--", "true")
    path = lock.directory / f"{LEASE}.lock"
    before = path.with_suffix(".before")
    before.touch(mode=0o600)
    if put_back == "from before":
        before.write_bytes(path.read_bytes())
    inside = f"{WRAP} -t inside -E 9 -- echo inside ran"
    script = f"echo ready $$; read x; {inside}; echo over $?; read x"
    job = lock.start("-t", "backup", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    pid = int(job.until_line("ready").split()[1])
    before.rename(path)
    crash(job)
    assert job.popen.stdin is not None
    job.popen.stdin.write(b"\n")
    job.popen.stdin.flush()
    job.until_line("inside ran")
    job.until_line("over 0")  # the joined job's wrapper is gone, too
    assert told(lock, event="nested_finished", task="inside")

    done = lock.wrap("-t", "next", "-E", "9", "--", "true")
    assert done.returncode == 9
    assert f"held by survivors of backup (pids {pid})" in done.stderr
    kill(pid)
    until_gone(pid)
    assert lock.wrap("-t", "next", "-w", "forever", "--", "echo", "ran").stdout == "ran\n"
    assert_each_grant_ended_once(lock)


def test_a_process_that_only_looks_like_the_holder(lock: Lock) -> None:
    """A living process that the sidecar names, but that has no lock on any such file, holds nothing."""
    holder = lock.hold("backup")
    fields = lock.sidecar()
    holder.popen.communicate()
    from maintlock import process, sidecar

    identity = process.read_identity(os.getpid())
    del fields["schema"]
    fields.update(pid=identity.pid, pid_start_ticks=identity.start_ticks, fence=7, lease_id="ef" * 16)
    sidecar.write(places(lock).sidecar, fields)
    assert lock.wrap("-t", "next", "--", "echo", "ran").stdout == "ran\n"
    assert told(lock, event="collision") == []


def test_another_leases_file_is_no_replacement(lock: Lock) -> None:
    """A process that holds a lease of a longer name is not taken for the holder of a replaced file."""
    lock.wrap("-t", "a", "--", "true")
    other = lock.hold("b", "--lease", f"{LEASE}.lock")
    identity_of = lock.sidecar(f"{LEASE}.lock")
    from maintlock import sidecar

    del identity_of["schema"]
    sidecar.write(places(lock).sidecar, {**identity_of, "lease": LEASE, "fence": 9, "lease_id": "ef" * 16})
    assert lock.wrap("-t", "next", "-E", "9", "--", "echo", "ran").stdout == "ran\n"
    other.popen.communicate()


def test_a_copy_from_before_repeats_no_fence(lock: Lock) -> None:
    """A lock file that is put back from before the grant does not know its fence, and it is given to nobody again."""
    lock.wrap("-t", "first", "--", "true")
    path = lock.directory / f"{LEASE}.lock"
    before = path.read_bytes()
    holder = lock.hold("second")
    path.unlink()
    path.write_bytes(before)
    path.chmod(0o600)
    holder.popen.communicate()
    done = lock.wrap("-t", "third", "-E", "9", "--", "sh", "-c", "echo $MAINTLOCK_FENCE")
    assert (done.returncode, done.stdout) == (0, "3\n")
    assert ends(lock) == [
        ("first", "released", "completed"),
        ("second", "released", "failed"),
        ("third", "released", "completed"),
    ]
    assert not Path(places(lock).sidecar).exists()


def test_who_waits_for_a_copy_loses_no_end(lock: Lock) -> None:
    """The holder of a file that was replaced by its copy has told its end before anybody can take it for lost."""
    holder = lock.hold("backup")
    copied(lock.directory / f"{LEASE}.lock")
    waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
    until(lambda: waiting(lock) == ["waiter"], "the waiter to be told")
    holder.popen.communicate()
    assert waiter.end()[0] == 0
    assert ends(lock) == [("backup", "released", "failed"), ("waiter", "released", "completed")]


# Just before it looks at what an earlier grant has left, the lock file is replaced, and another one takes the new one.
OVERTAKEN = """
import os, subprocess
from maintlock.earlier import Earlier
look = Earlier.blocker
def overtaken(self):
    Earlier.blocker = look
    os.unlink(self.places.lock)
    argv = [{wrap!r}, "-t", "thief", "--", "sh", "-c", "echo ready; exec sleep 1000"]
    thief = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    thief.stdout.readline()
    return look(self)
Earlier.blocker = overtaken
"""


def test_a_file_replaced_before_anything_is_on_record(lock: Lock) -> None:
    """Who has locked a file that is replaced before its grant stands in the records has locked nothing, and asks again (R1)."""
    lock.wrap("-t", "first", "--", "true")
    program = OVERTAKEN.format(wrap=WRAP)
    argv = [PYTHON, str(PROBES / "patched_wrap.py"), program, "-t", "late", "-E", "9", "--", "echo", "ran"]
    done = subprocess.run(
        argv, env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stdout) == (9, ""), done.stderr
    assert f"{SAYS_HELD}thief (" in done.stderr
    until(lambda: told(lock, event="acquired", task="thief"), "the thief's grant to be told")
    assert [row["task"] for row in told(lock, event="acquired")] == ["first", "thief"]


def test_who_looks_for_another_lock_file_keeps_the_ledgers_locks(lock: Lock) -> None:
    """The search through a holder's open files opens no ledger: closing one would free all locks that SQLite has there, and
    the next process to leave would take the log away under a connection that is kept.
    """
    for task in ("first", "second"):  # the first makes the ledger, what the second tells waits for it
        lock.wrap("-t", task, "--", "true")
    with ledger.Ledger(str(lock.directory)) as kept:
        kept.drain(now=time.time())
        inode = (lock.directory / "ledger.db").stat().st_ino

        def has_lock() -> bool:
            rows = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
            return any(
                row[1] == "POSIX" and row[4] == str(os.getpid()) and row[5].endswith(f":{inode}") for row in rows
            )

        assert has_lock()
        assert holders.holds_elsewhere(places(lock).lock, os.getpid(), "none") is False
        assert has_lock()
