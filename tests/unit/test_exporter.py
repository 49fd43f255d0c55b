from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from maintlock import config, events, history, ledger, marks, observe, process
from maintlock.errors import UnavailableError
from maintlock.history import Snapshot
from maintlock.model import replace
from maintlock.names import own_lease
from maintlock.outside import Outside
from maintlock.process import Stat
from maintlock.report import Status
from maintlock.times import rfc3339
from maintlock_exporter import sentences, timeline, trees
from maintlock_exporter.application import host_in, hosts_of, registry_for
from maintlock_exporter.collectors import Exporter
from maintlock_exporter.keeper import LedgerKeeper
from maintlock_exporter.page import Clock, troubles
from maintlock_exporter.rated import Rated
from maintlock_exporter.scene import Scene
from maintlock_exporter.shared import Shared
from maintlock_exporter.view import Once, View
from tests.support import until

GOLDEN = Path(__file__).parent / "golden"
LEASE = "heavy-maintenance"
NOW = 1_778_960_000.0
CONFIG = """
[tasks.kbSync]
interval = "30m"
[tasks.backup]
[daemons.chroma]
command = ["chroma", "run"]
"""
FREE: Status = {
    "lease": LEASE, "state": "free", "backend": "flock", "scope": "user", "path": f"/state/{LEASE}.lock", "holder": None,
    "sidecar": "missing", "detail": None, "waiters": [], "nested": [], "collisions": [],
}  # fmt: skip
HOLDER: Any = {
    "task": "kbSync", "source": "npm", "pid": 4242, "acquired_at": "2026-05-16T19:00:00.000Z", "ttl_seconds": 21600.0,
    "rss_bytes": 3 << 20, "lease_id": "grant", "overdue": False,
}  # fmt: skip
HELD: Status = {
    **FREE, "state": "held", "sidecar": "valid", "holder": HOLDER,
    "waiters": [{"task": "backup", "pid": 7, "since": "2026-05-16T19:10:00.000Z"}, {"task": None, "pid": 8, "since": "2026-05-16T19:20:00.000Z"}],
    "nested": [{"task": "backup", "pid": 9, "reason": None, "started_at": "2026-05-16T19:05:00.000Z"}],
    "collisions": [{"kind": "lockfile_replaced", "detail": "x", "since": "2026-05-16T19:05:00.000Z"}],
}  # fmt: skip


def scene_in(directory: Path, text: str = CONFIG) -> Scene:
    """Return what an exporter watches."""
    (directory / "maintlock.toml").write_text(text)
    (directory / "state").mkdir(mode=0o700, exist_ok=True)
    return Scene(
        directory=str(directory / "state"), config=config.load(str(directory / "maintlock.toml")), started_at=NOW
    )


