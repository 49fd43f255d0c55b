"""`wrappers/node`: scripts that guard themselves, and Node programs that hold the lease for work inside themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from maintlock import outside
from maintlock.settings import TaskSettings
from tests.e2e.documents import blocks_of
from tests.e2e.project import FILES, TASKS, Project, tools_without
from tests.protocol import PROBES, is_locked, kill, places, until_gone, until_queued
from tests.support import BIN, MAINTLOCK, PATIENCE_SECONDS, ROOT, WRAP, Lock, Running, until
from tests.terminal import CTRL_C, shell_on_terminal

GUARD = ROOT / "wrappers" / "node" / "guard.mjs"
LEASE = ROOT / "wrappers" / "node" / "lease.mjs"
PAGE = (ROOT / "docs" / "node.md").read_text(encoding="utf-8")
CLIENT = PROBES / "node_client.mjs"
SAY_ALL = """
import { text } from 'node:stream/consumers';
const { execArgv, argv } = process;
console.log(JSON.stringify({ execArgv, argv: argv.slice(1), cwd: process.cwd(), input: await text(process.stdin) }));
"""
SAY_GRANT = "console.log('ran', process.env.MAINTLOCK_TASK ?? 'unguarded', process.env.MAINTLOCK_LEASE_ID);\n"
ON_TERM = """
process.on('SIGTERM', () => { console.log('TERM'); process.exit(7); });
setInterval(() => {}, 1000);
console.log('ready', process.pid);
"""


@pytest.fixture
def node(require: Callable[[str], str]) -> str:
    """Give the path of node."""
    return require("node")


Scripts = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path, node: str) -> Scripts:
    """Give `script(text)`: write a guarded script, `query` behind its guard, and return its path."""

    def written(text: str, query: str = "task=backup", name: str = "backup.mjs") -> str:
        path = tmp_path / name
        path.write_text(f"import '{GUARD}{'?' if query else ''}{query}';\n{text}", encoding="utf-8")
        return str(path)

    return written


def run(lock: Lock, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in a session of its own to its end."""
    options = {"env": lock.env(), "stdin": subprocess.DEVNULL, "cwd": lock.directory.parent, **options}
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=PATIENCE_SECONDS, start_new_session=True, **options
    )


def start(lock: Lock, program: str, *words: str, **options: Any) -> Running:
    """Start a program in a session of its own."""
    options = {"stdin": subprocess.PIPE, "cwd": lock.directory.parent, "start_new_session": True, **options}
    return lock.start(*words, program=program, **options)


def rows(lock: Lock, *, but: Sequence[str] = ()) -> list[tuple[str, str, str | None]]:
    """Return event, task and outcome of what is told."""
    return [(row["event"], row["task"], row["outcome"]) for row in lock.history() if row["event"] not in but]


# The guard: from the example's scripts


def test_past_npm_it_stands_back_as_under_npm(project: Project) -> None:
    """`node …mjs` stands back with the sentence and the exit code of `npm run …`, and does nothing (R3, R17)."""
    project.make_database()
    holder = project.hold("ai:sync-kb")
    arrived = len(list(project.gate.directory.iterdir()))

    for script, code in zip(TASKS, ("0", "75", "9", "0"), strict=True):
        env = project.env(MAINTLOCK_DEFER_EXIT_CODE=code)
        npm = project.run(project.program, "run", "--silent", script, env=env)
        past = project.run("node", FILES[script], env=env)

        sentences = [re.sub(r"for \S+, reason", "for …, reason", said.stderr) for said in (npm, past)]
        assert f"{TASKS[script]} deferred due to active heavy-maintenance lease: held by kbSync (" in sentences[0]
        assert sentences[0] == sentences[1]
        assert (past.returncode, past.stdout) == (npm.returncode, npm.stdout) == (int(code), "")
    assert len(list(project.gate.directory.iterdir())) == arrived
    project.finish(holder)


def test_past_npm_it_works(project: Project) -> None:
    """`node …mjs` takes the lease as its task when that is free (R17)."""
    project.make_database()

    done = project.run("node", FILES["ai:backup"])

    assert done.returncode == 0 and "ai:backup: done in" in done.stdout
    assert rows(project.lock) == [("acquired", "backup", None), ("released", "backup", "completed")]


def test_under_npm_it_is_guarded_once(project: Project) -> None:
    """Under npm's own wrapper the guard starts nothing a second time, and joins nothing (R17)."""
    (project.directory / FILES["ai:backup"]).write_text(
        "import '../../../node/guard.mjs?task=backup';\nconsole.log(process.ppid, process.pid);\n", encoding="utf-8"
    )
    project.set_scripts(**{"ai:backup": f"maintlock-wrap -t backup --outcome ended.json -- node {FILES['ai:backup']}"})

    done = project.run(project.program, "run", "--silent", "ai:backup")

    assert done.returncode == 0
    assert rows(project.lock) == [("acquired", "backup", None), ("released", "backup", "completed")]
    (acquired,) = project.lock.history(event="acquired")
    assert done.stdout.split()[0] == str(acquired["pid"])


