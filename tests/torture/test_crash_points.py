"""A wrapper killed at every system call between the opening of the lock file and its exit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

import maintlock
from tests.protocol import (
    is_locked,
    leave_crashed,
    pids_in_kernel_queue,
    places,
    told,
    until_queued,
)
from tests.support import PATIENCE_SECONDS, WRAP, Lock, Running, until
from tests.torture.crash_points import (
    COMPLETED,
    DEFERRED,
    ENDS,
    FAILED,
    LOST,
    UNSEEN,
    Place,
    Point,
    ThreadTracer,
    Tracer,
    Truth,
    assert_truthful,
    granted_in_the_end,
    run_killed,
)

PARTS = 4  # of all points, so that they are met by several workers
# How often somebody looks again, or one thread waits for the other, is a matter of time: each of these is like the others.
OF_TIME = frozenset({"clock_nanosleep", "futex"})
TRIES = 10  # when a signal arrives differs from run to run, and with it the count of a call
MAY_MISS = (
    0.02  # of the calls: they were made for a signal, or another process of the machine, that does not come again
)
ZERO = {"zero": COMPLETED, "second": COMPLETED}

# Runs the first, killed at a point or not at all, in a fresh state directory, until nothing of it works any more.
AnyTracer = TypeVar("AnyTracer", bound=Tracer)
Run = Callable[[Lock, AnyTracer, Point | None], int]


def one_grant(lock: Lock) -> None:
    """Have one job run to its end."""
    lock.wrap("-t", "zero", "--", "true")


def no_grant(lock: Lock) -> None:
    """Leave the state directory empty."""


def die_everywhere(
    place: Place,
    tracer: AnyTracer,
    run: Run[AnyTracer],
    truth: Truth,
    *,
    part: int = 0,
    parts: int = 1,
    until_call: str | None = None,
    at_least: int = 50,
) -> None:
    """Kill a wrapper at each of its calls, each time in a fresh state directory, and look at what is told in the end."""
    marker = place.directory / "ran"
    assert run(place.fresh(), tracer, None) == 0
    points = tracer.points(until_call=until_call)
    missed = []
    for point in points[part::parts]:
        died = None
        for _ in range(TRIES):
            marker.unlink(missing_ok=True)
            lock = place.fresh()
            code = run(lock, tracer, point)
            assert code in {0, -signal.SIGKILL, 128 + signal.SIGKILL}, (code, point)
            died = tracer.died_at() if code else None
            try:
                granted_in_the_end(lock)
                assert_truthful(lock, marker, truth)
            except AssertionError as error:
                raise AssertionError(f"killed at {died} for {point}: {error!r}") from error
            if died is not None and died.name == point.name:
                break
        if died is None and point.name not in OF_TIME:
            missed.append(point)
    print(f"killed at {len(points[part::parts]) - len(missed)} of {len(points[part::parts])} of {len(points)} points")
    assert len(points) >= at_least
    assert len(missed) <= MAY_MISS * len(points), missed


def runs(place: Place, *options: str) -> Run[Tracer]:
    """Return how the first is run with some options."""

    def run(lock: Lock, tracer: Tracer, point: Point | None) -> int:
        first = (WRAP, "-t", "first", *options, "--", "touch", f"{place.directory}/ran")
        return run_killed(lock, tracer.argv(*first, point=point))

    return run


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_every_call(tmp_path: Path, require: Callable[[str], str], part: int) -> None:
    """Wherever a wrapper is killed the next request runs, and history tells the truth of both (L1, L2)."""
    place = Place(tmp_path, one_grant)
    die_everywhere(place, Tracer(require("strace"), tmp_path), runs(place), Truth(others=ZERO), part=part, parts=PARTS)


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_the_first_of_all_killed_at_every_call(tmp_path: Path, require: Callable[[str], str], part: int) -> None:
    """Wherever the first wrapper of a new state directory is killed, the next request runs (L1)."""
    place, truth = Place(tmp_path, no_grant), Truth(others={"second": COMPLETED})
    die_everywhere(place, Tracer(require("strace"), tmp_path), runs(place), truth, part=part, parts=PARTS)


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_while_cleaning_up(tmp_path: Path, require: Callable[[str], str], part: int) -> None:
    """Wherever a wrapper is killed that found a crashed grant and its sidecar, both are told of once (L1, L12)."""
    place = Place(tmp_path, lambda lock: leave_crashed(lock, "zero"))
    truth = Truth(others={"zero": LOST, "second": COMPLETED})
    die_everywhere(place, Tracer(require("strace"), tmp_path), runs(place), truth, part=part, parts=PARTS)


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_killed_on_the_way_to_become_the_command(tmp_path: Path, require: Callable[[str], str]) -> None:
    """Wherever a wrapper with `--exec` is killed, also as the command, its end is told as unseen."""
    place = Place(tmp_path, one_grant)
    truth = Truth(first=((), UNSEEN), others=ZERO)
    die_everywhere(place, Tracer(require("strace"), tmp_path), runs(place, "--exec"), truth, until_call="execve")


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_killed_inside_a_job(tmp_path: Path, require: Callable[[str], str]) -> None:
    """Wherever a wrapper is killed that has joined a job, that job's grant ends as it should, and others still join (R7)."""
    place = Place(tmp_path, one_grant)

    def run(lock: Lock, tracer: Tracer, point: Point | None) -> int:
        first = tracer.argv(WRAP, "-t", "first", "--", "touch", f"{tmp_path}/ran", point=point)
        third = f"{WRAP} -t third -E {DEFERRED} -- true"
        outer = lock.wrap("-t", "outer", "--", "sh", "-c", f'"$@"; echo $?; {third}', "sh", *first)
        assert outer.returncode == 0, outer
        assert not is_locked(places(lock).nested)
        rows = told(lock, lease_id=told(lock, task="outer")[0]["lease_id"])
        names = [row["event"] for row in rows if row["task"] == "first"]
        assert names in ([], ["nested_started"], ["nested_started", "nested_finished"]), rows
        assert [row["event"] for row in rows if row["task"] == "third"] == ["nested_started", "nested_finished"], rows
        assert {row["parent_task"] for row in rows if row["task"] in {"first", "third"}} == {"outer"}, rows
        code = int(outer.stdout)
        return -signal.SIGKILL if code == 128 + signal.SIGKILL else code

    truth = Truth(first=((),), others={**ZERO, "outer": COMPLETED}, is_granted=False)
    die_everywhere(place, Tracer(require("strace"), tmp_path), run, truth)


