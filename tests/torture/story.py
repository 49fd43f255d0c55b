"""What will be done to whom and when: all of it follows from one seed.

When a fault meets which process is the machine's to say; so a seed tells the same story again, not the same end.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Faults that strike together: how often each, relative to the others, and seconds between two."""

    faults: Mapping[str, float]
    gap_seconds: float = 0.12
    on_small_disk: bool = False
    with_clock: bool = False
    with_few_descriptors: bool = False


KILLS = {
    "kill wrapper": 4.0,
    "kill job": 3.0,
    "kill npm": 1.0,
    "kill hold": 0.5,
    "kill coprocess": 1.0,
    "kill orchestrator": 0.5,
    "kill session": 2.0,
    "kill everything": 0.4,
}
SIGNALS = {
    "stop one": 3.0,
    "stop session": 1.0,
    "terminate wrapper": 2.0,
    "terminate group": 1.0,
    "interrupt wrapper": 0.7,
    "hang up wrapper": 0.5,
    "terminate helper": 0.7,
}
SIDECAR = {"truncate sidecar": 1.0, "delete sidecar": 1.0, "garbage as sidecar": 1.0, "fifo as sidecar": 1.0}
LOCK_FILE = {"unlink lock file": 1.0, "empty lock file": 1.0, "copy of lock file": 1.0, "earlier lock file": 1.0}
LEDGER = {
    "ledger locked by stopped process": 1.0,
    "pending locked by stopped process": 0.5,
    "delete ledger": 1.5,
    "garbage as ledger": 1.5,
    "corrupt page of ledger": 1.0,
}
DISK = {"disk full": 1.0, "read-only": 1.0}


def _little(faults: Mapping[str, float], share: float) -> dict[str, float]:
    total = sum(faults.values())
    return {name: weight * share / total for name, weight in faults.items()}


FAMILIES: dict[str, Family] = {
    "peace": Family({"nothing": 1.0}),
    "kills": Family(KILLS),
    "signals": Family({**SIGNALS, **_little(KILLS, 1.0)}),
    "sidecar": Family({**SIDECAR, **_little(KILLS, 1.5)}, gap_seconds=0.06),
    "lock file": Family({**LOCK_FILE, **_little(KILLS, 1.0)}),
    "ledger": Family({**LEDGER, **_little(KILLS, 1.5)}, gap_seconds=0.06),
    "disk": Family({**DISK, **_little(KILLS, 1.0)}, gap_seconds=0.25, on_small_disk=True),
    "descriptors": Family(_little(KILLS, 1.0), gap_seconds=0.3, with_few_descriptors=True),
    "clock": Family({"clock jumps": 3.0, **_little(KILLS, 1.5)}, with_clock=True),
    "survivors": Family({"kill wrapper beside its job": 1.0}, gap_seconds=0.05),
    "everything": Family({**KILLS, **_little(SIGNALS, 6.0), **SIDECAR, **_little(LEDGER, 1.0)}),
}


SURVIVORS = "survivors"  # only when asked for: nothing finds out sooner that they are not looked for
BY_DEFAULT = tuple(name for name in FAMILIES if name != SURVIVORS)


@dataclass(frozen=True)
class Strike:
    """One fault: when, counted from the epoch's beginning, and a seed for what is left to choose."""

    at_seconds: float
    fault: str
    seed: int


@dataclass(frozen=True)
class Epoch:
    """Some seconds of one family; all checks follow."""

    number: int
    name: str
    seed: int
    seconds: float
    strikes: tuple[Strike, ...]

    @property
    def family(self) -> Family:
        """What strikes in it."""
        return FAMILIES[self.name]


def epochs(seed: int, seconds: float, families: Collection[str] = BY_DEFAULT) -> Iterator[Epoch]:
    """Give epochs without end: every family once, in any order, then all of them again."""
    rng = random.Random(seed)
    number = 0
    while True:
        for name in rng.sample(sorted(families), len(families)):
            number += 1
            yield Epoch(number, name, rng.getrandbits(32), seconds, tuple(_strikes(rng, FAMILIES[name], seconds)))


def _strikes(rng: random.Random, family: Family, seconds: float) -> Iterator[Strike]:
    names, weights = zip(*sorted(family.faults.items()), strict=True)
    at = 0.3 + rng.expovariate(1 / family.gap_seconds)
    while at < seconds:
        yield Strike(at, rng.choices(names, weights)[0], rng.getrandbits(32))
        at += rng.expovariate(1 / family.gap_seconds)
