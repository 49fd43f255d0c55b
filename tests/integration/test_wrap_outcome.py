"""What `maintlock-wrap` tells others: the outcome file, the sidecar, the deferral line; and what it keeps to itself."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maintlock import process, redact
from maintlock.times import epoch_seconds
from tests.headless import Headless, headless_in
from tests.support import PATIENCE_SECONDS, WRAP

FIELDS = {
    "outcome", "exit_code", "task", "lease_id", "fence", "reason_code", "held_seconds", "waited_seconds", "holder",
}  # fmt: skip
MILLISECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Headless]:
    """Give a lock in a state directory of the test's own."""
    with headless_in(tmp_path / "state") as found:
        yield found


@pytest.fixture
def outcome(tmp_path: Path) -> Path:
    """Give the path of an outcome file, where an earlier run has left one."""
    path = tmp_path / "told" / "outcome.json"
    path.parent.mkdir()
    path.write_text('{"outcome": "completed", "exit_code": 0}')
    return path


def told(outcome: Path) -> dict[str, Any]:
    """Return the outcome, which is all that stands in its directory."""
    assert os.listdir(outcome.parent) == [outcome.name]
    found: dict[str, Any] = json.loads(outcome.read_text())
    assert set(found) == FIELDS
    assert outcome.read_text().count("\n") == 1
    return found


# The outcome file


@pytest.mark.parametrize(
    ("command", "expected", "code"),
    [
        (("true",), "completed", 0),
        (("sh", "-c", "exit 3"), "failed", 3),
        (("sh", "-c", "kill -KILL $$"), "failed", 137),
        (("maintlock-test-no-such-command",), "failed", 127),
        (("/",), "failed", 126),
    ],
)
def test_outcome_of_a_job(lock: Headless, outcome: Path, command: tuple[str, ...], expected: str, code: int) -> None:
    """The outcome file tells how a job that got the lease has ended, with the grant's id and fence (L3)."""
    done = lock.wrap("-t", "kbSync", "--outcome", str(outcome), "--", *command)
    assert done.returncode == code
    found = told(outcome)
    row = lock.history(event="released")[0]
    assert (found["outcome"], found["exit_code"], found["task"]) == (expected, code, "kbSync")
    assert (found["lease_id"], found["fence"]) == (row["lease_id"], 1)
    assert (found["reason_code"], found["holder"]) == (None, None)
    assert 0 <= found["held_seconds"] < PATIENCE_SECONDS and 0 <= found["waited_seconds"] < PATIENCE_SECONDS
    assert (row["outcome"], row["exit_code"]) == (expected, code)


def test_outcome_of_a_job_that_was_timed_out(lock: Headless, outcome: Path) -> None:
    """A job that ran too long is told as timed out, with how long it held the lease (L3, L4)."""
    options = ("-t", "x", "--outcome", str(outcome), "--max-runtime", "200ms")
    assert lock.wrap(*options, "--", "sleep", "60").returncode == 124
    found = told(outcome)
    assert (found["outcome"], found["exit_code"]) == ("timed_out", 124)
    assert found["held_seconds"] >= 0.2


def test_outcome_of_a_job_that_was_stopped(lock: Headless, outcome: Path) -> None:
    """A job that ended by a signal which we passed on is told as stopped (L3)."""
    running = lock.hold("x", "--outcome", str(outcome), script="echo ready; exec sleep 60")
    running.signal(signal.SIGTERM)
    assert running.end()[0] == 143
    assert (told(outcome)["outcome"], told(outcome)["exit_code"]) == ("stopped", 143)


@pytest.mark.parametrize(("options", "reason_code"), [((), "lease-held"), (("-w", "100ms"), "wait-timeout")])
def test_outcome_of_a_deferral(lock: Headless, outcome: Path, options: tuple[str, ...], reason_code: str) -> None:
    """A deferral is never told as a success: outcome `deferred`, why, how long it waited, and the holder's sidecar (L3, R7)."""
    lock.hold("backup", "--reason", "nightly")
    lock.job_pid()
    done = lock.wrap("-t", "kbSync", "-E", "75", *options, "--outcome", str(outcome), "--", "true")
    assert done.returncode == 75
    found = told(outcome)
    assert (found["outcome"], found["exit_code"], found["reason_code"]) == ("deferred", 75, reason_code)
    assert found["holder"] == lock.sidecar()
    assert (found["holder"]["task"], found["holder"]["reason"]) == ("backup", "nightly")
    assert (found["lease_id"], found["fence"], found["held_seconds"]) == (None, None, 0)
    assert found["waited_seconds"] >= (0.1 if options else 0)


