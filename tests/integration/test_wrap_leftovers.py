"""What is left of a job when its main process, or its wrapper, has ended: who keeps the lease, and who does not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.headless import PROBES, SIGNALS, Headless, headless_in, is_alive
from tests.support import PATIENCE_SECONDS, WRAP, Running, is_stopped, read_open_files, until

WITHOUT_SUBREAPER = "take('maintlock.process', 'become_subreaper', lambda: False)"
WITHOUT_PROC = WITHOUT_SUBREAPER + "\ntake('maintlock.process', 'PROC', '/maintlock-test-no-proc')"
KERNELS = {"subreaper": "", "no subreaper": WITHOUT_SUBREAPER, "neither subreaper nor /proc": WITHOUT_PROC}
HOPPER = str(PROBES / "hopper.py")
CLOSING = (
    "import subprocess, sys; subprocess.Popen(sys.argv[1:], close_fds=True).wait()"  # as node and npm start theirs
)


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Headless]:
    """Give a lock in a state directory of the test's own."""
    with headless_in(tmp_path / "state") as found:
        yield found


class Gate:
    """Something that works until it is let go: a shell that reads a FIFO; by another one a daemon says that it is up."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        os.mkfifo(f"{path}.up")

    def open(self) -> None:
        """Let those go who wait here by now."""
        os.close(os.open(self.path, os.O_WRONLY))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Give a gate that a job's leftover waits at."""
    return Gate(tmp_path / "gate")


def is_held(lock: Headless) -> bool:
    """Tell whether a request is refused."""
    return bool(lock.wrap("-t", "next", "-E", "99", "--", "true").returncode == 99)


def pid_of(line: str) -> int:
    """Return the pid that a probe has told."""
    return int(line.rsplit(maxsplit=1)[-1])


def until_dead(pid: int) -> None:
    """Wait until a process works no more; whoever started it may not know yet."""
    until(lambda: not is_alive(pid), f"pid {pid} to end")


def until_main_ended(lock: Headless) -> None:
    """Wait for the end of the job's main process."""
    until(lambda: not is_alive(lock.job_pid()), "the main process's end")


# What is left executes nothing any more when the main process ends: for that moment it would have no environment, by which
# it is found where we are no subreaper, and on a busy machine the moment is long.
LEAVE = '{ read x <"$1"; } & echo "left $!"; exit 3'
ORPHAN = '( { read x <"$1"; } & echo "left $!" ) ; exit 3'
# A daemon tells of itself once it has met the main process, which may be killed from then on.
DAEMON = 'setsid sh -c \'echo >"$1.up"; echo "left $$"; read x <"$1"\' sh "$1" & read up <"$1.up"; exit 3'


# The session is the border


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("script", [LEAVE, ORPHAN], ids=["child", "orphan"])
def test_what_is_left_in_the_session_keeps_the_lease(lock: Headless, gate: Gate, script: str, kernel: str) -> None:
    """A child or double-forked orphan in the job's session keeps the lease until it ends, then the exit code is the job's (L2)."""
    running = lock.patched(KERNELS[kernel], "-t", "x", "--", "sh", "-c", script, "sh", gate.path)
    left = pid_of(running.until_line("left"))
    until_main_ended(lock)
    assert is_held(lock)
    assert running.popen.poll() is None
    gate.open()
    assert running.end()[0] == 3
    assert not is_alive(left)
    assert not is_held(lock)
    assert [(row["outcome"], row["exit_code"]) for row in lock.history(event="released", task="x")] == [("failed", 3)]


@pytest.mark.parametrize("kernel", ["subreaper", "no subreaper"])
def test_a_daemon_does_not_keep_the_lease(lock: Headless, gate: Gate, kernel: str) -> None:
    """A daemon that a job has started in a session of its own outlives it without the lease, though it has the descriptor (R5)."""
    running = lock.patched(KERNELS[kernel], "-t", "x", "--", "sh", "-c", DAEMON, "sh", gate.path, stdin=subprocess.PIPE)
    left = pid_of(running.until_line("left"))
    assert running.popen.wait(PATIENCE_SECONDS) == 3
    assert is_alive(left)
    assert f"{lock.directory}/heavy-maintenance.lock" in read_open_files(left)
    assert not is_held(lock)
    assert not lock.history(outcome="lost")
    gate.open()


