"""Whether the npm scripts that look heavy are guarded."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from maintlock.checkup.finding import fine, of_error, problem, quoted
from maintlock.checkup.versions import beside_us
from maintlock.errors import MaintlockError
from maintlock.npm import npmrc, scriptlist
from maintlock.redact import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintlock.checkup.facts import Facts
    from maintlock.checkup.finding import Finding
    from maintlock.npm.package_json import PackageJson


def scripts(facts: Facts) -> Iterable[Finding]:
    """Tell which npm scripts look heavy and are not guarded (L13)."""
    try:
        packages = facts.packages
    except MaintlockError as error:
        yield of_error(error, "npm pkg get scripts")
        return
    if not packages:
        yield fine("there is no package.json here")
    for package in packages:
        rows = scriptlist.rows(package, facts.settings)
        left_out = [row for row in rows if row.is_left_out]
        if left_out:
            shown = "; ".join(f"{printable(row.name, 100)} ({printable(row.why, 100)})" for row in left_out)
            mend = scriptlist.command(package, [row.name for row in left_out])
            yield problem(f"{package.path}: looks heavy and is not guarded: {shown}", mend)
        yield from _missing_shell(package)


def _missing_shell(package: PackageJson) -> Iterable[Finding]:
    shell = npmrc.read_script_shell(package.directory)
    if shell is not None and npmrc.is_npm_shell(shell) and shutil.which(shell) is None:
        text = f"{package.directory}/.npmrc: script-shell is {printable(shell)}, which does not exist: npm cannot start any script"
        yield problem(
            text, quoted("npm", "config", "set", "--location=project", f"script-shell={beside_us(npmrc.NPM_SHELL)}")
        )
