"""What the orchestrator costs while nothing is due, and how soon it starts what is."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench.bench import Bench
from tests.bench.measure import Program, until
from tests.bench.row import Row

IDLE_SECONDS = 30.0
POLL_SECONDS = 0.5
STARTS = 7
PASSES = 10_000
FIRST_PASSES = 100
TASKS = 1000
HELD_BACK = ("summary", "kbSync", "backup", "primary-dev-sync", "dream", "golden-path")
DAEMON = '[daemons.d{}]\ncommand = ["sleep", "100000"]\n'
IDLE_TASK = '[tasks.t{}]\ncommand = ["true"]\ninterval = "1h"\nmatch = "t{}.mjs"\n'
HELD_TASK = '[tasks.{}]\ncommand = ["true"]\ninterval = "1h"\n'

# Passes of the orchestrator itself, with nothing in place of anything: milliseconds, memory, and what was logged.
PASSES_PROGRAM = """
import json, logging, os, sys, time
from statistics import median
from maintlock import config
from maintlock.orchestrator.instance import Instance
from maintlock.orchestrator.loop import Orchestrator

directory, path, passes, first = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
lines = []
class Count(logging.Handler):
    def emit(self, record):
        lines.append(getattr(record, "event", ""))
logging.basicConfig(level=logging.INFO, handlers=[Count()])

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

orchestrator = Orchestrator(config.load(path), directory, Instance(directory))
orchestrator.take_over()
lines.clear()
taken, memory = [], {}
for number in range(1, passes + 1):
    began = time.perf_counter_ns()
    orchestrator.run_pass()
    taken.append(time.perf_counter_ns() - began)
    if number in (first, passes):
        memory[number] = resident()
print(json.dumps({"ms": median(taken) / 1e6, "first": memory[first], "last": memory[passes], "lines": lines}))
"""
# A ledger in which every one of a thousand tasks has just run.
RUNS = """
import sys, time
from maintlock import events, ledger, pending
directory, tasks, now = sys.argv[1], int(sys.argv[2]), time.time()
for number in range(tasks):
    grant = {"lease": "heavy-maintenance", "task": f"t{number}", "lease_id": f"g{number}", "source": "cli"}
    pending.append(directory, [
        events.new("acquired", at=now, fence=number + 1, **grant),
        events.new("released", at=now, fence=number + 1, outcome="completed", seconds=1.0, exit_code=0, **grant),
    ])
ledger.drain(directory, now=now)
"""


def idle(bench: Bench) -> Row:
    """Measure the processor time of an orchestrator with twelve tasks and four daemons, nothing due, a poll every 3 s."""
    text = "".join(IDLE_TASK.format(n, n) for n in range(12)) + "".join(map(DAEMON.format, range(4)))
    with (
        _project(bench, text, tasks=12) as (scratch, env),
        _orchestrating(bench, scratch, env, "--stop-daemons") as program,
    ):
        seconds = IDLE_SECONDS / 3 if bench.is_quick else IDLE_SECONDS
        time.sleep(2.0)  # what a start costs is not meant
        before, began = _cpu_seconds(program.pid), time.monotonic()
        time.sleep(seconds)  # this is what is measured: a time in which nothing happens
        share = (_cpu_seconds(program.pid) - before) / (time.monotonic() - began) * 100
    return Row(
        what="CPU of an idle orchestrator",
        ours=share,
        peer=100.0,
        beside="one core",
        unit="%",
        bar=0.5,
        is_absolute=True,
    )


def passes_over_many(bench: Bench) -> Row:
    """Measure one pass over a thousand tasks of which none is due."""
    with _project(bench, "".join(IDLE_TASK.format(n, n) for n in range(TASKS)), tasks=TASKS) as (scratch, env):
        found = _passes(bench, scratch, env, bench.rounds(200), 1)
    return Row(
        what="one pass over 1000 tasks",
        ours=found["ms"],
        peer=0.0,
        beside="nothing due",
        unit="ms",
        bar=10.0,
        is_absolute=True,
    )


def memory(bench: Bench) -> Row:
    """Measure the memory after ten thousand passes beside that after a hundred, six tasks held back all the time."""
    found = _held_back(bench)
    return Row(
        what="memory after 10 000 passes",
        ours=found["last"] / 2**20,
        peer=found["first"] / 2**20,
        beside="after 100",
        unit="MiB",
        bar=1.1,
    )


def log_lines(bench: Bench) -> Row:
    """Count what is logged in ten thousand passes with the same six tasks held back (R9, L10)."""
    lines = _held_back(bench)["lines"]
    return Row(
        what="log lines in 10 000 passes",
        ours=len(lines),
        peer=len(HELD_BACK),
        beside="held back",
        unit="",
        bar=6,
        is_absolute=True,
    )


def due(bench: Bench) -> Row:
    """Measure how long after the end of somebody else's job a due task works, beyond the poll that has to come first."""
    text = f'poll_interval = "{POLL_SECONDS}s"\n[tasks.due]\ncommand = ["{bench.probe}", "first"]\ninterval = "1s"\nrest = "0s"\n'
    with _project(bench, text) as (scratch, env):
        late = [_late_ms(bench, scratch, env) for _ in range(max(3, bench.rounds(STARTS)))]
    return Row(
        what="due task works, after the lease is free",
        ours=median(late),
        peer=POLL_SECONDS * 1000,
        beside="a poll at most",
        unit="ms",
        bar=POLL_SECONDS * 1000 + 100,
        is_absolute=True,
    )


