"""Guarded npm scripts do what they did before, arguments and all: compared with npm itself, script by script."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maintlock.npm import guarded, shim
from tests.e2e.project import Project, tools_without
from tests.support import MAINTLOCK, PATIENCE_SECONDS, ROOT, Lock

MANY_SECONDS = 4 * PATIENCE_SECONDS  # scores of scripts, one after the other
pytestmark = pytest.mark.timeout(2 * MANY_SECONDS)

DRIVER = ROOT / "tests" / "probes" / "npm_scripts.mjs"

# `show` prints its arguments one by one and where it runs; `fail N` exits with N.
SHOW = """#!/bin/sh
printf '%s X=%s:' "${PWD##*/}" "${X-none}"
for word; do printf ' %s<%s>' "${#word}" "$word"; done
echo
"""
FAIL = "#!/bin/sh\necho fail\nexit $1\n"
SCRIPTS = [
    "show",
    " show  a ",
    "show 'a b' \"c d\" e\\ f",
    "show \"it's\" 'say \"hi\"'",
    "show $HOME \"$HOME\" '$HOME' ${NOWHERE:-x}",
    "show *.txt '*.txt' [ab].txt",
    "show ~ --flag=1 -- x",
    'show \\$ \\" \\\\',
    "show 'ü' \"\\t\" 'a\\tb'",
    "./show a",
    "X=1 show a",
    "X=1 Y=2 show && show b",
    "env X=2 show a",
    "show a && show b",
    "fail 3 && show b",
    "fail 3 || show b",
    "fail 3; show b",
    "show a; fail 4",
    "fail 5;",
    "show a ;\n",
    "show a\nshow b",
    "show a &",
    "cd sub && show a",
    "cd sub && show 'it''s' && cd .. && show b",
    "(cd sub; show a)",
    "(cd sub && show a) && show b",
    "{ show a; show b; }",
    "{ show a; } && show b",
    'f() { show "<$1>" "$#" "$@"; }; f',
    "f() { show $1; }; f x && f",
    "if fail 1; then show a; else show b; fi",
    "for i in 1 2; do show $i; done",
    "for i in 1 2; do show $i; done; show end",
    "case $HOME in /*) show a;; esac",
    "show a > out && cat out",
    "show a 2>&1 | cat",
    "show a | tee out >/dev/null && cat out",
    "show $(echo a b) \"$(echo 'c  d')\"",
    "show `echo a`",
    "show $((1 + 2)) ${#HOME}",
    "show a # a comment",
    "# a comment",
    "cat <<E\n$HOME it is\nE\nshow after",
    "set -e; fail 6; show a",
    "! fail 1",
    "! fail 1 && show a",
    "exec show a",
    "exit 7",
    "test -d sub && show a",
    "true",
    "echo 'a\\nb'",
    "[ -d sub ] && show",
    "trap 'show trapped' EXIT; show a",
    "nowhere-to-be-found a",
    "show a \\\n  b",
    "show a \\",
    "sh -c 'show \"$@\"' sh a",
    "sh -c 'show a && show b \"$@\"' sh",
    'node -e "console.log(process.argv.slice(1))" a',
    "show \"a;b\" 'c&&d' e\\;f",
    "umask 077 && show a",
    "X=1; export X; show a",
    "show a&&show b||show c;show d",
    "show \"${NOWHERE:-a b}\" ${NOWHERE:-'c'}",
    "show '' \"\"",
    "show \"$(show 'a' | tr -d \"'\")\"",
    "awk 'BEGIN { print $1 }' </dev/null && show x",
]  # fmt: skip
QUOTES = ["a", "b c", "it's", 'say "hi"', "$HOME", "`echo x`", "$(echo x)", "\\", "a\\b"]
CHARACTERS = ["*.txt", "?", "~", "", "#x", ";", "&&", "a=b", "--x=y z", "!", "(a)", "a\nb", "ü"]
# npm puts a line end into these, which the shell then takes for the end of the comment.
COMMENTED = ["show a # a comment", "# a comment"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a package with programs that tell how they were called."""
    place = tmp_path / "package"
    (place / "sub").mkdir(parents=True)
    for name, text in {"show": SHOW, "fail": FAIL}.items():
        (place / name).write_text(text, encoding="utf-8")
        (place / name).chmod(0o755)
    for name in ("a.txt", "b.txt"):
        (place / name).touch()
    return place


def guarded_script(script: str, **options: Any) -> str:
    """Return a script under the guard, as npm reads it from `package.json`."""
    raw = guarded.wrapped(json.dumps(script)[1:-1], task="t", **options)
    text: str = json.loads(f'"{raw}"')
    return text


