"""What the exporter watches: the configured leases, tasks and daemons, and the one way to name a task in a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from maintlock import entries, marks
from maintlock.names import DEFAULT_LEASE
from maintlock.paths import Places

if TYPE_CHECKING:
    from maintlock.config import Config

OTHER = "other"


@dataclass(frozen=True)
class Scene:
    """A state directory and its configuration, as it was when the exporter started or was told to read it anew.

    `started_at` is that moment, in epoch seconds.
    """

    directory: str
    config: Config
    started_at: float

    @property
    def leases(self) -> tuple[str, ...]:
        """All leases that the configuration names, and the default one."""
        named = {DEFAULT_LEASE, *self.config.leases, *(task.lease for task in self.config.tasks.values())}
        return tuple(sorted(named))

    def configured(self, lease: str) -> tuple[str, ...]:
        """Return the configured tasks of one lease; one that is itself called `other` is not told from the rest."""
        return tuple(sorted(name for name, task in self.config.tasks.items() if task.lease == lease and name != OTHER))

    def tasks(self, lease: str) -> tuple[str, ...]:
        """Return the task labels of one lease: its configured tasks, and the one that stands for all others."""
        return (*self.configured(lease), OTHER)

    def kinds(self, lease: str) -> tuple[str, ...]:
        """Return the kinds of collision that there can be on a lease: where nothing is recognised, nothing is outside."""
        is_watched = lease == DEFAULT_LEASE or any(
            task.heavy and task.match and task.lease == lease for task in self.config.tasks.values()
        )
        return tuple(sorted(entries.COLLISION_KINDS if is_watched else entries.COLLISION_KINDS - marks.KINDS))

    def label(self, task: str | None, lease: str) -> str:
        """Return the label for a task's name: jobs can bear any name, and each label is a series for ever."""
        known = self.config.tasks.get(task) if task is not None else None
        return known.name if known is not None and known.lease == lease else OTHER

    def places(self, lease: str) -> Places:
        """Return where a lease lives."""
        return Places(directory=self.directory, lease=lease)
