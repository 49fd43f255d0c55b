"""Requests made inside a job: they join it instead of competing, and are told as work of their own (R7)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maintlock import ledger
from tests.protocol import (
    LEASE,
    SAYS_HELD,
    assert_each_grant_ended_once,
    crash,
    ends,
    is_locked,
    is_present,
    kill,
    line_of,
    places,
    snapshot,
    told,
    until_gone,
    waiting,
)
from tests.support import WRAP, Lock, Running, until


def inner(task: str, script: str, *options: str) -> str:
    """Return the shell's words for a nested request."""
    return f"{WRAP} -t {task} {' '.join(options)} -- sh -c '{script}'"


def run_inside(lock: Lock, script: str, *options: str, task: str = "outer") -> subprocess.CompletedProcess[str]:
    """Run a script as a job."""
    return lock.wrap("-t", task, *options, "--", "sh", "-c", script)


def test_a_nested_request_joins(lock: Lock) -> None:
    """A request inside a job runs at once, is told as a run of its own task inside its parent's, and has its own exit code (R7)."""
    done = run_inside(lock, f"{inner('kbSync', 'echo ran; exit 5', '-E 9')}; echo code $?")
    assert done.stdout == "ran\ncode 5\n"
    assert done.returncode == 0
    assert done.stderr == ""
    begun, finished = told(lock, event="nested_started")[0], told(lock, event="nested_finished")[0]
    lease_id = line_of(lock).lease_id
    for row in (begun, finished):
        assert (row["task"], row["parent_task"], row["lease_id"], row["outcome"]) == ("kbSync", "outer", lease_id, None)
    assert (finished["exit_code"], finished["seconds"] > 0) == (5, True)
    assert ends(lock) == [("outer", "released", "completed")]
    assert told(lock, event="deferred") == []


def test_a_joined_success_is_one_of_its_task(lock: Lock) -> None:
    """A joined job that succeeded is a success of its own task, and one that failed a failure (R7)."""
    run_inside(lock, f"{inner('good', 'true')}; {inner('bad', 'false')}")
    found = snapshot(lock)
    assert found.tasks["good"].last_success_at is not None
    assert found.tasks["good"].last_outcome == "completed"
    assert found.tasks["bad"].last_success_at is None
    assert found.tasks["bad"].last_outcome == "failed"
    runs = {dict(labels)["task"]: value for (name, labels), value in found.counters.items() if name == "runs_total"}
    assert runs == {"good": 1, "bad": 1, "outer": 1}


def test_who_has_joined_is_seen(lock: Lock) -> None:
    """While a joined job runs it is present as nested with its process, and afterwards it is not."""
    script = inner("kbSync", "echo ready; read x", "--reason pulled")
    holder = lock.hold("outer", script=script)
    rows = until(lambda: snapshot(lock).present, "the joined job on record")
    assert [(row["role"], row["task"], row["reason"]) for row in rows] == [("nested", "kbSync", "pulled")]
    assert is_present(rows[0])
    assert is_locked(places(lock).nested)
    holder.popen.communicate()
    assert snapshot(lock).present == []
    assert not is_locked(places(lock).nested)


def test_three_levels(lock: Lock) -> None:
    """Each level is told with the task right above it, all under one grant."""
    script = inner("middle", f'exec {WRAP} -t innermost -- sh -c "echo \\$MAINTLOCK_TASK \\$MAINTLOCK_HELD"')
    done = run_inside(lock, script)
    lease_id = line_of(lock).lease_id
    assert done.stdout == f"innermost {LEASE}:{lease_id}:{os.getsid(0)}\n"
    parents = {row["task"]: row["parent_task"] for row in told(lock, event="nested_finished")}
    assert parents == {"middle": "outer", "innermost": "middle"}
    assert len(told(lock, event="acquired")) == 1


def test_in_parallel(lock: Lock) -> None:
    """What a job runs inside itself is its own affair: its parts join side by side."""
    parts = " & ".join(inner(f"part{n}", f"echo here {n}; read x <&3") for n in range(3))
    running = lock.start("-t", "outer", "--", "sh", "-c", f"exec 3<&0; {parts} & wait", stdin=subprocess.PIPE)
    assert {running.until_line("here") for _ in range(3)} == {f"here {n}" for n in range(3)}
    assert running.end()[0] == 0
    assert {row["task"] for row in told(lock, event="nested_finished")} == {"part0", "part1", "part2"}


def test_by_ancestry_when_the_environment_is_stripped(lock: Lock) -> None:
    """A job that was started with an empty environment joins all the same: the holder is its ancestor (L7)."""
    script = (
        f'env -i PATH="$PATH" {WRAP} --state-dir {lock.directory} -t kbSync -- sh -c "echo ran; env | grep -c HELD"'
    )
    done = run_inside(lock, script)
    assert done.stdout == "ran\n1\n"
    assert done.stderr == ""
    assert [(r["task"], r["parent_task"]) for r in told(lock, event="nested_finished")] == [("kbSync", "outer")]


