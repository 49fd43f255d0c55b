"""What the programs that want the lease have in common: what is wished for, how it is got, and the edge of the program."""

from __future__ import annotations

import os
import time

from maintlock import acquisition, config, identity, names, options, paths, pending, process, redact, signals
from maintlock import outcome as outcome_file
from maintlock.errors import EXIT_DEFERRED, EXIT_SIGNAL_BASE, Interrupted, LeaseHeld, MaintlockError, UsageError
from maintlock.lease import Request
from maintlock.terminal import is_foreground
from maintlock.voice import Voice, print_text, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from maintlock.config import Config, TaskSettings
    from maintlock.lease import Joined, Lease
    from maintlock.options import Options

USAGE = "maintlock-wrap -t NAME -- COMMAND"
SHORT_SECONDS = 1.0
MANY_BYTES = 32 * 1024
NOT_RUN = "not_run"
COERCED_LOCALES = frozenset({"C.UTF-8", "C.utf8", "UTF-8"})


def at_edge(run: Callable[[Voice], int]) -> int:
    """Return the exit code of a program: what a person must hear of is on stderr, and nothing is a traceback."""
    voice = Voice()
    try:
        return run(voice)
    except LeaseHeld as held:
        return held.exit_code
    except Interrupted as stopped:
        if stopped.number == signals.INT and is_foreground():
            signals.die_of(stopped.number)
        return stopped.exit_code
    except KeyboardInterrupt:  # before we listened to signals: as if it had come a moment earlier
        signals.die_of(signals.INT)
        return EXIT_SIGNAL_BASE + signals.INT
    except Exception as error:  # noqa: BLE001  this is the edge
        return report(error, voice)


def read_command_line(argv: Sequence[str], program: options.Program, voice: Voice) -> Options:
    """Return what a command line says, and speak as it says; a wrong one is told in the outcome file that it has named, too.

    Raises:
        UsageError: It says something impossible.
    """
    said = options.Options()
    try:
        return options.parse(argv, program, said)
    except UsageError as error:
        try:
            clear_outcome(said)
            write_not_run(said, None, error, voice)
        except MaintlockError as failure:
            voice.error(str(failure))
        raise
    finally:
        voice.log_format = said.log_format
        voice.verbosity = 1 if said.verbose else -1 if said.quiet else 0


def print_about(said: Options, name: str) -> int:
    """Print the help or the version of a program, whichever was asked for, and return its exit code."""
    from maintlock import __version__
    from maintlock import help as help_text

    print_text(help_text.TEXTS[name] if said.help else f"{name} {__version__}\n")
    return 0


class Wish:
    """What is to be run and how: command line before environment before the task's configuration."""

    def __init__(self, said: Options, environ: Mapping[str, str], voice: Voice, usage: str = USAGE) -> None:
        self.said = said
        self.usage = usage
        self.environ = environ
        self.voice = voice
        self.config: Config = config.load(config.find(said.config, environ, paths.working_directory()))
        self.settings: TaskSettings | None = self._settings()
        self.task = said.task or (self.settings.name if self.settings else self._npm_task())
        self.lease = said.lease or (self.settings.lease if self.settings else names.DEFAULT_LEASE)

    def _settings(self) -> TaskSettings | None:
        if self.said.task is not None:
            return self.config.tasks.get(self.said.task)
        script = self.environ.get("npm_lifecycle_event", "")
        if not script:
            return None
        named = self.config.tasks.get(names.task_from_npm(script))
        return config.task_for_npm_script(self.config, script) or named

    def _npm_task(self) -> str:
        script = self.environ.get("npm_lifecycle_event", "")
        if not script:
            raise UsageError(f"no task given; say which one this is: {self.usage}")
        return names.task_from_npm(script)

    def open_places(self) -> paths.Places:
        """Return where the lease lives, once that is safe to use."""
        directory = paths.state_directory(self.said.state_dir, self.environ, self.config.state_dir)
        paths.open_state_directory(directory, any_filesystem=self.said.allow_network_fs)
        places = paths.Places(directory=directory, lease=self.lease)
        paths.check_records(places)
        return places

    def request(self, *, mode: str) -> Request:
        """Return what is asked of the lease."""
        said = self.said
        return Request(
            task=self.task,
            owner=said.owner or identity.default_owner(),
            reason=said.reason or "manual",
            source=said.source or _source(self.environ),
            mode=mode,
            hold_until=said.hold_until or "session",
            ttl_seconds=said.ttl or config.ttl_seconds(self.config, self.lease, self.settings),
            command=tuple(redact.without_secrets(said.command)),
            wait_seconds=self.wait_seconds(),
        )

    def wait_seconds(self) -> float | None:
        """Return for how long the lease is waited for, as `Request` has it."""
        if self.said.no_wait or self.said.wait is not None:
            return self.said.wait
        return self.settings.wait if self.settings is not None else None

    def defer_exit_code(self) -> int:
        """Return the exit code of a deferral."""
        if self.said.defer_exit_code is not None:
            return self.said.defer_exit_code
        text = self.environ.get("MAINTLOCK_DEFER_EXIT_CODE", "")
        try:
            if text:
                return options.exit_code(text)
        except ValueError as error:
            raise UsageError(f"MAINTLOCK_DEFER_EXIT_CODE={redact.printable(text, 40)!r}: {error}") from None
        configured = self.settings.defer_exit_code if self.settings is not None else None
        return EXIT_DEFERRED if configured is None else configured


