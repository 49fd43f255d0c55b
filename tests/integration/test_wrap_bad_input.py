"""Bad input to `maintlock-wrap`: whatever lies about or is said, no job runs unlocked, and nobody sees a traceback."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from maintlock import line as line_file
from maintlock import names, process
from tests.conftest import forget_surroundings
from tests.headless import Headless, headless_in
from tests.support import WRAP

NOISE = random.Random(7).randbytes(100_000)


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Headless]:
    """Give a lock in a state directory of the test's own."""
    with headless_in(tmp_path / "state") as found:
        yield found


@pytest.fixture
def made(lock: Headless) -> Path:
    """Make the state directory and give its path."""
    lock.directory.mkdir(mode=0o700)
    return lock.directory


@pytest.fixture(scope="module")
def one_holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headless]:
    """Give a lock that one job holds for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        forget_surroundings(patch)  # this is set up before the fixture that does so for each test
        with headless_in(tmp_path_factory.mktemp("held") / "state") as lock:
            lock.hold()
            lock.job_pid()
            yield lock


@pytest.fixture
def held(one_holder: Headless) -> Iterator[Headless]:
    """Give a held lock whose records may be overwritten."""
    records = [one_holder.directory / f"heavy-maintenance.{ending}" for ending in ("json", "lock")]
    before = [path.read_bytes() for path in records]
    yield one_holder
    for path, content in zip(records, before, strict=True):
        path.write_bytes(content)


def put(path: Path, content: bytes) -> None:
    """Write a file as one of ours."""
    path.write_bytes(content)
    path.chmod(0o600)


def is_decent(said: str) -> bool:
    """Tell whether what was said is lines of ours without tracebacks and control characters."""
    lines = said.splitlines()
    return all(row.startswith("maintlock: ") and row.isprintable() and "internal error" not in row for row in lines)


def runs(lock: Headless, *options: str, **more: Any) -> str:
    """Run a job that must get the lease, and return what we said."""
    done = lock.wrap("-t", "x", *options, "--", "sh", "-c", "echo ran; exit 7", **more)
    assert (done.returncode, done.stdout) == (7, "ran\n"), done.stderr
    assert is_decent(done.stderr), done.stderr
    said: str = done.stderr
    return said


def refuses(lock: Headless, ran: Path, *options: str, code: int, **more: Any) -> str:
    """Ask for a job that must not run, and return what we said."""
    done = lock.wrap(*options, "--", "touch", str(ran), **more)
    assert done.returncode == code, done.stderr
    assert is_decent(done.stderr), done.stderr
    assert not ran.exists()
    said: str = done.stderr
    return said


# The sidecar


def valid(**changed: Any) -> bytes:
    """Return a sidecar of a holder that lives (it is this test) and has no lock."""
    us = process.read_identity(os.getpid())
    fields = {
        "schema": 1, "lease": "heavy-maintenance", "lease_id": "0123abcd", "fence": 4, "task": "t", "owner": "o",
        "source": "cli", "reason": "r", "mode": "supervised", "pid": us.pid, "pid_started_at": "2026-01-01T00:00:00.000Z",
        "pid_start_ticks": us.start_ticks, "boot_id": us.boot_id, "pid_namespace": us.pid_namespace, "session_id": 1,
        "hostname": "h", "uid": 0, "job_pid": None, "job_started_at": None, "command": [], "cwd": "/",
        "acquired_at": "2026-01-01T00:00:00.000Z", "waited_seconds": 0.0, "ttl_seconds": 1.0, **changed,
    }  # fmt: skip
    return json.dumps(fields).encode()


SIDECARS = {
    "empty": b"", "torn": valid()[:200], "NUL": bytes(4096), "no object": b"[1]", "null": b"null", "number": b"1e999",
    "binary": bytes(range(256)) * 20, "deep": b"[" * 200_000, "huge": b" " * 3_000_000, "huge number": b"9" * 100_000,
    "not UTF-8": valid(owner="OWNER").replace(b"OWNER", b"\xff\xfe"), "NaN": valid(waited_seconds=float("nan")),
    "valid": valid(), "other lease": valid(lease="other"), "of the future": valid(schema=2, more=[1]),
    "infinite wait": valid().replace(b'"waited_seconds": 0.0', b'"waited_seconds": 1e999'),
    "pid 1": valid(pid=1), "pid 0": valid(pid=0), "negative pid": valid(pid=-1), "huge pid": valid(pid=2**62),
    "text for pid": valid(pid="4"), "huge fence": valid(fence=2**63), "fence near its limit": valid(fence=2**53 - 10),
    "hostile task": valid(task="a\x1b[2J\nmaintlock: ok"), "hostile owner": valid(owner="\x1b[2J\n" * 50, reason="\r\x9b"),
    "hostile host": valid(hostname="h\x1b[2J\nmaintlock: ok", boot_id="another"), "no time": valid(acquired_at="\x1b"),
    "the first day": valid(acquired_at="0001-01-01T00:00:00+23:59"),
    "the last day": valid(acquired_at="9999-12-31T23:59:59.999999-23:59"), "lone surrogate": valid(owner="\ud800"),
    "no command": valid(command="rm"), "many arguments": valid(command=["x"] * 10_000), "mode": valid(mode="\x1b" * 99),
}  # fmt: skip


@pytest.mark.parametrize("what", SIDECARS)
def test_hostile_sidecar_beside_a_free_lock(lock: Headless, made: Path, what: str) -> None:
    """Whatever lies about as a sidecar while the lock is free, the next job runs and cleans it up (L12)."""
    put(made / "heavy-maintenance.json", SIDECARS[what])
    assert runs(lock) == ""
    assert not (made / "heavy-maintenance.json").exists()
    after = line_file.read_path(str(made / "heavy-maintenance.lock"))
    assert after is not None and (after.task, after.outcome, after.exit_code) == ("x", "failed", 7)
    assert len(lock.history(event="acquired", task="x")) == 1


@pytest.mark.parametrize("what", SIDECARS)
def test_hostile_sidecar_while_held(held: Headless, tmp_path: Path, what: str) -> None:
    """Whatever stands in the sidecar's place while the lock is held, a request stands back with one line (L12)."""
    (held.directory / "heavy-maintenance.json").write_bytes(SIDECARS[what])
    said = refuses(held, tmp_path / "ran", "-t", "next", "-E", "9", code=9)
    assert said.startswith("maintlock: next deferred due to active heavy-maintenance lease: held by ")
    assert said.count("\n") == 1


