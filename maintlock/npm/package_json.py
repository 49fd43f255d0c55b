"""`package.json`: where each npm script stands in it, to the byte, and how to replace one and nothing else.

A script is handled as it is written between its quotation marks, escapes and all ("raw"): what is put around it can be
taken off again without changing how the file's author writes `/`, `'` or `é`.
"""

from __future__ import annotations

import json
import os
import stat

from maintlock import wholefile
from maintlock.errors import RefusedError, UnavailableError, UsageError
from maintlock.model import record
from maintlock.paths import upwards
from maintlock.redact import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, NoReturn

FILE_NAME = "package.json"
MAX_BYTES = 16 << 20
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
BOM = "\ufeff"
BLANKS = " \t\n\r"


class NoPackageError(UsageError):
    """There is no `package.json` here or above."""


@record(frozen=True, kw_only=True)
class Script:
    """One npm script: its text as npm runs it, as it is written (`raw`), and where that begins and ends in the file."""

    name: str
    text: str
    raw: str
    start: int
    end: int


@record(frozen=True, kw_only=True)
class PackageJson:
    """One file as it was read. `path` is the one that was named, `target` what it leads to.

    `odd` are scripts that cannot be edited, with the reason.
    """

    path: str
    target: str
    text: str
    status: os.stat_result
    document: Mapping[str, Any]
    scripts: Mapping[str, Script]
    odd: Mapping[str, str]

    @property
    def directory(self) -> str:
        """The directory that npm runs the scripts in."""
        return os.path.dirname(self.path)


def find(option: str | None, cwd: str) -> str:
    """Return the absolute path of the file named, else of the `package.json` that npm would take here.

    Raises:
        NoPackageError: There is none.
    """
    if option is not None:
        path = os.path.join(cwd, option)
        if os.path.isdir(path):
            path = os.path.join(path, FILE_NAME)
        return os.path.normpath(path)
    for directory in upwards(cwd):
        if os.path.lexists(candidate := os.path.join(directory, FILE_NAME)):
            return candidate
    raise NoPackageError(
        f"no {FILE_NAME} in {printable(cwd)} or above; change to the project, or name it with --package-json FILE"
    )


def read(path: str) -> PackageJson:
    """Return a `package.json`, checked to be one.

    Raises:
        UsageError: It is missing, broken, or its scripts are no scripts.
        RefusedError: It may not be read.
    """
    target = os.path.realpath(path)
    data, status = _contents(path, target)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        _broken(path, f"not UTF-8 at byte {error.start}")
    document = _document(text, path)
    if not isinstance(document, dict):
        _broken(path, "not an object at its top")
    scripts, odd = _scripts(text, path)
    return PackageJson(
        path=path, target=target, text=text, status=status, document=document, scripts=scripts, odd=odd
    )  # fmt: skip


def _contents(path: str, target: str) -> tuple[bytes, os.stat_result]:
    try:
        fd = os.open(target, READ_FLAGS)
    except FileNotFoundError:
        where = f" (a symlink to {printable(target)})" if os.path.islink(path) else ""
        raise UsageError(f"{printable(path)}: no such file{where}") from None
    except PermissionError:
        raise RefusedError(f"{printable(path)}: you may not read it") from None
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        _broken(path, "not a regular file")
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        _broken(path, f"longer than {MAX_BYTES} bytes")
    return data, status


def _broken(path: str, what: str) -> NoReturn:
    raise UsageError(f"{printable(path)}: {what}; nothing was changed")


