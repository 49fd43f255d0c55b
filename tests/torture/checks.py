"""What must be true when everything has ended, of the lease and of its history; each thing that is not is a problem.

Beside history stand what the witnesses saw: journal, tally, exit codes; and the database is read without maintlock too.

What a fault may take away from history is excused here by name or by number, where that fault has struck, and nowhere else:
`_Replaced` for lock files that were replaced, `_Facts.dropped` and `_Facts.was_hampered` for a bad disk and few descriptors.
"""

from __future__ import annotations

import collections
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import maintlock
from maintlock import ledger, line, observe
from maintlock.events import FINISHED
from maintlock.paths import PENDING_FILES
from tests.torture.actors import DEFERRED, FAILED, KINDS, Actor
from tests.torture.faults import DATABASE_FILES, StaleCopy, read_rows
from tests.torture.ring import LEASE, Ring
from tests.torture.witness import Entry, read_journal, read_violations

Row = Mapping[str, Any]
COLUMNS = (
    "id", "at", "event", "task", "lease_id", "source", "pid", "reason_code", "blocked_by", "parent_task", "outcome", "result", "fence",
    "exit_code",
)  # fmt: skip
EVENTS = f"SELECT {', '.join(COLUMNS)} FROM events WHERE event <> 'present'"
COUNTERS = "SELECT name, labels, value FROM counters"
COUNTED = frozenset(
    "acquisitions_total runs_total run_failures_total timeouts_total deferrals_total blocked_deferrals_total"
    " stale_cleanups_total nested_runs_total collisions_total".split()
)
FAILURES = ("failed", "timed_out", "lost")
KNOWN_CODES = frozenset({0, FAILED, DEFERRED, 124})
NOT_ON_RECORD = 73
SIGNAL_BASE = 128
ROUNDING_SECONDS = 0.001  # of times in the ledger
UNTIL_NEXT_SECONDS = 5.0  # at most, as long as somebody waits, also on a slow machine; `dropped` bounds it besides
JOINED_AT_ONCE = 2  # in one job of `nested`
STAYS = frozenset(
    {
        *(f"{LEASE}.{kind}" for kind in ("lock", "queue", "nested")),
        *DATABASE_FILES,
        *PENDING_FILES,
        *("ledger.dropped", "orchestrator.lock", "orchestrator.json", "logs"),
    }
)
ORCHESTRATOR_NEW = ".orchestrator.json.maintlock-new"
OUTCOMES = {"completed": {"completed", "stopped"}, "failed": {"failed", "stopped"}}
HOLDS = ("hold", "coprocess")
WRAP_TASKS = frozenset(name for name, kind in KINDS.items() if kind.is_wrap)


class Problem(NamedTuple):
    """`kind` is one of `overlap stuck lost invented doubled fence counters files fault`."""

    kind: str
    text: str


@dataclass
class Findings:
    """What an epoch came to."""

    acquisitions: int = 0
    deferrals: int = 0
    problems: list[Problem] = field(default_factory=list)
    excused: collections.Counter[str] = field(default_factory=collections.Counter)


def find(ring: Ring) -> Findings:
    """Return what is wrong, once everything in the ring has ended."""
    stuck = [*_stuck(ring)]
    try:
        facts = _Facts(ring)
        problems = [problem for check in CHECKS for problem in check(facts)]
    except (ledger.LedgerUnavailable, OSError, ValueError) as error:
        return Findings(problems=[*stuck, Problem("fault", f"the records cannot be read: {error!r}")])
    return Findings(len(facts.acquired), len(facts.named("deferred")), [*stuck, *problems], facts.excused)


# The lease -------------------------------------------------------------------------------------------------------------


