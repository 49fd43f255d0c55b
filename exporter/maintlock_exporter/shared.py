"""One answer for all who ask at once: two hundred clients cost no more than two."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

Value = TypeVar("Value")


class Shared(Generic[Value]):
    """Makes answers one at a time; whoever asks before an answer is begun gets that one, whoever comes later the next."""

    def __init__(self) -> None:
        self._awaited: dict[Hashable, Future[Value]] = {}
        self._mutex = threading.Lock()
        self._making = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return what `make` returns, called by us or by somebody else who asks for the same."""
        with self._mutex:
            future = self._awaited.get(key)
            is_ours = future is None
            if future is None:
                future = self._awaited[key] = Future()
        if is_ours:
            self._make(key, make, future)
        return future.result()

    def _make(self, key: Hashable, make: Callable[[], Value], future: Future[Value]) -> None:
        with self._making:
            with self._mutex:
                del self._awaited[key]
            try:
                future.set_result(make())
            except BaseException as error:  # noqa: BLE001  raised again by `result`, to all who wait
                future.set_exception(error)
