from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import outside, process
from maintlock.custody import Custody
from maintlock.model import Line, ProcessIdentity, replace
from maintlock.outside import is_command, matching
from maintlock.paths import Places
from maintlock.process import Stat
from maintlock.settings import TaskSettings
from tests.headless import Headless, headless_in
from tests.support import until

MATCH = "syncKnowledgeBase.mjs"
KB_SYNC = TaskSettings(name="kbSync", match=MATCH)


def is_match(argv: Sequence[str], task: TaskSettings = KB_SYNC, executable: str = "") -> bool:
    """Tell whether a process with this command line, executing this file, is recognised as the task."""
    return 7 in matching({7: argv}, [task], lambda pid: executable)


@pytest.mark.parametrize(
    ("expected", "command"),
    [
        (True, "node buildScripts/ai/syncKnowledgeBase.mjs --full"),
        (True, "/usr/bin/node --max-old-space-size=4096 /x/syncKnowledgeBase.mjs"),
        (True, "npx tsx syncKnowledgeBase.mjs"),
        (True, "python3.11 syncKnowledgeBase.mjs"),
        (True, "-bash syncKnowledgeBase.mjs"),
        (True, "./syncKnowledgeBase.mjs"),
        (False, "vim buildScripts/ai/syncKnowledgeBase.mjs"),
        (False, "less syncKnowledgeBase.mjs"),
        (False, "grep x syncKnowledgeBase.mjs"),
        (False, "node -e syncKnowledgeBase.mjs"),
        (False, "sh -c syncKnowledgeBase.mjs"),
        (False, "node xsyncKnowledgeBase.mjs"),
        (True, "sh -e syncKnowledgeBase.mjs"),
        (True, "bash -e syncKnowledgeBase.mjs"),
        (True, "bash -p syncKnowledgeBase.mjs"),
        (True, "python3 -E syncKnowledgeBase.mjs"),
        (True, "node -r x.cjs syncKnowledgeBase.mjs"),
        (False, "node -p syncKnowledgeBase.mjs"),
        (False, "node --print syncKnowledgeBase.mjs"),
        (False, "node --eval=less_/p/syncKnowledgeBase.mjs"),
        (False, "node --print=less_/p/syncKnowledgeBase.mjs"),
        (False, "perl -ne syncKnowledgeBase.mjs"),
        (False, "ruby -e syncKnowledgeBase.mjs"),
        (False, "bash -lc vim_x/syncKnowledgeBase.mjs"),
        (False, "sh -ec vim_x/syncKnowledgeBase.mjs"),
        (False, "sh -ce vim_x/syncKnowledgeBase.mjs"),
        (False, "bash -xc vim_x/syncKnowledgeBase.mjs"),
        (False, "python3 -Ic import_x/syncKnowledgeBase.mjs"),
        (False, "python3 /usr/bin/maintlock-wrap -t kbSync -- node syncKnowledgeBase.mjs"),
        (False, "python3 -I /usr/bin/maintlock-wrap -- node syncKnowledgeBase.mjs"),
        (False, "node"),
    ],
)
def test_what_a_match_recognises(*, expected: bool, command: str) -> None:
    """A script under an interpreter or a program itself is recognised, and an editor, a pager or a waiting guard is not (L13)."""
    assert is_match([word.replace("_", " ") for word in command.split()]) is expected


@pytest.mark.parametrize(
    ("expected", "command", "executable"),
    [
        (True, "worker syncKnowledgeBase.mjs", "/usr/bin/python3.11"),
        (True, "worker syncKnowledgeBase.mjs", "/usr/bin/node"),
        (True, "other --full", "/x/syncKnowledgeBase.mjs"),
        (True, "syncKnowledgeBase.mjs", "/x/other"),
        (True, "node syncKnowledgeBase.mjs", ""),
        (False, "worker -c syncKnowledgeBase.mjs", "/usr/bin/python3.11"),
        (False, "vim syncKnowledgeBase.mjs", "/usr/bin/vim.basic"),
        (False, "worker", "/usr/bin/node"),
        (True, "sh syncKnowledgeBase.mjs", "/bin/busybox"),
        (False, "vi syncKnowledgeBase.mjs", "/bin/busybox"),
        (True, "busybox sh syncKnowledgeBase.mjs", "/bin/busybox"),
        (False, "busybox vi syncKnowledgeBase.mjs", "/bin/busybox"),
        (False, "busybox sh -c syncKnowledgeBase.mjs", "/bin/busybox"),
        (False, "busybox", "/bin/busybox"),
    ],
)
def test_a_program_is_known_by_its_file_too(*, expected: bool, command: str, executable: str) -> None:
    """Whoever starts a program names it in its arguments as it likes, so the file that it executes counts as well (L13)."""
    assert is_match(command.split(), executable=executable) is expected


