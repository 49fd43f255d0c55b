"""The command line of `maintlock-wrap`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maintlock
from maintlock import options
from maintlock.errors import UsageError
from tests.headless import Headless, headless_in
from tests.support import WRAP

SAID = {
    "task", "lease", "owner", "reason", "source", "wait", "no_wait", "defer_exit_code", "exec", "close", "hold_until",
    "max_runtime", "stop_grace", "ttl", "outcome", "log_format", "quiet", "verbose", "state_dir", "config",
    "allow_network_fs", "help", "version",
}  # fmt: skip
DEFAULTS = {name: getattr(options.Options(), name) for name in SAID}


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Headless]:
    """Give a lock in a state directory of the test's own."""
    with headless_in(tmp_path / "state") as found:
        yield found


def said(*argv: str) -> dict[str, Any]:
    """Return what a command line sets, defaults left out."""
    parsed = options.parse([*argv, "--", "job", "-n"])
    assert parsed.command == ["job", "-n"]
    return {name: getattr(parsed, name) for name in SAID if getattr(parsed, name) != DEFAULTS[name]}


def refusal(*argv: str) -> str:
    """Return what is said against a command line."""
    with pytest.raises(UsageError) as caught:
        options.parse(argv)
    return str(caught.value)


VALUES: list[tuple[str, str, str, Any]] = [
    ("-t", "--task", "ai:sync-kb", "ai:sync-kb"),
    ("", "--lease", "heavy", "heavy"),
    ("", "--owner", "Anna <a@b>", "Anna <a@b>"),
    ("", "--reason", "", ""),
    ("", "--source", "orchestrator", "orchestrator"),
    ("-w", "--wait", "90s", 90.0),
    ("-w", "--wait", "forever", float("inf")),
    ("-w", "--wait", "0", 0.0),
    ("-E", "--defer-exit-code", "0", 0),
    ("-E", "--defer-exit-code", "255", 255),
    ("", "--hold-until", "main", "main"),
    ("", "--hold-until", "tree", "tree"),
    ("", "--max-runtime", "2h", 7200.0),
    ("", "--stop-grace", "0", 0.0),
    ("", "--ttl", "1d", 86400.0),
    ("", "--outcome", "-", "-"),
    ("", "--log-format", "json", "json"),
    ("", "--state-dir", "--odd", "--odd"),
    ("", "--config", "none", "none"),
]
FLAGS = [
    ("-n", "--no-wait"), ("-F", "--exec"), ("-o", "--close"), ("-q", "--quiet"), ("-v", "--verbose"),
    ("", "--allow-network-fs"), ("-h", "--help"), ("-V", "--version"),
]  # fmt: skip


@pytest.mark.parametrize(("short", "long", "text", "value"), VALUES)
def test_options_with_a_value(short: str, long: str, text: str, value: object) -> None:
    """Each option with a value takes it as the next word, after `=`, and a short one in the same word (R3)."""
    name = long.removeprefix("--").replace("-", "_")
    ways = [[long, text], [f"{long}={text}"]] + ([[short, text], [short + text]] if short else [])
    for way in ways:
        assert said(*way) == {name: value}


@pytest.mark.parametrize(("short", "long"), FLAGS)
def test_flags(short: str, long: str) -> None:
    """Each flag is set by its long and its short form, and takes no value (R3)."""
    name = long.removeprefix("--").replace("-", "_")
    for way in filter(None, (short, long)):
        assert said(way) == {name: True}
    assert "takes no value" in refusal(f"{long}=1", "--", "x")
    assert "takes no value" in refusal(f"{long}=", "--", "x")


def test_every_option_is_covered_here() -> None:
    """No option is without a test of its own (R3)."""
    tested = {long.removeprefix("--") for _, long, *_ in VALUES} | {long.removeprefix("--") for _, long in FLAGS}
    assert tested == {*options.WITH_VALUE, *options.FLAGS}
    assert {name.replace("-", "_") for name in tested} == SAID


def test_short_options_share_a_word() -> None:
    """Short options may be written together, the last with its value, as with flock(1) (R3)."""
    assert said("-noqt", "kbSync") == {"no_wait": True, "close": True, "quiet": True, "task": "kbSync"}
    assert said("-vw10m") == {"verbose": True, "wait": 600.0}
    assert said("-ntx") == {"no_wait": True, "task": "x"}
    assert "--wait 'n'" in refusal("-wn", "--", "x")
    assert "unknown option -z" in refusal("-nz", "--", "x")
    assert "-t needs a value" in refusal("-nt")


def test_the_last_word_on_waiting_counts() -> None:
    """Of -n and -w the later one decides, so that an alias can be overruled (R3)."""
    assert said("-w", "5", "-n") == {"no_wait": True}
    assert said("-n", "-w", "5") == {"wait": 5.0}
    assert said("-t", "a", "-t", "b") == {"task": "b"}


