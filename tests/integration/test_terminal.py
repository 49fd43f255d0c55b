"""On a terminal a guarded command behaves as the bare one does: each scene is played with both, by a real shell."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.protocol import told, until_queued
from tests.support import Lock, is_stopped, until
from tests.terminal import (
    CTRL_BACKSLASH,
    CTRL_C,
    CTRL_D,
    CTRL_Z,
    GUARD,
    SHELLS,
    Opened,
    Terminal,
    session,
    state,
    waiters,
)

both = pytest.mark.parametrize("guard", [pytest.param("", id="bare"), pytest.param(GUARD, id="guarded")])
in_each_shell = pytest.mark.parametrize("shell", SHELLS)


def outcomes(lock: Lock) -> list[tuple[str, int | None]]:
    """Return how each job ended, oldest first."""
    return [(row["outcome"], row["exit_code"]) for row in told(lock) if row["outcome"]]


def is_free(lock: Lock) -> bool:
    """Tell whether the lease can be had."""
    return lock.wrap("-n", "-E", "9", "-t", "after", "--", "true").returncode == 0


def until_stopped(terminal: Terminal) -> None:
    """Press Enter until the shell says that its background job has stopped: it knows later than the process table."""
    until(lambda: "Stopped" in terminal.run("")[1])


# Ctrl-C and Ctrl-\


@in_each_shell
@both
def test_ctrl_c_ends_a_loop_around_the_job(open_shell: Opened, lock: Lock, shell: str, guard: str) -> None:
    """One Ctrl-C kills the job and ends the loop around it, because whoever started the job dies of INT as well."""
    terminal = open_shell(shell, guard)
    terminal.press("for i in 1 2 3; do $G sh -c 'echo rea''dy $0; exec sleep 100' $i; done\n")
    terminal.until("ready 1")
    terminal.press(CTRL_C)
    status, seen = terminal.prompt()
    assert (status, "ready" in seen) == (130, False)
    if guard:
        assert outcomes(lock) == [("stopped", 130)]
        assert is_free(lock)


@in_each_shell
@both
def test_ctrl_c_kills_a_job_that_is_alone(open_shell: Opened, lock: Lock, shell: str, guard: str) -> None:
    """Ctrl-C ends the job as INT does, the shell sees 130, and the next command runs."""
    terminal = open_shell(shell, guard)
    terminal.press("$G sh -c 'echo rea''dy; exec sleep 100'\n")
    terminal.until("ready")
    terminal.press(CTRL_C)
    assert terminal.prompt()[0] == 130
    assert terminal.run("$G true")[0] == 0
    if guard:
        assert outcomes(lock) == [("stopped", 130), ("completed", 0)]


@both
def test_the_parent_sees_a_death_by_int(open_shell: Opened, guard: str) -> None:
    """A parent that looks at the wait status sees that INT was the end, not an exit with 130."""
    terminal = open_shell("bash", guard)
    terminal.press(
        "$PY -c 'import signal,subprocess,sys; signal.signal(2, lambda *_: None);"
        " print(\"st\"\"atus\", subprocess.call(sys.argv[1:]))' $G sh -c 'echo rea''dy; exec sleep 100'\n"
    )
    terminal.until("ready")
    terminal.press(CTRL_C)
    assert "status -2" in terminal.prompt()[1]


@in_each_shell
@both
def test_a_job_that_survives_ctrl_c_lets_the_loop_go_on(open_shell: Opened, lock: Lock, shell: str, guard: str) -> None:
    """A job that takes Ctrl-C as a wish to finish, and exits with 0, has completed, and the loop goes on."""
    terminal = open_shell(shell, guard)
    terminal.press(
        "for i in 1 2; do $G $PY -c 'import signal;signal.pthread_sigmask(signal.SIG_BLOCK,{2});"
        'print("rea""dy",flush=True);signal.sigwait({2});print("do""ne")\'; done\n'
    )
    for _ in range(2):
        terminal.until("ready")
        terminal.press(CTRL_C)
        terminal.until("done")
    assert terminal.prompt()[0] == 0
    if guard:
        assert outcomes(lock) == [("completed", 0), ("completed", 0)]


@both
def test_a_command_line_of_its_own_survives_ctrl_c(open_shell: Opened, lock: Lock, guard: str) -> None:
    """A job that reads lines from the terminal discards one at Ctrl-C, reads the next, and ends when told to."""
    terminal = open_shell("bash", guard)
    terminal.press("$G $PY $P/tty_repl.py\n")
    terminal.until("ask> ")
    terminal.press("half a line")
    terminal.until("half a line")
    terminal.press(CTRL_C)
    terminal.until("discarded")
    terminal.until("ask> ")
    terminal.press("hello\n")
    terminal.until("got [hello]")
    terminal.press("quit\n")
    assert terminal.prompt()[0] == 0
    if guard:
        assert outcomes(lock) == [("completed", 0)]


@in_each_shell
@both
def test_ctrl_backslash_quits_the_job(open_shell: Opened, lock: Lock, shell: str, guard: str) -> None:
    r"""Ctrl-\ ends the job as QUIT does: 131, and the lease is free."""
    terminal = open_shell(shell, guard)
    terminal.run("ulimit -c 0")
    terminal.press("$G sh -c 'echo rea''dy; exec sleep 100'\n")
    terminal.until("ready")
    terminal.press(CTRL_BACKSLASH)
    assert terminal.prompt()[0] == 131
    if guard:
        assert outcomes(lock) == [("stopped", 131)]
        assert is_free(lock)


def test_ctrl_c_while_we_wait_for_leftovers(open_shell: Opened, lock: Lock) -> None:
    """Ctrl-C while only leftovers keep the wrapper ends them and the loop around it, and the job has completed all the same."""
    terminal = open_shell("bash")
    program = 'import signal; signal.signal(2, signal.SIG_DFL); print("rea""dy", flush=True); signal.pause()'
    terminal.run(f"left() {{ $PY -c '{program}'; }}; export -f left")
    terminal.press("for i in 1 2 3; do $G bash -c 'left &'; done\n")
    kept = "the lease is kept until"  # said a second after the job's end, when the other may still be about to begin
    terminal.until(re.compile(f"ready.*{kept}|{kept}.*ready", re.DOTALL))
    terminal.press(CTRL_C)
    status, seen = terminal.prompt()
    assert (status, "ready" in seen) == (130, False)
    assert outcomes(lock) == [("completed", 0)]


@both
def test_ctrl_c_under_npm(
    open_shell: Opened, lock: Lock, guard: str, require: Callable[[str], str], tmp_path: Path
) -> None:
    """Ctrl-C reaches a job under npm, and a loop around npm ends as it does without us."""
    require("npm")
    make_package(tmp_path, guard, "echo ready; exec sleep 100")
    terminal = open_shell("bash", guard)
    terminal.press("for i in 1 2 3; do npm run -s x; done; echo en''ded\n")
    terminal.until("ready")
    terminal.press(CTRL_C)
    status, seen = terminal.prompt()
    assert (status, "ready" in seen, "ended" in seen) == (130, False, False)
    if guard:
        until(lambda: outcomes(lock) == [("stopped", 130)])
        assert is_free(lock)


def make_package(folder: Path, guard: str, script: str) -> None:
    """Write a package whose script `x` is `script` under the guard."""
    import json

    text = f"{guard} sh -c '{script}'".strip()
    (folder / "package.json").write_text(json.dumps({"name": "p", "version": "1.0.0", "scripts": {"x": text}}))


# Ctrl-C while waiting


@in_each_shell
def test_ctrl_c_ends_the_wait_by_int_itself(open_shell: Opened, lock: Lock, shell: str) -> None:
    """Ctrl-C ends a wait at once and by INT itself: the loop around it ends, and nothing of it stays."""
    lock.hold("backup")
    terminal = open_shell(shell)
    terminal.press("for i in 1 2 3; do maintlock-wrap -w forever -t x -- echo r''an; done; echo en''ded\n")
    terminal.until("x waits for")
    until(lambda: waiters(lock) == 1)
    terminal.press(CTRL_C)
    status, seen = terminal.prompt()
    _, erased, after = seen.rpartition("\r\x1b[K")  # the line may be drawn once more between the key and the signal
    assert (status, bool(erased), "waits" in after) == (130, True, False)
    assert "ran" not in seen and "ended" not in seen
    assert waiters(lock) == 0


def test_ctrl_backslash_ends_the_wait(open_shell: Opened, lock: Lock) -> None:
    r"""Ctrl-\ ends a wait with 131."""
    lock.hold("backup")
    terminal = open_shell("bash")
    terminal.press("maintlock-wrap -w forever -t x -- echo r''an\n")
    until(lambda: waiters(lock) == 1)
    terminal.press(CTRL_BACKSLASH)
    status, seen = terminal.prompt()
    assert (status, "ran" in seen) == (131, False)


# Ctrl-Z, fg and bg


@in_each_shell
@both
def test_ctrl_z_stops_and_fg_continues(open_shell: Opened, lock: Lock, shell: str, guard: str) -> None:
    """Ctrl-Z stops job and wrapper and gives the prompt back, the lease stays held, and `fg` goes on to the end."""
    terminal = open_shell(shell, guard)
    terminal.press("$G sh -c 'echo rea''dy; read x; echo g''ot $x; exit 4'\n")
    terminal.until("ready")
    terminal.suspend()
    if guard:
        assert not is_free(lock)
        assert state(lock.sidecar()["pid"]) == "T"
        assert state(lock.sidecar()["job_pid"]) == "T"
        assert lock.status()["holder"]["stopped"] is True
    terminal.press("fg\nhello\n")
    terminal.until("got hello")
    assert terminal.prompt()[0] == 4
    if guard:
        assert outcomes(lock) == [("failed", 4)]
        assert is_free(lock)


@both
def test_ctrl_z_again_and_again(open_shell: Opened, guard: str) -> None:
    """Stopping and continuing works any number of times, and Ctrl-C after it."""
    terminal = open_shell("bash", guard)
    terminal.press("$G $PY $P/tty_repl.py\n")
    for number in range(5):
        terminal.until("ask> ")
        terminal.suspend()
        terminal.press(f"fg\nline {number}\n")
        terminal.until(f"got [line {number}]")
    terminal.until("ask> ")
    terminal.press(CTRL_C)
    terminal.until("discarded")
    terminal.press("quit\n")
    assert terminal.prompt()[0] == 0


@both
def test_a_job_that_ignores_ctrl_z_is_not_stopped(open_shell: Opened, guard: str) -> None:
    """Where the job ignores Ctrl-Z nothing stops, and the terminal stays the job's."""
    terminal = open_shell("bash", guard)
    terminal.press("$G sh -c 'trap \"\" TSTP; echo rea''dy; read x; echo g''ot $x'\n")
    terminal.until("ready")
    terminal.press(CTRL_Z)
    terminal.until("^Z")
    terminal.press("hello\n")
    terminal.until("got hello")
    assert terminal.prompt()[0] == 0


