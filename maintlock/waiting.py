"""How a program waits: the seam between the lease and the programs that want it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    class Patience(Protocol):
        """How a program waits: in the kernel's queue, and between two looks."""

        def lock(self, fd: int, *, deadline: float | None, shared: bool = False) -> bool:
            """Wait for a lock until `deadline` (monotonic seconds; None: for ever)."""

        def pause(self, seconds: float) -> None:
            """Let some time pass."""

        def tell(self, event: str, text: str, *, verbose: bool = False, **fields: object) -> None:
            """Tell the user something."""

        def keep_telling(self, event: str, text: str, forms: Callable[[], Sequence[str]], /, **fields: object) -> None:
            """Tell what is waited for: once, or kept up to date, in the first of the forms that fits, where that can be."""

        def stop_telling(self) -> None:
            """End what `keep_telling` began."""
