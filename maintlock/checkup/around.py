"""Checks of what is around: the project's scripts, other locks, the platform, other versions of us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from maintlock import __version__, process, sidecar, tokens
from maintlock import line as line_file
from maintlock.checkup import elsewhere
from maintlock.checkup.facts import fine, named, notice, of_error, problem, quoted, to_edit
from maintlock.errors import MaintlockError
from maintlock.ledger import LedgerUnavailable, open_to_read
from maintlock.names import DEFAULT_LEASE
from maintlock.npm import npmrc, scriptlist
from maintlock.redact import printable
from maintlock.times import duration_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maintlock.checkup.elsewhere import Neighbour
    from maintlock.checkup.facts import Facts, Finding
    from maintlock.npm.package_json import PackageJson

WRAP = "maintlock-wrap"
INITIAL_PID_NAMESPACE = "4026531836"  # the kernel's own, include/linux/proc_ns.h
VERSION_SECONDS = 20.0
MAX_FIRST_LINE = 1024
TO_INSTALL = "pipx install maintlock"


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
        text = (
            f"{package.directory}/.npmrc: script-shell is {printable(shell)}, which is not there: npm starts no script"
        )
        yield problem(
            text, quoted("npm", "config", "set", "--location=project", f"script-shell={_beside_us(npmrc.NPM_SHELL)}")
        )


def leases(facts: Facts) -> Iterable[Finding]:
    """Tell whether all heavy tasks are under one lease: two leases are two locks."""
    by_lease: dict[str, list[str]] = {}
    for task in facts.settings.tasks.values():
        if task.heavy:
            by_lease.setdefault(task.lease, []).append(task.name)
    if len(by_lease) > 1 and facts.settings.path is not None:
        shown = "; ".join(f"{name}: {', '.join(tasks)}" for name, tasks in sorted(by_lease.items()))
        text = f"{facts.settings.path}: heavy tasks are spread over several leases, and run beside each other ({shown})"
        yield problem(text, to_edit(facts.settings.path))
    for name in facts.leases:
        line = line_file.read_path(facts.places(name).lock)
        if line is None:
            continue
        known = facts.settings.tasks.get(line.task)
        expected = known.lease if known is not None and known.heavy else None
        if expected not in {None, name}:
            text = f"{line.task} was last started under the {name} lease, and belongs to {expected}"
            yield problem(text, quoted("grep", "-rn", "--include=package.json", "--include=*.sh", "--", "--lease", "."))
        elif name != DEFAULT_LEASE and name not in by_lease and known is None:
            yield notice(
                f"the {name} lease is in use too (last by {line.task}): what runs under it runs beside the others"
            )


# L9


def directories(facts: Facts) -> Iterable[Finding]:
    """Tell who uses another state directory: two of them are two locks (L9)."""
    configured = facts.settings.state_dir
    if configured is not None and facts.settings.path is not None:
        is_local = f"{configured}/".startswith(f"{facts.settings.directory}/")
        where = "project-local" if is_local else "of this project's choice"
        text = f"{facts.settings.path}: state_dir is {where}: who does not find this file, as cron, uses another lock"
        yield notice(text, quoted("sed", "-i.bak", r"/^ *state_dir *=/d", facts.settings.path))
    for neighbour in facts.neighbours.values():
        if neighbour.working or neighbour.pointed or elsewhere.is_recent(neighbour.used_at, facts.now):
            finding = problem if neighbour.working else notice
            yield finding(
                f"{_told(neighbour, facts)}; here it is {facts.directory}: two locks", _mend(neighbour, facts)
            )


def _told(neighbour: Neighbour, facts: Facts) -> str:
    words = [f"{neighbour.path} is another state directory ({neighbour.source})"]
    if neighbour.working:
        words.append(f"in use now by {named(neighbour.working)}")
    pointed = [row for row in neighbour.pointed if row not in neighbour.working]
    if pointed:
        words.append(f"in the environment of {named(pointed)}")
    if neighbour.used_at is not None:
        words.append(f"last used {duration_text(facts.now - neighbour.used_at)} ago")
    return ", ".join(words)


def _mend(neighbour: Neighbour, facts: Facts) -> str:
    if neighbour.working:
        return quoted("maintlock", "stop", "--state-dir", neighbour.path)
    if neighbour.pointed:
        is_default = tokens.STATE_DIR not in facts.environ and facts.said_state_dir is None
        return f"unset {tokens.STATE_DIR}" if is_default else quoted("export", f"{tokens.STATE_DIR}={facts.directory}")
    return quoted("rm", "-r", neighbour.path)


# The platform


def platform(_facts: Facts) -> Iterable[Finding]:
    """Tell what this platform lacks, and what that costs."""
    if not process.has_proc():
        yield notice(
            "there is no /proc: who has a lock is known from its records alone, and unknown without them; survivors of a "
            "killed job are found by psutil, more slowly; other state directories are found by environments alone"
        )
    elif process.read_text(f"{process.PROC}/locks", 1) is None:
        yield notice("/proc/locks cannot be read: a lock whose holder left no record is called unknown")
    if not sys.platform.startswith("linux"):
        yield notice(
            "there is no child subreaper: what a job leaves behind is looked for five times a second, not told by the kernel"
        )
    if not process.boot_id():
        yield notice(
            "the system does not name its boots: after a restart a recycled pid may be taken for a holder until a request looks"
        )
    namespace = process.pid_namespace()
    if namespace not in {"", INITIAL_PID_NAMESPACE}:
        yield notice(
            "we are in a pid namespace of our own (a container): of jobs outside of it that share the state directory, the "
            "lock is seen, but neither their processes nor what survives of them"
        )
    yield from _psutil()


def _psutil() -> Iterable[Finding]:
    try:
        import psutil

        psutil.Process().name()
    except Exception as error:  # noqa: BLE001  whatever it is, that is the finding
        yield notice(
            f"psutil does not work here ({type(error).__name__}): processes and memory are not shown where there is no /proc"
        )


# Versions


def versions(facts: Facts) -> Iterable[Finding]:
    """Tell whether we are all of one version: the wrapper on PATH, and those that wrote the records."""
    yield from _wrapper_on_path(facts)
    for name in facts.leases:
        fields = sidecar.read(facts.places(name).sidecar).fields
        if fields is not None and fields["schema"] > sidecar.SCHEMA:
            text = f"{facts.places(name).sidecar}: has schema {fields['schema']}, and this maintlock knows {sidecar.SCHEMA}"
            yield problem(text, _to_upgrade())
    if facts.is_ledger_trusted:
        yield from _ledger(facts)


def _ledger(facts: Facts) -> Iterable[Finding]:
    try:
        with open_to_read(facts.directory):
            pass
    except LedgerUnavailable as error:
        if error.kind == "newer":
            yield problem(str(error), _to_upgrade())
        elif error.kind == "older":
            yield notice(str(error), facts.job(DEFAULT_LEASE, "sleep", "1"))


def _wrapper_on_path(facts: Facts) -> Iterable[Finding]:
    path = shutil.which(WRAP, path=facts.environ.get("PATH"))
    if path is None:
        beside = os.path.dirname(_beside_us(WRAP))
        is_here = os.path.exists(f"{beside}/{WRAP}")
        mend = f'export PATH={quoted(beside)}:"$PATH"' if is_here else TO_INSTALL
        finding = problem if _has_guards(facts) else notice
        yield finding(f"{WRAP} is not on PATH: guarded npm scripts do not start", mend)
        return
    told = _read_version(path)
    if told is None:
        yield problem(f"{path}: does not tell its version: it is broken, or none of ours", f"{quoted(path)} --version")
    elif told != __version__:
        mend = _to_upgrade() if _numbers(told) > _numbers(__version__) else f"{TO_INSTALL} --force"
        yield problem(
            f"{path}: is version {printable(told, 40)}, and this is {__version__}: jobs and what watches them differ",
            mend,
        )
    elif (interpreter := _read_interpreter(path)) and not _is_ours(interpreter):
        text = (
            f"{path}: is of the same version, in another installation ({printable(interpreter)}, here {sys.executable})"
        )
        yield notice(
            f"{text}; upgrade both together", f'export PATH={quoted(os.path.dirname(_beside_us(WRAP)))}:"$PATH"'
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


def _beside_us(name: str) -> str:
    return os.path.join(os.path.dirname(sys.executable), name)


def _to_upgrade() -> str:
    is_pipx = f"{os.sep}pipx{os.sep}" in sys.prefix
    return (
        "pipx upgrade maintlock"
        if is_pipx
        else quoted(sys.executable, "-m", "pip", "install", "--upgrade", "maintlock")
    )
