"""`maintlock status --watch`: the status, kept up to date, on a screen of its own that is taken away again.

    drawing ──q, Ctrl-C──> screen away, exit 0 (with --exit-code that of the last state)
       ├─────TERM, HUP──> screen away, exit 128+n
       └────────Ctrl-Z──> screen away, stopped ──fg──> drawing

A signal wakes the loop through a pipe; what cannot be read is shown, and read again at the next turn.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import termios
import time
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from maintlock import observe, tables
from maintlock.errors import EXIT_SIGNAL_BASE, MaintlockError
from maintlock.redact import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from maintlock.paths import Places

STDIN, STDOUT = 0, 1
UNKNOWN = "unknown"
QUIT_KEYS = b"qQ\x03\x04"
PLAIN_TERMINALS = frozenset({"", "dumb", "unknown"})
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
WAKING = (*ENDING, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
MAX_WAIT_SECONDS = 86400.0
DEFAULT_SIZE = os.terminal_size((80, 24))


def watch(places: Places, interval_seconds: float) -> tuple[int, str]:
    """Show the status until somebody ends it; return the exit code, and the state of the lease that was shown last."""
    is_terminal = os.isatty(STDOUT) and os.environ.get("TERM", "") not in PLAIN_TERMINALS
    show = _draw if is_terminal else _print
    with _woken_by_signals() as pipe:
        try:
            number, state = show(places, interval_seconds, pipe)
            while number == signal.SIGTSTP:
                _stop_until_continued()
                number, state = show(places, interval_seconds, pipe)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            number, state = signal.SIGHUP, UNKNOWN  # the window was closed
    return 0 if number in {0, signal.SIGINT} else EXIT_SIGNAL_BASE + number, state


def _stop_until_continued() -> None:
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, before)


def _print(places: Places, interval_seconds: float, pipe: int) -> tuple[int, str]:
    """Print the status anew each time, for a file or another program, until a signal ends or stops it.

    Return that signal, and the state of the lease that was printed last.
    """
    while True:
        now = time.time()
        sys.stdout.write(f"── {time.strftime('%H:%M:%S', time.localtime(now))} ──\n")
        shown, state = read_shown(places, now)
        tables.write(shown)
        sys.stdout.flush()
        number = _wait(pipe, interval_seconds, reads_keys=False)
        if number is not None:
            return number, state


def _draw(places: Places, interval_seconds: float, pipe: int) -> tuple[int, str]:
    """Draw the status on a screen of its own until a signal ends or stops it.

    Return that signal, 0 for a key, and the state of the lease that was drawn last.
    """
    console = Console(force_terminal=True, highlight=False, markup=False, emoji=False)
    console.size = _size()
    reads_keys = os.isatty(STDIN)
    hint = f"every {interval_seconds:g}s{' · q quits' if reads_keys else ''}"
    screen = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with _keys_unechoed(reads_keys), screen:
        while True:
            console.size = _size()
            now = time.time()
            shown, state = read_shown(places, now)
            screen.update(_frame(shown, now, hint, console.width), refresh=True)
            number = _wait(pipe, interval_seconds, reads_keys=reads_keys)
            if number is not None:
                return number, state


def _frame(shown: Panel, now: float, hint: str, width: int) -> RenderableType:
    about = Text(f"{time.strftime('%H:%M:%S', time.localtime(now))} · {hint}", style="dim", no_wrap=True)
    shown.width = min(width, tables.MAX_WIDTH)
    return Group(about, shown)


def read_shown(places: Places, now: float) -> tuple[Panel, str]:
    """Return the status as a panel, or what keeps it from being read, and the state of the lease."""
    try:
        found = observe.read_status(places, now)
        return tables.status(found, now), found["state"]
    except MaintlockError as error:
        trouble = str(error)
    except Exception as error:  # noqa: BLE001  one look that fails must not end the watch; the next one may not
        trouble = f"{type(error).__name__}: {error}"
    panel = Panel(
        Text(printable(trouble, 2000)), title=f"{places.lease} · cannot be read", title_align="left", border_style="red"
    )
    return panel, UNKNOWN


def _size() -> os.terminal_size:
    """Return the size of the window, never that of the variables COLUMNS and LINES, which do not change with it."""
    try:
        size = os.get_terminal_size(STDOUT)
    except OSError:
        return DEFAULT_SIZE
    return size if size.columns and size.lines else DEFAULT_SIZE


# Signals and keys


@contextmanager
def _woken_by_signals() -> Iterator[int]:
    """Give a pipe into which each signal writes its number; afterwards all is as it was."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    wakeup_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    ignored = {number for number in WAKING if signal.getsignal(number) == signal.SIG_IGN}
    before = {number: signal.signal(number, _note) for number in WAKING if number not in ignored}
    try:
        yield reading
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(reading)
        os.close(writing)


def _note(_number: int, _frame: object) -> None:
    """Do nothing: the number is in the pipe already."""


def _wait(pipe: int, seconds: float, *, reads_keys: bool) -> int | None:
    """Return the signal that ends or stops us, 0 for a key that does, or None once it is time to look again."""
    ready, _, _ = select.select([pipe, STDIN] if reads_keys else [pipe], [], [], min(seconds, MAX_WAIT_SECONDS))
    if pipe in ready:
        return next((number for number in os.read(pipe, 512) if number in ENDING or number == signal.SIGTSTP), None)
    return 0 if STDIN in ready and _is_quit(os.read(STDIN, 64)) else None


def _is_quit(keys: bytes) -> bool:
    """Tell whether one of these keys quits; none at all, and the terminal is gone."""
    return not keys or any(key in QUIT_KEYS for key in keys)


@contextmanager
def _keys_unechoed(is_terminal: bool) -> Iterator[None]:  # noqa: FBT001  said by its name
    """Have keys arrive one by one and unseen, as long as this lasts."""
    if not is_terminal:
        yield
        return
    before = termios.tcgetattr(STDIN)
    try:
        tty.setcbreak(STDIN, termios.TCSANOW)
        yield
    finally:
        try:
            termios.tcsetattr(STDIN, termios.TCSANOW, before)
        except (OSError, termios.error):
            pass  # the terminal is gone
