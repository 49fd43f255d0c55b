"""All npm scripts of a package: guarded or not, and which look heavy (L13: what is left out must be seen)."""

from __future__ import annotations

import os
import shlex

from maintlock.config import task_for_npm_script
from maintlock.model import record, replace
from maintlock.names import task_from_npm
from maintlock.npm import guarded, heaviness, npmrc
from maintlock.redact import printable, without_secrets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from maintlock.config import Config
    from maintlock.npm.package_json import PackageJson, Script

# npm runs these by itself, when it installs, packs, publishes or versions: none of that may come to depend on maintlock.
LIFECYCLE = frozenset(
    "preinstall install postinstall prepublish preprepare prepare postprepare dependencies prepack pack postpack "
    "prepublishOnly publish postpublish preversion version postversion preuninstall uninstall postuninstall "
    "preshrinkwrap shrinkwrap postshrinkwrap".split()
)
LABELS = {"wrap": guarded.WRAP}
MAX_WHY = 100


@record(frozen=True, kw_only=True)
class Row:
    """One script: `command` without the guard; `guard` is None, or how it is guarded; `why` it looks heavy.

    `refusal` is why `maintlock guard` would not guard it, or `""`.
    """

    name: str
    command: str
    guard: str | None
    task: str | None
    why: str
    refusal: str = ""

    @property
    def is_guarded(self) -> bool:
        """Whether all of it is."""
        return self.guard not in {None, "in part"}

    @property
    def is_left_out(self) -> bool:
        """Whether it looks heavy and is not guarded, though a script of that name may be."""
        return bool(self.why) and not self.is_guarded and self.name not in LIFECYCLE

    @property
    def is_to_guard(self) -> bool:
        """Whether it is left out, and `maintlock guard` would guard it."""
        return self.is_left_out and not self.refusal

    @property
    def is_to_edit(self) -> bool:
        """Whether it is left out, and has to be edited before it can be guarded."""
        return self.is_left_out and bool(self.refusal)


def rows(package: PackageJson, settings: Config) -> list[Row]:
    """Return a package's scripts in the order of the file."""
    shell = npmrc.read_script_shell(package.directory)
    found = [_row(script, package, settings, shell) for script in package.scripts.values()]
    owners = {row.task: row.name for row in reversed(found) if row.is_guarded and row.task}
    return [_with_refusal(row, package, settings, shell, owners) if not row.is_guarded else row for row in found]


def _with_refusal(row: Row, package: PackageJson, settings: Config, shell: str | None, owners: dict[str, str]) -> Row:
    task = default_task(row.name, settings)
    reason = refusal(package, package.scripts[row.name], shell)
    if not reason and row.is_left_out:  # of two that would be the same task, the first one gets it
        reason = conflict(row.name, task, owners.setdefault(task, row.name), settings)
    return replace(row, refusal=reason)


def default_task(name: str, settings: Config) -> str:
    """Return which task a script is where nothing else is said: the configured one, else as it is called."""
    configured = task_for_npm_script(settings, name)
    return configured.name if configured is not None else task_from_npm(name)


def refusal(package: PackageJson, script: Script, shell: str | None) -> str:
    """Return why a script without a guard cannot be guarded, whatever its task, or `""`; `shell` as `.npmrc` sets it."""
    words = script.text.split()
    if script.name in package.odd:
        return package.odd[script.name]
    if script.name in LIFECYCLE:
        return "npm runs it by itself (install, pack, publish, version), which must not depend on maintlock"
    if not words:
        return "is empty: there is nothing to guard"
    if words[0].rpartition("/")[2] == "maintlock" and words[1:2] not in (["run"], ["repo-sync"]):
        return "is maintlock itself, which must not wait for the lease"
    try:
        inner = npmrc.inner_shell(shell)
    except ValueError as error:
        return str(error)
    try:
        guarded.wrapped(script.raw, task="x", shell=inner)
    except ValueError as error:
        return f"{error}; put it into a file of its own, and have the script run that"
    return ""


