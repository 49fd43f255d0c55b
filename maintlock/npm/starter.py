"""`maintlock init`: a first `maintlock.toml`, from the npm scripts that look heavy, with a word on every key."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
from typing import TYPE_CHECKING

from maintlock import config, paths, wholefile
from maintlock.command import Command
from maintlock.errors import RefusedError, UsageError
from maintlock.model import record, replace
from maintlock.names import task_from_npm
from maintlock.npm import heaviness, package_json, scriptlist, shelltext
from maintlock.redact import printable

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Sequence

    from maintlock.npm.package_json import PackageJson
    from maintlock.npm.scriptlist import Row

HEAD = """\
# maintlock: which heavy jobs there are, and when they are due.
# At most one of them runs at any time, whoever starts it. Relative paths start here.
# Durations: "500ms" "90s" "10m" "2h" "1d", or a number of seconds.

# poll_interval = "3s"        # how often maintlock orchestrate looks what is due
# starved_after = "2h"        # a task that has stood back for longer is starved: health says so
# history = "90d"             # how long history is kept

# [lease.heavy-maintenance]
# ttl = "6h"                  # after that its holder is reported as overdue, but never evicted
"""

NO_TASKS = """
# No npm script here looks heavy. A task is written like this:
#
# [tasks.backup]
# command = ["node", "backup.mjs"]   # how maintlock orchestrate starts it
# npm_script = "backup"              # the npm script that is this task
# interval = "1d"                    # how often it is due; absent: never by itself
# max_runtime = "2h"                 # stopped after that: TERM, a grace, KILL
# match = "backup.mjs"               # how it is recognised when it runs without the lease
"""

FIRST_TASK = {
    "command": "how maintlock orchestrate starts it",
    "npm_script": "the npm script that is this task",
    "interval": "how often it is due; absent: never by itself, only when started",
    "max_runtime": "stopped after that: TERM, a grace, KILL",
    "match": "the file it runs: so it is recognised when it runs without the lease",
}

TAIL = """
# A task can also have (in its own section, above):
# heavy = false               # it runs outside the lease
# wait = "10m"                # how long it queues when somebody else has the lease (default: it stands back)
# defer_exit_code = 75        # exit code when it stood back (default 0)
# stop_grace = "10s"          # between TERM and KILL
# ttl = "1h"                  # as that of the lease
# rest = "3m"                 # minimum pause after a run (default: a tenth of the interval)
# inbox = "handovers/*.json"  # unread files make it due before its interval
# cwd = "."                   # where its command is started; cwd and env do not apply to maintlock-wrap
# env = { NODE_OPTIONS = "--max-old-space-size=4096" }
# lease = "heavy-maintenance" # tasks of different leases may run at once

# Daemons run outside the lease; maintlock orchestrate keeps them running:
# [daemons.chroma]
# command = ["chroma", "run", "--path", "data"]
# cooldown = "15s"            # pause before a restart

# A task with the command ["maintlock", "repo-sync"] pulls these repositories, and then runs a task:
# [repo_sync]
# roots = ["../repository"]
# then = "kbSync"             # runs under the same lease
"""


BARE = re.compile(r"[A-Za-z0-9_-]+")
# What is started without npm has neither its PATH (node_modules/.bin) nor a shell to expand words.
ON_PATH = frozenset("node python python3 sh bash maintlock".split())
EXPANDED = re.compile(r"[$`*?\[{~\\!]")
TWICE = "if the script is guarded, each run is recorded twice"


@record(frozen=True, kw_only=True)
class Task:
    """One task to write: its name, npm script, what that runs where it can do without npm, and how it is recognised."""

    name: str
    script: str
    command: tuple[str, ...]
    match: str | None


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what `maintlock init` takes."""
    parser.add_argument("--print", action="store_true", dest="show", help="print it, and write nothing")
    parser.add_argument("--force", action="store_true", help="overwrite the one that is there")
    parser.add_argument("--package-json", metavar="FILE", help="whose scripts (the nearest package.json)")


def run(said: Namespace) -> int:
    """Run `maintlock init`, and return its exit code."""
    try:
        package = package_json.read(package_json.find(said.package_json, paths.working_directory()))
    except package_json.NoPackageError as error:
        if not said.show:
            raise UsageError(f"{error}; without npm, begin with: maintlock init --print > {config.FILE_NAME}") from None
        package = None
    found = tasks(package) if package is not None else []
    text = configuration(found)
    _check(text)
    if package is None or said.show:
        sys.stdout.write(text)
        return 0
    path = os.path.join(package.directory, config.FILE_NAME)
    with wholefile.turn_in(package.directory):
        _check_place(path, is_forced=said.force)
        wholefile.write(path, text.encode())
    _tell(path, found, package)
    return 0


