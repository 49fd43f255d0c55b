"""What one scrape, or one page, sees: everything read once, when it is first asked for, by whoever asks.

What a reading raises is raised to everybody who asks for it, and to nobody else: collectors share readings, not failures.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from maintlock import history, observe, outside, process
from maintlock.orchestrator import record
from maintlock.redact import printable
from maintlock_exporter.keeper import LedgerKeeper
from maintlock_exporter.rated import Rated

if TYPE_CHECKING:
    from collections.abc import Callable

    from maintlock.history import Snapshot
    from maintlock.outside import Outside
    from maintlock.report import Status
    from maintlock_exporter.scene import Scene

Value = TypeVar("Value")


class Once(Generic[Value]):
    """A reading that is done once for each key, also when it fails."""

    def __init__(self, read: Callable[[str], Value]) -> None:
        self._read = read
        self._values: dict[str, Value] = {}
        self._errors: dict[str, Exception] = {}

    def __call__(self, key: str) -> Value:
        """Return what was read, or raise what that raised."""
        if key not in self._values and key not in self._errors:
            try:
                self._values[key] = self._read(key)
            except Exception as error:  # noqa: BLE001  kept for whoever asks next
                self._errors[key] = error
        if key in self._errors:
            raise self._errors[key]
        return self._values[key]


@dataclass(frozen=True, kw_only=True)
class View:
    """One look at everything. `status` and `snapshot` are asked by lease; `now` is in seconds since the epoch."""

    scene: Scene
    now: float
    status: Callable[[str], Status]
    snapshot: Callable[[str], Snapshot]
    outside: Callable[[], list[Outside]]
    daemons: Callable[[], dict[str, bool]]
    directory_trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why state directory or ledger cannot be read, or None; a ledger that does not exist yet is no fault."""
        if self.directory_trouble is not None:
            return self.directory_trouble
        try:
            for lease in self.scene.leases:
                observe.check_places(self.scene.places(lease))
                self.snapshot(lease)
        except Exception as error:  # noqa: BLE001  whatever it is, they could not be read
            return str(error)
        return None


class Watcher:
    """Looks at a scene, again and again; what is dear is looked at less often, and the ledger is kept open."""

    def __init__(self, scene: Scene, clock: Callable[[], float] = time.time) -> None:
        self.scene = scene
        self._clock = clock
        self.keeper = LedgerKeeper(scene.directory)
        self._outside = Rated(partial(outside.find, scene.config.tasks.values(), scene.places, outside.Watch()))
        self._daemons = Rated(partial(read_daemons, scene))

    def look(self) -> View:
        """Return a new view of everything."""
        self.keeper.keep()
        now, directory = self._clock(), self.scene.directory
        return View(
            scene=self.scene,
            now=now,
            status=Once(lambda lease: observe.read_status(self.scene.places(lease), now)),
            snapshot=Once(lambda lease: history.read_snapshot(directory, lease=lease)),
            outside=self._outside,
            daemons=self._daemons,
            directory_trouble=directory_trouble(directory),
        )


def directory_trouble(directory: str) -> str | None:
    """Return what is wrong with a state directory: one that is gone is a fault, whatever was in it."""
    try:
        is_directory = stat.S_ISDIR(os.lstat(directory).st_mode)
    except OSError as error:
        return f"{printable(directory)}: {(error.strerror or str(error)).lower()}"
    if not is_directory or not os.access(directory, os.R_OK | os.X_OK):
        return f"{printable(directory)}: is no directory that we can read"
    return None


def read_daemons(scene: Scene) -> dict[str, bool]:
    """Return which configured daemons run, whoever started them (R5): on record with the orchestrator, or by their command."""
    if not scene.config.daemons:
        return {}
    told = record.read(scene.directory)
    started = told.daemons if told is not None else {}
    running = [outside.read_argv(pid) for pid in process.read_pids()]
    return {
        name: (name in started and process.is_alive(started[name].identity) is True)
        or any(outside.is_command(argv, daemon.command) for argv in running)
        for name, daemon in sorted(scene.config.daemons.items())
    }