def test_orchestrator_of_the_example(project: Project) -> None:
    """The example's daemon works in its own process under the lease, says once for whom it stands back, however often it
    asks, and stops when told to (R18, R9).
    """
    asked, tools = project.top / "asked", project.top / "tools"
    tools.mkdir()
    counting = tools / "maintlock"
    counting.write_text(f'#!/bin/sh\necho "$1" >> "{asked}"\nexec "{MAINTLOCK}" "$@"\n', encoding="utf-8")
    counting.chmod(0o755)
    env = project.env()
    daemon = project.start("node", "orchestrator.mjs", "0.1", env={**env, "PATH": f"{tools}:{env['PATH']}"})
    assert "over 9 documents" in daemon.until_line("orchestrator: dream ")

    holder = project.lock.hold("backup", "--wait", "10m", start_new_session=True)
    asked.write_text("", encoding="utf-8")
    daemon.until_line("dream deferred due to active heavy-maintenance lease: held by backup (owner ")
    until(lambda: asked.read_text(encoding="utf-8").count("hold") > 4, "more attempts")
    holder.popen.communicate()
    assert "dream " in daemon.until_line("over 9 documents")
    daemon.signal(signal.SIGTERM)
    code, said, _ = daemon.end()

    assert code == 0 and said.endswith("orchestrator: stopped\n")
    assert "deferred" not in said
    told = project.lock.history(task="dream")
    assert {row["source"] for row in told} == {"orchestrator"}
    assert [row["event"] for row in told].count("deferred") == 1


# The guard: what it asks


def test_inside_a_job_of_another_task_it_joins(lock: Lock, script: Scripts, node: str) -> None:
    """A guarded script inside a job of another task takes part in its lease, and is told as its own task (R7)."""
    done = run(lock, WRAP, "-t", "primary-dev-sync", "--", node, script(SAY_GRANT))

    (outer,) = lock.history(event="acquired")
    (nested,) = lock.history(event="nested_finished")
    assert done.stdout == f"ran backup {outer['lease_id']}\n"
    assert (outer["task"], nested["task"], nested["parent_task"]) == ("primary-dev-sync", "backup", "primary-dev-sync")


def test_inside_a_python_block_it_is_part_of_that(lock: Lock, script: Scripts, node: str) -> None:
    """Inside a Python block of the same task nothing is started a second time, and the block's end waits for the script."""
    code = (
        "import maintlock, os, subprocess, sys\nwith maintlock.hold('backup') as lease:\n"
        "    job = subprocess.Popen(sys.argv[1:], env=os.environ | lease.env, stdout=subprocess.PIPE, stdin=subprocess.PIPE)\n"
        "    job.stdout.readline(), job.stdin.close()\n"
        "print(job.poll())\n"
    )
    slow = "console.log('ready');\nfor await (const _ of process.stdin);\nsetTimeout(() => console.log('over'), 100);\n"

    done = run(lock, str(BIN / "python"), "-c", code, node, script(slow))

    assert (done.stdout, done.stderr) == ("0\n", "")
    assert rows(lock) == [("acquired", "backup", None), ("released", "backup", "completed")]


@pytest.mark.parametrize("left_by", ["", "setsid "], ids=["same session", "daemon"])
def test_a_stale_token_is_not_believed(lock: Lock, script: Scripts, node: str, tmp_path: Path, left_by: str) -> None:
    """What a job has left behind carries its token; when that has ended, or the session is another, its guarded script
    asks anew, and stands back while another works (L8).
    """
    os.mkfifo(tmp_path / "go")
    daemon = f'read go < go; "{node}" "{script(SAY_GRANT)}"; echo "left with $?"'
    left = f"{left_by}sh -c '{daemon}' &"
    parent = start(lock, WRAP, "-t", "backup", "--hold-until", "main", "-E", "75", "--", "sh", "-c", left,
                   env=lock.env(MAINTLOCK_DEFER_EXIT_CODE="75"))  # fmt: skip
    parent.popen.wait()
    holder = lock.hold("kbSync", start_new_session=True)

    (tmp_path / "go").write_text("go\n", encoding="utf-8")

    assert parent.until_line("left with") == "left with 75"
    (row,) = lock.history(event="deferred")
    assert (row["task"], row["blocked_by"]) == ("backup", "kbSync")
    assert holder.popen.poll() is None


