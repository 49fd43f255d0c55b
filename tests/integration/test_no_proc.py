"""The whole story where there is no /proc and no prctl(2): told from the records, psutil and the lock itself."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from maintlock import line
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
    line_of,
    places,
    told,
    until_gone,
)
from tests.support import PATIENCE_SECONDS, Lock, Running, until

WITHOUT = (PYTHON, str(PROBES / "without_proc.py"), "wrap")
INSIDE = " ".join(WITHOUT)


def wrap(lock: Lock, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    """Run `maintlock-wrap` without /proc to its end."""
    options = {"stdin": subprocess.DEVNULL, "env": lock.env(), **more}
    return subprocess.run([*WITHOUT, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, **options)  # type: ignore[call-overload, no-any-return]


def start(lock: Lock, *arguments: str) -> Running:
    """Start `maintlock-wrap` without /proc."""
    return lock.start(*WITHOUT[1:], *arguments, program=WITHOUT[0], stdin=subprocess.PIPE)


def hold(lock: Lock, task: str, *options: str, script: str = "echo ready; read x; true") -> Running:
    """Start a job without /proc that has the lease."""
    running = start(lock, "-t", task, *options, "--", "sh", "-c", script)
    running.until_line("ready")
    return running


def test_it_is_held_and_named(lock: Lock) -> None:
    """A job runs under the lock, others stand back and name its owner, and its end is told."""
    holder = hold(lock, "backup", "--owner", "alice@laptop")
    fields = lock.sidecar()
    assert (fields["pid"], fields["boot_id"], fields["pid_namespace"]) == (holder.pid, "", "")
    assert fields["pid_start_ticks"] > 0
    done = wrap(lock, "-t", "next", "-E", "9", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (9, "")
    assert f"next {SAYS_HELD}backup (owner alice@laptop, pid {holder.pid}, " in done.stderr
    holder.popen.communicate()
    assert wrap(lock, "-t", "next", "--", "echo", "ran").stdout == "ran\n"
    assert ends(lock) == [("backup", "released", "completed"), ("next", "released", "completed")]
    assert_each_grant_ended_once(lock)


def test_exit_codes_are_the_jobs(lock: Lock) -> None:
    """The job's exit code and the signal it died of are told as ever."""
    assert wrap(lock, "-t", "a", "--", "sh", "-c", "exit 7").returncode == 7
    assert wrap(lock, "-t", "a", "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert wrap(lock, "-t", "a", "--", "/nonexistent").returncode == 127


def test_a_waiter_is_served(lock: Lock) -> None:
    """A waiter gets the lease when the holder ends, and stands back when its time is over."""
    holder = hold(lock, "backup")
    assert wrap(lock, "-t", "brief", "-w", "100ms", "-E", "9", "--", "true").returncode == 9
    waiter = start(lock, "-t", "waiter", "-w", "forever", "--", "true")
    until(lambda: is_locked(places(lock).queue), "the waiter")
    holder.popen.communicate()
    assert waiter.end()[0] == 0
    assert told(lock, task="brief")[0]["reason_code"] == "wait-timeout"


def test_a_nested_request_joins(lock: Lock) -> None:
    """A nested request joins by its token, or by ancestry where the environment is stripped (R7)."""
    bare = f'env -i PATH="$PATH" {INSIDE} --state-dir {lock.directory} -t bare -- echo bare'
    done = wrap(lock, "-t", "outer", "--", "sh", "-c", f"{INSIDE} -t kbSync -- echo joined; {bare}")
    assert done.stdout == "joined\nbare\n", done.stderr
    rows = told(lock, event="nested_finished")
    assert [(row["task"], row["parent_task"]) for row in rows] == [("kbSync", "outer"), ("bare", "outer")]


def test_leftovers_keep_it(lock: Lock) -> None:
    """What lives on of a job in its session keeps the lease, found by its environment instead of by its parent."""
    script = "exec 3<&0; { read x <&3; } & echo ready $!"  # it executes nothing, which would hide its environment
    holder = start(lock, "-t", "backup", "-o", "--", "sh", "-c", script)
    leftover = int(holder.until_line("ready").split()[1])
    job = until(lambda: lock.sidecar()["job_pid"], "the job")
    until_gone(job)
    assert os.getsid(leftover) == os.getsid(0)
    assert wrap(lock, "-t", "next", "-E", "9", "--", "true").returncode == 9
    holder.popen.communicate()
    until_gone(leftover)
    assert holder.popen.returncode == 0
    assert wrap(lock, "-t", "next", "-E", "9", "--", "true").returncode == 0


def test_a_signal_is_passed_on(lock: Lock) -> None:
    """TERM reaches the job, and the grant ends as stopped."""
    holder = hold(lock, "backup", script="echo ready; exec sleep 1000")
    holder.signal(signal.SIGTERM)
    assert holder.end()[0] == 143
    assert ends(lock) == [("backup", "released", "stopped")]


def test_survivors_of_a_crash(lock: Lock) -> None:
    """After wrapper and main process were killed, what works on holds the lease and is named (L2)."""
    like_npm = (PYTHON, str(PROBES / "like_npm.py"), "sleep", "1000")
    holder = start(lock, "-t", "backup", "--", *like_npm)
    main, child = map(int, holder.until_line("ready").split()[1:])
    crash(holder, main)
    try:
        done = wrap(lock, "-t", "next", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert f"{SAYS_HELD}survivors of backup (pids {child})" in done.stderr
        assert told(lock, event="deferred")[0]["reason_code"] == "survivors"
    finally:
        kill(child)
        until_gone(child)
    assert wrap(lock, "-t", "next", "--", "echo", "ran").stdout == "ran\n"
    assert ends(lock) == [("backup", "stale_cleaned", "lost"), ("next", "released", "completed")]
    assert_each_grant_ended_once(lock)


def test_a_replaced_lock_file(lock: Lock) -> None:
    """A holder whose lock file was replaced lives by its records, and so has the lease (R1)."""
    holder = hold(lock, "backup")
    os.unlink(places(lock).lock)
    done = wrap(lock, "-t", "next", "-E", "9", "--", "true")
    assert done.returncode == 9
    assert f"{SAYS_HELD}backup (" in done.stderr
    assert told(lock, event="deferred")[0]["reason_code"] == "lockfile-replaced"
    holder.popen.communicate()
    assert wrap(lock, "-t", "next", "--", "echo", "ran").stdout == "ran\n"
    assert line_of(lock).fence == 2


def test_both_kinds_of_system_on_one_directory(lock: Lock) -> None:
    """A requester with /proc and a holder without, or the other way round, never take each other for dead."""
    holder = hold(lock, "without")
    done = lock.wrap("-t", "next", "-E", "9", "--", "true")
    assert done.returncode == 9
    assert f"{SAYS_HELD}without (" in done.stderr
    holder.popen.communicate()
    other = lock.hold("with")
    done = wrap(lock, "-t", "next", "-E", "9", "--", "true")
    assert done.returncode == 9
    assert f"{SAYS_HELD}with (" in done.stderr
    other.popen.communicate()
    assert wrap(lock, "-t", "next", "--", "echo", "ran").stdout == "ran\n"


def test_the_library(lock: Lock) -> None:
    """A Python program holds, refuses, lets its children join, and is noticed when it was killed."""
    argv = (str(PROBES / "without_proc.py"), "hold", "kbSync")
    probe = lock.start(*argv, program=PYTHON, stdin=subprocess.PIPE)
    probe.until_line("holding")
    refused = lock.start(*argv, program=PYTHON)
    assert refused.end()[:2] == (9, f"held lease-held kbSync {probe.pid}\n")
    crash(probe)
    child = lock.start(*argv, "--", *WITHOUT, "-t", "child", "--", "echo", "joined", program=PYTHON)
    code, out, _ = child.end()
    assert code == 0
    assert "joined\ncode 0\nleft\n" in out
    assert ends(lock) == [("kbSync", "stale_cleaned", "lost"), ("kbSync", "released", "completed")]
    assert [row["parent_task"] for row in told(lock, event="nested_finished")] == ["kbSync"]


BLIND = 'mount -t tmpfs none /proc && exec "$@"'


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to hide /proc")
def test_with_an_empty_proc(lock: Lock, require: object) -> None:
    """Where even psutil sees nothing a job still runs under the lock, others stand back, and nothing crashes."""
    unshare = (require("unshare"), "-m", "sh", "-c", BLIND, "sh")  # type: ignore[operator]  # the tool or work is there by now
    probe = subprocess.run([*unshare, "ls", "/proc"], capture_output=True, text=True)
    if probe.returncode != 0 or probe.stdout:
        pytest.skip(f"/proc cannot be hidden here: {probe.stderr}")
    wrapper = (f"{os.path.dirname(PYTHON)}/maintlock-wrap",)
    holder = lock.start(
        *unshare[1:], *wrapper, "-t", "backup", "--", "sh", "-c", "echo ready; read x; true",
        program=unshare[0], stdin=subprocess.PIPE,
    )  # fmt: skip
    holder.until_line("ready")
    assert is_locked(places(lock).lock)
    for argv in ((*unshare, *wrapper), wrapper):
        done = subprocess.run(
            [*argv, "-t", "next", "-E", "9", "--", "true"], env=lock.env(), capture_output=True, text=True
        )
        assert done.returncode == 9, done.stderr
        assert f"next {SAYS_HELD}backup (" in done.stderr
    holder.popen.communicate()
    assert holder.popen.returncode == 0
    found = line.read_path(places(lock).lock)
    assert found is not None and found.outcome == "completed"
    crashed = lock.start(
        *unshare[1:], *wrapper, "-t", "crashed", "--", "sh", "-c", "echo ready; kill -9 $PPID; exit",
        program=unshare[0],
    )  # fmt: skip
    crashed.until_line("ready")
    crashed.popen.wait()
    after = [*unshare, *wrapper, "-t", "after", "-w", "forever", "--", "echo", "ran"]
    done = subprocess.run(after, env=lock.env(), capture_output=True, text=True)
    assert done.stdout == "ran\n", done.stderr
    assert ("crashed", "stale_cleaned", "lost") in ends(lock)
    assert (lock.directory / f"{LEASE}.lock").exists()
