"""`maintlock repo-sync`: the command line, and the lease for who runs it by hand."""

from __future__ import annotations

import os
import signal
from argparse import SUPPRESS, ArgumentTypeError
from itertools import pairwise
from typing import TYPE_CHECKING

from maintlock import launch, line, paths, signals, tokens
from maintlock.command import Command, add_places, read_config, read_places, seconds, task_name
from maintlock.errors import EXIT_SIGNAL_BASE, Interrupted, UsageError
from maintlock.reposync.cascade import OWN_TASK
from maintlock.reposync.git import DEFAULT_TIMEOUT_SECONDS
from maintlock.reposync.sweep import Pass
from maintlock.spawn import become
from maintlock.voice import Voice

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from maintlock.config import Config, TaskSettings
    from maintlock.paths import Places

NO_ROOTS = """\
no repository to pull: name one on the command line, or write into maintlock.toml:
[repo_sync]
roots = ["../repository"]"""


# What is asked for


def roots_of(said: Sequence[str], settings: Config, directory: str) -> list[str]:
    """Return the repositories, absolute, each once.

    Raises:
        UsageError: There is none.
    """
    roots = said or (settings.repo_sync.roots if settings.repo_sync is not None else ())
    if not roots:
        raise UsageError(NO_ROOTS)
    return [*dict.fromkeys(os.path.normpath(os.path.join(directory, root)) for root in roots)]


def then_of(said: str | None, settings: Config) -> str | None:
    """Return the task that runs after a pull, or None.

    Raises:
        UsageError: There is no such task.
        ConfigError: It has no command.
    """
    name = said or (settings.repo_sync.then if settings.repo_sync is not None else None)
    if name is None:
        return None
    if name not in settings.tasks:
        raise UsageError(
            f"--then {name}: expected the name of a task in [tasks] of {settings.path or 'maintlock.toml'}"
        )
    if settings.tasks[name].command is None:
        raise launch.no_command(settings.path, name)
    if is_repo_sync(settings.tasks[name]):
        raise UsageError(f"{name} is repo-sync itself, and cannot be what runs after it")
    return name


def own_task(settings: Config) -> str:
    """Return the task that we are: the one whose command is this one."""
    return next((task.name for task in settings.tasks.values() if is_repo_sync(task)), OWN_TASK)


def is_repo_sync(task: TaskSettings) -> bool:
    """Tell whether a task's command is this one."""
    return ("maintlock", "repo-sync") in pairwise(os.path.basename(word) for word in task.command or ())


# The lease


def is_inside(environ: Mapping[str, str], directory: str, session_id: int) -> bool:
    """Tell whether we are part of a job, of whichever lease: a grant in our environment counts only while it lasts (L8)."""
    for token in tokens.of_session(environ, directory, session_id):
        found = line.read_path(paths.Places(directory=directory, lease=token.lease).lock)
        if found and found.lease_id == token.lease_id and not found.outcome:
            return True
    return False


def guarded(said: Namespace, task: str, roots: Sequence[str], places: Places) -> list[str]:
    """Return the command line that does under the lease what is asked for here."""
    outer = ["--task", task, "--state-dir", places.directory]
    inner = ["--guarded", "--state-dir", places.directory, "--timeout", launch.duration_argument(said.timeout)]
    for option, value in (("--lease", said.lease), ("--config", said.config)):
        outer += [] if value is None else [option, value]
    for option, value in (("--config", said.config), ("--then", said.then)):
        inner += [] if value is None else [option, value]
    for option, is_said in (("--no-then", said.no_then), ("--json", said.json)):
        inner += [option] if is_said else []
    if said.allow_network_fs:
        outer.append("--allow-network-fs")
        inner.append("--allow-network-fs")
    return [launch.wrap_program(), *outer, "--", launch.program("maintlock"), "repo-sync", *inner, *roots]


def _become_guarded(argv: list[str]) -> NoReturn:
    for number in (signals.PIPE, signals.XFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them
    become(argv, os.environ)


# The command


def _run(said: Namespace) -> int:
    settings = read_config(said)
    places = read_places(said, settings)
    roots = roots_of(said.roots, settings, paths.working_directory())
    then = then_of(said.then, settings)
    is_guarded = said.guarded and tokens.parsed(os.environ.get(tokens.HELD, ""))  # or it would start itself for ever
    if not is_guarded and not is_inside(os.environ, places.directory, os.getsid(0)):
        _become_guarded(guarded(said, own_task(settings), roots, places))
    voice = Voice()
    watch = signals.Signals(voice)
    try:
        return Pass(said, settings, places.directory, then, watch).run(roots)
    except Interrupted as stopped:
        voice.error(f"stopped by signal {stopped.number}")
        return EXIT_SIGNAL_BASE + stopped.number


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("roots", metavar="ROOT", nargs="*", type=_root, help="repositories (those of [repo_sync])")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--then", metavar="TASK", type=task_name, help="what runs after a pull (that of [repo_sync])")
    which.add_argument("--no-then", action="store_true", help="do not run it now; the next repo-sync will")
    parser.add_argument("--json", action="store_true", help="one JSON object per repository")
    parser.add_argument(
        "--timeout",
        metavar="D",
        type=_limit,
        default=DEFAULT_TIMEOUT_SECONDS,
        help="longest time of one git command (2m)",
    )
    add_places(parser, lease_help="which lease to ask for when run by hand (the task's)")
    parser.add_argument("--allow-network-fs", action="store_true", help="as of maintlock-wrap")
    parser.add_argument("--guarded", action="store_true", help=SUPPRESS)


def _root(text: str) -> str:
    if not text:
        raise ArgumentTypeError("expected a path")
    return text


def _limit(text: str) -> float:
    limit = seconds(text)
    if limit <= 0:
        raise ArgumentTypeError(f"{text!r}: expected more than 0")
    return limit


REPO_SYNC = Command(
    description="""\
Fetch repositories and fast-forward them, then run what that makes necessary.
By hand, outside any job, it asks for the lease first, under its own task name.""",
    epilog="""\
Each repository is one of: pulled, up-to-date, local-divergence, dirty,
not-a-repository, no-upstream, failed.

Exit codes: that of the task that failed after a pull; else 1 if a repository
failed; else 0, also if some were skipped or the task stood back.

Examples
  maintlock repo-sync
  maintlock repo-sync ../repository --then kbSync
  maintlock repo-sync --json
""",
    add_arguments=_arguments,
    run=_run,
)
