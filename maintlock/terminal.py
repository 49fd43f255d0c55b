"""The terminal: which process group it listens to, and one line on it that is drawn again and again. tty_ioctl(4)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
else:
    import _signal as signal  # without its enumerations, as in `signals`

DEFAULT_COLUMNS = 80
ERASE_REST = "\x1b[K"  # of the line, ECMA-48


def foreground_group() -> int | None:
    """Return the process group that the terminal of our session listens to, or None where there is no terminal."""
    try:
        fd = _open()
    except OSError:
        return None
    try:
        return os.tcgetpgrp(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def is_foreground() -> bool:
    """Tell whether we are in the foreground of a terminal: then its signals reach the job without us."""
    return foreground_group() == os.getpgrp()


def give_to(group: int) -> bool:
    """Have the terminal listen to another process group of the session; False where that cannot be."""
    try:
        fd = _open()
    except OSError:
        return False
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))  # from the background this would stop us
    try:
        os.tcsetpgrp(fd, group)
    except OSError:
        return False
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(fd)
    return True


def _open() -> int:
    return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)


def can_redraw(fd: int) -> bool:
    """Tell whether a line can be drawn again in its place there: our session's terminal, and no plain one."""
    try:
        return os.tcgetpgrp(fd) > 0 and os.environ.get("TERM", "dumb") != "dumb"
    except OSError:
        return False


def is_ours(fd: int) -> bool:
    """Tell whether we may draw there just now: in the background, the shell has its prompt there."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


def columns(fd: int) -> int:
    """Return the width of the terminal."""
    try:
        return os.get_terminal_size(fd).columns or DEFAULT_COLUMNS
    except OSError:
        return DEFAULT_COLUMNS


def fitted(forms: Sequence[str], width: int) -> str:
    """Return the first of some texts, told ever more shortly, that fits into a width; if none does, the last one cut."""
    for form in forms:
        if len(cut(form, width)) == len(form):
            return form
    return cut(forms[-1], width - 1) + "…"


def cut(text: str, width: int) -> str:
    """Return as much of a text as takes up at most this many columns."""
    if text.isascii():
        return text[: max(0, width)]
    from unicodedata import combining, east_asian_width

    for index, letter in enumerate(text):
        width -= 0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1
        if width < 0:
            return text[:index]
    return text
