"""The line that somebody at a terminal sees while waiting."""

from __future__ import annotations

import re
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from maintlock import events, pending
from tests.support import Lock, Running, until
from tests.terminal import CTRL_C, PROBES, Opened, Terminal, waiters

WAIT = "maintlock-wrap -w forever -t kbSync --"
QUICK = "./quick -w forever -t kbSync --"
ERASED = "\r\x1b[K"

# Draws twenty times a second, and leaves a mark for each: `x` if it could, `.` if the terminal was not its own or took nothing.
DRAWS_QUICKLY = """
from maintlock.voice import Voice
take('maintlock.signals', 'REDRAW_SECONDS', 0.05)
draw = Voice.draw
def noted(self, forms):
    draw(self, forms)
    with open('draws', 'a') as file:
        file.write('x' if self._drawn else '.')
Voice.draw = noted
"""
# Waiting takes no time and counts all the same: so many seconds pass, however long a busy machine takes to begin.
TIME_FLIES = """
import time
from maintlock.signals import Signals
class Clock:
    ahead = 0.0
    def monotonic():
        return time.monotonic() + Clock.ahead
def fly(self, seconds):
    Clock.ahead += seconds
    return wait(self, 0)
wait, Signals.wait = Signals.wait, fly
take('maintlock.signals', 'time', Clock)
take('maintlock.signals', 'REDRAW_SECONDS', 60.0)
"""


def make_program(path: Path, patch: str) -> None:
    """Make a `maintlock-wrap` of which something is replaced."""
    probe = str(PROBES / "patched_wrap.py")
    path.write_text(
        f"#!{sys.executable}\nimport runpy, sys\nsys.argv[1:1] = [{patch!r}]\n"
        f"runpy.run_path({probe!r}, run_name='__main__')\n"
    )
    path.chmod(0o700)


@pytest.fixture(autouse=True)
def _programs(tmp_path: Path) -> None:
    """Have `./quick` and `./patient` in the shell's directory."""
    make_program(tmp_path / "quick", DRAWS_QUICKLY)
    make_program(tmp_path / "patient", TIME_FLIES)


def draws(tmp_path: Path) -> str:
    """Return the marks that `./quick` has left."""
    return path.read_text() if (path := tmp_path / "draws").exists() else ""


def seed_history(lock: Lock, task: str, *seconds: float) -> None:
    """Have the ledger know completed runs of a task that took so long."""
    told = [
        events.new(
            "released", at=time.time() - 1000 + n, lease="heavy-maintenance", task=task, lease_id=f"{n:032x}",
            event_id=f"{n:032x}:end", seconds=held, exit_code=0, outcome="completed", pid=1, source="cli", reason="manual",
        )
        for n, held in enumerate(seconds)
    ]  # fmt: skip
    pending.append(str(lock.directory), told)


def end(running: Running) -> None:
    """Let a job that reads its standard input end."""
    assert running.popen.stdin is not None
    running.popen.stdin.close()


def next_line(terminal: Terminal) -> str:
    """Return the line as it is drawn next."""
    return terminal.until(re.compile(r"\rm[^\r]*?\x1b\[K")).rpartition("\r")[2].removesuffix("\x1b[K")


def test_it_tells_for_whom_since_when_and_how_long_usually(open_shell: Opened, lock: Lock) -> None:
    """On a wide terminal the line tells all of the holder and what its task usually takes, and is told ever anew."""
    holder = lock.hold("backup", "--owner", "alice@laptop", "--reason", "nightly")
    seed_history(lock, "backup", 250, 252, 300)
    terminal = open_shell("bash", columns=200)
    terminal.press(f"{QUICK} echo r''an\n")
    pid = lock.sidecar()["pid"]
    told: list[float] = []
    while len(set(told)) < 3:
        line = next_line(terminal)
        told.append(float(re.findall(r"for ([\d.]+)s", line)[0]))
        assert re.sub(r"for [\d.]+s", "for 1.0s", line) == (
            "maintlock: kbSync waits for the heavy-maintenance lease: held by backup "
            f"(owner alice@laptop, pid {pid}, for 1.0s, reason nightly), usually takes 4m12s"
        )
    assert told == sorted(told)
    end(holder)
    assert terminal.until("ran").endswith(f"{ERASED}ran")
    assert terminal.prompt()[0] == 0