@both
def test_a_job_that_stops_itself_gives_the_prompt_back(open_shell: Opened, guard: str) -> None:
    """A job that takes Ctrl-Z as a key and stops only itself, as node's does, gives the prompt back all the same."""
    terminal = open_shell("bash", guard)
    terminal.press("$G $PY $P/tty_stops_itself.py\n")
    terminal.until("ready")
    for _ in range(3):
        terminal.suspend()
        terminal.press("fg\n")
        terminal.until("again")
    terminal.press("q")
    assert terminal.prompt()[0] == 3


# Once continued, it has no processor until the test says so; its turns, and what it passes on to its job, are on record.
LATE = """
import os, time
from maintlock.job import Job
from maintlock.signals import Signals
stop, turn, pass_on, stops = Signals.stop, Job._turn, Job._pass_on, []
def late(self, *arguments, **options):
    stop(self, *arguments, **options)
    stops.append(1)
    while not os.path.exists(f"go{len(stops)}"):
        time.sleep(0.005)
def note(text):
    with open("noted", "a") as file:
        print(text, file=file)
def noted_turn(self, at_most):
    note("turn")
    turn(self, at_most)
def noted_pass(self, number):
    note(f"passed {number}")
    pass_on(self, number)
Signals.stop, Job._turn, Job._pass_on = late, noted_turn, noted_pass
"""


