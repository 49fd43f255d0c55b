"""Where files live, and who may touch them."""

from __future__ import annotations

import errno
import os
import stat
import sys

from maintlock.errors import RefusedError, UnavailableError
from maintlock.model import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NoReturn

    from maintlock.errors import MaintlockError

APPLICATION = "maintlock"
PENDING_FILES = ("ledger.pending", "ledger.pending.1", "ledger.pending.2", "ledger.pending.3")
RECORDS = ("ledger.db", "ledger.db-wal", "ledger.db-shm", *PENDING_FILES, "ledger.dropped")
OF_ORCHESTRATOR = ("orchestrator.json", "orchestrator.lock")
_local: set[tuple[str, int]] = set()  # directories, and the devices that they were found on
NO_DESCRIPTOR_LEFT = frozenset({errno.EMFILE, errno.ENFILE})
USE_ANOTHER = "use a directory that is yours alone: --state-dir DIR, or MAINTLOCK_STATE_DIR"
REFUSED_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO})


@record(frozen=True, kw_only=True)
class Places:
    """The files of one lease in one state directory."""

    directory: str
    lease: str

    @property
    def lock(self) -> str:
        """The file whose flock is the lease."""
        return f"{self.directory}/{self.lease}.lock"

    @property
    def queue(self) -> str:
        """The flag that somebody waits."""
        return f"{self.directory}/{self.lease}.queue"

    @property
    def nested(self) -> str:
        """The flag that joined jobs run."""
        return f"{self.directory}/{self.lease}.nested"

    @property
    def sidecar(self) -> str:
        """The JSON record that describes the holder."""
        return f"{self.directory}/{self.lease}.json"


def upwards(directory: str) -> Iterator[str]:
    """Yield an absolute directory and its parents, nearest first."""
    yield directory
    while (parent := os.path.dirname(directory)) != directory:
        directory = parent
        yield directory


def default_state_directory(environ: Mapping[str, str]) -> str:
    """Return what `platformdirs.user_state_dir("maintlock")` returns.

    On Linux that is one environment variable; to import platformdirs for it would cost 1.7 interpreter starts.
    """
    if sys.platform.startswith("linux"):
        base = environ.get("XDG_STATE_HOME", "")
        found = os.path.join(base if base.strip() else os.path.expanduser("~/.local/state"), APPLICATION)
        if found.startswith("~"):  # a directory of this name below every place we are started in would be many locks
            raise UnavailableError("no state directory: HOME is not set, and this user has none; use --state-dir DIR")
        return found
    from platformdirs import user_state_dir

    return user_state_dir(APPLICATION)


def default_or_none(environ: Mapping[str, str]) -> str | None:
    """Return the default state directory, or None for a user without a home: who names another one needs none."""
    try:
        return default_state_directory(environ)
    except UnavailableError:
        return None


def state_directory(option: str | None, environ: Mapping[str, str], configured: str | None) -> str:
    """Return the absolute state directory: option, environment, configuration, default; first hit wins.

    Symlinks on the way to it are resolved, so that one directory has one name; a symlink in its own place is refused later.

    Raises:
        UnavailableError: There is no home directory, or no working directory, to find it in.
    """
    chosen = option or environ.get("MAINTLOCK_STATE_DIR") or configured or default_state_directory(environ)
    try:
        parent, name = os.path.split(os.path.abspath(chosen))
        return os.path.join(os.path.realpath(parent), name)
    except OSError as error:
        raise UnavailableError(f"{chosen}: is relative, and the working directory is gone: {error.strerror}") from error


def open_state_directory(directory: str, *, any_filesystem: bool = False) -> None:
    """Make sure that the state directory is there, ours alone to write, and on a filesystem whose flock is local.

    Raises:
        RefusedError: It is not a directory, or a symlink to one, or somebody else could write to it.
        UnavailableError: It cannot be made, or flock may not be local on its filesystem.
    """
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        found = _made(directory)
    except OSError as error:
        raise open_failure(directory, error) from error
    check_trusted(directory, found, directory=True)
    if not any_filesystem and (directory, found.st_dev) not in _local:
        from maintlock import filesystem

        filesystem.check_local(directory)
        _local.add((directory, found.st_dev))


def _made(directory: str) -> os.stat_result:
    try:
        _make(directory)
        return os.lstat(directory)
    except OSError as error:
        raise open_failure(directory, error) from error


