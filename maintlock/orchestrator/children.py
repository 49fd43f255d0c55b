"""What the orchestrator starts: in a session of its own, with a log file for what it prints, and nothing of ours to inherit.

A child that a predecessor has started is known by its identity only; ours is also reaped.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from maintlock import launch, process
from maintlock.orchestrator.record import Started

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

LOGS = "logs"
PRIVATE = 0o600
PRIVATE_DIRECTORY = 0o700
PREFIX = "MAINTLOCK_"


class Child:
    """One process that was started by this orchestrator, or by one before it."""

    def __init__(self, started: Started, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.started = started
        self.is_begun = False  # of a job: whether it was seen to have its lease
        self._popen = popen

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.started.identity.pid

    @property
    def exit_code(self) -> int | None:
        """What it ended with (negative: the signal it died of); None where nobody of ours saw it."""
        return None if self._popen is None else self._popen.returncode

    def is_alive(self) -> bool:
        """Tell whether it still lives, and reap it if not."""
        if self._popen is not None:
            return self._popen.poll() is None
        return process.is_alive(self.started.identity) is True

    def send_signal(self, number: int, *, to_group: bool = False) -> None:
        """Send a signal to it, or to its whole process group, which it leads; not if its pid is another's by now."""
        if not self.is_alive():
            return
        stat = process.read_stat(self.pid)
        try:
            if to_group and stat is not None and stat.pgid == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        except OSError:
            pass  # gone meanwhile


def start(
    argv: Sequence[str], *, directory: str, log_name: str, cwd: str | None, environ: Mapping[str, str], reason: str = ""
) -> Child:
    """Start a program.

    Raises:
        OSError: It cannot be started.
    """
    with _opened_log(directory, log_name) as log:
        popen = subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Child(Started(identity=process.read_identity(popen.pid), at=time.time(), reason=reason), popen)


def is_ours(started: Started) -> bool:
    """Tell whether a process on record lives, and can be one that an orchestrator has started: our user's, leading a session.

    What cannot be seen from here (another pid namespace, L1) is not taken over: its lease tells whether it works on.
    """
    if process.is_alive(started.identity) is not True:
        return False
    stat = process.read_stat(started.identity.pid)
    return stat is not None and stat.sid == stat.pid != os.getpid() and process.is_our_users(stat.pid)


def environment(
    environ: Mapping[str, str], more: Mapping[str, str], *, directory: str, config: str | None
) -> dict[str, str]:
    """Return a child's environment: no grant of ours, whoever started us, but the places where it finds the lease."""
    kept = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    beside = os.path.dirname(launch.wrap_program())  # where it is not on PATH, a job finds us all the same
    search = kept.get("PATH", os.defpath)
    found = {"PATH": search if not beside or beside in search.split(":") else f"{search}:{beside}"}
    places = {"MAINTLOCK_STATE_DIR": directory, "MAINTLOCK_CONFIG": config or "none"}
    return {**kept, **found, **places, **more}


def log_path(directory: str, name: str) -> str:
    """Return where the output goes of what has this name among logs; that of its run before is in `….log.1`."""
    return f"{directory}/{LOGS}/{name}.log"


def restore_log(directory: str, name: str) -> None:
    """Put the logs of the runs before back in their places: what was started after them has not run."""
    path = log_path(directory, name)
    for later, earlier in ((path, f"{path}.1"), (f"{path}.1", f"{path}.2")):
        with suppress(OSError):
            os.rename(earlier, later)


def drop_oldest_log(directory: str, name: str) -> None:
    """Forget the log of the run before the last one: what was started after that has begun."""
    with suppress(OSError):
        os.unlink(f"{log_path(directory, name)}.2")


def _opened_log(directory: str, name: str) -> IO[bytes]:
    path = log_path(directory, name)
    with suppress(FileExistsError):
        os.mkdir(os.path.dirname(path), PRIVATE_DIRECTORY)
    for later, earlier in ((f"{path}.1", f"{path}.2"), (path, f"{path}.1")):
        with suppress(FileNotFoundError):
            os.rename(later, earlier)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, PRIVATE), "ab", buffering=0)
