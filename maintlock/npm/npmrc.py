"""The one of npm's settings that matters here: with which shell it runs a project's scripts."""

from __future__ import annotations

import os
import re

from maintlock.paths import upwards

SETTING = re.compile(r"^\s*script[-_]shell\s*=\s*(?P<value>.*?)\s*$", re.MULTILINE)
VARIABLE = re.compile(r"\$\{([^}]+)\}")
MAX_BYTES = 1 << 20
NPM_SHELL = "maintlock-npm-shell"
POSIX_SHELLS = frozenset("sh dash bash zsh ksh mksh ash".split())
SAFE = re.compile(r"[A-Za-z0-9_./+-]+")


def read_script_shell(directory: str) -> str | None:
    """Return the `script-shell` of the project that a package belongs to, or None for npm's own default.

    It is that of the nearest `.npmrc` beside a `package.json`: the package's own, or that of the workspace around it. What
    somebody has set for himself alone (`~/.npmrc`) is left out, for `package.json` is everybody's.
    """
    home = os.path.expanduser("~")
    for place in upwards(directory):
        if place == home != directory:
            break
        is_package = os.path.lexists(os.path.join(place, "package.json"))
        if is_package and (value := _setting(os.path.join(place, ".npmrc"))):
            return value
    return None


def _setting(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_BYTES)
    except OSError:
        return None
    values = [match["value"].strip("\"'") for match in SETTING.finditer(text)]
    return VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), values[-1]) if values else None


def is_npm_shell(shell: str | None) -> bool:
    """Tell whether that shell is ours, which guards by itself what the configuration names."""
    return shell is not None and os.path.basename(shell) == NPM_SHELL


def inner_shell(shell: str | None) -> str:
    """Return the shell to write into guarded scripts: what they are written for.

    Raises:
        ValueError: That is none that would understand the guard.
    """
    if shell is None or is_npm_shell(shell):
        return "sh"
    if os.path.basename(shell) not in POSIX_SHELLS or not SAFE.fullmatch(shell):
        raise ValueError(f".npmrc sets script-shell to {shell}; guards are written for POSIX shells (sh, bash, …)")
    return shell
