"""`maintlock hold` as a client in any language meets it: its lines, its ends, and clients that do not behave."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.protocol import crash, ends, is_locked, kill, places, told, until_gone, until_queued, waiting
from tests.support import MAINTLOCK, PATIENCE_SECONDS, Lock, Running, until

# A client in a process of its own: starts `hold` on its descriptor of the lock file, and tells what that says.
CLIENT = """
import os, subprocess, sys
path, *argv = sys.argv[1:]
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
helper = subprocess.Popen([*argv, "--fd", str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(helper.pid, helper.stdout.readline().decode(), end="", flush=True)
helper.communicate(sys.stdin.buffer.read())
"""


def start(lock: Lock, *options: str, task: str = "dream", **more: Any) -> Running:
    """Start a coprocess, in a session of its own."""
    more = {"stdin": subprocess.PIPE, "start_new_session": True, **more}
    return lock.start("hold", "-t", task, *options, program=MAINTLOCK, **more)


def hear(running: Running) -> dict[str, Any]:
    """Return the next line that a coprocess says."""
    return dict(json.loads(running.until_line("{")))


def start_client(lock: Lock, *options: str) -> tuple[Running, int, dict[str, Any]]:
    """Start a client that carries the lock too; return it, its helper's pid, and what that has said."""
    lock.directory.mkdir(mode=0o700, exist_ok=True)
    argv = [places(lock).lock, MAINTLOCK, "hold", "-t", "dream", *options]
    client = lock.start("-c", CLIENT, *argv, program=sys.executable, stdin=subprocess.PIPE, start_new_session=True)
    pid, _, line = client.until_line("{").partition(" ")
    return client, int(pid), dict(json.loads(line))


def refusal(lock: Lock) -> str:
    """Return what somebody else is told who asks now, empty if they get the lease."""
    done = lock.wrap("-t", "other", "-E", "75", "--", "true", start_new_session=True)
    assert done.returncode == (75 if done.stderr else 0)
    return done.stderr


def test_granted(lock: Lock) -> None:
    """The one line of a grant names it, with what its children's environment needs; closing standard input ends it (R2)."""
    running = start(lock, "--owner", "ada")
    said = hear(running)
    fields = lock.sidecar()

    assert (said["event"], said["lease_id"], said["fence"], said["task"]) == ("granted", fields["lease_id"], 1, "dream")
    assert said["env"]["MAINTLOCK_HELD"] == f"heavy-maintenance:{fields['lease_id']}:{running.pid}"
    assert (fields["mode"], fields["job_pid"], fields["owner"]) == ("coprocess", os.getpid(), "ada")
    assert "held by dream (owner ada" in refusal(lock)
    assert running.end() == (0, "", "")
    assert ends(lock) == [("dream", "released", "completed")]


def test_deferred(lock: Lock) -> None:
    """The one line of a deferral says why and who; the exit code is the wrapper's (R3, L3)."""
    holder = lock.hold("backup", start_new_session=True)

    running = start(lock, "-E", "75")
    said = hear(running)

    assert (said["event"], said["reason_code"], said["holder"]["pid"]) == ("deferred", "lease-held", holder.pid)
    code, _, sentence = running.end()
    assert code == 75 and "dream deferred due to active heavy-maintenance lease: held by backup (" in sentence


@pytest.mark.parametrize(
    ("words", "code", "outcome"),
    [
        (b"", 0, "completed"),
        (b"0\n", 0, "completed"),
        (b"3", 3, "failed"),
        (b"begun 0\nfailed 1\n", 1, "failed"),
        (b"bye\n", 0, "completed"),
        (b"256\n", 0, "completed"),
        (b"\xff\x00" * 100_000, 0, "completed"),
    ],
    ids=["none", "0", "3", "many", "others", "256", "bytes"],
)
def test_the_last_words_of_the_client(lock: Lock, words: bytes, code: int, outcome: str) -> None:
    """A number written before the end is the work's exit code; other words mean nothing."""
    running = start(lock)
    hear(running)

    running.popen.communicate(words)

    assert running.popen.returncode == code
    (ended,) = told(lock, event="released")
    assert (ended["outcome"], ended["exit_code"]) == (outcome, code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it(lock: Lock, number: int) -> None:
    """Without a descriptor of the client's a signal ends the grant, as stopped."""
    running = start(lock)
    hear(running)

    running.signal(number)

    assert running.popen.wait() == 128 + number
    assert ends(lock) == [("dream", "released", "stopped")]
    assert not is_locked(places(lock).lock)


# With the client's own descriptor


def test_the_descriptor_is_locked(lock: Lock) -> None:
    """With `--fd` the client's descriptor carries the lock: the helper's death frees nothing, the client's then does (L2)."""
    client, helper, said = start_client(lock)
    assert said["event"] == "granted"
    kill(helper)
    until(lambda: lock.status()["state"] == "orphaned")

    assert f"held by survivors of dream (pids {client.pid})" in refusal(lock)
    assert f"pid {client.pid} (" in lock.status()["detail"]
    crash(client)

    assert refusal(lock) == ""
    assert ends(lock)[0] == ("dream", "stale_cleaned", "lost")


def test_the_clients_descriptor_counts_where_the_lock_file_is_replaced(lock: Lock) -> None:
    """Helper killed and lock file replaced: the client still has the lock on the old one, and nobody else gets the lease."""
    client, helper, _ = start_client(lock)
    kill(helper)
    until_gone(helper)
    os.unlink(places(lock).lock)

    assert f"pid {client.pid} (" in lock.status()["detail"]
    assert f"held by survivors of dream (pids {client.pid})" in refusal(lock)
    assert [row["reason_code"] for row in told(lock, event="collision")] == ["lockfile_replaced"]
    crash(client)

    assert refusal(lock) == ""
    assert ends(lock)[0] == ("dream", "stale_cleaned", "lost")


def test_a_killed_client_leaves_its_end_unknown(lock: Lock) -> None:
    """A client that was killed has not completed its work, although its end of the pipe closes before it is gone (L3)."""
    client, helper, _ = start_client(lock)

    client.signal(signal.SIGKILL)
    until_gone(helper)

    assert ends(lock) == [("dream", "released", "unknown")]
    assert [row["exit_code"] for row in told(lock, event="released")] == [None]


@pytest.mark.parametrize(
    ("words", "code", "outcome"), [(b"0\n", 0, "completed"), (b"3\n", 3, "failed"), (None, None, "unknown")]
)
def test_the_outcome_file(lock: Lock, tmp_path: Path, words: bytes | None, code: int | None, outcome: str) -> None:
    """With `--outcome` the end is told there as by the wrapper; of an end that nobody saw no exit code is invented."""
    path = tmp_path / "outcome.json"
    path.write_text("{}")
    client, helper, said = start_client(lock, "--outcome", str(path))
    assert not path.exists()
    if words is None:
        client.signal(signal.SIGKILL)
    else:
        client.popen.communicate(words)
    until_gone(helper)

    found = json.loads(path.read_text())
    about = (found["outcome"], found["exit_code"], found["task"], found["lease_id"])
    assert about == (outcome, code, "dream", said["lease_id"])


@pytest.mark.parametrize(
    ("options", "code", "outcome"),
    [(["-E", "9"], 9, "deferred"), (["--", "true"], 64, "not_run"), (["--nonsense"], 64, "not_run")],
    ids=["deferred", "command", "option"],
)
def test_the_outcome_file_where_there_is_no_grant(
    lock: Lock, tmp_path: Path, options: list[str], code: int, outcome: str
) -> None:
    """A deferral and a wrong command line are told in the outcome file, too."""
    lock.hold("backup", start_new_session=True)
    path = tmp_path / "outcome.json"
    path.write_text("{}")

    assert start(lock, "--outcome", str(path), *options).end()[0] == code

    found = json.loads(path.read_text())
    assert (found["outcome"], found["exit_code"], found["task"]) == (outcome, code, "dream")


def test_a_signal_is_passed_on_to_the_client(lock: Lock) -> None:
    """With `--fd` a signal is told to the client, and the lease stays until that has let go, or is dead (R1)."""
    lock.directory.mkdir(mode=0o700)
    fd = os.open(places(lock).lock, os.O_RDWR | os.O_CREAT, 0o600)
    running = start(lock, "--fd", str(fd), pass_fds=[fd])
    hear(running)

    running.signal(signal.SIGTERM)

    assert hear(running) == {"event": "stop_requested", "signal": signal.SIGTERM}
    assert "held by dream" in refusal(lock)
    running.signal(signal.SIGTERM)
    running.popen.communicate(b"0\n")
    assert running.popen.returncode == 128 + signal.SIGTERM
    assert refusal(lock) == ""
    assert ends(lock)[0] == ("dream", "released", "stopped")
    os.close(fd)


def test_the_wrong_file_is_told(lock: Lock) -> None:
    """A client whose descriptor is not the lock file is told which file that is (64)."""
    with open(os.devnull, "r+b") as other:
        running = start(lock, "--fd", str(other.fileno()), pass_fds=[other.fileno()])
        said = hear(running)

    assert said == {"event": "refused", "path": places(lock).lock}
    code, _, err = running.end()
    assert code == 64 and f"is not {places(lock).lock}" in err
    assert told(lock) == []


def test_without_a_task(lock: Lock) -> None:
    """Who names no task is told how this program takes it (64)."""
    done = subprocess.run([MAINTLOCK, "hold"], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stderr.strip()) == (
        64,
        "maintlock: no task given; say which one this is: maintlock hold -t NAME",
    )


@pytest.mark.parametrize("fd", ["1", "x", "-1", "99999999", "987654"])
def test_no_descriptor(lock: Lock, fd: str) -> None:
    """What is no open descriptor is refused (64)."""
    done = start(lock, f"--fd={fd}").end()

    assert done[0] == 64 and "--fd" in done[2]


def test_two_grants_of_one_client(lock: Lock) -> None:
    """A client that brings a descriptor of its own asks for itself: its second request does not join its first (R1)."""
    lock.directory.mkdir(mode=0o700)
    fds = [os.open(places(lock).lock, os.O_RDWR | os.O_CREAT, 0o600) for _ in range(2)]
    ours = {"start_new_session": False}
    first = start(lock, "--fd", str(fds[0]), pass_fds=fds, **ours)
    token = hear(first)["env"]

    second = start(lock, "--fd", str(fds[1]), pass_fds=fds, task="backup", **ours)
    inside = start(lock, "--fd", str(fds[1]), pass_fds=fds, task="kbSync", env=lock.env(**token), **ours)

    assert hear(second)["event"] == "deferred"
    assert hear(inside)["event"] == "granted"
    assert inside.end()[0] == first.end()[0] == 0
    assert [row["task"] for row in told(lock, event="nested_started")] == ["kbSync"]
    for fd in fds:
        os.close(fd)


def test_children_know_of_the_grants_around(lock: Lock) -> None:
    """`env` names the grants around this one too: of another lease, it would lose them otherwise."""
    done = lock.wrap("-t", "outer", "--lease", "gpu", "--", MAINTLOCK, "hold", "-t", "dream")

    held = json.loads(done.stdout)["env"]["MAINTLOCK_HELD"]
    assert [grant.split(":")[0] for grant in held.split()] == ["gpu", "heavy-maintenance"]


# Clients that do not behave


def test_a_client_that_has_stopped_reading(lock: Lock) -> None:
    """A client that has closed its end learns nothing, so that nothing stays held; of a deferral it is no fault (0)."""
    read_end, write_end = os.pipe()
    os.close(read_end)

    def answered(*options: str) -> tuple[int, str]:
        done = subprocess.run(
            [MAINTLOCK, "hold", "-t", "dream", *options], env=lock.env(), stdin=subprocess.PIPE, stdout=write_end,
            stderr=subprocess.PIPE, text=True, start_new_session=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        return done.returncode, done.stderr

    code, err = answered()
    assert (code, err.count("\n")) == (128 + signal.SIGPIPE, 1) and "the client does not read" in err
    assert ends(lock) == [("dream", "released", "stopped")]
    lock.hold("backup", start_new_session=True)
    code, err = answered()
    assert code == 0 and err.count("\n") == 1 and "deferred" in err
    os.close(write_end)


@pytest.mark.parametrize("how", ["closes", "term"])
def test_a_client_whose_pipe_is_full(lock: Lock, how: str) -> None:
    """A client that never reads, so that not even one line fits, can still leave or be stopped, and the lease is free."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write_end, b"x" * 4096)
    os.set_blocking(write_end, True)
    running = subprocess.Popen(
        [MAINTLOCK, "hold", "-t", "dream"],
        env=lock.env(),
        stdin=subprocess.PIPE,
        stdout=write_end,
        start_new_session=True,
    )
    assert running.stdin is not None
    until((lock.directory / "heavy-maintenance.json").exists, "the grant")

    running.stdin.close() if how == "closes" else running.send_signal(signal.SIGTERM)

    assert running.wait(PATIENCE_SECONDS) == (0 if how == "closes" else 128 + signal.SIGTERM)
    assert refusal(lock) == ""
    running.stdin.close()
    for fd in (read_end, write_end):
        os.close(fd)


def test_a_client_that_leaves_the_queue(lock: Lock) -> None:
    """A client that closes standard input while it waits does not wait any more; nothing is said (0)."""
    lock.hold("backup", start_new_session=True)
    running = start(lock, "--wait", "forever", "-q")
    until(lambda: waiting(lock) == ["dream"], "the waiter")

    assert running.end() == (0, "", "")
    assert waiting(lock) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--exec"],
        ["-o"],
        ["--max-runtime", "1s"],
        ["--stop-grace", "1s"],
        ["--", "true"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_what_is_about_a_command(lock: Lock, options: list[str]) -> None:
    """What only makes sense with a command is refused in one line (64)."""
    code, said, err = start(lock, *options).end()

    assert (code, said, err.count("\n")) == (64, "", 1)


def test_without_standard_input(lock: Lock) -> None:
    """With standard input at its end from the start the grant ends at once."""
    running = start(lock, stdin=subprocess.DEVNULL)

    assert running.popen.wait(PATIENCE_SECONDS) == 0
    assert ends(lock) == [("dream", "released", "completed")]


def test_without_standard_input_behind_a_waiter(lock: Lock) -> None:
    """A request that does not wait is told that others do, also with standard input at its end from the start."""
    lock.hold("backup", start_new_session=True)
    until_queued(lock, start(lock, "--wait", "forever", task="first"))

    code, said, err = start(lock, "-E", "9", stdin=subprocess.DEVNULL).end()

    assert (code, json.loads(said)["reason_code"]) == (9, "queued")
    assert "dream deferred due to active heavy-maintenance lease: held by backup (" in err


def test_help(lock: Lock) -> None:
    """`--help` explains it, and takes nothing."""
    code, said, _ = start(lock, "--help").end()

    assert code == 0 and "maintlock hold -t NAME" in said
    assert all(len(line) <= 80 for line in said.splitlines())
    assert not lock.directory.exists()
