"""The kernel lock."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from maintlock import flock, signals
from maintlock.errors import RefusedError, UnavailableError
from tests.clock import Clock
from tests.protocol import pids_in_kernel_queue
from tests.support import until


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that the kernel lock is waited for by."""
    found = Clock()
    monkeypatch.setattr(flock, "time", found)
    return found


def opened(path: Path) -> int:
    """Return a lock file of its own, as another process would have it."""
    return flock.open_file(str(path))


def test_a_lock_file_is_private_and_closed_on_exec(tmp_path: Path) -> None:
    """A lock file is made 0600, for us alone, and no program that we start inherits it unasked."""
    fd = opened(tmp_path / "x.lock")
    assert os.fstat(fd).st_mode & 0o7777 == 0o600
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert fd > 2
    os.close(fd)


def test_standard_descriptors_are_never_taken(tmp_path: Path) -> None:
    """A lock file does not become the standard input of a job whose own is closed."""
    saved = os.dup(0)
    try:
        os.close(0)
        fd = opened(tmp_path / "x.lock")
        assert fd > 2
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(0)
        os.close(fd)
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def test_what_is_no_lock_file_is_refused(tmp_path: Path) -> None:
    """A symlink, a directory, a FIFO or a file that all may write is refused with the command that mends it."""
    (tmp_path / "target").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "open").write_text("")
    (tmp_path / "open").chmod(0o666)
    for name, run in (("link", "mv"), ("directory", "mv"), ("fifo", "mv"), ("open", "chmod go-w")):
        with pytest.raises(RefusedError, match=f"{name}: .*run: {run} ") as found:
            opened(tmp_path / name)
        assert found.value.exit_code == 77


def test_what_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    """A directory that is gone is said with what to look at."""
    with pytest.raises(UnavailableError, match="see: df"):
        opened(tmp_path / "gone" / "x.lock")


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    """The lock belongs to the open file: another opening of it, also by the same process, does not get it (R1)."""
    one, two = opened(tmp_path / "x.lock"), opened(tmp_path / "x.lock")
    assert flock.try_lock(one)
    assert not flock.try_lock(two)
    flock.unlock(one)
    assert flock.try_lock(two)
    flock.unlock_and_close(two)
    os.close(one)


def test_shared_locks_go_together(tmp_path: Path) -> None:
    """Any number share a lock, and keep out who wants it alone."""
    one, two, three = (opened(tmp_path / "x.nested") for _ in range(3))
    assert flock.try_lock(one, shared=True)
    assert flock.try_lock(two, shared=True)
    assert not flock.try_lock(three)
    flock.unlock_and_close(one)
    flock.unlock_and_close(two)
    assert flock.try_lock(three)
    os.close(three)


def test_an_end_frees_the_lock_for_forks_too(tmp_path: Path) -> None:
    """A descriptor that leaked into a fork does not keep a lock that was given back."""
    one, two = opened(tmp_path / "x.lock"), opened(tmp_path / "x.lock")
    leaked = os.dup(one)
    flock.lock(one)
    flock.unlock_and_close(one)
    assert flock.try_lock(two)
    os.close(leaked)
    os.close(two)


def test_a_brief_wait_ends(tmp_path: Path, clock: Clock) -> None:
    """A brief lock is waited for no longer than was said."""
    one, two = opened(tmp_path / "x.lock"), opened(tmp_path / "x.lock")
    flock.lock(one)
    assert not flock.lock_within(two, seconds=0.02)
    assert 0.02 <= clock.now < 0.02 + 2 * flock.POLL_SECONDS
    assert not flock.lock_within(two, seconds=0)
    clock.at_sleep = {2: lambda: flock.unlock(one)}
    assert flock.lock_within(two, seconds=0.02)
    os.close(one)
    os.close(two)


def test_a_replaced_file_is_noticed(tmp_path: Path) -> None:
    """A lock on a file that was removed or replaced meanwhile is no lock on the path."""
    path = tmp_path / "x.lock"
    fd = opened(path)
    assert flock.is_current(fd, str(path))
    path.rename(tmp_path / "moved")
    assert not flock.is_current(fd, str(path))
    path.symlink_to(tmp_path / "moved")
    assert not flock.is_current(fd, str(path))
    path.unlink()
    path.write_text("")
    assert not flock.is_current(fd, str(path))
    os.close(fd)