def run_scripts(
    npm: str, place: Path, lock: Lock, scripts: list[str], arguments: list[str], shell: str = "sh"
) -> list[dict[str, Any]]:
    """Run scripts with npm's own code, and return how each ended and what it printed."""
    env = {**lock.env(), "HOME": "/home/x y", "MAINTLOCK_CONFIG": "none"}
    env["PATH"] = f"{place}:{env['PATH']}"
    package = {"path": str(place), "event": "x", "args": arguments, "env": env, "shell": shell}
    cases = [{**package, "scripts": {"x": script}} for script in scripts]
    done = subprocess.run(
        ["node", str(DRIVER), npm], input=json.dumps(cases), env=env, capture_output=True, text=True, timeout=MANY_SECONDS
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("scripts", "arguments"),
    [
        pytest.param(SCRIPTS, [], id="no arguments"),
        pytest.param([one for one in SCRIPTS if one not in COMMENTED], QUOTES + CHARACTERS, id="arguments"),
        pytest.param(COMMENTED, QUOTES, id="behind a comment"),
    ],
)
def test_guarded_scripts_do_what_they_did(
    place: Path, lock: Lock, require: Callable[[str], str], scripts: list[str], arguments: list[str]
) -> None:
    """A guarded script prints what it printed, and ends as it ended, with whatever arguments npm puts after it."""
    require("node")
    npm = require("npm")

    before = run_scripts(npm, place, lock, scripts, arguments)
    after = run_scripts(npm, place, lock, [guarded_script(s) for s in scripts], arguments)

    differing = [(s, guarded_script(s), b, a) for s, b, a in zip(scripts, before, after, strict=True) if a != b]
    assert differing == []
    assert len({one["stdout"] for one in before}) >= len(scripts) / 3


def test_guards_for_other_shells(place: Path, lock: Lock, require: Callable[[str], str]) -> None:
    """Where a project has npm use another shell, guarded scripts keep it."""
    npm, bash = require("npm"), require("bash")
    scripts = [
        "[[ a == a* ]] && show a",
        "show {a,b} && show $'a\\tb'",
        "(shopt -s nullglob; show *.none)",
        *SCRIPTS[::8],
    ]

    before = run_scripts(npm, place, lock, scripts, QUOTES, bash)
    after = run_scripts(npm, place, lock, [guarded_script(s, shell=bash) for s in scripts], QUOTES, bash)

    assert [(s, a) for s, b, a in zip(scripts, before, after, strict=True) if a != b] == []


def test_scripts_behind_the_shim_do_what_they_did(place: Path, lock: Lock, require: Callable[[str], str]) -> None:
    """Through the shim a script does what it did, where maintlock is there."""
    npm = require("npm")
    shim.write(str(place))
    scripts = SCRIPTS[::8]

    before = run_scripts(npm, place, lock, scripts, QUOTES)
    after = run_scripts(npm, place, lock, [guarded_script(s, program="sh .maintlock/wrap") for s in scripts], QUOTES)

    assert [(s, a) for s, b, a in zip(scripts, before, after, strict=True) if a != b] == []


# npm as its users start it --------------------------------------------------------------------------------------------


def maintlock(project: Project, *words: str) -> str:
    """Run `maintlock …` in the project, and return what it prints."""
    done = project.run(MAINTLOCK, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compound_script_is_one_job(project: Project) -> None:
    """All of `a && b` stands back while the lease is held, and all of it is one grant when it is free."""
    project.set_scripts(both="echo one && echo two")
    maintlock(project, "guard", "both")
    holder = project.lock.hold("other")

    stood_back = project.npm("--silent", "both", "--", "b c")
    holder.popen.communicate(b"")
    ran = project.npm("--silent", "both", "--", "b c")

    assert stood_back.stdout == ""
    assert stood_back.stderr.startswith("maintlock: both deferred due to active heavy-maintenance lease: held by other")
    assert (ran.returncode, ran.stdout.split("\n")) == (0, ["one", "two b c", ""])
    assert len(project.lock.history(event="acquired", task="both")) == 1


def test_guarding_scripts_that_call_each_other(project: Project) -> None:
    """A guarded script that runs another guarded one by npm has it join, and does not stand back from itself."""
    project.set_scripts(inner="echo inner", outer="npm run --silent inner && echo outer")
    maintlock(project, "guard", "inner", "outer")

    ran = project.npm("--silent", "outer")

    assert (ran.returncode, ran.stdout.split()) == (0, ["inner", "outer"])
    assert [row["parent_task"] for row in project.lock.history(event="nested_started", task="inner")] == ["outer"]


def test_shim_without_maintlock(project: Project) -> None:
    """Where maintlock is missing, the shim says how to get it and runs nothing; with MAINTLOCK_OPTIONAL=1, and only so,
    it runs the script unguarded, with a warning.
    """
    project.set_scripts(both='cd kb && echo "$(basename "$PWD")"')
    maintlock(project, "guard", "--shim", "both")
    path = tools_without(project.top / "tools", "maintlock", "maintlock-wrap")

    refused = project.npm("--silent", "both", env=project.env(PATH=path))
    still_refused = project.npm("--silent", "both", env=project.env(PATH=path, MAINTLOCK_OPTIONAL="yes"))
    warned = project.npm("--silent", "both", "--", "b c", env=project.env(PATH=path, MAINTLOCK_OPTIONAL="1"))

    assert (refused.returncode, refused.stdout) == (127, "") == (still_refused.returncode, still_refused.stdout)
    assert "both does not run without the lease" in refused.stderr
    assert "from a checkout of maintlock: pipx install ." in refused.stderr
    assert (warned.returncode, warned.stdout) == (0, "kb b c\n")
    assert "both runs unguarded" in warned.stderr
