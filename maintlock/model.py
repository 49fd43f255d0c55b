"""Frozen records that travel between modules.

`record` is `dataclasses.dataclass(frozen=True, kw_only=True)` to the type checker. At run time it is the few lines below,
because importing `dataclasses` alone would triple the time that a guarded job waits for its start.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from dataclasses import replace
    from typing import Any
else:

    def record(*, frozen, kw_only):
        """Give a class its fields' constructor, equality and repr, and take away assignment."""
        assert frozen and kw_only

        def build(cls):
            fields = tuple(cls.__annotations__)
            known = frozenset(fields)
            required = frozenset(name for name in fields if not hasattr(cls, name))

            def __init__(self, **values):
                if values.keys() != known and not required <= values.keys() <= known:
                    wrong = required - values.keys() or values.keys() - known
                    raise TypeError(f"{cls.__name__}: missing or unknown field: {sorted(wrong)}")
                self.__dict__.update(values)

            def __setattr__(self, name, _value):
                raise AttributeError(f"{cls.__name__}.{name} is read-only")

            def __eq__(self, other):
                return type(other) is cls and all(getattr(self, f) == getattr(other, f) for f in fields)

            def __hash__(self):
                return hash(tuple(getattr(self, f) for f in fields))

            def __repr__(self):
                return f"{cls.__name__}({', '.join(f'{f}={getattr(self, f)!r}' for f in fields)})"

            cls.__init__, cls.__setattr__, cls.__eq__ = __init__, __setattr__, __eq__
            cls.__hash__, cls.__repr__, cls.__match_args__ = __hash__, __repr__, fields
            return cls

        return build

    def replace(instance, /, **changes):
        """Return a copy of a record with some fields changed."""
        return type(instance)(**{**instance.__dict__, **changes})


@record(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process that no recycled pid can be taken for (L1).

    `start_ticks` is the start time as the kernel counts it (Linux: clock ticks since boot, else hundredths of a second
    since the epoch); 0, and an empty `boot_id` or `pid_namespace`, mean that this platform does not tell.
    """

    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: str


@record(frozen=True, kw_only=True)
class Line:
    """The one record inside `<lease>.lock`: the grant that holds the lock, or the last that did.

    `group` is the process group of its job where that is the holder's own too, else 0. Times are seconds since the epoch. `outcome`, `exit_code` and `ended_at` are unset until the grant has ended cleanly.
    """

    fence: int
    lease_id: str
    task: str
    source: str
    session_id: int
    hold_until: str
    mode: str
    identity: ProcessIdentity
    started_at: float
    group: int = 0
    outcome: str = ""
    exit_code: int | None = None
    ended_at: float | None = None


__all__ = ["Line", "ProcessIdentity", "record", "replace"]

if TYPE_CHECKING:
    Event = dict[str, Any]
