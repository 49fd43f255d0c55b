"""What the subcommands of `maintlock` have in common: how they are described, and the options that say which lease."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from typing import TYPE_CHECKING

from maintlock import config, paths
from maintlock.errors import UsageError
from maintlock.model import record
from maintlock.names import DEFAULT_LEASE, EXPECTED_LEASE, EXPECTED_TASK, is_lease_name, is_task_name
from maintlock.times import duration_seconds

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from _typeshed import SupportsWrite

    from maintlock.config import Config
    from maintlock.paths import Places

HELP_WIDTH = 80
HEADINGS = {"usage: ": "Usage: ", "\npositional arguments:\n": "\nArguments\n", "\noptions:\n": "\nOptions\n"}


@record(frozen=True, kw_only=True)
class Command:
    """One subcommand. `run` gets what `add_arguments` has declared, and returns the exit code."""

    description: str
    epilog: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


class Help(RawDescriptionHelpFormatter):
    """How help is laid out: 80 columns; paragraphs are filled, and blocks with indented lines stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=HELP_WIDTH, max_help_position=24)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        from textwrap import fill

        blocks = text.strip().split("\n\n")
        return "\n\n".join(
            block if "\n " in block else fill(block, width, initial_indent=indent, break_on_hyphens=False)
            for block in blocks
        )


class Parser(ArgumentParser):
    """Argparse with our headings, our exit code for a wrong command line, and our one line on stderr."""

    def format_help(self) -> str:
        """Return the help, with headings as in all our programs."""
        text = super().format_help()
        for theirs, ours in HEADINGS.items():
            text = text.replace(theirs, ours, 1)
        return text

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help; argparse's own hides a failure to write it."""
        (sys.stdout if file is None else file).write(self.format_help())

    def error(self, message: str) -> NoReturn:
        """Raise what the edge of the program knows how to tell."""
        raise UsageError(f"{message}; see: {self.prog} --help")


def parsed(name: str, command: Command, argv: Sequence[str]) -> Namespace:
    """Return what a command line says.

    Raises:
        UsageError: It says something impossible.
        SystemExit: It asked for help, which has been printed.
    """
    parser = Parser(
        prog=f"maintlock {name}",
        description=command.description,
        epilog=command.epilog,
        formatter_class=Help,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    end = argv.index("--") if "--" in argv else len(argv)
    said = parser.parse_intermixed_args(list(argv[:end]))
    # Before `--` options and names may be mixed, after it all are names: argparse can do either, but not both at once.
    behind = vars(parser.parse_args(list(argv[end:]))) if argv[end:] else {}
    for place, value in behind.items():
        if value != parser.get_default(place):
            setattr(said, place, [*getattr(said, place), *value] if isinstance(value, list) else value)
    return said


def add_places(parser: ArgumentParser, *, lease_help: str = "which lease (heavy-maintenance)") -> None:
    """Declare `--lease --state-dir --config`."""
    parser.add_argument("--lease", metavar="NAME", type=lease_name, help=lease_help)
    add_state(parser)


def add_state(parser: ArgumentParser) -> None:
    """Declare `--state-dir --config`."""
    parser.add_argument("--state-dir", metavar="DIR", type=_path, help="where the lock lives")
    parser.add_argument("--config", metavar="FILE", type=_path, help="maintlock.toml to use, or: none")


def read_config(said: Namespace) -> Config:
    """Return the configuration.

    Raises:
        ConfigError: It is invalid.
        RefusedError: Somebody else could have written it.
    """
    return config.load(config.find(said.config, os.environ, paths.working_directory()))


def read_places(said: Namespace, settings: Config | None = None) -> Places:
    """Return where the lease lives; nothing is made there. Raises what `read_config` does."""
    settings = read_config(said) if settings is None else settings
    directory = paths.state_directory(said.state_dir, os.environ, settings.state_dir)
    return paths.Places(directory=directory, lease=said.lease or DEFAULT_LEASE)


def lease_name(text: str) -> str:
    """Return the name of a lease, for argparse."""
    if not is_lease_name(text):
        raise ArgumentTypeError(f"{text!r}: expected {EXPECTED_LEASE}")
    return text


def task_name(text: str) -> str:
    """Return the name of a task, for argparse."""
    if not is_task_name(text):
        raise ArgumentTypeError(f"{text!r}: expected {EXPECTED_TASK}")
    return text


def seconds(text: str) -> float:
    """Return a duration in seconds, for argparse."""
    try:
        return duration_seconds(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r}: {error}") from None


def count(text: str) -> int:
    """Return a number of things, for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ArgumentTypeError(f"{text!r}: expected a number, 0 or more")
    return int(text)


def _path(text: str) -> str:
    if not text:
        raise ArgumentTypeError("expected a path")
    return text