def write(scene: Scene, *told: dict[str, Any]) -> None:
    """Put events where the ledger will find them."""
    with open(f"{scene.directory}/ledger.pending", "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in told)


def run(task: str, at: float, seconds: float, outcome: str, lease_id: str, **more: Any) -> list[dict[str, Any]]:
    """Return beginning and end of one grant."""
    about = {"task": task, "lease_id": lease_id, "source": "npm", "fence": 1, **more}
    return [
        events.new("acquired", at=at, lease=LEASE, seconds=0.3, **about),
        events.new("released", at=at + seconds, lease=LEASE, seconds=seconds, outcome=outcome, **about),
    ]


def deferred(task: str, at: float, **more: Any) -> dict[str, Any]:
    """Return a request that stood back."""
    return events.new(
        "deferred", at=at, lease=LEASE, task=task, **{"reason_code": "lease-held", "blocked_by": "kbSync", **more}
    )


def free(lease: str) -> Status:
    """Return the status of a lease that nobody has."""
    return {**FREE, "lease": lease}


def exposition(scene: Scene, status: Callable[[str], Status] = free, **more: Any) -> str:
    """Return what is exposed, as Prometheus reads it; the clock of the collectors stands still."""
    snapshot = Once(lambda lease: history.read_snapshot(scene.directory, lease=lease))
    readings = {"status": status, "snapshot": snapshot, "outside": list, "daemons": lambda: {"chroma": True}, **more}
    exporter = Exporter(lambda: View(scene=scene, now=NOW, **readings), seconds=lambda: 0.0)
    return generate_latest(registry_for(exporter)).decode()


def series(text: str) -> dict[str, float]:
    """Return all samples, by name and labels as they are written."""
    rows = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def broken(*_: object) -> Any:
    """Stand in for a reading that fails."""
    raise UnavailableError("broken")


def golden(name: str, text: str) -> None:
    """Compare with the golden exposition; `UPDATE_GOLDEN=1` writes it anew."""
    kept = "".join(line + "\n" for line in text.splitlines() if "maintlock_build_info{" not in line)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(kept)
    assert kept == path.read_text(), "if that is meant so: UPDATE_GOLDEN=1"


# Expositions


def test_everything_is_there_at_0_from_the_first_scrape(tmp_path: Path) -> None:
    """With no lock, ledger or history every configured series exists at 0 (R10)."""
    golden("nothing-yet", exposition(scene_in(tmp_path)))


def test_a_day_and_a_holder(tmp_path: Path) -> None:
    """Counters, histograms, task gauges and the present holder come from ledger and status."""
    scene = scene_in(tmp_path)
    write(
        scene,
        *run("kbSync", NOW - 9000, 400.0, "completed", "a"),
        *run("kbSync", NOW - 7000, 20.0, "failed", "b", exit_code=3),
    )
    write(
        scene, *run("backup", NOW - 5000, 7200.5, "timed_out", "c"), *run("<hostile>", NOW - 900, 1.0, "completed", "d")
    )
    write(scene, deferred("backup", NOW - 300), deferred("backup", NOW - 200, reason_code="queued", blocked_by="evil"))
    joined = {"task": "kbSync", "parent_task": "backup", "lease_id": "c", "pid": 5}
    write(scene, events.new("nested_started", at=NOW - 4000, lease=LEASE, **joined))
    write(scene, events.new("nested_finished", at=NOW - 3900, lease=LEASE, seconds=100.0, result="completed", **joined))
    stat = Stat(pid=1, name="x", state="S", ppid=1, pgid=1, sid=1, threads=1, start_ticks=1)
    text = exposition(scene, lambda lease: HELD, outside=lambda: [Outside(task="kbSync", lease=LEASE, stat=stat)])
    golden("held", text)


def test_what_is_broken_is_said(tmp_path: Path) -> None:
    """Readings that fail take down the collectors that need them, each told as failed, and leave the others standing."""
    golden("broken", exposition(scene_in(tmp_path), broken, snapshot=broken))


@pytest.mark.parametrize(
    ("reading", "down"),
    [
        ("status", {"lease", "presence", "collisions"}),
        ("snapshot", {"presence", "tasks", "counters", "collisions"}),
        ("outside", {"collisions"}),
        ("daemons", {"daemons"}),
    ],
)
def test_a_broken_reading_is_nobody_elses(tmp_path: Path, reading: str, down: set[str]) -> None:
    """A reading that fails fails those collectors only that ask for it."""
    found = series(exposition(scene_in(tmp_path), **{reading: broken}))
    told = {name for name in ("lease", "presence", "tasks", "counters", "collisions", "daemons", "build")
            if found[f'maintlock_scrape_collector_success{{collector="{name}"}}'] == 0}  # fmt: skip
    assert told == down
    assert found["maintlock_up"] == (0 if reading == "snapshot" else 1)


def test_one_bad_lease_costs_the_others_nothing(tmp_path: Path) -> None:
    """Of a lease that cannot be read there are no series, and its collectors have failed; the other leases have theirs."""
    scene = scene_in(tmp_path, '[tasks.kbSync]\n[tasks.light]\nlease = "second"\n')
    found = series(exposition(scene, lambda lease: broken() if lease == "second" else HELD))
    for name in ("lease_held", "lease_holder_pid", "waiters", "lease_nesting_depth"):
        assert found[f'maintlock_{name}{{lease="{LEASE}"}}'] >= 1
        assert f'maintlock_{name}{{lease="second"}}' not in found
    assert found[f'maintlock_collision_active{{kind="lockfile_replaced",lease="{LEASE}"}}'] == 1
    assert found['maintlock_runs_total{lease="second",task="light"}'] == 0
    failed = {name for name in ("lease", "presence", "tasks", "counters", "collisions")
              if found[f'maintlock_scrape_collector_success{{collector="{name}"}}'] == 0}  # fmt: skip
    assert failed == {"lease", "presence", "collisions"}


def test_a_collision_is_told_once(tmp_path: Path) -> None:
    """A heavy process that an open collision names is no second one; another beside it is (L13)."""
    scene, kinds = scene_in(tmp_path), ("inherited", "unleased_process")
    one, other = [process.read_stat(pid) for pid in (os.getpid(), os.getppid())]
    found = [Outside(task="kbSync", lease=LEASE, stat=stat) for stat in (one, other)]
    opened = marks.event_id("inherited", [one, other], 1)
    write(scene, events.new("collision", event_id=opened, at=NOW, lease=LEASE, reason_code="inherited"))
    status = Once(lambda lease: observe.read_status(scene.places(lease), NOW))
    told = series(exposition(scene, status, outside=lambda: found))
    assert [told[f'maintlock_collision_active{{kind="{kind}",lease="{LEASE}"}}'] for kind in kinds] == [1, 0]
    found.append(Outside(task="kbSync", lease=LEASE, stat=replace(other, start_ticks=1)))
    told = series(exposition(scene, status, outside=lambda: found))
    assert [told[f'maintlock_collision_active{{kind="{kind}",lease="{LEASE}"}}'] for kind in kinds] == [1, 1]


def test_how_a_task_ran_last(tmp_path: Path) -> None:
    """A run that was stopped, or of which nobody knows how long it took, changes neither success nor duration (R9)."""
    scene = scene_in(tmp_path)
    seen = []
    for fence, outcome in enumerate(("failed", "stopped", "completed", "stopped", "failed", "lost"), 1):
        told = run("kbSync", NOW - 1000 + 100 * fence, float(fence), outcome, f"g{fence}", fence=fence)
        if outcome == "lost":
            told[1] |= {"event": "stale_cleaned", "seconds": None}
        write(scene, *told)
        found = series(exposition(scene))
        names = ("task_last_run_success", "task_last_run_duration_seconds")
        seen.append(tuple(found[f'maintlock_{name}{{lease="{LEASE}",task="kbSync"}}'] for name in names))
    assert seen == [(0, 1), (0, 2), (1, 3), (1, 4), (0, 5), (0, 5)]


@pytest.mark.parametrize(
    ("settings", "is_over"),
    [("", True), ('command = ["x"]\n', True), ('interval = "30m"\n', False), ('inbox = "new/*"\n', False)],
)  # fmt: skip
def test_a_streak_that_nobody_goes_on_with(tmp_path: Path, settings: str, *, is_over: bool) -> None:
    """A deferral by hand that nobody repeats is no starvation for ever; a task that is scheduled is held back until it runs (L5)."""
    scene = scene_in(tmp_path, f"[tasks.kbSync]\n{settings}")
    seen = []
    for ago in (3 * 86400, 2 * 86400, 80000):
        at = NOW - ago
        write(scene, deferred("kbSync", at))
        name = f'maintlock_task_deferred_since_timestamp_seconds{{lease="{LEASE}",task="kbSync"}}'
        seen.append(series(exposition(scene))[name])
    since = NOW - 3 * 86400
    assert seen == ([0, 0, since] if is_over else [since] * 3)


def test_a_failure_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A failing collector is logged when it begins to fail, and when it is over, however often it is scraped (R9, L10)."""
    scene, answers = scene_in(tmp_path), [broken, broken, lambda lease: FREE]
    snapshot = Once(lambda lease: history.read_snapshot(scene.directory, lease=lease))
    views = [
        View(scene=scene, now=NOW, status=status, snapshot=snapshot, outside=list, daemons=dict) for status in answers
    ]
    exporter = Exporter(lambda: views.pop(0))
    caplog.set_level("INFO")
    for _ in answers:
        list(exporter.collect())
    told = [(record.event, record.collector) for record in caplog.records]
    assert sorted(told) == sorted(
        (event, name)
        for event in ("collect_failed", "collect_recovered")
        for name in ("lease", "presence", "collisions")
    )


@pytest.mark.parametrize(("light", "names"), [(0, 1000), (30, 100)])
def test_hostile_names_make_no_series(tmp_path: Path, light: int, names: int) -> None:
    """With 30 tasks, heavy or not, and 1,000 names that nobody configured there are at most 4,000 series, and no strange label."""
    tables = [f'[tasks.task{number:02}]\ninterval = "1h"\nmatch = "task{number:02}.mjs"\n' for number in range(30)]
    scene = scene_in(tmp_path, "heavy = false\n".join([*tables[:light], "".join(tables[light:])]))
    before = series(exposition(scene))
    for number in range(names):
        name = f"evil{number}" if number % 2 else f'"}}\n{number}\N{RIGHT-TO-LEFT OVERRIDE}' + "x" * 300
        write(scene, *run(name, NOW - 9000, 1.0, "failed", f"id{number}", source=name))
        write(scene, deferred(name, NOW, blocked_by=name, reason_code=name))
        write(
            scene,
            events.new("nested_started", at=NOW, lease=LEASE, task=name, parent_task=name, lease_id="x", pid=number),
        )
        write(scene, events.new("collision", at=NOW, lease=LEASE, task=name, reason_code=name))
    after = series(exposition(scene))
    assert after.keys() == before.keys()
    assert len(after) <= 4000
    assert after[f'maintlock_runs_total{{lease="{LEASE}",task="other"}}'] == names
    assert after[f'maintlock_deferrals_total{{lease="{LEASE}",reason="other",task="other"}}'] == names


def test_a_collision_of_another_configuration(tmp_path: Path) -> None:
    """On the lease of a task that is not heavy nothing is looked for; what was counted there before keeps its name."""
    scene = scene_in(tmp_path, '[tasks.light]\nheavy = false\nmatch = "light.mjs"\n')
    lease = own_lease("light")
    name = f'maintlock_collisions_total{{kind="unleased_process",lease="{lease}"}}'
    assert [kind for kind in series(exposition(scene)) if "_collision" in kind and f'"{lease}"' in kind] == [
        f'maintlock_collisions_total{{kind="lockfile_replaced",lease="{lease}"}}',
        f'maintlock_collision_active{{kind="lockfile_replaced",lease="{lease}"}}',
    ]
    write(scene, events.new("collision", at=NOW, lease=lease, task="light", reason_code="unleased_process"))
    assert series(exposition(scene))[name] == 1


def test_a_task_that_is_called_other(tmp_path: Path) -> None:
    """A configured task with the name that stands for all others makes no series twice."""
    text = exposition(scene_in(tmp_path, "[tasks.other]\n[tasks.kbSync]\n"))
    rows = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(rows) == len(set(rows))


def test_a_task_of_another_lease_is_foreign_here(tmp_path: Path) -> None:
    """Each lease has the series of its own tasks; a task that ran under a lease that is not its own is `other` there."""
    scene = scene_in(tmp_path, '[tasks.kbSync]\n[tasks.light]\nlease = "second"\n')
    write(scene, *run("light", NOW - 10, 1.0, "completed", "a"))
    found = series(exposition(scene))
    assert found[f'maintlock_runs_total{{lease="{LEASE}",task="other"}}'] == 1
    assert found['maintlock_runs_total{lease="second",task="light"}'] == 0
    assert f'maintlock_runs_total{{lease="{LEASE}",task="light"}}' not in found


@pytest.mark.parametrize("name", ["nothing-yet", "held", "broken"])
def test_promtool_finds_nothing_to_say(name: str, require: Callable[[str], str]) -> None:
    """`promtool check metrics` finds neither an error nor a bad name."""
    done = subprocess.run(
        [require("promtool"), "check", "metrics"], input=(GOLDEN / f"{name}.txt").read_bytes(), capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_openmetrics_says_the_same(tmp_path: Path) -> None:
    """The OpenMetrics text can be parsed, and has the samples of the plain text."""
    scene = scene_in(tmp_path)
    write(scene, *run("kbSync", NOW - 9000, 400.0, "completed", "a"))
    snapshot = Once(lambda lease: history.read_snapshot(scene.directory, lease=lease))
    view = View(scene=scene, now=NOW, status=lambda lease: HELD, snapshot=snapshot, outside=list, daemons=dict)
    registry = registry_for(Exporter(lambda: view, seconds=lambda: 0.0))
    openmetrics = openmetrics_families(generate_openmetrics(registry).decode())
    plain = text_string_to_metric_families(generate_latest(registry).decode())
    samples = [
        {(s.name, tuple(sorted(s.labels.items())), s.value) for f in found for s in f.samples}
        for found in (openmetrics, plain)
    ]
    assert samples[0] == samples[1]


# Parts


def test_once_reads_once_also_when_it_fails() -> None:
    """A reading is done once for each key, and its failure is raised to everybody who asks."""
    asked: list[str] = []

    def read(key: str) -> str:
        asked.append(key)
        return broken() if key == "bad" else key.upper()

    once = Once(read)
    assert [once("a"), once("a"), once("b")] == ["A", "A", "B"]
    for _ in range(2):
        with pytest.raises(UnavailableError):
            once("bad")
    assert asked == ["a", "b", "bad"]


def test_rated_looks_at_a_bounded_rate_and_cost() -> None:
    """A dear reading is repeated after 5 s, and after 20 times what it took; its failure is kept as long."""
    now, cost, told = 0.0, 0.0, [1, 2, 3]

    def read() -> int:
        nonlocal now
        now += cost
        return told.pop(0) if told else broken()

    rated = Rated(read, every_seconds=5.0, clock=lambda: now)
    assert [rated(), rated()] == [1, 1]
    now, cost = 5.0, 1.0
    assert rated() == 2
    now, cost = 25.9, 0.0
    assert rated() == 2
    now = 26.0
    assert rated() == 3
    now = 31.0
    for _ in range(2):
        with pytest.raises(UnavailableError):
            rated()


class CountedLock:
    """A lock that counts how often it was given back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.count += 1
        self._lock.release()


def test_who_asks_together_gets_one_answer() -> None:
    """Those who ask while an answer is made share the next one; nobody gets one that was begun before they asked."""
    shared: Shared[int] = Shared()
    shared._mutex = mutex = CountedLock()
    begun, go_on = threading.Event(), threading.Event()
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        number = made[-1]
        if number == 0:
            begun.set()
            assert go_on.wait(30)
        return number

    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(shared.get("x", make)))
    first.start()
    assert begun.wait(30)
    others = [threading.Thread(target=lambda: answers.append(shared.get("x", make))) for _ in range(20)]
    for thread in others:
        thread.start()
    until(lambda: mutex.count == 22, "the first to have asked and begun, and the others to have asked")
    go_on.set()
    for thread in (first, *others):
        thread.join(30)
    assert made == [0, 1]
    assert sorted(answers) == [0, *[1] * 20]


