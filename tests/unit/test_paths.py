"""Where files live, and who may touch them."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from maintlock import filesystem, paths
from maintlock.errors import RefusedError, UnavailableError


def test_the_files_of_a_lease() -> None:
    """Each lease has its own lock, queue, nested and sidecar files, side by side."""
    places = paths.Places(directory="/state", lease="a.b")
    names = [places.lock, places.queue, places.nested, places.sidecar]
    assert names == ["/state/a.b.lock", "/state/a.b.queue", "/state/a.b.nested", "/state/a.b.json"]


def test_which_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Option beats environment beats configuration beats the default; each is absolute (L9)."""
    monkeypatch.chdir(tmp_path)
    environ = {"MAINTLOCK_STATE_DIR": "/env", "XDG_STATE_HOME": "/xdg"}
    assert paths.state_directory("option", environ, "/configured") == f"{tmp_path}/option"
    assert paths.state_directory(None, environ, "/configured") == "/env"
    assert paths.state_directory(None, {"MAINTLOCK_STATE_DIR": "", "XDG_STATE_HOME": "/xdg"}, "/conf") == "/conf"
    assert paths.state_directory(None, {"XDG_STATE_HOME": "/xdg"}, None) == "/xdg/maintlock"


def test_the_default_is_that_of_platformdirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anything said it is the user's state directory, as platformdirs has it (L9)."""
    from platformdirs import user_state_dir

    for base in ("/xdg", "", "  "):
        monkeypatch.setenv("XDG_STATE_HOME", base)
        assert paths.default_state_directory(os.environ) == user_state_dir("maintlock")


def test_without_a_home_there_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home directory is asked for a place, rather than given a lock of each working directory (L9)."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UnavailableError, match="use --state-dir"):
        paths.state_directory(None, {}, None)


def test_a_relative_directory_needs_a_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative state directory of a working directory that is gone is nowhere."""

    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(UnavailableError, match="working directory"):
        paths.state_directory("state", {}, None)


def test_it_is_made_for_us_alone(tmp_path: Path) -> None:
    """A missing state directory is made with its parents, 0700."""
    directory = tmp_path / "a" / "b" / "state"
    old = os.umask(0)
    try:
        paths.open_state_directory(str(directory))
    finally:
        os.umask(old)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    paths.open_state_directory(str(directory))


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    """A symlink or a file in its place is refused, with what to do (exit 77)."""
    used(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    for name, kind, says in (("link", "a symlink", "run: mv "), ("file", "a file", "use a directory that is yours")):
        with pytest.raises(RefusedError, match=f"{name}: is {kind}, not a directory; {says}") as found:
            paths.open_state_directory(str(tmp_path / name))
        assert found.value.exit_code == 77


@pytest.mark.parametrize(("mode", "run"), [(0o777, "chmod go-w"), (0o702, "chmod go-w"), (0o1777, "chmod go-w")])
def test_a_directory_that_all_may_write_is_refused(tmp_path: Path, mode: int, run: str) -> None:
    """A state directory that everybody may write is refused with the command that mends it, sticky or not."""
    directory = used(tmp_path / "it's state")
    directory.chmod(mode)
    with pytest.raises(RefusedError, match=f"everybody may write.*run: {run} '") as found:
        paths.open_state_directory(str(directory))
    assert found.value.exit_code == 77


def used(directory: Path) -> Path:
    """Return a state directory with the files of a lease."""
    directory.mkdir()
    for name in ("x.lock", "x.queue"):
        (directory / name).write_text("")
    return directory


@pytest.mark.parametrize(
    ("path", "mode", "uid"), [("/tmp", 0o41777, 0), ("/etc", 0o40755, 0), ("/etc/passwd", 0o100644, 0)]
)
def test_a_directory_that_is_not_ours_is_left_alone(
    path: str, mode: int, uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a directory without a lock file of ours no command is told that would change it, but to use another one."""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(RefusedError, match="use a directory that is yours alone: --state-dir DIR") as found:
        paths.check_trusted(path, owned(mode, uid=uid), directory=True)
    assert (found.value.exit_code, found.value.mend) == (77, "")


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o770])
def test_what_only_we_may_write_is_taken(tmp_path: Path, mode: int) -> None:
    """A directory that others may read, or that our own group may write, is taken."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    paths.open_state_directory(str(tmp_path / "state"))
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == mode


def owned(mode: int, *, uid: int | None = None, gid: int | None = None) -> os.stat_result:
    """Return what stat(2) says of somebody's file."""
    return os.stat_result(
        (mode, 1, 1, 1, os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid, 0, 0, 0, 0)
    )


