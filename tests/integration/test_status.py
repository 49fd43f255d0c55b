from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maintlock import events, marks, observe, pending, process
from maintlock.paths import Places
from tests.support import MAINTLOCK, PATIENCE_SECONDS, WRAP, Lock, Running, until

LEASE = "heavy-maintenance"
WITHOUT_PROC = "import sys; from maintlock import process; process.PROC = '/nonexistent'; from maintlock.{} import main; sys.exit(main(sys.argv[1:]))"
# A job that keeps its descriptors to itself, as node does: its child works on without the lock's.
CLOSING = "import subprocess, sys; subprocess.run(['sh', '-c', 'echo ready $$; read x'], close_fds=True)"


def show(lock: Lock, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `maintlock` with these arguments."""
    env = options.pop("env", None) or lock.env()
    return subprocess.run(
        [MAINTLOCK, *arguments], env=env, capture_output=True, text=True, timeout=PATIENCE_SECONDS, **options
    )


def status(lock: Lock) -> dict[str, Any]:
    """Return what `maintlock status --json` prints; `lock.status()` is what that asks."""
    return dict(json.loads(show(lock, "status", "--json").stdout))


def hold(lock: Lock, task: str = "holder", *options: str, **more: Any) -> Running:
    """Hold the lease, with the job in the sidecar: that is written once more after the job has begun."""
    running = lock.hold(task, *options, **more)
    until(lambda: lock.sidecar()["job_pid"])
    return running


def state_of(pid: int) -> str:
    """Return the kernel's letter for a process, or nothing where it is gone."""
    stat = process.read_stat(pid)
    return "" if stat is None or stat.is_dead else stat.state


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    return [stat.pid for stat in process.read_table().values() if stat.ppid == pid and not stat.is_dead]


def kill(running: Running) -> None:
    """Kill a wrapper, and wait until it is gone."""
    running.signal(signal.SIGKILL)
    running.popen.wait()


@pytest.fixture
def end_later() -> Iterator[Callable[[int], None]]:
    """Give `end_later(pid)`: a process that outlives what a test has started is killed after it, and nobody else."""
    found: list[process.Stat] = []

    def note(pid: int) -> None:
        stat = process.read_stat(pid)
        assert stat is not None
        found.append(stat)

    yield note
    for stat in found:
        process.send_signal(stat, signal.SIGKILL)


def test_held_names_the_holder_and_its_processes(lock: Lock) -> None:
    """A held lease shows who has it, with the wrapper's and the job's processes and their memory (R10)."""
    before = time.monotonic()
    running = hold(lock, "kbSync", "--owner", "alice@laptop", "--reason", "nightly")
    (job,) = children(running.pid)
    found = status(lock)
    holder = found["holder"]
    assert (found["state"], found["sidecar"], found["detail"]) == ("held", "valid", None)
    assert (found["path"], found["backend"], found["scope"]) == (str(lock.directory / f"{LEASE}.lock"), "flock", "user")
    assert {name: holder[name] for name in ("task", "owner", "reason", "pid", "job_pid", "alive", "stopped", "overdue")} == {
        "task": "kbSync", "owner": "alice@laptop", "reason": "nightly", "pid": running.pid, "job_pid": job, "alive": True,
        "stopped": False, "overdue": False,
    }  # fmt: skip
    assert {row["pid"] for row in holder["processes"]} == {running.pid, job}
    assert holder["processes"] == sorted(holder["processes"], key=lambda row: row["pid"])
    assert holder["rss_bytes"] == sum(row["rss_bytes"] for row in holder["processes"]) > 1 << 20
    assert 0 < holder["held_seconds"] <= time.monotonic() - before


def test_free_again_after_the_end(lock: Lock) -> None:
    """After the job the lease is free, and nobody is its holder."""
    assert lock.wrap("-t", "kbSync", "--", "true").returncode == 0
    found = status(lock)
    assert (found["state"], found["holder"], found["sidecar"], found["detail"]) == ("free", None, "missing", None)


def test_one_object_on_one_line(lock: Lock) -> None:
    """`status --json` is one line, whatever the sidecar's texts hold."""
    hold(lock, "kbSync", "--reason", "a\nb\x1b[2J\u202e", "--owner", "x\u2028y")
    done = show(lock, "status", "--json")
    assert done.stdout.count("\n") == 1 and done.stdout.isascii()
    assert json.loads(done.stdout)["holder"]["reason"] == "a\nb\x1b[2J\u202e"
    shown = show(lock, "status").stdout
    assert "\x1b" not in shown and "\\x1b[2J" in shown


@pytest.mark.parametrize("which", ["wrapper", "job"])
def test_stopped_holder(lock: Lock, which: str) -> None:
    """A holder that is stopped still holds, and is shown as stopped (L4)."""
    running = hold(lock)
    pid = running.pid if which == "wrapper" else children(running.pid)[0]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T")
    found = status(lock)
    os.kill(pid, signal.SIGCONT)
    assert (found["state"], found["holder"]["stopped"]) == ("held", True)


def test_overdue_holder(lock: Lock) -> None:
    """Past its TTL a holder is shown as overdue, and keeps the lease (L1)."""
    hold(lock, "kbSync", "--ttl", "1ms")
    found = until(lambda: (found := lock.status())["holder"]["overdue"] and found)
    assert found["state"] == "held"
    assert "overdue" in show(lock, "status").stdout


def test_waiter_is_shown(lock: Lock) -> None:
    """Who waits is shown with task, pid and since when, and no longer once it is dead (L5)."""
    hold(lock)
    waiter = lock.start("-t", "backup", "--wait", "forever", "--", "true")
    (row,) = until(lambda: lock.status()["waiters"])
    assert (row["task"], row["pid"]) == ("backup", waiter.pid)
    assert row["since"] >= lock.sidecar()["acquired_at"]
    assert "backup" in show(lock, "status").stdout
    kill(waiter)
    assert lock.status()["waiters"] == []


def test_nested_job_is_shown(lock: Lock) -> None:
    """A joined job is shown under the same holder, and its processes are the holder's (R7)."""
    running = hold(lock, "primary-dev-sync", script=f"{WRAP} -t kbSync --reason pull -- sh -c 'echo ready; read x'")
    found = until(lambda: (found := lock.status())["nested"] and found)  # told after its job has begun
    (row,) = found["nested"]
    assert (found["holder"]["task"], row["task"], row["reason"]) == ("primary-dev-sync", "kbSync", "pull")
    pids = {entry["pid"] for entry in found["holder"]["processes"]}
    assert {running.pid, row["pid"], *children(row["pid"])} <= pids
    running.end()
    assert lock.status()["nested"] == []


def test_what_left_the_session_is_not_the_jobs(lock: Lock, end_later: Callable[[int], None]) -> None:
    """A daemon that made a session of its own is none of the holder's processes."""
    running = hold(
        lock, script="setsid sh -c 'echo $$ >&2; exec sleep 600' & echo ready; read x", stderr=subprocess.PIPE
    )
    assert running.popen.stderr is not None
    daemon = int(running.popen.stderr.readline())
    end_later(daemon)
    assert daemon not in [row["pid"] for row in lock.status()["holder"]["processes"]]


def test_orphaned_job_with_the_descriptor(lock: Lock) -> None:
    """A job whose wrapper was killed keeps the lease: orphaned, with its processes named (L2)."""
    running = hold(lock, "backup")
    (job,) = children(running.pid)
    kill(running)
    found = status(lock)
    assert (found["state"], found["sidecar"], found["holder"]["alive"]) == ("orphaned", "stale", False)
    assert f"pid {job} (sh)" in found["detail"] and "of its job" in found["detail"] and "leaked" not in found["detail"]
    assert [row["pid"] for row in found["holder"]["processes"]] == [job]
    assert lock.wrap("-t", "x", "-E", "9", "--", "true").returncode == 9
    running.popen.stdin.close()  # type: ignore[union-attr]  # a pipe, as it was started
    until(lambda: not state_of(job))
    found = lock.status()
    assert (found["state"], found["sidecar"], found["holder"]) == ("free", "stale", None)


def test_orphaned_job_without_the_descriptor(lock: Lock, end_later: Callable[[int], None]) -> None:
    """What works on without the lock's descriptor, under a killed wrapper and a killed npm, is orphaned too (L2)."""
    running = lock.start("-t", "kbSync", "--", sys.executable, "-c", CLOSING, stdin=subprocess.PIPE)
    script = int(running.until_line("ready").split()[1])
    end_later(script)
    (runner,) = children(running.pid)
    kill(running)
    os.kill(runner, signal.SIGKILL)
    until(lambda: not state_of(runner))
    found = lock.status()
    assert found["state"] == "orphaned"
    assert [row["pid"] for row in found["holder"]["processes"]] == [script]


def test_orphaned_job_looks_at_itself(lock: Lock) -> None:
    """`status` run inside an orphaned job, among its own ancestors, does not call the lease free."""
    script = f"echo ready; read x; exec 3>&1 4>&-; {MAINTLOCK} status --json"
    code = f"import subprocess; subprocess.run(['sh', '-c', {script!r}])"
    running = lock.start("-t", "kbSync", "--", sys.executable, "-c", code, stdin=subprocess.PIPE)
    running.until_line("ready")
    (runner,) = children(running.pid)
    kill(running)
    os.kill(runner, signal.SIGKILL)
    running.popen.stdin.close()  # type: ignore[union-attr]  # a pipe, as it was started
    assert json.loads(running.until_line("lease"))["state"] == "orphaned"


def test_leaked_descriptor_is_told_from_a_survivor(lock: Lock, end_later: Callable[[int], None]) -> None:
    """A daemon outside the job that only carries the descriptor makes it orphaned too, and is told apart."""
    script = "setsid sh -c 'echo $$ >&2; exec sleep 600' & echo ready; read x"
    running = hold(lock, script=script, stderr=subprocess.PIPE)
    assert running.popen.stderr is not None
    daemon = int(running.popen.stderr.readline())
    end_later(daemon)
    until(lambda: "sleep" in str(process.read_stat(daemon)))
    (job,) = [pid for pid in children(running.pid) if pid != daemon]
    kill(running)
    both = lock.status()["detail"]
    assert f"pid {job} (sh) of its job" in both and f"outside the job pid {daemon} (sleep)" in both
    os.kill(job, signal.SIGKILL)
    until(lambda: not state_of(job))
    found = lock.status()
    assert found["state"] == "orphaned"
    assert "only processes outside its job" in found["detail"] and f"pid {daemon} (sleep)" in found["detail"]
    assert found["holder"]["processes"] == []
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not state_of(daemon))
    assert lock.status()["state"] == "free"


