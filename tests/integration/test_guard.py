"""`maintlock guard`, as people run it: what it writes, what it shows, what it refuses, and the way back."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maintlock.npm import shim
from tests import support

PACKAGE = """\
{
\t"name"    : "neo",
\t"scripts" : {
\t\t"prepare"        : "husky",
\t\t"test"           : "node --test",
\t\t"ai:sync-kb"     : "node ./ai/syncKnowledgeBase.mjs",
\t\t"preai:backup"   : "mkdir -p out",
\t\t"ai:backup"      : "cd out && NODE_ENV=x node ../backup.mjs --note 'it is'",
\t\t"nightly"        : "npm run ai:sync-kb && npm run ai:backup",
\t\t"ai:dream"       : "npx maintlock-wrap -t dream -- node dream.mjs",
\t\t"db:dump"        : "node a && maintlock-wrap -t dump -- pg_dump x",
\t\t"db:migrate"     : "f() { knex $1; }; f",
\t\t"greet"          : "echo $1",
\t\t"none"           : "",
\t\t"odd name=x"     : "node \\u0027x\\u0027 \\u0026\\u0026 true"
\t},
\t"files": ["a", "b"]
}"""
SYNC_GUARDED = "maintlock-wrap -t kbSync -- node ./ai/syncKnowledgeBase.mjs"
CONFIGURATION = (
    '[tasks.kbSync]\nnpm_script = "ai:sync-kb"\nmatch = "syncKnowledgeBase.mjs"\n[tasks.light]\nheavy = false\n'
)


class Package:
    """A directory with a `package.json`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "package.json"
        self.write(PACKAGE)

    def write(self, text: str) -> None:
        """Replace the file."""
        self.file.write_bytes(text.encode())

    def configure(self, text: str = CONFIGURATION) -> None:
        """Write a configuration beside it."""
        path = self.directory / "maintlock.toml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)

    def guard(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `maintlock guard` to its end."""
        return subprocess.run(
            [support.MAINTLOCK, "guard", *words], capture_output=True, text=True, timeout=support.PATIENCE_SECONDS,
            **{"cwd": self.directory, **options},
        )  # fmt: skip

    def told(self, *words: str, **options: Any) -> str:
        """Return what a call that succeeds prints."""
        done = self.guard(*words, **options)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def refused(self, *words: str, code: int = 64) -> str:
        """Return what a call says that changes nothing."""
        before = self.contents()
        done = self.guard(*words)
        assert (done.returncode, done.stdout) == (code, "")
        assert self.contents() == before
        assert all(line.startswith("maintlock: ") for line in done.stderr.splitlines())
        return done.stderr

    def contents(self) -> dict[str, bytes]:
        """Return every file and what is in it."""
        found = (path for path in self.directory.rglob("*") if path.is_file())
        return {str(path.relative_to(self.directory)): path.read_bytes() for path in found}

    def scripts(self) -> dict[str, str]:
        """Return the scripts as npm reads them."""
        found: dict[str, str] = json.loads(self.file.read_bytes())["scripts"]
        return found


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """Give a package."""
    directory = tmp_path / "project"
    directory.mkdir()
    return Package(directory)


# Guarding and taking it back -----------------------------------------------------------------------------------------


def test_guarding_changes_that_script_alone(package: Package) -> None:
    """One script is guarded as the task that is said; every other byte stays, and the output says what to know."""
    told = package.told("ai:sync-kb=kbSync")

    expected = PACKAGE.replace('"node ./ai/syncKnowledgeBase.mjs"', f'"{SYNC_GUARDED}"')
    assert package.contents() == {"package.json": expected.encode()}
    assert told.splitlines()[0] == "ai:sync-kb: guarded, as task kbSync"


def test_compound_scripts_are_guarded_whole(package: Package) -> None:
    """A script of several commands goes under one guard, and its pre script is named as one of its own."""
    told = package.told("ai:backup")

    inside = "cd out && NODE_ENV=x node ../backup.mjs --note '\\''it is'\\'' \"$@\""
    assert package.scripts()["ai:backup"] == f"maintlock-wrap -t ai:backup -- sh -c '{inside}' sh"
    assert "note: preai:backup: npm runs it around ai:backup" in told


def test_undo_restores_every_byte(package: Package) -> None:
    """Undo by name restores these, undo without names all, to the byte, whatever was written how."""
    package.told("ai:sync-kb", "ai:backup", "nightly", "db:migrate", "odd name=x", "db:dump")

    assert package.told("--undo", "nightly", "odd name=x") == "nightly: restored\nodd name=x: restored\n"
    assert 'npm run ai:sync-kb && npm run ai:backup"' in package.file.read_text(encoding="utf-8")
    told = package.told("--undo")

    assert package.contents() == {"package.json": PACKAGE.encode()}
    assert "ai:backup: restored\n" in told
    assert "ai:dream: is guarded by hand, not by maintlock guard; it stays as it is\n" in told


def test_undo_leaves_what_guard_does_not_write(package: Package) -> None:
    """Guards in another form than `guard`'s own are somebody's own: undo without names leaves them, by name refuses."""
    by_hand = {
        "a3": "maintlock run -t a3 -- node a.mjs",
        "a5": "maintlock-wrap -t a5 -w 10m -- sh -c 'node a.mjs && node b.mjs'",
        "a6": "maintlock-wrap --task=a6 -- node a.mjs",
        "a7": "maintlock-wrap -- node a.mjs",
    }
    text = json.dumps({"scripts": {**by_hand, "b": "node b.mjs"}})
    package.write(text)
    package.told("b")

    told = package.told("--undo")

    assert package.file.read_text(encoding="utf-8") == text
    assert [line.split(":")[0] for line in told.splitlines() if "it stays as it is" in line] == list(by_hand)
    for name in by_hand:
        assert f"{name}: is guarded by hand, not by maintlock guard; edit it yourself" in package.refused(
            "--undo", name
        )


def test_the_way_back_names_what_was_guarded(package: Package, tmp_path: Path) -> None:
    """The command that takes it back, printed after guarding, restores these scripts and touches no other guard."""
    package.told("ai:sync-kb=kbSync")
    before = package.contents()
    for words, options in (
        (["nightly", "odd name=x"], {}),
        (["nightly", "--package-json", "project"], {"cwd": tmp_path}),
    ):
        told = package.told(*words, **options)
        (line,) = [line for line in told.splitlines() if line.startswith("to take it back: ")]
        command = line.removeprefix("to take it back: maintlock ")

        done = subprocess.run(["sh", "-c", f"{support.MAINTLOCK} {command}"], **{"cwd": package.directory, **options})

        assert done.returncode == 0
        assert package.contents() == before


def test_undo_takes_what_guard_takes(package: Package) -> None:
    """A script may be named with its task, as it was guarded; another task than its own is refused."""
    package.told("ai:sync-kb=kbSync")
    assert "is guarded as task kbSync, not other" in package.refused("--undo", "ai:sync-kb=other")
    assert package.told("--undo", "ai:sync-kb=kbSync") == "ai:sync-kb: restored\n"


def test_names_that_begin_with_a_dash(package: Package) -> None:
    """Behind `--` a script may have any name, before it options and names may be mixed."""
    text = '{"scripts": {"-dash": "node d.mjs", "--undo": "node u.mjs", "a": "node a.mjs"}}'
    package.write(text)
    told = package.told("a", "--shim", "--", "-dash", "--undo=undo")
    assert "to take it back: maintlock guard --undo -- a -dash --undo\n" in told
    assert all(script.startswith("sh .maintlock/wrap -t ") for script in package.scripts().values())
    package.told("--undo", "--", "a", "-dash", "--undo")
    assert package.file.read_text(encoding="utf-8") == text


def test_guarding_twice_changes_nothing(package: Package) -> None:
    """What is guarded stays as it is, by us or by hand, also when its task is said again."""
    package.told("ai:sync-kb=kbSync")
    before = package.contents()

    told = package.told("ai:sync-kb", "ai:sync-kb=kbSync".replace("=kbSync", ""), "ai:dream=dream")

    assert told == "ai:sync-kb: guarded already, as task kbSync\nai:dream: guarded already by hand, as task dream\n"
    assert package.contents() == before
    assert package.told("--undo", "nightly") == "nightly: is not guarded\n"
    assert "as task kbSync; first: maintlock guard --undo ai:sync-kb\n" in package.refused("ai:sync-kb=other")


def test_nothing_to_undo(package: Package) -> None:
    """Undo where nothing is guarded is no error."""
    package.write('{"scripts": {"a": "b"}}')
    assert package.told("--undo") == "nothing is guarded here\n"


def test_tasks_come_from_the_configuration(package: Package) -> None:
    """Without a task on the command line it is the one with that npm script, else the script's name made fit."""
    package.configure()
    package.told("ai:sync-kb", "odd name=x")
    assert package.scripts()["ai:sync-kb"] == SYNC_GUARDED
    assert package.scripts()["odd name=x"].startswith("maintlock-wrap -t odd-name-x -- ")


def test_another_file(package: Package, tmp_path: Path) -> None:
    """`--package-json` names the file, and the configuration is the one that its scripts will see."""
    package.configure()
    package.told("ai:sync-kb", "--package-json", "project/package.json", cwd=tmp_path)
    assert package.scripts()["ai:sync-kb"] == SYNC_GUARDED


def test_from_a_directory_below(package: Package) -> None:
    """Somewhere inside a project its `package.json` is found, as npm finds it."""
    (package.directory / "a" / "b").mkdir(parents=True)
    package.told("ai:sync-kb=kbSync", cwd=package.directory / "a" / "b")
    assert package.scripts()["ai:sync-kb"] == SYNC_GUARDED


def test_the_projects_own_shell_is_kept(package: Package) -> None:
    """Where the project has npm use bash, compound scripts go on to be bash; ours beside npm means sh."""
    rc = package.directory / ".npmrc"
    for shell, inner in {"/bin/bash": "/bin/bash", '"./node_modules/.bin/maintlock-npm-shell"': "sh"}.items():
        rc.write_text(f"; a comment\nfund=false\nscript-shell = {shell}\n", encoding="utf-8")
        package.told("ai:backup")
        assert package.scripts()["ai:backup"].startswith(f"maintlock-wrap -t ai:backup -- {inner} -c 'cd out")
        package.told("--undo", "ai:backup")
    rc.write_text("script-shell=C:\\pwsh.exe\n", encoding="utf-8")
    assert "guards are written for POSIX shells" in package.refused("ai:backup")


def test_file_keeps_mode_and_link(package: Package, tmp_path: Path) -> None:
    """A symlinked `package.json` stays a link, and its target keeps its mode."""
    real = tmp_path / "real.json"
    os.rename(package.file, real)
    real.chmod(0o640)
    package.file.symlink_to(real)

    package.told("ai:sync-kb=kbSync")

    assert package.file.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert package.scripts()["ai:sync-kb"] == SYNC_GUARDED
    assert os.listdir(package.directory) == ["package.json"]


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no script given; see which there are: maintlock guard --list"),
        (["ai:sync-kp"], "has no script 'ai:sync-kp', did you mean ai:sync-kb?"),
        (["zzz"], "has no script 'zzz'; see: maintlock guard --list"),
        (["ai:sync-kb", "zzz"], "has no script 'zzz'"),
        (["--undo", "zzz"], "has no script 'zzz'"),
        (["-dash"], "unrecognized arguments: -dash"),
        (["--", "-dash"], "has no script '-dash'"),
        (["ai:sync-kb=a b"], "'a b' is no task's name: expected"),
        (["ai:sync-kb="], "'' is no task's name: expected"),
        (["ai:sync-kb=a", "ai:sync-kb=b"], "ai:sync-kb: asked for twice, as different tasks"),
        (["ai:sync-kb=a", "nightly=a"], "nightly: task a would be two scripts, ai:sync-kb and nightly"),
        (["nightly=dream"], "nightly: task dream would be two scripts, ai:dream and nightly"),
        (["ai:dream=other"], "ai:dream: is guarded already, as task dream; edit it yourself"),
        (["prepare"], "prepare: npm runs it by itself (install, pack, publish, version)"),
        (["none"], "none: is empty"),
        (["greet"], "greet: uses $1, which npm leaves empty; put it into a file of its own"),
        (["--undo", "ai:dream"], "ai:dream: is guarded by hand, not by maintlock guard; edit it yourself"),
        (["--undo", "ai:dream=other"], "ai:dream: is guarded by hand, not by maintlock guard; edit it yourself"),
        (["--undo", "--shim"], "not allowed with"),
        (["--json", "nightly"], "--json goes with --list"),
        (["--package-json", "nowhere.json", "a"], "nowhere.json: no such file"),
    ],
)
def test_refusals(package: Package, words: list[str], said: str) -> None:
    """What cannot be done is said with its reason, and then nothing at all is changed."""
    assert said in package.refused(*words)


