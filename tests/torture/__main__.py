"""`python -m tests.torture --seconds N --seed S`: fight, strike, check, epoch by epoch; exit 1 if anything was wrong."""

from __future__ import annotations

import argparse
import collections
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from maintlock import process
from tests.support import MAINTLOCK
from tests.torture import checks, story
from tests.torture.actors import HERE, KINDS, Programs
from tests.torture.ring import remove, ring_of

SHORTEST_SECONDS, LONGEST_SECONDS = 3.0, 12.0
IN_NAMESPACE = "TORTURE_IN_MOUNT_NAMESPACE"
MAX_SHOWN = 12
LONG_SECONDS, ENOUGH = 600.0, 10_000  # so many acquisitions show that a long run did not just wait
TABLE = ("overlap", "stuck", "lost", "invented", "doubled", "fence", "counters", "files", "fault")
ALWAYS = "lambda fd, *, shared=False: True"
BROKEN = {
    "lock": f"take('maintlock.flock', 'try_lock', {ALWAYS})",
    "survivors": "take('maintlock.survivors', 'find', lambda *_args, **_options: [])",
    "history": "import os; import maintlock.pending as pending; real = pending.append; "
    "take('maintlock.pending', 'append', lambda *told: os.urandom(1)[0] < 8 or real(*told))",
}


def main() -> int:
    """Run epochs for as long as asked, then tell what they came to."""
    asked = _arguments()
    if not sys.platform.startswith("linux"):
        print("torture: needs Linux: its witness looks into /proc", file=sys.stderr)
        return 2
    has_mounts = _enter_mount_namespace()
    seed = asked.seed if asked.seed is not None else random.SystemRandom().getrandbits(32)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("torture: told to end"))  # nothing that we started outlives us
    print(f"torture: seed {seed}, {asked.seconds:g} s", flush=True)
    process.become_subreaper()  # so that what we kill the parents of is ours to bury
    root = Path(tempfile.mkdtemp(prefix="maintlock-torture-"))
    programs, shim = _programs(root, asked.broken), _compiled(root, "clock", "-shared", "-fPIC")
    for text in _left_out(programs, shim, has_mounts=has_mounts):
        print(f"torture: left out: {text}", flush=True)
    bout = _Bout(root, programs, shim, has_mounts=has_mounts)
    told = story.epochs(seed, _epoch_seconds(asked.seconds), asked.only or story.BY_DEFAULT)
    bout.run(told, asked.seconds, until_overlap=asked.broken in {"lock", "survivors"})
    bout.print_table()
    if asked.seconds >= LONG_SECONDS and not asked.only and not asked.broken and bout.counts["acquisitions"] < ENOUGH:
        bout.problems["too few acquisitions"] += 1
        print(f"torture: fewer than {ENOUGH:,} acquisitions")
    if not bout.problems:
        remove(root)
        return 0
    again = f"make torture SECONDS={asked.seconds:g} SEED={seed}"
    if asked.broken or asked.only:
        chosen = [
            *(["--broken", asked.broken] if asked.broken else []),
            *(f"--only={name}" for name in asked.only or ()),
        ]
        again = f"python -m tests.torture --seconds {asked.seconds:g} --seed {seed} {shlex.join(chosen)}"
    if asked.broken or asked.discard:
        remove(root)
    print(f"torture: FAILED{'' if asked.broken or asked.discard else f'; kept: {root}'}; again: {again}")
    return 1


