"""Real npm, the example's real scripts: who works, who stands back, and what is told of it."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from tests.e2e.project import FILES, FIRST_OPERATION, TASKS, Project
from tests.support import WRAP, until

NESTED = "ai:primary-dev-sync"


def ours(stderr: str) -> list[str]:
    """Return what maintlock said, without what npm did."""
    return [line for line in stderr.splitlines() if line.startswith("maintlock: ")]


def deferral(task: str, holder: str, pid: int) -> str:
    """Return the pattern of the sentence of a deferral."""
    return (
        f"maintlock: {task} deferred due to active heavy-maintenance lease: "
        rf"held by {holder} \(owner \S+@\S+, pid {pid}, for \S+, reason manual\)"
    )


def test_manual_scripts_stand_back(project: Project) -> None:
    """Each manual script stands back while one works, that one itself included: one sentence names its owner, nothing is
    done, and the exit code is 0 (R3, R13, R14).
    """
    project.make_database()
    holder = project.hold("ai:backup")
    pid = project.lock.sidecar()["pid"]
    before = sorted(project.gate.directory.iterdir())

    for script, task in TASKS.items():
        stood_back = project.npm(script)
        (sentence,) = ours(stood_back.stderr)
        assert re.fullmatch(deferral(task, "backup", pid), sentence)
        assert stood_back.returncode == 0

    assert sorted(project.gate.directory.iterdir()) == before
    assert [end[0] for end in project.finish(holder)] == [0]
    rows = project.lock.history(event="deferred")
    assert [row["task"] for row in rows] == list(TASKS.values())
    expected = {"blocked_by": "backup", "source": "npm", "reason_code": "lease-held"}
    assert all(expected.items() <= row.items() for row in rows)


@pytest.mark.parametrize("script", TASKS)
def test_manual_script_works(project: Project, script: str) -> None:
    """A manual script whose turn it is does its work under the lease as its task, with npm as its source (R3)."""
    project.make_database()
    holder = project.hold(script)
    held = project.lock.sidecar()

    (ended,) = project.finish(holder)

    assert (held["task"], held["source"]) == (TASKS[script], "npm")
    assert ended[0] == 0
    assert f"{script}: done in" in ended[1]
    (row,) = project.lock.history(event="released")
    assert (row["task"], row["outcome"], row["exit_code"]) == (TASKS[script], "completed", 0)


def test_failing_script_fails_under_npm(project: Project) -> None:
    """A guarded script's own failure goes through npm unchanged, and is no deferral (L3)."""
    failed = project.npm("ai:backup")

    assert (failed.returncode, ours(failed.stderr)) == (1, [])
    assert "no database yet" in failed.stderr
    (row,) = project.lock.history(outcome="failed")
    assert (row["task"], row["exit_code"]) == ("backup", 1)


def test_deferral_has_an_exit_code_on_request(project: Project) -> None:
    """Who wants to tell a deferral from a success asks for an exit code, and gets it through npm (L3)."""
    project.make_database()
    holder = project.hold("ai:sync-kb")

    asked = project.npm("ai:backup", env=project.env(MAINTLOCK_DEFER_EXIT_CODE="75"))
    project.configure_tasks("defer_exit_code = 76")
    configured = project.npm("ai:backup")

    assert [asked.returncode, configured.returncode] == [75, 76]
    project.finish(holder)


def test_task_comes_from_the_npm_script(project: Project) -> None:
    """Without `-t` the configuration says which task an npm script is, and without that the script's name does."""
    project.set_scripts(**{
        "ai:sync-kb": "maintlock-wrap -- printenv MAINTLOCK_TASK",
        "db:vacuum all": "maintlock-wrap -- printenv MAINTLOCK_TASK",
    })  # fmt: skip

    configured, named = project.npm("--silent", "ai:sync-kb"), project.npm("--silent", "db:vacuum all")

    assert (configured.stdout, named.stdout) == ("kbSync\n", "db:vacuum-all\n")


def test_task_is_needed_past_npm(project: Project) -> None:
    """Past npm, with nothing that says which task it is, the job is not run (64)."""
    refused = project.run(WRAP, "--", "echo", "ran")

    assert (refused.returncode, refused.stdout) == (64, "")


# Compound scripts


def test_compound_script_is_one_job(project: Project) -> None:
    """A script of several commands under one wrap is one grant, of which nothing runs when it is held (R14)."""
    project.make_database()
    project.set_scripts(
        both="maintlock-wrap -t both -- sh -c 'printenv MAINTLOCK_LEASE_ID && printenv MAINTLOCK_LEASE_ID'"
    )
    holder = project.hold("ai:sync-kb")

    held = project.npm("--silent", "both")
    project.finish(holder)
    free = project.npm("--silent", "both")

    assert (held.returncode, held.stdout) == (0, "")
    first, second = free.stdout.split()
    assert (free.returncode, first) == (0, second)


