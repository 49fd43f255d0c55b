from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maintlock import config, events, paths, pending, process
from maintlock.history import States
from maintlock.orchestrator import backpressure, cadence, children, facts, inbox
from maintlock.orchestrator.instance import Instance
from maintlock.orchestrator.loop import Orchestrator
from tests.orchestrated import HEAVY, Orchestration
from tests.protocol import until_gone, until_queued
from tests.support import MAINTLOCK, Running, until, until_stopped


def let_all_go(o: Orchestration, names: list[str]) -> list[str]:
    """Let one job after the other go, in the order in which they begin, and return that order."""
    order: list[str] = []
    while len(order) < len(names):
        until(lambda: len(o.traced()) > 2 * len(order), f"the next job: {o.logged()}")
        order.append(o.traced()[-1].partition(" ")[0])
        o.let_go(order[-1])
        until(lambda: len(o.traced()) >= 2 * len(order), "its end")
    return order


def is_serial(trace: list[str]) -> bool:
    """Tell whether no job began before the one before it had ended."""
    return all(
        begins.removesuffix(" begins") == ends.removesuffix(" ends")
        for begins, ends in zip(trace[::2], trace[1::2], strict=False)
    )


def test_six_heavy_tasks_run_one_after_the_other(o: Orchestration) -> None:
    """Six overdue heavy tasks after a start: one starts at once, the others stand back, and each runs in its turn (R4, R9)."""
    o.configure(*[o.task(name) for name in HEAVY])
    running = o.start()
    order = let_all_go(o, [*HEAVY])
    assert sorted(order) == sorted(HEAVY) and is_serial(o.traced())
    until(lambda: len(o.logged("task_ended")) == 6, "the end of each")  # the record may not know of the last one yet
    assert o.stop(running) == 0
    rows = o.lock.history(event="deferred")
    assert sorted(row["task"] for row in rows) == sorted(order[1:])
    assert {row["reason_code"] for row in rows} == {"backpressure"}
    acquired = o.lock.history(event="acquired")
    assert [(row["source"], row["reason"]) for row in acquired] == [("orchestrator", "periodic:3600s")] * 6
    assert len(o.lock.history(outcome="completed")) == 6


def test_a_pair_across_polls(o: Orchestration) -> None:
    """A task that falls due while another runs is held back over many polls, and starts at the first one after (R4, R11, R15)."""
    first, second = "backup", "kbSync"  # that the names of any pair make no difference is decided in `backpressure`
    o.configure(o.task(first))
    o.start()
    o.until_began(first)
    o.configure(o.task(first), o.task(second))
    os.kill(o.record()["pid"], signal.SIGHUP)
    line = o.until_logged("deferred", task=second)
    assert (line["blocked_by"], line["reason_code"], line["level"]) == (first, "backpressure", "INFO")
    o.passes(5)
    assert o.began(second) == 0
    o.let_go(first)
    o.until_began(second)
    assert len(o.logged("deferred", task=second, blocked_by=first, reason_code="backpressure")) == 1
    o.let_go(second)
    until(lambda: len(o.lock.history(outcome="completed")) == 2)
    assert is_serial(o.traced())


def test_a_manual_job_holds_it_back(o: Orchestration) -> None:
    """While somebody else has the lease nothing heavy starts: `lease-held`, told once; light tasks run all the same (R1, R9)."""
    held = o.lock.hold("sync-github-workflow")
    o.configure(o.task("kbSync"), o.task("light", "heavy = false", ends="true"))
    o.start()
    line = o.until_logged("deferred", task="kbSync")
    assert (line["blocked_by"], line["reason_code"]) == ("sync-github-workflow", "lease-held")
    o.until_began("light")
    (row,) = until(lambda: o.lock.history(event="acquired", task="light"), "its beginning, told after it")
    o.passes()
    assert len(o.logged("deferred")) == 1 and o.began("kbSync") == 0
    assert row["lease"] != "heavy-maintenance"
    task = o.health(0)["tasks"]["kbSync"]
    assert (task["state"], task["blocked_by"], task["reason_code"]) == (
        "deferred",
        "sync-github-workflow",
        "lease-held",
    )
    assert task["deferred_since"] and task["last_run_at"] is None
    held.end()
    o.until_began("kbSync")


def test_a_queued_waiter_goes_before(o: Orchestration) -> None:
    """Who waits by hand gets the lease before any task of the orchestrator's, however late that is (L5)."""
    held = o.lock.hold("first")
    waiter = o.lock.start("-t", "by-hand", "--wait", "forever", "--", "sh", "-c", f"echo 'by-hand begins' >> {o.trace}")
    until_queued(o.lock, waiter)
    o.configure(o.task("kbSync", ends="true"))
    o.start()
    o.until_logged("deferred", task="kbSync")
    held.end()
    assert waiter.end()[0] == 0
    o.until_began("kbSync")
    assert o.traced()[:2] == ["by-hand begins", "kbSync begins"]


