from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

import maintlock
from maintlock import config, events, ledger, migrations, outside, pending, process
from maintlock.errors import UnavailableError
from maintlock.orchestrator import record
from maintlock.orchestrator.health import read_health
from maintlock.paths import Places
from maintlock.times import rfc3339
from maintlock_exporter import page
from maintlock_exporter.application import Application, hosts_of
from maintlock_exporter.scene import Scene
from maintlock_exporter.server import WAIT_SECONDS, Server
from maintlock_exporter.view import Watcher
from tests.headless import Headless, headless_in
from tests.support import BIN, MAINTLOCK, PATIENCE_SECONDS, Lock, Running, until

EXPORTER = str(BIN / "maintlock-exporter")
LEASE = "heavy-maintenance"
CONFIG = '[tasks.kbSync]\ninterval = "30m"\n[tasks.backup]\n'


@pytest.fixture
def headless(tmp_path: Path) -> Iterator[Headless]:
    """Give a lock whose jobs end with the test."""
    with headless_in(tmp_path / "state") as lock:
        yield lock


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Give a configuration."""
    path = tmp_path / "maintlock.toml"
    path.write_text(CONFIG)
    return path


class Exporter:
    """An exporter that runs, and what it answers."""

    def __init__(self, port: int, running: Running | None = None) -> None:
        self.port = port
        self.running = running

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        """Ask once."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def send(self, content: bytes) -> bytes:
        """Send bytes as they are, and return the answer."""
        with self.connect() as connection:
            with suppress(OSError):
                connection.sendall(content)
            found = b""
            with suppress(ConnectionResetError):
                while chunk := connection.recv(65536):
                    found += chunk
            return found

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def series(self) -> dict[str, float]:
        """Scrape."""
        answer, body = self.get("/metrics")
        assert answer.status == 200
        rows = [line.rpartition(" ") for line in body.decode().splitlines() if not line.startswith("#")]
        return {_short(name): float(value) for name, _, value in rows}


def _short(name: str) -> str:
    """Return a series' name without what they all have in common."""
    lease = f'lease="{LEASE}"'
    return name.removeprefix("maintlock_").replace(f",{lease}", "").replace(f"{lease},", "").replace(lease, "")


def started(
    lock: Lock, settings: Path, *arguments: str, listen: str = "127.0.0.1:0"
) -> tuple[Exporter, dict[str, Any]]:
    """Start the exporter, and return it and its first log line once it listens."""
    argv = ["--listen", listen, "--config", str(settings), *arguments]
    running = lock.start(*argv, program=EXPORTER, stderr=subprocess.STDOUT)
    told = json.loads(running.until_line('"event": "listening"'))
    return Exporter(told["port"], running), told


@contextmanager
def served(directory: Path, settings: Path, **options: Any) -> Iterator[tuple[Exporter, Server]]:
    """Serve from this process, with other bounds."""
    directory.mkdir(mode=0o700, exist_ok=True)
    watcher = Watcher(Scene(directory=str(directory), config=config.load(str(settings)), started_at=time.time()))
    server = Server(("127.0.0.1", 0), Application(watcher, hosts_of("127.0.0.1", [])), **options)
    server.daemon_threads, server.block_on_close = False, True  # no thread of it outlives the test
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Exporter(server.server_port), server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        watcher.keeper.close()


@pytest.fixture
def serve(headless: Headless) -> Iterator[Callable[[Path], Exporter]]:
    """Give `serve(settings)`: an exporter that runs in this process, which starts much faster than the program."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(served(headless.directory, settings))[0]


@pytest.fixture
def exporter(serve: Callable[[Path], Exporter], settings: Path) -> Exporter:
    """Give an exporter on an existing state directory."""
    return serve(settings)


# The program


def run(lock: Lock, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the exporter to its end."""
    return subprocess.run([EXPORTER, *arguments], env=lock.env(), capture_output=True, text=True, timeout=60)


def test_once_prints_the_metrics(lock: Lock, settings: Path) -> None:
    """`--once` prints what a scrape would get; a state directory that is not there is no fault, and is not made."""
    done = run(lock, "--once", "--config", str(settings))
    found = {family.name: family for family in text_string_to_metric_families(done.stdout)}
    assert (done.returncode, done.stderr) == (0, "")
    assert found["maintlock_up"].samples[0].value == 1
    assert not lock.directory.exists()


def test_once_into_a_closed_pipe(lock: Lock, settings: Path) -> None:
    """A reader that has seen enough, as `head`, is no error."""
    command = f"{EXPORTER} --once --config {settings} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=lock.env(), capture_output=True, text=True, timeout=60)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")


def test_a_textfile_is_written_whole(lock: Lock, settings: Path, tmp_path: Path) -> None:
    """`--textfile` replaces the file by rename, readable for node_exporter, and leaves nothing else in the directory."""
    target = tmp_path / "textfiles" / "maintlock.prom"
    target.parent.mkdir()
    target.write_text("old")
    old = target.open()
    assert run(lock, "--textfile", str(target), "--config", str(settings)).returncode == 0
    assert (old.read(), os.listdir(target.parent), target.stat().st_mode & 0o777) == ("old", ["maintlock.prom"], 0o644)
    old.close()
    assert target.read_text().startswith("# HELP maintlock_up ")


