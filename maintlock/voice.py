"""What a program says of itself: to stderr, one line at a time, never a control character of somebody else's.

At the edge of each program `report` makes of an error that nobody handled one line for people, and an exit code.
"""

from __future__ import annotations

import errno
import os
import select

from maintlock import terminal
from maintlock.errors import EXIT_INTERNAL, EXIT_SIGNAL_BASE, EXIT_UNAVAILABLE, MaintlockError
from maintlock.jsontext import encoded_object
from maintlock.paths import NO_DESCRIPTOR_LEFT
from maintlock.redact import printable
from maintlock.times import now_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

STDOUT, STDERR = 1, 2
SIGPIPE = 13
OF_OUTPUT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
MAX_LINE = 4000
WARNINGS = frozenset({"token_stale"})


class Voice:
    """Says things as text or as JSON lines. `verbosity` is -1 (errors only), 0, or 1 (details too)."""

    def __init__(self, program: str = "maintlock") -> None:
        self.program = program
        self.log_format = "text"
        self.verbosity = 0
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
            shown = [f"{self.program}: {printable(form, MAX_LINE)}" for form in forms]
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
            write_stderr("".join(f"{self.program}: {printable(part, MAX_LINE)}\n" for part in text.split("\n")))


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


def report(error: Exception, voice: Voice) -> int:
    """Say what a program failed of, and return its exit code; a fault of ours is one line, not a traceback."""
    if isinstance(error, MaintlockError):
        return _unavailable(str(error), voice, error.exit_code)
    if isinstance(error, BrokenPipeError):
        give_up_stdout()  # whoever read has seen enough
        return EXIT_SIGNAL_BASE + SIGPIPE
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTOR_LEFT:
        return _unavailable(f"{error.strerror}; see: ulimit -n", voice)
    if isinstance(error, OSError) and error.filename is not None:
        return _unavailable(f"{os.fsdecode(error.filename)}: {error.strerror}", voice)
    if isinstance(error, OSError) and error.errno in OF_OUTPUT:
        give_up_stdout()
        return _unavailable(f"standard output: {error.strerror}", voice)
    what = f"internal error: {type(error).__name__}: {error}"
    voice.error(
        f"{what}; please report it, with the command and what maintlock doctor --json prints", exit_code=EXIT_INTERNAL
    )
    if voice.verbosity > 0:
        import traceback

        voice.error("".join(traceback.format_exception(error)))
    return EXIT_INTERNAL


def _unavailable(text: str, voice: Voice, exit_code: int = EXIT_UNAVAILABLE) -> int:
    voice.error(text, exit_code=exit_code)
    return exit_code


def print_text(text: str) -> None:
    """Write to standard output without the standard library's streams, which a guarded job would wait for.

    Raises:
        OSError: It is closed or full; `report` knows what to say.
    """
    content = text.encode()
    while content:
        content = content[os.write(STDOUT, content) :]


def give_up_stdout() -> None:
    """Have the interpreter's own last flush go nowhere: nobody reads any more."""
    try:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, STDOUT)
        os.close(null)
    except OSError:
        pass