def _stuck(ring: Ring) -> Iterator[Problem]:
    """Nothing works any more; so the next request is granted, and afterwards the lock is free."""
    yield from (Problem("stuck", text) for text in ring.stuck)
    directory = str(ring.directory)
    wish = [*ring.programs.wrap, "-t", "settle", "-w", "50s", "-E", str(DEFERRED), "--"]
    try:
        done = ring.run(*wish, *ring.programs.worker, directory, "settle", "0", "0", "0")
    except subprocess.TimeoutExpired:
        yield Problem("stuck", "the last request neither ran nor gave up")
        ring.kill_all()
        return
    if done.returncode:
        yield Problem("stuck", f"the last request ended with {done.returncode}: {done.stderr.strip()}")
    fd = os.open(ring.path("lock"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield Problem("stuck", "the lock is held, and nobody is there")
    finally:
        os.close(fd)
    status = maintlock.status(state_dir=str(ring.state))
    if (status["state"], status["sidecar"], status["waiters"], status["nested"]) != ("free", "missing", [], []):
        yield Problem("stuck", f"status does not say free: {status}")


# What is on record -----------------------------------------------------------------------------------------------------


class _Facts:
    """What the ledger has, by all that can be read of it."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        state = str(ring.state)
        self.told_before = _keys(observe.read_history(state, lease=LEASE))
        ledger.drain(state, now=time.time())
        self.told_after = _keys(observe.read_history(state, lease=LEASE))
        self.databases = [path / DATABASE_FILES[0] for path in (*ring.taken_ledgers, ring.state)]
        self.events_of = {path: _read_events(path) for path in self.databases}
        self.replaced = _Replaced(ring.stale_copies, self.named("acquired"))
        self.journal = read_journal(str(ring.directory))
        self.worked = {entry.grant for entry in self.journal}
        self.dropped_count = _read_number(ring.state / "ledger.dropped")
        self.excused: collections.Counter[str] = collections.Counter()  # what was, and how often, for the reader

    @cached_property
    def events(self) -> dict[str, Row]:
        """All events by id; those that two databases have were told twice, which is fine."""
        return {row["id"]: row for rows in self.events_of.values() for row in rows}

    def named(self, *names: str) -> list[Row]:
        """Return the events of these names."""
        return [row for row in self.events.values() if row["event"] in names]

    @cached_property
    def acquired(self) -> dict[str, list[Row]]:
        """The beginnings of each grant."""
        return _grouped(self.named("acquired"), "lease_id")

    @cached_property
    def ends(self) -> dict[str, list[Row]]:
        """The ends of each grant."""
        return _grouped((row for row in self.events.values() if row["outcome"] is not None), "lease_id")

    @cached_property
    def of_pid(self) -> dict[int, list[Row]]:
        """The ends of the grants of each process."""
        return _grouped((row for rows in self.ends.values() for row in rows), "pid")

    @cached_property
    def last_fence(self) -> int:
        """The fence in the lock's line."""
        found = line.decoded(self.ring.path("lock").read_bytes())
        return 0 if found is None else found.fence

    @property
    def dropped(self) -> int:
        """How many events may be missing, since there was no room for them on the disk: the product counts them itself."""
        return self.dropped_count if self.ring.bad_disk else 0

    def was_hampered(self, actor: Actor) -> bool:
        """Tell whether a program could not write down what it had to tell: few descriptors, or a bad disk in its time."""
        return actor.has_few_descriptors or self.was_disk_bad(actor.began, actor.over)

    def is_untold(self, ends: list[Row], begin: float, over: float) -> bool:
        """Tell whether an end did not get into history because of a bad disk, then or when the next holder would have told it.

        The book then has none, or calls it lost once it hears of a later grant.
        """
        is_lost = [row["outcome"] for row in ends] in ([], ["lost"])
        return is_lost and self.was_disk_bad(begin, over + UNTIL_NEXT_SECONDS)

    def was_disk_bad(self, begin: float, end: float) -> bool:
        """Tell whether the disk was full or read-only at any moment from begin to end, monotonic."""
        return any(since <= end and begin <= until for since, until in self.ring.bad_disk)


class _Replaced:
    """What lock files do not know that were put in the place of others: older ones, copies made while one was written to.

    No program can prevent that what a grant wrote into the original is gone with it, and that the next holder believes what
    it finds. So a grant that goes on in the copy may be told as lost before it has told its own end; and what was given after
    it may be given again, unless its holder was there, notices, and leaves its sidecar.
    """

    def __init__(self, stale_copies: list[StaleCopy], acquired: Iterable[Row]) -> None:
        self.may_be_told_lost: set[str] = set()
        self.fences_given_again: set[int] = set()
        begun = [(row["at"], row["fence"]) for row in acquired]
        for copied, at, is_held in stale_copies:
            old = line.decoded(copied)
            if old is None:
                continue  # an empty file is known to know nothing
            if not old.outcome:
                self.may_be_told_lost.add(old.lease_id)
            if not is_held:
                highest = max((fence for began, fence in begun if began <= at + ROUNDING_SECONDS), default=0)
                self.fences_given_again.update(range(old.fence + 1, highest + 1))

    def excuses(self, ends: list[Row]) -> bool:
        """Tell whether these are ends of a grant that only a stale copy calls lost."""
        return any(row["outcome"] == "lost" and row["lease_id"] in self.may_be_told_lost for row in ends)


def _read_events(path: Path) -> list[Row]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in read_rows(path, EVENTS)]


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text() or "0")
    except FileNotFoundError:
        return 0