def test_a_job_that_stops_itself_anew_before_we_go_on(open_shell: Opened, lock: Lock, tmp_path: Path) -> None:
    """The CONT of an `fg` after which the job has stopped once more does not undo a later stop."""

    def noted() -> list[str]:
        return (tmp_path / "noted").read_text().splitlines()

    (tmp_path / "late").write_text(LATE)
    terminal = open_shell("bash", '$PY $P/patched_wrap.py "$(cat late)" -t x --')
    terminal.press('eval "$G $PY $P/tty_stops_itself.py"\n')
    terminal.until("ready")
    job = until(lambda: lock.sidecar()["job_pid"], "the job")
    terminal.suspend()
    terminal.press("fg\n")
    terminal.until("again")
    terminal.press(CTRL_Z)
    until(lambda: is_stopped(job), "the job to stop anew")
    (tmp_path / "go1").touch()
    until(lambda: is_stopped(lock.sidecar()["pid"]), "the wrapper to stop anew")
    turns = len(noted())
    terminal.press("fg\n")
    terminal.until("again")
    (tmp_path / "go2").touch()
    until(lambda: len(noted()) >= turns + 2, "the wrapper to have heard of its signals")
    terminal.press("q")
    while terminal.prompt()[0] != 3:
        pass  # a prompt from before
    assert set(noted()) == {"turn"}


