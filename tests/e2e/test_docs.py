"""The pages in docs/: every command runs as it stands, and tables say what the programs do."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from maintlock.checkup.table import CHECKS
from maintlock.cli import COMMANDS
from maintlock.options import HOLD_UNTIL
from maintlock.show import EXIT_CODES
from tests.e2e.documents import (
    PAGE_SECONDS,
    bare_example,
    blocks_of,
    broken_links,
    console_commands,
    copied_checkout,
    patient,
    run,
)
from tests.support import MAINTLOCK, PATIENCE_SECONDS, ROOT, Lock, lock_in, until

pytestmark = pytest.mark.timeout(PAGE_SECONDS + PATIENCE_SECONDS)

DOCS = ROOT / "docs"
PAGE = DOCS / "operations.md"
TEXT = PAGE.read_text(encoding="utf-8")
ORCHESTRATING_TEXT = (DOCS / "orchestrating.md").read_text(encoding="utf-8")
NOT_RUN = {
    "pipx install --force .": "it needs pipx, and would change the tests' own programs",
    "maintlock doctor": "it may find something about this machine; the shell commands run it with an `||`",
    'eval "$(maintlock completion zsh)"': "it is for a zsh at a prompt; test_completion has zsh check the script",
}
ANY_PORT = {"EXAMPLE_CHROMA_PORT": "0", "EXAMPLE_BRIDGE_PORT": "0", "EXAMPLE_MLX_PORT": "0"}
IS_AT_WORK = """maintlock status --json | grep '"name": "sleep"' > /dev/null"""
IS_RUNNING = (
    "maintlock health --json |"
    """ python3 -c 'import json, sys; sys.exit(json.load(sys.stdin)["orchestrator"]["state"] != "running")'"""
)


def section(heading: str, text: str = TEXT) -> str:
    """Return the text below a heading."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def first_cells(text: str) -> list[str]:
    """Return the first cell of each row of the tables in a text, without those of their heads."""
    rows = re.findall(r"^\| ?(.*?) ?\|", text, re.MULTILINE)
    return [cell for cell, below in zip(rows, [*rows[1:], ""], strict=True) if "---" not in cell + below]


def test_commands_run_as_they_stand(lock: Lock, tmp_path: Path, require: Callable[[str], str]) -> None:
    """The shell commands succeed one after the other in a project."""
    project = copied_checkout(tmp_path / "checkout") / "wrappers" / "example"
    (project / ".config" / "fish" / "completions").mkdir(parents=True)
    commands = blocks_of(TEXT, "sh") + console_commands(TEXT, NOT_RUN)

    script = patient("\n".join(commands), "sleep 1", IS_AT_WORK)

    done = run(lock, require("bash"), "-euxc", script, cwd=project)

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(commands) > 6
    assert "descriptor: none" in done.stdout
    assert re.search(r"^stopped backup: .*sleep", done.stdout, re.MULTILINE)
    assert re.search(r"released +backup .* stopped", done.stdout)


@pytest.mark.parametrize("name", ["adopting", "guard", "node", "operations", "orchestrating"])
def test_links_lead_somewhere(name: str) -> None:
    """Every link leads to a file, and to a heading of it."""
    assert broken_links(DOCS / f"{name}.md") == []


# docs/adopting.md, docs/guard.md, docs/node.md


def test_adopting_and_removing(tmp_path: Path, require: Callable[[str], str]) -> None:
    """All steps succeed one after the other in a project that knows nothing of us, and in the end nothing is left of us."""
    require("npm")
    text = (DOCS / "adopting.md").read_text(encoding="utf-8")
    state = Path(os.environ["XDG_STATE_HOME"]) / "maintlock"
    with lock_in(state) as lock:
        project = bare_example(lock, tmp_path / "checkout")
        before = {path: path.read_bytes() for path in project.iterdir() if path.is_file()}
        env = {name: value for name, value in lock.env().items() if name != "MAINTLOCK_STATE_DIR"}
        commands = [
            *blocks_of(text, "sh"),
            *console_commands(text, {"pipx uninstall maintlock": "it is the tests' own"}),
        ]

        done = run(lock, require("bash"), "-euxc", "\n".join(commands), cwd=project, env=env)

    assert done.returncode == 0, done.stdout + done.stderr
    for task in ("kbSync", "backup"):
        assert re.search(rf"released +{task} .* completed", done.stdout), done.stdout
    assert "embedding" in done.stdout and "cleaning up" in done.stdout
    assert not state.exists()
    after = {path: path.read_bytes() for path in project.iterdir() if path.is_file()}
    assert {path: text for path, text in after.items() if path.name not in {"doctor.txt", ".npmrc"}} == before
    assert not (project / ".maintlock").exists() and "script-shell" not in str(after.get(project / ".npmrc", ""))


