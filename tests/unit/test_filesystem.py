"""On which filesystems a lock is local."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from maintlock import filesystem, process
from maintlock.errors import UnavailableError

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /dev rw - devtmpfs devtmpfs rw
30 22 0:40 / /home rw,relatime shared:2 master:1 - nfs4 server:/home rw,vers=4.2
31 30 0:41 / /home/me/local\040disk rw - xfs /dev/sdb1 rw
32 22 0:42 / /mnt/back\134slash rw - fuse.sshfs host:/ rw
33 22 0:43 / /over rw - tmpfs tmpfs rw
34 33 0:44 / /over rw - 9p host rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/state", "nfs4"),
        ("/homely", "ext4"),
        ("/home/me/local disk", "xfs"),
        ("/home/me/local disk/state", "xfs"),
        ("/home/me/local", "nfs4"),
        ("/mnt/back\\slash/x", "fuse.sshfs"),
        ("/over/x", "9p"),
    ],
)
def test_the_filesystem_of_a_path(path: str, kind: str) -> None:
    """A path is on the filesystem of the longest mount point above it, and of those the last one mounted."""
    assert filesystem.type_in_mountinfo(MOUNTS, path) == kind


def test_nothing_is_made_up() -> None:
    """A table that names no mount point of a path gives no type."""
    assert filesystem.type_in_mountinfo("", "/x") == ""
    assert filesystem.type_in_mountinfo("1 2 3", "/x") == ""


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give a process table in which `/` is mounted as `self/mountinfo` will say."""
    (tmp_path / "self").mkdir()
    monkeypatch.setattr(process, "PROC", str(tmp_path))
    return tmp_path / "self" / "mountinfo"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "apfs"])
def test_local_filesystems_are_taken(kind: str, mounted: Path) -> None:
    """On a filesystem that is known to keep flock local there is nothing to say."""
    mounted.write_text(f"1 0 0:1 / / rw - {kind} none rw\n")
    assert filesystem.read_type("/somewhere") == kind
    filesystem.check_local("/somewhere")


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "lustre", "virtiofs", "new"]
)
def test_other_filesystems_are_not(kind: str, mounted: Path) -> None:
    """On any other the message names directory, type and the two ways out."""
    mounted.write_text(f"1 0 0:1 / / rw - {kind} none rw\n")
    with pytest.raises(UnavailableError, match=f"/somewhere: .*type {kind}.*--state-dir.*--allow-network-fs") as found:
        filesystem.check_local("/somewhere")
    assert found.value.exit_code == 73


def test_this_directory_has_a_type(tmp_path: Path) -> None:
    """The kernel tells what a directory that exists is on."""
    assert filesystem.read_type(str(tmp_path))


def partition(mountpoint: str, kind: str) -> SimpleNamespace:
    """Return a row of psutil's table."""
    return SimpleNamespace(mountpoint=mountpoint, fstype=kind)


def test_without_proc_it_is_found_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc nothing is refused that is not known to be bad."""
    monkeypatch.setattr(process, "PROC", str(tmp_path / "missing"))
    table = [partition(str(tmp_path), "ext4"), partition("/", "nfs4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: table)
    filesystem.check_local(str(tmp_path))
    with pytest.raises(UnavailableError, match="type nfs4"):
        filesystem.check_local("/")
    table.clear()
    assert filesystem.read_type("/") == ""
    filesystem.check_local("/")
    monkeypatch.delattr(psutil, "disk_partitions")
    assert filesystem.read_type("/") == ""
    filesystem.check_local("/")