@both
def test_ctrl_z_under_npm(
    open_shell: Opened, lock: Lock, guard: str, require: Callable[[str], str], tmp_path: Path
) -> None:
    """With npm between, Ctrl-Z gives the prompt back and `fg` goes on to the end."""
    require("npm")
    make_package(tmp_path, guard, "echo ready; read x; echo got $x")
    terminal = open_shell("bash", guard)
    terminal.press("npm run -s x\n")
    terminal.until("ready")
    terminal.suspend()
    if guard:
        assert not is_free(lock)
    terminal.press("fg\nhello\n")
    terminal.until("got hello")
    assert terminal.prompt()[0] == 0
    if guard:
        assert outcomes(lock) == [("completed", 0)]


def test_ctrl_z_for_what_is_left_of_a_job(open_shell: Opened, lock: Lock, tmp_path: Path) -> None:
    """Ctrl-Z also stops a wrapper that only waits for what its job has left behind, and `fg` goes on waiting."""
    os.mkfifo(tmp_path / "go")
    terminal = open_shell("bash")
    terminal.press("$G sh -c 'read x <go &'\n")
    terminal.until("the lease is kept until")
    terminal.suspend()
    assert not is_free(lock)
    terminal.press("fg\n")
    (tmp_path / "go").write_text("now\n")
    assert terminal.prompt()[0] == 0
    assert outcomes(lock) == [("completed", 0)]


@in_each_shell
@both
def test_bg_lets_it_go_on_behind_the_prompt(
    open_shell: Opened, lock: Lock, shell: str, guard: str, tmp_path: Path
) -> None:
    """After Ctrl-Z, `bg` lets the job go on while the shell takes commands, and it ends by itself."""
    os.mkfifo(tmp_path / "go")
    terminal = open_shell(shell, guard)
    terminal.press("$G sh -c 'echo rea''dy; read x <go; echo $x >went'\n")
    terminal.until("ready")
    terminal.suspend()
    assert terminal.run("bg")[0] == 0
    assert terminal.run("echo it >go; echo wr''ote")[0] == 0
    until(lambda: (tmp_path / "went").exists() and (tmp_path / "went").read_text() == "it\n")
    if guard:
        until(lambda: outcomes(lock) == [("completed", 0)])


def test_a_stopped_waiter_lets_those_behind_it_pass(open_shell: Opened, lock: Lock) -> None:
    """A waiter that is stopped by Ctrl-Z blocks nobody: those behind it are served, and after `fg` it waits again (L5)."""
    holder = lock.hold("first")
    terminal = open_shell("bash")
    terminal.press("maintlock-wrap -w forever -t stopped -- echo r''an\n")
    until(lambda: waiters(lock) == 1)
    terminal.suspend()
    behind = lock.start("-w", "forever", "-t", "behind", "--", "sh", "-c", "echo ready; read x", stdin=-1)
    until_queued(lock, behind)
    holder.popen.stdin.close()  # type: ignore[union-attr]  # it has one
    behind.until_line("ready")
    terminal.press("fg\n")
    terminal.until("stopped waits")
    until(lambda: waiters(lock) == 1)
    behind.popen.stdin.close()  # type: ignore[union-attr]  # as above
    terminal.until("ran")
    assert terminal.prompt()[0] == 0


# What a job finds on its descriptors


@in_each_shell
@both
def test_a_job_reads_from_the_terminal(open_shell: Opened, shell: str, guard: str) -> None:
    """A job reads what is typed, to the end that Ctrl-D makes."""
    terminal = open_shell(shell, guard)
    terminal.press("$G sh -c 'echo rea''dy; exec sed \"s/^/sed: /\"'\n")
    terminal.until("ready")
    terminal.press("one\ntwo\n" + CTRL_D)
    seen = terminal.prompt()
    assert seen[0] == 0
    assert re.findall(r"sed: (\w+)\r\n", seen[1]) == ["one", "two"]  # the echo of a key may come in between