def test_a_textfile_that_cannot_be_written(lock: Lock, settings: Path, tmp_path: Path) -> None:
    """A directory that is not there is named, with exit 73 and no traceback."""
    lock.directory.mkdir(mode=0o700)
    done = run(lock, "--textfile", str(tmp_path / "nowhere" / "x.prom"), "--config", str(settings))
    assert done.returncode == 73
    assert len(done.stderr.splitlines()) == 1 and "nowhere/x.prom" in done.stderr


@pytest.mark.parametrize(
    ("code", "word", "arguments"),
    [
        (64, "--listen", ["--listen", "9817"]),
        (64, "--listen", ["--listen", "127.0.0.1:70000"]),
        (64, "--listen", ["--listen", "127.0.0.1:" + "9" * 5000]),
        (64, "--help", ["--nonsense"]),
        (73, "cannot listen", ["--listen", "203.0.113.1:0"]),
        (78, "nowhere.toml", ["--config", "nowhere.toml"]),
    ],
)
def test_bad_arguments(lock: Lock, code: int, word: str, arguments: list[str]) -> None:
    """What cannot be is refused with the contract's exit code and one line."""
    done = run(lock, "--config", "none", *arguments)
    assert done.returncode == code
    assert word in done.stderr and "Traceback" not in done.stderr


def test_version_and_help(lock: Lock) -> None:
    """`--version` and `--help` answer and exit 0."""
    assert run(lock, "--version").stdout == f"maintlock-exporter {maintlock.__version__}\n"
    told = run(lock, "--help").stdout
    for option in ("--listen", "--state-dir", "--config", "--allow-host", "--once", "--textfile"):
        assert option in told


def test_it_stops_cleanly(headless: Headless, settings: Path) -> None:
    """TERM and INT end it with exit 0 and a last JSON line, a half-open connection notwithstanding."""
    for number in (signal.SIGTERM, signal.SIGINT):
        found, told = started(headless, settings)
        assert (told["level"], told["path"], told["address"]) == ("INFO", str(headless.directory), "127.0.0.1")
        with found.connect() as half_open:
            half_open.sendall(b"GET / HT")
            assert found.running is not None
            found.running.signal(number)
            code, out, _ = found.running.end()
        assert (code, json.loads(out)["event"]) == (0, "stopped")


def test_a_configuration_that_changes(headless: Headless, settings: Path) -> None:
    """HUP has the configuration read anew, for metrics and page; an invalid one is reported, and the old one stays."""
    exporter, _ = started(headless, settings)
    running = exporter.running
    assert running is not None
    settings.write_text('[tasks.dream]\ninterval = "1d"\n')
    running.signal(signal.SIGHUP)
    running.until_line("reloaded")
    found = exporter.series()
    assert 'runs_total{task="dream"}' in found and 'runs_total{task="kbSync"}' not in found
    assert "<td>dream" in exporter.get("/")[1].decode()
    settings.write_text("[tasks.dream]\nintervall = 1\n")
    running.signal(signal.SIGHUP)
    told = json.loads(running.until_line("config_invalid"))
    assert "intervall" in told["message"] and exporter.series().keys() == found.keys()
    running.signal(signal.SIGTERM)
    assert running.end()[0] == 0


def test_it_warns_when_others_can_reach_it(headless: Headless, settings: Path) -> None:
    """Bound elsewhere than to loopback it warns, and answers only the names that it was told."""
    running = headless.start("--listen", ":0", "--allow-host", "BOX", program=EXPORTER, stderr=subprocess.STDOUT)
    warning = json.loads(running.until_line("exposed"))
    found = Exporter(json.loads(running.until_line("listening"))["port"])
    assert (warning["level"], warning["address"]) == ("WARNING", "0.0.0.0")
    assert "--allow-host" in warning["message"]
    assert [found.get("/-/healthy", Host=name)[0].status for name in ("box:9817", "evil.example")] == [200, 421]


def test_it_listens_on_ipv6(headless: Headless, settings: Path) -> None:
    """`[::1]:PORT` is loopback too."""
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("there is no IPv6 here")
    _, told = started(headless, settings, listen="[::1]:0")
    with socket.create_connection(("::1", told["port"]), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(f"GET /-/healthy HTTP/1.1\r\nHost: [::1]:{told['port']}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.0 200 OK")


def test_a_port_that_is_taken(headless: Headless, settings: Path, exporter: Exporter) -> None:
    """A port that somebody else has is named, with exit 73."""
    done = run(headless, "--listen", f"127.0.0.1:{exporter.port}")
    assert (done.returncode, "choose another with --listen" in done.stderr) == (73, True)


# What it answers


def test_text_openmetrics_gzip_and_name(exporter: Exporter) -> None:
    """`/metrics` is text, OpenMetrics or gzip as asked for, and `name[]` chooses."""
    plain, body = exporter.get("/metrics")
    assert plain.getheader("Content-Type", "").startswith("text/plain; version=0.0.4")
    open_answer, open_body = exporter.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert open_answer.getheader("Content-Type", "").startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics_families(open_body.decode())}
    assert names == {family.name for family in text_string_to_metric_families(body.decode())}
    packed, packed_body = exporter.get("/metrics", Accept_Encoding="gzip")
    assert packed.getheader("Content-Encoding") == "gzip"
    assert gzip.decompress(packed_body).startswith(b"# HELP maintlock_up ")
    _, chosen = exporter.get("/metrics?name[]=maintlock_up&name[]=maintlock_waiters")
    assert {family.name for family in text_string_to_metric_families(chosen.decode())} == {
        "maintlock_up",
        "maintlock_waiters",
    }