def test_all_refusals_are_told_at_once(package: Package) -> None:
    """Several reasons against one call are told together, and what would have been fine is not done either."""
    said = package.refused("ai:sync-kb", "prepare", "greet", "none")
    assert [line.split(": ")[1] for line in said.splitlines()] == ["prepare", "greet", "none", "nothing was changed"]


def test_one_task_is_one_script(package: Package) -> None:
    """A task that the configuration gives to another script, and another task for a script it names, are refused."""
    package.configure()
    assert "nightly: task kbSync is script ai:sync-kb in" in package.refused("nightly=kbSync")
    assert "ai:sync-kb: is task kbSync in" in package.refused("ai:sync-kb=other")


def test_maintlock_itself_is_not_guarded(package: Package) -> None:
    """A script that shows who has the lease must not wait for it."""
    package.write('{"scripts": {"s": "maintlock status", "o": "maintlock orchestrate"}}')
    assert package.refused("s", "o").count("is maintlock itself") == 2


def test_bad_configuration(package: Package) -> None:
    """With a configuration that no guarded script could run under, nothing is guarded; undo needs none."""
    package.told("ai:sync-kb")
    package.configure("nonsense = 1\n")
    assert "nonsense" in package.refused("nightly", code=78)
    package.told("--undo")
    assert package.contents()["package.json"] == PACKAGE.encode()