def test_a_shared_failure_is_everybodys() -> None:
    """What goes wrong while an answer is made is raised to who asked, and the next is made anew."""
    shared: Shared[int] = Shared()
    with pytest.raises(UnavailableError):
        shared.get("x", broken)
    assert shared.get("x", lambda: 1) == 1


@pytest.mark.parametrize(
    ("header", "is_ours"),
    [
        ("127.0.0.1:9817", True), ("localhost", True), ("LOCALHOST:1", True), ("[::1]:9817", True), ("box:9817", True),
        ("evil.example", False), ("127.0.0.1.evil.example:9817", False), ("", False), ("[::1]x", False), ("a,127.0.0.1", False),
        ("127.0.0.1:x", False), ("[127.0.0.1]evil", False),
    ],
)  # fmt: skip
def test_hosts(header: str, *, is_ours: bool) -> None:
    """A `Host` is ours by name, whatever its port."""
    assert (host_in(header) in hosts_of("127.0.0.1", ["Box"])) is is_ours


@pytest.mark.parametrize(
    ("option", "header"),
    [
        ("bar:8080", "bar:8080"), ("bar:8080", "BAR"), ("[fd00::7]", "[fd00::7]:9817"), ("[fd00::7]:9817", "[FD00::7]"),
        ("fd00::7", "[fd00::7]:9817"), ("FD00::7", "[fd00::7]"), ("192.0.2.7:80", "192.0.2.7"),
    ],
)  # fmt: skip
def test_hosts_that_are_allowed(option: str, header: str) -> None:
    """A name or address may be allowed as it stands in a `Host` header, with port and brackets, or without."""
    assert host_in(header) in hosts_of("127.0.0.1", [option])


