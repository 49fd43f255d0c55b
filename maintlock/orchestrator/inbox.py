"""Unread hand-over work: the files of a task's inbox that have changed since its last successful run began (R12).

When a file changed, or was put there under its name, is told by the kernel (`st_ctime`): what programs write as its time
may lie in any past or future. After a clock that was set back, a time to come counts from when it was first met.

An inbox may hold a million files, or be on a disk that does not answer: each is gone through by a thread of its own, which
the pass waits for only briefly, and after that rests many times as long as it took.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import threading
import time
from typing import TYPE_CHECKING

from maintlock.orchestrator.cadence import Unread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from maintlock.settings import TaskSettings

WAIT_SECONDS = 0.1
PATIENT_SECONDS = 5.0  # where there is one pass only
TIMES_ITS_COST = 20.0
SLACK_SECONDS = 0.02  # file times come from a clock that ticks every few milliseconds
MAX_COUNTED = 1_000_000
ANY_DEPTH = "**"
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # removed meanwhile, or a symlink that leads nowhere


def unread_among(times: Iterable[float], since: float | None) -> Unread:
    """Return those of some files that have changed after `since`, by when they changed; all where that is None."""
    count, oldest, newest = 0, float("inf"), 0.0
    for at in times:
        if since is None or at > since - SLACK_SECONDS:
            count, oldest, newest = count + 1, min(oldest, at), max(newest, at)
            if count == MAX_COUNTED:
                break
    return Unread(count=count, oldest_at=oldest if count else 0.0, newest_at=newest)


def read_times(pattern: str) -> Iterator[float]:
    """Yield when each file that a pattern matches was changed, or put there under its name (epoch seconds).

    A pattern means what it means to `glob`, which passes over what it cannot read without a word. `**` enters no symlinks.

    Raises:
        OSError: A directory cannot be read, or a file in it not be looked at; one that does not exist is an empty one.
    """
    directory, parts = os.path.dirname(pattern), [os.path.basename(pattern)]
    while glob.has_magic(directory):
        parts.insert(0, os.path.basename(directory))
        directory = os.path.dirname(directory)
    try:
        yield from _times_below(directory or ".", parts)
    except FileNotFoundError:
        return


def _times_below(directory: str, parts: Sequence[str]) -> Iterator[float]:
    first, *rest = parts
    if first == ANY_DEPTH and rest:
        yield from _times_below(directory, rest)
    matches = re.compile(fnmatch.translate("*" if first == ANY_DEPTH else first)).match
    shows_hidden = first.startswith(".")
    with os.scandir(directory) as entries:
        for entry in entries:
            if not matches(entry.name) or (entry.name.startswith(".") and not shows_hidden):
                continue
            try:
                if entry.is_dir():
                    deeper = rest if first != ANY_DEPTH else [] if entry.is_symlink() else parts
                    if deeper:
                        yield from _times_below(entry.path, deeper)
                elif not rest:
                    yield entry.stat().st_ctime
            except OSError as error:
                if error.errno not in GONE:
                    raise


class Inbox:
    """One task's inbox, gone through in the background."""

    def __init__(self, pattern: str, clock: Callable[[], float] = time.time) -> None:
        self.pattern = pattern
        self._clock = clock
        self._ahead: dict[float, float] = {}  # by a file's time to come: when it was first met
        self._thread: threading.Thread | None = None
        self._rest_deadline = 0.0  # monotonic
        self._found: tuple[float | None, Unread] | None = None
        self._error: Exception | None = None

    def read(self, since: float | None, *, wait_seconds: float = WAIT_SECONDS) -> Unread | None:
        """Return what was unread at the last time that it was gone through; None if that has not ended once for `since`.

        Raises:
            OSError: It cannot be read.
        """
        if (self._thread is None or not self._thread.is_alive()) and time.monotonic() >= self._rest_deadline:
            self._thread = threading.Thread(target=self._look, args=(since,), daemon=True)
            self._thread.start()
        if self._thread is not None:
            self._thread.join(wait_seconds)
        if self._error is not None:
            raise self._error
        return self._found[1] if self._found is not None and self._found[0] == since else None

    def _look(self, since: float | None) -> None:
        began = time.monotonic()
        try:
            self._found = since, unread_among(self._grounded(read_times(self.pattern)), since)
            self._error = None
        except Exception as error:  # noqa: BLE001  whatever it is, it is raised where it is asked for
            self._error = error
        took = time.monotonic() - began
        self._rest_deadline = time.monotonic() + (took * TIMES_ITS_COST if took > WAIT_SECONDS else 0.0)

    def _grounded(self, times: Iterable[float]) -> Iterable[float]:
        now = self._clock()
        self._ahead = {at: met_at for at, met_at in self._ahead.items() if at > now}
        for at in times:
            yield at if at <= now else self._ahead.setdefault(at, now)


class Inboxes:
    """The inboxes of all tasks."""

    def __init__(self, clock: Callable[[], float] = time.time, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._boxes: dict[str, Inbox] = {}

    def configure(self, tasks: Mapping[str, TaskSettings]) -> None:
        """Forget what is no task's inbox any more."""
        wanted = {name: task.inbox for name, task in tasks.items()}
        self._boxes = {name: box for name, box in self._boxes.items() if wanted.get(name) == box.pattern}

    def read(self, task: str, pattern: str, since: float | None) -> Unread | None:
        """Return what is unread in a task's inbox since a time (epoch seconds), as `Inbox.read` does.

        Raises:
            OSError: It cannot be read.
        """
        if task not in self._boxes:
            self._boxes[task] = Inbox(pattern, self._clock)
        return self._boxes[task].read(since, wait_seconds=self._wait_seconds)