def test_a_daemon_of_a_running_job_asks_anew(lock: Lock, script: Scripts, node: str) -> None:
    """A process that has left the session of a job that still runs is no part of it."""
    detached = f'setsid --wait "{node}" "{script(SAY_GRANT)}"; echo "left with $?"'

    done = run(lock, WRAP, "-t", "backup", "--", "sh", "-c", detached, env=lock.env(MAINTLOCK_DEFER_EXIT_CODE="75"))

    assert done.stdout == "left with 75\n"
    assert "held by backup" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"MAINTLOCK_HELD": "x"},
        {"MAINTLOCK_HELD": f"heavy-maintenance:{'0' * 32}:SESSION"},
        {"MAINTLOCK_HELD": "../x:ab:SESSION"},
        {"MAINTLOCK_STATE_DIR": "none"},
    ],
    ids=["no grant", "another grant", "a path", "another directory"],
)
def test_a_token_that_is_not_whole_is_not_believed(
    lock: Lock, script: Scripts, node: str, change: dict[str, str], tmp_path: Path
) -> None:
    """Every part of what the environment says must fit; else the wrapper decides."""
    other = {name: str(tmp_path / value) if name == "MAINTLOCK_STATE_DIR" else value for name, value in change.items()}
    words = [f"{name}={value}" for name, value in other.items()]

    guarded = 'here=$(cut -d" " -f6 /proc/self/stat); exec env "$(echo "$1" | sed "s/SESSION/$here/")" "$2" "$3"'
    path = script("console.log(process.ppid);\n")
    done = run(lock, WRAP, "-t", "backup", "--", "sh", "-c", guarded, "sh", *words, node, path)

    (acquired, *_) = lock.history(event="acquired")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != str(acquired["pid"])


def test_its_options_reach_the_wrapper(lock: Lock, script: Scripts, node: str) -> None:
    """Behind the `?` stand options of the wrapper."""
    query = "task=dream&lease=gpu&reason=by%20hand&owner=ada&wait=1m&ttl=2h"

    run(lock, node, script(SAY_GRANT, query))

    assert rows(lock) == [("acquired", "dream", None), ("released", "dream", "completed")]
    (acquired,) = lock.history(event="acquired")
    assert (acquired["lease"], acquired["reason"]) == ("gpu", "by hand")


def test_the_task_may_come_from_npm(lock: Lock, script: Scripts, node: str) -> None:
    """Under npm the script's name says which task it is, as with the wrapper."""
    done = run(lock, node, script(SAY_GRANT, ""), env=lock.env(npm_lifecycle_event="ai:backup"))

    assert done.stdout.startswith("ran ai:backup ")


def test_a_process_is_guarded_once(lock: Lock, script: Scripts, node: str) -> None:
    """A second guard in the same process, in what the script imports, changes nothing."""
    script("", "task=kbSync", name="part.mjs")

    done = run(lock, node, script(f"import './part.mjs';\n{SAY_GRANT}"))

    assert done.stdout.startswith("ran backup ")
    assert rows(lock) == [("acquired", "backup", None), ("released", "backup", "completed")]


def test_what_else_the_environment_says_changes_nothing(lock: Lock, script: Scripts, node: str) -> None:
    """A script is part of a grant by what `MAINTLOCK_HELD` and the lock file say, whatever else stands beside it (L8)."""
    forged = ("env", "MAINTLOCK_TASK=x", "MAINTLOCK_LEASE=x", "MAINTLOCK_LEASE_ID=x")

    done = run(lock, WRAP, "-t", "backup", "--", *forged, node, script("console.log('ran');\n"))

    assert done.stdout == "ran\n"
    assert rows(lock) == [("acquired", "backup", None), ("released", "backup", "completed")]


def test_it_guards_what_it_is_no_part_of(lock: Lock, tmp_path: Path, node: str) -> None:
    """Given to node with --import it guards a script that knows nothing of it, CommonJS too."""
    (tmp_path / "old.cjs").write_text(SAY_GRANT, encoding="utf-8")

    done = run(lock, node, "--import", f"{GUARD}?task=old", "old.cjs")

    assert done.stdout.startswith("ran old "), done.stderr
    assert rows(lock) == [("acquired", "old", None), ("released", "old", "completed")]


# The guard: what the script sees of it


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ([], []),
        ([], ["two words", "it's", "--flag", "--", "", "-t", "*"]),
        (["--trace-warnings", "--max-old-space-size=200"], ["--conditions=x"]),
    ],
    ids=["none", "arguments", "options of node"],
)
def test_the_script_is_called_as_it_was(
    lock: Lock, script: Scripts, node: str, options: list[str], arguments: list[str]
) -> None:
    """Arguments, options of node, working directory and standard input are those of the unguarded script."""
    path = script(SAY_ALL)
    bare = [node, *options, path, *arguments]

    guarded = run(lock, *bare, stdin=None, input="what comes in\n")
    Path(path).write_text(SAY_ALL, encoding="utf-8")
    unguarded = run(lock, *bare, stdin=None, input="what comes in\n")

    assert (guarded.stdout, guarded.stderr) == (unguarded.stdout, unguarded.stderr)
    assert json.loads(guarded.stdout)["argv"] == [path, *arguments]


