"""Signals as something to wait for: handlers do nothing, each number arrives through a pipe.

`_signal` is the standard `signal` without its enumerations, which would cost half an interpreter start.
"""

from __future__ import annotations

import _thread
import os
import select
import time

from maintlock import flock, terminal
from maintlock.errors import Interrupted
from maintlock.times import poll_milliseconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Sequence

    from maintlock.voice import Voice
else:
    import _signal as signal

HUP, INT, QUIT = int(signal.SIGHUP), int(signal.SIGINT), int(signal.SIGQUIT)
TERM, KILL, CONT = int(signal.SIGTERM), int(signal.SIGKILL), int(signal.SIGCONT)
TSTP, TTIN, TTOU = int(signal.SIGTSTP), int(signal.SIGTTIN), int(signal.SIGTTOU)
USR1, USR2, CHLD = int(signal.SIGUSR1), int(signal.SIGUSR2), int(signal.SIGCHLD)
PIPE, XFSZ = int(signal.SIGPIPE), int(signal.SIGXFSZ)
CLOSED = 65  # no signal has this number either: the client of a coprocess has closed our standard input
ENDING = frozenset({HUP, INT, QUIT, TERM, USR1, USR2, CLOSED})
HANDLED = (*sorted(ENDING - {CLOSED}), CONT, CHLD)
HEARD_BYTES = 64
WOKEN = 0  # what a thread of ours writes into the pipe: no signal has this number
REDRAW_SECONDS = 1.0


def _note(_number: int, _frame: object) -> None:
    """Do nothing: the number is in the pipe already."""


