"""`maintlock completion`: what a shell needs to complete our command lines, made from the commands' own declarations.

What they are made of for bash and zsh is in `completion.bash` and `completion.zsh` beside this file. Names of tasks are asked
for when they are needed: `maintlock completion --names tasks` prints those of the configuration.
"""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS, ArgumentParser
from typing import TYPE_CHECKING

from maintlock import options
from maintlock.cli import COMMANDS, PROGRAMS, found
from maintlock.command import Command, read_config
from maintlock.errors import UsageError
from maintlock.model import record

if TYPE_CHECKING:
    from argparse import Action, Namespace
    from collections.abc import Iterable, Sequence

SHELLS = ("bash", "zsh", "fish")
NAMES = ("tasks", "npm-scripts")  # what `--names` prints of the configuration, for completion and maintlock-npm-shell
KINDS = {"task": "task", "state-dir": "dir", "config": "file", "outcome": "file", "package-json": "file"}
OPTION_CHOICES = {
    "hold-until": options.HOLD_UNTIL,
    "log-format": options.LOG_FORMATS,
    "source": options.SOURCES,
    "wait": ("forever",),
}


@record(frozen=True, kw_only=True)
class Option:
    """One option: `kind` of its value is one of `flag task dir file choice other`; `about` what it is for, or `""`."""

    names: tuple[str, ...]
    kind: str
    choices: tuple[str, ...] = ()
    about: str = ""


@record(frozen=True, kw_only=True)
class Words:
    """What may follow one subcommand: its options, and fixed words; `is_program` takes a command of its own at the end."""

    name: str
    about: str
    options: tuple[Option, ...]
    words: tuple[str, ...] = ()
    is_program: bool = False


def all_words() -> list[Words]:
    """Return what may follow each subcommand."""
    programs = [
        Words(name=name, about=about, options=tuple(_of_program(name)), is_program=name == "run")
        for name, (_, about) in PROGRAMS.items()
    ]
    return programs + [_of_command(name, found(place), about) for name, (place, about) in COMMANDS.items()]


def _of_program(name: str) -> Iterable[Option]:
    short = {long: f"-{letter}" for letter, long in options.SHORT.items()}
    program = options.HOLD if name == "hold" else options.WRAP
    for long in (*program.with_value, *program.flags):
        names = (*([short[long]] if long in short else []), f"--{long}")
        choices = OPTION_CHOICES.get(long, ())
        is_flag = long in program.flags
        yield Option(names=names, kind="flag" if is_flag else _kind(long, choices), choices=choices)


def _of_command(name: str, command: Command, about: str) -> Words:
    parser = ArgumentParser(prog=name)
    command.add_arguments(parser)
    actions = parser._actions  # noqa: SLF001  argparse has no other way to tell what was declared
    fixed = [str(word) for action in actions if not action.option_strings for word in action.choices or ()]
    shown = [action for action in actions if action.option_strings and action.help != SUPPRESS]
    return Words(name=name, about=about, options=tuple(map(_of_action, shown)), words=tuple(fixed))


def _of_action(action: Action) -> Option:
    long = action.option_strings[-1].lstrip("-")
    choices = tuple(map(str, action.choices or ()))
    kind = "flag" if action.nargs == 0 else _kind(long, choices)
    return Option(
        names=tuple(action.option_strings), kind=kind, choices=choices, about=(action.help or "").partition(": ")[0]
    )


def _kind(long: str, choices: Sequence[str]) -> str:
    return "choice" if choices else KINDS.get(long, "other")


# What bash and zsh have in common: two functions that are all `case` and `echo`