def test_a_filesystem_without_locks_is_unavailable() -> None:
    """What the kernel cannot lock is said to be so, and nothing runs."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    os.close(write_fd)
    with pytest.raises(UnavailableError, match="cannot lock"):
        flock.try_lock(read_fd)
    with pytest.raises(UnavailableError, match="cannot lock"):
        flock.lock(read_fd)


def test_a_waiter_is_seen(tmp_path: Path) -> None:
    """Who holds the queue file shared waits, however many do."""
    flag, asked = opened(tmp_path / "x.queue"), opened(tmp_path / "x.queue")
    assert not flock.has_waiters(asked)
    flock.lock(flag, shared=True)
    assert flock.has_waiters(asked)
    assert flock.has_waiters(asked)
    flock.unlock_and_close(flag)
    assert not flock.has_waiters(asked)
    os.close(asked)


@pytest.mark.parametrize("is_shared", [False, True])
def test_who_only_asks_is_not_taken_for_a_waiter(tmp_path: Path, clock: Clock, *, is_shared: bool) -> None:
    """Who asks holds the flag for a moment, alone or shared, and another who asks then sees no waiter in that."""
    asking, asked = opened(tmp_path / "x.queue"), opened(tmp_path / "x.queue")
    for looks in range(1, flock.FLAG_SIGHTINGS):
        assert flock.try_lock(asking, shared=is_shared)
        clock.at_sleep = {looks: lambda: flock.unlock(asking)}
        assert not flock.has_waiters(asked)
        assert not clock.at_sleep
    os.close(asking)
    os.close(asked)


def test_asking_gives_the_flag_back(tmp_path: Path) -> None:
    """Whoever asked keeps no lock on the queue file."""
    one, two = opened(tmp_path / "x.queue"), opened(tmp_path / "x.queue")
    flock.has_waiters(one)
    assert flock.try_lock(two)
    flock.unlock(two)
    flock.lock(two, shared=True)
    flock.has_waiters(one)
    assert flock.try_lock(one, shared=True)
    os.close(one)
    os.close(two)


@pytest.fixture
def nobody_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what a test abandons forgotten."""
    monkeypatch.setattr(signals.Waiter, "is_left_behind", False)


@pytest.mark.usefixtures("nobody_left_behind")
@pytest.mark.parametrize("is_abandoned", [False, True])
def test_a_waiter_that_is_abandoned_gives_the_lock_back(tmp_path: Path, *, is_abandoned: bool) -> None:
    """A thread that gets the lock after its request was given up frees it, also where others share the open file description."""
    path = str(tmp_path / "x.lock")
    held, ours, other = (flock.open_file(path) for _ in range(3))
    assert flock.try_lock(held)
    woken, wake = os.pipe()
    waiter = signals.Waiter(ours, shared=False, wake_fd=wake)
    thread = threading.Thread(target=waiter.run)
    thread.start()
    until(lambda: os.getpid() in pids_in_kernel_queue(path), "the thread to wait")

    assert not is_abandoned or waiter.abandon()
    flock.unlock(held)
    thread.join()

    assert os.read(woken, 8) == bytes([signals.WOKEN])
    assert waiter.outcome == ([] if is_abandoned else [True])
    assert flock.try_lock(other) is is_abandoned
    assert waiter.abandon() is is_abandoned
    for fd in (held, ours, other, woken, wake):
        os.close(fd)


@pytest.mark.usefixtures("nobody_left_behind")
def test_a_waiter_that_is_abandoned_before_it_begins(tmp_path: Path) -> None:
    """A thread that has not come to it when its request is given up does not lock at all."""
    ours, other = (flock.open_file(str(tmp_path / "x.lock")) for _ in range(2))
    woken, wake = os.pipe()
    waiter = signals.Waiter(ours, shared=False, wake_fd=wake)

    assert waiter.abandon()
    waiter.run()

    assert not waiter.is_begun and flock.try_lock(other)
    for fd in (ours, other, woken, wake):
        os.close(fd)
