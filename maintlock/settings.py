"""Typed settings, with their defaults: what the rest of the programs see of `maintlock.toml`.

Durations are seconds, paths are absolute, and None stands for an absent key. The field names are the keys of the file.
"""

from __future__ import annotations

from maintlock.model import record
from maintlock.names import DEFAULT_LEASE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_TTL = 6 * 3600.0
DEFAULT_HISTORY = 90 * 86400.0
FOREVER = float("inf")
NO_ENVIRONMENT: Mapping[str, str] = {}


@record(frozen=True, kw_only=True)
class LeaseSettings:
    """One `[lease.NAME]`: `ttl` in seconds, after which a holder is reported as overdue."""

    ttl: float = DEFAULT_TTL


@record(frozen=True, kw_only=True)
class TaskSettings:
    """One `[tasks.NAME]`.

    `wait` is None for not waiting at all and `FOREVER` for no limit; `interval` is 0 for never due by itself (R11);
    `stop_grace` is None for the wrapper's own; `inbox` is a glob pattern; `match` is a base name.
    """

    name: str
    command: tuple[str, ...] | None = None
    npm_script: str | None = None
    interval: float = 0.0
    heavy: bool = True
    lease: str = DEFAULT_LEASE
    max_runtime: float | None = None
    wait: float | None = None
    defer_exit_code: int | None = None
    stop_grace: float | None = None
    ttl: float | None = None
    cwd: str | None = None
    env: Mapping[str, str] = NO_ENVIRONMENT
    rest: float | None = None
    match: str | None = None
    inbox: str | None = None

    @property
    def rest_seconds(self) -> float:
        """Return the minimum pause after a run: a tenth of the interval unless configured (L6)."""
        return self.interval / 10 if self.rest is None else self.rest


@record(frozen=True, kw_only=True)
class DaemonSettings:
    """One `[daemons.NAME]`: kept running outside the lease, restarted `cooldown` seconds later at the earliest (R5)."""

    name: str
    command: tuple[str, ...]
    cooldown: float = 15.0
    cwd: str | None = None
    env: Mapping[str, str] = NO_ENVIRONMENT


@record(frozen=True, kw_only=True)
class RepoSyncSettings:
    """`[repo_sync]`: the paths of the repositories, and the name of the task that runs nested after a pull (R7)."""

    roots: tuple[str, ...]
    then: str | None = None


@record(frozen=True, kw_only=True)
class Config:
    """Everything that can be configured; `path` and `directory` are None where there is no file, `history` where it says none."""

    leases: Mapping[str, LeaseSettings]
    tasks: Mapping[str, TaskSettings]
    daemons: Mapping[str, DaemonSettings]
    path: str | None = None
    directory: str | None = None
    state_dir: str | None = None
    poll_interval: float = 3.0
    starved_after: float = 2 * 3600.0
    history: float | None = None
    repo_sync: RepoSyncSettings | None = None


def task_for_npm_script(config: Config, script: str) -> TaskSettings | None:
    """Return the task whose `npm_script` is `script`, or None."""
    for task in config.tasks.values():
        if task.npm_script == script:
            return task
    return None


def ttl_seconds(config: Config, lease: str, task: TaskSettings | None = None) -> float:
    """Return after how many seconds a holder of `lease` is overdue: as the task says, else the lease, else 6 h."""
    if task is not None and task.ttl is not None:
        return task.ttl
    return config.leases[lease].ttl if lease in config.leases else DEFAULT_TTL