def tasks(package: PackageJson) -> list[Task]:
    """Return a task for each script that is guarded or looks heavy, each name and each `match` once."""
    found: dict[str, Task] = {}
    matches: list[str | None] = []
    for row in scriptlist.rows(package, config.load(None)):
        name = row.task or task_from_npm(row.name)
        if row.guard is None and (not row.why or row.name in scriptlist.LIFECYCLE):
            continue
        if name in found or not _is_writable(row.name):
            continue
        match = heaviness.match_name(row.command)
        matches.append(match)
        found[name] = Task(name=name, script=row.name, command=_without_npm(row, package), match=match)
    return [task if matches.count(task.match) == 1 else replace(task, match=None) for task in found.values()]


def _without_npm(row: Row, package: PackageJson) -> tuple[str, ...]:
    """Return the command that a script is without its guard, or nothing where only npm runs it as it is meant."""
    has_around = any(f"{prefix}{row.name}" in package.scripts for prefix in ("pre", "post"))
    try:
        is_plain = shelltext.is_plain(row.command) and not EXPANDED.search(row.command)
    except shelltext.UnfinishedError:
        is_plain = False
    if has_around or not is_plain or not _is_writable(row.command):
        return ()
    words = tuple(shlex.split(row.command))
    return words if words[0] in ON_PATH else ()


def _is_writable(text: str) -> bool:
    """Tell whether a configuration can have that text: TOML has no halves of surrogate pairs."""
    return bool(text) and "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def configuration(found: Sequence[Task]) -> str:
    """Return the text of a configuration with these tasks."""
    if not found:
        return HEAD + NO_TASKS + TAIL
    return HEAD + "".join(_section(task, is_first=task is found[0]) for task in found) + TAIL


def _section(task: Task, *, is_first: bool) -> str:
    command = task.command or ("npm", "run", "--silent", task.script)
    pairs = [
        ("", "command", f"[{', '.join(map(_toml, command))}]"),
        ("", "npm_script", _toml(task.script)),
        ("# ", "interval", '"1d"'),
        ("# ", "max_runtime", '"2h"'),
        ("" if task.match else "# ", "match", _toml(task.match or "file.mjs")),
    ]
    comments = (FIRST_TASK if is_first else {}) | ({} if task.command else {"command": TWICE})
    lines = [(f"{mark}{key} = {value}", comments.get(key, "")) for mark, key, value in pairs]
    width = max(len(line) for line, _ in lines)
    name = task.name if BARE.fullmatch(task.name) else _toml(task.name)
    return f"\n[tasks.{name}]\n" + "".join(_commented(line, words, width) for line, words in lines)


def _commented(line: str, words: str, width: int) -> str:
    return f"{line.ljust(width)}   # {words}\n" if words else f"{line}\n"


def _toml(text: str) -> str:
    """Return a string as TOML writes it: as JSON does, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# Writing it ----------------------------------------------------------------------------------------------------------


def _check(text: str) -> None:
    """Make sure that what is written can be read."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, config.FILE_NAME)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text.encode())
        config.load(path)


def _check_place(path: str, *, is_forced: bool) -> None:
    if not os.path.lexists(path):
        return
    if not is_forced:
        raise UsageError(
            f"{printable(path)}: is there already, and left as it is; overwrite it with --force, or see --print"
        )
    if not os.path.isfile(path) or os.path.islink(path):
        raise RefusedError(f"{printable(path)}: is no regular file, and is not replaced; move it away")


def _tell(path: str, found: Sequence[Task], package: PackageJson) -> None:
    lines = [
        f"{os.path.relpath(path, paths.working_directory())}: written, with {len(found)} task{'s' * (len(found) != 1)}"
    ]
    lines += [f"  {task.name}: npm run {task.script}" for task in found]
    lines += _notes(path, found, package)
    sys.stdout.write("".join(f"{printable(line, 4000)}\n" for line in lines))


def _notes(path: str, found: Sequence[Task], package: PackageJson) -> Iterable[str]:
    above = config.find(None, {}, os.path.dirname(os.path.dirname(path)))
    if above is not None:
        yield f"note: it hides {above} from what runs here"
    names = {task.script for task in found}
    rows = [row for row in scriptlist.rows(package, config.load(None)) if row.name in names]
    yield from (f"note: {row.name} cannot be guarded as it is: {row.refusal}" for row in rows if row.is_to_edit)
    to_guard = [row.name for row in rows if row.is_to_guard]
    if to_guard:
        yield f"next: {scriptlist.command(package, to_guard)}"


INIT = Command(
    description="""\
Write a first maintlock.toml beside package.json, with a task for each npm script
that is guarded already or looks heavy, and a comment on every key. Nothing in it is
due by itself until you give it an interval.""",
    epilog="""\
Exit codes: 0 done; 64 there is one already, or no package.json, or a broken one;
73 not written; 77 not yours to write.

Examples
  maintlock init
  maintlock init --print
  maintlock init --package-json packages/a
""",
    add_arguments=add_arguments,
    run=run,
)