def test_replaced_lock_file(lock: Lock) -> None:
    """A lock file removed and made anew under its holder frees nobody, and the collision is shown (R10)."""
    hold(lock, "backup")
    (lock.directory / f"{LEASE}.lock").unlink()
    assert [row["kind"] for row in lock.status()["collisions"]] == ["lockfile_replaced"]
    assert lock.wrap("-t", "x", "-E", "9", "--", "true").returncode == 9
    found = status(lock)
    assert (found["state"], found["holder"]["task"]) == ("held", "backup")
    assert [row["kind"] for row in found["collisions"]] == ["lockfile_replaced"]


def test_lock_taken_by_another_program(lock: Lock, require: Callable[[str], str]) -> None:
    """A lock that flock(1) has is held by an unknown owner."""
    assert lock.wrap("-t", "a", "--", "true").returncode == 0
    path = str(lock.directory / f"{LEASE}.lock")
    other = lock.start(path, "sh", "-c", "echo ready; read x", program=require("flock"), stdin=subprocess.PIPE)
    other.until_line("ready")
    found = status(lock)
    assert (found["state"], found["holder"], found["sidecar"]) == ("held", None, "missing")
    assert "unknown owner" in found["detail"]


def test_exec_leaves_one_process(lock: Lock) -> None:
    """A command that took our place holds the lease itself; when it is killed the lease is free."""
    running = hold(lock, "kbSync", "--exec")
    found = lock.status()
    assert (found["state"], found["holder"]["mode"], found["holder"]["pid"]) == ("held", "exec", running.pid)
    assert [row["pid"] for row in found["holder"]["processes"]] == [running.pid]
    kill(running)
    assert (lock.status()["state"], lock.status()["sidecar"]) == ("free", "stale")


