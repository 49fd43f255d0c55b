"""`maintlock doctor`: each thing that can be wrong is found, named, and mended by the command that it tells."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from maintlock import __version__, filesystem, launch, ledger, pending, process
from maintlock.checkup import features, scripts, state
from maintlock.checkup.facts import Facts
from maintlock.checkup.finding import Finding, notice, problem
from maintlock.checkup.table import CHECKS, Check, examined
from maintlock.cli import main
from maintlock.doctor import as_json, as_text
from tests.protocol import (
    LEASE,
    PROBES,
    PYTHON,
    crash,
    edit_line,
    edit_sidecar,
    kill,
    leave_crashed,
    places,
    survivor_of_a_crash,
    until_gone,
)
from tests.support import BIN, PATIENCE_SECONDS, Lock, until
from tests.terminal import state as state_of

ALONE = (PYTHON, str(PROBES / "alone.py"))
PATHS = f"{BIN}:{os.environ['PATH']}"
DAEMON = "setsid sleep 1000 & echo ready $!; read x"
Row = dict[str, Any]


def doctor(lock: Lock, *arguments: str, cwd: Path | None = None, **env: str) -> tuple[int, list[Row]]:
    """Return exit code and findings of `maintlock doctor --json`."""
    done = subprocess.run(
        [*ALONE, "doctor", "--json", *arguments], cwd=cwd or lock.directory.parent, env=lock.env(**env),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    said = json.loads(done.stdout)
    assert list(said) == ["ok", "findings"]
    assert said["ok"] is (done.returncode == 0)
    assert all(list(row) == ["check", "level", "text", "mend"] for row in said["findings"])
    return done.returncode, said["findings"]


def found(lock: Lock, level: str, check: str, *arguments: str, **more: Any) -> list[Row]:
    """Return what one check finds of a level."""
    rows = doctor(lock, *arguments, **more)[1]
    return [row for row in rows if (row["level"], row["check"]) == (level, check)]


def the_problem(lock: Lock, check: str, *arguments: str, **more: Any) -> Row:
    """Return the one thing that is wrong, which this check has found."""
    code, rows = doctor(lock, *arguments, **more)
    wrong = [row for row in rows if row["level"] == "problem"]
    assert [row["check"] for row in wrong] == [check], wrong
    assert code == 1
    return wrong[0]


def mend(lock: Lock, row: Row, *, add: str = "", cwd: Path | None = None) -> None:
    """Run the command that mends it."""
    done = subprocess.run(
        ["sh", "-c", row["mend"] + add], cwd=cwd or lock.directory.parent, env=lock.env(EDITOR="true"),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, (row["mend"], done.stderr)
    assert "deferred" not in done.stderr, done.stderr  # which is no failure, and mends nothing


def assert_well(lock: Lock, *arguments: str, **more: Any) -> list[Row]:
    """Nothing is wrong; return the notices."""
    code, rows = doctor(lock, *arguments, **more)
    assert [row for row in rows if row["level"] == "problem"] == []
    assert code == 0
    notices = [row for row in rows if row["level"] == "notice"]
    assert not any((row["mend"] or "").startswith(("maintlock stop", "kill", "rm")) for row in notices), notices
    return notices


def first_job(lock: Lock) -> None:
    """Have a job run, with everything about it in the ledger."""
    lock.wrap("-t", "first", "--", "true")
    ledger.drain(str(lock.directory), now=time.time())


def write(path: Path, text: str) -> Path:
    """Write a file that only we may write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


# All is well


def test_where_nothing_was_ever_locked(lock: Lock) -> None:
    """Before the first job nothing is wrong, each check says what is in order, and no file is made."""
    rows = doctor(lock)[1]
    assert_well(lock)
    assert {row["check"] for row in rows} == {check.name for check in CHECKS}
    assert not lock.directory.exists()
    assert not Path(os.environ["XDG_STATE_HOME"]).exists()


def test_after_a_job_and_during_one(lock: Lock) -> None:
    """Neither a job that has ended nor one that runs is anything wrong, nor is one that waits."""
    first_job(lock)
    assert_well(lock)
    lock.hold("backup")
    lock.start("-t", "patient", "-w", "forever", "--", "true")
    until(lambda: lock.status()["waiters"], "the waiter")
    assert_well(lock)
    assert "held by backup" in found(lock, "ok", "lease")[0]["text"]


def test_looking_changes_nothing(lock: Lock) -> None:
    """No file is made, written or removed, and a job that asks for the lease meanwhile gets it (L12)."""
    first_job(lock)
    lock.wrap("-t", "second", "--", "true")

    def seen() -> dict[str, tuple[int, int, int]]:
        stats = {entry.name: entry.stat() for entry in os.scandir(lock.directory)}
        own = {name: found for name, found in stats.items() if not name.startswith("ledger.db-")}  # SQLite's own
        return {name: (found.st_ino, found.st_size, found.st_mtime_ns) for name, found in own.items()}

    before = seen()
    doctor(lock)
    assert seen() == before


