"""Signals and standard streams of `maintlock-wrap` without a terminal: the job is to notice nothing of us."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.headless import SIGNALS, Headless, headless_in, is_alive
from tests.support import WRAP, Running, until, until_stopped

ENDING = ["TERM", "HUP", "INT", "QUIT", "USR1", "USR2"]


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Headless]:
    """Give a lock in a state directory of the test's own."""
    with headless_in(tmp_path / "state") as found:
        yield found


def number(name: str) -> int:
    """Return a signal's number."""
    return int(getattr(signal, f"SIG{name}"))


# Before the job runs

NOW = "import os, signal\ndef now(): os.kill(os.getpid(), signal.SIG{name})\n"
MOMENTS = {
    "before the lock is opened": NOW
    + "from maintlock import config\nreal = config.load\ndef load(*a, **k): now(); return real(*a, **k)\n"
    "take('maintlock.config', 'load', load)",
    "when the lease is ours": NOW + "from maintlock import acquisition\nreal = acquisition.acquire\n"
    "def acquire(*a, **k): got = real(*a, **k); now(); return got\ntake('maintlock.acquisition', 'acquire', acquire)",
}


@pytest.mark.parametrize(
    ("option", "name"), [(option, name) for option in ("--outcome", "--exec") for name in ("TERM", "INT")]
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_signals_before_the_job_runs(lock: Headless, tmp_path: Path, moment: str, name: str, option: str) -> None:
    """A signal that comes before the job was started ends us with 128+n; the job is not run and nothing stays held (L4)."""
    outcome = tmp_path / "outcome.json"
    options = [option, str(outcome)] if option == "--outcome" else [option]
    ran = tmp_path / "ran"
    running = lock.patched(MOMENTS[moment].format(name=name), "-t", "x", *options, "--", "touch", str(ran))
    code, _, err = running.end()
    assert (code, err) == (128 + number(name), "")
    assert not ran.exists()
    if option == "--outcome":
        told = json.loads(outcome.read_text())
        assert (told["outcome"], told["exit_code"]) == ("stopped", 128 + number(name))
    assert lock.history(event="released", outcome="stopped", exit_code=128 + number(name))
    assert lock.is_free() and not lock.history(outcome="lost")


def test_an_interrupt_before_we_listen(lock: Headless) -> None:
    """An INT that comes before signals are ours kills us as it would kill any program, without a traceback (R9)."""
    patch = "def parse(*_a): raise KeyboardInterrupt\ntake('maintlock.options', 'parse', parse)"
    assert lock.patched(patch, "-t", "x", "--", "true").end() == (-signal.SIGINT, "", "")


# While it waits


@pytest.mark.parametrize("name", ENDING)
def test_signals_end_the_wait(lock: Headless, tmp_path: Path, name: str) -> None:
    """While we only wait, a signal ends the wait: 128+n, outcome `stopped`, the job not run, the holder undisturbed (L4)."""
    holder = lock.hold()
    outcome = tmp_path / "outcome.json"
    options = ("-t", "x", "-w", "forever", "--outcome", str(outcome))
    waiter = lock.start(*options, "--", "touch", str(tmp_path / "ran"), stderr=subprocess.STDOUT)
    waiter.until_line("x waits for the heavy-maintenance lease: held by holder")
    waiter.signal(number(name))
    assert waiter.end() == (128 + number(name), "", "")
    told = json.loads(outcome.read_text())
    assert (told["outcome"], told["exit_code"], told["task"]) == ("stopped", 128 + number(name), "x")
    assert (told["lease_id"], told["reason_code"], told["holder"]) == (None, None, None)
    assert lock.status()["state"] == "held" and not lock.status()["waiters"]
    assert holder.end() == (1, "", "")  # `read` at the end of its input
    assert lock.is_free()
    assert not (tmp_path / "ran").exists() and not lock.history(task="x")


def test_being_continued_does_not_end_the_wait(lock: Headless) -> None:
    """CONT ends no wait: who was continued, stopped and continued still gets the lease (R4)."""
    patch = (
        "from maintlock.signals import Signals\nwait = Signals.wait\n"
        "def heard(self, seconds):\n    numbers = wait(self, seconds)\n    18 in numbers and print('continued', flush=True)\n"
        "    return numbers\nSignals.wait = heard"
    ).replace("18", str(int(signal.SIGCONT)))
    holder = lock.hold()
    waiter = lock.patched(patch, "-t", "x", "-w", "forever", "--", "echo", "ran", stderr=subprocess.STDOUT)
    waiter.until_line("waits for")
    waiter.signal(signal.SIGCONT)
    waiter.until_line("continued")
    waiter.signal(signal.SIGSTOP)
    until_stopped(waiter.pid)
    waiter.signal(signal.SIGCONT)
    waiter.until_line("continued")
    holder.end()
    assert waiter.end() == (0, "ran\n", "")


def test_an_ignored_signal_does_not_end_the_wait(lock: Headless) -> None:
    """Under nohup a HUP neither ends the wait nor reaches the job (R1)."""
    holder = lock.hold()
    waiter = lock.start(
        "-c", 'trap "" HUP; exec "$@"', "sh", WRAP, "-t", "x", "-w", "forever", "--", sys.executable, "-I", SIGNALS,
        program="sh", stderr=subprocess.STDOUT, stdin=subprocess.PIPE,
    )  # fmt: skip
    waiter.until_line("waits for")
    waiter.signal(signal.SIGHUP)
    holder.end()
    waiter.until_line("ready")
    waiter.signal(signal.SIGHUP)
    waiter.signal(signal.SIGUSR1)
    assert waiter.until_line("got ") == "got USR1"
    assert waiter.end()[0] == 0


# While it runs


def test_signals_reach_the_job_once_each(lock: Headless) -> None:
    """HUP, INT, QUIT, USR1, USR2 and CONT sent to us reach the running job, each once and in order (R3)."""
    running = lock.signals(stdin=subprocess.PIPE)
    for name in ["USR1", "HUP", "INT", "CONT", "USR2", "QUIT", "USR1", "CONT"]:
        running.signal(number(name))
        assert running.until_line("got ") == f"got {name}"
    assert running.end() == (0, "", "")  # it ends when its standard input does


@pytest.mark.parametrize(
    ("name", "outcome"), [("TERM", "stopped"), ("INT", "stopped"), ("QUIT", "stopped"), ("USR1", "completed")]
)
def test_what_a_signal_makes_of_the_outcome(lock: Headless, name: str, outcome: str) -> None:
    """A job that ends well after a TERM, INT or QUIT of ours was stopped, not completed; USR1 says nothing about its end (L3)."""
    running = lock.signals(exit_on=name)
    running.signal(number(name))
    running.until_line(f"got {name}")
    assert running.end() == (0, "", "")
    assert [row["outcome"] for row in lock.history(event="released")] == [outcome]


@pytest.mark.parametrize("name", ENDING)
def test_a_job_that_dies_of_a_signal_that_we_passed_on(lock: Headless, name: str) -> None:
    """A job that dies of a signal of ours was stopped, and leaves 128+n (L3)."""
    running = lock.hold(script="ulimit -c 0; echo ready; exec sleep 60")
    until(lambda: Path(f"/proc/{lock.job_pid()}/comm").read_text() == "sleep\n")
    running.signal(number(name))
    assert running.end()[0] == 128 + number(name)
    assert [row["outcome"] for row in lock.history(event="released")] == ["stopped"]


def test_a_terminated_shell_takes_its_children_along(lock: Headless) -> None:
    """TERM reaches the whole group, so that a shell's children do not outlive it (L2)."""
    running = lock.hold(script="sleep 60 & sleep 60 & echo ready; wait")
    running.signal(signal.SIGTERM)
    assert running.end()[0] == 143
    assert lock.is_free()


def test_term_that_is_not_heeded(lock: Headless) -> None:
    """A job that ignores our TERM is killed with all its processes after --stop-grace, and was stopped (L4)."""
    running = lock.hold(
        "holder", "--stop-grace", "100ms", script='trap "" TERM; sleep 60 & echo "ready $$ $!"; wait; wait'
    )
    job_pid = lock.job_pid()
    running.signal(signal.SIGTERM)
    assert running.end()[0] == 137
    assert not is_alive(job_pid)
    assert [(row["outcome"], row["exit_code"]) for row in lock.history(event="released")] == [("stopped", 137)]
    assert lock.is_free()


def test_a_stop_while_the_wrapper_does_not_run(lock: Headless) -> None:
    """A job that was killed while a TERM waited for its wrapper, which had no processor meanwhile, was stopped too."""
    running = lock.hold(script="ulimit -c 0; echo ready; read x")
    job_pid = lock.job_pid()
    running.signal(signal.SIGSTOP)
    until_stopped(running.pid)
    running.signal(signal.SIGTERM)
    os.kill(job_pid, signal.SIGKILL)
    running.signal(signal.SIGCONT)
    assert running.end()[0] == 137
    assert [(row["outcome"], row["exit_code"]) for row in lock.history(event="released")] == [("stopped", 137)]


def test_the_job_has_a_group_of_its_own(lock: Headless) -> None:
    """Without a terminal the job leads a group of its own in our session (L2)."""
    running = lock.signals(stdin=subprocess.PIPE)
    job_pid = lock.job_pid()
    assert os.getpgid(job_pid) == job_pid != os.getpgid(running.pid)
    assert os.getsid(job_pid) == os.getsid(running.pid) == running.pid


def test_an_ignored_signal_stays_ignored(lock: Headless) -> None:
    """What was ignored when we were started, as under nohup, is ignored by us and by the job (R3)."""
    running = lock.start(
        "-c", 'trap "" HUP INT USR2; exec "$@"', "sh", WRAP, "-t", "x", "--", sys.executable, "-I", SIGNALS,
        program="sh", stdin=subprocess.PIPE,
    )  # fmt: skip
    running.until_line("ready")
    for name in ("HUP", "INT", "USR2", "USR1"):
        running.signal(number(name))
    assert running.until_line("got ") == "got USR1"


def test_nohup(lock: Headless) -> None:
    """A job guarded under nohup(1) survives the hang-up of its session (R3)."""
    running = lock.start(WRAP, "-t", "x", "--", sys.executable, "-I", SIGNALS, program="nohup", stdin=subprocess.PIPE)
    running.until_line("ready")
    os.killpg(running.pid, signal.SIGHUP)
    running.signal(signal.SIGCONT)
    assert running.until_line("got ") == "got CONT"


def test_signals_to_what_is_left_of_the_job(lock: Headless) -> None:
    """After the main process has ended, a signal reaches what is left of the job, USR1 and USR2 nobody; its exit code stays (L2)."""
    running = lock.start(
        "-t", "x", "--", "sh", "-c", '"$@" & exit 7', "sh", sys.executable, "-I", SIGNALS, "TERM"
    )  # fmt: skip
    left = int(running.until_line("ready").split()[1])
    until(lambda: not is_alive(lock.job_pid()))
    for name in ("HUP", "USR1", "USR2", "TERM"):
        running.signal(number(name))
        assert name.startswith("USR") or running.until_line("got ") == f"got {name}"
    assert running.end()[0] == 7
    assert not is_alive(left)
    assert [(row["outcome"], row["exit_code"]) for row in lock.history(event="released")] == [("stopped", 7)]


def test_leftovers_that_do_not_heed_term(lock: Headless) -> None:
    """What is left of a job and ignores our TERM is killed after the grace, and only then is the lease free (L4)."""
    running = lock.start(
        "-t", "x", "--stop-grace", "100ms", "--", "sh", "-c", '"$@" & exit 7', "sh", sys.executable, "-I", SIGNALS
    )  # fmt: skip
    left = int(running.until_line("ready").split()[1])
    until(lambda: not is_alive(lock.job_pid()))
    running.signal(signal.SIGTERM)
    assert running.end()[0] == 7
    assert not is_alive(left)


def test_a_job_that_may_not_be_signalled(lock: Headless) -> None:
    """A job that has become somebody else's (sudo) and may not be signalled is waited for; its lease stays held (L2)."""
    patch = (
        "import os\nreal = os.kill\n"
        "def kill(pid, number):\n    if pid != os.getpid() and number: raise PermissionError(1, 'Operation not permitted')\n"
        "    return real(pid, number)\n"
        "take('os', 'kill', kill)\ntake('os', 'killpg', kill)"
    )
    running = lock.patched(patch, "-t", "x", "--", "sh", "-c", "echo ready; read x", stdin=subprocess.PIPE)
    running.until_line("ready")
    for name in ("TERM", "USR1", "HUP"):
        running.signal(number(name))
    until(lambda: _caught_none_pending(running.pid), "the wrapper to have taken its signals")
    assert lock.wrap("-t", "next", "-E", "9", "--", "true").returncode == 9
    assert running.end() == (1, "", "")


def _caught_none_pending(pid: int) -> bool:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return int(status["ShdPnd"], 16) == 0


# What the job inherits

BLOCKING = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [int(n) for n in sys.argv[1].split(",") if n])
for n in sys.argv[2].split(","):
    if n: signal.signal(int(n), signal.SIG_IGN)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.execv(sys.argv[3], sys.argv[3:])