@both
def test_a_job_asks_for_a_password(open_shell: Opened, guard: str) -> None:
    """A job can turn the echo off, read a secret, and turn it on again."""
    terminal = open_shell("dash", guard)
    terminal.press("$G sh -c 'stty -echo; printf pass''word:; read x; stty echo; echo; echo g''ot ${#x}'\n")
    terminal.until("password:")
    terminal.press("hunter2\n")
    status, seen = terminal.prompt()
    assert (status, "hunter2" in seen, "got 7" in seen) == (0, False, True)


@both
def test_a_job_sees_the_size_of_the_window(open_shell: Opened, guard: str) -> None:
    """A job sees the size of the window, and hears of its change."""
    terminal = open_shell("bash", guard, columns=93)
    assert "24 93\r\n" in terminal.run("$G stty size")[1]
    terminal.press(
        "$G $PY -c 'import os,signal;wanted={signal.SIGWINCH};signal.pthread_sigmask(signal.SIG_BLOCK,wanted);"
        'print("rea""dy",flush=True);signal.sigwait(wanted);print("wid""th",os.get_terminal_size()[0])\'\n'
    )
    terminal.until("ready")
    terminal.resize(41)
    terminal.until("width 41")
    assert terminal.prompt()[0] == 0


@both
def test_standard_input_from_elsewhere(open_shell: Opened, guard: str) -> None:
    """With standard input from a pipe the job reads that, and its output is on the terminal."""
    terminal = open_shell("bash", guard)
    status, seen = terminal.run("seq 3 | $G sh -c 'echo g''ot $(wc -l) lines; test -t 1'")
    assert (status, "got 3 lines" in seen) == (0, True)


def test_output_is_as_the_bare_command_writes_it(open_shell: Opened) -> None:
    """What appears on the terminal is byte for byte what the bare command shows: control characters, no lines of ours."""
    terminal = open_shell("dash")
    write = r"""$PY -c 'import sys;sys.stdout.buffer.write(b"a\rb\tc\x1b[1mB\x1b[0m\xff\x00\x07end\n")'"""
    bare, guarded = (terminal.run(f"{guard} {write}")[1].rpartition("'")[2] for guard in ("", "$G"))
    assert bare == guarded
    assert "a\rb" in guarded


# Pipelines


@in_each_shell
@both
def test_a_pager_behind_the_job(
    open_shell: Opened, shell: str, guard: str, require: Callable[[str], str], tmp_path: Path
) -> None:
    """A pager at the end of the pipe gets the terminal's keys, and when it quits the job ends by PIPE."""
    require("less")
    terminal = open_shell(shell, guard)
    terminal.press("{ $G seq 1 100000; echo $? >code; } | less\n")
    terminal.until("\n23\r\n")
    terminal.press(" ")
    terminal.until("\n46\r\n")
    terminal.press("q")
    assert terminal.prompt()[0] == 0
    assert (tmp_path / "code").read_text() == "141\n"


@both
def test_the_reader_goes_away(open_shell: Opened, lock: Lock, guard: str) -> None:
    """A job whose reader has gone ends by PIPE, which the pipeline sees as 141."""
    terminal = open_shell("bash", guard)
    _, seen = terminal.run("$G yes | head -1; echo codes ${PIPESTATUS[*]}")
    assert "codes 141 0\r\n" in seen
    if guard:
        until(lambda: outcomes(lock) == [("failed", 141)])


@both
def test_a_job_that_reads_only_the_beginning(open_shell: Opened, guard: str) -> None:
    """A job that reads a line and leaves lets its writer end by PIPE."""
    terminal = open_shell("bash", guard)
    _, seen = terminal.run("yes | $G head -1; echo codes ${PIPESTATUS[*]}")
    assert "codes 141 0\r\n" in seen


# In the background


@in_each_shell
@both
def test_ctrl_c_after_a_start_in_the_background(open_shell: Opened, lock: Lock, shell: str, guard: str) -> None:
    """A job started with `&` and brought to the foreground ends by Ctrl-C."""
    terminal = open_shell(shell, guard)
    terminal.press("$G sh -c 'echo rea''dy; exec sleep 100' &\n")
    terminal.until("ready")
    terminal.press("\n")
    terminal.prompt()
    terminal.press("fg\n")
    until(lambda: os.tcgetpgrp(terminal.master) != terminal.popen.pid)
    terminal.press(CTRL_C)
    while (seen := terminal.prompt())[0] == 0:  # prompts that were there before
        pass
    assert seen[0] == 130
    if guard:
        assert outcomes(lock) == [("stopped", 130)]
        assert is_free(lock)