def _document(text: str, path: str) -> Any:
    try:
        return json.loads(text.removeprefix(BOM), parse_constant=_no_constant)
    except RecursionError:
        _broken(path, "nested too deeply")
    except json.JSONDecodeError as error:
        _broken(path, f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}")
    except ValueError as error:
        _broken(path, f"not JSON: {printable(error, 120)}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


# Where things are ----------------------------------------------------------------------------------------------------


@record(frozen=True, kw_only=True)
class _Member:
    """One `"name": value` of an object, and where the value begins and ends."""

    name: str
    value: Any
    start: int
    end: int


def _members(text: str, at: int) -> Iterable[_Member]:
    """Find the members of the object that begins at `at`, in a text that is known to be valid JSON."""
    decoder = json.JSONDecoder()
    at = _after_blanks(text, at + 1)
    while text[at] != "}":
        name, at = decoder.raw_decode(text, at)
        start = _after_blanks(text, _after_blanks(text, at) + 1)  # past the colon
        value, end = decoder.raw_decode(text, start)
        yield _Member(name=name, value=value, start=start, end=end)
        at = _after_blanks(text, end)
        if text[at] == ",":
            at = _after_blanks(text, at + 1)


def _after_blanks(text: str, at: int) -> int:
    while text[at] in BLANKS:
        at += 1
    return at


def _scripts(text: str, path: str) -> tuple[dict[str, Script], dict[str, str]]:
    found = [m for m in _members(text, text.index("{")) if m.name == "scripts"]
    if not found:
        return {}, {}
    if len(found) > 1:
        _broken(path, '"scripts" appears twice')
    if not isinstance(found[0].value, dict):
        _broken(path, '"scripts" is not an object')
    scripts: dict[str, Script] = {}
    odd: dict[str, str] = {}
    for member in _members(text, found[0].start):
        if not isinstance(member.value, str):
            odd[member.name] = "is not a string"
            continue
        if member.name in scripts or member.name in odd:
            odd[member.name] = "appears twice"
        raw = text[member.start + 1 : member.end - 1]
        scripts[member.name] = Script(
            name=member.name, text=member.value, raw=raw, start=member.start + 1, end=member.end - 1
        )  # fmt: skip
    return scripts, odd


# Changing it ---------------------------------------------------------------------------------------------------------


def edited(package: PackageJson, changes: Mapping[str, str]) -> str:
    """Return the file's text with some scripts replaced; `changes` gives their new raw texts by name."""
    text = package.text
    for script in sorted((package.scripts[name] for name in changes), key=lambda s: s.start, reverse=True):
        text = text[: script.start] + changes[script.name] + text[script.end :]
    expected = {**package.document, "scripts": {**package.document.get("scripts", {})}}
    expected["scripts"].update({name: decoded(raw) for name, raw in changes.items()})
    if changes and json.loads(text.removeprefix(BOM)) != expected:
        raise AssertionError(f"{package.path}: the edit would change more than these scripts")
    return text


def decoded(raw: str) -> str:
    """Return the string that is written as `raw` between quotation marks."""
    text: str = json.loads(f'"{raw}"')
    return text


def check_writable(package: PackageJson) -> None:
    """Refuse to replace a file that its owner has protected, that is somebody else's, or that has other names.

    Raises:
        RefusedError: With what would make it possible.
    """
    status, file = package.status, printable(package.target)
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        raise RefusedError(f"{file}: belongs to uid {status.st_uid}, not to you; nothing was changed")
    if not status.st_mode & 0o222:
        raise RefusedError(f"{file}: is read-only; nothing was changed; to allow it: chmod u+w")
    if status.st_nlink > 1:
        raise RefusedError(
            f"{file}: has {status.st_nlink} names (hard links), and replacing it would part them; nothing was changed; "
            "make it a file of its own first: cp it, and mv the copy over it"
        )


def write(package: PackageJson, text: str) -> None:
    """Replace the file, unless it has been changed since it was read.

    Raises:
        RefusedError: It may not be replaced.
        UnavailableError: It cannot be written, or has been changed meanwhile.
    """
    check_writable(package)

    def check_unchanged() -> None:
        now = read(package.path)
        same = (now.status.st_dev, now.status.st_ino) == (package.status.st_dev, package.status.st_ino)
        if not same or now.text != package.text:
            raise UnavailableError(f"{printable(package.path)}: changed meanwhile, and left as it is; run it again")

    wholefile.write(package.target, text.encode(), like=package.status, before_rename=check_unchanged)


# Workspaces ----------------------------------------------------------------------------------------------------------


def workspaces(package: PackageJson) -> list[str]:
    """Return the `package.json` files of a project's workspaces, each of which has scripts of its own."""
    from glob import glob

    listed = package.document.get("workspaces")
    patterns = listed.get("packages") if isinstance(listed, dict) else listed
    if not isinstance(patterns, list):
        return []
    found: set[str] = set()
    for pattern in (p for p in patterns if isinstance(p, str) and p):
        excluded = pattern.startswith("!")
        names = glob(os.path.join(pattern.lstrip("!"), FILE_NAME), root_dir=package.directory, recursive=True)
        here = {os.path.normpath(name) for name in names if "node_modules" not in name.split(os.sep)}
        found = found - here if excluded else found | here
    return sorted(os.path.join(package.directory, name) for name in found)
