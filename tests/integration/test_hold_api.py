"""The lease from Python."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import maintlock
from maintlock import events, pending
from maintlock.errors import ConfigError, UsageError
from tests.protocol import (
    LEASE,
    PROBES,
    PYTHON,
    assert_each_grant_ended_once,
    crash,
    ends,
    is_locked,
    kill,
    line_of,
    pids_in_kernel_queue,
    places,
    told,
    until_gone,
    waiting,
)
from tests.support import WRAP, Lock, Running, until


@pytest.fixture(autouse=True)
def _here(lock: Lock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let this process use the test's state directory, and have no configuration."""
    monkeypatch.setenv("MAINTLOCK_STATE_DIR", str(lock.directory))
    monkeypatch.chdir(tmp_path)
    before = set(threading.enumerate())  # a server of an earlier test may still be about to end
    yield
    assert set(threading.enumerate()) <= before


def is_granted(lock: Lock) -> bool:
    """Tell whether somebody else's request is granted at once: in a session of its own, since children would join."""
    return lock.wrap("-t", "other", "-E", "9", "--", "true", start_new_session=True).returncode == 0


def is_in_kernel_queue(lock: Lock, running: Running) -> bool:
    """Tell whether a process waits in the kernel's queue for the lease."""
    return running.pid in pids_in_kernel_queue(places(lock).lock)


def start_probe(lock: Lock, task: str, *arguments: str) -> Running:
    """Start a Python program that holds the lease, and return it as soon as it does."""
    running = lock.start(str(PROBES / "hold.py"), task, *arguments, program=PYTHON, stdin=subprocess.PIPE)
    running.until_line("holding")
    return running


def test_it_is_held_inside_the_block(lock: Lock) -> None:
    """Inside the block the lease is this process's, with all that others may know; after it, it is free (R2)."""
    with maintlock.hold("kbSync", reason="nightly", owner="alice@laptop", ttl="2h") as lease:
        fields = lock.sidecar()
        assert (lease.id, lease.fence, lease.task) == (fields["lease_id"], 1, "kbSync")
        assert (fields["pid"], fields["mode"], fields["source"], fields["job_pid"]) == (
            os.getpid(),
            "library",
            "library",
            None,
        )
        assert (fields["owner"], fields["reason"], fields["ttl_seconds"]) == ("alice@laptop", "nightly", 7200)
        assert not is_granted(lock)
    assert is_granted(lock)
    assert ends(lock) == [("kbSync", "released", "completed"), ("other", "released", "completed")]
    assert not os.path.exists(places(lock).sidecar)


def test_it_stands_back(lock: Lock) -> None:
    """While somebody else has it the block is not entered, and who has it is told (R3)."""
    holder = lock.hold("backup", "--owner", "bob@desk")
    with pytest.raises(maintlock.LeaseHeld, match="kbSync deferred due to active") as found, maintlock.hold("kbSync"):
        pytest.fail("entered")
    assert found.value.reason_code == "lease-held"
    assert found.value.blocked_by == "backup"
    assert found.value.holder is not None
    assert (found.value.holder["pid"], found.value.holder["owner"]) == (holder.pid, "bob@desk")
    row = told(lock, event="deferred")[0]
    assert (row["task"], row["reason_code"], row["source"], row["pid"]) == (
        "kbSync",
        "lease-held",
        "library",
        os.getpid(),
    )
    assert isinstance(found.value, maintlock.MaintlockError)


def test_an_exception_is_a_failure(lock: Lock) -> None:
    """A block that raises has failed, and the exception goes on as it was."""
    with pytest.raises(ZeroDivisionError), maintlock.hold("kbSync"):
        _ = 1 / 0
    assert ends(lock) == [("kbSync", "released", "failed")]
    assert not is_locked(places(lock).lock)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(0), "completed"),
        (SystemExit(None), "completed"),
        (SystemExit(3), "failed"),
        (SystemExit("message"), "failed"),
        (SystemExit([]), "failed"),
        (GeneratorExit(), "failed"),
    ],
    ids=repr,
)
def test_leaving_by_other_ways(lock: Lock, error: BaseException, outcome: str) -> None:
    """Ctrl-C stops the work, a clean exit completes it, any other way out of the block has failed."""
    with pytest.raises(type(error)), maintlock.hold("kbSync"):
        raise error
    assert ends(lock) == [("kbSync", "released", outcome)]
    assert not is_locked(places(lock).lock)


