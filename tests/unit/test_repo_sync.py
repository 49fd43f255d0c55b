from __future__ import annotations

import json
import os
import subprocess
from argparse import Namespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import launch, options, owed
from maintlock.command import parsed as parsed_arguments
from maintlock.errors import ConfigError, UsageError
from maintlock.owed import Debt
from maintlock.paths import Places
from maintlock.reposync import git
from maintlock.reposync.cascade import Ending, ending_of, exit_code_of, reason_text
from maintlock.reposync.command import REPO_SYNC, guarded, own_task, roots_of, then_of
from maintlock.reposync.sweep import shown_root
from maintlock.reposync.sync import Found, Result, decided, line_of
from maintlock.settings import FOREVER, Config, RepoSyncSettings, TaskSettings
from maintlock.times import MAX_SECONDS
from tests.support import until

A, B, C = "a" * 40, "b" * 40, "c" * 40


def settings(*tasks: TaskSettings, repo_sync: RepoSyncSettings | None = None) -> Config:
    """Return a configuration of some tasks."""
    named = {task.name: task for task in tasks}
    return Config(leases={}, tasks=named, daemons={}, path="/p/maintlock.toml", directory="/p", repo_sync=repo_sync)


# What follows from what was found


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Found(ahead=0, behind=0), ("up-to-date", "")),
        (Found(ahead=2, behind=0), ("up-to-date", "2 commits ahead")),
        (Found(ahead=0, behind=0, changed=3, unfinished="a merge"), ("up-to-date", "")),
        (Found(ahead=1, behind=2), ("local-divergence", "1 ahead, 2 behind")),
        (Found(ahead=1, behind=2, changed=3), ("local-divergence", "1 ahead, 2 behind")),
        (Found(ahead=0, behind=1, changed=1), ("dirty", "1 file changed")),
        (Found(ahead=0, behind=1, changed=2), ("dirty", "2 files changed")),
        (Found(ahead=0, behind=1, unfinished="a merge"), ("dirty", "a merge is in progress")),
        (Found(ahead=0, behind=1, changed=2, unfinished="a rebase"), ("dirty", "a rebase is in progress")),
        (Found(ahead=0, behind=1), ("pulled", "1 commit")),
        (Found(ahead=0, behind=12), ("pulled", "12 commits")),
    ],
)
def test_of_several_reasons_to_skip_the_first_is_told(found: Found, expected: tuple[str, str]) -> None:
    """What is up to date is so whatever its tree looks like, divergence comes before dirt, and else it is pulled (R7)."""
    assert decided(found) == expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"outcome": "pulled", "before": A, "after": B, "detail": "3 commits"}, "pulled aaaaaaa..bbbbbbb (3 commits)"),
        ({"outcome": "pulled", "after": B, "detail": "1 commit"}, "pulled bbbbbbb (1 commit)"),
        ({"outcome": "up-to-date", "before": A, "after": A}, "up-to-date"),
        ({"outcome": "up-to-date", "detail": "2 commits ahead"}, "up-to-date (2 commits ahead)"),
        ({"outcome": "dirty", "detail": "2 files changed"}, "skipped, dirty (2 files changed)"),
        ({"outcome": "not-a-repository"}, "skipped, not-a-repository"),
        ({"outcome": "failed", "detail": "git fetch: no"}, "failed: git fetch: no"),
    ],
)
def test_each_result_is_one_line(result: dict[str, str], expected: str) -> None:
    """People read one line for each repository: its name, the outcome, and what makes it so."""
    assert line_of(Result(root="/x/neo", **result), "../neo") == f"../neo: {expected}"


@pytest.mark.parametrize(
    ("root", "directory", "expected"),
    [
        ("/home/a/neo", "/home/a/project", "../neo"),
        ("/home/a/neo", "/home/a/neo", "."),
        ("/srv/neo", "/home/a/b/c/d", "/srv/neo"),
        ("/home/a/n\ne\x1bo", "/home/a", "n\\ne\\x1bo"),
    ],
)
def test_a_root_is_called_by_its_shorter_path(root: str, directory: str, expected: str) -> None:
    """A root is named as from the working directory where that is shorter, and cannot steer a terminal."""
    assert shown_root(root, directory) == expected


# Git


