"""The lease protocol against a model of it: any sequence of what can happen, with real processes, looked at after each step.

The model knows who must have the lease, who waits, and what is at work; it decides what the answer to a request must be.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import maintlock
from maintlock import locktable, process
from tests.headless import is_alive
from tests.protocol import (
    LEASE,
    PYTHON,
    assert_each_grant_ended_once,
    is_locked,
    kill,
    pids_in_kernel_queue,
    places,
    stop_without,
    survivor_of_a_crash,
    told,
    until_gone,
    waiting,
)
from tests.support import Lock, Running, until, until_stopped

JOB = str(Path(__file__).resolve().parent / "model_job.py")
DEFERRED = 9
IN_FLOCK = "lock_inode_wait"
AT_MOST = 4  # waiters
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile("model", deadline=None, max_examples=8, stateful_step_count=14, suppress_health_check=CHECKS)
settings.register_profile(
    "model-torture", deadline=None, max_examples=100, stateful_step_count=30, suppress_health_check=CHECKS
)


def threads_of(pid: int) -> list[str]:
    """Return where the threads of a process are described."""
    try:
        return [f"/proc/{pid}/task/{tid}" for tid in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []


@dataclass
class Held:
    """One grant, by what of it is at work."""

    task: str
    running: Running
    job: int
    fence: int
    wrapper_lives: bool = True
    job_lives: bool = True
    children: list[int] = field(default_factory=list)
    nested: dict[str, tuple[int, int]] = field(default_factory=dict)
    is_replaced: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether anything of it works."""
        return self.job_lives or bool(self.children) or bool(self.nested)

    @property
    def has_descriptor(self) -> bool:
        """Whether a process of it holds the kernel's lock."""
        return self.wrapper_lives or self.job_lives


@dataclass
class Waiter:
    """Somebody in the queue. Who was ever stopped, or queued for a file that is gone, has no place in the order."""

    task: str
    running: Running
    is_stopped: bool = False
    is_disturbed: bool = False


@dataclass
class Model:
    """Who must have the lease."""

    held: Held | None = None
    queue: list[Waiter] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)  # of each grant that has ended, in order

    def states(self) -> set[str]:
        """Return what `status` may say."""
        if self.held is None:
            return {"free"}
        if self.held.is_replaced:  # a waiter keeps the new file locked
            return {"held", "orphaned"}
        return {"held" if self.held.wrapper_lives else "orphaned"}

    def reason_codes(self) -> set[str]:
        """Return why a request that does not wait must stand back; none if it is granted."""
        if self.held is None:
            return set()
        codes = {"lease-held" if self.held.wrapper_lives else "survivors"}
        if self.held.is_replaced:
            codes = {"lockfile-replaced", "survivors", "lease-held"}
        return codes | {"queued"} if self.queue else codes

    def next_ones(self) -> list[Waiter]:
        """Return who may be granted a lease that is free: whoever has no place in the order, or the first who has one."""
        awake = [waiter for waiter in self.queue if not waiter.is_stopped]
        in_order = [waiter for waiter in awake if not waiter.is_disturbed]
        return [waiter for waiter in awake if waiter.is_disturbed] + in_order[:1]

    @property
    def has_unlocked(self) -> bool:
        """Whether a waiter may hold the kernel's lock without being granted: stopped, it would be in everybody's way."""
        return self.held is not None and (self.held.is_replaced or not self.held.has_descriptor)