def _keys(rows: Iterable[Row]) -> collections.Counter[tuple[object, ...]]:
    names = ("event", "task", "lease_id", "pid", "reason_code", "blocked_by", "outcome")
    return collections.Counter(tuple(row[name] for name in names) for row in rows)


def _grouped(rows: Iterable[Row], name: str) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


# At work ---------------------------------------------------------------------------------------------------------------


def _overlaps(facts: _Facts) -> Iterator[Problem]:
    """No worker met one of another grant."""
    yield from (Problem("overlap", text) for text in read_violations(str(facts.ring.directory)))


def _order(facts: _Facts) -> Iterator[Problem]:
    """By the machine's own clock, nobody works for a grant once somebody has begun for a later one."""
    last: Entry | None = None
    for entry in facts.journal:
        is_again = (
            entry.fence in facts.replaced.fences_given_again
        )  # the order then says nothing; the witness still does
        if last is not None and not is_again:
            if entry.fence < last.fence:
                yield Problem("overlap", f"{entry} after {last}")
            elif entry.fence == last.fence and entry.grant != last.grant:
                yield Problem("fence", f"two grants with one: {entry} after {last}")
        last = entry


# Grants ----------------------------------------------------------------------------------------------------------------


def _begins_and_ends(facts: _Facts) -> Iterator[Problem]:
    """Every grant that anybody knows of has one beginning and one end."""
    missing = 0
    for grant in {*facts.acquired, *facts.ends, *facts.worked} - {None}:
        begins, ends = facts.acquired.get(grant, []), facts.ends.get(grant, [])
        if len(begins) > 1 or len(ends) > 1:
            yield Problem("doubled", f"grant {grant}: {[*begins, *ends]}")
        missing += (not begins) + (not ends)
        if not (begins and ends) and missing > facts.dropped:
            seen = [entry for entry in facts.journal if entry.grant == grant][:2]
            yield Problem("lost", f"grant {grant}: {[*begins, *ends] or 'nothing'} in history; at work: {seen}")


def _fences(facts: _Facts) -> Iterator[Problem]:
    """The fences of all grants are the numbers from 1 to the lock's."""
    found = collections.Counter(row["fence"] for rows in facts.acquired.values() for row in rows)
    twice = {fence for fence, times in found.items() if times > 1} - facts.replaced.fences_given_again
    if twice:
        yield Problem("fence", f"given more than once: {sorted(twice)}")
    again = sorted(fence for fence, times in found.items() if times > 1)
    facts.excused["fence given again after an older lock file"] += len(again) - len(twice)
    if found and max(found) != facts.last_fence and max(found) not in facts.replaced.fences_given_again:
        yield Problem("fence", f"the lock's line says {facts.last_fence}, history {max(found)}")
    missing = sorted(set(range(1, facts.last_fence + 1)) - set(found))
    if len(missing) > facts.dropped:
        yield Problem("lost", f"of {facts.last_fence} grants history does not know fences {missing[:20]}")


