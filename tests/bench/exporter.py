"""What a scrape costs, and that it costs the others nothing."""

from __future__ import annotations

import http.client
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from maintlock import events, ledger
from tests.bench.bench import Bench
from tests.bench.measure import medians
from tests.bench.row import Row

LEASE = "heavy-maintenance"
ROUNDS = 60
FEW_EVENTS = 1000
MANY_EVENTS = 1_000_000
MANY_EVENTS_QUICK = 100_000
TASKS = 30
HOSTILE_NAMES = 1000
ATTEMPTS = 20_000
SCRAPES = 10_000
FIRST_SCRAPES = 100
KIB = 1024
# A day's worth of grants and deferrals, again and again, older and older; what they count stands in tables of their own.
OLD_EVENTS = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO events (id, at, event, task, lease, lease_id, source, seconds, outcome)
SELECT 'old' || i, ? - i, CASE i % 3 WHEN 0 THEN 'acquired' WHEN 1 THEN 'released' ELSE 'deferred' END, 'task' || (i % 30),
  'heavy-maintenance', 'old' || (i / 3), 'npm', 1.0, CASE i % 3 WHEN 1 THEN 'completed' END FROM n
"""
# Serves as many series as it is told, which never change.
PEER = """
import sys, threading
from prometheus_client import CollectorRegistry, Gauge, start_http_server
registry = CollectorRegistry()
gauges = [Gauge(f"static_{name}", "Static.", ["lease", "task"], registry=registry) for name in range(40)]
for number in range(int(sys.argv[1])):
    gauges[number % 40].labels("heavy-maintenance", f"task{number // 40}").set(number)
server, _ = start_http_server(0, "127.0.0.1", registry)
print(server.server_port, flush=True)
sys.stdin.read()
"""
# What a reader does that probes the lock instead of looking at the kernel's table.
PROBE = """
import fcntl, sys, threading
file = open(sys.argv[1], "rb")
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
over = threading.Event()
print("ready", flush=True)
while not over.is_set():
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        pass
"""

SCRAPE = """
import sys, urllib.request
while True:
    urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics").read()
"""


class Served:
    """A program that serves metrics on a port of this machine."""

    def __init__(self, popen: subprocess.Popen[str], port: int) -> None:
        self.pid = popen.pid
        self.port = port

    def body(self) -> bytes:
        """Scrape once."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"a scrape was answered with {answer.status}")
        return body

    def ms(self) -> float:
        """Return how long a scrape takes."""
        began = time.perf_counter_ns()
        self.body()
        return (time.perf_counter_ns() - began) / 1e6

    def series(self) -> int:
        """Return how many series there are."""
        return sum(not line.startswith(b"#") for line in self.body().splitlines())

    def rss_mib(self) -> float:
        """Return its resident memory."""
        rows = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return int(next(row for row in rows if row.startswith("VmRSS:")).split()[1]) / KIB


def events_kept(bench: Bench) -> Row:
    """Measure a scrape with a long history beside one with a short one."""
    many = MANY_EVENTS_QUICK if bench.is_quick else MANY_EVENTS
    with bench.scratch() as scratch:
        states = {count: scratch / str(count) for count in (many, FEW_EVENTS)}
        for count, state in states.items():
            _fill(state, count)
        with _exporter(bench, scratch, states[many]) as long, _exporter(bench, scratch, states[FEW_EVENTS]) as short:
            ours, peer = medians(bench.rounds(ROUNDS), long.ms, short.ms)
    return Row(
        what=f"scrape with {many} events", ours=ours, peer=peer, beside=f"{FEW_EVENTS} events", unit="ms", bar=1.3
    )


def tasks(bench: Bench) -> Row:
    """Measure a scrape with 30 tasks beside one of as many series that never change."""
    with bench.scratch() as scratch:
        state = scratch / "state"
        _fill(state, FEW_EVENTS)
        with _exporter(bench, scratch, state) as exporter:
            argv = [str(bench.python), "-c", PEER, str(exporter.series())]
            with _served(argv, bench.env(scratch), scratch, int) as static:
                ours, peer = medians(bench.rounds(ROUNDS), exporter.ms, static.ms)
    return Row(what=f"scrape with {TASKS} tasks", ours=ours, peer=peer, beside="static series", unit="ms", bar=3.0)


def series(bench: Bench) -> Row:
    """Count the series after jobs have borne 1,000 names that nobody configured."""
    with bench.scratch() as scratch:
        state = scratch / "state"
        _fill(state, FEW_EVENTS)
        with _exporter(bench, scratch, state) as exporter:
            before = exporter.series()
            _append(state, [event for number in range(HOSTILE_NAMES) for event in _hostile(number)])
            after = exporter.series()
    return Row(
        what=f"series, {HOSTILE_NAMES} strange names", ours=after, peer=before, beside="none", unit="", bar=4000,
        is_absolute=True,
    )  # fmt: skip


