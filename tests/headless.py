"""Programs started as a scheduler starts them: in a session of their own, without a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maintlock import process
from tests.support import PATIENCE_SECONDS, WRAP, Lock, Running, until

# Each command line by a process of its own, but of an interpreter that has already begun.
EACH = """
import json, os, sys
from maintlock.wrap import main
for argv in json.load(sys.stdin):
    said, says = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(says, 2)
            os._exit(main(argv))
        finally:
            os._exit(255)
    os.close(says)
    with open(said, "rb") as file:
        text = file.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text.decode("utf-8", "backslashreplace")]))
"""
PROBES = Path(__file__).resolve().parent / "probes"
SIGNALS = str(PROBES / "signals.py")


class Headless(Lock):
    """A lock whose programs have no terminal, and whose jobs end with the test, wherever they have gone."""

    def wrap(self, *arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> Any:
        """Run `maintlock-wrap` to its end."""
        return super().wrap(*arguments, env=env, **{"start_new_session": True, **options})

    def start(
        self, *arguments: str, program: str = WRAP, env: Mapping[str, str] | None = None, **options: Any
    ) -> Running:
        """Start `maintlock-wrap` (or another program) and return while it runs."""
        return super().start(*arguments, program=program, env=env, **{"start_new_session": True, **options})

    def python(self, script: str, *arguments: str, **options: Any) -> Running:
        """Start a Python program as a job would be started, outside the lease."""
        return self.start("-I", "-c", script, *arguments, program=sys.executable, **options)

    def patched(self, patch: str, *arguments: str, **options: Any) -> Running:
        """Start `maintlock-wrap` after `patch`, Python that takes something away from it."""
        return self.start(str(PROBES / "patched_wrap.py"), patch, *arguments, program=sys.executable, **options)

    def wrap_each(self, lines: Sequence[Sequence[str]], **options: Any) -> Iterator[tuple[Sequence[str], int, str]]:
        """Run `maintlock-wrap` with one command line after the other; give each with its exit code and what was said."""
        done = subprocess.run(
            [sys.executable, "-c", EACH], input=json.dumps(lines), env=self.env(), capture_output=True, text=True,
            timeout=PATIENCE_SECONDS, start_new_session=True, check=True, **options,
        )  # fmt: skip
        for line, (code, said) in zip(lines, map(json.loads, done.stdout.splitlines()), strict=True):
            yield line, code, said

    def signals(self, *options: str, exit_on: str = "", **more: Any) -> Running:
        """Start the probe that says which signals it gets, as a job, and return when it is ready."""
        running = self.start("-t", "holder", *options, "--", sys.executable, "-I", SIGNALS, exit_on, **more)
        running.until_line("ready")
        return running

    def line(self, lease: str = "heavy-maintenance") -> str:
        """Return the lock's line as text."""
        return (self.directory / f"{lease}.lock").read_text()

    def job_pid(self) -> int:
        """Return the main process of the job that runs, once the sidecar tells."""
        return int(until(lambda: self.sidecar()["job_pid"], "the sidecar to name the job"))

    def is_free(self) -> bool:
        """Tell whether a request gets the lease at once."""
        return bool(self.wrap("-t", "next", "-E", "99", "--", "true").returncode == 0)


@contextmanager
def headless_in(directory: Path) -> Iterator[Headless]:
    """Give a lock in a directory, and clean up after it."""
    lock = Headless(directory)
    try:
        yield lock
    finally:
        lock.close()


def is_alive(pid: int) -> bool:
    """Tell whether a process still works."""
    stat = process.read_stat(pid)
    return stat is not None and not stat.is_dead
