"""Records: what `record` makes of a class is what a frozen dataclass is."""

from __future__ import annotations

import pytest

from maintlock.model import ProcessIdentity, record, replace


@record(frozen=True, kw_only=True)
class Point:
    """A record with a default."""

    x: int
    y: int = 7


def test_fields_and_defaults() -> None:
    """A field that is not given has its default."""
    assert (Point(x=1).x, Point(x=1).y, Point(x=1, y=2).y) == (1, 7, 2)


@pytest.mark.parametrize("values", [{}, {"y": 1}, {"x": 1, "z": 2}])
def test_missing_and_unknown_fields_are_refused(values: dict[str, int]) -> None:
    """A field without a default has to be given, and one that does not exist cannot be."""
    with pytest.raises(TypeError, match="missing or unknown field"):
        Point(**values)


def test_records_are_read_only() -> None:
    """What a record says cannot be changed under somebody else who has it."""
    point = Point(x=1)
    with pytest.raises(AttributeError, match="read-only"):
        point.x = 2  # type: ignore[misc]  # wrong on purpose
    assert point.x == 1


def test_equality_is_of_kind_and_fields() -> None:
    """Two records are equal if they are of one kind and say the same, defaults included."""

    @record(frozen=True, kw_only=True)
    class Other:
        x: int
        y: int = 7

    assert Point(x=1) == Point(x=1, y=7)
    assert hash(Point(x=1)) == hash(Point(x=1, y=7))
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != Other(x=1)


def test_replace_copies() -> None:
    """A changed copy leaves the original, and what was not changed, as it was."""
    point = Point(x=1)
    assert replace(point, x=5) == Point(x=5, y=7)
    assert point == Point(x=1)
    with pytest.raises(TypeError):
        replace(point, z=1)


def test_repr_names_all_fields() -> None:
    """A record in a message shows what it says."""
    identity = ProcessIdentity(pid=1, start_ticks=2, boot_id="b", pid_namespace="")
    assert repr(identity) == "ProcessIdentity(pid=1, start_ticks=2, boot_id='b', pid_namespace='')"
