from __future__ import annotations

from pathlib import Path

import pytest

from maintlock import pending
from maintlock.orchestrator.backpressure import Decision, Gate
from maintlock.orchestrator.cadence import Due
from maintlock.orchestrator.record import Held
from maintlock.orchestrator.streaks import Streaks, held_by, streak_of
from maintlock.settings import TaskSettings
from maintlock.states import TaskState

NOW = 1_000_000.0
KB_SYNC = TaskSettings(name="kbSync", command=("true",), interval=60.0)
BACKUP = TaskSettings(name="backup", command=("true",), interval=60.0)
BY_HAND = Gate(reason_code="lease-held", blocked_by="by-hand")
OTHER = Gate(reason_code="backpressure", blocked_by="dream")
FIRST, SECOND = TaskState(last_run="g1"), TaskState(last_run="g2")


def due(task: TaskSettings) -> Due:
    """Return a task that is due."""
    return Due(task=task, since=NOW, reason="periodic:60s")


def test_who_is_held_back_since_when() -> None:
    """A task is held back since the first of the passes in a row in which it was, whatever held it back."""
    before = {"kbSync": Held(reason_code="lease-held", blocked_by="by-hand", since=NOW - 9)}
    decided = [Decision(due=due(KB_SYNC), gate=OTHER), Decision(due=due(BACKUP), gate=BY_HAND)]
    assert held_by(decided, before, NOW) == {
        "kbSync": Held(reason_code="backpressure", blocked_by="dream", since=NOW - 9),
        "backup": Held(reason_code="lease-held", blocked_by="by-hand", since=NOW),
    }
    assert held_by([Decision(due=due(KB_SYNC))], before, NOW) == {}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (FIRST, "heavy-maintenance:kbSync:held back since g1"),
        (TaskState(), "heavy-maintenance:kbSync:held back since the beginning"),
        (None, "heavy-maintenance:kbSync:held back since the beginning"),
    ],
)
def test_a_streak_is_named_by_the_run_before(told: TaskState | None, expected: str) -> None:
    """A streak has the same name for whoever reads the same ledger (L5)."""
    assert streak_of(KB_SYNC, told) == expected


def test_what_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The ledger is told once for each streak, the log once for each blocker and reason in it (L5, R9, L10)."""
    streaks = Streaks(str(tmp_path))
    with caplog.at_level("INFO", "maintlock.orchestrator"):
        for gate, told in [(BY_HAND, FIRST), (OTHER, FIRST), (BY_HAND, FIRST), (BY_HAND, SECOND), (BY_HAND, SECOND)]:
            streaks.tell(Decision(due=due(KB_SYNC), gate=gate), told, NOW)
    assert [line.partition(" held back by ")[2] for line in caplog.messages] == [
        "by-hand (lease-held)", "dream (backpressure)", "by-hand (lease-held)",
    ]  # fmt: skip
    assert [event["id"] for event in pending.read(str(tmp_path))] == [streak_of(KB_SYNC, s) for s in (FIRST, SECOND)]


def test_a_ledger_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Until the ledger could be read nobody knows which streak it is: the log alone is told."""
    streaks = Streaks(str(tmp_path))
    with caplog.at_level("INFO", "maintlock.orchestrator"):
        streaks.tell(Decision(due=due(KB_SYNC), gate=BY_HAND), None, NOW)
    assert len(caplog.messages) == 1 and pending.read(str(tmp_path)) == []
    streaks.tell(Decision(due=due(KB_SYNC), gate=BY_HAND), FIRST, NOW)
    assert len(pending.read(str(tmp_path))) == 1


def test_what_a_wrapper_has_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a task's wrapper has told the ledger is not told again; the log is told of it once."""
    streaks = Streaks(str(tmp_path))
    with caplog.at_level("INFO", "maintlock.orchestrator"):
        streaks.stood_back(KB_SYNC, BY_HAND, FIRST)
        streaks.tell(Decision(due=due(KB_SYNC), gate=BY_HAND), FIRST, NOW)
    assert len(caplog.messages) == 1 and pending.read(str(tmp_path)) == []


def test_a_new_ledger_is_told_again(tmp_path: Path) -> None:
    """After the state directory was removed, the new ledger is told of a streak that goes on."""
    streaks = Streaks(str(tmp_path))
    held = Decision(due=due(KB_SYNC), gate=BY_HAND)
    streaks.tell(held, FIRST, NOW)
    (tmp_path / "ledger.pending").unlink()
    streaks.tell(held, FIRST, NOW)
    assert pending.read(str(tmp_path)) == []
    streaks.forget()
    streaks.tell(held, FIRST, NOW)
    assert [event["id"] for event in pending.read(str(tmp_path))] == [streak_of(KB_SYNC, FIRST)]


def test_who_waits_in_the_queue(caplog: pytest.LogCaptureFixture) -> None:
    """For whom a task waits in the queue is told once for each blocker, and not as a deferral (R9)."""
    streaks = Streaks("/nowhere")
    waiting = [Held(reason_code="lease-held", blocked_by=blocker, since=NOW) for blocker in ("x", "x", "y")]
    with caplog.at_level("INFO", "maintlock.orchestrator"):
        for held in waiting:
            streaks.explain_waiting(KB_SYNC, held, FIRST)
            streaks.stood_back(KB_SYNC, BY_HAND, FIRST)
    assert caplog.messages == [
        "kbSync is due, and waits for x (lease-held)",
        "kbSync is due, but held back by by-hand (lease-held)",
        "kbSync is due, and waits for y (lease-held)",
    ]