def test_what_follows_a_deferral(project: Project) -> None:
    """`wrap … && next` goes on after a deferral, for that is no failure, unless an exit code was asked for."""
    project.set_scripts(
        goes_on="maintlock-wrap -t half -- echo half && echo next",
        stops="maintlock-wrap -t half -E 75 -- echo half && echo next",
    )
    holder = project.hold("ai:sync-kb")

    goes_on, stops = project.npm("--silent", "goes_on"), project.npm("--silent", "stops")

    assert (goes_on.returncode, goes_on.stdout) == (0, "next\n")
    assert (stops.returncode, stops.stdout) == (75, "")
    project.finish(holder)


# Nested work


def test_nested_sync_joins_and_is_seen(project: Project) -> None:
    """`npm run ai:sync-kb` inside primary-dev-sync takes part in its lease, is seen there as kbSync, and is recorded as
    its own success with its parent (R7, L7).
    """
    project.make_remote()
    project.push("news")
    project.gate.shut()
    outer = project.start_npm(NESTED)
    project.until_at_work(outer, "known")

    seen = until(lambda: (status := project.lock.status())["nested"] and status, "the part to be told")
    stood_back = project.npm("ai:backup")
    (ended,) = project.finish(outer)

    assert (seen["state"], seen["holder"]["task"]) == ("held", "primary-dev-sync")
    assert [one["task"] for one in seen["nested"]] == ["kbSync"]
    assert "held by primary-dev-sync (" in stood_back.stderr
    assert ended[0] == 0
    (finished,) = project.lock.history(event="nested_finished")
    expected = {"task": "kbSync", "parent_task": "primary-dev-sync", "exit_code": 0, "source": "npm"}
    assert expected.items() <= finished.items()
    assert "clone/news.md" in [path for (path,) in project.query("SELECT path FROM documents")]
    assert [row["task"] for row in project.lock.history(outcome="completed")] == ["primary-dev-sync"]
    assert project.lock.history(event="deferred", task="kbSync") == []


def test_nested_sync_whose_lease_has_gone_to_another(project: Project) -> None:
    """A nested sync whose parent's lease is somebody else's by then stands back, as a deferred row with its parent and
    never a success, and what the pull owes is made up for by the next run (R7, L8, L15).
    """
    project.make_remote()
    project.push("news")
    slow_git = project.home / "git"
    os.mkfifo(project.home / "go")
    slow_git.write_text(
        f'#!/bin/sh\n[ -e ~/begun ] || {{ : > ~/begun; read go < ~/go; }}\nexec {shutil.which("git")} "$@"\n',
        encoding="utf-8",
    )
    slow_git.chmod(0o755)
    left_behind = (
        '(PATH=$HOME:$PATH maintlock repo-sync; echo "left with $?") & until [ -e ~/begun ]; do sleep 0.01; done'
    )
    wrap = [WRAP, "-t", "primary-dev-sync", "--hold-until", "main"]
    parent = project.start(*wrap, "--", "sh", "-c", left_behind)
    parent.popen.wait()
    holder = project.hold("ai:sync-kb")

    (project.home / "go").write_text("go\n", encoding="utf-8")
    left = parent.until_line("left with")
    project.finish(holder)

    assert left == "left with 0"
    (row,) = project.lock.history(event="deferred")
    expected = {"task": "kbSync", "parent_task": "primary-dev-sync", "blocked_by": "kbSync"}
    assert expected.items() <= row.items()
    assert project.lock.history(event="nested_finished") == []

    assert project.npm(NESTED).returncode == 0
    (made_up,) = project.lock.history(event="nested_finished")
    assert (made_up["task"], made_up["exit_code"]) == ("kbSync", 0)


# Past npm


@pytest.mark.parametrize("script", TASKS)
def test_script_started_past_npm(project: Project, script: str) -> None:
    """The scripts guard themselves when they are started with node, and take the lease as their task (R17)."""
    project.make_database()
    project.gate.shut()
    alone = project.start("node", FILES[script])
    project.until_at_work(alone, FIRST_OPERATION[script])
    held = project.lock.sidecar()
    (ended,) = project.finish(alone)

    assert (held["task"], ended[0]) == (TASKS[script], 0)


# Real work


def test_unguarded_jobs_meet_in_the_database(project: Project) -> None:
    """Jobs under two state directories, which are two locks, work on the database at the same time (L9): what the guard
    prevents is real.
    """
    project.make_database()
    project.gate.shut()
    one = project.start_npm("ai:backup")
    project.until_at_work(one, "backup")
    other = project.start_npm(
        "ai:run-sandman", env={**project.env(), "MAINTLOCK_STATE_DIR": str(project.top / "other")}
    )
    project.until_at_work(other, "dream")

    ends = project.finish(one, other)

    assert [end[0] for end in ends] == [0, 0]
    assert project.query("SELECT * FROM met") == [("dream", "backup")]


def test_guarded_jobs_never_meet(project: Project) -> None:
    """Four jobs started at once, each told to wait, all do their work, and no two of them are in the database at the
    same time (R1).
    """
    project.make_database()
    project.configure_tasks('wait = "10m"')

    ends = [one.end() for one in [project.start_npm(script) for script in TASKS]]

    assert [end[0] for end in ends] == [0, 0, 0, 0]
    assert sorted(row["task"] for row in project.lock.history(outcome="completed")) == sorted(TASKS.values())
    assert project.query("SELECT * FROM met") == []
    assert all(project.gate.arrivals(operation) for operation in FIRST_OPERATION.values())
