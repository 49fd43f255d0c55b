"""A copy of the example project that a test may run and rearrange: real npm, real scripts, a database of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.support import PATIENCE_SECONDS, ROOT, Lock, Running, until

EXAMPLE = ROOT / "wrappers" / "example"
NODE = ROOT / "wrappers" / "node"
STORE = Path("buildScripts", "ai", "lib", "store")
GATED_STORE = ROOT / "tests" / "probes" / "gated_store.py"
PAGES = {"one.md": "# One\n\nThe gate is in [two](two.md).\n", "two.md": "# Two\n\nThe lease is held by one.\n"}

# Of each manual script: its task, its file, and the store's operation in which it first presses on the database.
TASKS = {
    "ai:sync-kb": "kbSync",
    "ai:backup": "backup",
    "ai:run-sandman": "dream",
    "ai:sync-github-workflow": "sync-github-workflow",
}
FILES = {
    "ai:sync-kb": "buildScripts/ai/syncKnowledgeBase.mjs",
    "ai:backup": "buildScripts/ai/backup.mjs",
    "ai:run-sandman": "buildScripts/ai/runSandman.mjs",
    "ai:sync-github-workflow": "buildScripts/ai/syncGithubWorkflow.mjs",
}
FIRST_OPERATION = {
    "ai:sync-kb": "known",
    "ai:backup": "backup",
    "ai:run-sandman": "dream",
    "ai:sync-github-workflow": "heads",
}


class Gate:
    """Where the example's jobs stop, in the middle of their work on the database, while it is shut."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self._path = directory / "gate"
        self._path.touch()
        self._fd: int | None = None

    def shut(self) -> None:
        """Let nobody pass from now on, and forget who came before."""
        for path in self.directory.glob("*.*"):
            path.unlink()
        self._fd = os.open(self._path, os.O_RDONLY)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def open(self) -> None:
        """Let everybody pass."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def arrivals(self, operation: str) -> list[int]:
        """Return the pids that have come to the gate for an operation so far."""
        return [int(path.suffix[1:]) for path in self.directory.glob(f"{operation}.*")]


class Project:
    """A copy of the example, where its output goes, its gate, and the lock it uses."""

    def __init__(self, directory: Path, lock: Lock, npm: str) -> None:
        self.directory = directory
        self.lock = lock
        self.program = npm
        self.top = directory.parent
        self.work = directory / ".work"
        self.home = self.top / "home"
        shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns(self.work.name, "__pycache__"))
        shutil.copytree(NODE, self.top / NODE.name)  # the scripts import it from beside them
        self.home.mkdir()
        (self.work / "kb").mkdir(parents=True)
        for name, text in PAGES.items():
            (self.work / "kb" / name).write_text(text, encoding="utf-8")
        self.gate = Gate(self.top / "gate")

    def env(self, **more: str) -> dict[str, str]:
        """Return the environment of somebody at work in this project, without settings of their own."""
        return self.lock.env(
            HOME=str(self.home),
            EXAMPLE_WORK=str(self.work),
            EXAMPLE_PYTHON=str(GATED_STORE),
            GATE=str(self.gate.directory),
            npm_config_update_notifier="false",
            **more,
        )

    def make_database(self) -> None:
        """Index two documents, so that every job has a database to press on."""
        documents = [
            {"path": name, "hash": name, "title": name, "links": [], "chunks": [{"heading": "", "text": text}]}
            for name, text in PAGES.items()
        ]
        wish = {"database": str(self.work / "kb.sqlite"), "present": list(PAGES), "changed": documents}
        store = [sys.executable, "-B", str(self.directory / STORE), "sync"]
        subprocess.run(store, input=json.dumps(wish), text=True, check=True, capture_output=True)

    def make_remote(self) -> None:
        """Make the repository that the example follows, and its clone."""
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.work / "upstream.git"))
        self.git("clone", "--quiet", str(self.work / "upstream.git"), str(self.work / "clone"))
        self.push("first")
        self.git("-C", str(self.work / "clone"), "pull", "--quiet")

    def push(self, name: str) -> None:
        """Push a page to it, as somebody else does."""
        colleague = self.top / f"colleague-{name}"
        self.git("clone", "--quiet", str(self.work / "upstream.git"), str(colleague))
        (colleague / f"{name}.md").write_text(f"# {name}\n\nA page that came by git.\n", encoding="utf-8")
        for words in (["add", "."], ["commit", "--quiet", "-m", name], ["push", "--quiet", "origin", "HEAD"]):
            self.git("-C", str(colleague), *words)

    def git(self, *words: str) -> None:
        """Run git to its end, as somebody with a name."""
        somebody = {f"GIT_{who}_{what}": "ada" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = self.run("git", *words, env=self.env(**somebody), cwd=self.top)
        assert done.returncode == 0, done.stderr

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Return what the database answers."""
        with closing(sqlite3.connect(self.work / "kb.sqlite")) as database:
            return database.execute(statement).fetchall()

    # Running. Each program gets a session of its own, as from a terminal of its own.

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project to its end."""
        return subprocess.run(
            command, env=dict(env or self.env()), cwd=cwd or self.directory, start_new_session=True,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip

    def npm(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `npm run …` to its end."""
        return self.run(self.program, "run", *words, **options)

    def start(
        self, program: str, *words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, **options: Any
    ) -> Running:
        """Start a command in the project."""
        options = {"cwd": cwd or self.directory, "start_new_session": True, **options}
        return self.lock.start(*words, program=program, env=env or self.env(), **options)

    def start_npm(self, *words: str, env: Mapping[str, str] | None = None) -> Running:
        """Start `npm run …`."""
        return self.start(self.program, "run", *words, env=env)

    def hold(self, script: str) -> Running:
        """Start `npm run SCRIPT`, and return while it works on the database behind the shut gate."""
        self.gate.shut()
        holder = self.start_npm(script)
        self.until_at_work(holder, FIRST_OPERATION[script])
        return holder

    def until_at_work(self, running: Running, operation: str) -> int:
        """Return the pid that has come to the gate for an operation; what should bring it there must not end before."""
        until(lambda: self.gate.arrivals(operation) or running.popen.poll() is not None, f"{operation} at the gate")
        arrived = self.gate.arrivals(operation)
        assert arrived, f"ended before: {running.end()}"
        return arrived[0]

    def finish(self, *running: Running) -> list[tuple[int, str, str]]:
        """Open the gate and return how each of them ends."""
        self.gate.open()
        return [one.end() for one in running]

    # Rearranging

    def set_scripts(self, **scripts: str) -> None:
        """Add npm scripts; `_` in a name stands for itself."""
        path = self.directory / "package.json"
        package = json.loads(path.read_text(encoding="utf-8"))
        package["scripts"].update(scripts)
        path.write_text(json.dumps(package, indent=2), encoding="utf-8")

    def configure(self, text: str) -> None:
        """Replace `maintlock.toml`."""
        (self.directory / "maintlock.toml").write_text(text, encoding="utf-8")

    def configure_tasks(self, line: str) -> None:
        """Add a line to every task of `maintlock.toml`."""
        path = self.directory / "maintlock.toml"
        path.write_text(path.read_text(encoding="utf-8").replace("\nmatch = ", f"\n{line}\nmatch = "), encoding="utf-8")

    def close(self) -> None:
        """Open the gate, and end whatever a test has left at work here."""
        self.gate.open()
        for process in psutil.process_iter():
            try:
                if process.environ().get("GATE") == str(self.gate.directory):
                    process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue


def is_over(pid: int) -> bool:
    """Tell whether a process has ended, even if nobody has asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def tools_without(directory: Path, *programs: str) -> str:
    """Return a PATH that has every tool but these; they may live beside those that are needed."""
    directory.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for tool in Path(place).iterdir() if Path(place).is_dir() else ():
            link = directory / tool.name
            if tool.name not in programs and not link.is_symlink():
                link.symlink_to(tool)
    return str(directory)


@contextmanager
def project_in(directory: Path, lock: Lock, npm: str) -> Iterator[Project]:
    """Give a project in a directory, and clean up after it."""
    project = Project(directory, lock, npm)
    try:
        yield project
    finally:
        project.close()