@pytest.mark.parametrize(
    ("text", "code", "outcome"),
    [
        ("", 0, "completed"),
        ("process.exit(3);\n", 3, "failed"),
        ("throw new Error('x');\n", 1, "failed"),
        ("process.kill(process.pid, 'SIGKILL');\n", 137, "failed"),
        ("await new Promise(() => {});\n", 13, "failed"),
    ],
)
def test_exit_codes_are_the_wrappers(
    lock: Lock, script: Scripts, node: str, text: str, code: int, outcome: str
) -> None:
    """A guarded script ends as it would under the wrapper."""
    done = run(lock, node, script(text))

    assert done.returncode == code == run(lock, WRAP, "-t", "backup", "--", node, script(text)).returncode
    assert {row["outcome"] for row in lock.history(event="released")} == {outcome}


def test_term_reaches_the_script(lock: Lock, script: Scripts, node: str) -> None:
    """TERM for the process that was started reaches the script, and is a stop, not a failure (R17)."""
    running = start(lock, node, script(ON_TERM))
    running.until_line("ready")

    running.signal(signal.SIGTERM)
    code, said, _ = running.end()

    assert said == "TERM\n"
    assert code == (7 if has_execve(node) else -signal.SIGTERM)
    until(lambda: rows(lock) == [("acquired", "backup", None), ("released", "backup", "stopped")])


def has_execve(node: str) -> bool:
    """Tell whether this node can become the wrapper (22.15)."""
    return subprocess.run([node, "-p", "!!process.execve"], capture_output=True, text=True).stdout == "true\n"


def test_killed_it_frees_nothing_that_still_works(lock: Lock, script: Scripts, node: str) -> None:
    """After SIGKILL of the process that was started the lease stays with the script, until that has ended too (L2)."""
    stubborn = "process.on('SIGTERM', () => {});\nsetInterval(() => {}, 1000);\nconsole.log('ready', process.pid);\n"
    running = start(lock, node, script(stubborn, "task=backup&stop-grace=1m"))
    pid = int(running.until_line("ready").split()[1])

    running.signal(signal.SIGKILL)
    running.popen.wait()
    refused = run(lock, WRAP, "-t", "next", "-E", "75", "--", "true")
    is_dead = f"case $(ps -o stat= -p {pid}) in ''|Z*) echo it has ended; esac"
    waiter = start(lock, WRAP, "-t", "next", "--wait", "10m", "--", "sh", "-c", is_dead)
    until(lambda: waiter.pid in [one["pid"] for one in lock.status()["waiters"]], "the waiter")
    kill(pid)

    assert refused.returncode == 75
    assert re.search(r"held by (survivors of )?backup ", refused.stderr)
    assert waiter.end()[:2] == (0, "it has ended\n")


def test_ctrl_c_lets_the_script_finish(lock: Lock, script: Scripts, node: str, require: Callable[[str], str]) -> None:
    """On a terminal Ctrl-C goes to the script; the prompt comes back when that has ended, with its exit code."""
    text = (
        "process.on('SIGINT', () => setTimeout(() => { console.log('finished'); process.exit(5); }, 300));\n"
        "setInterval(() => {}, 1000);\nconsole.log('ready');\n"
    )
    with shell_on_terminal(require("bash"), lock.env(), cwd=lock.directory.parent) as terminal:
        terminal.press(f"{node} {script(text)}\n")
        terminal.until("ready")
        terminal.press(CTRL_C)
        status, seen = terminal.prompt()

        assert status == 5
        assert "finished" in seen

        terminal.press(f"{node} {script('setInterval(() => {}, 1000);' + chr(10) + 'console.log(`rea${1}dy`);')}\n")
        terminal.until("rea1dy")
        terminal.press(CTRL_C)
        assert terminal.prompt()[0] == 130


def test_a_waiting_guard_is_no_work_outside_the_lease(lock: Lock, script: Scripts, node: str) -> None:
    """A guarded script that waits, or works, is not taken for a heavy process outside the lease (R8, L13)."""
    name = f"outside-{os.getpid()}.mjs"  # other tests run guarded scripts at the same time
    tasks = [TaskSettings(name="backup", match=name)]

    def found() -> list[outside.Outside]:
        return outside.find(tasks, lambda lease: places(lock, lease))

    holder = lock.hold("kbSync", start_new_session=True)
    running = start(lock, node, script(ON_TERM, "task=backup&wait=10m", name))
    until(lambda: lock.status()["waiters"], "the waiter")
    while_waiting = found()
    holder.popen.communicate()
    running.until_line("ready")
    at_work = found()
    Path(script("", name=name)).write_text(ON_TERM, encoding="utf-8")
    bare = start(lock, node, name)
    bare.until_line("ready")

    assert (while_waiting, at_work) == ([], [])
    assert [one.stat.pid for one in until(found)] == [bare.pid]


# The guard: where it cannot


