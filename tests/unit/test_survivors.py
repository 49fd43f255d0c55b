"""Who lives on of a job."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maintlock import line, process, survivors
from maintlock.model import Line, replace
from maintlock.paths import Places
from tests.protocol import PROBES, PYTHON, show_without_memory, until_gone
from tests.support import Running, until

# Of this process alone: tests may run side by side, in one session.
PLACES = Places(directory=f"/the state of {os.getpid()}", lease="heavy-maintenance")
GRANT, ANOTHER = os.urandom(16).hex(), os.urandom(16).hex()


def line_of(hold_until: str = "session", session_id: int | None = None) -> Line:
    """Return the line of a grant whose job is in our session."""
    return Line(
        fence=1,
        lease_id=GRANT,
        task="backup",
        source="cli",
        session_id=os.getsid(0) if session_id is None else session_id,
        hold_until=hold_until,
        mode="supervised",
        identity=process.read_identity(os.getpid()),
        started_at=0.0,
    )


def carrying(lease_id: str = GRANT, *, lease: str = PLACES.lease, session_id: int | None = None) -> dict[str, str]:
    """Return the environment of a job's process."""
    held = f"{lease}:{lease_id}:{os.getsid(0) if session_id is None else session_id}"
    return {"MAINTLOCK_HELD": held, "MAINTLOCK_STATE_DIR": PLACES.directory, "PATH": os.environ["PATH"]}


Spawn = Callable[..., Running]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Running]:
    """Give the list of what a test has started; of our session, nothing else is seen.

    Tests run side by side in one session, and what another one has just begun to execute, on a busy disk, counts there.
    """
    ours: list[Running] = []
    real, session = process.read_pids, os.getsid(0)

    def is_seen(pid: int) -> bool:
        try:
            return os.getsid(pid) != session or pid in {running.pid for running in ours}
        except ProcessLookupError:
            return False

    monkeypatch.setattr(process, "read_pids", lambda: [pid for pid in real() if is_seen(pid)])
    return ours


@pytest.fixture
def spawn(started: list[Running]) -> Iterator[Spawn]:
    """Give a way to start processes with an environment, which are ended afterwards."""

    def start(env: dict[str, str], *argv: str, **options: object) -> Running:
        # It executes nothing any more: while it does, it has no environment, for as long as others keep the processors.
        argv = argv or ("sh", "-c", "echo ready; read x")
        running = Running(argv, env, **{"stdin": subprocess.PIPE, **options})
        started.append(running)
        running.until_line("ready")
        return running

    yield start
    for running in started:
        running.popen.kill()
        until_gone(running.pid)
        running.end()


def found(record: Line | None, leaders: frozenset[int] = frozenset()) -> set[int]:
    """Return the survivors' pids."""
    return {stat.pid for stat in survivors.find(PLACES, record, leaders)}


def test_by_environment_and_session(spawn: Spawn) -> None:
    """A survivor carries the grant and is in its session; who made a session of its own has left the job."""
    here = spawn(carrying())
    away = spawn(carrying(), start_new_session=True)
    of_other = spawn(carrying(ANOTHER))
    bare = spawn({"PATH": os.environ["PATH"]})
    assert found(line_of()) == {here.pid}
    assert found(line_of(session_id=away.pid)) == {away.pid}
    assert found(line_of("tree")) == {here.pid, away.pid}
    assert found(line_of("main")) == set()
    assert not {of_other.pid, bare.pid} & found(line_of("tree"))


def test_with_no_line_any_grant_counts(spawn: Spawn) -> None:
    """With an empty line survivors are those of any grant of this lease and state directory, each in its own session."""
    one, two = spawn(carrying()), spawn(carrying(ANOTHER))
    away = spawn(carrying(), start_new_session=True)
    again = 'MAINTLOCK_HELD=heavy-maintenance:ef:$$ exec sh -c "echo ready; read x"'
    own = spawn(carrying(), "sh", "-c", again, start_new_session=True)
    elsewhere = spawn({**carrying(), "MAINTLOCK_STATE_DIR": "/elsewhere"})
    other = spawn(carrying(lease="other"))
    assert found(None) == {one.pid, two.pid, own.pid}
    assert not {away.pid, elsewhere.pid, other.pid} & found(None)


