"""Each peer: how it runs a command under its lock, tries, waits, and where its lock file is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from maintlock import process
from maintlock.model import replace
from maintlock.times import rfc3339
from tests.peers.guard import DEFERRED
from tests.protocol import LEASE, edit_line, edit_sidecar, leave_crashed
from tests.support import WRAP, lock_in

ALIVE = 1  # the PID of somebody who always lives
OTHER_BOOT = "00000000-0000-0000-0000-000000000000"
TRY, WAIT, HAMMER = "try", "wait", "hammer"


@dataclass(frozen=True)
class Origin:
    """When somebody got the lock, and where that was."""

    at: float
    boot_id: str
    pid_namespace: str


@dataclass(frozen=True)
class Locker:
    """A peer: `file` is its lock file below a place of its own, `argv(place, ttl, how, command)` how it is used."""

    name: str
    file: str
    argv: Callable[[Path, float, str, list[str]], list[str]]
    leave_stale: Callable[[Path, Origin], None]  # what a dead holder leaves, with a PID that lives here
    has_ttl: bool = False
    is_kernels_queue: bool = False
    waits_for_leftovers: bool = False
    goes_by_age: bool = False

    def hammer(self, place: Path, log: Path) -> list[str]:
        """Return a program that takes the lock as fast as it can, without waiting, and says so in a log."""
        kind = {"maintlock": "maintlock", "flock(1)": "flock"}.get(self.name)
        if kind is None:
            return self.argv(place, 3600.0, HAMMER, [str(log)])
        return _guard(kind, self.file, place, 3600.0, HAMMER, [str(log)])


def _maintlock(place: Path, ttl: float, how: str, command: list[str]) -> list[str]:
    waits = ["--wait", "forever"] if how == WAIT else ["-E", str(DEFERRED)]
    return [WRAP, "-q", "-t", "job", "--config=none", f"--state-dir={place}", f"--ttl={ttl}", *waits, "--", *command]


def _flock(place: Path, ttl: float, how: str, command: list[str]) -> list[str]:
    return ["flock", *([] if how == WAIT else ["-n", "-E", str(DEFERRED)]), str(place / "lock"), *command]


def _guard(kind: str, file: str, place: Path, ttl: float, how: str, command: list[str]) -> list[str]:
    return [sys.executable, "-m", "tests.peers.guard", kind, str(place / file), str(ttl), how, *command]


def _leave_text(file: str, place: Path, origin: Origin) -> None:
    """Leave a file with the PID of somebody who lives."""
    (place / file).write_text(f"{ALIVE}\n")
    os.utime(place / file, (origin.at, origin.at))


def _leave_record(place: Path, origin: Origin) -> None:
    """Leave a record with the PID of somebody who lives."""
    (place / "lock").write_text(json.dumps({"owner": "a", "reason": "b", "pid": ALIVE, "acquired_at": origin.at}))


def _leave_records(place: Path, origin: Origin) -> None:
    """Leave line and sidecar of a grant from elsewhere."""
    with lock_in(place) as lock:
        leave_crashed(lock)
        acquired_at = rfc3339(origin.at)
        where = replace(process.own_identity(), pid=ALIVE, boot_id=origin.boot_id, pid_namespace=origin.pid_namespace)
        edit_sidecar(
            lock, pid=ALIVE, boot_id=where.boot_id, pid_namespace=where.pid_namespace, acquired_at=acquired_at,
            pid_started_at=acquired_at,
        )  # fmt: skip
        edit_line(lock, identity=where, started_at=origin.at)


def _library(name: str, kind: str, file: str = "lock", *, lock: str = "", **more: bool) -> Locker:
    stale = _leave_record if kind in {"ttl", "pid"} else partial(_leave_text, file)
    return Locker(name, lock or file, partial(_guard, kind, file), stale, **more)


OURS = Locker(
    "maintlock",
    f"{LEASE}.lock",
    _maintlock,
    _leave_records,
    has_ttl=True,
    is_kernels_queue=True,
    waits_for_leftovers=True,
)
TTL = _library("PID file, its age decides", "ttl", has_ttl=True, goes_by_age=True)
PID = _library("PID file, its PID decides", "pid", has_ttl=True)
LOCKERS = (
    OURS,
    Locker("flock(1)", "lock", _flock, partial(_leave_text, "lock"), is_kernels_queue=True),
    _library("filelock", "filelock"),
    _library("portalocker Lock", "portalocker"),
    _library("portalocker PidFileLock", "pidfilelock", lock="lock.lock"),
    _library("fasteners", "fasteners"),
    TTL,
    PID,
)
ENV_MARK = "PEERS_SCENE"


def env(directory: Path, **more: str) -> dict[str, str]:
    """Return the environment of everything that is started in a directory: by the mark in it all of that is found again."""
    root = str(Path(__file__).resolve().parents[2])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAINTLOCK", "npm_"))}
    return {**kept, "PYTHONPATH": root, ENV_MARK: str(directory), "npm_config_update_notifier": "false", **more}
