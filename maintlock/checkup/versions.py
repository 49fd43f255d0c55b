"""Whether we are all of one version: this program, the wrapper on PATH, and those that wrote the records."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from maintlock import __version__, process, sidecar
from maintlock.checkup.finding import notice, problem, quoted
from maintlock.errors import MaintlockError
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
            yield notice(str(error), facts.job(DEFAULT_LEASE, "sleep", "1"))


def _wrapper_on_path(facts: Facts) -> Iterable[Finding]:
    path = shutil.which(WRAP, path=facts.environ.get("PATH"))
    if path is None:
        beside = os.path.dirname(beside_us(WRAP))
        is_here = os.path.exists(f"{beside}/{WRAP}")
        mend = f'export PATH={quoted(beside)}:"$PATH"' if is_here else TO_INSTALL
        how = "" if is_here else "; install it from a checkout of maintlock"
        finding = problem if _has_guards(facts) else notice
        yield finding(f"{WRAP} is not on PATH: guarded npm scripts do not start{how}", mend)
        return
    told = _read_version(path)
    if told is None:
        yield problem(
            f"{path}: does not tell its version: it is broken, or not maintlock's", f"{quoted(path)} --version"
        )
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
        yield notice(
            f"{text}; upgrade both together", f'export PATH={quoted(os.path.dirname(beside_us(WRAP)))}:"$PATH"'
        )


def _has_guards(facts: Facts) -> bool:
    try:
        return any(row.is_guarded for package in facts.packages for row in scriptlist.rows(package, facts.settings))
    except MaintlockError:
        return False  # told with the scripts


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


def beside_us(name: str) -> str:
    """Return where a program of ours is in this installation."""
    return os.path.join(os.path.dirname(sys.executable), name)


def _to_upgrade() -> str:
    is_pipx = f"{os.sep}pipx{os.sep}" in sys.prefix
    return TO_INSTALL_AGAIN if is_pipx else quoted(sys.executable, "-m", "pip", "install", "--upgrade", ".")
