"""`make demo`: the story is told to its end with npm and without, checks itself, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.project import tools_without
from tests.support import BIN, PATIENCE_SECONDS, ROOT, Lock, until

DEMO_SECONDS = 12 * PATIENCE_SECONDS  # it waits for a dozen things, for each of them as long as these tests would
pytestmark = pytest.mark.timeout(DEMO_SECONDS + PATIENCE_SECONDS)

DEMO = str(ROOT / "wrappers" / "demo.sh")
# Whoever started these tests in the background has had them ignore Ctrl-C, and so would the demo.
WITH_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
DEFERRED = "maintlock: backup deferred due to active heavy-maintenance lease"
TOLD = [
    r"^  \$ .*ai:sync-kb &$",
    rf"^    {DEFERRED}: held by kbSync \(owner \S+, pid \d+, for \S+, reason manual\)$",
    r"^    \(exit 75\)$",
    r"waiting  backup \(pid \d+\)",
    r"^    ai:backup: .*$",
    r"^  \$ kill -KILL \d+$",
    r"heavy-maintenance · orphaned",
    r"^    maintlock: dream deferred due to active heavy-maintenance lease: held by survivors of dream \(pids ",
    r"^\S+ \S+ stale_cleaned +dream .* lost *$",
    r"^  \$ maintlock orchestrate .* &$",
    r"INFO golden-path is due, but held back by summary \(backpressure\)$",
    r"^golden-path +deferred +never +never +now +held back by\b",
    r"WARNING chroma ended by signal 9; will be restarted after its cooldown of 1s$",
    r"^      the orchestrator died: pid \d+ is gone",
    r"INFO chroma adopted \(pid \d+\)$",
    r"^\S+ \S+ nested_finished +kbSync +in primary-dev-s",
    r"INFO summary started \(inbox:1\)$",
    r"INFO summary ended: stopped$",
    r"INFO daemons stopped$",
    r"^All \d+ expectations held\.",
]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Give the environment that `make demo` gives, with a place for temporary files that can be looked into."""
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()
    path = f"{BIN}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}


def run(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end."""
    return subprocess.run(
        [DEMO],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        start_new_session=True,
    )


def left_over(env: dict[str, str]) -> list[str]:
    """Return the files and processes that the demo has left."""
    found = os.listdir(env["TMPDIR"])
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == env["TMPDIR"] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def assert_told_to_the_end(done: subprocess.CompletedProcess[str]) -> None:
    """Check that every part of the story was told, in order."""
    assert done.returncode == 0, done.stdout + done.stderr
    rest = done.stdout
    for part in TOLD:
        found = re.search(part, rest, re.MULTILINE)
        assert found, f"{part} is missing in {rest}"
        rest = rest[found.end() :]
    assert "✗" not in done.stdout


def test_demo_with_npm(env: dict[str, str], require: Callable[[str], str]) -> None:
    """With npm the demo tells its story with the example's real scripts to the end, and leaves nothing behind."""
    require("npm")

    done = run(env)

    assert_told_to_the_end(done)
    assert "\n  $ npm run ai:run-sandman\n" in done.stdout
    assert left_over(env) == []


def test_demo_without_npm_and_git_notices_what_goes_wrong(env: dict[str, str], tmp_path: Path) -> None:
    """Without npm the demo says so, and tells the same story with plain jobs; without git, too: only nobody can push. Where
    one thing is not as told, it says which, and fails.
    """
    broken = tmp_path / "broken" / "maintlock-wrap"
    broken.parent.mkdir()
    speechless = '#!/bin/sh\ncase "$*" in "-t backup -- "*) exit 0 ;; esac\nexec '
    broken.write_text(f'{speechless}{BIN / "maintlock-wrap"} "$@"\n', encoding="utf-8")
    broken.chmod(0o755)
    env["PATH"] = f"{broken.parent}:{BIN}:{tools_without(tmp_path / 'tools', 'npm', 'node', 'git')}"

    done = run(env)

    assert "node, npm or git is not installed" in done.stdout and "$ npm" not in done.stdout
    assert "Without git nobody can push" in done.stdout
    missed = re.findall("✗ expected: (.*)", done.stdout)
    assert missed == ["the backup named who works", "three stood back, and none of them counts as a run"]
    assert re.search(r"^2 of \d+ expectations failed\.$", done.stdout, re.MULTILINE)
    assert done.returncode == 1
    assert left_over(env) == []


@pytest.mark.parametrize(
    ("scene", "number", "exit_code"),
    [
        ("One queues instead", signal.SIGINT, 130),
        ("A daemon dies while", signal.SIGTERM, 143),
    ],
)
def test_demo_is_interrupted(
    env: dict[str, str], lock: Lock, tmp_path: Path, scene: str, number: int, exit_code: int
) -> None:
    """After Ctrl-C or a TERM the demo ends what it has started, and removes what it has made."""
    env["PATH"] = f"{BIN}:{tools_without(tmp_path / 'tools', 'npm', 'node')}"
    demo = lock.start("-c", WITH_CTRL_C, DEMO, program=sys.executable, env=env, start_new_session=True)
    demo.until_line(scene, seconds=DEMO_SECONDS)

    os.killpg(demo.pid, number)

    assert demo.end()[0] == exit_code
    until(lambda: left_over(env) == [], "an empty stage")


def test_demo_without_maintlock(env: dict[str, str], tmp_path: Path) -> None:
    """Where maintlock is not installed the demo says what to type."""
    env["PATH"] = tools_without(tmp_path / "tools", "maintlock", "maintlock-wrap")

    done = run(env)

    assert done.returncode == 1
    assert "make demo" in done.stderr
