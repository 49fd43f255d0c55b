"""What the wrapper weighs while the job works."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.bench.bench import Bench, tool
from tests.bench.measure import Program, medians, until
from tests.bench.row import Row

ROUNDS = 5
MIB = 1 << 20
SAME_LOOKS = 20


def wrapper(bench: Bench) -> Row:
    """Measure the memory that is the wrapper's alone (USS): what would be free again without it."""
    with bench.scratch() as scratch:
        env = bench.env(scratch)

        def uss(argv: list[str | Path]) -> float:
            program = Program([*argv, bench.probe, "hold"], env, scratch)
            program.line()
            found = _settled_uss(program.pid)
            program.end()
            return found / MIB

        ours, peer = medians(
            bench.rounds(ROUNDS),
            lambda: uss([bench.wrap, "-t", "kbSync", "--"]),
            lambda: uss([tool("flock"), scratch / "flock.lock"]),
        )
    return Row(
        what="memory of the wrapper", ours=ours, peer=peer, beside="flock(1)", unit="MiB", bar=12.0, is_absolute=True
    )


def _settled_uss(pid: int) -> int:
    """Return the bytes of a process that sleeps and has stopped changing: the job starts before the wrapper is done."""
    process = psutil.Process(pid)
    seen: list[int] = []

    def is_settled() -> bool:
        seen.append(process.memory_full_info().uss if process.status() == psutil.STATUS_SLEEPING else -len(seen))
        return len(seen) >= SAME_LOOKS and len(set(seen[-SAME_LOOKS:])) == 1

    until(is_settled, "the wrapper to wait for its job")
    return seen[-1]
