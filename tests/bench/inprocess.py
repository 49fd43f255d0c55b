"""What the lease costs inside a Python program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.measure import medians
from tests.bench.row import Row

ROUNDS = 1500
MANY_ROUNDS = 20
MANY = 100


def hold(bench: Bench) -> Row:
    """Measure one acquire and release, with line, sidecar and both events; either side names its lock anew each time."""
    with _both(bench) as (ours, peer, _):
        ours_us, peer_us = medians(bench.rounds(ROUNDS), lambda: _us(ours), lambda: _us(peer))
    return Row(what="hold() in process", ours=ours_us, peer=peer_us, beside="filelock", unit="µs", bar=1.5)


def entered(bench: Bench) -> Row:
    """Measure the same with SQLite, which `hold` meets once a second at most: a hundred together, and then entered."""
    from maintlock import ledger

    with _both(bench) as (ours, peer, state):

        def many_of_ours() -> None:
            for _ in range(MANY):
                ours()
            ledger.drain(str(state), now=time.time())

        def many_of_the_peer() -> None:
            for _ in range(MANY):
                peer()

        rounds = bench.rounds(MANY_ROUNDS)
        ours_us, peer_us = medians(rounds, lambda: _us(many_of_ours) / MANY, lambda: _us(many_of_the_peer) / MANY)
        if (state / "ledger.pending").stat().st_size:
            raise RuntimeError("the ledger has not got everything")
    return Row(what="…entered into SQLite at once", ours=ours_us, peer=peer_us, beside="filelock", unit="µs")


@contextmanager
def _both(bench: Bench) -> Iterator[tuple[Callable[[], None], Callable[[], None], Path]]:
    import filelock

    import maintlock

    with bench.scratch() as scratch:
        state, path = scratch / "state", scratch / "filelock.lock"

        def ours() -> None:
            with maintlock.hold("kbSync", state_dir=state):
                pass

        def peer() -> None:
            with filelock.FileLock(path):
                pass

        yield ours, peer, state


def _us(work: Callable[[], None]) -> float:
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / 1000
