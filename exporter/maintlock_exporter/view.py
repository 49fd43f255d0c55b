"""What one scrape, or one page, sees: everything read once, when it is first asked for, by whoever asks.

What a reading raises is raised to everybody who asks for it, and to nobody else: collectors share readings, not failures.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from maintlock import history, marks, observe, outside, paths, process
from maintlock.errors import MaintlockError, UnavailableError
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
    """One look at everything. `status` and `snapshot` are asked by lease; `now` is in seconds since the epoch.

    `directory_trouble` says what is wrong with the state directory, if anything is.
    """

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

    def untold(self, lease: str) -> list[Outside]:
        """Return the heavy processes outside a lease that no open collision names (L13)."""
        told = {mark for known in self.snapshot(lease).collisions for mark in marks.within(known.id)}
        return [one for one in self.outside() if one.lease == lease and marks.of(one.stat) not in told]


class Watcher:
    """Looks at a scene, again and again; what is expensive is read less often, and the ledger is kept open.

    As long as we have not seen a state directory, nothing has happened yet: all is well, and all counters are 0. Once we have
    seen one and it is gone, nothing is known: counters at 0 would look like a reset.
    """

    def __init__(self, scene: Scene, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.keeper = LedgerKeeper(scene.directory)
        self._was_there = not is_missing(scene.directory)
        self.watch(scene)

    def watch(self, scene: Scene) -> None:
        """Look at this from now on; another scene of the same state directory, with a new configuration."""
        self.scene = scene
        self._outside = Rated(partial(outside.find, scene.config.tasks.values(), scene.places, outside.Watch()))
        self._daemons = Rated(partial(read_daemons, scene))

    def look(self) -> View:
        """Return a new view of everything."""
        self.keeper.keep()
        now, trouble = self.clock(), self._directory_trouble()
        return View(
            scene=self.scene,
            now=now,
            status=Once(partial(self._read_status, now)),
            snapshot=Once(self._read_snapshot),
            outside=self._outside,
            daemons=self._daemons,
            directory_trouble=trouble,
        )

    def _read_status(self, now: float, lease: str) -> Status:
        """Return who has a lease. If the state directory is gone, a job may still be seen, but not that there is none."""
        found = observe.read_status(self.scene.places(lease), now)
        if found["state"] == "free":
            self._check_directory()
        return found

    def _read_snapshot(self, lease: str) -> Snapshot:
        found = history.read_snapshot(self.scene.directory, lease=lease)
        self._check_directory()
        return found

    def _check_directory(self) -> None:
        """Make sure that what was just read is not empty only because the state directory is gone.

        Raises:
            UnavailableError: It is gone, or something else is in its place.
        """
        trouble = self._directory_trouble()
        if trouble is not None:
            raise UnavailableError(trouble)

    def _directory_trouble(self) -> str | None:
        """Return what is wrong with the state directory, or None; one that was not made yet is no fault."""
        self._was_there = self._was_there or not is_missing(self.scene.directory)
        return directory_trouble(self.scene.directory) if self._was_there else None


def is_missing(directory: str) -> bool:
    """Tell whether there is nothing in the place of a state directory, rather than something that cannot be looked at."""
    try:
        os.lstat(directory)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def directory_trouble(directory: str) -> str | None:
    """Return why a state directory cannot be read or trusted, or None."""
    name = printable(directory)
    try:
        paths.check_trusted(directory, os.lstat(directory), directory=True)
    except FileNotFoundError:
        return f"{name}: is gone"
    except OSError as error:
        return f"{name}: {(error.strerror or str(error)).lower()}"
    except MaintlockError as error:
        return str(error)
    return None if os.access(directory, os.R_OK | os.X_OK) else f"{name}: we may not read it"


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