def test_the_end_beside_hostile_records(lock: Headless) -> None:
    """A holder whose records were overwritten ends as ever: its own line stands, no sidecar, and the lock is free (L12)."""
    holder = lock.hold()
    lock.job_pid()
    (lock.directory / "heavy-maintenance.json").write_bytes(SIDECARS["huge"])
    (lock.directory / "heavy-maintenance.lock").write_bytes(LINES["long"])
    assert holder.end()[0] == 1
    assert not (lock.directory / "heavy-maintenance.json").exists()
    line = line_file.read_path(str(lock.directory / "heavy-maintenance.lock"))
    assert line is not None and (line.task, line.outcome) == ("holder", "failed")
    assert lock.is_free()


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


ODD: Mapping[str, Callable[[Path], None]] = {
    "a FIFO": _fifo,
    "a symlink to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a symlink to itself": lambda path: path.symlink_to(path),
    "a symlink to nothing": lambda path: path.symlink_to("/nonexistent/x"),
}


@pytest.mark.parametrize("name", ["heavy-maintenance.json", "heavy-maintenance.json.tmp"])
@pytest.mark.parametrize("what", ODD)
def test_odd_things_in_the_sidecars_place(lock: Headless, made: Path, what: str, name: str) -> None:
    """An odd thing in the sidecar's place is neither followed nor waited for, and gives way to ours (L12)."""
    ODD[what](made / name)
    assert runs(lock) == ""
    assert not os.path.lexists(made / name)


