"""Whether the npm scripts that look heavy are guarded."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from maintlock import launch
from maintlock.checkup.finding import fine, of_error, problem, quoted, to_edit
from maintlock.checkup.versions import FROM_CHECKOUT, TO_INSTALL
from maintlock.errors import RefusedError
from maintlock.npm import npmrc, scriptlist
from maintlock.redact import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintlock.checkup.facts import Facts
    from maintlock.checkup.finding import Finding
    from maintlock.npm.package_json import PackageJson


def scripts(facts: Facts) -> Iterable[Finding]:
    """Tell which npm scripts look heavy and are not guarded (L13)."""
    for path, error in facts.broken_packages.items():
        yield of_error(error, quoted("chmod", "u+r", path) if isinstance(error, RefusedError) else to_edit(path))
    if not facts.packages and not facts.broken_packages:
        yield fine("there is no package.json here")
    for package in facts.packages:
        yield from _left_out(package, facts)
        yield from _missing_shell(package)


def _left_out(package: PackageJson, facts: Facts) -> Iterable[Finding]:
    rows = scriptlist.rows(package, facts.settings)
    to_guard = [row for row in rows if row.is_to_guard]
    if to_guard:
        shown = "; ".join(f"{printable(row.name, 100)} ({printable(row.why, 100)})" for row in to_guard)
        mend = scriptlist.command(package, [row.name for row in to_guard])
        yield problem(f"{package.path}: looks heavy and is not guarded: {shown}", mend)
    for row in rows:
        if row.is_to_edit:
            shown = f"{printable(row.name, 100)} ({printable(row.why, 100)})"
            text = f"{package.path}: looks heavy and cannot be guarded as it is: {shown}: {printable(row.refusal, 400)}"
            yield problem(text, to_edit(package.path))


def _missing_shell(package: PackageJson) -> Iterable[Finding]:
    shell = npmrc.read_script_shell(package.directory)
    if shell is not None and npmrc.is_npm_shell(shell) and shutil.which(shell) is None:
        text = f"{package.directory}/.npmrc: script-shell is {printable(shell)}, which does not exist: npm cannot start any script"
        ours = npmrc.NPM_SHELL if shutil.which(npmrc.NPM_SHELL) is not None else launch.program(npmrc.NPM_SHELL)
        is_there = shutil.which(ours) is not None
        set_it = quoted("npm", "config", "set", "--location=project", f"script-shell={ours}")
        yield problem(text, set_it) if is_there else problem(f"{text}; {FROM_CHECKOUT}", TO_INSTALL)