def _late_ms(bench: Bench, scratch: Path, env: dict[str, str]) -> float:
    holder = Program([bench.wrap, "-t", "other", "--", bench.probe, "hold"], env, scratch)
    holder.line()
    log = scratch / "state" / "logs" / "due.log"
    log.unlink(missing_ok=True)
    with _orchestrating(bench, scratch, env) as program:
        until(lambda: "due is due, but held back" in program.said(), "the task to be held back")
        holder.let_go()
        ended_ns = holder.moment_ns()
        until(lambda: log.exists() and log.read_text().endswith("\n"), "the task to work")
        began_ns = int(log.read_text())
    holder.end()
    until(lambda: not _is_held(bench, env), "the job's end")
    return (began_ns - ended_ns) / 1e6


def _is_held(bench: Bench, env: dict[str, str]) -> bool:
    return (
        b'"state": "free"'
        not in subprocess.run([bench.maintlock, "status", "--json"], env=env, capture_output=True).stdout
    )


_found: dict[str, dict[str, object]] = {}


def _held_back(bench: Bench) -> dict[str, object]:
    """Run ten thousand passes while somebody else has the lease, once for both rows."""
    key = str(bench.directory)
    if key not in _found:
        with _project(bench, "".join(map(HELD_TASK.format, HELD_BACK))) as (scratch, env):
            holder = Program([bench.wrap, "-t", "other", "--", bench.probe, "hold"], env, scratch)
            holder.line()
            try:
                _found[key] = _passes(bench, scratch, env, PASSES, FIRST_PASSES)
            finally:
                holder.end()
    return _found[key]


def _passes(bench: Bench, scratch: Path, env: dict[str, str], passes: int, first: int) -> dict[str, object]:
    arguments = [str(scratch / "state"), str(scratch / "maintlock.toml"), str(passes), str(first)]
    done = subprocess.run(
        [bench.python, "-c", PASSES_PROGRAM, *arguments],
        env=env,
        cwd=scratch,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@contextmanager
def _project(bench: Bench, text: str, *, tasks: int = 0) -> Iterator[tuple[Path, dict[str, str]]]:
    with bench.scratch() as scratch:
        env = bench.env(scratch)
        (scratch / "maintlock.toml").write_text(text)
        (scratch / "state").mkdir(mode=0o700)
        subprocess.run([bench.python, "-c", RUNS, scratch / "state", str(tasks)], env=env, cwd=scratch, check=True)
        yield scratch, env


class _Orchestrating(Program):
    """A running orchestrator; what it logs goes into a file."""

    log: Path

    def said(self) -> str:
        return self.log.read_text()


@contextmanager
def _orchestrating(bench: Bench, scratch: Path, env: dict[str, str], *options: str) -> Iterator[_Orchestrating]:
    log = scratch / "orchestrate.log"
    program = _Orchestrating(
        ["sh", "-c", f'exec "$0" orchestrate "$@" 2> {log}', bench.maintlock, *options], env, scratch
    )
    program.log = log
    try:
        until(lambda: log.exists() and '"started"' in log.read_text(), "the orchestrator")
        yield program
    finally:
        program.popen.terminate()
        program.end()


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process; schedstat counts nanoseconds, proc_pid_stat(5) hundredths of a second."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
