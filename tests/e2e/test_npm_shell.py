"""`script-shell=maintlock-npm-shell` in a real .npmrc: guards the scripts it knows, and is not felt by any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from maintlock import __version__
from tests.e2e.project import Project, tools_without
from tests.support import BIN, ROOT

NPM_SHELL = ROOT / "wrappers" / "maintlock-npm-shell"
CONFIG = '[tasks.heavyWork]\nnpm_script = "heavy"\n'
SAY = """\
const { MAINTLOCK_TASK, MAINTLOCK_LEASE_ID, npm_lifecycle_event } = process.env;
const said = { event: npm_lifecycle_event, task: MAINTLOCK_TASK, id: MAINTLOCK_LEASE_ID };
console.log(JSON.stringify({ ...said, argv: process.argv.slice(2), cwd: process.cwd() }));
"""
WORDS = ["two words", "it's", '"quoted"', "$HOME", "`id`", "back\\slash", "*", "", "--flag=a b"]


@pytest.fixture(autouse=True)
def _guarded(project: Project) -> None:
    """Rearrange the project: npm's shell is ours, and one script is known to it."""
    (project.directory / ".npmrc").write_text(f"script-shell={NPM_SHELL}\n", encoding="utf-8")
    (project.directory / "say.mjs").write_text(SAY, encoding="utf-8")
    project.configure(CONFIG)
    project.set_scripts(
        heavy="node say.mjs", preheavy="node say.mjs", postheavy="node say.mjs", light="node say.mjs", fails="exit 7"
    )