def test_a_directory_in_the_sidecars_place(lock: Headless, made: Path, tmp_path: Path) -> None:
    """A directory in the sidecar's place cannot be replaced: 73, the job is not run, and the lock is free again (L12)."""
    (made / "heavy-maintenance.json" / "x").mkdir(parents=True)
    for _ in range(2):
        said = refuses(lock, tmp_path / "ran", "-t", "x", code=73)
        assert "cannot be put on record: Is a directory" in said
    (made / "heavy-maintenance.json" / "x").rmdir()
    (made / "heavy-maintenance.json").rmdir()
    assert runs(lock) == ""


def test_a_sidecar_from_another_running_kernel(lock: Headless, made: Path, tmp_path: Path) -> None:
    """A sidecar that another system wrote after our boot is refused with 73 and the command that removes it (L1)."""
    hostile = valid(boot_id="another", hostname="h\x1b[2J\nmaintlock: ok", acquired_at="2999-01-01T00:00:00.000Z")
    put(made / "heavy-maintenance.json", hostile)
    said = refuses(lock, tmp_path / "ran", "-t", "x", code=73)
    assert "another running system" in said and said.count("\n") == 1
    subprocess.run(["sh", "-c", said.rstrip().rpartition("run: ")[2]], check=True)
    assert runs(lock) == ""


# The line


def record(*values: object) -> bytes:
    """Return a line with a right checksum over any 15 fields."""
    body = " ".join(map(str, values))
    return f"{line_file.MAGIC} {line_file.checksum(body)} {body}".encode().ljust(line_file.WIDTH - 1) + b"\n"


def fields(**changed: object) -> bytes:
    """Return the line of a grant that did not end, of a process that is gone."""
    values: dict[str, object] = {
        "fence": 4, "lease_id": "0123abcd", "task": "t", "source": "cli", "session": 1, "hold_until": "session",
        "mode": "supervised", "pid": 2**22 - 1, "ticks": 1, "boot": process.boot_id(), "namespace": process.pid_namespace(),
        "started": 1_700_000_000_000, "outcome": "-", "code": "-", "ended": "-", **changed,
    }  # fmt: skip
    return record(*values.values())


LINES = {
    "empty": b"", "garbage": NOISE[:480], "NUL": bytes(480), "short": fields()[:100], "torn": fields()[:100] + bytes(380),
    "checksum": fields().replace(b" 4 0123", b" 5 0123"), "long": fields() + b"x" * 1_000_000, "valid": fields(),
    "huge fence": fields(fence=10**60), "negative fence": fields(fence=-5), "no number": fields(fence="x"),
    "fence near its limit": fields(fence=2**53 - 10), "huge time": fields(started=10**200), "far time": fields(started=10**15),
    "negative time": fields(started=-(10**15)), "huge end": fields(outcome="completed", code=0, ended=10**150),
    "negative code": fields(outcome="failed", code=-1, ended=1), "huge pid": fields(pid=10**30), "pid 0": fields(pid=0),
    "pid 1": fields(pid=1), "us": fields(pid=os.getpid()), "hostile task": fields(task="\x1b[2J\x07"),
    "no task": fields(task="-"), "no id": fields(lease_id="-"), "huge session": fields(session=10**100),
    "odd words": fields(hold_until="x", mode="y", source="\x1b", outcome="z", code=1, ended=1),
}  # fmt: skip


@pytest.mark.parametrize("what", LINES)
def test_hostile_line(lock: Headless, made: Path, what: str) -> None:
    """Whatever stands in the lock file, the next job runs, and the line is whole again and its fence higher (L12)."""
    put(made / "heavy-maintenance.lock", LINES[what])
    before = line_file.decoded(LINES[what])
    assert runs(lock) == ""
    after = line_file.read_path(str(made / "heavy-maintenance.lock"))
    assert after is not None and after.fence > (before.fence if before else 0)
    assert (after.task, after.outcome, after.exit_code) == ("x", "failed", 7)


