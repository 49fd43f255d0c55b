"""README.md: every command in it runs as it stands, and what it shows and links to exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.documents import PAGE_SECONDS, bare_example, blocks_of, broken_links, copied_checkout, run
from tests.support import BIN, PATIENCE_SECONDS, ROOT, Lock

pytestmark = pytest.mark.timeout(PAGE_SECONDS + PATIENCE_SECONDS)

README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_RUN = ["make demo", "make test"]  # one in test_demo.py, the other here and now


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return blocks_of(README, language)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Give a copy of what a checkout has for users, with a small knowledge base."""
    return copied_checkout(tmp_path / "checkout")


def test_commands_run_as_they_stand(lock: Lock, checkout: Path, require: Callable[[str], str]) -> None:
    """The shell commands succeed one after the other in a checkout, and the jobs that they start do their work."""
    require("npm")
    commands = blocks("sh")

    done = run(lock, "sh", "-euxc", "\n".join(commands), cwd=checkout)

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(commands) > 5
    outcomes = [(row["task"], row["outcome"]) for row in lock.history() if row["outcome"]]
    assert {outcome for _, outcome in outcomes} == {"completed"}
    assert {"kbSync", "backup", "both"} <= {task for task, _ in outcomes}
    assert lock.history(event="deferred") == []


def test_python_runs_as_it_stands(lock: Lock, checkout: Path, require: Callable[[str], str]) -> None:
    """The Python code does its work while the lease is free, and prints who has it while it is not."""
    require("node")
    (code,) = blocks("python")
    example = checkout / "wrappers" / "example"

    free = run(lock, sys.executable, "-c", code, cwd=example)
    lock.hold("backup")
    held = run(lock, sys.executable, "-c", code.replace('wait="10m"', "wait=None"), cwd=example)

    assert free.returncode == 0 and "ai:sync-kb: done" in free.stdout, free.stderr
    assert held.returncode == 0 and "held by backup (owner " in held.stdout, held.stderr


def test_configuration_is_valid(lock: Lock, tmp_path: Path) -> None:
    """The configuration that is shown is one, and does what is said of it."""
    config, orchestrated = blocks("toml")
    (tmp_path / "maintlock.toml").write_text(config, encoding="utf-8")

    done = subprocess.run(
        [BIN / "maintlock-wrap", "--", "printenv", "MAINTLOCK_TASK"], cwd=tmp_path, capture_output=True, text=True,
        env=lock.env(npm_lifecycle_event="ai:backup"),
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "backup\n"), done.stderr
    (tmp_path / "maintlock.toml").write_text(orchestrated, encoding="utf-8")
    tasks = run(lock, str(BIN / "maintlock"), "tasks", "--json", cwd=tmp_path)
    configured = {name for name, task in json.loads(tasks.stdout)["tasks"].items() if task["configured"]}
    assert configured == {"summary", "primary-dev-sync", "kbSync"}, tasks.stderr


def test_adopting_it_as_told(lock: Lock, tmp_path: Path, require: Callable[[str], str]) -> None:
    """The three commands for a project that exists guard its scripts, and give them a configuration."""
    require("npm")
    project = bare_example(lock, tmp_path / "checkout")
    (block,) = [block for block in blocks("text") if "maintlock guard --list" in block]

    done = run(lock, "sh", "-euxc", block.replace("$ ", ""), cwd=project)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "ai:sync-kb: guarded, as task kbSync" in done.stdout
    assert "maintlock.toml: written" in done.stdout and (project / "maintlock.toml").exists()


def test_npm_scripts_are_those_of_the_example() -> None:
    """The lines of package.json that are shown are the example's own."""
    (shown,) = blocks("json")
    package = json.loads((ROOT / "wrappers" / "example" / "package.json").read_text(encoding="utf-8"))

    assert json.loads(shown)["scripts"].items() <= package["scripts"].items()


def test_what_is_not_run_here_exists() -> None:
    """The commands for a terminal are targets of the Makefile, and no others."""
    told = [line.removeprefix("$ ").partition("#")[0].strip() for line in "".join(blocks("console")).splitlines()]
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    assert told == NOT_RUN
    assert {command.split()[1] for command in told} <= set(targets)


def test_transcript_says_what_the_programs_say(lock: Lock) -> None:
    """The transcript has the deferral word for word, and the head of the history that is printed today."""
    transcript = "\n".join(blocks("text"))
    lock.hold("kbSync")

    told = lock.wrap("-t", "backup", "--", "true").stderr
    history = subprocess.run([BIN / "maintlock", "history"], env=lock.env(), capture_output=True, text=True).stdout

    def bare(line: str) -> str:
        return re.sub(r"owner \S+, pid \d+, for \S+, reason", "owner, pid, for, reason", line)

    assert bare(told.strip()) in [bare(line) for line in transcript.splitlines()]
    assert history.split("\n")[0].split() in [line.split() for line in transcript.splitlines()]


def test_links_lead_somewhere() -> None:
    """Every link into the repository leads to a file of it."""
    assert broken_links(ROOT / "README.md") == []


def test_exit_codes_are_those_of_the_programs() -> None:
    """The table of exit codes names every one that the wrapper has of its own."""
    help_text = subprocess.run([BIN / "maintlock-wrap", "--help"], capture_output=True, text=True).stdout
    (said,) = re.findall(r"^Exit codes: (.*?)\n\n", help_text, re.MULTILINE | re.DOTALL)
    (table,) = re.findall(r"^\| code \| when \|\n(.*?)\n\n", README, re.MULTILINE | re.DOTALL)

    def codes(text: str) -> set[str]:
        return set(re.findall(r"\b\d{2,3}\b", text)) - {"128"}

    assert codes("\n".join(line.split("|")[1] for line in table.splitlines())) == codes(said)