# Files


def directory_for_all(lock: Lock) -> None:
    """Let everybody write to the state directory."""
    lock.directory.chmod(0o777)


def lock_for_all(lock: Lock) -> None:
    """Let everybody write to the lock file."""
    (lock.directory / f"{LEASE}.lock").chmod(0o666)


def unreadable_lock(lock: Lock) -> None:
    """Take our own right to read away."""
    (lock.directory / f"{LEASE}.lock").chmod(0o200)


def ledger_for_all(lock: Lock) -> None:
    """Let everybody write to the ledger."""
    (lock.directory / "ledger.db").chmod(0o602)


def lock_is_a_directory(lock: Lock) -> None:
    """Put a directory in the lock's place."""
    (lock.directory / f"{LEASE}.lock").unlink()
    (lock.directory / f"{LEASE}.lock").mkdir()


def flag_is_a_symlink(lock: Lock) -> None:
    """Put a symlink in the place of the waiters' flag."""
    (lock.directory / f"{LEASE}.queue").unlink(missing_ok=True)
    (lock.directory / f"{LEASE}.queue").symlink_to("/etc/passwd")


def directory_is_a_symlink(lock: Lock) -> None:
    """Put a symlink in the state directory's place."""
    lock.directory.rename(lock.directory.with_name("real"))
    lock.directory.symlink_to("real")


def parent_for_all(lock: Lock) -> None:
    """Let everybody rename the state directory."""
    lock.directory.parent.chmod(0o777)


@pytest.mark.parametrize(
    "spoil",
    [
        directory_for_all, lock_for_all, unreadable_lock, ledger_for_all, lock_is_a_directory, flag_is_a_symlink,
        directory_is_a_symlink, parent_for_all,
    ],
)  # fmt: skip
def test_unsafe_permissions(lock: Lock, spoil: Callable[[Lock], None]) -> None:
    """What somebody else could write, what we cannot read, and what is of another kind is told, and mended (L12)."""
    first_job(lock)
    spoil(lock)
    row = the_problem(lock, "permissions")
    assert str(lock.directory.parent) in row["text"]
    mend(lock, row)
    assert_well(lock)


