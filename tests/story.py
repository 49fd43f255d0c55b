"""A day in the life of a lease, for the page to tell: `python -m tests.story PICTURE [light|dark] [WIDTH]` takes its picture."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maintlock import config, events
from maintlock_exporter.application import Application, hosts_of
from maintlock_exporter.scene import Scene
from maintlock_exporter.server import Server
from maintlock_exporter.view import Watcher
from tests.browser import browser
from tests.headless import Headless, headless_in
from tests.support import until

LEASE = "heavy-maintenance"
HOUR = 3600.0
HEIGHT = 1120
HELD_SECONDS = 41 * 60.0
CONFIG = """
[tasks.kbSync]
npm_script = "ai:sync-kb"
interval = "30m"
[tasks.summary]
interval = "10m"
[tasks.backup]
interval = "1d"
[tasks.dream]
interval = "6h"
[tasks.golden-path]
interval = "12h"
[tasks.primary-dev-sync]
interval = "10m"
"""
# How many hours ago it began, how many minutes it took, what, from where, and how it ended.
DAY: tuple[tuple[float, float, str, str, str], ...] = (
    *[(23.6 - 2 * i, 14 + 5 * (i % 3), "kbSync", "orchestrator", "completed") for i in range(11)],
    *[(23.2 - i, 3 + i % 4, "summary", "orchestrator", "completed") for i in range(19)],
    *[(22.9 - 3 * i, 6 + i % 5, "primary-dev-sync", "orchestrator", "completed") for i in range(7)],
    (20.1, 58, "dream", "orchestrator", "completed"), (11.8, 74, "dream", "orchestrator", "timed_out"),
    (8.4, 52, "dream", "orchestrator", "completed"), (17.0, 39, "golden-path", "orchestrator", "completed"),
    (5.1, 24, "golden-path", "npm", "stopped"), (14.4, 46, "backup", "npm", "completed"),
    (2.45, 11, "backup", "npm", "failed"),
)  # fmt: skip


def told(now: float) -> list[dict[str, Any]]:
    """Return the events of the day before `now`, oldest first."""
    found, free_at = [], 0.0
    for fence, (ago, minutes, task, source, outcome) in enumerate(sorted(DAY, reverse=True), 1):
        begin = max(now - ago * HOUR, free_at)
        free_at = begin + minutes * 60 + 5
        about = {"task": task, "source": source, "lease_id": f"story-{fence}", "fence": fence, "pid": 4000 + fence}
        end = {"seconds": minutes * 60.0, "outcome": outcome, "exit_code": 1 if outcome == "failed" else None}
        found.append(events.new("acquired", at=begin, lease=LEASE, seconds=0.0, **about))
        found.append(events.new("released", at=begin + minutes * 60, lease=LEASE, **about, **end))
    held_back = {"blocked_by": "primary-dev-sync", "reason_code": "lease-held"}
    back = ((39, "summary"), (29, "summary"), (24, "golden-path"), (19, "summary"), (9, "summary"))
    found += [events.new("deferred", at=now - ago * 60, lease=LEASE, task=task, **held_back) for ago, task in back]
    return sorted(found, key=lambda event: str(event["at"]))


def write_day(directory: Path, now: float) -> None:
    """Put a day's events where the ledger will find them."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [json.dumps(event) + "\n" for event in told(now)]
    (directory / "ledger.pending").write_text("".join(lines), encoding="ascii")


@contextmanager
def held_lock(directory: Path) -> Iterator[Headless]:
    """Give a lock that a job holds, with one that has joined it and two who wait."""
    project = directory.parent / "agent-os"
    project.mkdir()
    (project / "sync").write_text(
        "maintlock-wrap -t kbSync --reason 'after a pull' -- ./index; exit\n", encoding="ascii"
    )
    (project / "index").write_text("#!/bin/sh\necho ready; read x\n", encoding="ascii")
    (project / "index").chmod(0o755)
    with headless_in(directory) as lock:
        about = [
            "-t",
            "primary-dev-sync",
            "--owner",
            "alice@laptop",
            "--reason",
            "scheduled",
            "--source",
            "orchestrator",
        ]
        running = lock.start(*about, "--", "sh", "sync", cwd=project, stdin=-1)
        running.until_line("ready")
        until(lambda: lock.status()["nested"], "who has joined to be on record")
        for task in ("backup", "dream"):
            lock.start("-t", task, "--wait", "forever", "--", "true")
            until(lambda task=task: any(row["task"] == task for row in lock.status()["waiters"]), "the waiter")
        yield lock


@contextmanager
def served(directory: Path, settings: Path, ahead_seconds: float = 0.0) -> Iterator[str]:
    """Serve the page of a state directory, as it will be in a while, and give its address."""
    scene = Scene(directory=str(directory), config=config.load(str(settings)), started_at=time.time())
    watcher = Watcher(scene, clock=lambda: time.time() + ahead_seconds)
    server = Server(("127.0.0.1", 0), Application(watcher, hosts_of("127.0.0.1", [])))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        watcher.keeper.close()


def main() -> None:
    """Take the picture."""
    picture, scheme, width = (*sys.argv[1:], *("light", "1100")[len(sys.argv) - 2 :])
    with tempfile.TemporaryDirectory(prefix="maintlock-") as name:
        settings, directory = Path(name) / "maintlock.toml", Path(name) / "state"
        settings.write_text(CONFIG, encoding="ascii")
        write_day(directory, time.time() + HELD_SECONDS)
        with (
            held_lock(directory),
            served(directory, settings, HELD_SECONDS) as url,
            browser(shutil.which("chromium") or "chromium", Path(name) / "profile") as page,
        ):
            page.show_as(width=int(width), height=HEIGHT, scheme=scheme, is_phone=int(width) < 600)
            page.open(url)
            page.screenshot(Path(picture), is_whole=int(width) < 600)


if __name__ == "__main__":
    main()