def _exits(facts: _Facts) -> Iterator[Problem]:
    """History says of each wrapper what its exit code says."""
    deferred = _grouped(facts.named("deferred"), "pid")
    untold = 0
    for actor in facts.ring.ended:
        if not KINDS[actor.kind].is_wrap or actor.code is None:
            continue
        ends, code = facts.of_pid.get(actor.pid, []), actor.code
        is_told = actor.pid in deferred or any(row["exit_code"] == DEFERRED for row in ends)
        if code == DEFERRED and not is_told:
            if not facts.was_hampered(actor):  # what could not be written is told by nobody else
                yield Problem("lost", f"a deferral of {_named(actor)}")
            facts.excused["deferral that could not be written down"] += 1
        if code in {0, FAILED} and not any(_tells(row, actor) for row in ends):
            is_untold = facts.is_untold(ends, actor.began, actor.over)
            untold += is_untold
            if not _is_excused(facts, ends, is_untold and untold <= facts.dropped):
                yield Problem("invented" if ends else "lost", f"the end of {_named(actor)}: {ends}")
        if code not in KNOWN_CODES and 0 <= code < SIGNAL_BASE:
            if _met_python(actor):
                facts.excused["interrupted while Python itself starts"] += 1
                continue
            if not _may_refuse(facts, actor):
                yield Problem("fault", f"{_named(actor)} ended with {code}")
            facts.excused["refusal with a bad disk or few descriptors"] += 1


def _may_refuse(facts: _Facts, actor: Actor) -> bool:
    """With few descriptors not even Python may start; on a bad disk there is one exit code for it."""
    return actor.has_few_descriptors or (actor.code == NOT_ON_RECORD and facts.was_hampered(actor))


def _met_python(actor: Actor) -> bool:
    """Tell whether an INT may have come before our first line: the interpreter then has a traceback of its own.

    It ends with 1 where it was still preparing itself, and by the signal where it was about to run that line.
    """
    return actor.code in {1, -signal.SIGINT} and signal.SIGINT in actor.struck_by


