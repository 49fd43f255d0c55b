"""JSON text for the records that are written before a job starts.

The standard `json` module costs 0.7 of a whole interpreter start (it compiles regular expressions); the encoder in C that
it stands on costs nothing. Everything that is read, or written at leisure, goes through `json` itself.
"""

from __future__ import annotations

try:
    from _json import encode_basestring_ascii as quote
except ImportError:  # an interpreter without the accelerator
    from json import dumps as quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def encoded(value: object) -> str:
    """Return `value` (None, bool, int, float, str, or lists and string-keyed mappings of these) as one line of JSON."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value) if value - value == 0 else "null"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([encoded(item) for item in value]) + "]"
    if isinstance(value, dict):
        return _object(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def encoded_object(fields: Mapping[str, object]) -> str:
    """Return a mapping with string keys as one JSON object on one line."""
    if _encode is not None:
        try:
            return "".join(_encode(fields, 0))
        except (TypeError, ValueError):
            pass  # an infinity, which becomes null, or what is refused
    return _object(fields)


def _object(fields: Mapping[str, object]) -> str:
    return "{" + ",".join([f"{quote(key)}:{encoded(value)}" for key, value in fields.items()]) + "}"


def _refuse(value: object) -> str:
    raise TypeError(f"not JSON: {type(value).__name__}")


_encode: Callable[[object, int], Iterable[str]] | None
try:
    from _json import make_encoder

    # What `json.dumps(…, separators=(",", ":"), allow_nan=False)` uses; it takes a quarter of the time of `_object`.
    _encode = make_encoder(None, _refuse, quote, None, ":", ",", False, False, False)  # noqa: FBT003  the C encoder's signature
except (ImportError, TypeError):  # another interpreter
    _encode = None
