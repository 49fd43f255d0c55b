"""One epoch: contenders are started and started again, faults strike, and in the end everything is let end."""

from __future__ import annotations

import collections
import heapq
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.torture import faults
from tests.torture.actors import KINDS, Actor, Programs, with_few_descriptors
from tests.torture.story import Epoch
from tests.torture.witness import read_violations

LEASE = "heavy-maintenance"
MARK = "TORTURE_RING"
TURN_SECONDS = 0.004
SETTLE_SECONDS = 60.0  # on a machine that is ten times as slow
SMALL_DISK = "size=24m,mode=700"
NEVER = float("inf")
CONTENTS_KEPT = 8


class Seen(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    name: str
    session: int
    state: str


def read_processes() -> Iterator[Seen]:
    """Give all processes that live."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as file:
                before, _, after = file.read().rpartition(")")
        except OSError:
            continue
        fields = after.split()
        if fields[0] not in "ZX":
            yield Seen(int(name), before.partition("(")[2], int(fields[3]), fields[0])


class Ring:
    """The state directory of one epoch with all who fight over it; `tolls` counts what the epoch was told to do."""

    def __init__(self, directory: Path, epoch: Epoch, programs: Programs, *, shim: str | None) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.epoch = epoch
        self.programs = programs
        self.shim = shim if epoch.family.with_clock else None
        self.running: dict[int, Actor] = {}
        self.ended: list[Actor] = []
        self.tolls: collections.Counter[str] = collections.Counter()
        self.stuck: list[str] = []
        self.lock_contents: collections.deque[bytes] = collections.deque(maxlen=CONTENTS_KEPT)
        self.stale_copies: list[faults.StaleCopy] = []
        self.replaced_under: set[object] = set()  # grants that were on record when the lock file was replaced
        self.bad_disk: list[tuple[float, float]] = []  # from when until when
        self.taken_ledgers: list[Path] = []
        self.has_bad_disk = self.has_bad_ledger = False
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._undo_number = 0
        self._rng = {name: random.Random(f"{epoch.seed}/{name}") for name in KINDS}
        self._next_at: dict[tuple[str, int], float] = {}
        self._place_of: dict[int, tuple[str, int]] = {}
        directory.mkdir()
        self.state.mkdir(mode=0o700)
        (directory / "clock").write_bytes(bytes(8))
        self.said = os.open(directory / "said", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    # The epoch

    def fight(self, *, until_overlap: bool = False) -> None:
        """Let them fight for the epoch's time."""
        began = time.monotonic()
        strikes = collections.deque(self.epoch.strikes)
        places = [
            (name, n) for name, kind in KINDS.items() if kind.is_switched_on(self.programs) for n in range(kind.places)
        ]
        self._next_at = dict.fromkeys(places, 0.0)
        while (lasted := time.monotonic() - began) < self.epoch.seconds:
            self._turn()
            self._remember_lock_file()
            for place in places:
                if time.monotonic() >= self._next_at[place]:
                    self._next_at[place] = NEVER
                    self._start(*place)
            while strikes and strikes[0].at_seconds <= lasted:
                strike = strikes.popleft()
                has_struck = faults.FAULTS[strike.fault](self, random.Random(strike.seed))
                self.tolls[strike.fault] += has_struck
                self._note(f"{time.time():.6f} {time.monotonic_ns()} {strike.fault}{'' if has_struck else ': missed'}")
            if until_overlap and read_violations(str(self.directory)):
                return
            time.sleep(TURN_SECONDS)

    def _remember_lock_file(self) -> None:
        try:
            content = self.path("lock").read_bytes()
        except FileNotFoundError:
            return
        if content and content not in self.lock_contents:
            self.lock_contents.append(content)

    def _note(self, text: str) -> None:
        """Write down what was done when, for who reads a kept directory."""
        with open(self.directory / "strikes", "a") as file:
            file.write(text + "\n")

    def settle(self) -> None:
        """Undo what can be undone, start nobody any more, and wait until everybody has ended by themselves."""
        while self._undo:
            heapq.heappop(self._undo)[2]()
        for actor in self.running.values():
            if actor.popen.stdin is not None:
                actor.popen.stdin.close()
            if actor.kind == "orchestrator":
                os.kill(actor.pid, signal.SIGTERM)
        deadline = time.monotonic() + SETTLE_SECONDS
        while left := self.marked():
            if time.monotonic() > deadline:
                self.stuck.append(f"do not end by themselves: {left}")
                self.kill_all()
                break
            self._turn()
            time.sleep(0.02)
        self._turn()

    def kill_all(self) -> None:
        """Kill whatever is still there, until nothing is."""
        while left := self.marked():
            for pid in left:
                send(pid, signal.SIGKILL)
            self._turn()
            time.sleep(0.01)

    def close(self) -> None:
        """Give back what the epoch has open, and its disk."""
        while self._undo:
            heapq.heappop(self._undo)[2]()
        self.kill_all()
        os.close(self.said)

    def _turn(self) -> None:
        """Bury the dead, also those that were left to us, and undo what has lasted long enough."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._bury(pid, os.waitstatus_to_exitcode(status))
        while self._undo and self._undo[0][0] <= time.monotonic():
            heapq.heappop(self._undo)[2]()

    def _bury(self, pid: int, code: int) -> None:
        actor = self.running.pop(pid, None)
        if actor is None:
            return
        actor.code = actor.popen.returncode = code
        actor.over = time.monotonic()
        if actor.popen.stdin is not None and not actor.popen.stdin.closed:
            actor.popen.stdin.close()
        self.ended.append(actor)
        self._next_at[self._place_of.pop(pid)] = time.monotonic() + KINDS[actor.kind].pause_seconds

    # Contenders

    def env(self) -> dict[str, str]:
        """Return the environment of everything that is started here."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAINTLOCK_", "npm_"))}
        ours = {
            "MAINTLOCK_STATE_DIR": str(self.state),
            "XDG_STATE_HOME": str(self.directory / "xdg"),
            "npm_config_cache": str(self.directory.parent / "npm"),
            "npm_config_update_notifier": "false",
            MARK: str(self.directory),
        }
        shim = {"LD_PRELOAD": self.shim, "TORTURE_CLOCK": str(self.directory / "clock")} if self.shim else {}
        return {**clean, **ours, **shim}

    def _start(self, name: str, place: int) -> None:
        kind, rng = KINDS[name], self._rng[name]
        argv = kind.argv(self.programs, self.directory, rng)
        has_few = self.epoch.family.with_few_descriptors and kind.is_wrap and rng.random() < 0.5
        if has_few:
            argv = with_few_descriptors(argv, rng)
            self.tolls["few descriptors"] += 1
        popen = subprocess.Popen(
            argv, env=self.env(), cwd=self.directory, start_new_session=True,
            stdin=subprocess.PIPE if kind.lasts else subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.said,
        )  # fmt: skip
        self.running[popen.pid] = Actor(name, popen, has_few_descriptors=has_few)
        self._place_of[popen.pid] = name, place

    def run(self, *argv: str, seconds: float = SETTLE_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as one more who uses this state directory."""
        return subprocess.run(
            argv, env=self.env(), cwd=self.directory, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            timeout=seconds, start_new_session=True,
        )  # fmt: skip

    def marked(self) -> list[int]:
        """Return all living processes that were started here, whatever session they are in."""
        mark = f"{MARK}={self.directory}".encode()
        return [seen.pid for seen in read_processes() if mark in _read_environ(seen.pid)]

    # What faults ask for

    def later(self, seconds: float, undo: Callable[[], None]) -> None:
        """Do something after a while, at the latest at the epoch's end."""
        self._undo_number += 1
        heapq.heappush(self._undo, (time.monotonic() + seconds, self._undo_number, undo))

    def of_kind(self, *names: str) -> list[Actor]:
        """Return who is running of these kinds, in the order of their start."""
        return [actor for actor in self.running.values() if actor.kind in names]

    def read_holder(self) -> Actor | None:
        """Return whose process the sidecar names: itself, or the leader of its session."""
        pid = self.read_sidecar("pid")
        try:
            return (self.running.get(pid) or self.running.get(os.getsid(pid))) if isinstance(pid, int) else None
        except (OSError, OverflowError):
            return None

    def read_sidecar(self, name: str) -> object:
        """Return a field of the sidecar, None where there is none."""
        try:
            fd = os.open(self.path("json"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # it may be a FIFO of ours
            try:
                return json.loads(os.read(fd, 1 << 20))[name]
            finally:
                os.close(fd)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def members(self, actor: Actor) -> list[Seen]:
        """Return the living processes of an actor's session."""
        return [seen for seen in read_processes() if seen.session == actor.pid]

    def path(self, ending: str) -> Path:
        """Return a file of the lease."""
        return self.state / f"{LEASE}.{ending}"


def send(pid: int, number: int) -> bool:
    """Send a signal; False if nobody is there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _read_environ(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


@contextmanager
def ring_of(directory: Path, epoch: Epoch, programs: Programs, *, shim: str | None, has_mounts: bool) -> Iterator[Ring]:
    """Give the ring of an epoch; nothing that was started in it outlives it."""
    ring = Ring(directory, epoch, programs, shim=shim)
    is_mounted = epoch.family.on_small_disk and has_mounts
    if is_mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", SMALL_DISK, "torture", str(ring.state)], check=True)
    try:
        yield ring
    finally:
        ring.close()
        if is_mounted:
            subprocess.run(["umount", "-l", str(ring.state)], check=False)


def remove(directory: Path) -> None:
    """Remove an epoch's directory."""
    shutil.rmtree(directory, ignore_errors=True)
