"""Starting a command: as a child of ours, or in our own place."""

from __future__ import annotations

import errno
import os

from maintlock.errors import CommandError, CommandNotExecutableError, CommandNotFoundError
from maintlock.redact import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import NoReturn


def started(
    command: Sequence[str], environ: Mapping[str, str], *, mask: Iterable[int], default: Iterable[int], own_group: bool
) -> int:
    """Start a command as our child and return its pid; `mask` is its signal mask, `default` what it is not to ignore.

    Raises:
        CommandError: It cannot be started.
    """
    group = {"setpgroup": 0} if own_group else {}  # absent is not the same as 0 here
    try:
        return os.posix_spawnp(
            command[0],
            list(command),
            environ,
            setsigmask=mask,
            setsigdef=default,
            **group,  # type: ignore[arg-type]  # the other options have other types
        )
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise _failure(command, error) from error
    except ValueError as error:
        raise CommandNotFoundError(f"{command[0]!r}: no command can have this name: {error}") from error
    return started(_for_shell(command, environ), environ, mask=mask, default=default, own_group=own_group)


def become(command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Become the command; this returns only by an error.

    Raises:
        CommandError: It cannot be started.
    """
    try:
        os.execvpe(command[0], list(command), environ)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise _failure(command, error) from error
    become(_for_shell(command, environ), environ)


def _failure(command: Sequence[str], error: OSError) -> CommandError:
    """Return the error to raise for a command that could not be started."""
    name = printable(command[0])
    is_there = "/" in command[0] and os.path.exists(command[0])
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG} and not is_there:
        is_line = len(command) == 1 and " " in command[0]
        hint = (
            "the whole command was passed as one word; remove the quotes, or use: sh -c"
            if is_line
            else "is it installed, and on PATH?"
        )
        return CommandNotFoundError(f"{name}: command not found; {hint}")
    hint = "; if it should be executable: chmod +x" if error.errno == errno.EACCES else ""
    return CommandNotExecutableError(f"{name}: cannot be executed: {error.strerror}{hint}")


def _for_shell(command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return the call for a script that names no interpreter, as execvp(3) makes it."""
    name = command[0]
    if "/" not in name:
        places = [os.path.join(place, name) for place in environ.get("PATH", os.defpath).split(os.pathsep)]
        name = next((place for place in places if os.access(place, os.X_OK)), name)
    return ["/bin/sh", name, *command[1:]]
