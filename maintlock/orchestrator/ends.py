"""How a job ended: by its wrapper's word in the outcome file or the lock's line, or by the exit code where neither is there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from maintlock.entries import FAILURES
from maintlock.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND
from maintlock.model import record
from maintlock.redact import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maintlock.model import Line

MAX_BYTES = 1 << 20
MAX_TEXT = 200
NO_COMMAND = {EXIT_NOT_EXECUTABLE: "executed", EXIT_NOT_FOUND: "found"}
log = logging.getLogger("maintlock.orchestrator")


@record(frozen=True, kw_only=True)
class End:
    """How a job ended. `outcome` is its wrapper's word (`completed failed … deferred not_run`), or None where nothing tells.

    `is_begun` tells whether it ever had its lease: without it, nothing has run. `exit_code` is None where nobody has seen
    it; `log_path` is where the job's output is.
    """

    task: str
    outcome: str | None
    exit_code: int | None
    log_path: str
    is_begun: bool = True
    reason_code: str | None = None
    blocked_by: str | None = None


def end_of(
    task: str, fields: Mapping[str, Any], line: Line | None, exit_code: int | None, log_path: str, *, is_begun: bool
) -> End:
    """Return a job's end.

    `fields` are those of its outcome file, `line` is the lock's if that names its grant, `exit_code` is its wrapper's if
    that was our child (negative: the signal it died of), and `is_begun` tells whether it was seen to have its lease.
    """
    holder = fields.get("holder")
    outcome, code = _text(fields.get("outcome")), fields.get("exit_code")
    is_begun = is_begun or line is not None or fields.get("lease_id") is not None
    if outcome is None and line is not None:
        outcome, code = line.outcome or "lost", line.exit_code
    elif outcome is None:
        outcome = _by_exit_code(exit_code) if is_begun else "not_run"
    return End(
        task=task,
        outcome=outcome,
        exit_code=exit_code if exit_code is not None else code if type(code) is int else None,
        log_path=log_path,
        is_begun=is_begun,
        reason_code=_text(fields.get("reason_code")),
        blocked_by=_text(holder.get("task")) if isinstance(holder, dict) else None,
    )


def _by_exit_code(code: int | None) -> str | None:
    """Return how a run ended whose records are gone, as with the state directory: a wrapper exits as its job did."""
    if code is None:
        return None
    return "lost" if code < 0 else "failed" if code else "completed"


def not_begun(end: End) -> str | None:
    """Return why a task did not even start, or None if it did, or stood back."""
    if end.is_begun or end.outcome == "deferred":
        return None
    if end.outcome == "stopped":
        return "was stopped before it had its lease; it is tried again"
    return f"was not run{_exit_code(end)}; see {end.log_path}"


def bad_command(end: End) -> str | None:
    """Return why a task's command cannot run, or None if it can."""
    how = NO_COMMAND.get(end.exit_code) if end.exit_code is not None else None
    return None if how is None else f"cannot be {how}{_exit_code(end)}; see {end.log_path}"


def log_end(end: End) -> None:
    """Log how a run ended."""
    is_failure = end.outcome in FAILURES or end.outcome is None
    log.log(
        logging.WARNING if is_failure else logging.INFO,
        "%s ended: %s%s",
        end.task,
        printable(end.outcome or "unseen", 80),
        f"{_exit_code(end)}; see {end.log_path}" if is_failure else "",
        extra={
            "event": "task_ended",
            "task": end.task,
            "outcome": end.outcome,
            "exit_code": end.exit_code,
            "reason_code": end.reason_code,
        },
    )


def _exit_code(end: End) -> str:
    """Return what its wrapper ended with, for people: nothing where nobody has seen it."""
    if end.exit_code is None:
        return ""
    return f", killed by signal {-end.exit_code}" if end.exit_code < 0 else f", exit code {end.exit_code}"


def _text(value: object) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None