def test_while_others_wait(lock: Lock) -> None:
    """A nested request joins although somebody waits for the lease, with its token or by ancestry."""
    bare = f'env -i PATH="$PATH" {WRAP} --state-dir {lock.directory} -t bare -- echo ran'
    holder = lock.hold("outer", script=f"echo ready; read x; {inner('kbSync', 'echo ran')}; {bare}")
    waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
    until(lambda: waiting(lock) == ["waiter"], "the waiter")
    out, _ = holder.popen.communicate(b"\n")
    assert out == b"ran\nran\n"
    assert waiter.end()[0] == 0
    assert told(lock, event="deferred") == []


def test_from_another_session_it_is_an_ordinary_request(lock: Lock) -> None:
    """Who has made a session of its own has left the job: its request stands back, token or not."""
    done = run_inside(lock, f"setsid -w {inner('daemon', 'echo ran', '-E 9')}; echo code $?")
    assert done.stdout == "code 9\n"
    assert f"daemon {SAYS_HELD}outer (" in done.stderr
    row = told(lock, event="deferred")[0]
    assert (row["task"], row["blocked_by"], row["parent_task"]) == ("daemon", "outer", None)
    assert told(lock, event="token_stale") == []


def test_a_stale_token_is_no_lease(lock: Lock) -> None:
    """A token of a grant that has ended gets one warning line, and the request is an ordinary one (L8)."""
    lock.wrap("-t", "parent", "--", "true")
    lease_id = line_of(lock).lease_id
    lock.wrap("-t", "other", "--", "true")
    env = lock.env(MAINTLOCK_HELD=f"{LEASE}:{lease_id}:{os.getsid(0)}", MAINTLOCK_TASK="forged")
    done = lock.wrap("-t", "kbSync", "--", "echo", "ran", env=env)
    assert done.stdout == "ran\n"
    assert done.stderr == "maintlock: kbSync: the lease it was started under (parent) has ended; requesting it again\n"
    row = told(lock, event="token_stale")[0]
    assert (row["task"], row["lease_id"], row["parent_task"]) == ("kbSync", lease_id, "parent")
    assert ends(lock)[2:] == [("kbSync", "released", "completed")]


def test_a_name_in_the_environment_is_not_believed(lock: Lock) -> None:
    """Who the parent is stands in the records of the grant; what else the environment says of it is not read."""
    script = f"MAINTLOCK_TASK=forged MAINTLOCK_LEASE_ID=ab {inner('kbSync', 'true')}"
    run_inside(lock, script)
    assert [row["parent_task"] for row in told(lock, event="nested_finished")] == ["outer"]
    env = lock.env(MAINTLOCK_HELD=f"{LEASE}:{'ab' * 16}:{os.getsid(0)}", MAINTLOCK_TASK="forged")
    assert "the lease it was started under has ended" in lock.wrap("-t", "x", "--", "true", env=env).stderr
    assert [row["parent_task"] for row in told(lock, event="token_stale")] == [None]