def test_guard_commands_run_as_they_stand(lock: Lock, tmp_path: Path, require: Callable[[str], str]) -> None:
    """What docs/guard.md tells to type succeeds one after the other, and does what stands beside it."""
    require("npm")
    project = bare_example(lock, tmp_path / "checkout")
    commands = console_commands((DOCS / "guard.md").read_text(encoding="utf-8"), {})
    commands.insert(-1, "cat .npmrc")  # between the setting and its removal
    checkout = project.parents[1]  # its home, which npm does not take for a project

    done = run(lock, require("bash"), "-euxc", "\n".join(["cd wrappers/example", *commands]), cwd=checkout)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "script-shell=maintlock-npm-shell\n" in done.stdout and "ai:backup: restored\n" in done.stdout
    guarded = [text for text in (project / "package.json").read_text().splitlines() if "maintlock-wrap" in text]
    assert len(guarded) == 1 and "-t kbSync" in guarded[0]


def test_node_commands_run_as_they_stand(lock: Lock, tmp_path: Path, require: Callable[[str], str]) -> None:
    """What docs/node.md tells to type succeeds: the modules are copied into a project, and guard a script there."""
    require("node")
    checkout = copied_checkout(tmp_path / "checkout")
    (checkout / "project").mkdir()  # its home is the checkout
    (checkout / "project" / "backup.cjs").write_text("console.log('backed up')", encoding="utf-8")
    copy, guard = blocks_of((DOCS / "node.md").read_text(encoding="utf-8"), "sh")

    done = run(lock, require("bash"), "-euxc", f"{copy}\ncd ~/project\n{guard}", cwd=checkout)

    assert (done.returncode, done.stdout) == (0, "backed up\n"), done.stderr
    assert [row["task"] for row in lock.history(event="released")] == ["backup"]


def test_every_check_is_described() -> None:
    """The table of findings has each of doctor's checks, in its order."""
    assert first_cells(section("What doctor finds")) == [check.name for check in CHECKS]


def test_every_state_is_described() -> None:
    """The table of states has each of them, with its exit code."""
    rows = re.findall(r"^\| `(\w+)` \| (\d) \|", section("What status says"), re.MULTILINE)
    assert {state: int(code) for state, code in rows} == EXIT_CODES


def test_the_example_of_hold_until_is_complete() -> None:
    """Each choice of --hold-until has its column."""
    (head,) = re.findall(r"^\| \| (`session`.*) \|$", section("Who keeps the lease"), re.MULTILINE)
    assert tuple(re.findall(r"`(\w+)`", head)) == HOLD_UNTIL


def test_commands_that_are_named_exist() -> None:
    """Each subcommand that the page names is one."""
    named = set(re.findall(r"\bmaintlock ([a-z][a-z-]+)", "".join(re.findall(r"`[^`\n]+`", TEXT))))
    assert named and named <= {*COMMANDS, "run", "hold"}


# docs/orchestrating.md


def test_orchestrating_commands_run_as_they_stand(tmp_path: Path, require: Callable[[str], str]) -> None:
    """The shell commands of the page succeed one after the other in a project, and leave neither job nor daemon."""
    for tool in ("node", "tmux"):
        require(tool)
    project = copied_checkout(tmp_path / "checkout") / "wrappers" / "example"
    config = project / "maintlock.toml"
    text = config.read_text(encoding="utf-8")
    config.write_text(re.sub(r"(?m)^match = .*\n", "", text), encoding="utf-8")  # tests beside this one run them, too
    commands = blocks_of(ORCHESTRATING_TEXT, "sh")
    with lock_in(tmp_path / "state") as lock:
        env = lock.env(TMUX_TMPDIR=str(tmp_path), **ANY_PORT)
        env.pop("TMUX", None)

        script = patient("\n".join(commands), "sleep 3", IS_RUNNING)

        done = run(lock, require("bash"), "-euxc", script, cwd=project, env=env)
        until(lambda: is_stopped(lock), "the end of the one in tmux")

        assert done.returncode == 0, done.stdout + done.stderr
        assert len(commands) > 3
        assert "INFO summary started (inbox:3)" in done.stderr and "daemons stopped" in done.stderr
        assert re.search(r"^kbSync +\S+", done.stdout, re.MULTILINE)


