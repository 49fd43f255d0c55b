"""Jobs: each due task runs under a `maintlock-wrap` of its own, which outlives us; here they are started, and their ends heard.

The wrapper has all that it needs on its command line. What became of it stands in its outcome file, also for a successor.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from maintlock import config as configuration
from maintlock import launch, outside, process
from maintlock.model import replace
from maintlock.orchestrator import children, ends
from maintlock.orchestrator.backpressure import SOURCE
from maintlock.orchestrator.children import Child
from maintlock.orchestrator.record import Started

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from maintlock.config import Config
    from maintlock.orchestrator.cadence import Due
    from maintlock.orchestrator.ends import End

OUTCOME = "--outcome"
LEASE = "--lease="


class Jobs:
    """The jobs that we, or an orchestrator before us, have started and that have not ended."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.running: dict[str, Child] = {}

    def adopt(self, recorded: Mapping[str, Started]) -> None:
        """Take over what a predecessor has started, also what it had no time to put on record (R8)."""
        for task, started in {**recorded, **self._unrecorded()}.items():
            if children.is_ours(started) and self._is_wrapper(started.identity.pid, task):
                self.running[task] = Child(started)

    def _unrecorded(self) -> dict[str, Started]:
        """Return the wrappers that work for us, by task: they name their outcome file."""
        prefix, suffix = self._outcome_path("\n").split("\n")
        found = {}
        for pid in process.read_pids():
            said = outside.read_argv(pid)
            at_most = said[:-1][:4]  # anybody's command line may end in that word
            path = said[at_most.index(OUTCOME) + 1] if OUTCOME in at_most else ""
            if path.startswith(prefix) and path.endswith(suffix) and children.is_our_users(pid):
                identity = process.read_identity(pid)
                at = process.started_at(identity) or time.time()
                task = path.removeprefix(prefix).removesuffix(suffix)
                found[task] = Started(identity=identity, at=at, lease=_lease_in(said))
        return found

    def _is_wrapper(self, pid: int, task: str) -> bool:
        said = outside.read_argv(pid)
        return not said or {OUTCOME, self._outcome_path(task)} <= {*said[:5]}  # nothing said: nothing tells

    def start(self, due: Due, config: Config) -> Child:
        """Start a due task.

        Raises:
            OSError: Its wrapper cannot be started.
        """
        task = due.task
        argv = launch.wrap_arguments(
            task,
            directory=self._directory,
            ttl_seconds=configuration.ttl_seconds(config, task.lease, task),
            reason=due.reason,
            source=SOURCE,
        )
        outcome = self._outcome_path(task.name)
        with suppress(OSError):
            os.unlink(outcome)  # a predecessor's, who did not live to read it
        child = children.start(
            [argv[0], OUTCOME, outcome, *argv[1:]],
            directory=self._directory,
            log_name=task.name,
            cwd=task.cwd or config.directory,
            environ=children.environment(os.environ, task.env, directory=self._directory, config=config.path),
            reason=due.reason,
        )
        child.started = replace(child.started, lease=task.lease)
        self.running[task.name] = child
        return child

    def ended(self) -> list[End]:
        """Return how those ended that have, since the last time that this was asked."""
        found = []
        for task, child in [*self.running.items()]:
            if not child.is_alive():
                del self.running[task]
                found.append(self._end(task, child))
        return found

    def started(self) -> dict[str, Started]:
        """Return those that run, for the record."""
        return {task: child.started for task, child in self.running.items()}

    def stop(self) -> None:
        """Ask every wrapper to stop its job: TERM, its own grace, KILL."""
        for child in self.running.values():
            child.send_signal(signal.SIGTERM)

    def _end(self, task: str, child: Child) -> End:
        path = self._outcome_path(task)
        fields = ends.read_outcome(path)
        with suppress(OSError):
            os.unlink(path)
        return ends.end_of(task, fields, child.exit_code, children.log_path(self._directory, task))

    def _outcome_path(self, task: str) -> str:
        return f"{self._directory}/{children.LOGS}/{task}.outcome.json"


def _lease_in(argv: Sequence[str]) -> str:
    """Return the lease that a wrapper's command line names: it was written by `launch`."""
    return next((word.removeprefix(LEASE) for word in argv if word.startswith(LEASE)), "")