@pytest.mark.parametrize("what", LINES)
def test_hostile_line_while_held(held: Headless, tmp_path: Path, what: str) -> None:
    """Whatever is written into the lock file while it is held, a request stands back with one line (L12)."""
    (held.directory / "heavy-maintenance.lock").write_bytes(LINES[what])
    said = refuses(held, tmp_path / "ran", "-t", "next", "-E", "9", code=9)
    assert said.startswith("maintlock: next deferred due to active heavy-maintenance lease: held by ")
    assert said.count("\n") == 1


# The ledger

PENDING = {
    "garbage": NOISE, "NUL": bytes(100_000), "torn": b'{"id":"a","event":"acquired","at"' * 3000,
    "deep": b"[" * 100_000 + b"\n", "one long line": b"x" * 5_000_000,
    "hostile": (json.dumps({"id": "a", "event": "released", "at": "\x1b", "seconds": 1e308, "task": 4}) + "\n").encode() * 900,
}  # fmt: skip


@pytest.mark.parametrize("what", PENDING)
def test_hostile_pending_events(lock: Headless, made: Path, what: str) -> None:
    """Whatever stands in ledger.pending, jobs run, and their own history is not lost (R6, L12)."""
    put(made / "ledger.pending", PENDING[what])
    assert runs(lock) == ""
    assert runs(lock) == ""
    assert len(lock.history(task="x", outcome="failed")) == 2


LEDGERS = {
    "empty": b"",
    "header only": b"SQLite format 3\0" + bytes(4000),
    "text": b"no database",
    "noise": NOISE[:50_000],
}


@pytest.mark.parametrize("what", LEDGERS)
def test_hostile_ledger(lock: Headless, made: Path, what: str) -> None:
    """Whatever stands in ledger.db, jobs run with their own exit code and without delay (R6, L12)."""
    put(made / "ledger.db", LEDGERS[what])
    put(made / "ledger.pending", b"\n" * 50_000)  # much enough that it is drained at once
    assert runs(lock) == ""
    assert lock.is_free()


# The configuration

CONFIGURATIONS = {
    "binary": NOISE[:1000], "NUL": bytes(1000), "huge": b"#" * 3_000_000, "deep": b"a = " + b"[" * 100_000,
    "hostile key": b'"\\u001b[2J\\n" = 1', "hostile name": b'[tasks."\\u001b[2J"]', "not UTF-8": b"a = '\xff'",
    "huge number": b"poll_interval = " + b"9" * 10_000, "dates": b"poll_interval = 1979-05-27",
}  # fmt: skip


@pytest.mark.parametrize("what", CONFIGURATIONS)
def test_hostile_configuration(lock: Headless, tmp_path: Path, what: str) -> None:
    """Whatever stands in the configuration is told in lines that can be printed: 78, and nothing is run (R3)."""
    put(tmp_path / "maintlock.toml", CONFIGURATIONS[what])
    said = refuses(lock, tmp_path / "ran", "-t", "x", code=78, cwd=tmp_path)
    assert str(tmp_path / "maintlock.toml") in said


@pytest.mark.parametrize("what", ["a FIFO", "a directory", "a device"])
def test_a_configuration_that_is_no_file(lock: Headless, tmp_path: Path, what: str) -> None:
    """A configuration that is no file is an error and is not waited for (R3)."""
    path = tmp_path / "maintlock.toml"
    os.mkfifo(path) if what == "a FIFO" else path.mkdir() if what == "a directory" else path.symlink_to("/dev/tty")
    refuses(lock, tmp_path / "ran", "-t", "x", code=78, cwd=tmp_path)


# Names