def test_nothing_matches_nothing() -> None:
    """A process without a command line, as a thread of the kernel's, is no heavy one."""
    assert not is_match([])
    assert not is_command([], [])


def test_only_heavy_tasks_with_a_match_are_looked_for() -> None:
    """A task that is not heavy, or has no `match`, recognises nothing (L14)."""
    argv = ["node", MATCH]
    assert is_match(argv)
    assert not is_match(argv, TaskSettings(name="kbSync", match=MATCH, heavy=False))
    assert not is_match(argv, TaskSettings(name="x"))


WORDS = ["node", "-bash", "python3.11", "vim", "-e", "-c", "maintlock-wrap", "/x/maintlock-wrap", "--full", ""]
NAMES = ["a.mjs", "b.mjs", "node", "vim"]
ARGV = st.lists(st.sampled_from([*WORDS, *NAMES, "/x/a.mjs", "./b.mjs"]), max_size=6)
TASKS = st.lists(st.tuples(st.sampled_from([*NAMES, "", None]), st.booleans()), max_size=5)


@given(st.dictionaries(st.integers(1, 9), ARGV, max_size=4), TASKS)
def test_many_are_matched_as_each_alone(argv_of: dict[int, list[str]], wanted: list[tuple[str | None, bool]]) -> None:
    """However many tasks there are, a process is recognised as the last of those that recognise it alone (L13, L14)."""
    tasks = [
        TaskSettings(name=f"t{place}", match=match, heavy=is_heavy) for place, (match, is_heavy) in enumerate(wanted)
    ]
    expected = {pid: task for pid, argv in argv_of.items() for task in tasks if is_match(argv, task)}
    assert matching(argv_of, tasks, lambda pid: "") == expected


@pytest.mark.parametrize(
    ("expected", "running", "command"),
    [
        (True, "chroma run --path x", "chroma run --path x"),
        (True, "/usr/bin/python /opt/chroma run --path x", "chroma run --path x"),
        (True, "/opt/bin/chroma run --path x", "chroma run --path x"),
        (False, "chroma run --path y", "chroma run --path x"),
        (False, "vim chroma run --path x", "chroma run --path x"),
        (False, "chroma", "chroma run"),
    ],
)
def test_a_daemon_is_known_by_its_command(*, expected: bool, running: str, command: str) -> None:
    """A daemon runs where its command line does, by itself or through an interpreter (R5)."""
    assert is_command(running.split(), command.split()) is expected


# Who is covered

GRANT = Line(
    fence=1, lease_id="grant", task="backup", source="cli", session_id=50, hold_until="session", mode="supervised",
    identity=ProcessIdentity(pid=50, start_ticks=1, boot_id="", pid_namespace=""), started_at=0.0,
)  # fmt: skip
NOW = 1_000_000.0
HERE = Places(directory="/nowhere", lease="heavy-maintenance")


def row(pid: int, ppid: int = 1, sid: int = 50) -> Stat:
    """Return a row of the process table."""
    return Stat(pid=pid, name="node", state="S", ppid=ppid, pgid=sid, sid=sid, threads=1, start_ticks=1)


TABLE = {stat.pid: stat for stat in (row(50), row(51, 50), row(52, 51), row(60, 51, 60), row(70, 1, 70), row(71, 1))}


@pytest.mark.parametrize(
    ("expected", "pid", "found"),
    [
        (True, 50, Custody(state="held", sidecar="valid", grant=GRANT)),
        (True, 52, Custody(state="held", sidecar="valid", grant=GRANT)),
        (True, 71, Custody(state="held", sidecar="valid", grant=GRANT, fields={"job_pid": 71})),
        (True, 71, Custody(state="orphaned", sidecar="valid", grant=GRANT, members=(TABLE[71],))),
        (False, 60, Custody(state="held", sidecar="valid", grant=GRANT)),
        (False, 70, Custody(state="held", sidecar="valid", grant=GRANT)),
        (False, 52, Custody(state="free", sidecar="missing", grant=GRANT)),
        (False, 52, Custody(state="held", sidecar="missing")),
    ],
)
def test_who_is_part_of_the_job(monkeypatch: pytest.MonkeyPatch, *, expected: bool, pid: int, found: Custody) -> None:
    """The holder, its job, its descendants and survivors are covered; who left the session, or has no grant, is not."""
    monkeypatch.setattr(process, "read_environ", lambda pid: b"")
    assert outside.is_covered(TABLE[pid], TABLE, HERE, found) is expected