def is_stopped(lock: Lock) -> bool:
    """Tell whether the orchestrator has ended in good order, with all its daemons."""
    health = subprocess.run([MAINTLOCK, "health", "--json"], env=lock.env(), capture_output=True, text=True).stdout
    return bool(json.loads(health)["orchestrator"]["state"] == "stopped")


def test_first_configuration_is_valid(lock: Lock, tmp_path: Path) -> None:
    """The configuration that the page begins with is one, and nothing in it is due that has neither interval nor inbox."""
    (config,) = blocks_of(ORCHESTRATING_TEXT, "toml")
    (tmp_path / "maintlock.toml").write_text(config, encoding="utf-8")

    done = run(lock, MAINTLOCK, "tasks", "--json", cwd=tmp_path)

    tasks = json.loads(done.stdout)["tasks"]
    assert {name: task["heavy"] for name, task in tasks.items() if not task["heavy"]} == {"clean-tmp": False}
    assert [name for name, task in tasks.items() if task["next_due_at"] is None] == ["reindex"]


def test_every_reason_and_state_is_described() -> None:
    """The tables have each reason code of the contract, and each state in the order in which they apply."""
    text = section("What is held back, and why", ORCHESTRATING_TEXT)
    named = [cell.strip("`") for cell in first_cells(text)]
    reasons = "backpressure lease-held queued survivors lockfile-replaced wait-timeout collision".split()
    assert named == [*reasons, *"running starved failing overdue deferred resting idle".split()]


def test_transcript_of_tasks_is_todays(lock: Lock, tmp_path: Path) -> None:
    """The table that is shown has the columns that are printed."""
    (tmp_path / "maintlock.toml").write_text('[tasks.reindex]\ncommand = ["true"]\n', encoding="utf-8")

    printed = run(lock, MAINTLOCK, "tasks", cwd=tmp_path).stdout.splitlines()

    shown = [line.split() for block in blocks_of(ORCHESTRATING_TEXT, "text") for line in block.splitlines()]
    assert [line.split() for line in printed] == [line for line in shown if line in [row.split() for row in printed]]


def test_services_are_what_systemd_and_launchd_take(tmp_path: Path) -> None:
    """The unit passes systemd's own check where there is one, and the property list is one."""
    (unit,) = blocks_of(ORCHESTRATING_TEXT, "ini")
    (plist,) = blocks_of(ORCHESTRATING_TEXT, "xml")
    told = plistlib.loads(plist.encode())

    assert told["ProgramArguments"][1:] == ["orchestrate"] and told["AbandonProcessGroup"] is True
    checker = shutil.which("systemd-analyze")
    if checker is None:
        return
    path = tmp_path / "maintlock.service"
    path.write_text(unit.replace("%h/.local/bin/maintlock", MAINTLOCK).replace("%h/neo", "/"), encoding="utf-8")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(
        [checker, "--user", "verify", str(path)], env=env, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, "maintlock.service" in done.stderr) == (0, False), done.stderr


def test_single_pass_from_cron(lock: Lock, tmp_path: Path) -> None:
    """The line of the crontab is one, and what it starts makes one pass and leaves."""
    (crontab,) = blocks_of(ORCHESTRATING_TEXT, "crontab")
    (line,) = [line for line in crontab.splitlines() if not line.startswith("PATH=")]
    *fields, command = line.split(None, 5)
    (tmp_path / "maintlock.toml").write_text(
        '[tasks.once]\ncommand = ["touch", "ran"]\ninterval = "1d"\n', encoding="utf-8"
    )

    done = run(lock, "sh", "-c", command.replace("/home/ada/neo", ".").replace("/home/ada", "."), cwd=tmp_path)

    assert fields == ["*"] * 5 and done.returncode == 0, done.stderr
    until((tmp_path / "ran").exists, "the task")


def test_programs_run_from_cron(lock: Lock, tmp_path: Path) -> None:
    """Each line of the crontab is one: five fields, and options that the programs take."""
    (crontab,) = blocks_of(TEXT, "crontab")
    jobs = [line.split(None, 5) for line in crontab.splitlines() if not line.startswith("PATH=")]
    assert len(jobs) == 3
    for *fields, command in jobs:
        assert len(fields) == 5 and all(re.fullmatch(r"[\d*]+", field) for field in fields)
        tried = re.sub(r"cd \S+ && |(?<=-- ).*| > .*", "", command).rstrip()
        done = run(lock, "sh", "-c", f"{tried} true" if tried.endswith("--") else tried, cwd=tmp_path)
        assert done.returncode in {0, 1}, done.stderr