BAD_NAMES = [
    "../x", "a/b", "/abs", ".", "..", ".hidden", "-n", "--", " ", "a b", "a\nb", "\x1b[2J", "\x7f", "\u202e", "\u00e9",
    "x" * 65, "a\\", "*", "$(id)", os.fsdecode(b"\xff"),
]  # fmt: skip


def test_names_that_are_none(lock: Headless, tmp_path: Path) -> None:
    """What is no name of a task or lease is refused with 64 and told harmlessly; no file is made of it (R3)."""
    said = [words for name in BAD_NAMES for words in ((f"--task={name}",), ("-t", "x", f"--lease={name}"))]
    for words, code, err in lock.wrap_each([[*words, "--", "touch", str(tmp_path / "ran")] for words in said]):
        assert (code, is_decent(err)) == (64, True), (words, err)
    assert sorted(os.listdir(tmp_path)) == []


@pytest.mark.parametrize("name", [*BAD_NAMES, "ai:sync-kb", "-", ":x", "_"], ids=ascii)
def test_odd_names_of_npm_scripts(lock: Headless, name: str) -> None:
    """A script's name that npm allows becomes a task's name, every other character a dash (R3)."""
    done = lock.wrap("--", "sh", "-c", 'printf %s "$MAINTLOCK_TASK"', env=lock.env(npm_lifecycle_event=name))
    assert (done.returncode, done.stderr) == (0, "")
    assert names.is_task_name(done.stdout)
    assert lock.history(event="released", task=done.stdout, source="npm")


# Arguments without measure


def test_ten_megabytes_of_arguments(lock: Headless) -> None:
    """A command that the kernel finds too long leaves 126 and says so; nothing stays held (R2)."""
    script = "import sys; from maintlock.wrap import main; sys.exit(main(['-t', 'x', '--', *sys.argv[1:], *['y' * 100_000] * 100]))"
    for command in (("true",), ("/bin/true",), ("maintlock-test-no-such-command",)):
        running = lock.start("-c", script, *command, program=sys.executable)
        code, out, err = running.end()
        expected = (127, "command not found") if command[0].startswith("maintlock") else (126, "Argument list too long")
        assert (code, out) == (expected[0], "") or (code, out) == (126, "")
        assert err.count("\n") == 1 and is_decent(err) and len(err) < 300
        assert lock.is_free()


def test_one_argument_of_two_megabytes(lock: Headless) -> None:
    """A single argument that the kernel finds too long leaves 126 and says so, also with --exec (R2)."""
    for option in ("-o", "-F"):
        script = f"import sys; from maintlock.wrap import main; sys.exit(main(['-t', 'x', '{option}', '--', 'true', 'y' * 1_900_000]))"
        code, _, err = lock.start("-c", script, program=sys.executable).end()
        assert (code, err) == (126, "maintlock: true: cannot be executed: Argument list too long\n")
        assert lock.is_free()
    assert not lock.history(outcome="lost")


