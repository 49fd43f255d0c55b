from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintlock.model import ProcessIdentity
from maintlock.orchestrator import record
from maintlock.orchestrator.record import Held, Record, Started, decoded, encoded

ME = ProcessIdentity(pid=7, start_ticks=9, boot_id="b", pid_namespace="4026531836")
FULL = Record(
    identity=ME,
    owner="ada@laptop",
    started_at=1_000_000.0,
    polled_at=5.0,
    stopped_at=1_000_001.5,
    poll_interval=0.5,
    config="/etc/maintlock.toml",
    jobs={"kbSync": Started(identity=ME, at=1_000_000.25, reason="inbox:3", lease="heavy-maintenance")},
    daemons={"chroma": Started(identity=ME, at=1_000_000.0, restarts=3, restart_at=1_000_002.0)},
    held={"backup": Held(reason_code="queued", blocked_by=None, since=1_000_000.0)},
    troubles={"ledger": "busy"},
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A record reads back as it was written; its last poll is the file's time of change."""
    assert record.write(str(tmp_path), FULL)
    os.utime(tmp_path / "orchestrator.json", (5, 5))
    assert record.read(str(tmp_path)) == FULL
    assert (tmp_path / "orchestrator.json").stat().st_mode & 0o777 == 0o600


def test_a_poll_touches_only_the_time(tmp_path: Path) -> None:
    """To poll changes nothing but the time, and tells if what is there is not the file that was written."""
    path = tmp_path / "orchestrator.json"
    file = record.write(str(tmp_path), FULL)
    assert file is not None
    os.utime(path, (5, 5))
    before = path.read_bytes()
    assert record.touch(str(tmp_path), file)
    found = record.read(str(tmp_path))
    assert found is not None and found.polled_at > 1e9
    assert path.read_bytes() == before
    path.write_bytes(b"garbage")
    assert not record.touch(str(tmp_path), file)
    path.unlink()
    assert not record.touch(str(tmp_path), file)
    path.symlink_to(tmp_path / "other")
    assert not record.touch(str(tmp_path), file)
    assert not (tmp_path / "other").exists()


def test_replaced_in_the_moment_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that takes the record's place as soon as that is written is not taken for it."""
    real = record.wholefile.write

    def write(path: str, content: bytes, **options: Any) -> None:
        real(path, content, **options)
        Path(path).write_bytes(b"garbage")

    monkeypatch.setattr(record.wholefile, "write", write)
    file = record.write(str(tmp_path), FULL)
    assert file is not None
    assert not record.touch(str(tmp_path), file)


def test_it_cannot_be_written(tmp_path: Path) -> None:
    """A record that cannot be written is an answer, and the next one is written whole."""
    (tmp_path / "orchestrator.json").mkdir()
    assert record.write(str(tmp_path), FULL) is None
    assert record.read(str(tmp_path)) is None
    (tmp_path / "orchestrator.json").rmdir()
    assert record.write(str(tmp_path), FULL)
    assert record.write(f"{tmp_path}/gone", FULL) is None
    assert [path.name for path in tmp_path.iterdir()] == ["orchestrator.json"]


@pytest.mark.parametrize("kind", ["missing", "fifo", "symlink", "directory", "huge", "others"])
def test_what_is_no_record(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no regular file of ours, or too large, is no record, and is not waited for."""
    path = tmp_path / "orchestrator.json"
    record.write(str(tmp_path), FULL)
    content = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink":
        (tmp_path / "other").write_bytes(content)
        path.symlink_to(tmp_path / "other")
    elif kind == "directory":
        path.mkdir()
    elif kind == "huge":
        path.write_bytes(content + b" " * record.MAX_BYTES)
    elif kind == "others":
        path.write_bytes(content)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert record.read(str(tmp_path)) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b'{"schema": "1"}', b"\xff\xfe", b"[" * 100_000, b'{"schema": 1', b'{"schema": NaN}'],
    ids=range(9),
)
def test_garbage(content: bytes) -> None:
    """Garbage is no record."""
    assert decoded(content, polled_at=1.0) is None


@given(st.dictionaries(st.sampled_from([*encoded(FULL)]), JSON))
def test_parts_of_any_type(changed: dict[str, Any]) -> None:
    """Whatever its parts are, a record is read with the good ones, or not at all; nothing is raised."""
    found = decoded(json.dumps({**encoded(FULL), **changed}).encode(), polled_at=1.0)
    if isinstance(changed.get("schema", 1), int):
        assert found is not None
        if "jobs" not in changed:
            assert found.jobs == FULL.jobs
        assert isinstance(found.poll_interval, float) and found.poll_interval > 0


@given(JSON)
def test_entries_of_any_type(entry: Any) -> None:
    """A job, daemon, reason or trouble that is not one is left out, and those beside it stay."""
    fields = encoded(FULL)
    for name in ("jobs", "daemons", "held", "troubles"):
        fields[name] = {**fields[name], "strange": entry, "../../etc": entry, "": entry}
    found = decoded(json.dumps(fields).encode(), polled_at=1.0)
    assert found is not None
    assert found.jobs["kbSync"] == FULL.jobs["kbSync"] and found.held["backup"] == FULL.held["backup"]
    assert "../../etc" not in {*found.jobs, *found.daemons, *found.held}
