"""Records of any content: what is written is read, and of what somebody else wrote nothing is believed."""

from __future__ import annotations

import json
import math
import string
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from maintlock import entries, events, jsontext, pending, redact, sidecar, times, tokens
from maintlock.model import Line, ProcessIdentity
from maintlock.sidecar import Reading

TASK = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,63}", fullmatch=True)
NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", fullmatch=True)
MOMENT = st.integers(0, 253_402_300_799_999).map(lambda milliseconds: milliseconds / 1000)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
LINE = st.builds(
    Line,
    fence=st.integers(0, 2**53),
    lease_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    task=TASK,
    source=st.sampled_from(["npm", "orchestrator", "library", "cli"]),
    session_id=st.integers(0, 2**22),
    hold_until=st.just("session"),
    mode=st.sampled_from(["supervised", "exec", "library", "coprocess"]),
    identity=st.builds(
        ProcessIdentity,
        pid=st.integers(1, 2**22),
        start_ticks=st.integers(0, 2**53),
        boot_id=st.uuids().map(str),
        pid_namespace=st.integers(1, 2**32).map(str),
    ),
    started_at=MOMENT,
)
SIDECAR = st.fixed_dictionaries(
    {
        **{name: st.integers(0, 2**53) for name in sidecar.INTEGERS},
        **{name: st.text(max_size=20) for name in sidecar.TEXTS},
        **{name: st.integers(0, 10**9) | st.floats(0, 1e9) for name in sidecar.NUMBERS},
        "lease": NAME,
        "lease_id": NAME,
        "task": TASK,
        "acquired_at": MOMENT.map(times.rfc3339),
        "job_pid": st.none() | st.integers(0, 2**22),
        "job_started_at": st.none() | MOMENT.map(times.rfc3339),
        "command": st.lists(st.text(max_size=20), max_size=4),
    }
)


# What is written is read


@given(SIDECAR)
def test_a_sidecar_comes_back_as_it_was_written(fields: dict[str, Any]) -> None:
    """Every record that can be written is read with all its fields, and so is the grant in it."""
    content = jsontext.encoded_object({"schema": 1, **fields}).encode("ascii")
    assert sidecar.decoded(content) == {"schema": 1, **fields}
    grant = sidecar.line_in(fields)
    assert (grant.lease_id, grant.fence, grant.identity) == (
        fields["lease_id"], fields["fence"], sidecar.identity_in(fields),
    )  # fmt: skip


@settings(max_examples=60)
@given(SIDECAR, st.integers(0, 600), st.binary(min_size=1, max_size=3))
def test_a_spoilt_sidecar_is_whole_or_none(fields: dict[str, Any], place: int, noise: bytes) -> None:
    """With any bytes of it overwritten, or cut off, a record reads as one in which every field has its kind, or as none."""
    content = jsontext.encoded_object({"schema": 1, **fields}).encode("ascii")
    for spoilt in (content[:place], content[:place] + noise + content[place + len(noise) :]):
        found = sidecar.decoded(spoilt)
        if found is not None:
            assert isinstance(sidecar.line_in(found), Line)
            assert Reading(state="valid", fields=found).lease_id


@given(LINE, st.sampled_from(["", *sorted(entries.RELEASE_OUTCOMES)]), st.none() | st.integers(0, 255), MOMENT)
def test_what_a_line_tells_is_what_the_ledger_takes(
    grant: Line, outcome: str, exit_code: int | None, ended_at: float
) -> None:
    """The events of any grant, written as one line each and read again, tell of that grant, once begun and once ended."""
    from maintlock.model import replace

    ended = replace(grant, outcome=outcome, exit_code=exit_code if outcome else None, ended_at=ended_at or None)
    told = events.of_last_grant("heavy-maintenance", ended, Reading(state="missing"), None, now=ended_at)
    kept = [entries.entry_of(json.loads(jsontext.encoded_object(event))) for event in told]
    assert None not in kept
    assert [entry["id"] for entry in kept if entry] == [f"{grant.lease_id}:acquired", f"{grant.lease_id}:end"]
    expected = outcome or ("unknown" if grant.mode == "exec" else "lost")
    assert [entry["outcome"] for entry in kept if entry] == [None, expected]
    assert [entry["task"] for entry in kept if entry] == [grant.task] * 2


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=8), JSON, max_size=6))
def test_both_encoders_say_the_same(fields: dict[str, Any]) -> None:
    """An object is the same text whether the encoder in C or our own wrote it, and no number is one that JSON has not."""
    text = jsontext.encoded_object(fields)
    assert text == jsontext._object(fields)
    assert "NaN" not in [word for word in text.replace('"', " ").split() if word not in str(fields)]
    json.loads(text, parse_constant=pending._no_constant)


