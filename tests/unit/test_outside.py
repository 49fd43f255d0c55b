from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import outside, process
from maintlock.custody import Custody
from maintlock.model import Line, ProcessIdentity, replace
from maintlock.outside import is_command, is_match, matching
from maintlock.paths import Places
from maintlock.process import Stat
from maintlock.settings import TaskSettings
from tests.headless import Headless, headless_in
from tests.support import until

MATCH = "syncKnowledgeBase.mjs"
KB_SYNC = TaskSettings(name="kbSync", match=MATCH)


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
        (False, "python3 /usr/bin/maintlock-wrap -t kbSync -- node syncKnowledgeBase.mjs"),
        (False, "python3 -I /usr/bin/maintlock-wrap -- node syncKnowledgeBase.mjs"),
        (False, "node"),
    ],
)
def test_what_a_match_recognises(*, expected: bool, command: str) -> None:
    """A script under an interpreter or a program itself is recognised, and an editor, a pager or a waiting guard is not (L13)."""
    assert is_match(command.split(), MATCH) is expected


def test_nothing_matches_nothing() -> None:
    """A process without a command line, as a thread of the kernel's, is no heavy one."""
    assert not is_match([], MATCH)
    assert not is_command([], [])


def test_only_heavy_tasks_with_a_match_are_looked_for() -> None:
    """A task that is not heavy, or has no `match`, recognises nothing (L14)."""
    argv = {7: ["node", MATCH]}
    assert matching(argv, [KB_SYNC]) == {7: KB_SYNC}
    assert matching(argv, [TaskSettings(name="kbSync", match=MATCH, heavy=False), TaskSettings(name="x")]) == {}


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
    expected = {
        pid: task
        for pid, argv in argv_of.items()
        for task in tasks
        if task.heavy and task.match and is_match(argv, task.match)
    }
    assert matching(argv_of, tasks) == expected


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
    monkeypatch.setattr(process, "read_environ", lambda stat: b"")
    assert outside.is_covered(TABLE[pid], TABLE, HERE, found) is expected


def test_a_descendant_is_covered_wherever_it_went_under_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--hold-until tree` a descendant in a session of its own is part of the job too."""
    monkeypatch.setattr(process, "read_environ", lambda stat: b"")
    tree = replace(GRANT, hold_until="tree")
    assert outside.is_covered(TABLE[60], TABLE, HERE, Custody(state="held", sidecar="valid", grant=tree))


def test_a_loop_of_parents_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table torn by pids used again, in which parents form a ring, is walked once."""
    monkeypatch.setattr(process, "read_environ", lambda stat: b"")
    ring = {80: row(80, 81), 81: row(81, 80)}
    assert not outside.is_covered(ring[80], ring, HERE, Custody(state="held", sidecar="valid", grant=GRANT))


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
    """Return what is found."""
    return outside.find([task], lambda lease: Places(directory=str(lock.directory), lease=lease))


def test_a_process_outside_the_lease_is_found(headless: Headless, heavy: TaskSettings, tmp_path: Path) -> None:
    """A heavy script started past the guard is found while it lives, of a tree of them the topmost (R17, L13)."""
    script = str(tmp_path / str(heavy.match))
    running = headless.start("-c", 'sh "$0"; exit', script, program="/bin/sh", stdin=-1)
    running.until_line("ready")
    (found,) = find(headless, heavy)
    assert (found.task, found.lease) == ("kbSync", "heavy-maintenance")
    assert str(found) == f"kbSync (pid {found.stat.pid})"
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