class Signals:
    """All signals of a wrapper, from its first moment to its last, and waiting that they can end.

    What was ignored when we were started stays ignored, for us and for the job (nohup, `&` in a script).
    """

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self.tell = voice.tell
        self._forms: Callable[[], Sequence[str]] | None = None
        self._draw_at = 0.0
        self.inherited_mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._read_fd, self._write_fd = (
            flock.moved_up(fd) if fd < flock.FIRST_OWN_DESCRIPTOR else fd for fd in os.pipe()
        )
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self.ignored = frozenset(n for n in HANDLED if signal.getsignal(n) == signal.SIG_IGN and n != CHLD)
        self._ignored_children = signal.getsignal(CHLD) == signal.SIG_IGN
        for number in HANDLED:
            if number not in self.ignored:
                signal.signal(number, _note)
        self._poll = select.poll()
        self._poll.register(self._read_fd, select.POLLIN)
        self._until_closed: int | None = None
        self.is_closed = False
        self.heard = b""  # the last of what came in before
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (CHLD,))  # or we would never hear of the job's end

    def end_when_closed(self, fd: int) -> None:
        """Take it for a signal (`CLOSED`) when this descriptor is at its end."""
        if self._until_closed is None:
            self._until_closed = fd
            self._poll.register(fd, select.POLLIN)

    def restore(self) -> None:
        """Leave signals as they were, for a program that we become; handlers vanish by themselves in execve(2)."""
        signal.set_wakeup_fd(-1)
        for number in (PIPE, XFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores them
        if self._ignored_children:
            signal.signal(CHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.inherited_mask)

    def wait(self, seconds: float | None) -> list[int]:
        """Return the signals that have come, waiting for one at most `seconds` (None: for ever), and never over a day."""
        ready = self._poll.poll(None if seconds is None else poll_milliseconds(seconds))
        try:
            numbers = list(os.read(self._read_fd, 512))
        except BlockingIOError:
            numbers = []
        return (
            [*numbers, CLOSED] if any(fd == self._until_closed and self._is_closed(fd) for fd, _ in ready) else numbers
        )

    def _is_closed(self, fd: int) -> bool:
        """Tell whether a readable descriptor is at its end."""
        try:
            said = os.read(fd, 65536)
        except OSError:
            said = b""
        self.heard = (self.heard + said)[-HEARD_BYTES:]
        if not said:
            self.is_closed = True
            self._poll.unregister(fd)
        return not said

    def check(self) -> None:
        """Raise what has come while nobody looked.

        Raises:
            Interrupted: A signal that ends us has come.
        """
        _raise_ending(self.wait(0))

    def pause(self, seconds: float | None) -> None:
        """Let time pass (None: until something comes), or end the wait for a signal."""
        _raise_ending(self._wait_and_draw(seconds))

    def lock(self, fd: int, *, deadline: float | None, shared: bool = False) -> bool:
        """Wait in the kernel's queue until `deadline` (monotonic seconds; None: for ever).

        The waiting is a thread's, with all signals blocked: a handled signal would send it to the end of the queue.

        Raises:
            Interrupted: A signal that ends us has come.
        """
        if flock.try_lock(fd, shared=shared):
            return True  # on a busy machine a thread may not have come to it before the deadline
        waiter = self.lock_in_thread(fd, shared=shared)
        try:
            while not waiter.outcome:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                _raise_ending(self._wait_and_draw(left))
        except BaseException:  # a signal, or something that could not be drawn: nobody is left to want the lock
            if not waiter.abandon():
                flock.unlock(fd)  # closing would leave it to a client, whose open file description this may be
            raise
        if waiter.abandon():  # on a busy machine the thread may not have come to it
            return not waiter.is_begun and flock.try_lock(fd, shared=shared)
        if isinstance(waiter.outcome[0], Exception):
            raise waiter.outcome[0]
        return True

    def keep_telling(self, event: str, text: str, forms: Callable[[], Sequence[str]], /, **fields: object) -> None:
        """Tell what is waited for: on a terminal in one line, which `pause` and `lock` keep up to date, else once."""
        if self.voice.can_redraw():
            self._forms, self._draw_at = forms, 0.0
        if self._forms is None or not terminal.is_foreground():
            self.tell(event, text, verbose=False, **fields)

    def stop_telling(self) -> None:
        """Take the line away."""
        self._forms = None
        self.voice.erase()

    def _wait_and_draw(self, seconds: float | None) -> list[int]:
        if self._forms is None:
            return self.wait(seconds)
        if time.monotonic() >= self._draw_at:
            self.voice.draw(self._forms())
            self._draw_at = time.monotonic() + REDRAW_SECONDS
        left = max(0.0, self._draw_at - time.monotonic())
        numbers = self.wait(left if seconds is None else min(left, seconds))
        if CONT in numbers:
            self._draw_at = 0.0  # the shell has written over it
        return numbers

    def leave_stopping_to_job(self) -> None:
        """Do not stop of TSTP from now on: it arrives like the others, and whether the job stops is the job's to decide."""
        if signal.getsignal(TSTP) != signal.SIG_IGN:
            signal.signal(TSTP, _note)

    def stop(self, number: int, *, whole_group: bool = False) -> None:
        """Stop as this signal stops who does not handle it; returns when we are continued."""
        before = signal.signal(number, signal.SIG_DFL)
        os.kill(0 if whole_group else os.getpid(), number)
        signal.signal(number, before)

    def lock_in_thread(self, fd: int, *, shared: bool = False) -> Waiter:
        """Return a waiter whose `outcome` gets one item when the lock has been taken, or could not be: `wait` returns then."""
        waiter = Waiter(fd, shared=shared, wake_fd=self._write_fd)
        before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            _thread.start_new_thread(waiter.run, ())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return waiter


class Waiter:
    """A thread in the kernel's queue for a lock. What it gets when nobody wants it any more, it gives back."""

    is_left_behind = False  # one of them may still wait though nobody wants the lock

    def __init__(self, fd: int, *, shared: bool, wake_fd: int) -> None:
        self.outcome: list[bool | Exception] = []
        self.is_begun = False
        self._is_abandoned = False
        self._deciding = _thread.allocate_lock()
        # The caller may give up, close its own, and get the number anew for something else.
        self._fd = flock.duplicated(fd)
        self._shared = shared
        self._wake_fd = wake_fd

    def abandon(self) -> bool:
        """Want the lock no more; False where there is an outcome already, which stands."""
        with self._deciding:
            self._is_abandoned = not self.outcome
        Waiter.is_left_behind = Waiter.is_left_behind or self._is_abandoned
        return self._is_abandoned

    def run(self) -> None:
        """Wait for the lock, in a thread of its own."""
        with self._deciding:
            self.is_begun = not self._is_abandoned
        if self.is_begun:
            self._lock()
        os.close(self._fd)
        try:
            os.write(self._wake_fd, bytes([WOKEN]))
        except OSError:
            pass

    def _lock(self) -> None:
        outcome: bool | Exception = True
        try:
            flock.lock(self._fd, shared=self._shared)
        except Exception as error:  # noqa: BLE001  it is raised in the thread that waits
            outcome = error
        with self._deciding:
            if not self._is_abandoned:
                self.outcome.append(outcome)
            elif outcome is True:
                flock.unlock(self._fd)  # closing would leave it to a client, whose open file description this may be


def _raise_ending(numbers: Iterable[int]) -> None:
    for number in numbers:
        if number in ENDING:
            raise Interrupted(number)


def die_of(number: int) -> None:
    """End this process by a signal, so that whoever started it sees that; returns only if the signal is blocked."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
    os.kill(os.getpid(), number)
