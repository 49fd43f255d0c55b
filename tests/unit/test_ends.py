from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maintlock import outcome
from maintlock.model import Line, ProcessIdentity, replace
from maintlock.orchestrator.ends import bad_command, end_of, log_end, not_begun

LINE = Line(
    fence=1, lease_id="g", task="kbSync", source="orchestrator", session_id=5, hold_until="session", mode="supervised",
    identity=ProcessIdentity(pid=5, start_ticks=1, boot_id="", pid_namespace=""), started_at=0.0,
)  # fmt: skip
FAILED = replace(LINE, outcome="failed", exit_code=3, ended_at=1.0)


@pytest.mark.parametrize(
    ("fields", "line", "exit_code", "is_seen", "expected"),
    [
        ({"outcome": "completed", "lease_id": "g"}, LINE, 0, True, ("completed", 0, True)),
        ({"outcome": "failed", "lease_id": "g", "exit_code": 254}, None, None, False, ("failed", 254, True)),
        ({"outcome": "deferred", "lease_id": None}, None, 0, False, ("deferred", 0, False)),
        ({"outcome": "stopped", "lease_id": None}, None, 143, False, ("stopped", 143, False)),
        ({"outcome": "stopped", "lease_id": "g"}, None, 143, False, ("stopped", 143, True)),
        ({"outcome": "not_run"}, None, 75, False, ("not_run", 75, False)),
        ({}, None, 73, False, ("not_run", 73, False)),
        ({}, None, 1, False, ("not_run", 1, False)),
        ({}, None, -9, False, ("not_run", -9, False)),
        ({}, None, None, False, ("not_run", None, False)),
        ({"outcome": 3, "exit_code": "x"}, FAILED, None, True, ("failed", 3, True)),
        ({}, LINE, -9, False, ("lost", -9, True)),
        ({}, LINE, None, True, ("lost", None, True)),
        ({}, None, 0, True, ("completed", 0, True)),
        ({}, None, 3, True, ("failed", 3, True)),
        ({}, None, -9, True, ("lost", -9, True)),
        ({}, None, None, True, (None, None, True)),
    ],
)
def test_how_a_job_ended(
    fields: dict[str, Any], line: Line | None, exit_code: int | None, *, is_seen: bool, expected: tuple[object, ...]
) -> None:
    """The wrapper's word counts, in its outcome file or in the lock's line; where both are gone a job that had its lease ended
    as its wrapper did, and one that never had it was not run.
    """
    end = end_of("kbSync", fields, line, exit_code, "/logs/kbSync.log", is_begun=is_seen)
    assert (end.outcome, end.exit_code, end.is_begun) == expected


def end(outcome: str | None, exit_code: int | None = None, *, lease_id: str | None = "g", **more: Any) -> Any:
    """Return an end as an outcome file tells it."""
    fields = {"outcome": outcome, "lease_id": lease_id, **more}
    return end_of("kbSync", fields, None, exit_code, "/kbSync.log", is_begun=False)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (end("completed", 0), (None, None)),
        (end("deferred", 0, lease_id=None), (None, None)),
        (end("failed", 126), (None, "cannot be executed, exit code 126; see /kbSync.log")),
        (end("failed", 127), (None, "cannot be found, exit code 127; see /kbSync.log")),
        (end("not_run", 73, lease_id=None), ("was not run, exit code 73; see /kbSync.log", None)),
        (end(None, -9, lease_id=None), ("was not run, killed by signal 9; see /kbSync.log", None)),
        (end(None, lease_id=None), ("was not run; see /kbSync.log", None)),
        (end("stopped", 143, lease_id=None), ("was stopped before it had its lease; it is tried again", None)),
        (end("stopped", 143), (None, None)),
    ],
)
def test_what_stood_in_its_way(found: Any, expected: tuple[str | None, str | None]) -> None:
    """Why a task did not even start is told, and why its command cannot run; a deferral is neither."""
    assert (not_begun(found), bad_command(found)) == expected


@pytest.mark.parametrize("holder", [{"task": "backup"}, {"task": 3}, [], "x", None])
def test_whom_it_stood_back_for(holder: Any) -> None:
    """Whom a job stood back for is told where its wrapper knew."""
    found = end("deferred", 75, lease_id=None, reason_code="lease-held", holder=holder)
    assert found.reason_code == "lease-held"
    assert found.blocked_by == ("backup" if holder == {"task": "backup"} else None)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, None])
def test_an_outcome_file_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    """A missing, torn or hostile outcome file tells nothing."""
    if content is not None:
        (tmp_path / "outcome").write_bytes(content)
    assert outcome.read(str(tmp_path / "outcome")) == {}


@pytest.mark.parametrize(
    ("found", "level", "message"),
    [
        (end("completed", 0), "INFO", "kbSync ended: completed"),
        (end("stopped", 143), "INFO", "kbSync ended: stopped"),
        (end("failed", 3), "WARNING", "kbSync ended: failed, exit code 3; see /kbSync.log"),
        (end("failed"), "WARNING", "kbSync ended: failed; see /kbSync.log"),
        (end(None), "WARNING", "kbSync ended: unseen; see /kbSync.log"),
        (end("lost", -9), "WARNING", "kbSync ended: lost, killed by signal 9; see /kbSync.log"),
    ],
)
def test_what_is_logged(found: Any, level: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    """A run that failed, or whose end nobody saw, is a warning; any other is not (R9). No exit code is made up."""
    with caplog.at_level("INFO", "maintlock.orchestrator"):
        log_end(found)
    assert [(line.levelname, line.getMessage()) for line in caplog.records] == [(level, message)]