def test_the_same_thread_joins(lock: Lock) -> None:
    """Under its own block a thread joins: told with the task right above it, and the lease is released by the outermost (R7)."""
    with maintlock.hold("outer") as outer, maintlock.hold("middle") as middle:
        with maintlock.hold("inner") as inner:
            assert inner.id == middle.id == outer.id
        assert is_locked(places(lock).lock)
    rows = told(lock, event="nested_finished")
    assert [(row["task"], row["parent_task"]) for row in rows] == [("inner", "middle"), ("middle", "outer")]
    assert ends(lock) == [("outer", "released", "completed")]


def test_blocks_left_in_any_order(lock: Lock) -> None:
    """Where coroutines leave their blocks crosswise, the lease is kept until the last of them has left (R1)."""
    first, second, third = (maintlock.hold(name) for name in ("first", "second", "third"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert is_locked(places(lock).lock)
    third.__enter__()
    second.__exit__(None, None, None)
    assert not is_granted(lock)
    third.__exit__(None, None, None)
    assert not is_locked(places(lock).lock)
    assert ends(lock) == [("first", "released", "completed")]
    with maintlock.hold("next") as lease:
        assert lease.fence == 2


def test_another_lease_in_the_same_thread(lock: Lock) -> None:
    """Under one lease a thread may take another, which is a lease of its own."""
    with maintlock.hold("a") as one, maintlock.hold("b", lease="other") as two:
        assert one.id != two.id
        assert is_locked(places(lock).lock)
        assert is_locked(places(lock, "other").lock)


def in_thread(work: object) -> list[object]:
    """Run a function in another thread, and return what it returned or raised."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())  # type: ignore[operator]  # the tool or work is there by now
        except maintlock.LeaseHeld as held:
            found.append(held)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


def test_another_thread_is_refused(lock: Lock) -> None:
    """Another thread of the same process is somebody else (R1)."""

    def work() -> str:
        with maintlock.hold("other"):
            return "entered"

    with maintlock.hold("kbSync"):
        (refused,) = in_thread(work)
    assert isinstance(refused, maintlock.LeaseHeld)
    assert refused.blocked_by == "kbSync"
    assert in_thread(work) == ["entered"]


@pytest.mark.parametrize("wait", [3600, "forever"])
def test_another_thread_waits(lock: Lock, wait: float | str) -> None:
    """Another thread that waits gets the lease when the first has left, not before."""
    order: list[str] = []

    def work() -> None:
        with maintlock.hold("other", wait=wait):
            order.append("other")

    thread = threading.Thread(target=work)
    with maintlock.hold("kbSync"):
        thread.start()
        until(lambda: waiting(lock) == ["other"], "the other thread to wait")
        assert is_locked(places(lock).queue)
        order.append("kbSync")
    thread.join()
    assert order == ["kbSync", "other"]
    assert waiting(lock) == []


def test_waiting_for_ever_is_in_the_kernels_queue(lock: Lock) -> None:
    """Who waits without limit stands in the kernel's queue, in order with everybody else."""
    holder = lock.hold("backup")
    probe = lock.start(str(PROBES / "hold.py"), "kbSync", 'wait="forever"', program=PYTHON, stdin=subprocess.PIPE)
    until(lambda: probe.pid in pids_in_kernel_queue(places(lock).lock), "the kernel's queue")
    second = lock.start("-t", "second", "-w", "forever", "--", "true")
    until(lambda: second.pid in pids_in_kernel_queue(places(lock).lock), "the second")
    holder.popen.communicate()
    probe.until_line("holding")
    assert second.popen.poll() is None
    probe.popen.communicate()
    assert second.end()[0] == 0


def test_a_wait_that_is_over(lock: Lock) -> None:
    """After the time that was said the block is not entered, with reason `wait-timeout`."""
    lock.hold("backup")
    begun = time.monotonic()
    with pytest.raises(maintlock.LeaseHeld) as found, maintlock.hold("kbSync", wait=0.2):
        pytest.fail("entered")
    assert time.monotonic() - begun >= 0.2
    assert (found.value.reason_code, found.value.blocked_by) == ("wait-timeout", "backup")
    assert found.value.waited_seconds >= 0.2
    assert waiting(lock) == []
    assert not is_locked(places(lock).queue)


def test_a_child_with_the_environment_joins(lock: Lock) -> None:
    """`lease.env` makes a child part of the work; the environment of this process stays as it was (L7)."""
    before = dict(os.environ)
    with maintlock.hold("kbSync") as lease:
        assert lease.env["MAINTLOCK_LEASE_ID"] == lease.id
        assert lease.env["MAINTLOCK_STATE_DIR"] == str(lock.directory)
        assert "MAINTLOCK_FD" not in lease.env
        argv = [WRAP, "-t", "child", "-E", "9", "--", "echo", "joined"]
        done = subprocess.run(argv, env={**lock.env(), **lease.env}, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("joined\n", "")
        away = subprocess.run(
            argv, env={**lock.env(), **lease.env}, capture_output=True, text=True, start_new_session=True
        )
        assert away.returncode == 9
    assert dict(os.environ) == before
    assert [(r["task"], r["parent_task"]) for r in told(lock, event="nested_finished")] == [("child", "kbSync")]


def test_release_waits_for_joined_children(lock: Lock) -> None:
    """The end of the block waits until what joined has ended (R1)."""
    left = threading.Event()
    with maintlock.hold("kbSync") as lease:
        argv = ("-t", "child", "--", "sh", "-c", "echo ready; read x")
        child = lock.start(*argv, env={**lock.env(), **lease.env}, stdin=subprocess.PIPE)
        child.until_line("ready")

        def end() -> None:
            until(lambda: os.getpid() in pids_in_kernel_queue(places(lock).nested), "the release to wait")
            left.set()
            child.popen.communicate()

        thread = threading.Thread(target=end)
        thread.start()
    assert left.is_set()
    thread.join()
    assert not is_locked(places(lock).lock)
    assert ends(lock) == [("kbSync", "released", "completed")]


def test_an_interrupted_release_is_still_one(lock: Lock, tmp_path: Path) -> None:
    """Ctrl-C while the end of the block waits for a joined job frees the lock, and the job is in the next one's way itself (R1)."""
    part_of_it = f"{WRAP} -t part -- sh -c 'echo ready $$; read x <&3'"
    os.mkfifo(go := tmp_path / "go")
    script = f"exec 3<&0; {part_of_it} & read y <{go}"
    probe = start_probe(lock, "outer", "--", "sh", "-c", script)
    part = int(probe.until_line("ready").split()[1])
    try:
        go.write_text("\n")
        until(lambda: probe.pid in pids_in_kernel_queue(places(lock).nested), "the release to wait")
        probe.signal(signal.SIGINT)
        assert probe.popen.wait() != 0
        assert not is_locked(places(lock).lock)
        done = lock.wrap("-t", "other", "-E", "9", "--", "true")
        assert done.returncode == 9
        assert "a job that joined outer" in done.stderr or "survivors of outer" in done.stderr
    finally:
        kill(part)
        until_gone(part)
    assert lock.wrap("-t", "other", "-w", "forever", "-E", "9", "--", "true").returncode == 0
    assert_each_grant_ended_once(lock)


def test_inside_a_job_it_joins(lock: Lock) -> None:
    """A block inside a guarded job is part of it, with its token or by ancestry (R7)."""
    probe = f"{PYTHON} {PROBES}/hold.py inner </dev/null"
    done = lock.wrap("-t", "outer", "--", "sh", "-c", f"{probe}; env -u MAINTLOCK_HELD {probe}")
    assert done.stdout.count("holding") == 2
    rows = told(lock, event="nested_finished")
    assert [(row["task"], row["parent_task"], row["source"]) for row in rows] == [("inner", "outer", "library")] * 2
    assert ends(lock) == [("outer", "released", "completed")]


def test_a_forked_child_owns_nothing(lock: Lock) -> None:
    """A fork that leaves the block, by its end or by sys.exit, releases nothing, and its own request joins."""
    with maintlock.hold("kbSync") as lease:
        held = line_of(lock)
        for way in ("end", "exit", "join"):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    if way == "join":
                        with maintlock.hold("child") as joined:
                            code = 0 if joined.id == lease.id else 2
                    else:
                        code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert line_of(lock) == held
            assert is_locked(places(lock).lock)
    script = (
        "import os, sys, maintlock\n"
        "with maintlock.hold('kbSync'):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        sys.exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
    )
    running = lock.start("-c", script, program=PYTHON, stdin=subprocess.PIPE)
    running.until_line("ready")
    assert is_locked(places(lock).lock)
    assert line_of(lock).outcome == ""
    assert os.path.exists(places(lock).sidecar)
    running.popen.communicate()
    assert_each_grant_ended_once(lock)


def test_a_fork_that_lives_on_keeps_nothing(lock: Lock) -> None:
    """A fork that outlives the block has copies of all descriptors, and keeps neither the lease nor its flags."""
    script = (
        "import os, sys, maintlock\n"
        "with maintlock.hold('kbSync', wait=1):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        sys.stdin.read(); os._exit(0)\n"
        "print('left', flush=True); sys.stdin.read()\n"
    )
    running = lock.start("-c", script, program=PYTHON, stdin=subprocess.PIPE)
    running.until_line("left")
    assert not any(is_locked(path) for path in (places(lock).lock, places(lock).nested, places(lock).queue))
    assert is_granted(lock)
    running.popen.communicate()


def test_killed_inside_the_block(lock: Lock) -> None:
    """A process that is killed inside its block loses the lease, and the next one gets it and tells (L1)."""
    crash(start_probe(lock, "killed"))
    with maintlock.hold("next") as lease:
        assert lease.fence == 2
    assert ends(lock) == [("killed", "stale_cleaned", "lost"), ("next", "released", "completed")]
    assert_each_grant_ended_once(lock)


def test_a_child_of_a_killed_block_survives_it(lock: Lock) -> None:
    """What a killed process had started with `lease.env` holds the lease until it has ended."""
    probe = start_probe(lock, "killed", "--", "sh", "-c", "echo child $$; read x")
    child = int(probe.until_line("child").split()[1])
    try:
        crash(probe)
        with pytest.raises(maintlock.LeaseHeld) as found, maintlock.hold("next"):
            pytest.fail("entered")
        assert (found.value.reason_code, found.value.blocked_by) == ("survivors", "killed")
        assert str(child) in str(found.value)
    finally:
        kill(child)
        until_gone(child)
    with maintlock.hold("next"):
        pass


def test_no_signal_handlers(lock: Lock) -> None:
    """The library leaves every signal's handler, the wake-up descriptor and the mask as they were."""

    def all_handlers() -> list[object]:
        numbers = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
        return [*[signal.getsignal(number) for number in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, ())]

    before = all_handlers()
    with maintlock.hold("kbSync"):
        assert all_handlers() == before
        assert isinstance(in_thread(maintlock.hold("other", wait=0.05).__enter__)[0], maintlock.LeaseHeld)
        assert all_handlers() == before
    assert all_handlers() == before


def test_a_signal_ends_the_wait(lock: Lock) -> None:
    """Ctrl-C ends a wait as it ends anything in Python, and leaves nothing behind."""
    lock.hold("backup")
    for wait in ('wait="forever"', "wait=60"):
        probe = lock.start(str(PROBES / "hold.py"), "kbSync", wait, program=PYTHON)
        until(lambda: waiting(lock) == ["kbSync"], "the wait")
        if "forever" in wait:  # Python notices no signal that comes just before a system call that blocks
            until(functools.partial(is_in_kernel_queue, lock, probe), "the kernel's queue")
        probe.signal(signal.SIGINT)
        code, _, err = probe.end()
        assert code == -signal.SIGINT
        assert "KeyboardInterrupt" in err
        assert waiting(lock) == []
        assert not is_locked(places(lock).queue)


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": "a b"},
        {"task": ""},
        {"task": "../x"},
        {"task": "a\n\x1b[0m"},
        {"task": "x" * 65},
        {"task": "a", "lease": "../x"},
        {"task": "a", "lease": "a:b"},
        {"task": "a", "wait": "soon"},
        {"task": "a", "wait": -1},
        {"task": "a", "ttl": "never"},
        {"task": "a", "ttl": float("inf")},
        {"task": "a", "ttl": float("nan")},
    ],
    ids=repr,
)
def test_impossible_arguments(lock: Lock, arguments: dict[str, object]) -> None:
    """What cannot be asked for is refused before anything is touched, in words that can be printed."""
    with pytest.raises(UsageError) as found, maintlock.hold(**arguments):  # type: ignore[arg-type]  # wrong on purpose
        pytest.fail("entered")
    assert str(found.value).isprintable()
    assert not os.path.exists(places(lock).lock)


def test_any_owner_and_reason(lock: Lock) -> None:
    """Free text of any characters is stored, and cannot steer the terminal of who reads of it."""
    with maintlock.hold("kbSync", owner="a\x1b[31m\n", reason="\udcff" * 500):
        done = lock.wrap("-t", "other", "-E", "9", "--", "true", start_new_session=True)
        assert lock.sidecar()["owner"] == "a\x1b[31m\n"
    assert r"owner a\x1b[31m\n" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_state_directory_of_ones_own(lock: Lock, tmp_path: Path) -> None:
    """The argument beats the environment, as text or as a path (L9)."""
    for name, kind in (("one", str), ("two", Path)):
        with maintlock.hold("kbSync", state_dir=kind(tmp_path / name)):
            assert (tmp_path / name / f"{LEASE}.lock").exists()
    assert not os.path.exists(places(lock).lock)


def test_the_configuration_is_found(lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not given comes from `maintlock.toml` in the working directory or above."""
    monkeypatch.delenv("MAINTLOCK_STATE_DIR")
    (tmp_path / "maintlock.toml").write_text(
        'state_dir = "configured"\n[lease.other]\nttl = "3h"\n[tasks.kbSync]\nlease = "other"\nwait = "100ms"\n'
        '[tasks.quick]\nlease = "other"\nttl = "5m"\n'
    )
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    elsewhere = Lock(tmp_path / "configured")
    with maintlock.hold("kbSync"):
        assert elsewhere.sidecar("other")["ttl_seconds"] == 3 * 3600
        (found,) = in_thread(lambda: maintlock.hold("kbSync").__enter__())
        assert isinstance(found, maintlock.LeaseHeld) and found.reason_code == "wait-timeout"
    with maintlock.hold("quick"):
        assert elsewhere.sidecar("other")["ttl_seconds"] == 300
    with maintlock.hold("quick", ttl=60, lease="third"):
        assert elsewhere.sidecar("third")["ttl_seconds"] == 60
    (tmp_path / "maintlock.toml").write_text("nonsense = 1\n")
    with pytest.raises(ConfigError, match="nonsense"), maintlock.hold("kbSync"):
        pytest.fail("entered")


def test_without_a_working_directory(lock: Lock, tmp_path: Path) -> None:
    """A process whose working directory was removed can hold the lease all the same."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"import os, maintlock\nos.rmdir({str(gone)!r})\nwith maintlock.hold('kbSync'):\n    print('held')\n"
    done = subprocess.run([PYTHON, "-c", script], cwd=gone, env=lock.env(), capture_output=True, text=True)
    assert done.stdout == "held\n", done.stderr


def test_many_threads_one_at_a_time(lock: Lock) -> None:
    """However many threads and processes want it, no two are inside at once (R1)."""
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(5):
            with maintlock.hold("thread", wait="forever"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 30
    assert len(ends(lock)) == 30
    assert_each_grant_ended_once(lock)


def test_should_yield_when_somebody_waits(lock: Lock) -> None:
    """A block with checkpoints learns that somebody waits for the lease (L5)."""
    with maintlock.hold("kbSync") as lease:
        assert not lease.should_yield()
        waiter = lock.start("-t", "waiter", "-w", "forever", "--", "true", start_new_session=True)
        until(lambda: waiting(lock) == ["waiter"], "the waiter")
        assert lease.should_yield()
    assert waiter.end()[0] == 0


def test_should_yield_when_somebody_is_starved(lock: Lock) -> None:
    """A block with checkpoints learns that another task is starved of the lease (L5)."""
    at = time.time() - 3 * 3600
    deferred = events.new("deferred", at=at, lease=LEASE, task="backup", reason_code="lease-held")
    with maintlock.hold("kbSync") as lease:
        assert not lease.should_yield()
        assert pending.append(str(lock.directory), [deferred])
        assert lease.should_yield()


def test_nothing_is_left_open(lock: Lock) -> None:
    """However often it is held, joined and refused, this process has no more descriptors open than before."""

    def use() -> list[str]:
        with maintlock.hold("kbSync", wait=1), maintlock.hold("inner"):
            assert isinstance(in_thread(maintlock.hold("other", wait=0.01).__enter__)[0], maintlock.LeaseHeld)
        return sorted(os.listdir("/proc/self/fd"))

    use()
    gc.collect()  # what earlier tests have left must not be closed in between
    before = use()
    assert [use() for _ in range(5)] == [before] * 5
