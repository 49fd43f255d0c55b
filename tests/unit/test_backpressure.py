from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maintlock.orchestrator.backpressure import Decision, Gate, decisions, gate_of, named
from maintlock.orchestrator.cadence import Due, due
from maintlock.settings import TaskSettings
from maintlock.states import TaskState
from tests.orchestrated import HEAVY

NOW = 1_000_000.0
STARVED_AFTER = 7200.0
OPEN: dict[str, Gate | None] = {"heavy-maintenance": None}
PAIRS = list(permutations(HEAVY, 2))
HELD = Gate(reason_code="lease-held", blocked_by="somebody")
OURS = Gate(reason_code="backpressure", blocked_by="backup")
UNKNOWN = Gate(reason_code="lease-held", blocked_by=None)
SURVIVORS, REPLACED = {"has_survivors": True}, {"is_replaced": True}


def task(name: str, interval: float = 600.0, **settings: Any) -> TaskSettings:
    """Return a task that is heavy unless said otherwise."""
    own = {} if settings.get("heavy", True) else {"lease": name}
    return TaskSettings(name=name, command=("true",), interval=interval, **own, **settings)


def late(name: str, intervals: float, interval: float = 600.0, **settings: Any) -> Due:
    """Return a task that is due since so many of its intervals."""
    return Due(task=task(name, interval, **settings), since=NOW - intervals * interval, reason="periodic")


def decide(
    *dues: Due,
    states: dict[str, TaskState] | None = None,
    gates: dict[str, Gate | None] | None = None,
    collision: Gate | None = None,
) -> dict[str, Gate | None]:
    """Return the gate that each task meets, in the order of precedence."""
    known = {one.task.name: TaskState() for one in dues} | (states or {})
    open_now = OPEN if gates is None else gates
    found = decisions(dues, known, open_now, collision, now=NOW, starved_after=STARVED_AFTER)
    return {one.due.task.name: one.gate for one in found}


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_pair_in_one_pass(first: str, second: str) -> None:
    """Of two heavy tasks that are due in one pass the more overdue one starts, and the other stands back for it (R4, R15)."""
    found = decide(late(second, 1.0), late(first, 2.0))
    assert found == {first: None, second: Gate(reason_code="backpressure", blocked_by=first)}


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_pair_across_passes(first: str, second: str) -> None:
    """While one heavy task runs the other stands back in every later pass, and starts in the first one after (R4, R11, R15)."""
    running = {"heavy-maintenance": gate_of("held", holder=first, source="orchestrator", waiters=[])}
    for intervals in (0.0, 1.0, 50.0):
        found = decide(late(second, intervals), gates=running)
        assert found == {second: Gate(reason_code="backpressure", blocked_by=first)}
    assert decide(late(second, 50.0)) == {second: None}


def test_all_six_at_once() -> None:
    """Of all six heavy tasks, due at once after a long sleep, one starts, and the others say for whom they stand back."""
    found = decide(*[late(name, 5.0 + index) for index, name in enumerate(HEAVY)])
    assert [name for name, gate in found.items() if gate is None] == ["golden-path"]
    assert {gate.blocked_by for gate in found.values() if gate is not None} == {"golden-path"}
    assert list(found) == list(reversed(HEAVY))


@pytest.mark.parametrize(
    ("state", "holder", "source", "waiters", "more", "expected"),
    [
        ("free", None, None, [], {}, None),
        ("held", "backup", "orchestrator", [], {}, Gate(reason_code="backpressure", blocked_by="backup")),
        ("held", "backup", "cli", [], {}, Gate(reason_code="lease-held", blocked_by="backup")),
        ("held", "backup", "npm", ["kbSync"], {}, Gate(reason_code="lease-held", blocked_by="backup")),
        ("held", None, None, [], {}, Gate(reason_code="lease-held", blocked_by=None)),
        ("held", "dream", "orchestrator", [], REPLACED, Gate(reason_code="lockfile-replaced", blocked_by="dream")),
        ("orphaned", "dream", "orchestrator", [], SURVIVORS, Gate(reason_code="survivors", blocked_by="dream")),
        ("orphaned", "dream", "cli", ["backup"], SURVIVORS, Gate(reason_code="survivors", blocked_by="dream")),
        ("orphaned", "dream", "orchestrator", [], {}, Gate(reason_code="lease-held", blocked_by="dream")),
        ("orphaned", None, None, [], {}, Gate(reason_code="lease-held", blocked_by=None)),
        ("free", None, None, ["backup", "dream"], {}, Gate(reason_code="queued", blocked_by="backup")),
        ("free", None, None, [None], {}, Gate(reason_code="queued", blocked_by=None)),
        ("unknown", None, None, [], {}, None),
        ("unknown", "backup", "cli", ["dream"], {}, Gate(reason_code="queued", blocked_by="dream")),
    ],
)
def test_the_gate_that_a_lease_is(
    state: str,
    holder: str | None,
    source: str | None,
    waiters: list[str | None],
    more: dict[str, bool],
    expected: Gate | None,
) -> None:
    """Held by our own job is `backpressure`, by anybody else `lease-held`; survivors and a replaced lock file are named
    whoever started the job; a waiter goes first; what cannot be seen is left to the kernel's lock.
    """
    assert gate_of(state, holder=holder, source=source, waiters=waiters, **more) == expected