def test_where_options_end() -> None:
    """Options end at `--` or at the first word that is none; what follows is the command, untouched (R3)."""
    for argv, command in (
        (["-t", "x", "--", "--", "-n"], ["--", "-n"]),
        (["-t", "x", "echo", "-n", "--", "a"], ["echo", "-n", "--", "a"]),
        (["-t", "x", "-", "a"], ["-", "a"]),
        (["-t", "x"], []),
        (["--"], []),
        (["-t", "x", "", "a"], ["", "a"]),
        (["-t", "x", "--", "--help"], ["--help"]),
    ):
        parsed = options.parse(argv)
        assert parsed.command == command
        assert not parsed.help


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1.5s", 1.5), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    """A duration is a number with a unit or of seconds (R2)."""
    assert options.parse(["-w", text]).wait == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+1", "1e3", "1 h", "h", "1w", "1H", "0x10", "1h30m", "nan", "inf", "\u0661s", "9" * 70, "36501d"],
)
@pytest.mark.parametrize("name", ["wait", "max-runtime", "stop-grace", "ttl"])
def test_what_is_no_duration(name: str, text: str) -> None:
    """What is no duration, or is longer than a century, is refused with what is expected (R2)."""
    assert refusal(f"--{name}={text}", "--", "x").startswith(f"--{name} {text[:80]!r}: expected ")


@pytest.mark.parametrize("name", ["max-runtime", "ttl"])
def test_no_time_at_all(name: str) -> None:
    """A limit of nothing is refused: it would stop every job (L4)."""
    assert "expected more than 0" in refusal(f"--{name}=0ms", "--", "x")


@pytest.mark.parametrize("text", ["", "256", "-1", "+1", " 1", "1 ", "0001", "one", "1.0", "\u0661"])
def test_what_is_no_exit_code(text: str) -> None:
    """An exit code is a number from 0 to 255 (L3)."""
    assert "expected a number from 0 to 255" in refusal(f"-E{text}" if text else "--defer-exit-code=", "--", "x")


@pytest.mark.parametrize("word", ["--unknown\x1b[31m", "--a\nb", "-\x07", "--task\udcff", "--" + "x" * 10000])
def test_messages_quote_hostile_words_harmlessly(word: str) -> None:
    """A word that is no option is told without its control characters, on one line, and shortened (R9)."""
    message = refusal(word, "--", "x")
    assert message.isprintable() and len(message) < 200


# Of any characters at all they would cost a table of all of them.
LETTERS = "-=tnwEF019.hms \t\n\0\x1b\x7f\xe4\u0661\u202e\u2028\udcff\U0001f512"
WORDS = st.lists(st.sampled_from(LETTERS), max_size=12).map("".join)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        WORDS | st.sampled_from(["-t", "-w", "-n", "--", "-E", "--ttl", "--task=x", "x", "-F"]),
        max_size=8,
    )
)
def test_any_command_line_is_understood_or_refused(argv: list[str]) -> None:
    """Whatever the words are, the answer is options or a usage error of one printable line, nothing else (R3)."""
    said = ""
    try:
        options.check_together(options.parse(argv))
    except UsageError as error:
        said = str(error)
    assert said.isprintable()


# Help and version


def test_help_names_every_option(lock: Headless) -> None:
    """--help lists each option, long and short, has examples, and fits 80 columns; it needs neither task nor lock (R3)."""
    done = lock.wrap("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in (*options.WITH_VALUE, *options.FLAGS):
        assert f"--{name}" in done.stdout
    for letter, name in options.SHORT.items():
        assert f"-{letter}, --{name}" in done.stdout or name in {"help", "version"}
    assert "Examples\n  maintlock-wrap -t backup -- " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not lock.directory.exists()


def test_help_tells_every_exit_code(lock: Headless) -> None:
    """--help tells what each exit code of this program means (R3)."""
    text = lock.wrap("-h").stdout
    for code in ("0", "64", "70", "73", "77", "78", "124", "126", "127", "128+n"):
        assert code in text.partition("Exit codes")[2]


def test_a_task_that_is_not_heavy_runs_beside_one_that_is(lock: Headless, tmp_path: Path) -> None:
    """One line of configuration takes a task out of the gate, also where its script is guarded (L14)."""
    configuration = tmp_path / "maintlock.toml"
    configuration.write_text("[tasks.golden-path]\nheavy = false\n")
    lock.hold("backup")
    done = lock.wrap("-t", "golden-path", "--config", str(configuration), "--", "echo", "ran")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
    assert lock.status()["holder"]["task"] == "backup"


def test_the_examples_of_the_help_are_understood(lock: Headless) -> None:
    """Each example command line of --help parses (R3)."""
    examples = [line for line in lock.wrap("--help").stdout.splitlines() if line.startswith("  maintlock-wrap -")]
    assert len(examples) >= 2
    for example in examples:
        options.check_together(options.parse(example.split()[1:]))


def test_version(lock: Headless) -> None:
    """--version prints name and version, and wins over a missing command (R3)."""
    for word in ("--version", "-V"):
        done = lock.wrap(word)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"maintlock-wrap {maintlock.__version__}\n", "")


@pytest.mark.parametrize(("redirection", "code"), [(">&-", 73), (">/dev/full", 73), ("", 128 + signal.SIGPIPE)])
def test_help_to_nobody(lock: Headless, redirection: str, code: int) -> None:
    """--help to a closed, full or abandoned output is one line at most, no traceback (R9)."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        ["sh", "-c", f'"$0" --help {redirection}', WRAP], env=lock.env(), stdout=write_end, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    os.close(write_end)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == (code == 73)
