from __future__ import annotations

import pytest

from maintlock.errors import AlreadyRunningError, UnavailableError
from maintlock.orchestrator.troubles import Troubles


def fail(error: Exception) -> None:
    """Fail."""
    raise error


def test_a_trouble_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A step that fails in the same way again and again is told once, in another way once more; it stands until it succeeds."""
    troubles = Troubles()
    for error in (OSError("one"), OSError("one"), OSError("two"), UnavailableError("three")):
        assert troubles.attempt("ledger", lambda error=error: fail(error)) is None
    assert caplog.messages == ["ledger: OSError: one", "ledger: OSError: two", "ledger: three"]
    assert troubles.standing == {"ledger": "three"}
    assert troubles.attempt("ledger", lambda: 7) == 7
    assert troubles.standing == {}


def test_another_orchestrator_is_no_trouble() -> None:
    """Where another orchestrator has our place, the pass ends."""
    with pytest.raises(AlreadyRunningError):
        Troubles().attempt("state directory", lambda: fail(AlreadyRunningError("x")))


def test_a_new_configuration() -> None:
    """With a new configuration troubles are forgotten, but those that it has no part in."""
    troubles = Troubles()
    troubles.note("start:gone", "x")
    troubles.note("ledger", "y")
    troubles.forget(but={"ledger"})
    assert troubles.standing == {"ledger": "y"}


def test_what_a_trouble_quotes(caplog: pytest.LogCaptureFixture) -> None:
    """What an error quotes cannot steer a terminal, nor grow without end."""
    troubles = Troubles()
    troubles.note("processes", "\x1b[2J" + "x" * 9999)
    assert "\x1b" not in troubles.standing["processes"] and len(troubles.standing["processes"]) < 600
    troubles.note("processes", "\x1b[2J" + "x" * 9999)
    assert len(caplog.messages) == 1
