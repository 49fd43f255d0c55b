"""Real processes for tests: programs started as a user starts them, waited for by what they say, never by the clock."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maintlock import observe, process
from maintlock.ledger import LedgerUnavailable
from maintlock.paths import Places

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
WRAP = str(BIN / "maintlock-wrap")
MAINTLOCK = str(BIN / "maintlock")
BUSY = ": busy: "  # what follows the name of a file of the ledger
PATIENCE_SECONDS = 60.0  # on a machine that is ten times as slow, and half of what pytest gives a test


def read_open_files(pid: int) -> list[str]:
    """Return what a process has open; what it closes meanwhile (a locale, when it has just begun) is left out."""
    found = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return found


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Return the first true value of `condition`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
        time.sleep(0.005)
    return value


def is_stopped(pid: int) -> bool:
    """Tell whether all threads of a process are stopped by a signal: the one that waits for the lock can be the last."""
    try:
        threads = [process.read_stat(int(name)) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return False
    return all(stat is not None and stat.state == "T" for stat in threads)


def until_stopped(pid: int) -> None:
    """Return when a process is stopped by a signal, with all its threads."""
    until(lambda: is_stopped(pid), f"pid {pid} to stop")


def read_patiently(read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what a reader of the ledger returns: on a busy machine, who is just making or closing it may take long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return read(*arguments, **options)
        except LedgerUnavailable as error:
            if "busy" not in error.reason or time.monotonic() > deadline:
                raise


def read_unless_busy(read: Callable[[], Any], trouble_of: Callable[[Any], str | None]) -> Any:
    """Return what a reader tells once no trouble of it is that the ledger is busy; see `read_patiently`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while BUSY in (trouble_of(found := read()) or "") and time.monotonic() < deadline:
        pass
    return found


class Running:
    """A process whose output is read line by line."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], **options: Any) -> None:
        self.popen = subprocess.Popen(
            argv, env=dict(env), stdin=options.pop("stdin", subprocess.DEVNULL), stdout=subprocess.PIPE,
            stderr=options.pop("stderr", subprocess.PIPE), **options,
        )  # fmt: skip
        self.pid = self.popen.pid
        self._seen = b""

    def until_line(self, text: str, *, seconds: float = PATIENCE_SECONDS) -> str:
        """Return the first line of standard output that contains `text`."""
        assert self.popen.stdout is not None
        deadline = time.monotonic() + seconds
        while True:
            *lines, self._seen = self._seen.split(b"\n")
            for index, line in enumerate(lines):
                if text in line.decode("utf-8", "replace"):
                    self._seen = b"\n".join([*lines[index + 1 :], self._seen])
                    return line.decode("utf-8", "replace")
            ready, _, _ = select.select([self.popen.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.popen.stdout.fileno(), 65536) if ready else b""
            assert chunk, f"no line with {text!r}: {self._seen!r} {self._stderr()!r}"
            self._seen += chunk

    def _stderr(self) -> bytes:
        """Return what is there of standard error: its end may never come, while a job has it open."""
        if self.popen.stderr is None:
            return b""
        os.set_blocking(self.popen.stderr.fileno(), False)
        return self.popen.stderr.read() or b""

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self.popen.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Return exit code (negative: signal), the rest of standard output, and standard error."""
        out, err = self.popen.communicate(timeout=PATIENCE_SECONDS)
        return (
            self.popen.returncode,
            (self._seen + out).decode("utf-8", "replace"),
            (err or b"").decode("utf-8", "replace"),
        )


class Lock:
    """One state directory and the programs that work on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[Running] = []

    def env(self, **more: str) -> dict[str, str]:
        """Return the environment of a program that uses this state directory."""
        return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "MAINTLOCK_STATE_DIR": str(self.directory), **more}

    def wrap(
        self, *arguments: str, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `maintlock-wrap` to its end."""
        return subprocess.run(
            [WRAP, *arguments], env=dict(env or self.env()), capture_output=True, text=True,
            timeout=PATIENCE_SECONDS, **{"stdin": subprocess.DEVNULL, **options},
        )  # fmt: skip

    def start(
        self, *arguments: str, program: str = WRAP, env: Mapping[str, str] | None = None, **options: Any
    ) -> Running:
        """Start `maintlock-wrap` (or another program) and return while it runs."""
        running = Running([program, *arguments], env or self.env(), **options)
        self.running.append(running)
        return running

    def hold(self, task: str = "holder", *options: str, script: str = "echo ready; read x", **more: Any) -> Running:
        """Start a job that has the lease and says so; it ends when its standard input closes, or by a signal."""
        running = self.start("-t", task, *options, "--", "sh", "-c", script, **{"stdin": subprocess.PIPE, **more})
        running.until_line("ready")
        return running

    def status(self) -> dict[str, Any]:
        """Return what `maintlock status --json` tells; that program has tests of its own, and takes long to start."""
        found: dict[str, Any] = json.loads(
            json.dumps(read_unless_busy(self._read_status, lambda status: status["detail"]))
        )
        return found

    def _read_status(self) -> Any:
        return observe.read_status(self._places())

    def history(self, **fields: Any) -> list[dict[str, Any]]:
        """Return what `maintlock history --json` tells, those rows that have these fields."""
        rows = json.loads(json.dumps(read_patiently(observe.read_history, str(self.directory))))
        return [row for row in rows if all(row.get(name) == value for name, value in fields.items())]

    def _places(self) -> Places:
        return Places(directory=str(self.directory), lease="heavy-maintenance")

    def sidecar(self, lease: str = "heavy-maintenance") -> dict[str, Any]:
        """Return the sidecar."""
        found: dict[str, Any] = json.loads((self.directory / f"{lease}.json").read_text())
        return found

    def close(self) -> None:
        """Kill what a test has left running: its programs, and whatever carries its state directory in the environment."""
        for running in self.running:
            if running.popen.poll() is None:
                running.popen.send_signal(signal.SIGKILL)
            for stream in (running.popen.stdin, running.popen.stdout, running.popen.stderr):
                if stream is not None:
                    stream.close()
            running.popen.wait()
        until(lambda: not self._kill_jobs(), "the jobs' end")

    def _kill_jobs(self) -> bool:
        mark = b"MAINTLOCK_STATE_DIR=" + os.fsencode(self.directory)
        found = False
        for stat in process.read_table().values():
            if stat.pid == os.getpid() or stat.is_dead:
                continue
            if mark in (process.read_environ(stat.pid) or b"").split(b"\0"):
                found = process.send_signal(stat, signal.SIGKILL) or found
        return found


@contextmanager
def lock_in(directory: Path) -> Iterator[Lock]:
    """Give a lock in a directory, and clean up after it."""
    lock = Lock(directory)
    try:
        yield lock
    finally:
        lock.close()
