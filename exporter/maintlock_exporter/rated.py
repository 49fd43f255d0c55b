"""Readings that cost too much for every scrape: repeated at a bounded rate, and for a bounded part of the time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_SECONDS = 5.0
TIMES_ITS_COST = 20.0

Value = TypeVar("Value")


class Rated(Generic[Value]):
    """A reading, done anew when it is asked for after `every_seconds`, and after 20 times as long as it took.

    What it raises is its result too, and is raised again until then.
    """

    def __init__(
        self,
        read: Callable[[], Value],
        *,
        every_seconds: float = EVERY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._every_seconds = every_seconds
        self._clock = clock
        self._due_at = float("-inf")
        self._results: list[Value] = []
        self._error: Exception | None = None
        self._turn = threading.Lock()

    def __call__(self) -> Value:
        """Return what the last reading found."""
        with self._turn:
            if self._clock() >= self._due_at:
                self._renew()
            if self._error is not None:
                raise self._error
            return self._results[0]

    def _renew(self) -> None:
        began = self._clock()
        try:
            self._results, self._error = [self._read()], None
        except Exception as error:  # noqa: BLE001  whatever it is, whoever asks gets it
            self._error = error
        ended = self._clock()
        self._due_at = ended + max(self._every_seconds, TIMES_ITS_COST * (ended - began))
