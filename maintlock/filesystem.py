"""On which filesystems flock(2) is local, and so means what it says."""

from __future__ import annotations

import os

from maintlock import process
from maintlock.errors import UnavailableError

LOCAL = frozenset(
    "ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs nilfs2 jfs reiserfs tmpfs ramfs rootfs overlay aufs ecryptfs "
    "apfs hfs ufs ffs vfat exfat ntfs3 fuseblk".split()
)


def _unescaped(field: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


def type_in_mountinfo(mountinfo: str, path: str) -> str:
    """Return the type of the filesystem that `path` (absolute, resolved) is on, or `""`; proc_pid_mountinfo(5)."""
    best, kind = -1, ""
    for row in mountinfo.splitlines():
        left, _, right = row.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = _unescaped(fields[4]).rstrip("/")
        if (path == point or path.startswith(point + "/")) and len(point) >= best:  # a later mount hides an earlier one
            best, kind = len(point), right.split(" ")[0]
    return kind


def read_type(directory: str) -> str:
    """Return the type of the filesystem that a directory is on, or `""` where nothing tells."""
    resolved = os.path.realpath(directory)
    mountinfo = process.read_text(f"{process.PROC}/self/mountinfo", 16 * 1024 * 1024)
    if mountinfo is not None:
        return type_in_mountinfo(mountinfo, resolved)
    try:
        import psutil

        parts = sorted(psutil.disk_partitions(all=True), key=lambda part: len(part.mountpoint))
    except Exception:  # a platform whose mounts cannot be listed
        return ""
    found = [p.fstype for p in parts if resolved == p.mountpoint or resolved.startswith(p.mountpoint.rstrip("/") + "/")]
    return found[-1] if found else ""


def check_local(directory: str) -> None:
    """Refuse filesystems that are not known to keep flock local.

    Raises:
        UnavailableError: Another machine might hold the same lock, and neither would know.
    """
    kind = read_type(directory)
    if kind and kind not in LOCAL:
        raise UnavailableError(
            f"{directory}: is on a filesystem of type {kind}, where a lock may be shared with other machines, or not work "
            "at all; choose another with --state-dir, or accept the risk with --allow-network-fs"
        )
