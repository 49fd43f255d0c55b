"""Crashes at any moment: nothing stays held that works no more, and every grant has one end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from maintlock import line, process, sidecar
from maintlock.model import replace
from maintlock.times import rfc3339
from tests.protocol import (
    LEASE,
    PROBES,
    PYTHON,
    SAYS_HELD,
    assert_each_grant_ended_once,
    crash,
    edit_line,
    edit_sidecar,
    ends,
    is_locked,
    kill,
    leave_crashed,
    line_of,
    places,
    survivor_of_a_crash,
    told,
    until_asleep,
    until_gone,
    until_queued,
)
from tests.support import BIN, Lock, until


def assert_free(lock: Lock, task: str = "next") -> None:
    """A request is granted at once."""
    done = lock.wrap("-t", task, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_a_crash_frees_the_lease(lock: Lock) -> None:
    """After wrapper and job were killed the next request runs at once, and the lost grant is told once (L1)."""
    leave_crashed(lock)
    assert lock.sidecar()["task"] == "crashed"
    for task in ("next", "after", "last"):
        assert_free(lock, task)
    assert ends(lock) == [
        ("crashed", "stale_cleaned", "lost"),
        *[(t, "released", "completed") for t in ("next", "after", "last")],
    ]
    assert [row["task"] for row in told(lock, event="acquired")] == ["crashed", "next", "after", "last"]
    assert told(lock, event="acquired", task="crashed")[0]["at"] <= told(lock, event="stale_cleaned")[0]["at"]
    assert_each_grant_ended_once(lock)


def test_a_waiter_is_woken_by_a_crash(lock: Lock) -> None:
    """A waiter gets the lease of a holder that was killed, without anybody asking again."""
    holder = lock.hold("crashed")
    job = until(lambda: lock.sidecar()["job_pid"], "the job")
    waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
    until_queued(lock, waiter)
    crash(holder, job)
    assert waiter.end()[0] == 0
    assert ends(lock) == [("crashed", "stale_cleaned", "lost"), ("waiter", "released", "completed")]


def test_a_double_crash_loses_no_end(lock: Lock) -> None:
    """Of crashes one after the other, with nobody between who lived to tell, each is told by the one after it."""
    for number in range(3):
        leave_crashed(lock, f"crashed{number}")
    assert_free(lock)
    assert ends(lock)[:3] == [(f"crashed{number}", "stale_cleaned", "lost") for number in range(3)]
    assert_each_grant_ended_once(lock)
    assert line_of(lock).fence == 4


ACQUIRING = [
    ("line.write", "1"),  # has the lock
    ("line.write", "1+"),  # the line stands
    ("sidecar.write", "1"),
    ("sidecar.write", "1+"),  # so does the sidecar
]
RELEASING = [
    ("line.write", "2"),  # nested jobs excluded
    ("line.write", "2+"),  # the outcome stands
    ("sidecar.remove", "1"),
    ("sidecar.remove", "1+"),  # the sidecar is gone
    ("flock.unlock_and_close", "2+"),  # nested jobs are not excluded any more
    ("flock.unlock_and_close", "3+"),  # unlocked
    ("pending.append", "2"),  # and nobody was told
    ("pending.append", "2+"),
]


def died_at(lock: Lock, step: tuple[str, str], task: str, *command: str) -> None:
    """Run a wrapper that dies at a step of the protocol."""
    argv = [PYTHON, str(PROBES / "die_at.py"), *step, "-t", task, "--", *command]
    done = subprocess.run(argv, env=lock.env(), capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("step", ACQUIRING, ids=" ".join)
def test_killed_while_acquiring(lock: Lock, step: tuple[str, str]) -> None:
    """Wherever a wrapper is killed on its way to the lease, nothing stays held, and what was granted was lost."""
    lock.wrap("-t", "first", "--", "true")
    died_at(lock, step, "killed", "true")
    assert not is_locked(places(lock).lock)
    assert_free(lock)
    granted = step != ACQUIRING[0]
    assert ends(lock)[1:-1] == ([("killed", "stale_cleaned", "lost")] if granted else [])
    assert line_of(lock).fence == (3 if granted else 2)
    assert_each_grant_ended_once(lock)


@pytest.mark.parametrize("step", RELEASING, ids=" ".join)
def test_killed_while_releasing(lock: Lock, step: tuple[str, str]) -> None:
    """Wherever a wrapper is killed after its job's end, the end is told once: as it was from the moment the line says it."""
    died_at(lock, step, "killed", "sh", "-c", "exit 3")
    assert not is_locked(places(lock).lock)
    assert_free(lock)
    end = ("killed", "stale_cleaned", "lost") if step == RELEASING[0] else ("killed", "released", "failed")
    assert ends(lock)[0] == end
    if end[1] == "released":
        row = told(lock, event="released", task="killed")[0]
        assert row["exit_code"] == 3
        assert row["seconds"] > 0
    swept = told(lock, event="stale_cleaned", lease_id=None)
    assert len(swept) == (step in RELEASING[1:3])
    assert_each_grant_ended_once(lock)


