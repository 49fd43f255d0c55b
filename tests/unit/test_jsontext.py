"""JSON text that is written without the json module."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock.jsontext import encoded, encoded_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_is_what_json_reads(value: object) -> None:
    """Any JSON value comes back from the standard reader as it was, also lone surrogates."""
    assert json.loads(encoded(value)) == value


@given(VALUES)
def test_text_is_one_ascii_line(value: object) -> None:
    """Whatever is written is one line of ASCII, so that a line of a file is a record."""
    text = encoded(value)
    assert text.isascii() and text.isprintable()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_json_has_no_number_for_is_null(value: float) -> None:
    """An infinity or no number is written as null, which every reader takes."""
    assert encoded(value) == "null"


def test_true_is_not_one() -> None:
    """A boolean is not written as the integer that it is in Python."""
    assert encoded_object({"a": True, "b": 1, "c": (False, 0)}) == '{"a":true,"b":1,"c":[false,0]}'


@pytest.mark.parametrize("value", [b"x", object(), {1: 2}, {"a": {1, 2}}])
def test_other_types_are_refused(value: object) -> None:
    """What JSON cannot say is an error of ours, not a record that nobody can read."""
    with pytest.raises(TypeError):
        encoded(value)
