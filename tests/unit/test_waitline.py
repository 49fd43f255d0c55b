"""The words of the waiting line, and how they are made to fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import holder, waitline
from maintlock.paths import Places
from maintlock.terminal import cut, fitted
from maintlock.waitline import Waitline

FIELDS = {
    "task": "backup", "owner": "alice@laptop", "pid": 4242, "reason": "manual", "lease_id": "0" * 32,
    "acquired_at": "2026-05-16T19:36:00.000Z",
}  # fmt: skip
NOW = 1778960350.0  # 3m10s later


@pytest.fixture
def line(tmp_path, monkeypatch) -> Waitline:
    """Give the line of a request where backups usually take 4m12s."""
    monkeypatch.setattr("maintlock.history.typical_seconds", lambda *_: 252.0)
    return Waitline(Places(directory=str(tmp_path), lease="heavy-maintenance"), "kbSync")


def test_a_holder_is_told_ever_more_shortly(line: Waitline) -> None:
    """Each form tells for whom, since when, and how long usually; owner, pid and reason go first."""
    details = "(owner alice@laptop, pid 4242, for 3m10s, reason manual)"
    assert line.forms(holder.of_holder(FIELDS, NOW), NOW) == [
        f"kbSync waits for the heavy-maintenance lease: held by backup {details}, usually takes 4m12s",
        "kbSync waits for the heavy-maintenance lease: held by backup for 3m10s, usually takes 4m12s",
        "kbSync waits: held by backup for 3m10s, usually takes 4m12s",
    ]


def test_an_unknown_owner(line: Waitline) -> None:
    """Of an unknown owner nothing is made up."""
    forms = line.forms(holder.Blocker(sentence="held by an unknown owner"), NOW)
    assert forms == [
        "kbSync waits for the heavy-maintenance lease: held by an unknown owner",
        "kbSync waits: held by an unknown owner",
    ]


def test_the_ledger_is_asked_once_per_task(line: Waitline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task usually takes is looked up once, however often the line is drawn."""
    line.forms(holder.of_holder(FIELDS, NOW), NOW)
    monkeypatch.setattr(waitline, "_read_usual", lambda *_: pytest.fail("asked again"))
    line.forms(holder.of_holder(FIELDS, NOW + 1), NOW + 1)


@pytest.mark.parametrize(
    ("width", "expected"),
    [(9, "long form"), (8, "short"), (5, "short"), (4, "sho…"), (1, "…"), (0, "…")],
)
def test_the_first_form_that_fits(width: int, expected: str) -> None:
    """The first form that fits is shown, else the last one cut, with a sign of that."""
    assert fitted(["long form", "short"], width) == expected


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [("漢字x", 5, "漢字x"), ("漢字x", 4, "漢字"), ("漢字x", 3, "漢"), ("e\u0301e\u0301x", 2, "e\u0301e\u0301")],
)
def test_width_is_that_of_the_terminal(text: str, width: int, expected: str) -> None:
    """Letters that take two columns count twice, those that take none do not count."""
    assert cut(text, width) == expected


@given(st.text(), st.integers(min_value=0, max_value=50))
def test_what_is_cut_is_a_beginning(text: str, width: int) -> None:
    """What is cut is a beginning of the text, and what fits is not cut again."""
    shown = cut(text, width)
    assert text.startswith(shown)
    assert cut(shown, width) == shown