def test_git_asks_nobody() -> None:
    """Git is told to ask nobody, to speak plainly and to stay in the repository it is started in, and keeps the rest."""
    given_environment = {
        "GIT_DIR": "/elsewhere", "GIT_INDEX_FILE": "x", "LANGUAGE": "de", "LC_ALL": "de_DE.UTF-8", "GIT_ASKPASS": "ask-me",
        "HTTPS_PROXY": "p", "GIT_SSL_CAINFO": "c", "MAINTLOCK_FD": "9", "MAINTLOCK_HELD": "h:1:2",
    }  # fmt: skip
    found = git.environment(given_environment)
    assert {"GIT_DIR", "GIT_INDEX_FILE", "LANGUAGE", "MAINTLOCK_FD"}.isdisjoint(found)
    assert (found["LC_ALL"], found["GIT_TERMINAL_PROMPT"], found["SSH_ASKPASS_REQUIRE"]) == ("C", "0", "never")
    assert found["GIT_ASKPASS"].endswith("false")
    assert (found["HTTPS_PROXY"], found["GIT_SSL_CAINFO"], found["MAINTLOCK_HELD"]) == ("p", "c", "h:1:2")


@pytest.mark.parametrize(
    ("err", "expected"),
    [
        ("", "failed without an error message"),
        ("hint: x\nfatal: no path\nhint: y\n", "fatal: no path"),
        ("one\ntwo\n\n", "two"),
        ("error: a\nfatal: b\n", "error: a; fatal: b"),
        ("fatal: 'https://me:pw@h/x' not found\n", "fatal: 'https://me:***@h/x' not found"),
        ("fatal: \x1b[2Jgone\a\n", "fatal: \\x1b[2Jgone\\x07"),
        ("fatal: x\udcff\n", "fatal: x\\udcff"),
        ("fatal: " + "x" * 999, "fatal: " + "x" * 293 + "…"),
        (
            "fatal: Unable to create '/r/.git/index.lock': File exists.\n\nAnother git process seems to be running\n",
            "another git is running here, or died here; if none is running any more: rm /r/.git/index.lock",
        ),
    ],
)
def test_what_git_says_is_fit_to_be_shown(err: str, expected: str) -> None:
    """Of git's words those that matter are shown, in one line, without credentials and control characters."""
    assert git.meant(err) == expected


# What is owed


def debt(number: int, **fields: str) -> Debt:
    """Return a debt."""
    usual = {"config": "/p", "task": "kbSync", "root": "/neo", "before": A, "after": B, "at": f"day {number}"}
    return Debt(id=str(number), **{**usual, **fields})


def test_a_later_pull_of_the_same_root_keeps_the_beginning() -> None:
    """What one root owes is one debt, from the first pull that was not made up for to the last (L15)."""
    found = owed.with_debt([debt(1), debt(2, root="/other")], debt(3, before=B, after=C))
    assert found == [debt(2, root="/other"), debt(3, before=A, after=C, at="day 1")]


@pytest.mark.parametrize("other", [{"config": "/q"}, {"task": "summary"}, {"root": "/other"}])
def test_debts_of_others_are_their_own(other: dict[str, str]) -> None:
    """Another configuration's, another task's and another root's debts are debts of their own (L15)."""
    assert owed.with_debt([debt(1, **other)], debt(2)) == [debt(1, **other), debt(2)]


def test_what_is_paid_is_what_was_owed_before_the_run() -> None:
    """A debt that came while the task ran is not cleared by that run (L15)."""
    assert owed.without([debt(1), debt(2, root="/b"), debt(3, root="/c")], {"1", "2"}) == [debt(3, root="/c")]


def test_a_pull_that_git_refused_owes_nothing_new() -> None:
    """A debt that was written down for nothing is taken back, and what was owed before stays owed (L15)."""
    before = [debt(1), debt(2, root="/other")]
    now = owed.with_debt(before, debt(3, after=C))
    assert sorted(owed.taken_back(now, debt(3, after=C), before), key=lambda d: d.id) == before
    assert owed.taken_back([], debt(3), before) == []


def test_tasks_are_those_of_one_configuration() -> None:
    """A pass makes up for what its own configuration owes (L9, L15)."""
    debts = [debt(1), debt(2, root="/b"), debt(3, task="summary"), debt(4, config="/q")]
    assert owed.tasks_of(debts, "/p") == {"kbSync": {"1", "2"}, "summary": {"3"}}