def test_without_maintlock_it_does_not_run(lock: Lock, script: Scripts, node: str, tmp_path: Path) -> None:
    """Without maintlock-wrap on PATH the script does not run, and the way out is named (127)."""
    env = lock.env(PATH=tools_without(tmp_path / "tools", "maintlock-wrap"))

    refused = run(lock, node, script(SAY_GRANT), env=env)
    unguarded = run(lock, node, script(SAY_GRANT), env={**env, "MAINTLOCK_OPTIONAL": "1"})

    assert (refused.returncode, refused.stdout) == (127, "")
    assert "backup does not run without the lease of heavy jobs, but maintlock-wrap is not on PATH" in refused.stderr
    assert "install it, from a checkout of maintlock: pipx install ." in refused.stderr
    assert (unguarded.returncode, unguarded.stdout) == (0, "ran unguarded undefined\n")
    assert "backup runs unguarded" in unguarded.stderr


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "no task given"),
        ("task=", "no task given"),
        ("task=a&tusk=b", "unknown option tusk"),
        ("task=a%20b", "--task 'a b'"),
    ],
)
def test_wrong_options_are_told(lock: Lock, script: Scripts, node: str, query: str, says: str) -> None:
    """A guard that is called wrongly says so, and the script does not run (64)."""
    refused = run(lock, node, script(SAY_GRANT, query))

    assert (refused.returncode, refused.stdout) == (64, "")
    assert says in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_what_cannot_be_started_again_is_refused(lock: Lock, script: Scripts, node: str) -> None:
    """A script from standard input, one with a channel to its parent, and one in a thread cannot be started again: that is
    said, and none of them works unguarded.
    """
    path = script(SAY_GRANT)
    fork = "require('child_process').fork(process.argv[1]).on('exit', code => console.log('ended', code))"
    worker = "new (require('worker_threads').Worker)(process.argv[1]).on('error', error => console.log(error.message))"

    read = run(lock, node, "--input-type=module", "-", stdin=None, input=f"import '{GUARD}?task=x';\n{SAY_GRANT}")
    forked = run(lock, node, "-e", fork, path)
    threaded = run(lock, node, "-e", worker, path)

    assert (read.returncode, read.stdout) == (64, "")
    assert "cannot be read again" in read.stderr
    assert forked.stdout == "ended 64\n" and "started by fork()" in forked.stderr
    assert "from a worker thread; use withLease" in threaded.stdout
    assert rows(lock) == []


def test_a_forked_script_keeps_its_channel_under_the_wrapper(lock: Lock, script: Scripts, node: str) -> None:
    """What the guard says about fork() works: the wrapper is forked instead, and the channel goes through it."""
    path = script("process.send(process.env.MAINTLOCK_TASK);\n")
    how = "{ execPath: 'maintlock-wrap', execArgv: ['-t', 'backup', '--', process.execPath] }"
    fork = f"require('child_process').fork(process.argv[1], {how}).on('message', said => console.log('said', said))"

    assert run(lock, node, "-e", fork, path).stdout == "said backup\n"
    assert rows(lock) == [("acquired", "backup", None), ("released", "backup", "completed")]


# withLease


class Client:
    """A Node program under `withLease`, told what to do line by line."""

    def __init__(self, lock: Lock, node: str, task: str = "dream", **options: object) -> None:
        self.lock = lock
        self.running = start(lock, node, str(CLIENT), str(LEASE), task, json.dumps(options))
        self.pid = self.running.pid

    def until_holding(self) -> dict[str, Any]:
        """Return what the work knows of its lease, once it has begun."""
        return dict(json.loads(self.running.until_line("holding").removeprefix("holding ")))

    def say(self, line: str) -> None:
        """Tell it something."""
        assert self.running.popen.stdin is not None
        self.running.popen.stdin.write(f"{line}\n".encode())
        self.running.popen.stdin.flush()

    def error(self, word: str = "failed") -> dict[str, Any]:
        """Return the error that it tells of."""
        return dict(json.loads(self.running.until_line(word).removeprefix(f"{word} ")))

    def end(self) -> tuple[int, str, str]:
        """Have the work end, and return how the program ends."""
        self.say("end")
        return self.running.end()


@pytest.fixture
def holding(lock: Lock, node: str) -> Client:
    """Give a Node program at work under the lease."""
    client = Client(lock, node, owner="ada", reason="nightly")
    client.until_holding()
    return client


def helper_of(lock: Lock) -> int:
    """Return the pid of `maintlock hold`."""
    return int(lock.sidecar()["pid"])


def is_granted(lock: Lock) -> bool:
    """Tell whether somebody else's request is granted at once."""
    return run(lock, WRAP, "-t", "other", "-E", "75", "-q", "--", "true").returncode == 0