def test_a_directory_that_was_never_ours(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was named as state directory by mistake is not to be changed, and what others have in it is not judged."""
    lock.directory.mkdir()
    lock.directory.chmod(0o777)
    write(lock.directory / "x.lock", "").chmod(0o666)
    environ = {"MAINTLOCK_STATE_DIR": str(lock.directory)}
    named = only(state.permissions(facts(lock, monkeypatch, state_dir=None, environ=environ)))
    assert "use a directory that is yours alone" in named.text and named.mend == "unset MAINTLOCK_STATE_DIR"
    assert only(state.permissions(facts(lock, monkeypatch))).mend is None  # it is on our command line
    lock.directory.chmod(0o755)
    assert list(state.permissions(facts(lock, monkeypatch))) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_somebody_elses_file(lock: Lock) -> None:
    """A record that belongs to somebody else is told with its owner."""
    lock.wrap("-t", "first", "--", "true")
    os.chown(lock.directory / f"{LEASE}.lock", 4242, -1)
    row = the_problem(lock, "permissions")
    assert "belongs to uid 4242" in row["text"]
    mend(lock, row)
    assert_well(lock)


def test_readable_by_others(lock: Lock) -> None:
    """That others may read along is a notice, not wrong."""
    lock.wrap("-t", "first", "--", "true")
    lock.directory.chmod(0o755)
    (row,) = [row for row in assert_well(lock) if row["check"] == "permissions"]
    mend(lock, row)
    assert lock.directory.stat().st_mode & 0o777 == 0o700


def test_an_invalid_configuration(lock: Lock, tmp_path: Path) -> None:
    """A wrong key is told with its file, and the other checks are made all the same."""
    config = write(tmp_path / "maintlock.toml", "poll_intervall = 3\n")
    row = the_problem(lock, "configuration")
    assert str(config) in row["text"] and "poll_intervall" in row["text"]
    mend(lock, row)
    config.write_text("", encoding="utf-8")
    assert_well(lock)


def test_a_task_that_nothing_can_start(lock: Lock, tmp_path: Path) -> None:
    """An interval without a command is to know: no orchestrator ever starts that task."""
    write(tmp_path / "maintlock.toml", '[tasks.kbSync]\ninterval = "1h"\n[tasks.backup]\n')
    (row,) = found(lock, "notice", "configuration")
    assert row["text"].startswith("tasks.kbSync has interval and no command") and "EDITOR" in row["mend"]


def test_a_configuration_for_all(lock: Lock, tmp_path: Path) -> None:
    """A configuration that everybody may write is refused everywhere, so it is told how to mend that."""
    config = write(tmp_path / "maintlock.toml", "")
    config.chmod(0o666)
    row = the_problem(lock, "configuration")
    assert "everybody may write" in row["text"]
    mend(lock, row)
    assert_well(lock)


def test_a_configuration_that_is_not_there(lock: Lock) -> None:
    """A file that was named and does not exist is told, not fallen over."""
    row = the_problem(lock, "configuration", "--config", "/nonexistent.toml")
    assert "/nonexistent.toml" in row["text"]


# Facts that this machine does not have


def facts(lock: Lock, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Facts:
    """Return the facts as they are here, seen by this process."""
    monkeypatch.setattr(process, "read_pids", lambda: [os.getpid()])
    options = {
        "state_dir": str(lock.directory),
        "config_file": "none",
        "lease": None,
        "environ": {**os.environ, "PATH": PATHS},
    }
    return Facts(**{**options, "cwd": "/", **more})


def only(findings: Any) -> Finding:
    """Return the one finding."""
    (one,) = findings
    assert isinstance(one, Finding)
    return one


def test_a_network_filesystem(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that may share its locks, or have none, is wrong; one that cannot be told is a notice."""
    monkeypatch.setattr(filesystem, "read_type", lambda _: "nfs4")
    wrong = only(state.filesystems(facts(lock, monkeypatch, state_dir=None, environ={})))
    assert wrong.level == "problem" and "nfs4" in wrong.text and "MAINTLOCK_STATE_DIR" in (wrong.mend or "")
    monkeypatch.setattr(filesystem, "read_type", lambda _: "")
    assert only(state.filesystems(facts(lock, monkeypatch))).level == "notice"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"f_flag": os.ST_RDONLY}, "read-only"), ({"f_bavail": 1}, "full"), ({"f_files": 9, "f_favail": 0}, "full")],
)
def test_a_disk_without_room(
    lock: Lock, monkeypatch: pytest.MonkeyPatch, change: Mapping[str, int], words: str
) -> None:
    """A disk that is full or read-only is wrong, for no job can be put on record."""
    real = os.statvfs("/")
    values = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")} | {"f_flag": 0}
    room = type("Room", (), {**values, "f_bavail": 1 << 30, "f_files": 0, **change})
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    wrong = only(state.filesystems(facts(lock, monkeypatch)))
    assert words in wrong.text and (words == "full") == ("make room" in wrong.text)


