"""`maintlock repo-sync`: every outcome with real repositories, and what a pull owes (R7, L7, L8, L15)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from maintlock import process
from tests.support import MAINTLOCK, PATIENCE_SECONDS, Lock, Running, until
from tests.terminal import CTRL_C, Opened

GIT_CONFIG = """\
[user]
name = Ada
email = ada@example.org
[init]
defaultBranch = main
[protocol]
allow = always
"""
SYNC = "primary-dev-sync"
REASON = "cascaded-from-primary-dev-sync"


def git_environment(directory: Path) -> dict[str, str]:
    """Return what makes git know nothing of the user's settings; `directory` has ours."""
    return {"GIT_CONFIG_GLOBAL": str(directory / "gitconfig"), "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(directory)}


class World:
    """A project with a `maintlock.toml`, a remote, a clone of it called `neo`, and somebody else who pushes."""

    def __init__(self, lock: Lock, directory: Path, template: Path) -> None:
        self.lock = lock
        self.directory = directory
        self.more_env = git_environment(directory)
        self.neo = directory / "neo"
        self.project = directory / "project"
        self.record = lock.directory / "repo-sync.owed"
        self.ran = directory / "ran"
        shutil.copytree(template, directory, symlinks=True, dirs_exist_ok=True)
        for clone in ("other", "neo"):
            settings = directory / clone / ".git/config"
            settings.write_text(settings.read_text().replace(str(template), str(directory)))
        self.project.mkdir()
        self.configure()

    @property
    def url(self) -> str:
        """Where the remote is."""
        return f"file://{self.directory}/up.git"

    @property
    def env(self) -> dict[str, str]:
        """The environment of all programs here."""
        return self.lock.env(**self.more_env)

    def configure(self, script: str = 'echo ran >> "$RAN"', *, roots: str = '"../neo"', more: str = "") -> None:
        """Write the configuration: `script` is what runs after a pull."""
        (self.project / "maintlock.toml").write_text(
            f"[tasks.kbSync]\ncommand = ['sh', '-c', '''{script}''']\nenv = {{ RAN = '{self.ran}' }}\n{more}\n"
            f"[tasks.{SYNC}]\ncommand = ['maintlock', 'repo-sync']\n[repo_sync]\nroots = [{roots}]\nthen = 'kbSync'\n"
        )

    def git(self, *arguments: str, at: str = ".") -> str:
        """Run git, which has to succeed."""
        done = subprocess.run(
            ["git", *arguments], cwd=self.directory / at, env=self.env, capture_output=True, text=True, check=True,
            timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        return done.stdout.strip()

    def commit(self, name: str, *, at: str, text: str = "x\n") -> None:
        """Commit a file."""
        (self.directory / at / name).write_text(text)
        self.git("add", "--", name, at=at)
        self.git("commit", "-m", name, at=at)

    def push(self, name: str, text: str = "x\n") -> str:
        """Have somebody else push a commit, and return it."""
        self.commit(name, at="other", text=text)
        self.git("push", "origin", "HEAD:main", at="other")
        return self.head("other")

    def head(self, at: str = "neo") -> str:
        """Return what is checked out."""
        return self.git("rev-parse", "HEAD", at=at)

    def run(self, *arguments: str, **more_env: str) -> subprocess.CompletedProcess[str]:
        """Run `maintlock repo-sync` by hand, to its end."""
        return subprocess.run(
            [MAINTLOCK, "repo-sync", *arguments], cwd=self.project, env={**self.env, **more_env}, capture_output=True,
            text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE_SECONDS,
        )  # fmt: skip

    def results(self, *arguments: str, **more_env: str) -> list[dict[str, str]]:
        """Run it, and return what it says of each repository."""
        done = self.run("--json", *arguments, **more_env)
        assert done.returncode in {0, 1}, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def outcome(self, *arguments: str, **more_env: str) -> tuple[str, str]:
        """Run it, and return outcome and detail of the one repository."""
        (result,) = self.results(*arguments, **more_env)
        return result["outcome"], result["detail"]

    def start(self, *arguments: str, **more_env: str) -> Running:
        """Start it by hand."""
        return self.lock.start(
            "repo-sync", *arguments, program=MAINTLOCK, env={**self.env, **more_env}, cwd=self.project
        )  # fmt: skip

    def owed(self) -> list[dict[str, str]]:
        """Return what is owed."""
        return json.loads(self.record.read_text())["owed"] if self.record.exists() else []

    def runs(self) -> int:
        """Return how often the task after the pull has come to its end."""
        return len(self.ran.read_text().split()) if self.ran.exists() else 0

    def hook(self, name: str, script: str) -> None:
        """Give `neo` a hook."""
        self.program(self.neo / ".git/hooks" / name, script)

    def program(self, path: Path, script: str) -> None:
        """Write a program."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended."""
    found = process.read_stat(pid)
    return found is None or found.is_dead


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str], str]) -> Path:
    """Give the repositories that each test has a copy of."""
    directory = tmp_path_factory.mktemp("repositories")
    (directory / "gitconfig").write_text(GIT_CONFIG)
    others = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "SSH_"))}

    def git(*arguments: str, at: str = ".") -> None:
        subprocess.run(
            [require("git"), *arguments], cwd=directory / at, env={**others, **git_environment(directory)},
            capture_output=True, check=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip

    url = f"file://{directory}/up.git"
    git("init", "--bare", "up.git")
    git("clone", url, "other")
    git("checkout", "-b", "main", at="other")
    (directory / "other/a").write_text("x\n")
    git("add", "--", "a", at="other")
    git("commit", "-m", "a", at="other")
    git("push", "origin", "HEAD:main", at="other")
    git("clone", url, "neo")
    return directory


@pytest.fixture
def world(lock: Lock, tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Give a project with repositories, and a git that knows nothing of the user's settings."""
    for name in list(os.environ):
        if name.startswith(("GIT_", "SSH_")):
            monkeypatch.delenv(name)
    return World(lock, tmp_path, template)


# Outcomes


def test_a_pull(world: World) -> None:
    """What is behind its upstream is pulled, and the task that this makes necessary has run (R7)."""
    before, _, after = world.head(), world.push("b"), world.push("c")
    done = world.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"../neo: pulled {before[:7]}..{after[:7]} (2 commits)\n"
    assert (world.head(), world.runs(), world.owed()) == (after, 1, [])


def test_json(world: World) -> None:
    """With --json each repository is one object, and what the nested task prints stays out of the way."""
    world.configure("echo loud", roots='"../neo", "../nowhere"')
    before, after = world.head(), world.push("b")
    done = world.run("--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"root": str(world.neo), "outcome": "pulled", "before": before, "after": after, "detail": "1 commit"},
        {
            "root": str(world.directory / "nowhere"),
            "outcome": "not-a-repository",
            "before": "",
            "after": "",
            "detail": "no such directory",
        },
    ]
    assert (done.returncode, done.stderr) == (0, "loud\n")


def test_up_to_date(world: World) -> None:
    """What is not behind is up to date: the same commit, commits ahead, a dirty tree; and nothing runs (R7)."""
    assert world.outcome() == ("up-to-date", "")
    (world.neo / "a").write_text("changed\n")
    assert world.outcome() == ("up-to-date", "")
    world.commit("mine", at="neo")
    assert world.outcome() == ("up-to-date", "1 commit ahead")
    assert world.runs() == 0


def test_local_divergence(world: World) -> None:
    """What has commits of its own and is behind is left as it is, dirty or not."""
    world.commit("mine", at="neo")
    world.push("b")
    (world.neo / "a").write_text("changed\n")
    before = world.head()
    assert world.outcome() == ("local-divergence", "1 ahead, 1 behind")
    assert (world.head(), world.runs()) == (before, 0)


@pytest.mark.parametrize("staged", [False, True])
def test_dirty(world: World, *, staged: bool) -> None:
    """Changed files, also those only staged, keep a repository from being pulled; files that git does not know do not."""
    world.push("b")
    (world.neo / "unknown\nfile").write_text("x")
    (world.neo / "a").write_text("changed\n")
    if staged:
        world.git("add", "a", at="neo")
        (world.neo / "a").write_text("x\n")
    done = world.run()
    assert (done.returncode, done.stdout) == (0, "../neo: skipped, dirty (1 file changed)\n")
    world.git("reset", "--hard", at="neo")
    assert world.outcome() == ("pulled", "1 commit")


def test_files_in_the_way_are_dirt(world: World) -> None:
    """A file that git does not know and that a pull would overwrite is kept, and nothing is owed for it."""
    world.push("b")
    (world.neo / "b").write_text("mine")
    assert world.outcome() == ("dirty", "files here are in the way: b")
    assert ((world.neo / "b").read_text(), world.owed(), world.runs()) == ("mine", [], 0)


def test_a_merge_in_progress_is_dirt(world: World) -> None:
    """A merge that the user has begun is not disturbed, also where no file is changed."""
    world.push("b")
    (world.neo / ".git/MERGE_HEAD").write_text(world.head() + "\n")
    assert world.outcome() == ("dirty", "a merge is in progress")


def test_no_repository(world: World) -> None:
    """A missing directory, a file, a plain directory, a bare repository, a part of one and a git directory are none."""
    (world.neo / "part").mkdir()
    (world.directory / "plain").mkdir()
    roots = ["nowhere", "gitconfig", "plain", "up.git", "neo/part", "neo/.git"]
    world.push("b")
    results = world.results(*[str(world.directory / root) for root in roots])
    assert [result["outcome"] for result in results] == ["not-a-repository"] * 6
    assert [result["detail"] for result in results] == [
        "no such directory", "no directory", "", "no work tree", "only a part of one", "no work tree",
    ]  # fmt: skip


def test_no_upstream(world: World) -> None:
    """A branch that follows none, no branch at all, and one that the remote does not have cannot be pulled."""
    world.git("checkout", "-b", "mine", at="neo")
    assert world.outcome() == ("no-upstream", "mine follows no branch of a remote")
    world.git("config", "branch.mine.remote", "origin", at="neo")
    world.git("config", "branch.mine.merge", "refs/heads/gone", at="neo")
    assert world.outcome() == ("no-upstream", "nothing is fetched of gone of origin")
    world.git("checkout", "--detach", at="neo")
    assert world.outcome() == ("no-upstream", "no branch is checked out")


def test_the_first_commit_of_an_empty_clone(world: World) -> None:
    """A clone of what was empty gets its first commits."""
    world.git("init", "--bare", "late.git")
    world.git("clone", f"file://{world.directory}/late.git", "early")
    world.git("push", f"file://{world.directory}/late.git", "HEAD:main", at="other")
    (result,) = world.results(str(world.directory / "early"))
    assert (result["outcome"], result["before"], result["after"]) == ("pulled", "", world.head("other"))


def test_odd_names(world: World) -> None:
    """Newlines, blanks and control characters in names are no trouble, and are shown escaped."""
    odd = "o d\n\x1bd"
    world.git("clone", "--origin", "the.remote", world.url, odd)
    world.git("checkout", "-b", "feature/x.y", "the.remote/main", at=odd)
    world.push("n\new")
    done = world.run(str(world.directory / odd))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("../o d\\n\\x1bd: pulled ")


def test_a_linked_work_tree_and_a_submodule(world: World) -> None:
    """A linked work tree is a repository, and a submodule that stands elsewhere is no dirt and is left where it is."""
    world.git("clone", world.url, "sub")
    world.git("submodule", "add", world.url, "sub", at="other")
    world.push("with-sub")
    world.git("worktree", "add", "-b", "linked", "../linked", "origin/main", at="neo")
    assert world.outcome(str(world.directory / "linked")) == ("pulled", "1 commit")
    assert world.outcome() == ("pulled", "1 commit")
    world.git("submodule", "update", "--init", at="neo")
    world.commit("elsewhere", at="neo/sub")
    world.push("b")
    assert world.outcome() == ("pulled", "1 commit")
    assert (world.neo / "sub/elsewhere").exists()


# Failures


def test_a_failure_stops_no_other(world: World) -> None:
    """A remote that is gone is a failure, shown without its credentials, and the others are pulled all the same (R6)."""
    world.git("clone", world.url, "bad")
    world.git("remote", "set-url", "origin", "file://ada:s3cret@/nowhere", at="bad")
    world.configure(roots='"../bad", "../neo"')
    world.push("b")
    done = world.run()
    assert done.returncode == 1
    assert done.stdout.startswith("../bad: failed: git fetch: fatal: ")
    assert "../neo: pulled " in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
    assert world.runs() == 1


def test_no_git(world: World) -> None:
    """Without git every repository has failed, and it is said what is missing."""
    (world.directory / "empty").mkdir()
    done = world.lock.wrap(
        "-t",
        SYNC,
        "--",
        MAINTLOCK,
        "repo-sync",
        env={**world.env, "PATH": str(world.directory / "empty")},
        cwd=world.project,
    )
    assert (done.returncode, done.stdout) == (
        1,
        "../neo: failed: git: No such file or directory; is git installed, and on PATH?\n",
    )


def test_a_git_that_hangs_is_ended(world: World) -> None:
    """A git that does not end is ended with all that it has started, and that is a failure."""
    script = "echo $$ > hanging; trap : TERM; while :; do sleep 99; done"
    world.program(world.directory / "bin/git-remote-hangs", script)
    world.git("remote", "set-url", "origin", "hangs::x", at="neo")
    done = world.run("--timeout", "10s", PATH=f"{world.directory}/bin:{world.env['PATH']}")
    assert (done.returncode, done.stdout) == (
        1,
        "../neo: failed: git fetch: has not ended within 10s, and was stopped; see --timeout\n",
    )
    until(lambda: is_gone(int((world.neo / "hanging").read_text())))


def test_nobody_is_asked(world: World) -> None:
    """Git cannot ask for a password, whatever the user's askpass is, and ssh is told not to ask (R3)."""
    asked = world.directory / "asked"
    world.program(world.directory / "ask", f"touch {asked}; echo x")
    world.program(world.directory / "bin/git-remote-probe", 'echo "$GIT_SSH_COMMAND|$GIT_TERMINAL_PROMPT" > probe\n'
        "printf 'protocol=https\\nhost=h\\n\\n' | git credential fill; exit 1")  # fmt: skip
    world.git("remote", "set-url", "origin", "probe::x", at="neo")
    path = f"{world.directory}/bin:{world.env['PATH']}"
    ask = str(world.directory / "ask")
    assert world.outcome(PATH=path, GIT_ASKPASS=ask, SSH_ASKPASS=ask)[0] == "failed"
    assert (world.neo / "probe").read_text() == "ssh -o BatchMode=yes|0\n"
    assert not asked.exists()
    world.git("config", "core.sshCommand", "ssh -i key", at="neo")
    world.outcome(PATH=path)
    assert (world.neo / "probe").read_text() == "|0\n"


def test_the_index_is_locked(world: World) -> None:
    """Where another git works, or has died, it is said which file to look at; nothing is owed, and the next pass pulls."""
    world.push("b")
    lock_file = world.neo / ".git/index.lock"
    lock_file.touch()
    outcome, detail = world.outcome()
    assert (outcome, f"rm {lock_file}" in detail, world.owed(), world.runs()) == ("failed", True, [], 0)
    lock_file.unlink()
    assert world.outcome() == ("pulled", "1 commit")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_repository_of_somebody_else(world: World) -> None:
    """A repository of another user is not worked in, and the command that allows it is named."""
    os.chown(world.neo, 12345, 12345)
    outcome, detail = world.outcome()
    assert (outcome, f"git config --global --add safe.directory {world.neo}" in detail) == ("failed", True)


def test_from_inside_a_hook(world: World) -> None:
    """Git's variables of another repository lead nowhere else."""
    after = world.push("b")
    world.outcome(GIT_DIR=f"{world.directory}/other/.git", GIT_INDEX_FILE="x", GIT_WORK_TREE="/")
    assert world.head() == after


# The nested task


def test_it_is_nested(world: World) -> None:
    """After a pull its task runs inside the same lease, as work of its own with its parent and reason (R7, L7)."""
    world.configure('test -z "$(ls -A ..)"; echo ran >> $RAN; pwd >> $RAN; echo $MAINTLOCK_TASK >> $RAN')
    world.push("b")
    assert world.run().returncode == 0
    assert world.ran.read_text().split() == ["ran", str(world.project), "kbSync"]
    rows = [(row["event"], row["task"]) for row in world.lock.history()]
    assert rows == [
        ("acquired", SYNC),
        ("nested_started", "kbSync"),
        ("nested_finished", "kbSync"),
        ("released", SYNC),
    ]
    lease_id = world.lock.history(event="acquired")[0]["lease_id"]
    for row in world.lock.history(task="kbSync"):
        assert (row["parent_task"], row["reason"], row["lease_id"]) == (SYNC, REASON, lease_id)


def test_as_the_command_of_a_task(world: World) -> None:
    """Under a lease already, it takes part in that one, and asks for none of its own (R7)."""
    world.push("b")
    done = world.lock.wrap("-t", "dev", "--", MAINTLOCK, "repo-sync", env=world.env, cwd=world.project)
    assert done.returncode == 0, done.stderr
    assert {row["task"] for row in world.lock.history(event="acquired")} == {"dev"}
    assert {(row["parent_task"], row["reason"]) for row in world.lock.history(task="kbSync")} == {
        ("dev", "cascaded-from-dev")
    }


def test_by_hand_it_stands_back(world: World) -> None:
    """Run by hand while somebody else has the lease, it stands back and touches nothing (R1, R3)."""
    world.push("b")
    before = world.head()
    world.lock.hold("backup")
    done = world.run()
    assert (done.returncode, done.stdout, world.head()) == (0, "", before)
    assert "primary-dev-sync deferred due to active heavy-maintenance lease: held by backup" in done.stderr


def test_a_grant_that_has_ended_counts_for_nothing(world: World) -> None:
    """With an old grant in its environment it asks for the lease like everybody else (L8)."""
    world.push("b")
    shown = world.lock.wrap("-t", "old", "--", "sh", "-c", 'echo "$MAINTLOCK_HELD"', env=world.env).stdout.strip()
    assert world.run(MAINTLOCK_HELD=shown, MAINTLOCK_TASK="old").returncode == 0
    assert [row["task"] for row in world.lock.history(event="acquired")] == ["old", SYNC]
    assert world.lock.history(event="nested_started")[0]["parent_task"] == SYNC


def test_its_failure_is_ours(world: World) -> None:
    """The nested task's failure is a failure of the sync with the same exit code, and it stays owed (R7, L15)."""
    before = world.head()
    after = world.push("b")
    world.configure("exit 5")
    done = world.run()
    assert (done.returncode, "kbSync ended with exit code 5; it is still due" in done.stderr) == (5, True)
    released = world.lock.history(event="released")[0]
    assert (released["outcome"], released["exit_code"]) == ("failed", 5)
    (debt,) = world.owed()
    assert (debt["task"], debt["root"], debt["before"], debt["after"]) == ("kbSync", str(world.neo), before, after)
    assert stat.S_IMODE(world.record.stat().st_mode) == 0o600


def test_its_death_is_ours(world: World) -> None:
    """A nested task that dies of a signal is a failure with 128 and its number."""
    world.push("b")
    world.configure("kill -9 $$")
    assert world.run().returncode == 137
    assert len(world.owed()) == 1


def test_what_is_owed_is_made_up_for(world: World) -> None:
    """After a failure the next pass runs the task although there is nothing to pull, and then no more (L15)."""
    world.push("b")
    world.configure("exit 5")
    world.run()
    world.configure()
    done = world.run()
    assert (done.returncode, done.stdout, world.runs(), world.owed()) == (0, "../neo: up-to-date\n", 1, [])
    assert world.run().returncode == 0
    assert world.runs() == 1


def test_several_pulls_are_one_debt(world: World) -> None:
    """Pulls that were not made up for are one debt from the first to the last (L15)."""
    before = world.head()
    world.configure("exit 5")
    world.push("b")
    world.run()
    after = world.push("c")
    world.run()
    assert [(debt["before"], debt["after"]) for debt in world.owed()] == [(before, after)]


def test_left_for_the_next_pass(world: World) -> None:
    """With --no-then what a pull owes is left to the next pass (L15)."""
    world.push("b")
    assert world.run("--no-then").returncode == 0
    assert (world.runs(), len(world.owed())) == (0, 1)
    world.run()
    assert (world.runs(), world.owed()) == (1, [])


def test_without_a_task_nothing_is_owed(world: World) -> None:
    """Where nothing is to run after a pull, nothing is written down."""
    world.push("b")
    assert world.outcome("--config", "none", str(world.neo)) == ("pulled", "1 commit")
    assert not world.record.exists()


def test_debts_of_another_project(world: World) -> None:
    """Two projects that share a state directory owe their own, and neither pays for the other (L9, L15)."""
    world.push("b")
    world.run("--no-then")
    second = world.directory / "second"
    second.mkdir()
    (second / "maintlock.toml").write_text(
        f"[tasks.kbSync]\ncommand = ['touch', '{second}/ran']\n[repo_sync]\nroots = ['../other']\nthen = 'kbSync'\n"
    )
    assert world.run("--config", str(second / "maintlock.toml")).returncode == 0
    assert (len(world.owed()), (second / "ran").exists()) == (1, False)


def test_a_task_that_is_no_more(world: World) -> None:
    """What is owed to a task that the configuration does not have any more is forgotten, and that is said."""
    world.push("b")
    world.run("--no-then")
    (world.project / "maintlock.toml").write_text("[repo_sync]\nroots = ['../neo']\n")
    done = world.run()
    assert (done.returncode, "kbSync was owed after a pull, and is no task any more" in done.stderr) == (0, True)
    assert world.owed() == []


def deferred_sync(world: World, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the sync in a lease of its own while somebody else has the one that its task needs."""
    return world.lock.wrap(
        "-t", SYNC, "--lease", "other", "--", MAINTLOCK, "repo-sync", env={**world.env, **more}, cwd=world.project
    )  # fmt: skip


def test_its_deferral_is_none_of_our_failures(world: World) -> None:
    """A nested task that stands back is recorded as that, never as a success, and is made up for (R7, L3, L15)."""
    world.push("b")
    holder = world.lock.hold("backup")
    done = deferred_sync(world, MAINTLOCK_DEFER_EXIT_CODE="75")
    assert (done.returncode, "kbSync stood back after a pull; it is still due" in done.stderr) == (0, True)
    (row,) = world.lock.history(task="kbSync")
    assert (row["event"], row["blocked_by"], row["reason"]) == ("deferred", "backup", REASON)
    assert row["parent_task"] == SYNC  # although that one has another lease
    assert (world.runs(), len(world.owed())) == (0, 1)
    holder.signal(signal.SIGTERM)
    holder.end()
    assert world.run().returncode == 0
    assert (world.runs(), world.owed()) == (1, [])


def test_a_lease_that_is_somebody_elses_by_then(world: World) -> None:
    """Where the grant has ended during the pull and another job has it, the nested task stands back, with its parent (R7, L8)."""
    world.hook("post-merge", "echo merged > merged; while ! test -e go; do sleep 0.01; done")
    world.push("b")
    world.program(world.project / "sync.sh", "maintlock repo-sync; echo $? > code")
    script = "./sync.sh > out 2>&1 & until test -e ../neo/merged; do sleep 0.01; done"
    world.lock.wrap("-t", SYNC, "--hold-until", "main", "--", "sh", "-c", script, env=world.env, cwd=world.project)
    world.lock.hold("backup")
    (world.neo / "go").touch()
    until(lambda: (world.project / "code").exists() and (world.project / "code").read_text())
    assert (world.project / "code").read_text() == "0\n", (world.project / "out").read_text()
    (row,) = world.lock.history(event="deferred")
    assert (row["task"], row["parent_task"], row["reason"], row["blocked_by"]) == ("kbSync", SYNC, REASON, "backup")
    assert (world.runs(), len(world.owed())) == (0, 1)


def test_a_task_that_pulls_itself(world: World) -> None:
    """A task after a pull that runs the sync again does not start itself for ever."""
    world.configure('maintlock repo-sync && echo ran >> "$RAN"')
    world.push("b")
    assert world.run().returncode == 0
    assert (world.runs(), world.owed()) == (1, [])


def test_a_lease_called_like_us(world: World) -> None:
    """A lease may be called repo-sync: its records are not those of what is owed."""
    world.push("b")
    world.configure("exit 5")
    assert world.run("--lease", "repo-sync").returncode == 5
    assert len(world.owed()) == 1


# Death and signals


@pytest.mark.parametrize("victim", ["sync", "git"])
def test_a_kill_after_the_merge_loses_no_debt(world: World, victim: str) -> None:
    """Killed between the merge and the nested task, it has left its debt behind, which the next pass pays; git's death costs nothing (L15)."""
    world.hook("post-merge", "echo $PPID > merged; echo merged; while ! test -e go; do sleep 0.01; done")
    after = world.push("b")
    world.start()
    until(lambda: (world.neo / "merged").exists() and (world.neo / "merged").read_text())
    git_pid = int((world.neo / "merged").read_text())
    pid = git_pid
    if victim == "sync":
        found = process.read_stat(git_pid)
        assert found is not None
        pid = found.ppid
    assert [debt["after"] for debt in world.owed()] == [after]
    os.kill(pid, signal.SIGKILL)
    (world.neo / "go").touch()
    until(lambda: world.lock.status()["state"] == "free")
    if victim == "sync":
        assert (world.head(), world.runs(), len(world.owed())) == (after, 0, 1)
        world.run()
    assert (world.head(), world.runs(), world.owed()) == (after, 1, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_git(world: World, number: int) -> None:
    """A signal while git works ends git, and us with it; what was written down stays owed (L15)."""
    world.hook("post-merge", "echo $$ > merged; exec sleep 99")
    world.push("b")
    running = world.start()
    until(lambda: (world.neo / "merged").exists() and (world.neo / "merged").read_text())
    hook = int((world.neo / "merged").read_text())
    running.signal(number)
    code, _, err = running.end()
    assert (code, f"stopped by signal {number}" in err) == (128 + number, True)
    until(lambda: is_gone(hook))
    assert (len(world.owed()), world.runs()) == (1, 0)
    assert world.lock.status()["state"] == "free"


def test_a_signal_reaches_the_nested_task(world: World) -> None:
    """A signal while the nested task works is that task's, its end is ours, and it stays owed (L15)."""
    world.push("b")
    world.configure("echo ready; exec sleep 99")
    running = world.start()
    running.until_line("ready")
    running.signal(signal.SIGTERM)
    assert running.end()[0] == 128 + signal.SIGTERM
    assert len(world.owed()) == 1
    assert world.lock.history(event="nested_finished")[0]["exit_code"] == 128 + signal.SIGTERM


@pytest.mark.parametrize("at", ["git", "then"])
def test_ctrl_c(world: World, open_shell: Opened, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """Ctrl-C ends git, or the nested task, and all of us; what was pulled stays owed (L15)."""
    for name, value in world.more_env.items():
        monkeypatch.setenv(name, value)
    world.configure("echo rea''dy; exec sleep 99" if at == "then" else "true")
    if at == "git":
        world.hook("post-merge", "echo $$ > merged; exec sleep 99")
    world.push("b")
    terminal = open_shell(cwd=world.project)
    terminal.press("maintlock repo-sync\n")
    if at == "git":
        until(lambda: (world.neo / "merged").exists() and (world.neo / "merged").read_text())
    else:
        terminal.until("ready")
    terminal.press(CTRL_C)
    assert terminal.prompt()[0] == 130
    assert len(world.owed()) == 1
    assert world.lock.status()["state"] == "free"
    assert [row["outcome"] for row in world.lock.history(event="released")] == ["stopped"]


# The record


def test_what_cannot_be_written_down_is_not_pulled(world: World) -> None:
    """Where the debt cannot be recorded nothing is pulled, and it is said why (L15)."""
    world.push("b")
    before = world.head()
    world.record.mkdir(parents=True)
    (world.record / "x").touch()
    world.lock.directory.chmod(0o700)
    done = world.run()
    assert (done.returncode, world.head()) == (1, before)
    assert "../neo: failed: not pulled, as what that owes cannot be written down: " in done.stdout


@pytest.mark.parametrize("content", [b"", b'{"schema":1,"owed":[{', b"\0" * 100, b"[" * 100_000], ids=range(4))
def test_a_torn_record_is_taken_as_a_debt(world: World, content: bytes) -> None:
    """A record that cannot be read may have said anything: the task runs, and the record is whole again (L12, L15)."""
    world.run()
    world.record.write_bytes(content)
    world.record.chmod(0o600)
    done = world.run()
    assert (done.returncode, "repo-sync.owed: is unreadable" in done.stderr) == (0, True)
    assert (world.runs(), world.record.exists()) == (1, False)


def test_a_record_that_anybody_could_have_written(world: World) -> None:
    """A record that everybody may write to is refused, with the command that mends it."""
    world.run()
    world.record.write_text("{}")
    world.record.chmod(0o666)
    done = world.run()
    assert (done.returncode, "chmod go-w" in done.stderr) == (77, True)


def test_a_symlink_for_a_record(world: World) -> None:
    """A symlink in the record's place is replaced, and what it leads to is left alone."""
    world.run()
    precious = world.directory / "precious"
    precious.write_text("mine")
    world.record.symlink_to(precious)
    world.push("b")
    assert world.run().returncode == 0
    assert (precious.read_text(), world.runs(), os.path.lexists(world.record)) == ("mine", 1, False)


# Bad input


BAD_INPUT: list[tuple[str, list[str], int, str]] = [
    ("", [], 64, '[repo_sync]\nmaintlock: roots = ["../repository"]'),
    ("", ["--then", "x", "../neo"], 64, "--then x: expected the name of a task"),
    ("", ["--then", "../x", "../neo"], 64, "argument --then"),
    ("", ["--then", "x", "--no-then", "../neo"], 64, "not allowed with"),
    ("", ["--timeout", "0", "../neo"], 64, "expected more than 0"),
    ("", ["--timeout", "soon", "../neo"], 64, "expected a duration"),
    ("", ["--what"], 64, "unrecognized arguments"),
    ("[tasks.a]\n[repo_sync]\nroots = ['x']\nthen = 'a'", [], 78, "maintlock.toml: repo_sync.then: found 'a'"),
    ("[tasks.a]", ["--then", "a", "../neo"], 78, "maintlock.toml: tasks.a.command: found nothing"),
    ("[repo_sync]\nroots = ['x']\nthen = 'a'", [], 78, "repo_sync.then"),
    ("[tasks.a]\ncommand = ['maintlock', 'repo-sync']", ["--then", "a", "x"], 64, "a is repo-sync itself"),
    ("", [""], 64, "expected a path"),
    ("[repo_sync]\nroot = 'x'", [], 78, "repo_sync.root: unknown key"),
]


def test_bad_input(world: World) -> None:
    """What cannot be meant is said in one message with what is expected, before anything is done (R3)."""
    for toml, arguments, code, words in BAD_INPUT:
        (world.project / "maintlock.toml").write_text(toml)
        done = world.run(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), (toml, arguments)
        assert words in done.stderr
        assert world.lock.history() == []


def test_the_task_that_we_are(world: World) -> None:
    """By hand it runs as the configured task whose command it is, with that task's settings (R1)."""
    config = world.project / "maintlock.toml"
    config.write_text(
        "[tasks.mine]\ncommand = ['maintlock', 'repo-sync']\nlease = 'l'\n[repo_sync]\nroots = ['../neo']\n"
    )
    assert world.run().returncode == 0
    assert [(row["task"], row["lease"]) for row in world.lock.history(event="acquired")] == [("mine", "l")]