def test_arguments_at_the_kernels_limit(lock: Headless) -> None:
    """As many arguments as we can be started with either reach the job or leave 126, never something in between (R2)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    limit = min(6 << 20, soft // 4) if soft > 0 else 6 << 20
    low, high, seen = 0, limit, set()
    while high - low > 16:
        middle = (low + high) // 2
        words = ["y" * 100_000] * (middle // 100_009) + ["y" * (middle % 100_009)]
        try:
            done = lock.wrap("-t", "x", "--", "sh", "-c", 'echo "$#"', "sh", *words)
        except OSError:
            high = middle
            continue
        low = middle
        seen.add(done.returncode)
        if done.returncode == 0:
            assert (done.stdout, done.stderr) == (f"{len(words)}\n", "")
        else:
            assert done.returncode == 126
            assert done.stderr == "maintlock: sh: cannot be executed: Argument list too long\n"
    assert 0 in seen
    assert lock.is_free()


# The state directory


def test_a_state_directory_is_made(lock: Headless, tmp_path: Path) -> None:
    """A state directory that is missing is made, its parents too, for us alone whatever the umask (R2)."""
    directory = tmp_path / "a" / "b c" / "d\n\x1b[2J" / "state"
    done = subprocess.run(
        ["sh", "-c", 'umask 0; exec "$@"', "sh", WRAP, "-t", "x", "--", "true"], capture_output=True, text=True,
        env=lock.env(MAINTLOCK_STATE_DIR=str(directory)),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.stat().st_mode & 0o777 for path in (directory, *list(directory.parents)[:3])} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


@pytest.mark.parametrize("umask", ["0777", "0277", "0177"])
def test_a_greedy_umask(lock: Headless, umask: str) -> None:
    """A umask that takes our own rights away does not keep the next request from working (R2)."""
    for _ in range(2):
        done = subprocess.run(
            ["sh", "-c", f'umask {umask}; exec "$@"', "sh", WRAP, "-t", "x", "--", "echo", "ran"], capture_output=True,
            text=True, env=lock.env(), start_new_session=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "ran\n")


@pytest.mark.parametrize(
    ("value", "code"),
    [("", 0), ("relative/dir", 0), ("with\nnewline\x1b[2J", 0), ("~", 0), ("d" * 5000, 73), ("/proc/self/x", None),
     ("/dev/null", 77), ("/dev/full/x", 73)],
    ids=ascii,
)  # fmt: skip
def test_odd_state_directories(lock: Headless, tmp_path: Path, value: str, code: int | None) -> None:
    """A state directory from the environment may be relative or odd; where it cannot be, the job is not run (R2)."""
    environment = lock.env(MAINTLOCK_STATE_DIR=value)
    done = lock.wrap("-t", "x", "--", "sh", "-c", 'printf %s "$MAINTLOCK_STATE_DIR"', env=environment, cwd=tmp_path)
    assert done.returncode in ({73, 77} if code is None else {code})
    assert is_decent(done.stderr)
    if done.returncode == 0:
        expected = str(tmp_path / value) if value else str(Path(os.environ["XDG_STATE_HOME"]) / "maintlock")
        assert done.stdout == expected
        assert (Path(expected) / "heavy-maintenance.lock").exists()
    else:
        assert done.stdout == ""


# The environment

HELD = {
    "garbage": "x", "colons": ":::", "blanks": " \t\n ", "control characters": "\x1b[2J:\x07:1", "no text": os.fsdecode(b"\xff:\xfe:1"),
    "huge": "heavy-maintenance:0123abcd:1 " * 4000, "huge number": "heavy-maintenance:0123abcd:" + "9" * 5000,
    "another lease": "other:0123abcd:SID", "another session": "heavy-maintenance:0123abcd:1",
}  # fmt: skip


@pytest.mark.parametrize("what", HELD)
def test_held_without_meaning(lock: Headless, tmp_path: Path, what: str) -> None:
    """A MAINTLOCK_HELD that names no grant of ours changes nothing: the job runs under a lease, or is deferred (L8)."""
    environment = lock.env(
        MAINTLOCK_HELD=HELD[what], MAINTLOCK_TASK="\x1b[2J", MAINTLOCK_FENCE="-1", MAINTLOCK_LEASE_ID="x"
    )
    assert runs(lock, env=environment) == ""
    assert [row["parent_task"] for row in lock.history(event="acquired")] == [None]
    lock.hold()
    refuses(lock, tmp_path / "ran", "-t", "x", "-E", "9", code=9, env=environment)


@pytest.mark.parametrize("state_directory", ["ours", "another"])
def test_a_token_of_a_grant_that_is_none(lock: Headless, tmp_path: Path, state_directory: str) -> None:
    """A token of our session whose grant is not current is told in one line, then the request is an ordinary one (L8)."""
    script = 'export MAINTLOCK_HELD="heavy-maintenance:0123abcd:$$" MAINTLOCK_TASK="$1"; shift; exec "$@"'
    for task in ("parent", "\x1b[2J\n"):
        arguments = ("-c", script, "sh", task, WRAP, "-t", "x", "-E", "9", "--state-dir", str(lock.directory), "--")
        code, out, err = lock.start(*arguments, "echo", "ran", program="sh").end()
        assert (code, out) == (0, "ran\n")
        assert err.count("\n") == 1 and is_decent(err) and "has ended; requesting it again" in err
        assert len(lock.history(event="token_stale", lease_id="0123abcd")) >= 1
    lock.hold()
    code, out, err = lock.start(*arguments, "echo", "ran", program="sh").end()
    assert (code, out) == (9, "")
    assert err.count("\n") == 2 and is_decent(err)


def test_the_token_of_the_current_grant_in_another_session(lock: Headless, tmp_path: Path) -> None:
    """Who has copied the current token but is not in the job's session does not join it (L8)."""
    lock.hold()
    found = lock.sidecar()
    for session in (found["session_id"], 1, 0):
        token = f"heavy-maintenance:{found['lease_id']}:{session}"
        environment = lock.env(MAINTLOCK_HELD=token, MAINTLOCK_LEASE_ID=found["lease_id"], MAINTLOCK_TASK="holder")
        refuses(lock, tmp_path / "ran", "-t", "x", "-E", "9", code=9, env=environment)
    assert not lock.history(event="nested_started")