def deferrals(bench: Bench) -> Row:
    """Count the attempts that stand back because somebody scrapes in a tight loop, beside a reader that probes the lock."""
    import fcntl

    import maintlock

    attempts = bench.rounds(ATTEMPTS)
    with bench.scratch() as scratch:
        state, lock = scratch / "state", scratch / "flock.lock"
        lock.touch()
        _fill(state, FEW_EVENTS)
        held_back = probed = 0
        with _exporter(bench, scratch, state) as exporter, _running([sys.executable, "-c", SCRAPE, str(exporter.port)]):
            for _ in range(attempts):
                try:
                    with maintlock.hold("task0", state_dir=state):
                        pass
                except maintlock.LeaseHeld:
                    held_back += 1
        with _running([sys.executable, "-c", PROBE, str(lock)]) as prober, lock.open("rb") as file:
            assert prober.stdout is not None
            prober.stdout.readline()
            for _ in range(attempts):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    fcntl.flock(file, fcntl.LOCK_UN)
                except BlockingIOError:
                    probed += 1
    return Row(
        what=f"deferrals of {attempts}, scraped", ours=held_back, peer=probed, beside="LOCK_SH probe", unit="", bar=0,
        is_absolute=True,
    )  # fmt: skip


def memory(bench: Bench) -> Row:
    """Measure the exporter's memory after many scrapes beside that after a few; without tasks, so that it does not take all day."""
    with bench.scratch() as scratch:
        state = scratch / "state"
        _fill(state, FEW_EVENTS)
        with _exporter(bench, scratch, state, task_count=1) as exporter:
            for _ in range(FIRST_SCRAPES):
                exporter.body()
            first = exporter.rss_mib()
            for _ in range(bench.rounds(SCRAPES) - FIRST_SCRAPES):
                exporter.body()
            last = exporter.rss_mib()
    return Row(
        what=f"memory after {bench.rounds(SCRAPES)} scrapes", ours=last, peer=first, beside=f"after {FIRST_SCRAPES}",
        unit="MiB", bar=1.1,
    )  # fmt: skip


# Ledgers


def _fill(state: Path, count: int) -> None:
    """Make a ledger with that many events, of which every task has some in its counters."""
    state.mkdir(mode=0o700)
    now = time.time()
    _append(state, [event for number in range(TASKS) for event in _grant(f"task{number}", f"id{number}", now)])
    ledger.drain(str(state), now=now)
    with sqlite3.connect(state / "ledger.db") as db:
        db.execute(OLD_EVENTS, (count - 2 * TASKS, now))
    db.close()


def _append(state: Path, told: list[dict[str, object]]) -> None:
    with (state / "ledger.pending").open("a", encoding="ascii") as file:
        file.writelines(json.dumps(event) + "\n" for event in told)
    (state / "ledger.pending").chmod(0o600)


def _grant(task: str, lease_id: str, at: float, **more: object) -> list[dict[str, object]]:
    about = {"task": task, "lease_id": lease_id, "fence": 1, "source": "npm", **more}
    return [
        events.new("acquired", at=at - 9, lease=LEASE, seconds=0.1, **about),
        events.new("released", at=at, lease=LEASE, seconds=9.0, outcome="completed", **about),
    ]


def _hostile(number: int) -> list[dict[str, object]]:
    name = f"strange{number}"
    back = events.new("deferred", at=time.time(), lease=LEASE, task=name, blocked_by=name, reason_code=name)
    return [*_grant(name, name, time.time(), source=name), back]


# Programs


@contextmanager
def _exporter(bench: Bench, scratch: Path, state: Path, task_count: int = TASKS) -> Iterator[Served]:
    config = scratch / f"{state.name}.toml"
    tables = [f'[tasks.task{number}]\ninterval = "1h"\nmatch = "heavy{number}.mjs"\n' for number in range(task_count)]
    config.write_text("".join(tables), encoding="ascii")
    argv = [str(bench.prefix / "bin" / "maintlock-exporter"), "--listen", "127.0.0.1:0", "--config", str(config)]
    env = {**bench.env(scratch), "MAINTLOCK_STATE_DIR": str(state)}
    with _served(argv, env, scratch, lambda line: int(json.loads(line)["port"])) as found:
        yield found


@contextmanager
def _served(argv: list[str], env: Mapping[str, str], cwd: Path, port_in: Callable[[str], int]) -> Iterator[Served]:
    with _running(argv, env, cwd) as popen:
        assert popen.stdout is not None
        yield Served(popen, port_in(popen.stdout.readline()))


@contextmanager
def _running(
    argv: list[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    popen = subprocess.Popen(
        argv, env=env, cwd=cwd, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield popen
    finally:
        popen.kill()
        popen.communicate()