def test_work_in_node_keeps_others_out(lock: Lock, node: str) -> None:
    """While a function runs under `withLease` others stand back and are told of it; afterwards the lease is free (R18)."""
    client = Client(lock, node, owner="ada", reason="nightly", ttl="2h")
    told = client.until_holding()
    held = lock.sidecar()

    refused = run(lock, WRAP, "-t", "backup", "-E", "75", "--", "true")
    code, said, err = client.end()

    assert (told["id"], told["fence"], told["task"]) == (held["lease_id"], 1, "dream")
    assert (held["mode"], held["source"], held["job_pid"], held["ttl_seconds"]) == (
        "coprocess",
        "library",
        client.pid,
        7200,
    )
    assert held["command"][:2] == [node, str(CLIENT)]
    assert refused.returncode == 75 and "held by dream (owner ada, pid " in refused.stderr
    assert (code, said, err) == (0, "over\ndone undefined\n", "")
    assert not is_locked(places(lock).lock)
    assert rows(lock, but=["deferred"]) == [("acquired", "dream", None), ("released", "dream", "completed")]


def test_node_stands_back(lock: Lock, node: str) -> None:
    """While another has the lease `withLease` rejects with `LeaseHeld`, who it is, and prints nothing; the function is not
    called (R18, R9).
    """
    holder = lock.hold("backup", "--owner", "bob", start_new_session=True)

    client = Client(lock, node)
    error = client.error()

    assert (error["name"], error["reasonCode"], error["holder"]["task"]) == ("LeaseHeld", "lease-held", "backup")
    assert (error["holder"]["owner"], error["holder"]["pid"]) == ("bob", holder.pid)
    assert error["message"].startswith(
        "dream deferred due to active heavy-maintenance lease: held by backup (owner bob"
    )
    assert client.running.end() == (1, "", "")


def test_node_queues(lock: Lock, node: str) -> None:
    """With `wait` it queues in order, says so, and runs when its turn comes."""
    holder = lock.hold("backup", start_new_session=True)
    client = Client(lock, node, wait="10m")
    until(lambda: [one["task"] for one in lock.status()["waiters"]] == ["dream"], "the waiter")

    holder.popen.communicate()
    client.until_holding()

    code, _, err = client.end()
    assert code == 0
    assert err.startswith("maintlock: dream waits for the heavy-maintenance lease: held by backup ")


def test_node_leaves_the_queue(lock: Lock, node: str) -> None:
    """Aborted while it waits, `withLease` rejects with the reason, nobody waits any more, and no process is left."""
    lock.hold("backup", start_new_session=True)
    client = Client(lock, node, wait="forever")
    until(lambda: lock.status()["waiters"], "the waiter")
    (waiter,) = lock.status()["waiters"]

    client.say("leave")

    assert client.error()["message"] == "has left"
    assert client.running.end()[0] == 1
    until_gone(waiter["pid"])
    assert lock.status()["waiters"] == []


def test_a_function_that_throws_has_failed(lock: Lock, holding: Client) -> None:
    """What the function throws comes out as it was, the lease is free, and the task has failed (R18, L3)."""
    holding.say("throw")

    assert holding.error() == {"name": "Error", "message": "the work has failed"}
    assert holding.running.end()[0] == 1
    (ended,) = lock.history(event="released")
    assert (ended["outcome"], ended["exit_code"]) == ("failed", 1)
    assert not is_locked(places(lock).lock)


def test_nested_work_joins_other_work_does_not(lock: Lock, holding: Client) -> None:
    """Inside the function another `withLease` joins, and is told with its parent; from elsewhere in the same process it is
    a request like any other (R1, R7).
    """
    holding.say("nested kbSync")
    nested = holding.running.until_line("nested").split()[1]
    holding.say("beside backup")
    refused = holding.error("refused")

    assert nested == lock.sidecar()["lease_id"]
    assert (refused["name"], refused["holder"]["task"]) == ("LeaseHeld", "dream")
    holding.end()
    (joined,) = lock.history(event="nested_finished")
    assert (joined["task"], joined["parent_task"], joined["exit_code"]) == ("kbSync", "dream", 0)


def test_children_with_its_environment_join(lock: Lock, holding: Client) -> None:
    """A guarded command that the work starts with `lease.env` takes part in it (R7)."""
    holding.say(f"spawn {WRAP} -t kbSync -- printenv MAINTLOCK_LEASE_ID")

    assert holding.running.until_line("child").split()[1] == lock.sidecar()["lease_id"]
    assert holding.end()[0] == 0
    assert lock.history(event="nested_started")[0]["parent_task"] == "dream"


def test_the_lease_is_free_when_its_children_are_done(lock: Lock, holding: Client) -> None:
    """The function's end does not free the lease while something that it started with `lease.env` still works (R1)."""
    holding.say("spawn sh -c echo${IFS}$$;exec${IFS}sleep${IFS}1000")
    pid = int(holding.running.until_line("child").split()[1])
    holding.say("end")
    holding.running.until_line("over")
    assert not is_granted(lock)

    kill(pid)

    assert holding.running.end()[:2] == (0, "done undefined\n")
    assert is_granted(lock)