@pytest.mark.parametrize("option", ["", "[", "[]", "[::1]x", ":80"])
def test_nothing_is_no_name(option: str) -> None:
    """An option without a name allows no empty `Host`."""
    assert "" not in hosts_of("127.0.0.1", [option])


# The ledger is kept open


def wal_after_a_writer(directory: Path) -> bool:
    """Tell whether the last writer's leaving has left the log to us, which saves it the checking in."""
    ledger.drain(str(directory), now=NOW)
    with sqlite3.connect(directory / "ledger.db") as db:
        db.execute("UPDATE meta SET value = value")
    db.close()
    return (directory / "ledger.db-wal").exists()


def test_the_ledger_is_kept_open(tmp_path: Path) -> None:
    """While the exporter keeps the ledger open, no writer has to check it in when it leaves; without it, it does."""
    scene = scene_in(tmp_path)
    directory = Path(scene.directory)
    write(scene, *run("kbSync", NOW, 1.0, "completed", "a"))
    keeper = LedgerKeeper(scene.directory)
    keeper.keep()
    assert keeper._db is None, "there is no ledger yet"
    assert not wal_after_a_writer(directory)
    keeper.keep()
    assert keeper._db is not None
    assert wal_after_a_writer(directory)
    keeper.close()


def test_a_new_ledger_in_the_old_ones_place(tmp_path: Path) -> None:
    """After the ledger is gone, and after another is back, the connection leads to what is there, and harms nothing."""
    scene = scene_in(tmp_path)
    directory, keeper = Path(scene.directory), LedgerKeeper(scene.directory)
    write(scene, *run("kbSync", NOW, 1.0, "completed", "a"))
    ledger.drain(scene.directory, now=NOW)
    keeper.keep()
    for file in directory.iterdir():
        file.unlink()
    keeper.keep()
    assert keeper._db is None
    write(scene, *run("kbSync", NOW, 1.0, "completed", "b"))
    with ledger.Ledger(scene.directory) as writer:
        writer.drain(now=NOW)
        keeper.keep()
        assert keeper._db is not None
        write(scene, *run("backup", NOW, 1.0, "completed", "c"))
        writer.drain(now=NOW)
        assert set(history.read_snapshot(scene.directory, lease=LEASE).tasks) == {"kbSync", "backup"}
    keeper.close()


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0torn", b""])
def test_no_ledger_is_kept_where_there_is_none(tmp_path: Path, content: bytes) -> None:
    """A file that is no database, a directory and a FIFO in its place are not kept open, and nobody waits for them."""
    path, keeper = tmp_path / "ledger.db", LedgerKeeper(str(tmp_path))
    path.write_bytes(content)
    keeper.keep()
    path.unlink()
    os.mkfifo(path)
    keeper.keep()
    path.unlink()
    path.mkdir()
    keeper.keep()
    assert keeper._db is None