@pytest.mark.parametrize("fd", ["0", "1", "99999", "-1", "x", "3\n", ""])
@pytest.mark.parametrize("options", [(), ("-o",), ("-F",)], ids=" ".join)
def test_somebody_elses_descriptor(lock: Headless, fd: str, options: tuple[str, ...]) -> None:
    """A MAINTLOCK_FD from outside is neither used nor passed on: the job finds the lock's own, or none (L8)."""
    script = 'echo "<$MAINTLOCK_FD>"; readlink "/proc/$$/fd/$MAINTLOCK_FD"; cat'
    done = subprocess.run(
        [WRAP, "-t", "x", *options, "--", "sh", "-c", script], env=lock.env(MAINTLOCK_FD=fd), input="through\n",
        capture_output=True, text=True, start_new_session=True,
    )  # fmt: skip
    number, target, through = (
        done.stdout if "-o" not in options else done.stdout.replace("\n", "\n\n", 1)
    ).splitlines()
    assert through == "through"
    if "-o" in options:
        assert (number, target) == ("<>", "")
    else:
        assert int(number.strip("<>")) >= 3 and target == f"{lock.directory}/heavy-maintenance.lock"


@pytest.mark.parametrize("value", ["/dev/zero", "/dev", "\x1b[2J", "x" * 5000, "relative.toml"], ids=ascii)
def test_odd_configurations_in_the_environment(lock: Headless, tmp_path: Path, value: str) -> None:
    """A MAINTLOCK_CONFIG that names no configuration leaves 78, without reading for ever (R3)."""
    refuses(lock, tmp_path / "ran", "-t", "x", code=78, env=lock.env(MAINTLOCK_CONFIG=value), cwd=tmp_path)


# Where we are started


def test_a_working_directory_that_is_gone(lock: Headless, tmp_path: Path) -> None:
    """In a working directory that was removed a job runs all the same; only a relative state directory leaves 73 (R3)."""
    script = 'mkdir "$1" && cd "$1" && rmdir "$1" && shift && exec "$@"'
    gone = str(tmp_path / "gone")
    assert lock.start("-c", script, "sh", gone, WRAP, "-t", "x", "--", "echo", "ran", program="sh").end() == (
        0,
        "ran\n",
        "",
    )
    relative = (WRAP, "-t", "x", "--state-dir", "state", "--", "echo", "ran")
    code, out, err = lock.start("-c", script, "sh", gone, *relative, program="sh").end()
    assert (code, out) == (73, "") and is_decent(err) and "working directory is gone" in err
    named = (WRAP, "-t", "x", "--outcome", "told", "--", "echo", "ran")
    code, out, err = lock.start("-c", script, "sh", gone, *named, program="sh").end()
    assert (code, out) == (73, "") and is_decent(err)