def test_a_platform_without_proc(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is told with what that costs, and is nothing wrong."""
    monkeypatch.setattr(process, "_constants", {})  # what is found out without it must not outlive the test
    monkeypatch.setattr(process, "PROC", "/nonexistent")
    told = list(features.platform(facts(lock, monkeypatch)))
    assert told and {one.level for one in told} == {"notice"}
    assert "there is no /proc" in told[0].text and "unknown" in told[0].text
    wrong = [one for one in examined(facts(lock, monkeypatch)) if one.level == "problem"]
    assert wrong == []


def test_a_container(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pid namespace of our own the processes outside cannot be seen, which is told."""
    monkeypatch.setattr(process, "pid_namespace", lambda: "4026530000")
    assert any("pid namespace" in one.text for one in features.platform(facts(lock, monkeypatch)))


# Records


@pytest.mark.parametrize("content", ["{", '{"schema": 1}'], ids=["torn", "short"])
def test_a_malformed_sidecar(lock: Lock, content: str) -> None:
    """A sidecar that is none is cleared away by the next job."""
    lock.wrap("-t", "first", "--", "true")
    write(lock.directory / f"{LEASE}.json", content)
    row = the_problem(lock, "records")
    assert "malformed" in row["text"]
    mend(lock, row)
    assert found(lock, "problem", "records") == []


@pytest.mark.parametrize("how", ["malformed", "missing"])
def test_a_lost_sidecar_while_held(lock: Lock, how: str) -> None:
    """Without its sidecar a holder is an unknown owner to all others, until it ends."""
    holder = lock.hold("backup", script="echo ready; exec sleep 1000")
    sidecar = lock.directory / f"{LEASE}.json"
    until(lambda: lock.sidecar()["job_pid"], "the last time that it is written")
    sidecar.unlink() if how == "missing" else sidecar.write_text("x")
    row = the_problem(lock, "records")
    assert f"is {how} while the lease is held" in row["text"]
    mend(lock, row, add=" --yes")
    holder.popen.wait()
    assert_well(lock)


def test_a_sidecar_of_another_system(lock: Lock) -> None:
    """A record of another running system keeps all jobs from running, and may be removed if it is an error."""
    leave_crashed(lock)
    edit_sidecar(lock, boot_id="11111111-2222-3333-4444-555555555555", hostname="elsewhere")
    assert lock.wrap("-t", "next", "--", "true").returncode == 73
    row = next(row for row in found(lock, "problem", "records") if "elsewhere" in row["text"])
    mend(lock, row)
    assert lock.wrap("-t", "next", "--", "true").returncode == 0
    assert found(lock, "problem", "records") == []


def test_a_sidecar_of_another_lease(lock: Lock) -> None:
    """A record that was copied from another lease is told and removed."""
    leave_crashed(lock)
    edit_sidecar(lock, lease="other")
    row = next(row for row in found(lock, "problem", "records") if "another lease" in row["text"])
    mend(lock, row)
    assert found(lock, "problem", "records") == []


def test_a_damaged_line(lock: Lock) -> None:
    """A lock file whose line cannot be read is told, and gets a new line from the next job."""
    lock.wrap("-t", "first", "--", "true")
    with open(lock.directory / f"{LEASE}.lock", "r+b") as file:
        file.seek(20)
        file.write(b"?")
    row = the_problem(lock, "records")
    assert "damaged" in row["text"]
    mend(lock, row)
    assert_well(lock)


# The ledger


def test_a_corrupt_ledger(lock: Lock) -> None:
    """A ledger that is no database is put aside, and a new one begins."""
    first_job(lock)
    (lock.directory / "ledger.db").write_bytes(b"no database" * 1000)
    row = the_problem(lock, "ledger")
    assert "corrupt" in row["text"]
    mend(lock, row)
    lock.wrap("-t", "second", "--", "true")
    assert_well(lock)
    assert (lock.directory / "ledger.db.broken").exists()


def test_a_damaged_page(lock: Lock) -> None:
    """Damage that a plain read would miss is found."""
    first_job(lock)
    path = lock.directory / "ledger.db"
    with sqlite3.connect(path) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events_by_task'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    with open(path, "r+b") as file:
        file.seek((page - 1) * size + 3)
        file.write(b"\xff\xff\xff\xff")
    the_problem(lock, "ledger")


def test_a_ledger_of_a_newer_version(lock: Lock) -> None:
    """A ledger that a newer maintlock has written is version skew, told once, with how to upgrade."""
    first_job(lock)
    with sqlite3.connect(lock.directory / "ledger.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    row = the_problem(lock, "versions")
    assert "has schema 99" in row["text"] and "from a newer checkout" in row["text"] and "--upgrade ." in row["mend"]


def test_dropped_events(lock: Lock) -> None:
    """That the history is not whole is a notice."""
    lock.wrap("-t", "first", "--", "true")
    write(lock.directory / "ledger.dropped", f"{7:020d}\n")
    assert any("7 events were dropped" in row["text"] for row in assert_well(lock))


def test_waiting_events(lock: Lock) -> None:
    """Events that wait for the ledger are in order, as after every short job, and a notice only when they have done so for
    more than an hour; the next job of a second enters them.
    """
    first_job(lock)
    lock.wrap("-t", "second", "--exec", "--", "true")  # nobody is left to enter its beginning, however long it took
    (row,) = found(lock, "ok", "pending")
    assert "wait for the ledger" in row["text"] and row["mend"] is None
    assert [row for row in assert_well(lock) if row["check"] == "pending"] == []

    path = lock.directory / pending.PENDING
    events = [{**json.loads(line), "at": "2020-01-01T00:00:00.000Z"} for line in path.read_text().splitlines()]
    write(path, "".join(json.dumps(event) + "\n" for event in events))
    (row,) = [row for row in assert_well(lock) if row["check"] == "pending"]
    assert str(path) in row["text"] and "the oldest for " in row["text"]
    mend(lock, row)
    assert found(lock, "ok", "pending")[0]["text"] == "nothing waits for the ledger"


@pytest.mark.parametrize("content", ["no event\n", '{"id": "x", "event": "y"}\n' * 10_000], ids=["none", "many"])
def test_events_that_are_never_entered(lock: Lock, content: str) -> None:
    """What is no event, or more than any job leaves behind, is wrong."""
    lock.wrap("-t", "first", "--", "true")
    write(lock.directory / "ledger.pending", content)
    row = the_problem(lock, "pending")
    mend(lock, row)
    assert found(lock, "problem", "pending") == []


# The lease


def test_survivors(lock: Lock) -> None:
    """What works on of a killed job is named, and stopped (L2)."""
    with survivor_of_a_crash(lock, "backup") as survivor:
        row = the_problem(lock, "lease")
        assert str(survivor) in row["text"]
        mend(lock, row, add=" --yes")
        until_gone(survivor)
    assert_well(lock)


def test_a_suspended_holder(lock: Lock) -> None:
    """A holder that is suspended keeps everybody waiting, and is woken (L4)."""
    holder = lock.hold("backup")
    until(lambda: lock.sidecar()["job_pid"], "the last that it writes before it waits")
    holder.signal(signal.SIGSTOP)
    until(lambda: state_of(holder.pid) == "T")
    row = the_problem(lock, "lease")
    assert f"pid {holder.pid}" in row["text"]
    mend(lock, row)
    assert_well(lock)


def test_an_overdue_holder(lock: Lock) -> None:
    """A holder past its TTL is told, with how to stop it (L4)."""
    holder = lock.hold("backup", "--ttl", "1ms", script="echo ready; exec sleep 1000")
    row = the_problem(lock, "lease")
    assert "longer than its" in row["text"]
    mend(lock, row, add=" --yes")
    holder.popen.wait()  # it may still be entering its end, which keeps the ledger busy
    assert_well(lock)


def test_an_unknown_holder(lock: Lock) -> None:
    """Somebody who locked the file past us is named."""
    lock.wrap("-t", "first", "--", "true")
    stranger = lock.start(
        str(lock.directory / f"{LEASE}.lock"), "sh", "-c", "echo ready; exec sleep 1000", program="flock"
    )
    stranger.until_line("ready")
    row = the_problem(lock, "lease")
    assert f"{stranger.pid} (flock)" in row["text"]
    mend(lock, row, add=" --yes")
    assert_well(lock)


def test_a_replaced_lock_file(lock: Lock) -> None:
    """A lock file that was replaced under its holder is told, and so is who holds the former one."""
    holder = lock.hold("backup", script="echo ready; exec sleep 1000")
    (lock.directory / f"{LEASE}.lock").unlink()
    row = the_problem(lock, "lock file")
    assert f"pid {holder.pid}" in row["text"]
    mend(lock, row, add=" --yes")
    holder.popen.wait()
    assert_well(lock)


def test_a_replaced_lock_file_of_nobody_known(lock: Lock) -> None:
    """Also a process that is not on record is found by its lock on the file that was removed."""
    lock.wrap("-t", "first", "--", "true")
    path = lock.directory / f"{LEASE}.lock"
    stranger = lock.start(str(path), "sh", "-c", "echo ready $$; exec sleep 1000", program="flock")
    job = int(stranger.until_line("ready").split()[1])
    path.unlink()
    lock.wrap("-t", "next", "--", "true")
    rows = found(lock, "problem", "lock file")
    assert any(f"pid {stranger.pid}" in row["text"] for row in rows)
    for row in rows:
        mend(lock, row)
    stranger.popen.wait()
    until_gone(job)
    assert_well(lock)


def test_a_leaked_descriptor(lock: Lock) -> None:
    """A daemon that carries the lock of a job is a notice while that runs, and wrong once it alone keeps the lease."""
    holder = lock.start("-t", "backup", "--", "sh", "-c", DAEMON, stdin=subprocess.PIPE)
    daemon = int(holder.until_line("ready").split()[1])
    until(lambda: os.getsid(daemon) == daemon, "a session of its own")
    try:
        (row,) = [row for row in assert_well(lock) if row["check"] == "descriptors"]
        assert f"pid {daemon}" in row["text"] and "backup" in row["text"]
        assert row["mend"] is None  # it may be meant so
        crash(holder, until(lambda: lock.sidecar()["job_pid"], "the job"))
        row = next(row for row in found(lock, "problem", "descriptors") if f"pid {daemon}" in row["text"])
        mend(lock, row)
        until_gone(daemon)
    finally:
        kill(daemon)
    assert_well(lock)


# The project


def test_unguarded_scripts(lock: Lock, tmp_path: Path) -> None:
    """An npm script that looks heavy and bypasses the lease is told, also in a workspace, and guarded (L13)."""
    root = {"workspaces": ["packages/*"], "scripts": {"ai:backup": "node backup.mjs", "test": "node --test"}}
    write(tmp_path / "p" / "package.json", json.dumps(root))
    write(tmp_path / "p" / "packages" / "a" / "package.json", json.dumps({"scripts": {"reindex": "node reindex.mjs"}}))
    rows = found(lock, "problem", "npm scripts", cwd=tmp_path / "p")
    assert ["ai:backup" in rows[0]["text"], "reindex" in rows[1]["text"]] == [True, True]
    assert all("test" not in row["text"].partition("guarded: ")[2] for row in rows)
    for row in rows:
        mend(lock, row, cwd=tmp_path / "p")
    assert_well(lock, cwd=tmp_path / "p")


def test_heavy_scripts_that_cannot_be_guarded(lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heavy script that `guard` would refuse is no part of the command for the others, but a problem with its reason."""
    scripts_there = {"dump": "echo $1", "ai:backup": "node b.mjs", "ai-backup": "x", "ai.sync": "x", "ai/sync": "x"}
    path = write(tmp_path / "p" / "package.json", json.dumps({"scripts": scripts_there}))
    to_guard, *to_edit = scripts.scripts(facts(lock, monkeypatch, cwd=str(path.parent)))
    assert (to_guard.mend or "").endswith(" ai:backup ai-backup ai.sync ai/sync")
    assert [("dump" in one.text, "uses $1" in one.text, one.mend) for one in to_edit] == [
        (True, True, f"${{EDITOR:-vi}} {path}")
    ]


def test_a_broken_package_json(lock: Lock, tmp_path: Path) -> None:
    """A package.json that cannot be read is told, and stops no other check."""
    path = write(tmp_path / "p" / "package.json", "{")
    row = the_problem(lock, "npm scripts", cwd=tmp_path / "p")
    assert "not JSON" in row["text"] and row["mend"] == f"${{EDITOR:-vi}} {path}"


def test_npms_shell_that_is_not_there(lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script-shell that does not exist keeps npm from starting anything; the one that is told instead exists."""
    write(tmp_path / "p" / "package.json", "{}")
    write(tmp_path / "p" / ".npmrc", "script-shell=/nonexistent/maintlock-npm-shell\n")
    row = the_problem(lock, "npm scripts", cwd=tmp_path / "p")
    set_it = "npm config set --location=project script-shell="
    assert "/nonexistent/maintlock-npm-shell" in row["text"] and row["mend"] == f"{set_it}maintlock-npm-shell"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    here = facts(lock, monkeypatch, cwd=str(tmp_path / "p"))
    assert only(scripts.scripts(here)).mend == f"{set_it}{BIN}/maintlock-npm-shell"
    monkeypatch.setattr(launch, "program", lambda name: name)
    assert only(scripts.scripts(here)).mend == "pipx install ."


def test_a_heavy_process_outside_the_lease(lock: Lock, tmp_path: Path) -> None:
    """A heavy process is told while it runs outside the lease, and not inside it (L13)."""
    write(tmp_path / "maintlock.toml", '[tasks.kbSync]\nmatch = "syncKnowledgeBase.py"\n')
    script = write(tmp_path / "syncKnowledgeBase.py", "import time; print('ready', flush=True); time.sleep(1000)")
    lock.hold("kbSync", script=f"{PYTHON} {script}")
    assert_well(lock)
    outside = lock.start(str(script), program=PYTHON)
    outside.until_line("ready")
    until(lambda: found(lock, "problem", "processes"), "it to be more than a start")
    row = the_problem(lock, "processes")
    assert f"(pid {outside.pid})" in row["text"] and "kbSync" in row["text"]
    mend(lock, row)
    outside.popen.wait()
    assert_well(lock)


def test_heavy_tasks_under_several_leases(lock: Lock, tmp_path: Path) -> None:
    """Heavy tasks of two leases run beside each other, which is told; light ones do no harm (R1)."""
    config = write(tmp_path / "maintlock.toml", '[tasks.kbSync]\n[tasks.backup]\nlease = "other"\n')
    row = the_problem(lock, "leases")
    assert "kbSync" in row["text"] and "other: backup" in row["text"]
    assert str(config) in row["mend"]
    config.write_text('[tasks.kbSync]\n[tasks.backup]\nlease = "other"\nheavy = false\n', encoding="utf-8")
    assert_well(lock)


def test_a_task_under_the_wrong_lease(lock: Lock, tmp_path: Path) -> None:
    """A task that was started under another lease than its own is told; an unknown task under another is a notice."""
    lock.wrap("--lease", "other", "-t", "kbSync", "--", "true")
    assert any("other lease" in row["text"] for row in assert_well(lock) if row["check"] == "leases")
    write(tmp_path / "maintlock.toml", "[tasks.kbSync]\n")
    row = the_problem(lock, "leases")
    assert "belongs to heavy-maintenance" in row["text"] and "take --lease other out" in row["text"]
    assert row["mend"] is None


# Other state directories (L9)


def test_another_directory_in_use(lock: Lock, tmp_path: Path) -> None:
    """A job under another state directory is told with path and processes; the command only looks at it (L9)."""
    other = tmp_path / "other"
    holder = lock.hold("backup", env=lock.env(MAINTLOCK_STATE_DIR=str(other)))
    row = the_problem(lock, "directories")
    assert str(other) in row["text"] and f"(pid {holder.pid})" in row["text"]
    assert f"here it is {lock.directory} (MAINTLOCK_STATE_DIR)" in row["text"]
    assert row["mend"] == f"maintlock status --state-dir {other}"
    mend(lock, row)
    assert holder.popen.poll() is None


def test_the_same_directory_by_another_name(lock: Lock, tmp_path: Path) -> None:
    """A path that leads to the same directory is the same lock."""
    (tmp_path / "link").symlink_to(tmp_path)
    lock.hold("backup", env=lock.env(MAINTLOCK_STATE_DIR=str(tmp_path / "link" / "state")))
    assert_well(lock)


def test_a_waiter_elsewhere(lock: Lock, tmp_path: Path) -> None:
    """Also a directory that was named on the command line is found, by the lock files that are open (L9)."""
    other = tmp_path / "other"
    holder = lock.hold("backup", "--state-dir", str(other))
    edit = {"MAINTLOCK_STATE_DIR": str(lock.directory)}
    assert holder.popen.poll() is None
    row = the_problem(lock, "directories", **edit)
    assert str(other) in row["text"]


def test_an_environment_that_leads_elsewhere(lock: Lock, tmp_path: Path) -> None:
    """A process whose environment names a directory that nobody has used yet is a notice (L9)."""
    other = tmp_path / "other"
    shell = lock.start("1000", program="sleep", env=lock.env(MAINTLOCK_STATE_DIR=str(other)))
    (row,) = [row for row in assert_well(lock) if row["check"] == "directories"]
    assert str(other) in row["text"] and f"sleep (pid {shell.pid})" in row["text"]
    assert row["mend"] == f"export MAINTLOCK_STATE_DIR={lock.directory}"


def test_the_default_directory_is_for_us(lock: Lock) -> None:
    """That the default directory was used within a week is a notice; the command only looks at it (L9)."""
    default = Path(os.environ["XDG_STATE_HOME"]) / "maintlock"
    env = {name: value for name, value in lock.env().items() if name != "MAINTLOCK_STATE_DIR"}
    assert lock.wrap("-t", "backup", "--", "true", env=env).returncode == 0
    (row,) = [row for row in assert_well(lock) if row["check"] == "directories"]
    assert str(default) in row["text"] and "last used" in row["text"]
    week_old = time.time() - 8 * 86400
    edit_line(Lock(default), started_at=week_old, ended_at=week_old)
    assert [row for row in assert_well(lock) if row["check"] == "directories"] == []
    assert row["mend"] == f"maintlock status --state-dir {default}"


def test_a_directory_in_the_configuration(lock: Lock, tmp_path: Path) -> None:
    """A state_dir in the configuration is a notice, for whoever does not find that file uses another lock (L9)."""
    config = write(tmp_path / "project" / "maintlock.toml", 'state_dir = "state"\nhistory = "9d"\n')
    env = {"MAINTLOCK_STATE_DIR": ""}
    (row,) = [row for row in assert_well(lock, cwd=config.parent, **env) if row["check"] == "directories"]
    assert "project-local" in row["text"]
    lock.wrap("-t", "backup", "--", "true", env=lock.env(**env))
    default = found(lock, "notice", "directories", cwd=config.parent, **env)[1]["text"]
    assert os.environ["XDG_STATE_HOME"] in default and str(config.parent / "state") in default
    mend(lock, row)
    assert config.read_text() == 'history = "9d"\n'
    assert_well(lock, cwd=config.parent, **env)


# Versions


def stand_in(tmp_path: Path, interpreter: str, text: str) -> dict[str, str]:
    """Return an environment in which another `maintlock-wrap` comes first."""
    path = write(tmp_path / "bin" / "maintlock-wrap", f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return {"PATH": f"{path.parent}:{PATHS}"}


@pytest.mark.parametrize(("version", "words"), [("99.0.0", "upgrade"), ("0.0.1", "install")])
def test_a_wrapper_of_another_version(lock: Lock, tmp_path: Path, version: str, words: str) -> None:
    """The wrapper on PATH that is older or newer than we are is version skew."""
    row = the_problem(lock, "versions", **stand_in(tmp_path, "/bin/sh", f"echo maintlock-wrap {version}"))
    assert version in row["text"] and __version__ in row["text"] and words in row["mend"] and "checkout" in row["text"]


@pytest.mark.parametrize("text", ["exit 1", "echo hello", ""])
def test_a_wrapper_that_is_none(lock: Lock, tmp_path: Path, text: str) -> None:
    """A program of that name that does not tell our version is broken, or somebody else's."""
    row = the_problem(lock, "versions", **stand_in(tmp_path, "/bin/sh", text))
    assert "does not tell its version" in row["text"] and row["mend"] == f'export PATH={BIN}:"$PATH"'


def test_a_wrapper_of_another_installation(lock: Lock, tmp_path: Path) -> None:
    """The same version in another environment is a notice, because it is upgraded by itself."""
    other = tmp_path / "venv" / "bin" / "python3"
    other.parent.mkdir(parents=True)
    other.symlink_to(shutil.which("python3") or "")
    env = stand_in(tmp_path, str(other), f"print('maintlock-wrap {__version__}')")
    (row,) = [row for row in assert_well(lock, **env) if row["check"] == "versions"]
    assert str(other) in row["text"]


def test_no_wrapper_on_path(lock: Lock, tmp_path: Path) -> None:
    """Without the wrapper on PATH no guarded script starts, which is wrong where there are any (L13)."""
    (row,) = [row for row in assert_well(lock, PATH="/usr/bin:/bin") if row["check"] == "versions"]
    assert "not on PATH" in row["text"]
    write(tmp_path / "p" / "package.json", json.dumps({"scripts": {"x": "maintlock-wrap -t x -- node x.mjs"}}))
    row = the_problem(lock, "versions", PATH="/usr/bin:/bin", cwd=tmp_path / "p")
    assert row["mend"] == f'export PATH={BIN}:"$PATH"'


def test_a_sidecar_of_a_newer_version(lock: Lock) -> None:
    """A record of a newer schema than ours is version skew."""
    lock.hold("backup")
    path = lock.directory / f"{LEASE}.json"
    until(lambda: lock.sidecar()["job_pid"], "the last time that it is written")
    path.write_text(json.dumps({**lock.sidecar(), "schema": 2}), encoding="utf-8")
    assert "has schema 2" in the_problem(lock, "versions")["text"]


# How it is told


def test_a_broken_check_stops_no_other(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails is told as that, with what it had found before, and the others are made."""

    def broken(_: Facts) -> Any:
        yield notice("first")
        raise RuntimeError("boom")

    checks = (
        Check(name="a", fine="good", find=broken),
        Check(name="b", fine="good", find=lambda _: []),
        Check(name="c", fine="good", find=lambda facts: facts.nothing),  # type: ignore[attr-defined]  # not there on purpose
    )
    told = examined(facts(lock, monkeypatch), checks)
    assert [(one.check, one.level) for one in told] == [
        ("a", "notice"),
        ("a", "problem"),
        ("b", "ok"),
        ("c", "problem"),
    ]
    assert "RuntimeError: boom" in told[1].text and "please report it" in told[1].text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_directory(lock: Lock) -> None:
    """A state directory that we may not read is told by the checks that want to."""
    lock.wrap("-t", "first", "--", "true")
    lock.directory.chmod(0o000)
    assert found(lock, "problem", "permissions")
    lock.directory.chmod(0o700)


def test_people_see_what_is_wrong_first() -> None:
    """What is wrong stands first, each command whole on a line of its own, and hostile text is shown as text."""
    findings = [
        Finding(check="good", level="ok", text="is well", mend="never shown"),
        Finding(check="odd", level="notice", text="may be \x1b[31mmeant so"),
        Finding(check="bad", level="problem", text="is wrong " * 20, mend="chmod go-w " + "x" * 100),
    ]
    lines = as_text(findings, width=60, is_colored=False).splitlines()
    assert lines[0] == "✗ wrong"
    assert lines.index("✗ wrong") < lines.index("! notices") < lines.index("✓ in order")
    assert f"      → {findings[2].mend}" in lines
    assert max(len(line) for line in lines if "→" not in line) <= 60
    assert "\x1b" not in "".join(lines) and "never shown" not in "".join(lines)
    assert lines[-1] == "1 thing wrong, 1 notice"
    assert "\x1b[31m✗" in as_text(findings, width=60, is_colored=True)


def test_programs_get_one_line() -> None:
    """The JSON is one line, whatever the texts contain."""
    text = as_json([problem("a\nb\udcff\x1b", "rm 'c\nd'")])
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "ok": False, "findings": [{"check": "", "level": "problem", "text": "a\nb\udcff\x1b", "mend": "rm 'c\nd'"}],
    }  # fmt: skip


def test_people_read_it_without_a_terminal(lock: Lock, capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe there are no colours, and the exit code says the same as the text."""
    lock.wrap("-t", "first", "--", "true")
    lock.directory.chmod(0o777)
    code = main(["doctor", "--state-dir", str(lock.directory), "--config", "none"])
    said = capsys.readouterr().out
    assert code == 1
    assert f"chmod go-w {lock.directory}" in said and "\x1b" not in said


def test_no_home(lock: Lock) -> None:
    """Where there is no state directory to be found, that is told once per check that wants one, and nothing crashes."""
    env = {"HOME": "~", "XDG_STATE_HOME": "", "MAINTLOCK_STATE_DIR": ""}
    done = subprocess.run(
        [str(BIN / "maintlock"), "doctor"],
        env=lock.env(**env),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "no state directory" in done.stdout


def test_a_lease_by_name(lock: Lock) -> None:
    """With --lease only that one is looked at."""
    lock.wrap("-t", "first", "--lease", "a", "--", "true")
    write(lock.directory / "a.json", "x")
    assert found(lock, "problem", "records")
    assert found(lock, "problem", "records", "--lease", LEASE) == []
    assert places(lock, "a").sidecar in found(lock, "problem", "records", "--lease", "a")[0]["text"]
