"""What the loop sleeps in: signals, and the deaths of daemons."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

from maintlock.times import poll_milliseconds

if TYPE_CHECKING:
    from collections.abc import Sequence

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Waker:
    """Handlers do nothing; each number arrives through a pipe."""

    def __init__(self) -> None:
        self._read_fd, write_fd = os.pipe()
        for fd in (self._read_fd, write_fd):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def wait(self, seconds: float, others: Sequence[int] = ()) -> set[int]:
        """Return the signals that have come, at the latest after `seconds`; also when one of `others` is readable."""
        poll = select.poll()
        for fd in (self._read_fd, *others):
            poll.register(fd, select.POLLIN)
        poll.poll(poll_milliseconds(seconds))
        try:
            return set(os.read(self._read_fd, 512))
        except BlockingIOError:
            return set()