class _Bout:
    """All epochs of one run."""

    def __init__(self, root: Path, programs: Programs, shim: str | None, *, has_mounts: bool) -> None:
        self.root = root
        self.programs = programs
        self.shim = shim
        self.has_mounts = has_mounts
        self.began = time.monotonic()
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: collections.Counter[str] = collections.Counter()
        self.problems: collections.Counter[str] = collections.Counter()
        self.excused: collections.Counter[str] = collections.Counter()

    def run(self, told: Iterator[story.Epoch], seconds: float, *, until_overlap: bool) -> None:
        """Run one epoch after the other, until the time is over or something was wrong: two at work, if only that counts."""
        while time.monotonic() - self.began < seconds:
            epoch = next(told)
            directory = self.root / f"epoch-{epoch.number}"
            with ring_of(directory, epoch, self.programs, shim=self.shim, has_mounts=self.has_mounts) as ring:
                ring.fight(until_overlap=until_overlap)
                ring.settle()
                found = checks.find(ring)
                self._count(epoch, found, ring.tolls)
            if self.problems["overlap"] if until_overlap else self.problems:
                return
            remove(directory)

    def _count(self, epoch: story.Epoch, found: checks.Findings, tolls: collections.Counter[str]) -> None:
        self.counts["acquisitions"] += found.acquisitions
        self.counts["deferrals"] += found.deferrals
        self.faults += tolls
        self.excused += found.excused
        self.problems.update(problem.kind for problem in found.problems)
        verdict = "ok" if not found.problems else f"{len(found.problems)} problems"
        lasted = time.monotonic() - self.began
        print(
            f"{lasted:7.1f} s  epoch {epoch.number:3}  {epoch.name:12}"
            f"{found.acquisitions:6} acquisitions {found.deferrals:6} deferrals {tolls.total():4} faults  {verdict}",
            flush=True,
        )
        for problem in found.problems[:MAX_SHOWN]:
            print(f"           {problem.kind}: {problem.text}", flush=True)
        if len(found.problems) > MAX_SHOWN:
            print(f"           and {len(found.problems) - MAX_SHOWN} more", flush=True)

    def print_table(self) -> None:
        """Print what it all came to."""
        rows = [*self.counts.items(), *sorted(self.faults.items()), *((name, self.problems[name]) for name in TABLE)]
        rows += [(f"excused: {name}", count) for name, count in sorted(self.excused.items())]
        lasted = time.monotonic() - self.began
        print(f"\n{lasted:.0f} s, {self.counts['acquisitions'] / lasted:.0f} acquisitions/s")
        print("\n".join(f"{count:8}  {name}" for name, count in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description="Fight over one lease while faults strike."
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, at least (60)")
    parser.add_argument("--seed", type=int, help="what all that is chosen follows from (random)")
    parser.add_argument("--broken", choices=sorted(BROKEN), help="break the product on purpose: this must be found out")
    parser.add_argument(
        "--only", action="append", choices=sorted(story.FAMILIES), help="only such epochs; can be repeated"
    )
    parser.add_argument("--discard", action="store_true", help="keep no directory on failure")
    return parser.parse_args()


def _epoch_seconds(seconds: float) -> float:
    """Return how long an epoch lasts: so that each family has its turn, ending and checks included."""
    return min(LONGEST_SECONDS, max(SHORTEST_SECONDS, seconds / len(story.FAMILIES) - 1.5))


def _enter_mount_namespace() -> bool:
    """Start anew where mounts are our own, and end with us; tell whether we are there, which is not allowed everywhere."""
    own = ["unshare", "--mount", "--propagation", "private"]
    trial = [*own, "mount", "-t", "tmpfs", "torture", "/mnt"]
    is_there = IN_NAMESPACE in os.environ
    if is_there or os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("mount") is None:
        return is_there
    if subprocess.run(trial, check=False, stderr=subprocess.DEVNULL).returncode == 0:
        os.environ[IN_NAMESPACE] = "1"
        os.execvp(own[0], [*own, sys.executable, "-m", "tests.torture", *sys.argv[1:]])
    return False


def _programs(root: Path, broken: str | None) -> Programs:
    compiled = _compiled(root, "worker")
    return Programs(
        worker=[compiled] if compiled else [sys.executable, str(HERE / "worker.py")],
        patch=BROKEN[broken] if broken else "",
        has_npm=shutil.which("npm") is not None,
        has_orchestrator=_has_orchestrator(),
    )


def _compiled(root: Path, name: str, *options: str) -> str | None:
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    target = root / name
    done = subprocess.run([compiler, "-O1", *options, "-o", str(target), str(HERE / f"{name}.c")], check=False)
    return str(target) if done.returncode == 0 else None


def _has_orchestrator() -> bool:
    asked = [MAINTLOCK, "orchestrate", "--help"]
    return subprocess.run(asked, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def _left_out(programs: Programs, shim: str | None, *, has_mounts: bool) -> list[str]:
    missing = [f"{name}: not here" for name, kind in KINDS.items() if not kind.is_switched_on(programs)]
    if shim is None:
        missing.append("clock jumps, and the worker in C: no C compiler (cc)")
    if not has_mounts:
        missing.append("disk full and read-only: mounts need root and unshare(1)")
    return missing


if __name__ == "__main__":
    sys.exit(main())
