"""`maintlock init`: a first configuration that loads as it is, says what every key means, and moves nobody's lock."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from maintlock import config, schema
from maintlock.npm import starter
from tests import support

SCRIPTS = {
    "test": "node --test",
    "ai:sync-kb": "node ./ai/syncKnowledgeBase.mjs",
    "ai:backup": "cd out && node ../backup.mjs",
    "ai:backup-full": "node backup.mjs --full",
    "ai:dream": "maintlock-wrap -t dream -- node runSandman.mjs",
    "prepare": "node embed.mjs",
    'odd "name"\\\x7fé backup': "x",
    "backup half \ud800": "x",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a project with scripts."""
    place = tmp_path / "project"
    place.mkdir()
    (place / "package.json").write_text(json.dumps({"scripts": SCRIPTS}), encoding="utf-8")
    return place


def init(place: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `maintlock init` to its end."""
    return subprocess.run(
        [support.MAINTLOCK, "init", *words], cwd=place, capture_output=True, text=True, timeout=support.PATIENCE_SECONDS, **options
    )  # fmt: skip


def test_configuration_from_scripts(place: Path) -> None:
    """Each script that is guarded or looks heavy becomes a task, recognised by its file where that is its own, and none
    is due by itself.
    """
    done = init(place)
    assert (done.returncode, done.stderr) == (0, "")

    found = config.load(str(place / "maintlock.toml"))

    names = {task.npm_script: (task.name, task.match) for task in found.tasks.values()}
    assert names == {
        "ai:sync-kb": ("ai:sync-kb", "syncKnowledgeBase.mjs"),
        "ai:backup": ("ai:backup", None),  # backup.mjs could be either of two
        "ai:backup-full": ("ai:backup-full", None),
        "ai:dream": ("dream", "runSandman.mjs"),
        'odd "name"\\\x7fé backup': ("odd--name-----backup", None),
    }
    assert {task.interval for task in found.tasks.values()} == {0.0}
    assert done.stdout.startswith("maintlock.toml: written, with 5 tasks\n")
    assert "next: maintlock guard ai:sync-kb ai:backup ai:backup-full 'odd " in done.stdout


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("node ./ai/backup.mjs --full", ("node", "./ai/backup.mjs", "--full")),
        ("maintlock-wrap -t backup -- node backup.mjs", ("node", "backup.mjs")),
        ("maintlock-wrap -t backup -w 10m -- node 'a b.mjs'", ("node", "a b.mjs")),
        ("maintlock-wrap -t backup -- maintlock repo-sync", ("maintlock", "repo-sync")),
        ("cd out && node ../backup.mjs", ()),
        ("maintlock-wrap -t backup -- sh -c 'cd out && node ../backup.mjs \"$@\"' sh", ()),
        ("X=1 node backup.mjs", ()),
        ("node $SCRIPT", ()),
        ("node *.mjs", ()),
        ("tsx backup.ts", ()),
        ("backup", ()),
        ("node 'backup", ()),
    ],
)
def test_commands_without_npm(place: Path, script: str, command: tuple[str, ...]) -> None:
    """A task runs what its script runs, without the guard, which would join and have the run on record twice; where only
    npm can run it, it does, and a comment says that.
    """
    (place / "package.json").write_text(json.dumps({"scripts": {"ai:backup": script}}), encoding="utf-8")
    init(place)
    (task,) = config.load(str(place / "maintlock.toml")).tasks.values()
    assert task.command == (command or ("npm", "run", "--silent", "ai:backup"))
    assert ("recorded twice" in (place / "maintlock.toml").read_text(encoding="utf-8")) is (not command)


def test_scripts_around_are_not_lost(place: Path) -> None:
    """A script with a pre script is run by npm, which runs both."""
    scripts = {"ai:backup": "node backup.mjs", "preai:backup": "mkdir -p out"}
    (place / "package.json").write_text(json.dumps({"scripts": scripts}), encoding="utf-8")
    init(place)
    assert '["npm", "run", "--silent", "ai:backup"]' in (place / "maintlock.toml").read_text(encoding="utf-8")


def test_a_scheduled_run_is_on_record_once(place: Path, lock: support.Lock) -> None:
    """What is scheduled by the configuration that init writes for a guarded script is one run, not one inside another."""
    (place / "backup.py").write_text("print('done')", encoding="utf-8")
    script = "maintlock-wrap -t backup -- python3 backup.py"
    (place / "package.json").write_text(json.dumps({"scripts": {"ai:backup": script}}), encoding="utf-8")
    init(place)
    path = place / "maintlock.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("# interval", "interval"), encoding="utf-8")

    subprocess.run([support.MAINTLOCK, "orchestrate", "--once"], cwd=place, env=lock.env(), check=True)
    support.until(lambda: lock.history(event="released"), "the end of the run")

    assert [(row["event"], row["task"]) for row in lock.history()] == [("acquired", "backup"), ("released", "backup")]


def test_what_init_writes_is_what_guard_uses(place: Path) -> None:
    """After `init` and the command it suggests nothing that looks heavy is left out, and the tasks are the configured ones."""
    scripts = {name: script for name, script in SCRIPTS.items() if name.isprintable()}
    (place / "package.json").write_text(json.dumps({"scripts": scripts}), encoding="utf-8")
    suggested = init(place).stdout.rpartition("next: ")[2]

    done = subprocess.run(["sh", "-c", suggested.replace("maintlock ", f"{support.MAINTLOCK} ", 1)], cwd=place)

    assert done.returncode == 0
    changed = json.loads((place / "package.json").read_bytes())["scripts"]
    guarded = {name for name, script in changed.items() if script.startswith("maintlock-wrap -t ")}
    found = config.load(str(place / "maintlock.toml"))
    assert guarded == {task.npm_script for task in found.tasks.values()}


@pytest.mark.parametrize("scripts", [SCRIPTS, {}], ids=["tasks", "no tasks"])
def test_every_key_is_explained(place: Path, scripts: dict[str, str]) -> None:
    """Each key there is stands in the file with a word on it, in force or as a comment, but for `state_dir`: a second
    state directory would be a second lock.
    """
    (place / "package.json").write_text(json.dumps({"scripts": scripts}), encoding="utf-8")
    text = init(place, "--print").stdout
    assert "state_dir" not in text
    keys = {*schema.TOP, *schema.LEASE, *schema.TASK, *schema.DAEMON, *schema.REPO_SYNC} - {
        "state_dir",
        "tasks",
        "daemons",
    }
    assert {key for key in keys if f"{key} =" not in text and f"[{key}" not in text} == set()


def test_comments_are_valid_too(place: Path) -> None:
    """With its comment marks taken off, every example in the file is right."""
    lines = starter.configuration([]).splitlines()
    uncommented = [line.removeprefix("#").removeprefix(" ") if is_example(line) else line for line in lines]
    # What "a task can also have" belongs to the task before it.
    text = "\n".join(uncommented).replace("kbSync", "backup")
    path = place / "all.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    found = config.load(str(path))
    assert found.tasks["backup"].rest == 180
    assert found.daemons["chroma"].cooldown == 15
    assert found.repo_sync is not None
    assert tomllib.loads(text)["poll_interval"] == "3s"


def is_example(line: str) -> bool:
    """Tell whether a comment is a key or a table."""
    rest = line.removeprefix("# ")
    return line.startswith("# ") and (rest.startswith("[") or rest.split(" ")[1:2] == ["="])


def test_printing_writes_nothing(place: Path) -> None:
    """With `--print` the same text is shown, and no file is made."""
    shown = init(place, "--print").stdout
    assert os.listdir(place) == ["package.json"]
    init(place)
    assert (place / "maintlock.toml").read_text(encoding="utf-8") == shown


def test_a_configuration_is_not_overwritten(place: Path) -> None:
    """One that is there stays, unless that is asked for, and then only if it is a file."""
    path = place / "maintlock.toml"
    path.write_text("mine", encoding="utf-8")
    done = init(place)
    assert (done.returncode, done.stdout) == (64, "")
    assert "overwrite it with --force" in done.stderr
    assert path.read_text(encoding="utf-8") == "mine"
    assert init(place, "--force").returncode == 0
    assert config.load(str(path)).tasks
    path.unlink()
    path.symlink_to("elsewhere.toml")
    assert init(place).returncode == 64
    assert init(place, "--force").returncode == 77
    assert os.readlink(path) == "elsewhere.toml"


def test_the_file_can_be_trusted_whatever_the_umask(place: Path) -> None:
    """What is written may be written by its owner alone, or maintlock would refuse to read it."""
    done = init(place, umask=0)
    assert done.returncode == 0
    assert stat.S_IMODE((place / "maintlock.toml").stat().st_mode) == 0o644
    assert sorted(os.listdir(place)) == ["maintlock.toml", "package.json"]


def test_without_npm(tmp_path: Path) -> None:
    """Without a `package.json` nothing is written: it may be the wrong directory. What is printed has an example of a task."""
    done = init(tmp_path)
    assert (done.returncode, done.stdout) == (64, "")
    assert f"no package.json in {tmp_path} or above" in done.stderr and "maintlock init --print >" in done.stderr
    assert os.listdir(tmp_path) == []

    printed = init(tmp_path, "--print").stdout
    (tmp_path / "maintlock.toml").write_text(printed, encoding="utf-8")
    assert not config.load(str(tmp_path / "maintlock.toml")).tasks
    assert "# [tasks.backup]" in printed


def test_what_cannot_be_guarded_is_not_suggested(place: Path) -> None:
    """The command that is suggested leaves out what `guard` would refuse, and the reason is told."""
    (place / "package.json").write_text(
        json.dumps({"scripts": {"dump": "echo $1", "ai:backup": "x"}}), encoding="utf-8"
    )
    told = init(place).stdout
    assert told.endswith("\nnext: maintlock guard ai:backup\n")
    assert "note: dump cannot be guarded as it is: uses $1, which npm leaves empty" in told


def test_broken_package(place: Path) -> None:
    """A broken `package.json` is said, and nothing is written."""
    (place / "package.json").write_text("{", encoding="utf-8")
    done = init(place)
    assert (done.returncode, done.stdout) == (64, "")
    assert "not JSON" in done.stderr
    assert os.listdir(place) == ["package.json"]


def test_a_package_inside_a_workspace(place: Path) -> None:
    """A configuration that would hide one above is told as such; it is written beside the package's own file."""
    init(place)
    inner = place / "packages" / "a"
    inner.mkdir(parents=True)
    shutil.copy(place / "package.json", inner)
    done = init(place, "--package-json", "packages/a")
    assert f"note: it hides {place / 'maintlock.toml'} from what runs here" in done.stdout
    assert (inner / "maintlock.toml").exists()
