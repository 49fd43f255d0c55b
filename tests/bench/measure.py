"""How things are measured: alternately, many times, with the median as the answer.

Two programs are never measured one after the other but A B A B: what else the machine does then hits both.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

PATIENCE_SECONDS = 30.0
WARM_UP = 3


def medians(rounds: int, *measurements: Callable[[], float]) -> list[float]:
    """Return the median of each measurement, taken in turn."""
    for _ in range(WARM_UP):
        for measurement in measurements:
            measurement()
    taken = [[measurement() for measurement in measurements] for _ in range(rounds)]
    return [median(values) for values in zip(*taken, strict=True)]


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.001)


class Program:
    """A running program whose standard output is read line by line.

    It has a session of its own and thereby no terminal, so that the numbers do not depend on who looks.
    """

    def __init__(self, argv: Sequence[str | Path], env: Mapping[str, str], cwd: Path) -> None:
        self.started_ns = time.monotonic_ns()
        self.popen = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        self.pid = self.popen.pid

    def line(self) -> str:
        """Return the next line; a probe writes one line with one write."""
        text = self._read()
        if not text.endswith(b"\n"):
            self.kill()
            raise RuntimeError(f"{self.popen.args}: no line from it, but {text!r}")
        return text.decode()

    def _read(self) -> bytes:
        assert self.popen.stdout is not None
        ready, _, _ = select.select([self.popen.stdout], [], [], PATIENCE_SECONDS)
        return os.read(self.popen.stdout.fileno(), 4096) if ready else b""

    def moment_ns(self) -> int:
        """Return the moment that the next line tells, or that of its arrival where the probe has no clock."""
        text = self.line()
        return time.monotonic_ns() if text == "now\n" else int(text)

    def let_go(self) -> None:
        """Close its standard input, which is how a holding probe learns that it may end."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()

    def end(self) -> float:
        """Wait for its end, and return the milliseconds since its start."""
        assert self.popen.stdout is not None
        self.let_go()
        while self._read():
            pass
        self.popen.wait()  # without a time-out, which Python waits for by polling
        lasted = (time.monotonic_ns() - self.started_ns) / 1e6
        self.popen.stdout.close()
        return lasted

    def kill(self) -> None:
        """Kill it, if it still lives."""
        self.popen.kill()
        self.end()


def whole_ms(argv: Sequence[str | Path], env: Mapping[str, str], cwd: Path) -> float:
    """Return how long a program takes from its start to its end."""
    program = Program(argv, env, cwd)
    lasted = program.end()
    if program.popen.returncode:
        raise RuntimeError(f"{argv}: exit code {program.popen.returncode}")
    return lasted


def first_ms(argv: Sequence[str | Path], env: Mapping[str, str], cwd: Path) -> float:
    """Return how long it takes from a program's start to the first instruction of the probe that it starts."""
    program = Program(argv, env, cwd)
    moment_ns = program.moment_ns()
    program.end()
    return (moment_ns - program.started_ns) / 1e6


def is_waited_for(lock: Path) -> bool:
    """Tell whether somebody is blocked in flock(2) on a file: proc_locks(5) has a row with an arrow for it."""
    return waiting_pids(lock) != []


def waiting_pids(lock: Path) -> list[int]:
    """Return who is blocked in flock(2) on a file."""
    inode = f":{lock.stat().st_ino}"
    rows = [row.split() for row in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    return [int(row[5]) for row in rows if row[1] == "->" and row[6].endswith(inode)]
