"""What a program has started under a lease of its own keeps that lease, for as long as it works."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import maintlock
from maintlock import flock, parts
from maintlock.lease import Lease
from tests.protocol import PROBES, PYTHON, ends, kill, told, until_gone
from tests.support import Lock, Running, until


def hold_and_leave(lock: Lock, start: Callable[[dict[str, str]], object]) -> threading.Thread:
    """Hold the lease in another thread, start something in the block, and give the thread, which ends with the block."""

    def work() -> None:
        with maintlock.hold("program", state_dir=lock.directory) as lease:
            start({**lock.env(), **lease.env})

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def assert_refused(lock: Lock, thread: threading.Thread) -> None:
    """The block has been left, and the lease is still held by the program."""
    for _ in range(3):
        assert lock.wrap("-t", "next", "-E", "9", "--", "true", start_new_session=True).returncode == 9
    assert thread.is_alive()


def test_a_child_keeps_the_lease(lock: Lock) -> None:
    """A child with the lease's environment keeps it beyond the end of the block; one in a session of its own does not."""
    children: list[subprocess.Popen[bytes]] = []

    def start(env: dict[str, str]) -> None:
        children.extend(
            subprocess.Popen(["sleep", "1000"], env=env, start_new_session=is_away) for is_away in (False, True)
        )

    thread = hold_and_leave(lock, start)
    until(lambda: len(children) == 2, "the children")
    assert_refused(lock, thread)
    children[0].kill()
    children[0].wait()
    thread.join()
    assert children[1].poll() is None
    children[1].kill()
    children[1].wait()
    assert ends(lock) == [("program", "released", "completed")]
    assert lock.wrap("-t", "next", "--", "echo", "ran").stdout == "ran\n"


def test_the_job_of_a_killed_joined_wrapper_keeps_the_lease(lock: Lock) -> None:
    """What a wrapper inside the block has started keeps the lease though that wrapper, and npm below it, were killed and reaped."""
    started: list[Running] = []

    def start(env: dict[str, str]) -> None:
        argv = ("-t", "part", "--", PYTHON, str(PROBES / "like_npm.py"), "sleep", "1000")
        running = lock.start(*argv, env=env)
        main, child = map(int, running.until_line("ready").split()[1:])
        kill(running.pid)
        kill(main)
        running.popen.wait()
        until_gone(main)
        pids.append(child)
        started.append(running)

    pids: list[int] = []
    thread = hold_and_leave(lock, start)
    until(lambda: started, "the killed wrapper")
    assert_refused(lock, thread)
    kill(pids[0])
    thread.join()
    assert [row["outcome"] for row in told(lock, event="released")] == ["completed"]


def test_who_joins_is_excluded_before_the_last_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a joined job leaves behind is seen: nobody can join during a look, and while something works anybody can."""
    nested, other = (flock.open_file(str(tmp_path / "x.nested")) for _ in range(2))
    at_work = [True, False]
    can_join: list[bool] = []

    def look(_: Lease) -> bool:
        can_join.append(flock.try_lock(other, shared=True))
        return at_work.pop(0)

    def pause(_: float) -> None:
        can_join.append(flock.try_lock(other, shared=True))
        flock.unlock(other)

    monkeypatch.setattr(parts, "is_at_work", look)
    grant = SimpleNamespace(nested_fd=nested, try_exclude_joined=lambda: flock.try_lock(nested))
    parts.wait(cast("Lease", grant), pause=pause)

    assert can_join == [False, True, False]
    os.close(nested)
    os.close(other)
