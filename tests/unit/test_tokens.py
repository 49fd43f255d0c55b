"""The grant in a job's environment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import tokens
from maintlock.model import Line, ProcessIdentity
from maintlock.paths import Places
from maintlock.tokens import Token

LEASE = "heavy-maintenance"
PLACES = Places(directory="/state", lease=LEASE)
NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True)
TOKEN = st.builds(Token, lease=NAME, lease_id=NAME, session_id=st.integers(0, 10**11 - 1))


def line_of(lease_id: str, session_id: int = 77) -> Line:
    """Return the line of a grant."""
    return Line(
        fence=3,
        lease_id=lease_id,
        task="backup",
        source="cli",
        session_id=session_id,
        hold_until="session",
        mode="supervised",
        identity=ProcessIdentity(pid=1, start_ticks=2, boot_id="b", pid_namespace="n"),
        started_at=0.0,
    )


@given(st.text())
def test_any_text_can_stand_in_the_environment(held: str) -> None:
    """Whatever `MAINTLOCK_HELD` says is read as grants or passed over, and what is read is whole."""
    for token in tokens.parsed(held):
        assert tokens.parsed(str(token)) == [token]


@given(st.lists(TOKEN))
def test_grants_come_back_in_order(held: list[Token]) -> None:
    """The grants around a job are read outermost first, as they were written."""
    assert tokens.parsed(" ".join(map(str, held))) == held


@pytest.mark.parametrize(
    "word",
    ["", "x", "x:y", "x:y:", "x:y:z", "x:y:-1", "x:y:1:2", ":y:1", "x::1", "../x:y:1", "x:y:٣", "x:y:" + "9" * 12],
)
def test_what_is_no_grant_is_passed_over(word: str) -> None:
    """A word that is no grant hides none that stand beside it."""
    assert tokens.parsed(f"a:b:1 {word} c:d:2") == [
        Token(lease="a", lease_id="b", session_id=1),
        Token(lease="c", lease_id="d", session_id=2),
    ]


def test_a_token_counts_in_its_session_only() -> None:
    """A process that made a session of its own carries the token and is no part of the job any more."""
    environ = {"MAINTLOCK_HELD": "heavy-maintenance:aa:77"}
    assert tokens.innermost(environ, "/state", 77) == Token(lease=LEASE, lease_id="aa", session_id=77)
    assert tokens.innermost(environ, "/state", 78) is None


def test_the_innermost_grant_counts() -> None:
    """Of several grants of a lease, or of any, the last is the innermost; of another lease there is none."""
    environ = {"MAINTLOCK_HELD": "heavy-maintenance:aa:77 other:bb:77 heavy-maintenance:cc:77 heavy-maintenance:dd:1"}
    innermost = {
        lease: tokens.innermost(environ, "/state", 77, lease=lease) for lease in (LEASE, "other", "third", None)
    }
    found = {lease: None if token is None else token.lease_id for lease, token in innermost.items()}
    assert found == {LEASE: "cc", "other": "bb", "third": None, None: "cc"}


def test_another_state_directory_is_another_lock() -> None:
    """A grant of another state directory says nothing here (L9)."""
    environ = {"MAINTLOCK_HELD": "heavy-maintenance:aa:77", "MAINTLOCK_STATE_DIR": "/elsewhere"}
    assert tokens.innermost(environ, "/state", 77) is None


def test_what_a_job_gets() -> None:
    """A job's environment names its grant, every grant around it, and the descriptor where it is passed."""
    around = {"MAINTLOCK_HELD": "other:bb:5", "PATH": "/bin"}
    assert tokens.environment(around, PLACES, line_of("aa"), task="kbSync", fd=9) == {
        "MAINTLOCK_LEASE": "heavy-maintenance",
        "MAINTLOCK_LEASE_ID": "aa",
        "MAINTLOCK_TASK": "kbSync",
        "MAINTLOCK_FENCE": "3",
        "MAINTLOCK_STATE_DIR": "/state",
        "MAINTLOCK_HELD": "other:bb:5 heavy-maintenance:aa:77",
        "MAINTLOCK_FD": "9",
    }


def test_a_grant_is_named_once() -> None:
    """A job that joined its own parent's grant carries it once, as the innermost."""
    around = {"MAINTLOCK_HELD": "heavy-maintenance:aa:77 other:bb:77"}
    added = tokens.environment(around, PLACES, line_of("aa"), task="kbSync", fd=None)
    assert added["MAINTLOCK_HELD"] == "other:bb:77 heavy-maintenance:aa:77"
    assert "MAINTLOCK_FD" not in added


def test_an_outer_descriptor_is_not_passed_off_as_ones_own() -> None:
    """A job that is given no descriptor does not hear of the one that its parent has."""
    assert tokens.merged({"MAINTLOCK_FD": "9", "A": "1"}, {"B": "2"}) == {"A": "1", "B": "2"}