def test_without_the_descriptor_the_wrapper_holds(lock: Lock) -> None:
    """With `--close` only the wrapper has the lock, and the job is still shown."""
    running = hold(lock, "kbSync", "--close")
    found = lock.status()
    assert found["state"] == "held"
    assert len(found["holder"]["processes"]) == 2
    assert found["holder"]["pid"] == running.pid


CLIENT = """
import os, subprocess, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
helper = subprocess.Popen(
    [sys.argv[2], "hold", "-t", "dream", "--fd", str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)
assert b"granted" in helper.stdout.readline()
print("ready", helper.pid, flush=True)
sys.stdin.read()
"""


def test_client_and_its_helper(lock: Lock) -> None:
    """A lease held through a helper shows the client as its job, which keeps it when the helper is killed (R18)."""
    assert lock.wrap("-t", "a", "--", "true").returncode == 0
    path = str(lock.directory / f"{LEASE}.lock")
    client = lock.start("-c", CLIENT, path, MAINTLOCK, program=sys.executable, stdin=subprocess.PIPE)
    helper = int(client.until_line("ready").split()[1])
    found = status(lock)
    assert (found["state"], found["holder"]["mode"], found["holder"]["job_pid"]) == ("held", "coprocess", client.pid)
    assert {row["pid"] for row in found["holder"]["processes"]} == {client.pid, helper}
    os.kill(helper, signal.SIGKILL)
    until(lambda: not state_of(helper))
    found = lock.status()
    assert found["state"] == "orphaned"
    assert f"pid {client.pid} (" in found["detail"]
    kill(client)
    assert lock.status()["state"] == "free"


