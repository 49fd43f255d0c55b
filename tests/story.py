"""A day in the life of a lease, for the page to tell; `python -m tests.story PICTURE` takes its picture.

That of the README has the paths of a home that nobody has, which is made and gone with a mount of our own:
unshare --mount sh -c 'mount -t tmpfs home /home && .venv/bin/python -m tests.story --home /home/ada docs/status-page.png'
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
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
MARGIN = 10
PHONE = 600
# Where the picture ends: what has happened lately follows, and is long.
END = "[...document.querySelectorAll('.card')].find(card => card.querySelector('h2')?.textContent == 'Tasks').getBoundingClientRect().bottom"
HELD_SECONDS = 41 * 60.0
CONFIG = """
[tasks.kbSync]
npm_script = "ai:sync-kb"
command = ["npm", "run", "ai:sync-kb"]
interval = "30m"
[tasks.summary]
command = ["npm", "run", "ai:summarize"]
interval = "10m"
[tasks.backup]
command = ["npm", "run", "ai:backup"]
interval = "1d"
[tasks.dream]
command = ["npm", "run", "ai:dream"]
interval = "6h"
[tasks.golden-path]
command = ["npm", "run", "ai:golden-path"]
interval = "12h"
[tasks.primary-dev-sync]
command = ["maintlock", "repo-sync"]
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
def held_lock(directory: Path, home: Path | None = None) -> Iterator[Headless]:
    """Give a lock that a job holds, with one that has joined it and two who wait."""
    project = (home or directory.parent) / "project"
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
            "ada@laptop",
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
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", type=Path)
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--home", type=Path, help="where project and state directory are made")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maintlock-") as name:
        home = said.home or Path(name) / "home"
        home.mkdir()
        settings, directory = home / "maintlock.toml", home / ".local/state/maintlock"
        settings.write_text(CONFIG, encoding="ascii")
        write_day(directory, time.time() + HELD_SECONDS)
        with (
            held_lock(directory, home),
            served(directory, settings, HELD_SECONDS) as url,
            browser(shutil.which("chromium") or "chromium", Path(name) / "profile") as page,
        ):
            page.show_as(width=said.width, scheme=said.scheme, is_phone=said.width < PHONE)
            page.open(url)
            page.call("Page.stopLoading")
            height = math.ceil(page.value(END)) + MARGIN
            page.show_as(width=said.width, height=height, scheme=said.scheme, is_phone=said.width < PHONE)
            page.screenshot(said.picture)


if __name__ == "__main__":
    main()
