"""What may stand in `maintlock.toml`: for each table, its keys and the check of each key's value.

A check takes the parsed value and the file's directory, and returns the value typed or raises `WrongValueError`.
"""

from __future__ import annotations

import os

from maintlock.names import EXPECTED_LEASE, is_lease_name
from maintlock.settings import FOREVER
from maintlock.times import EXPECTED_DURATION, MAX_SECONDS, duration_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Check = Callable[[object, str], Any]

MAX_SHOWN = 60
HUGE = 1 << 64
SHORTEST_POLL_SECONDS = 0.01
MAX_EXIT_CODE = 255


class WrongValueError(Exception):
    """A value is not what is expected; `inside` leads from the checked key to `found`, the part of it at fault."""

    def __init__(self, expected: str, inside: str = "", found: object = None) -> None:
        """Say what is expected, and where inside an array or a table something else was found."""
        super().__init__(expected)
        self.expected, self.inside, self.found = expected, inside, found


# Words ---------------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Return text with everything escaped that could move a cursor or hide what it says."""
    return text if text.isprintable() else repr(text)[1:-1]


def found_text(value: object) -> str:
    """Name a value in a few printable characters; arrays and tables, however deep, by their kind only."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= MAX_SHOWN else value[: MAX_SHOWN - 3] + "...")
    if isinstance(value, (int, float)):
        return "a huge number" if HUGE < abs(value) < FOREVER else str(value)
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    return {dict: "a table", type(None): "nothing"}.get(type(value), "a date or time")


def dotted(table: str, key: str) -> str:
    """Return the path of a key in a table, the key quoted where TOML wants it quoted."""
    bare = key.isascii() and len(key) <= MAX_SHOWN and key.replace("_", "a").replace("-", "a").isalnum()
    text = key if bare else found_text(key)
    return f"{table}.{text}" if table else text


# Checks --------------------------------------------------------------------------------------------------------------


def _seconds(value: object, _directory: str) -> float:
    if isinstance(value, str):
        try:
            return duration_seconds(value)
        except ValueError as error:
            raise WrongValueError(str(error).removeprefix("expected ")) from None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS:
        return float(value)  # neither NaN nor an infinity compares that way
    raise WrongValueError(f"{EXPECTED_DURATION}, of at most 36500d")


def _positive_seconds(value: object, directory: str) -> float:
    seconds = _seconds(value, directory)
    if seconds == 0:
        raise WrongValueError("a duration above 0")
    return seconds


def _poll_seconds(value: object, directory: str) -> float:
    seconds = _seconds(value, directory)
    if seconds < SHORTEST_POLL_SECONDS:
        raise WrongValueError("a duration of at least 10ms")
    return seconds


def _wait_seconds(value: object, directory: str) -> float:
    if value == "forever":
        return FOREVER
    try:
        return _seconds(value, directory)
    except WrongValueError as wrong:
        raise WrongValueError(f'"forever", or {wrong.expected}') from None


def _boolean(value: object, _directory: str) -> bool:
    if not isinstance(value, bool):
        raise WrongValueError("true or false")
    return value


def _exit_code(value: object, _directory: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_EXIT_CODE:
        raise WrongValueError(f"an integer from 0 to {MAX_EXIT_CODE}")
    return value


def _lease_name(value: object, _directory: str) -> str:
    if not isinstance(value, str) or not is_lease_name(value):
        raise WrongValueError(f"a lease's name: {EXPECTED_LEASE}")
    return value


def _argument(value: object, _directory: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise WrongValueError("a string without NUL")
    return value


def _text(value: object, _directory: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise WrongValueError("a string that is not empty and has no NUL")
    return value


def _base_name(value: object, directory: str) -> str:
    name = _text(value, directory)
    if "/" in name:
        raise WrongValueError("a base name, without /")
    return name


def _array(value: object, directory: str, check: Callable[[object, str], str], expected: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise WrongValueError(expected)
    items = []
    for index, item in enumerate(value):
        try:
            items.append(check(item, directory))
        except WrongValueError as wrong:
            raise WrongValueError(wrong.expected, f"[{index}]", item) from None
    return tuple(items)


def _command(value: object, directory: str) -> tuple[str, ...]:
    command = _array(value, directory, _argument, 'a program and its arguments, such as ["npm", "run", "build"]')
    if not command[0]:
        raise WrongValueError("a program", "[0]", "")
    return command


def _environment(value: object, _directory: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise WrongValueError("a table of strings")
    for name, text in value.items():
        if not name.isascii() or not name.isidentifier() or name.startswith("MAINTLOCK_"):
            expected = "a name of A-Z a-z 0-9 _, not beginning with a digit or with MAINTLOCK_"
            raise WrongValueError(expected, f".{dotted('', name)}", name)
        if not isinstance(text, str) or "\0" in text:
            raise WrongValueError("a string without NUL", f".{dotted('', name)}", text)
    return value


def _anchored(value: object, directory: str) -> tuple[str, str]:
    """Return the directory that a path starts from, and the rest of it; `~` is the home directory."""
    path = _text(value, directory)
    if not path.startswith("~"):
        return directory, path
    head, _, rest = path.partition("/")
    home = os.path.expanduser("~")
    if head != "~" or not os.path.isabs(home):
        raise WrongValueError("a path (~/ begins one in your home directory, ./~ one with a name like this)")
    return home, rest.lstrip("/")


def _path(value: object, directory: str) -> str:
    return os.path.normpath(os.path.join(*_anchored(value, directory)))


def _paths(value: object, directory: str) -> tuple[str, ...]:
    return _array(value, directory, _path, "an array of at least one path")


def _pattern(value: object, directory: str) -> str:
    """Make a glob pattern absolute; what would be special in the name of the directory before it is escaped."""
    anchor, pattern = _anchored(value, directory)
    literal = "".join([f"[{c}]" if c in "*?[" else c for c in anchor])
    return os.path.normpath(os.path.join(literal, pattern))


def _table(value: object, _directory: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise WrongValueError("a table")
    return value


# Tables --------------------------------------------------------------------------------------------------------------

TOP: Mapping[str, Check] = {
    "state_dir": _path,
    "poll_interval": _poll_seconds,
    "starved_after": _seconds,
    "history": _positive_seconds,
    "lease": _table,
    "tasks": _table,
    "daemons": _table,
    "repo_sync": _table,
}
LEASE: Mapping[str, Check] = {"ttl": _positive_seconds}
TASK: Mapping[str, Check] = {
    "command": _command,
    "npm_script": _text,
    "interval": _seconds,
    "heavy": _boolean,
    "lease": _lease_name,
    "max_runtime": _positive_seconds,
    "wait": _wait_seconds,
    "defer_exit_code": _exit_code,
    "stop_grace": _seconds,
    "ttl": _positive_seconds,
    "cwd": _path,
    "env": _environment,
    "rest": _seconds,
    "match": _base_name,
    "inbox": _pattern,
}
DAEMON: Mapping[str, Check] = {"command": _command, "cooldown": _seconds, "cwd": _path, "env": _environment}
REPO_SYNC: Mapping[str, Check] = {"roots": _paths, "then": _text}
