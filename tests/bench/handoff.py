"""How soon the next one works after a holder has ended."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.bench import Bench, tool
from tests.bench.measure import Program, is_waited_for, medians, until
from tests.bench.row import Row

ROUNDS = 40
POLLING_ROUNDS = 25
DEFAULT_INTERVAL_SECONDS = 0.25  # portalocker's own default
POLLING = (
    "import portalocker, sys, time; print('trying', flush=True)\n"
    "with portalocker.Lock(sys.argv[1], timeout=60): print(time.monotonic_ns(), flush=True)"
)


@dataclass(frozen=True)
class Locker:
    """How one program holds a lock and another waits for it; `lock` is the file."""

    lock: Path
    hold: list[str | Path]
    wait: list[str | Path]
    env: Mapping[str, str]
    cwd: Path
    is_polling: bool = False

    def handoff_ms(self, *, is_killed: bool) -> float:
        """Return how long it takes from the end of the holder's job to the first instruction of the waiter's."""
        holder = Program(self.hold, self.env, self.cwd)
        job_pid = int(holder.line())
        waiter = Program(self.wait, self.env, self.cwd)
        self._await(waiter)
        ended_ns = _kill(holder, job_pid) if is_killed else _release(holder)
        began_ns = waiter.moment_ns()
        waiter.end()
        holder.end()
        return (began_ns - ended_ns) / 1e6

    def _await(self, waiter: Program) -> None:
        if not self.is_polling:
            until(lambda: is_waited_for(self.lock), "a waiter in flock(2)")
            return
        waiter.line()
        until(lambda: _sleeps_with(waiter.pid, self.lock), "a waiter that polls")
        time.sleep(random.uniform(0, DEFAULT_INTERVAL_SECONDS))  # a holder ends at any moment between two looks


def _kill(holder: Program, job_pid: int) -> int:
    os.kill(holder.pid, signal.SIGKILL)
    ended_ns = time.monotonic_ns()  # until the job dies too, it keeps the lock
    os.kill(job_pid, signal.SIGKILL)
    return ended_ns


def _release(holder: Program) -> int:
    holder.let_go()
    return holder.moment_ns()


def _sleeps_with(pid: int, path: Path) -> bool:
    is_asleep = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "S"
    return is_asleep and any(Path(os.readlink(fd)) == path for fd in Path(f"/proc/{pid}/fd").iterdir())


def killed(bench: Bench) -> Row:
    """Measure the hand-off after wrapper and job were killed: the waiter has to look for survivors first."""
    return _beside_flock(bench, "hand-off after SIGKILL", 2.5, is_killed=True)


def released(bench: Bench) -> Row:
    """Measure the hand-off after a job's own end."""
    return _beside_flock(bench, "hand-off at a normal end", 3.5, is_killed=False)


def polled(bench: Bench) -> Row:
    """Measure the hand-off after a kill beside a lock that is polled for."""
    with bench.scratch() as scratch:
        ours = _maintlock(bench, scratch)
        flock = _flock(bench, scratch)
        wait = [sys.executable, "-c", POLLING, flock.lock]
        peer = Locker(flock.lock, flock.hold, wait, flock.env, scratch, is_polling=True)
        ours_ms, peer_ms = _medians(bench.rounds(POLLING_ROUNDS), ours, peer, is_killed=True)
    return Row(what="hand-off after SIGKILL", ours=ours_ms, peer=peer_ms, beside="portalocker", unit="ms", bar=0.05)


def _beside_flock(bench: Bench, what: str, bar: float, *, is_killed: bool) -> Row:
    with bench.scratch() as scratch:
        lockers = _maintlock(bench, scratch), _flock(bench, scratch)
        ours_ms, peer_ms = _medians(bench.rounds(ROUNDS), *lockers, is_killed=is_killed)
    return Row(what=what, ours=ours_ms, peer=peer_ms, beside="flock(1)", unit="ms", bar=bar)


def _medians(rounds: int, *lockers: Locker, is_killed: bool) -> list[float]:
    return medians(rounds, *(partial(locker.handoff_ms, is_killed=is_killed) for locker in lockers))


def _maintlock(bench: Bench, scratch: Path) -> Locker:
    return Locker(
        lock=scratch / "state" / "heavy-maintenance.lock",
        hold=[bench.wrap, "-t", "backup", "--", bench.probe, "hold"],
        wait=[bench.wrap, "-q", "-t", "kbSync", "--wait", "forever", "--", bench.probe, "first"],
        env=bench.env(scratch),
        cwd=scratch,
    )


def _flock(bench: Bench, scratch: Path) -> Locker:
    lock, flock = scratch / "flock.lock", tool("flock")
    lock.touch()
    return Locker(
        lock=lock,
        hold=[flock, lock, bench.probe, "hold"],
        wait=[flock, lock, bench.probe, "first"],
        env=bench.env(scratch),
        cwd=scratch,
    )