def test_a_holder_and_who_waits(headless: Headless, exporter: Exporter) -> None:
    """Metrics, JSON and page tell of the holder, a joined job and a waiter, and of nobody afterwards (R10, R7)."""
    holder = headless.hold(
        "kbSync", "--source", "npm", script="maintlock-wrap -t backup -- sh -c 'echo ready; read x; true'; exit"
    )
    waiter = headless.start("-t", "backup", "--wait", "forever", "--", "true")
    until(lambda: (now := headless.status())["waiters"] and now["nested"], "the waiter and who has joined")
    found = exporter.series()
    assert found["lease_held{}"] == found["lease_nesting_depth{}"] == found["waiters{}"] == 1
    assert found['lease_state{maintlock_lease_state="held"}'] == 1
    assert found['lease_holder_info{source="npm",task="kbSync"}'] == 1
    assert found["lease_holder_pid{}"] == holder.pid
    assert found["lease_holder_resident_memory_bytes{}"] > 1 << 20
    assert 0 < time.time() - found["lease_acquired_timestamp_seconds{}"] < 100
    assert json.loads(exporter.get("/api/v1/status")[1])["holder"]["task"] == "kbSync"
    assert "kbSync has the lease" in exporter.get("/")[1].decode()
    holder.popen.stdin.close()
    assert holder.popen.wait() == 0 and waiter.popen.wait() == 0
    found = until(
        lambda: (now := exporter.series())['runs_total{task="backup"}'] == 2 and now, "both runs of the backup"
    )
    assert (found["lease_held{}"], found["waiters{}"], found["lease_holder_pid{}"]) == (0, 0, 0)
    assert found['nested_runs_total{parent_task="kbSync",task="backup"}'] == 1


def test_a_deferral_is_no_success(headless: Headless, exporter: Exporter) -> None:
    """A deferral raises its own counters and the streak, and leaves last run and last success alone (L3)."""
    assert headless.wrap("-t", "backup", "--", "true").returncode == 0
    before = exporter.series()
    holder = headless.hold("kbSync")
    for _ in range(3):
        assert headless.wrap("-t", "backup", "--", "true").returncode == 0
    found = exporter.series()
    assert found['deferrals_total{reason="lease-held",task="backup"}'] == 3
    assert found['blocked_deferrals_total{blocking_task="kbSync",task="backup"}'] == 3
    assert found['task_consecutive_deferrals{task="backup"}'] == 3
    for name in ("task_last_success_timestamp_seconds", "task_last_run_timestamp_seconds", "runs_total"):
        assert found[f'{name}{{task="backup"}}'] == before[f'{name}{{task="backup"}}'] > 0
    holder.popen.kill()


def test_counters_go_on_after_a_restart(headless: Headless, settings: Path) -> None:
    """Another exporter goes on counting where the one before it stopped."""
    first, _ = started(headless, settings)
    for code in ("0", "3"):
        headless.wrap("-t", "kbSync", "--", "sh", "-c", f"exit {code}")
    before = first.series()
    assert first.running is not None
    first.running.signal(signal.SIGTERM)
    first.running.end()
    second, _ = started(headless, settings)
    after = second.series()
    counters = {name for name in before if "_total" in name or "_bucket" in name or name.endswith(("_count", "_sum"))}
    assert {name: before[name] for name in counters} == {name: after[name] for name in counters}
    assert (after['runs_total{task="kbSync"}'], after['run_failures_total{task="kbSync"}']) == (2, 1)


def test_health_and_readiness(headless: Headless, exporter: Exporter) -> None:
    """`/-/healthy` is about the exporter, `/-/ready` about what it reads."""
    assert [exporter.get(path)[0].status for path in ("/-/healthy", "/-/ready")] == [200, 200]
    headless.directory.rename(headless.directory.with_name("away"))
    answer, body = exporter.get("/-/ready")
    assert (exporter.get("/-/healthy")[0].status, answer.status) == (200, 503)
    assert b"maintlock doctor" in body and b"state" in body


def test_headers_of_the_page(exporter: Exporter) -> None:
    """The page allows its one style sheet and nothing else, to nobody's frame, and is not kept."""
    answer, body = exporter.get("/")
    policy = answer.getheader("Content-Security-Policy", "")
    assert (
        policy.startswith("default-src 'none'; style-src 'nonce-") and "unsafe" not in policy and "script" not in policy
    )
    assert (answer.getheader("X-Content-Type-Options"), answer.getheader("Cache-Control")) == ("nosniff", "no-store")
    assert answer.getheader("X-Frame-Options") == "DENY"
    assert exporter.get("/")[0].getheader("Content-Security-Policy") != policy, "a nonce is used once"
    head, nothing = exporter.get("/", "HEAD")
    assert (head.status, nothing) == (200, b"") and body


# Bad requests


