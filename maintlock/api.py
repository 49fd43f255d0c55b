"""The lease from Python: `with maintlock.hold("kbSync"): …`.

No signal handler is installed and no thread is started. Under the same thread's own `hold`, and inside a guarded job, a
request joins; another thread is somebody else.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from maintlock import acquisition, config, flock, ledger, names, parts, paths, redact
from maintlock.errors import LeaseHeld, UsageError
from maintlock.identity import default_owner
from maintlock.lease import Joined, Lease, Request
from maintlock.model import replace
from maintlock.times import duration_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from maintlock.config import Config
    from maintlock.report import Status

__all__ = ["HeldLease", "LeaseHeld", "hold", "status"]

POLL_SECONDS = 0.02
DRAIN_EVERY_SECONDS = 1.0
CHECK_EVERY_SECONDS = 1.0
MAX_FOUND = 16
NO_CONFIG = config.load(None)


class HeldLease:
    """The lease inside a `with` block. `id`, `fence` and `task` name the grant; `env` is for children."""

    def __init__(self, grant: Lease | Joined, settings: Config) -> None:
        self._grant = grant
        self._settings = settings
        self.id = grant.line.lease_id
        self.fence = grant.line.fence
        self.task = grant.request.task

    @property
    def env(self) -> dict[str, str]:
        """What a child's environment needs to be known as part of this work: `subprocess.run(…, env=os.environ | lease.env)`."""
        return self._grant.environment(os.environ)

    def should_yield(self) -> bool:
        """Tell whether somebody waits for this lease, or another task is starved of it: then end at a checkpoint (L5)."""
        from maintlock import wanted

        return wanted.read_wanted(self._grant.places, self._settings, self.task)


class _Block:
    """One `with` block; `outcome` is set when it has been left."""

    def __init__(self, grant: Lease | Joined) -> None:
        self.grant = grant
        self.outcome: str | None = None
        self.reaped_before = parts.children_reaped()


class _Held(threading.local):
    """The blocks of the current thread, by state directory and lease, outermost first; in a forked child there are none."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.blocks: dict[tuple[str, str], list[_Block]] = {}

    def of(self, places: paths.Places) -> list[_Block]:
        if self.pid != os.getpid():
            self.__init__()  # type: ignore[misc]  # the child of a fork starts with nothing
        return self.blocks.setdefault((places.directory, places.lease), [])


_held = _Held()
_ledgers: dict[str, ledger.Ledger] = {}
_drained_at: dict[str, float] = {}
# When the records were last judged; the locks are, each time they are opened.
_checked_at: dict[paths.Places, float] = {}
_found: dict[tuple[str, str | None], tuple[float, str | None]] = {}  # when which configuration was found, from where
_configs: dict[tuple[object, ...], Config] = {}


class _Patience:
    """Waiting in the calling thread: in the kernel's queue without a time-out, by polling with one."""

    def lock(self, fd: int, *, deadline: float | None, shared: bool = False) -> bool:
        if deadline is None:
            flock.lock(fd, shared=shared)
            return True
        while not flock.try_lock(fd, shared=shared):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(POLL_SECONDS, left))
        return True

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def tell(self, event: str, text: str, *, verbose: bool = False, **fields: object) -> None:
        import logging

        logging.getLogger("maintlock").log(
            logging.DEBUG if verbose else logging.INFO, text, extra={"event": event, "maintlock": fields}
        )

    def keep_telling(self, event: str, text: str, _forms: Callable[[], Sequence[str]], /, **fields: object) -> None:
        self.tell(event, text, verbose=False, **fields)

    def stop_telling(self) -> None:
        pass


@contextmanager
def hold(
    task: str,
    *,
    lease: str | None = None,
    reason: str = "manual",
    owner: str | None = None,
    wait: float | str | None = None,
    ttl: float | str | None = None,
    state_dir: str | os.PathLike[str] | None = None,
) -> Iterator[HeldLease]:
    """Hold the lease for the length of a `with` block.

    `wait` and `ttl` are seconds or durations (`"10m"`); `wait` is None to stand back at once, or `"forever"`. What is not
    given comes from `maintlock.toml`, where there is one. The block is left when nothing works any more that was started in
    it with the lease's `env` and without a session of its own.

    Raises:
        LeaseHeld: Somebody else has it; `.holder` says who.
        UnavailableError: It cannot be locked or put on record here.
        RefusedError: A file could be somebody else's.
        ConfigError: `maintlock.toml` is invalid.
        UsageError: An argument is impossible.
    """
    settings = _read_config()
    places = _opened_places(settings, task, lease, state_dir)
    request = _request(settings, places, task, reason, owner, wait, ttl)
    around = _held.of(places)
    if around:
        outer = around[-1].grant
        grant: Lease | Joined = Joined(places, replace(request, parent_task=outer.request.task), outer.line, None)
    else:
        grant = acquisition.acquire(places, request, _Patience(), os.environ)
    block = _Block(grant)
    around.append(block)
    outcome = "failed"
    try:
        grant.record_begin()
        yield HeldLease(grant, settings)
        outcome = "completed"
    except KeyboardInterrupt:
        outcome = "stopped"
        raise
    except SystemExit as leaving:
        outcome = "completed" if leaving.code is None or leaving.code == 0 else "failed"
        raise
    finally:
        if os.getpid() == grant.owner_pid:
            block.outcome = outcome
            # Coroutines leave in any order; what they joined is released when the last of them has left.
            while around and (ended := around[-1].outcome) is not None:
                _release(around.pop(), ended, settings.history)