def test_daemons_are_named_at_v(lock: Headless, gate: Gate) -> None:
    """-v names what runs on in a session of its own; without it nothing is said (R5, R9)."""
    script = 'setsid sh -c \'echo "left $$"; exec cat "$1"\' sh "$1" & read x; exit 3'
    for options in (("-v",), ()):
        running = lock.start(
            "-t", "x", *options, "--", "sh", "-c", script, "sh", gate.path, stdin=subprocess.PIPE, stderr=subprocess.STDOUT
        )  # fmt: skip
        left = pid_of(running.until_line("left"))
        assert running.popen.stdin is not None
        running.popen.stdin.close()
        if options:
            said = running.until_line("still running in its own session, without keeping the lease")
            assert f"(pid {left})" in said
        assert running.popen.wait(PATIENCE_SECONDS) == 3
        gate.open()
        running.popen.stdin = None
        assert running.end()[1] == ""


@pytest.mark.parametrize("script", [LEAVE, ORPHAN, DAEMON], ids=["child", "orphan", "daemon"])
def test_hold_until_main(lock: Headless, gate: Gate, script: str) -> None:
    """With --hold-until main the lease ends with the main process, though leftovers have the descriptor (R2)."""
    running = lock.start("-t", "x", "--hold-until", "main", "--", "sh", "-c", script, "sh", gate.path)
    left = pid_of(running.until_line("left"))
    assert running.popen.wait(PATIENCE_SECONDS) == 3
    assert is_alive(left)
    assert not is_held(lock)
    gate.open()


@pytest.mark.parametrize("kernel", ["subreaper", "no subreaper"])
@pytest.mark.parametrize("script", [LEAVE, ORPHAN, DAEMON], ids=["child", "orphan", "daemon"])
def test_hold_until_tree(lock: Headless, gate: Gate, script: str, kernel: str) -> None:
    """With --hold-until tree all descendants keep the lease, whatever their session (R2)."""
    options = ("-t", "x", "--hold-until", "tree")
    running = lock.patched(KERNELS[kernel], *options, "--", "sh", "-c", script, "sh", gate.path)
    left = pid_of(running.until_line("left"))
    until_main_ended(lock)
    assert is_held(lock)
    gate.open()
    assert running.end()[0] == 3
    assert not is_alive(left)
    assert not is_held(lock)


def test_what_leaves_the_session_later(lock: Headless, tmp_path: Path, gate: Gate) -> None:
    """A leftover that makes a session of its own after the main process has ended gives the lease free then (R5)."""
    later = (
        "import os, sys\nif os.fork(): os._exit(3)\nprint('left', os.getpid(), flush=True)\nopen(sys.argv[1]).read()\n"
        "os.setsid()\nopen(sys.argv[2]).read()"
    )
    second = Gate(tmp_path / "second")
    running = lock.start("-t", "x", "--", sys.executable, "-I", "-c", later, gate.path, second.path)
    left = pid_of(running.until_line("left"))
    until_main_ended(lock)
    assert is_held(lock)
    gate.open()
    assert running.popen.wait(PATIENCE_SECONDS) == 3
    assert is_alive(left)
    assert not is_held(lock)
    second.open()


def test_what_works_on_in_ever_new_processes(lock: Headless, gate: Gate) -> None:
    """A leftover that forks and leaves all the time is not lost sight of between two looks at the process table (L2)."""
    script = 'setsid cat "$1" & shift; exec "$@"'  # a daemon of the job that does not count is there all the time
    running = lock.start("-t", "x", "--", "sh", "-c", script, "sh", gate.path, sys.executable, "-I", HOPPER, "700")
    assert running.popen.wait(PATIENCE_SECONDS) == 0
    assert lock.status()["state"] == "free"
    assert running.popen.stdout is not None
    os.set_blocking(running.popen.stdout.fileno(), False)
    said = running.popen.stdout.read()
    assert said and b"landed" in said, "the lease was given free while the job still worked"
    gate.open()


