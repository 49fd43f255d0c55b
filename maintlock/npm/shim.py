"""`.maintlock/wrap`: a small entry inside a project, for machines on which maintlock may be missing (team mates, CI)."""

from __future__ import annotations

import os
import stat

from maintlock import wholefile
from maintlock.errors import RefusedError
from maintlock.npm.guarded import SHIM_PATH
from maintlock.redact import printable

MODE = 0o755
TEXT = """\
#!/bin/sh
# Runs maintlock-wrap. package.json calls it through this file, which says what is wrong where
# maintlock is missing. Written by `maintlock guard --shim`; `maintlock guard --undo`
# removes it. Commit it; do not edit it.
#
#   MAINTLOCK_OPTIONAL=1    without maintlock run the command unguarded, with a warning
set -u

command -v maintlock-wrap > /dev/null && exec maintlock-wrap "$@"

name=${npm_lifecycle_event:-this}
if [ "${MAINTLOCK_OPTIONAL-}" != 1 ]; then
    printf '%s\\n' \\
        "maintlock: $name does not run without the lease of heavy jobs, but maintlock-wrap is not on PATH" \\
        "maintlock:   install it, from a checkout of maintlock: pipx install ." \\
        "maintlock:   or, where nothing else heavy can run (CI), set MAINTLOCK_OPTIONAL=1 to run unguarded" >&2
    exit 127
fi

while [ $# -gt 0 ] && [ "$1" != -- ]; do
    shift
done
if [ $# -lt 2 ]; then
    printf '%s\\n' 'maintlock: usage: sh .maintlock/wrap [options] -- COMMAND [ARG...]' >&2
    exit 64
fi
shift
printf '%s\\n' "maintlock: warning: maintlock-wrap is not on PATH and MAINTLOCK_OPTIONAL=1: $name runs unguarded" >&2
exec "$@"
"""


def path_in(directory: str) -> str:
    """Return where the shim of a package is."""
    return os.path.join(directory, SHIM_PATH)


def check(directory: str) -> bool:
    """Tell whether the shim is there already.

    Raises:
        RefusedError: Something else is in its place.
    """
    path = path_in(directory)
    parent = os.path.dirname(path)
    if os.path.lexists(parent) and not stat.S_ISDIR(os.lstat(parent).st_mode):
        raise RefusedError(f"{printable(parent)}: is no directory, and --shim would write into it")
    if not os.path.lexists(path):
        return False
    if not _is_ours(path):
        raise RefusedError(f"{printable(path)}: is not as --shim writes it, and is not overwritten; move it away")
    return True


def write(directory: str) -> bool:
    """Write the shim of a package, and tell whether that was necessary.

    Raises:
        RefusedError: Something else is in its place, or it may not be written.
        UnavailableError: It cannot be written.
    """
    if check(directory):
        return False
    path = path_in(directory)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        raise wholefile.failure(path, error) from error
    wholefile.write(path, TEXT.encode(), mode=MODE)
    return True


def remove(directory: str) -> bool:
    """Remove the shim if it is as it was written, and its directory if nothing else is in it; tell whether it was."""
    path = path_in(directory)
    if not _is_ours(path):
        return False
    try:
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass
    return not os.path.lexists(path)


def _is_ours(path: str) -> bool:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return file.read(len(TEXT) + 1) == TEXT.encode()
    except OSError:
        return False