def test_what_works_on_holds_the_lease(lock: Lock) -> None:
    """Wrapper and npm killed, the script that npm started works on: it holds the lease, and is named with its pid (L2)."""
    with survivor_of_a_crash(lock, "backup") as survivor:
        assert not is_locked(places(lock).lock)
        for _ in range(2):
            done = lock.wrap("-t", "kbSync", "-E", "9", "--", "echo", "ran")
            assert (done.returncode, done.stdout) == (9, "")
            assert done.stderr == f"maintlock: kbSync {SAYS_HELD}survivors of backup (pids {survivor})\n"
        assert [(r["reason_code"], r["blocked_by"]) for r in told(lock, event="deferred")] == [
            ("survivors", "backup")
        ] * 2
        rows = told(lock, event="survivors")
        assert [(row["task"], row["lease_id"], row["pid"]) for row in rows] == [
            ("backup", line_of(lock).lease_id, survivor)
        ]
        assert ends(lock) == []
    assert_free(lock)
    assert ends(lock) == [("backup", "stale_cleaned", "lost"), ("next", "released", "completed")]


def test_the_descriptor_holds_the_lease(lock: Lock) -> None:
    """A wrapper that is killed alone leaves the lease held by its job, until that ends (L2)."""
    holder = lock.hold("backup", script="echo ready $$; read x; read y")
    job = until(lambda: lock.sidecar()["job_pid"], "the job")
    holder.signal(signal.SIGKILL)
    holder.popen.wait()
    assert is_locked(places(lock).lock)
    done = lock.wrap("-t", "kbSync", "-E", "9", "--", "true")
    assert done.returncode == 9
    assert f"{SAYS_HELD}survivors of backup (pids {job})" in done.stderr
    assert told(lock, event="deferred")[0]["reason_code"] == "survivors"
    assert len(told(lock, event="survivors")) == 1
    waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
    # The kernel's table does not tell in every pid namespace who waits for a lock that a dead process has taken.
    until(lambda: lock.status()["waiters"], "the waiter")
    kill(job)
    assert waiter.end()[0] == 0
    assert ends(lock) == [("backup", "stale_cleaned", "lost"), ("waiter", "released", "completed")]


def test_a_sibling_that_left_the_session_does_not_hold_it(lock: Lock) -> None:
    """What made a session of its own before the crash has left the job, and with `--hold-until tree` it has not."""
    for hold_until, code in (("session", 0), ("tree", 9)):
        script = "setsid sleep 1000 >/dev/null 2>&1 & echo ready $!; read x"
        holder = lock.start(
            "-t", "backup", "-o", "--hold-until", hold_until, "--", "sh", "-c", script, stdin=subprocess.PIPE
        )
        daemon = int(holder.until_line("ready").split()[1])
        job = until(lambda: lock.sidecar()["job_pid"], "the job")
        try:
            until_asleep(daemon)
            crash(holder, job)
            assert lock.wrap("-t", "next", "-E", "9", "--", "true").returncode == code
        finally:
            kill(daemon)
            until_gone(daemon)
    assert_free(lock)


def test_hold_until_main_has_no_survivors(lock: Lock) -> None:
    """With `--hold-until main` nothing but the job's main process ever holds the lease, also after a crash."""
    with survivor_of_a_crash(lock, "backup", "--hold-until", "main"):
        assert_free(lock)
    assert ends(lock)[0] == ("backup", "stale_cleaned", "lost")


def test_a_main_process_that_outlives_its_wrapper_is_named(lock: Lock) -> None:
    """With `--hold-until main` and a killed wrapper, who is refused is told which process has the lock: the job's main one."""
    holder = lock.hold("backup", "--hold-until", "main")
    job = until(lambda: lock.sidecar()["job_pid"], "the job")
    kill(holder.pid)
    until_gone(holder.pid)
    done = lock.wrap("-t", "next", "-E", "9", "--", "true")
    assert (done.returncode, f"held by survivors of backup (pids {job})" in done.stderr) == (9, True), done.stderr
    kill(job)
    until_gone(job)
    assert_free(lock)