def test_the_parent_is_over_and_another_has_it(lock: Lock) -> None:
    """Where the lease is somebody else's by then, a nested request stands back, told with its parent: no success (R7, L3, L8)."""
    orphan = lock.start(
        "-t", "primary-dev-sync", "--hold-until", "main", "--",
        "sh", "-c", f"exec 3<&0; (echo ready; read x <&3; {inner('kbSync', 'echo ran', '-E 9')}; echo code $?) &",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    orphan.until_line("ready")
    orphan.popen.wait()
    other = lock.hold("backup")
    orphan.popen.stdin.close()  # type: ignore[union-attr]  # a pipe, as it was started
    assert orphan.until_line("code") == "code 9"
    err = orphan.popen.stderr.read().decode()  # type: ignore[union-attr]  # a pipe, as it was started
    assert "the lease it was started under (primary-dev-sync) has ended" in err
    assert f"kbSync {SAYS_HELD}backup (" in err
    row = told(lock, event="deferred")[0]
    assert (row["task"], row["blocked_by"], row["parent_task"]) == ("kbSync", "backup", "primary-dev-sync")
    assert snapshot(lock).tasks["kbSync"].last_success_at is None
    other.popen.communicate()


def test_the_lease_is_kept_for_a_joined_job(lock: Lock, tmp_path: Path) -> None:
    """A joined job that outlives its parent's main process keeps the lease, also with `--hold-until main`; release waits."""
    os.mkfifo(go := tmp_path / "go")
    script = f"exec 3<&0; {inner('kbSync', 'echo ready; read x <&3')} & read y <{go}"
    for hold_until in ("session", "main"):
        holder = lock.start("-t", "outer", "--hold-until", hold_until, "--", "sh", "-c", script, stdin=subprocess.PIPE)
        holder.until_line("ready")
        job = until(lambda: lock.sidecar()["job_pid"], "the job")
        go.write_text("\n")
        until_gone(job)
        done = lock.wrap("-t", "other", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert holder.popen.poll() is None
        assert line_of(lock).outcome == ""
        holder.popen.communicate()
        assert holder.popen.returncode == 0
        assert lock.wrap("-t", "other", "-E", "9", "--", "true").returncode == 0
    assert_each_grant_ended_once(lock)


@contextmanager
def joined_in_a_crashed_job(lock: Lock, script: str) -> Iterator[tuple[Running, int, int]]:
    """Give a job that was killed with its wrapper, and wrapper and job of what had joined it and says `ready` with both."""
    holder = lock.start("-t", "outer", "-o", "--", "sh", "-c", f"{script}; true", stdin=subprocess.PIPE)
    wrapper, job = map(int, holder.until_line("ready").split()[1:])
    try:
        crash(holder, until(lambda: lock.sidecar()["job_pid"], "the outer job"))
        yield holder, wrapper, job
    finally:
        for pid in (wrapper, job):
            kill(pid)
            until_gone(pid)


def test_a_joined_job_survives_its_parents_crash(lock: Lock) -> None:
    """When the outer wrapper and its job are killed, a joined job works on, keeps the lease, and further parts may join it."""
    script = inner("kbSync", f"echo ready $PPID $$; read x; {WRAP} -t part -- echo joined")
    with joined_in_a_crashed_job(lock, script) as (holder, wrapper, job):
        done = lock.wrap("-t", "other", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert f"{SAYS_HELD}survivors of outer (pids {min(wrapper, job)}, {max(wrapper, job)})" in done.stderr
        waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
        until(lambda: waiting(lock) == ["waiter"], "the waiter")
        holder.popen.stdin.close()  # type: ignore[union-attr]  # a pipe, as it was started
        holder.until_line("joined")
        until_gone(job)
        until_gone(wrapper)
    assert waiter.end()[0] == 0
    assert sorted((row["task"], row["exit_code"]) for row in told(lock, event="nested_finished")) == [
        ("kbSync", 0),
        ("part", 0),
    ]
    assert told(lock, event="token_stale") == []


def test_a_joined_job_without_environment_survives_too(lock: Lock) -> None:
    """What has joined is known by its lock alone: it keeps the lease after a crash although its environment is stripped."""
    nested = f'env -i PATH="$PATH" {WRAP} --state-dir {lock.directory} -t kbSync -- env -i sh -c "echo ready \\$PPID \\$\\$; read x"'
    with joined_in_a_crashed_job(lock, nested) as (_, wrapper, _):
        done = lock.wrap("-t", "other", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert f"{SAYS_HELD}survivors of outer (pids {wrapper})" in done.stderr
        assert told(lock, event="deferred")[0]["reason_code"] == "survivors"
        assert not is_locked(places(lock).lock)
        before = line_of(lock)
        waiter = lock.start("-t", "waiter", "-w", "300ms", "-E", "8", "--", "true")
        assert waiter.end()[0] == 8
        assert line_of(lock) == before
    assert lock.wrap("-t", "other", "-w", "forever", "-E", "9", "--", "true").returncode == 0
    assert_each_grant_ended_once(lock)


def test_two_leases_nested(lock: Lock) -> None:
    """A job under one lease may take another; inside, the environment carries both grants, and either can be joined."""
    script = inner(
        "second", f"echo $MAINTLOCK_HELD; {WRAP} -t back --lease {LEASE} -E 9 -- echo joined", "--lease other", "-E 9"
    )
    done = run_inside(lock, script.replace("$MAINTLOCK_HELD", '"$MAINTLOCK_HELD"'))
    first, second = line_of(lock), line_of(lock, "other")
    session = os.getsid(0)
    assert done.stdout == f"{LEASE}:{first.lease_id}:{session} other:{second.lease_id}:{session}\njoined\n"
    rows = told(lock, event="nested_finished")
    assert [(row["task"], row["parent_task"], row["lease"]) for row in rows] == [("back", "second", LEASE)]
    assert [(row["task"], row["lease"]) for row in told(lock, event="acquired")] == [
        ("outer", LEASE),
        ("second", "other"),
    ]


def test_a_nested_exec(lock: Lock, tmp_path: Path) -> None:
    """A nested `--exec` becomes its command, which keeps the lease for as long as it runs."""
    os.mkfifo(go := tmp_path / "go")
    script = f"exec 3<&0; {inner('kbSync', 'echo ready; read x <&3', '-F')} & read y <{go}"
    holder = lock.start("-t", "outer", "--hold-until", "main", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    holder.until_line("ready")
    assert is_locked(places(lock).nested)
    job = until(lambda: lock.sidecar()["job_pid"], "the job")
    go.write_text("\n")
    until_gone(job)
    assert lock.wrap("-t", "other", "-E", "9", "--", "true").returncode == 9
    holder.popen.communicate()
    assert lock.wrap("-t", "other", "-E", "9", "--", "true").returncode == 0
    assert [(r["task"], r["parent_task"]) for r in told(lock, event="nested_started")] == [("kbSync", "outer")]
    (finished,) = told(lock, event="nested_finished")
    assert (finished["task"], finished["parent_task"], finished["seconds"]) == ("kbSync", "outer", None)
    found = snapshot(lock)
    assert (found.tasks["kbSync"].last_outcome, found.tasks["kbSync"].last_success_at) == ("unknown", None)
    runs = {dict(key)["task"]: value for (name, key), value in found.counters.items() if name == "runs_total"}
    assert (runs["kbSync"], any(name == "run_failures_total" for name, _ in found.counters)) == (1, False)


def test_a_killed_joined_job_has_one_end(lock: Lock) -> None:
    """A joined job whose wrapper is killed is told as finished when its grant ends: lost, once, before and after entering (R7)."""
    script = f"{inner('kbSync', 'echo ready $PPID; read x')}; {inner('kbSync', 'exit 3')}; echo second; read y; true"
    holder = lock.start("-t", "outer", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    wrapper = int(holder.until_line("ready").split()[1])
    until(lambda: told(lock, event="nested_started"), "the joined job on record")
    kill(wrapper)
    holder.until_line("second")
    assert [row["exit_code"] for row in told(lock, event="nested_finished")] == [3]
    holder.popen.communicate()
    rows = told(lock, event="nested_finished")
    assert [(row["task"], row["parent_task"], row["exit_code"], row["seconds"] is None) for row in rows] == [
        ("kbSync", "outer", 3, False),
        ("kbSync", "outer", None, True),
    ]
    assert [row["event"] for row in told(lock)][-2:] == ["nested_finished", "released"]
    before = snapshot(lock)
    ledger.drain(str(lock.directory), now=time.time())
    after = snapshot(lock)
    assert told(lock, event="nested_finished") == rows
    assert (before.counters, before.tasks, after.present) == (after.counters, after.tasks, [])
    failures = [(dict(key)["task"], n) for (name, key), n in after.counters.items() if name == "run_failures_total"]
    assert failures == [("kbSync", 2)]
    assert after.tasks["kbSync"].last_outcome == "failed"  # of the later run, not of the one whose end nobody saw


def test_a_joined_job_lost_with_its_whole_job(lock: Lock) -> None:
    """When everything is killed, the next grant tells the end of what had joined together with that of the job itself."""
    script = f"{inner('kbSync', 'echo ready $PPID $$; read x')}; true"
    holder = lock.start("-t", "outer", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    pids = [int(word) for word in holder.until_line("ready").split()[1:]]
    until(lambda: told(lock, event="nested_started"), "the joined job on record")
    ledger.drain(str(lock.directory), now=time.time())
    crash(holder, until(lambda: lock.sidecar()["job_pid"], "the outer job"), *pids)
    assert told(lock, event="nested_finished") == []
    assert lock.wrap("-t", "next", "-w", "forever", "-E", "9", "--", "true").returncode == 0
    assert ends(lock) == [("outer", "stale_cleaned", "lost"), ("next", "released", "completed")]
    assert [row["task"] for row in told(lock, event="nested_finished")] == ["kbSync"]
    ledger.drain(str(lock.directory), now=time.time())
    assert [row["task"] for row in told(lock, event="nested_finished")] == ["kbSync"]
    found = snapshot(lock)
    assert (found.tasks["kbSync"].last_outcome, found.present) == ("lost", [])


def test_another_state_directory_inside_a_job(lock: Lock) -> None:
    """Inside a job a request for another state directory takes that lock, and one inside of it can still join the first (L9)."""
    other = f"{lock.directory}.other"
    back = f"{WRAP} --state-dir {lock.directory} -t back -E 9 -- echo joined"
    done = run_inside(lock, inner("second", back, f"--state-dir {other}"))
    assert done.stdout == "joined\n", done.stderr
    assert [row["task"] for row in told(lock, event="nested_finished")] == ["back"]


def test_a_forged_token_does_not_join(lock: Lock) -> None:
    """A token with the right grant from another session does not let anybody in."""
    lock.hold("backup")
    held = f"{LEASE}:{line_of(lock).lease_id}:1"
    assert lock.wrap("-t", "other", "-E", "9", "--", "true", env=lock.env(MAINTLOCK_HELD=held)).returncode == 9
