"""How a program of ours starts a configured task: as the command line of `maintlock-wrap`, with all the task's settings."""

from __future__ import annotations

import os
import sys

from maintlock.errors import ConfigError
from maintlock.schema import dotted, escaped
from maintlock.settings import FOREVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from maintlock.settings import TaskSettings

SHORTEST_SECONDS = 1e-9


def wrap_arguments(
    task: TaskSettings, *, directory: str, ttl_seconds: float, reason: str, source: str | None = None
) -> list[str]:
    """Return the command line that runs a task under its lease, from the program to the last argument of the command.

    The settings are said as options and no configuration is read again: what was decided on is what is started. Further
    options go behind the program.
    """
    assert task.command is not None
    options: list[tuple[str, str | None]] = [
        ("--task", task.name),
        ("--lease", task.lease),
        ("--reason", reason),
        ("--source", source),
        ("--config", "none"),
        ("--state-dir", directory),
        ("--ttl", duration_argument(ttl_seconds)),
        ("--wait", None if task.wait is None else duration_argument(task.wait)),
        ("--defer-exit-code", None if task.defer_exit_code is None else str(task.defer_exit_code)),
        ("--max-runtime", None if task.max_runtime is None else duration_argument(task.max_runtime)),
        ("--stop-grace", None if task.stop_grace is None else duration_argument(task.stop_grace)),
    ]
    said = [f"{name}={value}" for name, value in options if value is not None]
    return [wrap_program(), *said, "--", *task.command]


def duration_argument(seconds: float) -> str:
    """Return seconds as the command line takes them: never with an exponent, and more than nothing never as nothing."""
    if seconds == FOREVER:
        return "forever"
    return f"{max(seconds, SHORTEST_SECONDS) if seconds else 0.0:.9f}".rstrip("0").rstrip(".")


def wrap_program() -> str:
    """Return where `maintlock-wrap` is."""
    return program("maintlock-wrap")


def program(name: str) -> str:
    """Return where a program of ours is: beside the interpreter or the program that runs, or else its name, for PATH."""
    for beside in (sys.executable, sys.argv[0]):
        path = os.path.join(os.path.dirname(os.path.abspath(beside)), name)
        if beside and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return name


def no_command(path: str | None, task: str) -> ConfigError:
    """Return the error to raise for a task that is to be started and has no command."""
    key = f"{dotted('tasks', task)}.command"
    return ConfigError(
        f"{escaped(path or 'maintlock.toml')}: {key}: found nothing, "
        'expected a program and its arguments, such as ["npm", "run", "build"]'
    )
