"""What goes wrong in the steps of a pass: each thing is told once, and stands in health until its step succeeds (R6)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from maintlock.errors import AlreadyRunningError, MaintlockError
from maintlock.redact import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

MAX_TEXT = 500
Value = TypeVar("Value")
log = logging.getLogger("maintlock.orchestrator")


class Troubles:
    """What is wrong now; `standing` is by what it is about: a step of the pass, or `STEP:NAME` for a task or lease."""

    def __init__(self) -> None:
        self.standing: dict[str, str] = {}

    def attempt(self, about: str, step: Callable[[], Value]) -> Value | None:
        """Return what a step returns, or None if it fails: then that is a trouble, until it succeeds.

        Raises:
            AlreadyRunningError: Another orchestrator has our place: that is no trouble but the end.
        """
        try:
            found = step()
        except AlreadyRunningError:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the other steps go on
            self.note(about, str(error) if isinstance(error, MaintlockError) else f"{type(error).__name__}: {error}")
            return None
        self.note(about, None)
        return found

    def note(self, about: str, text: str | None) -> None:
        """Let a trouble stand, and tell it if it is new; with None it is over."""
        if text is None:
            self.standing.pop(about, None)
            return
        before = self.standing.get(about)
        if self.let_stand(about, text) != before:
            log.error("%s: %s", about, self.standing[about], extra={"event": "trouble", "about": about})

    def let_stand(self, about: str, text: str) -> str:
        """Let a trouble stand that its finder tells, and return it as it may be shown."""
        shown = self.standing[about] = printable(text, MAX_TEXT)
        return shown

    def forget(self, *, but: Collection[str]) -> None:
        """Forget all troubles but some: what they were about may not be there any more."""
        self.standing = {about: text for about, text in self.standing.items() if about in but}
