from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from maintlock.orchestrator.ends import end_of, read_outcome, tell, trouble_of


@pytest.mark.parametrize(
    ("fields", "exit_code", "outcome", "trouble"),
    [
        ({"outcome": "completed"}, 0, "completed", None),
        ({"outcome": "failed"}, 3, "failed", None),
        ({"outcome": "failed"}, 126, "failed", "cannot be executed"),
        ({"outcome": "failed"}, 127, "failed", "cannot be found"),
        ({"outcome": "not_run"}, 75, "not_run", "was not run"),
        ({}, 73, "not_run", "was not run"),
        ({"outcome": 3}, 78, "not_run", "was not run"),
        ({}, 1, None, None),
        ({}, -9, None, None),
        ({}, None, None, None),
    ],
)
def test_how_a_job_ended(
    fields: dict[str, Any], exit_code: int | None, outcome: str | None, trouble: str | None
) -> None:
    """The wrapper's word counts; where it left none, an exit code that it ends with before it asks tells that nothing ran."""
    end = end_of("kbSync", fields, exit_code, "/logs/kbSync.log")
    found = trouble_of(end)
    assert end.outcome == outcome
    assert (trouble is None) == (found is None) and (trouble or "") in (found or "")
    assert found is None or found.endswith("see /logs/kbSync.log")


@pytest.mark.parametrize("holder", [{"task": "backup"}, {"task": 3}, [], "x", None])
def test_whom_it_stood_back_for(holder: Any) -> None:
    """Whom a job stood back for is told where its wrapper knew."""
    end = end_of("kbSync", {"outcome": "deferred", "reason_code": "lease-held", "holder": holder}, 75, "")
    assert end.reason_code == "lease-held"
    assert end.blocked_by == ("backup" if holder == {"task": "backup"} else None)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, None])
def test_an_outcome_file_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    """A missing, torn or hostile outcome file tells nothing."""
    if content is not None:
        (tmp_path / "outcome").write_bytes(content)
    assert read_outcome(str(tmp_path / "outcome")) == {}


@pytest.mark.parametrize(
    ("outcome", "level"), [("completed", "INFO"), ("stopped", "INFO"), ("failed", "WARNING"), (None, "WARNING")]
)
def test_what_is_told(outcome: str | None, level: str, caplog: pytest.LogCaptureFixture) -> None:
    """A run that failed, or whose end nobody saw, is a warning; any other is not (R9)."""
    with caplog.at_level("INFO", "maintlock.orchestrator"):
        tell(end_of("kbSync", {"outcome": outcome}, None, ""))
    assert [line.levelname for line in caplog.records] == [level]