def test_files_that_may_not_be_written(package: Package) -> None:
    """A read-only file is left as it is, with the reason (77); so is a broken one (64)."""
    package.file.chmod(0o444)
    assert "chmod u+w" in package.refused("nightly", code=77)
    assert "chmod u+w" in package.refused("nightly", "--shim", code=77)
    package.file.chmod(0o644)
    package.write(PACKAGE[:-1])
    assert "not JSON: line 18" in package.refused("nightly")
    assert "not JSON: line 18" in package.refused("--undo")
    package.file.unlink()
    assert "no package.json in" in package.refused("nightly")


def test_a_directory_that_may_not_be_written(package: Package, require: Callable[[str], str]) -> None:
    """Without the right to write beside the file, it stays whole (77)."""
    if os.geteuid() == 0:
        command = [require("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"]
        os.chown(package.file, 65534, 65534)
    else:
        command = []
    for directory in package.directory.parents:
        if Path(tempfile.gettempdir()) in directory.parents:
            directory.chmod(0o755)
    package.directory.chmod(0o555)
    words = [*command, support.MAINTLOCK, "guard", "nightly"]
    done = subprocess.run(words, cwd=package.directory, capture_output=True, text=True)
    package.directory.chmod(0o755)
    assert (done.returncode, done.stdout) == (77, "")
    assert "not written: Permission denied" in done.stderr
    assert package.contents() == {"package.json": PACKAGE.encode()}


def test_many_guards_at_once(package: Package) -> None:
    """Guards that run at the same time take turns: none is lost, and the file is whole at every moment."""
    names = [f"job{i}" for i in range(4)]
    package.write(json.dumps({"scripts": {name: f"node {name}.mjs" for name in names}}, indent=4))
    before = package.file.read_bytes()

    running = [
        subprocess.Popen([support.MAINTLOCK, "guard", name], cwd=package.directory, stdout=subprocess.DEVNULL) for name in names
    ]  # fmt: skip
    while any(one.poll() is None for one in running):
        assert len(package.scripts()) == len(names)

    assert [one.wait() for one in running] == [0] * len(names)
    assert package.scripts() == {name: f"maintlock-wrap -t {name} -- node {name}.mjs" for name in names}
    package.told("--undo")
    assert package.contents() == {"package.json": before}


# The shim ------------------------------------------------------------------------------------------------------------


def test_shim_comes_and_goes(package: Package) -> None:
    """With `--shim` the entry is written and used; it goes with the last script that uses it."""
    told = package.told("--shim", "ai:sync-kb=kbSync", "ai:backup")

    assert "note: commit .maintlock/wrap too" in told
    assert package.scripts()["ai:sync-kb"] == "sh .maintlock/wrap -t kbSync -- node ./ai/syncKnowledgeBase.mjs"
    assert package.contents()[".maintlock/wrap"] == shim.TEXT.encode()
    assert package.told("--undo", "ai:sync-kb") == "ai:sync-kb: restored\n"
    assert ".maintlock/wrap: removed" in package.told("--undo")
    assert package.contents() == {"package.json": PACKAGE.encode()}
    assert not (package.directory / ".maintlock").exists()


def test_a_guarded_script_moves_to_the_shim(package: Package) -> None:
    """What is guarded already goes through the shim when that is asked for, stays there, and comes off to the byte."""
    package.told("ai:backup")
    assert "ai:backup: guarded through .maintlock/wrap now, as task ai:backup" in package.told("--shim", "ai:backup")
    assert "guarded already" in package.told("ai:backup")
    assert package.scripts()["ai:backup"].startswith("sh .maintlock/wrap -t ai:backup -- sh -c 'cd out")
    package.told("--undo")
    assert package.contents() == {"package.json": PACKAGE.encode()}


def test_a_file_in_the_shims_place_is_respected(package: Package) -> None:
    """What somebody else has there, or has changed there, is neither overwritten nor removed."""
    place = package.directory / ".maintlock"
    place.write_text("a file", encoding="utf-8")
    assert "is no directory" in package.refused("--shim", "nightly", code=77)
    place.unlink()
    place.mkdir()
    (place / "wrap").write_text("mine", encoding="utf-8")
    assert "is not as --shim writes it" in package.refused("--shim", "nightly", code=77)
    (place / "wrap").unlink()
    package.told("--shim", "nightly")
    with (place / "wrap").open("a") as file:
        file.write("# changed\n")
    assert package.told("--undo").startswith("nightly: restored\n")
    assert "# changed" in (place / "wrap").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["-t", "x", "--", "echo", "a b"], (0, "a b\n")), (["-t", "x", "echo"], (64, "")), (["--"], (64, ""))],
)
def test_shim_without_npm(tmp_path: Path, words: list[str], expected: tuple[int, str]) -> None:
    """Called by itself where maintlock is missing, the shim runs what is behind `--`, and only if it may."""
    shim.write(str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "echo").symlink_to("/bin/echo")
    environment = {"PATH": str(tmp_path / "bin")}
    command = ["/bin/sh", ".maintlock/wrap", *words]

    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    allowed = subprocess.run(
        command, cwd=tmp_path, env={**environment, "MAINTLOCK_OPTIONAL": "1"}, capture_output=True, text=True
    )

    assert (refused.returncode, refused.stdout) == (127, "")
    assert "this does not run without the lease" in refused.stderr
    assert (allowed.returncode, allowed.stdout) == expected


