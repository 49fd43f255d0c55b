from __future__ import annotations

import os
from pathlib import Path

import pytest

from maintlock.history import States
from maintlock.model import ProcessIdentity
from maintlock.orchestrator import facts
from maintlock.orchestrator.backpressure import Gate
from maintlock.orchestrator.facts import History, LeaseFacts, Leases, gates_of
from maintlock.orchestrator.record import Started
from maintlock.settings import TaskSettings
from maintlock.states import TaskState

NOW = 1_000_000.0
LEASE = "heavy-maintenance"
KB_SYNC = TaskSettings(name="kbSync")
LIGHT = TaskSettings(name="light", heavy=False, lease="light.task")
HELD = Gate(reason_code="lease-held", blocked_by="by-hand")
QUEUED = Gate(reason_code="queued", blocked_by="by-hand")


def started(lease: str) -> Started:
    """Return a job that was started for a lease, a day ago."""
    who = ProcessIdentity(pid=1, start_ticks=1, boot_id="", pid_namespace="")
    return Started(identity=who, at=NOW - 86400, lease=lease)


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ({}, {}),
        ({"kbSync": LEASE}, {LEASE: "kbSync"}),
        ({"backup": LEASE, "kbSync": LEASE}, {LEASE: "backup"}),
        ({"backup": LEASE, "light": "light.task"}, {LEASE: "backup", "light.task": "light"}),
    ],
)
def test_a_live_wrapper_is_a_gate(jobs: dict[str, str], expected: dict[str, str]) -> None:
    """A job of ours stands for its lease for as long as its wrapper lives, whatever else is seen of it (R1, R4)."""
    found = gates_of({name: started(lease) for name, lease in jobs.items()})
    assert found == {lease: Gate(reason_code="backpressure", blocked_by=name) for lease, name in expected.items()}


@pytest.mark.parametrize(
    ("expected", "task", "lease"),
    [
        (True, KB_SYNC, LeaseFacts(running=frozenset({"kbSync"}), gate=HELD)),
        (True, KB_SYNC, LeaseFacts(running=frozenset({"primary-dev-sync", "kbSync"}), gate=HELD)),
        (False, KB_SYNC, LeaseFacts(running=frozenset({"backup"}), gate=HELD)),
        (False, KB_SYNC, LeaseFacts(running=frozenset(), gate=HELD)),
        (False, KB_SYNC, LeaseFacts(running=frozenset(), gate=None)),
        (True, LIGHT, LeaseFacts(running=frozenset(), gate=HELD)),
        (False, LIGHT, LeaseFacts(running=frozenset(), gate=None)),
    ],
)
def test_who_runs_already(*, expected: bool, task: TaskSettings, lease: LeaseFacts) -> None:
    """The task that holds a lease runs, and so do those that have joined it; whoever holds a light task's own lease is that task."""
    assert lease.is_running(task) is expected


def test_a_waiter_is_not_believed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who waits for a free lease is believed for some seconds in a row, and anew once he did not."""
    now, gates = [0.0], [QUEUED]
    monkeypatch.setattr(facts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(facts, "read_lease", lambda places, present: LeaseFacts(running=frozenset(), gate=gates[0]))
    leases = Leases("/nowhere")

    def read(at: float, gate: Gate) -> Gate | None:
        now[0], gates[0] = at, gate
        return leases.read(LEASE, None).gate

    assert [read(at, QUEUED) for at in (100, 109, 110, 200)] == [QUEUED, QUEUED, None, None]
    assert read(201, HELD) == HELD
    assert [read(at, QUEUED) for at in (300, 309, 310)] == [QUEUED, QUEUED, None]


def test_the_ledger_is_read_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is read anew when a file of its has changed, and after a failure; what was last read stays."""
    reads: list[int] = []

    def read(_directory: str) -> States:
        reads.append(1)
        if len(reads) == 2:
            raise OSError("broken")
        return States(tasks={(LEASE, "kbSync"): TaskState(last_run=str(len(reads)))}, collisions={}, present=[])

    def change(size: int) -> None:
        path.write_bytes(b"x" * size)
        os.utime(path, (1, 1))

    monkeypatch.setattr(facts.history, "read_states", read)
    path = tmp_path / "ledger.pending"
    change(1)
    found = History(str(tmp_path))
    assert found.state_of(KB_SYNC) is None
    found.read()
    found.read()
    assert len(reads) == 1 and found.state_of(KB_SYNC) == TaskState(last_run="1")
    assert found.state_of(LIGHT) == TaskState()
    change(2)
    with pytest.raises(OSError, match="broken"):
        found.read()
    assert found.state_of(KB_SYNC) == TaskState(last_run="1")
    found.read()
    assert found.state_of(KB_SYNC) == TaskState(last_run="3")


def test_a_change_at_the_same_tick_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read just after a change is read once more, however late: what changed at the same tick cannot be told by it."""
    reads, now = [], [100.05]
    monkeypatch.setattr(facts.history, "read_states", lambda _directory: reads.append(1))
    monkeypatch.setattr(facts.time, "time", lambda: now[0])
    (tmp_path / "ledger.pending").touch()
    os.utime(tmp_path / "ledger.pending", (100, 100))
    found = History(str(tmp_path))
    for at, times in ((100.05, 1), (103.0, 2), (106.0, 2)):
        now[0] = at
        found.read()
        assert len(reads) == times