def conflict(name: str, task: str, owner: str, settings: Config) -> str:
    """Return why a script cannot be that task, which `owner`, or the configuration, says is another script; or `""`."""
    named = settings.tasks[task].npm_script if task in settings.tasks else None
    if named not in {None, name}:
        return f"task {task} is script {named} in {settings.path}; name another: {name}=TASK"
    if owner != name:
        return f"task {task} would be two scripts, {owner} and {name}; name another: {name}=TASK"
    return ""


def _row(script: Script, package: PackageJson, settings: Config, shell: str | None) -> Row:
    guard = guarded.found(script.raw)
    configured = task_for_npm_script(settings, script.name)
    command = guarded.command(guard, script.text)
    why = heaviness.why(script.name, command, settings, package.scripts)
    if guard is not None:
        kind = LABELS.get(guard.kind, guard.kind)
        task = guard.task or default_task(script.name, settings)
        return Row(name=script.name, command=command, guard=kind, task=task, why=why)
    if npmrc.is_npm_shell(shell) and configured is not None:
        return Row(name=script.name, command=command, guard="script-shell", task=configured.name, why=why)
    return Row(name=script.name, command=command, guard=None, task=None, why=why)


def as_json(package: PackageJson, found: Sequence[Row], workspaces: Sequence[str]) -> dict[str, Any]:
    """Return the list for programs."""
    return {
        "package_json": package.path,
        "scripts": [
            {
                "script": row.name,
                "command": " ".join(without_secrets([row.command])),
                "guard": row.guard,
                "task": row.task,
                "looks_heavy": bool(row.why),
                "why": row.why or None,
                "left_out": row.is_left_out,
                "refusal": row.refusal or None,
            }
            for row in found
        ],
        "workspaces": list(workspaces),
    }


def as_text(package: PackageJson, found: Sequence[Row], shown_path: str) -> str:
    """Return the list for people."""
    lines = [f"{shown_path}: {summary(found)}", ""]
    if found:
        lines += _table([("", "SCRIPT", "GUARD", "TASK", "LOOKS HEAVY"), *map(_cells, found)])
    for name, reason in package.odd.items():
        lines.append(f"  {printable(name)} {reason}")
    to_edit = [row for row in found if row.is_to_edit]
    if to_edit:
        lines += [
            "",
            *(f"! {printable(row.name)} cannot be guarded as it is: {printable(row.refusal, 400)}" for row in to_edit),
        ]
    to_guard = [row.name for row in found if row.is_to_guard]
    if to_guard:
        what = "the others that are marked" if to_edit else "what is marked"
        lines += ["", f"To guard {what}: {command(package, to_guard)}"]
    return "\n".join(lines) + "\n"


def summary(found: Sequence[Row]) -> str:
    """Return how many scripts there are, are guarded, and are left out."""
    left_out = sum(row.is_left_out for row in found)
    words = f"{len(found)} script{'s' if len(found) != 1 else ''}, {sum(row.is_guarded for row in found)} guarded"
    return f"{words}, {left_out} more {'look' if left_out != 1 else 'looks'} heavy" if left_out else words


def command(package: PackageJson, names: Sequence[str], *options: str) -> str:
    """Return the command line that guards scripts of a package, or with `--undo` takes their guards off."""
    here = os.path.relpath(package.path)
    file = () if here == "package.json" else ("--package-json", here)
    end = ("--",) if any(name.startswith("-") for name in names) else ()
    return printable(shlex.join(["maintlock", "guard", *options, *file, *end, *names]), 4000)


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    why = row.why
    if why and row.name in LIFECYCLE:
        why += " (npm runs it by itself: cannot be guarded)"
    return (
        "!" if row.is_left_out else "",
        printable(row.name),
        row.guard or "no",
        row.task or "",
        printable(why, MAX_WHY),
    )


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
