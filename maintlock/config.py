"""`maintlock.toml`: find it, judge who may have written it, read it once, and turn it into typed settings.

A guarded job waits for this: `tomllib` is imported only where there is a file, and nothing else that is heavy at all.
Faults are told all at once, each with file, key, what was found and what is expected.
"""

from __future__ import annotations

import os
import stat

from maintlock.errors import ConfigError, RefusedError
from maintlock.names import EXPECTED_LEASE, EXPECTED_TASK, is_lease_name, is_task_name, own_lease
from maintlock.paths import check_trusted, upwards
from maintlock.schema import DAEMON, LEASE, REPO_SYNC, TASK, TOP, WrongValueError, dotted, escaped, found_text
from maintlock.settings import (
    FOREVER,
    Config,
    DaemonSettings,
    LeaseSettings,
    RepoSyncSettings,
    TaskSettings,
    task_for_npm_script,
    ttl_seconds,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any

    from maintlock.schema import Check

FILE_NAME = "maintlock.toml"
VARIABLE = "MAINTLOCK_CONFIG"
MAX_BYTES = 1 << 20
MAX_FAULTS = 20
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO must not keep us waiting


def find(option: str | None, environ: Mapping[str, str], cwd: str) -> str | None:
    """Return the configuration file to use, or None for all defaults.

    First hit wins: `option` (that of `--config`), `MAINTLOCK_CONFIG` (empty is unset), either of which may say `none`,
    then `maintlock.toml` in `cwd` or its nearest parent; in a directory that may not be searched there is none.

    Raises:
        ConfigError: A file was named that does not exist.
    """
    if option is not None:
        return _named_file("--config", option, cwd)
    if environ.get(VARIABLE):
        return _named_file(VARIABLE, environ[VARIABLE], cwd)
    for directory in upwards(cwd):
        if os.path.lexists(candidate := os.path.join(directory, FILE_NAME)):
            return candidate
    return None


def load(path: str | None) -> Config:
    """Return the settings in a file, or all defaults for None.

    Relative paths in it are relative to the directory in which it (or the symlink to it) is.

    Raises:
        ConfigError: It is no readable file, not TOML, or has keys or values that cannot be: one line for each.
        RefusedError: It may not be read, or somebody else may have written it.
    """
    if path is None:
        return Config(leases={}, tasks={}, daemons={})
    return _config(_document(_read_trusted(path), escaped(path)), path)


def _read_trusted(path: str) -> bytes:
    """Return the contents of a small regular file that nobody but us and root can have written.

    Raises:
        ConfigError: It is missing, longer than `MAX_BYTES`, or not a regular file.
        RefusedError: It may not be read, or somebody else may have written it.
    """
    try:
        descriptor = os.open(path, OPEN_FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{escaped(path)}: expected a regular file")
            _judge(status, path)
            data = _read_bounded(descriptor)
        finally:
            os.close(descriptor)
    except PermissionError:
        from shlex import quote

        raise RefusedError(f"{escaped(path)}: you may not read it", mend=f"chmod u+r {escaped(quote(path))}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file's name"
        raise ConfigError(f"{escaped(path)}: cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{escaped(path)}: expected at most {MAX_BYTES} bytes")
    return data


def _named_file(source: str, name: str, cwd: str) -> str | None:
    if name == "none":
        return None
    path = os.path.join(cwd, name)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ConfigError(f"{source}: {escaped(path)}: no such file; expected one that exists, or none") from None
    except OSError:
        return path  # reading it will tell what is wrong
    return path


def _read_bounded(descriptor: int) -> bytes:
    data = b""
    while len(data) <= MAX_BYTES and (chunk := os.read(descriptor, MAX_BYTES + 1 - len(data))):
        data += chunk
    return data


def _judge(status: os.stat_result, path: str) -> None:
    """Judge the file that was opened, which for a symlink is its target."""
    target = escaped(os.path.realpath(path))
    try:
        check_trusted(target, status, root_may_own=True)
    except RefusedError as error:
        text = error.text if target == path else f"{escaped(path)}: {error.text}"
        raise RefusedError(text, mend=error.mend) from None


def _document(data: bytes, file: str) -> dict[str, object]:
    import tomllib  # 1.5 interpreter starts

    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}: line {line}: expected UTF-8 text") from None
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply") from None
    except ValueError as error:
        if not isinstance(error, tomllib.TOMLDecodeError):
            raise ConfigError(f"{file}: expected numbers of fewer digits") from None
        end = data.count(b"\n") + 1
        text = escaped(str(error).replace("at end of document", f"at line {end}, the end"))
        text = text[:120] + text[120:][-80:]  # may quote a key of any length, and ends with the line
        raise ConfigError(f"{file}: not TOML: {text}") from None


class _Reading:
    """One file while it is being checked, and what is wrong with it."""

    def __init__(self, path: str) -> None:
        self.file = escaped(path)
        self.directory = os.path.realpath(os.path.dirname(path))
        self.faults: list[str] = []
        self.more = 0

    def fault(self, key: str, words: str) -> None:
        """Note what is wrong with a key; after the first ones they are only counted."""
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(f"{self.file}: {key}: {words}")
        else:
            self.more += 1

    def table(self, found: object, at: str, checks: Mapping[str, Check], required: tuple[str, ...]) -> dict[str, Any]:
        """Return what is valid in one table, and note the rest of it as faults."""
        values: dict[str, Any] = {}
        if not isinstance(found, dict):
            self.fault(at, f"found {found_text(found)}, expected a table")
            return values
        for key, value in {**dict.fromkeys(required), **found}.items():
            where = dotted(at, key)
            if key not in checks:
                self.fault(where, "unknown key" if self.more else _unknown(key, checks))
                continue
            try:
                values[key] = checks[key](value, self.directory)
            except WrongValueError as wrong:
                culprit = wrong.found if wrong.inside else value
                self.fault(where + wrong.inside, f"found {found_text(culprit)}, expected {wrong.expected}")
        return values

    def sections(self, found: dict[str, object], kind: str) -> dict[str, dict[str, Any]]:
        """Return what is valid in each `[kind.NAME]`, by name."""
        checks, is_name, expected, required = SECTIONS[kind]
        sections = {}
        for name, table in found.items():
            if is_name(name):
                sections[name] = self.table(table, dotted(kind, name), checks, required)
            else:
                self.fault(dotted(kind, name), f"found {found_text(name)}, expected a name: {expected}")
        return sections

    def raise_faults(self) -> None:
        """Raise ConfigError with a line for each fault, if there is any."""
        if self.more:
            self.faults.append(f"{self.file}: and {self.more} more")
        if self.faults:
            raise ConfigError("\n".join(self.faults))


SECTIONS: dict[str, tuple[Mapping[str, Check], Callable[[str], bool], str, tuple[str, ...]]] = {
    "lease": (LEASE, is_lease_name, EXPECTED_LEASE, ()),
    "tasks": (TASK, is_task_name, EXPECTED_TASK, ()),
    "daemons": (DAEMON, is_task_name, EXPECTED_TASK, ("command",)),
}


def _unknown(key: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key[:60].lower(), known, n=1)
    return f"unknown key, did you mean {near[0]}?" if near else f"unknown key, expected one of {', '.join(known)}"


def _config(document: dict[str, object], path: str) -> Config:
    reading = _Reading(path)
    top = reading.table(document, "", TOP, ())
    leases, tasks, daemons = (reading.sections(top.pop(kind, {}), kind) for kind in SECTIONS)
    repo_sync = reading.table(top.pop("repo_sync"), "repo_sync", REPO_SYNC, ("roots",)) if "repo_sync" in top else None
    _check_scripts(tasks, reading)
    _check_own_leases(tasks, reading)
    _check_then(repo_sync or {}, tasks, reading)
    reading.raise_faults()
    return Config(
        path=os.path.join(reading.directory, os.path.basename(path)),
        directory=reading.directory,
        leases={name: LeaseSettings(**values) for name, values in leases.items()},
        tasks={name: _task(name, values) for name, values in tasks.items()},
        daemons={name: DaemonSettings(name=name, **values) for name, values in daemons.items()},
        repo_sync=None if repo_sync is None else RepoSyncSettings(**repo_sync),
        **top,
    )


def _task(name: str, values: Mapping[str, Any]) -> TaskSettings:
    """Return a task's settings; one that is not heavy has a lease to itself, so that only it keeps it from running (L14)."""
    own = {"lease": own_lease(name)} if values.get("heavy") is False else {}
    return TaskSettings(name=name, **{**own, **values})


def _check_scripts(tasks: Mapping[str, dict[str, Any]], reading: _Reading) -> None:
    """One npm script is one task: from its name alone it must be clear which."""
    owners: dict[str, str] = {}
    for name, values in tasks.items():
        found = values.get("npm_script")
        if found is not None and owners.setdefault(found, name) != name:
            words = f"found {found_text(found)}, expected a script that is not that of tasks.{owners[found]} too"
            reading.fault(f"{dotted('tasks', name)}.npm_script", words)


def _check_own_leases(tasks: Mapping[str, dict[str, Any]], reading: _Reading) -> None:
    """Fault two light tasks whose names differ only in what a lease's name cannot have: to itself means nobody else's."""
    owners: dict[str, str] = {}
    for name, values in tasks.items():
        if values.get("heavy") is False and "lease" not in values:
            own = own_lease(name)
            if owners.setdefault(own, name) != name:
                words = f"found nothing, expected the name of a lease: {own} is that of tasks.{owners[own]}"
                reading.fault(f"{dotted('tasks', name)}.lease", words)


def _check_then(repo_sync: Mapping[str, Any], tasks: Mapping[str, dict[str, Any]], reading: _Reading) -> None:
    then = repo_sync.get("then")
    if then is not None and "command" not in tasks.get(then, {}):
        which = " with a command" if then in tasks else ""
        reading.fault("repo_sync.then", f"found {found_text(then)}, expected the name of a task{which} in [tasks]")


__all__ = [
    "FOREVER",
    "Config",
    "DaemonSettings",
    "LeaseSettings",
    "RepoSyncSettings",
    "TaskSettings",
    "find",
    "load",
    "task_for_npm_script",
    "ttl_seconds",
]