# The list ------------------------------------------------------------------------------------------------------------


def listed(package: Package, *words: str) -> dict[str, dict[str, Any]]:
    """Return what `guard --list --json` says of each script."""
    found = json.loads(package.told("--list", "--json", *words))
    assert found["package_json"] == str(package.file)
    return {row["script"]: row for row in found["scripts"]}


def test_list_shows_every_script(package: Package) -> None:
    """The list has all scripts with how they are guarded, and marks those that look heavy and are left out (L13)."""
    package.told("ai:sync-kb=kbSync")
    package.told("--shim", "ai:backup")

    found = listed(package)

    assert list(found) == list(package.scripts())
    assert {name: (row["guard"], row["task"]) for name, row in found.items() if row["guard"]} == {
        "ai:sync-kb": ("maintlock-wrap", "kbSync"),
        "ai:backup": ("shim", "ai:backup"),
        "ai:dream": ("by hand", "dream"),
        "db:dump": ("in part", "dump"),
    }
    assert [name for name, row in found.items() if row["left_out"]] == ["db:dump", "db:migrate"]
    assert found["ai:sync-kb"]["command"] == "node ./ai/syncKnowledgeBase.mjs"
    assert list(listed(package, "nightly")) == ["nightly"]


def test_list_for_people(package: Package) -> None:
    """People get a table, and the command that guards what is left out."""
    told = package.told("--list")

    assert told.startswith("package.json: 12 scripts, 1 guarded, 4 more look heavy\n")
    rows = {line[3:].split("  ")[0]: line for line in told.splitlines()}
    assert rows["ai:sync-kb"].startswith("!  ai:sync-kb")
    assert rows["ai:sync-kb"].endswith("named sync")
    assert "by hand" in rows["ai:dream"]
    assert set(package.scripts()) <= set(rows)
    command = told.rpartition("To guard what is marked: maintlock guard ")[2].split()
    package.told(*command)
    assert "look heavy" not in package.told("--list").splitlines()[0]


