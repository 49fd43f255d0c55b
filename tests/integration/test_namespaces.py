"""Other pid namespaces, as containers have: what cannot be seen is unknown, and said to be (L1)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from tests.protocol import (
    PROBES,
    PYTHON,
    SAYS_HELD,
    assert_each_grant_ended_once,
    ends,
    is_locked,
    line_of,
    pids_in_kernel_queue,
    places,
    told,
    waiting,
)
from tests.support import PATIENCE_SECONDS, WRAP, Lock, Running, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a pid namespace")


@pytest.fixture
def container(require: Callable[[str], str]) -> list[str]:
    """Give the words that run a command in a pid namespace of its own."""
    argv = [require("unshare"), "-p", "-f", "--mount-proc", "--kill-child", "--"]
    if subprocess.run([*argv, "true"], capture_output=True).returncode != 0:
        pytest.skip("a pid namespace cannot be made here")
    return argv


def hold_in(container: list[str], lock: Lock, task: str, script: str = "echo ready; read x; true") -> Running:
    """Start a job in a container that has the lease."""
    argv = (*container[1:], WRAP, "-t", task, "--", "sh", "-c", script)
    running = lock.start(*argv, program=container[0], stdin=subprocess.PIPE)
    running.until_line("ready")
    return running


def wrap_in(container: list[str], lock: Lock, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a wrapper in a container."""
    return subprocess.run(
        [*container, WRAP, *arguments], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def test_one_at_a_time_across_namespaces(lock: Lock, container: list[str]) -> None:
    """The kernel's lock holds between namespaces, and the holder is named from its record (R1)."""
    inside = hold_in(container, lock, "inside")
    fields = lock.sidecar()
    assert fields["pid"] < 10  # as it is called in there
    for done in (
        lock.wrap("-t", "next", "-E", "9", "--", "true"),
        wrap_in(container, lock, "-t", "next", "-E", "9", "--", "true"),
    ):
        assert done.returncode == 9
        assert f"{SAYS_HELD}inside (" in done.stderr
    inside.popen.communicate()
    outside = lock.hold("outside")
    done = wrap_in(container, lock, "-t", "next", "-E", "9", "--", "true")
    assert done.returncode == 9
    assert f"{SAYS_HELD}outside (" in done.stderr
    outside.popen.communicate()
    assert wrap_in(container, lock, "-t", "next", "--", "echo", "ran").stdout == "ran\n"
    assert_each_grant_ended_once(lock)


def test_a_crash_in_another_namespace(lock: Lock, container: list[str]) -> None:
    """After a crash in a container the next one outside goes on, and records what it could not see (L1)."""
    inside = hold_in(container, lock, "inside")
    inside.popen.kill()  # and with it, by --kill-child, all of its namespace
    inside.popen.wait()
    until(lambda: not is_locked(places(lock).lock), "the kernel to free the lock")
    done = lock.wrap("-v", "-t", "next", "--", "echo", "ran")
    assert done.stdout == "ran\n"
    assert "inside: the last grant was in another pid namespace" in done.stderr
    assert [(row["task"], row["reason_code"]) for row in told(lock, event="survivors")] == [("inside", None)]
    assert ends(lock) == [("inside", "stale_cleaned", "lost"), ("next", "released", "completed")]


def test_pid_one_is_not_taken_for_a_holder(lock: Lock, container: list[str]) -> None:
    """In a fresh container pid 1 and its like live: the dead holder of the same number from another one does not (L1)."""
    inside = hold_in(container, lock, "inside")
    pid = line_of(lock).identity.pid
    inside.popen.kill()
    inside.popen.wait()
    until(lambda: not is_locked(places(lock).lock), "the kernel to free the lock")
    script = f'for i in 1 2 3 4 5 6; do sh -c "[ \\$\\$ = {pid} ] && exec sleep 1000" & done; {WRAP} -t next -- echo ran; kill -9 -1'
    argv = [*container, "sh", "-c", script]
    done = subprocess.run(argv, env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.stdout.startswith("ran\n"), done.stderr
    assert ends(lock)[0] == ("inside", "stale_cleaned", "lost")


def test_a_waiter_in_another_namespace_counts(lock: Lock, container: list[str]) -> None:
    """A waiter of another namespace is not overtaken, although its process cannot be seen."""
    holder = lock.hold("holder")
    waiter = lock.start(*container[1:], WRAP, "-t", "waiter", "-w", "forever", "--", "true", program=container[0])
    until(lambda: pids_in_kernel_queue(places(lock).lock), "the waiter")
    lock.wrap("-t", "attempt", "--", "true")
    assert told(lock, task="attempt")[0]["reason_code"] == "queued"
    assert waiting(lock) == []  # by its process, which is not to be seen from here
    holder.popen.communicate()
    assert waiter.end()[0] == 0


def test_survivors_within_a_container(lock: Lock, container: list[str]) -> None:
    """Inside a container, whose session began outside and so has no number there, survivors are found as elsewhere (L2)."""
    script = (
        f"mkfifo $MAINTLOCK_STATE_DIR.out; {WRAP} -t backup -- {PYTHON} {PROBES}/like_npm.py sleep 1000 > $MAINTLOCK_STATE_DIR.out & "
        "read word main child < $MAINTLOCK_STATE_DIR.out; kill -9 $! $main; wait $!; "
        f"{WRAP} -t next -E 9 -- echo ran; echo code $? child $child; kill -9 $child; "
        f"{WRAP} -t next -w forever -E 9 -- echo ran"
    )
    done = subprocess.run(
        [*container, "sh", "-c", script], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    words = done.stdout.split()
    assert words[:3] == ["code", "9", "child"] and words[4:] == ["ran"], done.stderr
    assert f"{SAYS_HELD}survivors of backup (pids {words[3]})" in done.stderr
    assert ends(lock) == [("backup", "stale_cleaned", "lost"), ("next", "released", "completed")]


def test_a_job_that_makes_a_namespace(lock: Lock, container: list[str]) -> None:
    """A request from a container that a job started is in no session that we know of: it stands back, and says for whom."""
    script = f"{' '.join(container)} {WRAP} -t inner -E 9 -- echo ran; echo code $?"
    done = lock.wrap("-t", "outer", "--", "sh", "-c", script)
    assert done.stdout == "code 9\n"
    assert f"inner {SAYS_HELD}outer (" in done.stderr
    assert_each_grant_ended_once(lock)


def test_the_library_in_a_container(lock: Lock, container: list[str]) -> None:
    """A Python program in a container is refused while the lease is held outside, and told by whom."""
    holder = lock.hold("outside")
    argv = [*container, PYTHON, str(PROBES / "hold.py"), "inside"]
    done = subprocess.run(
        argv, env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stdout) == (9, f"held lease-held outside {holder.pid}\n")
