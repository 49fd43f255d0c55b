"""Requests made by a job that has lost its wrapper: what works on of it keeps everybody else away, before and after."""

from __future__ import annotations

import subprocess

import pytest

from tests.protocol import PROBES, PYTHON, SAYS_HELD, assert_each_grant_ended_once, crash, ends, kill, told, until_gone
from tests.support import MAINTLOCK, PATIENCE_SECONDS, WRAP, Lock, until

# A script that is started as npm does it, and makes a request of its own once it is told to.
SCRIPT = "echo $$ > {pid}; while ! [ -e {go} ]; do sleep 0.01; done; {ask}; echo done > {done}; exec sleep 1000"


@pytest.mark.parametrize(
    "request_of_its_own",
    [
        f"setsid -w {WRAP} -t detached -E 9 -- true",
        f"env -u MAINTLOCK_HELD {WRAP} -t detached -E 9 -- true",
    ],
    ids=["in another session", "without its token"],
)
def test_its_own_request_does_not_end_its_protection(lock: Lock, request_of_its_own: str) -> None:
    """What an orphaned job starts under the lease may run, since it is part of it; when that has ended, the job still counts."""
    places = {name: lock.directory.with_name(name) for name in ("pid", "go", "done")}
    script = SCRIPT.format(ask=request_of_its_own, **places)
    holder = lock.start("-t", "orphan", "--", PYTHON, str(PROBES / "like_npm.py"), "sh", "-c", script)
    main, survivor = map(int, holder.until_line("ready").split()[1:])
    until(places["pid"].exists, "the script")
    try:
        crash(holder, main)
        places["go"].touch()
        until(places["done"].exists, "its own request")
        assert [row["task"] for row in told(lock, event="acquired")] == ["orphan", "detached"]
        assert lock.status()["state"] == "orphaned"
        done = lock.wrap("-t", "next", "-E", "9", "--", "echo", "ran")
        assert (done.returncode, done.stdout) == (9, "")
        assert f"{SAYS_HELD}survivors of orphan (pids {survivor})" in done.stderr
    finally:
        kill(survivor)
        until_gone(survivor)
    assert lock.wrap("-t", "next", "--", "echo", "ran").stdout == "ran\n"
    assert ends(lock) == [
        ("orphan", "stale_cleaned", "lost"),
        ("detached", "released", "completed"),
        ("next", "released", "completed"),
    ]
    assert_each_grant_ended_once(lock)
    fences = [row["lease_id"] for row in told(lock, event="acquired")]
    assert len(set(fences)) == 3


def test_a_joined_job_alone_keeps_the_lease(lock: Lock) -> None:
    """Where nothing keeps the lease but a job that has joined, status, requests and stop all say so (`--hold-until main`)."""
    script = f"echo $$; {WRAP} -t inner -- sh -c 'echo ready; exec sleep 1000'; true"
    holder = lock.start("-t", "outer", "--close", "--hold-until", "main", "--", "sh", "-c", script)
    main = int(holder.until_line(""))
    holder.until_line("ready")
    (nested,) = until(lambda: lock.status()["nested"], "the joined job to be told")
    crash(holder, main)
    found = lock.status()
    assert (found["state"], found["nested"][0]["pid"]) == ("orphaned", nested["pid"])
    assert f"pid {nested['pid']} (maintlock-wrap) of the jobs that joined it is still running" in found["detail"]
    done = lock.wrap("-t", "next", "-E", "9", "--", "echo", "ran")
    assert done.returncode == 9 and f"held by survivors of outer (pids {nested['pid']})" in done.stderr
    stopped = subprocess.run(
        [MAINTLOCK, "stop", "--yes"], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert stopped.returncode == 0, stopped.stderr
    until_gone(nested["pid"])
    assert lock.wrap("-t", "next", "--", "echo", "ran").stdout == "ran\n"
    assert_each_grant_ended_once(lock)