@given(st.integers(0, 10**9), st.sampled_from(["ms", "s", "m", "h", "d", ""]))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    """Every duration in every unit reads as what it says, or is refused as longer than a century."""
    seconds = number * times.UNIT_SECONDS[unit or "s"]
    try:
        assert math.isclose(times.duration_seconds(f"{number}{unit}"), seconds, rel_tol=1e-12)
    except ValueError:
        assert seconds > times.MAX_SECONDS
    assert times.duration_text(seconds).isprintable()


@settings(max_examples=60)
@given(st.lists(st.builds(tokens.Token, lease=NAME, lease_id=NAME, session_id=st.integers(0, 10**9)), max_size=5))
def test_grants_around_a_job_survive_noise(held: list[tokens.Token]) -> None:
    """Grants come back from the environment in their order, whatever else somebody has put between them."""
    noise = " ".join(f"{token} :: a:b {token.lease}:: x:y:z:1" for token in held)
    assert tokens.parsed(noise) == held


# What somebody else wrote


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted(entries.FIELDS)) | st.text(max_size=5), JSON, max_size=12))
def test_an_event_is_typed_or_none(fields: dict[str, Any]) -> None:
    """Whatever an event carries, every field of what is entered has its kind, or there is nothing to enter."""
    entry = entries.entry_of(fields)
    if entry is None:
        return
    assert set(entry) == set(entries.FIELDS)
    for name in ("id", "event", "task", "reason", "detail"):
        assert entry[name] is None or isinstance(entry[name], str)
        (entry[name] or "").encode("utf-8")
    for name in ("pid", "fence", "exit_code"):
        assert entry[name] is None or (type(entry[name]) is int and abs(entry[name]) < 2**53)
    assert entry["event"] in entries.EVENTS | entries.PRESENCE


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), max_size=8))
def test_lines_of_any_kind_are_events_or_bad(lines: list[bytes]) -> None:
    """Of any lines in `ledger.pending` those that are no events are counted, blank ones excepted."""
    content = b"\n".join(one.replace(b"\n", b" ") for one in lines) + b'\n{"id":"x","event":"deferred"}\n'
    found, bad = pending._events(content)
    assert found[-1] == {"id": "x", "event": "deferred"}
    blank = sum(1 for one in content.split(b"\n") if not one or one.isspace())
    assert len(found) + bad + blank == content.count(b"\n") + 1


# Secrets

LETTERS = st.text(alphabet=string.ascii_letters + string.digits, min_size=8, max_size=20)
WORDS = st.lists(
    st.sampled_from(["npm", "run", "-v", "--port=80", "a b", "x=1", "https://host/x", "'q'", "--"]), max_size=3
)
SHAPES = st.sampled_from(
    [
        ["--token={}"], ["--password", "{}"], ["--api-key={}"], ["-H", "Authorization: Bearer {}"], ["GITHUB_TOKEN={}"],
        ["https://user:{}@host/x"], ["postgres://u:{}@h:5432/db"], ["--env=DB_PASSWORD={}"], ["https://h/?token={}"],
        ["sh", "-c", "TOKEN={} node x"], ["sh", "-c", "run --password '{}' && b"], ["sh", "-c", "curl -u x https://u:{}@h"],
    ]
)  # fmt: skip


@given(WORDS, SHAPES, LETTERS, WORDS)
def test_what_is_masked_stays_masked(before: list[str], shape: list[str], letters: str, after: list[str]) -> None:
    """No secret of a usual shape is shown, and to mask once more what is masked shows nothing and changes nothing."""
    secret = f"S{letters}Z"
    once = redact.without_secrets([*before, *[word.format(secret) for word in shape], *after])
    assert secret not in " ".join(once)
    assert redact.without_secrets(once) == once


@given(st.lists(st.text(max_size=30), max_size=6))
def test_masking_takes_any_arguments(argv: list[str]) -> None:
    """Any arguments at all become a list that UTF-8 can hold, of the same length."""
    shown = redact.without_secrets(argv)
    assert len(shown) == len(argv)
    "".join(shown).encode("utf-8")


@settings(max_examples=50)
@given(JSON)
def test_any_value_is_printable(value: object) -> None:
    """What is told of any value is one line that steers no terminal, and told twice is the same."""
    shown = redact.printable(value)
    assert shown.isprintable()
    assert redact.printable(shown, 10**6) == shown