class Protocol(RuleBasedStateMachine):
    """What can happen, what must come of it, and what must always be so."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.lock = Lock(self.directory / "state")
        self.lock.directory.mkdir(mode=0o700)
        self.log, self.work = self.directory / "log", self.directory / "work"
        self.log.touch()
        self.model = Model()
        self.numbers = itertools.count(1)
        self.fences: list[int] = []

    # What the real processes say

    def command(self, task: str) -> tuple[str, ...]:
        """Return the command line of a controllable job."""
        return ("--", PYTHON, "-ISu", JOB, str(self.work), str(self.log), task)

    def begun(self) -> list[list[str]]:
        """Return name, pid and fence of all jobs that have begun."""
        rows = [line.split() for line in self.log.read_text().splitlines()]
        assert not [row for row in rows if row[0].startswith("COLLISION")], rows
        return rows

    def grant(self, of: dict[str, Running]) -> None:
        """One of these is granted the lease now: take down which."""
        row = until(lambda: self.begun()[len(self.fences) :], f"one of {list(of)} to begin")[0]
        task, job, fence = row[0], int(row[1]), int(row[2])
        assert task in of, (task, list(of))
        assert fence > max(self.fences, default=0)
        self.fences.append(fence)
        self.model.held = Held(task, of[task], job, fence)
        self.model.queue = [waiter for waiter in self.model.queue if waiter.task != task]
        until(lambda: self.lock.sidecar()["job_pid"] == job, "the sidecar to name the job")
        until(lambda: told(self.lock, event="acquired", task=task), "the grant to be told")

    def settle(self) -> None:
        """If nothing of the grant works any more the lease is free, and the next in the queue gets it."""
        held = self.model.held
        if held is not None and held.goes_on:
            return
        if held is not None:
            if held.wrapper_lives:
                assert held.running.end()[0] == 0
            self.model.outcomes[held.task] = "completed" if held.wrapper_lives else "lost"
            self.model.held = None
        if following := self.model.next_ones():
            self.grant({waiter.task: waiter.running for waiter in following})

    def is_in_line(self, pid: int) -> bool:
        """Tell whether a process waits for the kernel's lock, or has it.

        In a pid namespace the table leaves out a lock whose taker has died, and with it who waits for that.
        """
        if any(IN_FLOCK in (process.read_text(f"{thread}/wchan", 80) or "") for thread in threads_of(pid)):
            return True
        rows = map(locktable.parsed_row, Path("/proc/locks").read_text().splitlines())
        try:
            inode = os.stat(places(self.lock).lock).st_ino
        except FileNotFoundError:
            return False
        return any(row is not None and row.locker == pid and row.inode == inode for row in rows)

    def tell_job(self, words: str) -> None:
        """Give the job an order."""
        assert self.model.held is not None
        stdin = self.model.held.running.popen.stdin
        assert stdin is not None
        stdin.write(words.encode() + b"\n")
        stdin.flush()

    def started(self, words: str) -> tuple[int, int]:
        """Have the job start something that says its pid and its parent's."""
        path = self.directory / f"pids{next(self.numbers)}"
        self.tell_job(f"{words} {path}")
        found = until(lambda: path.exists() and path.read_text().split(), "the process to say who it is")
        return int(found[0]), int(found[1])

    # Requests

    @rule()
    def ask(self) -> None:
        """Somebody who does not wait asks: granted when nobody has it, else the reason is the right one."""
        task = f"t{next(self.numbers)}"
        codes = self.model.reason_codes()
        if not codes:
            self.grant({task: self.start(task)})
            return
        done = self.lock.wrap("-t", task, "-E", str(DEFERRED), "--", "true")
        assert done.returncode == DEFERRED, done
        rows = told(self.lock, task=task)
        assert [row["event"] for row in rows] == ["deferred"], rows
        assert rows[0]["reason_code"] in codes, (rows, self.model)

    @precondition(lambda self: len(self.model.queue) < AT_MOST)
    @rule()
    def ask_and_wait(self) -> None:
        """Somebody who waits asks: granted when nobody has it, else in line."""
        task = f"t{next(self.numbers)}"
        is_free = self.model.held is None
        running = self.start(task, "-w", "forever")
        if is_free:
            self.grant({task: running})
            return
        until(lambda: self.is_in_line(running.pid) and task in waiting(self.lock), f"{task} to be in line")
        self.model.queue.append(Waiter(task, running))

    def start(self, task: str, *options: str) -> Running:
        """Start a request whose job we control."""
        return self.lock.start("-t", task, *options, *self.command(task), stdin=subprocess.PIPE)

    # What becomes of a grant

    @precondition(lambda self: self.model.held is not None and self.model.held.job_lives)
    @rule()
    def end_job(self) -> None:
        """The job's main process ends."""
        held = self.model.held
        assert held is not None
        self.tell_job("end")
        until(lambda: not is_alive(held.job), "the job's end")
        held.job_lives = False
        self.settle()

    @precondition(lambda self: self.model.held is not None and self.model.held.wrapper_lives)
    @rule(with_job=st.booleans())
    def kill_wrapper(self, *, with_job: bool) -> None:
        """The wrapper is killed, alone or with its job."""
        held = self.model.held
        assert held is not None
        for pid in [held.running.pid, *([held.job] if with_job else [])]:
            kill(pid)
        held.running.popen.wait()
        held.wrapper_lives = False
        if with_job:
            until_gone(held.job)
            held.job_lives = False
        self.settle()

    @precondition(lambda self: self.model.held is not None and self.model.held.job_lives)
    @rule()
    def leave_child(self) -> None:
        """The job starts something that will outlive it."""
        assert self.model.held is not None
        self.model.held.children.append(self.started("child")[0])

    @precondition(lambda self: self.model.held is not None and self.model.held.children)
    @rule()
    def end_child(self) -> None:
        """What a job has left behind ends."""
        assert self.model.held is not None
        pid = self.model.held.children.pop()
        kill(pid)
        until_gone(pid)
        self.settle()

    @precondition(
        lambda self: self.model.held is not None and self.model.held.job_lives and not self.model.held.is_replaced
    )
    @rule()
    def join(self) -> None:
        """The job starts a guarded part of itself, which runs at once."""
        held = self.model.held
        assert held is not None
        task = f"n{next(self.numbers)}"
        held.nested[task] = self.started(f"nested {task}")
        until(lambda: told(self.lock, event="nested_started", task=task), "the part to be told")
        assert told(self.lock, task=task)[0]["parent_task"] == held.task

    @precondition(lambda self: self.model.held is not None and self.model.held.nested)
    @rule()
    def end_joined(self) -> None:
        """A guarded part of a job ends."""
        held = self.model.held
        assert held is not None
        task, (job, wrapper) = held.nested.popitem()
        kill(job, signal.SIGTERM)
        until_gone(job)
        until_gone(wrapper)
        assert told(self.lock, event="nested_finished", task=task)
        self.settle()

    # Hostile hands

    @precondition(lambda self: (self.lock.directory / f"{LEASE}.lock").exists())
    @rule(how=st.sampled_from(["unlinked", "recreated", "copied"]))
    def replace_lock_file(self, how: str) -> None:
        """Somebody replaces the lock file."""
        path = self.lock.directory / f"{LEASE}.lock"
        if how == "copied":
            copy = path.with_suffix(".copy")
            shutil.copy2(path, copy)
            copy.rename(path)
        else:
            path.unlink()
        if how == "recreated":
            path.touch(mode=0o600)
        for waiter in self.model.queue:
            waiter.is_disturbed = True
        if self.model.held is not None:
            self.model.held.is_replaced = True

    @precondition(lambda self: self.model.held is not None)
    @rule(how=st.sampled_from(["removed", "emptied", "torn"]))
    def spoil_sidecar(self, how: str) -> None:
        """Somebody removes or truncates the sidecar of a job that works."""
        path = self.lock.directory / f"{LEASE}.json"
        if how == "removed":
            path.unlink(missing_ok=True)
        elif path.exists():
            os.truncate(path, 0 if how == "emptied" else path.stat().st_size // 2)

    # Waiters

    @precondition(lambda self: self.model.queue and not self.model.has_unlocked)
    @rule(which=st.integers(0, AT_MOST - 1))
    def stop_waiter(self, which: int) -> None:
        """Somebody who waits is stopped, and is in nobody's way."""
        waiter = self.model.queue[which % len(self.model.queue)]
        waiter.running.signal(signal.SIGSTOP)
        until_stopped(waiter.running.pid)
        waiter.is_stopped = waiter.is_disturbed = True

    @precondition(lambda self: any(waiter.is_stopped for waiter in self.model.queue))
    @rule()
    def continue_waiter(self) -> None:
        """Somebody who was stopped goes on waiting, or gets the lease."""
        waiter = next(waiter for waiter in self.model.queue if waiter.is_stopped)
        waiter.running.signal(signal.SIGCONT)
        waiter.is_stopped = False
        self.settle()

    @precondition(lambda self: self.model.queue)
    @rule(which=st.integers(0, AT_MOST - 1))
    def kill_waiter(self, which: int) -> None:
        """Somebody who waits is killed."""
        waiter = self.model.queue.pop(which % len(self.model.queue))
        waiter.running.signal(signal.SIGKILL)
        waiter.running.popen.wait()

    # What must always be so

    @invariant()
    def only_one_works(self) -> None:
        """No job has begun that the model does not know of, and none beside another."""
        assert len(self.begun()) == len(self.fences)

    @invariant()
    def status_is_right(self) -> None:
        """`status` says what the model says."""
        status = maintlock.status(state_dir=str(self.lock.directory))
        assert status["state"] in self.model.states(), (status, self.model)
        assert {row["task"] for row in status["waiters"]} == {waiter.task for waiter in self.model.queue}, status
        nested = self.model.held.nested if self.model.held is not None else {}
        assert {row["task"] for row in status["nested"]} == set(nested), status

    def teardown(self) -> None:
        """Let everything come to its end, after which every grant has exactly one, as it was."""
        try:
            while self.model.queue or self.model.held is not None:
                while any(waiter.is_stopped for waiter in self.model.queue):
                    self.continue_waiter()
                held = self.model.held
                assert held is not None
                while held.children and held.goes_on and self.model.held is held:
                    self.end_child()
                while held.nested and self.model.held is held:
                    self.end_joined()
                if held.job_lives:
                    self.end_job()
            done = self.lock.wrap("-t", "last", "-E", str(DEFERRED), "--", "true")
            assert done.returncode == 0, done
            self.status_is_right()
            rows = told(self.lock)
            begun = [row["lease_id"] for row in rows if row["event"] == "acquired"]
            ended = [row["lease_id"] for row in rows if row["outcome"] is not None]
            assert sorted(begun) == sorted(ended), rows
            outcomes = {row["task"]: row["outcome"] for row in rows if row["outcome"] is not None}
            assert outcomes == {**self.model.outcomes, "last": "completed"}, rows
        finally:
            self.lock.close()
            shutil.rmtree(self.directory)


def run(make: Callable[[], Protocol], profile: str) -> None:
    """Run the machine under a profile."""
    run_state_machine_as_test(make, settings=settings.get_profile(profile))


@pytest.mark.timeout(600)
def test_whatever_happens_the_model_is_right() -> None:
    """Whatever happens to the lease, one job works at a time, in order, and each grant ends once (R1, L1, L2, L8)."""
    run(Protocol, "model")


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_whatever_happens_for_long_the_model_is_right() -> None:
    """As above, for many and long sequences (R1, L1, L2, L8)."""
    run(Protocol, "model-torture")


def test_a_file_replaced_under_who_waits_for_survivors(lock: Lock) -> None:
    """Who has locked a file that was replaced while survivors worked is no holder: the lease is granted once (R1)."""
    path = lock.directory / f"{LEASE}.lock"
    with survivor_of_a_crash(lock):
        first = lock.start("-t", "first", "-w", "forever", "--", "echo", "ran")
        until(lambda: "first" in waiting(lock) and is_locked(path), "the first to keep the lock")
        path.unlink()
        second = lock.start(
            "-t", "second", "-w", "forever", "--", "sh", "-c", "echo ready; read x", stdin=subprocess.PIPE
        )
        until(lambda: "second" in waiting(lock) and is_locked(path), "the second to keep the new one")
        stop_without(first, places(lock).nested)  # it looks for survivors under that lock, as the second must
    second.until_line("ready")
    first.signal(signal.SIGCONT)
    until(lambda: first.pid in pids_in_kernel_queue(path) or first.popen.poll() is not None, "the first to queue anew")
    assert first.popen.poll() is None
    second.popen.communicate()
    assert first.end()[:2] == (0, "ran\n")
    assert [row["task"] for row in told(lock, event="acquired")] == ["crashed", "second", "first"]
    assert_each_grant_ended_once(lock)