def test_what_is_somebody_elses_is_refused() -> None:
    """A file of another user is refused, root's too unless it may be; another group's if that may write."""
    other = os.geteuid() + 1
    with pytest.raises(RefusedError, match=f"belongs to uid {other}.*run: chown {os.geteuid()} /x"):
        paths.check_trusted("/x", owned(stat.S_IFREG | 0o600, uid=other))
    with pytest.raises(RefusedError, match="which is not your own, may write to it; run: chmod g-w /x"):
        paths.check_trusted("/x", owned(stat.S_IFREG | 0o660, gid=os.getegid() + 1))
    paths.check_trusted("/x", owned(stat.S_IFREG | 0o640, gid=os.getegid() + 1))
    paths.check_trusted("/x", owned(stat.S_IFREG | 0o660))


def test_root_may_own_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's file is trusted where that is said, and refused where not."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    paths.check_trusted("/x", owned(stat.S_IFREG | 0o644, uid=0), root_may_own=True)
    with pytest.raises(RefusedError):
        paths.check_trusted("/x", owned(stat.S_IFREG | 0o644, uid=0))
    with pytest.raises(RefusedError):
        paths.check_trusted("/x", owned(stat.S_IFREG | 0o644, uid=1001), root_may_own=True)


RECORDS = ("ledger.db", "ledger.db-wal", "ledger.pending", "ledger.dropped", "orchestrator.json", "orchestrator.lock")
ODD: dict[str, Callable[[Path], object]] = {
    "symlink": lambda path: path.symlink_to("/etc/passwd"),
    "directory": Path.mkdir,
    "FIFO": os.mkfifo,
}


@pytest.mark.parametrize("name", ["x.json", "x.queue", "x.nested", *RECORDS])
def test_records_that_others_could_have_written_are_refused(tmp_path: Path, name: str) -> None:
    """Whatever is ours is refused where everybody may write to it."""
    places = paths.Places(directory=str(tmp_path), lease="x")
    paths.check_records(places)
    (tmp_path / name).write_text("")
    paths.check_records(places)
    (tmp_path / name).chmod(0o666)
    with pytest.raises(RefusedError, match=f"{name}: everybody may write"):
        paths.check_records(places)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["x.json", *RECORDS])
def test_an_odd_thing_in_the_place_of_a_record_is_not_in_the_way(tmp_path: Path, name: str, kind: str) -> None:
    """No job is refused for what is no record at all, where it is ours."""
    ODD[kind](tmp_path / name)
    paths.check_records(paths.Places(directory=str(tmp_path), lease="x"))


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_thing_in_the_place_of_a_flag_is_refused(tmp_path: Path, kind: str) -> None:
    """What is locked has to be a file."""
    ODD[kind](tmp_path / "x.nested")
    with pytest.raises(RefusedError, match=f"is a {kind}, not a regular file"):
        paths.check_records(paths.Places(directory=str(tmp_path), lease="x"))


def test_kinds_are_named(tmp_path: Path) -> None:
    """A message says what stands in a file's place."""
    os.mkfifo(tmp_path / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    server.close()
    for name, kind in (("fifo", "a FIFO"), ("socket", "a socket"), (".", "a directory"), ("/dev/null", "a device")):
        with pytest.raises(RefusedError, match=f"is {kind}, not a regular file"):
            paths.check_trusted(name, os.lstat(tmp_path / name))


def test_a_foreign_filesystem_is_refused_unless_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state directory on a network filesystem is not used unless that is asked for (exit 73)."""
    monkeypatch.setattr(filesystem, "read_type", lambda directory: "nfs4")
    with pytest.raises(UnavailableError, match="nfs4"):
        paths.open_state_directory(str(tmp_path))
    paths.open_state_directory(str(tmp_path), any_filesystem=True)