def test_what_is_suggested_can_be_done(package: Package) -> None:
    """What `guard` would refuse is no part of the command that is suggested for the rest, and its reason is told."""
    package.configure('[tasks.kbSync]\nnpm_script = "other"\n')
    scripts = {"dump": "echo $1", "ai:backup": "node b.mjs", "a b sync": "x", "a-b-sync": "x", "kbSync": "x"}
    package.write(json.dumps({"scripts": scripts}))

    told = package.told("--list")

    assert "! dump cannot be guarded as it is: uses $1, which npm leaves empty; put it into a file of its own" in told
    assert "! a-b-sync cannot be guarded as it is: task a-b-sync would be two scripts, a b sync and a-b-sync;" in told
    assert "! kbSync cannot be guarded as it is: task kbSync is script other in" in told
    assert listed(package)["dump"]["refusal"].startswith("uses $1") and listed(package)["dump"]["left_out"]
    (command,) = [line for line in told.splitlines() if line.startswith("To guard the others that are marked: ")]
    words = shlex.split(command.partition(": maintlock guard ")[2])
    assert words == ["ai:backup", "a b sync"]
    package.told(*words)


def test_list_knows_the_configuration(package: Package) -> None:
    """What the configuration says counts more than a name; one that is broken is said, and the list goes on."""
    package.configure(
        '[tasks.a]\nnpm_script = "ai:backup"\nheavy = false\n[tasks.b]\nnpm_script = "nightly"\n'
        '[tasks.c]\nmatch = "syncKnowledgeBase.mjs"\n'
    )
    found = listed(package)
    assert not found["ai:backup"]["looks_heavy"]
    assert found["nightly"]["why"] == "is task b in the configuration"
    assert found["ai:sync-kb"]["why"] == "runs syncKnowledgeBase.mjs, as task c does"

    package.configure("nonsense = 1\n")
    done = package.guard("--list")
    assert done.returncode == 0
    assert "listed without the configuration" in done.stderr


