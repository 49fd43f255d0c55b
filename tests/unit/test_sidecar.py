"""The sidecar: four readings, kept apart (L12)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock import sidecar
from maintlock.model import ProcessIdentity

FIELDS: dict[str, Any] = {
    "lease": "heavy-maintenance", "lease_id": "ab" * 16, "fence": 3, "task": "kbSync", "owner": "alice@laptop",
    "source": "npm", "reason": "manual", "mode": "supervised", "pid": 4242, "pid_started_at": "2026-05-16T19:36:21.072Z",
    "pid_start_ticks": 991, "boot_id": "b-1", "pid_namespace": "4026531836", "session_id": 77, "hostname": "laptop",
    "uid": 1000, "job_pid": None, "job_started_at": None, "command": ["npm", "run", "x"], "cwd": "/tmp",
    "acquired_at": "2026-05-16T19:36:21.072Z", "waited_seconds": 0.5, "ttl_seconds": 21600,
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def content_of(**changes: object) -> bytes:
    """Return the file's content with some fields changed."""
    return json.dumps({"schema": 1, **FIELDS, **changes}).encode()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A record is read as it was written, by whoever comes, under schema 1."""
    path = str(tmp_path / "x.json")
    sidecar.write(path, FIELDS)
    reading = sidecar.read(path)
    assert reading.state == "valid"
    assert reading.fields == {"schema": 1, **FIELDS}
    assert reading.lease_id == "ab" * 16
    assert reading.identity == ProcessIdentity(pid=4242, start_ticks=991, boot_id="b-1", pid_namespace="4026531836")
    assert os.stat(path).st_mode & 0o777 == 0o600


@given(st.text(max_size=300), st.lists(st.text(max_size=100), max_size=5))
def test_any_text_is_carried(text: str, command: list[str]) -> None:
    """Owners, reasons and commands of any characters come back as they were."""
    from maintlock.jsontext import encoded_object

    fields = {"schema": 1, **FIELDS, "owner": text, "reason": text, "cwd": text, "command": command}
    assert sidecar.decoded(encoded_object(fields).encode("ascii")) == fields


@given(st.binary(max_size=400))
def test_no_bytes_can_make_a_reader_fail(content: bytes) -> None:
    """Bytes that are no record read as none."""
    assert sidecar.decoded(content) is None


@given(st.sampled_from(["schema", *FIELDS]), JSON)
def test_a_record_is_whole_or_none(name: str, value: object) -> None:
    """Whatever stands in one field, a reader gets every field in its kind, or nothing."""
    fields = sidecar.decoded(content_of(**{name: value}))
    if fields is None:
        return
    assert all(type(fields[key]) is int and fields[key] >= 0 for key in ("schema", *sidecar.INTEGERS))
    assert all(isinstance(fields[key], str) for key in sidecar.TEXTS)
    assert all(isinstance(fields[key], (int, float)) and 0 <= fields[key] < 2**54 for key in sidecar.NUMBERS)
    assert all(isinstance(item, str) for item in fields["command"])
    assert fields["job_pid"] is None or type(fields["job_pid"]) is int


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in {"job_pid", "job_started_at"}])
def test_a_missing_field_makes_it_malformed(name: str, tmp_path: Path) -> None:
    """A record without one of its fields is malformed, not half a record."""
    fields = {key: value for key, value in FIELDS.items() if key != name}
    sidecar.write(str(tmp_path / "x.json"), fields)
    assert sidecar.read(str(tmp_path / "x.json")) == sidecar.Reading(state="malformed")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{",
        b"[" * 100_000,
        content_of()[:-20],
        content_of(schema=0),
        content_of(task="a/b"),
        content_of(lease="../x"),
        content_of(fence=2**60),
        content_of(pid=True),
        content_of(ttl_seconds=None),
        content_of(command="rm"),
        content_of().replace(b"21600", b"1e999"),
        content_of().replace(b"21600", b"NaN"),
        content_of().replace(b"21600", b"9" * 5000),
        b" " * (sidecar.MAX_BYTES + 1) + content_of(),
    ],
)
def test_what_is_malformed(content: bytes, tmp_path: Path) -> None:
    """What stands there and is no whole record of ours is malformed, and nothing of it is believed (L12)."""
    (tmp_path / "x.json").write_bytes(content)
    assert sidecar.read(str(tmp_path / "x.json")) == sidecar.Reading(state="malformed")


def test_missing_is_no_fault(tmp_path: Path) -> None:
    """Nothing in the sidecar's place reads as missing (L12)."""
    assert sidecar.read(str(tmp_path / "x.json")) == sidecar.Reading(state="missing")


def test_what_is_unreadable(tmp_path: Path) -> None:
    """A directory, a symlink, a FIFO or a socket in its place reads as unreadable, at once (L12)."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    for name in ("directory", "link", "fifo"):
        assert sidecar.read(str(tmp_path / name)) == sidecar.Reading(state="unreadable")


def test_later_schemas_are_read() -> None:
    """A record of a later version with more fields is read for those that we know."""
    fields = sidecar.decoded(content_of(schema=2, more="x"))
    assert fields is not None and fields["task"] == "kbSync"


def test_a_leftover_of_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    """A temporary file that a crash or an attacker left is replaced, never written through."""
    path = tmp_path / "x.json"
    for leave in (lambda p: p.write_text("junk"), lambda p: p.symlink_to(tmp_path / "victim")):
        leave(tmp_path / "x.json.tmp")
        sidecar.write(str(path), FIELDS)
        assert sidecar.read(str(path)).state == "valid"
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["x.json", "x.json.tmp"])
def test_a_fifo_in_its_place_holds_nobody(tmp_path: Path, name: str) -> None:
    """Who has the lease writes its first record, whatever stands where the file of a crash was, and waits for no reader."""
    os.mkfifo(tmp_path / name, 0o600)
    sidecar.write(str(tmp_path / "x.json"), FIELDS, is_first=True)
    assert sidecar.read(str(tmp_path / "x.json")).fields == {"schema": 1, **FIELDS}
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("is_first", [False, True])
def test_what_cannot_be_written_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_first: bool
) -> None:
    """On a full disk the old record stands, and no temporary file stays behind."""
    path = tmp_path / "x.json"
    sidecar.write(str(path), FIELDS)
    monkeypatch.setattr(os, "write", lambda fd, content: len(content) - 1)
    with pytest.raises(OSError, match="No space left"):
        sidecar.write(str(path), {**FIELDS, "task": "other"}, is_first=is_first)
    assert sidecar.read(str(path)).fields == {"schema": 1, **FIELDS}
    assert os.listdir(tmp_path) == ["x.json"]


def test_removing_twice_is_no_fault(tmp_path: Path) -> None:
    """A record that is gone already is as removed as can be."""
    path = str(tmp_path / "x.json")
    sidecar.write(path, FIELDS)
    sidecar.remove(path)
    sidecar.remove(path)
    assert sidecar.read(path).state == "missing"
