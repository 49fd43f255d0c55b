"""`maintlock status --watch`, on a real terminal and off it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.protocol import until_gone
from tests.support import MAINTLOCK, PATIENCE_SECONDS, Lock, until
from tests.terminal import CTRL_C, CTRL_Z, Opened, Terminal, session, state

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
WATCH = "maintlock status --watch --interval 200ms"
GAP = (
    r"(?:\x1b\[[0-9;?]*[a-zA-Z]|\W)+"  # between two words of a panel: where its lines end depends on how long a path is
)
MODES = "stty -a | tr ' ;' '\\n\\n' | grep -xE -- '-?(echo|icanon|isig)' | sort | tr '\\n' ' '"


def watching(open_shell: Opened, *, columns: int = 80) -> Terminal:
    """Give a terminal on which the status is watched."""
    terminal = open_shell(columns=columns)
    terminal.press(WATCH + "\n")
    terminal.until("heavy-maintenance")
    return terminal


def assert_clean(terminal: Terminal) -> None:
    """The terminal is as it was: its own screen, a cursor, and echo."""
    said = terminal.transcript
    assert said.count(ENTER) == said.count(LEAVE) > 0
    assert said.rindex(SHOW) > said.rindex(HIDE)
    assert "echo icanon isig " in terminal.run(MODES)[1]


def latest(terminal: Terminal) -> str:
    """Return the next whole frame, without its colours."""
    terminal.until("\x1b[H")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.until("\x1b[H"))


@pytest.mark.parametrize("key", ["q", CTRL_C])
def test_a_key_ends_it(lock: Lock, open_shell: Opened, key: str) -> None:
    """Both q and Ctrl-C end it with exit code 0, and leave the terminal as it was."""
    terminal = watching(open_shell)
    terminal.press(key)
    assert terminal.prompt()[0] == 0
    assert_clean(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_ends_it(lock: Lock, open_shell: Opened, number: int) -> None:
    """Another signal ends it as it ends a job, and leaves the terminal as it was too."""
    terminal = watching(open_shell)
    os.kill(watcher(terminal), number)
    assert terminal.prompt()[0] == 128 + number
    assert_clean(terminal)


def watcher(terminal: Terminal) -> int:
    """Return the pid of the program that watches."""
    found: int = until(
        lambda: next((pid for pid in session(terminal.popen.pid) if pid != terminal.popen.pid), None), "the watcher"
    )
    return found


def test_it_is_live(lock: Lock, open_shell: Opened) -> None:
    """What happens is shown without a key: a holder comes, and goes."""
    terminal = watching(open_shell)
    terminal.until("free")
    holder = lock.hold("kbSync")
    terminal.until("kbSync")
    holder.popen.communicate()
    terminal.until("free")
    terminal.press("q")
    terminal.prompt()


def test_it_resizes(lock: Lock, open_shell: Opened) -> None:
    """When the window changes its size, so does what is shown, whatever COLUMNS says."""
    terminal = open_shell(columns=80)
    terminal.run("export COLUMNS=33 LINES=7")
    terminal.press(WATCH + "\n")
    terminal.until("heavy-maintenance")
    assert max(map(len, latest(terminal).splitlines())) == 80
    terminal.resize(60, 12)
    until(lambda: max(map(len, latest(terminal).splitlines())) == 60, "the narrow frame")
    assert len(latest(terminal).splitlines()) == 12
    terminal.press("q")
    assert terminal.prompt()[0] == 0


def test_a_window_of_one_line(lock: Lock, open_shell: Opened) -> None:
    """A tiny window shows what fits."""
    lock.hold("kbSync")
    terminal = watching(open_shell)
    terminal.resize(10, 2)
    until(lambda: len(latest(terminal).splitlines()) == 2, "the small frame")
    terminal.press("q")
    assert terminal.prompt()[0] == 0
    assert_clean(terminal)


def test_ctrl_z_gives_the_terminal_back(lock: Lock, open_shell: Opened) -> None:
    """Stopped with Ctrl-Z it leaves the terminal as it was, and goes on with `fg`."""
    terminal = watching(open_shell)
    terminal.press(CTRL_Z)
    assert terminal.prompt()[0] == 128 + signal.SIGTSTP
    assert state(watcher(terminal)) == "T"
    assert_clean(terminal)
    terminal.press("fg\n")
    terminal.until(ENTER)
    terminal.until("heavy-maintenance")
    terminal.press("q")
    assert terminal.prompt()[0] == 0
    assert_clean(terminal)


def test_a_closed_window_ends_it(lock: Lock, open_shell: Opened) -> None:
    """When the window is closed, nothing stays behind."""
    terminal = watching(open_shell)
    pid = watcher(terminal)
    terminal.hang_up()
    until_gone(pid)


def test_errors_are_shown_inside(lock: Lock, open_shell: Opened) -> None:
    """A state directory that cannot be trusted is shown as that, one that is gone from under a job with that job; both are looked at again."""
    lock.hold("kbSync")
    terminal = watching(open_shell)
    terminal.until("kbSync")
    lock.directory.chmod(0o777)
    terminal.until("cannot be read")
    terminal.until(re.compile(GAP.join(("everybody", "may", "write"))))
    lock.directory.chmod(0o700)
    terminal.until("kbSync")
    lock.directory.rename(lock.directory.with_name("away"))
    terminal.until("orphaned")
    lock.directory.with_name("away").rename(lock.directory)
    terminal.until("kbSync")
    terminal.press("q")
    assert terminal.prompt()[0] == 0


def test_hostile_text_steers_nothing(lock: Lock, open_shell: Opened) -> None:
    """Control characters of an owner are shown, not obeyed."""
    lock.hold("kbSync", "--owner", "\x1b]0;evil\x07[bold]x")
    terminal = watching(open_shell)
    terminal.until("evil")
    terminal.press("q")
    terminal.prompt()
    assert "\x1b]0;evil" not in terminal.transcript


def test_off_a_terminal_it_prints_again(lock: Lock) -> None:
    """In a file or a pipe each look is printed whole, under the time, without control characters."""
    watch = lock.start("status", "--watch", "--interval", "100ms", program=MAINTLOCK)
    for _ in range(2):
        watch.until_line("──")
        watch.until_line("heavy-maintenance · free")
    holder = lock.hold("kbSync")
    watch.until_line("held by  kbSync")
    watch.signal(signal.SIGINT)
    code, out, err = watch.end()
    holder.popen.communicate()
    assert (code, err) == (0, "")
    assert "\x1b" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exit_code_is_that_of_the_last_look(lock: Lock, number: signal.Signals) -> None:
    """With --exit-code, who leaves is told the state that was shown last; a signal that ends it counts more."""
    lock.hold("kbSync")
    watch = lock.start("status", "--watch", "--exit-code", program=MAINTLOCK)
    watch.until_line("held by  kbSync")
    watch.signal(number)
    assert watch.end()[0] == (1 if number == signal.SIGINT else 128 + number)


def test_a_plain_terminal_is_not_drawn_on(lock: Lock, open_shell: Opened) -> None:
    """On a terminal that can do nothing each look is printed below the one before."""
    terminal = open_shell()
    terminal.press(f"TERM=dumb {WATCH}\n")
    for _ in range(2):
        terminal.until("heavy-maintenance")
    terminal.press(CTRL_C)
    assert terminal.prompt()[0] == 0
    assert ENTER not in terminal.transcript


def test_a_reader_that_leaves_ends_it(lock: Lock) -> None:
    """When nobody reads any more, it ends without a word."""
    done = subprocess.run(
        ["sh", "-c", f"{WATCH} | head -n 3"], env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    "arguments",
    [("--watch", "--json"), ("--interval", "1s"), ("--watch", "--interval", "0")],
)
def test_what_does_not_go_together(lock: Lock, arguments: tuple[str, ...]) -> None:
    """Options that cannot be meant together are usage errors."""
    command = [MAINTLOCK, "status", *arguments]
    done = subprocess.run(command, env=lock.env(), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == os.EX_USAGE, done.stderr


def test_watching_makes_nothing(lock: Lock, tmp_path: Path) -> None:
    """Where nothing was ever locked, watching leaves no file and no directory behind."""
    watch = lock.start("status", "--watch", "--interval", "100ms", program=MAINTLOCK)
    watch.until_line("free")
    watch.signal(signal.SIGINT)
    assert watch.end()[0] == 0
    assert not lock.directory.exists()
