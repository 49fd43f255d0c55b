from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import marks, pending
from maintlock.orchestrator.collisions import Collisions, changes, inherited_marks, mark
from maintlock.outside import Outside
from maintlock.process import Stat
from maintlock.states import Collision
from maintlock.times import epoch_seconds

LEASE = "heavy-maintenance"
NOW = 1_000_000.0
NOBODY: frozenset[str] = frozenset()


def outside(pid: int, task: str = "backup", lease: str = LEASE, ticks: int = 7, seconds: float = 9.0) -> Outside:
    """Return a heavy process that is outside the lease, and not just for a moment."""
    stat = Stat(pid=pid, name="node", state="S", ppid=1, pgid=pid, sid=pid, threads=1, start_ticks=ticks)
    return Outside(task=task, lease=lease, stat=stat, seconds=seconds)


class Known:
    """What the ledger has open, as it enters what is told."""

    def __init__(self) -> None:
        self.open: dict[str, list[Collision]] = {}
        self.told: list[tuple[str, str]] = []

    def enter(self, told: list[Any]) -> None:
        """Enter events, in their order."""
        for event in told:
            self.told.append((event["event"], event["reason_code"]))
            was = [one for one in self.open.get(event["lease"], []) if one.kind == event["reason_code"]]
            kept = [one for one in self.open.get(event["lease"], []) if one.kind != event["reason_code"]]
            if event["event"] == "collision":
                since = epoch_seconds(event["at"]) or 0.0
                told = marks.within(event["id"]).union(*(marks.within(one.id) for one in was))
                name = f"{event['reason_code']}:{'+'.join(sorted(told))}@{since}"
                kept.append(Collision(event["reason_code"], name, since, event["detail"]))
            self.open[event["lease"]] = kept

    def look(self, *found: Outside, inherited: frozenset[str] = NOBODY) -> None:
        """Make one pass."""
        self.enter(changes(found, self.open, inherited, now=NOW))


def test_one_process_is_told_once_and_cleared_once() -> None:
    """A heavy process outside the lease is told when it is found, never again, and cleared when it is gone (R8)."""
    known = Known()
    for _ in range(3):
        known.look(outside(10))
    assert known.told == [("collision", "unleased_process")]
    for _ in range(3):
        known.look()
    assert known.told == [("collision", "unleased_process"), ("collision_cleared", "unleased_process")]


def test_a_moment_is_no_collision() -> None:
    """A process that is about to ask for the lease, or about to end, is not told; once told, it is so until it is gone."""
    known = Known()
    known.look(outside(10, seconds=1.9))
    known.look()
    assert known.told == []
    known.look(outside(10, seconds=2.0))
    known.look(outside(10, seconds=0.1))
    known.look(outside(11, seconds=0.1))
    assert known.told == [("collision", "unleased_process"), ("collision_cleared", "unleased_process")]


def test_two_inherited_are_one() -> None:
    """Two that were alive at the start are told as one collision that names both, and as nothing else (R8)."""
    two = outside(10, seconds=0.1), outside(11, "kbSync", seconds=0.1)
    inherited = inherited_marks(two, {})
    known = Known()
    known.look(*two, inherited=inherited)
    (one,) = known.open[LEASE]
    assert one.kind == "inherited" and "backup (pid 10) and kbSync (pid 11)" in (one.detail or "")
    assert marks.within(one.id) == {mark(process) for process in two}
    known.look(two[1], inherited=inherited)
    known.look(inherited=inherited)
    assert known.told == [("collision", "inherited"), ("collision_cleared", "inherited")]


def test_one_alone_is_not_inherited() -> None:
    """A single heavy process at the start is an unleased one (R8)."""
    assert inherited_marks([outside(10)], {}) == frozenset()


def test_a_successor_tells_nothing_again() -> None:
    """What one orchestrator has told as inherited is so for the next one, also when only one of them is left (R8)."""
    two = outside(10), outside(11, "kbSync")
    known = Known()
    known.look(*two, inherited=inherited_marks(two, {}))
    again = inherited_marks([two[0]], known.open)
    known.look(two[0], inherited=again)
    assert known.told == [("collision", "inherited")]
    known.look(inherited=again)
    assert known.told[-1] == ("collision_cleared", "inherited")