def granted(
    wish: Wish, places: paths.Places, watch: signals.Signals, *, mode: str, lock_fd: int | None = None
) -> Lease | Joined:
    """Return the lease; a deferral is told before it is raised. Raises what `acquisition.acquire` does."""
    defer_exit_code = wish.defer_exit_code()
    try:
        return acquisition.acquire(places, wish.request(mode=mode), watch, wish.environ, lock_fd=lock_fd)
    except LeaseHeld as held:
        held.exit_code = defer_exit_code
        wish.voice.tell(
            "deferred",
            str(held),
            task=wish.task,
            lease=wish.lease,
            reason_code=held.reason_code,
            blocked_by=held.blocked_by,
            holder=held.holder,
            waited_seconds=round(held.waited_seconds, 3),
        )
        settle(places, wish.config.history, held.waited_seconds)
        raise


def finish(wish: Wish, grant: Lease | Joined, outcome: str, exit_code: int | None) -> None:
    """End a grant, and tell how: in the ledger, and in the outcome file if there is to be one."""
    held_seconds = grant.held_seconds
    grant.record_end(grant.release(outcome, exit_code))
    if wish.said.outcome is not None:
        try:
            outcome_file.write(
                wish.said.outcome,
                outcome=outcome,
                exit_code=exit_code,
                task=wish.task,
                lease_id=grant.line.lease_id,
                fence=grant.line.fence,
                held_seconds=held_seconds,
                waited_seconds=grant.waited_seconds,
            )
        except MaintlockError as error:
            wish.voice.error(str(error))
    settle(grant.places, wish.config.history, held_seconds)


def clear_outcome(said: Options) -> None:
    """Remove what an earlier run left in the outcome file's place. Raises what `outcome.clear` does."""
    if said.outcome is not None:
        outcome_file.clear(said.outcome)


def write_not_run(
    said: Options, wish: Wish | None, error: MaintlockError, voice: Voice, *, waited_seconds: float = 0.0
) -> None:
    """Tell in the outcome file, if there is to be one, that and why nothing was run; `wish` is None where there is none yet."""
    if said.outcome is None:
        return
    held = error if isinstance(error, LeaseHeld) else None
    task = said.task or names.task_from_npm(os.environ.get("npm_lifecycle_event", "")) or None
    try:
        outcome_file.write(
            said.outcome,
            outcome="deferred" if held else "stopped" if isinstance(error, Interrupted) else NOT_RUN,
            exit_code=error.exit_code,
            task=task if wish is None else wish.task,
            reason_code=held.reason_code if held else None,
            waited_seconds=held.waited_seconds if held else waited_seconds if isinstance(error, Interrupted) else 0.0,
            holder=held.holder if held else None,
        )
    except MaintlockError as failure:
        voice.error(str(failure))


def settle(places: paths.Places, history_seconds: float | None, lasted_seconds: float) -> None:
    """Enter into the ledger what waits for it, unless that would be felt; if it cannot be done now, the next one will.

    Whoever reads the ledger reads what waits too, so a short job need not pay for SQLite, which takes longer than `true`.
    """
    is_begun = os.path.exists(f"{places.directory}/ledger.db")
    if is_begun and lasted_seconds < SHORT_SECONDS and pending.size(places.directory) < MANY_BYTES:
        return
    try:
        from maintlock import ledger

        ledger.drain(places.directory, now=time.time(), history_seconds=history_seconds)
    except Exception:  # noqa: BLE001, S110  whatever it is, the job's exit code must not suffer; what waits is not lost
        pass


def read_environ() -> Mapping[str, str]:
    """Return our environment as we were given it: where no locale is set, Python sets `LC_CTYPE` in its own (PEP 538)."""
    if os.environ.get("LC_CTYPE") not in COERCED_LOCALES:
        return os.environ
    given = process.read_bytes(f"{process.PROC}/self/environ", process.MAX_ENVIRON)
    if given is None:
        return os.environ
    was = process.environ_value(given, b"LC_CTYPE").decode()
    others = {name: value for name, value in os.environ.items() if name != "LC_CTYPE"}
    return {**others, "LC_CTYPE": was} if was else others


def _source(environ: Mapping[str, str]) -> str:
    return "npm" if environ.get("npm_lifecycle_event") or environ.get("npm_execpath") else "cli"