@pytest.mark.parametrize("record", [None, line_of(session_id=0)], ids=["no line", "a line"])
def test_session_zero(spawn: Spawn, monkeypatch: pytest.MonkeyPatch, record: Line | None) -> None:
    """A job in session 0 is found from any session, and the kernel's threads, whose session that is too, do not count."""
    here = spawn(carrying(session_id=0))
    thread = spawn({}, PYTHON, "-c", "input(print('ready', flush=True))")
    real_session, real_stat = os.getsid, process.read_stat

    def read_stat(pid: int) -> process.Stat | None:
        stat = real_stat(pid)
        is_it = stat is not None and pid == thread.pid
        return replace(stat, sid=0, flags=process.PF_KTHREAD, env_start=0, env_end=0) if is_it else stat

    monkeypatch.setattr(os, "getsid", lambda pid: 0 if pid in {here.pid, thread.pid} else real_session(pid))
    monkeypatch.setattr(process, "read_stat", read_stat)
    assert found(record) == {here.pid}


def test_the_requester_and_its_ancestors_never() -> None:
    """A request made by what lives on of a job finds the others, and neither itself nor its own parents."""
    asks = [PYTHON, str(PROBES / "find_survivors.py"), PLACES.directory, PLACES.lease]
    script = 'sleep 1000 & echo $!; "$@"; kill $!'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *asks], env={**os.environ, **carrying()}, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as shell:  # fmt: skip
        said, _ = shell.communicate(line.encoded(line_of(session_id=shell.pid)))
    sibling, _, *found_there = said.split()
    assert found_there == [sibling]


