"""What the records of the last grant tell the next holder."""

from __future__ import annotations

from typing import Any

import pytest

from maintlock import events
from maintlock.model import Line, ProcessIdentity, replace
from maintlock.sidecar import Reading

NOW = 1779000100.0
LINE = Line(
    fence=3,
    lease_id="ab" * 16,
    task="backup",
    source="npm",
    session_id=77,
    hold_until="session",
    mode="supervised",
    identity=ProcessIdentity(pid=4242, start_ticks=991, boot_id="b", pid_namespace="n"),
    started_at=1779000000.0,
)
ENDED = replace(LINE, outcome="failed", exit_code=3, ended_at=1779000060.0)
MISSING = Reading(state="missing")
OWN = Reading(state="valid", fields={"lease_id": "ab" * 16, "reason": "nightly", "waited_seconds": 1.5})
STRAY = Reading(state="valid", fields={"lease_id": "ef" * 16, "reason": "?", "waited_seconds": 0})


def told(line: Line | None, reading: Reading, beside: Line | None = None) -> list[tuple[Any, ...]]:
    """Return name, grant and outcome of each event."""
    found = events.of_last_grant("heavy-maintenance", line, reading, beside, now=NOW)
    return [(event["event"], event.get("lease_id"), event.get("outcome")) for event in found]


A = "ab" * 16
BEGUN = ("acquired", A, None)
SWEPT = ("stale_cleaned", None, None)


@pytest.mark.parametrize(
    ("line", "reading", "expected"),
    [
        (None, MISSING, []),
        (None, Reading(state="malformed"), [SWEPT]),
        (None, Reading(state="unreadable"), [SWEPT]),
        (ENDED, MISSING, [BEGUN, ("released", A, "failed")]),
        (ENDED, OWN, [BEGUN, ("released", A, "failed"), SWEPT]),
        (ENDED, STRAY, [BEGUN, ("released", A, "failed"), SWEPT]),
        (LINE, OWN, [BEGUN, ("stale_cleaned", A, "lost")]),
        (LINE, MISSING, [BEGUN, ("stale_cleaned", A, "lost")]),
        (LINE, STRAY, [BEGUN, ("stale_cleaned", A, "lost"), SWEPT]),
        (replace(LINE, mode="exec"), OWN, [BEGUN, ("released", A, "unknown")]),
        (replace(LINE, mode="library"), OWN, [BEGUN, ("stale_cleaned", A, "lost")]),
        (replace(LINE, mode="coprocess"), OWN, [BEGUN, ("stale_cleaned", A, "lost")]),
    ],
)
def test_how_the_last_grant_ended(line: Line | None, reading: Reading, expected: list[tuple[Any, ...]]) -> None:
    """An end that stands in the line is told as it was, `--exec` as unknown, any other as lost; a stray sidecar is swept."""
    assert told(line, reading) == expected


def test_a_grant_that_the_line_does_not_know() -> None:
    """After the lock file was recreated the sidecar's grant is told beside the line's."""
    beside = replace(LINE, lease_id="ef" * 16, fence=9)
    assert told(None, STRAY, beside) == [("acquired", "ef" * 16, None), ("stale_cleaned", "ef" * 16, "lost")]
    assert told(ENDED, STRAY, beside)[:2] == [BEGUN, ("released", A, "failed")]


def test_whoever_tells_an_end_tells_the_same_event() -> None:
    """Beginning and end have ids of their grant, so that holder and successor cannot both be counted."""
    begun, lost = events.of_last_grant("x", LINE, OWN, None, now=NOW)
    own = events.ended("x", ENDED, event="released", outcome="failed", at=NOW)
    assert begun["id"] == events.acquired("x", LINE, reason=None, waited_seconds=None)["id"]
    assert lost["id"] == own["id"] != begun["id"]


def test_what_an_end_says() -> None:
    """A clean end has its own time, length and exit code; nobody knows how long a lost one worked."""
    _, released = events.of_last_grant("x", ENDED, MISSING, None, now=NOW)
    _, lost = events.of_last_grant("x", LINE, OWN, None, now=NOW)
    assert (released["at"], released["seconds"], released["exit_code"]) == ("2026-05-17T06:41:00.000Z", 60.0, 3)
    assert (lost["at"], lost["seconds"], lost["exit_code"]) == ("2026-05-17T06:41:40.000Z", None, None)
    assert (lost["pid"], lost["fence"], lost["reason"]) == (4242, 3, "nightly")


def test_every_event_has_an_id_of_its_own() -> None:
    """Two events are two, however alike they are."""
    assert events.new("deferred", at=NOW, lease="x")["id"] != events.new("deferred", at=NOW, lease="x")["id"]
