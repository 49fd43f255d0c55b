"""Whether who waits is served before who only tries."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import hammer
from tests.bench.bench import Bench, tool
from tests.bench.measure import Program, until, waiting_pids
from tests.bench.row import Row

ROUNDS = 25
WAITERS = 5


@dataclass(frozen=True)
class Queue:
    """A lock, how to hold it, how to wait for it, and who tries to get past those who wait."""

    lock: Path
    hold: list[str | Path]
    wait: list[str | Path]
    hammer: list[str | Path]
    letters: str
    log: Path
    attempts: Path
    env: Mapping[str, str]
    cwd: Path

    def grants(self) -> list[str]:
        """Return who was served, from the end of a holder to the last of `WAITERS` who waited before that."""
        holder = Program(self.hold, self.env, self.cwd)
        holder.line()
        self.log.write_text("", encoding="ascii")
        hammerer = Program(self.hammer, self.env, self.cwd)
        hammerer.line()
        waiters = [Program(self.wait, self.env, self.cwd) for _ in range(WAITERS)]
        pids = {waiter.pid for waiter in waiters}
        until(lambda: pids <= set(waiting_pids(self.lock)), "all of the waiters in flock(2)")
        self._await_new_attempts()
        holder.end()
        for waiter in waiters:
            waiter.end()
        hammerer.end()
        served = self.log.read_text(encoding="ascii").split()
        last = len(served) - served[::-1].index("waiter")
        return served[:last]

    def _await_new_attempts(self) -> None:
        """Wait until no attempt is left that may have begun before the last waiter came, and so have a place before it."""
        begun = self.attempts.stat().st_size
        until(lambda: set(self.attempts.read_text(encoding="ascii")[begun:]) == set(self.letters), "new attempts")


def by_program(bench: Bench) -> Row:
    """Measure how many grants made while somebody waits go to programs that only try, started one after another."""
    return _overtakings(bench, "who waits overtaken by programs", "wrap")


def by_library(bench: Bench) -> Row:
    """Measure the same with a loop around `hold()`, which tries as fast as it can."""
    return _overtakings(bench, "…overtaken by hold() in a loop", "hold")


def _overtakings(bench: Bench, what: str, kind: str) -> Row:
    with bench.scratch() as scratch:
        queues = [_maintlock(bench, scratch, kind), _flock(bench, scratch)]
        rounds = [[queue.grants() for queue in queues] for _ in range(bench.rounds(ROUNDS))]
    ours, peer = (_overtaking_percent(served) for served in zip(*rounds, strict=True))
    return Row(what=what, ours=ours, peer=peer, beside="flock(1)", unit="%", bar=1.0, is_absolute=True)


def _overtaking_percent(rounds: Sequence[list[str]]) -> float:
    served = [who for grants in rounds for who in grants]
    return 100 * served.count("hammerer") / len(served)


def _maintlock(bench: Bench, scratch: Path, kind: str) -> Queue:
    log, attempts, state = scratch / "ours.log", scratch / "ours.attempts", scratch / "state"
    wrap: list[str | Path] = [bench.wrap, "-q", "-t", "kbSync"]
    note: list[str | Path] = ["--", bench.probe, "log", log]
    return Queue(
        lock=state / "heavy-maintenance.lock",
        hold=[*wrap, "--", bench.probe, "hold"],
        wait=[*wrap, "--wait", "forever", *note, "waiter"],
        hammer=[bench.python, hammer.__file__, kind, state, log, attempts, *wrap, "--no-wait", *note, "hammerer"],
        letters=hammer.LETTERS[kind],
        log=log,
        attempts=attempts,
        env=bench.env(scratch),
        cwd=scratch,
    )


def _flock(bench: Bench, scratch: Path) -> Queue:
    log, attempts, lock, flock = scratch / "peer.log", scratch / "peer.attempts", scratch / "flock.lock", tool("flock")
    lock.touch()
    return Queue(
        lock=lock,
        hold=[flock, lock, bench.probe, "hold"],
        wait=[flock, lock, bench.probe, "log", log, "waiter"],
        hammer=[sys.executable, hammer.__file__, "flock", lock, log, attempts],
        letters=hammer.LETTERS["flock"],
        log=log,
        attempts=attempts,
        env=bench.env(scratch),
        cwd=scratch,
    )
