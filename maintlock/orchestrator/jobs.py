"""Jobs: each due task runs under a `maintlock-wrap` of its own, which outlives us; here they are started, and their ends heard.

The wrapper has all that it needs on its command line. What became of it stands in its outcome file, also for a successor.

    started ──has its lease──> begun ──its wrapper ends──> ended
       └──refused, or stopped while it waits──> ended       └──is killed, and its job works on──> orphaned ──> ended
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from maintlock import config as configuration
from maintlock import custody, events, launch, outside, pending, process
from maintlock import line as line_file
from maintlock import outcome as outcome_file
from maintlock.errors import MaintlockError
from maintlock.job import DEFAULT_GRACE_SECONDS
from maintlock.model import record, replace
from maintlock.orchestrator import children, ends
from maintlock.orchestrator.backpressure import SOURCE
from maintlock.orchestrator.children import Child
from maintlock.orchestrator.record import Started
from maintlock.paths import Places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from maintlock.config import Config
    from maintlock.model import Line
    from maintlock.orchestrator.cadence import Due
    from maintlock.orchestrator.ends import End
    from maintlock.process import Stat
    from maintlock.settings import TaskSettings

OUTCOME = "--outcome"
LEASE = "--lease="
ASKING_SECONDS = 2.0  # after that, whoever has no lease yet may be waiting for it for long


@record(frozen=True, kw_only=True)
class Begun:
    """A job has got its lease."""

    task: str
    reason: str
    pid: int


@record(frozen=True, kw_only=True)
class Orphaned:
    """A job's wrapper was killed, and parts of the job work on; `pids` are some of theirs."""

    task: str
    pids: tuple[int, ...]