def test_a_locked_ledger_is_not_waited_for(tmp_path: Path) -> None:
    """A ledger that somebody keeps locked, stopped perhaps, is not kept open, nor waited for; the next scrape tries again."""
    scene, keeper = scene_in(tmp_path), LedgerKeeper(str(tmp_path / "state"))
    write(scene, *run("kbSync", NOW, 1.0, "completed", "a"))
    ledger.drain(scene.directory, now=NOW)
    locker = sqlite3.connect(f"{scene.directory}/ledger.db", isolation_level=None)
    locker.execute("PRAGMA locking_mode = EXCLUSIVE")
    locker.execute("BEGIN EXCLUSIVE")
    keeper.keep()
    assert keeper._db is None
    locker.close()
    keeper.keep()
    assert keeper._db is not None
    keeper.close()


# The page's parts


def event(kind: str, at: float, lease_id: str | None = "a", **more: Any) -> dict[str, Any]:
    """Return a row of history."""
    empty = dict.fromkeys(
        ("task", "source", "reason_code", "blocked_by", "parent_task", "seconds", "exit_code", "outcome")
    )
    return {**empty, **events.new(kind, at=at, lease=LEASE, lease_id=lease_id), "task": "kbSync", **more}


def spans(*told: dict[str, Any], since: float | None = None) -> list[tuple[float, float, str]]:
    """Return grants as begin and end, in seconds before now, and outcome; grant `a` goes on, if it has begun."""
    holder = None if since is None else {"lease_id": "a", "task": "kbSync", "acquired_at": rfc3339(since)}
    return [(s.since - NOW, s.until - NOW, s.outcome) for s in timeline.spans(told, holder=holder, now=NOW)]


