from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from maintlock import config, paths
from maintlock.orchestrator import record
from maintlock.orchestrator.instance import Instance
from maintlock.orchestrator.loop import Orchestrator
from tests.orchestrated import Orchestration, outsider
from tests.support import BIN, PATIENCE_SECONDS, until

EXPORTER = str(BIN / "maintlock-exporter")


def metric(o: Orchestration, name: str, **labels: str) -> float:
    """Return one sample of `maintlock-exporter --once`."""
    done = subprocess.run(
        [EXPORTER, "--once", "--config", str(o.config)],
        env=o.lock.env(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if line.startswith(f"maintlock_{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.split()[-1])
    raise AssertionError(f"no {name} {labels} in {done.stdout}")


def heavy(o: Orchestration, name: str) -> str:
    """Return a task that is recognised outside the lease by a script of its name."""
    return o.task(name, f'match = "{o.script(name)}"', ends="true")


def test_two_inherited_are_one_collision(o: Orchestration) -> None:
    """Two heavy processes alive outside the lease at the start are one collision that names both, told once, also across
    restarts; nothing heavy starts until both have ended, and then the collision is cleared (R8).
    """
    o.configure(heavy(o, "backup"), heavy(o, "kbSync"), o.task("light", "heavy = false", ends="true"))
    with ExitStack() as outside:
        first = outside.enter_context(outsider(o.place, o.script("backup"), o.lock.env()))
        with outsider(o.place, o.script("kbSync"), o.lock.env()) as second:
            running = o.start()
            line = o.until_logged("collision")
            assert line["kind"] == "inherited"
            assert f"backup (pid {first})" in line["message"] and f"kbSync (pid {second})" in line["message"]
            o.until_began("light")
            o.until_logged("deferred", task="kbSync", reason_code="collision")
            o.passes()
            found = o.health(1)
            assert [one["kind"] for one in found["collisions"]] == ["inherited"]
            assert metric(o, "collisions_total", kind="inherited") == 1
            assert metric(o, "collision_active", kind="inherited") == 1
            assert metric(o, "collisions_total", kind="unleased_process") == 0
            o.stop(running, signal.SIGKILL)
            running = o.start()
            o.until_logged("deferred", task="kbSync", reason_code="collision")
            o.passes()
            assert o.logged("collision") == []
        o.passes()
        assert o.began("kbSync") == o.began("backup") == 0
        assert o.logged("collision_cleared") == []
    o.until_logged("collision_cleared", kind="inherited")
    for name in ("kbSync", "backup"):
        o.until_began(name)
    rows = [row for row in o.lock.history() if "collision" in row["event"]]
    assert [(row["event"], row["reason_code"]) for row in rows] == [
        ("collision", "inherited"), ("collision_cleared", "inherited"),
    ]  # fmt: skip
    names = {f"backup (pid {first})", f"kbSync (pid {second})"}
    assert all({*row["reason"].removesuffix(" outside the lease").split(" and ")} == names for row in rows)
    until(lambda: metric(o, "collision_active", kind="inherited") == 0)
    assert o.health()["collisions"] == []
    assert o.stop(running) == 0


def test_one_that_begins_later(o: Orchestration) -> None:
    """A heavy process that somebody starts outside the lease holds every heavy task back, as `unleased_process` (R8, L13)."""
    o.configure(heavy(o, "backup"), o.task("kbSync", "rest = 0", ends="true", interval="100ms"))
    running = o.start()
    o.until_began("kbSync")
    o.until_began("backup")
    with outsider(o.place, o.script("backup"), o.lock.env()) as pid:
        line = o.until_logged("collision")
        assert (line["kind"], line["task"]) == ("unleased_process", "backup") and str(pid) in line["message"]
        o.until_logged("deferred", task="kbSync", reason_code="collision", blocked_by="backup")
        count = o.began("kbSync")
        o.passes(5)
        assert o.began("kbSync") == count
        assert len(o.logged("collision")) == 1
        assert metric(o, "collision_active", kind="unleased_process") == 1
    o.until_logged("collision_cleared")
    o.until_began("kbSync", count + 1)
    assert o.stop(running) == 0


ASKS_ITSELF = """
import sys, maintlock
with maintlock.hold("backup", wait=600):
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_a_script_that_asks_itself_is_none(o: Orchestration) -> None:
    """A script that takes the lease in its own code is no collision, not while it starts, waits, works or ends (R8, R17)."""
    script = o.place / o.script("backup")
    script.write_text(ASKS_ITSELF)
    o.configure(o.task("kbSync"), f'[tasks.backup]\nmatch = "{script.name}"\n')
    running = o.start()
    o.until_began("kbSync")
    by_hand = o.lock.start(str(script), program=sys.executable, stdin=subprocess.PIPE)
    until(lambda: o.lock.status()["waiters"], "the waiter")
    o.passes(5)
    assert o.health(0)["collisions"] == []
    o.let_go("kbSync")
    by_hand.until_line("ready")
    o.passes()
    assert by_hand.popen.communicate(timeout=PATIENCE_SECONDS)[0] == b""
    o.passes()
    assert o.stop(running) == 0
    assert [line for line in o.logged() if line["level"] != "INFO"] == []
    assert [row for row in o.lock.history() if row["event"].startswith("collision")] == []


def test_an_editor_is_none(o: Orchestration) -> None:
    """An editor or pager that has such a file open is no heavy process (R8)."""
    (o.place / o.script("backup")).write_text("")
    pager = o.lock.start("-f", str(o.place / o.script("backup")), program="tail")
    o.configure(heavy(o, "backup"))
    running = o.start()
    o.until_began("backup")
    assert o.logged("collision") == []
    assert o.stop(running) == 0
    assert pager.popen.poll() is None


def test_jobs_are_adopted(o: Orchestration) -> None:
    """A job outlives its killed orchestrator, is adopted by the next, not started again, and its end is heard (R8)."""
    o.configure(o.task("kbSync", ends=None), o.task("light", "heavy = false"))
    running = o.start()
    for name in ("kbSync", "light"):
        o.until_began(name)
    o.passes(1)
    before = o.record()["jobs"]
    o.stop(running, signal.SIGKILL)
    running = o.start()
    assert o.logged("started")[0]["adopted_jobs"] == ["kbSync", "light"]
    o.passes()
    assert o.record()["jobs"] == before
    assert before["kbSync"]["reason"] == "periodic:3600s"
    for name in ("kbSync", "light"):
        o.let_go(name)
        assert o.until_logged("task_ended", task=name)["outcome"] == "completed"
        assert o.began(name) == 1
    assert o.stop(running) == 0


def test_how_an_adopted_job_ended(o: Orchestration) -> None:
    """With what an adopted job has ended is told as its wrapper has left it on record, and nothing is made up (R8)."""
    o.configure(o.task("kbSync", ends=f'read x < "{o.gate("kbSync")}"; (exit 254)'))
    running = o.start()
    o.until_began("kbSync")  # the first pass may still be looking around
    o.stop(running, signal.SIGTERM)
    running = o.start()
    o.let_go("kbSync")
    line = o.until_logged("task_ended", task="kbSync")
    assert (line["outcome"], line["exit_code"]) == ("failed", 254) and "failed, exit code 254" in line["message"]
    assert o.stop(running) == 0


def test_a_job_that_is_not_on_record_is_adopted(o: Orchestration) -> None:
    """An orchestrator killed between the start of a job and its record leaves one that its successor finds (R8)."""
    o.configure(o.task("kbSync"), o.task("light", "heavy = false"))
    running = o.start()
    for name in ("kbSync", "light"):
        o.until_began(name)
    o.stop(running, signal.SIGKILL)
    (o.lock.directory / "orchestrator.json").unlink()
    o.lock.start("-c", "echo ready; read x", "--outcome", program="sh", stdin=subprocess.PIPE).until_line("ready")
    running = o.start()  # …also beside a stranger whose command line ends in the word that wrappers are known by
    line = o.logged("started")[0]
    assert (line["adopted_jobs"], line["message"]) == (["kbSync", "light"], "started; adopted kbSync, light")
    o.passes()
    assert (o.began("kbSync"), o.began("light")) == (1, 1)
    for name in ("kbSync", "light"):
        o.let_go(name)
    assert o.stop(running) == 0


STAGES: dict[str, Callable[[Orchestrator], object]] = {
    "before-start": lambda found: found.jobs.start,
    "after-start": lambda found: found.streaks.tell,
    "before-ledger": lambda found: found.ledger.drain,
    "before-record": lambda found: found.write_record,
}


@pytest.mark.parametrize("stage", ["before-start", "after-start", "before-ledger", "before-record", "in-record"])
def test_killed_at_each_stage(o: Orchestration, stage: str) -> None:
    """Killed at any point of a pass, the orchestrator leaves a state in which its successor loses nothing, starts nothing
    twice, and never two heavy ones at once (R1, R8).
    """
    o.configure(o.task("kbSync"), o.task("backup"))
    pid = os.fork()
    if pid == 0:
        _die_at(o, stage)
    os.waitpid(pid, 0)
    running = o.start()
    until(o.traced, "the first job")
    first = o.traced()[0].partition(" ")[0]
    second = {"kbSync": "backup", "backup": "kbSync"}[first]
    o.until_logged("deferred", task=second)
    o.passes(4)
    assert o.traced() == [f"{first} begins"]
    o.let_go(first)
    o.until_began(second)
    o.let_go(second)
    until(lambda: len(o.lock.history(outcome="completed")) == 2)
    assert sorted(o.traced()) == sorted(f"{name} {does}" for name in (first, second) for does in ("begins", "ends"))
    assert len(o.lock.history(event="deferred")) == 1
    assert o.stop(running) == 0


def _die_at(o: Orchestration, stage: str) -> None:
    """Make passes in a process of our own, and kill it at a stage of its second pass, or of its record."""
    try:
        os.environ["MAINTLOCK_STATE_DIR"] = str(o.lock.directory)
        directory = str(o.lock.directory)
        paths.open_state_directory(directory)
        found = Orchestrator(config.load(str(o.config)), directory, Instance(directory))
        found.take_over()

        def die(*_args: object, **_kwargs: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        if stage == "before-start":
            found.jobs.start = die  # type: ignore[method-assign, assignment]
        elif stage == "after-start":
            found.streaks.tell = die  # type: ignore[method-assign]  # taken away for the test
        elif stage == "before-ledger":
            found.run_pass()
            found.ledger.drain = die  # type: ignore[method-assign]  # taken away for the test
        elif stage == "before-record":
            found.write_record = die  # type: ignore[method-assign]  # taken away for the test
        else:
            os.rename = die  # type: ignore[assignment]  # taken away for the test
            record.wholefile.os.rename = die  # type: ignore[attr-defined]  # not there on purpose
        found.run_pass()
        found.run_pass()
    finally:
        os._exit(1)


def test_a_manual_start_in_between(o: Orchestration) -> None:
    """A manual job that gets the lease between decision and start makes the task a deferral and no failure (R9)."""
    o.configure(o.task("kbSync", ends="true"))
    directory = str(o.lock.directory)
    paths.open_state_directory(directory)
    found = Orchestrator(config.load(str(o.config)), directory, Instance(directory))
    found.take_over()
    real = found.jobs.start

    def start(due, config):  # type: ignore[no-untyped-def]  # stands in for a method
        held.append(o.lock.hold("by-hand"))
        return real(due, config)

    held: list = []  # type: ignore[type-arg]  # of anything
    found.jobs.start = start  # type: ignore[method-assign]  # taken away for the test
    found.run_pass()
    until(lambda: found.tend() or not found.jobs.running)
    found.jobs.start = real  # type: ignore[method-assign]  # taken away for the test
    for _ in range(3):
        found.run_pass()
    assert (found.streaks.held["kbSync"].reason_code, found.streaks.held["kbSync"].blocked_by) == (
        "lease-held",
        "by-hand",
    )
    assert [row["blocked_by"] for row in o.lock.history(event="deferred")] == ["by-hand"]
    assert o.health(0)["tasks"]["kbSync"]["state"] == "deferred"
    assert o.lock.history(outcome="failed") == []
    held[0].popen.communicate(timeout=PATIENCE_SECONDS)
    until(lambda: found.run_pass() or o.began("kbSync"))
    until(lambda: found.tend() or not found.jobs.running)
    found.ledger.close()
    found.instance.close()


def test_a_record_from_another_namespace(o: Orchestration, tmp_path: Path) -> None:
    """A job on record from a pid namespace that is gone is nobody's any more: the lease alone tells whether it runs (L1)."""
    o.configure(o.task("kbSync", ends="true"))
    paths.open_state_directory(str(o.lock.directory))
    gone = record.ProcessIdentity(pid=os.getpid(), start_ticks=1, boot_id=record_boot(), pid_namespace="1")
    record.write(
        str(o.lock.directory), record.Record(identity=gone, jobs={"kbSync": record.Started(identity=gone, at=1.0)})
    )
    running = o.start()
    o.until_began("kbSync")
    assert o.stop(running) == 0


def record_boot() -> str:
    """Return this boot's id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
