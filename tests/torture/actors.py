"""Who fights over the lease: each kind keeps its places filled until the epoch is over."""

from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import MAINTLOCK, WRAP

HERE = Path(__file__).resolve().parent
PATCHED_WRAP = HERE.parent / "probes" / "patched_wrap.py"
DEFERRED = 9
FAILED = 3
FEWEST_DESCRIPTORS, MOST_DESCRIPTORS = 5, 24


@dataclass(frozen=True)
class Programs:
    """What is run: the product, whole or broken on purpose, and the workers that find that out."""

    worker: Sequence[str]
    patch: str = ""
    has_npm: bool = False
    has_orchestrator: bool = False

    @property
    def wrap(self) -> list[str]:
        """The words before `maintlock-wrap`'s options."""
        return [sys.executable, str(PATCHED_WRAP), self.patch] if self.patch else [WRAP]


@dataclass
class Actor:
    """A program that was started, the leader of a session of its own."""

    kind: str
    popen: subprocess.Popen[bytes]
    struck_by: set[int] = field(default_factory=set)
    code: int | None = None
    has_few_descriptors: bool = False
    began: float = field(default_factory=time.monotonic)
    over: float = float("inf")

    @property
    def pid(self) -> int:
        """Its process, session and group."""
        return self.popen.pid


@dataclass(frozen=True)
class Kind:
    """A kind of contender: how many at once, seconds between two, and its command line in a directory."""

    places: int
    pause_seconds: float
    argv: Callable[[Programs, Path, random.Random], list[str]]
    is_wrap: bool = True  # its process is the wrapper, and becomes the grant's
    lasts: bool = False  # it goes on until its standard input is closed
    is_switched_on: Callable[[Programs], bool] = lambda _: True


def _worker(programs: Programs, directory: Path, rng: random.Random, role: str) -> list[str]:
    work = rng.randrange(60_000, 200_000) if rng.random() < 0.04 else rng.randrange(4_000)
    left = rng.choices((0, rng.randrange(1, 30_000), -rng.randrange(1, 300_000)), (0.8, 0.16, 0.04))[0]
    code = FAILED if rng.random() < 0.05 else 0
    return [*programs.worker, str(directory), role, str(work), str(left), str(code)]


def _options(rng: random.Random) -> list[str]:
    chosen: list[str] = []
    if rng.random() < 0.25:
        chosen += ["--close"]
    if rng.random() < 0.05:
        chosen += ["--max-runtime", "50ms", "--stop-grace", "50ms"]
    if rng.random() < 0.05:
        chosen += ["--hold-until", "tree"]
    return chosen


def _wrap(programs: Programs, task: str, *options: str) -> list[str]:
    return [*programs.wrap, "-t", task, "-E", str(DEFERRED), *options, "--"]


def _try(programs: Programs, directory: Path, rng: random.Random) -> list[str]:
    return [*_wrap(programs, "try", *_options(rng)), *_worker(programs, directory, rng, "try")]


def _close(programs: Programs, directory: Path, rng: random.Random) -> list[str]:
    """Return a job that has no descriptor of the lock, and lasts: its wrapper killed, only the survivors' search sees it."""
    guarded = _wrap(programs, "close", "--close", "-w", "3s")
    return [*guarded, *programs.worker, str(directory), "close", str(rng.randrange(40_000, 120_000)), "0", "0"]


def _wait(programs: Programs, directory: Path, rng: random.Random) -> list[str]:
    patience = rng.choice(("300ms", "3s", "forever"))
    return [*_wrap(programs, "wait", "-w", patience, *_options(rng)), *_worker(programs, directory, rng, "wait")]


def _exec(programs: Programs, directory: Path, rng: random.Random) -> list[str]:
    patience = rng.choice((["-n"], ["-w", "1s"]))
    return [*_wrap(programs, "exec", "--exec", *patience), *_worker(programs, directory, rng, "exec")]


