"""The fence: a number that rises with every grant, whatever was lost in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from maintlock import ledger, pending
from tests.protocol import assert_each_grant_ended_once, ends, leave_crashed, line_of, places, survivor_of_a_crash, told
from tests.support import Lock

SHOW = ("sh", "-c", "echo $MAINTLOCK_FENCE")


def granted(lock: Lock, lease: str = "heavy-maintenance") -> int:
    """Return the fence of one more grant."""
    done = lock.wrap("-t", "next", "--lease", lease, "--", *SHOW)
    assert done.returncode == 0, done.stderr
    fence = int(done.stdout)
    assert line_of(lock, lease).fence == fence
    return fence


def drop_lock(lock: Lock) -> None:
    """Remove the lock file."""
    os.unlink(places(lock).lock)


def empty_lock(lock: Lock) -> None:
    """Empty the lock file."""
    os.truncate(places(lock).lock, 0)


def drop_sidecar(lock: Lock) -> None:
    """Remove the sidecar."""
    Path(places(lock).sidecar).unlink(missing_ok=True)


def drop_both(lock: Lock) -> None:
    """Remove lock file and sidecar."""
    drop_lock(lock)
    drop_sidecar(lock)


def drop_both_drained(lock: Lock) -> None:
    """Remove both when the ledger has everything and nothing waits."""
    ledger.drain(str(lock.directory), now=0.0)
    assert pending.read(str(lock.directory)) == []
    drop_both(lock)


LOSSES = [lambda lock: None, drop_lock, empty_lock, drop_sidecar, drop_both, drop_both_drained]


def test_it_rises_with_every_grant(lock: Lock) -> None:
    """Grants are numbered from one, each lease for itself."""
    assert [granted(lock) for _ in range(3)] == [1, 2, 3]
    assert granted(lock, "other") == 1


@pytest.mark.parametrize("lose", LOSSES)
def test_after_a_clean_end(lock: Lock, lose: Callable[[Lock], None]) -> None:
    """Whatever is removed between two grants, the next fence is higher, and no grant is told twice."""
    assert [granted(lock) for _ in range(3)] == [1, 2, 3]
    lose(lock)
    assert granted(lock) == 4
    assert granted(lock) == 5
    assert [outcome for _, _, outcome in ends(lock)] == ["completed"] * 5
    assert_each_grant_ended_once(lock)


@pytest.mark.parametrize("lose", LOSSES)
def test_after_a_crash(lock: Lock, lose: Callable[[Lock], None]) -> None:
    """Whatever is removed after a crash, the next fence is higher, and the lost grant has one end."""
    assert granted(lock) == 1
    leave_crashed(lock)
    lose(lock)
    assert granted(lock) == 3
    assert granted(lock) == 4
    assert [(task, outcome) for task, _, outcome in ends(lock)].count(("crashed", "lost")) == 1
    assert_each_grant_ended_once(lock)


def test_from_the_sidecar_alone(lock: Lock) -> None:
    """When the lock file and all history are gone, the crashed grant's sidecar still says its number, and is told of."""
    assert granted(lock) == 1
    leave_crashed(lock)
    drop_lock(lock)
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.pending"):
        (lock.directory / name).unlink(missing_ok=True)
    assert granted(lock) == 3
    assert [row["task"] for row in told(lock, event="acquired")] == ["crashed", "next"]
    assert ends(lock) == [("crashed", "stale_cleaned", "lost"), ("next", "released", "completed")]


def test_survivors_of_a_lost_lock_file(lock: Lock) -> None:
    """When the lock file of a crashed grant is gone, what works on of it still holds the lease (R1)."""
    with survivor_of_a_crash(lock, "backup") as survivor:
        drop_lock(lock)
        done = lock.wrap("-t", "next", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert str(survivor) in done.stderr
    assert granted(lock) == 2
    assert_each_grant_ended_once(lock)