def test_it_fits(open_shell: Opened, lock: Lock) -> None:
    """The line never fills the last column, so that it can be drawn again in its place, also once the window is another."""
    lock.hold("backup")
    seed_history(lock, "backup", 252)
    terminal = open_shell("dash", columns=8)
    terminal.press(f"{QUICK} true\n")
    for before, columns in pairwise((0, 8, 25, 40, 80, 200)):
        terminal.resize(columns)
        until(lambda before=before: len(next_line(terminal)) >= before, "a line that did not fit before")
        for _ in range(2):
            line = next_line(terminal)
            assert len(line) < columns
            assert line.startswith("maintlock: kbSync waits"[: columns - 2])
    terminal.press(CTRL_C)
    assert terminal.prompt()[0] == 130


def test_it_is_told_shortly_before_it_is_cut(open_shell: Opened, lock: Lock) -> None:
    """In 80 columns the line still tells for whom, since when, and how long usually."""
    lock.hold("backup", "--owner", "x" * 80)
    seed_history(lock, "backup", 252)
    terminal = open_shell("bash", columns=80)
    terminal.press(f"{WAIT} true\n")
    terminal.until(re.compile(r"\rmaintlock: kbSync waits: held by backup for [\d.]+s, usually takes 4m12s\x1b\[K"))


def test_it_follows_the_lease(open_shell: Opened, lock: Lock) -> None:
    """When the lease goes to somebody else who was there before, the line names that one."""
    first = lock.hold("first")
    second = lock.start("-w", "forever", "-t", "second", "--", "sh", "-c", "echo ready; read x", stdin=-1)
    until(lambda: waiters(lock) == 1)
    terminal = open_shell("bash")
    terminal.press(f"{QUICK} echo r''an\n")
    terminal.until("held by first")
    until(lambda: waiters(lock) == 2)
    end(first)
    second.until_line("ready")
    terminal.until("held by second")
    end(second)
    terminal.until(f"{ERASED}ran")


def test_drawing_keeps_the_place_in_the_queue(open_shell: Opened, lock: Lock) -> None:
    """A waiter that has drawn its line again and again is served in its turn: in order of arrival."""
    holder = lock.hold("first")
    terminals: list[Terminal] = []
    script = "./quick -w forever -t t{0} -- sh -c 'echo {0} >>order'\n"
    for number in range(3):
        terminals.append(open_shell("bash"))
        terminals[-1].press(script.format(number))
        until(lambda count=number + 1: waiters(lock) == count)
    for terminal in terminals:
        for _ in range(3):
            next_line(terminal)
    end(holder)
    for terminal in terminals:
        assert terminal.prompt()[0] == 0
    order = lock.directory.parent / "order"
    assert order.read_text().split() == ["0", "1", "2"]


def test_nobody_steers_the_terminal(open_shell: Opened, lock: Lock) -> None:
    """An owner's and a reason's control characters are shown, not sent to the terminal."""
    lock.hold("backup", "--owner", "\x1b]0;gotcha\x07\r\n\x9b2J", "--reason", "\u202eesrever 漢字\x1b[5A")
    terminal = open_shell("bash", columns=300)
    terminal.press(f"{WAIT} true\n")
    line = next_line(terminal)
    assert line.isprintable()
    assert r"\x1b]0;gotcha\x07\r\n\x9b2J" in line
    assert r"\u202eesrever 漢字\x1b[5A" in line


def test_ctrl_c_leaves_no_line_behind(open_shell: Opened, lock: Lock) -> None:
    """When Ctrl-C ends the wait, the line is taken away."""
    lock.hold("backup")
    terminal = open_shell("dash")
    terminal.press(f"{WAIT} true\n")
    terminal.until("held by backup")
    terminal.press(CTRL_C)
    assert ERASED in terminal.prompt()[1]


def test_the_end_of_patience(open_shell: Opened, lock: Lock) -> None:
    """When the wait is over in vain, the deferral stands in the line's place."""
    lock.hold("backup")
    terminal = open_shell("dash")
    seen = terminal.run("./patient -w 100s -E 9 -t kbSync -- true")
    assert seen[0] == 9
    assert f"{ERASED}maintlock: kbSync deferred due to active heavy-maintenance lease: held by backup" in seen[1]


def test_after_fg_it_is_drawn_again(open_shell: Opened, lock: Lock, tmp_path: Path) -> None:
    """A stopped wait draws nothing over the shell's prompt, and at `fg` its line is there at once."""
    holder = lock.hold("backup")
    make_program(tmp_path / "slow", "take('maintlock.signals', 'REDRAW_SECONDS', 3600.0)")
    terminal = open_shell("bash")
    terminal.press("./slow -w forever -t kbSync -- echo r''an\n")
    terminal.until("held by backup")
    terminal.suspend()
    terminal.press("fg\n")
    terminal.until("held by backup")
    end(holder)
    terminal.until(f"{ERASED}ran")
    assert terminal.prompt()[0] == 0


