"""Acquiring and releasing: in which order, and what stands where meanwhile."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from maintlock import pending, process
from tests.protocol import LEASE, SAYS_HELD, assert_each_grant_ended_once, ends, is_locked, line_of, places, told
from tests.support import BIN, WRAP, Lock, until

CALL = re.compile(r"^\d+ +(flock|pwrite64|rename|unlink|execve)\((.*?)(?:\) += (-?\d+)| <unfinished)", re.MULTILINE)


def calls(lock: Lock, trace: Path) -> list[str]:
    """Return what a wrapper did to the lease's files, as short words in order; the job's start is `spawn`."""
    found = []
    for name, arguments, result in CALL.findall(trace.read_text()):
        if name == "execve" and "/true" in arguments and result in {"0", ""}:
            found.append("spawn")
        for suffix in ("lock", "queue", "nested", "json"):
            if f"{lock.directory}/{LEASE}.{suffix}" in arguments:
                how = re.search(r"LOCK_[A-Z|_]+", arguments)
                found.append(" ".join([name, suffix, *([how.group().split("|")[0]] if how else [])]))
    return found


def in_order(found: list[str], *expected: str) -> bool:
    """Tell whether the expected words come one after the other, with any others between."""
    rest = iter(found)
    return all(word in rest for word in expected)


def test_the_order_of_acquiring_and_releasing(lock: Lock, require: Callable[[str], str], tmp_path: Path) -> None:
    """Lock, nested, line, sidecar, job; then nested, line, sidecar, unlock: as the invariant needs it (R1)."""
    trace = tmp_path / "trace"
    argv = [
        require("strace"),
        "-f",
        "-y",
        "-s",
        "0",
        "-o",
        str(trace),
        "-e",
        "trace=flock,pwrite64,rename,unlink,execve",
    ]
    done = subprocess.run([*argv, WRAP, "-t", "a", "--", "true"], env=lock.env(), capture_output=True, text=True)
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    found = calls(lock, trace)
    assert in_order(
        found,
        "flock queue LOCK_EX", "flock queue LOCK_UN",  # nobody waits
        "flock lock LOCK_EX", "flock nested LOCK_EX", "pwrite64 lock", "rename json", "flock nested LOCK_UN", "spawn",
        "flock nested LOCK_EX", "pwrite64 lock", "unlink json", "flock lock LOCK_UN",
    )  # fmt: skip
    assert found[-1] == "flock lock LOCK_UN"
    assert found.count("pwrite64 lock") == 2
    assert not any(word.startswith("unlink") and word != "unlink json" for word in found)


def test_the_files_are_private_and_stay(lock: Lock) -> None:
    """Every file is 0600 in a directory 0700, whatever the umask, and lock, queue and nested files are never deleted."""
    for umask in (0o022, 0, 0o077):
        done = lock.wrap("-t", "a", "--", "sh", "-c", f"cat {places(lock).sidecar}", umask=umask)
        assert json.loads(done.stdout)["task"] == "a"
    inodes = {}
    for name in ("lock", "queue", "nested"):
        inodes[name] = os.stat(lock.directory / f"{LEASE}.{name}").st_ino
    lock.wrap("-t", "b", "--", "true")
    assert stat.S_IMODE(os.stat(lock.directory).st_mode) == 0o700
    for entry in os.scandir(lock.directory):
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600, entry.name
    for name, inode in inodes.items():
        assert os.stat(lock.directory / f"{LEASE}.{name}").st_ino == inode


def test_what_stands_on_record_while_it_is_held(lock: Lock) -> None:
    """Sidecar and line name owner, reason, source, identity, time and TTL of the holder, and the job's process (R2)."""
    holder = lock.hold(
        "kbSync", "--owner", "alice@laptop", "--reason", "nightly", "--ttl", "2h",
        script="echo ready; read x; true # --token=abc",
    )  # fmt: skip
    fields = until(lambda: (f := lock.sidecar())["job_pid"] and f, "the job's pid")
    line = line_of(lock)
    assert (fields["schema"], fields["lease"], fields["task"], fields["fence"]) == (1, LEASE, "kbSync", 1)
    assert (fields["owner"], fields["reason"], fields["source"]) == ("alice@laptop", "nightly", "cli")
    assert (fields["mode"], fields["ttl_seconds"], fields["uid"]) == ("supervised", 7200, os.geteuid())
    assert (fields["pid"], fields["session_id"]) == (holder.pid, os.getsid(0))
    assert fields["command"][:2] == ["sh", "-c"] and "abc" not in fields["command"][2]
    assert fields["cwd"] == os.getcwd()
    for name in ("pid_started_at", "acquired_at", "job_started_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields[name])
    job = process.read_stat(fields["job_pid"])
    assert job is not None and job.ppid == holder.pid
    assert line.identity == process.read_identity(holder.pid)
    assert (line.lease_id, line.fence, line.task, line.outcome) == (fields["lease_id"], 1, "kbSync", "")
    assert os.stat(places(lock).lock).st_size < 512
    holder.popen.communicate()
    assert line_of(lock).outcome == "completed"
    assert line_of(lock).exit_code == 0
    assert not os.path.exists(places(lock).sidecar)


def test_the_job_gets_its_grant(lock: Lock) -> None:
    """The job's environment names lease, grant, task, fence, state directory and descriptor; the descriptor is the lock."""
    script = "env | grep ^MAINTLOCK_; stat -Lc %i /proc/self/fd/$MAINTLOCK_FD"
    done = lock.wrap("-t", "a", "--", "sh", "-c", script)
    *rows, inode = done.stdout.splitlines()
    environ = dict(row.split("=", 1) for row in rows)
    lease_id = line_of(lock).lease_id
    assert environ.pop("MAINTLOCK_FD").isdigit()
    assert environ == {
        "MAINTLOCK_LEASE": LEASE,
        "MAINTLOCK_LEASE_ID": lease_id,
        "MAINTLOCK_TASK": "a",
        "MAINTLOCK_FENCE": "1",
        "MAINTLOCK_STATE_DIR": str(lock.directory),
        "MAINTLOCK_HELD": f"{LEASE}:{lease_id}:{os.getsid(0)}",
    }
    assert int(inode) == os.stat(places(lock).lock).st_ino
    closed = lock.wrap("-t", "a", "-o", "--", "sh", "-c", "env | grep -c ^MAINTLOCK_FD; ls -l /proc/self/fd")
    assert closed.stdout.startswith("0\n")
    assert f"{LEASE}.lock" not in closed.stdout


def test_one_at_a_time(lock: Lock) -> None:
    """While a job works another request stands back at once, says who has it, and its command is not run (R1, R3)."""
    holder = lock.hold("backup", "--owner", "alice@laptop", "--reason", "nightly")
    done = lock.wrap("-t", "kbSync", "-E", "9", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (9, "")
    who = rf"backup \(owner alice@laptop, pid {holder.pid}, for [0-9.]+s, reason nightly\)"
    assert re.fullmatch(rf"maintlock: kbSync {re.escape(SAYS_HELD)}{who}\n", done.stderr)
    assert lock.wrap("-t", "kbSync", "--", "true").returncode == 0
    holder.popen.communicate()
    assert lock.wrap("-t", "kbSync", "--", "echo", "ran").stdout == "ran\n"
    assert [(r["reason_code"], r["blocked_by"]) for r in told(lock, event="deferred")] == [("lease-held", "backup")] * 2
    assert_each_grant_ended_once(lock)


def test_ends_are_told_with_their_outcome(lock: Lock) -> None:
    """Each grant has one beginning and one end, which says how the job ended."""
    lock.wrap("-t", "good", "--", "true")
    assert lock.wrap("-t", "bad", "--", "sh", "-c", "exit 7").returncode == 7
    assert lock.wrap("-t", "killed", "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert lock.wrap("-t", "none", "--", "/nonexistent").returncode == 127
    assert ends(lock) == [
        ("good", "released", "completed"),
        ("bad", "released", "failed"),
        ("killed", "released", "failed"),
        ("none", "released", "failed"),
    ]
    assert [row["exit_code"] for row in told(lock, event="released")] == [0, 7, 137, 127]
    assert_each_grant_ended_once(lock)


def test_a_leaked_descriptor_does_not_keep_it(lock: Lock) -> None:
    """A daemon that took the lock's descriptor into a session of its own does not keep the lease after the job's end."""
    done = lock.wrap("-t", "a", "--", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!")
    try:
        assert lock.wrap("-t", "b", "--", "echo", "ran").stdout == "ran\n"
    finally:
        os.kill(int(done.stdout), 9)


def test_two_leases_do_not_know_each_other(lock: Lock) -> None:
    """Another lease, and another state directory, is another lock (L9)."""
    lock.hold("a")
    assert lock.wrap("-t", "b", "--lease", "other", "--", "echo", "ran").stdout == "ran\n"
    elsewhere = str(lock.directory.parent / "elsewhere")
    assert lock.wrap("-t", "b", "--state-dir", elsewhere, "--", "echo", "ran").stdout == "ran\n"
    assert lock.wrap("-t", "b", "-E", "9", "--", "true").returncode == 9


@pytest.mark.parametrize("name", ["lock", "queue", "nested"])
def test_odd_lock_files_are_refused(lock: Lock, name: str, tmp_path: Path) -> None:
    """A symlink in the place of a lock file is refused with 77, and the job is not run."""
    lock.directory.mkdir(mode=0o700)
    path = lock.directory / f"{LEASE}.{name}"
    path.symlink_to(tmp_path / "victim")
    done = lock.wrap("-t", "a", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (77, "")
    assert f"{path}: is a symlink" in done.stderr
    assert not (tmp_path / "victim").exists()


def test_what_cannot_be_put_on_record_does_not_run(lock: Lock) -> None:
    """If the sidecar cannot be written the job is not run (73), nothing stays held, and the records are as they were."""
    lock.wrap("-t", "first", "--", "true")
    before = line_of(lock)
    (lock.directory / f"{LEASE}.json").mkdir()
    done = lock.wrap("-t", "a", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (73, "")
    assert f"{places(lock).sidecar}: the grant cannot be put on record: Is a directory" in done.stderr
    assert f"see: ls -ld {lock.directory}" in done.stderr
    assert line_of(lock) == before
    assert not is_locked(places(lock).lock)
    assert not is_locked(places(lock).nested)
    (lock.directory / f"{LEASE}.json").rmdir()
    assert lock.wrap("-t", "a", "--", "echo", "ran").stdout == "ran\n"
    assert_each_grant_ended_once(lock)


def test_a_full_disk_stops_the_job_not_the_lease(lock: Lock, require: Callable[[str], str]) -> None:
    """Where not even the line can be written the job is not run (73), and nothing stays held."""
    require("bash")
    lock.directory.mkdir(mode=0o700)
    script = f'ulimit -f 0; exec "{BIN}/maintlock-wrap" -t a -- echo ran'
    done = subprocess.run(["bash", "-c", script], env=lock.env(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (73, "")
    assert f"{places(lock).lock}: the grant cannot be put on record: " in done.stderr
    assert not is_locked(places(lock).lock)
    assert lock.wrap("-t", "a", "--", "echo", "ran").stdout == "ran\n"


def test_a_ledger_that_cannot_be_written_stops_no_job(lock: Lock, require: Callable[[str], str]) -> None:
    """Where history cannot be entered the job runs all the same, under the lock, and its history waits."""
    lock.directory.mkdir(mode=0o700)
    (lock.directory / "ledger.db").write_text("no database" * 1000)
    (lock.directory / "ledger.db").chmod(0o600)
    done = lock.wrap("-t", "a", "--", "sh", "-c", f"{require('flock')} -n {places(lock).lock} true || echo locked")
    assert (done.returncode, done.stdout) == (0, "locked\n")
    assert [event["event"] for event in pending.read(str(lock.directory))] == ["acquired", "released"]
