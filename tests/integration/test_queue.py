"""Waiting: in order of arrival, woken by the kernel, in nobody's way."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest

from maintlock import acquisition, api
from maintlock.errors import LeaseHeld
from maintlock.holder import read_sidecar
from maintlock.lease import Request
from tests.protocol import (
    LEASE,
    PROBES,
    PYTHON,
    SAYS_HELD,
    assert_each_grant_ended_once,
    crash,
    is_locked,
    kill,
    pids_in_kernel_queue,
    places,
    survivor_of_a_crash,
    told,
    until_gone,
    until_queued,
    waiting,
)
from tests.support import Lock, Running, until, until_stopped

# Its thread, which is to wait for the lock, begins and then has no processor.
LATE = """
import time
from maintlock.signals import Waiter
def late(self):
    self.is_begun = True
    time.sleep(3600)
Waiter.run = late
"""


def queue_up(lock: Lock, task: str, wait: str = "forever", script: str = "true") -> Running:
    """Start a waiter, and return when it waits in the kernel's queue."""
    running = lock.start("-t", task, "-w", wait, "--", "sh", "-c", script)
    until_queued(lock, running)
    return running


def is_on_record(lock: Lock, task: str) -> bool:
    """Tell whether the sidecar names the task: between the lock and that there is a moment."""
    fields = read_sidecar(places(lock)).fields
    return fields is not None and fields["task"] == task


def finish(running: Running) -> None:
    """End a holder by closing its job's standard input."""
    running.popen.communicate()


def test_first_come_first_served(lock: Lock, tmp_path: Path) -> None:
    """Six waiters get the lease in the order in which they came, and none of them while another works (R1)."""
    holder = lock.hold()
    order = tmp_path / "order"
    waiters = [queue_up(lock, f"w{n}", script=f"echo +{n} >> {order}; echo -{n} >> {order}") for n in range(6)]
    assert waiting(lock) == [f"w{n}" for n in range(6)]
    finish(holder)
    assert [waiter.end()[0] for waiter in waiters] == [0] * 6
    assert order.read_text().split() == [f"{sign}{n}" for n in range(6) for sign in "+-"]
    assert [row["task"] for row in told(lock, event="acquired")] == ["holder", *[f"w{n}" for n in range(6)]]
    assert waiting(lock) == []
    assert_each_grant_ended_once(lock)


def test_a_waiter_says_for_whom(lock: Lock) -> None:
    """Who begins to wait says so in one line, and how long it has waited stands in the record of its grant."""
    holder = lock.hold("backup")
    begun = time.monotonic()
    waiter = queue_up(lock, "kbSync", script=f"cat {places(lock).sidecar}")
    queued = time.monotonic()
    assert [waiter["task"] for waiter in lock.status()["waiters"]] == ["kbSync"]  # which takes some time
    at_least = time.monotonic() - queued
    finish(holder)
    code, out, err = waiter.end()
    at_most = time.monotonic() - begun
    assert code == 0
    assert "kbSync waits for the heavy-maintenance lease: held by backup (" in err
    assert at_least < json.loads(out)["waited_seconds"] < at_most
    row = told(lock, event="acquired", task="kbSync")[0]
    assert row["seconds"] == json.loads(out)["waited_seconds"]