def test_in_the_background_it_is_told_once(open_shell: Opened, lock: Lock, tmp_path: Path) -> None:
    """A wait in the background tells one plain line, and leaves the prompt alone until it is brought to the foreground."""
    holder = lock.hold("backup")
    terminal = open_shell("bash")
    terminal.press(f"{QUICK} echo r''an &\n")
    seen = terminal.until(re.compile(r"reason manual\)"))
    until(lambda: waiters(lock) == 1)
    assert ERASED not in seen
    until(lambda: len(draws(tmp_path)) > 2, "the time to draw it again")
    assert "x" not in draws(tmp_path)
    terminal.press("echo di''stance\n")
    assert "waits" not in terminal.until("distance")
    assert terminal.prompt()[1].count("waits") == 0
    terminal.press("fg\n")
    terminal.until(re.compile(r"\rm[^\r]*held by backup for"))
    end(holder)
    terminal.until("ran")


@pytest.mark.parametrize(
    ("options", "env", "expected"),
    [
        ("-q", "", ""),
        ("", "TERM=dumb", "waits for the heavy-maintenance lease: held by backup (owner"),
        ("--log-format json", "", '"event":"waiting"'),
    ],
)
def test_where_no_line_can_be_kept(open_shell: Opened, lock: Lock, options: str, env: str, expected: str) -> None:
    """Quiet, on a plain terminal and in JSON nothing is drawn: what is told then is told once."""
    lock.hold("backup")
    terminal = open_shell("dash")
    seen = terminal.run(f"{env} ./patient {options} -w 100s -E 9 -t kbSync -- true")
    said = seen[1].replace(" ", "") if "json" in options else seen[1]
    assert seen[0] == 9
    assert expected in said
    assert said.count("waits") == (1 if expected else 0)
    assert "\x1b" not in seen[1]


def test_standard_error_elsewhere(open_shell: Opened, lock: Lock) -> None:
    """With standard error in a file one plain line is in there, and nothing on the terminal."""
    lock.hold("backup")
    terminal = open_shell("dash")
    seen = terminal.run("./patient -w 100s -E 9 -t kbSync -- true 2>said")
    assert (seen[0], "waits" in seen[1]) == (9, False)
    said = (lock.directory.parent / "said").read_text()
    assert said.count("waits for the heavy-maintenance lease: held by backup (owner") == 1
    assert "\r" not in said


def test_keys_pressed_while_waiting_are_the_jobs(open_shell: Opened, lock: Lock) -> None:
    """What is typed during the wait is left for the job to read."""
    holder = lock.hold("backup")
    terminal = open_shell("dash")
    terminal.press(f"{WAIT} sh -c 'read x; echo g''ot $x'\n")
    terminal.until("held by backup")
    terminal.press("hello\n")
    end(holder)
    terminal.until("got hello")


def test_a_terminal_that_takes_nothing_delays_no_job(open_shell: Opened, lock: Lock, tmp_path: Path) -> None:
    """A terminal that was halted with Ctrl-S keeps nobody from taking the lease and starting the job."""
    holder = lock.hold("backup")
    terminal = open_shell("dash")
    terminal.press(f"{QUICK} sh -c 'echo ran >ran'\n")
    terminal.until("held by backup")
    terminal.press("\x13")
    until(lambda: draws(tmp_path).endswith(".."), "the time to draw it again")
    end(holder)
    until((lock.directory.parent / "ran").exists)
    terminal.press("\x11")
    assert terminal.prompt()[0] == 0


def test_a_broken_ledger_spoils_nothing(open_shell: Opened, lock: Lock) -> None:
    """A ledger that cannot be read only takes away what the task usually takes."""
    holder = lock.hold("backup")
    (lock.directory / "ledger.db").write_bytes(b"no database" * 100)
    terminal = open_shell("bash", columns=200)
    terminal.press(f"{QUICK} echo r''an\n")
    for _ in range(2):
        assert next_line(terminal).endswith("s, reason manual)")
    end(holder)
    terminal.until("ran")


def test_survivors_are_waited_for_in_the_same_manner(open_shell: Opened, lock: Lock) -> None:
    """Whoever has the lock already, and waits for what lives on of a killed job, is told so in the same line."""
    holder = lock.hold("backup", "-o")
    holder.popen.kill()
    terminal = open_shell("bash")
    terminal.press(f"{QUICK} echo r''an\n")
    terminal.until("held by survivors of backup")
    terminal.until(re.compile(r"\rm[^\r]*?held by survivors of backup"))
    end(holder)
    terminal.until("ran")
