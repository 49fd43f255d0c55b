"""Whether we are all of one version: this program, the wrapper on PATH, and those that wrote the records."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from maintlock import __version__, launch, process, sidecar
from maintlock.checkup.finding import notice, problem, quoted
from maintlock.ledger import LedgerUnavailable, open_to_read
from maintlock.names import DEFAULT_LEASE
from maintlock.npm import scriptlist
from maintlock.redact import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintlock.checkup.facts import Facts
    from maintlock.checkup.finding import Finding

WRAP = "maintlock-wrap"
VERSION_SECONDS = 20.0
MAX_FIRST_LINE = 1024
FROM_CHECKOUT = "install it from a checkout of maintlock"
TO_INSTALL = "pipx install ."
TO_INSTALL_AGAIN = "pipx install --force ."
FROM_NEWER = "upgrade from a newer checkout of maintlock"


def versions(facts: Facts) -> Iterable[Finding]:
    """Tell whether we are all of one version: the wrapper on PATH, and those that wrote the records."""
    yield from _wrapper_on_path(facts)
    for name in facts.leases:
        fields = sidecar.read(facts.places(name).sidecar).fields
        if fields is not None and fields["schema"] > sidecar.SCHEMA:
            text = f"{facts.places(name).sidecar}: has schema {fields['schema']}, and this maintlock knows {sidecar.SCHEMA}"
            yield problem(f"{text}; {FROM_NEWER}", _to_upgrade())
    if facts.is_ledger_trusted:
        yield from _ledger(facts)


def _ledger(facts: Facts) -> Iterable[Finding]:
    try:
        with open_to_read(facts.directory):
            pass
    except LedgerUnavailable as error:
        if error.kind == "newer":
            yield problem(f"{error}, from a newer checkout", _to_upgrade())  # it says to upgrade
        elif error.kind == "older":
            yield notice(str(error), facts.job_command(DEFAULT_LEASE, "sleep", "1"))


def _wrapper_on_path(facts: Facts) -> Iterable[Finding]:
    path = shutil.which(WRAP, path=facts.environ.get("PATH"))
    if path is None:
        first = _ours_first()
        how = "" if first else f"; {FROM_CHECKOUT}"
        finding = problem if _has_guards(facts) else notice
        yield finding(f"{WRAP} is not on PATH: guarded npm scripts do not start{how}", first or TO_INSTALL)
        return
    told = _read_version(path)
    if told is None:
        is_ours = os.path.realpath(path) == os.path.realpath(launch.program(WRAP))
        first = None if is_ours else _ours_first()
        text = f"{path}: does not tell its version: it is broken, or not maintlock's"
        yield problem(text, first) if first else problem(f"{text}; {FROM_CHECKOUT}", TO_INSTALL_AGAIN)
    elif told != __version__:
        text = f"{path}: is version {printable(told, 40)}, and this is {__version__}: jobs and the programs that watch them differ"
        if _numbers(told) > _numbers(__version__):
            yield problem(f"{text}; {FROM_NEWER}", _to_upgrade())
        else:
            yield problem(f"{text}; install that one again from this checkout", TO_INSTALL_AGAIN)
    elif (interpreter := _read_interpreter(path)) and not _is_ours(interpreter):
        text = (
            f"{path}: is the same version from another installation ({printable(interpreter)}, here {sys.executable})"
        )
        yield notice(f"{text}; upgrade both together", _ours_first() or TO_INSTALL_AGAIN)


def _has_guards(facts: Facts) -> bool:
    return any(row.is_guarded for package in facts.packages for row in scriptlist.rows(package, facts.settings))


def _read_version(path: str) -> str | None:
    """Return the version that a wrapper tells: `maintlock-wrap 1.2.3`."""
    try:
        done = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    words = done.stdout.decode("utf-8", "replace").split()
    return words[-1] if done.returncode == 0 and words and words[0].startswith("maintlock") else None


def _read_interpreter(path: str) -> str | None:
    """Return the Python interpreter in a script's `#!` line, None for one that names no path of it."""
    first = (process.read_bytes(path, MAX_FIRST_LINE) or b"").split(b"\n", 1)[0]
    words = os.fsdecode(first[2:]).split() if first.startswith(b"#!") else []
    return words[0] if len(words) == 1 and os.path.basename(words[0]).startswith("python") else None


def _is_ours(interpreter: str) -> bool:
    """Tell whether an interpreter is of our environment: a virtual one is its directory, whatever its links lead to."""
    return os.path.realpath(os.path.dirname(interpreter)) == os.path.realpath(os.path.dirname(sys.executable))


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _ours_first() -> str | None:
    """Return the command that puts the programs of this installation first on PATH; None where they cannot be found."""
    directory = os.path.dirname(launch.program(WRAP))
    return f'export PATH={quoted(directory)}:"$PATH"' if directory else None


def _to_upgrade() -> str:
    is_pipx = f"{os.sep}pipx{os.sep}" in sys.prefix
    return TO_INSTALL_AGAIN if is_pipx else quoted(sys.executable, "-m", "pip", "install", "--upgrade", ".")