def test_list_knows_the_script_shell(package: Package) -> None:
    """A script that npm's `script-shell` guards is not left out."""
    package.configure()
    (package.directory / ".npmrc").write_text("script-shell=/opt/bin/maintlock-npm-shell\n", encoding="utf-8")
    found = listed(package)
    assert (found["ai:sync-kb"]["guard"], found["ai:sync-kb"]["task"]) == ("script-shell", "kbSync")
    assert found["ai:backup"]["left_out"]


def test_list_names_workspaces(package: Package) -> None:
    """The packages of a workspace are named, with what is left out in each."""
    package.write('{"workspaces": ["packages/*"], "scripts": {}}')
    for name, text in {"a": '{"scripts": {"sync": "x", "y": "z"}}', "b": "broken"}.items():
        (package.directory / "packages" / name).mkdir(parents=True)
        (package.directory / "packages" / name / "package.json").write_text(text, encoding="utf-8")

    told = package.told("--list")

    assert (
        "maintlock guard --list --package-json packages/a/package.json    (2 scripts, 0 guarded, 1 more looks heavy)"
        in told
    )
    assert "packages/b/package.json: not JSON" in told
    package.told("--package-json", "packages/a", "sync")
    assert json.loads(package.told("--list", "--json"))["workspaces"] == [
        str(package.directory / "packages" / name / "package.json") for name in "ab"
    ]


def test_list_keeps_secrets_and_terminals_safe(package: Package) -> None:
    """What a script's name or text holds can neither steer the terminal nor show a password."""
    package.write('{"scripts": {"sync\\u001b[31m": "x", "backup": "node b --token=abc123"}}')
    assert "\x1b" not in package.told("--list")
    assert "abc123" not in package.told("--list", "--json")


def test_what_looks_heavy(package: Package) -> None:
    """Heavy work is guessed from names and from what is run, and not seen in tests, watchers and daemons."""
    names = (
        "ai:run-sandman ai:dream dream ai:summarize ai:summarize-sessions summary ai:sync-kb kbSync ai:backup "
        "ai:sync-github-workflow ai:primary-dev-sync primaryDevSync ai:golden-path goldenPath build:kb"
    )
    heavy = {
        **dict.fromkeys(names.split(), "node x"),
        "x": "node buildScripts/ai/goldenPath.mjs",
        "db": "pg_dump x > y",
        "dedupe": "node ./build/reindexAll.js",
        "y": "cd a && python train.py",
    }
    light = {
        **dict.fromkeys(("update-golden", "sync:watch", "test:backup"), "node x"),
        "chroma": "chroma run --path x",
        "async": "node async.mjs",
        "trainee": "node trainee.mjs",
        "all": "npm run ai:sync-kb && npm run backup",
        "clean": "rm -rf out/backup",
        "build": "webpack",
        "ai:orchestrator": "node ai/orchestrator.mjs",
    }
    package.write(json.dumps({"scripts": heavy | light}))
    found = listed(package)
    assert {name: found[name]["looks_heavy"] for name in heavy | light} == {
        **dict.fromkeys(heavy, True),
        **dict.fromkeys(light, False),
    }
