"""What a check finds: something wrong, something to notice, or something in order; and the command that mends it."""

from __future__ import annotations

from maintlock.errors import MaintlockError
from maintlock.model import record


@record(frozen=True, kw_only=True)
class Finding:
    """One thing found: `level` is one of `problem notice ok`, `mend` the command that mends it, if one does."""

    level: str
    text: str
    mend: str | None = None
    check: str = ""


def problem(text: str, mend: str | None = None) -> Finding:
    """Return that something is wrong."""
    return Finding(level="problem", text=text, mend=mend)


def notice(text: str, mend: str | None = None) -> Finding:
    """Return something that one should know, and that may be meant so."""
    return Finding(level="notice", text=text, mend=mend)


def fine(text: str) -> Finding:
    """Return that something is in order."""
    return Finding(level="ok", text=text)


def of_error(error: Exception, mend: str | None = None) -> Finding:
    """Return an error as a problem; many of ours carry the command that mends them."""
    if not isinstance(error, MaintlockError):
        return problem(f"{type(error).__name__}: {error}", mend)
    return problem(error.text, error.mend or mend)


def quoted(*words: str) -> str:
    """Return a command line as a shell takes it."""
    from shlex import join

    return join(words)


def to_edit(path: str) -> str:
    """Return the command that opens a file for its owner to edit."""
    return f"${{EDITOR:-vi}} {quoted(path)}"