def test_spans_of_grants() -> None:
    """A grant lasts from its beginning to its end; one that began before the window is known by its end."""
    assert spans(event("acquired", NOW - 50), event("released", NOW - 20, outcome="failed")) == [(-50, -20, "failed")]
    assert spans(event("released", NOW - 20, outcome="completed", seconds=100.0)) == [(-120, -20, "completed")]


def test_the_span_of_the_holder() -> None:
    """Who has the lease has it since its own record says, whatever events there are, and until now or its end."""
    assert spans(event("acquired", NOW - 50), since=NOW - 50) == [(-50, 0, "running")]
    assert spans(since=NOW - 90_000) == [(-90_000, 0, "running")]
    ended = event("acquired", NOW - 50), event("released", NOW - 1, outcome="completed")
    assert spans(*ended, since=NOW - 50) == [(-50, -1, "completed")]
    (odd,) = timeline.spans(
        [event("acquired", NOW - 7)], holder={"lease_id": "a", "task": "x", "acquired_at": "yesterday"}, now=NOW
    )
    assert (odd.since, odd.outcome) == (NOW - 7, "running")


def test_grants_that_are_dated_ahead() -> None:
    """No bar reaches beyond now, whatever a clock that was wrong has written."""
    ahead = event("acquired", NOW + 9000, "b"), event("released", NOW + 9900, "b", outcome="failed")
    across = event("acquired", NOW - 43200, "c"), event("released", NOW + 86400, "c", outcome="failed")
    (lane,) = timeline.lanes(timeline.spans([*ahead, *across], holder=None, now=NOW), now=NOW)
    assert (lane.seconds, [(bar.left, bar.width) for bar in lane.bars]) == (43200.0, [(50.0, 50.0)])