def test_an_attempt_behind_a_waiter_is_queued(lock: Lock) -> None:
    """A non-blocking attempt finds somebody waiting and stands back with reason `queued`; the waiter is next."""
    holder = lock.hold()
    waiter = queue_up(lock, "waiter")
    done = lock.wrap("-t", "attempt", "-E", "9", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (9, "")
    assert f"attempt {SAYS_HELD}holder (" in done.stderr
    assert [(r["reason_code"], r["blocked_by"]) for r in told(lock, task="attempt")] == [("queued", "holder")]
    finish(holder)
    assert waiter.end()[0] == 0
    assert lock.wrap("-t", "attempt", "--", "echo", "ran").stdout == "ran\n"


def test_an_attempt_gives_way_to_a_waiter_that_was_just_woken(lock: Lock) -> None:
    """An attempt that gets in before the waiter whom the kernel has woken offers the lock again, and stands back `queued`."""
    holder = lock.hold()
    waiter = queue_up(lock, "waiter", script="exec sleep 1000")
    waiter.signal(signal.SIGSTOP)
    until_stopped(waiter.pid)
    finish(holder)
    offers = []

    class Slow(api._Patience):
        def pause(self, seconds: float) -> None:
            offers.append(seconds)
            waiter.signal(signal.SIGCONT)
            until(lambda: is_on_record(lock, "waiter"), "the waiter to take the offer")

    request = Request(
        task="attempt", owner="o", reason="r", source="cli", mode="supervised", hold_until="session", ttl_seconds=1.0,
        command=("x",), wait_seconds=None,
    )  # fmt: skip
    with pytest.raises(LeaseHeld) as held:
        acquisition.acquire(places(lock), request, Slow(), {})
    assert (held.value.reason_code, held.value.blocked_by, len(offers)) == ("queued", "waiter", 1)


def test_a_stopped_waiter_blocks_nobody(lock: Lock) -> None:
    """A waiter that is stopped is passed over by waiters and attempts, slow ones too, and gets its turn once it goes on."""
    holder = lock.hold()
    stopped = queue_up(lock, "stopped")
    second = queue_up(lock, "second")
    stopped.signal(signal.SIGSTOP)
    until_stopped(stopped.pid)
    finish(holder)
    assert second.end()[0] == 0
    assert lock.wrap("-t", "attempt", "--", "echo", "ran").stdout == "ran\n"
    assert lock.wrap("-t", "attempt", "-w", "0", "--", "echo", "ran").stdout == "ran\n"
    assert lock.wrap("-t", "attempt", "-w", "1h", "--", "echo", "ran").stdout == "ran\n"
    late = lock.start(str(PROBES / "patched_wrap.py"), LATE, "-t", "attempt", "--", "echo", "ran", program=PYTHON)
    assert late.end() == (0, "ran\n", "")
    assert waiting(lock) == ["stopped"]
    stopped.signal(signal.SIGCONT)
    assert stopped.end()[0] == 0
    assert [row["task"] for row in told(lock, event="acquired")] == ["holder", "second", *["attempt"] * 4, "stopped"]


def test_who_was_stopped_while_asking_blocks_nobody(lock: Lock) -> None:
    """A program that was stopped in the moment in which it asked whether somebody waits keeps nobody from waiting."""
    holder = lock.hold()
    fd = os.open(places(lock).queue, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        waiter = queue_up(lock, "waiter")
        finish(holder)
        assert waiter.end()[0] == 0
    finally:
        os.close(fd)


def test_a_killed_waiter_leaves_no_trace(lock: Lock) -> None:
    """A waiter that is killed neither counts as waiting nor is in anybody's way."""
    lock.hold()
    waiter = queue_up(lock, "waiter")
    crash(waiter)
    assert waiting(lock) == []
    lock.wrap("-t", "attempt", "--", "true")
    assert told(lock, task="attempt")[0]["reason_code"] == "lease-held"


def test_a_wait_that_is_over(lock: Lock) -> None:
    """After the time that was said a waiter stands back with reason `wait-timeout`, and leaves the queue."""
    holder = lock.hold()
    begun = time.monotonic()
    done = lock.wrap("-t", "waiter", "-w", "300ms", "-E", "9", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (9, "")
    assert time.monotonic() - begun >= 0.3
    assert f"waiter {SAYS_HELD}holder (" in done.stderr
    row = told(lock, event="deferred")[0]
    assert (row["reason_code"], row["blocked_by"]) == ("wait-timeout", "holder")
    assert row["seconds"] >= 0.3
    assert waiting(lock) == []
    assert not is_locked(places(lock).queue)
    finish(holder)
    assert lock.wrap("-t", "next", "-w", "0", "--", "echo", "ran").stdout == "ran\n"


def test_a_wait_of_no_time(lock: Lock) -> None:
    """Who waits for no time at all asks once."""
    lock.hold()
    assert lock.wrap("-t", "waiter", "-w", "0", "-E", "9", "--", "true").returncode == 9
    assert told(lock, event="deferred")[0]["reason_code"] == "wait-timeout"


def test_a_signal_ends_the_wait(lock: Lock) -> None:
    """A waiter that is told to end does so with 128+n, is no deferral, and leaves the queue."""
    lock.hold()
    waiter = queue_up(lock, "waiter")
    waiter.signal(signal.SIGTERM)
    assert waiter.end()[0] == 128 + signal.SIGTERM
    assert told(lock, event="deferred") == []
    assert not is_locked(places(lock).queue)
    assert waiting(lock) == []


def test_a_continued_waiter_waits_on(lock: Lock) -> None:
    """Stopping and continuing a waiter ends no wait."""
    holder = lock.hold()
    waiter = queue_up(lock, "waiter")
    waiter.signal(signal.SIGSTOP)
    until_stopped(waiter.pid)
    waiter.signal(signal.SIGCONT)
    until_queued(lock, waiter)
    finish(holder)
    assert waiter.end()[0] == 0


def test_a_waiter_that_has_won_keeps_the_lock_while_survivors_work(lock: Lock) -> None:
    """Who waits for survivors has the lock, writes nothing, counts as waiting, and gives the lock back at its time-out."""
    with survivor_of_a_crash(lock, "crashed") as survivor:
        before = (lock.directory / f"{LEASE}.lock").read_bytes()
        waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
        until(lambda: waiting(lock) == ["waiter"], "the waiter to be told")
        assert is_locked(places(lock).lock)
        assert is_locked(places(lock).queue)
        brief = lock.wrap("-t", "brief", "-w", "200ms", "-E", "9", "--", "true")
        assert brief.returncode == 9
        waiter.signal(signal.SIGTERM)
        assert waiter.end()[0] == 143
        timed = lock.wrap("-t", "timed", "-w", "200ms", "-E", "9", "--", "true")
        assert timed.returncode == 9
        assert f"timed {SAYS_HELD}survivors of crashed (pids {survivor})" in timed.stderr
        assert not is_locked(places(lock).lock)
        assert not is_locked(places(lock).nested)
        assert not is_locked(places(lock).queue)
        assert (lock.directory / f"{LEASE}.lock").read_bytes() == before
        reasons = {row["task"]: row["reason_code"] for row in told(lock, event="deferred")}
        assert reasons == {"brief": "wait-timeout", "timed": "wait-timeout"}
    assert lock.wrap("-t", "after", "--", "echo", "ran").stdout == "ran\n"


def test_the_next_in_the_queue_waits_behind_who_has_won(lock: Lock) -> None:
    """Behind a waiter that waits for survivors the others keep their order, and an attempt is `queued`."""
    with survivor_of_a_crash(lock, "crashed") as survivor:
        first = lock.start("-t", "first", "-w", "forever", "--", "true")
        until(lambda: waiting(lock) == ["first"], "the first")
        second = queue_up(lock, "second")
        lock.wrap("-t", "attempt", "--", "true")
        assert told(lock, task="attempt")[0]["reason_code"] == "queued"
        kill(survivor)
        assert (first.end()[0], second.end()[0]) == (0, 0)
    assert [row["task"] for row in told(lock, event="acquired")] == ["crashed", "first", "second"]
    assert_each_grant_ended_once(lock)


def test_a_queued_waiter_wins_and_finds_survivors(lock: Lock) -> None:
    """Who was queued when the holder crashed gets the lock from the kernel, and the lease when the survivors are gone."""
    probe = [PYTHON, str(PROBES / "like_npm.py"), "sleep", "1000"]
    holder = lock.start("-t", "crashed", "--", *probe)
    main, survivor = map(int, holder.until_line("ready").split()[1:])
    waiter = queue_up(lock, "waiter")
    try:
        crash(holder, main)
        until(lambda: waiter.pid not in pids_in_kernel_queue(places(lock).lock), "the kernel's answer")
        until(lambda: told(lock, event="survivors"), "the survivors to be told")
        assert waiting(lock) == ["waiter"]
        assert told(lock, event="acquired", task="waiter") == []
    finally:
        kill(survivor)
        until_gone(survivor)
    assert waiter.end()[0] == 0
    assert_each_grant_ended_once(lock)


def test_a_replaced_lock_file_is_noticed_while_waiting(lock: Lock) -> None:
    """A waiter whose lock file was removed meanwhile asks for the new one, and keeps counting as waiting."""
    holder = lock.hold()
    waiter = queue_up(lock, "waiter")
    os.unlink(places(lock).lock)
    finish(holder)
    assert waiter.end()[0] == 0
    assert os.path.exists(places(lock).lock)
    assert [row["task"] for row in told(lock, event="acquired")] == ["holder", "waiter"]