def _cases(known: Sequence[Words]) -> str:
    lines = ["_maintlock_follows() {  # the words that may follow a subcommand", "  case $1 in"]
    for words in known:
        names = [name for option in words.options for name in option.names]
        lines.append(f"    {words.name}) echo '{' '.join([*words.words, *names])}' ;;")
    lines += [
        "  esac",
        "}",
        "",
        "_maintlock_value() {  # what the value of an option is: kind, or the words to choose from",
    ]
    lines.append("  case $1:$2 in")
    for words in known:
        for option in words.options:
            if option.kind != "flag":
                pattern = "|".join(f"{words.name}:{name}" for name in option.names)
                lines.append(f"    {pattern}) echo '{' '.join(option.choices) or f'<{option.kind}>'}' ;;")
    return "\n".join([*lines, "  esac", "}"])


def as_bash(known: Sequence[Words]) -> str:
    """Return the script for bash."""
    return _filled("bash", known)


def as_zsh(known: Sequence[Words]) -> str:
    """Return the script for zsh."""
    return _filled("zsh", known)


def _filled(shell: str, known: Sequence[Words]) -> str:
    with open(os.path.join(os.path.dirname(__file__), f"completion.{shell}"), encoding="utf-8") as file:
        script = file.read()
    return script.replace("@cases@", _cases(known)).replace("@commands@", " ".join(words.name for words in known))


# fish, which wants to be told each word


def as_fish(known: Sequence[Words]) -> str:
    """Return the script for fish."""
    lines = [
        "# fish completion for maintlock and maintlock-wrap. Into ~/.config/fish/completions/maintlock.fish, or:",
        "# maintlock completion fish | source",
        "complete -c maintlock -f",
    ]
    for words in known:
        lines.append(f"complete -c maintlock -n __fish_use_subcommand -a {words.name} -d {_fish(words.about)}")
        where = f"-c maintlock -n '__fish_seen_subcommand_from {words.name}'"
        lines += [f"complete {where} {_fish_option(option)}" for option in words.options]
        lines += [f"complete {where} -a {word}" for word in words.words]
        if words.is_program:
            lines += [f"complete -c maintlock-wrap {_fish_option(option)}" for option in words.options]
            taking = " ".join(name for option in words.options if option.kind != "flag" for name in option.names)
            lines.append(f"complete -c maintlock-wrap -x -a '(__fish_complete_subcommand {taking})'")
            lines.append(f"complete {where} -x -a '(__fish_complete_subcommand --fcs-skip=2 {taking})'")
    return "\n".join(lines) + "\n"


def _fish_option(option: Option) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    values = {
        "flag": "",
        "task": "-x -a '(command maintlock completion --names tasks 2>/dev/null)'",
        "dir": "-x -a '(__fish_complete_directories)'",
        "file": "-r -F",
        "choice": f"-x -a {_fish(' '.join(option.choices))}",
        "other": "-x",
    }
    about = f"-d {_fish(option.about)}" if option.about else ""
    return " ".join(part for part in (*names, values[option.kind], about) if part)


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# The command


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", nargs="?", choices=SHELLS, help="bash, zsh or fish")
    parser.add_argument("--names", choices=NAMES, help=SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help=SUPPRESS)


def _run(said: Namespace) -> int:
    if said.names is not None:
        tasks = read_config(said).tasks.values()
        names = [task.name if said.names == "tasks" else task.npm_script for task in tasks]
        sys.stdout.writelines(f"{name}\n" for name in names if name is not None)
        return 0
    scripts = {"bash": as_bash, "zsh": as_zsh, "fish": as_fish}
    if said.shell is None:
        raise UsageError(f"for which shell? one of {', '.join(SHELLS)}; see: maintlock completion --help")
    sys.stdout.write(scripts[said.shell](all_words()))
    return 0


COMPLETION = Command(
    description="Print what a shell needs to complete subcommands, options and tasks of maintlock and maintlock-wrap.",
    epilog="""\
Examples
  eval "$(maintlock completion bash)"     # in ~/.bashrc
  eval "$(maintlock completion zsh)"      # in ~/.zshrc, after compinit
  maintlock completion fish > ~/.config/fish/completions/maintlock.fish
""",
    add_arguments=_arguments,
    run=_run,
)
