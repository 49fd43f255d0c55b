"""`maintlock completion`: what the shells complete, asked of the shells themselves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from maintlock.cli import COMMANDS, PROGRAMS
from maintlock.completion import SHELLS
from tests.support import MAINTLOCK, PATIENCE_SECONDS, Lock

CONFIG = """
[tasks.kbSync]
npm_script = "ai:sync-kb"
[tasks.backup]
"""
COMPLETE = """\
. "$0"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_maintlock
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Give a directory with a configuration, two files and a directory."""
    directory = tmp_path / "project"
    (directory / "logs").mkdir(parents=True)
    (directory / "maintlock.toml").write_text(CONFIG, encoding="utf-8")
    (directory / "data.txt").touch()
    return directory


def script(lock: Lock, shell: str) -> str:
    """Return what is printed for a shell."""
    done = subprocess.run(
        [MAINTLOCK, "completion", shell], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the script for bash in a file."""
    path = tmp_path_factory.mktemp("completion") / "maintlock.bash"
    done = subprocess.run(
        [MAINTLOCK, "completion", "bash"], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    path.write_text(done.stdout, encoding="utf-8")
    return path


Completed = Callable[..., list[str]]


@pytest.fixture
def completed(lock: Lock, project: Path, bash_script: Path) -> Completed:
    """Give what bash completes in the project: the words are the command line as bash cuts it up, the last the one to complete."""

    def complete(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", COMPLETE, bash_script, *words], cwd=project, env=lock.env(), capture_output=True,
            text=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return list(dict.fromkeys(done.stdout.split()))  # PATH may name a directory twice

    return complete


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["maintlock", "sta"], ["status"]),
        (["maintlock", "s"], ["status", "should-yield", "stop"]),
        (["maintlock", "status", "--wa"], ["--watch"]),
        (["maintlock", "history", "--task", ""], ["kbSync", "backup"]),
        (["maintlock", "history", "--event", "coll"], ["collision", "collision_cleared"]),
        (["maintlock", "completion", ""], ["bash", "zsh", "fish", "-h", "--help"]),
        (["maintlock", "run", "--task", "kb"], ["kbSync"]),
        (["maintlock", "hold", "-t", "b"], ["backup"]),
        (["maintlock", "hold", "--max"], []),
        (["maintlock-wrap", "-t", ""], ["kbSync", "backup"]),
        (["/opt/bin/maintlock-wrap", "-t", "kb"], ["kbSync"]),
        (["maintlock-wrap", "--task", "=", "kb"], ["kbSync"]),
        (["maintlock-wrap", "--task", "="], ["kbSync", "backup"]),
        (["maintlock-wrap", "--hold-until", ""], ["session", "main", "tree"]),
        (["maintlock-wrap", "--owner", ""], []),
        (["maintlock-wrap", "--max-r"], ["--max-runtime"]),
        (["maintlock-wrap", "--state-dir", ""], ["logs"]),
        (["maintlock-wrap", "--config", "maint"], ["maintlock.toml"]),
        (["maintlock-wrap", "-t", "kbSync", "maintlock-wr"], ["maintlock-wrap"]),
        (["maintlock-wrap", "-t", "kbSync", "--", "maintlock-wr"], ["maintlock-wrap"]),
        (["maintlock-wrap", "-t", "kbSync", "--", "cat", "da"], ["data.txt"]),
        (["maintlock", "run", "-t", "kbSync", "-w", "10m", "cat", "--hold"], []),
        (["maintlock-wrap", "--task", "=", "kbSync", "cat", "da"], ["data.txt"]),
    ],
)  # fmt: skip
def test_bash_completes(completed: Completed, words: list[str], expected: list[str]) -> None:
    """Subcommands, options, their values, the configuration's tasks, and in the end another program's command line."""
    assert completed(*words) == expected


def test_every_option_is_known(lock: Lock, completed: Completed) -> None:
    """Each option that a subcommand's help tells is completed."""
    for name in (*PROGRAMS, *COMMANDS):
        help_text = subprocess.run([MAINTLOCK, name, "--help"], env=lock.env(), capture_output=True, text=True).stdout
        offered = completed("maintlock", name, "--")
        for option in offered:
            assert name in {"run", "hold"} or option in help_text
        assert {"--help"} <= set(offered)


def test_all_subcommands_are_offered(completed: Completed) -> None:
    """Without a word typed all subcommands are offered, and nothing that is none."""
    assert completed("maintlock", "") == [*PROGRAMS, *COMMANDS, "--help", "--version"]


def test_a_broken_configuration_disturbs_nobody(project: Path, completed: Completed) -> None:
    """With an invalid configuration no task is offered, and nothing is written to the terminal."""
    (project / "maintlock.toml").write_text("[tasks", encoding="utf-8")

    assert completed("maintlock-wrap", "-t", "") == []


def test_it_completes_in_a_shell_that_uses_it(lock: Lock, project: Path) -> None:
    """The script registers itself for both programs."""
    done = subprocess.run(
        ["bash", "--norc", "-c", 'eval "$(maintlock completion bash)"; complete -p maintlock maintlock-wrap'],
        cwd=project, env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "complete -o filenames -F _maintlock maintlock",
        "complete -o filenames -F _maintlock maintlock-wrap",
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one(lock: Lock, shell: str, tmp_path: Path, require: Callable[[str], str]) -> None:
    """Each shell finds no fault in its script."""
    path = require(shell)
    (tmp_path / "script").write_text(script(lock, shell), encoding="utf-8")

    done = subprocess.run([path, "-n", tmp_path / "script"], capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["ksh"], [], ["bash", "zsh"]], ids=" ".join)
def test_an_unknown_shell_is_refused(lock: Lock, words: list[str]) -> None:
    """Another shell, or none, is a usage error that names those that there are, and nothing else."""
    done = subprocess.run(
        [MAINTLOCK, "completion", *words], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )

    assert (done.returncode, done.stdout) == (os.EX_USAGE, "")
    assert len(words) > 1 or all(shell in done.stderr for shell in SHELLS)
    assert "tasks" not in done.stderr


def test_names_of_the_configuration(lock: Lock, project: Path) -> None:
    """What completion and npm's shell ask for: the names of the tasks, and the npm scripts that are tasks."""
    for what, names in {"tasks": "kbSync\nbackup\n", "npm-scripts": "ai:sync-kb\n"}.items():
        words = [MAINTLOCK, "completion", "--names", what]
        told = subprocess.run(words, cwd=project, env=lock.env(), capture_output=True, text=True)
        assert (told.returncode, told.stdout) == (0, names)
