"""Times and durations as text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import times


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1778960181.072, "2026-05-16T19:36:21.072Z"),
        (1778960181.9996, "2026-05-16T19:36:22.000Z"),
        (1778960181.9994, "2026-05-16T19:36:21.999Z"),
        (-0.001, "1969-12-31T23:59:59.999Z"),
        (951782400.0, "2000-02-29T00:00:00.000Z"),
    ],
)
def test_rfc3339_has_milliseconds_and_is_utc(monkeypatch: pytest.MonkeyPatch, at: float, expected: str) -> None:
    """A time is RFC 3339 in UTC with three decimals, rounded, wherever we are."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert times.rfc3339(at) == expected


@given(st.floats(0, 2**33))  # the year 2242: beyond, a float itself has no half milliseconds to spare
def test_times_survive_being_written_and_read(at: float) -> None:
    """A time that is written and read again is the same to half a millisecond."""
    read = times.epoch_seconds(times.rfc3339(at))
    assert read is not None
    assert abs(read - at) <= 0.00051


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_later_times_sort_later(one: float, other: float) -> None:
    """Times as text are in the order of the times themselves."""
    assert (times.rfc3339(one) <= times.rfc3339(other)) or one > other


def test_now_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present moment is that of the wall clock."""
    monkeypatch.setattr("maintlock.times.time.time", lambda: 1778960181.072)
    assert times.now_text() == "2026-05-16T19:36:21.072Z"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-16T19:36:21.072Z", 1778960181.072),
        ("2026-05-16T21:36:21.072+02:00", 1778960181.072),
        ("2026-05-16T19:36:21Z", 1778960181.0),
        ("1970-01-01T00:00:00.000Z", 0.0),
        ("2026-05-16T19:36:21.072", None),
        ("2026-05-16", None),
        ("2026-02-30T00:00:00Z", None),
        ("2026-05-16T25:00:00Z", None),
        ("soon", None),
        ("", None),
        ("1778960181", None),
        ("\ud800", None),
    ],
)
def test_epoch_seconds_reads_only_whole_times(text: str, expected: float | None) -> None:
    """A time needs its date, its hour and its zone; anything else is none."""
    assert times.epoch_seconds(text) == expected


@pytest.mark.parametrize("value", [None, 3, 1.5, b"2026-05-16T19:36:21Z", [], {}])
def test_epoch_seconds_survives_what_is_no_text(value: object) -> None:
    """A record that holds something else in a time's place has no time there."""
    assert times.epoch_seconds(value) is None  # type: ignore[arg-type]  # read from hostile records


@given(st.text() | st.from_regex(r"\d{4}-\d\d-\d\d.\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", fullmatch=True))
def test_epoch_seconds_never_fails(text: str) -> None:
    """Any text is a finite time or none."""
    read = times.epoch_seconds(text)
    assert read is None or math.isfinite(read)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500ms", 0.5),
        ("90", 90.0),
        ("90s", 90.0),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("0", 0.0),
        ("0ms", 0.0),
        ("1.5h", 5400.0),
        ("0.5", 0.5),
        (" 3s ", 3.0),
        ("36500d", times.MAX_SECONDS),
    ],
)
def test_durations(text: str, expected: float) -> None:
    """A duration is a number and a unit; without a unit it is seconds."""
    assert times.duration_seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "s", "ms", ".", ".s", "-1", "+1", "1e3", "1_0", "1,5", "1.2.3", "1 s", "1w", "1S", "1sm", "0x10"),
        *("nan", "inf", "forever", "1h30m", "\u0661", "1\u00b5s", "\u00b2", "1\0", "36501d", "9" * 400, "0" * 1000),
    ],
)
def test_what_is_no_duration(text: str) -> None:
    """Anything else, a negative duration and one above a century are errors that say what is expected."""
    with pytest.raises(ValueError, match=r"^expected "):
        times.duration_seconds(text)


@pytest.mark.timeout(20)
def test_a_very_long_text_is_no_duration() -> None:
    """A megabyte of letters is turned down at once."""
    with pytest.raises(ValueError, match=r"^expected "):
        times.duration_seconds("s" * 1_000_000)


@given(st.text(alphabet="0123456789.smhd -e") | st.text())
def test_durations_are_finite_or_errors(text: str) -> None:
    """Any text is a duration between 0 and a century, or a ValueError."""
    try:
        seconds = times.duration_seconds(text)
    except ValueError:
        return
    assert 0 <= seconds <= times.MAX_SECONDS


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5.0, "0s"),
        (0.0, "0s"),
        (0.44, "0.4s"),
        (9.94, "9.9s"),
        (9.99, "9.9s"),
        (10.0, "10s"),
        (12.9, "12s"),
        (59.99, "59s"),
        (60.0, "1m00s"),
        (190.0, "3m10s"),
        (3599.9, "59m59s"),
        (7500.0, "2h05m"),
        (86399.0, "23h59m"),
        (273600.0, "3d04h"),
        (math.inf, "forever"),
        (math.nan, "0s"),
    ],
)
def test_durations_for_people(seconds: float, expected: str) -> None:
    """A duration is shown in its two largest units, never rounded up into the next."""
    assert times.duration_text(seconds) == expected