def _make(directory: str) -> None:
    """Make a directory and its missing parents, each for us alone (XDG Base Directory) whatever the umask."""
    missing = [directory]
    while not os.path.lexists(parent := os.path.dirname(missing[-1])):
        missing.append(parent)
    for path in reversed(missing):
        try:
            os.mkdir(path, mode=0o700)
        except FileExistsError:
            continue  # somebody else has made it meanwhile: who it belongs to is judged anyway
        if os.lstat(path).st_mode & 0o700 != 0o700:
            os.chmod(path, 0o700)  # the umask took more than it should


def check_trusted(path: str, found: os.stat_result, *, directory: bool = False, root_may_own: bool = False) -> None:
    """Refuse what is no regular file (or directory), or what somebody else owns or may write.

    Raises:
        RefusedError: With the command that mends it; for a directory that others use, with the advice to
            use another one.
    """
    expected, is_expected = ("a directory", stat.S_ISDIR) if directory else ("a regular file", stat.S_ISREG)
    if not is_expected(found.st_mode):
        _refuse(path, f"is {_kind(found.st_mode)}, not {expected}", "mv", path, path + ".odd", directory=directory)
    _check_owner(path, found, directory=directory, root_may_own=root_may_own)


def _check_owner(path: str, found: os.stat_result, *, directory: bool = False, root_may_own: bool = False) -> None:
    """Refuse what somebody else owns or may write, whatever it is; a symlink has no mode of its own."""
    user, owner, mode = os.geteuid(), found.st_uid, found.st_mode
    if owner != user and not (root_may_own and owner == 0):
        _refuse(path, f"belongs to uid {owner}, not to you (uid {user})", "chown", str(user), path, directory=directory)
    if stat.S_ISLNK(mode):
        return
    if mode & stat.S_IWOTH:
        _refuse(path, "everybody may write to it", "chmod", "go-w", path, directory=directory)
    if mode & stat.S_IWGRP and found.st_gid != os.getegid():
        wrong = f"group {found.st_gid}, which is not your own, may write to it"
        _refuse(path, wrong, "chmod", "g-w", path, directory=directory)


def _refuse(path: str, wrong: str, *mend: str, directory: bool) -> NoReturn:
    if directory and not is_for_us(path):
        raise RefusedError(f"{path}: {wrong}; {USE_ANOTHER}")
    raise RefusedError(f"{path}: {wrong}", mend=_command(*mend))


def is_for_us(directory: str) -> bool:
    """Tell whether a directory is empty, or has a lock file of ours in it: any other one is used by others."""
    try:
        names = set(os.listdir(directory))
    except OSError:
        return False
    return not names or any(name.endswith(".lock") and f"{name.removesuffix('.lock')}.queue" in names for name in names)


def check_records(places: Places) -> None:
    """Refuse to work beside a file that somebody else could have written.

    An odd thing in the place of a record is nothing to stop a job for: a sidecar is replaced, a ledger cannot be used.

    Raises:
        RefusedError: With the command that mends it.
    """
    for path in (places.queue, places.nested):
        if (found := _read_stat(path)) is not None:
            check_trusted(path, found)
    for name in (*RECORDS, *OF_ORCHESTRATOR):
        path = f"{places.directory}/{name}"
        if (found := _read_stat(path)) is not None:
            _check_owner(path, found)
    found = _read_stat(places.sidecar)
    if found is not None and stat.S_ISREG(found.st_mode):
        _check_owner(places.sidecar, found)


def _read_stat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def working_directory(*, gone: str = "/") -> str:
    """Return the working directory, or `gone` where that has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return gone


def _command(*words: str) -> str:
    from shlex import join

    return join(words)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a symlink",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFREG: "a file",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def open_failure(path: str, error: OSError) -> MaintlockError:
    """Return the error to raise for a file of ours that could not be opened: refused, or not available."""
    try:
        kind = _kind(os.lstat(path).st_mode)
    except OSError:
        kind = "a file"
    if kind != "a file" and error.errno in REFUSED_ERRNOS:
        return RefusedError(f"{path}: is {kind}", mend=_command("mv", path, path + ".odd"))
    if error.errno in REFUSED_ERRNOS:
        return RefusedError(
            f"{path}: {error.strerror}; it and its directory must be yours, see: {_command('ls', '-ld', os.path.dirname(path))}"
        )
    if error.errno in NO_DESCRIPTOR_LEFT:
        return UnavailableError(f"{path}: {error.strerror}; see: ulimit -n")
    return UnavailableError(f"{path}: {error.strerror}; see: {_command('df', os.path.dirname(path))}")
