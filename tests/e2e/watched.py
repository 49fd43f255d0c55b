"""A Prometheus that watches an exporter, and a story that happens meanwhile."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from maintlock.times import epoch_seconds
from tests.protocol import PYTHON, crash, until_gone, until_queued
from tests.support import BIN, PATIENCE_SECONDS, ROOT, Lock, Running, until

GRAFANA = ROOT / "grafana"
EXPORTER = str(BIN / "maintlock-exporter")
BALLAST = 1 << 26
HEAVY = f'ballast = b"x" * {BALLAST}; print("ready", flush=True); input()'
CHROMA, MLX = (f"{seconds}.{os.getpid()}" for seconds in (86399, 86398))  # no other run's daemons are taken for ours
TASKS = f"""
[tasks.backup]
interval = "1d"
[tasks.dream]
interval = "1h"
match = "sandman-without-lease.sh"
[tasks.kbSync]
interval = "30m"
[tasks.primary-dev-sync]
interval = "10m"
[tasks.summary]
interval = "10m"
[tasks.sync-github-workflow]
[daemons.chroma]
command = ["sleep", "{CHROMA}"]
[daemons.mlx]
command = ["sleep", "{MLX}"]
"""

Points = list[tuple[float, float]]
Drawn = dict[str, Points]


def address(running: Running) -> str:
    """Return where a program listens that was told to choose a port, once it does."""

    def listening() -> list[str]:
        found = psutil.Process(running.pid).net_connections("tcp")
        return [f"127.0.0.1:{one.laddr.port}" for one in found if one.status == psutil.CONN_LISTEN]

    (found,) = until(listening, "a port to be listened on")
    return str(found)


def get(url: str, **query: object) -> str:
    """Return what a server on this machine answers; empty while it does not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}?{urllib.parse.urlencode(query)}", timeout=PATIENCE_SECONDS) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@dataclass