def test_outcome_of_a_deferral_by_an_unknown_owner(lock: Headless, outcome: Path) -> None:
    """A holder whose sidecar is gone is told as null, and the deferral as a deferral (L12)."""
    lock.hold()
    lock.job_pid()
    (lock.directory / "heavy-maintenance.json").unlink()
    done = lock.wrap("-t", "x", "--outcome", str(outcome), "--", "true")
    assert done.returncode == 0
    assert done.stderr.startswith(
        "maintlock: x deferred due to active heavy-maintenance lease: held by an unknown owner (sidecar missing"
    )
    assert (told(outcome)["outcome"], told(outcome)["holder"]) == ("deferred", None)


NOT_RUN: dict[str, tuple[tuple[str, ...], dict[str, str], int]] = {
    "usage": (("-t", "x"), {}, 64),
    "an unknown option": (("--nonsense", "-t", "x", "--", "true"), {}, 64),
    "a wrong environment": (("-t", "x", "--", "true"), {"MAINTLOCK_DEFER_EXIT_CODE": "x"}, 64),
    "no task": (("--", "true"), {}, 64),
    "exec": (("-t", "x", "-F", "--", "true"), {}, 64),
    "configuration": (("-t", "x", "--config", "/nonexistent/x.toml", "--", "true"), {}, 78),
    "unavailable": (("-t", "x", "--state-dir", "/dev/null/x", "--", "true"), {}, 73),
    "refused": (("-t", "x", "--state-dir", "/dev/null", "--", "true"), {}, 77),
}


@pytest.mark.parametrize("what", NOT_RUN)
def test_outcome_where_nothing_was_run(lock: Headless, outcome: Path, what: str) -> None:
    """What was refused before it began is told as not run with our exit code, never as what an earlier run had left (L3)."""
    arguments, environment, code = NOT_RUN[what]
    done = lock.wrap("--outcome", str(outcome), *arguments, env=lock.env(**environment))
    assert done.returncode == code
    assert (told(outcome)["outcome"], told(outcome)["exit_code"]) == ("not_run", code)
    assert (told(outcome)["lease_id"], told(outcome)["reason_code"], told(outcome)["holder"]) == (None, None, None)


@pytest.mark.parametrize(
    "said", ['[tasks.kbSync]\nnpm_script = "ai:sync"\n', '[tasks."ai:sync"]\n'], ids=["mapped", "named"]
)
def test_the_configured_task_of_an_npm_script(lock: Headless, outcome: Path, said: str) -> None:
    """A task that npm's script names, by `npm_script` or itself, has its settings, and is named alike everywhere (R2)."""
    task = "kbSync" if "kbSync" in said else "ai:sync"
    config = outcome.parent.parent / "maintlock.toml"
    config.write_text(f'{said}lease = "own"\ndefer_exit_code = 9\n')
    arguments = ("--config", str(config), "--outcome", str(outcome), "--", "sh", "-c", "echo ready; read x")
    env = lock.env(npm_lifecycle_event="ai:sync")
    holder = lock.start(*arguments, env=env, stdin=subprocess.PIPE)
    holder.until_line("ready")
    assert lock.sidecar("own")["task"] == task

    assert lock.wrap(*arguments, env=env, start_new_session=True).returncode == 9

    assert (told(outcome)["outcome"], told(outcome)["task"]) == ("deferred", task)
    assert [row["task"] for row in lock.history(event="deferred")] == [task]