# What is said


def test_leftovers_are_named_once_after_a_second(lock: Headless, gate: Gate) -> None:
    """A second after the main process has ended one line names what keeps the lease, with pids, and only one (R9)."""
    patch = (
        "import os\nfrom maintlock.job import Job\nlooks, name = [], Job._name\n"
        "def named(self, leftovers):\n    name(self, leftovers)\n"
        "    if self.name_at is None:\n        looks.append(1)\n        len(looks) == 4 and os.write(2, b'looked on\\n')\n"
        "Job._name = named\ntake('maintlock.job', 'LOOK_SECONDS', 0.01)"
    )
    running = lock.patched(patch, "-t", "x", "--", "sh", "-c", LEAVE, "sh", gate.path, stderr=subprocess.STDOUT)
    left = pid_of(running.until_line("left"))
    said = running.until_line("maintlock: ")
    expected = "maintlock: x: its main process has ended; the lease is kept until these processes end too: "
    assert said == f"{expected}sh (pid {left})"
    running.until_line("looked on")
    gate.open()
    assert running.end() == (3, "", "")


def test_brief_leftovers_are_not_worth_a_word(lock: Headless, gate: Gate) -> None:
    """A leftover that ends within the second, which lasts longer here, is not named (R9)."""
    patch = "take('maintlock.job', 'NAME_LEFTOVERS_SECONDS', 60.0)"
    running = lock.patched(patch, "-t", "x", "--", "sh", "-c", LEAVE, "sh", gate.path)
    running.until_line("left")
    gate.open()
    assert running.end() == (3, "", "")


# Whose children they are


@pytest.mark.parametrize("kernel", ["subreaper", "no subreaper"])
def test_children_from_before_do_not_count(lock: Headless, gate: Gate, kernel: str) -> None:
    """Children that the wrapper's process had before it became the wrapper (`daemon & exec maintlock-wrap …`) do not count (R5)."""
    script = '{ read x <"$1"; } & echo "left $!"; shift; exec "$@"'
    running = lock.start(
        "-c", script, "sh", gate.path, sys.executable, str(PROBES / "patched_wrap.py"), KERNELS[kernel],
        "-t", "x", "--", "sh", "-c", "exit 3", program="sh", stdin=subprocess.PIPE,
    )  # fmt: skip
    left = pid_of(running.until_line("left"))
    assert running.popen.wait(PATIENCE_SECONDS) == 3
    assert is_alive(left)
    assert not is_held(lock)
    gate.open()


def test_children_from_before_are_not_signalled(lock: Headless, tmp_path: Path) -> None:
    """What the wrapper's process had started before is neither stopped nor killed with the job (R5)."""
    script = '"$1" "$2" "$3" & shift 3; exec "$0" "$@"'
    stubborn = 'trap "" TERM; echo "up $$"; read x'
    running = lock.start(
        "-c", script, sys.executable, sys.executable, "-I", SIGNALS, str(PROBES / "patched_wrap.py"), *late(tmp_path),
        "--", "sh", "-c", stubborn, program="sh", stdin=subprocess.PIPE,
    )  # fmt: skip
    said = [running.until_line("").split() for _ in range(2)]
    before = next(int(words[1]) for words in said if words[0] == "ready")
    begin(tmp_path)
    assert running.popen.wait(PATIENCE_SECONDS) == 124
    assert is_alive(before)
    os.kill(before, signal.SIGCONT)
    assert running.until_line("got ") == "got CONT"
    os.kill(before, signal.SIGKILL)


# Stopping reaches all of them


def late(tmp_path: Path, limit: str = "50ms", grace: str = "50ms") -> tuple[str, ...]:
    """Return the first arguments of a patched wrapper whose job has little time, which begins when the test says so."""
    patch = f"begin_limit_at({str(tmp_path / 'begin')!r})"
    return (patch, "-t", "x", "--max-runtime", limit, "--stop-grace", grace)


