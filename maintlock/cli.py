"""`maintlock`: a table of subcommands.

Only the subcommand that is asked for is imported, and none of this for those that are programs of their own.
"""

from __future__ import annotations

import sys

from maintlock.errors import EXIT_SIGNAL_BASE, UnavailableError, UsageError
from maintlock.redact import printable
from maintlock.voice import Voice, give_up_stdout, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from maintlock.command import Command

SIGINT = 2
USAGE = "usage: maintlock COMMAND [options]; see: maintlock --help"

# name: where its `main` is, and what it does. These read their command lines themselves, and start without argparse.
PROGRAMS = {
    "run": ("maintlock.wrap:main", "run a command under the lease, as maintlock-wrap does"),
    "hold": ("maintlock.coprocess:main", "hold the lease for a long-lived program"),
}

# name: where its `command.Command` is, and what it does
COMMANDS = {
    "status": ("maintlock.show:STATUS", "who has the lease, who waits, what collides"),
    "history": ("maintlock.show:HISTORY", "what happened: grants, deferrals, crashes"),
    "tasks": ("maintlock.health:TASKS", "how each task stands"),
    "health": ("maintlock.health:HEALTH", "whether all is well, as an exit code"),
    "orchestrate": ("maintlock.orchestrate:ORCHESTRATE", "start due tasks, keep daemons alive"),
    "doctor": ("maintlock.doctor:DOCTOR", "what is wrong here, and the command that mends it"),
    "guard": ("maintlock.npm.guard:GUARD", "put npm scripts behind the lease, or take them back"),
    "init": ("maintlock.npm.starter:INIT", "write a first maintlock.toml"),
    "should-yield": ("maintlock.yielding:SHOULD_YIELD", "whether a job with checkpoints should end early"),
    "stop": ("maintlock.stop:STOP", "end the job that keeps the lease"),
    "repo-sync": ("maintlock.reposync.command:REPO_SYNC", "pull repositories, and run what that makes necessary"),
    "completion": ("maintlock.completion:COMPLETION", "print shell completion (bash, zsh, fish)"),
}

ABOUT = """\
Usage: maintlock COMMAND [options]

One heavy maintenance job at a time, and everybody can see whose turn it is.

Commands
  {commands}

Each command has its own --help; --version prints the version.

Examples
  maintlock run -t backup -- node buildScripts/ai/backup.mjs
  maintlock status
  maintlock history --since 1d --event deferred
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program, and return its exit code; what a person must hear of is on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in PROGRAMS:
        program: Callable[[Sequence[str]], int] = found(PROGRAMS[argv[0]][0])
        return program(argv[1:])
    voice = Voice()
    try:
        return _to_the_end(argv)
    except KeyboardInterrupt:
        give_up_stdout()
        return EXIT_SIGNAL_BASE + SIGINT
    except Exception as error:  # noqa: BLE001  this is the edge
        return report(error, voice)


def _to_the_end(argv: Sequence[str]) -> int:
    """Run the command, and see what it printed through to the reader."""
    if sys.stdout is None:
        raise UnavailableError("standard output is closed; there is nowhere to print to")
    if isinstance(getattr(sys.stdout, "errors", None), str):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # it is a TextIOWrapper then
    try:
        code = _run(argv)
    except SystemExit as end:  # argparse, after printing help
        code = end.code if isinstance(end.code, int) else 0
    sys.stdout.flush()
    return code


def _run(argv: Sequence[str]) -> int:
    if not argv:
        raise UsageError(USAGE)
    name = argv[0]
    if name in {"-h", "--help", "help"}:
        sys.stdout.write(about())
        return 0
    if name in {"-V", "--version"}:
        from maintlock import __version__

        sys.stdout.write(f"maintlock {__version__}\n")
        return 0
    if name not in COMMANDS:
        raise UsageError(_unknown(name))
    from maintlock.command import parsed

    command: Command = found(COMMANDS[name][0])
    return command.run(parsed(name, command, argv[1:]))


def found(place: str) -> Any:
    """Return what a place names, `module:name`; without importlib, which a guarded job would wait for."""
    module, _, name = place.partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    shown = printable(name, 40)
    if name.startswith("-"):
        return f"unknown option {shown}; {USAGE}"
    near = get_close_matches(name[:40], [*PROGRAMS, *COMMANDS], n=1)
    return f"unknown command {shown!r}{f', did you mean {near[0]}?' if near else ''}; {USAGE}"


def about() -> str:
    """Return what `maintlock --help` prints."""
    summaries = {name: summary for name, (_, summary) in (PROGRAMS | COMMANDS).items()}
    width = max(map(len, summaries))
    return ABOUT.format(commands="\n  ".join(f"{name:<{width}}  {summary}" for name, summary in summaries.items()))