@pytest.mark.parametrize(
    ("found", "ours", "expected"),
    [
        (None, None, None),
        (HELD, None, HELD),
        (None, OURS, OURS),
        (HELD, OURS, HELD),
        (UNKNOWN, OURS, OURS),
        (UNKNOWN, None, UNKNOWN),
        (Gate(reason_code="queued", blocked_by="backup"), OURS, OURS),
        (Gate(reason_code="queued", blocked_by="kbSync"), OURS, Gate(reason_code="queued", blocked_by="kbSync")),
    ],
)
def test_our_own_job_is_never_unknown(found: Gate | None, ours: Gate | None, expected: Gate | None) -> None:
    """Where nothing shows who has a lease that a living job of ours was started for, that job is named (R9)."""
    assert named(found, ours) == expected


def test_the_most_overdue_relative_to_its_interval_goes_first() -> None:
    """Two hours late is little for a daily task and much for one of every ten minutes (L5)."""
    found = decide(late("backup", 2 / 24, interval=86400), late("summary", 12.0, interval=600))
    assert list(found) == ["summary", "backup"]


def test_the_starved_go_first_the_longest_so() -> None:
    """Who has starved goes before all others, however late those are, and the longest starved first (L5)."""
    states = {
        "backup": TaskState(deferred_since=NOW - 7201),
        "dream": TaskState(deferred_since=NOW - 9000),
        "kbSync": TaskState(deferred_since=NOW - 7199),
    }
    dues = [late("summary", 90.0), late("backup", 0.1), late("kbSync", 50.0), late("dream", 0.2)]
    assert list(decide(*dues, states=states)) == ["dream", "backup", "summary", "kbSync"]


def test_light_tasks_never_wait() -> None:
    """A task that is not heavy starts in any pass, whatever holds the lease or runs outside it (R4, L14)."""
    light = [late(f"light{index}", 0.0, heavy=False) for index in range(3)]
    collision = Gate(reason_code="collision", blocked_by="backup")
    found = decide(*light, late("kbSync", 9.0), gates={"heavy-maintenance": HELD}, collision=collision)
    assert [name for name, gate in found.items() if gate is None] == ["light0", "light1", "light2"]


def test_nothing_heavy_starts_during_a_collision() -> None:
    """While a heavy process works outside the lease, every heavy task stands back with the reason `collision` (R8)."""
    collision = Gate(reason_code="collision", blocked_by="backup")
    found = decide(*[late(name, 1.0) for name in HEAVY], collision=collision)
    assert set(found.values()) == {collision}


def test_one_heavy_start_whatever_the_leases() -> None:
    """Also with leases of their own, no two heavy tasks start in one pass."""
    other = Due(
        task=TaskSettings(name="other", command=("true",), interval=60, lease="own"), since=NOW - 1, reason="periodic"
    )
    found = decide(other, late("kbSync", 1.0), gates={"own": None, "heavy-maintenance": None})
    assert [name for name, gate in found.items() if gate is None] == ["kbSync"]


@st.composite
def _scenes(draw: st.DrawFn) -> tuple[list[Due], dict[str, TaskState], dict[str, Gate | None], Gate | None]:
    dues, states, gates = [], {}, {}
    gate = st.none() | st.just(HELD)
    for index in range(draw(st.integers(0, 8))):
        heavy = draw(st.booleans())
        name = f"t{index}"
        one = task(name, draw(st.floats(0, 1e5)), heavy=heavy)
        dues.append(Due(task=one, since=NOW - draw(st.floats(-10, 1e6)), reason="periodic"))
        states[name] = TaskState(deferred_since=draw(st.none() | st.floats(0, NOW)))
        gates[one.lease] = draw(gate)
    return dues, states, gates, draw(gate)