def test_a_grant_without_an_end() -> None:
    """A grant whose end nobody told, and that does not go on, lasted until the next at most, and how it ended is unknown."""
    rows = (
        event("acquired", NOW - 90),
        event("acquired", NOW - 50, "b"),
        event("released", NOW - 20, "b", outcome="completed"),
    )
    assert spans(*rows) == [(-90, -50, "unknown"), (-50, -20, "completed")]
    assert spans(event("deferred", NOW - 5, None), event("stale_cleaned", NOW - 5, None)) == []


def test_lanes() -> None:
    """Each task has a lane, the busiest first; what began before the day is cut at its beginning, and short bars are still seen."""
    grants = [
        timeline.Span(task="short", since=NOW - 100, until=NOW - 99, outcome="completed"),
        timeline.Span(task="long", since=NOW - 100_000, until=NOW - 43200, outcome="lost"),
        timeline.Span(task="old", since=NOW - 200_000, until=NOW - 90_000, outcome="completed"),
    ]
    long, short = timeline.lanes(grants, now=NOW)
    assert (long.task, long.seconds, [(bar.left, bar.width) for bar in long.bars]) == ("long", 43200.0, [(0.0, 50.0)])
    assert (short.task, short.bars[0].width) == ("short", timeline.NARROWEST)
    assert short.bars[0].left + short.bars[0].width <= 100


def test_who_has_the_lease_has_a_lane() -> None:
    """Who has the lease now stands first, however many others have held it for longer."""
    grants = [
        timeline.Span(task=f"t{n}", since=NOW - 1000 * n - 999, until=NOW - 1000 * n, outcome="failed")
        for n in range(1, 20)
    ]
    running = timeline.Span(task="t99", since=NOW - 5, until=NOW, outcome="running")
    found = timeline.lanes([*grants, running], now=NOW)
    assert (found[0].task, len(found)) == ("t99", 8)


def test_lanes_are_bounded() -> None:
    """However many tasks there were, there are eight lanes, the last of which is for all the others."""
    grants = [
        timeline.Span(task=f"t{n:03}", since=NOW - 2 * n - 2, until=NOW - 2 * n - 1, outcome="failed")
        for n in range(300)
    ]
    found = timeline.lanes(grants, now=NOW)
    assert [lane.task for lane in found] == [*[f"t{n:03}" for n in range(7)], "others"]
    assert (len(found[-1].bars), found[-1].seconds) == (293, 293.0)


@pytest.mark.parametrize(
    ("text", "mood", "fields"),
    [
        ("got the lease, waited 3s, from npm", "plain", {"event": "acquired", "seconds": 3.0, "source": "npm"}),
        ("got the lease", "plain", {"event": "acquired", "seconds": 0.01}),
        ("completed, after 1m05s", "good", {"event": "released", "seconds": 65.0, "outcome": "completed"}),
        ("timed out, after 2h00m, exit code 124", "bad", {"event": "released", "seconds": 7200.0, "outcome": "timed_out", "exit_code": 124}),
        ("stood back for backup, lease-held", "odd", {"event": "deferred", "blocked_by": "backup", "reason_code": "lease-held"}),
        ("stood back", "odd", {"event": "deferred"}),
        ("joined sync", "plain", {"event": "nested_started", "parent_task": "sync"}),
        ("ended inside sync, after 3s", "good", {"event": "nested_finished", "parent_task": "sync", "seconds": 3.0, "exit_code": 0}),
        ("ended inside sync, exit code 2", "bad", {"event": "nested_finished", "parent_task": "sync", "exit_code": 2}),
        ("ended", "odd", {"event": "nested_finished"}),
        ("was lost, and cleaned up", "bad", {"event": "stale_cleaned", "outcome": "lost"}),
        ("left a stray record, cleaned up", "bad", {"event": "stale_cleaned"}),
        ("collision: lockfile replaced", "bad", {"event": "collision", "reason_code": "lockfile_replaced"}),
        ("stood back for \\x1b[2J\\u202e", "odd", {"event": "deferred", "blocked_by": "\x1b[2J\u202e"}),
    ],
)  # fmt: skip
def test_sentences(text: str, mood: str, fields: dict[str, Any]) -> None:
    """Each kind of event is a few words and a mood, with what others wrote made printable."""
    row = {**event("acquired", NOW), **fields}
    assert (sentences.sentence(row), sentences.mood(row)) == (text, mood)