def _nested(programs: Programs, directory: Path, rng: random.Random) -> list[str]:
    inner = [*_wrap(programs, "inner"), *_worker(programs, directory, rng, "inner")]
    other = [*_wrap(programs, "other", "-w", "1s", *rng.choice(([], ["--exec"])))]
    other += _worker(programs, directory, rng, "other")
    own = _worker(programs, directory, rng, "outer")
    script = rng.choice(
        ("{inner}; {own}", "{inner} & {own}; wait $!", "{inner} & {other} & {own}; wait", "{own}; {inner}")
    )
    text = script.format(inner=shlex.join(inner), other=shlex.join(other), own=shlex.join(own))
    return [*_wrap(programs, "nested", "-w", "2s"), "sh", "-c", text]


def _npm(programs: Programs, directory: Path, rng: random.Random) -> list[str]:
    project = directory / f"project-{rng.getrandbits(32):08x}"
    project.mkdir()
    options = [*rng.choice((["-n"], ["-w", "1s"])), *_options(rng)]
    guarded = [*_wrap(programs, "npm", *options), *_worker(programs, directory, rng, "npm")]
    (project / "package.json").write_text(json.dumps({"private": True, "scripts": {"heavy": shlex.join(guarded)}}))
    return ["npm", "--prefix", str(project), "--silent", "run", "heavy"]


def _hold(programs: Programs, directory: Path, rng: random.Random) -> list[str]:
    seed = str(rng.getrandbits(32))
    return [sys.executable, str(HERE / "holder.py"), "hold", str(directory), seed, programs.patch, *programs.worker]


def _coprocess(programs: Programs, directory: Path, rng: random.Random) -> list[str]:
    """Return a client that has `maintlock hold` beside it again and again, and carries the lock itself."""
    seed = str(rng.getrandbits(32))
    return [sys.executable, str(HERE / "holder.py"), "coprocess", str(directory), seed, "", *programs.worker]


def _look(_programs: Programs, _directory: Path, rng: random.Random) -> list[str]:
    return [MAINTLOCK, *rng.choice((["status", "--json"], ["history", "--json", "--limit", "5"]))]


def _orchestrator(programs: Programs, directory: Path, rng: random.Random) -> list[str]:
    tasks = [
        f"[tasks.{name}]\ninterval = '300ms'\nrest = '50ms'\n"
        f"command = {json.dumps(_worker(programs, directory, rng, 'orchestrated'))}\n"
        for name in ("first", "second", "third")
    ]
    config = directory / f"orchestrator-{rng.getrandbits(32):08x}.toml"
    config.write_text("poll_interval = '50ms'\n" + "".join(tasks))
    return [MAINTLOCK, "orchestrate", "--config", str(config)]


KINDS: dict[str, Kind] = {
    "try": Kind(2, 0.0, _try),
    "wait": Kind(2, 0.0, _wait),
    "close": Kind(1, 0.3, _close),
    "exec": Kind(1, 0.0, _exec),
    "nested": Kind(1, 0.1, _nested),
    "npm": Kind(1, 0.3, _npm, is_wrap=False, is_switched_on=lambda programs: programs.has_npm),
    "hold": Kind(4, 0.1, _hold, is_wrap=False, lasts=True),
    "coprocess": Kind(1, 0.1, _coprocess, is_wrap=False, lasts=True),
    "look": Kind(1, 0.7, _look, is_wrap=False),
    "orchestrator": Kind(
        1, 0.3, _orchestrator, is_wrap=False, is_switched_on=lambda programs: programs.has_orchestrator
    ),
}


def with_few_descriptors(argv: list[str], rng: random.Random) -> list[str]:
    """Return a command line under a limit that may be too low for it."""
    number = rng.randrange(FEWEST_DESCRIPTORS, MOST_DESCRIPTORS)
    return ["sh", "-c", f'ulimit -n {number}; exec "$@"', "sh", *argv]
