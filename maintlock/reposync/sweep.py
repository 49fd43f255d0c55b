"""One pass over all repositories, and what has to run after it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maintlock import launch, owed, parents, paths, redact
from maintlock.errors import MaintlockError
from maintlock.jsontext import encoded_object
from maintlock.reposync.cascade import Ending, exit_code_of, run_task
from maintlock.reposync.git import Git
from maintlock.reposync.sync import FAILED, Result, RootSync, line_of

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Collection, Sequence

    from maintlock.config import Config
    from maintlock.signals import Signals

STAYS_OWED = "it is still due, and the next repo-sync will run it"


def shown_root(root: str, directory: str) -> str:
    """Return how a root is called for people in a directory: as from there where that is shorter."""
    relative = os.path.relpath(root, directory)
    return redact.printable(min(relative, root, key=len))


class Pass:
    """One pass over all roots, and what has to run after it."""

    def __init__(self, said: Namespace, settings: Config, directory: str, then: str | None, watch: Signals) -> None:
        self.said = said
        self.settings = settings
        self.directory = directory
        self.then = then
        self.watch = watch
        self.voice = watch.voice
        self.config = settings.path or ""

    def run(self, roots: Sequence[str]) -> int:
        """Return the exit code."""
        self._open_record()
        results = [self._synced(root) for root in roots]
        endings: dict[str, Ending] = {} if self.said.no_then else self._make_up()
        return exit_code_of(endings, has_failed_root=any(result.outcome == FAILED for result in results))

    def _open_record(self) -> None:
        """See that what is owed can be read; what cannot be read may have said anything, so that `then` is owed."""
        if self.then is None:
            return
        if owed.read(self.directory).state != "bad":
            return
        self.voice.error(f"{self.directory}/{owed.NAME}: is unreadable; assuming {self.then} still has to run")
        try:
            debt = owed.new(config=self.config, task=self.then)
            owed.write_changed(self.directory, lambda _debts: [debt])
        except MaintlockError as error:
            self.voice.error(str(error))

    def _synced(self, root: str) -> Result:
        git = Git(root, environ=os.environ, watch=self.watch, timeout_seconds=self.said.timeout)
        result = RootSync(git, lambda before, after: self._owe(root, before, after)).run()
        if self.said.json:
            text = encoded_object({name: getattr(result, name) for name in Result.__annotations__})
        else:
            text = line_of(result, shown_root(root, paths.working_directory()))
        print(text, flush=True)
        return result

    def _owe(self, root: str, before: str, after: str) -> Callable[[], None]:
        if self.then is None:
            return lambda: None
        paths.open_state_directory(self.directory, any_filesystem=self.said.allow_network_fs)
        debt = owed.new(config=self.config, task=self.then, root=root, before=before, after=after)
        return owed.write_debt(self.directory, debt)

    def _make_up(self) -> dict[str, Ending]:
        """Run what is owed, the task of this pass first, until a signal comes."""
        due = owed.tasks_of(owed.read(self.directory).debts, self.config)
        endings: dict[str, Ending] = {}
        for name in sorted(due, key=lambda name: name != self.then):
            task = self.settings.tasks.get(name)
            if task is None:
                self.voice.tell("forgotten", f"{name} was owed after a pull, and is no task any more: forgotten")
                self._write_paid(due[name])
                continue
            if task.command is None:
                self.voice.error(f"{launch.no_command(self.settings.path, name)}; {STAYS_OWED}")
                continue
            if parents.of_environment(os.environ, self.directory) == name:  # to start it would start us again, for ever
                continue  # it pulls itself, and its own end pays
            ending = endings[name] = run_task(
                task,
                self.settings,
                directory=self.directory,
                environ=os.environ,
                watch=self.watch,
                more_options=("--allow-network-fs",) if self.said.allow_network_fs else (),
                is_stdout_ours=self.said.json,
            )
            if ending.is_success:
                self._write_paid(due[name])
            elif ending.outcome == "deferred":
                self.voice.tell("owed", f"{name} stood back after a pull; {STAYS_OWED}")
            else:
                self.voice.error(f"{name} ended with exit code {ending.exit_code}; {STAYS_OWED}")
            if ending.signal:
                break
        return endings

    def _write_paid(self, ids: Collection[str]) -> None:
        """Clear debts, and none that has been added meanwhile."""
        owed.write_changed(self.directory, lambda debts: owed.without(debts, ids))