def test_a_process_tree() -> None:
    """Children follow their parent, deeper by one; a ring of parents, torn by pids used again, hides nothing else."""
    rows: list[Any] = [{"pid": pid, "name": "x", "rss_bytes": 1} for pid in (5, 6, 7, 8)]
    found = trees.tree(rows, {5: 1, 6: 5, 7: 6, 8: 5})
    assert [(depth, row["pid"]) for depth, row in found] == [(0, 5), (1, 6), (2, 7), (1, 8)]
    assert [row["pid"] for _, row in trees.tree(rows, {5: 5, 6: 99})] == [5, 6, 7, 8]


def test_how_deep_jobs_run_inside_one_another(spawn_child: Callable[[], int]) -> None:
    """Two that have joined side by side are one deep, one that has joined inside another's job two."""
    children = [spawn_child(), spawn_child()]
    about: Any = {"task": "x", "reason": None, "started_at": ""}
    siblings = [{**about, "pid": pid} for pid in children]
    around = {**about, "pid": os.getpid()}
    assert [trees.depth([]), trees.depth(siblings), trees.depth([*siblings, around])] == [0, 1, 2]
    assert [(depth, row["pid"]) for depth, row in trees.joined([siblings[0], around, siblings[1]])] == [
        (0, os.getpid()), (1, children[0]), (1, children[1]),
    ]  # fmt: skip
    assert trees.depth([around, around]) == 2, "twice in one process"


@pytest.fixture
def spawn_child() -> Iterator[Callable[[], int]]:
    """Give a way to start children of this process, which end with the test."""
    with ExitStack() as stack:

        def start() -> int:
            child = stack.enter_context(subprocess.Popen(["sleep", "1000"]))
            stack.callback(child.kill)
            return child.pid

        yield start


def test_troubles_name_the_command_to_run_next(tmp_path: Path) -> None:
    """A collision, a process outside, an orphaned or overdue holder, a bad sidecar and a bad ledger each say what to run next."""
    stat = Stat(pid=77, name="x", state="S", ppid=1, pgid=1, sid=1, threads=1, start_ticks=1)
    culprit = Outside(task="kbSync", lease=LEASE, stat=stat)
    scene = scene_in(tmp_path)
    overdue: Status = {**HELD, "holder": {**HOLDER, "overdue": True}}
    found = {one.kind: one for one in troubles(scene, overdue, [culprit], ["ledger.db: torn"] * 2)}
    there = f"--state-dir {scene.directory}"
    assert {kind: one.command for kind, one in found.items()} == {
        "lockfile replaced": f"maintlock stop {there}", "unleased process": f"maintlock doctor {there}",
        "overdue": f"maintlock stop {there}", "unreadable": f"maintlock doctor {there}",
    }  # fmt: skip
    assert "kbSync (pid 77)" in found["unleased process"].text
    second: Status = {**FREE, "lease": "second", "state": "orphaned", "detail": "pid 5 works on"}
    (orphaned,) = troubles(scene, second, [], [])
    assert orphaned.command == f"maintlock stop --lease second {there}"
    torn: Status = {**HELD, "holder": None, "sidecar": "malformed", "collisions": []}
    assert [one.kind for one in troubles(scene, torn, [], [])] == ["malformed"]
    unseen: Status = {**FREE, "state": "unknown", "detail": "no grant is on record, and nothing here tells who has it"}
    assert [one.kind for one in troubles(scene, unseen, [], [])] == ["unknown"]


def test_times_in_words() -> None:
    """Times are told as distances, in full on demand, and a missing one as never."""
    clock = Clock(NOW)
    assert [clock.distance(at) for at in (None, NOW, NOW - 65, NOW + 7200)] == ["never", "now", "1m05s ago", "in 2h00m"]
    assert clock.iso(NOW) == "2026-05-16T19:33:20.000Z"
    assert (clock.lasting("2026-05-16T19:33:10.000Z"), clock.lasting("rubbish")) == ("10s", "?")
    assert [clock.due(at) for at in (NOW + 65, NOW, NOW - 8040)] == ["in 1m05s", "now", "2h14m late"]


def test_an_empty_ledger_is_no_fault(tmp_path: Path) -> None:
    """A state directory without a ledger is up; one that is gone is not."""
    scene = scene_in(tmp_path)
    assert isinstance(history.read_snapshot(scene.directory, lease=LEASE), Snapshot)
    assert series(exposition(scene))["maintlock_up"] == 1
    assert series(exposition(scene, directory_trouble="gone"))["maintlock_up"] == 0