@given(_scenes())
def test_what_holds_in_every_pass(
    scene: tuple[list[Due], dict[str, TaskState], dict[str, Gate | None], Gate | None],
) -> None:
    """In no pass do two heavy tasks start, or one whose gate is shut; light ones always do; every due one is decided on;
    and if any heavy one could start, one does.
    """
    dues, states, gates, collision = scene
    found = decisions(dues, states, gates, collision, now=NOW, starved_after=STARVED_AFTER)
    started = [one.due.task for one in found if one.gate is None]
    heavy = [one for one in started if one.heavy]
    assert len(heavy) <= 1
    assert not any(gates[one.lease] or collision for one in heavy)
    assert {one.name for one in started if not one.heavy} == {one.task.name for one in dues if not one.task.heavy}
    assert sorted(one.due.task.name for one in found) == sorted(one.task.name for one in dues)
    could = [one for one in dues if one.task.heavy and collision is None and gates[one.task.lease] is None]
    assert bool(heavy) == bool(could)


class Days:
    """The pure loop over days, with a clock of its own: passes, one heavy job at a time, and streaks as the ledger counts."""

    def __init__(self, tasks: list[TaskSettings], lengths: dict[str, float], poll: float) -> None:
        self.tasks, self.lengths, self.poll = tasks, lengths, poll
        self.states = {one.name: TaskState() for one in tasks}
        self.ends: dict[str, float] = {}
        self.now = NOW
        self.longest: dict[str, float] = dict.fromkeys(self.states, 0.0)
        self.runs: dict[str, int] = dict.fromkeys(self.states, 0)

    def run(self, until: float) -> None:
        """Make passes until a time."""
        while self.now < until:
            self.make_pass()
            self.now += self.poll

    def make_pass(self) -> None:
        """Make one pass."""
        for name, at in [*self.ends.items()]:
            if at <= self.now:
                del self.ends[name]
                self.states[name] = self.states[name]._replace(last_ended_at=at, last_outcome="completed")
        dues = [
            found
            for one in self.tasks
            if one.name not in self.ends
            and (found := due(one, self.states[one.name], self.now, first_seen_at=NOW)) is not None
        ]
        heavy = [name for name in self.ends if name.startswith("heavy")]
        assert len(heavy) <= 1
        gate = Gate(reason_code="backpressure", blocked_by=heavy[0]) if heavy else None
        gates = {one.lease: gate for one in self.tasks}
        found = decisions(dues, self.states, gates, None, now=self.now, starved_after=STARVED_AFTER)
        for decision in found:
            self.act(decision)

    def act(self, decision: Decision) -> None:
        """Start a task, or count its deferral."""
        name = decision.due.task.name
        state = self.states[name]
        since = self.now if state.deferred_since is None else state.deferred_since
        self.longest[name] = max(self.longest[name], self.now - since)
        if decision.gate is not None:
            self.states[name] = state._replace(deferred_since=since)
            return
        self.runs[name] += 1
        self.states[name] = state._replace(last_run_at=self.now, deferred_since=None)
        self.ends[name] = self.now + self.lengths[name]


@settings(max_examples=25)
@given(
    shape=st.lists(st.tuples(st.sampled_from([600.0, 1800.0, 7200.0, 86400.0]), st.floats(1, 3600)), min_size=2, max_size=6)
)  # fmt: skip
def test_no_task_starves_over_days(shape: list[tuple[float, float]]) -> None:
    """Over simulated days, however long the jobs and short the intervals, nobody waits longer than the starvation bound
    and one turn of each other task, and a light task is never held back (L5).
    """
    tasks = [task(f"heavy{index}", interval) for index, (interval, _) in enumerate(shape)]
    lengths = {one.name: seconds for one, (_, seconds) in zip(tasks, shape, strict=True)}
    days = Days([*tasks, task("light", 900.0, heavy=False)], {**lengths, "light": 300.0}, poll=60.0)
    days.run(NOW + 3 * 86400)
    bound = STARVED_AFTER + sum(lengths.values()) + 60.0 * (len(tasks) + 2) + max(lengths.values())
    assert max(days.longest.values()) <= bound
    assert days.longest["light"] == 0.0
    assert min(days.runs.values()) >= 1


def test_after_a_suspend_of_days_nothing_storms() -> None:
    """After a week asleep every task runs once, one after the other, and then keeps to its interval again."""
    tasks = [task(f"heavy{index}", 3600.0) for index in range(6)]
    days = Days(tasks, dict.fromkeys([one.name for one in tasks], 120.0), poll=30.0)
    days.run(NOW + 3600)
    before = dict(days.runs)
    days.now += 7 * 86400
    days.run(days.now + 3000)
    assert {name: days.runs[name] - before[name] for name in before} == dict.fromkeys(before, 1)