def begin(tmp_path: Path) -> None:
    """Let the job's time begin."""
    (tmp_path / "begin").touch()


def test_the_maximum_run_time_ends_all_that_keeps_the_lease(lock: Headless, tmp_path: Path) -> None:
    """--max-runtime kills the job's group, orphans in other groups and a joined job in its own, whatever they ignore (L4)."""
    probe = f"{sys.executable} -I {PROBES}/stubborn.py"
    script = f"trap '' TERM; {probe} & {probe} group & {WRAP} -t inner -- {probe} & wait; sleep 60"
    running = lock.patched(*late(tmp_path), "--", "sh", "-c", script, stderr=subprocess.STDOUT)
    pids = [pid_of(running.until_line("up")) for _ in range(3)]
    assert len({os.getpgid(pid) for pid in pids}) == 3
    until(lambda: lock.history(event="nested_started", task="inner"), "the joined job to be told")
    begin(tmp_path)
    running.until_line("x exceeded its maximum run time of 0.1s; stopping it")
    assert running.end()[0] == 124
    assert not any(is_alive(pid) for pid in pids)
    assert not is_held(lock)
    assert [row["outcome"] for row in lock.history(event="released", task="x")] == ["timed_out"]


def test_the_maximum_run_time_counts_for_leftovers_too(lock: Headless, tmp_path: Path) -> None:
    """What is left after the main process has ended is stopped when the maximum run time is over: 124 (L4)."""
    script = 'trap "" TERM; sleep 60 & echo "left $$ $!"; exit 0'
    running = lock.patched(*late(tmp_path), "--", "sh", "-c", script)
    main, left = map(int, running.until_line("left").split()[1:])
    until_dead(main)
    begin(tmp_path)
    assert running.end()[0] == 124
    assert not is_alive(left)
    assert not is_held(lock)


def test_a_stopped_job_is_stopped_for_good(lock: Headless, tmp_path: Path) -> None:
    """A job that hangs in a stopped state gets TERM and CONT, and does not outlive its maximum run time (L4)."""
    running = lock.patched(*late(tmp_path, grace="1h"), "--", "sh", "-c", 'echo "ready $$"; kill -STOP $$; sleep 60')
    job = pid_of(running.until_line("ready"))
    until(lambda: is_stopped(job), "the job to stop")
    begin(tmp_path)
    assert running.end()[0] == 124
    assert not is_held(lock)


# The wrapper is killed


def killed(running: Running) -> None:
    """Kill a wrapper, and only that."""
    running.signal(signal.SIGKILL)
    running.popen.wait(PATIENCE_SECONDS)


def test_a_job_keeps_the_lease_of_its_killed_wrapper(lock: Headless, gate: Gate) -> None:
    """After a SIGKILL of the wrapper its job, which has the descriptor, keeps the lease until it ends; a waiter gets it then (L2)."""
    running = lock.start("-t", "holder", "--", "sh", "-c", 'echo "left $$"; read x <"$1"', "sh", gate.path)
    left = pid_of(running.until_line("left"))
    lease_id = lock.sidecar()["lease_id"]
    killed(running)
    done = lock.wrap("-t", "next", "-E", "99", "--", "true")
    assert done.returncode == 99
    expected = f"next deferred due to active heavy-maintenance lease: held by survivors of holder (pids {left})"
    assert done.stderr == f"maintlock: {expected}\n"
    waiter = lock.start("-t", "w", "-w", "forever", "--", "echo", "granted", stderr=subprocess.STDOUT)
    assert f"held by survivors of holder (pids {left})" in waiter.until_line("waits for")
    gate.open()
    waiter.until_line("granted")
    assert waiter.end()[0] == 0
    assert not is_alive(left)
    ends = [row for row in lock.history(lease_id=lease_id) if row["outcome"]]
    assert [(row["event"], row["outcome"]) for row in ends] == [("stale_cleaned", "lost")]
    assert len(lock.history(lease_id=lease_id, event="acquired")) == 1
    assert len(lock.history(lease_id=lease_id, event="survivors")) == 1
    assert [row["reason_code"] for row in lock.history(event="deferred")] == ["survivors"]


