"""One round of an attack: a directory, a peer, what is started there, and what the witness saw."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maintlock import process
from tests.bench.measure import waiting_pids
from tests.peers.lockers import ENV_MARK, TRY, WAIT, Locker, env
from tests.protocol import kill, until_gone
from tests.support import PATIENCE_SECONDS, until, until_stopped
from tests.torture.witness import Entry, read_journal, read_violations

LONG = 3600.0
GIVES_UP_SECONDS = 5.0  # on a machine of one's own; the attacks on many peers would take for ever with more


class Scene:
    """A peer's lock in a directory of its own, and the jobs that fight for it."""

    def __init__(
        self, directory: Path, locker: Locker, *, ttl: float = LONG, patience_seconds: float = GIVES_UP_SECONDS
    ) -> None:
        self.patience_seconds = patience_seconds  # with what comes late, or not at all
        self.directory = directory
        self.locker = locker
        self.ttl = ttl
        self.place = directory / "place"
        self.place.mkdir(mode=0o700)
        self.lock = self.place / locker.file
        self.started: list[subprocess.Popen[bytes]] = []

    def job(self, name: str, seconds: float = LONG, *options: str) -> list[str]:
        """Return a command that works under a name."""
        return [sys.executable, "-S", "-m", "tests.peers.worker", str(self.directory), name, str(seconds), *options]

    def argv(self, how: str, command: list[str]) -> list[str]:
        """Return a command under the lock."""
        return self.locker.argv(self.place, self.ttl, how, command)

    def start(self, how: str, command: list[str], **more: str) -> subprocess.Popen[bytes]:
        """Start a command under the lock, in a session of its own."""
        return self.start_as_is(self.argv(how, command), **more)

    def start_as_is(self, argv: list[str], **more: str) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own."""
        nothing = subprocess.DEVNULL
        started = subprocess.Popen(
            argv, env=env(self.directory, **more), cwd=self.directory, stdin=nothing, stdout=nothing, stderr=nothing,
            start_new_session=True,
        )  # fmt: skip
        self.started.append(started)
        return started

    def attempt(self, name: str = "second") -> int:
        """Try to work for an instant, and return the exit code."""
        return self.start(TRY, self.job(name, 0)).wait(PATIENCE_SECONDS)

    def hold(self, name: str = "first", command: list[str] | None = None) -> tuple[subprocess.Popen[bytes], int]:
        """Have a job at work under the lock; return its wrapper and the PID of who works."""
        wrapper = self.start(TRY, command or self.job(name))
        return wrapper, self.until_at_work(name)

    def until_at_work(self, name: str) -> int:
        """Return the PID of who works under a name, as soon as it does."""
        until(lambda: self.begins(name), f"{name} to work")
        return self.begins(name)[0].pid

    def begins(self, name: str) -> list[Entry]:
        """Return the beginnings of work under a name."""
        return [entry for entry in read_journal(str(self.directory)) if entry.what == "B" and entry.grant == name]

    def overlaps(self) -> int:
        """Return how often the witness saw two at work."""
        return len(read_violations(str(self.directory)))

    def wait_in_line(self, number: int, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command that waits for the lock as the `number`th, and return when it waits."""
        waiter = self.start(WAIT, command)
        if self.locker.is_kernels_queue:
            until(lambda: len(waiting_pids(self.lock)) >= number, "a waiter in the kernel's queue")
        else:
            until(lambda: list(self.place.glob(f"*.waiting.{waiter.pid}")), "a waiter that polls")
        return waiter

    def close(self) -> None:
        """Kill whatever was started here."""
        until(lambda: not self._kill_marked(), "the end of all that was started")
        for started in self.started:
            started.wait()

    def _kill_marked(self) -> bool:
        mark = f"{ENV_MARK}={self.directory}".encode()
        found = False
        for stat in process.read_table().values():
            if not stat.is_dead and mark in (process.read_environ(stat.pid) or b"").split(b"\0"):
                found = process.send_signal(stat, signal.SIGKILL) or found
        return found


def parent_of(pid: int) -> int:
    """Return who has started a process."""
    stat = process.read_stat(pid)
    assert stat is not None
    return stat.ppid


def put_down(wrapper: subprocess.Popen[bytes], *pids: int) -> None:
    """Kill a wrapper and other processes, and return when they are gone."""
    for pid in (wrapper.pid, *pids):
        kill(pid)
    wrapper.wait()
    for pid in pids:
        until_gone(pid)


def stop(pid: int) -> None:
    """Suspend a process, with all its threads: it is one of those that waits for the lock."""
    os.kill(pid, signal.SIGSTOP)
    until_stopped(pid)


@contextmanager
def scene_in(
    directory: Path, locker: Locker, *, ttl: float = LONG, patience_seconds: float = GIVES_UP_SECONDS
) -> Iterator[Scene]:
    """Give a scene, and clean up after it."""
    directory.mkdir()
    scene = Scene(directory, locker, ttl=ttl, patience_seconds=patience_seconds)
    try:
        yield scene
    finally:
        scene.close()