ENTRY = {"id": "1", "config": "/p", "task": "kbSync", "root": "/neo", "before": A, "after": B, "at": "day 1"}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"schema":1}', b'{"schema":1,"owed":{}}',
        b'{"schema":2,"owed":[]}', b'{"schema":1,"owed":[1]}', b'{"schema":1,"owed":[{}]}',
        json.dumps({"schema": 1, "owed": [{**ENTRY, "task": "../x"}]}).encode(),
        json.dumps({"schema": 1, "owed": [{**ENTRY, "root": None}]}).encode(),
        json.dumps({"schema": 1, "owed": [ENTRY]}).encode()[:-9],
    ],
    ids=range(15),
)  # fmt: skip
def test_a_record_that_is_none_of_ours_is_told_apart(content: bytes) -> None:
    """A torn or hostile record is told apart from one that says that nothing is owed (L12)."""
    assert owed.parsed(content) is None


@given(st.lists(st.text(), min_size=5, max_size=5))
def test_a_record_reads_as_it_was_written(texts: list[str]) -> None:
    """What was written down reads back, whatever paths look like."""
    names = ("config", "root", "before", "after", "at")
    debts = (debt(1, **dict(zip(names, texts, strict=True))), debt(2))
    assert owed.parsed(owed.encoded(debts)) == debts


# What runs after a pull


@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        ({"outcome": "completed"}, 0, ("completed", 0)),
        ({"outcome": "failed"}, 5, ("failed", 5)),
        ({"outcome": "timed_out"}, 124, ("timed_out", 124)),
        ({"outcome": "deferred"}, 0, ("deferred", 0)),
        ({"outcome": "deferred"}, 75, ("deferred", 75)),
        ({"outcome": "stopped"}, 0, ("stopped", 1)),
        ({"outcome": "stopped"}, -2, ("stopped", 130)),
        ({"outcome": "completed"}, -9, ("completed", 137)),
        ({"outcome": "not_run"}, 73, ("not_run", 73)),
        ({}, 0, ("unknown", 1)),
        ({}, -9, ("unknown", 137)),
        ({}, 127, ("unknown", 127)),
        ({"outcome": 1}, 0, ("unknown", 1)),
    ],
)
def test_only_a_run_to_its_end_is_a_success(
    fields: dict[str, Any] | None, status: int, expected: tuple[str, int]
) -> None:
    """An exit code of 0 is a success only where the outcome file says that the task has run to its end (L3)."""
    found = ending_of(fields, status)
    assert (found.outcome, found.exit_code) == expected
    assert found.is_success == (expected == ("completed", 0))


OK, HELD = Ending(outcome="completed", exit_code=0), Ending(outcome="deferred", exit_code=75)
BAD = Ending(outcome="failed", exit_code=5)


@pytest.mark.parametrize(
    ("endings", "has_failed_root", "expected"),
    [
        ([], False, 0),
        ([], True, 1),
        ([OK], False, 0),
        ([OK], True, 1),
        ([HELD], False, 0),
        ([HELD], True, 1),
        ([BAD], False, 5),
        ([BAD], True, 5),
        ([OK, BAD], False, 5),
        ([HELD, BAD], True, 5),
        ([Ending(outcome="completed", exit_code=0, signal=15)], False, 143),
    ],
)
def test_the_exit_code(endings: list[Ending], has_failed_root: bool, expected: int) -> None:  # noqa: FBT001  a table
    """A failure of the nested task is ours with its exit code, a deferral is none, and a failed repository is 1 (R7)."""
    assert (
        exit_code_of({str(n): ending for n, ending in enumerate(endings)}, has_failed_root=has_failed_root) == expected
    )


@pytest.mark.parametrize(("parent", "expected"), [(None, "cascaded-from-primary-dev-sync"), ("x", "cascaded-from-x")])
def test_the_reason_names_the_parent(parent: str | None, expected: str) -> None:
    """What runs after a pull says whose pull it was (R7)."""
    assert reason_text(parent) == expected


# The command line


def test_the_roots() -> None:
    """The roots are those of the command line, else those of the configuration, absolute and each once."""
    configured = settings(repo_sync=RepoSyncSettings(roots=("/a", "/b", "/a")))
    assert roots_of([], configured, "/w") == ["/a", "/b"]
    assert roots_of(["x", "../y", "./x"], configured, "/w") == ["/w/x", "/y"]
    with pytest.raises(UsageError, match=r"\[repo_sync\]\nroots = "):
        roots_of([], settings(), "/w")


