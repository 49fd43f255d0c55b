"""`maintlock stop` and `maintlock should-yield`: the job that keeps the lease is ended, or told that somebody waits."""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from maintlock import custody, events, pending
from maintlock import stop as stopping
from maintlock.times import rfc3339
from tests.protocol import (
    LEASE,
    PROBES,
    PYTHON,
    assert_each_grant_ended_once,
    crash,
    ends,
    is_locked,
    kill,
    line_of,
    places,
    show_without_memory,
    survivor_of_a_crash,
    told,
    until_asleep,
    until_gone,
    until_queued,
    waiting,
)
from tests.support import MAINTLOCK, PATIENCE_SECONDS, Lock, Running, lock_in, until
from tests.terminal import CTRL_C, CTRL_D, Opened, session, state

# On a busy machine a wrapper may need longer than it is given to put the end on record, and would be killed.
PATIENT_STOP = f"""
import sys
from maintlock import cli, stop
stop.WRAPPER_SECONDS = stop.AFTER_KILL_SECONDS = {PATIENCE_SECONDS}
sys.exit(cli.main(["stop", *sys.argv[1:]]))
"""
# Its end is on record, and it has no processor before it frees the lock.
LATE = """
import os, time
from maintlock.lease import Lease
remove = Lease._remove_sidecar
def late(self):
    open({here!r}, "w").close()
    while not os.path.exists({go!r}):
        time.sleep(0.005)
    remove(self)
Lease._remove_sidecar = late
"""
STUBBORN = (PYTHON, str(PROBES / "stubborn.py"))
DAEMON = "setsid sleep 1000 & echo ready $!; read x"


