"""What `maintlock status --json` prints and `maintlock.status()` returns, typed. Times in it are RFC 3339 UTC."""

from __future__ import annotations

from typing import TypedDict


class Process(TypedDict):
    """One process of the job; `rss_bytes` is None where the platform does not tell."""

    pid: int
    name: str
    rss_bytes: int | None


class Holder(TypedDict):
    """The sidecar's fields, and what is seen of its processes.

    `alive` is None where it cannot be known from here (another pid namespace). `held_seconds` is None where the sidecar
    names no time. `rss_bytes` is the sum over all processes.
    """

    schema: int
    lease: str
    lease_id: str
    fence: int
    task: str
    owner: str
    source: str
    reason: str
    mode: str
    pid: int
    pid_started_at: str
    pid_start_ticks: int
    boot_id: str
    pid_namespace: str
    session_id: int
    hostname: str
    uid: int
    job_pid: int | None
    job_started_at: str | None
    command: list[str]
    cwd: str
    acquired_at: str
    waited_seconds: float
    ttl_seconds: float
    alive: bool | None
    stopped: bool
    held_seconds: float | None
    overdue: bool
    processes: list[Process]
    rss_bytes: int


class Waiter(TypedDict):
    """One request in the queue."""

    task: str | None
    pid: int
    since: str


class Nested(TypedDict):
    """One job that has joined the holder's."""

    task: str | None
    pid: int
    reason: str | None
    started_at: str


class CollisionReport(TypedDict):
    """Two heavy pieces of work at once, or a state that would allow it."""

    kind: str
    detail: str | None
    since: str


class Status(TypedDict):
    """Who has the lease.

    `state` is one of `free held orphaned unknown`, `sidecar` one of `valid missing stale malformed unreadable`; `path` is
    that of the lock file; `detail` is for people, and None where there is nothing to add.
    """

    lease: str
    state: str
    backend: str
    scope: str
    path: str
    holder: Holder | None
    sidecar: str
    detail: str | None
    waiters: list[Waiter]
    nested: list[Nested]
    collisions: list[CollisionReport]