def test_a_descendant_is_covered_wherever_it_went_under_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--hold-until tree` a descendant in a session of its own is part of the job too."""
    monkeypatch.setattr(process, "read_environ", lambda pid: b"")
    tree = replace(GRANT, hold_until="tree")
    assert outside.is_covered(TABLE[60], TABLE, HERE, Custody(state="held", sidecar="valid", grant=tree))


def test_a_loop_of_parents_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table torn by pids used again, in which parents form a ring, is walked once."""
    monkeypatch.setattr(process, "read_environ", lambda pid: b"")
    ring = {80: row(80, 81), 81: row(81, 80)}
    assert not outside.is_covered(ring[80], ring, HERE, Custody(state="held", sidecar="valid", grant=GRANT))


# What is a collision, and what is about to ask or to end


@pytest.mark.parametrize(
    ("expected", "started_at", "session_id", "last"),
    [
        (60.0, NOW - 60, 50, None),
        (float("inf"), None, 50, None),
        (60.0, NOW - 60, 50, GRANT),
        (5.0, NOW - 60, 50, replace(GRANT, outcome="completed", ended_at=NOW - 5)),
        (60.0, NOW - 60, 51, replace(GRANT, outcome="completed", ended_at=NOW - 5)),
        (60.0, NOW - 60, 50, replace(GRANT, outcome="completed", ended_at=NOW - 90)),
        (0.0, NOW + 60, 50, None),
    ],
)
def test_for_how_long_a_process_was_outside(
    expected: float, started_at: float | None, session_id: int, last: Line | None
) -> None:
    """A process is outside since it began, or since its session's grant has ended."""
    assert outside.seconds_outside(started_at, session_id, last, NOW) == expected


def seen(pid: int, seconds: float = 0.0) -> outside.Outside:
    """Return a process that is outside the lease."""
    return outside.Outside(task="kbSync", lease="heavy-maintenance", stat=row(pid), seconds=seconds)


def test_the_first_look_believes_what_is_told() -> None:
    """Whoever looks once goes by the age of a process: a second after its start it may be about to ask."""
    assert [one.is_lasting for one in outside.Watch().timed([seen(1, 1.9), seen(2, 2.0)], NOW)] == [False, True]


def test_later_looks_believe_what_they_see() -> None:
    """Whoever looks again counts from the first of the looks in a row that found a process outside, however old it is."""
    watch = outside.Watch()
    assert watch.timed([], NOW) == []
    looks = [watch.timed([seen(1, 90.0)], NOW + seconds)[0].is_lasting for seconds in (3.0, 4.9, 5.0)]
    assert looks == [False, False, True]
    watch.timed([], NOW + 6)
    assert not watch.timed([seen(1, 90.0)], NOW + 7)[0].is_lasting


def test_whoever_is_about_to_ask_has_not_begun() -> None:
    """As long as a program of ours that a process has started may not have asked yet, its time does not count."""
    watch = outside.Watch()
    looks = [watch.timed([seen(1, told)], NOW + seconds)[0].is_lasting for seconds, told in ((0, 0), (3, 0), (6, 6))]
    assert looks == [False, False, True]
    assert not watch.timed([seen(1, 0.0)], NOW + 7)[0].is_lasting


@pytest.mark.parametrize(
    ("expected", "command"),
    [
        (True, "python3 /x/maintlock-wrap -t backup -- true"),
        (True, "maintlock-wrap -t backup -- true"),
        (True, "python3 -I /x/maintlock hold -t backup"),
        (True, "maintlock run -t backup -- true"),
        (False, "python3 /x/maintlock status --watch"),
        (False, "node backup.mjs hold"),
    ],
)
def test_which_programs_ask(*, expected: bool, command: str) -> None:
    """Of our own programs some ask for the lease, and the others only look."""
    assert outside.is_asking(command.split()) is expected


def waiter(pid: int, role: str = "waiting") -> dict[str, Any]:
    """Return a row of presence."""
    return {"pid": pid, "start_ticks": 1, "boot_id": "", "pid_namespace": "", "role": role}


def test_who_waits_is_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits does no heavy work, and neither do its ancestors and descendants in its session; who is gone, or has
    joined, waits no more.
    """
    monkeypatch.setattr(process, "is_alive", lambda identity: identity.pid != 71)
    assert outside.waiting([waiter(51)], TABLE) == {50, 51, 52}
    assert outside.waiting([waiter(60)], TABLE) == {60}
    assert outside.waiting([waiter(71), waiter(70, "nested"), waiter(99)], TABLE) == set()


# Real processes

Start = Callable[..., Any]


@pytest.fixture
def headless(tmp_path: Path) -> Iterator[Headless]:
    """Give a lock whose jobs end with the test."""
    with headless_in(tmp_path / "state") as lock:
        yield lock


@pytest.fixture
def heavy(tmp_path: Path) -> TaskSettings:
    """Give a task that is recognised by a script nobody else has."""
    name = f"heavy-{tmp_path.name}.sh"
    (tmp_path / name).write_text("echo ready; read x\n", encoding="ascii")
    return TaskSettings(name="kbSync", match=name)


def find(lock: Headless, task: TaskSettings) -> list[outside.Outside]:
    """Return what is outside the lease, if only for a moment."""
    return outside.find_uncovered([task], lambda lease: Places(directory=str(lock.directory), lease=lease))


def find_lasting(lock: Headless, task: TaskSettings) -> list[outside.Outside]:
    """Return what collides, by a single look."""
    return outside.find([task], lambda lease: Places(directory=str(lock.directory), lease=lease))


def test_a_process_outside_the_lease_is_found(headless: Headless, heavy: TaskSettings, tmp_path: Path) -> None:
    """A heavy script started past the guard is found while it lives, of a tree of them the topmost (R17, L13)."""
    script = str(tmp_path / str(heavy.match))
    running = headless.start("-c", 'sh "$0"; exit', script, program="/bin/sh", stdin=-1)
    running.until_line("ready")
    (found,) = find(headless, heavy)
    assert (found.task, found.lease) == ("kbSync", "heavy-maintenance")
    assert str(found) == f"kbSync (pid {found.stat.pid})"
    assert until(lambda: find_lasting(headless, heavy))[0].stat.pid == found.stat.pid
    running.popen.stdin.close()
    running.popen.wait()
    assert find(headless, heavy) == []


def test_a_job_and_what_joined_it_are_no_culprits(headless: Headless, heavy: TaskSettings, tmp_path: Path) -> None:
    """The holder's job, a job that joined it, and a guard that waits are not taken for processes outside the lease (R7)."""
    script = str(tmp_path / str(heavy.match))
    nested = f"maintlock-wrap -t kbSync -- sh {script}; exit"
    headless.start("-t", "sync", "--", "sh", "-c", nested, stdin=-1).until_line("ready")
    headless.start("-t", "kbSync", "--wait", "forever", "--", "sh", script, stdin=-1)
    until(lambda: headless.status()["waiters"], "the waiter")
    assert find(headless, heavy) == []


def test_a_program_under_another_name_is_found(headless: Headless, heavy: TaskSettings, tmp_path: Path) -> None:
    """An interpreter that was started under a name of its starter's choice runs its script all the same (L13)."""
    script = str(tmp_path / str(heavy.match))
    running = headless.start("-c", 'exec -a worker sh "$0"', script, program="/bin/bash", stdin=-1)
    running.until_line("ready")
    assert [one.stat.pid for one in find(headless, heavy)] == [running.popen.pid]


HOLDS = """
import sys, maintlock
with maintlock.hold("kbSync", wait=60):
    print("ready", flush=True)
    sys.stdin.readline()
print("released", flush=True)
sys.stdin.readline()
"""


def test_a_script_that_asks_by_itself(headless: Headless, tmp_path: Path) -> None:
    """A script that takes the lease itself is no collision while it waits, works, or has only just released (R8, R17)."""
    script = tmp_path / f"holds-{tmp_path.name}.py"
    script.write_text(HOLDS, encoding="utf-8")
    task = TaskSettings(name="kbSync", match=script.name)
    first = headless.hold("backup")
    running = headless.start(str(script), program=sys.executable, stdin=-1)
    until(lambda: headless.status()["waiters"], "the waiter")
    assert find(headless, task) == []
    first.popen.communicate()
    running.until_line("ready")
    assert find(headless, task) == []
    told_at = time.time()
    running.popen.stdin.write(b"\n")
    running.popen.stdin.flush()
    running.until_line("released")
    (one,) = find(headless, task)
    assert one.seconds <= time.time() - told_at + 0.001  # it has worked for longer than that


def test_the_exporter_itself_is_no_culprit(headless: Headless, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that looks is never found, whatever its arguments."""
    monkeypatch.setattr(outside, "read_argv", lambda pid: ["node", MATCH] if pid == os.getpid() else [])
    assert find(headless, KB_SYNC) == []


def test_a_job_that_ended_meanwhile_is_no_culprit(headless: Headless, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was on the table and is gone when its grant is found over did not work outside the lease."""
    gone = row(2**22 + 1)
    monkeypatch.setattr(outside, "matching", lambda argv, tasks: {gone.pid: KB_SYNC})
    monkeypatch.setattr(process, "read_table", lambda: {gone.pid: gone})
    assert find(headless, KB_SYNC) == []
