"""A clock for tests of waiting: time passes where somebody sleeps, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """A stand-in for the module `time`; at some sleeps, counted from now on, something happens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at_sleep: dict[int, Callable[[], object]] = {}

    def monotonic(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.at_sleep = {left - 1: happens for left, happens in self.at_sleep.items()}
        self.at_sleep.pop(0, lambda: None)()