@pytest.mark.parametrize(
    ("status", "method", "path", "host"),
    [
        (404, "GET", "/nothing", "localhost"),
        (404, "GET", "/metrics/", "localhost"),
        (404, "GET", "/../etc/passwd", "localhost"),
        (404, "GET", "/%00", "localhost"),
        (405, "POST", "/metrics", "localhost"),
        (405, "DELETE", "/", "localhost"),
        (405, "BREW", "/metrics", "localhost"),
        (200, "HEAD", "/metrics", "localhost"),
        (421, "GET", "/metrics", "evil.example"),
        (421, "GET", "/api/v1/status", "127.0.0.1.evil.example:9817"),
        (421, "GET", "/nothing", "evil.example"),
    ],
)
def test_the_right_status(exporter: Exporter, status: int, method: str, path: str, host: str) -> None:
    """Unknown paths, methods and foreign hosts each get their own status."""
    assert exporter.get(path, method, Host=host)[0].status == status


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (431, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n"),
        (
            431,
            b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"x" * 60000 + b"\r\nY: " + b"y" * 60000 + b"\r\n\r\n",
        ),
        (431, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
        (414, b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
        (400, b"GET / HTTP/x\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n"),
        (421, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"),
        (405, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000000),
        (200, b"GET /-/healthy HTTP/1.0\r\n\r\n"),
    ],
    ids=lambda value: value[:12].decode("latin-1").split()[0] if isinstance(value, bytes) else str(value),
)
def test_bytes_that_are_no_good_request(exporter: Exporter, status: int, request_bytes: bytes) -> None:
    """Heads of a megabyte, bodies, and what is no HTTP at all are answered with the right status, and do no harm."""
    answer = exporter.send(request_bytes)
    assert f" {status} ".encode() in answer.partition(b"\n")[0]
    assert exporter.get("/-/healthy")[0].status == 200


def test_two_hundred_at_once(tmp_path: Path, settings: Path) -> None:
    """Two hundred clients at once each get their 200, while fifty half-open ones hang on."""
    with served(tmp_path / "state", settings, wait_seconds=PATIENCE_SECONDS) as (exporter, _):
        half_open = [exporter.connect() for _ in range(50)]
        for connection in half_open:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: loc")
        with ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(lambda _: exporter.get("/metrics"), range(200)))
        for connection in half_open:
            connection.close()
    assert [answer.status for answer, _ in answers] == [200] * 200
    assert all(
        body.rstrip().rpartition(b"\n")[2].startswith(b"maintlock_scrape_duration_seconds") for _, body in answers
    )


def test_more_half_open_than_it_can_bear(tmp_path: Path, settings: Path) -> None:
    """However many connections hang on, a new one is answered: the one that was waited for the longest is closed."""
    with served(tmp_path / "state", settings) as (exporter, server):
        server.max_connections = 8
        half_open = [exporter.connect() for _ in range(30)]
        for connection in half_open:
            connection.sendall(b"GET / HTTP/1.1\r\n")
        assert exporter.get("/metrics")[0].status == 200
        with suppress(ConnectionResetError):  # what it had sent may not have been read by then
            assert half_open[0].recv(1) == b"", "the oldest one was closed"
        for connection in half_open:
            connection.close()


def test_a_client_has_only_so_long(tmp_path: Path, settings: Path) -> None:
    """A client that sends its request byte by byte, and one that never takes the answer, are left in the end."""
    with served(tmp_path / "state", settings, wait_seconds=0.5) as (exporter, server):
        slow, deaf = exporter.connect(), exporter.connect()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(OSError):
            for _ in range(1000):
                slow.sendall(b"G")
                time.sleep(0.01)  # not to synchronise: this is the slowness that is tested
        until(lambda: not server._live, "both to be left")
        server.wait_seconds = WAIT_SECONDS  # we may be slow too
        assert exporter.get("/-/healthy")[0].status == 200
        slow.close()
        deaf.close()


# Bad input


def damage(directory: Path, kind: str) -> None:
    """Damage what the exporter reads."""
    database = directory / "ledger.db"
    if kind == "torn":
        for ending in ("-wal", "-shm"):
            database.with_name(f"ledger.db{ending}").unlink(missing_ok=True)
        database.write_bytes(database.read_bytes()[:5000])
    elif kind == "no database":
        database.write_bytes(b"x" * 5000)
    elif kind == "newer":
        with sqlite3.connect(database) as db:
            db.execute(f"PRAGMA user_version = {len(migrations.MIGRATIONS) + 7}")
        db.close()
    elif kind == "fifo":
        database.unlink()
        os.mkfifo(database)
    elif kind == "symlink":
        database.rename(directory / "elsewhere.db")
        database.symlink_to(directory / "elsewhere.db")


def failed(found: Mapping[str, float]) -> set[str]:
    """Return the collectors that have failed."""
    prefix = 'scrape_collector_success{collector="'
    return {
        name.removeprefix(prefix).removesuffix('"}')
        for name, value in found.items()
        if name.startswith(prefix) and not value
    }


def told_of_the_ledger(found: Mapping[str, float]) -> list[str]:
    """Return the series that only the ledger can tell."""
    names = ("waiters", "oldest_waiter", "lease_nesting_depth", "collision_active", "task_", "events_dropped")
    return [name for name in found if name.startswith(names) or "_total{" in name or "_bucket{" in name]


@pytest.mark.parametrize("kind", ["torn", "no database", "newer", "fifo", "symlink"])
def test_a_bad_ledger_is_said(headless: Headless, exporter: Exporter, kind: str) -> None:
    """With a ledger that is torn, hostile or of a newer schema `up` is 0, its collectors have failed, and the rest is told."""
    headless.wrap("-t", "kbSync", "--", "true")
    ledger.drain(str(headless.directory), now=time.time())
    assert exporter.series()["up"] == 1
    damage(headless.directory, kind)
    found = exporter.series()
    assert found["up"] == 0
    assert failed(found) >= {"presence", "tasks", "counters", "collisions"} and "build" not in failed(found)
    assert told_of_the_ledger(found) == []
    answer, body = exporter.get("/")
    assert answer.status == 200 and b"ledger.db" in body and b"next: <code>maintlock doctor" in body
    assert b"Nobody held it" not in body and b"Nothing has happened" not in body
    assert exporter.get("/-/ready")[0].status == 503


LOCKER = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA locking_mode = EXCLUSIVE"); db.execute("BEGIN EXCLUSIVE"); db.execute("UPDATE meta SET value = value")
print("ready", flush=True); os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_ledger_locked_by_a_stopped_process(headless: Headless, settings: Path) -> None:
    """A stopped process that keeps the ledger locked makes no scrape wait for it; the next one after its end is whole."""
    headless.wrap("-t", "kbSync", "--", "true")
    ledger.drain(str(headless.directory), now=time.time())
    locker = headless.python(LOCKER, str(headless.directory / "ledger.db"))
    locker.until_line("ready")
    exporter, _ = started(headless, settings)
    found = exporter.series()  # answered although the lock is not freed before the end of this test's patience
    assert found["up"] == 0 and locker.popen.poll() is None
    assert found['lease_state{maintlock_lease_state="free"}'] == 1
    locker.popen.kill()
    locker.popen.wait()
    assert exporter.series()["up"] == 1


@pytest.mark.parametrize(
    "content", ["", "{", "null", '{"schema": 1}', "\0" * 100, '{"task": "<script>alert(1)</script>"}']
)
def test_a_bad_sidecar_is_said(headless: Headless, exporter: Exporter, content: str) -> None:
    """Under a sidecar that is torn or hostile the lease is still held, and its holder unknown (L12)."""
    headless.hold("kbSync")
    until(lambda: headless.sidecar()["job_pid"])
    (headless.directory / f"{LEASE}.json").write_text(content)
    found = exporter.series()
    assert (found["lease_held{}"], found["up"]) == (1, 1)
    assert found['lease_holder_info{source="other",task="other"}'] == 0
    answer, body = exporter.get("/")
    assert answer.status == 200 and b"Held by an unknown owner" in body and b"<script" not in body


def test_a_state_directory_that_goes_and_comes_back(headless: Headless, exporter: Exporter) -> None:
    """While the state directory is gone `up` is 0 and nothing of it is told, no zeros either; once it is back, all is again."""
    headless.wrap("-t", "kbSync", "--", "true")
    ledger.drain(str(headless.directory), now=time.time())
    before = exporter.series()
    away = headless.directory.with_name("away")
    headless.directory.rename(away)
    found = exporter.series()
    assert (found["up"], before["up"], headless.directory.exists()) == (0, 1, False)
    assert failed(found) == {"lease", "presence", "tasks", "counters", "collisions"}
    assert told_of_the_ledger(found) == [] and not [name for name in found if name.startswith("lease_")]
    away.rename(headless.directory)
    after = exporter.series()
    assert (after["up"], failed(after), after.keys()) == (1, set(), before.keys())
    counters = [name for name in before if "_total{" in name]
    assert [after[name] for name in counters] == [before[name] for name in counters]


def test_the_page_of_a_state_directory_that_is_gone(headless: Headless, exporter: Exporter) -> None:
    """Without the state directory that it has seen, the page claims nothing, and says what to run."""
    headless.directory.rmdir()
    answer, body = exporter.get("/")
    text = body.decode()
    assert answer.status == 200
    assert "state: is gone" in text and "next: <code>maintlock doctor" in text
    assert '<span class="pill unknown">unknown</span>' in text and ">free<" not in text
    for claim in ("Nobody has the lease", "Nobody held it", "Nothing has happened"):
        assert claim not in text
    assert b"state: is gone" in exporter.get("/-/ready")[1]
    assert json.loads(exporter.get("/api/v1/status")[1])["state"] == "free", "as `status --json` says"


def test_a_state_directory_that_was_never_there(headless: Headless, settings: Path) -> None:
    """Before the first job has made the state directory all is well, and all series are at 0, so that no count is missed."""
    exporter, _ = started(headless, settings)
    before = exporter.series()
    assert (before["up"], failed(before), before['runs_total{task="kbSync"}']) == (1, set(), 0)
    assert exporter.get("/-/ready")[0].status == 200
    text = exporter.get("/")[1].decode()
    assert "Nobody has the lease" in text and '<div class="trouble">' not in text
    assert not headless.directory.exists()
    headless.wrap("-t", "kbSync", "--", "true")
    after = exporter.series()
    assert (after["up"], after['runs_total{task="kbSync"}']) == (1, 1)
    assert after.keys() == before.keys()
    headless.directory.rename(headless.directory.with_name("away"))
    gone = exporter.series()
    assert gone["up"] == 0 and {"tasks", "counters"} <= failed(gone)


def test_a_state_directory_that_cannot_be_looked_for(
    tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can tell whether there is a state directory, it cannot be read: that is no new installation."""
    scene = Scene(directory=str(tmp_path / "state"), config=config.load(str(settings)), started_at=time.time())
    monkeypatch.setattr(os, "lstat", Mock(side_effect=PermissionError(13, "Permission denied")))
    assert Watcher(scene).look().trouble == f"{tmp_path / 'state'}: permission denied"


def test_a_textfile_before_the_first_job(lock: Lock, settings: Path, tmp_path: Path) -> None:
    """What writes text files is started anew each time: where there is no state directory everything is at 0."""
    target = tmp_path / "maintlock.prom"
    assert run(lock, "--textfile", str(target), "--config", str(settings)).returncode == 0
    runs = f'\nmaintlock_runs_total{{lease="{LEASE}",task="kbSync"}} 0.0\n'
    assert "\nmaintlock_up 1.0\n" in target.read_text() and runs in target.read_text()


def test_a_job_that_works_on_without_its_state_directory(headless: Headless, exporter: Exporter) -> None:
    """A job whose state directory is removed under it is told of, beside what cannot be read."""
    headless.hold("kbSync")
    headless.directory.rename(headless.directory.with_name("away"))
    found = exporter.series()
    assert found['lease_state{maintlock_lease_state="orphaned"}'] == found["lease_held{}"] == 1
    assert failed(found) == {"presence", "tasks", "counters", "collisions"}
    text = exporter.get("/")[1].decode()
    assert "still running" in text
    assert "state: is gone" in text
    headless.directory.with_name("away").rename(headless.directory)


def test_one_bad_lease_is_its_own(headless: Headless, serve: Callable[[Path], Exporter], tmp_path: Path) -> None:
    """A lock file that is not trusted costs its own lease, in metrics and on the page, and says what to run."""
    settings = tmp_path / "maintlock.toml"
    settings.write_text(CONFIG + '[tasks.train]\nlease = "gpu"\n')
    headless.hold("kbSync")
    (headless.directory / "gpu.lock").symlink_to(tmp_path / "elsewhere")
    exporter = serve(settings)
    found = exporter.series()
    assert found["lease_held{}"] == 1 and found['lease_holder_info{source="cli",task="kbSync"}'] == 1
    assert found['runs_total{lease="gpu",task="train"}'] == 0
    assert [name for name in found if name.startswith(("lease_", "waiters")) and "gpu" in name] == []
    assert (found["up"], failed(found)) == (0, {"lease", "presence", "collisions"})
    answer, body = exporter.get("/")
    text = body.decode()
    assert answer.status == 200 and "kbSync has the lease" in text
    assert "gpu.lock: is a symlink" in text and '<span class="pill unknown">unknown</span>' in text


def test_a_page_that_cannot_be_made_refreshes_itself(tmp_path: Path, settings: Path) -> None:
    """What is answered in place of the page is asked for again like it; nothing else is."""
    with served(tmp_path / "state", settings) as (exporter, server):
        watcher = server.get_app()._watcher
        for error, status in ((UnavailableError("broken"), 503), (ValueError("odd"), 500)):
            watcher.look = Mock(side_effect=error)
            assert [(answer.status, answer.getheader("Refresh")) for answer, _ in map(exporter.get, ("/", "/-/ready"))] == [
                (status, "5"), (status, None),
            ]  # fmt: skip


def test_a_directory_that_others_could_write(headless: Headless, exporter: Exporter) -> None:
    """A state directory that everybody may write is not trusted: `up` is 0, and the answers say what to run."""
    for ending in (".lock", ".queue"):
        (headless.directory / f"x{ending}").touch(mode=0o600)
    headless.directory.chmod(0o777)
    assert exporter.series()["up"] == 0
    answer, body = exporter.get("/api/v1/status")
    assert answer.status == 503 and b"chmod" in body


# The page


def test_the_holder_is_in_the_timeline_however_long(headless: Headless, exporter: Exporter) -> None:
    """Who has had the lease for more than a day is in the timeline, and so are earlier grants under 9,000 deferrals."""
    held = headless.hold("kbSync")
    until(lambda: headless.sidecar()["job_pid"])
    now = time.time()
    sidecar = headless.directory / f"{LEASE}.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "acquired_at": rfc3339(now - 30 * 3600)}))
    about = {"lease": LEASE, "task": "backup", "lease_id": "earlier"}
    told = [
        events.new("acquired", at=now - 7200, **about),
        events.new("released", at=now - 7000, seconds=200.0, outcome="failed", **about),
    ]
    about = {"lease": LEASE, "task": "summary", "blocked_by": "kbSync", "reason_code": "lease-held"}
    told += [events.new("deferred", at=now - 6000 + number / 2, **about) for number in range(9000)]
    assert pending.append(str(headless.directory), told)
    ledger.drain(str(headless.directory), now=now)
    text = exporter.get("/")[1].decode()
    assert "Nobody held it" not in text
    assert re.search(r'<rect class="bar running" x="0.0" width="100.0"', text)
    assert text.count('<rect class="bar failed"') == 1
    held.popen.kill()


def test_the_last_events_are_shown_however_old(headless: Headless, exporter: Exporter) -> None:
    """The last 20 events are shown whatever their age."""
    old = time.time() - 9 * 86400
    about = {"lease": LEASE, "task": "kbSync", "blocked_by": "backup", "reason_code": "lease-held"}
    assert pending.append(
        str(headless.directory), [events.new("deferred", at=old + number, **about) for number in range(30)]
    )
    text = exporter.get("/")[1].decode()
    assert text.count("stood back for backup") == 20
    assert "Nobody held it." in text


def test_tasks_are_on_the_page_as_health_has_them(tmp_path: Path) -> None:
    """The page tells of each task what `maintlock tasks` does, what only the orchestrator knows included."""
    settings, directory = tmp_path / "maintlock.toml", tmp_path / "state"
    settings.write_text(
        '[tasks.astray]\ncommand = ["x"]\ninterval = "1h"\n[tasks.held]\ncommand = ["x"]\ninbox = "new/*"\n'
        '[tasks.manual]\ninterval = "1h"\n[tasks.periodic]\ncommand = ["x"]\ninterval = "1h"\n[tasks.reading]\ncommand = ["x"]\ninbox = "new/*"\n'
    )
    with served(directory, settings) as (exporter, _):
        told = record.Record(
            identity=process.read_identity(os.getpid()),
            held={"held": record.Held(reason_code="backpressure", blocked_by="astray", since=time.time() - 60)},
            troubles={"start:astray": "cannot be started: /nowhere: no such directory"},
        )
        assert record.write(str(directory), told)
        text = exporter.get("/")[1].decode()
        expected = read_health(Places(directory=str(directory), lease=LEASE), config.load(str(settings)))["tasks"]
    rows = re.findall(r"<tr><td>(\S+?)</td><td>(.*?)</tr>", text, re.DOTALL)
    words = {name: re.sub(r"<[^>]*>|\s+", " ", row) for name, row in rows}
    assert {name: row.split()[0] for name, row in words.items()} == {
        name: task["state"] for name, task in expected.items()
    }
    assert [expected[name]["state"] for name in ("astray", "held")] == ["failing", "deferred"]
    assert {name: re.findall("<time[^>]*>([^<]*)</time>", row)[-1] for name, row in rows} == {
        "astray": "now", "held": "now", "manual": "by hand", "periodic": "now", "reading": "inbox",
    }  # fmt: skip
    assert all((task["detail"] or "") in words[name] for name, task in expected.items())
    assert "cannot be started" in words["astray"] and "astray" in words["held"]


def test_leases_in_use_come_before_free_ones(
    headless: Headless, serve: Callable[[Path], Exporter], tmp_path: Path
) -> None:
    """The default lease stands first, then those that somebody has, then the others by name."""
    settings = tmp_path / "maintlock.toml"
    settings.write_text("".join(f'[tasks.t{name}]\nlease = "{name}"\n' for name in ("a-first", "b-second", "z-last")))
    headless.hold("tz-last", "--lease", "z-last")
    exporter = serve(settings)
    text = exporter.get("/")[1].decode()
    assert re.findall(r'aria-label="lease ([\w-]+)"', text) == [LEASE, "z-last", "a-first", "b-second"]


def test_all_processes_are_counted(headless: Headless, exporter: Exporter) -> None:
    """The page counts all processes of the job, also those that it has no room for."""
    headless.hold("kbSync", script="for i in $(seq 55); do sleep 1000 & done; echo ready; read x")
    shown = int(re.search(r"<h2>Processes <small>(\d+), ", exporter.get("/")[1].decode())[1])
    assert shown == len(headless.status()["holder"]["processes"]) == 57


def test_jobs_inside_one_another(headless: Headless, exporter: Exporter) -> None:
    """The page shows what has joined below what it runs in, and the depth counts the levels, not the jobs (R7)."""
    inner = "maintlock-wrap -t inner -- sh -c 'echo ready; read x'"
    sibling = "maintlock-wrap -t sibling -- sh -c 'exec sleep 1000' & "
    held = headless.hold("kbSync", script=f'{sibling}maintlock-wrap -t backup -- sh -c "{inner}; true"; kill $!; true')
    until(lambda: len(headless.status()["nested"]) == 3, "all to have joined")
    assert exporter.series()["lease_nesting_depth{}"] == 2
    text = exporter.get("/")[1].decode()
    card = re.search(r"Joined the job</h2>(.*?)</ul>", text, re.DOTALL)[1]
    rows = re.findall(r'<span class="what">(<span class="branch">)?.*?(backup|inner|sibling)', card)
    assert sorted(rows) == [("", "backup"), ("", "sibling"), ('<span class="branch">', "inner")]
    held.popen.stdin.close()
    assert held.popen.wait() == 0


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a state directory is named, nobody needs a home: the page names it in its commands."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError))
    scene = Scene(directory=str(tmp_path), config=config.load(None), started_at=time.time())
    assert page.command(scene, "doctor") == f"maintlock doctor --state-dir {tmp_path}"


# Watching


def test_watching_touches_nothing(headless: Headless, exporter: Exporter) -> None:
    """Where nothing was recorded yet, looking makes no file."""
    for path in ("/metrics", "/", "/api/v1/status"):
        assert exporter.get(path)[0].status == 200
    assert list(headless.directory.iterdir()) == []


def test_scraping_in_a_loop_defers_nobody(headless: Headless, settings: Path) -> None:
    """While somebody scrapes without a pause, every attempt to get the free lease gets it."""
    exporter, _ = started(headless, settings)
    over, scrapes = threading.Event(), []

    def scrape() -> None:
        while not over.is_set():
            scrapes.append(exporter.get("/metrics")[0].status)

    thread = threading.Thread(target=scrape)
    thread.start()
    granted = 0
    until(lambda: scrapes, "the first scrape")
    begun = len(scrapes)
    while granted < 300 or len(scrapes) < begun + 3:
        with maintlock.hold("kbSync", state_dir=headless.directory):
            granted += 1
    over.set()
    thread.join()
    assert set(scrapes) == {200}
    assert exporter.series()['deferrals_total{reason="lease-held",task="kbSync"}'] == 0


def until_outside(settings: Path, directory: Path, count: int) -> None:
    """Return when so many heavy processes have been outside the lease for long enough to be told of."""
    tasks = config.load(str(settings)).tasks.values()
    until(
        lambda: len(outside.find(tasks, lambda lease: Places(directory=str(directory), lease=lease))) == count,
        f"{count} heavy processes to be recognised",
    )


def test_a_heavy_process_outside_the_lease(headless: Headless, tmp_path: Path) -> None:
    """A heavy process past the guard is a collision in metrics and on the page, a guarded one is none (L13, R8)."""
    script = tmp_path / f"heavy.{os.getpid()}.{tmp_path.name}.sh"
    script.write_text("echo ready; read x\n")
    settings = tmp_path / "maintlock.toml"
    settings.write_text(f'[tasks.kbSync]\nmatch = "{script.name}"\n')
    headless.start("-t", "kbSync", "--", "sh", str(script), stdin=subprocess.PIPE).until_line("ready")
    with served(headless.directory, settings) as (exporter, _):
        assert exporter.series()['collision_active{kind="unleased_process"}'] == 0
    culprit = headless.start(str(script), program="/bin/sh", stdin=subprocess.PIPE)
    culprit.until_line("ready")
    until_outside(settings, headless.directory, 1)
    with served(headless.directory, settings) as (exporter, _):
        found = exporter.series()
        text = exporter.get("/")[1].decode()
    assert [found[f'collision_active{{kind="{kind}"}}'] for kind in ("unleased_process", "inherited")] == [1, 0]
    assert f"works outside the lease: kbSync (pid {culprit.pid})\n<br>next: <code>maintlock doctor" in text


@pytest.mark.parametrize(("kind", "count"), [("unleased_process", 1), ("inherited", 2)])
def test_what_the_orchestrator_has_told_is_told_once(
    headless: Headless, serve: Callable[[Path], Exporter], tmp_path: Path, kind: str, count: int
) -> None:
    """Heavy processes that the orchestrator has told of are one collision, in metrics and on the page (L13, R8)."""
    script = tmp_path / f"heavy.{os.getpid()}.{tmp_path.name}.sh"
    script.write_text("echo ready; read x\n")
    settings = tmp_path / "maintlock.toml"
    settings.write_text(f'[tasks.kbSync]\nmatch = "{script.name}"\n')
    running = [headless.start(str(script), program="/bin/sh", stdin=subprocess.PIPE) for _ in range(count)]
    for one in running:
        one.until_line("ready")
    until_outside(settings, headless.directory, count)
    subprocess.run([MAINTLOCK, "orchestrate", "--once", "--config", settings], env=headless.env(), check=True)
    exporter = serve(settings)
    found = exporter.series()
    assert {name for name, value in found.items() if name.startswith("collision_active") and value} == {
        f'collision_active{{kind="{kind}"}}'
    }
    text = exporter.get("/")[1].decode()
    assert text.count('<div class="trouble">') == 1
    assert all(f"kbSync (pid {one.pid})" in text for one in running)


def test_daemons(headless: Headless, serve: Callable[[Path], Exporter], tmp_path: Path) -> None:
    """A configured daemon that runs is up, whoever started it, and one that does not is down (R5)."""
    settings, mark = tmp_path / "maintlock.toml", str(tmp_path)
    settings.write_text(
        f'[daemons.chroma]\ncommand = ["{sys.executable}", "-c", "input()", "{mark}"]\n[daemons.mlx]\ncommand = ["{mark}"]\n'
    )
    headless.start("-c", "input()", mark, program=sys.executable, stdin=subprocess.PIPE)
    exporter = serve(settings)
    found = exporter.series()
    assert (found['daemon_up{daemon="chroma"}'], found['daemon_up{daemon="mlx"}']) == (1, 0)


def test_a_daemon_that_has_become_another_program(
    headless: Headless, serve: Callable[[Path], Exporter], tmp_path: Path
) -> None:
    """A daemon that the orchestrator has started is up whatever its command line has become, as under npx (R5)."""
    settings = tmp_path / "maintlock.toml"
    settings.write_text('[daemons.chroma]\ncommand = ["sh", "-c", "exec sleep 100000"]\n')
    subprocess.run([MAINTLOCK, "orchestrate", "--once", "--config", settings], env=headless.env(), check=True)
    exporter = serve(settings)
    assert exporter.series()['daemon_up{daemon="chroma"}'] == 1


HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[31m\u202e{{7*7}}"


def test_hostile_names_on_the_page(headless: Headless, exporter: Exporter, require: Callable[[str], str]) -> None:
    """Whatever owner, reason and command say, the page shows as text, with nothing in it that steers a terminal or a reader."""
    headless.hold("kbSync", "--owner", HOSTILE, "--reason", HOSTILE, script=f"# {HOSTILE}\necho ready; read x")
    text = exporter.get("/")[1].decode()
    assert "<script" not in text and "<img" not in text and "49" not in text.partition("onerror")[2][:60]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\x1b" not in text and "\u202e" not in text