def _tells(row: Row, actor: Actor) -> bool:
    if actor.kind == "exec":
        return bool(row["outcome"] == "unknown")
    expected = "failed" if actor.code else "completed"
    is_struck = not actor.struck_by.isdisjoint({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    return row["outcome"] in (OUTCOMES[expected] if is_struck else {expected})


def _named(actor: Actor) -> str:
    return f"{actor.kind} (pid {actor.pid}, exit code {actor.code}, struck by {sorted(actor.struck_by)})"


def _inventions(facts: _Facts) -> Iterator[Problem]:
    """Nobody is on record who was not there, and no job as completed that did not work."""
    actors = (*facts.ring.ended, *facts.ring.running.values())
    there = {actor.pid for actor in actors}
    for row in facts.named("acquired", "deferred"):
        if row["task"] in WRAP_TASKS and row["pid"] not in there:
            yield Problem("invented", f"{row}: there was no such wrapper")
    finished = {entry.grant for entry in facts.journal if entry.what == "E"}
    for rows in facts.ends.values():
        for row in rows:
            is_known = row["task"] in {"try", "wait", "close", *HOLDS}
            if is_known and row["outcome"] == "completed" and row["lease_id"] not in finished:
                yield Problem("invented", f"{row}: its job has not worked")
    for pid, rows in _grouped((row for row in facts.named("deferred") if row["task"] in WRAP_TASKS), "pid").items():
        if len(rows) > sum(actor.pid == pid for actor in actors):
            yield Problem("doubled", f"deferrals of one wrapper: {rows}")


class _Attempt(NamedTuple):
    """A line of the tally."""

    kind: str
    what: str
    pid: int
    grant: str
    began: float
    over: float


def _attempts(facts: _Facts) -> list[_Attempt]:
    try:
        rows = [text.split() for text in (facts.ring.directory / "tally").read_text().splitlines()]
    except FileNotFoundError:
        return []
    return [
        _Attempt(kind, what, int(pid), grant, float(began), float(over)) for kind, what, pid, grant, began, over in rows
    ]


def _is_excused(facts: _Facts, ends: list[Row], is_dropped: bool) -> bool:  # noqa: FBT001  one of two excuses
    """Tell whether an end that was told otherwise is held against nobody, and count why."""
    if facts.replaced.excuses(ends):
        facts.excused["grant that an older lock file calls lost"] += 1
        return True
    if is_dropped:
        facts.excused["end that was dropped"] += 1
    return is_dropped


def _holds(facts: _Facts) -> Iterator[Problem]:
    """History says of each `hold()`, and of each `maintlock hold`, what its process has seen."""
    attempts = _attempts(facts)
    untold = 0
    for one in attempts:
        ends = facts.ends.get(one.grant, [])
        if one.what not in {*OUTCOMES, "stopped"} or [row["outcome"] for row in ends] == [one.what]:
            continue
        is_untold = facts.is_untold(ends, one.began, one.over)
        untold += is_untold
        if not _is_excused(facts, ends, is_untold and untold <= facts.dropped):
            yield Problem("invented" if ends else "lost", f"{one}: {ends}")
    for kind in HOLDS:
        yield from _deferred_holds(facts, kind, [one for one in attempts if one.kind == kind])


def _deferred_holds(facts: _Facts, kind: str, attempts: list[_Attempt]) -> Iterator[Problem]:
    seen = [one for one in attempts if one.what == "deferred"]
    told = collections.Counter(row["pid"] for row in facts.named("deferred") if row["task"] == kind)
    counted = collections.Counter(one.pid for one in seen)
    unwritable = collections.Counter(one.pid for one in seen if facts.was_disk_bad(one.began, one.over))
    for pid in {*told, *counted}:
        if told[pid] < counted[pid] - unwritable[pid]:
            yield Problem("lost", f"{kind} of pid {pid} stood back {counted[pid]} times, history says {told[pid]}")
        facts.excused["deferral that could not be written down"] += max(0, counted[pid] - told[pid])
    # Who is killed after it was told, and before it could count itself, has counted one less: each of the killed one.
    beyond = told - counted - collections.Counter(one.pid for one in attempts if one.what == "struck")
    killed = sum(actor.kind == kind and actor.code != 0 for actor in facts.ring.ended)
    if beyond.total() > killed:
        yield Problem("invented", f"{kind}: history has deferrals that nobody has seen: {dict(beyond)}")


def _joined(facts: _Facts) -> Iterator[Problem]:
    """Every joined job that has begun has one end, and the other way round, whoever was killed."""
    begun = {row["id"]: row for row in facts.named("nested_started")}
    ended = {row["id"]: row for row in facts.named("nested_finished")}
    still_there = {row["id"] for row in facts.events_of[facts.databases[-1]]}
    without_end = [event_id for event_id in begun if event_id + FINISHED not in ended]
    # The ledger that is gone knew that it was there, and tells its end if it does not do so itself.
    lost = [event_id for event_id in without_end if event_id in still_there]
    facts.excused["joined job that only a deleted ledger knew of"] += len(without_end) - len(lost)
    if len(lost) > facts.dropped:
        yield from (Problem("lost", f"joined job has no end: {begun[event_id]}") for event_id in lost)
    without_begin = [row for event_id, row in ended.items() if event_id.removesuffix(FINISHED) not in begun]
    # A beginning that could not be written is told by nobody else.
    facts.excused["beginning of a joined job that could not be written down"] += len(without_begin)
    hampered = sum(actor.kind in {"nested", "hold"} and facts.was_hampered(actor) for actor in facts.ring.ended)
    if len(without_begin) > JOINED_AT_ONCE * hampered + facts.dropped:
        yield from (Problem("invented", f"joined job has no beginning: {row}") for row in without_begin)
    for event_id, row in begun.items():
        end = ended.get(event_id + FINISHED, row)
        if any(row[name] != end[name] for name in ("lease_id", "pid", "task", "parent_task")):
            yield Problem("invented", f"joined job {row} has another's end: {end}")


# The ledger ------------------------------------------------------------------------------------------------------------


def _same_twice(facts: _Facts) -> Iterator[Problem]:
    """What waits for the ledger is told as what is in it, and databases do not contradict each other."""
    if facts.told_before != facts.told_after:
        gone, come = facts.told_before - facts.told_after, facts.told_after - facts.told_before
        yield Problem("lost", f"a drain changed history: gone {dict(gone)}, new {dict(come)}")
    for rows in facts.events_of.values():
        for row in rows:
            other = facts.events[row["id"]]
            if (row["event"], row["outcome"], row["fence"]) != (other["event"], other["outcome"], other["fence"]):
                yield Problem("doubled", f"told in two ways: {row} and {other}")
    facts.excused["event counted as dropped"] += facts.dropped_count
    may_drop = bool(facts.ring.bad_disk) or any(actor.has_few_descriptors for actor in facts.ring.ended)
    if facts.dropped_count and not may_drop:
        yield Problem("lost", f"{facts.dropped_count} events were dropped")


def _counters(facts: _Facts) -> Iterator[Problem]:
    """In each database the counters are what its events come to."""
    for path, rows in facts.events_of.items():
        expected = collections.Counter(key for row in rows for key in _counted(row))
        found = {
            (name, labels): value
            for name, text, value in read_rows(path, COUNTERS)
            if name in COUNTED
            for labels in [tuple(sorted(json.loads(str(text)).items()))]
        }
        for key in {*expected, *found}:
            if expected[key] != found.get(key, 0):
                yield Problem(
                    "counters", f"{path.parent.name}: {key} is {found.get(key, 0)}, its events: {expected[key]}"
                )


def _counted(row: Row) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """Give the counters that one event raises by one (the contract, section 7)."""
    task, kind = row["task"] or "unknown", row["event"]

    def one(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        return name, tuple(sorted({"lease": LEASE, **labels}.items()))

    outcome = row["result"] if kind == "nested_finished" else row["outcome"]
    if kind == "acquired":
        yield one("acquisitions_total", task=task, source=row["source"])
    if kind == "deferred":
        yield one("deferrals_total", task=task, reason=row["reason_code"])
        yield one("blocked_deferrals_total", task=task, blocking_task=row["blocked_by"] or "unknown")
    if kind == "stale_cleaned":
        yield one("stale_cleanups_total")
    if kind == "nested_started":
        yield one("nested_runs_total", task=task, parent_task=row["parent_task"] or "unknown")
    if kind == "collision":
        yield one("collisions_total", kind=row["reason_code"])
    if outcome is not None:
        yield one("runs_total", task=task)
    if outcome in FAILURES:
        yield one("run_failures_total", task=task)
    if outcome == "timed_out":
        yield one("timeouts_total", task=task)


def _files(facts: _Facts) -> Iterator[Problem]:
    """Nothing is left in the state directory but what belongs there, and nothing waits."""
    left = set(os.listdir(facts.ring.state)) - STAYS
    if ORCHESTRATOR_NEW in left and _was_killed_writing(facts.ring, facts.ring.state / ORCHESTRATOR_NEW):
        facts.excused["record half written by a killed orchestrator"] += 1
        left.remove(ORCHESTRATOR_NEW)
    if left:
        yield Problem("files", f"left over: {sorted(left)}")
    for name in set(PENDING_FILES) & set(os.listdir(facts.ring.state)):
        size = os.stat(facts.ring.state / name).st_size
        if size:
            yield Problem("files", f"{size} bytes wait in {name} after a drain")


def _was_killed_writing(ring: Ring, path: Path) -> bool:
    """Tell whether an orchestrator was killed within a second of writing a file: the next one would have replaced it."""
    ago = time.time() - path.stat().st_mtime
    written = time.monotonic() - ago
    return any(
        actor.kind == "orchestrator"
        and actor.code == -signal.SIGKILL
        and actor.began < written < actor.over < written + 1
        for actor in ring.ended
    )


def _voices(facts: _Facts) -> Iterator[Problem]:
    """No program speaks of a fault of its own; with few descriptors Python itself may, before it comes to ours."""
    is_few = any(actor.has_few_descriptors for actor in facts.ring.ended)
    pythons = sum(_met_python(actor) for actor in facts.ring.ended)
    for text in (facts.ring.directory / "said").read_text(errors="replace").splitlines():
        is_trace = text.startswith("Traceback") and not is_few
        if is_trace and pythons > 0:
            pythons -= 1
        elif "internal error" in text or is_trace:
            yield Problem("fault", text)


CHECKS: tuple[Callable[[_Facts], Iterator[Problem]], ...] = (
    _overlaps, _order, _begins_and_ends, _fences, _exits, _inventions, _holds, _joined, _same_twice, _counters, _files, _voices,
)  # fmt: skip
