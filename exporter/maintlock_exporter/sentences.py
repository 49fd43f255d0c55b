"""What happened, in a few words for people. Pure; whatever others have written is made printable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maintlock.redact import printable
from maintlock.times import duration_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MAX_NAME = 64
BRIEFLY_SECONDS = 0.1
GOOD = frozenset({"completed"})
BAD = frozenset({"failed", "timed_out", "lost"})
MOODS = {
    "deferred": "odd", "token_stale": "odd", "survivors": "odd", "stop_requested": "odd", "stale_cleaned": "bad",
    "collision": "bad", "collision_cleared": "good",
}  # fmt: skip


def mood(event: Mapping[str, Any]) -> str:
    """Return how an event is to be taken: `good`, `bad`, `odd`, or `plain`."""
    outcome = event["outcome"]
    if outcome is not None:
        return "good" if outcome in GOOD else "bad" if outcome in BAD else "odd"
    if event["event"] == "nested_finished":
        return "odd" if event["exit_code"] is None else "bad" if event["exit_code"] else "good"
    return MOODS.get(event["event"], "plain")


def sentence(event: Mapping[str, Any]) -> str:
    """Return what an event tells, after the name of its task."""
    lasted = None if event["seconds"] is None else duration_text(event["seconds"])
    words = _words(event, lasted)
    return words[0] + "".join(f", {word}" for word in words[1:] if word)


def _words(event: Mapping[str, Any], lasted: str | None) -> list[str]:
    kind, code = event["event"], event["exit_code"]
    reason = printable((event["reason_code"] or "").replace("_", " "), MAX_NAME)
    other = printable(event["blocked_by"] or event["parent_task"] or "", MAX_NAME)
    failed = f"exit code {code}" if code else ""
    after = f"after {lasted}" if lasted else ""
    return {
        "acquired": [
            "got the lease",
            f"waited {lasted}" if (event["seconds"] or 0) >= BRIEFLY_SECONDS else "",
            _source(event),
        ],
        "released": [(event["outcome"] or "released").replace("_", " "), after, failed],
        "deferred": ["stood back" + (f" for {other}" if other else ""), reason],
        "nested_started": [f"joined {other}" if other else "joined the job", _source(event)],
        "nested_finished": ["ended" + (f" inside {other}" if other else ""), after, failed],
        "token_stale": ["brought the token of a grant that has ended"],
        "stale_cleaned": ["was lost, and cleaned up" if event["outcome"] else "left a stray record, cleaned up", after],
        "survivors": ["left processes behind that are still running"],
        "collision": [f"collision: {reason}"],
        "collision_cleared": [f"collision over: {reason}"],
        "stop_requested": ["was asked to stop"],
    }.get(kind, [printable(kind, MAX_NAME)])


def _source(event: Mapping[str, Any]) -> str:
    return f"from {printable(event['source'], MAX_NAME)}" if event["source"] else ""
