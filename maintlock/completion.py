"""`maintlock completion`: what a shell needs to complete our command lines, made from the commands' own declarations.

Names of tasks are asked for when they are needed: `maintlock completion tasks` prints those of the configuration.
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser
from typing import TYPE_CHECKING

from maintlock import options
from maintlock.cli import COMMANDS, PROGRAMS, found
from maintlock.command import Command, read_config
from maintlock.model import record

if TYPE_CHECKING:
    from argparse import Action, Namespace
    from collections.abc import Iterable, Sequence

SHELLS = ("bash", "zsh", "fish")
TASKS = "tasks"
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
    fixed = [
        str(word) for action in actions if not action.option_strings for word in action.choices or () if word != TASKS
    ]
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


BASH = """\
# bash completion for maintlock and maintlock-wrap. In ~/.bashrc: eval "$(maintlock completion bash)"

{cases}

_maintlock() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command=run i=1 value
  COMPREPLY=()
  if [[ ${{COMP_WORDS[0]##*/}} != maintlock-wrap ]]; then
    if ((COMP_CWORD == 1)); then
      COMPREPLY=($(compgen -W '{commands} --help --version' -- "$cur"))
      return
    fi
    command=${{COMP_WORDS[1]}} i=2
  fi
  if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  if [[ $command == run ]]; then  # from where on is it another program's command line?
    while ((i < COMP_CWORD)); do
      case ${{COMP_WORDS[i]}} in
        --) ((i++)); _maintlock_other "$i"; return ;;
        -*) [[ -z $(_maintlock_value run "${{COMP_WORDS[i]}}") ]] || {{ [[ ${{COMP_WORDS[i+1]}} == = ]] && ((i++)); ((i++)); }} ;;
        *) _maintlock_other "$i"; return ;;
      esac
      ((i++))
    done
    if ((i == COMP_CWORD)) && [[ $cur != -* ]]; then _maintlock_other "$i"; return; fi
  fi
  value=$(_maintlock_value "$command" "$prev")
  case $value in
    '<task>') COMPREPLY=($(compgen -W "$(command maintlock completion tasks 2>/dev/null)" -- "$cur")) ;;
    '<dir>') COMPREPLY=($(compgen -d -- "$cur")) ;;
    '<file>') COMPREPLY=($(compgen -f -- "$cur")) ;;
    '<other>') ;;
    '') COMPREPLY=($(compgen -W "$(_maintlock_follows "$command")" -- "$cur")) ;;
    *) COMPREPLY=($(compgen -W "$value" -- "$cur")) ;;
  esac
}}

_maintlock_other() {{  # complete the command line that begins at word $1
  if declare -F _command_offset >/dev/null; then
    _command_offset "$1"
  elif ((COMP_CWORD == $1)); then
    COMPREPLY=($(compgen -c -- "$cur"))
  else
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}}

complete -o filenames -F _maintlock maintlock maintlock-wrap
"""

ZSH = """\
#compdef maintlock maintlock-wrap
# zsh completion for maintlock and maintlock-wrap. In ~/.zshrc, after compinit: eval "$(maintlock completion zsh)"

{cases}

_maintlock() {{
  local command=run value prev=${{words[CURRENT-1]}}
  integer i=2
  if [[ ${{words[1]:t}} != maintlock-wrap ]]; then
    if ((CURRENT == 2)); then
      compadd -- {commands} --help --version
      return
    fi
    command=${{words[2]}} i=3
  fi
  if [[ $command == run ]]; then  # from where on is it another program's command line?
    while ((i < CURRENT)); do
      case ${{words[i]}} in
        (--) ((i++)); _maintlock_other; return ;;
        (-*) [[ -z $(_maintlock_value run "${{words[i]}}") ]] || ((i++)) ;;
        (*) _maintlock_other; return ;;
      esac
      ((i++))
    done
    if ((i == CURRENT)) && [[ ${{words[i]}} != -* ]]; then _maintlock_other; return; fi
  fi
  if [[ ${{words[CURRENT]}} == --*=* ]]; then
    prev=${{words[CURRENT]%%=*}}
    compset -P '*='
  fi
  value=$(_maintlock_value "$command" "$prev")
  case $value in
    ('<task>') compadd -- ${{(f)"$(command maintlock completion tasks 2>/dev/null)"}} ;;
    ('<dir>') _files -/ ;;
    ('<file>') _files ;;
    ('<other>') ;;
    ('') compadd -- ${{=$(_maintlock_follows "$command")}} ;;
    (*) compadd -- ${{=value}} ;;
  esac
}}

_maintlock_other() {{  # complete the command line that begins at word $i
  shift $((i - 1)) words
  ((CURRENT -= i - 1))
  _normal
}}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _maintlock "$@"; else compdef _maintlock maintlock maintlock-wrap; fi
"""


def as_bash(known: Sequence[Words]) -> str:
    """Return the script for bash."""
    return BASH.format(cases=_cases(known), commands=" ".join(words.name for words in known))


def as_zsh(known: Sequence[Words]) -> str:
    """Return the script for zsh."""
    return ZSH.format(cases=_cases(known), commands=" ".join(words.name for words in known))


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
        "task": "-x -a '(command maintlock completion tasks 2>/dev/null)'",
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
    parser.add_argument("shell", metavar="SHELL", choices=(*SHELLS, TASKS), help="bash, zsh or fish")
    parser.add_argument("--config", metavar="FILE", help=SUPPRESS)


def _run(said: Namespace) -> int:
    if said.shell == TASKS:
        sys.stdout.writelines(f"{name}\n" for name in read_config(said).tasks)
        return 0
    scripts = {"bash": as_bash, "zsh": as_zsh, "fish": as_fish}
    sys.stdout.write(scripts[said.shell](all_words()))
    return 0


COMPLETION = Command(
    description="Print what a shell needs to complete subcommands, options and tasks of maintlock and maintlock-wrap.",
    epilog="""\
examples:
  eval "$(maintlock completion bash)"                                      in ~/.bashrc
  eval "$(maintlock completion zsh)"                                       in ~/.zshrc, after compinit
  maintlock completion fish > ~/.config/fish/completions/maintlock.fish
""",
    add_arguments=_arguments,
    run=_run,
)