def test_no_home(lock: Headless, tmp_path: Path) -> None:
    """Without HOME the home of the user database counts; without any there is no state directory: 73, and none is made (L9)."""
    bare = {"PATH": os.environ["PATH"]}
    patch = (
        "import pwd\nclass Entry: pw_dir, pw_name = HOME, 'u'\ndef getpwuid(_uid):\n"
        "    if HOME is None: raise KeyError('no such uid')\n    return Entry\ntake('pwd', 'getpwuid', getpwuid)"
    )
    show = ("-t", "x", "--", "sh", "-c", 'printf %s "$MAINTLOCK_STATE_DIR"')
    home = tmp_path / "home"
    running = lock.patched(f"HOME = {str(home)!r}\n{patch}", *show, env=bare, cwd=tmp_path)
    assert running.end() == (0, f"{home}/.local/state/maintlock", "")
    running = lock.patched(f"HOME = None\n{patch}", *show, env=bare, cwd=tmp_path)
    code, out, err = running.end()
    assert (code, out) == (73, "") and is_decent(err) and "--state-dir" in err
    assert os.listdir(tmp_path) == ["home"]


@pytest.mark.parametrize("option", ["-o", "-F"])
def test_no_path(lock: Headless, option: str) -> None:
    """Without PATH a command is found where the system looks by default (R3)."""
    environment = {"MAINTLOCK_STATE_DIR": str(lock.directory)}
    done = lock.wrap("-t", "x", option, "--", "echo", "ran", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
    assert lock.wrap("-t", "x", option, "--", "maintlock-test-no-such-command", env=environment).returncode == 127


def test_an_empty_environment(lock: Headless) -> None:
    """With no environment at all, everything that is needed can be said on the command line (R3)."""
    done = lock.wrap("-t", "x", "--state-dir", str(lock.directory), "--", "/bin/echo", "ran", env={"_": ""})
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


@pytest.mark.parametrize("number", range(5, 14))
def test_few_descriptors(lock: Headless, tmp_path: Path, number: int) -> None:
    """With hardly any descriptors to be had, a job runs under the lease or not at all: 73 and one line, no traceback (R2)."""
    limited = f'ulimit -n {number}; exec "$@"'
    able = lock.start("-c", limited, "sh", sys.executable, "-c", "import zlib", program="sh")
    if able.end()[0] != 0:
        pytest.skip(f"Python itself does not start with {number} descriptors")
    outcome = tmp_path / "outcome"
    arguments = ("-t", "x", "--outcome", str(outcome), "--", "sh", "-c", "echo ran; exit 7")
    code, out, err = lock.start("-c", limited, "sh", WRAP, *arguments, program="sh").end()
    assert (code, out) in {(7, "ran\n"), (73, "")}
    assert is_decent(err) and err.count("\n") <= 1
    line = line_file.read_path(str(lock.directory / "heavy-maintenance.lock"))
    if code == 7:
        assert line is not None and (line.task, line.outcome, line.exit_code) == ("x", "failed", 7)
    else:
        assert line is None
    assert lock.is_free()


def test_few_processes_and_little_memory(lock: Headless) -> None:
    """Where the job cannot be started for want of memory, it is said in a line and nothing stays held (R2)."""
    patch = (
        "import os\ndef spawn(*_a, **_k): raise OSError(12, 'Cannot allocate memory')\n"
        "take('os', 'posix_spawnp', spawn)\ntake('os', 'posix_spawn', spawn)"
    )
    code, out, err = lock.patched(patch, "-t", "x", "--", "true").end()
    assert (code, out, err) == (126, "", "maintlock: true: cannot be executed: Cannot allocate memory\n")
    assert lock.is_free() and not lock.history(outcome="lost")