def test_helper_killed(lock: Lock, holding: Client) -> None:
    """SIGKILL of the helper alone frees nothing: the work is told, goes on, and others see who keeps the lease; it is free
    when the work is done (R18, L2).
    """
    kill(helper_of(lock))
    aborted = holding.running.until_line("aborted")

    seen = lock.status()
    refused = run(lock, WRAP, "-t", "backup", "-E", "75", "--", "true")
    code, said, _ = holding.end()

    assert aborted.startswith("aborted LeaseEnding dream: maintlock hold has ended (SIGKILL)")
    assert seen["state"] == "orphaned" and f"{holding.pid} (node)" in seen["detail"]
    assert refused.returncode == 75 and f"held by survivors of dream (pids {holding.pid})" in refused.stderr
    assert (code, said) == (0, "over\ndone undefined\n")
    assert is_granted(lock)
    assert ("stale_cleaned", "dream", "lost") in rows(lock)


def test_node_killed(lock: Lock, holding: Client) -> None:
    """SIGKILL of the Node process frees the lease and ends the helper, and how the work ended is unknown (R18, L1, L2)."""
    helper = helper_of(lock)

    holding.running.signal(signal.SIGKILL)
    following = run(lock, WRAP, "-t", "next", "--wait", "10m", "--", "echo", "ran")

    assert following.stdout == "ran\n"
    until_gone(helper)
    outcomes = [row["outcome"] for row in lock.history(task="dream") if row["outcome"]]
    assert outcomes == ["unknown"]


def test_both_killed(lock: Lock, holding: Client) -> None:
    """SIGKILL of both frees the lease at once, and the end is told as lost (R18, L1)."""
    helper = helper_of(lock)
    kill(helper)
    holding.running.signal(signal.SIGKILL)
    holding.running.popen.wait()
    until_gone(helper)

    assert is_granted(lock)
    assert [row["outcome"] for row in lock.history(task="dream") if row["outcome"]] == ["lost"]


def test_node_and_helper_killed_children_work_on(lock: Lock, holding: Client) -> None:
    """What the work had started with `lease.env` holds the lease after SIGKILL of both, until it has ended (L2)."""
    holding.say("spawn sh -c echo${IFS}$$;exec${IFS}sleep${IFS}1000")
    pid = int(holding.running.until_line("child").split()[1])
    helper = helper_of(lock)
    for victim in (helper, holding.pid):
        kill(victim)
    holding.running.popen.wait()
    until_gone(helper)

    refused = run(lock, WRAP, "-t", "next", "-E", "75", "--", "true")
    kill(pid)
    until_gone(pid)

    assert refused.returncode == 75 and f"held by survivors of dream (pids {pid})" in refused.stderr
    assert is_granted(lock)


def test_a_signal_to_the_helper_is_for_the_work(lock: Lock, holding: Client) -> None:
    """TERM for the helper asks the work to stop, and the lease stays until it has; the task was stopped (R1)."""
    os.kill(helper_of(lock), signal.SIGTERM)

    assert holding.running.until_line("aborted") == "aborted LeaseEnding dream: asked to stop (SIGTERM)"
    assert not is_granted(lock)
    assert holding.end()[0] == 0
    assert is_granted(lock)
    assert [row["outcome"] for row in lock.history(task="dream") if row["outcome"]] == ["stopped"]


def test_stop_ends_the_program(lock: Lock, holding: Client) -> None:
    """`maintlock stop` ends the Node process that keeps the lease, and the task was stopped (L4)."""
    stopped = run(lock, MAINTLOCK, "stop", "--yes")

    assert stopped.returncode == 0, stopped.stderr
    assert f"node (pid {holding.pid})" in stopped.stdout
    assert holding.running.end()[0] == -signal.SIGTERM
    assert [row["outcome"] for row in lock.history(task="dream") if row["outcome"]] == ["stopped"]


def test_work_with_checkpoints_yields(lock: Lock, holding: Client) -> None:
    """`shouldYield` tells the work that somebody waits for the lease (L5)."""
    holding.say("yield")
    assert holding.running.until_line("yield") == "yield false"

    waiter = start(lock, WRAP, "-t", "backup", "--wait", "10m", "--", "echo", "ran")
    until_queued(lock, waiter)
    holding.say("yield")

    assert holding.running.until_line("yield") == "yield true"
    holding.end()
    assert waiter.end()[1] == "ran\n"


def test_work_that_waits_for_nothing_does_not_keep_node(lock: Lock, node: str, tmp_path: Path) -> None:
    """A function whose promise nothing will ever settle ends with the process, as without the lease, which is free then."""
    (tmp_path / "stuck.mjs").write_text(
        f"import {{ withLease }} from '{LEASE}';\nawait withLease('dream', () => new Promise(() => {{}}));\n",
        encoding="utf-8",
    )

    assert run(lock, node, "stuck.mjs").returncode == 13
    assert run(lock, WRAP, "-t", "next", "--wait", "10m", "--", "true").returncode == 0