def test_with_a_bad_line_any_grant_counts(lock: Lock) -> None:
    """When the line is torn, survivors of any grant of this lease hold it, and nothing is made up about them."""
    with survivor_of_a_crash(lock, "backup") as survivor:
        with open(places(lock).lock, "r+b") as file:
            file.seek(40)
            file.write(b"\0\0")
        os.unlink(places(lock).sidecar)
        done = lock.wrap("-t", "next", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert f"survivors of an unknown job (pids {survivor})" in done.stderr
    assert_free(lock)


def test_exec_ends_unseen(lock: Lock) -> None:
    """With `--exec` nobody of ours sees the end: it is told as unknown by the next, and nothing was stale."""
    assert lock.wrap("-t", "became", "-F", "--", "sh", "-c", "exit 4").returncode == 4
    assert_free(lock)
    assert ends(lock) == [("became", "released", "unknown"), ("next", "released", "completed")]
    assert told(lock, event="stale_cleaned") == []
    assert_each_grant_ended_once(lock)


def test_exec_holds_while_it_runs(lock: Lock) -> None:
    """The command that the wrapper became holds the lease and is the holder; killed, what works on of it does."""
    running = lock.start("-t", "became", "-F", "--", PYTHON, str(PROBES / "like_npm.py"), "sleep", "1000")
    main, child = map(int, running.until_line("ready").split()[1:])
    try:
        fields = lock.sidecar()
        assert (fields["pid"], fields["job_pid"], fields["mode"], main) == (
            running.pid,
            running.pid,
            "exec",
            running.pid,
        )
        done = lock.wrap("-t", "next", "-E", "9", "--", "true")
        assert "held by became (owner" in done.stderr and f"pid {running.pid}" in done.stderr
        crash(running)
        done = lock.wrap("-t", "next", "-E", "9", "--", "true")
        assert f"survivors of became (pids {child})" in done.stderr
    finally:
        kill(child)
        until_gone(child)
    assert_free(lock)
    assert ends(lock)[0] == ("became", "released", "unknown")


def stray_fields(lock: Lock) -> dict[str, object]:
    """Return a sidecar of a grant that has ended."""
    holder = lock.hold("old")
    fields = lock.sidecar()
    holder.popen.communicate()
    return fields


def test_a_stray_sidecar_is_swept(lock: Lock) -> None:
    """A sidecar that lies about while the lock is free is cleaned up, and is nobody's end (L12)."""
    fields = stray_fields(lock)
    del fields["schema"]
    sidecar.write(places(lock).sidecar, fields)
    assert_free(lock)
    rows = told(lock, event="stale_cleaned")
    assert [(row["lease_id"], row["outcome"], row["task"]) for row in rows] == [(None, None, None)]
    assert ends(lock) == [("old", "released", "failed"), ("next", "released", "completed")]
    assert not os.path.exists(places(lock).sidecar)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", os.urandom(300)], ids=["empty", "torn", "other", "bytes"])
def test_a_malformed_sidecar_is_in_nobodys_way(lock: Lock, content: bytes) -> None:
    """A malformed sidecar is replaced by the next grant's, and is told as cleaned up (L12)."""
    lock.wrap("-t", "first", "--", "true")
    (lock.directory / f"{LEASE}.json").write_bytes(content)
    assert_free(lock)
    assert [row["lease_id"] for row in told(lock, event="stale_cleaned")] == [None]


def test_bad_sidecar_while_held(lock: Lock) -> None:
    """While the lock is held a bad or missing sidecar means an unknown owner, not a free lease (L12)."""
    holder = lock.hold("backup")
    until(lambda: lock.sidecar()["job_pid"], "the job")
    path = lock.directory / f"{LEASE}.json"
    old = json.dumps({**lock.sidecar(), "lease_id": "ef" * 16, "fence": 0}).encode()
    for content, state in ((b"{", "malformed"), (old, "stale"), (None, "missing")):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        assert lock.status()["sidecar"] == state
        done = lock.wrap("-t", "next", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert f"held by an unknown owner (sidecar {state}" in done.stderr
    holder.popen.communicate()
    assert_free(lock)
    assert_each_grant_ended_once(lock)


def test_after_a_reboot_nobody_survives(lock: Lock) -> None:
    """What carries the grant of another boot is a coincidence of numbers: the grant was lost, the next one runs (L1)."""
    with survivor_of_a_crash(lock, "backup"):
        boot = "00000000-0000-4000-8000-000000000000"
        edit_line(lock, identity=replace(line_of(lock).identity, boot_id=boot))
        edit_sidecar(lock, boot_id=boot, acquired_at=rfc3339(1.0))
        assert_free(lock)
    assert ends(lock)[0] == ("backup", "stale_cleaned", "lost")


def test_a_recycled_pid_is_not_the_holder(lock: Lock) -> None:
    """A process that has the dead holder's pid by now is not taken for it (L1)."""
    leave_crashed(lock)
    ticks = process.read_identity(os.getpid()).start_ticks - 1
    edit_line(lock, identity=replace(line_of(lock).identity, pid=os.getpid(), start_ticks=ticks))
    edit_sidecar(lock, pid=os.getpid(), pid_start_ticks=ticks)
    assert_free(lock)
    assert ends(lock)[0] == ("crashed", "stale_cleaned", "lost")


def test_another_running_system_is_told_from_a_reboot(lock: Lock) -> None:
    """A sidecar of another boot, granted after ours began, is another kernel's: refused with 73, naming the file."""
    leave_crashed(lock)
    boot = "00000000-0000-4000-8000-000000000000"
    edit_line(lock, identity=replace(line_of(lock).identity, boot_id=boot))
    edit_sidecar(lock, boot_id=boot, hostname="other\x1bhost", acquired_at=rfc3339(time.time()))
    done = lock.wrap("-t", "next", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (73, "")
    assert f"rm {places(lock).sidecar}" in done.stderr
    assert "\x1b" not in done.stderr
    found = lock.status()
    assert (found["state"], found["sidecar"]) == ("unknown", "valid")
    assert f"run: rm {places(lock).sidecar}" in found["detail"]
    assert not is_locked(places(lock).lock)
    assert not is_locked(places(lock).nested)
    os.unlink(places(lock).sidecar)
    assert_free(lock)
    assert ends(lock)[0] == ("crashed", "stale_cleaned", "lost")


@pytest.mark.parametrize("last", ["ended", "crashed"])
def test_status_says_why_a_free_lease_is_refused(lock: Lock, last: str) -> None:
    """Beside a sidecar of another running system a free lease is refused, and status says so with what mends it (L12)."""
    if last == "crashed":
        leave_crashed(lock)
        fields = lock.sidecar()
    else:
        fields = stray_fields(lock)
    changed = {"boot_id": "00000000-0000-4000-8000-000000000000", "hostname": "otherhost"}
    del fields["schema"]
    sidecar.write(places(lock).sidecar, fields | changed | {"acquired_at": rfc3339(time.time())})
    found = lock.status()
    assert (found["state"], found["holder"], found["sidecar"]) == ("free", None, "stale")
    assert "every request is refused" in found["detail"] and "(otherhost)" in found["detail"]
    command = found["detail"].partition("run: ")[2]
    assert command.removeprefix("rm ") in lock.wrap("-t", "next", "--", "true").stderr
    subprocess.run(command, shell=True, check=True)
    assert lock.status()["detail"] is None or last == "crashed"
    assert_free(lock)


def test_another_namespace_cannot_be_seen(lock: Lock) -> None:
    """What may live on in another pid namespace cannot be seen: the next goes on, and that is on record."""
    leave_crashed(lock)
    edit_line(lock, identity=replace(line_of(lock).identity, pid_namespace="1"))
    done = lock.wrap("-v", "-t", "next", "--", "echo", "ran")
    assert done.stdout == "ran\n"
    assert "another pid namespace" in done.stderr
    assert [row["task"] for row in told(lock, event="survivors")] == ["crashed"]
    assert ends(lock)[0] == ("crashed", "stale_cleaned", "lost")


def test_killed_by_group(lock: Lock) -> None:
    """When a terminal or a supervisor kills the whole group there is nothing left to wait for."""
    argv = [f"{BIN}/maintlock-wrap", "-t", "crashed", "--", "sh", "-c", "echo ready; sleep 1000 & wait"]
    holder = lock.start(*argv[1:], program=argv[0], start_new_session=True)
    holder.until_line("ready")
    job = until(lambda: lock.sidecar()["job_pid"], "the job")
    os.killpg(holder.pid, signal.SIGKILL)
    os.killpg(job, signal.SIGKILL)
    holder.popen.wait()
    assert lock.wrap("-t", "next", "-w", "forever", "--", "echo", "ran").stdout == "ran\n"
    assert ends(lock)[0] == ("crashed", "stale_cleaned", "lost")
    assert_each_grant_ended_once(lock)


def test_what_the_next_one_tells_is_what_the_holder_tells(lock: Lock) -> None:
    """A clean end that both holder and successor tell of stands in history once, with the holder's words."""
    lock.wrap("-t", "a", "--reason", "nightly", "--", "sh", "-c", "exit 3")
    assert_free(lock)
    rows = [row for row in told(lock) if row["task"] == "a"]
    assert [row["event"] for row in rows] == ["acquired", "released"]
    assert rows[1]["reason"] == "nightly"
    assert rows[1]["exit_code"] == 3
    assert line.read_path(places(lock).lock) == line_of(lock)
