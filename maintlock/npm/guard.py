"""`maintlock guard`: put npm scripts behind the lease, see that nothing is left out, take it all back."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING

from maintlock import config, paths, wholefile
from maintlock.command import Command
from maintlock.errors import MaintlockError, UsageError
from maintlock.model import record
from maintlock.names import EXPECTED_TASK, is_task_name
from maintlock.npm import guarded, npmrc, package_json, scriptlist, shim
from maintlock.redact import printable
from maintlock.voice import Voice

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence

    from maintlock.config import Config
    from maintlock.npm.package_json import PackageJson, Script

REMOVABLE = frozenset({"wrap", "shim"})
NO_SETTINGS = config.load(None)


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what `maintlock guard` takes."""
    parser.add_argument(
        "scripts",
        metavar="SCRIPT[=TASK]",
        nargs="*",
        help="npm script, and its task; put -- before names that begin with a dash",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show all scripts, and change nothing")
    what.add_argument("--undo", action="store_true", help="restore these scripts, or all, to the byte")
    what.add_argument("--shim", action="store_true", help=f"guard through {guarded.SHIM_PATH}, which is written too")
    parser.add_argument("--package-json", metavar="FILE", help="the file to edit (the nearest package.json)")
    parser.add_argument("--json", action="store_true", help="with --list: one JSON object on one line")


def run(said: Namespace) -> int:
    """Run `maintlock guard`, and return its exit code."""
    if said.json and not said.list:
        raise UsageError("--json goes with --list; see: maintlock guard --help")
    path = package_json.find(said.package_json, paths.working_directory())
    package = package_json.read(path)
    if said.list:
        return _list(package, said)
    if not said.undo and not said.scripts:
        raise UsageError("no script given; see which there are: maintlock guard --list")
    with wholefile.turn_in(os.path.dirname(package.target)):
        package = package_json.read(path)
        return _undo(package, said.scripts) if said.undo else _guard(package, said.scripts, with_shim=said.shim)


# Guarding ------------------------------------------------------------------------------------------------------------


@record(frozen=True, kw_only=True)
class _Outcome:
    """What becomes of one script: its new raw text (None: it stays), or why it is refused; and what to tell."""

    name: str
    raw: str | None = None
    refusal: str = ""
    told: str = ""


def _guard(package: PackageJson, words: Sequence[str], *, with_shim: bool) -> int:
    settings = config.load(config.find(None, os.environ, package.directory))
    wishes = _wishes(package, words)
    shell = npmrc.read_script_shell(package.directory)
    program = guarded.SHIM if with_shim else guarded.WRAP
    tasks = _tasks(package, wishes, settings)
    outcomes = [_outcome(package, name, wishes[name], tasks[name], program, shell) for name in wishes]
    refusals = [
        *(o.name + ": " + o.refusal for o in outcomes if o.refusal),
        *_conflicts(package, tasks, wishes, settings),
    ]
    if refusals:
        raise UsageError("\n".join([*map(printable, refusals), "nothing was changed"]))
    changes = {o.name: o.raw for o in outcomes if o.raw is not None}
    _write(package, changes, needs_shim=with_shim)
    _tell([o.told for o in outcomes] + _notes(package, changes, settings, with_shim=with_shim))
    return 0


def _wishes(package: PackageJson, words: Sequence[str]) -> dict[str, str | None]:
    """Return the scripts that are asked for, with the task where that is said."""
    wishes: dict[str, str | None] = {}
    known = {*package.scripts, *package.odd}
    for word in words:
        name, equals, task = (word, "", "") if word in known else word.rpartition("=")
        name = name if equals or word in known else word
        if name not in known:
            raise UsageError(_unknown(package, name))
        if equals and not is_task_name(task):
            raise UsageError(f"{printable(word)}: {printable(task, 80)!r} is no task's name: expected {EXPECTED_TASK}")
        if name in wishes and wishes[name] != (task or None):
            raise UsageError(f"{printable(name)}: asked for twice, as different tasks")
        wishes[name] = task or None
    return wishes


def _unknown(package: PackageJson, name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name[:200], package.scripts, n=1)
    hint = f", did you mean {printable(near[0])}?" if near else "; see: maintlock guard --list"
    return f"{printable(package.path)}: has no script {printable(name, 80)!r}{hint}"


def _tasks(package: PackageJson, wishes: Mapping[str, str | None], settings: Config) -> dict[str, str]:
    """Return which task each script is: as said, else as its guard says, as configured, or as it is called."""
    tasks = {}
    for name, said in wishes.items():
        script = package.scripts.get(name)
        guard = guarded.found(script.raw) if script is not None else None
        present = guard.task if guard is not None and guard.kind != "in part" else None
        tasks[name] = said or present or scriptlist.default_task(name, settings)
    return tasks


def _outcome(package: PackageJson, name: str, said: str | None, task: str, program: str, shell: str | None) -> _Outcome:
    script = package.scripts.get(name)
    if script is None or name in package.odd:
        return _Outcome(name=name, refusal=package.odd[name])
    guard = guarded.found(script.raw)
    if guard is not None and guard.kind != "in part" and name not in scriptlist.LIFECYCLE:
        return _guarded_already(package, script, guard, said, program)
    refusal = scriptlist.refusal(package, script, shell)
    if refusal:
        return _Outcome(name=name, refusal=refusal)
    raw = guarded.wrapped(script.raw, task=task, program=program, shell=npmrc.inner_shell(shell))
    return _Outcome(name=name, raw=raw, told=f"{name}: guarded, as task {task}")


def _guarded_already(
    package: PackageJson, script: Script, guard: guarded.Guard, said: str | None, program: str
) -> _Outcome:
    task = f"task {guard.task}" if guard.task else "the task named after the npm script"
    if said is not None and said != guard.task:
        is_removable = guard.kind in REMOVABLE
        first = f"first: {scriptlist.command(package, [script.name], '--undo')}" if is_removable else "edit it yourself"
        return _Outcome(name=script.name, refusal=f"is guarded already, as {task}; {first}")
    if guard.kind == "wrap" and program == guarded.SHIM:
        raw = guarded.through_shim(script.raw)
        return _Outcome(
            name=script.name, raw=raw, told=f"{script.name}: guarded through {guarded.SHIM_PATH} now, as {task}"
        )
    how = " by hand" if guard.kind == "by hand" else ""
    return _Outcome(name=script.name, told=f"{script.name}: guarded already{how}, as {task}")


def _conflicts(
    package: PackageJson, tasks: Mapping[str, str], wishes: Mapping[str, str | None], settings: Config
) -> list[str]:
    """Return what is wrong with tasks that two scripts would be, or that the configuration gives to another."""
    guards = {name: guard for name, s in package.scripts.items() if (guard := guarded.found(s.raw)) is not None}
    owners = {guard.task: name for name, guard in guards.items() if guard.kind != "in part"}
    wrong = []
    for name, task in tasks.items():
        if name in guards and guards[name].kind != "in part":
            continue  # it stays what it is
        configured = config.task_for_npm_script(settings, name)
        reason = scriptlist.conflict(name, task, owners.setdefault(task, name), settings)
        if reason:
            wrong.append(f"{name}: {reason}")
        elif configured is not None and configured.name != task and wishes[name]:
            wrong.append(f"{name}: is task {configured.name} in {settings.path}, not {task}")
    return wrong


def _write(package: PackageJson, changes: Mapping[str, str], *, needs_shim: bool) -> None:
    """Write the shim first, so that no script calls what is not there; if the rest fails, take it away again."""
    if not changes and not needs_shim:
        return
    package_json.check_writable(package)
    is_new = needs_shim and shim.write(package.directory)
    if not changes:
        return
    try:
        package_json.write(package, package_json.edited(package, changes))
    except MaintlockError:
        if is_new:
            shim.remove(package.directory)
        raise


def _notes(package: PackageJson, changes: Mapping[str, str], settings: Config, *, with_shim: bool) -> list[str]:
    notes = []
    for name in changes:
        around = [other for other in (f"pre{name}", f"post{name}") if other in package.scripts]
        if around:
            notes.append(
                f"note: {' and '.join(around)}: npm runs {'them' if len(around) > 1 else 'it'} around {name}, as "
                "scripts of their own, outside its lease, even when the script is deferred"
            )
    if changes and settings.path is None:
        notes.append("note: no maintlock.toml here, so defaults apply; maintlock init writes one")
    if changes and not with_shim and shutil.which(guarded.WRAP) is None:
        notes.append(f"note: {guarded.WRAP} is not on PATH here, and these scripts need it; see --shim")
    if changes and with_shim:
        notes.append(f"note: commit {guarded.SHIM_PATH} too")
    if changes:
        notes.append(f"to take it back: {scriptlist.command(package, list(changes), '--undo')}")
    return notes


# Taking it back ------------------------------------------------------------------------------------------------------


def _undo(package: PackageJson, words: Sequence[str]) -> int:
    wishes = _wishes(package, words)
    changes: dict[str, str] = {}
    told: list[str] = []
    refusals: list[str] = []
    for name in wishes or package.scripts:
        guard = guarded.found(package.scripts[name].raw) if name in package.scripts else None
        if guard is None:
            told += [f"{name}: is not guarded"] if wishes else []
        elif guard.kind not in REMOVABLE or name in package.odd:
            why = package.odd.get(name) or f"is guarded {guard.kind}, not by maintlock guard"
            if wishes:
                refusals.append(f"{name}: {why}; edit it yourself")
            else:
                told.append(f"{name}: {why}; it stays as it is")
        elif wishes.get(name) not in {None, guard.task}:
            refusals.append(f"{name}: is guarded as task {guard.task}, not {wishes[name]}")
        else:
            changes[name] = guard.raw
            told.append(f"{name}: restored")
    if refusals:
        raise UsageError("\n".join([*map(printable, refusals), "nothing was changed"]))
    if changes:
        package_json.write(package, package_json.edited(package, changes))
    if _is_shim_unused(package, changes) and shim.remove(package.directory):
        told.append(f"{guarded.SHIM_PATH}: removed")
    _tell(told or ["nothing is guarded here"])
    return 0


def _is_shim_unused(package: PackageJson, changes: Mapping[str, str]) -> bool:
    texts = {name: script.text for name, script in package.scripts.items()}
    texts.update({name: package_json.decoded(raw) for name, raw in changes.items()})
    return not any(guarded.SHIM_PATH in text for text in texts.values())


# Listing -------------------------------------------------------------------------------------------------------------


def _list(package: PackageJson, said: Namespace) -> int:
    settings = _settings_or_none(package.directory)
    found = scriptlist.rows(package, settings)
    if said.scripts:
        wanted = _wishes(package, said.scripts)
        found = [row for row in found if row.name in wanted]
    others = package_json.workspaces(package)
    if said.json:
        sys.stdout.write(json.dumps(scriptlist.as_json(package, found, others)) + "\n")
        return 0
    sys.stdout.write(scriptlist.as_text(package, found, _shown(package.path)))
    if others:
        _tell(["", "Workspaces have scripts of their own:", *(_about_workspace(path) for path in others)])
    return 0


def _settings_or_none(directory: str) -> Config:
    try:
        return config.load(config.find(None, os.environ, directory))
    except MaintlockError as error:
        Voice().error(f"{error}\nlisted without the configuration")
        return NO_SETTINGS


def _about_workspace(path: str) -> str:
    try:
        package = package_json.read(path)
        about = scriptlist.summary(scriptlist.rows(package, _settings_or_none(package.directory)))
    except MaintlockError as error:
        return f"  {error}"
    return f"  maintlock guard --list --package-json {_shown(path)}    ({about})"


def _shown(path: str) -> str:
    relative = os.path.relpath(path, paths.working_directory())
    return printable(path if relative.startswith("..") else relative)


def _tell(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{printable(line, 4000)}\n" for line in lines))


GUARD = Command(
    description=f"""\
Put npm scripts behind the lease, by editing package.json and nothing else. The
whole script goes under one guard, also a && b and what npm appends to it; the
file keeps its formatting.

--undo restores the scripts to the byte; guards written by hand in any other form
stay. --shim also writes {guarded.SHIM_PATH} into the project and guards through it:
where maintlock is missing it says so, or, only with MAINTLOCK_OPTIONAL=1, runs the
script unguarded with a warning.""",
    epilog="""\
A script's task is, first hit wins: what is said here, the task with that
npm_script in maintlock.toml, the script's name. Guards are written for POSIX
shells, not for Windows' own.

Exit codes: 0 done, or nothing to do; 64 refused, nothing was changed; 73 not
written; 77 not yours to write; 78 bad configuration.

Examples
  maintlock guard --list
  maintlock guard ai:sync-kb=kbSync ai:backup
  maintlock guard --undo ai:backup
""",
    add_arguments=add_arguments,
    run=run,
)