def said(project: Project, *words: str, **options: Any) -> list[dict[str, Any]]:
    """Run an npm script, and return what it said of itself."""
    done = project.npm("--silent", *words, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_known_script_runs_under_the_lease_and_no_other(project: Project) -> None:
    """The script that the configuration names is that task; its pre and post scripts and all others run as they are."""
    around = [(one["event"], one.get("task")) for one in said(project, "heavy")]
    light = [(one["event"], one.get("task")) for one in said(project, "light")]

    assert around == [("preheavy", None), ("heavy", "heavyWork"), ("postheavy", None)]
    assert light == [("light", None)]


def test_known_script_stands_back(project: Project) -> None:
    """While another works the known script stands back, and an unknown one runs (R3)."""
    project.set_scripts(preheavy="true", postheavy="true")
    holder = project.lock.hold("kbSync")

    heavy = project.npm("--silent", "heavy", env=project.env(MAINTLOCK_DEFER_EXIT_CODE="75"))
    light = project.npm("--silent", "light")

    assert (heavy.returncode, heavy.stdout) == (75, "")
    assert "heavyWork deferred due to active heavy-maintenance lease: held by kbSync (" in heavy.stderr
    assert (light.returncode, json.loads(light.stdout)["event"]) == (0, "light")
    holder.signal(15)


def test_pre_script_can_be_a_task_itself(project: Project) -> None:
    """A pre script that the configuration names is guarded like any other."""
    project.configure('[tasks.before]\nnpm_script = "preheavy"\n')

    assert [one.get("task") for one in said(project, "heavy")] == ["before", None, None]


@pytest.mark.parametrize("script", ["heavy", "light"])
def test_arguments_arrive_as_given(project: Project, script: str) -> None:
    """Arguments with blanks, quotes and signs of the shell reach the script unchanged."""
    project.set_scripts(preheavy="true", postheavy="true")

    (one,) = said(project, script, "--", *WORDS)

    assert one["argv"] == WORDS


def test_compound_script_is_one_grant(project: Project) -> None:
    """`a && b`, assignments and pipes of a known script all run under one grant."""
    project.set_scripts(
        preheavy="true", postheavy="true", heavy="X=1 node say.mjs && node say.mjs one | cat; node say.mjs two"
    )

    ids = [one["id"] for one in said(project, "heavy")]

    assert len(ids) == 3 and len(set(ids)) == 1 and ids[0]


@pytest.mark.parametrize(
    ("script", "exit_code"),
    [("exit 0", 0), ("exit 7", 7), ("false || exit 2", 2), ("kill -TERM $$", 143), ("nowhere", 127)],
)
def test_exit_codes_are_the_scripts_own(project: Project, script: str, exit_code: int) -> None:
    """A known script and an unknown one end under npm with the same exit code, their own, as a shell sees it."""
    project.set_scripts(preheavy="true", postheavy="true", heavy=script, light=script)

    ends = [project.run("sh", "-c", f"npm run --silent {name}; exit $?").returncode for name in ("heavy", "light")]

    assert ends == [exit_code, exit_code]


def test_sub_directory_of_the_project(project: Project) -> None:
    """From a sub-directory npm runs the project's script, under the project's configuration."""
    project.set_scripts(preheavy="true", postheavy="true")

    (one,) = said(project, "heavy", cwd=project.directory / "kb")

    assert (one["task"], one["cwd"]) == ("heavyWork", str(project.directory))


def test_workspace_of_the_project(project: Project) -> None:
    """A workspace's script is judged by the nearest configuration above it: the project's, or one of its own."""
    make_workspace(project, "plain")
    own = make_workspace(project, "own")
    (own / "maintlock.toml").write_text('[tasks.ownWork]\nnpm_script = "heavy"\n', encoding="utf-8")

    tasks = {name: said(project, "heavy", "--workspace", f"packages/{name}")[0] for name in ("plain", "own")}

    assert {name: one["task"] for name, one in tasks.items()} == {"plain": "heavyWork", "own": "ownWork"}
    assert tasks["plain"]["cwd"] == str(project.directory / "packages" / "plain")


def test_workspaces_all_at_once(project: Project) -> None:
    """One call for all workspaces runs the known script of each under a grant of its own."""
    for name in ("a", "b"):
        make_workspace(project, name)

    ids = [one["id"] for one in said(project, "heavy", "--workspaces")]

    assert len(set(ids)) == 2


def make_workspace(project: Project, name: str) -> Path:
    """Add a workspace with a script `heavy`."""
    directory = project.directory / "packages" / name
    directory.mkdir(parents=True)
    shutil.copy(project.directory / "say.mjs", directory)
    package = {"name": name, "version": "1.0.0", "type": "module", "scripts": {"heavy": "node say.mjs"}}
    (directory / "package.json").write_text(json.dumps(package), encoding="utf-8")
    path = project.directory / "package.json"
    whole = {**json.loads(path.read_text(encoding="utf-8")), "workspaces": ["packages/*"]}
    path.write_text(json.dumps(whole), encoding="utf-8")
    return directory


@pytest.mark.parametrize(
    "broken",
    [CONFIG + "colour = 7\n", CONFIG + "interval = \n", "= = =\n" + CONFIG, 'npm_script = "light" x\n' + CONFIG + "["],
    ids=["unknown key", "no value", "no TOML", "another script"],
)
def test_broken_configuration(project: Project, broken: str) -> None:
    """With a broken configuration a script that it does not name runs as ever, and the known one is not run but says
    which file is wrong (78).
    """
    project.configure(broken)
    project.set_scripts(preheavy="true", other="echo ran")

    other, heavy = project.npm("--silent", "other"), project.npm("--silent", "heavy")

    assert (other.returncode, other.stdout, other.stderr) == (0, "ran\n", "")
    assert (heavy.returncode, heavy.stdout) == (78, "")
    assert str(project.directory / "maintlock.toml") in heavy.stderr


@pytest.mark.parametrize(
    "line",
    [
        'npm_script = "he\\u0061vy"',
        'npm_script = "\\U00000068eavy"',
        'npm_script = """\nheavy"""',
        "npm_script = '''\nheavy'''",
        'npm_script = """hea\\\n   vy"""',
        '"npm_scrip\\u0074" = "heavy"',
    ],
    ids=["escape", "long escape", "after a newline", "literal", "continued", "escaped key"],
)
def test_other_spellings(project: Project, line: str) -> None:
    """A name that the shell cannot read plainly is read by maintlock, and no other script is guarded for it."""
    project.configure(f"[tasks.heavyWork]\n{line}\n")

    told = [
        project.run(str(NPM_SHELL), "-c", "node say.mjs", env=project.env(npm_lifecycle_event=name))  # as npm calls it
        for name in ("heavy", "light")
    ]

    assert [(one.returncode, one.stderr) for one in told] == [(0, "")] * 2
    assert [json.loads(one.stdout).get("task") for one in told] == ["heavyWork", None]


@pytest.mark.parametrize("missing", ["a valid file", "maintlock"])
def test_what_nobody_can_read(project: Project, missing: str) -> None:
    """Where maintlock cannot read the name either, the script runs unguarded and says so."""
    project.configure('[tasks.heavyWork]\nnpm_script = "he\\u0061vy"\n' + "[" * (missing == "a valid file"))
    project.set_scripts(heavy="echo ran", preheavy="true", postheavy="true")
    path = tools_without(project.top / "tools", "maintlock") if missing == "maintlock" else project.env()["PATH"]

    done = project.npm("--silent", "heavy", env=project.env(PATH=path))

    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert f"cannot tell whether {project.directory / 'maintlock.toml'} names heavy: it runs unguarded" in done.stderr


def test_plain_configurations_are_read_by_the_shell_alone(project: Project) -> None:
    """Where the configuration is plain no program of ours is started for a script that it does not name."""
    project.configure('[tasks]\na = { npm_script = "heavy", env = { X = "1" } }\n"b.c".npm_script = \'it\'\n')
    (project.top / "bin").mkdir()
    (project.top / "bin" / "maintlock").symlink_to("/bin/false")

    done = project.npm("--silent", "light", env=project.env(PATH=f"{project.top / 'bin'}:{project.env()['PATH']}"))

    assert (done.returncode, done.stderr) == (0, "")


def test_it_explains_itself(project: Project) -> None:
    """With --help it tells what to write where, with --version which version it is of."""
    told, version = project.run(str(NPM_SHELL), "--help"), project.run(str(NPM_SHELL), "--version")
    assert (told.returncode, told.stderr) == (0, "")
    assert "\n  script-shell=maintlock-npm-shell\n" in told.stdout
    assert (version.returncode, version.stdout) == (0, f"maintlock {__version__}\n")


def test_unreadable_configuration(project: Project) -> None:
    """A configuration that cannot be read at all stops no script, and is told."""
    (project.directory / "maintlock.toml").unlink()
    (project.directory / "maintlock.toml").mkdir()

    light = project.npm("--silent", "light")

    assert light.returncode == 0
    assert "runs unguarded" in light.stderr


def test_named_configuration(project: Project) -> None:
    """`MAINTLOCK_CONFIG` names the configuration in force, and `none` is none."""
    project.set_scripts(preheavy="true", postheavy="true")
    other = project.top / "other.toml"
    other.write_text('[tasks.lightWork]\nnpm_script = "light"\n', encoding="utf-8")

    named = [
        said(project, name, env=project.env(MAINTLOCK_CONFIG=str(other)))[0].get("task") for name in ("heavy", "light")
    ]
    none = said(project, "heavy", env=project.env(MAINTLOCK_CONFIG="none"))[0].get("task")

    assert (named, none) == ([None, "lightWork"], None)


@pytest.mark.parametrize("path", ["a project", "it's", 'q"uote', "$HOME", "ünïcode"])
def test_project_in_a_directory_with_an_odd_name(project: Project, path: str) -> None:
    """The project's directory may have any name."""
    project.set_scripts(preheavy="true", postheavy="true")
    odd = project.top / path
    project.directory.rename(odd)

    (one,) = said(project, "heavy", cwd=odd)

    assert (one["task"], one["cwd"]) == ("heavyWork", str(odd))


def test_wrap_is_missing(project: Project) -> None:
    """Without maintlock-wrap on PATH the known script is not run, says how to mend that (127), and all others run."""
    project.set_scripts(preheavy="true", other="echo ran")
    env = project.env(PATH=tools_without(project.top / "tools", "maintlock-wrap"))

    other, heavy = project.npm("--silent", "other", env=env), project.npm("--silent", "heavy", env=env)

    assert (other.returncode, other.stdout, other.stderr) == (0, "ran\n", "")
    assert (heavy.returncode, heavy.stdout) == (127, "")
    assert (
        "maintlock-wrap is not on PATH" in heavy.stderr
        and "from a checkout of maintlock: pipx install ." in heavy.stderr
    )


def test_wrap_is_found_beside_the_shell(project: Project) -> None:
    """The shell of a virtual environment that is not active finds the wrapper beside it."""
    project.set_scripts(preheavy="true", postheavy="true")
    (project.directory / ".npmrc").write_text(f"script-shell={BIN / NPM_SHELL.name}\n", encoding="utf-8")
    env = project.env(PATH=tools_without(project.top / "tools", "maintlock-wrap"))

    assert [one["task"] for one in said(project, "heavy", env=env)] == ["heavyWork"]


def test_whole_example_without_wraps_in_its_scripts(project: Project) -> None:
    """The example guarded by the shell alone does the same as with wraps in its scripts, nested sync included (R7)."""
    shutil.copy(ROOT / "wrappers" / "example" / "maintlock.toml", project.directory)
    path = project.directory / "package.json"
    package = json.loads(path.read_text(encoding="utf-8"))
    package["scripts"] = {
        name: script.partition(" -- ")[2] or script
        for name, script in package["scripts"].items()
        if name.startswith("ai:")
    }
    path.write_text(json.dumps(package), encoding="utf-8")
    project.make_remote()
    project.push("news")

    done = project.npm("--silent", "ai:primary-dev-sync")

    assert done.returncode == 0, done.stderr
    (nested,) = project.lock.history(event="nested_finished")
    assert (nested["task"], nested["parent_task"], nested["exit_code"]) == ("kbSync", "primary-dev-sync", 0)
