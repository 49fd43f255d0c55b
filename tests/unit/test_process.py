"""What the system says about processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import process
from maintlock.model import ProcessIdentity, replace
from tests.protocol import PROBES, until_gone
from tests.support import Running, until

MISSING = "/nonexistent"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that lives."""
    with subprocess.Popen(["sleep", "1000"], env={"A": "1", "B": "x=y"}) as popen:
        yield popen
        popen.kill()


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take /proc away."""
    monkeypatch.setattr(process, "PROC", MISSING)
    monkeypatch.setattr(process, "_constants", {})


def test_a_row_of_the_table() -> None:
    """A name may hold blanks and parentheses, and is not taken for fields."""
    text = "42 (a) b (c) S 1 40 39 0 -1 4194308 1 2 3 4 5 6 7 8 20 0 3 0 991 1 2\n"
    assert process.parsed_stat(text) == process.Stat(
        pid=42, name="a) b (c", state="S", ppid=1, pgid=40, sid=39, threads=3, start_ticks=991, flags=0x400004
    )


@given(st.text(max_size=200))
def test_a_broken_row_is_none(text: str) -> None:
    """A row that is cut off, as of a process that just vanishes, is none."""
    assert process.parsed_stat(text) is None


@pytest.mark.parametrize(
    ("state", "threads", "is_dead"), [("S", 1, False), ("Z", 1, True), ("Z", 2, False), ("X", 1, True), ("T", 1, False)]
)
def test_who_is_dead(state: str, threads: int, *, is_dead: bool) -> None:
    """A zombie works no more, unless other threads of it do; a stopped process is alive."""
    stat = process.Stat(pid=1, name="x", state=state, ppid=0, pgid=1, sid=1, threads=threads, start_ticks=1)
    assert stat.is_dead is is_dead


@pytest.mark.parametrize(("flags", "told"), [(0x400000, ""), (0x400004, "exiting"), (0x200040, "kernel")])
def test_what_the_flags_tell(flags: int, told: str) -> None:
    """A process that is being taken down, and one that is the kernel's own, are known by their flags."""
    stat = process.Stat(pid=1, name="x", state="S", ppid=0, pgid=1, sid=1, threads=1, start_ticks=1, flags=flags)
    assert (stat.is_exiting, stat.is_kernel_thread) == (told == "exiting", told == "kernel")


def test_this_process() -> None:
    """We find ourselves, our parents, and our own identity (L1)."""
    stat = process.read_stat(os.getpid())
    assert stat is not None
    assert (stat.ppid, stat.pgid, stat.sid) == (os.getppid(), os.getpgrp(), os.getsid(0))
    assert process.ancestors(os.getpid())[0].pid == os.getppid()
    identity = process.read_identity(os.getpid())
    assert identity.boot_id and identity.pid_namespace and identity.start_ticks
    assert process.is_alive(identity) is True


def test_the_start_time_is_about_right() -> None:
    """The start of a process of this boot is told as a time of day."""
    import time

    with subprocess.Popen(["sleep", "1000"]) as popen:
        started = process.started_at(process.read_identity(popen.pid))
        popen.kill()
    assert started is not None
    assert abs(started - time.time()) < 30


def test_an_identity_outlives_no_process(sleeper: subprocess.Popen[bytes]) -> None:
    """A process is who it was until it is dead, reaped or not (L1)."""
    identity = process.read_identity(sleeper.pid)
    assert process.is_alive(identity) is True
    sleeper.send_signal(signal.SIGSTOP)
    assert process.is_alive(identity) is True
    sleeper.kill()
    until(lambda: process.is_alive(identity) is False, "the zombie")
    sleeper.wait()
    assert process.is_alive(identity) is False


def test_a_recycled_pid_is_somebody_else() -> None:
    """A pid that lives with another start time, or was another boot's, is not the process meant (L1)."""
    ours = process.read_identity(os.getpid())
    assert process.is_alive(replace(ours, start_ticks=ours.start_ticks + 1)) is False
    assert process.is_alive(replace(ours, boot_id="another")) is False
    assert process.is_alive(replace(ours, pid=0)) is False
    assert process.is_alive(replace(ours, pid=2**22 + 1)) is False


def test_pid_one_of_another_container_is_unknown() -> None:
    """A pid of another namespace is neither taken for the one that we see nor for dead (L1)."""
    assert process.is_alive(replace(process.read_identity(1), pid_namespace="1")) is None


def test_what_is_not_told_is_unknown() -> None:
    """A living pid whose start nobody told, or told in another unit, could be the process meant or not."""
    ours = process.read_identity(os.getpid())
    assert process.is_alive(replace(ours, start_ticks=0)) is None
    assert process.is_alive(replace(ours, boot_id="", start_ticks=5)) is None
    assert process.is_alive(ProcessIdentity(pid=2**22 + 1, start_ticks=0, boot_id="", pid_namespace="")) is False


@pytest.mark.usefixtures("no_proc")
def test_without_proc_psutil_tells(sleeper: subprocess.Popen[bytes]) -> None:
    """Where there is no /proc an identity still tells a process from another, living or dead."""
    identity = process.read_identity(sleeper.pid)
    assert identity.start_ticks > 0
    assert (identity.boot_id, identity.pid_namespace) == ("", "")
    assert process.is_alive(identity) is True
    assert process.is_alive(replace(identity, start_ticks=identity.start_ticks + 100)) is False
    assert process.ancestors(sleeper.pid)[0].pid == os.getpid()
    assert sleeper.pid in process.read_table()
    stat = process.read_stat(sleeper.pid)
    assert stat is not None
    environ = until(lambda: process.read_environ(stat.pid), "its environment")
    assert process.environ_value(environ, b"B") == b"x=y"
    sleeper.kill()
    until(lambda: process.is_alive(identity) is False, "the zombie")
    sleeper.wait()
    assert process.is_alive(identity) is False
    assert process.read_environ(stat.pid) == b""


