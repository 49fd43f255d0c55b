"""How a job ended: by its wrapper's word in the outcome file, or by the exit code of one that could not even tell."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from maintlock import process
from maintlock.entries import FAILURES
from maintlock.errors import (
    EXIT_CONFIG,
    EXIT_INTERNAL,
    EXIT_NOT_EXECUTABLE,
    EXIT_NOT_FOUND,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
)
from maintlock.model import record
from maintlock.redact import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES = 1 << 20
MAX_TEXT = 200
NEVER_ASKED = frozenset({EXIT_USAGE, EXIT_INTERNAL, EXIT_UNAVAILABLE, EXIT_REFUSED, EXIT_CONFIG})  # for the lease
NO_COMMAND = {EXIT_NOT_EXECUTABLE: "executed", EXIT_NOT_FOUND: "found"}
log = logging.getLogger("maintlock.orchestrator")


@record(frozen=True, kw_only=True)
class End:
    """How a job ended. `outcome` is the wrapper's word (`completed failed … deferred not_run`), or None where nothing tells.

    `exit_code` is None where nobody of ours saw it; `log_path` is where the job's output is.
    """

    task: str
    outcome: str | None
    exit_code: int | None
    log_path: str
    reason_code: str | None = None
    blocked_by: str | None = None


def read_outcome(path: str) -> dict[str, Any]:
    """Return the fields of an outcome file; none where it is missing, or is none."""
    try:
        found = json.loads(process.read_bytes(path, MAX_BYTES) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def end_of(task: str, fields: Mapping[str, Any], exit_code: int | None, log_path: str) -> End:
    """Return a job's end, from its outcome file's fields and its wrapper's exit code."""
    outcome, holder = _text(fields.get("outcome")), fields.get("holder")
    if outcome is None and exit_code in NEVER_ASKED:
        outcome = "not_run"  # and on a full disk, say, it could not even tell
    return End(
        task=task,
        outcome=outcome,
        exit_code=exit_code,
        log_path=log_path,
        reason_code=_text(fields.get("reason_code")),
        blocked_by=_text(holder.get("task")) if isinstance(holder, dict) else None,
    )


def trouble_of(end: End) -> str | None:
    """Return why a task did not even start, or None if it did."""
    if end.outcome == "not_run":
        return f"was not run, exit code {end.exit_code}; see {end.log_path}"
    if end.exit_code in NO_COMMAND:
        how = NO_COMMAND[end.exit_code]
        return f"its command cannot be {how}, exit code {end.exit_code}; see {end.log_path}"
    return None


def log_end(end: End) -> None:
    """Log how a run ended."""
    is_failure = end.outcome in FAILURES or end.outcome is None
    log.log(
        logging.WARNING if is_failure else logging.INFO,
        "%s ended: %s%s",
        end.task,
        printable(end.outcome or "unseen", 80),
        f", exit code {end.exit_code}; see {end.log_path}" if is_failure else "",
        extra={
            "event": "task_ended",
            "task": end.task,
            "outcome": end.outcome,
            "exit_code": end.exit_code,
            "reason_code": end.reason_code,
        },
    )


def _text(value: object) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None
