"""Every system call at which a wrapper can die: found by one traced run, then met one by one.

strace kills on entry, so that the call is not made; killed at the next one, the process has died after this one. What lies
between two calls changes nothing outside the process, so these are all the places at which it can die.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import maintlock
from maintlock import ledger, pending
from maintlock.paths import PENDING_FILES
from tests.protocol import LEASE, line_of, told
from tests.support import PATIENCE_SECONDS, Lock, until

DEFERRED = 9
AFTER = 5  # calls after the last one that matters: by then it has been made
CALL = re.compile(r"^(?:(?P<tid>\d+) +)?(?P<name>[a-z_][a-z0-9_]*)\((?P<rest>.*)")
OURS = frozenset(
    {
        *(f"{LEASE}.{kind}" for kind in ("lock", "queue", "nested")),
        *("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.dropped", *PENDING_FILES),
    }
)


Ends = tuple[tuple[str, str], ...]
COMPLETED: Ends = (("released", "completed"),)
LOST: Ends = (("stale_cleaned", "lost"),)
FAILED: Ends = (("released", "failed"),)
UNSEEN: Ends = (("released", "unknown"),)
ENDS = ((), LOST, COMPLETED)


@dataclass(frozen=True)
class Point:
    """A system call: the `count`th of that name in its thread, `number`th since the lock file was opened."""

    number: int
    name: str
    count: int
    text: str


def points_in(trace: str, *, until_call: str | None = None) -> list[Point]:
    """Return the main thread's calls from the first opening of the lock file to the end, or to the last `until_call`."""
    counts = collections.Counter[str]()
    found: list[Point] = []
    main: str | None = None
    for line in trace.splitlines():
        match = CALL.match(line)
        if match is None or "resumed>" in line:
            continue
        name, main = match["name"], main or match["tid"]
        if match["tid"] != main:
            continue
        counts[name] += bool(counts) or name != "execve"  # that of strace itself is none to it
        if found or (name == "openat" and f'/{LEASE}.lock"' in line):
            found.append(Point(len(found) + 1, name, counts[name], line))
    last = max((point.number for point in found if point.name == until_call), default=len(found))
    return found[: last + AFTER]


class Tracer:
    """Runs programs under strace."""

    def __init__(self, strace: str, directory: Path) -> None:
        self.strace = strace
        self.file = directory / "trace"
        tried = subprocess.run([strace, "-o", str(self.file), "true"], capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"strace cannot trace here: {tried.stderr.strip()}")

    def argv(self, *argv: str, point: Point | None = None, threads: bool = False) -> list[str]:
        """Return the command line that runs `argv`, and kills it at a point."""
        inject = () if point is None else ("-e", f"inject={point.name}:signal=KILL:when={point.count}")
        follow = ("-f", "--detach-on=execve") if threads else ()
        return [self.strace, "-qq", "-s0", "-e", "signal=none", *follow, *inject, "-o", str(self.file), "--", *argv]

    def points(self, *, until_call: str | None = None) -> list[Point]:
        """Return the points of the last run."""
        return points_in(self.file.read_text("utf-8", "replace"), until_call=until_call)

    def died_at(self) -> Point | None:
        """Return the call that the last run was killed at, or None where it had not opened the lock file yet."""
        found = self.points()
        return found[-1] if found else None


class ThreadTracer(Tracer):
    """Attaches to one thread of a program that runs already."""

    @contextmanager
    def attached(self, thread: int, point: Point | None) -> Iterator[None]:
        """Trace a thread to its end, and kill its process at a point."""
        argv = [*self.argv(point=point)[:-1], "-p", str(thread)]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as running:
            until(lambda: not _is_untraced(thread), "strace")
            yield
            running.wait(PATIENCE_SECONDS)

    def points(self, *, until_call: str | None = None) -> list[Point]:
        """Return all calls of the last run, the one that it was in when it was attached to first."""
        counts = collections.Counter[str]()
        found: list[Point] = []
        for line in self.file.read_text("utf-8", "replace").splitlines():
            match = CALL.match(line)
            if match is not None:
                counts[match["name"]] += 1
                found.append(Point(len(found) + 1, match["name"], counts[match["name"]], line))
        return found


def _is_untraced(thread: int) -> bool:
    """Tell whether a thread lives that nobody traces."""
    try:
        return "TracerPid:\t0\n" in Path(f"/proc/{thread}/status").read_text("utf-8")
    except OSError:
        return False


class Place:
    """State directories for one run after the other, each a copy of a prepared one."""

    def __init__(self, directory: Path, prepare: Callable[[Lock], object]) -> None:
        self.directory = directory
        self.prepared = Lock(directory / "prepared")
        self.prepared.directory.mkdir(mode=0o700)
        try:
            prepare(self.prepared)
        finally:
            self.prepared.close()

    def fresh(self) -> Lock:
        """Return a lock in the state directory as it was prepared."""
        state = self.directory / "state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(self.prepared.directory, state)
        return Lock(state)


def granted_in_the_end(lock: Lock, task: str = "second") -> None:
    """A request is granted, or stands back for what of the first still works and is granted when that has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        done = lock.wrap("-t", task, "-E", str(DEFERRED), "--", "true")
        if done.returncode == 0:
            return
        assert done.returncode == DEFERRED, done
        assert re.search(r"held by (survivors of )?(first|zero|outer|waiter)\b", done.stderr), done.stderr
        assert time.monotonic() < deadline, done.stderr


def ends_of(rows: Sequence[Mapping[str, Any]], task: str) -> Ends:
    """Return event and outcome of each end of a task's grants."""
    return tuple((row["event"], row["outcome"]) for row in rows if row["task"] == task and row["outcome"] is not None)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What may be told of the first in the end, and what must be told of the others."""

    first: Sequence[Ends] = ENDS
    others: Mapping[str, Ends]
    is_granted: bool = True  # or it has joined, and is no grant


def assert_truthful(lock: Lock, marker: Path, truth: Truth) -> Ends:
    """Every grant is told of once and as it was, and nothing is left over; return how the first ended."""
    rows = told(lock)
    begun = [row["lease_id"] for row in rows if row["event"] == "acquired"]
    ended = [row["lease_id"] for row in rows if row["outcome"] is not None]
    assert sorted(begun) == sorted(ended), rows
    assert len(set(begun)) == len(begun) == line_of(lock).fence, rows
    first = ends_of(rows, "first")
    assert first in truth.first, rows
    assert {task: ends_of(rows, task) for task in truth.others} == truth.others, rows
    assert not (truth.is_granted and marker.exists() and not first), f"a job has run that was never granted: {rows}"
    assert first != COMPLETED or marker.exists(), f"a job has completed that never ran: {rows}"
    status = maintlock.status(state_dir=str(lock.directory))
    assert (status["state"], status["sidecar"], status["holder"]) == ("free", "missing", None), status
    assert (status["waiters"], status["nested"]) == ([], []), status
    ledger.drain(str(lock.directory), now=time.time())
    assert told(lock) == rows, f"entered: {told(lock)}, before: {rows}"
    assert not pending.waiting(str(lock.directory))
    left = set(os.listdir(lock.directory)) - OURS
    assert not left, left
    return first


def run_killed(lock: Lock, argv: Sequence[str]) -> int:
    """Run a traced program to its end, and return its exit code."""
    nothing = subprocess.DEVNULL
    return subprocess.run(
        argv, env=lock.env(), stdin=nothing, stdout=nothing, stderr=nothing, timeout=PATIENCE_SECONDS
    ).returncode