def test_again_and_again(lock: Lock, node: str, tmp_path: Path) -> None:
    """A daemon takes the lease again and again, with a fence that rises, and no descriptor is left behind; that the lock
    file or the whole directory was removed meanwhile is no matter.
    """
    (tmp_path / "daemon.mjs").write_text(
        f"""import {{ withLease }} from '{LEASE}';
import {{ readdirSync, rmSync }} from 'node:fs';
const open = () => readdirSync('/proc/self/fd').length;
const fence = () => withLease('dream', lease => lease.fence);
const first = await fence(), before = open();
const second = await fence();
rmSync('{places(lock).lock}');
const third = await fence();
rmSync('{lock.directory}', {{ recursive: true }});
console.log(first, second, third, await fence(), open() - before);
""",
        encoding="utf-8",
    )

    assert run(lock, node, "daemon.mjs").stdout == "1 2 3 1 0\n"


def test_the_configured_lease_is_taken(lock: Lock, node: str, tmp_path: Path) -> None:
    """Which lease a task takes comes from the configuration, as with the wrapper."""
    (tmp_path / "maintlock.toml").write_text('[tasks.dream]\nlease = "gpu"\n', encoding="utf-8")

    client = Client(lock, node)

    assert client.until_holding()["lease"] == lock.sidecar("gpu")["lease"] == "gpu"
    assert client.end()[0] == 0


@pytest.mark.parametrize(
    ("task", "options", "code", "says"),
    [
        (
            "dream",
            {"command": "no-such-maintlock"},
            127,
            "no-such-maintlock was not found; install it, from a checkout",
        ),
        ("not a task", {}, 64, "--task 'not a task': expected"),
        ("dream", {"stateDir": "/proc/none"}, 73, "/proc/none"),
    ],
)
def test_no_lease_to_be_had(lock: Lock, node: str, task: str, options: dict[str, object], code: int, says: str) -> None:
    """What is wrong comes as `LeaseUnavailable` with the wrapper's exit code and words, and the function is not called."""
    error = Client(lock, node, task, **options).error()

    assert (error["name"], error["exitCode"]) == ("LeaseUnavailable", code)
    assert says in error["message"] and not error["message"].startswith("maintlock: ")


def test_inside_a_job_it_joins(lock: Lock, node: str) -> None:
    """In a program that a guarded job has started `withLease` takes part in that job (R7)."""
    job = [node, str(CLIENT), str(LEASE), "dream"]

    done = run(lock, WRAP, "-t", "primary-dev-sync", "--", *job)

    assert done.returncode == 0, done.stderr
    (outer,) = lock.history(event="acquired")
    assert f'"id":"{outer["lease_id"]}"' in done.stdout
    assert [row["task"] for row in lock.history(event="nested_finished")] == ["dream"]


def test_the_documented_example(lock: Lock, node: str, tmp_path: Path) -> None:
    """The example in docs/node.md works as it stands, and tells who is in its way."""
    guard, daemon = blocks_of(PAGE, "js")
    shutil.copytree(GUARD.parent, tmp_path / "maintlock")
    (tmp_path / "daemon.mjs").write_text(daemon, encoding="utf-8")
    (tmp_path / "backup.mjs").write_text(guard + SAY_GRANT, encoding="utf-8")

    assert run(lock, node, "backup.mjs").stdout.startswith("ran backup ")
    assert run(lock, node, "daemon.mjs").stdout == "dreaming one under fence 2\ndreaming two under fence 2\n"
    lock.hold("backup", start_new_session=True)
    held = daemon.replace("{ wait: '10m' }", "{}")
    (tmp_path / "daemon.mjs").write_text(held, encoding="utf-8")
    assert "held by backup (owner " in run(lock, node, "daemon.mjs").stdout


def test_types_as_documented(tmp_path: Path) -> None:
    """The declaration in docs/node.md covers the guard that is imported there, and TypeScript, where there is one, takes both
    modules with it, without flags.
    """
    code, (declared,) = "".join(blocks_of(PAGE, "js")), blocks_of(PAGE, "ts")
    (imported,) = re.findall(r"^import '(.*guard\.mjs.*)';$", code, re.MULTILINE)
    (before, after) = re.findall(r"^declare module '(.*)\*(.*)';$", declared, re.MULTILINE)[0]
    assert imported.startswith(before) and imported.endswith(after) and "?task=" in after

    compiler = shutil.which("tsc")
    if compiler is None:
        return
    shutil.copytree(GUARD.parent, tmp_path / "maintlock")
    for name, text in {"package.json": '{"type": "module"}', "guard.d.ts": declared, "program.ts": code}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    words = "--noEmit --strict --module nodenext --target es2022 guard.d.ts program.ts".split()
    done = subprocess.run([compiler, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