def test_one_more_beside_inherited_ones() -> None:
    """A process that begins beside inherited ones is a collision of its own, with an end of its own."""
    two = outside(10), outside(11, "kbSync")
    inherited = inherited_marks(two, {})
    known = Known()
    known.look(*two, inherited=inherited)
    known.look(*two, outside(12), inherited=inherited)
    known.look(*two, inherited=inherited)
    assert known.told == [
        ("collision", "inherited"), ("collision", "unleased_process"), ("collision_cleared", "unleased_process"),
    ]  # fmt: skip


def test_a_recycled_pid_is_another_process() -> None:
    """A process with the pid of an inherited one, but another start, is another process (L1)."""
    two = outside(10), outside(11)
    inherited = inherited_marks(two, {})
    assert mark(outside(10, ticks=8)) not in inherited


def test_a_recycled_pid_is_told() -> None:
    """A process with the pid of one that was told is told as well, and each is named in the history (L1)."""
    known = Known()
    known.look(outside(10))
    known.look(outside(10, ticks=8))
    assert known.told == [("collision", "unleased_process")] * 2
    (event,) = changes([outside(11)], {}, NOBODY, now=NOW)
    assert event["reason"] == event["detail"] == "backup (pid 11) outside the lease"


def test_each_lease_has_its_own() -> None:
    """Collisions of two leases are told and cleared apart."""
    known = Known()
    known.look(outside(10), outside(11, "x", lease="other"))
    known.look(outside(11, "x", lease="other"))
    assert known.told[2:] == [("collision_cleared", "unleased_process")]
    assert [one.detail for one in known.open["other"]] == ["x (pid 11) outside the lease"]


@given(st.lists(st.sets(st.integers(10, 14)), max_size=12), st.sets(st.integers(10, 14)))
def test_told_as_often_as_it_is_so(looks: list[set[int]], at_start: set[int]) -> None:
    """Whatever comes and goes: who stays is told once, and at the end everything that was told is cleared."""
    known = Known()
    first = [outside(pid) for pid in sorted(at_start)]
    inherited = inherited_marks(first, {})
    known.look(*first, inherited=inherited)
    for look in looks:
        found = [outside(pid) for pid in sorted(look)]
        known.look(*found, inherited=inherited)
        before = len(known.told)
        known.look(*found, inherited=inherited)
        assert len(known.told) == before
        assert bool(found) == any(known.open.values())
    known.look(inherited=inherited)
    assert not any(known.open.values())


def test_what_the_ledger_cannot_say_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the ledger cannot say that it was told of a collision, it is told once, and before it could be read not at all."""
    collisions = Collisions(str(tmp_path))
    with caplog.at_level("INFO", "maintlock.orchestrator"):
        collisions.tell([outside(10)], None, now=NOW)
        assert caplog.messages == []
        for later in range(3):
            collisions.tell([outside(10)], {}, now=NOW + later)
        collisions.tell([outside(10), outside(11)], {}, now=NOW + 3)
    assert len(caplog.messages) == 2
    assert [event["pid"] for event in pending.read(str(tmp_path))] == [10, 11]


def test_marks_are_read_back() -> None:
    """The id of a collision names its processes, and ids of other kinds name none."""
    stats = [outside(10).stat, outside(11).stat]
    assert marks.within(marks.event_id("inherited", stats, 5)) == {marks.of(stat) for stat in stats}
    for strange in ("", "lockfile_replaced:1.2.3@4", "inherited", "inherited:@", "x" * 5000, "inherited:++@1"):
        assert not marks.within(strange)


def test_over_is_only_what_is_known_to_be() -> None:
    """A collision is over when its processes are gone; an id that names none, or nonsense, is not said to be."""
    gone = marks.event_id("inherited", [outside(2**22 + 5).stat], 5)
    assert marks.is_over(gone)
    assert not marks.is_over("lockfile_replaced:whatever")
    for strange in ("inherited:a.b.c@1", f"inherited:{'9' * 50}@1", "inherited:..@1"):
        assert marks.is_over(strange)
