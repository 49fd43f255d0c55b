from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from maintlock import owed
from tests.orchestrated import HEAVY, Orchestration
from tests.support import MAINTLOCK, until

TASK_FIELDS = {"state", "deferred_since", "blocked_by", "reason_code", "last_success_at", "next_due_at"}


def shown(o: Orchestration, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Return what `maintlock health` or `tasks` prints."""
    return subprocess.run(
        [MAINTLOCK, command, "--config", str(o.config), *options], env=o.lock.env(), capture_output=True, text=True
    )


def test_before_anything_is_for_us(o: Orchestration) -> None:
    """Where nothing was ever used all is healthy, and looking makes no directory."""
    o.configure(*[o.task(name) for name in HEAVY])
    found = o.health(0)
    assert {"status", "lease", "tasks", "daemons", "collisions", "orchestrator"} <= found.keys()
    assert found["orchestrator"]["state"] == "never"
    assert found["tasks"].keys() == set(HEAVY)
    assert all(found["tasks"][name].keys() >= TASK_FIELDS for name in HEAVY)
    assert not o.lock.directory.exists()


def test_a_manual_only_user_is_healthy(o: Orchestration) -> None:
    """Who only ever runs jobs by hand has no orchestrator to miss."""
    o.configure("[tasks.kbSync]\n")
    o.lock.wrap("-t", "kbSync", "--", "true")
    assert o.health(0)["tasks"]["kbSync"]["state"] == "idle"


def test_tasks_without_the_history(o: Orchestration) -> None:
    """Where the history cannot be read, `tasks` says so, and tells what is known beside it: what a pull owes, say (L15)."""
    o.configure(o.task("kbSync"))
    o.lock.directory.mkdir(mode=0o700)
    owed.write_debt(str(o.lock.directory), owed.new(config=str(o.config), task="kbSync"))
    done = shown(o, "tasks", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["tasks"]["kbSync"]["detail"].startswith(
        "due; no orchestrator is running; owed since 2"
    )
    (o.lock.directory / "ledger.db").write_bytes(b"x" * 5000)
    done = shown(o, "tasks")
    assert (done.returncode, "ledger.db: corrupt" in done.stderr, "owed since 2" in done.stdout) == (73, True, True)


def test_a_run_from_begin_to_end(o: Orchestration) -> None:
    """A task goes from running to resting, tells its last success and when it is due next (R10)."""
    o.configure(o.task("kbSync"))
    running = o.start()
    o.until_began("kbSync")
    found = o.until_health(lambda found: found["tasks"]["kbSync"]["last_run_at"])
    assert found["tasks"]["kbSync"]["state"] == "running" and found["lease"]["holder"]["task"] == "kbSync"
    o.let_go("kbSync")
    found = o.until_health(lambda found: found["tasks"]["kbSync"]["state"] == "resting")
    task = found["tasks"]["kbSync"]
    assert task["last_success_at"] and task["next_due_at"] > task["last_run_at"]
    assert o.stop(running) == 0
    assert o.health(0)["orchestrator"]["state"] == "stopped"


def test_a_wrapper_that_waits_does_not_run(o: Orchestration) -> None:
    """A task that the orchestrator has queued for its turn is deferred by hand's job, not running."""
    held = o.lock.hold("by-hand")
    o.configure(o.task("kbSync", 'wait = "1h"', ends="true"))
    o.start()
    o.until_logged("deferred", task="kbSync")
    o.passes(1)
    assert o.health(0)["tasks"]["kbSync"]["state"] == "deferred"
    held.end()
    o.until_began("kbSync")


def test_an_orchestrator_that_died(o: Orchestration) -> None:
    """An orchestrator that was killed is degraded, and the next one mends it."""
    o.configure(o.task("kbSync", ends="true"))
    running = o.start()
    o.until_began("kbSync")
    o.stop(running, signal.SIGKILL)
    found = o.health(1)
    assert found["orchestrator"]["state"] == "died" and "maintlock orchestrate" in found["reasons"][0]
    o.start()
    o.passes(1)
    assert o.health(0)["orchestrator"]["state"] == "running"


def test_starvation(o: Orchestration) -> None:
    """A streak longer than `starved_after` is starvation, degraded, with its cause; it ends when the task runs (L5)."""
    held = o.lock.hold("by-hand")
    o.configure(o.task("kbSync", ends="true"), head='poll_interval = "60ms"\nstarved_after = "200ms"\n')
    o.start()
    found = o.until_health(lambda found: found["tasks"]["kbSync"]["state"] == "starved")
    assert found["status"] == "degraded" and "held back by by-hand" in found["reasons"][0]
    yielding = subprocess.run([MAINTLOCK, "should-yield", "--config", str(o.config)], env=o.lock.env(), check=False)
    assert yielding.returncode == 0
    held.end()
    o.until_health(lambda found: found["status"] == "healthy")


def test_a_job_that_was_killed_with_its_wrapper(o: Orchestration) -> None:
    """A job of which nothing has survived is lost, and its task failing, before anybody asks for the lease (R9)."""
    o.configure(o.task("kbSync"))
    running = o.start()
    o.until_began("kbSync")
    until(lambda: o.lock.sidecar()["job_pid"])
    os.kill(o.lock.sidecar()["pid"], signal.SIGKILL)
    assert o.until_health(lambda found: found["lease"]["state"] == "orphaned")["tasks"]["kbSync"]["state"] == "running"
    os.killpg(o.lock.sidecar()["job_pid"], signal.SIGKILL)
    task = o.until_health(lambda found: found["lease"]["state"] == "free")["tasks"]["kbSync"]
    assert (task["state"], task["last_outcome"]) == ("failing", "lost")
    o.until_logged("task_ended", task="kbSync", outcome="lost")
    assert o.stop(running) == 0


def test_tasks_without_a_configuration(o: Orchestration) -> None:
    """Without a configuration the tasks that have run or stood back are shown, and are nobody's fault (R10)."""
    held = o.lock.hold("backup")
    until(lambda: o.lock.history(event="acquired"), "the ledger to be told")
    o.lock.wrap("-t", "kbSync", "--", "true")
    done = subprocess.run(
        [MAINTLOCK, "health", "--config", "none"],
        env=o.lock.env(COLUMNS="200"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    held.end()
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(row.startswith("backup running") for row in rows), rows
    (row,) = [row for row in rows if row.startswith("kbSync deferred")]
    assert "not configured; deferred" in row and "by backup (lease-held)" in row


def test_a_deferral_is_no_success(o: Orchestration) -> None:
    """A deferral changes neither a task's last run nor its last success, in health as in metrics (L3)."""
    o.lock.wrap("-t", "kbSync", "--", "true")
    o.configure(o.task("kbSync", "rest = 0", ends="true", interval="50ms"))
    before = o.health(None)["tasks"]["kbSync"]
    held = o.lock.hold("by-hand")
    running = o.start()
    o.until_logged("deferred", task="kbSync")
    o.passes()
    after = o.health()["tasks"]["kbSync"]
    assert after["deferred_since"] and after["consecutive_deferrals"] == 1
    assert (after["last_run_at"], after["last_success_at"]) == (before["last_run_at"], before["last_success_at"])
    assert o.stop(running) == 0
    held.end()


@pytest.mark.parametrize("command", ["health", "tasks"])
def test_for_people(o: Orchestration, command: str) -> None:
    """`health` and `tasks` show people each task and what holds it back, and programs one JSON object on one line."""
    held = o.lock.hold("by-hand")
    o.configure(o.task("kbSync", ends="true"), o.task("bad", "heavy = false", ends="false"))
    running = o.start()
    o.until_logged("deferred", task="kbSync")
    o.until_logged("task_ended", task="bad")
    o.passes(2)
    done = shown(o, command)
    assert "held back by by-hand (lease-held) for" in " ".join(done.stdout.split())
    assert done.returncode == (1 if command == "health" else 0) and "failing" in done.stdout
    lines = shown(o, command, "--json").stdout.splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["tasks"]["kbSync"]["reason_code"] == "lease-held"
    o.stop(running)
    held.end()


def test_looking_disturbs_nobody(o: Orchestration) -> None:
    """However often anybody looks at health and tasks, nothing stands back for it."""
    o.configure(o.task("kbSync", "rest = 0", ends="true", interval="10ms"))
    o.start()
    lookers = [o.lock.start("health", "--json", "--config", str(o.config), program=MAINTLOCK) for _ in range(4)]
    for one in lookers:
        one.end()
    until(lambda: o.began("kbSync") >= 5)
    assert o.lock.history(event="deferred") == []
