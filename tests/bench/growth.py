"""How cost grows with what is there: waiters, events, tasks, locks of others. Each row is many beside one, or beside none."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.exporter import MANY_EVENTS, MANY_EVENTS_QUICK, OLD_EVENTS
from tests.bench.measure import Program, medians, until, waiting_pids, whole_ms
from tests.bench.row import Row

WAITERS = 256
FEW_EVENTS = 1
TASKS = 1000
LOCKS = 2000
ROUNDS = 20
# Threads that queue as waiters do: `hold()` of different processes would need 256 interpreters.
QUEUE = """
import sys, threading
import maintlock
def wait(number):
    with maintlock.hold(f"w{number}", wait="forever", state_dir=sys.argv[1]):
        pass
threads = [threading.Thread(target=wait, args=(n,)) for n in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
print("queued", flush=True)
for thread in threads:
    thread.join()
"""
# Holds locks on many files until its standard input closes.
LOCK_MANY = """
import fcntl, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
files = [open(f"{sys.argv[1]}/foreign{number}", "w") for number in range(int(sys.argv[2]))]
for file in files:
    fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def waiters(bench: Bench) -> Row:
    """Measure `status` with 256 requests in the queue beside one with a single one."""
    with (
        bench.scratch() as few,
        bench.scratch() as many,
        _queued(bench, few, 1) as one,
        _queued(bench, many, WAITERS) as all_of_them,
    ):
        ours, peer = medians(bench.rounds(ROUNDS), _status(bench, many, all_of_them), _status(bench, few, one))
    return Row(what=f"status, {WAITERS} waiters", ours=ours, peer=peer, beside="one", unit="ms")


def events_kept(bench: Bench) -> Row:
    """Measure the last 50 rows of a history of a million events, and of a single one."""
    count = MANY_EVENTS_QUICK if bench.is_quick else MANY_EVENTS
    with bench.scratch() as few, bench.scratch() as many:
        for scratch, events in ((few, FEW_EVENTS), (many, count)):
            _remember(bench, scratch, events)
        ours, peer = medians(bench.rounds(ROUNDS), *[_history(bench, scratch) for scratch in (many, few)])
    return Row(what=f"history --limit 50 of {count:,} events", ours=ours, peer=peer, beside="one", unit="ms")


def tasks(bench: Bench) -> Row:
    """Measure a whole guarded `true` with a thousand tasks configured beside one."""
    with bench.scratch() as few, bench.scratch() as many:
        for scratch, count in ((few, 1), (many, TASKS)):
            names = range(count)
            text = "".join(f'[tasks.t{n}]\ncommand = ["true"]\nnpm_script = "s{n}"\ninterval = "1h"\n' for n in names)
            (scratch / "maintlock.toml").write_text(text)
        ours, peer = medians(bench.rounds(ROUNDS), *[_wrapped(bench, scratch) for scratch in (many, few)])
    return Row(what=f"maintlock-wrap -- true, {TASKS} tasks", ours=ours, peer=peer, beside="one", unit="ms")


def foreign_locks(bench: Bench) -> Row:
    """Measure `status` of a held lease while others hold 2000 locks on this machine, beside none."""
    with bench.scratch() as scratch:
        env = bench.env(scratch)
        holder = Program([bench.wrap, "-t", "holder", "--", bench.probe, "hold"], env, scratch)
        holder.line()
        try:
            (peer,) = medians(bench.rounds(ROUNDS), _status(bench, scratch, env))
            with _locked(scratch, LOCKS):
                (ours,) = medians(bench.rounds(ROUNDS), _status(bench, scratch, env))
        finally:
            holder.end()
    return Row(what=f"status beside {LOCKS} locks of others", ours=ours, peer=peer, beside="none", unit="ms")


def _status(bench: Bench, scratch: Path, env: dict[str, str]) -> Callable[[], float]:
    return partial(whole_ms, ["sh", "-c", f"{bench.maintlock} status --json > /dev/null"], env, scratch)


def _history(bench: Bench, scratch: Path) -> Callable[[], float]:
    env = bench.env(scratch)
    return partial(whole_ms, ["sh", "-c", f"{bench.maintlock} history --limit 50 --json > /dev/null"], env, scratch)


def _wrapped(bench: Bench, scratch: Path) -> Callable[[], float]:
    return partial(whole_ms, [bench.wrap, "-t", "t0", "--", "true"], bench.env(scratch), scratch)


def _remember(bench: Bench, scratch: Path, events: int) -> None:
    env = bench.env(scratch)
    make = "import maintlock\nwith maintlock.hold('t'): pass"
    subprocess.run([bench.python, "-c", make], env=env, cwd=scratch, check=True)
    with sqlite3.connect(scratch / "state" / "ledger.db") as database:
        database.execute(OLD_EVENTS, (events, events))
    database.close()


@contextmanager
def _queued(bench: Bench, scratch: Path, count: int) -> Iterator[dict[str, str]]:
    env, state = bench.env(scratch), scratch / "state"
    holder = Program([bench.wrap, "-t", "holder", "--", bench.probe, "hold"], env, scratch)
    holder.line()
    queue = Program([bench.python, "-c", QUEUE, state, str(count)], env, scratch)
    try:
        queue.line()
        until(lambda: len(waiting_pids(state / "heavy-maintenance.lock")) == count, f"{count} waiters")
        yield env
    finally:
        holder.end()
        queue.end()


@contextmanager
def _locked(scratch: Path, count: int) -> Iterator[None]:
    """Have another program hold locks on many files that are none of ours."""
    program = Program([sys.executable, "-c", LOCK_MANY, str(scratch), str(count)], dict(os.environ), scratch)
    try:
        program.line()
        yield
    finally:
        program.end()
