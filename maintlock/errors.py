"""Error classes and their exit codes: one table, used by every program.

Raise the class that says what went wrong; only a program's edge turns it into an exit code.
The numbers below 128 follow sysexits(3) and the shell's own conventions (124 as in timeout(1)).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

EXIT_DEFERRED = 0
EXIT_USAGE = 64
EXIT_INTERNAL = 70
EXIT_UNAVAILABLE = 73
EXIT_ALREADY_RUNNING = 75
EXIT_REFUSED = 77
EXIT_CONFIG = 78
EXIT_TIMED_OUT = 124
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_SIGNAL_BASE = 128


class MaintlockError(Exception):
    """Something a person must hear of: what, where, and what to do next. `mend` is the command that does that, or `""`."""

    exit_code = EXIT_INTERNAL

    def __init__(self, text: str, *, mend: str = "") -> None:
        super().__init__(f"{text}; run: {mend}" if mend else text)
        self.text = text
        self.mend = mend


class UsageError(MaintlockError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = EXIT_USAGE


class ConfigError(MaintlockError):
    """`maintlock.toml` is invalid; the message names file, key and what is expected."""

    exit_code = EXIT_CONFIG


class UnavailableError(MaintlockError):
    """The lease cannot be opened, locked or put on record here."""

    exit_code = EXIT_UNAVAILABLE


class AlreadyRunningError(MaintlockError):
    """Another orchestrator runs on this state directory."""

    exit_code = EXIT_ALREADY_RUNNING


class RefusedError(MaintlockError):
    """Permissions or ownership make a file unsafe to trust."""

    exit_code = EXIT_REFUSED


class LeaseHeld(MaintlockError):  # noqa: N818  being held is an answer, not an error
    """Somebody else has the lease, and this request stands back.

    `reason_code` is one of `lease-held queued wait-timeout survivors lockfile-replaced`; `holder` is the sidecar of who has
    it, or None where that is unknown; `blocked_by` its task; `waited_seconds` how long this request waited.
    """

    exit_code = EXIT_DEFERRED

    def __init__(
        self,
        message: str,
        *,
        reason_code: str,
        holder: Mapping[str, Any] | None,
        blocked_by: str | None = None,
        waited_seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.reason_code = reason_code
        self.holder = holder
        self.blocked_by = blocked_by
        self.waited_seconds = waited_seconds


class Interrupted(MaintlockError):  # noqa: N818  a signal, not an error
    """A signal ended the wait for the lease."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number} while waiting")
        self.number = number
        self.exit_code = EXIT_SIGNAL_BASE + number


class CommandError(MaintlockError):
    """The job's command cannot be started."""


class CommandNotFoundError(CommandError):
    """There is no such command."""

    exit_code = EXIT_NOT_FOUND


class CommandNotExecutableError(CommandError):
    """The command is there and cannot be executed."""

    exit_code = EXIT_NOT_EXECUTABLE