@pytest.mark.usefixtures("no_proc")
def test_an_identity_from_a_process_that_has_proc() -> None:
    """Whoever has no /proc does not take an identity from one who has for dead."""
    ours = ProcessIdentity(pid=os.getpid(), start_ticks=991, boot_id="b-1", pid_namespace="4026531836")
    assert process.is_alive(ours) is None


@pytest.mark.usefixtures("no_proc")
def test_without_anything_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither /proc nor psutil tells, what lives is unknown, and what does not is dead."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert process.read_pids() == []
    assert process.read_stat(os.getpid()) is None
    assert process.is_alive(process.read_identity(os.getpid())) is None
    assert process.is_alive(process.read_identity(2**22 + 1)) is False
    assert process.ancestors(os.getpid()) == []


def test_an_environment(sleeper: subprocess.Popen[bytes]) -> None:
    """The environment is the one that the process was started with."""
    stat = until(lambda: process.read_stat(sleeper.pid), "the process")
    environ = until(lambda: process.read_environ(stat.pid), "its environment")
    assert process.environ_value(environ, b"A") == b"1"
    assert process.environ_value(environ, b"B") == b"x=y"
    assert process.environ_value(environ, b"C") == b""
    assert process.environ_value(b"AA=1\0A=2\0", b"A") == b"2"


def test_no_environment(sleeper: subprocess.Popen[bytes]) -> None:
    """A process that was started with an empty environment is told from one that has not become its program yet."""
    with subprocess.Popen(["sh", "-c", "echo; read x"], env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare:
        assert bare.stdout is not None and bare.stdout.readline() == b"\n"
        stats = [until(lambda pid=pid: process.read_stat(pid), "the process") for pid in (bare.pid, sleeper.pid)]
        assert [stat.has_no_environment for stat in stats] == [True, False]
        assert process.read_environ(bare.pid) == b""
        assert not process.is_executing(bare.pid)
        bare.communicate()


def test_a_zombie_whose_threads_work(tmp_path: Path) -> None:
    """A process whose main thread has ended shows as zombie, is not dead, and its environment is still found."""
    probe = Running([sys.executable, str(PROBES / "leader_gone.py")], {**os.environ, "A": "1"}, stdin=subprocess.PIPE)
    probe.until_line("ready")
    stat = until(
        lambda: (s := process.read_stat(probe.pid)) is not None and s.state == "Z" and s, "the main thread's end"
    )
    assert not stat.is_dead
    assert process.is_alive(process.read_identity(probe.pid)) is True
    assert process.environ_value(process.read_environ(stat.pid) or b"", b"A") == b"1"
    probe.popen.kill()
    until_gone(probe.pid)
    probe.end()
    assert process.is_alive(process.read_identity(probe.pid)) is False


def test_descendants_of_a_table() -> None:
    """Everything below a process is found once, in order, without the subtrees that are not wanted."""

    def row(pid: int, ppid: int) -> process.Stat:
        return process.Stat(pid=pid, name="x", state="S", ppid=ppid, pgid=1, sid=1, threads=1, start_ticks=1)

    table = {pid: row(pid, ppid) for pid, ppid in ((1, 0), (5, 1), (3, 5), (4, 3), (9, 5), (7, 7), (8, 7))}
    assert [stat.pid for stat in process.descendants(table, 5)] == [3, 4, 9]
    assert [stat.pid for stat in process.descendants(table, 5, frozenset({3}))] == [9]
    assert [stat.pid for stat in process.descendants(table, 7)] == [8]


def test_a_signal_reaches_only_who_is_meant(sleeper: subprocess.Popen[bytes]) -> None:
    """A signal for a process whose pid is another's by now is not sent."""
    stat = process.read_stat(sleeper.pid)
    assert stat is not None
    assert not process.send_signal(replace(stat, start_ticks=stat.start_ticks + 1), signal.SIGKILL)
    assert sleeper.poll() is None
    assert process.send_signal(stat, signal.SIGKILL)
    assert sleeper.wait() == -signal.SIGKILL
    assert not process.send_signal(stat, signal.SIGKILL)


def test_small_files_only(tmp_path: Path) -> None:
    """A file of the kernel is read up to a bound, and one that cannot be read is none."""
    (tmp_path / "x").write_bytes(b"\xff" * 100)
    assert process.read_bytes(str(tmp_path / "x"), 10) == b"\xff" * 10
    assert process.read_text(str(tmp_path / "x"), 1) == "\\xff"
    assert process.read_text(str(tmp_path)) is None
    assert process.read_text(str(tmp_path / "missing")) is None


def test_whether_we_may_have_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child counts from its start until it has been waited for; where nothing tells, there may be one."""
    pid = os.fork()
    if pid == 0:
        has_none = process.may_have_children()
        child = subprocess.Popen(["sleep", "1000"])
        has_one = process.may_have_children()
        child.kill()
        child.wait()
        os._exit(0 if (has_none, has_one, process.may_have_children()) == (False, True, False) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    monkeypatch.delattr(os, "waitid")
    assert process.may_have_children()