"""
MASKS = {
    "nothing": ([], []),
    "CHLD blocked": ([signal.SIGCHLD], []),
    "everything blocked": (sorted(set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}), []),
    "some ignored": ([signal.SIGUSR1], [signal.SIGHUP, signal.SIGINT, signal.SIGTTOU, signal.SIGALRM]),
    "CHLD ignored": ([], [signal.SIGCHLD]),
}


def _masks(running: Running) -> dict[str, int]:
    code, out, err = running.end()
    assert (code, err) == (0, "")
    return {name: int(mask, 16) for name, _, mask in (row.partition(":") for row in out.splitlines())}


@pytest.mark.parametrize("what", MASKS)
def test_signal_dispositions_are_inherited(lock: Headless, what: str) -> None:
    """The job finds signals blocked, ignored and defaulted as it would without us, SIGPIPE at its default (R3)."""
    blocked, ignored = (",".join(str(int(n)) for n in numbers) for numbers in MASKS[what])
    show = ("/bin/grep", "-E", "Sig(Blk|Ign|Cgt)", "/proc/self/status")
    without = _masks(lock.python(BLOCKING, blocked, ignored, *show))
    for options in (("-F",), ()):
        within = _masks(lock.python(BLOCKING, blocked, ignored, WRAP, "-t", "x", *options, "--", *show))
        if what == "CHLD ignored" and not options:  # we must hear of our child's end, so it starts with the default
            without["SigIgn"] = 0
        for found in (within, without):  # posix_spawn(3), ours or make's, has the C library's own two ignored
            found["SigIgn"] &= ~(0b11 << 31)
        assert within == without, options


def test_a_broken_pipe_ends_the_job_as_usual(lock: Headless) -> None:
    """A guarded producer dies of SIGPIPE when its reader has enough, and does not fail in a loop (R3)."""
    done = subprocess.run(
        ["bash", "-c", '"$0" -t x -- yes | head -n 1; echo ${PIPESTATUS[0]}', WRAP], env=lock.env(),
        capture_output=True, text=True, start_new_session=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"y\n{128 + signal.SIGPIPE}\n", "")


def test_limits_cwd_and_environment_are_inherited(lock: Headless, tmp_path: Path) -> None:
    """The job finds limits, umask, working directory and environment as they were; only MAINTLOCK_ variables are new (R3)."""
    script = "ulimit -a; umask; pwd -P; env -0 | sort -z | tr '\\0' '\\n' | grep -v '^MAINTLOCK_\\|^_='"
    environment = {"PATH": os.environ["PATH"], "ODD": "a\nb=c", "EMPTY": "", "MAINTLOCK_STATE_DIR": str(lock.directory)}
    outer = "umask 027; ulimit -n 77; ulimit -c 0; cd /usr; " + 'exec "$@"'
    without = lock.start("-c", outer, "sh", "sh", "-c", script, program="/bin/sh", env=environment).end()
    for options in ((), ("-F",), ("-o",)):
        within = lock.start(
            "-c", outer, "sh", WRAP, "-t", "x", *options, "--", "sh", "-c", script, program="/bin/sh", env=environment
        ).end()  # fmt: skip
        assert within == without


def test_arguments_that_are_no_text(lock: Headless) -> None:
    """Arguments, environment and paths that are no UTF-8 reach the job byte for byte (R3)."""
    odd = bytes(range(1, 256))
    done = subprocess.run(
        [WRAP.encode(), b"-t", b"x", b"--", b"sh", b"-c", b'printf "%s\\n%s" "$1" "$ODD"', b"sh", odd],
        env={**{os.fsencode(k): os.fsencode(v) for k, v in lock.env().items()}, b"ODD": odd},
        capture_output=True, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, odd + b"\n" + odd, b"")


# Standard streams


@pytest.mark.parametrize("options", [(), ("-F",), ("-v",), ("-w", "1")], ids=" ".join)
def test_streams_byte_for_byte(lock: Headless, options: tuple[str, ...]) -> None:
    """stdin, stdout and stderr are the job's, byte for byte, whatever is in them (R3)."""
    data = bytes(range(256)) * 64 + random.Random(4).randbytes(700_001)
    done = subprocess.run(
        [WRAP, "-t", "x", *options, "--", "sh", "-c", "tee /dev/stderr"], input=data, env=lock.env(),
        capture_output=True, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout == data and done.stderr == data


def test_we_read_nothing_of_stdin(lock: Headless, tmp_path: Path) -> None:
    """What the job does not read is still there for whoever comes after it (R3)."""
    data = tmp_path / "data"
    data.write_bytes(b"first\nsecond\n")
    done = subprocess.run(
        ["sh", "-c", f'{{ "{WRAP}" -t x -- head -c 6; cat; }} <"{data}"'],
        env=lock.env(),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("first\nsecond\n", "")


STREAMS = """
found=
for n in 0 1 2; do [ -e /proc/$$/fd/$n ] || found="$found$n"; done
for n in 0 1 2; do case $(readlink /proc/$$/fd/$n) in *heavy-maintenance*|*ledger*) found="$found lock-on-$n";; esac; done
echo "closed:$found fd:${MAINTLOCK_FD:+passed}" >"$1"
exit 6
"""


@pytest.mark.parametrize(
    ("closed", "options"),
    [
        *((closed, ()) for closed in ("0", "1", "2", "01", "02", "12", "012", "")),
        *[(closed, (option,)) for closed in ("012", "") for option in ("-F", "-o")],
    ],
)
def test_closed_streams_stay_closed(lock: Headless, tmp_path: Path, closed: str, options: tuple[str, ...]) -> None:
    """A stream that was closed is closed for the job, and no descriptor of ours ever lands on 0, 1 or 2 (R3)."""
    found = tmp_path / "found"
    redirections = " ".join(f"{n}>&-" for n in closed)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", WRAP, "-t", "x", *options, "--", "sh", "-c", STREAMS, "sh", str(found)],
        env=lock.env(), stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (6, "")
    assert found.read_text() == f"closed:{closed} fd:{'' if options == ('-o',) else 'passed'}\n"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_nobody_hears_us(lock: Headless, redirection: str) -> None:
    """A standard error that is closed or full changes neither exit code nor what is done (R9)."""
    lock.hold()
    for arguments, code in (
        ("-t x -E 9 -- true", 9),
        ("-t x -E 9 -w 20ms -- true", 9),
        ("-t x --nonsense -- true", 64),
        ("-t x --lease other -- sh -c 'exit 3'", 3),
        ("-t x --lease other -- maintlock-test-no-such-command", 127),
    ):
        done = subprocess.run(
            ["sh", "-c", f'"{WRAP}" {arguments} {redirection}'], env=lock.env(), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, start_new_session=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_quiet_and_verbose(lock: Headless) -> None:
    """-q keeps a deferral to itself and still tells errors; -v adds details; without either a good run is silent (R9)."""
    assert lock.wrap("-t", "x", "--", "true").stderr == ""
    assert lock.wrap("-t", "x", "-q", "--", "maintlock-test-no-such-command").stderr.count("\n") == 1
    lock.hold()
    assert lock.wrap("-t", "x", "-q", "--", "true").stderr == ""
    assert lock.wrap("-t", "x", "-q", "-w", "20ms", "--", "true").stderr == ""
    assert lock.wrap("-t", "x", "--", "true").stderr.count("\n") == 1
    assert lock.wrap("-t", "x", "-v", "--", "true").stderr.count("\n") >= 1


def test_no_locale_is_added(lock: Headless) -> None:
    """Under cron, where no locale is set, the job finds none either (R3)."""
    bare = {"PATH": "/usr/bin:/bin", "MAINTLOCK_STATE_DIR": str(lock.directory)}
    for options in ((), ("-F",)):
        for given in ({}, {"LC_CTYPE": "C.UTF-8"}, {"LC_CTYPE": "POSIX"}):
            done = lock.wrap("-t", "x", *options, "--", "env", env={**bare, **given})
            assert [row for row in done.stdout.splitlines() if row.startswith("LC_")] == [
                f"{k}={v}" for k, v in given.items()
            ]
