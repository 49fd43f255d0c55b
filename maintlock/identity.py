"""Who we are, where nobody says otherwise."""

from __future__ import annotations

import os

_users: dict[int, str] = {}
_hosts: list[str] = []


def default_owner() -> str:
    """Return `user@host`."""
    uid = os.geteuid()
    if uid not in _users:
        _users[uid] = _user(uid)
    return f"{_users[uid]}@{host()}"


def host() -> str:
    """Return the name that this machine had when it was first asked for."""
    if not _hosts:
        _hosts.append(os.uname().nodename)
    return _hosts[0]


def _user(uid: int) -> str:
    import pwd  # built in

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid{uid}"