@contextmanager
def refusing(o: Orchestration, found: Orchestrator) -> Iterator[None]:
    """Have every request refused, or wait, although the lease looks free to an orchestrator: its sight is taken away."""
    held = o.lock.hold("by-hand")
    leases = found.planner.leases
    found.planner.leases = Unseeing(found.directory)
    try:
        yield
    finally:
        found.planner.leases = leases
        held.end()


class Unseeing(facts.Leases):
    """One to whom every lease looks free."""

    def read(self, lease: str, states: States | None) -> facts.LeaseFacts:
        """Return what is seen of a lease."""
        return facts.LeaseFacts(running=frozenset(), gate=None)


def logged(caplog: pytest.LogCaptureFixture, event: str) -> int:
    """Return how often an orchestrator in this process has logged an event."""
    return [vars(record).get("event") for record in caplog.records].count(event)


def test_a_refused_start_is_no_start(o: Orchestration, caplog: pytest.LogCaptureFixture) -> None:
    """However often a start is refused, that is one deferral and no start, and neither delays nor hides a later run (L5, R9)."""
    caplog.set_level("INFO", "maintlock.orchestrator")
    found, began = in_process(o, o.task("kbSync", ends="true"))
    log = o.lock.directory / "logs" / "kbSync.log"
    log.parent.mkdir(mode=0o700)
    log.write_text("of the run before\n")
    with refusing(o, found):
        for _ in range(5):
            found.run_pass()
            until(lambda: found.tend() or not found.jobs.running)
            assert log.read_text() == "of the run before\n"
    assert began() == []
    until(lambda: found.run_pass() or began())
    finish(found)
    assert logged(caplog, "task_started") == logged(caplog, "deferred") == len(o.lock.history(event="deferred")) == 1
    assert o.lock.history(task="kbSync", outcome="completed")


def test_a_start_that_was_stopped_while_it_waited(o: Orchestration, caplog: pytest.LogCaptureFixture) -> None:
    """A task whose wrapper is stopped in the queue has not run: while it waits it is deferred, and then it stays due (R11)."""
    caplog.set_level("INFO", "maintlock.orchestrator")
    found, began = in_process(o, o.task("kbSync", 'wait = "1h"', ends="true"))
    with refusing(o, found):
        until(lambda: found.run_pass() or found.streaks.held)
        assert logged(caplog, "waiting") == 1
        task = o.health(0)["tasks"]["kbSync"]
        assert (task["state"], task["reason_code"], task["last_run_at"]) == ("deferred", "queued", None)
        os.kill(o.record()["jobs"]["kbSync"]["pid"], signal.SIGTERM)
        until(lambda: found.run_pass() or "start:kbSync" in found.troubles.standing)
        assert "start:kbSync: was stopped before it had its lease" in o.health(1)["reasons"][0]
    assert logged(caplog, "task_not_begun") == 1
    assert logged(caplog, "task_started") == logged(caplog, "task_ended") == 0
    found.reload()  # or it is tried again after a minute
    until(lambda: found.run_pass() or began())
    finish(found)


