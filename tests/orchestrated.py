"""An orchestrator for tests: a configuration, the program, what it logs, and jobs that run until they are let go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import MAINTLOCK, PATIENCE_SECONDS, Lock, Running, read_unless_busy, until

HEAVY = ("summary", "kbSync", "backup", "primary-dev-sync", "dream", "golden-path")
POLL = 'poll_interval = "60ms"\n'


class Orchestration:
    """One configuration beside one state directory, and the orchestrators that work on them."""

    def __init__(self, lock: Lock, tmp_path: Path) -> None:
        self.lock = lock
        self.place = tmp_path
        self.config = tmp_path / "maintlock.toml"
        self.trace = tmp_path / "trace"
        self.trace.touch()
        self._count = 0
        self.log = tmp_path / "log.0"

    def configure(self, *parts: str, head: str = POLL) -> None:
        """Write the configuration, whole."""
        new = self.config.with_suffix(".new")
        new.write_text(head + "\n".join(parts))
        if self.config.is_dir():
            self.config.rmdir()
        new.replace(self.config)

    # Jobs

    def script(self, name: str) -> str:
        """Return a name for a script that no test beside this one uses: who looks for it looks at all processes."""
        return f"{name}.{os.getpid()}.{self.place.name}.py"

    def gate(self, name: str) -> Path:
        """Return the pipe on which a job of this name waits to be let go."""
        path = self.place / f"gate.{name}"
        if not path.exists():
            os.mkfifo(path)
        return path

    def task(self, name: str, *settings: str, ends: str | None = None, interval: str = "1h") -> str:
        """Return a task whose job runs until it is let go, or does `ends` instead; it traces its begin and end."""
        wait = f'read x < "{self.gate(name)}"' if ends is None else ends
        script = (
            f'echo "{name} begins" >> "{self.trace}"; {wait}; code=$?; echo "{name} ends" >> "{self.trace}"; exit $code'
        )
        shown = json.dumps(["sh", "-c", script])
        return "\n".join([f"[tasks.{name}]", f"command = {shown}", f'interval = "{interval}"', *settings, ""])

    def let_go(self, name: str) -> None:
        """Let a job end that waits."""
        with self.gate(name).open("w") as gate:
            gate.write("\n")

    def traced(self) -> list[str]:
        """Return what jobs have traced, in order."""
        return self.trace.read_text().splitlines()

    def began(self, name: str) -> int:
        """Return how often a job has begun."""
        return self.traced().count(f"{name} begins")

    def until_began(self, name: str, times: int = 1) -> None:
        """Wait until a job has begun that many times."""
        try:
            until(lambda: self.began(name) >= times)
        except AssertionError:
            log = self.log.read_text() if self.log.exists() else ""
            raise AssertionError(f"{times} × {name} to begin: {self.traced()} {log}") from None

    # The program

    def start(self, *options: str, env: Mapping[str, str] | None = None, is_ready: bool = True) -> Running:
        """Start an orchestrator, and return while it runs."""
        self._count += 1
        self.log = self.place / f"log.{self._count}"
        with self.log.open("wb") as log:
            running = self.lock.start(
                "orchestrate", "--config", str(self.config), *options,
                program=MAINTLOCK, stderr=log, env=env, cwd=self.place,
            )  # fmt: skip
        if is_ready:
            self.until_logged("started")
        return running

    def once(self, *options: str) -> int:
        """Make one pass, and return the exit code."""
        return self.start("--once", *options, is_ready=False).end()[0]

    def logged(self, event: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """Return the log lines of the newest orchestrator that have these fields."""
        lines = self.log.read_text(errors="replace").split("\n")[:-1]
        rows = [json.loads(line) if line.startswith("{") else {"message": line} for line in lines]
        wanted = {**({"event": event} if event else {}), **fields}
        return [row for row in rows if wanted.items() <= row.items()]

    def until_logged(self, event: str, times: int = 1, **fields: Any) -> dict[str, Any]:
        """Return the log line with these fields that is the so-manyeth."""
        what = f"{times} × {event} {fields}"
        try:
            found = until(lambda: len(self.logged(event, **fields)) >= times and self.logged(event, **fields), what)
        except AssertionError:
            raise AssertionError(f"{what} in {self.log.read_text()}") from None
        line: dict[str, Any] = found[times - 1]
        return line

    def passes(self, count: int = 3) -> None:
        """Wait until an orchestrator has made some more passes."""
        for _ in range(count):
            before = self.polled_ns()
            until(lambda before=before: self.polled_ns() != before, "another pass")

    def polled_ns(self) -> int:
        """Return when the orchestrator last polled."""
        try:
            return (self.lock.directory / "orchestrator.json").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def record(self) -> dict[str, Any]:
        """Return `orchestrator.json`."""
        found: dict[str, Any] = json.loads((self.lock.directory / "orchestrator.json").read_text())
        return found

    def stop(self, running: Running, number: int = signal.SIGTERM) -> int:
        """End an orchestrator, and return its exit code."""
        running.signal(number)
        return running.end()[0]

    def health(self, code: int | None = None) -> dict[str, Any]:
        """Return `maintlock health --json`, which must exit as said."""
        done = read_unless_busy(self._read_health, lambda done: done.stdout)
        assert done.returncode in ({0, 1, 2} if code is None else {code}), (done.returncode, done.stdout, done.stderr)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _read_health(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MAINTLOCK, "health", "--json", "--config", str(self.config)],
            env=self.lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS,
        )  # fmt: skip

    def until_health(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Return the first health that meets a condition."""
        found: dict[str, Any] = {}

        def is_met() -> bool:
            found.update(self.health())
            return bool(condition(found))

        try:
            until(is_met, "health")
        except AssertionError:
            raise AssertionError(json.dumps(found, indent=1)) from None
        return found

    def pid_alive(self, pid: int) -> bool:
        """Tell whether a process lives, and is no zombie."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False


@contextmanager
def outsider(place: Path, script: str, env: Mapping[str, str]) -> Iterator[int]:
    """Run a script of this name outside the lease, as its pid, until the context is left."""
    path = place / script
    path.write_text("import sys\nprint('ready', flush=True)\nsys.stdin.read()\n")
    with subprocess.Popen(
        ["python3", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(env), cwd=place
    ) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        try:
            yield popen.pid
        finally:
            popen.kill()