def status(*, lease: str | None = None, state_dir: str | os.PathLike[str] | None = None) -> Status:
    """Return what `maintlock status --json` prints. Nothing is locked, and nothing is made.

    Raises:
        RefusedError: A file could be somebody else's.
        UnavailableError: The state directory cannot be looked at.
        ConfigError: `maintlock.toml` is invalid.
        UsageError: `lease` is no name that a lease can have.
    """
    from maintlock import observe

    option = None if state_dir is None else os.fspath(state_dir)
    name = names.DEFAULT_LEASE if lease is None else lease
    if not names.is_lease_name(name):
        raise UsageError(f"lease {redact.printable(name, 80)!r}: expected {names.EXPECTED_LEASE}")
    directory = paths.state_directory(option, os.environ, _read_config().state_dir)
    return observe.read_status(paths.Places(directory=directory, lease=name))


def _release(block: _Block, outcome: str, history_seconds: float | None) -> None:
    grant = block.grant
    try:
        if isinstance(grant, Lease):
            parts.wait(grant, reaped_before=block.reaped_before)
    finally:  # also when a signal ends the wait: until they have ended, joined jobs are in the next one's way by themselves
        grant.record_end(grant.release(outcome, 0 if outcome == "completed" else 1))
        _drain(grant.places.directory, history_seconds)


def _drain(directory: str, history_seconds: float | None) -> None:
    """Enter into the ledger what waits for it, if that was not done a moment ago; whoever reads it reads what waits too.

    That takes longer than all the rest of a grant, and for many at once not much longer than for one.
    """
    if time.monotonic() < _drained_at.get(directory, 0.0) + DRAIN_EVERY_SECONDS:
        return
    if directory not in _ledgers:
        _ledgers[directory] = ledger.Ledger(directory)
        atexit.register(_close, directory)
    _ledgers[directory].history_seconds = history_seconds
    _drain_now(directory)


def _close(directory: str) -> None:
    _drain_now(directory)
    _ledgers[directory].close()


def _drain_now(directory: str) -> None:
    try:
        _ledgers[directory].drain(now=time.time())
    except ledger.LedgerUnavailable:
        pass  # it waits in ledger.pending
    _drained_at[directory] = time.monotonic()


def _read_config() -> Config:
    """Return the configuration; where it is found is looked for once a second at most, whether it has changed each time."""
    place, now = (paths.working_directory(), os.environ.get(config.VARIABLE)), time.monotonic()
    found_at, path = _found.get(place, (float("-inf"), None))
    if now >= found_at + CHECK_EVERY_SECONDS:
        path = config.find(None, os.environ, place[0])
        if len(_found) >= MAX_FOUND:
            _found.clear()
        _found[place] = now, path
    if path is None:
        return NO_CONFIG
    try:
        found = os.stat(path)
        version: tuple[object, ...] = (path, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    except OSError:
        return config.load(path)
    if version not in _configs:
        _configs.clear()
        _configs[version] = config.load(path)
    return _configs[version]


def _opened_places(
    settings: Config, task: str, lease: str | None, state_dir: str | os.PathLike[str] | None
) -> paths.Places:
    configured = settings.tasks.get(task)
    name = lease or (configured.lease if configured else names.DEFAULT_LEASE)
    if not names.is_task_name(task):
        raise UsageError(f"task {redact.printable(task, 80)!r}: expected {names.EXPECTED_TASK}")
    if not names.is_lease_name(name):
        raise UsageError(f"lease {redact.printable(name, 80)!r}: expected {names.EXPECTED_LEASE}")
    option = None if state_dir is None else os.fspath(state_dir)
    directory = paths.state_directory(option, os.environ, settings.state_dir)
    paths.open_state_directory(directory)
    places = paths.Places(directory=directory, lease=name)
    now = time.monotonic()
    if now >= _checked_at.get(places, float("-inf")) + CHECK_EVERY_SECONDS:
        paths.check_records(places)
        _checked_at[places] = now
    return places


def _request(
    settings: Config,
    places: paths.Places,
    task: str,
    reason: str,
    owner: str | None,
    wait: float | str | None,
    ttl: float | str | None,
) -> Request:
    configured = settings.tasks.get(task)
    return Request(
        task=task,
        owner=redact.storable(owner or default_owner()),
        reason=redact.storable(reason),
        source="library",
        mode="library",
        hold_until="session",
        ttl_seconds=_seconds("ttl", ttl) if ttl is not None else config.ttl_seconds(settings, places.lease, configured),
        command=_own_command(),
        wait_seconds=_seconds("wait", wait) if wait is not None else configured.wait if configured else None,
    )


@cache
def _own_command() -> tuple[str, ...]:
    return tuple(redact.without_secrets(sys.orig_argv))


def _seconds(name: str, value: float | str) -> float:
    try:
        if isinstance(value, str):
            return config.FOREVER if name == "wait" and value == "forever" else duration_seconds(value)
        if not value >= 0 or (name == "ttl" and value == config.FOREVER):
            raise ValueError("expected 0 or more seconds")
    except ValueError as error:
        raise UsageError(f"{name} {redact.printable(value, 40)}: {error}") from None
    return float(value)