def test_another_lease(lock: Lock) -> None:
    """Leases are looked at one by one."""
    lock.hold("kbSync", "--lease", "other")
    assert lock.status()["state"] == "free"
    assert json.loads(show(lock, "status", "--json", "--lease", "other").stdout)["holder"]["lease"] == "other"


def test_a_lease_that_does_not_exist(lock: Lock, tmp_path: Path) -> None:
    """A lease that was never used and is not configured is free, and its name perhaps mistyped: that is said on stderr."""
    config = tmp_path / "maintlock.toml"
    config.write_text('[tasks.train]\nlease = "gpu"\n', encoding="utf-8")
    for form in ((), ("--json",), ("--exit-code",)):
        done = show(lock, "status", *form, "--lease", "typo", "--config", str(config))
        assert (done.returncode, "free" in done.stdout) == (0, True)
        assert done.stderr == "maintlock: no lease named typo is configured, or was ever used here\n"
    for lease in ("gpu", "heavy-maintenance"):
        assert show(lock, "status", "--lease", lease, "--config", str(config)).stderr == ""


def test_without_proc(lock: Lock) -> None:
    """Without /proc a living holder is held, a lock file that was never made free, and the rest unknown."""
    status = [sys.executable, "-c", WITHOUT_PROC.format("cli"), "status", "--json"]

    def look() -> tuple[str, str]:
        done = subprocess.run(status, env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        found = json.loads(done.stdout)
        return found["state"], found["sidecar"]

    assert look() == ("free", "missing")
    command = ["-c", WITHOUT_PROC.format("wrap"), "-t", "kbSync", "--", "sh", "-c", "echo ready; read x"]
    running = lock.start(*command, program=sys.executable, stdin=subprocess.PIPE)
    running.until_line("ready")
    assert look() == ("held", "valid")
    kill(running)
    assert look() == ("unknown", "stale")


def test_other_pid_namespace(lock: Lock, require: Callable[[str], str]) -> None:
    """A holder in another pid namespace is unknown, never free (L1)."""
    unshare = [require("unshare"), "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no pid namespaces here")
    outer = lock.start(
        *unshare[1:],
        WRAP,
        "-t",
        "kbSync",
        "--",
        "sh",
        "-c",
        "echo ready; read x",
        program=unshare[0],
        stdin=subprocess.PIPE,
    )
    outer.until_line("ready")
    found = lock.status()
    assert (found["state"], found["holder"]["task"], found["holder"]["alive"]) == ("unknown", "kbSync", None)


# Looking touches nothing


def tree(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Return all files with inode, length and time of change; SQLite's own shared memory is none of them."""
    found = {path: path.stat() for path in directory.rglob("*") if path.suffix not in {".db-shm", ".db-wal"}}
    return {str(path): (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.mark.parametrize("command", ["status", "history"])
def test_looking_takes_no_lock(lock: Lock, require: Callable[[str], str], tmp_path: Path, command: str) -> None:
    """Looking makes no locking call on our lock files and opens none of them for writing: it cannot cause a deferral."""
    strace, trace = require("strace"), tmp_path / "trace"
    hold(lock, "primary-dev-sync", script=f"{WRAP} -t kbSync -- sh -c 'echo ready; read x'")
    lock.start("-t", "backup", "--wait", "forever", "--", "true")
    until(lambda: (found := lock.status())["waiters"] and found["nested"])
    before = tree(lock.directory)
    traced = [
        strace,
        "-f",
        "-y",
        "-e",
        "trace=flock,fcntl,open,openat,rename,unlink,mkdir",
        "-o",
        str(trace),
        MAINTLOCK,
        command,
    ]
    done = subprocess.run([*traced, "--json"], env=lock.env(), capture_output=True, timeout=PATIENCE_SECONDS)
    if b"ptrace" in done.stderr.lower():
        pytest.skip("nobody may trace here")
    calls = [text for text in trace.read_text().splitlines() if str(lock.directory) in text]
    ours = [text for text in calls if any(f".{kind}" in text for kind in ("lock", "queue", "nested"))]
    assert any("O_RDONLY" in text for text in ours)
    assert [
        text for text in ours if "flock(" in text or "SETLK" in text or "O_RDWR" in text or "O_WRONLY" in text
    ] == []
    assert [text for text in calls if "flock(" in text or ("O_CREAT" in text and ".db" not in text)] == []
    assert tree(lock.directory) == before


def test_looking_makes_no_state_directory(lock: Lock, tmp_path: Path) -> None:
    """Where there is no state directory, looking makes none (L9)."""
    for command in ("status", "history"):
        assert show(lock, command).returncode == 0
        assert show(lock, command, "--json").returncode == 0
    assert not lock.directory.exists()


def test_a_state_directory_removed_under_its_holder(lock: Lock) -> None:
    """A job whose state directory was removed is seen by what it carries, until it has ended; a request stands back (R1)."""
    holder = hold(lock, "backup")
    job = lock.sidecar()["job_pid"]
    shutil.rmtree(lock.directory)
    found = lock.status()
    assert (found["state"], found["holder"], found["sidecar"]) == ("orphaned", None, "missing")
    assert found["detail"].startswith(f"{lock.directory} was removed") and f"pid {job} (" in found["detail"]
    assert not lock.directory.exists()
    assert f"(pids {job})" in lock.wrap("-t", "x", "-E", "9", "--", "true").stderr
    shutil.rmtree(lock.directory)
    holder.popen.communicate()
    assert (lock.status()["state"], lock.status()["detail"]) == ("free", None)


def test_looking_while_grants_come_and_go(lock: Lock, tmp_path: Path) -> None:
    """However grants begin and end meanwhile, a look finds free or held, and every job runs (R1)."""
    over = tmp_path / "over"
    loop = lock.start("-c", f"until [ -e {over} ]; do {WRAP} -t a -E 9 -- true || exit; done; echo over", program="sh")
    places = Places(directory=str(lock.directory), lease=LEASE)
    seen = []

    def look() -> int:
        state = observe.read_status(places)["state"]
        assert state in {"free", "held"}
        if state not in seen[-1:]:
            seen.append(state)
        return len(seen)

    until(lambda: look() > 6, "three grants to come and go")
    over.touch()
    assert loop.end()[:2] == (0, "over\n")


# The program


@pytest.mark.parametrize(("situation", "code"), [("free", 0), ("held", 1), ("orphaned", 1), ("unknown", 2)])
def test_exit_code_on_request(lock: Lock, situation: str, code: int) -> None:
    """With `--exit-code` the state is the exit code; without it looking succeeds."""
    if situation in {"held", "orphaned"}:
        running = hold(lock)
        if situation == "orphaned":
            kill(running)
    program = [MAINTLOCK]
    if situation == "unknown":
        assert lock.wrap("-t", "a", "--", "true").returncode == 0
        program = [sys.executable, "-c", WITHOUT_PROC.format("cli")]
    for arguments, expected in ((["status", "--exit-code"], code), (["status"], 0)):
        assert (
            subprocess.run(
                [*program, *arguments], env=lock.env(), capture_output=True, timeout=PATIENCE_SECONDS
            ).returncode
            == expected
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: maintlock COMMAND"),
        (["statsu"], "did you mean status?"),
        (["\x1b[2J"], "unknown command"),
        (["--nonsense"], "unknown option"),
        (["status", "--nonsense"], "maintlock status --help"),
        (["status", "--lease", "../x"], "expected 1 to 64"),
        (["status", "--js"], "unrecognized arguments"),
        (["history", "--since", "soon"], "expected a duration"),
        (["history", "--limit", "-1"], "expected"),
        (["history", "--event", "party"], "invalid choice"),
        (["history", "--task", "a b"], "expected 1 to 64"),
    ],
)
def test_wrong_command_lines(lock: Lock, arguments: list[str], said: str) -> None:
    """A wrong command line is one line on stderr that says what is right, and exit code 64."""
    done = show(lock, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (64, "", 1)
    assert done.stderr.startswith("maintlock: ") and said in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["help"], ["-h"], ["status", "--help"], ["history", "-h"]])
def test_help_is_complete(lock: Lock, arguments: list[str]) -> None:
    """Help has examples, fits 80 columns, and is no error."""
    done = show(lock, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Examples" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_exit_codes_are_in_the_help(lock: Lock) -> None:
    """What `--exit-code` means stands where one looks for it."""
    text = " ".join(show(lock, "status", "--help").stdout.split())
    assert "exit 0 if the lease is free, 1 if held or orphaned, 2 if unknown" in text


def test_version(lock: Lock) -> None:
    """The program tells its version."""
    assert show(lock, "--version").stdout.startswith("maintlock 0.")


def test_run_is_wrap(lock: Lock) -> None:
    """`maintlock run` is `maintlock-wrap`, and loads no more than that."""
    assert show(lock, "run", "-t", "a", "--", "sh", "-c", "exit 7").returncode == 7
    heavy = "import sys; from maintlock.cli import main; main(['run', '--version']); print({'argparse', 'rich', 'json', 're'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", heavy],
        env=lock.env(PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_places_by_option_and_configuration(lock: Lock, tmp_path: Path) -> None:
    """`--state-dir` and `--config` say where to look, as for the wrapper."""
    hold(lock, "kbSync")
    env = {name: value for name, value in lock.env().items() if name != "MAINTLOCK_STATE_DIR"}
    toml = tmp_path / "maintlock.toml"
    toml.write_text(f"state_dir = {json.dumps(str(lock.directory))}\n")
    for arguments in (["--state-dir", str(lock.directory)], ["--config", str(toml)]):
        done = show(lock, "status", "--json", *arguments, env=env, cwd=tmp_path / "state")
        assert json.loads(done.stdout)["state"] == "held"
    toml.write_text("nonsense = 1\n")
    done = show(lock, "status", "--config", str(toml))
    assert (done.returncode, "nonsense" in done.stderr) == (78, True)


@pytest.mark.parametrize("command", ["status", "history"])
def test_refused_where_others_may_write(lock: Lock, command: str) -> None:
    """A state directory that everybody may write is refused, with the command that mends it."""
    lock.directory.mkdir()
    for ending in (".lock", ".queue"):
        (lock.directory / f"x{ending}").touch(mode=0o600)
    lock.directory.chmod(0o777)
    done = show(lock, command, "--json")
    assert (done.returncode, done.stdout) == (77, "")
    assert "chmod" in done.stderr


@pytest.mark.parametrize("name", ["orchestrator.json", f"{LEASE}.queue", f"{LEASE}.nested", "ledger.pending.1"])
def test_all_refuse_alike(lock: Lock, name: str) -> None:
    """What everybody may write to of ours is refused by whoever works with it or only looks, with the same words (77)."""
    lock.directory.mkdir(mode=0o700)
    (lock.directory / name).write_text("{}")
    (lock.directory / name).chmod(0o666)
    said = {lock.wrap("-t", "x", "--", "true").stderr}
    for command in ("status", "history", "health"):
        done = show(lock, command, "--json")
        assert (done.returncode, done.stdout) == (77, "")
        said.add(done.stderr)
    (words,) = said
    assert f"{name}: everybody may write to it; run: chmod go-w " in words


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_refused_where_it_belongs_to_somebody_else(lock: Lock) -> None:
    """A state directory of somebody else's is refused by name."""
    lock.directory.mkdir(mode=0o700)
    os.chown(lock.directory, 12345, -1)
    done = show(lock, "status")
    assert (done.returncode, done.stdout) == (77, "")
    assert "uid 12345" in done.stderr


def test_odd_things_in_place_of_records(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO in the sidecar's place and a socket in the ledger's neither hang nor crash a reader."""
    hold(lock)
    (lock.directory / f"{LEASE}.json").unlink()
    os.mkfifo(lock.directory / f"{LEASE}.json")
    assert (lock.status()["state"], lock.status()["sidecar"]) == ("held", "unreadable")
    with socket.socket(socket.AF_UNIX) as sock:
        monkeypatch.chdir(lock.directory)  # a socket's path must not be long
        sock.bind("ledger.db")
    done = show(lock, "status", "--json")
    assert (done.returncode, "ledger.db: is not a regular file" in json.loads(done.stdout)["detail"]) == (0, True)


def test_reader_that_leaves_early(lock: Lock) -> None:
    """A reader that goes away ends us quietly, as SIGPIPE would."""
    lock.wrap("-t", "a", "--", "true")
    for command in (
        ["status", "--json"],
        ["status"],
        ["history"],
        ["history", "--json"],
        ["--help"],
        ["status", "--help"],
    ):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [MAINTLOCK, *command], env=lock.env(), stdout=writing, stderr=subprocess.PIPE, timeout=PATIENCE_SECONDS
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b""), command


def test_full_disk_behind_standard_output(lock: Lock) -> None:
    """Output that cannot be written is one line and exit code 73, not a success."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [MAINTLOCK, "status"], env=lock.env(), stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE_SECONDS
        )
    assert done.returncode == 73
    assert done.stderr.count(b"\n") == 1


def test_ctrl_c_is_quiet(lock: Lock) -> None:
    """Ctrl-C ends us with 130 and without a traceback."""
    code = "import os, signal, sys; from maintlock import cli, observe; observe.read_status = lambda *a: os.kill(os.getpid(), signal.SIGINT); sys.exit(cli.main(['status']))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_plain_text_without_a_terminal(lock: Lock) -> None:
    """Without a terminal, or with NO_COLOR, there are no escape sequences; an ASCII locale does not crash it."""
    hold(lock, "kbSync", "--reason", "größer")
    assert "\x1b" not in show(lock, "status").stdout
    done = subprocess.run(
        [MAINTLOCK, "status"], env=lock.env(PYTHONIOENCODING="ascii"), capture_output=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0 and done.stdout.isascii() and b"kbSync" in done.stdout


def test_a_collision_whose_processes_have_ended_is_over(lock: Lock) -> None:
    """A collision that no orchestrator has lived to clear is not shown any longer than its processes live (R8)."""
    lock.wrap("-t", "once", "--", "true")
    outside = lock.start("-c", "echo ready; read x", program="sh", stdin=subprocess.PIPE)
    outside.until_line("ready")
    stat = process.read_stat(outside.pid)
    assert stat is not None
    event = events.new(
        "collision",
        event_id=marks.event_id(marks.UNLEASED, [stat], 1),
        at=time.time(),
        lease=LEASE,
        reason_code=marks.UNLEASED,
        detail=f"kbSync (pid {outside.pid}) outside the lease",
    )
    pending.append(str(lock.directory), [event])
    assert [found["kind"] for found in lock.status()["collisions"]] == [marks.UNLEASED]
    outside.popen.communicate()
    assert lock.status()["collisions"] == []
