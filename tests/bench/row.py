"""One row of the table: what was measured, beside what, and how high it may be."""

from __future__ import annotations

from dataclasses import dataclass


class NotMeasuredError(Exception):
    """Something that a row needs is missing here; the text says what."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """`ours` and `peer` are in `unit`. The bar is for their ratio, or for `ours` itself where that is what counts."""

    what: str
    ours: float
    peer: float
    beside: str
    unit: str
    bar: float | None = None
    is_absolute: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times the peer's it is; None beside a peer of nothing."""
        return self.ours / self.peer if self.peer else None

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is met; None where there is no bar, and the row only shows where the floor is."""
        if self.bar is None:
            return None
        judged = self.ours if self.is_absolute else self.ratio
        return judged is not None and judged <= self.bar
