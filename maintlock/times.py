"""Wall-clock times and durations as text: RFC 3339 UTC with milliseconds, and `90s 10m 2h`."""

from __future__ import annotations

import time

UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MAX_SECONDS = 100 * 365 * 86400.0
MAX_DURATION_LETTERS = 64
MAX_POLL_SECONDS = 86400.0  # poll(2) counts milliseconds in an int, which ends after 24 days
_second = (-1, "")  # the last one written, and its text: the times of one record are mostly of the same
EXPECTED_DURATION = "a duration such as 500ms, 90, 90s, 10m, 2h or 1d"


def rfc3339(at: float) -> str:
    """Return seconds since the epoch as `2026-05-16T19:36:21.072Z`."""
    global _second  # noqa: PLW0603  one pair, exchanged whole
    whole, rest = divmod(round(at * 1000), 1000)
    known, text = _second
    if known != whole:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        _second = whole, text
    return f"{text}.{rest:03d}Z"


def now_text() -> str:
    """Return the present moment as RFC 3339 text."""
    return rfc3339(time.time())


def epoch_seconds(text: str) -> float | None:
    """Return RFC 3339 text as seconds since the epoch, or None where it is no such text."""
    from datetime import datetime  # reading a time is never on the way to a job's start

    try:
        parsed = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return parsed.timestamp() if parsed.tzinfo is not None else None


def duration_seconds(text: str) -> float:
    """Return the seconds that a duration means (`500ms 90 90s 10m 2h 1d`).

    Raises:
        ValueError: It is not a duration, is negative, or is longer than a century.
    """
    number = text.strip() if len(text) <= MAX_DURATION_LETTERS else ""
    unit = ""
    while number and number[-1].isalpha():
        number, unit = number[:-1], number[-1] + unit
    if not number.isascii() or not number.replace(".", "", 1).isdigit() or unit not in {"", *UNIT_SECONDS}:
        raise ValueError(f"expected {EXPECTED_DURATION}")
    seconds = float(number) * UNIT_SECONDS[unit or "s"]
    if seconds > MAX_SECONDS:
        raise ValueError("expected at most 36500d")
    return seconds


def poll_milliseconds(seconds: float) -> int:
    """Return a time to sleep as poll(2) takes it: not too short, never more than a day."""
    return max(0, int(min(seconds, MAX_POLL_SECONDS) * 1000 + 0.999))


def duration_text(seconds: float) -> str:
    """Return a duration for people: `0.4s`, `9s`, `12s`, `3m10s`, `2h05m`, `3d04h`, `forever`."""
    seconds = max(0.0, seconds)
    if seconds == float("inf"):
        return "forever"
    if seconds < 10:
        return f"{min(seconds, 9.9):.1f}".removesuffix(".0") + "s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