def test_who_only_looks_sees_ancestors_too(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for a status from inside a job sees the job that it is part of."""
    here = spawn(carrying())
    parents = [process.read_stat(here.pid)]
    monkeypatch.setattr(process, "ancestors", lambda pid: parents)
    assert found(line_of()) == set()
    assert [stat.pid for stat in survivors.look(PLACES, line_of()).carrying] == [here.pid]


def test_the_dead_are_none(spawn: Spawn) -> None:
    """A zombie is no survivor; one whose other threads work is."""
    zombie = spawn(carrying())
    threads = spawn(carrying(), PYTHON, str(PROBES / "leader_gone.py"))
    zombie.popen.kill()
    until(lambda: (stat := process.read_stat(zombie.pid)) is not None and stat.state == "Z", "the zombie")
    until(lambda: (stat := process.read_stat(threads.pid)) is not None and stat.state == "Z", "the main thread's end")
    assert found(line_of()) == {threads.pid}


def test_who_is_executing_is_looked_at_again(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that is empty because its process just executes a program is read again."""
    here = spawn(carrying())
    real, reads = process.read_environ, []

    def read(pid: int) -> bytes | None:
        if pid == here.pid:
            reads.append(pid)
            return real(pid) if len(reads) > survivors.LOOKS else b""
        return real(pid)

    monkeypatch.setattr(process, "read_environ", read)
    assert found(line_of()) == {here.pid}


@pytest.mark.parametrize("env", [0, 4096], ids=["no memory yet", "a place for the environment"])
def test_who_takes_long_to_execute_counts(spawn: Spawn, monkeypatch: pytest.MonkeyPatch, env: int) -> None:
    """In the job's session, a program that a busy disk has not loaded after all looks counts, as one that may be anybody's."""
    slow = spawn(carrying(), start_new_session=True)
    show_without_memory(monkeypatch, slow.pid, env=env)
    told = survivors.look(PLACES, line_of(session_id=slow.pid))
    assert (told.carrying, [stat.pid for stat in told.loading]) == ([], [slow.pid])
    assert found(line_of(session_id=slow.pid)) == {slow.pid}
    assert found(line_of("tree", session_id=slow.pid)) == set()


def test_who_has_no_environment_does_not_count(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without any environment is none of the job's, and is not waited for; nor one whose environment is never readable."""
    bare, odd = spawn({}, start_new_session=True), spawn({"A": "1"}, start_new_session=True)
    slept: list[float] = []
    monkeypatch.setattr(survivors.time, "sleep", slept.append)
    assert process.read_environ(bare.pid) == b""
    assert (found(line_of(session_id=bare.pid)), slept) == (set(), [])
    real = process.read_environ
    monkeypatch.setattr(process, "read_environ", lambda pid: b"" if pid == odd.pid else real(pid))
    assert found(line_of(session_id=odd.pid)) == set()


def test_a_stranger_who_executes_slowly_is_none(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the session that has nothing to do with the job does not count, although its program begins only in a while."""
    stranger = spawn({"A": "1"}, start_new_session=True)
    waited = [0.0]

    def sleep(seconds: float) -> None:
        waited[0] += seconds

    def read(pid: int) -> bytes | None:
        return b"" if pid == stranger.pid and waited[0] < 0.2 else real(pid)

    real = process.read_environ
    monkeypatch.setattr(survivors.time, "sleep", sleep)
    monkeypatch.setattr(process, "read_environ", read)
    assert found(line_of(session_id=stranger.pid)) == set()


def test_a_process_that_takes_long_to_end_is_none(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has given its memory back and is still there, because a busy machine has not come to its end, works no more."""
    ending = spawn({"A": "1"}, start_new_session=True)
    show_without_memory(monkeypatch, ending.pid, flags=process.PF_EXITING)
    assert found(line_of(session_id=ending.pid)) == set()


@pytest.mark.parametrize("variables", [0, 2000])
def test_a_process_that_keeps_executing_is_found(spawn: Spawn, tmp_path: Path, variables: int) -> None:
    """A job that does nothing but execute itself anew is found at every look, however long its environment is."""
    (tmp_path / "again").write_text('exec sh "$0"\n')
    more = {f"VARIABLE_{number}": "x" * 40 for number in range(variables)}
    here = spawn({**more, **carrying()}, "sh", "-c", 'echo ready; exec sh "$0"', str(tmp_path / "again"))
    assert [found(line_of()) for _ in range(200)] == [{here.pid}] * 200


def test_gone_only_after_two_passes(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one pass over the process table misses, as a fork just then, the second one finds."""
    here = spawn(carrying())
    real, passes = process.read_pids, []

    def read() -> list[int]:
        passes.append(1)
        return real() if len(passes) > 1 else []

    monkeypatch.setattr(process, "read_pids", read)
    assert found(line_of()) == {here.pid}
    assert len(passes) == 2
    monkeypatch.setattr(process, "read_pids", list)
    assert found(line_of()) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_unreadable_environments_count_in_the_jobs_group(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the session that hides its environment counts if it is in the job's group, else it does not."""
    inside, outside = spawn(carrying(), process_group=0), spawn(carrying(), process_group=0)
    pid = os.fork()
    if pid == 0:  # as nobody, who may not read what root has in its environment
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            ok = found(line_of()) == set() and found(line_of(), frozenset({inside.pid, 1})) == {inside.pid}
            os._exit(0 if ok else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert {inside.pid, outside.pid} <= found(line_of())
    monkeypatch.setattr(process, "read_environ", lambda pid: None)
    assert found(replace(line_of(), hold_until="tree"), frozenset({outside.pid})) == {outside.pid}


def test_of_a_scan_nothing_is_left_open(spawn: Spawn, tmp_path: Path) -> None:
    """A scan of all processes leaves no descriptor open."""
    gc.collect()  # what other tests have left to it, or it may be closed just now
    before = os.listdir("/proc/self/fd")
    found(line_of("tree"))
    assert os.listdir("/proc/self/fd") == before
