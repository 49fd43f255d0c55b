"""All npm scripts of a package: guarded or not, and which look heavy (L13: what is left out must be seen)."""

from __future__ import annotations

import os
import shlex

from maintlock.config import task_for_npm_script
from maintlock.model import record
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
    """One script: `command` without the guard; `guard` is None, or how it is guarded; `why` it looks heavy."""

    name: str
    command: str
    guard: str | None
    task: str | None
    why: str

    @property
    def is_guarded(self) -> bool:
        """Whether all of it is."""
        return self.guard not in {None, "in part"}

    @property
    def is_left_out(self) -> bool:
        """Whether it looks heavy, could be guarded, and is not."""
        return bool(self.why) and not self.is_guarded and self.name not in LIFECYCLE


def rows(package: PackageJson, settings: Config) -> list[Row]:
    """Return a package's scripts in the order of the file."""
    has_npm_shell = npmrc.is_npm_shell(npmrc.read_script_shell(package.directory))
    return [_row(script, package, settings, has_npm_shell=has_npm_shell) for script in package.scripts.values()]


def _row(script: Script, package: PackageJson, settings: Config, *, has_npm_shell: bool) -> Row:
    guard = guarded.found(script.raw)
    configured = task_for_npm_script(settings, script.name)
    command = guarded.command(guard, script.text)
    why = heaviness.why(script.name, command, settings, package.scripts)
    if guard is not None:
        kind = LABELS.get(guard.kind, guard.kind)
        task = guard.task or (configured.name if configured is not None else task_from_npm(script.name))
        return Row(name=script.name, command=command, guard=kind, task=task, why=why)
    if has_npm_shell and configured is not None:
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
    left_out = [row.name for row in found if row.is_left_out]
    if left_out:
        lines += ["", f"To guard what is marked: {command(package, left_out)}"]
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