def test_each_attempt_by_hand_counts(o: Orchestration) -> None:
    """The orchestrator's attempts count as one deferral until the task runs, anybody else's count each (L5)."""
    asks = ("-t", "kbSync", "--", "true")
    held = o.lock.hold("by-hand")
    counts = []
    for source in ("orchestrator", "orchestrator", "cli", "cli", "orchestrator"):
        o.lock.wrap("--source", source, *asks)
        counts.append(len(o.lock.history(event="deferred")))
    held.end()
    o.lock.wrap("--source", "orchestrator", *asks)
    o.lock.hold("by-hand")
    for _ in range(2):
        o.lock.wrap("--source", "orchestrator", *asks)
        counts.append(len(o.lock.history(event="deferred")))
    assert counts == [1, 1, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("reason_code", ["survivors", "lockfile-replaced"])
def test_our_own_job_in_trouble(o: Orchestration, reason_code: str) -> None:
    """A job of ours whose wrapper was killed, or whose lock file was replaced, holds others back as what it is, and by name."""
    o.configure(o.task("kbSync"))
    running = o.start()
    o.until_began("kbSync")
    if reason_code == "survivors":
        wrapper = o.lock.sidecar()["pid"]
        os.kill(wrapper, signal.SIGKILL)
        until_gone(wrapper)  # for so long it is still the one that holds others back
    else:
        (o.lock.directory / "heavy-maintenance.lock").unlink()
    o.configure(o.task("kbSync"), o.task("backup", ends="true"))
    running.signal(signal.SIGHUP)
    line = o.until_logged("deferred", task="backup")
    assert (line["blocked_by"], line["reason_code"]) == ("kbSync", reason_code)
    o.passes()
    assert len(o.logged("collision", kind="lockfile_replaced")) == (reason_code == "lockfile-replaced")
    assert len(o.logged("task_orphaned", task="kbSync")) == (reason_code == "survivors")
    assert o.logged("task_ended") == []
    kinds = [one["kind"] for one in o.health(1)["collisions"]]
    assert kinds == (["lockfile_replaced"] if reason_code == "lockfile-replaced" else [])
    o.let_go("kbSync")
    outcome = "lost" if reason_code == "survivors" else "completed"
    o.until_logged("task_ended", task="kbSync", outcome=outcome)
    o.until_began("backup")
    until(lambda: o.lock.history(event="released", task="backup"))
    assert o.stop(running) == 0
    assert [row["reason_code"] for row in o.lock.history(event="deferred")] == [reason_code]
    told = [(row["event"], row["reason_code"]) for row in o.lock.history() if row["event"].startswith("collision")]
    kinds = ["lockfile_replaced"] if reason_code == "lockfile-replaced" else []
    assert told == [(event, kind) for kind in kinds for event in ("collision", "collision_cleared")]


def test_a_nested_run_is_no_deferral(o: Orchestration) -> None:
    """A task that is due while it runs inside another job is running, and not held back (R7, R9)."""
    nests = f'maintlock-wrap -t kbSync -- sh -c "echo nested begins >> {o.trace}; read x < {o.gate("nested")}"'
    o.configure(o.task("primary-dev-sync", ends=nests))
    running = o.start()
    until(
        lambda: o.lock.history(event="nested_started"), "the nested job to be on record"
    )  # a moment after it has begun
    o.configure(o.task("primary-dev-sync"), o.task("kbSync", "rest = 0", ends="true", interval="1ms"))
    running.signal(signal.SIGHUP)
    o.until_logged("reloaded")
    o.passes()
    assert o.logged("deferred") == [] and o.health()["tasks"]["kbSync"]["state"] == "running"
    o.let_go("nested")
    o.until_began("kbSync")
    assert o.stop(running) == 0


def test_a_stopped_waiter_blocks_nobody(o: Orchestration) -> None:
    """A waiter that is stopped keeps neither a free lease from the orchestrator nor its place."""
    held = o.lock.hold("first")
    waiter = o.lock.start("-t", "by-hand", "--wait", "forever", "--", "true")
    until_queued(o.lock, waiter)
    waiter.signal(signal.SIGSTOP)
    until_stopped(waiter.pid)
    held.end()
    o.configure(o.task("kbSync", ends="true"))
    o.start()
    try:
        o.until_began("kbSync")
    finally:
        waiter.signal(signal.SIGKILL)


def test_a_waiter_that_is_none_is_not_believed_for_long(o: Orchestration, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living process that is on record as waiting for a free lease does not hold anything back for ever."""
    monkeypatch.setattr(facts, "QUEUED_SECONDS", 0.2)
    found, started = in_process(o, o.task("kbSync", ends="true"))
    me = process.own_identity()
    pending.append(str(o.lock.directory), [events.new(
        "present", at=time.time(), lease="heavy-maintenance", task="ghost", role="waiting", pid=me.pid,
        start_ticks=me.start_ticks, boot_id=me.boot_id, pid_namespace=me.pid_namespace,
    )])  # fmt: skip
    found.run_pass()
    held = found.streaks.held["kbSync"]
    assert held.reason_code == "queued" and held.blocked_by == "ghost"
    until(lambda: found.run_pass() or started())
    finish(found)


def test_runs_by_hand_count(o: Orchestration) -> None:
    """A task that was just run by hand is not due, also for an orchestrator that starts afterwards (R11)."""
    o.lock.wrap("-t", "kbSync", "--", "true")
    o.configure(o.task("kbSync", ends="true"), o.task("backup", ends="true"))
    running = o.start()
    o.until_began("backup")
    o.passes(5)
    assert o.began("kbSync") == 0
    assert o.stop(running) == 0


def test_a_restart_forgets_nothing(o: Orchestration) -> None:
    """Last start, last success and the streak of deferrals survive a restart, and the streak is counted once (L5)."""
    o.configure(o.task("kbSync", ends="true"))
    running = o.start()
    o.until_logged("task_ended", task="kbSync", outcome="completed")  # the lease is free: history tells an end before
    assert o.stop(running) == 0
    held = o.lock.hold("by-hand")
    o.configure(o.task("kbSync", ends="true"), o.task("backup", ends="true"))
    since = []
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        running = o.start()
        o.until_logged("deferred", task="backup")
        o.passes()
        since.append(o.health()["tasks"]["backup"]["deferred_since"])
        o.stop(running, number)
    assert len(set(since)) == 1 and since[0]
    assert [row["task"] for row in o.lock.history(event="deferred")] == ["backup"]
    assert o.began("kbSync") == 1
    held.end()


def test_streaks_end_with_a_run_by_hand(o: Orchestration) -> None:
    """A run by hand ends a streak; the next one is a new episode, told and counted again (L5, R9)."""
    first = o.lock.hold("first")
    o.configure(o.task("kbSync", "rest = 0", interval="100ms"))
    running = o.start()
    o.until_logged("deferred", task="kbSync", blocked_by="first")
    wait = ("--wait", "forever", "--", "sh", "-c")
    by_hand = o.lock.start("-t", "kbSync", *wait, f"echo by-hand begins >> {o.trace}; read x < {o.gate('by-hand')}")
    until_queued(o.lock, by_hand)
    second = o.lock.start("-t", "first", *wait, "read x", stdin=subprocess.PIPE)
    until_queued(o.lock, second)
    first.end()
    o.until_began("by-hand")
    o.passes()
    assert len(o.lock.history(event="deferred", task="kbSync")) == 1
    assert len(o.logged("deferred", blocked_by="first", reason_code="lease-held")) == 1
    assert not o.logged("deferred", blocked_by="kbSync", reason_code="lease-held")
    o.let_go("by-hand")
    assert by_hand.end()[0] == 0
    o.until_logged("deferred", times=2, task="kbSync", blocked_by="first")
    until(lambda: len(o.lock.history(event="deferred", task="kbSync")) == 2)
    assert o.stop(running) == 0
    assert o.began("kbSync") == 0
    second.end()


def test_one_instance(o: Orchestration) -> None:
    """A second orchestrator on the same state directory is refused with 75 and told who the first is (L11)."""
    o.configure(o.task("kbSync"))
    first = o.start()
    o.until_began("kbSync")
    log = o.log
    second = o.start(is_ready=False)
    assert second.end()[0] == 75
    assert f"pid {first.pid}" in o.log.read_text()
    assert o.once() == 75
    (o.lock.directory / "orchestrator.json").write_text("garbage")
    assert o.once() == 75
    assert f"pid {first.pid}" in o.log.read_text()
    o.log = log
    assert o.began("kbSync") == 1
    assert o.stop(first) == 0
    assert o.once() == 0


def test_many_at_once_leave_one(o: Orchestration) -> None:
    """Of several orchestrators that start in the same moment exactly one lives (L11)."""
    o.configure(o.task("kbSync"))
    many = [o.start(is_ready=False) for _ in range(4)]
    until(lambda: sum(one.popen.poll() is None for one in many) == 1)
    assert sorted(code for one in many if (code := one.popen.poll()) is not None) == [75, 75, 75]
    o.until_began("kbSync")
    assert o.began("kbSync") == 1


def test_once_is_one_pass(o: Orchestration) -> None:
    """`--once` makes one pass and leaves; its job goes on under its own supervisor, and the next pass adopts it (R8)."""
    o.configure(*[o.task(name) for name in ("kbSync", "backup")])
    assert o.once() == 0
    until(lambda: len(o.traced()) == 1)
    name = o.traced()[0].partition(" ")[0]
    other = {"kbSync": "backup", "backup": "kbSync"}[name]
    assert o.once() == 0
    assert o.logged("started")[0]["adopted_jobs"] == [name]
    assert o.logged("deferred", task=other)
    wrapper = o.lock.sidecar()["pid"]
    o.let_go(name)
    until_gone(wrapper)
    assert o.lock.history(outcome="completed")
    assert o.once() == 0
    o.until_began(other)


def test_a_bad_configuration_leaves_the_old_one(o: Orchestration) -> None:
    """After HUP an invalid configuration is reported, stands in health, and the old one stays; a good one is taken."""
    o.configure(o.task("kbSync"))
    running = o.start()
    o.until_began("kbSync")
    good = o.config.read_text()
    spoilt = ("= not toml", "[tasks.kbSync]\nheavi = true\n", "directory", "gone")
    for times, bad in enumerate(spoilt, 1):
        o.config.unlink()
        if bad == "directory":
            o.config.mkdir()
        elif bad != "gone":
            o.config.write_text(bad)
        running.signal(signal.SIGHUP)
        assert "the old configuration stays" in o.until_logged("config_invalid", times)["message"]
        o.passes()
        until(lambda: list(o.record()["troubles"]) == ["configuration"], "that trouble alone: the ledger may be busy")
        found = o.health(1)
        assert any(reason.startswith("configuration: ") for reason in found["reasons"])
        assert found["tasks"]["kbSync"]["state"] == "running" and found["orchestrator"]["state"] == "running"
        if o.config.is_dir():
            o.config.rmdir()
        o.config.touch()
    o.config.write_text('state_dir = "elsewhere"\n' + good + o.task("light", "heavy = false", ends="true"))
    running.signal(signal.SIGHUP)
    o.until_logged("reloaded")
    assert "restart the orchestrator" in o.until_logged("restart_needed")["message"]
    o.until_began("light")
    until(lambda: not o.record()["troubles"])  # it is told at the end of the pass that starts the task
    assert o.health(0)["status"] == "healthy"
    assert o.stop(running) == 0


def test_term_leaves_jobs_running(o: Orchestration) -> None:
    """TERM ends the orchestrator with 0; its job works on, keeps the lease, and ends as ever."""
    o.configure(o.task("kbSync"))
    running = o.start()
    o.until_began("kbSync")
    assert o.stop(running) == 0
    assert o.lock.status()["holder"]["task"] == "kbSync"
    o.let_go("kbSync")
    until(lambda: o.lock.history(outcome="completed", task="kbSync"))


@pytest.mark.parametrize("how", ["supervised", "orphaned", "orphaned-before"])
def test_stop_jobs_stops_them(o: Orchestration, how: str) -> None:
    """With `--stop-jobs` a job gets TERM, and KILL after its grace where it ignores that; then the lease is free (L4).

    So does what works on of one whose wrapper was killed, also while nobody looked.
    """
    stubborn = 'trap "" TERM; while :; do read x < "$GATE" || :; done'
    o.configure(o.task("kbSync", 'stop_grace = "200ms"', f'env = {{ GATE = "{o.gate("x")}" }}', ends=stubborn))
    running = o.start("--stop-jobs")
    o.until_began("kbSync")
    if how == "orphaned-before":
        until(lambda: o.record()["jobs"])
        o.stop(running, signal.SIGKILL)
    if how != "supervised":
        os.kill(o.lock.sidecar()["pid"], signal.SIGKILL)
    if how == "orphaned-before":
        running = o.start("--stop-jobs")
    elif how == "orphaned":
        o.until_logged("task_orphaned")
    assert o.stop(running) == 0
    assert o.logged("stopped")[0]["running"] == []
    assert o.lock.status()["state"] == "free"
    found = o.health()["tasks"]["kbSync"]
    assert (found["last_outcome"], found["state"] == "failing") == ("stopped", False)
    assert o.lock.wrap("-t", "next", "--", "true").returncode == 0  # which tells the end that nobody was left to tell
    outcomes = [row["outcome"] for row in o.lock.history(task="kbSync") if row["outcome"]]
    assert outcomes == ["stopped"]


def test_settings_go_along(o: Orchestration) -> None:
    """A task's settings go to the wrapper as options, with no configuration to read."""
    o.configure(o.task("kbSync", 'max_runtime = "1h"', 'ttl = "123s"'))
    o.start()
    o.until_began("kbSync")
    assert o.lock.sidecar()["ttl_seconds"] == 123
    wrapper = o.lock.sidecar()["pid"]
    said = Path(f"/proc/{wrapper}/cmdline").read_bytes().split(b"\0")
    assert {b"--config=none", b"--source=orchestrator", b"--reason=periodic:3600s", b"--max-runtime=3600"} <= {*said}
    assert os.getsid(wrapper) == wrapper


def test_max_runtime_ends_it(o: Orchestration) -> None:
    """A job that works for too long and ignores TERM is killed, and its task is failing (L4)."""
    stubborn = 'trap "" TERM; while :; do read x < "$GATE" || :; done'
    limits = ['max_runtime = "500ms"', 'stop_grace = "100ms"', f'env = {{ GATE = "{o.gate("x")}" }}']
    o.configure(o.task("kbSync", *limits, ends=stubborn))
    o.start()
    line = o.until_logged("task_ended", task="kbSync")
    assert (line["outcome"], line["exit_code"], line["level"]) == ("timed_out", 124, "WARNING")
    assert o.health(1)["tasks"]["kbSync"]["state"] == "failing"


def test_an_inbox_makes_it_due(o: Orchestration) -> None:
    """Unread files start a task before its interval, count as read only after success, and failing does not storm (R12)."""
    (o.place / "in").mkdir()
    works = o.place / "works"
    o.configure(o.task("summary", 'inbox = "in/*.json"', 'rest = "10m"', ends=f'test -e "{works}"', interval="1h"))
    running = o.start()
    o.until_began("summary")
    o.until_logged("task_ended", task="summary")
    works.touch()
    (o.place / "new").mkdir()
    for name in ("a", "b", "c"):
        (o.place / "new" / f"{name}.json").write_text("{}")
    (o.place / "new").rename(o.place / "in")  # all three at once
    o.until_logged("task_ended", times=1, outcome="completed")
    assert [row["reason"] for row in o.lock.history(event="acquired")][-1].startswith("inbox:")
    count = o.began("summary")
    o.passes(6)
    assert o.began("summary") <= count + 1  # a file that came while the run began
    count, failing_since = o.began("summary"), time.monotonic()
    works.unlink()
    (o.place / "in" / "a.json").write_text("{ }")
    o.until_logged("task_ended", times=2, outcome="failed")
    o.passes(12)
    polls = (time.monotonic() - failing_since) / 0.06
    assert o.began("summary") - count <= 3 + math.log2(1 + polls)  # each pause is twice as long as the one before
    works.touch()
    until(lambda: len(o.logged("task_ended", outcome="completed")) >= 2)
    assert o.stop(running) == 0


@pytest.mark.parametrize("kind", ["missing", "not-executable", "no-cwd"])
def test_a_command_that_cannot_run(o: Orchestration, kind: str) -> None:
    """A command that is missing or cannot be executed is that task's failure: told once, in health, the others run (R6)."""
    (o.place / "plain").write_text("text")
    command = {"missing": "no-such-program", "not-executable": str(o.place / "plain"), "no-cwd": "true"}[kind]
    cwd = 'cwd = "/no/such/place"' if kind == "no-cwd" else ""
    o.configure(
        f'[tasks.bad]\ncommand = ["{command}"]\ninterval = "200ms"\nrest = 0\n{cwd}\n',
        o.task("kbSync", ends="true"), o.task("light", "heavy = false", ends="true"),
    )  # fmt: skip
    running = o.start()
    for name in ("kbSync", "light"):
        o.until_began(name)
    about = "start:bad" if kind == "no-cwd" else "command:bad"
    o.until_logged("trouble", about=about)
    o.passes(8)
    assert len(o.logged("trouble", about=about)) == 1
    assert o.logged("deferred", blocked_by="bad") == [] or kind != "no-cwd"
    found = o.health(1)
    assert any(about in reason for reason in found["reasons"])
    assert found["tasks"]["bad"]["detail"] and found["tasks"]["kbSync"]["detail"] is None
    o.until_health(lambda found: found["tasks"]["bad"]["state"] == "failing")
    assert o.stop(running) == 0


def test_a_task_that_forks_and_exits(o: Orchestration) -> None:
    """A job whose main process ends while a part of it works on keeps the lease until that has ended, too (R1)."""
    forks = f'(read x < "{o.gate("late")}"; echo "late ends" >> "{o.trace}") & true'
    o.configure(o.task("kbSync", ends=forks))
    o.start()
    until(lambda: "kbSync ends" in o.traced())
    o.configure(o.task("kbSync", ends=forks), o.task("backup", ends="true"))
    os.kill(o.record()["pid"], signal.SIGHUP)
    o.until_logged("deferred", task="backup", blocked_by="kbSync")
    assert o.record()["jobs"].keys() == {"kbSync"}
    o.let_go("late")
    o.until_began("backup")
    assert o.traced().index("late ends") < o.traced().index("backup begins")


def test_a_flood_of_output(o: Orchestration) -> None:
    """A hundred megabytes of a job's output go to its log file, the one before is kept, and nothing slows down."""
    o.configure(o.task("kbSync", ends="head -c 100000000 /dev/zero", interval="1s"))
    running = o.start()
    o.until_logged("task_ended", task="kbSync", outcome="completed")
    assert o.stop(running) == 0  # or the next start would rename what we look at
    logs = o.lock.directory / "logs"
    until(lambda: any(path.stat().st_size == 100_000_000 for path in logs.glob("kbSync.log*")))
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in logs.iterdir() if path.suffix != ".tmp")


def test_the_state_directory_is_removed(o: Orchestration) -> None:
    """When the state directory is removed while a job runs, it is made anew, nothing heavy starts beside that job, and
    afterwards work goes on; nobody else becomes the orchestrator (L9).
    """
    o.configure(o.task("kbSync"))
    running = o.start()
    o.until_began("kbSync")
    o.lock.directory.rename(o.place / "moved-away")
    o.until_logged("state_directory_lost")
    o.configure(o.task("kbSync"), o.task("backup", ends="true"))
    running.signal(signal.SIGHUP)
    o.until_logged("deferred", task="backup")
    o.passes()
    assert o.began("backup") == 0
    log = o.log
    assert o.once() == 75
    o.log = log
    o.let_go("kbSync")
    o.until_began("backup")
    until(lambda: "backup ends" in o.traced())
    assert o.stop(running) == 0


@pytest.mark.parametrize("content", [b"not a database, but long enough to be one" * 100, b""], ids=["garbage", "empty"])
def test_a_ledger_that_is_corrupt(o: Orchestration, content: bytes) -> None:
    """With a corrupt ledger tasks run all the same, once and not again and again, and health says that it is unknown (R6)."""
    o.lock.wrap("-t", "any", "--", "true")
    (o.place / "in").mkdir()
    (o.place / "in" / "one").touch()
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (o.lock.directory / name).unlink(missing_ok=True)
    (o.lock.directory / "ledger.db").write_bytes(content)
    (o.lock.directory / "ledger.db").chmod(0o600)
    o.configure(o.task("kbSync", ends="true"), o.task("summary", 'inbox = "in/*"', ends="true"))
    running = o.start()
    for name in ("kbSync", "summary"):
        o.until_logged("task_ended", task=name, outcome="completed")
    o.passes(8)
    assert o.began("kbSync") == 1 and o.began("summary") <= 2
    told = [(row["about"], row["message"]) for row in o.logged("trouble")]
    assert {about for about, _ in told} <= {"ledger", "ledger reading"} and len(set(told)) == len(told)
    if content:
        found = o.health(2)
        assert found["status"] == "unknown" and any("ledger" in reason for reason in found["reasons"])
    assert o.stop(running) == 0


@pytest.mark.parametrize("kind", ["garbage", "fifo", "symlink", "others-pid", "directory"])
def test_a_hostile_record(o: Orchestration, kind: str) -> None:
    """Nothing in `orchestrator.json` is believed: no stranger is adopted, waited for or signalled, and work begins (R8)."""
    path = o.lock.directory
    path.mkdir(mode=0o700)
    path = path / "orchestrator.json"
    elsewhere = o.place / "elsewhere"
    elsewhere.write_text("{}")
    bystander = Running(["sleep", "1000"], o.lock.env(), start_new_session=True)
    o.lock.running.append(bystander)
    about = {**identity_of(bystander.pid), "at": "2026-01-01T00:00:00.000Z", "reason": "x", "restarts": 0}
    root = {**identity_of(1), "at": "2026-01-01T00:00:00.000Z"}
    others = {"schema": 1, **identity_of(1), "jobs": {"kbSync": about, "backup": root}, "daemons": {}}
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink":
        path.symlink_to(elsewhere)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(os.urandom(5000) if kind == "garbage" else json.dumps(others).encode())
    o.configure(o.task("kbSync", ends="true"), o.task("backup", ends="true"))
    running = o.start("--stop-jobs")
    for name in ("kbSync", "backup"):
        o.until_began(name)
    until(lambda: len(o.logged("task_ended")) == 2)
    found = o.health(2 if kind == "directory" else 0)
    assert found["orchestrator"]["state"] == ("unknown" if kind == "directory" else "running")
    assert o.stop(running) == 0
    assert bystander.popen.poll() is None
    assert elsewhere.read_text() == "{}"


def test_a_record_that_was_tampered_with(o: Orchestration) -> None:
    """A record that somebody has removed or replaced while we run is written anew at the next poll."""
    o.configure(o.task("kbSync", ends="true"))
    running = o.start()
    o.until_logged("task_ended")
    path, other = o.lock.directory / "orchestrator.json", o.place / "other"
    for make in (
        None,
        lambda: other.write_bytes(b"garbage"),
        lambda: other.symlink_to("/dev/null"),
        lambda: os.mkfifo(other),
    ):
        if make is None:
            path.unlink()
        else:
            make()
            other.replace(path)
        until(lambda: path.is_file() and not path.is_symlink() and path.stat().st_size > 100)
        assert o.health(0)["orchestrator"]["pid"] == running.pid
    assert o.stop(running) == 0


def test_nobody_reads_the_log(o: Orchestration) -> None:
    """An orchestrator whose standard error leads nowhere any more works on, and ends with 0."""
    o.configure(o.task("kbSync", "rest = 0", ends="true", interval="50ms"))
    read_fd, write_fd = os.pipe()
    running = o.lock.start("orchestrate", "--config", str(o.config), program=MAINTLOCK, stderr=write_fd)
    os.close(write_fd)
    os.close(read_fd)
    o.until_began("kbSync", 3)
    assert o.stop(running) == 0


def identity_of(pid: int) -> dict[str, object]:
    """Return who a process is, as records have it."""
    found = process.read_identity(pid)
    return {
        "pid": found.pid, "pid_start_ticks": found.start_ticks, "boot_id": found.boot_id,
        "pid_namespace": found.pid_namespace,
    }  # fmt: skip


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_hostile_names_in_logs(o: Orchestration, log_format: str) -> None:
    """What strangers call themselves cannot forge a log line, in JSON or in text."""
    paths.open_state_directory(str(o.lock.directory))
    bystander = o.lock.start("1000", program="sleep")
    me = identity_of(bystander.pid)
    fields = {
        "pid": me["pid"],
        "start_ticks": me["pid_start_ticks"],
        **{k: me[k] for k in ("boot_id", "pid_namespace")},
    }
    pending.append(str(o.lock.directory), [events.new(
        "present", at=time.time(), lease="heavy-maintenance", task='x"}\n{"event": "forged"}\x1b[2J', role="waiting", **fields,
    )])  # fmt: skip
    o.configure(o.task("kbSync", ends="true"))
    running = o.start("--log-format", log_format, is_ready=False)
    until(lambda: "held back by" in o.log.read_text())
    o.stop(running)
    assert "\x1b" not in o.log.read_text() and '\n{"event' not in o.log.read_text()
    assert not o.logged("forged")


# In our own process --------------------------------------------------------------------------------------------------


def in_process(
    o: Orchestration, *parts: str, clock: Callable[[], float] = time.time
) -> tuple[Orchestrator, Callable[[], list[str]]]:
    """Return an orchestrator inside this process, and what tells what began."""
    o.configure(*parts)
    directory = str(o.lock.directory)
    paths.open_state_directory(directory)
    found = Orchestrator(config.load(str(o.config)), directory, Instance(directory), clock=clock)
    found.take_over()
    return found, lambda: [line for line in o.traced() if line.endswith("begins")]


def finish(found: Orchestrator) -> None:
    """Wait for what an orchestrator has started in this process, and let go of what it holds."""
    until(lambda: found.tend() or not found.jobs.running)
    found.daemons.stop()
    found.ledger.close()
    found.instance.close()


def test_a_job_that_no_record_shows(o: Orchestration, caplog: pytest.LogCaptureFixture) -> None:
    """While the wrapper of a heavy job lives, nothing heavy starts beside it: not even when its records have gone with the
    state directory and its environment is empty (R1, L9).
    """
    shift = [0.0]
    unmarked = o.task("kbSync").replace('["sh"', '["env", "-i", "sh"')
    found, began = in_process(o, unmarked, o.task("backup", ends="true"), clock=lambda: time.time() + shift[0])
    until(lambda: found.run_pass() or began())
    until(lambda: o.lock.sidecar()["job_pid"], "the last that its wrapper writes while it runs")
    found.run_pass()
    shutil.rmtree(o.lock.directory)
    for _ in range(3):
        found.run_pass()
        shift[0] += 3600.0
    assert began() == ["kbSync begins"]
    held = found.streaks.held["backup"]
    assert (held.reason_code, held.blocked_by) == ("backpressure", "kbSync")
    assert [row["task"] for row in o.lock.history(event="deferred")] == ["backup"]  # told to the new ledger, too
    with caplog.at_level("INFO", "maintlock.orchestrator"):
        o.let_go("kbSync")
        until(lambda: found.run_pass() or len(began()) == 2)
    assert "kbSync ended: completed" in caplog.messages
    finish(found)


def test_a_pass_whose_every_check_throws(o: Orchestration, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass in which every look at the world fails ends all the same; what failed is told once and in health, and the
    first pass after it works again (R6).
    """
    found, began = in_process(
        o, o.task("kbSync", 'inbox = "in/*"', ends="true"), o.task("light", "heavy = false", ends="true")
    )

    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as broken:
        for owner, name in (
            (found.ledger, "drain"), (found.planner.history, "read"), (found.planner.processes, "read"),
            (found.daemons, "tend"), (found.jobs, "news"), (found.instance, "is_current"), (facts, "read_lease"),
            (inbox, "Inbox"), (cadence, "due"), (backpressure, "decisions"),
        ):  # fmt: skip
            broken.setattr(owner, name, fail)
        for _ in range(3):
            found.run_pass()
        assert not began()
        assert {"ledger", "ledger reading", "processes", "daemons", "jobs", "task:kbSync"} <= set(
            o.record()["troubles"]
        )
    found.run_pass()
    assert o.record()["troubles"] == {}
    until(lambda: found.run_pass() or len(began()) == 2)
    finish(found)


@pytest.mark.parametrize("code", [0, 73])
def test_a_wrapper_that_could_not_even_tell(o: Orchestration, code: int) -> None:
    """A start that ended before it asked for the lease, as on a full disk, is no run: told once, and tried again soon."""
    found, _ = in_process(o, o.task("kbSync", ends="true"))

    def start(*_: object) -> children.Child:
        found.jobs.running["kbSync"] = child = children.start(
            ["sh", "-c", f"exit {code}"],
            directory=str(o.lock.directory),
            log_name="kbSync",
            cwd=None,
            environ=os.environ,
        )
        return child

    found.jobs.start = start  # type: ignore[method-assign]  # taken away for the test
    for _ in range(3):
        found.memory.forget_delays()
        found.run_pass()
        assert "kbSync" in found.jobs.running
        began_at = time.monotonic()
        until(lambda: found.tend() or not found.jobs.running)
        ended_at = time.monotonic()
        found.run_pass()
        known = found.memory.known("kbSync")
        assert known.began_at is None and began_at + 60 <= known.not_before <= ended_at + 60
    assert f"exit code {code}" in o.record()["troubles"]["start:kbSync"]
    finish(found)


def test_one_broken_check_is_that_tasks_alone(o: Orchestration, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task whose check fails keeps neither the pass nor the other tasks from going on (R6)."""
    found, began = in_process(o, o.task("bad", ends="true"), o.task("kbSync", ends="true"))
    real = cadence.due

    def due(task: Any, *args: Any, **kwargs: Any) -> Any:
        if task.name == "bad":
            raise RuntimeError("broken")
        return real(task, *args, **kwargs)

    monkeypatch.setattr(cadence, "due", due)
    until(lambda: found.run_pass() or began())
    assert began() == ["kbSync begins"]
    assert "RuntimeError: broken" in o.record()["troubles"]["task:bad"]
    finish(found)


def test_the_clock_is_set_back_and_forth(o: Orchestration) -> None:
    """A clock that jumps a day back, or a week forward, makes neither a storm of runs nor a standstill."""
    (o.place / "in").mkdir()
    shift = [0.0]
    found, began = in_process(
        o, o.task("kbSync", ends="true", interval="1h"),
        o.task("summary", 'inbox = "in/*"', ends="true", interval="1h"), clock=lambda: time.time() + shift[0],
    )  # fmt: skip

    def passes(count: int) -> list[str]:
        for _ in range(count):
            found.run_pass()
            until(lambda: found.tend() or not found.jobs.running)
        return began()

    def settle_at(runs: int) -> None:
        until(lambda: len(passes(1)) >= runs)  # an inbox may take its time
        assert len(passes(6)) == runs

    settle_at(2)
    shift[0] = -86400.0
    settle_at(2)
    shift[0] += 3700.0
    settle_at(4)
    (o.place / "in" / "one").touch()
    settle_at(5)
    shift[0] = 7 * 86400.0
    settle_at(7)
    finish(found)


def test_many_passes_say_nothing_new(o: Orchestration, caplog: pytest.LogCaptureFixture) -> None:
    """Over hundreds of passes with the same six tasks held back there are six lines, and no more descriptors (L10)."""
    held = o.lock.hold("by-hand")
    with caplog.at_level("INFO", "maintlock.orchestrator"):
        found, _ = in_process(o, *[o.task(name, ends="true") for name in HEAVY])
        for _ in range(20):
            found.run_pass()
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(300):
            found.run_pass()
        assert len(os.listdir("/proc/self/fd")) <= descriptors  # those of other tests may be collected meanwhile
        assert len([line for line in caplog.messages if "held back by" in line]) == 6
    assert len(o.lock.history(event="deferred")) == 6
    held.end()
    finish(found)