class Jobs:
    """The jobs that we, or an orchestrator before us, have started and that have not ended.

    `running` are those whose wrappers live, `orphaned` those that work on without one.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.running: dict[str, Child] = {}
        self.orphaned: dict[str, tuple[Child, Line]] = {}
        self._asking_deadline = 0.0
        self._kill_deadlines: dict[str, float] = {}  # monotonic, by orphaned task that is being stopped

    def adopt(self, recorded: Mapping[str, Started]) -> None:
        """Take over what a predecessor has started, also what it had no time to put on record (R8)."""
        found = self._read_wrappers()
        for task, known in recorded.items():
            if task not in found or found[task].identity == known.identity:
                found[task] = known  # which knows more
        for task, started in found.items():
            child = Child(started)
            line = self._line_of(child)
            child.is_begun = line is not None
            if children.is_ours(started) and self._is_wrapper(started.identity.pid, task):
                self.running[task] = child
            elif line is not None and not line.outcome and self._survivors(child, line):
                self.orphaned[task] = child, line

    def _read_wrappers(self) -> dict[str, Started]:
        """Return the wrappers that work for us, by task: they name their outcome file."""
        prefix, suffix = self._outcome_path("\n").split("\n")
        found = {}
        for pid in process.read_pids():
            said = outside.read_argv(pid)
            at_most = said[:-1][:4]  # anybody's command line may end in that word
            path = said[at_most.index(OUTCOME) + 1] if OUTCOME in at_most else ""
            if path.startswith(prefix) and path.endswith(suffix) and process.is_our_users(pid):
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
        self._asking_deadline = time.monotonic() + ASKING_SECONDS
        return child

    def news(self) -> Iterator[Begun | Orphaned | End]:
        """Yield what has become of jobs since the last time that this was asked.

        Raises:
            MaintlockError: It cannot be seen of one of them, which is asked about again the next time; all others were yielded.
        """
        failure: MaintlockError | None = None
        for task, (child, line) in [*self.orphaned.items()]:
            try:
                end = None if self._survivors(child, line) else self._end(task, child, line)
            except MaintlockError as error:
                failure = error
                continue
            if end is not None:
                del self.orphaned[task]
                yield end
        for task, child in [*self.running.items()]:
            is_alive = child.is_alive()
            try:
                found = self._news_of(task, child, is_alive=is_alive)
            except MaintlockError as error:
                failure = error
                continue
            if not is_alive:
                del self.running[task]
            yield from found
        if failure is not None:
            raise failure

    def _news_of(self, task: str, child: Child, *, is_alive: bool) -> list[Begun | Orphaned | End]:
        line = self._line_of(child) if not (is_alive and child.is_begun) else None
        end = None if is_alive else self._end(task, child, line)
        parts = self._survivors(child, line) if line is not None and not line.outcome and not is_alive else []
        begun: list[Begun | Orphaned | End] = []
        if not child.is_begun and (line is not None or (end is not None and end.is_begun)):
            child.is_begun = True
            children.drop_oldest_log(self._directory, task)
            begun.append(Begun(task=task, reason=child.started.reason, pid=child.pid))
        if line is not None and parts:
            self.orphaned[task] = child, line
            return [*begun, Orphaned(task=task, pids=tuple(stat.pid for stat in parts))]
        return [*begun, end] if end is not None else begun

    def started(self) -> dict[str, Started]:
        """Return those whose wrappers live."""
        return {task: child.started for task, child in self.running.items()}

    def recorded(self) -> dict[str, Started]:
        """Return all of them, for the record."""
        return {task: child.started for task, (child, _) in self.orphaned.items()} | self.started()

    def waiting(self) -> dict[str, Started]:
        """Return those that were not seen to have their lease yet."""
        return {task: child.started for task, child in self.running.items() if not child.is_begun}

    def is_asking(self) -> bool:
        """Tell whether one was started so recently that it will have its lease, or be refused, in a moment."""
        return time.monotonic() < self._asking_deadline and bool(self.waiting())

    def stop(self) -> None:
        """Ask every wrapper to stop its job: TERM, its own grace, KILL."""
        for child in self.running.values():
            child.send_signal(signal.SIGTERM)

    def stop_orphaned(self, tasks: Mapping[str, TaskSettings]) -> None:
        """Stop what works on without a wrapper, as that would have done it; this is called again and again until they are gone."""
        now = time.monotonic()
        for name, (child, line) in self.orphaned.items():
            task, is_new = tasks.get(name), name not in self._kill_deadlines
            grace = DEFAULT_GRACE_SECONDS if task is None or task.stop_grace is None else task.stop_grace
            deadline = self._kill_deadlines.setdefault(name, now + grace)
            numbers = (signal.SIGKILL,) if now >= deadline else (signal.SIGTERM, signal.SIGCONT) if is_new else ()
            if is_new:
                self._record_stop(name, child, line)
            for stat in self._survivors(child, line) if numbers else ():
                for number in numbers:
                    process.send_signal(stat, number)

    def _record_stop(self, task: str, child: Child, line: Line) -> None:
        event = events.new(
            "stop_requested",
            at=time.time(),
            lease=child.started.lease,
            task=task,
            lease_id=line.lease_id,
            reason="maintlock orchestrate --stop-jobs",
            pid=os.getpid(),
        )
        pending.append(self._directory, [event])

    def _end(self, task: str, child: Child, line: Line | None) -> End:
        path = self._outcome_path(task)
        fields = outcome_file.read(path)
        with suppress(OSError):
            os.unlink(path)
        log_path = children.log_path(self._directory, task)
        end = ends.end_of(task, fields, line, child.exit_code, log_path, is_begun=child.is_begun)
        if end.outcome == "deferred":
            children.restore_log(self._directory, task)
        return end

    def _places(self, child: Child) -> Places:
        return Places(directory=self._directory, lease=child.started.lease)

    def _line_of(self, child: Child) -> Line | None:
        """Return the line of the grant that a wrapper has or had; None if it had none, or another grant has followed."""
        line = line_file.read_path(self._places(child).lock) if child.started.lease else None
        return line if line is not None and line.identity == child.started.identity else None

    def _survivors(self, child: Child, line: Line) -> tuple[Stat, ...]:
        found = custody.read_custody(self._places(child))
        is_it = found.grant is not None and found.grant.lease_id == line.lease_id
        return found.members if is_it and found.state == "orphaned" else ()

    def _outcome_path(self, task: str) -> str:
        return f"{self._directory}/{children.LOGS}/{task}.outcome.json"


def _lease_in(argv: Sequence[str]) -> str:
    """Return the lease that a wrapper's command line names: it was written by `launch`."""
    return next((word.removeprefix(LEASE) for word in argv if word.startswith(LEASE)), "")
