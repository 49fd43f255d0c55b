"""What a program says of itself: to stderr only, one line at a time, never a control character of somebody else's."""

from __future__ import annotations

import os
import select

from maintlock import terminal
from maintlock.jsontext import encoded_object
from maintlock.redact import printable
from maintlock.times import now_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

STDERR = 2
MAX_LINE = 4000
WARNINGS = frozenset({"token_stale"})


class Voice:
    """Says things as text or as JSON lines. `verbosity` is -1 (errors only), 0, or 1 (details too)."""

    def __init__(self, *, log_format: str = "text", verbosity: int = 0) -> None:
        self.log_format = log_format
        self.verbosity = verbosity
        self._drawn = False

    def tell(self, event: str, text: str, *, verbose: bool = False, **fields: object) -> None:
        """Tell something that is no error."""
        if self.verbosity >= (1 if verbose else 0):
            self._say("warning" if event in WARNINGS else "info", event, text, fields)

    def error(self, text: str, **fields: object) -> None:
        """Tell what went wrong; this is said also when quiet."""
        self._say("error", "error", text, fields)

    def can_redraw(self) -> bool:
        """Tell whether a line can be kept up to date: a person looks at it."""
        return self.log_format == "text" and self.verbosity >= 0 and terminal.can_redraw(STDERR)

    def draw(self, forms: Sequence[str]) -> None:
        """Show the first of some texts that fits, in the place of what was drawn before.

        Where the terminal is not ours just now, or does not take anything (Ctrl-S), nothing is drawn: nobody waits for it.
        """
        self._drawn = terminal.is_ours(STDERR) and _is_writable(STDERR)
        if self._drawn:
            shown = [f"maintlock: {printable(form, MAX_LINE)}" for form in forms]
            width = terminal.columns(STDERR) - 1  # after the last column some terminals erase it
            write_stderr(f"\r{terminal.fitted(shown, width)}{terminal.ERASE_REST}")

    def erase(self) -> None:
        """Take away what was drawn."""
        if self._drawn and terminal.is_ours(STDERR) and _is_writable(STDERR):
            write_stderr(f"\r{terminal.ERASE_REST}")
        self._drawn = False

    def _say(self, level: str, event: str, text: str, fields: dict[str, object]) -> None:
        self.erase()
        if self.log_format == "json":
            record = {"at": now_text(), "level": level, "event": event, "message": text, **fields}
            write_stderr(encoded_object(record) + "\n")
        else:
            write_stderr("".join(f"maintlock: {printable(part, MAX_LINE)}\n" for part in text.split("\n")))


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def write_stderr(text: str) -> None:
    """Write to descriptor 2, whatever state it is in: closed, full, or gone."""
    content = text.encode("utf-8", "backslashreplace")
    try:
        while content:
            content = content[os.write(STDERR, content) :]
    except OSError:
        pass