def test_the_task_after_a_pull() -> None:
    """What runs after a pull is the command line's or the configuration's, and has to be a task with a command (R7)."""
    some = TaskSettings(name="a", command=("x",)), TaskSettings(name="b", command=("x",)), TaskSettings(name="none")
    configured = settings(*some, repo_sync=RepoSyncSettings(roots=("/a",), then="a"))
    assert (then_of(None, configured), then_of("b", configured), then_of(None, settings())) == ("a", "b", None)
    with pytest.raises(UsageError, match="--then c: expected the name of a task"):
        then_of("c", configured)
    with pytest.raises(ConfigError, match=r"^/p/maintlock.toml: tasks.none.command: found nothing, expected a program"):
        then_of("none", configured)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("maintlock", "repo-sync"), "mine"),
        (("/opt/bin/maintlock", "repo-sync", "--json"), "mine"),
        (("nice", "maintlock", "repo-sync"), "mine"),
        (("maintlock", "status"), "primary-dev-sync"),
        (("repo-sync",), "primary-dev-sync"),
        (None, "primary-dev-sync"),
    ],
)
def test_by_hand_we_are_the_task_whose_command_is_ours(command: tuple[str, ...] | None, expected: str) -> None:
    """Started by hand, it is the configured task that it is the command of (R1)."""
    assert own_task(settings(TaskSettings(name="mine", command=command))) == expected


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--json", "--no-then", "/r"],
        ["--then", "kbSync", "--timeout", "90s", "--config", "x.toml", "--lease", "l", "/a b", "/-c"],
        ["--allow-network-fs"],
    ],
)
def test_under_the_lease_it_is_asked_for_the_same(argv: list[str]) -> None:
    """Started by hand, it starts itself under the lease with the same wishes (R1)."""
    said = parsed_arguments("repo-sync", REPO_SYNC, argv)
    wrapped = guarded(said, "mine", said.roots, Places(directory="/s", lease="x"))
    outer = options.parse(wrapped[1:])
    options.check_together(outer)
    assert (outer.task, outer.state_dir, outer.config, outer.lease) == ("mine", "/s", said.config, said.lease)
    assert outer.command[1] == "repo-sync"
    again = parsed_arguments("repo-sync", REPO_SYNC, outer.command[2:])
    assert vars(again) == vars(Namespace(**{**vars(said), "guarded": True, "state_dir": "/s", "lease": None}))


# How a task is started


@given(st.floats(min_value=0, max_value=MAX_SECONDS))
def test_a_duration_is_said_as_the_command_line_reads_it(seconds: float) -> None:
    """A configured duration reaches the wrapper as it is, and more than nothing never as nothing."""
    read = options.wait_seconds(launch.duration_argument(seconds))
    assert read == pytest.approx(seconds, rel=1e-9, abs=2e-9)
    assert (read == 0) == (seconds == 0)


def test_a_task_is_started_with_all_its_settings() -> None:
    """A task's wrapper is told all of its settings, and reads no configuration of its own (R2)."""
    task = TaskSettings(
        name="kbSync", command=("npm", "run", "-w"), lease="other", wait=FOREVER, defer_exit_code=75, max_runtime=7200.0,
        stop_grace=0.0, ttl=5.0,
    )  # fmt: skip
    argv = launch.wrap_arguments(task, directory="/s", ttl_seconds=5.0, reason="-r", source="orchestrator")
    assert argv[0].endswith("maintlock-wrap")
    said = options.parse(argv[1:])
    expected = {
        "task": "kbSync", "lease": "other", "wait": FOREVER, "defer_exit_code": 75, "max_runtime": 7200.0, "stop_grace": 0.0,
        "ttl": 5.0, "state_dir": "/s", "config": "none", "reason": "-r", "source": "orchestrator",
        "command": ["npm", "run", "-w"],
    }  # fmt: skip
    assert {name: getattr(said, name) for name in expected} == expected


def test_what_is_not_configured_is_not_said() -> None:
    """What a task leaves open stays open: it stands back at once, and is not limited."""
    argv = launch.wrap_arguments(
        TaskSettings(name="a", command=("x",)), directory="/s", ttl_seconds=9.0, reason="due"
    )  # fmt: skip
    said = options.parse(argv[1:])
    assert (said.wait, said.defer_exit_code, said.max_runtime, said.stop_grace, said.source) == (None,) * 5


@pytest.mark.parametrize("has_waitid", [True, False])
def test_a_child_that_has_ended_is_not_reaped(monkeypatch: pytest.MonkeyPatch, *, has_waitid: bool) -> None:
    """Whether git has ended is told without reaping it, also where Python has no waitid(2)."""
    if not has_waitid:
        monkeypatch.delattr(os, "waitid")
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert not git.has_ended(child)
        child.kill()
        until(lambda: git.has_ended(child), "the end")
        os.kill(child.pid, 0)
