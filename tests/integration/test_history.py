from __future__ import annotations

import contextlib
import io
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from maintlock import cli, ledger
from tests.protocol import leave_crashed, told
from tests.support import MAINTLOCK, PATIENCE_SECONDS, WRAP, Lock, until

FIELDS = "at event task lease lease_id source reason pid reason_code blocked_by parent_task seconds exit_code outcome".split()


def show(lock: Lock, *arguments: str, **more: str) -> str:
    """Return what `maintlock history` prints."""
    env = {name: value for name, value in lock.env().items() if name != "COLUMNS"}
    done = subprocess.run(
        [MAINTLOCK, "history", *arguments],
        env={**env, **more},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def brief(rows: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    """Return event, task and outcome of rows."""
    return [(row["event"], row["task"], row["outcome"]) for row in rows]


def settle(lock: Lock) -> None:
    """Enter into the ledger what waits for it."""
    ledger.drain(str(lock.directory), now=time.time())


def rows_of(lock: Lock) -> list[dict[str, Any]]:
    """Return what `maintlock history --json` prints."""
    return [json.loads(text) for text in show(lock, "--json").splitlines()]


def test_one_grant_is_two_rows(lock: Lock) -> None:
    """A grant is one `acquired` and one end with its outcome, each with exactly the fields of the contract."""
    lock.wrap("-t", "kbSync", "--reason", "nightly", "--", "sh", "-c", "exit 3")
    rows = rows_of(lock)
    assert [list(row) for row in rows] == [FIELDS, FIELDS]
    assert brief(rows) == [("acquired", "kbSync", None), ("released", "kbSync", "failed")]
    assert rows[0]["lease_id"] == rows[1]["lease_id"]
    assert (rows[1]["exit_code"], rows[1]["reason"], rows[1]["source"]) == (3, "nightly", "cli")
    assert rows[1]["seconds"] > 0


@pytest.mark.parametrize("first_is", ["waiting", "entered"])
def test_same_before_and_after_the_ledger(lock: Lock, first_is: str) -> None:
    """What waits for the ledger is history already, and is not told twice once it is there."""
    lock.wrap("-t", "a", "--", "true")
    if first_is == "entered":
        settle(lock)
    lock.wrap("-t", "b", "--", "true")
    expected = [
        (event, task, outcome) for task in "ab" for event, outcome in (("acquired", None), ("released", "completed"))
    ]
    assert brief(rows_of(lock)) == expected


def test_deferral_names_who_was_in_the_way(lock: Lock) -> None:
    """A deferral is a row of its own, with blocker and cause, and is no success (L3, R9)."""
    lock.hold("backup")
    lock.wrap("-t", "kbSync", "--", "true")
    (row,) = lock.history(event="deferred")
    assert (row["task"], row["blocked_by"], row["reason_code"], row["outcome"]) == (
        "kbSync",
        "backup",
        "lease-held",
        None,
    )
    assert "backup (lease-held)" in show(lock)


def test_nested_work_names_its_parent(lock: Lock) -> None:
    """A joined job is visible under its own name with its parent (R7)."""
    lock.wrap("-t", "primary-dev-sync", "--", WRAP, "-t", "kbSync", "--", "true")
    rows = lock.history(task="kbSync")
    assert [(row["event"], row["parent_task"]) for row in rows] == [
        ("nested_started", "primary-dev-sync"),
        ("nested_finished", "primary-dev-sync"),
    ]
    assert "in primary-dev-sync" in show(lock)


def test_people_see_how_joined_jobs_ended(lock: Lock) -> None:
    """The table has the result of a joined job beside its exit code; the rows for programs have no outcome for it."""
    script = f"{WRAP} -t bad -- sh -c 'exit 3'; {WRAP} -t good -- true"
    lock.wrap("-t", "outer", "--", "sh", "-c", script)
    for _ in range(2):
        ends = {line.split()[3]: line.rstrip() for line in show(lock).splitlines() if "nested_finished" in line}
        assert ends["bad"].endswith("failed (3)") and ends["good"].endswith("completed")
        assert {row["outcome"] for row in lock.history(event="nested_finished")} == {None}
        settle(lock)


def test_end_that_its_wrapper_could_not_tell(lock: Lock) -> None:
    """An end that stands in the lock's line is told although the events of its wrapper are lost."""
    lock.wrap("-t", "kbSync", "--", "true")
    lease_id = lock.history()[0]["lease_id"]
    (lock.directory / "ledger.pending").write_bytes(b"")
    rows = lock.history()
    assert brief(rows) == [("acquired", "kbSync", None), ("released", "kbSync", "completed")]
    assert {row["lease_id"] for row in rows} == {lease_id}


def test_crash_has_a_beginning_and_then_one_end(lock: Lock) -> None:
    """A crashed grant has begun; its end is told by the next one, once, as lost (L1)."""
    leave_crashed(lock, "backup")
    (lock.directory / "ledger.pending").write_bytes(b"")
    assert brief(lock.history()) == [("acquired", "backup", None)]
    assert lock.wrap("-t", "kbSync", "--", "true").returncode == 0
    for _ in range(2):
        assert brief(lock.history(task="backup")) == [("acquired", "backup", None), ("stale_cleaned", "backup", "lost")]
        settle(lock)
    ends = [row["lease_id"] for row in lock.history() if row["outcome"]]
    assert len(ends) == len(set(ends)) == 2


def test_running_grant_has_begun(lock: Lock) -> None:
    """A grant that goes on has one beginning and no end."""
    lock.hold("kbSync")
    until(lambda: told(lock, event="acquired"), "its beginning to be told")
    (lock.directory / "ledger.pending").write_bytes(b"")
    assert brief(lock.history()) == [("acquired", "kbSync", None)]


def test_selection(lock: Lock) -> None:
    """`--task`, `--event`, `--since`, `--lease` and `--limit` select; the newest stay, oldest first."""
    for task in ("a", "b", "a"):
        lock.wrap("-t", task, "--", "true")
    lock.wrap("-t", "c", "--lease", "other", "--", "true")

    def shown(*arguments: str) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert cli.main(["history", "--state-dir", str(lock.directory), "--config", "none", *arguments]) == 0
        return out.getvalue()

    def tasks(*arguments: str) -> list[str]:
        return [json.loads(text)["task"] for text in shown("--json", *arguments).splitlines()]

    assert tasks() == ["a", "a", "b", "b", "a", "a", "c", "c"]
    assert tasks("--task", "b") == ["b", "b"]
    assert tasks("--event", "released") == ["a", "b", "a", "c"]
    assert tasks("--limit", "3") == ["a", "c", "c"]
    assert tasks("--limit", "0") == []
    assert tasks("--lease", "other") == ["c", "c"]
    for selection in ("--task=nosuch", "--event=collision", "--since=1ms", "--lease=typo", "--limit=0"):
        assert shown(selection) == "no event matches\n"
    assert tasks("--since", "1h") == tasks()
    assert tasks("--since", "0s") == []
    ats = [json.loads(text)["at"] for text in shown("--json").splitlines()]
    assert ats == sorted(ats)


def test_people_see_the_newest(lock: Lock) -> None:
    """For people the table ends with the newest 50, unless they say otherwise."""
    events = "".join(
        json.dumps(
            {"id": f"e{n}", "event": "deferred", "at": f"2026-05-16T19:00:{n:02d}.000Z", "lease": "x", "task": f"t{n}"}
        )
        + "\n"
        for n in range(60)
    )
    lock.directory.mkdir(mode=0o700)
    (lock.directory / "ledger.pending").write_text(events)
    (lock.directory / "ledger.pending").chmod(0o600)
    lines = show(lock).splitlines()
    assert (len(lines), "t10" in lines[1], "t59" in lines[-1]) == (51, True, True)
    assert len(show(lock, "--limit", "60").splitlines()) == 61
    assert len(show(lock, "--json").splitlines()) == 60


def test_hostile_events_are_harmless(lock: Lock, tmp_path: Path) -> None:
    """Whatever stands in `ledger.pending`, JSON stays JSON, and a terminal sees no control character."""
    nasty = {
        "id": "x",
        "event": "deferred",
        "at": "2026-05-16T19:36:21.072Z",
        "lease": "h",
        "task": "\x1b[31m[red]\n\udc80",
    }
    lock.directory.mkdir(mode=0o700)
    content = json.dumps(nasty).encode() + b"\n{\xff\n[]\n" + b"[" * 50_000 + b"\n"
    (lock.directory / "ledger.pending").write_bytes(content)
    (lock.directory / "ledger.pending").chmod(0o600)
    (text,) = show(lock, "--json").splitlines()
    assert text.isascii() and json.loads(text)["event"] == "deferred"
    shown = show(lock)
    assert "\x1b" not in shown and len(shown.splitlines()) == 2


def test_unreadable_ledger_is_told(lock: Lock) -> None:
    """A ledger that is no database is an error with its name, not an empty history."""
    lock.directory.mkdir(mode=0o700)
    (lock.directory / "ledger.db").write_bytes(b"no database" * 1000)
    (lock.directory / "ledger.db").chmod(0o600)
    done = subprocess.run(
        [MAINTLOCK, "history"], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, done.stdout, "ledger.db" in done.stderr) == (73, "", True)


@pytest.mark.parametrize("form", ["--json", "table"])
def test_what_waits_is_told_without_the_ledger(lock: Lock, form: str) -> None:
    """Beside a corrupt ledger what waits for it is told, and then what is wrong, with 73 (L12)."""
    lock.wrap("-t", "kbSync", "--", "true")
    (lock.directory / "ledger.db").write_bytes(b"no database" * 1000)
    (lock.directory / "ledger.db").chmod(0o600)
    arguments = ["history", "--task", "kbSync", *(["--json"] if form == "--json" else [])]
    done = subprocess.run(
        [MAINTLOCK, *arguments], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, "ledger.db: corrupt" in done.stderr) == (73, True)
    if form == "--json":
        assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["acquired", "released"]
    else:
        assert "acquired kbSync" in done.stdout and "released kbSync" in done.stdout


def test_table_without_a_terminal_keeps_names_whole(lock: Lock) -> None:
    """What is piped into another program is not shortened; on 80 columns nothing is wrapped."""
    task = "a-task-with-a-name-of-sixty-four-letters-which-is-all-it-can-bear"[:64]
    lock.wrap("-t", task, "--", "true")
    assert task in show(lock)
    narrow = show(lock, COLUMNS="80").splitlines()
    assert len(narrow) == 3
    assert max(map(len, narrow)) <= 80