class Story:
    """What happened, by those to whom it happened, and a Prometheus that has watched. Times are seconds since the epoch."""

    lock: Lock
    instance: str
    alertmanager: str
    url: str = ""
    began: float = 0.0
    ended: float = 0.0
    waiting_since: float = 0.0
    waited_seconds: float = 0.0

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series that an expression gives now."""
        answer = get(f"{self.url}/api/v1/query", query=expr)
        return list(json.loads(answer)["data"]["result"]) if answer else []

    def seen(self, expr: str) -> None:
        """Return when Prometheus has seen that an expression holds."""
        until(lambda: self.query(expr), expr)

    def draw(self, targets: Sequence[Mapping[str, Any]]) -> Drawn:
        """Return what the queries of a panel give over the whole story, by legend."""
        drawn: Drawn = {}
        for target in targets:
            prefix = f"{target['refId']}: " if len(targets) > 1 and not target["legendFormat"] else ""
            for line, points in self.lines(target):
                legend = prefix + line
                assert legend not in drawn, f"two lines are called {legend}"
                drawn[legend] = points
        return {legend: points for legend, points in drawn.items() if points}

    def lines(self, target: Mapping[str, Any]) -> list[tuple[str, Points]]:
        """Return what one query gives over the whole story: legends, several of which may be the same, and points."""
        found = []
        for series in self.range(target["expr"]):
            labels = series["metric"]
            legend = re.sub(
                r"\{\{(\w+)\}\}", lambda found, labels=labels: labels.get(found[1], ""), target["legendFormat"]
            )
            if target["format"] == "table":
                legend = ", ".join(labels[name] for name in sorted(labels) if name not in {"instance", "lease"})
            values = [(at, float(value)) for at, value in series["values"]]
            found.append((legend, [(at, value) for at, value in values if not math.isnan(value)]))
        return found

    def range(self, expr: str) -> list[dict[str, Any]]:
        """Return an expression's series over the story, as Grafana asks for them with two values chosen for each variable.

        Intervals are as long as the story: its numbers are to be counted, not its rates.
        """
        whole = f"{math.ceil(self.ended - self.began) + 5}s"
        chosen = {"job": "maintlock", "instance": re.escape(self.instance).replace("\\", "\\\\")}
        for name, value in chosen.items():
            expr = expr.replace(f"${name}", f"({value}|another)")
        expr = re.sub(r"\$__(rate_interval|range)|(?<=\[)5m(?=\])", whole, expr)
        # What is seen once is there until the next look, which follows the sooner the later this one was.
        asked = {"query": expr, "start": self.began, "end": self.ended + 1, "step": 0.1}
        answer = until(lambda: get(f"{self.url}/api/v1/query_range", **asked), expr)
        return list(json.loads(answer)["data"]["result"])


class Configured(Lock):
    """A state directory with the configuration of the story."""

    def env(self, **more: str) -> dict[str, str]:
        """Return the environment of a program that uses both."""
        return super().env(MAINTLOCK_CONFIG=str(self.directory.parent / "maintlock.toml"), **more)


@contextmanager
def watched(place: Path, prometheus: str, alertmanager: str) -> Iterator[Story]:
    """Let the story happen in a folder while Prometheus looks; give it with the servers still there to be asked."""
    (place / "maintlock.toml").write_text(TASKS)
    lock = Configured(place / "state")
    lock.directory.mkdir(mode=0o700)
    try:
        story = Story(
            lock=lock, instance=start_exporter(lock), alertmanager=start_alertmanager(lock, alertmanager, place)
        )
        story.url = start_prometheus(lock, prometheus, place, story)
        story.seen(f'maintlock_up{{instance="{story.instance}"}} == 1')
        story.began = time.time()
        tell(story, place)
        story.ended = time.time()
        yield story
    finally:
        lock.close()


def start_exporter(lock: Lock) -> str:
    """Start the exporter, and return where it listens."""
    running = lock.start("--listen", "127.0.0.1:0", program=EXPORTER, stderr=subprocess.STDOUT)
    return f"127.0.0.1:{json.loads(running.until_line('listening'))['port']}"


def start_alertmanager(lock: Lock, program: str, place: Path) -> str:
    """Start an Alertmanager that tells nobody, and return where it listens."""
    (place / "alertmanager.yml").write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    running = lock.start(
        f"--config.file={place / 'alertmanager.yml'}", f"--storage.path={place / 'alertmanager'}", "--cluster.listen-address=",
        "--web.listen-address=127.0.0.1:0", program=program, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return f"http://{address(running)}"


def start_prometheus(lock: Lock, program: str, place: Path, story: Story) -> str:
    """Start a Prometheus with the configuration and the rules that we ship, which only is in more of a hurry."""
    for name in ("prometheus.yml", "rules.yml", "alerts.yml"):
        text = (GRAFANA / "prometheus" / name).read_text()
        text = text.replace("_interval: 15s", "_interval: 1s").replace("offset 5m", "offset 1s")
        text = re.sub(r"\bfor: \d+m", "for: 1s", text)
        text = text.replace("127.0.0.1:9817", story.instance)
        text = text.replace("127.0.0.1:9093", story.alertmanager.removeprefix("http://"))
        (place / name).write_text(text)
    running = lock.start(
        f"--config.file={place / 'prometheus.yml'}", f"--storage.tsdb.path={place / 'prometheus'}",
        "--web.listen-address=127.0.0.1:0", program=program, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return f"http://{address(running)}"


def tell(story: Story, place: Path) -> None:
    """Acquire, defer, wait, nest, fail, crash, replace, collide; each until Prometheus has seen it."""
    lock = story.lock
    lock.start(CHROMA, program="sleep")  # the daemon

    backup = lock.hold(
        "backup", script=f"{PYTHON} -c '{HEAVY}'; maintlock-wrap -t kbSync -- sh -c 'echo nested; read x'; exit 3"
    )
    for _ in range(3):
        assert lock.wrap("-t", "summary", "--", "true").returncode == 0
    story.seen(f"maintlock_lease_holder_resident_memory_bytes > {BALLAST} and maintlock_lease_held == 1")

    dreams = ["sh", "-c", "echo dreaming $$; read x"]
    dream = lock.start("-t", "dream", "--wait", "forever", "--ttl", "2h", "--", *dreams, stdin=subprocess.PIPE)
    until_queued(lock, dream)
    story.waiting_since = epoch(until(lambda: lock.status()["waiters"], "the waiter to be told")[0]["since"])
    lock.wrap("-t", "summary", "--", "true")
    story.seen("maintlock_waiters == 1")

    say(backup, "\n")
    backup.until_line("nested")
    story.seen("maintlock_lease_nesting_depth == 1")
    say(backup, "\n")
    assert backup.end()[0] == 3

    job = int(dream.until_line("dreaming").split()[1])
    story.waited_seconds = lock.sidecar()["waited_seconds"]
    lock.wrap("-t", "summary", "--", "true")
    story.seen('maintlock_lease_holder_info{task="dream"} == 1')
    crash(dream)
    story.seen('maintlock_lease_state{maintlock_lease_state="orphaned"} == 1')
    os.kill(job, signal.SIGKILL)
    until_gone(job)

    sync = lock.hold("kbSync")
    story.seen('maintlock_lease_holder_info{task="kbSync"} == 1')
    say(sync, "\n")
    assert sync.end()[0] == 0

    sync = lock.hold("primary-dev-sync")
    (lock.directory / "heavy-maintenance.lock").unlink()
    lock.wrap("-t", "summary", "--", "true")
    (place / "sandman-without-lease.sh").write_text("read x\n")
    outside = lock.start(str(place / "sandman-without-lease.sh"), program="sh", stdin=subprocess.PIPE)
    story.seen(
        'count(maintlock_collision_active == 1) == 2 and on () maintlock_lease_holder_info{task="primary-dev-sync"} == 1'
    )
    story.seen('count(ALERTS{alertname=~"Maintlock(Collision|LockFileReplaced)", alertstate="firing"}) == 2')
    for running in (sync, outside):
        say(running, "\n")
        assert running.end()[0] == 0
    story.seen('maintlock_runs_total{task="primary-dev-sync"} == 1 and on () maintlock_lease_held == 0')


def say(running: Running, text: str) -> None:
    """Write to a program's standard input."""
    assert running.popen.stdin is not None
    running.popen.stdin.write(text.encode())
    running.popen.stdin.flush()


def epoch(text: str) -> float:
    """Return a time of ours as seconds since the epoch."""
    found = epoch_seconds(text)
    assert found is not None
    return found