def run(lock: Lock, *arguments: str, program: Sequence[str] = (MAINTLOCK,)) -> subprocess.CompletedProcess[str]:
    """Run `maintlock` to its end."""
    return subprocess.run(
        [*program, *arguments], env=lock.env(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def stop(lock: Lock, *arguments: str, grace: str = "1h") -> subprocess.CompletedProcess[str]:
    """Run `maintlock stop --yes`, which has patience with wrappers."""
    return run(lock, "--yes", "--grace", grace, *arguments, program=(PYTHON, "-c", PATIENT_STOP))


def assert_stopped(done: subprocess.CompletedProcess[str], task: str) -> None:
    """It says what it has stopped, and nothing else."""
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith(f"stopped {task}: ")


def assert_free(lock: Lock) -> None:
    """Nothing holds the lease, and the next request gets it."""
    assert lock.status()["state"] == "free"
    assert lock.wrap("-t", "next", "-E", "9", "--", "true").returncode == 0


def is_asleep(pid: int) -> bool:
    """Tell whether a process works on: it sleeps, or waits for something to read."""
    return state(pid) == "S"


# What is stopped


def test_a_job_is_stopped(lock: Lock) -> None:
    """The job gets TERM, the lease is free, and both the request and the outcome are on record."""
    holder = lock.hold("backup", script="echo ready; exec sleep 1000")
    done = stop(lock)
    assert_stopped(done, "backup")
    assert f"(pid {holder.pid})" in done.stdout
    assert holder.end()[0] == 143
    assert ends(lock) == [("backup", "released", "stopped")]
    (row,) = told(lock, event="stop_requested")
    assert (row["task"], row["lease"], row["lease_id"]) == ("backup", LEASE, line_of(lock).lease_id)
    assert row["reason"].startswith("maintlock stop by ")
    assert_free(lock)


def test_a_job_that_ignores_term_is_killed(lock: Lock) -> None:
    """What does not heed TERM is killed after the grace, and the wrapper puts the end on record."""
    holder = lock.start("-t", "backup", "--stop-grace", "1h", "--", *STUBBORN)
    job = int(holder.until_line("up").split()[1])
    assert_stopped(stop(lock, grace="300ms"), "backup")
    until_gone(job)
    assert holder.end()[0] == 137
    assert ends(lock) == [("backup", "released", "stopped")]
    assert_free(lock)


def test_a_job_has_its_grace(lock: Lock) -> None:
    """A job that cleans up within the grace is not killed."""
    script = "trap 'echo cleaning; read y; echo cleaned; exit 3' TERM; echo ready; read x"
    holder = lock.hold("backup", "--stop-grace", "1h", script=script)
    stopping = lock.start("stop", "--yes", "--grace", "1h", program=MAINTLOCK)
    holder.until_line("cleaning")
    assert stopping.popen.poll() is None
    code, out, _ = holder.end()  # which lets it read on
    assert (code, out) == (3, "cleaned\n")
    assert stopping.end()[0] == 0
    assert ends(lock) == [("backup", "released", "stopped")]


def test_it_is_stopped_when_the_lock_is_free(lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the lock beyond the end on record: who asks as soon as it says so gets the lease."""
    here, go, looks = tmp_path / "here", tmp_path / "go", itertools.count()
    patch = LATE.format(here=str(here), go=str(go))
    job = ("sh", "-c", "echo ready; exec sleep 1000")
    holder = lock.start(str(PROBES / "patched_wrap.py"), patch, "-t", "backup", "--", *job, program=PYTHON)
    holder.until_line("ready")

    def sleep(seconds: float) -> None:
        if here.exists() and next(looks) == 2:
            go.touch()
        time.sleep(seconds)

    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=sleep))
    assert stopping.stop(places(lock), line_of(lock).lease_id, grace_seconds=3600)
    assert go.exists() and not is_locked(places(lock).lock)
    assert holder.end()[0] == 143


def test_joined_jobs_and_groups_of_their_own_are_stopped(lock: Lock) -> None:
    """Joined jobs and processes in groups of their own end with the job that they are part of."""
    inner = f"maintlock-wrap -t inner -- {' '.join(STUBBORN)} group"
    holder = lock.start("-t", "outer", "--", "sh", "-c", f"{inner} & {' '.join(STUBBORN)} group & wait")
    pids = [int(holder.until_line("up").split()[1]) for _ in range(2)]
    assert_stopped(stop(lock, grace="300ms"), "outer")
    for pid in pids:
        until_gone(pid)
    holder.popen.wait()  # it tells the end once the lease is free
    assert {row["outcome"] for row in told(lock, task="outer") if row["outcome"]} == {"stopped"}
    assert_free(lock)


def test_a_stopped_wrapper_and_job_are_woken_to_end(lock: Lock) -> None:
    """A job that was suspended with its wrapper is continued so that it can end."""
    holder = lock.hold("backup", script="echo ready; exec sleep 1000")
    job = until(lambda: lock.sidecar()["job_pid"], "the job")
    for pid in (holder.pid, job):
        kill(pid, signal.SIGSTOP)
    until(lambda: state(job) == "T" and state(holder.pid) == "T")
    assert_stopped(stop(lock), "backup")
    assert holder.end()[0] == 143
    assert ends(lock) == [("backup", "released", "stopped")]


def test_survivors_are_stopped(lock: Lock) -> None:
    """After wrapper and npm were killed, what works on is stopped, and so the grant is on record (L2)."""
    with survivor_of_a_crash(lock, "backup") as survivor:
        assert lock.status()["state"] == "orphaned"
        done = stop(lock)
        assert_stopped(done, "backup")
        assert f"(pid {survivor})" in done.stdout
        until_gone(survivor)
    assert_free(lock)
    assert ends(lock)[0] == ("backup", "released", "stopped")
    assert_each_grant_ended_once(lock)


def test_who_is_just_loading_a_program_is_not_taken_for_a_part(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be asked whether it is of the job, because it is becoming another program, is named and not stopped (L2)."""
    stranger = lock.start("1000", program="sleep")
    show_without_memory(monkeypatch, stranger.pid)
    with survivor_of_a_crash(lock, "backup") as survivor:
        found, keepers = stopping.read_kept(places(lock))
        assert [stat.pid for stat in found.members] == [stat.pid for stat in keepers.all] == [survivor]
    found, keepers = stopping.read_kept(places(lock))
    assert (found.state, found.members, keepers.all) == ("orphaned", (), ())
    assert found.detail is not None and f"pid {stranger.pid} (sleep)" in found.detail
    assert "may be of its job" in found.detail


def test_a_job_whose_wrapper_was_killed_is_stopped(lock: Lock) -> None:
    """After the wrapper alone was killed, its job carries the lock on, and is stopped."""
    holder = lock.start("-t", "backup", "--", *STUBBORN)
    job = int(holder.until_line("up").split()[1])
    crash(holder)
    try:
        assert lock.status()["state"] == "orphaned"
        assert_stopped(stop(lock, grace="200ms"), "backup")
        until_gone(job)
    finally:
        kill(job)
    assert_free(lock)


def test_a_daemon_with_a_leaked_descriptor_is_stopped(lock: Lock) -> None:
    """A daemon in a session of its own that alone carries the lock of a killed job is ended, for it keeps the lease."""
    holder = lock.start("-t", "backup", "--", "sh", "-c", DAEMON, stdin=subprocess.PIPE)
    daemon = int(holder.until_line("ready").split()[1])
    until_asleep(daemon)
    crash(holder, until(lambda: lock.sidecar()["job_pid"], "the job"))
    try:
        found = lock.status()
        assert found["state"] == "orphaned" and str(daemon) in found["detail"]
        assert_stopped(stop(lock), "backup")
        until_gone(daemon)
    finally:
        kill(daemon)
    assert_free(lock)


def test_a_daemon_beside_a_living_job_is_left_alone(lock: Lock) -> None:
    """A daemon that left the session is none of the job, and works on when that is stopped (L2)."""
    holder = lock.start("-t", "backup", "--", "sh", "-c", DAEMON, stdin=subprocess.PIPE)
    daemon = int(holder.until_line("ready").split()[1])
    until_asleep(daemon)
    try:
        done = stop(lock)
        assert_stopped(done, "backup")
        assert str(daemon) not in done.stdout
        holder.popen.wait()
        until(lambda: is_asleep(daemon), "it to work on")
    finally:
        kill(daemon)
    assert_free(lock)


def test_a_library_holder_is_stopped(lock: Lock) -> None:
    """A program that holds the lease in itself is ended, and has not failed, also before anybody asks again (R18)."""
    holder = library_holder(lock)
    assert_stopped(stop(lock), "dream")
    holder.popen.wait()
    assert holder.popen.returncode == -signal.SIGTERM
    found = json.loads(run(lock, "health", "--json").stdout)
    assert (found["status"], found["tasks"]["dream"]["last_outcome"]) == ("healthy", "stopped")
    assert_free(lock)
    assert ends(lock)[0][1:] == ("released", "stopped")


def library_holder(lock: Lock) -> Running:
    """Start a Python program that holds the lease in itself."""
    holder = lock.start(str(PROBES / "hold.py"), "dream", program=PYTHON, stdin=subprocess.PIPE)
    holder.until_line("holding")
    return holder


def test_a_coprocess_is_stopped(lock: Lock) -> None:
    """The helper of a program in another language gives the lease back, and its client lives."""
    holder = lock.start("hold", "-t", "dream", program=MAINTLOCK, stdin=subprocess.PIPE)
    holder.until_line("granted")
    assert_stopped(stop(lock), "dream")
    assert holder.end()[0] == 143
    assert_free(lock)


def test_a_command_that_became_the_holder_is_stopped(lock: Lock) -> None:
    """With --exec there is no wrapper, and the command itself is ended."""
    holder = lock.hold("backup", "--exec", script="echo ready; exec sleep 1000")
    assert_stopped(stop(lock), "backup")
    holder.popen.wait()
    assert holder.popen.returncode == -signal.SIGTERM
    assert_free(lock)
    assert ends(lock)[0][1:] == ("released", "stopped")


def replaced(path: Path) -> None:
    """Put another file in its place."""
    path.unlink()
    path.touch(mode=0o600)


@pytest.mark.parametrize(("kind", "replace"), [("wrap", replaced), ("library", Path.unlink)])
def test_the_holder_of_a_replaced_file_is_stopped(lock: Lock, kind: str, replace: Callable[[Path], None]) -> None:
    """A holder whose lock file was removed or replaced still counts, and is ended."""
    sleep = "echo ready; exec sleep 1000"
    holder = lock.hold("dream", script=sleep) if kind == "wrap" else library_holder(lock)
    replace(lock.directory / f"{LEASE}.lock")
    assert_stopped(stop(lock), "dream")
    holder.popen.wait()
    assert_free(lock)


def test_an_unknown_holder_is_stopped(lock: Lock) -> None:
    """Somebody who locked the file with another tool, and put nothing on record, is ended too."""
    lock.wrap("-t", "first", "--", "true")
    file = str(lock.directory / f"{LEASE}.lock")
    stranger = lock.start(file, "sh", "-c", "echo ready; exec sleep 1000", program="flock")
    stranger.until_line("ready")
    done = stop(lock)
    assert_stopped(done, "an unknown job")
    stranger.popen.wait()
    assert_free(lock)


# What is not


def test_nothing_is_held(lock: Lock) -> None:
    """Where nothing holds the lease there is nothing to ask and nothing to record, and no file is made."""
    done = run(lock, "stop")
    assert (done.returncode, done.stdout) == (0, f"nothing holds the {LEASE} lease\n")
    assert not lock.directory.exists()


def test_without_a_terminal_it_wants_yes(lock: Lock) -> None:
    """Nobody can be asked without a terminal: a usage error, and the job works on."""
    holder = lock.hold("backup")
    done = run(lock, "stop")
    assert done.returncode == os.EX_USAGE
    assert "--yes" in done.stderr
    assert holder.popen.poll() is None
    assert told(lock, event="stop_requested") == []


def test_on_a_terminal_it_asks(lock: Lock, open_shell: Opened) -> None:
    """On a terminal it names the job and its processes, and stops them only for a yes; Ctrl-D and Ctrl-C leave the question."""
    holder = lock.hold("backup", script="echo ready; exec sleep 1000")
    terminal = open_shell()
    for answer, code in (("n\n", 1), ("\n", 1), (CTRL_D, 1), (CTRL_C, 130), ("yes\n", 0)):
        terminal.press("maintlock stop --grace 1h\n")
        assert "stop backup: " in terminal.until("[y/N] ")
        until(lambda: [state(pid) for pid in session(terminal.popen.pid)] == ["S", "S"], "it to read")
        assert holder.popen.poll() is None
        terminal.press(answer)
        assert terminal.prompt()[0] == code
    assert holder.popen.wait() == 143
    assert "internal error" not in terminal.transcript


def test_waiters_are_left_alone(lock: Lock) -> None:
    """Who waits is not stopped, and gets the lease."""
    holder = lock.hold("backup", script="echo ready; exec sleep 1000")
    waiter = lock.start("-t", "patient", "-w", "forever", "--", "echo", "ran")
    until_queued(lock, waiter)
    assert_stopped(stop(lock), "backup")
    assert holder.end()[0] == 143
    assert waiter.end()[:2] == (0, "ran\n")


def test_a_waiter_behind_survivors_is_left_alone(lock: Lock) -> None:
    """A waiter that has won the lock, and keeps it until the survivors are gone, is not what keeps the lease."""
    with survivor_of_a_crash(lock, "backup") as survivor:
        waiter = lock.start("-t", "patient", "-w", "forever", "--", "echo", "ran")
        until(lambda: told(lock, event="survivors"), "the waiter to see them")
        assert is_locked(places(lock).lock)
        done = stop(lock)
        assert_stopped(done, "backup")
        assert f"(pid {waiter.pid})" not in done.stdout
        until_gone(survivor)
    assert waiter.end()[:2] == (0, "ran\n")
    assert_each_grant_ended_once(lock)


@pytest.mark.parametrize("how", ["held", "orphaned", "leaked"])
def test_another_directorys_jobs_are_not_touched(lock: Lock, tmp_path: Path, how: str) -> None:
    """However a lease of the same name is kept in another state directory, it is left alone (L9)."""
    with lock_in(tmp_path / "other" / "state") as other:
        foreign = other.start("-t", "backup", "--", "sh", "-c", DAEMON, stdin=subprocess.PIPE)
        daemon = int(foreign.until_line("ready").split()[1])
        until_asleep(daemon)
        job = until(lambda: other.sidecar()["job_pid"], "the job")
        if how != "held":
            crash(foreign, *([job] if how == "leaked" else []))
        try:
            lock.hold("mine", script="echo ready; exec sleep 1000")
            assert_stopped(stop(lock, grace="0"), "mine")
            assert run(lock, "stop", "--yes").stdout.startswith("nothing holds")
            for pid in (daemon, *(() if how == "leaked" else (job,))):
                until(functools.partial(is_asleep, pid), "it to work on")
            assert is_locked(places(other).lock)
        finally:
            kill(daemon)
            kill(job)


def test_other_leases_are_not_touched(lock: Lock) -> None:
    """Only the lease that was named is freed."""
    light = lock.hold("light", "--lease", "light", script="echo ready; exec sleep 1000")
    heavy = lock.hold("backup", script="echo ready; exec sleep 1000")
    assert_stopped(stop(lock, "--lease", "light"), "light")
    assert light.end()[0] == 143
    assert heavy.popen.poll() is None


def test_a_waiter_that_wins_meanwhile_is_left_alone(lock: Lock) -> None:
    """Who has got the lease since it was looked at is none of those who keep it, nor is its job."""
    first = lock.hold("first")
    found = custody.read_custody(places(lock))
    first.end()
    lock.hold("second")
    assert stopping.read_keepers(places(lock), found).all == ()
    assert stopping.stop(places(lock), found.grant.lease_id if found.grant else None, grace_seconds=0)
    assert told(lock, event="stop_requested") == []


def test_who_keeps_the_lease_is_known_only_while_the_line_stands(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a lease that changes hands at each look nobody is ended: they could be of the next grant."""
    lock.hold("backup")
    lines = iter(range(100))
    monkeypatch.setattr(stopping.line_file, "read_path", lambda _: next(lines))
    monkeypatch.setattr(stopping.custody, "read_custody", lambda _: custody_found)
    custody_found = custody.Custody(state="held", sidecar="missing")
    assert stopping.read_kept(places(lock))[1].all == ()


@pytest.mark.parametrize("command", ["stop", "should-yield"])
def test_an_untrusted_state_directory_is_refused(lock: Lock, command: str) -> None:
    """In a state directory that everybody may write to, nobody is ended and nobody is believed (77)."""
    holder = lock.hold("backup")
    lock.directory.chmod(0o777)
    done = run(lock, command, *(["--yes"] if command == "stop" else []))
    assert done.returncode == 77 and "everybody may write to it; run: chmod go-w" in done.stderr
    assert holder.popen.poll() is None


def test_from_inside_the_job(lock: Lock) -> None:
    """A job may stop itself: the request ends with everything else, and the outcome says so."""
    done = lock.wrap("-t", "backup", "--", "sh", "-c", "maintlock stop --yes --grace 1h; sleep 1000")
    assert done.returncode == 143, done
    assert ends(lock) == [("backup", "released", "stopped")]
    assert_free(lock)


# should-yield


def should_yield(lock: Lock, *arguments: str) -> int:
    """Return the exit code of `maintlock should-yield`."""
    done = run(lock, "should-yield", *arguments)
    assert (done.stdout, done.stderr) == ("", "")
    return done.returncode


def test_nobody_waits(lock: Lock) -> None:
    """Alone, or beside nobody who waits, a job goes on; asking makes no file."""
    assert should_yield(lock) == 1
    assert not lock.directory.exists()
    lock.hold("backup")
    assert should_yield(lock) == 1


def test_somebody_waits(lock: Lock) -> None:
    """A waiter is a reason to end early, but not before it has waited as long as was said (L5)."""
    lock.hold("backup")
    waiter = lock.start("-t", "patient", "-w", "forever", "--", "true")
    until(lambda: waiting(lock) == ["patient"], "the waiter")
    assert should_yield(lock) == 0
    assert should_yield(lock, "--after", "1h") == 1
    assert should_yield(lock, "--after", "1ms") == 0
    crash(waiter)
    assert should_yield(lock) == 1


@pytest.mark.parametrize(
    ("task", "hours", "code"), [("kbSync", 3, 0), ("kbSync", 1, 1), ("kbSync", 27, 1), ("backup", 3, 1)]
)
def test_somebody_is_starved(lock: Lock, task: str, hours: int, code: int) -> None:
    """Another task whose deferrals have lasted for more than two hours is a reason too, one's own is none (L5).

    Nor is one that nothing schedules and nobody has started for a day.
    """
    lock.wrap("-t", "backup", "--", "true")
    at = time.time() - hours * 3600
    deferred = events.new("deferred", at=at, lease=LEASE, task=task, reason_code="lease-held", blocked_by="backup")
    assert pending.append(str(lock.directory), [deferred])
    assert told(lock, event="deferred")[0]["at"] == rfc3339(at)
    done = lock.wrap("-t", "backup", "--", "maintlock", "should-yield")
    assert done.returncode == code, done.stderr


def test_starvation_is_as_configured(lock: Lock, tmp_path: Path) -> None:
    """How long is too long is said in the configuration."""
    config = tmp_path / "maintlock.toml"
    config.write_text('starved_after = "0s"\n', encoding="utf-8")
    lock.hold("backup")
    lock.wrap("-t", "kbSync", "--", "true")
    assert should_yield(lock) == 1
    assert should_yield(lock, "--config", str(config)) == 0
