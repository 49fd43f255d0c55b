"""The command lines of `maintlock-wrap` and `maintlock hold`.

Parsed here rather than by argparse, which alone would add 0.8 of an interpreter start to every guarded job. The short
options mean what they mean in flock(1).
"""

from __future__ import annotations

from maintlock import names
from maintlock.errors import UsageError
from maintlock.model import record
from maintlock.redact import printable, storable
from maintlock.settings import FOREVER
from maintlock.times import EXPECTED_DURATION, duration_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SOURCES = ("npm", "orchestrator", "library", "cli")
HOLD_UNTIL = ("session", "main", "tree")
LOG_FORMATS = ("text", "json")


class Options:
    """What the command line says; None is "not said"."""

    def __init__(self) -> None:
        self.task: str | None = None
        self.lease: str | None = None
        self.owner: str | None = None
        self.reason: str | None = None
        self.source: str | None = None
        self.wait: float | None = None  # infinity: for ever
        self.no_wait = False
        self.defer_exit_code: int | None = None
        self.exec = False
        self.close = False
        self.hold_until: str | None = None
        self.max_runtime: float | None = None
        self.stop_grace: float | None = None
        self.ttl: float | None = None
        self.outcome: str | None = None
        self.log_format = "text"
        self.quiet = False
        self.verbose = False
        self.state_dir: str | None = None
        self.config: str | None = None
        self.allow_network_fs = False
        self.help = False
        self.version = False
        self.fd: int | None = None  # of `maintlock hold` only
        self.command: list[str] = []


def _task(text: str) -> str:
    if not names.is_task_name(text):
        raise ValueError(f"expected {names.EXPECTED_TASK}")
    return text


def _lease(text: str) -> str:
    if not names.is_lease_name(text):
        raise ValueError(f"expected {names.EXPECTED_LEASE}")
    return text


def _path(text: str) -> str:
    if not text:
        raise ValueError("expected a path")
    return text


def _descriptor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) > 2):
        raise ValueError("expected the number of an open descriptor, 3 or more")
    return int(text)


def exit_code(text: str) -> int:
    """Return an exit code, 0 to 255.

    Raises:
        ValueError: It is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 255):
        raise ValueError("expected a number from 0 to 255")
    return int(text)


def wait_seconds(text: str) -> float:
    """Return a time to wait; infinity for `forever`.

    Raises:
        ValueError: It is none.
    """
    try:
        return FOREVER if text == "forever" else duration_seconds(text)
    except ValueError:
        raise ValueError(f"expected {EXPECTED_DURATION}, or forever") from None


def _some_seconds(text: str) -> float:
    seconds = duration_seconds(text)
    if seconds <= 0:
        raise ValueError("expected more than 0")
    return seconds


def _one_of(*allowed: str) -> Callable[[str], str]:
    def chosen(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return text

    return chosen


WITH_VALUE: dict[str, Callable[[str], object]] = {
    "task": _task,
    "lease": _lease,
    "owner": storable,
    "reason": storable,
    "source": _one_of(*SOURCES),
    "wait": wait_seconds,
    "defer-exit-code": exit_code,
    "hold-until": _one_of(*HOLD_UNTIL),
    "max-runtime": _some_seconds,
    "stop-grace": duration_seconds,
    "ttl": _some_seconds,
    "outcome": _path,
    "log-format": _one_of(*LOG_FORMATS),
    "state-dir": _path,
    "config": _path,
}
FLAGS = ("no-wait", "exec", "close", "quiet", "verbose", "allow-network-fs", "help", "version")
OF_COMMAND = frozenset({"exec", "close", "max-runtime", "stop-grace"})
SHORT = {
    "t": "task",
    "n": "no-wait",
    "w": "wait",
    "E": "defer-exit-code",
    "F": "exec",
    "o": "close",
    "q": "quiet",
    "v": "verbose",
    "h": "help",
    "V": "version",
}


@record(frozen=True, kw_only=True)
class Program:
    """What one program takes: its name, the options with a value and what converts each, those without, by long name."""

    name: str
    with_value: Mapping[str, Callable[[str], object]]
    flags: tuple[str, ...]


WRAP = Program(name="maintlock-wrap", with_value=WITH_VALUE, flags=FLAGS)
HOLD = Program(
    name="maintlock hold",
    with_value={name: kind for name, kind in WITH_VALUE.items() if name not in OF_COMMAND} | {"fd": _descriptor},
    flags=tuple(name for name in FLAGS if name not in OF_COMMAND),
)


def parse(argv: Sequence[str], program: Program = WRAP, options: Options | None = None) -> Options:
    """Return what a command line says, in `options` if given: of a wrong one, they have what was understood before.

    Options end at `--` or at the first word that is not an option.

    Raises:
        UsageError: An option is unknown, lacks its value, or has an impossible one.
    """
    options = Options() if options is None else options
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            _long(program, options, word[2:], rest)
        else:
            _short(program, options, word[1:], rest)
    options.command = rest
    return options


def _long(program: Program, options: Options, word: str, rest: list[str]) -> None:
    name, equals, value = word.partition("=")
    if name in program.with_value:
        _set(options, name, value if equals else _next(program, f"--{name}", rest), program.with_value[name])
    elif name not in program.flags:
        raise _unknown(program, f"--{name}", name)
    elif equals:
        raise UsageError(f"--{name} takes no value; see: {program.name} --help")
    else:
        _flag(options, name)


def _short(program: Program, options: Options, letters: str, rest: list[str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        name = SHORT.get(letter, "")
        if name in program.with_value:
            _set(options, name, letters or _next(program, f"-{letter}", rest), program.with_value[name])
            return
        if name not in program.flags:
            raise _unknown(program, f"-{letter}", name)
        _flag(options, name)


def _unknown(program: Program, shown: str, name: str) -> UsageError:
    if name in OF_COMMAND:
        return UsageError(f"{shown} is about a command, and {program.name} runs none; see: {program.name} --help")
    return UsageError(f"unknown option {printable(shown, 42)}; see: {program.name} --help")


def _next(program: Program, shown: str, rest: list[str]) -> str:
    if not rest or rest[0] == "--":
        raise UsageError(f"{shown} needs a value; see: {program.name} --help")
    return rest.pop(0)


def _flag(options: Options, name: str) -> None:
    setattr(options, name.replace("-", "_"), True)
    if name == "no-wait":
        options.wait = None


def _set(options: Options, name: str, text: str, converted: Callable[[str], object]) -> None:
    try:
        setattr(options, name.replace("-", "_"), converted(text))
    except ValueError as error:
        raise UsageError(f"--{name} {printable(text, 80)!r}: {error}") from None
    if name == "wait":
        options.no_wait = False


def check_together(options: Options) -> None:
    """Refuse options that exclude one another.

    Raises:
        UsageError: With `--exec` no process of ours stays to do what another option asks for.
    """
    if not options.command:
        raise UsageError("no command given; usage: maintlock-wrap [options] -- COMMAND [ARG…]")
    if not options.command[0]:
        raise UsageError("the command is empty; usage: maintlock-wrap [options] -- COMMAND [ARG…]")
    if not options.exec:
        return
    if options.close:
        raise UsageError("--exec holds the lease by the descriptor that --close takes away; give one of the two")
    excluded = {
        "--outcome": options.outcome is not None,
        "--max-runtime": options.max_runtime is not None,
        "--stop-grace": options.stop_grace is not None,
        "--hold-until tree": options.hold_until == "tree",
    }
    for name, is_given in excluded.items():
        if is_given:
            raise UsageError(f"--exec leaves no process of ours behind to do what {name} asks for; give one of the two")