def survivors_in(said: str) -> list[int]:
    """Return the pids in a deferral that is due to survivors of the holder."""
    found = re.search(r"lease: held by survivors of holder \(pids ([0-9, ]+)\)$", said, re.MULTILINE)
    assert found, said
    return [int(pid) for pid in found[1].split(",")]


CARRIERS = {
    "a child that closes descriptors": ((), (sys.executable, "-I", "-c", CLOSING)),
    "a job without the descriptor": (("-o",), ()),
    "a tree of them": ((), ("sh", "-c", f'"$0" -I -c "{CLOSING}" "$@"', sys.executable)),
}


@pytest.mark.parametrize("what", CARRIERS)
def test_survivors_without_the_descriptor(lock: Headless, gate: Gate, what: str) -> None:
    """What outlives wrapper and npm without the descriptor still keeps the lease: deferral and wait name it by pid (L2)."""
    options, through = CARRIERS[what]
    worker = ("sh", "-c", 'echo "left $$"; read x <"$1"', "sh", gate.path)
    running = lock.start("-t", "holder", *options, "--", *through, *worker)
    left = pid_of(running.until_line("left"))
    job_pid = lock.job_pid()
    killed(running)
    if job_pid != left:
        os.kill(job_pid, signal.SIGKILL)
        until_dead(job_pid)
    done = lock.wrap("-t", "next", "-E", "99", "--", "true")
    assert done.returncode == 99 and left in survivors_in(done.stderr)
    timed_out = lock.wrap("-t", "short", "-w", "200ms", "-E", "98", "--", "true")
    assert timed_out.returncode == 98 and left in survivors_in(timed_out.stderr)
    waiter = lock.start("-t", "w", "-w", "forever", "--", "echo", "granted")
    gate.open()
    waiter.until_line("granted")
    assert waiter.end()[0] == 0
    assert not is_alive(left)
    assert len(lock.history(event="survivors")) == 1
    assert [row["reason_code"] for row in lock.history(event="deferred", task="next")] == ["survivors"]
    assert [row["reason_code"] for row in lock.history(event="deferred", task="short")] == ["wait-timeout"]


@pytest.mark.parametrize(
    ("hold_until", "script", "keeps"),
    [("session", LEAVE, True), ("session", DAEMON, False), ("main", LEAVE, False), ("tree", DAEMON, True)],
    ids=["session, child", "session, daemon", "main, child", "tree, daemon"],
)
def test_hold_until_after_a_crash(lock: Headless, gate: Gate, hold_until: str, script: str, *, keeps: bool) -> None:
    """--hold-until says also after a crash what keeps the lease: the session's rest, none, or any descendant (L2, R5)."""
    held_open = script.replace("exit 3", "read x")
    running = lock.start(
        "-t", "holder", "-o", "--hold-until", hold_until, "--", "sh", "-c", held_open, "sh", gate.path, stdin=subprocess.PIPE
    )  # fmt: skip
    left = pid_of(running.until_line("left"))
    job_pid = lock.job_pid()
    killed(running)
    os.kill(job_pid, signal.SIGKILL)
    until_dead(job_pid)
    assert is_alive(left)
    assert is_held(lock) is keeps
    gate.open()
    until_dead(left)
    assert not is_held(lock)


def test_a_job_that_leaves_nothing_behind(lock: Headless) -> None:
    """After a crash that nothing survived, the next request gets the lease at once, and the grant counts as lost (L1)."""
    running = lock.hold()
    job_pid = lock.job_pid()
    killed(running)
    os.killpg(job_pid, signal.SIGKILL)
    until_dead(job_pid)
    assert lock.wrap("-t", "next", "--", "echo", "ran").stdout == "ran\n"
    assert [row["outcome"] for row in lock.history(task="holder") if row["outcome"]] == ["lost"]
