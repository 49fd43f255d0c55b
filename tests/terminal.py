"""A real terminal for tests: a shell at work on it, keys pressed, and what appears read until it says what is awaited."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.protocol import pids_in_kernel_queue, places
from tests.support import PATIENCE_SECONDS, Lock, is_stopped, until

PROBES = Path(__file__).resolve().parent / "probes"
CTRL_C, CTRL_D, CTRL_Z, CTRL_BACKSLASH = "\x03", "\x04", "\x1a", "\x1c"
SHELLS = {"bash": ("--norc", "--noprofile", "-i"), "dash": ("-i",)}  # with their options
GUARD = "maintlock-wrap -t x --"
PROMPT = re.compile(r"@(\d+)@ ")


class Terminal:
    """A program in a session of its own on a terminal of its own."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], *, columns: int = 80, cwd: Path | None = None
    ) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns)
        self.popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(PROBES / "tty_session.py"), *argv],
            env=dict(env), cwd=cwd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.unread = ""
        self.transcript = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def resize(self, columns: int, rows: int = 24) -> None:
        """Set the size of the window."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Send keys."""
        os.write(self.master, keys.encode())

    def until(self, wanted: str | re.Pattern[str]) -> str:
        """Return what appears up to and including `wanted`; what comes after it is read next time."""
        pattern = re.compile(re.escape(wanted)) if isinstance(wanted, str) else wanted
        return self._until(pattern)[0]

    def prompt(self) -> tuple[int, str]:
        """Return the exit status of the last command, as the shell's next prompt tells it, and what it had to say."""
        seen, match = self._until(PROMPT)
        return int(match[1]), seen[: -len(match[0])]

    def run(self, command: str) -> tuple[int, str]:
        """Type a command, and return its exit status and what appeared: the echo of the command first."""
        self.press(command + "\n")
        return self.prompt()

    def suspend(self) -> None:
        """Press Ctrl-Z, and return when the shell has its prompt back and all others have stopped.

        One that has not got round to stopping yet would still read the next key, or get the lock that it waits for.
        """
        self.press(CTRL_Z)
        while self.prompt()[0] != 128 + signal.SIGTSTP:
            pass  # a prompt from before
        until(lambda: all(is_stopped(pid) for pid in session(self.popen.pid) if pid != self.popen.pid), "all to stop")

    def _until(self, pattern: re.Pattern[str]) -> tuple[str, re.Match[str]]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (match := pattern.search(self.unread)):
            chunk = self._read(deadline)
            assert chunk, f"no {pattern.pattern!r} appeared: {self.transcript!r}"
            self.unread += chunk
        seen, self.unread = self.unread[: match.end()], self.unread[match.end() :]
        return seen, match

    def _read(self, deadline: float) -> str:
        """Return what appears next, in whole characters: one may come in two pieces."""
        content, chunk = b"-", ""
        while content and not chunk:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            try:
                content = os.read(self.master, 65536) if ready else b""
            except OSError:  # EIO: nobody has the terminal open any more
                content = b""
            chunk = self._decoder.decode(content)
        self.transcript += chunk
        return chunk

    def until_closed(self) -> str:
        """Return the rest, once no process has the terminal open any more."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while chunk := self._read(deadline):
            self.unread += chunk
        assert time.monotonic() < deadline, f"somebody keeps the terminal: {self.transcript!r}"
        return self.unread

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        """Kill what is left of the session."""
        for pid in session(self.popen.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.popen.wait()
        if self.master >= 0:
            os.close(self.master)


def session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getsid(int(name)) == leader and state(int(name)) != "Z":
                found.append(int(name))
        except OSError:
            continue
    return found


def state(pid: int) -> str:
    """Return the kernel's letter for what a process does, `""` where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def waiters(lock: Lock) -> int:
    """Return how many requests wait for the lease in the kernel's queue."""
    return len(pids_in_kernel_queue(places(lock).lock))


Opened = Callable[..., Terminal]


@contextmanager
def shell_on_terminal(
    shell: str, env: Mapping[str, str], *, columns: int = 80, cwd: Path | None = None
) -> Iterator[Terminal]:
    """Give an interactive shell on a terminal, at its prompt."""
    settings = {"PS1": "@$?@ ", "TERM": "xterm", "HISTFILE": "/dev/null", "LC_ALL": "C.UTF-8"}
    options = SHELLS[os.path.basename(shell)]
    terminal = Terminal([shell, *options], {**env, **settings}, columns=columns, cwd=cwd)
    try:
        terminal.prompt()
        yield terminal
    finally:
        terminal.close()