@in_each_shell
@both
def test_reading_the_terminal_in_the_background(open_shell: Opened, lock: Lock, shell: str, guard: str) -> None:
    """A background job that reads the terminal is stopped as the shell's own; after `fg` it reads, again after Ctrl-Z."""
    terminal = open_shell(shell, guard)
    terminal.press("$G $P/tty_lines.sh &\n")
    terminal.until("ask> ")
    until_stopped(terminal)
    for number in range(2):
        terminal.press(f"fg\nline {number}\n")
        terminal.until(f"got [line {number}]")
        terminal.until("ask> ")
        terminal.suspend()
    terminal.press("fg\n")
    terminal.press("quit\n")
    while (seen := terminal.prompt())[0] not in {0, 1}:
        pass
    assert seen[0] == 0
    assert terminal.run("echo s''ane")[0] == 0
    if guard:
        assert outcomes(lock) == [("completed", 0)]


@both
def test_reading_the_terminal_in_the_background_under_npm(
    open_shell: Opened, lock: Lock, guard: str, require: Callable[[str], str], tmp_path: Path
) -> None:
    """With npm between, the shell sees a background job stop for the terminal, and `fg` lets it and its successors read."""
    require("npm")
    make_package(tmp_path, guard, "echo ready; read x; echo got $x")
    script = tmp_path / "package.json"
    script.write_text(script.read_text().replace("$x'\"", "$x'; read y; echo next $y\""))
    terminal = open_shell("bash", guard)
    terminal.press("npm run -s x &\n")
    terminal.until("ready")
    until_stopped(terminal)
    terminal.press("fg\none\n")
    terminal.until("got one")
    terminal.press("two\n")
    terminal.until("next two")


@both
def test_ctrl_c_for_a_job_that_was_given_the_terminal(open_shell: Opened, lock: Lock, guard: str) -> None:
    """A job that was started in the background, and reads the terminal after `fg`, ends by Ctrl-C, and was stopped."""
    terminal = open_shell("bash", guard)
    terminal.press("$G $P/tty_lines.sh &\n")
    terminal.until("ask> ")
    until_stopped(terminal)
    terminal.press("fg\nhello\n")
    terminal.until("got [hello]")
    terminal.until("ask> ")
    terminal.press(CTRL_C)
    while terminal.prompt()[0] != 130:
        pass
    if guard:
        assert outcomes(lock) == [("stopped", 130)]


# Having become the command


@in_each_shell
def test_exec_leaves_the_terminal_to_the_command(open_shell: Opened, lock: Lock, shell: str) -> None:
    """With --exec, Ctrl-Z, `fg` and Ctrl-C meet the command alone, and the lease is free at its end."""
    terminal = open_shell(shell, "maintlock-wrap --exec -t x --")
    terminal.press("$G $P/tty_lines.sh\n")
    terminal.until("ask> ")
    terminal.suspend()
    assert not is_free(lock)
    terminal.press("fg\nhello\n")
    terminal.until("got [hello]")
    terminal.until("ask> ")
    terminal.press(CTRL_C)
    assert terminal.prompt()[0] == 130
    assert is_free(lock)


# The end of the terminal


@in_each_shell
@both
def test_closing_the_terminal_ends_the_job(open_shell: Opened, lock: Lock, shell: str, guard: str) -> None:
    """When the window is closed the job ends, the lease is free, and nothing of the session is left."""
    terminal = open_shell(shell, guard)
    terminal.press("$G sh -c 'echo rea''dy; sleep 100; true'\n")
    terminal.until("ready")
    terminal.hang_up()
    until(lambda: not session(terminal.popen.pid), "the end of the session")
    if guard:
        assert outcomes(lock) == [("stopped", 129)]
        assert is_free(lock)


def test_closing_the_terminal_ends_a_wait(open_shell: Opened, lock: Lock) -> None:
    """When the window is closed a waiter goes, too."""
    lock.hold("backup")
    terminal = open_shell("bash")
    terminal.press("maintlock-wrap -w forever -t x -- echo r''an\n")
    until(lambda: waiters(lock) == 1)
    terminal.hang_up()
    until(lambda: not session(terminal.popen.pid), "the end of the session")
    until(lambda: waiters(lock) == 0, "the end of its threads")