def read_ready(running: subprocess.Popen[bytes]) -> bool:
    """Tell whether a job has begun; False once it has ended without."""
    assert running.stdout is not None
    return running.stdout.readline() == b"ready\n"


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_killed_with_a_waiter_behind_it(tmp_path: Path, require: Callable[[str], str]) -> None:
    """Wherever a wrapper is killed somebody who waits behind it gets the lease, once its job has ended (L1, L2)."""
    place = Place(tmp_path, one_grant)

    def run(lock: Lock, tracer: Tracer, point: Point | None) -> int:
        job = ("sh", "-c", 'echo ready; read x; touch "$0"', f"{tmp_path}/ran")
        first = tracer.argv(WRAP, "-t", "first", "--", *job, point=point)
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(first, env=lock.env(), stdin=pipe, stdout=pipe, stderr=null) as running:
            try:
                has_begun = read_ready(running)
                waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
                if has_begun:
                    until_queued(lock, waiter)
                running.communicate(timeout=PATIENCE_SECONDS)
                assert waiter.end()[0] == 0
            finally:
                running.kill()
                lock.close()
        return running.returncode

    die_everywhere(place, Tracer(require("strace"), tmp_path), run, Truth(others={**ZERO, "waiter": COMPLETED}))


@pytest.mark.torture
@pytest.mark.timeout(900)
def test_killed_while_waiting_and_after(tmp_path: Path, require: Callable[[str], str]) -> None:
    """Wherever a wrapper is killed that waits, or has waited, for the lease, who waits behind it gets it (L1)."""
    place = Place(tmp_path, no_grant)

    def run(lock: Lock, tracer: Tracer, point: Point | None) -> int:
        holder = lock.hold("zero", script="echo ready; read x; true")
        command = (WRAP, "-t", "first", "-w", "forever", "--", "touch", f"{tmp_path}/ran")
        first = lock.start(*tracer.argv(*command, point=point, threads=True)[1:], program=tracer.strace)
        try:
            until(
                lambda: first.popen.poll() is not None or pids_in_kernel_queue(places(lock).lock), "the first to wait"
            )
            waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
            until_queued(lock, waiter)
            holder.popen.communicate()
            code = first.end()[0]
            assert waiter.end()[0] == 0
        finally:
            lock.close()
        return code

    # A call of the same name and number may be met by the job first, before it is what it will be: then that dies too.
    truth = Truth(first=(*ENDS, FAILED), others={**ZERO, "waiter": COMPLETED})
    die_everywhere(place, Tracer(require("strace"), tmp_path), run, truth)


@pytest.mark.timeout(600)
def test_killed_in_the_thread_that_waits(tmp_path: Path, require: Callable[[str], str]) -> None:
    """Wherever the thread is killed that waits in the kernel, or has just got the lock, who waits behind it gets it (L1)."""
    place = Place(tmp_path, no_grant)

    def run(lock: Lock, tracer: ThreadTracer, point: Point | None) -> int:
        holder = lock.hold("zero", script="echo ready; read x; true")
        first = lock.start("-t", "first", "-w", "forever", "--", "touch", f"{tmp_path}/ran")
        try:
            until_queued(lock, first)
            (thread,) = {int(name) for name in os.listdir(f"/proc/{first.pid}/task")} - {first.pid}
            with tracer.attached(thread, point):
                waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true")
                until_queued(lock, waiter)
                holder.popen.communicate()
                code = first.end()[0]
            assert waiter.end()[0] == 0
        finally:
            lock.close()
        return code

    truth = Truth(others={**ZERO, "waiter": COMPLETED})
    die_everywhere(place, ThreadTracer(require("strace"), tmp_path), run, truth, at_least=3)


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_while_standing_back(tmp_path: Path, require: Callable[[str], str], part: int) -> None:
    """Wherever a wrapper is killed that stands back, the holder keeps the lease, and the deferral is told once or not."""
    place = Place(tmp_path, no_grant)

    def run(lock: Lock, tracer: Tracer, point: Point | None) -> int:
        holder: Running = lock.hold("zero", script="echo ready; read x; true")
        try:
            code = run_killed(lock, tracer.argv(WRAP, "-t", "first", "--", "touch", f"{tmp_path}/ran", point=point))
            assert not (tmp_path / "ran").exists()
            status = maintlock.status(state_dir=str(lock.directory))
            assert status["state"] == "held" and status["holder"]["task"] == "zero", status
            done = lock.wrap("-t", "third", "-E", str(DEFERRED), "--", "true")
            assert done.returncode == DEFERRED, done
            assert [row["reason_code"] for row in told(lock, event="deferred", task="third")] == ["lease-held"]
            assert [row["reason_code"] for row in told(lock, event="deferred", task="first")] in ([], ["lease-held"])
            holder.popen.communicate()
        finally:
            lock.close()
        return code

    truth = Truth(first=((),), others=ZERO)
    die_everywhere(place, Tracer(require("strace"), tmp_path), run, truth, part=part, parts=PARTS)