def test_outcome_of_an_earlier_run_is_removed_first(lock: Headless, outcome: Path) -> None:
    """While we wait and while the job runs, nothing of an earlier run lies about (L3)."""
    holder = lock.hold()
    waiter = lock.start(
        "-t", "x", "-w", "forever", "--outcome", str(outcome), "--", "sh", "-c", '[ ! -e "$1" ]', "sh", str(outcome),
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    waiter.until_line("waits for")
    assert not outcome.exists()
    holder.end()
    assert waiter.end()[0] == 0
    assert told(outcome)["outcome"] == "completed"
    assert told(outcome)["waited_seconds"] > 0


def test_outcome_of_a_joined_job(lock: Headless, outcome: Path) -> None:
    """A job that joined another's grant tells its own end and the grant's id (R7)."""
    inner = (WRAP, "-t", "inner", "--outcome", str(outcome), "--", "sh", "-c", "exit 4")
    done = lock.wrap("-t", "outer", "--", "sh", "-c", '"$@"; exit 0', "sh", *inner)
    assert (done.returncode, done.stderr) == (0, "")
    assert (told(outcome)["outcome"], told(outcome)["exit_code"], told(outcome)["task"]) == ("failed", 4, "inner")
    assert told(outcome)["lease_id"] == lock.history(event="acquired", task="outer")[0]["lease_id"]


def test_outcome_relative_to_the_working_directory(lock: Headless, outcome: Path) -> None:
    """A relative outcome file is written where we were started (L3)."""
    assert lock.wrap("-t", "x", "--outcome", outcome.name, "--", "true", cwd=outcome.parent).returncode == 0
    assert told(outcome)["task"] == "x"


@pytest.mark.parametrize("what", ["no directory", "a directory", "a FIFO", "a symlink", "a device", "a file's child"])
def test_outcome_that_cannot_be_written(lock: Headless, tmp_path: Path, what: str) -> None:
    """An outcome file that could not be written is told beforehand: 73, the job is not run, and what is there stays (L3)."""
    path = tmp_path / "outcome"
    if what == "no directory":
        path = tmp_path / "missing" / "outcome"
    elif what == "a directory":
        path.mkdir()
    elif what == "a FIFO":
        os.mkfifo(path)
    elif what == "a symlink":
        (tmp_path / "target").write_text("")
        path.symlink_to(tmp_path / "target")
    elif what == "a device":
        if os.geteuid() != 0:
            pytest.skip("needs root: makes a device")
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        path.write_text("")
        path = path / "outcome"
    before = os.lstat(path) if os.path.lexists(path) else None
    done = lock.wrap("-t", "x", "--outcome", str(path), "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 73
    assert f"{path}: outcome cannot be written: " in done.stderr and "the job was not run" in done.stderr
    assert not (tmp_path / "ran").exists() and not lock.directory.exists()
    if before is not None:
        assert (os.lstat(path).st_ino, os.lstat(path).st_mode) == (before.st_ino, before.st_mode)


def test_outcome_whose_directory_vanishes(lock: Headless, outcome: Path) -> None:
    """An outcome that cannot be written any more at the end is told on stderr; the exit code stays the job's (L3)."""
    done = lock.wrap(
        "-t", "x", "--outcome", str(outcome), "--", "sh", "-c", 'rmdir "$1"; exit 3', "sh", str(outcome.parent)
    )
    assert done.returncode == 3
    assert f"{outcome}: outcome cannot be written: No such file or directory" in done.stderr
    assert lock.is_free()


# The sidecar

SIDECAR: dict[str, type | tuple[type, ...]] = {
    "schema": int, "lease": str, "lease_id": str, "fence": int, "task": str, "owner": str, "source": str, "reason": str,
    "mode": str, "pid": int, "pid_started_at": str, "pid_start_ticks": int, "boot_id": str, "pid_namespace": str,
    "session_id": int, "hostname": str, "uid": int, "job_pid": int, "job_started_at": str, "command": list, "cwd": str,
    "acquired_at": str, "waited_seconds": (int, float), "ttl_seconds": (int, float),
}  # fmt: skip


def test_sidecar_fields(lock: Headless, tmp_path: Path) -> None:
    """While held, the sidecar has exactly the fields of schema 1, each of its type, and they are true (R2, R10)."""
    running = lock.hold(cwd=tmp_path)
    job_pid = lock.job_pid()
    found = lock.sidecar()
    assert list(found) == list(SIDECAR)
    assert {name for name, kind in SIDECAR.items() if not isinstance(found[name], kind)} == set()
    stat_of = process.read_stat(running.pid)
    assert stat_of is not None
    assert (found["schema"], found["lease"], found["task"]) == (1, "heavy-maintenance", "holder")
    assert (found["source"], found["reason"], found["mode"]) == ("cli", "manual", "supervised")
    assert found["owner"] == f"{pwd.getpwuid(os.geteuid()).pw_name}@{os.uname().nodename}"
    assert (found["pid"], found["pid_start_ticks"], found["session_id"]) == (
        running.pid,
        stat_of.start_ticks,
        stat_of.sid,
    )
    assert (found["boot_id"], found["pid_namespace"]) == (process.boot_id(), process.pid_namespace())
    assert (found["hostname"], found["uid"]) == (os.uname().nodename, os.geteuid())
    assert found["command"] == ["sh", "-c", "echo ready; read x"] and found["cwd"] == str(tmp_path)
    assert (found["ttl_seconds"], found["fence"]) == (6 * 3600, 1)
    assert os.path.basename(os.readlink(f"/proc/{job_pid}/exe")) in {"sh", "dash", "bash", "busybox"}
    times = [epoch_seconds(found[name]) for name in ("pid_started_at", "acquired_at", "job_started_at")]
    assert all(MILLISECONDS.fullmatch(found[name]) for name in ("pid_started_at", "acquired_at", "job_started_at"))
    assert times[0] - 0.1 <= times[1] <= times[2]  # type: ignore[operator]  # none of them is None
    assert stat.S_IMODE(os.stat(lock.directory / "heavy-maintenance.json").st_mode) == 0o600
    running.end()
    assert not (lock.directory / "heavy-maintenance.json").exists()


def test_sidecar_says_what_was_said(lock: Headless, tmp_path: Path) -> None:
    """Lease, owner, reason, source and TTL are in the sidecar as the command line says, texts cut to a bearable length (R2)."""
    config = tmp_path / "m.toml"
    config.write_text("[lease.other]\nttl = '2h'\n[tasks.holder]\nttl = '3h'\n")
    said = ("--lease", "other", "--owner", "Ann \U0001f600\n", "--reason", "r" * 5000, "--source", "orchestrator")
    for more, ttl in (((), 21600), (("--config", str(config)), 10800), (("--ttl", "90s"), 90)):
        running = lock.hold("holder", *said, *more)
        found = lock.sidecar("other")
        assert (found["lease"], found["owner"], found["source"]) == ("other", "Ann \U0001f600\n", "orchestrator")
        assert found["reason"] == "r" * 200
        assert found["ttl_seconds"] == ttl
        running.end()


@pytest.mark.parametrize(("name", "value"), [("npm_lifecycle_event", "ai:sync-kb"), ("npm_execpath", "/usr/bin/npm")])
def test_sidecar_under_npm(lock: Headless, name: str, value: str) -> None:
    """Where npm's environment is present the source is npm (R3)."""
    lock.hold("x", env=lock.env(**{name: value}))
    assert lock.sidecar()["source"] == "npm"


def test_sidecar_of_exec(lock: Headless) -> None:
    """With --exec the holder is the command itself, in mode `exec`; its sidecar outlives it until the next request (R2)."""
    running = lock.hold("x", "--exec", script='echo "ready $$"; read x')
    found = lock.sidecar()
    assert (found["mode"], found["pid"], found["job_pid"]) == ("exec", running.pid, running.pid)
    running.end()
    assert lock.sidecar()["lease_id"] == found["lease_id"]
    assert lock.is_free()
    assert [row["outcome"] for row in lock.history(lease_id=found["lease_id"]) if row["outcome"]] == ["unknown"]


def test_sidecar_of_a_command_that_is_no_text(lock: Headless) -> None:
    """A command of any length in any bytes leaves a sidecar that every reader of JSON takes, with what is no UTF-8 escaped (L12)."""
    running = lock.start(
        "-t", "holder", "--", "sh", "-c", "echo ready; read x", os.fsdecode(b"\xff\xfe"), *["\U0001f600" * 3000] * 80,
        stdin=subprocess.PIPE, cwd="/",
    )  # fmt: skip
    running.until_line("ready")
    assert lock.sidecar()["command"][3] == r"\udcff\udcfe"
    assert lock.status()["sidecar"] == "valid"
    assert "held by holder" in lock.wrap("-t", "x", "--", "true").stderr


# Secrets

SECRET = "s3cr3t"
SECRETS = [
    (f"--token={SECRET}",), ("--token", SECRET), ("--password", SECRET), (f"--db-password={SECRET}",),
    ("--api-key", SECRET), (f"--client-secret={SECRET}",), ("-H", f"Authorization: Bearer {SECRET}"),
    (f"https://user:{SECRET}@example.org/x",), (f"--url=postgres://user:{SECRET}@db/x?a=b",),
    (f"https://example.org/x?a=1&access_token={SECRET}",), ("env", f"API_TOKEN={SECRET}"),
    ("env", f"OPENAI_KEY={SECRET} {SECRET}"), (f"DB_PASS={SECRET} {SECRET}",), (f"AWS_SECRET_ACCESS_KEY={SECRET}",),
    (f"--env=GITHUB_TOKEN={SECRET}",), ("-e", f"NPM_TOKEN={SECRET}"), (f"-eNPM_TOKEN={SECRET}",),
    ("bash", "-c", f"TOKEN={SECRET} node a.mjs --password {SECRET} b"),
    ("sh", "-c", f"PASSWORD='{SECRET} and {SECRET}' node a.mjs"), ("sh", "-ec", f'curl --token "{SECRET} {SECRET}" x'),
    ("sh", "-c", f"curl -H 'Authorization: Bearer {SECRET}' 'https://u:{SECRET}@h/?token={SECRET}'"),
]  # fmt: skip
HARMLESS = [
    "node", "--author=ann", "https://example.org/x?a=1&b=2#c", "user@host:path", "--tokens", "a=b", "X=1", "--max=3",
    "https://example.org/@scope/pkg", "-c", "echo a=b 'c d'", "--keyboard=us",
]  # fmt: skip


@pytest.mark.parametrize("arguments", SECRETS, ids=" ".join)
def test_secrets_are_masked(arguments: tuple[str, ...]) -> None:
    """An argument that looks like a secret is masked where a command is shown, also inside a script (R2)."""
    shown = redact.without_secrets(["run", *arguments, "after"])
    assert SECRET not in " ".join(shown) and redact.MASK in " ".join(shown)
    assert (shown[0], shown[-1]) == ("run", "after")


def test_what_is_no_secret_is_shown() -> None:
    """What looks like no secret is shown as it is (R10)."""
    shown = [word for word in HARMLESS if word != "--tokens"]
    assert redact.without_secrets(shown) == shown


def test_no_secret_reaches_any_record(lock: Headless, tmp_path: Path) -> None:
    """No secret of the command line reaches sidecar, outcome, log, history, status or ledger, whoever tells of it (R2)."""
    words = [word for arguments in SECRETS for word in arguments]
    secrets = ("--password", SECRET, *words)
    running = lock.start(
        "-t", "holder", "-v", "--", "sh", "-c", "echo ready; read x", "sh", *secrets, stdin=subprocess.PIPE
    )  # fmt: skip
    running.until_line("ready")
    lock.job_pid()
    outcome = tmp_path / "outcome"
    said = ""
    for log_format in ("text", "json"):
        done = lock.wrap("-t", "x", "-v", "--log-format", log_format, "--outcome", str(outcome), "--", "true", *secrets)
        said += done.stderr + done.stdout + outcome.read_text()
    assert '"holder"' in said and redact.MASK in said
    said += json.dumps(lock.status())
    running.signal(signal.SIGKILL)
    running.popen.wait(PATIENCE_SECONDS)
    lock.close()
    done = lock.wrap("-t", "x", "-v", "--", "maintlock-test-no-such-command", *secrets)
    said += done.stderr + json.dumps(lock.history())
    assert SECRET not in said
    files = [path for path in lock.directory.iterdir() if SECRET.encode() in path.read_bytes()]
    assert files == []


# The deferral line


def test_the_deferral_line(lock: Headless) -> None:
    """A deferral is one line on stderr that names request, lease, holder, owner, pid, how long and why (R3, R9)."""
    running = lock.hold("backup", "--owner", "alice@laptop", "--reason", "manual")
    lock.job_pid()
    done = lock.wrap("-t", "kbSync", "--", "true")
    assert (done.returncode, done.stdout) == (0, "")
    expected = (
        r"maintlock: kbSync deferred due to active heavy-maintenance lease: held by backup "
        rf"\(owner alice@laptop, pid {running.pid}, for [\d.]+s, reason manual\)\n"
    )
    assert re.fullmatch(expected, done.stderr)


def test_the_deferral_line_names_the_lease(lock: Headless) -> None:
    """The words before the colon name the lease; another lease in the same directory is free (R2)."""
    lock.hold("backup", "--lease", "disk.io")
    assert (
        "maintlock: x deferred due to active disk.io lease: held by backup ("
        in lock.wrap("-t", "x", "--lease", "disk.io", "--", "true").stderr
    )
    assert lock.is_free()


def test_the_deferral_line_is_one_line(lock: Headless) -> None:
    """Owner and reason of another can neither forge a second line nor steer the terminal (R9)."""
    hostile = "a\nmaintlock: all is well\x1b[2J\x9b31m\u2028\u202e\r"
    lock.hold("backup", "--owner", hostile, "--reason", hostile)
    lock.job_pid()
    done = lock.wrap("-t", "x", "--", "true")
    assert done.stderr.count("\n") == 1 and done.stderr[:-1].isprintable()
    assert r"owner a\nmaintlock: all is well\x1b[2J\x9b31m\u2028\u202e\r, pid" in done.stderr
    told_as_json = lock.wrap("-t", "x", "--log-format", "json", "--", "true").stderr
    assert told_as_json.isascii() and told_as_json.count("\n") == 1
    assert json.loads(told_as_json)["holder"]["owner"] == hostile


@pytest.mark.parametrize(("options", "reason_code"), [((), "lease-held"), (("-w", "50ms"), "wait-timeout")])
def test_the_deferral_as_json(lock: Headless, options: tuple[str, ...], reason_code: str) -> None:
    """With --log-format json a deferral is one JSON object with event=deferred and what the text says (R9)."""
    lock.hold("backup")
    lock.job_pid()
    done = lock.wrap("-t", "kbSync", "--log-format", "json", *options, "--", "true")
    *before, last = map(json.loads, done.stderr.splitlines())
    assert [told["event"] for told in before] == (["waiting"] if options else [])
    assert (last["event"], last["task"], last["lease"]) == ("deferred", "kbSync", "heavy-maintenance")
    assert (last["reason_code"], last["blocked_by"]) == (reason_code, "backup")
    assert last["message"].startswith("kbSync deferred due to active heavy-maintenance lease: held by backup (owner ")
    assert last["holder"] == lock.sidecar()
    assert MILLISECONDS.fullmatch(last["at"])


def test_our_words_as_json(lock: Headless) -> None:
    """With --log-format json an error is one JSON object too, and the job's own words stay as they are (R9)."""
    done = lock.wrap("-t", "x", "--log-format", "json", "--", "sh", "-c", "echo plain >&2")
    assert done.stderr == "plain\n"
    done = lock.wrap("-t", "x", "--log-format", "json", "--", "maintlock-test-no-such-command")
    error = json.loads(done.stderr)
    assert (error["event"], error["level"], error["exit_code"]) == ("error", "error", 127)
    done = lock.wrap("-t", "x", "--log-format", "json", "--max-runtime", "100ms", "--", "sleep", "60")
    assert (json.loads(done.stderr)["event"], done.returncode) == ("timeout", 124)
